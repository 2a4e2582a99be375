//! Giving up events: a gap event replaces a run of them in the log.

use super::{
    bitmap,
    event::{Gap, GapReason, Time},
};

/// Gap that waits in the log to be sent, in the position of the last event that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedGap {
    /// Index of that event in the chunk.
    pub index: u32,
    /// The gap.
    pub gap: Gap,
}

/// State of a chunk of the log, without its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkState {
    /// Row id of the chunk.
    pub id: i64,
    /// Sequence of its first event.
    pub first_sequence: u64,
    /// Number of its events.
    pub count: u32,
    /// Bitmap of the events that are accepted or given up. The position of a waiting gap is
    /// not set.
    pub settled: Vec<u8>,
    /// Waiting gaps, by index.
    pub gaps: Vec<PlacedGap>,
    /// Time when its events were accepted.
    pub accepted_at: Time,
}

/// Selection of events of one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Row id of the chunk.
    pub chunk_id: i64,
    /// Bitmap of the events.
    pub events: Vec<u8>,
    /// Bytes of the events in the log.
    pub bytes: u64,
}

impl Marked {
    /// Whether the event at an index is selected.
    pub fn has(&self, index: u32) -> bool {
        bitmap::get(&self.events, index as usize)
    }
}

impl ChunkState {
    /// Whether nothing is left to send.
    pub fn is_finished(&self) -> bool {
        bitmap::is_full(&self.settled, self.count)
    }

    /// Whether events are left to send, not counting gaps.
    pub fn has_events(&self) -> bool {
        has_events(self.count, &self.settled, &self.gaps)
    }

    /// Whether a gap waits in the position of an event.
    pub fn is_gap(&self, index: u32) -> bool {
        self.gaps.iter().any(|gap| gap.index == index)
    }

    fn take_gap(&mut self, index: u32) -> Option<Gap> {
        let at = self.gaps.iter().position(|one| one.index == index)?;
        Some(self.gaps.remove(at).gap)
    }

    fn place(&mut self, index: u32, gap: Gap) {
        let at = self.gaps.partition_point(|one| one.index < index);
        self.gaps.insert(at, PlacedGap { index, gap });
    }
}

/// Whether a chunk of `count` events has some left to send, not counting gaps.
pub fn has_events(count: u32, settled: &[u8], gaps: &[PlacedGap]) -> bool {
    let pending = (0..count as usize).filter(|index| !bitmap::get(settled, *index));
    pending.count() > gaps.len()
}

/// Gap under construction, and the position of its last event.
struct Run {
    gap: Gap,
    chunk: usize,
    index: u32,
}

/// Gives up the events for which `goes` returns a reason, and returns their number. `chunks`
/// are consecutive in the log.
///
/// Adjacent gaps are merged, including those that wait already if `goes` returns a reason for
/// their position. Delivered events between two gaps do not prevent merging, unless the reason
/// is a refused record.
pub fn give_up(
    chunks: &mut [ChunkState],
    goes: impl Fn(&ChunkState, u32) -> Option<GapReason>,
) -> u64 {
    let mut given_up = 0;
    let mut run: Option<Run> = None;
    for chunk in 0..chunks.len() {
        for index in 0..chunks[chunk].count {
            if bitmap::get(&chunks[chunk].settled, index as usize) {
                continue;
            }
            let Some(reason) = goes(&chunks[chunk], index) else {
                end(chunks, run.take());
                continue;
            };
            let here = chunks[chunk].take_gap(index).unwrap_or_else(|| {
                given_up += 1;
                one(&chunks[chunk], index, reason)
            });
            let before = run.take();
            let gap = match before {
                Some(before) if before.gap.takes(&here, reason) => {
                    let settled = &mut chunks[before.chunk].settled;
                    bitmap::set(settled, before.index as usize);
                    before.gap.merge(&here)
                }
                apart => {
                    end(chunks, apart);
                    here
                }
            };
            run = Some(Run { gap, chunk, index });
        }
    }
    end(chunks, run);
    given_up
}

impl Gap {
    fn takes(&self, next: &Self, reason: GapReason) -> bool {
        reason != GapReason::RecordRefused || self.last_sequence + 1 == next.first_sequence
    }
}

fn end(chunks: &mut [ChunkState], run: Option<Run>) {
    if let Some(run) = run {
        chunks[run.chunk].place(run.index, run.gap);
    }
}

fn one(chunk: &ChunkState, index: u32, reason: GapReason) -> Gap {
    let sequence = chunk.first_sequence + u64::from(index);
    Gap {
        first_sequence: sequence,
        last_sequence: sequence,
        count: 1,
        first_time: chunk.accepted_at,
        last_time: chunk.accepted_at,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn log(counts: &[u32]) -> Vec<ChunkState> {
        let mut first_sequence = 1;
        let numbered = counts.iter().enumerate();
        numbered
            .map(|(at, count)| {
                let chunk = ChunkState {
                    id: at as i64,
                    first_sequence,
                    count: *count,
                    settled: Vec::new(),
                    gaps: Vec::new(),
                    accepted_at: Time::new(at as i64, 0).unwrap(),
                };
                first_sequence += u64::from(*count);
                chunk
            })
            .collect()
    }

    /// Waiting events, and waiting gaps with the sequence of their position.
    fn waiting(chunks: &[ChunkState]) -> (BTreeSet<u64>, Vec<(u64, Gap)>) {
        let (mut events, mut gaps) = (BTreeSet::new(), Vec::new());
        for chunk in chunks {
            for index in 0..chunk.count {
                let sequence = chunk.first_sequence + u64::from(index);
                match chunk.gaps.iter().find(|gap| gap.index == index) {
                    Some(placed) => gaps.push((sequence, placed.gap)),
                    None if bitmap::get(&chunk.settled, index as usize) => {}
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
            for chunk in &mut chunks {
                for index in 0..chunk.count {
                    if delivered[(chunk.first_sequence + u64::from(index)) as usize % 60] {
                        bitmap::set(&mut chunk.settled, index as usize);
                    }
                }
            }
            let mut given_up = BTreeSet::new();
            for round in rounds {
                let (before, _) = waiting(&chunks);
                let goes = |sequence: u64| round[sequence as usize % 60];
                let count = give_up(&mut chunks, |chunk, index| {
                    let goes = goes(chunk.first_sequence + u64::from(index));
                    goes.then_some(GapReason::RetentionAge)
                });
                let gone: BTreeSet<u64> = before.into_iter().filter(|one| goes(*one)).collect();
                prop_assert_eq!(count, gone.len() as u64);
                given_up.extend(gone);
                let (events, gaps) = waiting(&chunks);
                let announced: u64 = gaps.iter().map(|(_, gap)| gap.count).sum();
                prop_assert_eq!(announced, given_up.len() as u64);
                for (place, gap) in &gaps {
                    prop_assert_eq!(*place, gap.last_sequence);
                    let range = gap.first_sequence..=gap.last_sequence;
                    prop_assert_eq!(gap.count, given_up.range(range.clone()).count() as u64);
                    prop_assert!(events.range(range).next().is_none());
                }
                let kept = (1..=total).filter(|one| events.contains(one)).count();
                let sent = (1..=total).filter(|one| delivered[*one as usize % 60]).count();
                prop_assert_eq!(kept + sent + given_up.len(), total as usize);
                for chunk in &chunks {
                    let left = waiting(std::slice::from_ref(chunk));
                    prop_assert_eq!(chunk.has_events(), !left.0.is_empty());
                    prop_assert_eq!(chunk.is_finished(), left.0.is_empty() && left.1.is_empty());
                }
            }
        }
    }

    #[test]
    fn adjacent_gaps_are_merged_across_chunks_and_reasons() {
        let mut chunks = log(&[3, 3, 3]);
        give_up(&mut chunks[1..2], |_, index| {
            (index == 1).then_some(GapReason::RecordRefused)
        });
        assert_eq!(waiting(&chunks).1[0].1.count, 1);
        // All but the last two, including the position of the waiting gap.
        let goes = |chunk: &ChunkState, index: u32| {
            let goes = chunk.first_sequence + u64::from(index) < 8;
            goes.then_some(GapReason::RetentionSize)
        };
        assert_eq!(give_up(&mut chunks, goes), 6);
        assert!(chunks[0].is_finished() && chunks[1].is_finished());
        let expected = Gap {
            first_sequence: 1,
            last_sequence: 7,
            count: 7,
            first_time: Time::new(0, 0).unwrap(),
            last_time: Time::new(2, 0).unwrap(),
            reason: GapReason::Several,
        };
        assert_eq!(waiting(&chunks).1, [(7, expected)]);
        // A gap that may be in flight is not changed.
        let goes = |chunk: &ChunkState, index: u32| {
            let goes = chunk.first_sequence + u64::from(index) > 7;
            goes.then_some(GapReason::RetentionAge)
        };
        assert_eq!(give_up(&mut chunks, goes), 2);
        let places: Vec<u64> = waiting(&chunks).1.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [7, 9]);
    }
}
