//! What a test event found out.

use std::time::Duration;

use uuid::Uuid;

use super::{integration::Snapshot, status::Fault};

/// What a test found, stage by stage.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// Whether the role could be assumed.
    pub assume_role: Result<(), Fault>,
    /// Where the record is; None where the role could not be assumed.
    pub write: Option<Result<Receipt, Fault>>,
    /// From the first AWS call to the last answer.
    pub latency: Duration,
}

/// Where a test record was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The shard that took it.
    pub shard_id: Box<str>,
    /// The number that Kinesis gave it.
    pub sequence_number: Box<str>,
}

/// What a test showed.
#[derive(Debug)]
pub struct TestVerdict {
    /// The CloudEvents id of the test event.
    pub event_id: Uuid,
    /// Stage by stage.
    pub report: TestReport,
    /// The integration after the test.
    pub after: Snapshot,
}

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TestError {
    /// There is none, or it was deleted meanwhile.
    #[error("the organization has no integration")]
    NoIntegration,
    /// The worker ends.
    #[error("the service is shutting down")]
    ShuttingDown,
}
