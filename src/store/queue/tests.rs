//! The queue against a model: random entries, settlements, moves and restarts from a checkpoint.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Bytes of a stored event with its length.
const EVENT: usize = 4 + 3;

#[derive(Clone, Debug)]
enum Step {
    /// An entry with chunks of so many events.
    Append(Vec<u32>),
    /// Settles events by the bits of a number, of what was read from the oldest on.
    Settle(u64),
    /// Moves the oldest entries; events are settled before the move ends.
    Move {
        entries: usize,
        join: bool,
        settled: u64,
        fails: bool,
    },
    /// Starts again from the checkpoint.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(1..6u32, 1..4).prop_map(Step::Append),
        4 => any::<u64>().prop_map(Step::Settle),
        2 => (0..4usize, any::<bool>(), any::<u64>(), any::<bool>())
            .prop_map(|(entries, join, settled, fails)| Step::Move { entries, join, settled, fails }),
        1 => Just(Step::Restart),
    ]
}

#[derive(Default)]
struct Model {
    /// Position and chunk sizes of each entry.
    log: Vec<(Position, Vec<u32>)>,
    pending: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    /// Chunks of the backlog, by first sequence.
    backlog: BTreeMap<u64, Chunk>,
    released: Vec<Position>,
}

fn segment(count: u32) -> Bytes {
    let event = [3, 0, 0, 0, b'a', b'b', b'c'];
    event.repeat(count as usize).into()
}

fn push(queue: &mut Queue, position: Position, counts: &[u32]) -> Vec<Option<u64>> {
    let chunks = counts.iter();
    chunks
        .map(|count| {
            queue.push(
                position,
                Timestamp::UNIX_EPOCH,
                *count,
                Ok(segment(*count)),
                Vec::new(),
            )
        })
        .collect()
}

impl Model {
    /// Settles the pending events of some chunks by the bits of a number.
    fn settlement(&mut self, chunks: Vec<Chunk>, bits: u64) -> Settlement {
        let mut settlement = Settlement::default();
        for mut chunk in chunks {
            let settled: Sequences = (chunk.first_sequence..chunk.end_sequence())
                .filter(|sequence| !chunk.settled.contains(*sequence))
                .filter(|sequence| bits >> (sequence % 64) & 1 == 1)
                .collect();
            if settled.is_empty() {
                continue;
            }
            settlement.accepted += settled.count();
            settlement.accepted_bytes += settled.count() * (EVENT as u64 - 4);
            for sequence in settled.iter() {
                assert!(
                    self.pending.remove(&sequence),
                    "{sequence} was settled before"
                );
                self.delivered.insert(sequence);
            }
            chunk.settle(&settled);
            chunk.pending_bytes -= settled.count() * (EVENT as u64 - 4);
            settlement.chunks.push(chunk.state());
        }
        settlement
    }

    /// The pending chunks, as a reader finds them.
    fn read(&self, queue: &mut Queue) -> Vec<Chunk> {
        let overlay = queue.backlog_overlay();
        let mut chunks: Vec<Chunk> = self.backlog.values().cloned().collect();
        for chunk in &mut chunks {
            Queue::overlay(&overlay, chunk);
        }
        match queue.read(queue.next_sequence(), usize::MAX) {
            Ok(Read::Chunks(tail)) => chunks.extend(tail),
            other => panic!("{other:?}"),
        }
        chunks.retain(|chunk| !chunk.is_finished());
        chunks
    }

    fn flush(&mut self, queue: &mut Queue) {
        let changes: Vec<Chunk> = queue.backlog_changes().cloned().collect();
        for change in &changes {
            if let Some(chunk) = self.backlog.get_mut(&change.first_sequence) {
                chunk.settle(&change.settled);
                chunk.pending_bytes = change.pending_bytes;
            }
        }
        queue.confirm(queue.unwritten(), &changes);
        self.backlog.retain(|_, chunk| !chunk.is_finished());
    }

    fn check(&self, queue: &mut Queue) {
        let read = self.read(queue);
        let pending: BTreeSet<u64> = read
            .iter()
            .flat_map(|chunk| {
                let all = chunk.first_sequence..chunk.end_sequence();
                all.filter(|sequence| !chunk.settled.contains(*sequence))
            })
            .collect();
        assert_eq!(pending, self.pending);
        let firsts: Vec<u64> = read.iter().map(|chunk| chunk.first_sequence).collect();
        assert!(firsts.is_sorted());
        let progress = queue.progress();
        assert_eq!(progress.pending(), self.pending.len() as u64);
        assert_eq!(progress.delivered, self.delivered.len() as u64);
        assert_eq!(
            progress.pending_bytes,
            self.pending.len() as u64 * (EVENT as u64 - 4)
        );
        let released: BTreeSet<Position> = self.released.iter().copied().collect();
        let held = self
            .log
            .iter()
            .filter(|(position, _)| !released.contains(position));
        // An entry that was released holds nothing that is not settled or in the backlog.
        assert!(held.clone().all(|(position, _)| *position > queue.position));
        let bytes: usize = queue
            .tail
            .iter()
            .flat_map(|tail| &tail.chunks)
            .map(TailChunk::bytes)
            .sum();
        assert_eq!(queue.bytes(), bytes);
    }
}

proptest! {
    #[test]
    fn every_event_has_one_sequence_and_is_settled_once(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let (mut queue, mut model) = (Queue::new(), Model::default());
        let mut next = 1;
        for step in steps {
            let mut released = Released::default();
            match step {
                Step::Append(counts) => {
                    let position = Position(model.log.len() as u64 * 3 + 1);
                    let firsts = push(&mut queue, position, &counts);
                    for (first, count) in firsts.into_iter().zip(&counts) {
                        prop_assert_eq!(first, Some(next));
                        model.pending.extend(next..next + u64::from(*count));
                        next += u64::from(*count);
                    }
                    model.log.push((position, counts));
                }
                Step::Settle(bits) => {
                    let chunks = model.read(&mut queue);
                    let settlement = model.settlement(chunks, bits);
                    queue.settle(&settlement, &mut released);
                }
                Step::Move { entries, join, settled, fails } => {
                    let up_to = model.log.get(entries).map_or(Position(u64::MAX), |one| one.0);
                    // The worker holds what it has read before the move.
                    let held = match join {
                        true => Vec::new(),
                        false => model.read(&mut queue),
                    };
                    let Some(moved) = queue.plan_move(up_to, join) else { continue };
                    let settlement = model.settlement(held, settled);
                    queue.settle(&settlement, &mut released);
                    if fails {
                        queue.cancel_move(&mut released);
                    } else {
                        let checkpoint = queue.checkpoint_after(&moved);
                        prop_assert!(checkpoint.next_sequence > queue.next_sequence()
                            || moved.chunks.is_empty());
                        model.flush(&mut queue);
                        let chunks = moved.chunks.iter().filter(|chunk| !chunk.is_finished());
                        model.backlog.extend(
                            chunks.map(|chunk| (chunk.first_sequence, chunk.clone())),
                        );
                        queue.finish_move(moved, &mut released);
                    }
                }
                Step::Restart => {
                    model.flush(&mut queue);
                    let checkpoint = queue.checkpoint();
                    prop_assert!(!checkpoint.settled.contains(checkpoint.next_sequence - 1));
                    queue = Queue::load(LedgerRow {
                        integration_id: crate::domain::integration::testing::testing_id(1),
                        backlog_since: None,
                        backlog_bytes: model.backlog.values().map(|chunk| chunk.pending_bytes).sum(),
                        checkpoint: checkpoint.clone(),
                    });
                    let mut first = checkpoint.next_sequence;
                    for (position, counts) in &model.log {
                        for (found, count) in push(&mut queue, *position, counts).into_iter().zip(counts) {
                            if *position > checkpoint.position {
                                prop_assert_eq!(found, Some(first));
                                first += u64::from(*count);
                            } else {
                                prop_assert_eq!(found, None);
                            }
                        }
                        queue.advance(&mut released);
                    }
                    prop_assert_eq!(first, next);
                }
            }
            model.released.extend(released.positions);
            model.check(&mut queue);
        }
    }
}

#[test]
fn a_damaged_chunk_moves_as_a_gap() {
    let mut queue = Queue::new();
    queue.push(
        Position(1),
        Timestamp::UNIX_EPOCH,
        2,
        Ok(segment(2)),
        Vec::new(),
    );
    queue.push(
        Position(2),
        Timestamp::UNIX_EPOCH,
        3,
        Err(Damaged),
        Vec::new(),
    );
    assert!(matches!(queue.read(1, usize::MAX), Ok(Read::Chunks(chunks)) if chunks.len() == 1));
    assert_eq!(queue.read(3, usize::MAX).unwrap_err(), 3);
    let moved = queue.plan_move(Position(2), true).unwrap();
    assert_eq!((moved.chunks.len(), moved.expired), (2, 3));
    let gap = moved.chunks[1].gaps[0];
    assert_eq!(
        (gap.first_sequence, gap.last_sequence, gap.count),
        (3, 5, 3)
    );
    queue.finish_move(moved, &mut Released::default());
    let progress = queue.progress();
    assert_eq!(
        (progress.accepted(), progress.expired, progress.pending()),
        (5, 3, 2)
    );
}

#[test]
fn unread_neighbours_become_one_chunk_of_the_backlog() {
    let mut queue = Queue::new();
    for position in 1..=4 {
        let accepted_at = Timestamp::from_millisecond(400 * position as i64).unwrap();
        queue.push(
            Position(position),
            accepted_at,
            2,
            Ok(segment(2)),
            Vec::new(),
        );
    }
    let moved = queue.plan_move(Position(4), true).unwrap();
    let chunks: Vec<(u64, u32)> = moved
        .chunks
        .iter()
        .map(|chunk| (chunk.first_sequence, chunk.count))
        .collect();
    // Within a second of the first.
    assert_eq!(chunks, [(1, 6), (7, 2)]);
    queue.cancel_move(&mut Released::default());
    assert!(matches!(queue.read(1, 1), Ok(Read::Chunks(chunks)) if chunks.len() == 1));
    let moved = queue.plan_move(Position(4), true).unwrap();
    assert_eq!(moved.chunks[0].count, 2);
}
