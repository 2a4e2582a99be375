//! Random logs, requests, failures, refusals, expiry and reloads, against an oracle that
//! knows only the promises.

mod refusals;
mod requests;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::domain::{
    bitmap,
    event::{GapReason, Time},
    gap::{ChunkState, give_up},
};

/// Of an event as it is sent; 4 are stored of it.
const SENT_BYTES: usize = 9;
/// The key of gaps.
const GAP_KEY: Key = 1000;

#[derive(Clone, Debug)]
enum Step {
    Load,
    Send,
    /// Sends only what makes a full request.
    SendFull,
    /// Settles one of the batches in flight; the bits say what was accepted.
    Answer(usize, u64),
    /// Gives up so many of the oldest events.
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
    /// The log as the store has it.
    states: BTreeMap<i64, ChunkState>,
}

impl Oracle {
    fn check_batch(&self, batch: &Batch, in_flight: &[Batch]) {
        let here: HashSet<u64> = batch.items.iter().map(|item| item.sequence).collect();
        assert_eq!(here.len(), batch.items.len(), "an event twice in a request");
        let busy: HashSet<Key> = in_flight
            .iter()
            .flat_map(|batch| batch.items.iter().map(|item| item.key))
            .collect();
        assert!(
            batch
                .items
                .windows(2)
                .all(|pair| pair[0].sequence < pair[1].sequence)
        );
        for item in &batch.items {
            assert_eq!(self.keys[&item.sequence], item.key);
            assert!(!busy.contains(&item.key), "two requests share a key");
            assert!(!self.accepted.contains(&item.sequence), "sent again");
            let earlier = self
                .keys
                .range(..item.sequence)
                .filter(|(_, key)| **key == item.key)
                .map(|(sequence, _)| *sequence)
                .filter(|sequence| !self.accepted.contains(sequence))
                // To find out whether it is refused while others pass.
                .filter(|sequence| batch.items.len() > 1 || !self.alone.contains(sequence));
            for earlier in earlier {
                assert!(
                    here.contains(&earlier),
                    "{} overtakes {earlier}",
                    item.sequence
                );
                // Gaps come to be between others.
                assert!(
                    item.key == GAP_KEY
                        || !self.sent.contains(&earlier)
                        || self.sent.contains(&item.sequence),
                    "{} goes out before {earlier}, which failed, is accepted",
                    item.sequence
                );
            }
        }
    }

    fn take(&mut self, batch: &Batch, outcomes: &[Outcome]) {
        for (item, outcome) in batch.items.iter().zip(outcomes) {
            self.sent.insert(item.sequence);
            match outcome {
                Outcome::Accepted => assert!(self.accepted.insert(item.sequence)),
                Outcome::Refused if outcomes.len() == 1 => {
                    self.alone.insert(item.sequence);
                }
                _ => {}
            }
        }
    }

    fn settle(&mut self, settlement: &Settlement) {
        for (id, bitmap, _) in &settlement.partial {
            let state = self.states.get_mut(id).expect("not finished");
            state.settled = bitmap::union(&state.settled, bitmap);
            let ChunkState { settled, gaps, .. } = state;
            gaps.retain(|gap| !bitmap::get(settled, gap.index as usize));
        }
        for id in &settlement.finished {
            assert!(self.states.remove(id).is_some(), "finished twice");
        }
    }

    /// Gives up what `goes` names, as the store does. Returns what became of the chunks.
    fn give_up(&mut self, goes: impl Fn(&ChunkState, u32) -> bool) -> Vec<ChunkState> {
        let mut states: Vec<ChunkState> = self.states.values().cloned().collect();
        let before = self.waiting();
        let count = give_up(&mut states, |chunk, index| {
            goes(chunk, index).then_some(GapReason::RetentionAge)
        });
        self.states = states
            .iter()
            .filter(|state| !state.is_finished())
            .map(|state| (state.id, state.clone()))
            .collect();
        let gone: Vec<u64> = before.difference(&self.waiting()).copied().collect();
        assert_eq!(gone.len() as u64, count);
        for sequence in gone {
            self.keys.remove(&sequence);
            assert!(!self.accepted.contains(&sequence), "delivered and given up");
            assert!(self.given_up.insert(sequence));
        }
        let gaps = self.states.values().flat_map(|state| &state.gaps);
        let gaps: BTreeSet<u64> = gaps.map(|placed| placed.gap.last_sequence).collect();
        let accepted = &self.accepted;
        self.keys.retain(|place, key| {
            *key != GAP_KEY || accepted.contains(place) || gaps.contains(place)
        });
        for place in gaps {
            if self.keys.insert(place, GAP_KEY).is_none() {
                self.sent.remove(&place);
            }
        }
        states
    }

    /// Events that are neither accepted nor given up.
    fn waiting(&self) -> BTreeSet<u64> {
        let states = self.states.values();
        states
            .flat_map(|state| {
                let is_gap = |index| state.gaps.iter().any(|gap| gap.index == index);
                (0..state.count)
                    .filter(move |index| !bitmap::get(&state.settled, *index as usize))
                    .filter(move |index| !is_gap(*index))
                    .map(|index| state.first_sequence + u64::from(index))
            })
            .collect()
    }
}

fn log(keys: &[u8], chunk_events: usize) -> Vec<LoadedChunk> {
    let mut sequence = 1;
    keys.chunks(chunk_events)
        .enumerate()
        .map(|(id, keys)| {
            let chunk = LoadedChunk {
                id: id as i64 + 1,
                first_sequence: sequence,
                entries: keys
                    .iter()
                    .enumerate()
                    .map(|(at, key)| Entry {
                        key: Key::from(*key),
                        stored: at as u32 * 4..at as u32 * 4 + 4,
                        body_length: SENT_BYTES as u32,
                    })
                    .collect(),
                bytes: Bytes::from(vec![b'x'; keys.len() * 4]),
                settled: Vec::new(),
                gaps: Vec::new(),
            };
            sequence += keys.len() as u64;
            chunk
        })
        .collect()
}

struct Run {
    chunks: Vec<LoadedChunk>,
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
        let states = chunks.iter().map(|chunk| ChunkState {
            id: chunk.id,
            first_sequence: chunk.first_sequence,
            count: chunk.entries.len() as u32,
            settled: Vec::new(),
            gaps: Vec::new(),
            accepted_at: Time::from_micros(chunk.id),
        });
        Self {
            loaded: 0,
            delivery: Delivery::default(),
            in_flight: Vec::new(),
            oracle: Oracle {
                keys: numbered
                    .map(|(at, key)| (at as u64 + 1, Key::from(*key)))
                    .collect(),
                states: states.map(|state| (state.id, state)).collect(),
                ..Oracle::default()
            },
            limits,
            chunks,
        }
    }

    fn load(&mut self) {
        let Some(chunk) = self.chunks.get(self.loaded) else {
            return;
        };
        self.loaded += 1;
        let Some(state) = self.oracle.states.get(&chunk.id) else {
            return;
        };
        let mut chunk = chunk.clone();
        chunk.settled = state.settled.clone();
        chunk.gaps = state.gaps.clone();
        for gap in &chunk.gaps {
            chunk.entries[gap.index as usize] = Entry {
                key: GAP_KEY,
                stored: 0..0,
                body_length: 0,
            };
        }
        assert_eq!(self.delivery.load(chunk), None);
    }

    fn send(&mut self) -> bool {
        let Some(batch) = self.delivery.next_batch(self.limits) else {
            return false;
        };
        assert!(batch.items.len() <= self.limits.records);
        self.oracle.check_batch(&batch, &self.in_flight);
        self.in_flight.push(batch);
        true
    }

    /// What is not full is not sent, and as if it had never been looked at.
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
                let bytes = batch.items.len() * SENT_BYTES;
                assert!(batch.items.len() == self.limits.records || bytes * 2 > self.limits.bytes);
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
        let outcomes: Vec<Outcome> = (0..batch.items.len()).map(outcome).collect();
        self.settle(batch, &outcomes);
    }

    fn settle(&mut self, batch: Batch, outcomes: &[Outcome]) -> Settlement {
        self.oracle.take(&batch, outcomes);
        let accepted = batch.items.iter().zip(outcomes);
        let accepted = accepted.filter(|(_, outcome)| **outcome == Outcome::Accepted);
        let (gaps, events): (Vec<_>, Vec<_>) = accepted.partition(|(item, _)| item.gap.is_some());
        let (gaps, events) = (gaps.len() as u64, events.len() as u64);
        let settlement = self.delivery.settle(batch, outcomes);
        assert_eq!((settlement.accepted, settlement.gaps), (events, gaps));
        assert_eq!(settlement.accepted_bytes, events * 4);
        self.oracle.settle(&settlement);
        settlement
    }

    /// Gives up what is named and not in flight.
    fn give_up(&mut self, goes: impl Fn(&ChunkState, u32) -> bool) {
        let in_flight = self.delivery.events_in_flight();
        let flies = |chunk: &ChunkState, index: u32| {
            let mut marked = in_flight.iter().filter(|one| one.chunk_id == chunk.id);
            marked.any(|one| bitmap::get(&one.events, index as usize))
        };
        let states = self
            .oracle
            .give_up(|chunk, index| !flies(chunk, index) && goes(chunk, index));
        self.delivery.apply(&states, GAP_KEY);
    }

    fn give_up_refused(&mut self) {
        let refused = self.delivery.refused();
        assert!(!refused.is_empty());
        self.give_up(|chunk, index| {
            let mut marked = refused.iter().filter(|one| one.chunk_id == chunk.id);
            chunk.gaps.iter().any(|gap| gap.index == index)
                || marked.any(|one| bitmap::get(&one.events, index as usize))
        });
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
                self.give_up(|chunk, index| chunk.first_sequence + u64::from(index) <= last);
            }
            Step::Reload if self.in_flight.is_empty() => {
                let from = self.delivery.unload();
                if let Some(from) = from {
                    let before = |chunk: &&LoadedChunk| chunk.first_sequence < from;
                    self.loaded = self.chunks.iter().take_while(before).count();
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
        let told: BTreeSet<u64> = run.oracle.accepted.union(&run.oracle.given_up).copied().collect();
        prop_assert_eq!(told.len(), keys.len());
        prop_assert!(run.oracle.states.is_empty());
        prop_assert!(run.delivery.is_empty());
        prop_assert_eq!((run.delivery.waiting(), run.delivery.in_flight(), run.delivery.bytes()), (0, 0, 0));
    }
}
