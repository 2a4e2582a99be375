//! State machine that delivers the events of one integration: which records go into the next
//! request, and what an answer settles. It makes no calls.
//!
//! Invariants, whatever is in flight and whatever fails:
//! - two requests in flight never share a partition key;
//! - records of a key are sent in the order of their sequences;
//! - after a failure, the failed records of a key are accepted before any record of that key
//!   that has not been sent yet;
//! - a record that was accepted is never sent again by this process.
//!
//! A record that AWS refuses while it accepts others blocks its key until the store has given
//! it up and a gap event has replaced it. To find such a record, a record that was refused
//! alone may be overtaken by one of its own key (see `refusals`).

mod keys;
mod loaded;
mod refusals;
mod select;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use self::{
    keys::Keys,
    loaded::{LoadedChunk, RecordState},
    refusals::{Judged, Refusals, Sent, Verdict},
};
use super::{
    chunk::Chunk,
    event::Gap,
    integration::IntegrationId,
    map::{Map, Set},
    segment::Damaged,
    sequences::Sequences,
    status::Fault,
    trace::TraceContext,
};

/// Partition key: the UUID of a device, or that of the integration for its gap events.
pub type Key = u128;

/// Limits of one request.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Most records.
    pub records: usize,
    /// Most bytes, counted as body, key and [`BatchLimits::overhead_bytes`].
    pub bytes: usize,
    /// Bytes that each record counts beyond its body.
    pub overhead_bytes: usize,
}

/// Record of a request.
#[derive(Clone, Debug)]
pub struct BatchRecord {
    /// Sequence within the integration.
    pub sequence: u64,
    /// Partition key.
    pub key: Key,
    /// The stored event; empty for a gap.
    pub stored: Bytes,
    /// Bytes of the body as it is sent; an upper bound for a gap.
    pub body_bytes: usize,
    /// The gap, if the record is a gap event.
    pub gap: Option<Box<Gap>>,
}

/// Records of one request. To be returned to [`Delivery::settle`], whatever the answer.
#[derive(Debug)]
#[must_use = "a batch that is not settled blocks its keys"]
pub struct Batch {
    /// At least one record, in the order of the sequences.
    pub records: Vec<BatchRecord>,
    /// Spans in which the events were published, at most [`MAX_TRACES`](super::trace::MAX_TRACES).
    pub traces: Vec<TraceContext>,
    sent: Sent,
}

/// Outcome of one record of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The record is in the stream.
    Accepted {
        /// Shard of the record.
        shard_id: Arc<str>,
        /// Sequence number that Kinesis assigned.
        sequence_number: Box<str>,
    },
    /// The record is not known to be in the stream.
    Failed(Fault),
}

/// Changes that an answer caused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Chunks of which records were accepted, in their new state and without their segments.
    pub chunks: Vec<Chunk>,
    /// Events accepted by this answer.
    pub accepted: u64,
    /// Stored bytes of those events.
    pub accepted_bytes: u64,
    /// Gaps accepted by this answer.
    pub gaps: u64,
    /// Number of events that are refused while others are accepted, and are to be given up.
    pub refused: usize,
    /// Everything was refused, and the next request will show whether every record is: it is
    /// due at once, and nothing is known of the configuration yet.
    pub narrowing: bool,
}

impl Settlement {
    /// Number of records that the stream accepted.
    pub fn accepted_records(&self) -> u64 {
        self.accepted + self.gaps
    }
}

/// Loaded chunks of one integration, and the requests in flight for them.
#[derive(Debug)]
pub struct Delivery {
    /// Partition key of gap events.
    gap_key: Key,
    /// In the order of their sequences.
    chunks: VecDeque<LoadedChunk>,
    keys: Keys,
    /// Last sequence that was sent of each key of which a record failed. No record of the key
    /// after it is sent while one up to it waits.
    failed: Map<Key, u64>,
    refusals: Refusals,
    bytes: usize,
    waiting: usize,
    in_flight: usize,
    /// No record may be sent until something is settled or loaded.
    exhausted: bool,
    /// The last answer accepted a record.
    accepts: bool,
}

impl Delivery {
    /// Delivery of an integration of which no chunk is loaded.
    pub fn new(integration_id: IntegrationId) -> Self {
        Self {
            gap_key: integration_id.0.as_u128(),
            chunks: VecDeque::new(),
            keys: Keys::default(),
            failed: Map::default(),
            refusals: Refusals::default(),
            bytes: 0,
            waiting: 0,
            in_flight: 0,
            exhausted: false,
            accepts: false,
        }
    }

    /// Loads the next chunk; a finished one is skipped.
    ///
    /// # Errors
    ///
    /// [`Damaged`] if the segment does not contain the events of the chunk.
    pub fn load(&mut self, chunk: Chunk) -> Result<(), Damaged> {
        if chunk.is_finished() {
            return Ok(());
        }
        let chunk = LoadedChunk::new(chunk, self.gap_key, &mut self.keys)?;
        self.exhausted = false;
        self.bytes += chunk.bytes();
        self.waiting += chunk.waiting;
        self.chunks.push_back(chunk);
        Ok(())
    }

    /// Number of loaded records that are neither settled nor in flight nor refused.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Number of requests that are not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether it is being determined which records are refused. Then requests are small, and
    /// more loaded chunks give more records to try.
    pub fn is_narrowing(&self) -> bool {
        self.refusals.is_narrowing()
    }

    /// Bytes of the loaded chunks.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no chunk is loaded.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Drops the loaded chunks; only allowed while nothing is in flight. Returns the sequence
    /// to read from again, if there was a chunk.
    pub fn unload(&mut self) -> Option<u64> {
        debug_assert_eq!(self.in_flight, 0);
        let from = self.chunks.front().map(LoadedChunk::first_sequence);
        self.chunks.clear();
        self.keys = Keys::default();
        (self.bytes, self.waiting) = (0, 0);
        (self.exhausted, self.accepts) = (false, false);
        from
    }

    /// Settles a batch with the outcome of each record. A record without an outcome counts as
    /// failed. `is_current` is whether the request used the current configuration; otherwise a
    /// refusal counts as a failure only.
    pub fn settle(
        &mut self,
        batch: Batch,
        outcomes: &[RecordOutcome],
        is_current: bool,
    ) -> Settlement {
        self.in_flight -= 1;
        self.exhausted = false;
        let judged: Vec<Judged> = batch
            .records
            .iter()
            .enumerate()
            .map(|(at, record)| Judged {
                sequence: record.sequence,
                verdict: Verdict::of(outcomes.get(at), is_current),
                is_gap: record.gap.is_some(),
            })
            .collect();
        let findings = self.refusals.learn(batch.sent, &judged);
        // Every key is released before any is blocked by a refused record.
        for record in &batch.records {
            if let Some((chunk, index)) = find(&mut self.chunks, record.sequence) {
                self.keys.set_in_flight(chunk.slots[index], false);
            }
        }
        let mut settlement = Settlement::default();
        let mut accepted = Vec::new();
        for (record, Judged { verdict, .. }) in batch.records.iter().zip(judged) {
            let Some((chunk, index)) = find(&mut self.chunks, record.sequence) else {
                continue;
            };
            let slot = chunk.slots[index];
            if verdict == Verdict::Accepted {
                chunk.states[index] = RecordState::Settled;
                match record.gap {
                    Some(_) => settlement.gaps += 1,
                    None => settlement.accepted += 1,
                }
                settlement.accepted_bytes += record.stored.len() as u64;
                accepted.push(record.sequence);
                continue;
            }
            let last = self.failed.entry(record.key).or_default();
            *last = record.sequence.max(*last);
            if findings.refused.contains(&record.sequence) {
                chunk.states[index] = RecordState::Refused;
                settlement.refused += 1;
                self.keys.block(slot);
            } else {
                chunk.states[index] = RecordState::Waiting;
                chunk.waiting += 1;
                self.waiting += 1;
                self.keys.add_waiting(slot);
            }
        }
        self.accepts = !accepted.is_empty();
        settlement.narrowing = findings.halved || (findings.probe && self.has_untried());
        if !settlement.narrowing {
            self.refusals.end_round(findings.probe);
        }
        settlement.chunks = self.settle_chunks(&accepted.into_iter().collect());
        settlement
    }

    /// Whether there is a record that [`Delivery::next_batch`] may try after one that was
    /// refused alone.
    fn has_untried(&self) -> bool {
        let refusals = &self.refusals;
        let mut keys = Set::default();
        self.chunks.iter().any(|chunk| {
            let mut states = chunk.states.iter().enumerate();
            states.any(|(index, state)| {
                let key = chunk.events[index].partition_key;
                *state == RecordState::Waiting
                    && (keys.insert(key) || refusals.may_overtake())
                    && !refusals.was_refused_alone(chunk.sequence(index))
            })
        })
    }

    /// Returns the new states of the chunks of which records were accepted.
    fn settle_chunks(&mut self, accepted: &Sequences) -> Vec<Chunk> {
        let mut changed = Vec::new();
        for chunk in &mut self.chunks {
            changed.extend(chunk.settle(accepted));
        }
        if changed.iter().any(Chunk::is_finished) {
            self.drop_finished();
        }
        changed
    }

    fn drop_finished(&mut self) {
        let Some(end) = self.chunks.back().map(LoadedChunk::end_sequence) else {
            return;
        };
        let (bytes, keys) = (&mut self.bytes, &mut self.keys);
        self.chunks.retain(|chunk| {
            let finished = chunk.is_finished();
            if finished {
                *bytes -= chunk.bytes();
                chunk.slots.iter().for_each(|slot| keys.remove(*slot));
            }
            !finished
        });
        // No record before the first chunk waits.
        let front = self.chunks.front();
        let from = front.map_or(end, LoadedChunk::first_sequence);
        self.failed.retain(|_, last| *last >= from);
    }

    /// Events that are refused while others are accepted, with the stored bytes of each. They
    /// block their keys until [`Delivery::apply`] or [`Delivery::keep_refused`].
    pub fn refused(&self) -> BTreeMap<u64, u32> {
        self.in_state(RecordState::Refused)
    }

    /// Records in flight, with the stored bytes of each.
    pub fn in_flight_records(&self) -> BTreeMap<u64, u32> {
        self.in_state(RecordState::InFlight)
    }

    fn in_state(&self, state: RecordState) -> BTreeMap<u64, u32> {
        let chunks = self.chunks.iter();
        chunks.flat_map(|chunk| chunk.in_state(state)).collect()
    }

    /// Applies what the store gave up: the new states of chunks. Records in flight are not
    /// among it.
    pub fn apply(&mut self, given_up: &[Chunk]) {
        for state in given_up {
            if let Some((chunk, 0)) = find(&mut self.chunks, state.first_sequence) {
                let before = chunk.waiting;
                chunk.apply(state, self.gap_key, &mut self.keys);
                self.waiting = self.waiting + chunk.waiting - before;
            }
        }
        self.exhausted = false;
        self.drop_finished();
    }

    /// Makes refused events wait again, because they could not be given up.
    pub fn keep_refused(&mut self) {
        for chunk in &mut self.chunks {
            for (state, slot) in chunk.states.iter_mut().zip(&chunk.slots) {
                if *state == RecordState::Refused {
                    *state = RecordState::Waiting;
                    chunk.waiting += 1;
                    self.waiting += 1;
                    self.keys.unblock(*slot);
                    self.keys.add_waiting(*slot);
                }
            }
        }
        self.exhausted = false;
    }

    /// Forgets what was refused, because the configuration has changed.
    pub fn forget_refusals(&mut self) {
        self.refusals.forget();
    }
}

/// Chunk that contains a sequence, and the record's index in it.
fn find(chunks: &mut VecDeque<LoadedChunk>, sequence: u64) -> Option<(&mut LoadedChunk, usize)> {
    let after = chunks.partition_point(|chunk| chunk.first_sequence() <= sequence);
    let chunk = chunks.get_mut(after.checked_sub(1)?)?;
    let index = (sequence - chunk.first_sequence()) as usize;
    (index < chunk.states.len()).then_some((chunk, index))
}

#[cfg(test)]
mod tests;
