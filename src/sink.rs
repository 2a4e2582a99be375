//! The Sink port: a batch of records in, one outcome a record out.

mod assume_role;
mod aws;
mod clock;
mod config;
mod connection_log;
mod denials;
mod direct;
mod fault;
mod identity;
mod kinesis;
mod muted;
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
pub use read::{ReadError, ReadRecord, StreamReader};

pub use crate::domain::verdict::{
    AssumedWith, ExternalIdProof, Receipt, RehearsalReport, Rehearsed, TestReport,
};
use crate::domain::{
    arn::Partition,
    attribution::Standing,
    event::{Head, RECORD_OVERHEAD, UnreadableEvent, body_length, finish},
    external_id::ExternalId,
    integration::Integration,
    status::Fault,
};
use crate::gate::Gate;

/// One record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The Kinesis partition key.
    pub partition_key: Uuid,
    /// What lands in the stream.
    pub content: Content,
}

/// What a record has beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A record that is made of an event when it is sent.
    Event {
        /// The event's place in the integration's log.
        sequence: u64,
        /// The event as the log holds it.
        stored: Bytes,
    },
    /// A record as it is.
    Whole(Bytes),
}

impl Record {
    /// Appends what lands in the stream. `head` is the integration's.
    fn write(&self, head: &Head, out: &mut Vec<u8>) -> Result<(), UnreadableEvent> {
        match &self.content {
            Content::Event { sequence, stored } => finish(head, *sequence, stored, out),
            Content::Whole(data) => {
                out.extend_from_slice(data);
                Ok(())
            }
        }
    }

    /// How much [`Record::write`] appends.
    fn length(&self) -> Result<usize, UnreadableEvent> {
        match &self.content {
            Content::Event { stored, .. } => Ok(RECORD_OVERHEAD + body_length(stored)?),
            Content::Whole(data) => Ok(data.len()),
        }
    }

    fn data(&self, head: &Head) -> Result<Vec<u8>, UnreadableEvent> {
        let mut data = Vec::with_capacity(self.length()?);
        self.write(head, &mut data)?;
        Ok(data)
    }
}

/// What became of one record of an answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The stream has it.
    Accepted {
        /// The shard that took it.
        shard_id: Arc<str>,
        /// The number that Kinesis gave it.
        sequence_number: Box<str>,
    },
    /// The stream refused this record, though the request succeeded.
    Failed(Fault),
}

/// Writes to a customer's stream. Implementations do not retry, but for assuming
/// the role anew, once, when the credentials at hand turn out to be no longer good.
pub trait Sink: Send + Sync + 'static {
    /// Writes records with the credentials at hand, or with new ones where there are
    /// none. The outcomes are in the records' order, one a record. A fault means that
    /// no record is known to be accepted. Dropping the future cancels the call.
    fn put_records(
        &self,
        integration: &Arc<Integration>,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<Vec<RecordOutcome>, Fault>> + Send;

    /// Writes one record with credentials that are assumed anew, whatever is at hand, after
    /// trying whether the role can be assumed without knowing the external ID.
    fn test(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> impl Future<Output = TestReport> + Send;

    /// As [`Sink::test`] for an integration as it might be configured, writing nothing.
    /// Nothing that delivery relies on changes by what it finds.
    fn rehearse(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> impl Future<Output = RehearsalReport> + Send;

    /// How this service itself stands with AWS.
    fn standing(&self) -> watch::Receiver<Standing>;

    /// Partition of this service's own credentials, once it is known: ARNs of another one
    /// cannot be reached with them.
    fn partition(&self) -> Option<Partition>;

    /// Looks after the standing, for as long as it is polled. It never returns, and
    /// calls AWS once; then only while something is wrong.
    fn watch_standing(&self) -> impl Future<Output = ()> + Send;

    /// The gate of the calls that the sink makes on its own behalf. Who calls the sink
    /// enters it first; shutting it ends both.
    fn gate(&self) -> &Gate;

    /// Forgets what is kept for an integration that was deleted.
    fn forget(&self, integration_id: Uuid);
}

/// Opens sealed external IDs at the moment a role is assumed.
pub trait ExternalIds: Send + Sync + 'static {
    /// The external ID in clear, or [`Unreadable`] where the key does not fit.
    fn open(&self, integration: &Integration) -> Result<ExternalId, Unreadable>;

    /// The external ID before, while it still serves because its successor has not worked.
    fn open_previous(&self, integration: &Integration) -> Option<Result<ExternalId, Unreadable>>;

    /// Says that the external ID works, so that the one before is no longer needed.
    fn took_over(&self, integration: &Integration);

    /// Whether the integration still exists and is still configured so.
    fn is_current(&self, integration: &Integration) -> bool;
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
