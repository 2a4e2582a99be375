//! Order hazards: what a producer sent that lets records of one partition key change places.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::control::HazardCounts;
use super::stream::NewRecord;

/// Failed records that are remembered; beyond, more are not.
const MAX_FAILED: usize = 100_000;

/// A partition key of a stream.
type Key = (u64, u128);

#[derive(Default)]
pub(super) struct Hazards {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How many calls in flight carry the key.
    in_flight: HashMap<Key, u32>,
    failed: HashMap<Key, Failed>,
    failed_len: usize,
    counts: HazardCounts,
}

/// Records of a key that failed and have not been accepted since.
#[derive(Default)]
struct Failed {
    /// In the order sent.
    waits: VecDeque<u64>,
    /// There are more, which are not remembered.
    more: bool,
    /// How many of them the call at hand has sent.
    sent: usize,
}

/// A call in flight; ends when dropped.
pub(super) struct InFlight<'a> {
    hazards: &'a Hazards,
    stream: u64,
    keys: HashSet<Key>,
}

impl Hazards {
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
        inner.failed_len = 0;
    }

    /// A call with these records has arrived.
    pub(super) fn begin(&self, stream: &str, records: &[NewRecord]) -> InFlight<'_> {
        let stream = hash(stream.as_bytes());
        let mut keys = HashSet::new();
        let mut inner = self.lock();
        let mut overtakes = false;
        for record in records {
            let key = (stream, record.hash_key);
            let first = keys.insert(key);
            if let Some(failed) = inner.failed.get_mut(&key) {
                if first {
                    failed.sent = 0;
                }
                overtakes |= !failed.is_next(hash(&record.data));
            }
        }
        let mut overlaps = false;
        for key in &keys {
            let calls = inner.in_flight.entry(*key).or_insert(0);
            overlaps |= *calls > 0;
            *calls += 1;
        }
        inner.counts.overtaken_keys += u64::from(overtakes);
        inner.counts.overlapping_keys += u64::from(overlaps);
        drop(inner);
        InFlight {
            hazards: self,
            stream,
            keys,
        }
    }
}

impl InFlight<'_> {
    /// Tells what became of the call's records: which were accepted.
    pub(super) fn settle(&self, records: &[NewRecord], accepted: impl Fn(usize) -> bool) {
        let mut inner = self.hazards.lock();
        for (index, record) in records.iter().enumerate() {
            let key = (self.stream, record.hash_key);
            if !accepted(index) {
                inner.remember(key, hash(&record.data));
            } else if inner.failed_len > 0 {
                inner.forget(key, &record.data);
            }
        }
    }
}

impl Inner {
    fn remember(&mut self, key: Key, data: u64) {
        if self.failed_len >= MAX_FAILED {
            if let Some(failed) = self.failed.get_mut(&key) {
                failed.more = true;
            }
            return;
        }
        let failed = self.failed.entry(key).or_default();
        if !failed.waits.contains(&data) {
            failed.waits.push_back(data);
            self.failed_len += 1;
        }
    }

    fn forget(&mut self, key: Key, data: &[u8]) {
        let Some(failed) = self.failed.get_mut(&key) else {
            return;
        };
        let data = hash(data);
        let before = failed.waits.len();
        failed.waits.retain(|waits| *waits != data);
        self.failed_len -= before - failed.waits.len();
        if failed.waits.is_empty() {
            self.failed.remove(&key);
        }
    }
}

impl Failed {
    /// Whether this is what a producer sends next that sends what failed, and of it the
    /// oldest first, before anything else.
    fn is_next(&mut self, data: u64) -> bool {
        let next = self.waits.get(self.sent);
        self.sent += 1;
        match next {
            Some(next) => *next == data,
            None => self.more,
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

    fn call(hazards: &Hazards, sent: &[(u128, &'static str)], accepted: &[bool]) {
        let records = records(sent);
        let in_flight = hazards.begin("s", &records);
        in_flight.settle(&records, |index| accepted[index]);
    }

    #[test]
    fn calls_that_share_a_key_at_the_same_time_are_counted() {
        let hazards = Hazards::default();
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
    fn a_failed_record_comes_first_or_is_overtaken() {
        let hazards = Hazards::default();
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
    fn nothing_new_goes_along_with_a_record_that_failed() {
        let hazards = Hazards::default();
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
