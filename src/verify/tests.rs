//! The audit compared with a naive one, and with planted faults.

mod naive;
mod window;

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::naive::{Found, naive};
use super::{
    testing::{INTEGRATION, detection, event, gap},
    *,
};

/// The relevant fields of a record.
#[derive(Clone, Debug, PartialEq)]
enum Record {
    Event {
        sequence: u64,
        id: u128,
        device: u128,
    },
    Gap {
        first: u64,
        last: u64,
        count: u64,
    },
}

impl Record {
    fn event(sequence: u64) -> Self {
        Self::Event {
            sequence,
            id: sequence.into(),
            device: u128::from(sequence % 3),
        }
    }

    fn text(&self) -> String {
        match *self {
            Self::Event {
                sequence,
                id,
                device,
            } => event(sequence, id, device).to_string(),
            Self::Gap { first, last, count } => gap(first, last, count).to_string(),
        }
    }
}

fn audited(records: &[Record], expectation: Expectation) -> Report {
    let mut audit = Audit::new(expectation);
    for record in records {
        audit.take(record.text().as_bytes(), None, &|| "here".to_owned());
    }
    audit.report()
}

fn of(records: &[Record]) -> IntegrationReport {
    audited(records, listing()).integrations.swap_remove(0)
}

fn listing() -> Expectation {
    Expectation {
        listed: 10_000,
        ..Expectation::default()
    }
}

fn expand(ranges: &[Range]) -> Vec<u64> {
    ranges
        .iter()
        .flat_map(|range| range.first..=range.last)
        .collect()
}

/// Generates arbitrary records in arbitrary order.
fn any_records() -> impl Strategy<Value = Vec<Record>> {
    let event = (1..60u64, 0..20u8, 0..3u128).prop_map(|(sequence, other, device)| Record::Event {
        sequence,
        id: u128::from(sequence) + if other == 0 { 1_000 } else { 0 },
        device,
    });
    let gap = (1..60u64, 0..6u64, 0..6u64).prop_map(|(first, more, less)| Record::Gap {
        first,
        last: first + more,
        count: (more + 1).saturating_sub(less).max(1),
    });
    prop::collection::vec(prop_oneof![8 => event, 1 => gap], 1..80)
}

proptest! {
    #[test]
    fn findings_are_those_of_the_naive_audit(records in any_records(), window in window::anywhere()) {
        let expectation = Expectation { integrations: vec![INTEGRATION], ..window.expectation() };
        let report = audited(&records, expectation).integrations.swap_remove(0);
        let naive = naive(&records, &window);
        let late = report.out_of_order.events.first.iter().map(|late| (late.sequence, late.after));
        let understated = report.gaps.understated.first.iter().map(|one| (one.first, one.last));
        let found = Found {
            events: report.events,
            duplicates: report.duplicates,
            conflicts: report.id_conflicts.first.clone(),
            holes: expand(&report.holes.first),
            missing_in_gaps: naive.missing_in_gaps.clone(),
            gap_events: report.gaps.events,
            gap_duplicates: report.gaps.duplicates,
            overlapping: report.gaps.overlapping,
            late: late.collect(),
            understated: understated.collect(),
        };
        prop_assert_eq!(&found, &naive);
        prop_assert_eq!(report.gaps.sequences, naive.missing_in_gaps.len() as u64);
        prop_assert_eq!(report.holes.sequences, naive.holes.len() as u64);
        let whole = naive.holes.is_empty() && naive.conflicts.is_empty() && naive.understated.is_empty();
        prop_assert_eq!(report.verdict == Verdict::Complete, whole);
    }
}

/// Fate of a range of sequences.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Delivered,
    Expired,
    /// The first event was accepted, but its answer was lost, and the range expired.
    Arrived,
    /// The events of some devices were delivered, and the others expired.
    Sparse,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        10 => Just(Fate::Delivered),
        1 => Just(Fate::Expired),
        1 => Just(Fate::Arrived),
        2 => Just(Fate::Sparse),
    ]
}

/// Generates the records of a correct service: ranges of events and gaps in order, some of which
/// are repeated after a crash or a lost answer.
fn correct_records() -> impl Strategy<Value = Vec<Record>> {
    let run = (1..12u64, fate(), any::<u16>(), prop::bool::weighted(0.3));
    prop::collection::vec(run, 1..12).prop_map(|runs| {
        let (mut records, mut next) = (Vec::new(), 1);
        for (length, fate, chosen, is_repeated) in runs {
            let (first, last) = (next, next + length - 1);
            next += length;
            let whole = Record::Gap {
                first,
                last,
                count: length,
            };
            let run = match fate {
                Fate::Delivered => (first..=last).map(Record::event).collect(),
                Fate::Expired => vec![whole],
                Fate::Arrived => vec![Record::event(first), whole],
                Fate::Sparse => sparse(first, last, chosen),
            };
            records.extend(run.clone());
            if is_repeated {
                records.extend(run);
            }
        }
        records
    })
}

/// Delivers the chosen events; the others, and always the last, expire after them.
fn sparse(first: u64, last: u64, chosen: u16) -> Vec<Record> {
    let (delivered, expired): (Vec<u64>, Vec<u64>) =
        (first..=last).partition(|one| *one < last && chosen >> (one - first) & 1 == 1);
    let gap = Record::Gap {
        first: expired[0],
        last,
        count: expired.len() as u64,
    };
    delivered
        .into_iter()
        .map(Record::event)
        .chain([gap])
        .collect()
}

fn sequences(records: &[Record]) -> BTreeSet<u64> {
    let sequence = |record: &Record| match record {
        Record::Event { sequence, .. } => Some(*sequence),
        Record::Gap { .. } => None,
    };
    records.iter().filter_map(sequence).collect()
}

fn last(records: &[Record]) -> u64 {
    let last = |record: &Record| match record {
        Record::Event { sequence, .. } => *sequence,
        Record::Gap { last, .. } => *last,
    };
    records.iter().map(last).max().unwrap()
}

fn is_covered(records: &[Record], sequence: u64) -> bool {
    records.iter().any(|record| {
        matches!(record, Record::Gap { first, last, .. } if (*first..=*last).contains(&sequence))
    })
}

/// Verifies up to the last sequence of the undamaged records, so that a loss at the end is found.
fn judged(records: &[Record], whole: &[Record]) -> IntegrationReport {
    let expectation = Expectation {
        integrations: vec![INTEGRATION],
        last: Some(last(whole)),
        ..listing()
    };
    audited(records, expectation).integrations.swap_remove(0)
}

proptest! {
    #[test]
    fn correct_records_are_complete(records in correct_records()) {
        let report = of(&records);
        prop_assert_eq!(report.verdict, Verdict::Complete, "{}", report);
        prop_assert_eq!(report.out_of_order.events.count, 0);
    }

    #[test]
    fn a_skipped_event_is_a_hole(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let present: Vec<u64> = sequences(&records).into_iter().filter(|one| !is_covered(&records, *one)).collect();
        prop_assume!(!present.is_empty());
        let lost = present[pick.index(present.len())];
        let damaged: Vec<Record> = records
            .iter()
            .filter(|record| !matches!(record, Record::Event { sequence, .. } if *sequence == lost))
            .cloned()
            .collect();
        let report = judged(&damaged, &records);
        prop_assert_eq!(report.verdict, Verdict::Incomplete);
        prop_assert_eq!(expand(&report.holes.first), [lost]);
    }

    #[test]
    fn a_lost_gap_is_a_hole(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let gaps: Vec<Record> = records.iter().filter(|record| matches!(record, Record::Gap { .. })).cloned().collect();
        prop_assume!(!gaps.is_empty());
        let lost = &gaps[pick.index(gaps.len())];
        let damaged: Vec<Record> = records.iter().filter(|record| *record != lost).cloned().collect();
        let Record::Gap { first, last, .. } = *lost else { unreachable!() };
        let missing: Vec<u64> = (first..=last).filter(|one| !sequences(&records).contains(one)).collect();
        let report = judged(&damaged, &records);
        prop_assert_eq!(expand(&report.holes.first), missing.clone());
        prop_assert_eq!(report.verdict == Verdict::Complete, missing.is_empty());
    }

    #[test]
    fn a_gap_that_counts_too_little_is_understated(first in 1..5u64, length in 2..9u64) {
        let mut records: Vec<Record> = (1..first).map(Record::event).collect();
        let last = first + length - 1;
        records.push(Record::Gap { first, last, count: length - 1 });
        prop_assert_eq!(of(&records).verdict, Verdict::Incomplete);
        records.push(Record::event(last - 1));
        prop_assert_eq!(of(&records).verdict, Verdict::Complete);
    }

    #[test]
    fn a_renumbering_is_a_conflict(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let at = pick.index(records.len());
        let Record::Event { sequence, id, device } = records[at] else { return Ok(()) };
        let mut damaged = records.clone();
        damaged.push(Record::Event { sequence, id: id + 1_000, device });
        let report = of(&damaged);
        prop_assert_eq!(report.verdict, Verdict::Incomplete);
        prop_assert_eq!(report.id_conflicts.first, [sequence]);
    }

    #[test]
    fn a_reordering_is_reported_and_fails_only_if_order_is_strict(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let present: Vec<u64> = sequences(&records).into_iter().collect();
        prop_assume!(!present.is_empty());
        let moved = present[pick.index(present.len())];
        let later = present.iter().any(|one| *one > moved && one % 3 == moved % 3);
        let (mut damaged, late): (Vec<Record>, Vec<Record>) = records
            .iter()
            .cloned()
            .partition(|record| !matches!(record, Record::Event { sequence, .. } if *sequence == moved));
        damaged.extend(late);
        let report = of(&damaged);
        prop_assert_eq!(report.verdict, Verdict::Complete);
        prop_assert_eq!(report.out_of_order.events.count, u64::from(later));
        let strict = audited(&damaged, Expectation { strict_order: true, ..Expectation::default() });
        prop_assert_eq!(strict.verdict == Verdict::Incomplete, later);
    }
}

#[test]
fn a_capture_may_be_a_part_of_the_stream() {
    let records: Vec<Record> = (100..=200).map(Record::event).collect();
    assert_eq!(of(&records).holes.first, [Range { first: 1, last: 99 }]);
    let expect = |first, last| Expectation {
        first,
        last,
        ..Expectation::default()
    };
    let verdict = |expectation| audited(&records, expectation).verdict;
    assert_eq!(verdict(expect(Start::LowestRead, None)), Verdict::Complete);
    assert_eq!(verdict(expect(Start::At(100), None)), Verdict::Complete);
    assert_eq!(verdict(expect(Start::At(99), None)), Verdict::Incomplete);
    assert_eq!(
        verdict(expect(Start::LowestRead, Some(200))),
        Verdict::Complete
    );
    assert_eq!(
        verdict(expect(Start::LowestRead, Some(201))),
        Verdict::Incomplete
    );
    assert_eq!(
        verdict(expect(Start::LowestRead, Some(150))),
        Verdict::Complete
    );
}

#[test]
fn integrations_are_judged_separately_and_may_be_selected() {
    let mut other = detection(5);
    other["integrationid"] = "01980000-0000-7000-8000-0000000000ff".into();
    let mut test = detection(1);
    test["type"] = "TYPE_TEST".into();
    test.as_object_mut().unwrap().remove("sequence");
    let all = |expectation| {
        let mut audit = Audit::new(expectation);
        for record in [&detection(1), &other, &test, &detection(2)] {
            audit.take(record.to_string().as_bytes(), None, &|| "here".to_owned());
        }
        audit.report()
    };
    let report = all(Expectation::default());
    assert_eq!(report.verdict, Verdict::Incomplete);
    let found: Vec<_> = report
        .integrations
        .iter()
        .map(|one| (one.verdict, one.records, one.tests))
        .collect();
    assert_eq!(
        found,
        [(Verdict::Complete, 3, 1), (Verdict::Incomplete, 1, 0)]
    );
    let picked = |id| Expectation {
        integrations: vec![id],
        ..Expectation::default()
    };
    let report = all(picked(INTEGRATION));
    assert_eq!((report.verdict, report.unasked), (Verdict::Complete, 1));
    let absent = all(picked(uuid::Uuid::from_u128(1)));
    assert_eq!(absent.verdict, Verdict::Incomplete);
}

#[test]
fn records_beyond_the_horizon_fill_holes_and_make_none() {
    let mut audit = Audit::new(Expectation::default());
    let take = |audit: &mut Audit, sequence| {
        audit.take(detection(sequence).to_string().as_bytes(), None, &|| {
            String::new()
        });
    };
    for sequence in [1, 2, 5] {
        take(&mut audit, sequence);
    }
    audit.set_horizon();
    assert!(!audit.is_whole());
    for sequence in [9, 4, 3] {
        take(&mut audit, sequence);
    }
    assert!(audit.is_whole());
    let report = audit.report();
    assert_eq!(report.verdict, Verdict::Complete);
    let integration = &report.integrations[0];
    assert_eq!(integration.judged, Some(Range { first: 1, last: 5 }));
    assert_eq!(integration.last_sequence, Some(9));
}
