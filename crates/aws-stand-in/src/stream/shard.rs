//! A shard: its range of hash keys, its records, its write limits.

use std::collections::VecDeque;

use tokio::time::Instant;

/// Records a second that a shard takes ("Quotas and limits", Kinesis Developer Guide).
const RECORDS_PER_SECOND: f64 = 1000.0;
/// Bytes a second that a shard takes, partition keys included.
const BYTES_PER_SECOND: f64 = 1_048_576.0;

pub(crate) struct Shard {
    /// First and last hash key.
    pub(crate) hash_keys: (u128, u128),
    pub(crate) parent: Option<u32>,
    /// The stream's next index when the shard was opened.
    pub(crate) opened_at: u64,
    /// The stream's next index when the shard was closed by a split.
    pub(crate) closed_at: Option<u64>,
    /// The stream's indexes of the records in this shard.
    pub(crate) records: VecDeque<u64>,
    pub(super) limit: TokenBucket,
}

impl Shard {
    pub(super) fn new(hash_keys: (u128, u128), parent: Option<u32>, opened_at: u64) -> Self {
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

/// Shards that divide all hash keys evenly.
pub(super) fn uniform(count: u32) -> Vec<Shard> {
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

/// `shardId-000000000000`.
pub(crate) fn shard_id(shard: u32) -> String {
    format!("shardId-{shard:012}")
}

pub(crate) fn parse_shard_id(id: &str) -> Option<u32> {
    let shard = id.strip_prefix("shardId-")?.parse().ok()?;
    (shard_id(shard) == id).then_some(shard)
}

/// One second's worth of records and bytes, refilled continuously.
pub(super) struct TokenBucket {
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

    /// Takes one record of this size, if there is room.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        if let Some(refilled_at) = self.refilled_at {
            let elapsed = now.saturating_duration_since(refilled_at).as_secs_f64();
            self.records = (self.records + elapsed * RECORDS_PER_SECOND).min(RECORDS_PER_SECOND);
            self.bytes = (self.bytes + elapsed * BYTES_PER_SECOND).min(BYTES_PER_SECOND);
        }
        self.refilled_at = Some(now);
        // Exact: a record has at most 10 MiB.
        let bytes = bytes as f64;
        if self.records < 1.0 || self.bytes < bytes {
            return false;
        }
        self.records -= 1.0;
        self.bytes -= bytes;
        true
    }
}
