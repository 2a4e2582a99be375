//! Everything that tests share: the service in this process or as the built binary, the stand-in
//! for AWS behind it, and what its callers, customers and operators see of it.

mod api;
mod callers;
mod customer;
mod database;
mod disk;
mod env;
mod faults;
mod feeds;
mod gateway;
mod http2;
mod load;
mod metrics;
mod process;
mod raw;
mod stream;
mod tool;
mod web;

use std::{future::Future, time::Duration};

pub use api::{Api, reason, violated, without_time};
pub use callers::{Callers, TokenKey, bearer};
pub use customer::Customer;
pub use database::{AuditRow, audit_rows, backdate_deliveries, backdate_log, database};
pub use disk::{Disk, SyncFaults};
pub use env::TestEnv;
pub use faults::{
    error, failing_records, fault, own_credentials_without_assume_role, stand_in, throttled_records,
};
pub use feeds::{FeedEvent, StatusFeed};
pub use gateway::Gateway;
pub use http2::{Http2, OpenCall, TlsClient, status};
pub use load::{Load, Published, detection, event};
pub use metrics::Metrics;
pub use process::{Process, ProcessEnv, StartError, serve};
pub use raw::{framed, gzip};
pub use stream::{
    DeliveredEvent, Gap, check_acked, check_complete, check_in_order, check_with_gaps, read_events,
};
pub use tool::{ToolOutput, reader_credentials, run, run_verify, run_with_input, tool, with_aws};
pub use web::{BINARY, TEXT, WebAnswer, WebClient, first_frame, parse_trailers, request};

/// Limit of every wait, for disks on which syncs take most of it. It only makes a test fail: no
/// test waits for it to pass.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Waits for a future; panics after [`TIMEOUT`].
pub async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("timed out waiting for {what}"),
    }
}

/// Prints a line, which `--nocapture` or a failure shows.
#[expect(clippy::print_stderr, reason = "figures of a test, beside its verdict")]
pub fn print(line: &str) {
    eprintln!("{line}");
}

/// The number in the environment variable `SIEM_RELAY_TEST_<name>`, or the default.
pub fn parameter(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("SIEM_RELAY_TEST_{name}"));
    given.map_or(default, |text| text.parse().unwrap())
}
