//! Order hazards: calls of a producer that can reorder the records of one partition key.
//!
//! Kinesis keeps the order of a partition key only if at most one request in flight carries the
//! key, and a failed record is sent again before newer records of its key. Tests of a producer
//! assert that it never broke these two rules.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::control::HazardCounts;
use super::stream::NewRecord;

/// Limit of the failed records that are tracked, over all keys.
const MAX_TRACKED: usize = 100_000;

/// Hash of a stream and hash key of a partition key.
type StreamKey = (u64, u128);

#[derive(Default)]
pub(super) struct OrderHazards {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Number of calls in flight that carry each key.
    in_flight: HashMap<StreamKey, u32>,
    failed: HashMap<StreamKey, FailedRecords>,
    /// Number of records tracked in `failed`.
    tracked: usize,
    counts: HazardCounts,
}

/// Records of one key that failed and have not been accepted since.
#[derive(Default)]
struct FailedRecords {
    /// Hashes of their data, in the order first sent.
    pending: VecDeque<u64>,
    /// Whether further records failed that are not tracked.
    untracked: bool,
    /// Number of records of this key seen in the call that is being checked.
    checked: usize,
}

/// A call in flight; ends when dropped.
pub(super) struct InFlight<'a> {
    hazards: &'a OrderHazards,
    stream: u64,
    keys: HashSet<StreamKey>,
}

impl OrderHazards {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> HazardCounts {
        self.lock().counts
    }

    pub(super) fn reset(&self) {
        let mut inner = self.lock();
        inner.counts = HazardCounts::default();
        inner.failed.clear();
        inner.tracked = 0;
    }

    /// Registers a call with these records and counts the hazards in it.
    pub(super) fn begin(&self, stream: &str, records: &[NewRecord]) -> InFlight<'_> {
        let stream = hash(stream.as_bytes());
        let mut keys = HashSet::new();
        let mut inner = self.lock();
        let mut overtaking = false;
        for record in records {
            let key = (stream, record.hash_key);
            let first = keys.insert(key);
            if let Some(failed) = inner.failed.get_mut(&key) {
                if first {
                    failed.checked = 0;
                }
                overtaking |= !failed.is_next(hash(&record.data));
            }
        }
        let mut overlapping = false;
        for key in &keys {
            let calls = inner.in_flight.entry(*key).or_insert(0);
            overlapping |= *calls > 0;
            *calls += 1;
        }
        inner.counts.overtaken_keys += u64::from(overtaking);
        inner.counts.overlapping_keys += u64::from(overlapping);
        drop(inner);
        InFlight {
            hazards: self,
            stream,
            keys,
        }
    }
}

impl InFlight<'_> {
    /// Records which of the call's records were accepted.
    pub(super) fn settle(&self, records: &[NewRecord], accepted: impl Fn(usize) -> bool) {
        let mut inner = self.hazards.lock();
        for (index, record) in records.iter().enumerate() {
            let key = (self.stream, record.hash_key);
            if !accepted(index) {
                inner.track(key, hash(&record.data));
            } else if inner.tracked > 0 {
                inner.untrack(key, &record.data);
            }
        }
    }
}

impl Inner {
    fn track(&mut self, key: StreamKey, data: u64) {
        if self.tracked >= MAX_TRACKED {
            if let Some(failed) = self.failed.get_mut(&key) {
                failed.untracked = true;
            }
            return;
        }
        let failed = self.failed.entry(key).or_default();
        if !failed.pending.contains(&data) {
            failed.pending.push_back(data);
            self.tracked += 1;
        }
    }

    fn untrack(&mut self, key: StreamKey, data: &[u8]) {
        let Some(failed) = self.failed.get_mut(&key) else {
            return;
        };
        let data = hash(data);
        let before = failed.pending.len();
        failed.pending.retain(|pending| *pending != data);
        self.tracked -= before - failed.pending.len();
        if failed.pending.is_empty() {
            self.failed.remove(&key);
        }
    }
}

impl FailedRecords {
    /// Whether this record keeps the order: failed records are sent again, the oldest first,
    /// before any other record of their key.
    fn is_next(&mut self, data: u64) -> bool {
        let next = self.pending.get(self.checked);
        self.checked += 1;
        match next {
            Some(next) => *next == data,
            None => self.untracked,
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut inner = self.hazards.lock();
        for key in &self.keys {
            if let Some(calls) = inner.in_flight.get_mut(key) {
                *calls -= 1;
                if *calls == 0 {
                    inner.in_flight.remove(key);
                }
            }
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn records(keys_and_data: &[(u128, &'static str)]) -> Vec<NewRecord> {
        keys_and_data
            .iter()
            .map(|(hash_key, data)| NewRecord {
                partition_key: hash_key.to_string().into(),
                hash_key: *hash_key,
                data: Bytes::from_static(data.as_bytes()),
            })
            .collect()
    }

    fn call(hazards: &OrderHazards, sent: &[(u128, &'static str)], accepted: &[bool]) {
        let records = records(sent);
        let in_flight = hazards.begin("s", &records);
        in_flight.settle(&records, |index| accepted[index]);
    }

    #[test]
    fn concurrent_calls_with_a_common_key_are_counted() {
        let hazards = OrderHazards::default();
        let first = hazards.begin("s", &records(&[(1, "a"), (1, "b"), (2, "c")]));
        let other_stream = hazards.begin("t", &records(&[(1, "a")]));
        let other_key = hazards.begin("s", &records(&[(3, "a")]));
        assert_eq!(hazards.counts().overlapping_keys, 0);
        let same_key = hazards.begin("s", &records(&[(4, "d"), (2, "d")]));
        assert_eq!(hazards.counts().overlapping_keys, 1);
        drop((first, other_stream, other_key, same_key));
        drop(hazards.begin("s", &records(&[(1, "a")])));
        assert_eq!(hazards.counts().overlapping_keys, 1);
    }

    #[test]
    fn sending_a_newer_record_before_a_failed_one_is_counted() {
        let hazards = OrderHazards::default();
        call(
            &hazards,
            &[(1, "a"), (1, "b"), (2, "c")],
            &[false, false, true],
        );
        call(&hazards, &[(2, "d")], &[true]);
        call(&hazards, &[(1, "a")], &[true]);
        call(&hazards, &[(1, "b")], &[true]);
        call(&hazards, &[(1, "e"), (1, "f")], &[true, true]);
        assert_eq!(hazards.counts().overtaken_keys, 0);
        call(&hazards, &[(1, "g")], &[false]);
        call(&hazards, &[(1, "h")], &[true]);
        assert_eq!(hazards.counts().overtaken_keys, 1);
    }

    #[test]
    fn sending_a_newer_record_along_with_failed_ones_is_counted() {
        let hazards = OrderHazards::default();
        let failed = [(1, "a"), (1, "b"), (1, "c"), (2, "d")];
        call(&hazards, &failed, &[false, true, false, true]);
        call(&hazards, &[(1, "a"), (2, "e"), (1, "c")], &[false; 3]);
        assert_eq!(hazards.counts().overtaken_keys, 0);
        call(
            &hazards,
            &[(1, "a"), (1, "c"), (1, "f")],
            &[false, true, true],
        );
        assert_eq!(hazards.counts().overtaken_keys, 1);
        call(&hazards, &[(2, "e"), (1, "a"), (2, "g")], &[true; 3]);
        assert_eq!(hazards.counts().overtaken_keys, 2);
    }
}
