//! What a test event found out.

use std::time::Duration;

use uuid::Uuid;

use super::{integration::Snapshot, status::Fault};

/// What a test found, stage by stage.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// Whether the role could be assumed.
    pub assume_role: Result<AssumedWith, Fault>,
    /// Whether it can be assumed by whoever does not know the external ID; None where
    /// it could not be assumed at all.
    pub external_id: Option<ExternalIdProof>,
    /// Receipt of the record; None where the role could not be assumed, or is refused because
    /// it does not require the external ID.
    pub write: Option<Result<Receipt, Fault>>,
    /// From the first AWS call to the last answer.
    pub latency: Duration,
}

impl TestReport {
    /// Why the record is not in the stream; None where it is.
    pub fn fault(&self) -> Option<Fault> {
        match (&self.assume_role, &self.write) {
            (Err(fault), _) | (Ok(_), Some(Err(fault))) => Some(fault.clone()),
            (Ok(_), Some(Ok(_))) => None,
            (Ok(_), None) => Some(Fault::external_id_not_required()),
        }
    }
}

/// What a rehearsal found, stage by stage: a test that writes nothing.
#[derive(Clone, Debug)]
pub struct RehearsalReport {
    /// Whether the role could be assumed.
    pub assume_role: Result<AssumedWith, Fault>,
    /// As in a test.
    pub external_id: Option<ExternalIdProof>,
    /// Whether the stream would take a record; None where the role could not be assumed.
    pub write: Option<Result<Rehearsed, Fault>>,
}

/// With which external ID a role was assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssumedWith {
    /// The configured one.
    Current,
    /// The one before: the configured one is still refused.
    Previous,
}

/// How a write was rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rehearsed {
    /// Kinesis says that it would have succeeded.
    WouldSucceed,
    /// The endpoint does not know `DryRun` and wrote the record.
    Written,
}

/// Whether a role's trust policy requires the external ID, which is what keeps
/// [another customer] from having us assume it.
///
/// [another customer]: https://docs.aws.amazon.com/IAM/latest/UserGuide/confused-deputy.html
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalIdProof {
    /// It is refused without the external ID and with another one.
    Required,
    /// It can be assumed without an external ID.
    NotRequired,
    /// It can be assumed with any external ID.
    AnyAccepted,
    /// AWS gave no clear answer.
    Unclear(Fault),
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
