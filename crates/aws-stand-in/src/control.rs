//! The control handle from Rust: roles, streams, faults, records and counts.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::fault::{Fault, FaultId};
use super::policy::PolicyError;
use super::state::{Shared, now_ms};
use super::stream::{Stream, StreamArn};

/// Changes and inspects a running stand-in. Clones refer to the same stand-in.
#[derive(Clone)]
pub struct Control {
    pub(super) shared: Arc<Shared>,
}

impl Control {
    /// Adds long-term credentials, or replaces those with the same access key id.
    ///
    /// # Errors
    /// The principal's ARN or the policy is invalid.
    pub fn put_credentials(&self, credentials: LongTermCredentials) -> Result<(), ControlError> {
        self.shared.identities.put_credentials(credentials)
    }

    /// Creates a role, or replaces its policies. As in AWS, existing sessions remain valid: the
    /// new permission policy applies to them, and a new trust policy revokes none.
    ///
    /// # Errors
    /// The role's ARN or a policy is invalid.
    pub fn put_role(&self, role: RoleSpec) -> Result<(), ControlError> {
        self.shared.identities.put_role(role)
    }

    /// Deletes a role and thereby its sessions. Returns whether it existed.
    pub fn delete_role(&self, role_arn: &str) -> bool {
        self.shared.identities.delete_role(role_arn)
    }

    /// Expires all sessions now, before their announced expiration. Returns their number.
    pub fn expire_sessions(&self) -> usize {
        self.shared.identities.expire_sessions()
    }

    /// Shortens the sessions that are issued from now on. `None` restores their full lifetime.
    pub fn set_session_lifetime(&self, lifetime: Option<SessionLifetime>) {
        self.shared.settings().session_lifetime = lifetime;
    }

    /// Sets the offset of the stand-in's clock from the machine's clock. Callers see it in the
    /// header `Date`, in the expiration of sessions, and in refused signatures.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.shared.settings().clock_offset_seconds = seconds;
    }

    /// Turns the write limits of shards on or off.
    pub fn set_enforce_shard_limits(&self, enforce: bool) {
        self.shared.settings().enforce_shard_limits = enforce;
    }

    /// Creates a stream, which is immediately active.
    ///
    /// # Errors
    /// The ARN or the number of shards is invalid, or the stream exists already.
    pub fn create_stream(&self, stream: StreamSpec) -> Result<(), ControlError> {
        let id = StreamArn::parse(&stream.stream_arn)
            .ok_or_else(|| ControlError::InvalidArn(stream.stream_arn.clone()))?;
        stream.validate()?;
        if self.shared.streams.create(id, &stream, now_ms()) {
            Ok(())
        } else {
            Err(ControlError::StreamExists(stream.stream_arn))
        }
    }

    /// Deletes a stream and its records. Returns whether it existed.
    pub fn delete_stream(&self, stream_arn: &str) -> bool {
        self.shared.streams.delete(stream_arn)
    }

    /// Counts of all streams, sorted by ARN.
    pub fn streams(&self) -> Vec<StreamStats> {
        self.shared
            .streams
            .list()
            .iter()
            .map(|stream| stream.stats())
            .collect()
    }

    /// Counts of one stream.
    ///
    /// # Errors
    /// The stream does not exist.
    pub fn stream(&self, stream_arn: &str) -> Result<StreamStats, ControlError> {
        Ok(self.find(stream_arn)?.stats())
    }

    /// Retained records of all shards with index `from` and above, in order of arrival, at most
    /// `max`.
    ///
    /// # Errors
    /// The stream does not exist.
    pub fn records(
        &self,
        stream_arn: &str,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, ControlError> {
        Ok(self.find(stream_arn)?.records(from, max))
    }

    /// Follows a stream, starting at its oldest retained record.
    ///
    /// # Errors
    /// The stream does not exist.
    pub fn subscribe(&self, stream_arn: &str) -> Result<RecordStream, ControlError> {
        let stream = self.find(stream_arn)?;
        Ok(RecordStream {
            progress: stream.watch(),
            stream,
            next_index: 0,
            buffered: Vec::new().into_iter(),
        })
    }

    /// Adds a fault. Faults combine in the order added: delays add up, and the first fault that
    /// ends the call decides its outcome.
    ///
    /// # Errors
    /// A value of the fault is out of range.
    pub fn add_fault(&self, fault: Fault) -> Result<FaultId, ControlError> {
        self.shared.faults.add(fault)
    }

    /// Faults that are set; `calls` is the number of calls left.
    pub fn faults(&self) -> Vec<(FaultId, Fault)> {
        self.shared.faults.list()
    }

    /// Clears a fault; calls that it holds up continue. Returns whether it was set.
    pub fn clear_fault(&self, id: FaultId) -> bool {
        self.shared.faults.clear(Some(id)) > 0
    }

    /// Clears all faults. Returns their number.
    pub fn clear_faults(&self) -> usize {
        self.shared.faults.clear(None)
    }

    /// Number of calls by operation, target and outcome.
    pub fn calls(&self) -> Vec<CallCount> {
        self.shared.call_log.counts()
    }

    /// Call whose response carried this request id, if it is among the newest 10,000.
    pub fn call_by_request_id(&self, request_id: &str) -> Option<AnsweredCall> {
        self.shared.call_log.find(request_id)
    }

    /// Number of calls of an operation with this outcome (`OK` or an error code), or with any.
    pub fn call_count(&self, operation: Operation, outcome: Option<&str>) -> u64 {
        self.calls()
            .iter()
            .filter(|call| call.operation == operation)
            .filter(|call| outcome.is_none_or(|outcome| outcome == call.outcome))
            .map(|call| call.count)
            .sum()
    }

    /// Number of calls that could reorder the records of a partition key.
    pub fn hazards(&self) -> HazardCounts {
        self.shared.order_hazards.counts()
    }

    /// Sets the counts of calls and of order hazards to zero.
    pub fn reset_counts(&self) {
        self.shared.call_log.reset();
        self.shared.order_hazards.reset();
    }

    fn find(&self, stream_arn: &str) -> Result<Arc<Stream>, ControlError> {
        let stream = self.shared.streams.get(stream_arn);
        stream.ok_or_else(|| ControlError::NoSuchStream(stream_arn.to_owned()))
    }
}

/// Endless reader of the records of one stream, in order of arrival.
///
/// Buffers at most 256 records. A reader slower than the stand-in's retention misses records,
/// which shows as a gap in their indexes.
pub struct RecordStream {
    stream: Arc<Stream>,
    progress: watch::Receiver<(u64, bool)>,
    next_index: u64,
    buffered: std::vec::IntoIter<Record>,
}

impl RecordStream {
    /// Waits for the next record; `None` once the stream is deleted and read to its end.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.buffered.next() {
                self.next_index = record.index + 1;
                return Some(record);
            }
            let exists = self.progress.borrow_and_update().1;
            self.buffered = self.stream.records(self.next_index, 256).into_iter();
            if self.buffered.len() == 0 && (!exists || self.progress.changed().await.is_err()) {
                return None;
            }
        }
    }
}

/// Reason for refusing a control call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Not an ARN of the required kind.
    #[error("invalid ARN {0:?}: give the full ARN of a role, user or stream")]
    InvalidArn(String),
    /// A policy document that the stand-in cannot evaluate.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A fault with a value out of range.
    #[error("invalid fault: {0}")]
    InvalidFault(String),
    /// The number of shards is not from 1 to 10,000.
    #[error("invalid shards {0}: give 1 to 10000")]
    InvalidShards(u32),
    /// The stream exists already.
    #[error("stream {0} exists already: delete it first")]
    StreamExists(String),
    /// The stream does not exist.
    #[error("no stream {0}: create it first")]
    NoSuchStream(String),
}

macro_rules! operations {
    ($($service:literal: $($name:ident)+;)+) => {
        /// Supported operations, under AWS' names.
        #[derive(
            Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
        )]
        pub enum Operation {
            $($(#[doc = concat!("`", $service, ":", stringify!($name), "`.")] $name,)+)+
        }

        impl Operation {
            /// Returns the operation with this name.
            pub(crate) fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($(stringify!($name) => Some(Self::$name),)+)+
                    _ => None,
                }
            }

            /// IAM action that a policy must allow.
            pub(crate) fn action(self) -> &'static str {
                match self {
                    $($(Self::$name => concat!($service, ":", stringify!($name)),)+)+
                }
            }
        }
    };
}

operations! {
    "sts": AssumeRole GetCallerIdentity;
    "kinesis": PutRecord PutRecords CreateStream DeleteStream DescribeStreamSummary ListShards
        ListStreams GetShardIterator GetRecords SplitShard;
}

impl Operation {
    pub(crate) fn is_sts(self) -> bool {
        self.action().starts_with("sts:")
    }
}

/// Credentials of a user, which do not expire. Without `Debug`, to keep the secret out of logs.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongTermCredentials {
    /// The access key id.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: String,
    /// ARN of the principal they belong to, such as `arn:aws:iam::111111111111:user/relay`.
    pub principal_arn: String,
    /// Identity policy as JSON. Without one, every action in the principal's own account and
    /// `sts:AssumeRole` in all accounts is allowed.
    #[serde(default)]
    pub policy: Option<String>,
}

/// A role. Without `Debug`, because its policies may contain external IDs.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// `arn:aws:iam::222222222222:role/NAME`.
    pub role_arn: String,
    /// Trust policy as JSON: the principals that may assume the role.
    pub trust_policy: String,
    /// Permission policy as JSON. Without one, no action is allowed.
    #[serde(default)]
    pub permission_policy: Option<String>,
    /// Longest session in seconds; AWS' default is one hour.
    #[serde(default = "one_hour")]
    pub max_session_seconds: u32,
}

fn one_hour() -> u32 {
    3600
}

impl RoleSpec {
    /// A role with sessions of up to one hour.
    pub fn new(
        role_arn: impl Into<String>,
        trust_policy: impl Into<String>,
        permission_policy: impl Into<String>,
    ) -> Self {
        Self {
            role_arn: role_arn.into(),
            trust_policy: trust_policy.into(),
            permission_policy: Some(permission_policy.into()),
            max_session_seconds: one_hour(),
        }
    }
}

/// A stream to create.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSpec {
    /// `arn:aws:kinesis:us-east-1:222222222222:stream/NAME`.
    pub stream_arn: String,
    /// Number of shards, 1 to 10,000.
    #[serde(default = "one_shard")]
    pub shards: u32,
    /// Customer-managed key that encrypts the stream. Writing then also requires
    /// `kms:GenerateDataKey` on the key, and reading `kms:Decrypt`.
    #[serde(default)]
    pub kms_key_arn: Option<String>,
}

fn one_shard() -> u32 {
    1
}

impl StreamSpec {
    /// A stream without a customer-managed key.
    pub fn new(stream_arn: impl Into<String>, shards: u32) -> Self {
        Self {
            stream_arn: stream_arn.into(),
            shards,
            kms_key_arn: None,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ControlError> {
        if (1..=10_000).contains(&self.shards) {
            Ok(())
        } else {
            Err(ControlError::InvalidShards(self.shards))
        }
    }
}

/// Shortened lifetime of sessions.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SessionLifetime {
    /// Lifetime in seconds, instead of the requested DurationSeconds.
    pub seconds: u32,
    /// Whether AssumeRole's response states the shortened expiration. Otherwise it states the
    /// requested one, and credentials expire before it.
    #[serde(default)]
    pub announced: bool,
}

/// An accepted record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in the order of arrival over all shards of the stream, from 0.
    pub index: u64,
    /// Shard id, `shardId-…`.
    pub shard_id: String,
    /// Sequence number.
    pub sequence_number: String,
    /// Partition key.
    pub partition_key: String,
    /// Data.
    pub data: Bytes,
    /// Time of arrival in milliseconds since 1970.
    pub arrived_at_ms: i64,
}

/// Counts of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// ARN of the stream.
    pub stream_arn: String,
    /// Shards that are open for writing.
    pub open_shards: u32,
    /// Records accepted since its creation.
    pub accepted: u64,
    /// Records dropped by the memory limit, oldest first.
    pub dropped: u64,
    /// Retained bytes of data and keys.
    pub retained_bytes: u64,
}

/// Number of calls of an operation on a target with an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallCount {
    /// Operation.
    pub operation: Operation,
    /// Stream or role as the caller named it; empty if it named none.
    pub target: String,
    /// `OK`, `Reset`, `Garbage`, `Cancelled` (the caller closed the connection), or an error code.
    pub outcome: String,
    /// Number of calls.
    pub count: u64,
}

/// One call, found by the request id of its response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnsweredCall {
    /// Operation.
    pub operation: Operation,
    /// Stream or role as the caller named it; empty if it named none.
    pub target: String,
    /// Outcome, as in [`CallCount`].
    pub outcome: String,
    /// Number of the call among those with the same operation, target and outcome, from 1.
    pub nth: u64,
    /// Number of records in the request.
    pub records: usize,
}

/// Number of PutRecord and PutRecords calls that could reorder the records of a partition key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HazardCounts {
    /// Calls that arrived while another call in flight to the same stream carried one of their
    /// partition keys.
    pub overlapping_keys: u64,
    /// Calls that sent a record of a partition key before the records of that key that had
    /// failed and not been accepted since. Sending the failed ones again, oldest first, is no
    /// hazard.
    pub overtaken_keys: u64,
}
