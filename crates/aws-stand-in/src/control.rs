//! The control handle: roles, streams, faults, records and counts, from Rust.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::fault::{Fault, FaultId};
use super::policy::PolicyError;
use super::state::{Shared, now_ms};
use super::stream::{Stream, StreamArn};

/// Steers a running stand-in and looks into it. Clones share the same stand-in.
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

    /// Creates a role, or replaces its policies: sessions go on under the new permission
    /// policy, and a new trust policy revokes none, as in AWS.
    ///
    /// # Errors
    /// The role's ARN or a policy is invalid.
    pub fn put_role(&self, role: RoleSpec) -> Result<(), ControlError> {
        self.shared.identities.put_role(role)
    }

    /// Deletes a role, and with it its sessions. Answers whether it was there.
    pub fn delete_role(&self, role_arn: &str) -> bool {
        self.shared.identities.delete_role(role_arn)
    }

    /// Lets every session expire at once, whatever its credentials say; answers how many.
    pub fn expire_sessions(&self) -> usize {
        self.shared.identities.expire_sessions()
    }

    /// Lets sessions that are issued from now on end early; `None` ends this.
    pub fn set_session_lifetime(&self, lifetime: Option<SessionLifetime>) {
        self.shared.settings().session_lifetime = lifetime;
    }

    /// Sets the stand-in's clock off this machine's by so many seconds: callers see it in the
    /// header `Date`, in the expiration of sessions, and where their signatures are refused.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.shared.settings().clock_offset_seconds = seconds;
    }

    /// Turns the write limits of shards on or off.
    pub fn set_enforce_shard_limits(&self, enforce: bool) {
        self.shared.settings().enforce_shard_limits = enforce;
    }

    /// Creates a stream, which is active at once.
    ///
    /// # Errors
    /// The ARN or the number of shards is invalid, or the stream exists.
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

    /// Deletes a stream and its records. Answers whether it was there.
    pub fn delete_stream(&self, stream_arn: &str) -> bool {
        self.shared.streams.delete(stream_arn)
    }

    /// All streams, by ARN.
    pub fn streams(&self) -> Vec<StreamStats> {
        self.shared
            .streams
            .list()
            .iter()
            .map(|stream| stream.stats())
            .collect()
    }

    /// How a stream stands.
    ///
    /// # Errors
    /// The stream does not exist.
    pub fn stream(&self, stream_arn: &str) -> Result<StreamStats, ControlError> {
        Ok(self.find(stream_arn)?.stats())
    }

    /// Records of all shards in order of arrival: those with index `from` on that are still
    /// retained, at most `max`.
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

    /// Follows a stream from its oldest retained record on.
    ///
    /// # Errors
    /// The stream does not exist.
    pub fn subscribe(&self, stream_arn: &str) -> Result<RecordStream, ControlError> {
        let stream = self.find(stream_arn)?;
        Ok(RecordStream {
            progress: stream.watch(),
            stream,
            next_index: 0,
            ready: Vec::new().into_iter(),
        })
    }

    /// Sets a fault. Several stand together: delays add up, and the first that ends the call does.
    ///
    /// # Errors
    /// A value of the fault is out of its range.
    pub fn add_fault(&self, fault: Fault) -> Result<FaultId, ControlError> {
        self.shared.faults.add(fault)
    }

    /// The faults that are set, with the number of calls that each still has.
    pub fn faults(&self) -> Vec<(FaultId, Fault)> {
        self.shared.faults.list()
    }

    /// Clears a fault; calls that hang on it go on. Answers whether it was set.
    pub fn clear_fault(&self, id: FaultId) -> bool {
        self.shared.faults.clear(Some(id)) > 0
    }

    /// Clears all faults; answers how many.
    pub fn clear_faults(&self) -> usize {
        self.shared.faults.clear(None)
    }

    /// Calls by operation, target and outcome.
    pub fn calls(&self) -> Vec<CallCount> {
        self.shared.calls.list()
    }

    /// What the call was that was answered with this request id; the newest 10,000 are known.
    pub fn answered(&self, request_id: &str) -> Option<AnsweredCall> {
        self.shared.calls.find(request_id)
    }

    /// How many calls of an operation had this outcome (`OK` or an error code), or any.
    pub fn call_count(&self, operation: Operation, outcome: Option<&str>) -> u64 {
        self.calls()
            .iter()
            .filter(|call| call.operation == operation)
            .filter(|call| outcome.is_none_or(|outcome| outcome == call.outcome))
            .map(|call| call.count)
            .sum()
    }

    /// What was sent in a way that puts the order per partition key at risk.
    pub fn hazards(&self) -> HazardCounts {
        self.shared.hazards.counts()
    }

    /// Sets the counts of calls and hazards to zero.
    pub fn reset_counts(&self) {
        self.shared.calls.reset();
        self.shared.hazards.reset();
    }

    fn find(&self, stream_arn: &str) -> Result<Arc<Stream>, ControlError> {
        let stream = self.shared.streams.get(stream_arn);
        stream.ok_or_else(|| ControlError::NoSuchStream(stream_arn.to_owned()))
    }
}

/// The records of one stream in order of arrival, without end.
///
/// Holds at most a few hundred records at a time. A reader that falls behind what the
/// stand-in retains misses records: their indexes are not there.
pub struct RecordStream {
    stream: Arc<Stream>,
    progress: watch::Receiver<(u64, bool)>,
    next_index: u64,
    ready: std::vec::IntoIter<Record>,
}

impl RecordStream {
    /// Waits for the next record; `None` once the stream is deleted and read to its end.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.ready.next() {
                self.next_index = record.index + 1;
                return Some(record);
            }
            let exists = self.progress.borrow_and_update().1;
            self.ready = self.stream.records(self.next_index, 256).into_iter();
            if self.ready.len() == 0 && (!exists || self.progress.changed().await.is_err()) {
                return None;
            }
        }
    }
}

/// Why a control call was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Not an ARN of the kind that is needed here.
    #[error("invalid ARN {0:?}: give the full ARN of a role, user or stream")]
    InvalidArn(String),
    /// A policy document that this stand-in does not understand.
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
    /// There is no such stream.
    #[error("no stream {0}: create it first")]
    NoSuchStream(String),
}

/// The operations that the stand-in knows, under AWS' names.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[allow(missing_docs, reason = "the names are AWS' own")]
pub enum Operation {
    AssumeRole,
    GetCallerIdentity,
    PutRecord,
    PutRecords,
    CreateStream,
    DeleteStream,
    DescribeStreamSummary,
    ListShards,
    ListStreams,
    GetShardIterator,
    GetRecords,
    SplitShard,
}

impl Operation {
    /// The operation with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "AssumeRole" => Self::AssumeRole,
            "GetCallerIdentity" => Self::GetCallerIdentity,
            "PutRecord" => Self::PutRecord,
            "PutRecords" => Self::PutRecords,
            "CreateStream" => Self::CreateStream,
            "DeleteStream" => Self::DeleteStream,
            "DescribeStreamSummary" => Self::DescribeStreamSummary,
            "ListShards" => Self::ListShards,
            "ListStreams" => Self::ListStreams,
            "GetShardIterator" => Self::GetShardIterator,
            "GetRecords" => Self::GetRecords,
            "SplitShard" => Self::SplitShard,
            _ => return None,
        })
    }

    /// The action that a policy must allow.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::AssumeRole => "sts:AssumeRole",
            Self::GetCallerIdentity => "sts:GetCallerIdentity",
            Self::PutRecord => "kinesis:PutRecord",
            Self::PutRecords => "kinesis:PutRecords",
            Self::CreateStream => "kinesis:CreateStream",
            Self::DeleteStream => "kinesis:DeleteStream",
            Self::DescribeStreamSummary => "kinesis:DescribeStreamSummary",
            Self::ListShards => "kinesis:ListShards",
            Self::ListStreams => "kinesis:ListStreams",
            Self::GetShardIterator => "kinesis:GetShardIterator",
            Self::GetRecords => "kinesis:GetRecords",
            Self::SplitShard => "kinesis:SplitShard",
        }
    }
}

/// Credentials of a user, which do not expire. They do not print.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongTermCredentials {
    /// The access key id.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: String,
    /// Whose they are, such as `arn:aws:iam::111111111111:user/relay`.
    pub principal_arn: String,
    /// What the principal may do, as policy JSON; none is everything in its own account, and
    /// sts:AssumeRole anywhere.
    #[serde(default)]
    pub policy: Option<String>,
}

/// A role. Its policies may hold external IDs, so it does not print.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// `arn:aws:iam::222222222222:role/NAME`.
    pub role_arn: String,
    /// Who may assume it, as policy JSON.
    pub trust_policy: String,
    /// What it may do, as policy JSON; none is nothing.
    #[serde(default)]
    pub permission_policy: Option<String>,
    /// The longest session, in seconds: AWS' default is an hour.
    #[serde(default = "one_hour")]
    pub max_session_seconds: u32,
}

fn one_hour() -> u32 {
    3600
}

impl RoleSpec {
    /// A role with sessions of up to an hour.
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
    /// Its shards, 1 to 10,000.
    #[serde(default = "one_shard")]
    pub shards: u32,
    /// A customer's key that encrypts it: writing then also needs `kms:GenerateDataKey` on it,
    /// and reading `kms:Decrypt`.
    #[serde(default)]
    pub kms_key_arn: Option<String>,
}

fn one_shard() -> u32 {
    1
}

impl StreamSpec {
    /// A stream that is not encrypted under a customer's key.
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

/// Ends sessions early.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SessionLifetime {
    /// The lifetime in seconds, in place of DurationSeconds.
    pub seconds: u32,
    /// Whether AssumeRole's answer tells of it. If not, credentials turn out to be expired
    /// before their time.
    #[serde(default)]
    pub announced: bool,
}

/// A record that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order of arrival over all shards of its stream, from 0.
    pub index: u64,
    /// The shard, `shardId-…`.
    pub shard_id: String,
    /// The sequence number.
    pub sequence_number: String,
    /// The partition key.
    pub partition_key: String,
    /// The data.
    pub data: Bytes,
    /// When it arrived, in milliseconds since 1970.
    pub arrived_at_ms: i64,
}

/// How a stream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream.
    pub stream_arn: String,
    /// Shards that take records.
    pub open_shards: u32,
    /// Records accepted since its creation.
    pub accepted: u64,
    /// Records that were dropped to keep memory bounded, oldest first.
    pub dropped: u64,
    /// Bytes of data and keys that are retained.
    pub retained_bytes: u64,
}

/// How often an operation had an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallCount {
    /// The operation.
    pub operation: Operation,
    /// The stream or role as the caller named it; empty where it named none.
    pub target: String,
    /// `OK`, `Reset`, `Garbage`, `Cancelled` (the caller hung up), or an error code.
    pub outcome: String,
    /// How often.
    pub count: u64,
}

/// One call, found by the request id that it was answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnsweredCall {
    /// The operation.
    pub operation: Operation,
    /// The stream or role as the caller named it; empty where it named none.
    pub target: String,
    /// As in [`CallCount`].
    pub outcome: String,
    /// Which one it was of those with that operation, target and outcome, from 1.
    pub nth: u64,
    /// How many records it carried.
    pub records: usize,
}

/// Calls that put the order of records per partition key at risk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HazardCounts {
    /// PutRecord(s) calls that arrived while another call to the same stream, not answered
    /// yet, carried one of their partition keys.
    pub overlapping_keys: u64,
    /// PutRecord(s) calls that sent a record of a partition key while records of that key
    /// had failed and not been accepted since, other than these themselves, the oldest first.
    pub overtaken_keys: u64,
}
