//! The control handle: roles, streams, faults, records and counts, from Rust.

mod types;

use std::sync::Arc;

use tokio::sync::watch;

use super::fault::{Fault, FaultId};
use super::state::{Shared, now_ms};
use super::stream::{Stream, StreamArn};
pub use types::{
    AnsweredCall, CallCount, ControlError, HazardCounts, LongTermCredentials, Operation, Record,
    RoleSpec, SessionLifetime, StreamSpec, StreamStats,
};

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
