//! Integration tests: the service as its callers, the customers' streams and the operating system
//! see it, and the borders between its modules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "an unexpected value fails the test"
)]

mod audit;
mod borders;
mod callers;
mod ctl;
mod delivery;
mod docs;
mod doctor;
mod harness;
mod hostile_limits;
mod integrations;
mod keys;
mod notifications;
mod operator;
mod process;
mod publish;
mod requests;
mod secure;
#[cfg(feature = "kafka")]
mod shared;
mod status;
mod transport;
mod verify;
mod web;
