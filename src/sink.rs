//! The Sink port: a batch of records in, one outcome per record out.

mod assume_role;
mod aws;
mod clock;
mod config;
mod connection_log;
mod direct;
mod examine;
mod fault;
mod identity;
mod kinesis;
mod msk;
mod muted;
mod pace;
mod profile;
mod read;
mod sessions;
mod signer;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{fmt, future::Future, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;
use uuid::Uuid;

pub use aws::AwsSink;
pub use config::{AwsOptions, PutRecordsClient, StandInAccess};
#[cfg(feature = "fuzzing")]
pub use direct::fuzz_answer;
pub use examine::{Examination, Examiner};
pub use msk::{MskToken, MskTokens};
pub use profile::credential_process;
pub use read::{ReadError, ReadRecord, StreamReader};

pub use crate::domain::delivery::RecordOutcome;
pub use crate::domain::verdict::{
    AssumedWith, DryRun, ExternalIdProof, Receipt, TestReport, ValidationReport,
};
use crate::domain::{
    arn::Partition,
    attribution::IdentityState,
    event::{RECORD_OVERHEAD, RecordHead, UnreadableEvent, body_length, render_record},
    external_id::ExternalId,
    integration::{Integration, IntegrationId},
    status::Fault,
    trace::TraceContext,
};

/// A record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Partition key in Kinesis.
    pub partition_key: Uuid,
    /// Content of the record.
    pub content: Content,
}

/// Content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An event, rendered when the record is sent.
    Event {
        /// Sequence of the event within the integration.
        sequence: u64,
        /// The event as stored in the log.
        stored: Bytes,
    },
    /// Rendered data.
    Whole(Bytes),
}

impl Record {
    /// Appends the record's data. `head` is that of the integration.
    fn write(&self, head: &RecordHead, out: &mut Vec<u8>) -> Result<(), UnreadableEvent> {
        match &self.content {
            Content::Event { sequence, stored } => render_record(head, *sequence, stored, out),
            Content::Whole(data) => {
                out.extend_from_slice(data);
                Ok(())
            }
        }
    }

    /// Length that [`Record::write`] appends.
    fn length(&self) -> Result<usize, UnreadableEvent> {
        match &self.content {
            Content::Event { stored, .. } => Ok(RECORD_OVERHEAD + body_length(stored)?),
            Content::Whole(data) => Ok(data.len()),
        }
    }

    fn data(&self, head: &RecordHead) -> Result<Vec<u8>, UnreadableEvent> {
        let mut data = Vec::with_capacity(self.length()?);
        self.write(head, &mut data)?;
        Ok(data)
    }
}

/// Writes to a customer's stream. Implementations do not retry, except once with a newly
/// assumed role if the cached session is no longer valid.
pub trait Sink: Send + Sync + 'static {
    /// Writes records with the cached session, or with a new one. The outcomes are in the
    /// order of the records, one per record. After a fault no record is known to be accepted.
    /// Dropping the future cancels the call.
    fn put_records(
        &self,
        integration: &Arc<Integration>,
        records: Vec<Record>,
        traces: &[TraceContext],
    ) -> impl Future<Output = Result<Vec<RecordOutcome>, Fault>> + Send;

    /// Writes one record with a newly assumed session, whatever is cached, after probing
    /// whether the role can be assumed without knowing the external ID.
    fn test(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> impl Future<Output = TestReport> + Send;

    /// Same as [`Sink::test`] for a configuration that is not saved, writing nothing. The result
    /// does not change the cached sessions or the evidence that delivery relies on.
    fn validate_only(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> impl Future<Output = ValidationReport> + Send;

    /// State of this service's own AWS identity.
    fn identity_state(&self) -> watch::Receiver<IdentityState>;

    /// Partition of this service's own credentials, once known. Its credentials are not valid
    /// for ARNs of another partition.
    fn partition(&self) -> Option<Partition>;

    /// Account of this service's own credentials, 12 digits, once STS has answered.
    fn account(&self) -> Option<Arc<str>>;

    /// Keeps the identity state up to date while it is polled; never returns. Calls AWS once
    /// at first, and then only while the state is not good.
    fn watch_identity(&self) -> impl Future<Output = ()> + Send;

    /// Drops the cached sessions of a deleted integration.
    fn forget(&self, integration_id: IntegrationId);
}

/// Decrypts external IDs at the moment a role is assumed.
pub trait ExternalIds: Send + Sync + 'static {
    /// The external ID in clear.
    fn open(&self, integration: &Integration) -> Result<ExternalId, Unreadable>;

    /// The previous external ID, kept until a role was assumed with its successor.
    fn open_previous(&self, integration: &Integration) -> Option<Result<ExternalId, Unreadable>>;

    /// Reports that a role was assumed with the current external ID, so that the previous one
    /// is no longer needed.
    fn current_accepted(&self, integration: &Integration);

    /// Whether the integration exists in this version.
    fn is_current(&self, integration: &Integration) -> bool;

    /// Whether the sink may make a call of its own for the integration, such as the renewal of a
    /// session. Not after the end of this instance's lease, when others answer for deletions.
    fn may_call(&self, integration: &Integration) -> bool {
        self.is_current(integration)
    }
}

/// The external ID cannot be decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the external ID cannot be decrypted with this service's key")
    }
}

impl std::error::Error for Unreadable {}
