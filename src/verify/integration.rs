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

    /// Ranges of gaps of which more is missing than their events have counted: what is
    /// missing beyond is lost in silence. Gaps that overlap count together.
    pub(super) fn understated(&self) -> Vec<Understated> {
        let mut gaps: Vec<(u64, u64, u64)> = self
            .gaps
            .iter()
            .map(|(last, gap)| (gap.first, *last, gap.count))
            .collect();
        gaps.sort_unstable();
        let mut together: Vec<(u64, u64, u64)> = Vec::new();
        for (first, last, count) in gaps {
            match together.last_mut() {
                Some(before) if first <= before.1 => {
                    before.1 = before.1.max(last);
                    before.2 = before.2.saturating_add(count);
                }
                _ => together.push((first, last, count)),
            }
        }
        together
            .into_iter()
            .filter_map(|(first, last, announced)| {
                let missing = (last - first).saturating_add(1) - self.events.count(first, last);
                (missing > announced).then_some(Understated {
                    first,
                    last,
                    announced,
                    missing,
                })
            })
            .collect()
    }
}

/// A range of which more is missing than was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Understated {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) announced: u64,
    pub(super) missing: u64,
}
