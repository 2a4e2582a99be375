//! A naive audit, with sets of all sequences.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Record, window::Window};

/// Findings of an audit with unlimited memory.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) events: u64,
    pub(super) duplicates: u64,
    pub(super) conflicts: Vec<u64>,
    pub(super) holes: Vec<u64>,
    pub(super) missing_in_gaps: Vec<u64>,
    pub(super) gap_events: u64,
    pub(super) gap_duplicates: u64,
    pub(super) overlapping: u64,
    pub(super) late: Vec<(u64, u64)>,
    pub(super) understated: Vec<(u64, u64)>,
}

pub(super) fn naive(records: &[Record], window: &Window) -> Found {
    let mut found = Found::default();
    let (mut ids, mut gaps) = (HashMap::new(), BTreeMap::<u64, (u64, u64)>::new());
    let mut by_device: HashMap<u128, Vec<u64>> = HashMap::new();
    for record in records {
        match *record {
            Record::Event {
                sequence,
                id,
                device,
            } => match ids.get(&sequence) {
                None => {
                    ids.insert(sequence, id);
                    let before = by_device.entry(device).or_default();
                    if let Some(highest) =
                        before.iter().max().filter(|highest| **highest > sequence)
                    {
                        found.late.push((sequence, *highest));
                    }
                    before.push(sequence);
                }
                Some(first) if *first == id => found.duplicates += 1,
                Some(_) => found.conflicts.push(sequence),
            },
            Record::Gap { first, last, count } => match gaps.get(&last) {
                None => {
                    gaps.insert(last, (first, count));
                }
                Some(before) if *before == (first, count) => found.gap_duplicates += 1,
                Some(before) => {
                    let wider = (first < before.0 && count > before.1)
                        || (before.0 < first && before.1 > count);
                    match wider {
                        true => found.gap_duplicates += 1,
                        false => found.conflicts.push(last),
                    }
                    if first < before.0 {
                        gaps.insert(last, (first, count));
                    }
                }
            },
        }
    }
    found.events = ids.len() as u64;
    found.gap_events = gaps.len() as u64;
    let highest = ids.keys().chain(gaps.keys()).max();
    let lowest = ids.keys().chain(gaps.keys()).min();
    let first = window.first.or(lowest.copied()).unwrap_or(1);
    let last = window.last.or(highest.copied()).unwrap_or(0);
    let is_there = |sequence: &u64| ids.contains_key(sequence);
    // The part of a gap outside the judged range proves nothing.
    let ranges: Vec<(BTreeSet<u64>, u64)> = gaps
        .into_iter()
        .map(|(to, (from, count))| ((from.max(first)..=to.min(last)).collect(), count))
        .filter(|(range, _): &(BTreeSet<u64>, u64)| !range.is_empty())
        .collect();
    let announced: BTreeSet<u64> = ranges.iter().flat_map(|(range, _)| range.clone()).collect();
    found.missing_in_gaps = announced
        .iter()
        .copied()
        .filter(|one| !is_there(one))
        .collect();
    found.holes = (first..=last)
        .filter(|one| !is_there(one) && !announced.contains(one))
        .collect();
    let meets = |one: &BTreeSet<u64>| {
        let others = ranges.iter().filter(|(other, _)| !one.is_disjoint(other));
        others.count() > 1
    };
    found.overlapping = ranges.iter().filter(|(range, _)| meets(range)).count() as u64;
    // Gaps are merged if they share a sequence, directly or through others.
    let mut groups: Vec<(BTreeSet<u64>, u64)> = Vec::new();
    for (mut range, mut count) in ranges {
        groups.retain(|(other, more)| {
            let apart = other.is_disjoint(&range);
            if !apart {
                range.extend(other);
                count += more;
            }
            apart
        });
        groups.push((range, count));
    }
    found.understated = groups
        .iter()
        .filter(|(range, count)| range.iter().filter(|one| !is_there(one)).count() as u64 > *count)
        .map(|(range, _)| (*range.first().unwrap(), *range.last().unwrap()))
        .collect();
    found.understated.sort_unstable();
    found
}
