//! Data streams in memory: shards, records, write limits, retention.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::control::{Record, StreamSpec, StreamStats};

/// Write limit of a shard in records per second ("Quotas and limits", Kinesis Developer Guide).
const RECORDS_PER_SECOND: f64 = 1000.0;
/// Write limit of a shard in bytes per second, partition keys included.
const BYTES_PER_SECOND: f64 = 1_048_576.0;

/// An ARN `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamArn {
    pub(super) arn: String,
    pub(super) region: String,
    pub(super) account: String,
    pub(super) name: String,
}

impl StreamArn {
    pub(super) fn parse(arn: &str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, "kinesis", region, account, resource] = parts[..] else {
            return None;
        };
        let name = resource.strip_prefix("stream/")?;
        let account_is_valid = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let valid = partition.starts_with("aws") && account_is_valid && is_stream_name(name);
        valid.then(|| Self::new(partition, region, account, name))
    }

    pub(super) fn new(partition: &str, region: &str, account: &str, name: &str) -> Self {
        Self {
            arn: format!("arn:{partition}:kinesis:{region}:{account}:stream/{name}"),
            region: region.to_owned(),
            account: account.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// `[a-zA-Z0-9_.-]{1,128}`.
pub(super) fn is_stream_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// A record to store.
pub(super) struct NewRecord {
    pub(super) partition_key: Arc<str>,
    /// MD5 of the key, or the explicit hash key.
    pub(super) hash_key: u128,
    pub(super) data: Bytes,
}

impl NewRecord {
    /// Bytes of data and key, which count against the limits.
    pub(super) fn size(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

/// Result of storing one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PutOutcome {
    Stored {
        shard: u32,
        sequence_number: String,
    },
    Throttled {
        shard: u32,
    },
    /// Refused by a fault with this code.
    Failed(String),
}

pub(super) struct Stream {
    pub(super) id: StreamArn,
    pub(super) kms_key_arn: Option<String>,
    pub(super) created_at_ms: i64,
    state: Mutex<State>,
    /// Index after the newest record, and whether the stream exists.
    progress: watch::Sender<(u64, bool)>,
}

pub(super) struct State {
    pub(super) shards: Vec<Shard>,
    /// Indexes of the open shards, sorted by hash key.
    open: Vec<u32>,
    /// Retained records in order of arrival; the first has index `dropped`.
    log: VecDeque<Stored>,
    dropped: u64,
    bytes: u64,
}

struct Stored {
    shard: u32,
    partition_key: Arc<str>,
    data: Bytes,
    arrived_at_ms: i64,
}

impl State {
    fn next_index(&self) -> u64 {
        self.dropped + self.log.len() as u64
    }

    /// Returns the record with this index, if it is retained.
    fn get(&self, index: u64) -> Option<&Stored> {
        let at = index.checked_sub(self.dropped)?;
        self.log.get(usize::try_from(at).ok()?)
    }

    fn shard_for(&self, hash_key: u128) -> u32 {
        let after = self
            .open
            .partition_point(|shard| self.shards[*shard as usize].hash_keys.0 <= hash_key);
        // The ranges of the open shards cover all hash keys from 0.
        self.open[after.saturating_sub(1)]
    }

    fn drop_oldest(&mut self, count: usize) -> u64 {
        let mut freed = 0;
        for _ in 0..count {
            let Some(record) = self.log.pop_front() else {
                break;
            };
            freed += (record.data.len() + record.partition_key.len()) as u64;
            self.shards[record.shard as usize].records.pop_front();
            self.dropped += 1;
        }
        self.bytes -= freed;
        freed
    }
}

impl Stream {
    fn new(id: StreamArn, spec: &StreamSpec, now_ms: i64) -> Self {
        let shards = uniform_shards(spec.shards);
        let open = (0..spec.shards).collect();
        Self {
            id,
            kms_key_arn: spec.kms_key_arn.clone(),
            created_at_ms: now_ms,
            state: Mutex::new(State {
                shards,
                open,
                log: VecDeque::new(),
                dropped: 0,
                bytes: 0,
            }),
            progress: watch::Sender::new((0, true)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> watch::Receiver<(u64, bool)> {
        self.progress.subscribe()
    }

    /// Formats a sequence number: increasing within a shard, and 56 digits long like those of AWS.
    pub(super) fn sequence_number(&self, shard: u32, index: u64) -> String {
        format!("49{:010}{shard:012}{index:032}", self.created_at_ms / 1000)
    }

    /// Returns the index in a sequence number that this stream issued for this shard.
    pub(super) fn parse_sequence_number(&self, shard: u32, number: &str) -> Option<u64> {
        let index = number.get(24..)?.parse().ok()?;
        (self.sequence_number(shard, index) == number).then_some(index)
    }

    /// Returns retained records with index `from` and above, at most `max`, in order of arrival.
    pub(super) fn records(&self, from: u64, max: usize) -> Vec<Record> {
        let state = self.lock();
        (from.max(state.dropped)..state.next_index())
            .take(max)
            .filter_map(|index| self.record(&state, index))
            .collect()
    }

    /// Returns the record with this index as readers see it.
    pub(super) fn record(&self, state: &State, index: u64) -> Option<Record> {
        let stored = state.get(index)?;
        Some(Record {
            index,
            shard_id: shard_id(stored.shard),
            sequence_number: self.sequence_number(stored.shard, index),
            partition_key: stored.partition_key.to_string(),
            data: stored.data.clone(),
            arrived_at_ms: stored.arrived_at_ms,
        })
    }

    /// Splits an open shard at a hash key strictly inside its range. Returns whether it did.
    pub(super) fn split(&self, shard: u32, at: u128) -> bool {
        let mut state = self.lock();
        let next_index = state.next_index();
        let next_id = u32::try_from(state.shards.len()).unwrap_or(u32::MAX);
        let Some(parent) = state.shards.get_mut(shard as usize) else {
            return false;
        };
        let (start, end) = parent.hash_keys;
        if parent.closed_at.is_some() || at <= start || at > end {
            return false;
        }
        parent.closed_at = Some(next_index);
        state
            .shards
            .push(Shard::new((start, at - 1), Some(shard), next_index));
        state
            .shards
            .push(Shard::new((at, end), Some(shard), next_index));
        if let Some(at) = state.open.iter().position(|open| *open == shard) {
            state.open.splice(at..=at, [next_id, next_id + 1]);
        }
        true
    }

    pub(super) fn stats(&self) -> StreamStats {
        let state = self.lock();
        StreamStats {
            stream_arn: self.id.arn.clone(),
            open_shards: u32::try_from(state.open.len()).unwrap_or(u32::MAX),
            accepted: state.next_index(),
            dropped: state.dropped,
            retained_bytes: state.bytes,
        }
    }
}

/// All streams, in all accounts and regions.
pub(super) struct Streams {
    by_arn: RwLock<HashMap<String, Arc<Stream>>>,
    retention: Mutex<Retention>,
}

impl Streams {
    pub(super) fn new(max_records: u64, max_bytes: u64) -> Self {
        Self {
            by_arn: RwLock::default(),
            retention: Mutex::new(Retention::new(max_records, max_bytes)),
        }
    }

    pub(super) fn get(&self, arn: &str) -> Option<Arc<Stream>> {
        let streams = self.by_arn.read().unwrap_or_else(PoisonError::into_inner);
        streams.get(arn).cloned()
    }

    /// Returns all streams, sorted by ARN.
    pub(super) fn list(&self) -> Vec<Arc<Stream>> {
        let streams = self.by_arn.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = streams.values().cloned().collect();
        list.sort_by(|a, b| a.id.arn.cmp(&b.id.arn));
        list
    }

    /// Creates a stream. Returns `false` if it exists already.
    pub(super) fn create(&self, id: StreamArn, spec: &StreamSpec, now_ms: i64) -> bool {
        let mut streams = self.by_arn.write().unwrap_or_else(PoisonError::into_inner);
        if streams.contains_key(&id.arn) {
            return false;
        }
        let arn = id.arn.clone();
        streams.insert(arn, Arc::new(Stream::new(id, spec, now_ms)));
        true
    }

    pub(super) fn delete(&self, arn: &str) -> bool {
        let mut streams = self.by_arn.write().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = streams.remove(arn) else {
            return false;
        };
        stream.progress.send_modify(|(_, exists)| *exists = false);
        true
    }

    /// Stores the records in the given order. `next_failure` is called once for each record and
    /// returns the error code with which it fails, or None. With `enforce_limits`, further records
    /// fail if they exceed the limits of their shard.
    pub(super) fn put(
        &self,
        stream: &Arc<Stream>,
        records: &[NewRecord],
        enforce_limits: bool,
        now_ms: i64,
        mut next_failure: impl FnMut() -> Option<String>,
    ) -> Vec<PutOutcome> {
        let now = Instant::now();
        let mut outcomes = Vec::with_capacity(records.len());
        let mut state = stream.lock();
        let (mut stored, mut bytes) = (0, 0);
        for record in records {
            let shard = state.shard_for(record.hash_key);
            let size = record.size();
            if let Some(code) = next_failure() {
                outcomes.push(PutOutcome::Failed(code));
                continue;
            }
            if enforce_limits && !state.shards[shard as usize].limit.take(size, now) {
                outcomes.push(PutOutcome::Throttled { shard });
                continue;
            }
            let index = state.next_index();
            state.shards[shard as usize].records.push_back(index);
            state.log.push_back(Stored {
                shard,
                partition_key: Arc::clone(&record.partition_key),
                data: record.data.clone(),
                arrived_at_ms: now_ms,
            });
            stored += 1;
            bytes += size as u64;
            let sequence_number = stream.sequence_number(shard, index);
            outcomes.push(PutOutcome::Stored {
                shard,
                sequence_number,
            });
        }
        state.bytes += bytes;
        let next_index = state.next_index();
        if stored > 0 {
            // While the stream is locked, so that its batches are queued in order.
            self.retention().push(stream, stored, bytes);
            stream
                .progress
                .send_modify(|(index, _)| *index = next_index);
        }
        drop(state);
        self.enforce_retention();
        outcomes
    }

    fn retention(&self) -> MutexGuard<'_, Retention> {
        self.retention
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn enforce_retention(&self) {
        loop {
            // Retention is unlocked again before the stream is locked, which `put` locks first.
            let Some((stream, count)) = self.retention().pop_excess() else {
                return;
            };
            if let Some(stream) = stream.upgrade() {
                stream.lock().drop_oldest(count);
            }
        }
    }
}

/// A shard: its range of hash keys, its records, its write limit.
pub(super) struct Shard {
    /// First and last hash key.
    pub(super) hash_keys: (u128, u128),
    pub(super) parent: Option<u32>,
    /// Next index of the stream when the shard was opened.
    pub(super) opened_at: u64,
    /// Next index of the stream when a split closed the shard.
    pub(super) closed_at: Option<u64>,
    /// Indexes, within the stream, of the records of this shard.
    pub(super) records: VecDeque<u64>,
    limit: TokenBucket,
}

impl Shard {
    fn new(hash_keys: (u128, u128), parent: Option<u32>, opened_at: u64) -> Self {
        Self {
            hash_keys,
            parent,
            opened_at,
            closed_at: None,
            records: VecDeque::new(),
            limit: TokenBucket::full(),
        }
    }
}

/// Creates shards that divide the range of hash keys evenly.
fn uniform_shards(count: u32) -> Vec<Shard> {
    let width = u128::MAX / u128::from(count.max(1));
    (0..count)
        .map(|shard| {
            let start = width * u128::from(shard);
            let end = if shard + 1 == count {
                u128::MAX
            } else {
                start + width - 1
            };
            Shard::new((start, end), None, 0)
        })
        .collect()
}

/// Formats a shard id such as `shardId-000000000000`.
pub(super) fn shard_id(shard: u32) -> String {
    format!("shardId-{shard:012}")
}

pub(super) fn parse_shard_id(id: &str) -> Option<u32> {
    let shard = id.strip_prefix("shardId-")?.parse().ok()?;
    (shard_id(shard) == id).then_some(shard)
}

/// Write limit of a shard: capacity for one second, refilled continuously.
struct TokenBucket {
    records: f64,
    bytes: f64,
    refilled_at: Option<Instant>,
}

impl TokenBucket {
    fn full() -> Self {
        Self {
            records: RECORDS_PER_SECOND,
            bytes: BYTES_PER_SECOND,
            refilled_at: None,
        }
    }

    /// Takes the capacity for one record of this size. Returns `false` if too little is left.
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        if let Some(refilled_at) = self.refilled_at {
            let elapsed = now.saturating_duration_since(refilled_at).as_secs_f64();
            self.records = (self.records + elapsed * RECORDS_PER_SECOND).min(RECORDS_PER_SECOND);
            self.bytes = (self.bytes + elapsed * BYTES_PER_SECOND).min(BYTES_PER_SECOND);
        }
        self.refilled_at = Some(now);
        // The conversion is exact: a record has at most 1 MiB.
        let bytes = bytes as f64;
        if self.records < 1.0 || self.bytes < bytes {
            return false;
        }
        self.records -= 1.0;
        self.bytes -= bytes;
        true
    }
}

/// Memory limits over all streams, and the stored batches in order of arrival. The oldest batches
/// are dropped first.
struct Retention {
    max_records: u64,
    max_bytes: u64,
    records: u64,
    bytes: u64,
    batches: VecDeque<Batch>,
}

struct Batch {
    stream: Weak<Stream>,
    records: usize,
    bytes: u64,
}

impl Retention {
    fn new(max_records: u64, max_bytes: u64) -> Self {
        Self {
            max_records,
            max_bytes,
            records: 0,
            bytes: 0,
            batches: VecDeque::new(),
        }
    }

    fn push(&mut self, stream: &Arc<Stream>, records: usize, bytes: u64) {
        self.records += records as u64;
        self.bytes += bytes;
        self.batches.push_back(Batch {
            stream: Arc::downgrade(stream),
            records,
            bytes,
        });
    }

    /// Removes the oldest batch if a limit is exceeded. Returns its stream and number of records.
    fn pop_excess(&mut self) -> Option<(Weak<Stream>, usize)> {
        if self.records <= self.max_records && self.bytes <= self.max_bytes {
            return None;
        }
        let batch = self.batches.pop_front()?;
        self.records -= batch.records as u64;
        self.bytes -= batch.bytes;
        Some((batch.stream, batch.records))
    }
}

#[cfg(test)]
mod tests;
