//! The rate at which a stream may be written to, learned for each shard from the records
//! that Kinesis throttles.
//!
//! A shard accepts [1,000 records and 1 MiB a second][limits], which is its first rate once
//! a record was throttled. The actual limit may be lower, where others write to the stream
//! too, or higher. While records are throttled, the rate falls to that at which records
//! were accepted lately; while none is, it rises, ever faster. So it stays near the limit and
//! seldom exceeds it.
//!
//! The shard of a partition key is learned from Kinesis' answers: keys are mapped to shards
//! by the MD5 of their text, and each shard has one range of hashes.
//!
//! [limits]: https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html

use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};
use uuid::Uuid;

use super::{
    delivery::{Key as PartitionKey, RecordOutcome},
    map::Map,
    status::Meaning,
};

/// Most partition keys whose hash is cached.
const MAX_HASHES: usize = 8192;
const MAX_SHARDS: usize = 4096;

const RECORDS_PER_SECOND: f64 = 1000.0;
const BYTES_PER_SECOND: f64 = 1_048_576.0;
/// Seconds' worth of the rate that must be available before a shard is written to, so that
/// requests do not become small.
const MIN_BURST: f64 = 0.1;
/// Seconds' worth of the rate that are available at most after an idle time.
const MAX_BURST: f64 = 0.2;
/// Pause after a throttled answer. It doubles while nothing is accepted.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time constant, in seconds, of the average of accepted records and bytes.
const AVERAGING_SECONDS: f64 = 1.0;
/// Relative rise of a rate in a second, directly after a throttled answer. It doubles every
/// [`RISE_DOUBLES`] seconds.
const RISE: f64 = 0.005;
const RISE_DOUBLES: f64 = 2.0;
const RISE_MAX: f64 = 1.0;
/// Factor on the measured rate of acceptance, so that the reduced rate is slightly below it.
const STEP_BACK: f64 = 0.98;
const MIN_RATE: f64 = 0.001;
const MAX_RATE: f64 = 1000.0;
/// Average of accepted records, in seconds' worth of the limit, below which a shard counts
/// as accepting nothing.
const SILENT: f64 = 0.0005;
/// A reduction to more than this fraction of the rate is not judged.
const JUDGED_BELOW: f64 = 0.7;
/// Exponent that decides whether a reduction helped. If the accepted amount falls nearly in
/// proportion to the rate, the throttling has another cause than the rate.
const PROPORTIONAL: f64 = 0.7;
/// Time for which a reduced rate is kept before it is judged.
const TRIAL: Duration = Duration::from_secs(2);
/// Time for which the rate is kept after a reduction that did not help. It doubles each time.
const HOLD_FIRST: Duration = Duration::from_secs(5);
const HOLD_MAX: Duration = Duration::from_secs(60);
/// Seconds without throttling after which a reduction is not judged any more.
const CALM_SECONDS: f64 = 3.0;

/// Rates of the shards of one stream.
#[derive(Debug, Default)]
pub struct ShardRates {
    /// Ordered by hash range. The ranges do not overlap.
    shards: Vec<Shard>,
    hashes: Map<PartitionKey, u128>,
}

impl ShardRates {
    /// Learns from the answer to a request. Each record has a partition key, a size in bytes
    /// and an outcome.
    pub fn record_answer<'a>(
        &mut self,
        now: Instant,
        records: impl Iterator<Item = (PartitionKey, usize, &'a RecordOutcome)> + Clone,
    ) {
        for (key, _, outcome) in records.clone() {
            let hash = self.hash(key);
            match outcome {
                RecordOutcome::Accepted { shard_id, .. } => self.learn_shard(now, shard_id, hash),
                RecordOutcome::Failed(_) => self.presume_shard(now, hash),
            }
        }
        for (key, bytes, outcome) in records {
            let hash = self.hash(key);
            if let Some(shard) = nearest(&mut self.shards, hash) {
                shard.count(bytes, outcome);
            }
        }
        for shard in &mut self.shards {
            shard.adapt(now);
        }
    }

    /// Starts the selection of records for the next request.
    pub fn start_round(&mut self, now: Instant) {
        for shard in &mut self.shards {
            shard.start_round(now);
        }
    }

    /// Whether a record may be sent now. If so, it is counted as sent.
    pub fn admit(&mut self, key: PartitionKey, bytes: usize) -> bool {
        let hash = self.hash(key);
        nearest(&mut self.shards, hash).is_none_or(|shard| shard.admit(bytes))
    }

    /// Time at which more of the records may be sent that [`ShardRates::admit`] refused since
    /// [`ShardRates::start_round`]; None if it refused none.
    pub fn next_admission(&self) -> Option<Instant> {
        let limited = self.shards.iter().filter(|shard| shard.limited);
        limited.map(Shard::opens_at).min()
    }

    /// Shortest pause among the shards if none of them accepts anything.
    pub fn stalled_for(&self) -> Option<Duration> {
        let pauses = self.shards.iter().map(Shard::stalled_for);
        pauses.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether more than one shard is known.
    pub fn has_several_shards(&self) -> bool {
        self.shards.len() > 1
    }

    fn hash(&mut self, key: PartitionKey) -> u128 {
        if let Some(hash) = self.hashes.get(&key) {
            return *hash;
        }
        if self.hashes.len() >= MAX_HASHES {
            self.hashes.clear();
        }
        let hash = hash(key);
        self.hashes.insert(key, hash);
        hash
    }

    /// Notes that a shard accepted a hash. After a split or merge of shards it replaces those
    /// in whose range it accepts.
    fn learn_shard(&mut self, now: Instant, shard_id: &str, hash: u128) {
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
            // Others within the range do not exist any more.
            self.shards
                .retain(|other| other.low == low || other.high < low || high < other.low);
            self.shards.sort_unstable_by_key(|shard| shard.low);
        } else {
            self.insert(at, Shard::new(now, shard_id, hash));
        }
    }

    /// Assigns a hash that was refused outside all known ranges to a shard without an id,
    /// so that it does not slow down a shard that accepts.
    fn presume_shard(&mut self, now: Instant, hash: u128) {
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
        if self.shards.len() < MAX_SHARDS {
            self.shards.insert(at.min(self.shards.len()), shard);
        }
    }
}

/// The known shard whose range is nearest to a hash.
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

/// Hash that Kinesis [derives] from a partition key.
///
/// [derives]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecordsRequestEntry.html
fn hash(key: PartitionKey) -> u128 {
    let mut text = Uuid::encode_buffer();
    let text = Uuid::from_u128(key).hyphenated().encode_lower(&mut text);
    u128::from_be_bytes(Md5::digest(text.as_bytes()).into())
}

/// Hash range of a shard, as far as it is known, and its rate: a token bucket whose rate is
/// adapted to the answers.
#[derive(Debug)]
struct Shard {
    id: Box<str>,
    low: u128,
    high: u128,
    /// Rate as a multiple of the documented limits.
    rate: f64,
    /// Records and bytes that may be sent, in seconds' worth of the documented limits.
    tokens: [f64; 2],
    tokens_at: Instant,
    paused_until: Instant,
    pause: Option<Duration>,
    /// Records may be sent in the current round.
    open: bool,
    /// A record was refused in the current round.
    limited: bool,
    /// A record was refused in a round since the last answer.
    was_limited: bool,
    /// Average of the accepted records and bytes, in seconds' worth of the limits.
    accepted: [f64; 2],
    accepted_at: Instant,
    known_since: Instant,
    throttled_at: Instant,
    /// A record was throttled at some time. Before that the rate does not apply.
    throttled: bool,
    reduction: Option<Reduction>,
    hold: Duration,
    hold_until: Instant,
    /// Counts of the current answer.
    answer: Counts,
}

/// A reduction of the rate that is not judged yet.
#[derive(Clone, Copy, Debug)]
struct Reduction {
    rate_before: f64,
    accepted_before: f64,
    /// The rate has fallen far enough for a judgement.
    is_judged_next: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    accepted: [f64; 2],
    throttled: bool,
    failed: bool,
}

fn cost(bytes: usize) -> [f64; 2] {
    // The conversion is exact: a record has at most 10 MiB.
    [1.0 / RECORDS_PER_SECOND, bytes as f64 / BYTES_PER_SECOND]
}

impl Shard {
    fn new(now: Instant, id: &str, hash: u128) -> Self {
        Self {
            id: id.into(),
            low: hash,
            high: hash,
            rate: 1.0,
            tokens: [MIN_BURST; 2],
            tokens_at: now,
            paused_until: now,
            pause: None,
            open: false,
            limited: false,
            was_limited: true,
            accepted: [0.0; 2],
            accepted_at: now,
            known_since: now,
            throttled_at: now,
            throttled: false,
            reduction: None,
            hold: HOLD_FIRST,
            hold_until: now,
            answer: Counts::default(),
        }
    }

    fn min_burst(&self) -> f64 {
        MIN_BURST * self.rate
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = seconds(self.tokens_at, now);
        let max = MAX_BURST * self.rate;
        self.tokens = self
            .tokens
            .map(|tokens| (tokens + elapsed * self.rate).min(max));
        self.tokens_at = now;
    }

    fn start_round(&mut self, now: Instant) {
        self.refill(now);
        // Slightly less, since the time of a wake-up may be rounded.
        let min = self.min_burst() * 0.99;
        let has_burst = !self.throttled || self.tokens.iter().all(|tokens| *tokens >= min);
        self.open = has_burst && now >= self.paused_until;
        self.was_limited |= self.limited;
        self.limited = false;
    }

    fn admit(&mut self, bytes: usize) -> bool {
        let is_empty = self.throttled && self.tokens.iter().any(|tokens| *tokens <= 0.0);
        if !self.open || is_empty {
            self.open = false;
            self.limited = true;
            return false;
        }
        let cost = cost(bytes);
        self.tokens = [self.tokens[0] - cost[0], self.tokens[1] - cost[1]];
        true
    }

    /// Time at which [`MIN_BURST`] will be available.
    fn opens_at(&self) -> Instant {
        if !self.throttled {
            return self.paused_until;
        }
        let least = self.tokens[0].min(self.tokens[1]);
        let wait = (self.min_burst() - least).max(0.0) / self.rate;
        self.paused_until
            .max(self.tokens_at + Duration::from_secs_f64(wait))
    }

    /// The pause, if several answers in a row accepted nothing.
    fn stalled_for(&self) -> Option<Duration> {
        self.pause.filter(|pause| *pause > PAUSE_FIRST * 2)
    }

    fn count(&mut self, bytes: usize, outcome: &RecordOutcome) {
        match outcome {
            RecordOutcome::Accepted { .. } => {
                let cost = cost(bytes);
                let before = self.answer.accepted;
                self.answer.accepted = [before[0] + cost[0], before[1] + cost[1]];
            }
            RecordOutcome::Failed(fault) if fault.meaning() == Meaning::Throttled => {
                self.answer.throttled = true;
            }
            RecordOutcome::Failed(_) => self.answer.failed = true,
        }
    }

    /// Adapts the rate to the counts of an answer.
    fn adapt(&mut self, now: Instant) {
        let answer = std::mem::take(&mut self.answer);
        let nothing = answer.accepted[0] == 0.0;
        if nothing && !answer.throttled && !answer.failed {
            return;
        }
        let elapsed = seconds(self.accepted_at, now);
        let kept = (-elapsed / AVERAGING_SECONDS).exp();
        let before = self.accepted;
        self.accepted = [0, 1].map(|at: usize| before[at] * kept + answer.accepted[at]);
        self.accepted_at = now;
        if answer.throttled || answer.failed {
            self.pause(now, nothing, answer.throttled);
        } else {
            self.pause = None;
            if self.was_limited {
                self.rise(now, elapsed);
            }
        }
        self.was_limited = self.limited;
    }

    fn rise(&mut self, now: Instant, elapsed: f64) {
        let doublings = seconds(self.throttled_at, now) / RISE_DOUBLES;
        let rise = (RISE * doublings.exp2()).min(RISE_MAX);
        self.rate = (self.rate * (1.0 + rise * elapsed.min(1.0))).min(MAX_RATE);
    }

    fn pause(&mut self, now: Instant, nothing: bool, throttled: bool) {
        // Several requests that were sent together exceed the limit together.
        if now < self.paused_until && !nothing {
            return;
        }
        if throttled && nothing && self.accepted[0] < SILENT {
            // Pausing is enough: no rate can be learned from a shard that accepts nothing,
            // and a debt of tokens would delay the moment when it does again.
            self.throttled = true;
            self.tokens = [0.0; 2];
            self.tokens_at = now;
            self.throttled_at = now;
        } else if throttled {
            self.refill(now);
            self.tokens = self.tokens.map(|tokens| tokens.min(0.0));
            self.step_back(now);
            self.throttled_at = now;
        }
        if now < self.paused_until {
            return;
        }
        let pause = match (nothing, self.pause) {
            (true, Some(before)) => (before * 2).min(PAUSE_MAX),
            _ => PAUSE_FIRST,
        };
        self.pause = nothing.then_some(pause);
        self.paused_until = now + pause;
    }

    /// Reduces the rate to that at which records were accepted, unless that is not known yet or
    /// a reduction did not help before.
    fn step_back(&mut self, now: Instant) {
        self.throttled = true;
        let age = seconds(self.known_since, now);
        if age < 0.8 * AVERAGING_SECONDS || now < self.hold_until {
            return;
        }
        let accepted = self.accepted[0].max(self.accepted[1]);
        let measured = accepted / (AVERAGING_SECONDS * (1.0 - (-age / AVERAGING_SECONDS).exp()));
        if seconds(self.throttled_at, now) > CALM_SECONDS {
            self.reduction = None;
        }
        let is_judged = self.reduction.is_some_and(|one| one.is_judged_next);
        if is_judged && self.undo_reduction(now, measured) {
            return;
        }
        let before = self.rate;
        if self.was_limited {
            self.rate = before.min(measured.max(before / 10.0));
        }
        self.rate = (self.rate * STEP_BACK).max(MIN_RATE);
        let reduction = self.reduction.get_or_insert(Reduction {
            rate_before: before,
            accepted_before: measured,
            is_judged_next: false,
        });
        if self.rate < reduction.rate_before * JUDGED_BELOW {
            reduction.is_judged_next = true;
            self.hold_until = now + TRIAL;
        }
    }

    /// Undoes a reduction of the rate that did not help. Returns whether it was undone.
    fn undo_reduction(&mut self, now: Instant, measured: f64) -> bool {
        let Some(reduction) = self.reduction.take() else {
            return false;
        };
        let fraction = (self.rate / reduction.rate_before).min(1.0);
        let is_useless = measured < reduction.accepted_before * fraction.powf(PROPORTIONAL);
        if is_useless {
            self.rate = reduction.rate_before;
            self.hold_until = now + self.hold;
            self.hold = (self.hold * 2).min(HOLD_MAX);
        } else {
            self.hold = HOLD_FIRST;
        }
        is_useless
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests;
