//! Real PostgreSQL and Kafka for tests, as processes on free loopback ports and in temporary
//! directories, and a TCP proxy in front of them.
//!
//! `tests/services/install` provides them; without them a start returns [`Missing`]. Anything
//! else that fails, panics with the log of the service. Processes and directories are removed when
//! their handle is dropped, and when the test process ends in any way. Linux only: processes are
//! found in `/proc`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "an unexpected value fails the test"
)]

mod kafka;
mod postgres;
mod processes;
mod proxy;

use std::{env, future::Future, time::Duration};

use thiserror::Error;
use tokio::sync::OnceCell;

pub use kafka::{Kafka, KafkaOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use proxy::Proxy;

/// Limit of every wait, for machines that many processes share. It only makes a test fail.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A service that this machine lacks.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{name} is missing: tests/services/install provides it")]
pub struct Missing {
    /// Name of the service.
    pub name: &'static str,
}

/// Returns the service, or prints that the test is skipped and returns None if the service is
/// missing.
///
/// # Panics
///
/// If the service is missing and the environment has `SIEM_RELAY_TEST_REQUIRED=1`.
#[expect(clippy::print_stderr, reason = "the result of a test that is skipped")]
pub fn require<T>(service: Result<T, Missing>) -> Option<T> {
    match service {
        Ok(service) => Some(service),
        Err(missing) if env::var("SIEM_RELAY_TEST_REQUIRED").as_deref() == Ok("1") => {
            panic!("{missing}")
        }
        Err(missing) => {
            eprintln!("SKIPPED: {missing}");
            None
        }
    }
}

/// PostgreSQL that all tests of this process share, without syncs to disk. Each test makes a
/// database of its own in it, and leaves the server alone.
pub async fn shared_postgres() -> Result<&'static Postgres, Missing> {
    static SHARED: OnceCell<Result<Postgres, Missing>> = OnceCell::const_new();
    let options = PostgresOptions {
        fast: true,
        ..PostgresOptions::default()
    };
    let start = || Postgres::start_with(options);
    SHARED
        .get_or_init(start)
        .await
        .as_ref()
        .map_err(|missing| *missing)
}

/// One Kafka broker that all tests of this process share. Each test makes topics of its own in it,
/// and leaves the broker alone.
pub async fn shared_kafka() -> Result<&'static Kafka, Missing> {
    static SHARED: OnceCell<Result<Kafka, Missing>> = OnceCell::const_new();
    let start = || Kafka::start(1);
    SHARED
        .get_or_init(start)
        .await
        .as_ref()
        .map_err(|missing| *missing)
}

/// Waits for a future; panics after [`TIMEOUT`].
async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("timed out waiting for {what}"),
    }
}
