//! Integration tests: the service as its callers, the customers' streams and the operating system
//! see it, and the borders between its modules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "an unexpected value fails the test"
)]

mod borders;
mod delivery;
mod docs;
mod harness;
mod integrations;
mod process;
mod publish;
mod requests;
#[cfg(feature = "kafka")]
mod shared;
mod status;
mod verify;
