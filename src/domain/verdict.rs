//! Results of SendTest and of a Configure with `validate_only`.

use std::time::Duration;

use uuid::Uuid;

use super::{integration::Snapshot, status::Fault};

/// Results of a SendTest, stage by stage.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// Result of AssumeRole.
    pub assume_role: Result<AssumedWith, Fault>,
    /// Whether the trust policy requires the external ID; None if the role could not be
    /// assumed at all.
    pub external_id: Option<ExternalIdProof>,
    /// Receipt of the record; None if nothing was written because the role could not be
    /// assumed or does not require the external ID.
    pub write: Option<Result<Receipt, Fault>>,
    /// Time from the first AWS call to the last answer.
    pub latency: Duration,
}

impl TestReport {
    /// Reason why the record is not in the stream; None if it is.
    pub fn fault(&self) -> Option<Fault> {
        match (&self.assume_role, &self.write) {
            (Err(fault), _) | (Ok(_), Some(Err(fault))) => Some(fault.clone()),
            (Ok(_), Some(Ok(_))) => None,
            (Ok(_), None) => Some(Fault::external_id_not_required()),
        }
    }
}

/// Results of the checks of `validate_only`, stage by stage. They are those of a SendTest,
/// but the record is only tried with Kinesis' `DryRun`.
#[derive(Clone, Debug)]
pub struct ValidationReport {
    /// Result of AssumeRole.
    pub assume_role: Result<AssumedWith, Fault>,
    /// Whether the trust policy requires the external ID; None if the role could not be
    /// assumed at all.
    pub external_id: Option<ExternalIdProof>,
    /// Whether the stream would accept a record; None if the role could not be assumed.
    pub write: Option<Result<DryRun, Fault>>,
}

/// External ID with which a role was assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssumedWith {
    /// The configured one.
    Current,
    /// The previous one, because the configured one is refused.
    Previous,
}

/// Result of a write with Kinesis' `DryRun`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// Kinesis answered that the write would have succeeded.
    WouldSucceed,
    /// The endpoint does not support `DryRun` and wrote the record.
    Written,
}

/// Whether a role's trust policy requires the external ID. One that does not is open to the
/// [confused deputy problem]: another customer could have this service assume the role.
///
/// [confused deputy problem]: https://docs.aws.amazon.com/IAM/latest/UserGuide/confused-deputy.html
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalIdProof {
    /// AssumeRole is refused without the external ID and with another one.
    Required,
    /// AssumeRole succeeds without an external ID.
    NotRequired,
    /// AssumeRole succeeds with any external ID.
    AnyAccepted,
    /// AWS gave no clear answer.
    Unclear(Fault),
}

/// Position of a test record in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Shard that accepted it.
    pub shard_id: Box<str>,
    /// Kinesis' sequence number of it.
    pub sequence_number: Box<str>,
}

/// Outcome of a SendTest.
#[derive(Debug)]
pub struct TestVerdict {
    /// CloudEvents id of the test event.
    pub event_id: Uuid,
    /// Results stage by stage.
    pub report: TestReport,
    /// The integration after the test.
    pub after: Snapshot,
}

/// Reason why a test was not carried out or has no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TestError {
    /// The organization has no integration, or it was deleted during the test.
    #[error("the organization has no integration")]
    NoIntegration,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
}
