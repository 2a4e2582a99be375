//! What was read of one integration.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{
    event::Gap,
    prints::{Compared, Prints},
    sequences::SequenceSet,
};

/// Devices whose order is watched; those of further ones are counted.
const MOST_DEVICES: usize = 1_000_000;
/// A gap's reason is told up to here; ours are shorter.
const MOST_REASON_BYTES: usize = 64;

/// How many there were, and the first of them.
#[derive(Clone, Debug)]
pub(super) struct Samples<T> {
    pub(super) count: u64,
    pub(super) first: Vec<T>,
    most: usize,
}

impl<T> Samples<T> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            count: 0,
            first: Vec::new(),
            most,
        }
    }

    pub(super) fn add(&mut self, sample: impl FnOnce() -> T) {
        self.count += 1;
        if self.first.len() < self.most {
            self.first.push(sample());
        }
    }
}

/// A gap event, by the last of its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) reason: Box<str>,
}

impl Announced {
    /// Whether it holds all of another gap with the same last sequence, and more.
    fn contains(&self, other: &Self) -> bool {
        self.first < other.first && self.count > other.count
    }
}

/// An event that came after a later one of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) device: Uuid,
    pub(super) sequence: u64,
    /// The highest that had come before it.
    pub(super) after: u64,
}

#[derive(Debug, Default)]
struct Device {
    highest: u64,
    late: u64,
}

#[derive(Debug)]
pub(super) struct Integration {
    pub(super) id: Uuid,
    /// Its number among those that were read.
    number: usize,
    pub(super) records: u64,
    pub(super) events: SequenceSet,
    pub(super) duplicates: u64,
    /// Duplicates of what came too long before to be compared.
    pub(super) not_compared: u64,
    /// Sequences under which two different events came.
    pub(super) conflicts: Samples<u64>,
    pub(super) gaps: BTreeMap<u64, Announced>,
    pub(super) gap_duplicates: u64,
    pub(super) tests: u64,
    /// Where, and what is wrong.
    pub(super) malformed: Samples<(String, String)>,
    devices: HashMap<Uuid, Device>,
    pub(super) late: Samples<Late>,
    pub(super) late_devices: u64,
    /// Events whose device was one too many to watch.
    pub(super) unwatched: u64,
    /// What comes beyond it is not judged: its time has not come yet.
    pub(super) horizon: Option<u64>,
    /// The lowest sequence of a record that was read before the horizon was set.
    pub(super) beginning: Option<u64>,
}

impl Integration {
    pub(super) fn new(id: Uuid, number: usize, listed: usize) -> Self {
        Self {
            id,
            number,
            records: 0,
            events: SequenceSet::default(),
            duplicates: 0,
            not_compared: 0,
            conflicts: Samples::new(listed),
            gaps: BTreeMap::new(),
            gap_duplicates: 0,
            tests: 0,
            malformed: Samples::new(listed),
            devices: HashMap::new(),
            late: Samples::new(listed),
            late_devices: 0,
            unwatched: 0,
            horizon: None,
            beginning: None,
        }
    }

    pub(super) fn detection(&mut self, sequence: u64, id: &str, device: Uuid, prints: &mut Prints) {
        if self.events.insert(sequence) {
            prints.remember(self.number, sequence, id);
            self.order(sequence, device);
            return;
        }
        // Sent again, as after a crash: it has had its place in the order.
        match prints.compare(self.number, sequence, id) {
            Compared::Same => self.duplicates += 1,
            Compared::Another => self.conflicts.add(|| sequence),
            Compared::Forgotten => {
                self.duplicates += 1;
                self.not_compared += 1;
            }
        }
    }

    fn order(&mut self, sequence: u64, device: Uuid) {
        if self.devices.len() >= MOST_DEVICES && !self.devices.contains_key(&device) {
            self.unwatched += 1;
            return;
        }
        let state = self.devices.entry(device).or_default();
        if sequence > state.highest {
            state.highest = sequence;
            return;
        }
        let after = state.highest;
        self.late_devices += u64::from(state.late == 0);
        state.late += 1;
        self.late.add(|| Late {
            device,
            sequence,
            after,
        });
    }

    pub(super) fn gap(&mut self, gap: &Gap<'_>) {
        let mut reason = gap.reason.to_string();
        reason.truncate(gap.reason.floor_char_boundary(MOST_REASON_BYTES));
        let announced = Announced {
            first: gap.first,
            count: gap.count,
            reason: reason.into(),
        };
        match self.gaps.get_mut(&gap.last) {
            None => {
                self.gaps.insert(gap.last, announced);
            }
            Some(before) if *before == announced => self.gap_duplicates += 1,
            // The same sequence twice and not the same gap: the wider one holds both. It
            // may have taken in the other, of which the answer was lost.
            Some(before) => {
                let last = gap.last;
                match announced.contains(before) || before.contains(&announced) {
                    true => self.gap_duplicates += 1,
                    false => self.conflicts.add(|| last),
                }
                if announced.first < before.first {
                    *before = announced;
                }
            }
        }
    }

    /// The lowest sequence that was read, or that a gap stands for.
    pub(super) fn first(&self) -> Option<u64> {
        let event = self.events.first();
        let gap = self.gaps.values().map(|gap| gap.first).min();
        event.into_iter().chain(gap).min()
    }

    /// The highest sequence that was read.
    pub(super) fn last(&self) -> Option<u64> {
        let gap = self.gaps.keys().next_back().copied();
        self.events.last().into_iter().chain(gap).max()
    }

    /// All that was read, and all that gaps stand for.
    pub(super) fn accounted(&self) -> SequenceSet {
        let mut accounted = self.events.clone();
        for (last, gap) in &self.gaps {
            accounted.insert_range(gap.first, *last);
        }
        accounted
    }

    /// The lowest sequence that a record has; a gap has the last of its range.
    pub(super) fn lowest(&self) -> Option<u64> {
        let gap = self.gaps.keys().next().copied();
        self.events.first().into_iter().chain(gap).min()
    }

    /// What gaps stand for of a range, in order, those that overlap as one.
    pub(super) fn told(&self, first: u64, last: u64) -> Vec<Told> {
        let mut gaps: Vec<Told> = self
            .gaps
            .iter()
            .map(|(to, gap)| Told {
                first: gap.first.max(first),
                last: (*to).min(last),
                announced: gap.count,
                gaps: 1,
            })
            .filter(|told| told.first <= told.last)
            .collect();
        gaps.sort_unstable_by_key(|told| (told.first, told.last));
        let mut together: Vec<Told> = Vec::new();
        for told in gaps {
            match together.last_mut() {
                Some(before) if told.first <= before.last => {
                    before.last = before.last.max(told.last);
                    before.announced = before.announced.saturating_add(told.announced);
                    before.gaps += 1;
                }
                _ => together.push(told),
            }
        }
        together
    }

    /// How many events are missing of a range.
    pub(super) fn missing(&self, first: u64, last: u64) -> u64 {
        (last - first).saturating_add(1) - self.events.count(first, last)
    }

    /// What gaps stand for of a range and of which more is missing than their events have
    /// counted: what is missing beyond is lost in silence. How many of a gap's events lie
    /// outside of the range is not known.
    pub(super) fn understated(&self, first: u64, last: u64) -> Vec<Told> {
        let mut told = self.told(first, last);
        told.retain(|told| self.missing(told.first, told.last) > told.announced);
        told
    }
}

/// What gaps that overlap stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) announced: u64,
    /// How many they are.
    pub(super) gaps: u64,
}
