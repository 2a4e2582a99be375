//! Random logs, requests, failures and reloads, against an oracle that knows only
//! the promises.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Load,
    Send,
    /// Settles one of the batches in flight; the bits say what was accepted.
    Answer(usize, u64),
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Load),
        4 => Just(Step::Send),
        4 => (any::<usize>(), any::<u64>()).prop_map(|(which, bits)| Step::Answer(which, bits)),
        1 => Just(Step::Reload),
    ]
}

#[derive(Default)]
struct Oracle {
    keys: BTreeMap<u64, Key>,
    sent: BTreeSet<u64>,
    accepted: BTreeSet<u64>,
    bitmaps: BTreeMap<i64, Vec<u8>>,
    finished: BTreeSet<i64>,
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
                .filter(|sequence| !self.accepted.contains(sequence));
            for earlier in earlier {
                assert!(
                    here.contains(&earlier),
                    "{} overtakes {earlier}",
                    item.sequence
                );
                assert!(
                    !self.sent.contains(&earlier) || self.sent.contains(&item.sequence),
                    "{} goes out before {earlier}, which failed, is accepted",
                    item.sequence
                );
            }
        }
    }

    fn take(&mut self, batch: &Batch, accepted: &[bool]) {
        for (item, accepted) in batch.items.iter().zip(accepted) {
            self.sent.insert(item.sequence);
            if *accepted {
                assert!(self.accepted.insert(item.sequence));
            }
        }
    }

    fn settle(&mut self, settlement: &Settlement) {
        for (id, bitmap, _) in &settlement.partial {
            self.bitmaps.insert(*id, bitmap.clone());
        }
        for id in &settlement.finished {
            assert!(self.finished.insert(*id), "finished twice");
        }
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
                        body: at as u32 * 4..at as u32 * 4 + 4,
                    })
                    .collect(),
                bytes: Bytes::from(vec![b'x'; keys.len() * 4]),
                accepted: Vec::new(),
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
    fn load(&mut self) {
        let Some(chunk) = self.chunks.get(self.loaded) else {
            return;
        };
        self.loaded += 1;
        if self.oracle.finished.contains(&chunk.id) {
            return;
        }
        let mut chunk = chunk.clone();
        chunk.accepted = self
            .oracle
            .bitmaps
            .get(&chunk.id)
            .cloned()
            .unwrap_or_default();
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

    fn answer(&mut self, which: usize, accepted: impl Fn(usize) -> bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let batch = self.in_flight.remove(which % self.in_flight.len());
        let accepted: Vec<bool> = (0..batch.items.len()).map(accepted).collect();
        self.oracle.take(&batch, &accepted);
        let count = accepted.iter().filter(|accepted| **accepted).count() as u64;
        let settlement = self.delivery.settle(batch, &accepted);
        assert_eq!(settlement.accepted, count);
        assert_eq!(settlement.accepted_bytes, count * 4);
        self.oracle.settle(&settlement);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Load => self.load(),
            Step::Send => drop(self.send()),
            Step::Answer(which, bits) => self.answer(which, |at| bits >> (at % 64) & 1 == 1),
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
            self.answer(0, |_| true);
        }
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
        let total = keys.len();
        let chunks = log(&keys, chunk_events);
        let mut run = Run {
            loaded: 0,
            delivery: Delivery::default(),
            in_flight: Vec::new(),
            oracle: Oracle {
                keys: keys.iter().enumerate().map(|(at, key)| (at as u64 + 1, Key::from(*key))).collect(),
                ..Oracle::default()
            },
            limits: BatchLimits { records, bytes: 1000, overhead_bytes: 10 },
            chunks,
        };
        for step in steps {
            run.step(step);
        }
        run.drain();
        prop_assert_eq!(run.oracle.accepted.len(), total);
        prop_assert_eq!(run.oracle.finished.len(), run.chunks.len());
        prop_assert!(run.delivery.is_empty());
        prop_assert_eq!((run.delivery.waiting(), run.delivery.in_flight(), run.delivery.bytes()), (0, 0, 0));
    }
}

#[test]
fn a_request_holds_no_more_bytes_than_allowed_but_at_least_one_event() {
    let limits = |bytes| BatchLimits {
        records: 500,
        bytes,
        overhead_bytes: 6,
    };
    let mut delivery = Delivery::default();
    for chunk in log(&[1, 2, 3, 4, 5], 5) {
        delivery.load(chunk);
    }
    let batch = delivery.next_batch(limits(35)).unwrap();
    assert_eq!(batch.items.len(), 3);
    let _settled = delivery.settle(batch, &[true, true, true]);
    let batch = delivery.next_batch(limits(1)).unwrap();
    assert_eq!(batch.items.len(), 1);
    let _settled = delivery.settle(batch, &[true]);
}

#[test]
fn an_item_without_an_outcome_is_sent_again() {
    let mut delivery = Delivery::default();
    for chunk in log(&[1, 2], 2) {
        delivery.load(chunk);
    }
    let limits = BatchLimits {
        records: 500,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let batch = delivery.next_batch(limits).unwrap();
    let settlement = delivery.settle(batch, &[true]);
    assert_eq!(settlement.accepted, 1);
    let batch = delivery.next_batch(limits).unwrap();
    assert_eq!(batch.items[0].sequence, 2);
    let _settled = delivery.settle(batch, &[true]);
}
