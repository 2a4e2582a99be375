//! Chunks of the log: up to 500 consecutive events of one integration, and the gap events that
//! replace events that will not be delivered.

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    event::{Gap, GapReason, Time},
    sequences::Sequences,
    trace::TraceContext,
};

/// Consecutive events of one integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Sequence of the first event.
    pub first_sequence: u64,
    /// Number of events, at least 1.
    pub count: u32,
    /// Time when the events were accepted.
    pub accepted_at: Timestamp,
    /// The events, as [`segment`](super::segment) describes. Empty if no event is pending, or if
    /// only the state of the chunk was asked for.
    pub segment: Bytes,
    /// Sequences of the chunk that are settled: delivered, or covered by a gap. The sequence of
    /// a pending gap is not settled.
    pub settled: Sequences,
    /// Pending gaps, by their last sequence, which is in the chunk.
    pub gaps: Vec<Gap>,
    /// Bytes of the pending events, before compression.
    pub pending_bytes: u64,
    /// Spans in which the events were published, of the publishes that are traced. Empty for a
    /// chunk of the backlog, which does not keep them.
    pub traces: Vec<TraceContext>,
}

impl Chunk {
    /// Sequence of the last event.
    pub fn last_sequence(&self) -> u64 {
        self.end_sequence() - 1
    }

    /// Sequence after the last event.
    pub fn end_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.count)
    }

    /// Whether nothing is left to send.
    pub fn is_finished(&self) -> bool {
        self.settled
            .covers(self.first_sequence, self.last_sequence())
    }

    /// Number of events that are neither delivered nor given up.
    pub fn pending_events(&self) -> u64 {
        u64::from(self.count) - self.settled.count() - self.gaps.len() as u64
    }

    /// Whether a pending gap has this sequence.
    pub fn is_gap(&self, sequence: u64) -> bool {
        self.gaps.iter().any(|gap| gap.last_sequence == sequence)
    }

    /// Adds settled sequences of the chunk.
    pub fn settle(&mut self, settled: &Sequences) {
        let settled = settled.within(self.first_sequence, self.last_sequence());
        self.settled.extend(&settled);
        let settled = &self.settled;
        self.gaps.retain(|gap| !settled.contains(gap.last_sequence));
    }

    /// The chunk without its events.
    pub fn state(&self) -> Self {
        Self {
            segment: Bytes::new(),
            ..self.clone()
        }
    }

    fn take_gap(&mut self, sequence: u64) -> Option<Gap> {
        let at = self
            .gaps
            .iter()
            .position(|gap| gap.last_sequence == sequence)?;
        Some(self.gaps.remove(at))
    }

    fn place(&mut self, gap: Gap) {
        let at = self
            .gaps
            .partition_point(|other| other.last_sequence < gap.last_sequence);
        self.gaps.insert(at, gap);
    }
}

/// Gap under construction, and the index of the chunk with its last sequence.
struct Run {
    gap: Gap,
    chunk: usize,
}

/// Gives up the events for which `reason` returns one, and returns their number. `chunks` are
/// consecutive chunks of one integration. Their `pending_bytes` stay as they are.
///
/// Adjacent gaps are merged, including pending ones if `reason` returns one for their sequence.
/// Delivered events between two gaps do not prevent merging, unless the reason is a refused
/// record.
pub fn give_up(chunks: &mut [Chunk], reason: impl Fn(&Chunk, u64) -> Option<GapReason>) -> u64 {
    let mut given_up = 0;
    let mut run: Option<Run> = None;
    for at in 0..chunks.len() {
        for sequence in chunks[at].first_sequence..chunks[at].end_sequence() {
            if chunks[at].settled.contains(sequence) {
                continue;
            }
            let Some(reason) = reason(&chunks[at], sequence) else {
                end(chunks, run.take());
                continue;
            };
            let gap = chunks[at].take_gap(sequence).unwrap_or_else(|| {
                given_up += 1;
                single(&chunks[at], sequence, reason)
            });
            let gap = match run.take() {
                Some(before) if may_merge(&before.gap, &gap, reason) => {
                    chunks[before.chunk].settled.add(before.gap.last_sequence);
                    before.gap.merge(&gap)
                }
                apart => {
                    end(chunks, apart);
                    gap
                }
            };
            run = Some(Run { gap, chunk: at });
        }
    }
    end(chunks, run);
    given_up
}

fn may_merge(before: &Gap, next: &Gap, reason: GapReason) -> bool {
    reason != GapReason::RecordRefused || before.last_sequence + 1 == next.first_sequence
}

fn end(chunks: &mut [Chunk], run: Option<Run>) {
    if let Some(run) = run {
        chunks[run.chunk].place(run.gap);
    }
}

fn single(chunk: &Chunk, sequence: u64, reason: GapReason) -> Gap {
    let accepted_at = Time::from_micros(chunk.accepted_at.as_microsecond());
    Gap {
        first_sequence: sequence,
        last_sequence: sequence,
        count: 1,
        first_time: accepted_at,
        last_time: accepted_at,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn log(counts: &[u32]) -> Vec<Chunk> {
        let mut first_sequence = 1;
        let numbered = counts.iter().enumerate();
        numbered
            .map(|(at, count)| {
                let chunk = Chunk {
                    first_sequence,
                    count: *count,
                    accepted_at: Timestamp::from_second(at as i64).unwrap(),
                    segment: Bytes::new(),
                    settled: Sequences::default(),
                    gaps: Vec::new(),
                    pending_bytes: 0,
                    traces: Vec::new(),
                };
                first_sequence += u64::from(*count);
                chunk
            })
            .collect()
    }

    /// Pending events, and pending gaps with their sequence.
    fn pending(chunks: &[Chunk]) -> (BTreeSet<u64>, Vec<(u64, Gap)>) {
        let (mut events, mut gaps) = (BTreeSet::new(), Vec::new());
        for chunk in chunks {
            for sequence in chunk.first_sequence..chunk.end_sequence() {
                let gap = chunk.gaps.iter().find(|gap| gap.last_sequence == sequence);
                match gap {
                    Some(gap) => gaps.push((sequence, *gap)),
                    None if chunk.settled.contains(sequence) => {}
                    None => drop(events.insert(sequence)),
                }
            }
        }
        (events, gaps)
    }

    proptest! {
        #[test]
        fn every_event_is_kept_delivered_or_in_one_gap(
            counts in prop::collection::vec(1u32..12, 1..6),
            delivered in prop::collection::vec(any::<bool>(), 60),
            rounds in prop::collection::vec(prop::collection::vec(any::<bool>(), 60), 1..5),
        ) {
            let mut chunks = log(&counts);
            let total = u64::from(counts.iter().sum::<u32>());
            let sent: Sequences = (1..=total).filter(|one| delivered[*one as usize % 60]).collect();
            for chunk in &mut chunks {
                chunk.settle(&sent);
            }
            let mut given_up = BTreeSet::new();
            for round in rounds {
                let (before, _) = pending(&chunks);
                let goes = |sequence: u64| round[sequence as usize % 60];
                let count = give_up(&mut chunks, |_, sequence| {
                    goes(sequence).then_some(GapReason::RetentionAge)
                });
                let gone: BTreeSet<u64> = before.into_iter().filter(|one| goes(*one)).collect();
                prop_assert_eq!(count, gone.len() as u64);
                given_up.extend(gone);
                let (events, gaps) = pending(&chunks);
                let announced: u64 = gaps.iter().map(|(_, gap)| gap.count).sum();
                prop_assert_eq!(announced, given_up.len() as u64);
                for (sequence, gap) in &gaps {
                    prop_assert_eq!(*sequence, gap.last_sequence);
                    let range = gap.first_sequence..=gap.last_sequence;
                    prop_assert_eq!(gap.count, given_up.range(range.clone()).count() as u64);
                    prop_assert!(events.range(range).next().is_none());
                }
                prop_assert_eq!(
                    events.len() + sent.count() as usize + given_up.len(),
                    total as usize
                );
                for chunk in &chunks {
                    let left = pending(std::slice::from_ref(chunk));
                    prop_assert_eq!(chunk.pending_events(), left.0.len() as u64);
                    prop_assert_eq!(chunk.is_finished(), left.0.is_empty() && left.1.is_empty());
                }
            }
        }
    }

    #[test]
    fn adjacent_gaps_are_merged_across_chunks_and_reasons() {
        let mut chunks = log(&[3, 3, 3]);
        give_up(&mut chunks[1..2], |_, sequence| {
            (sequence == 5).then_some(GapReason::RecordRefused)
        });
        assert_eq!(pending(&chunks).1[0].1.count, 1);
        // All but the last two, including the sequence of the pending gap.
        let first = |_: &Chunk, sequence: u64| (sequence < 8).then_some(GapReason::RetentionSize);
        assert_eq!(give_up(&mut chunks, first), 6);
        assert!(chunks[0].is_finished() && chunks[1].is_finished());
        let expected = Gap {
            first_sequence: 1,
            last_sequence: 7,
            count: 7,
            first_time: Time::new(0, 0).unwrap(),
            last_time: Time::new(2, 0).unwrap(),
            reason: GapReason::Several,
        };
        assert_eq!(pending(&chunks).1, [(7, expected)]);
        // A gap that may be in flight is not changed.
        let rest = |_: &Chunk, sequence: u64| (sequence > 7).then_some(GapReason::RetentionAge);
        assert_eq!(give_up(&mut chunks, rest), 2);
        let gaps: Vec<u64> = pending(&chunks).1.iter().map(|(last, _)| *last).collect();
        assert_eq!(gaps, [7, 9]);
    }
}
