//! How fast a stream may be written to, learned shard by shard from what it refuses.
//! Pure: the time comes in.
//!
//! A shard takes [1,000 records and 1 MiB a second][limits], so that is where each
//! starts once something was refused. What it really takes may be less, where others
//! write to it too, or more. Each shard's rate falls to what was accepted of late as
//! records are refused, and rises as long as none is, ever faster: it settles near the
//! limit and touches it seldom. Which shard a key belongs to is learned from the
//! answers: keys go to shards by the MD5 of their text, and each shard has one range of
//! hashes.
//!
//! [limits]: https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html

mod shard;

use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};
use uuid::Uuid;

use self::shard::Shard;
use super::{delivery::Key, map::Map};

/// Keys whose hash is remembered at the most.
const MOST_HASHES: usize = 8192;
/// Shards that are told apart at the most.
const MOST_SHARDS: usize = 4096;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate<'a> {
    /// This shard took it.
    Accepted(&'a str),
    /// It was over a limit.
    Throttled,
    /// It failed for another reason.
    Failed,
}

/// The rates of one stream's shards.
#[derive(Debug, Default)]
pub struct Flow {
    /// By their ranges of hashes, which do not overlap.
    shards: Vec<Shard>,
    hashes: Map<Key, u128>,
}

impl Flow {
    /// Takes in what became of a request's records: key, weight in bytes, fate.
    pub fn answered<'a>(
        &mut self,
        now: Instant,
        records: impl Iterator<Item = (Key, usize, Fate<'a>)> + Clone,
    ) {
        for (key, _, fate) in records.clone() {
            let hash = self.hash(key);
            match fate {
                Fate::Accepted(shard_id) => self.learn(now, shard_id, hash),
                Fate::Throttled | Fate::Failed => self.presume(now, hash),
            }
        }
        for (key, weight, fate) in records {
            let hash = self.hash(key);
            if let Some(shard) = nearest(&mut self.shards, hash) {
                shard.count(weight, fate);
            }
        }
        for shard in &mut self.shards {
            shard.adapt(now);
        }
    }

    /// Begins to look for records that may go now.
    pub fn begin(&mut self, now: Instant) {
        for shard in &mut self.shards {
            shard.begin(now);
        }
    }

    /// Whether a record may go now; it is counted as sent then.
    pub fn admit(&mut self, key: Key, weight: usize) -> bool {
        let hash = self.hash(key);
        nearest(&mut self.shards, hash).is_none_or(|shard| shard.admit(weight))
    }

    /// When more may go of what [`Flow::admit`] refused since [`Flow::begin`]; None
    /// where it refused nothing.
    pub fn next_admission(&self) -> Option<Instant> {
        let limited = self.shards.iter().filter(|shard| shard.is_limited());
        limited.map(Shard::opens_at).min()
    }

    /// Whether no shard takes anything, and for how long none has been tried then.
    pub fn stalled(&self) -> Option<Duration> {
        let pauses = self.shards.iter().map(Shard::stalled);
        pauses.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether there may be more than one shard.
    pub fn is_divided(&self) -> bool {
        self.shards.len() > 1
    }

    fn hash(&mut self, key: Key) -> u128 {
        if let Some(hash) = self.hashes.get(&key) {
            return *hash;
        }
        if self.hashes.len() >= MOST_HASHES {
            self.hashes.clear();
        }
        let hash = hash(key);
        self.hashes.insert(key, hash);
        hash
    }

    /// A shard that takes a hash within another's range has taken that one's place.
    fn learn(&mut self, now: Instant, shard_id: &str, hash: u128) {
        let at = self.shards.partition_point(|shard| shard.high < hash);
        if let Some(here) = self.shards.get(at).filter(|shard| shard.low <= hash) {
            if *here.id == *shard_id {
                return;
            }
            self.shards.remove(at);
        }
        let known = self.shards.iter().position(|shard| *shard.id == *shard_id);
        if let Some(known) = known {
            let shard = &mut self.shards[known];
            let (low, high) = (shard.low.min(hash), shard.high.max(hash));
            (shard.low, shard.high) = (low, high);
            // What lies within is of the past.
            self.shards
                .retain(|other| other.low == low || other.high < low || high < other.low);
            self.shards.sort_unstable_by_key(|shard| shard.low);
        } else {
            self.insert(at, Shard::new(now, shard_id, hash));
        }
    }

    /// A hash that was refused where no shard is known belongs to one without a name,
    /// so that it holds back none that accepts.
    fn presume(&mut self, now: Instant, hash: u128) {
        let at = self.shards.partition_point(|shard| shard.high < hash);
        if self.shards.get(at).is_some_and(|shard| shard.low <= hash) {
            return;
        }
        if let Some(before) = at.checked_sub(1).map(|before| &mut self.shards[before])
            && before.id.is_empty()
        {
            before.high = hash;
        } else if let Some(after) = self.shards.get_mut(at)
            && after.id.is_empty()
        {
            after.low = hash;
        } else {
            self.insert(at, Shard::new(now, "", hash));
        }
    }

    fn insert(&mut self, at: usize, shard: Shard) {
        if self.shards.len() < MOST_SHARDS {
            self.shards.insert(at.min(self.shards.len()), shard);
        }
    }
}

/// The shard of a hash, as far as is known.
fn nearest(shards: &mut [Shard], hash: u128) -> Option<&mut Shard> {
    let at = shards.partition_point(|shard| shard.high < hash);
    let distance = |at: usize| {
        let from = |shard: &Shard| hash.saturating_sub(shard.high) + shard.low.saturating_sub(hash);
        shards.get(at).map_or(u128::MAX, from)
    };
    let best = match at.checked_sub(1) {
        Some(before) if distance(before) <= distance(at) => before,
        _ => at,
    };
    shards.get_mut(best)
}

/// As Kinesis [hashes] a partition key.
///
/// [hashes]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecordsRequestEntry.html
fn hash(key: Key) -> u128 {
    let mut text = Uuid::encode_buffer();
    let text = Uuid::from_u128(key).hyphenated().encode_lower(&mut text);
    u128::from_be_bytes(Md5::digest(text.as_bytes()).into())
}

#[cfg(test)]
mod tests;
