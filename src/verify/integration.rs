//! Evidence about one integration: which of its events and gaps were read.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{
    event::Gap,
    report::{GapRange, GapReport, LateEvent, Listed, MalformedRecord, OutOfOrder},
    sequences::{IdComparison, IdHashes, SequenceSet},
};

/// Maximum number of devices whose order is checked; events of further ones are counted.
const MAX_DEVICES: usize = 1_000_000;
/// Maximum length of a gap's reason in the report; the service writes shorter ones.
const MAX_REASON_BYTES: usize = 64;

#[derive(Debug, Default)]
struct Device {
    highest: u64,
    has_late_events: bool,
}

#[derive(Debug)]
pub(super) struct Integration {
    pub(super) id: Uuid,
    /// Its number among those that were read.
    number: usize,
    /// Maximum length of the lists.
    listed: usize,
    pub(super) records: u64,
    pub(super) events: SequenceSet,
    pub(super) duplicates: u64,
    /// Duplicates that were read too long after the first event to compare the ids.
    pub(super) duplicates_not_compared: u64,
    /// Sequences with two different events, or two different gaps.
    pub(super) id_conflicts: Listed<u64>,
    /// Gap events by the last sequence of their range.
    pub(super) gaps: BTreeMap<u64, GapReport>,
    pub(super) gap_duplicates: u64,
    pub(super) tests: u64,
    pub(super) malformed: Listed<MalformedRecord>,
    devices: HashMap<Uuid, Device>,
    pub(super) out_of_order: OutOfOrder,
    /// Last sequence that is judged; later ones may not have been written yet.
    pub(super) horizon: Option<u64>,
    /// The lowest sequence of the records that were read before the horizon was set.
    pub(super) beginning: Option<u64>,
}

impl Integration {
    pub(super) fn new(id: Uuid, number: usize, listed: usize) -> Self {
        Self {
            id,
            number,
            listed,
            records: 0,
            events: SequenceSet::default(),
            duplicates: 0,
            duplicates_not_compared: 0,
            id_conflicts: Listed::default(),
            gaps: BTreeMap::new(),
            gap_duplicates: 0,
            tests: 0,
            malformed: Listed::default(),
            devices: HashMap::new(),
            out_of_order: OutOfOrder::default(),
            horizon: None,
            beginning: None,
        }
    }

    pub(super) fn detection(
        &mut self,
        sequence: u64,
        id: &str,
        device: Uuid,
        hashes: &mut IdHashes,
    ) {
        if self.events.insert(sequence) {
            hashes.insert(self.number, sequence, id);
            self.check_order(sequence, device);
            return;
        }
        // The order of a repeated event, as after a crash, was checked at its first arrival.
        match hashes.compare(self.number, sequence, id) {
            IdComparison::Same => self.duplicates += 1,
            IdComparison::Different => self.id_conflicts.add(self.listed, || sequence),
            IdComparison::Unknown => {
                self.duplicates += 1;
                self.duplicates_not_compared += 1;
            }
        }
    }

    fn check_order(&mut self, sequence: u64, device: Uuid) {
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&device) {
            self.out_of_order.not_watched += 1;
            return;
        }
        let state = self.devices.entry(device).or_default();
        if sequence > state.highest {
            state.highest = sequence;
            return;
        }
        let after = state.highest;
        if !std::mem::replace(&mut state.has_late_events, true) {
            self.out_of_order.devices += 1;
        }
        self.out_of_order.events.add(self.listed, || LateEvent {
            device,
            sequence,
            after,
        });
    }

    pub(super) fn gap(&mut self, gap: &Gap<'_>) {
        let mut reason = gap.reason.to_string();
        reason.truncate(gap.reason.floor_char_boundary(MAX_REASON_BYTES));
        let new = GapReport {
            first: gap.first,
            last: gap.last,
            count: gap.count,
            reason,
        };
        match self.gaps.get_mut(&gap.last) {
            None => {
                self.gaps.insert(gap.last, new);
            }
            Some(previous) if *previous == new => self.gap_duplicates += 1,
            // Two different gaps with the same last sequence. The wider one contains the other if
            // the answer to the narrower one was lost, and more events expired before the retry.
            Some(previous) => {
                match new.contains(previous) || previous.contains(&new) {
                    true => self.gap_duplicates += 1,
                    false => self.id_conflicts.add(self.listed, || gap.last),
                }
                if new.first < previous.first {
                    *previous = new;
                }
            }
        }
    }

    pub(super) fn malformed(&mut self, why: String, place: String) {
        self.malformed
            .add(self.listed, || MalformedRecord { place, why });
    }

    /// Returns the lowest sequence that was read, or that is in the range of a gap.
    pub(super) fn first(&self) -> Option<u64> {
        let event = self.events.first();
        let gap = self.gaps.values().map(|gap| gap.first).min();
        event.into_iter().chain(gap).min()
    }

    /// Returns the highest sequence that was read.
    pub(super) fn last(&self) -> Option<u64> {
        let gap = self.gaps.keys().next_back().copied();
        self.events.last().into_iter().chain(gap).max()
    }

    /// Returns all sequences that were read or are in the range of a gap.
    pub(super) fn accounted(&self) -> SequenceSet {
        let mut accounted = self.events.clone();
        for (last, gap) in &self.gaps {
            accounted.insert_range(gap.first, *last);
        }
        accounted
    }

    /// Returns the lowest sequence of a record; that of a gap is the last of its range.
    pub(super) fn lowest(&self) -> Option<u64> {
        let gap = self.gaps.keys().next().copied();
        self.events.first().into_iter().chain(gap).min()
    }

    /// Returns the ranges of gaps from `first` to `last`, in order; overlapping ones are merged.
    pub(super) fn gap_ranges(&self, first: u64, last: u64) -> Vec<GapRange> {
        let mut ranges: Vec<GapRange> = self
            .gaps
            .values()
            .map(|gap| GapRange {
                first: gap.first.max(first),
                last: gap.last.min(last),
                announced: gap.count,
                missing: 0,
                gaps: 1,
            })
            .filter(|range| range.first <= range.last)
            .collect();
        ranges.sort_unstable_by_key(|range| (range.first, range.last));
        ranges.dedup_by(|next, range| {
            let overlaps = next.first <= range.last;
            if overlaps {
                range.last = range.last.max(next.last);
                range.announced = range.announced.saturating_add(next.announced);
                range.gaps += 1;
            }
            overlaps
        });
        for range in &mut ranges {
            let read = self.events.count(range.first, range.last);
            range.missing = range.len() - read;
        }
        ranges
    }
}

impl GapReport {
    /// Whether it covers another gap with the same last sequence, and more.
    fn contains(&self, other: &Self) -> bool {
        self.first < other.first && self.count > other.count
    }
}
