//! Tests of the whole: the borders between the rooms, and the service as its callers,
//! the customers' streams and the operating system see it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that meets what it does not expect has failed"
)]

mod borders;
mod delivery;
mod harness;
mod integrations;
mod process;
mod publish;
mod requests;
mod status;
mod verify;
