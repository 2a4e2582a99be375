//! Random logs, requests, failures, refusals, expiry and reloads, against an oracle that
//! knows only the promises.

mod refusals;
mod requests;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::{
    chunk::give_up,
    event::{GapReason, testing},
    integration::testing::testing_id,
    segment::Segments,
};

/// Bytes of an event, as it is stored and as its body is sent.
const EVENT_BYTES: usize = testing::STORED_LENGTH;
/// Number of the integration, and so the key of its gaps.
const GAP_KEY: Key = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Failed,
    Refused,
}

fn outcomes(outcomes: &[Outcome]) -> Vec<RecordOutcome> {
    let outcome = |outcome: &Outcome| match outcome {
        Outcome::Accepted => RecordOutcome::Accepted {
            shard_id: "shard".into(),
            sequence_number: Box::default(),
        },
        Outcome::Failed => RecordOutcome::Failed(Fault::of_record("InternalFailure", None)),
        Outcome::Refused => {
            RecordOutcome::Failed(Fault::of_record("InvalidArgumentException", None))
        }
    };
    outcomes.iter().map(outcome).collect()
}

fn settle(delivery: &mut Delivery, batch: Batch, of_records: &[Outcome]) -> Settlement {
    delivery.settle(batch, &outcomes(of_records), true)
}

#[derive(Clone, Debug)]
enum Step {
    Load,
    Send,
    /// Sends only what makes a full request.
    SendFull,
    /// Settles one of the batches in flight; the bits say what was accepted.
    Answer(usize, u64),
    /// Gives up this number of the oldest events.
    Expire(u64),
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Load),
        4 => Just(Step::Send),
        2 => Just(Step::SendFull),
        4 => (any::<usize>(), any::<u64>()).prop_map(|(which, bits)| Step::Answer(which, bits)),
        1 => (1u64..40).prop_map(Step::Expire),
        1 => Just(Step::Reload),
    ]
}

#[derive(Default)]
struct Oracle {
    keys: BTreeMap<u64, Key>,
    sent: BTreeSet<u64>,
    accepted: BTreeSet<u64>,
    given_up: BTreeSet<u64>,
    /// Records that were refused in a request of their own.
    alone: BTreeSet<u64>,
    /// Unfinished chunks as the store has them, by first sequence.
    chunks: BTreeMap<u64, Chunk>,
}

impl Oracle {
    fn check_batch(&self, batch: &Batch, in_flight: &[Batch]) {
        let here: HashSet<u64> = batch.records.iter().map(|record| record.sequence).collect();
        assert_eq!(
            here.len(),
            batch.records.len(),
            "an event twice in a request"
        );
        let busy: HashSet<Key> = in_flight
            .iter()
            .flat_map(|batch| batch.records.iter().map(|record| record.key))
            .collect();
        assert!(
            batch
                .records
                .windows(2)
                .all(|pair| pair[0].sequence < pair[1].sequence)
        );
        for record in &batch.records {
            assert_eq!(self.keys[&record.sequence], record.key);
            assert!(!busy.contains(&record.key), "two requests share a key");
            assert!(!self.accepted.contains(&record.sequence), "sent again");
            let earlier = self
                .keys
                .range(..record.sequence)
                .filter(|(_, key)| **key == record.key)
                .map(|(sequence, _)| *sequence)
                .filter(|sequence| !self.accepted.contains(sequence))
                // To find out whether it is refused while others pass.
                .filter(|sequence| batch.records.len() > 1 || !self.alone.contains(sequence));
            for earlier in earlier {
                assert!(
                    here.contains(&earlier),
                    "{} overtakes {earlier}",
                    record.sequence
                );
                // Gaps come to be between others.
                assert!(
                    record.key == GAP_KEY
                        || !self.sent.contains(&earlier)
                        || self.sent.contains(&record.sequence),
                    "{} goes out before {earlier}, which failed, is accepted",
                    record.sequence
                );
            }
        }
    }

    fn take(&mut self, batch: &Batch, outcomes: &[Outcome]) {
        for (record, outcome) in batch.records.iter().zip(outcomes) {
            self.sent.insert(record.sequence);
            match outcome {
                Outcome::Accepted => assert!(self.accepted.insert(record.sequence)),
                Outcome::Refused if outcomes.len() == 1 => {
                    self.alone.insert(record.sequence);
                }
                _ => {}
            }
        }
    }

    fn settle(&mut self, settlement: &Settlement) {
        for state in &settlement.chunks {
            let first_sequence = state.first_sequence;
            let chunk = self.chunks.get_mut(&first_sequence).expect("unfinished");
            assert!(state.segment.is_empty());
            assert!(state.settled.count() > chunk.settled.count());
            *chunk = Chunk {
                segment: chunk.segment.clone(),
                ..state.clone()
            };
            let events = chunk.pending_events() * EVENT_BYTES as u64;
            assert_eq!(chunk.pending_bytes, events);
            if chunk.is_finished() {
                self.chunks.remove(&first_sequence);
            }
        }
    }

    /// Gives up the events for which `chosen` returns true, as the store does. Returns the
    /// states of the chunks.
    fn give_up(&mut self, chosen: impl Fn(&Chunk, u64) -> bool) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = self.chunks.values().cloned().collect();
        let before = self.waiting();
        let count = give_up(&mut chunks, |chunk, sequence| {
            chosen(chunk, sequence).then_some(GapReason::RetentionAge)
        });
        for chunk in &mut chunks {
            chunk.pending_bytes = chunk.pending_events() * EVENT_BYTES as u64;
        }
        self.chunks = chunks
            .iter()
            .filter(|chunk| !chunk.is_finished())
            .map(|chunk| (chunk.first_sequence, chunk.clone()))
            .collect();
        let given_up: Vec<u64> = before.difference(&self.waiting()).copied().collect();
        assert_eq!(given_up.len() as u64, count);
        for sequence in given_up {
            self.keys.remove(&sequence);
            assert!(!self.accepted.contains(&sequence), "delivered and given up");
            assert!(self.given_up.insert(sequence));
        }
        let gaps = self.chunks.values().flat_map(|chunk| &chunk.gaps);
        let gaps: BTreeSet<u64> = gaps.map(|gap| gap.last_sequence).collect();
        let accepted = &self.accepted;
        self.keys.retain(|sequence, key| {
            *key != GAP_KEY || accepted.contains(sequence) || gaps.contains(sequence)
        });
        for sequence in gaps {
            if self.keys.insert(sequence, GAP_KEY).is_none() {
                self.sent.remove(&sequence);
            }
        }
        chunks.iter().map(Chunk::state).collect()
    }

    /// Events that are neither accepted nor given up.
    fn waiting(&self) -> BTreeSet<u64> {
        let chunks = self.chunks.values();
        chunks
            .flat_map(|chunk| {
                (chunk.first_sequence..chunk.end_sequence())
                    .filter(|sequence| !chunk.settled.contains(*sequence))
                    .filter(|sequence| !chunk.is_gap(*sequence))
            })
            .collect()
    }
}

/// Chunks of events with these keys.
fn log(keys: &[u8], chunk_events: usize) -> Vec<Chunk> {
    let mut first_sequence = 1;
    keys.chunks(chunk_events)
        .map(|keys| {
            let mut segments = Segments::default();
            for key in keys {
                let stored: Result<(), ()> = segments.push(testing_id(1), |out| {
                    testing::store(Uuid::from_u128(u128::from(*key)), 1, out);
                    Ok(())
                });
                stored.unwrap();
            }
            let chunk = Chunk {
                first_sequence,
                count: keys.len() as u32,
                accepted_at: Timestamp::UNIX_EPOCH,
                segment: segments.into_parts().0.into(),
                settled: Sequences::default(),
                gaps: Vec::new(),
                pending_bytes: (keys.len() * EVENT_BYTES) as u64,
                traces: Vec::new(),
            };
            first_sequence = chunk.end_sequence();
            chunk
        })
        .collect()
}

fn delivery(keys: &[u8], chunk_events: usize) -> Delivery {
    let mut delivery = Delivery::new(testing_id(GAP_KEY as i64));
    for chunk in log(keys, chunk_events) {
        delivery.load(chunk).unwrap();
    }
    delivery
}

struct Run {
    /// First sequence of each chunk.
    chunks: Vec<u64>,
    loaded: usize,
    delivery: Delivery,
    in_flight: Vec<Batch>,
    oracle: Oracle,
    limits: BatchLimits,
}

impl Run {
    fn new(keys: &[u8], chunk_events: usize, limits: BatchLimits) -> Self {
        let chunks = log(keys, chunk_events);
        let numbered = keys.iter().enumerate();
        Self {
            chunks: chunks.iter().map(|chunk| chunk.first_sequence).collect(),
            loaded: 0,
            delivery: delivery(&[], 1),
            in_flight: Vec::new(),
            oracle: Oracle {
                keys: numbered
                    .map(|(at, key)| (at as u64 + 1, Key::from(*key)))
                    .collect(),
                chunks: chunks
                    .into_iter()
                    .map(|chunk| (chunk.first_sequence, chunk))
                    .collect(),
                ..Oracle::default()
            },
            limits,
        }
    }

    fn load(&mut self) {
        let Some(first_sequence) = self.chunks.get(self.loaded) else {
            return;
        };
        self.loaded += 1;
        if let Some(chunk) = self.oracle.chunks.get(first_sequence) {
            self.delivery.load(chunk.clone()).unwrap();
        }
    }

    fn send(&mut self) -> bool {
        let Some(batch) = self.delivery.next_batch(self.limits) else {
            return false;
        };
        assert!(batch.records.len() <= self.limits.records);
        self.oracle.check_batch(&batch, &self.in_flight);
        self.in_flight.push(batch);
        true
    }

    /// A request that is not full is not sent, and changes nothing.
    fn send_full(&mut self) {
        if self.delivery.is_narrowing() {
            return;
        }
        let before = (self.delivery.waiting(), self.delivery.in_flight());
        match self.delivery.next_full_batch(self.limits) {
            None => {
                let after = (self.delivery.waiting(), self.delivery.in_flight());
                assert_eq!(after, before);
            }
            Some(batch) => {
                let bytes = batch.records.len() * EVENT_BYTES;
                assert!(
                    batch.records.len() == self.limits.records || bytes * 2 > self.limits.bytes
                );
                self.oracle.check_batch(&batch, &self.in_flight);
                self.in_flight.push(batch);
            }
        }
    }

    fn answer(&mut self, which: usize, outcome: impl Fn(usize) -> Outcome) {
        if self.in_flight.is_empty() {
            return;
        }
        let batch = self.in_flight.remove(which % self.in_flight.len());
        let outcomes: Vec<Outcome> = (0..batch.records.len()).map(outcome).collect();
        self.settle(batch, &outcomes);
    }

    fn settle(&mut self, batch: Batch, outcomes: &[Outcome]) -> Settlement {
        self.oracle.take(&batch, outcomes);
        let accepted = batch.records.iter().zip(outcomes);
        let accepted = accepted.filter(|(_, outcome)| **outcome == Outcome::Accepted);
        let (gaps, events): (Vec<_>, Vec<_>) =
            accepted.partition(|(record, _)| record.gap.is_some());
        let (gaps, events) = (gaps.len() as u64, events.len() as u64);
        let settlement = settle(&mut self.delivery, batch, outcomes);
        assert_eq!((settlement.accepted, settlement.gaps), (events, gaps));
        assert_eq!(settlement.accepted_bytes, events * EVENT_BYTES as u64);
        self.oracle.settle(&settlement);
        settlement
    }

    /// Gives up what is chosen and not in flight.
    fn give_up(&mut self, chosen: impl Fn(&Chunk, u64) -> bool) {
        let in_flight = self.delivery.in_flight_records();
        let records = self.in_flight.iter().flat_map(|batch| &batch.records);
        let expected: BTreeMap<u64, u32> = records
            .map(|record| (record.sequence, record.stored.len() as u32))
            .collect();
        assert_eq!(in_flight, expected);
        let chunks = self.oracle.give_up(|chunk, sequence| {
            !in_flight.contains_key(&sequence) && chosen(chunk, sequence)
        });
        self.delivery.apply(&chunks);
    }

    fn give_up_refused(&mut self) {
        let refused = self.delivery.refused();
        assert!(!refused.is_empty());
        assert!(refused.values().all(|bytes| *bytes == EVENT_BYTES as u32));
        self.give_up(|chunk, sequence| chunk.is_gap(sequence) || refused.contains_key(&sequence));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Load => self.load(),
            Step::Send => drop(self.send()),
            Step::SendFull => self.send_full(),
            Step::Answer(which, bits) => self.answer(which, |at| outcome(bits, at)),
            Step::Expire(count) => {
                let oldest: Vec<u64> = self.oracle.waiting().into_iter().collect();
                let last = oldest.get(count as usize - 1).copied().unwrap_or(u64::MAX);
                self.give_up(|_, sequence| sequence <= last);
            }
            Step::Reload if self.in_flight.is_empty() => {
                if let Some(from) = self.delivery.unload() {
                    self.loaded = self.chunks.partition_point(|first| *first < from);
                }
            }
            Step::Reload => {}
        }
    }

    fn drain(&mut self) {
        while self.loaded < self.chunks.len() {
            self.load();
        }
        while !self.in_flight.is_empty() || self.send() {
            self.answer(0, |_| Outcome::Accepted);
        }
    }
}

fn outcome(bits: u64, at: usize) -> Outcome {
    match bits >> (at % 64) & 1 {
        1 => Outcome::Accepted,
        _ => Outcome::Failed,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn keeps_its_promises(
        keys in prop::collection::vec(0u8..5, 1..120),
        chunk_events in 1usize..20,
        records in 1usize..30,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let limits = BatchLimits { records, bytes: 100_000, overhead_bytes: 10 };
        let mut run = Run::new(&keys, chunk_events, limits);
        for step in steps {
            run.step(step);
        }
        run.drain();
        let known: BTreeSet<u64> = run.oracle.accepted.union(&run.oracle.given_up).copied().collect();
        prop_assert_eq!(known.len(), keys.len());
        prop_assert!(run.oracle.chunks.is_empty());
        prop_assert!(run.delivery.is_empty());
        prop_assert_eq!((run.delivery.waiting(), run.delivery.in_flight(), run.delivery.bytes()), (0, 0, 0));
    }
}
