//! Captures that begin or end within gaps, and streams that are being written.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    super::{Audit, Expectation, IntegrationReport, Range, Start, Verdict},
    INTEGRATION, Record, correct_records, last, listing, of,
};

/// First and last sequence that are judged; by default those that were read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
}

impl Window {
    pub(super) fn expectation(&self) -> Expectation {
        Expectation {
            first: self.first.map_or(Start::LowestRead, Start::At),
            last: self.last,
            ..listing()
        }
    }
}

pub(super) fn anywhere() -> impl Strategy<Value = Window> {
    let first = prop_oneof![
        2 => Just(Some(1)),
        2 => (1..70u64).prop_map(Some),
        1 => Just(None),
    ];
    let last = prop::option::of(1..70u64);
    (first, last).prop_map(|(first, last)| Window { first, last })
}

fn found(audit: &Audit) -> IntegrationReport {
    audit.report().integrations.swap_remove(0)
}

fn take(audit: &mut Audit, records: &[Record]) {
    for record in records {
        audit.take(record.text().as_bytes(), None, &|| "here".to_owned());
    }
}

fn within(records: &[Record], window: Window) -> IntegrationReport {
    let mut audit = Audit::new(Expectation {
        integrations: vec![INTEGRATION],
        ..window.expectation()
    });
    take(&mut audit, records);
    found(&audit)
}

fn gap(first: u64, last: u64, count: u64) -> Record {
    Record::Gap { first, last, count }
}

fn events(sequences: impl Iterator<Item = u64>) -> Vec<Record> {
    sequences.map(Record::event).collect()
}

/// Returns events of which one device of ten was blocked: its events from 1 to 150 expired.
fn sparse() -> (Vec<Record>, Record) {
    let delivered = events((1..=200).filter(|one| *one > 150 || one % 10 != 0));
    (delivered, gap(1, 150, 15))
}

/// Removes the events of some sequences.
fn without(records: &[Record], lost: impl Fn(u64) -> bool) -> Vec<Record> {
    let is_there =
        |record: &&Record| !matches!(record, Record::Event { sequence, .. } if lost(*sequence));
    records.iter().filter(is_there).cloned().collect()
}

#[test]
fn a_gap_that_begins_before_the_capture_is_judged_within_it() {
    let (delivered, gap) = sparse();
    let mut kept = without(&delivered, |sequence| sequence < 100);
    kept.push(gap);
    let judged = |records: &[Record], first| within(records, Window { first, last: None });
    for first in [Some(100), None] {
        let report = judged(&kept, first);
        assert_eq!(report.verdict, Verdict::Complete, "{report}");
        let (first, last) = (first.unwrap_or(101), 200);
        assert_eq!(report.judged, Some(Range { first, last }));
        assert_eq!(report.first_sequence, Some(1));
        // 100, 110, …, 150 are missing; 100 lies before a capture from 101 on.
        let missing = if first == 100 { 6 } else { 5 };
        assert_eq!(report.gaps.sequences, missing, "{report}");
    }
    // As many events as the gap counts, and no more, may be missing.
    let most = without(&kept, |sequence| sequence < 110);
    assert_eq!(judged(&most, Some(100)).verdict, Verdict::Complete);
    let too_few = without(&kept, |sequence| sequence < 112);
    let report = judged(&too_few, Some(100));
    assert_eq!(report.verdict, Verdict::Incomplete);
    let understated = &report.gaps.understated.first[0];
    assert_eq!((understated.first, understated.last), (100, 150));
    assert_eq!((understated.announced, understated.missing), (15, 16));
    // A gap before the capture is not judged.
    assert_eq!(judged(&kept, Some(151)).verdict, Verdict::Complete);
    assert_eq!(judged(&kept, Some(151)).gaps.sequences, 0);
}

#[test]
fn a_gap_that_ends_after_what_is_judged_is_judged_up_to_there() {
    let (delivered, gap) = sparse();
    let mut kept = without(&delivered, |sequence| sequence > 80);
    kept.push(gap);
    let up_to = |last| {
        let (first, last) = (Some(1), Some(last));
        within(&kept, Window { first, last }).verdict
    };
    assert_eq!(up_to(80), Verdict::Complete);
    assert_eq!(up_to(150), Verdict::Incomplete);
}

#[test]
fn an_event_within_a_gap_may_arrive_after_the_horizon_was_set() {
    let (delivered, gap) = sparse();
    let read = without(&delivered, |sequence| sequence == 141);
    let mut audit = Audit::new(listing());
    take(&mut audit, &read);
    take(&mut audit, &[gap]);
    audit.set_horizon();
    assert!(!audit.is_whole());
    assert_eq!(found(&audit).verdict, Verdict::Incomplete);
    take(&mut audit, &[Record::event(141)]);
    assert!(audit.is_whole());
    assert_eq!(found(&audit).verdict, Verdict::Complete);
}

#[test]
fn a_gap_that_was_read_while_waiting_is_judged_up_to_the_horizon() {
    let mut audit = Audit::new(listing());
    take(&mut audit, &events((1..=100).filter(|one| *one != 50)));
    audit.set_horizon();
    assert!(!audit.is_whole());
    take(&mut audit, &[Record::event(50), gap(90, 300, 30)]);
    assert!(audit.is_whole());
    let report = found(&audit);
    assert_eq!(report.verdict, Verdict::Complete, "{report}");
    assert_eq!(
        report.judged,
        Some(Range {
            first: 1,
            last: 100
        })
    );
}

#[test]
fn late_records_do_not_move_the_beginning() {
    let mut audit = Audit::new(
        Window {
            first: None,
            last: None,
        }
        .expectation(),
    );
    take(&mut audit, &events((100..=200).filter(|one| *one != 150)));
    audit.set_horizon();
    take(
        &mut audit,
        &[gap(3, 5, 2), Record::event(7), Record::event(150)],
    );
    assert!(audit.is_whole());
    let report = found(&audit);
    assert_eq!(report.verdict, Verdict::Complete, "{report}");
    assert_eq!(
        report.judged,
        Some(Range {
            first: 100,
            last: 200
        })
    );
}

#[test]
fn overlapping_gaps_are_reported() {
    // The answer to the first gap was lost, and a wider one was sent after more events expired.
    let mut records = vec![gap(1, 50, 10), gap(1, 100, 20)];
    records.extend(events(21..=120));
    let report = of(&records);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(report.gaps.overlapping, 2);
    assert!(report.to_string().contains("2 of them overlap"), "{report}");
    assert!(report.gaps.understated.first.is_empty());
    // From 51 on only one of them is judged.
    let alone = within(
        &records,
        Window {
            first: Some(51),
            last: None,
        },
    );
    assert_eq!(alone.gaps.overlapping, 0);
    assert!(!alone.to_string().contains("overlap"), "{alone}");
}

proptest! {
    /// The stream has lost its oldest events, but no gap, since gaps are written late.
    #[test]
    fn correct_records_are_complete_from_any_first_sequence(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let first = 1 + pick.index(last(&records) as usize) as u64;
        let kept = without(&records, |sequence| sequence < first);
        let window = Window { first: Some(first), last: Some(last(&records)) };
        let report = within(&kept, window);
        prop_assume!(report.records > 0);
        prop_assert_eq!(report.verdict, Verdict::Complete, "{}", report);
    }

    /// The capture begins in the middle of the stream.
    #[test]
    fn correct_records_are_complete_from_the_lowest_read(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let kept = &records[pick.index(records.len())..];
        let report = within(kept, Window { first: None, last: None });
        prop_assert_eq!(report.verdict, Verdict::Complete, "{}", report);
    }

    #[test]
    fn correct_records_are_complete_up_to_any_last_sequence(records in correct_records(), pick in any::<prop::sample::Index>()) {
        let end = 1 + pick.index(last(&records) as usize) as u64;
        let kept = without(&records, |sequence| sequence > end);
        let report = within(&kept, Window { first: Some(1), last: Some(end) });
        prop_assume!(report.records > 0);
        prop_assert_eq!(report.verdict, Verdict::Complete, "{}", report);
    }

    /// The stream is read while it is being written: records before the horizon arrive late, and
    /// those beyond it are incomplete.
    #[test]
    fn correct_records_are_complete_up_to_the_horizon(
        records in correct_records(),
        picks in prop::collection::vec(any::<bool>(), 200),
        end in any::<prop::sample::Index>(),
    ) {
        let (mut early, mut late) = (Vec::new(), Vec::new());
        for (at, record) in records.iter().enumerate() {
            match picks[at % picks.len()] {
                true => early.push(record.clone()),
                false => late.push(record.clone()),
            }
        }
        prop_assume!(!early.is_empty());
        let mut audit = Audit::new(listing());
        take(&mut audit, &early);
        audit.set_horizon();
        let horizon = last(&early);
        let beyond = 1 + end.index(last(&records) as usize) as u64;
        let fills = without(&late, |sequence| sequence > horizon && sequence >= beyond);
        take(&mut audit, &fills);
        prop_assert!(audit.is_whole(), "{}", found(&audit));
        prop_assert_eq!(found(&audit).verdict, Verdict::Complete, "{}", found(&audit));
    }

    /// Waiting for late records never ends while the report would fail.
    #[test]
    fn a_report_fails_for_missing_events_until_the_audit_is_whole(
        records in prop::collection::vec(prop_oneof![
            6 => (1..40u64).prop_map(Record::event),
            1 => (1..30u64, 0..12u64, 1..4u64).prop_map(|(first, more, count)| gap(first, first + more, count.min(more + 1))),
        ], 1..60),
        window in anywhere(),
        horizon in any::<prop::sample::Index>(),
    ) {
        let mut audit = Audit::new(window.expectation());
        let horizon = 1 + horizon.index(records.len());
        take(&mut audit, &records[..horizon]);
        audit.set_horizon();
        take(&mut audit, &records[horizon..]);
        let report = found(&audit);
        let missing = report.holes.count + report.gaps.understated.count;
        prop_assert_eq!(audit.is_whole(), missing == 0, "{}", report);
    }

    #[test]
    fn a_loss_within_a_gap_is_found_from_any_first_sequence(first in 1..150u64, pick in any::<prop::sample::Index>()) {
        let (delivered, gap) = sparse();
        let mut kept = without(&delivered, |sequence| sequence < first);
        kept.push(gap);
        let present: BTreeSet<u64> = super::sequences(&kept).into_iter().filter(|one| *one <= 150).collect();
        let expired = (first..=150).filter(|one| one % 10 == 0).count();
        // As many as the gap counts may have expired; one more may not be missing.
        let lost = 15 - expired + 1;
        prop_assume!(present.len() >= lost);
        let start = pick.index(present.len() - lost + 1);
        let gone: BTreeSet<u64> = present.into_iter().skip(start).take(lost).collect();
        let damaged = without(&kept, |sequence| gone.contains(&sequence));
        let report = within(&damaged, Window { first: Some(first), last: None });
        prop_assert_eq!(report.verdict, Verdict::Incomplete, "{}", report);
        let one_less = *gone.first().unwrap();
        let mut restored = damaged;
        restored.push(Record::event(one_less));
        let report = within(&restored, Window { first: Some(first), last: None });
        prop_assert_eq!(report.verdict, Verdict::Complete, "{}", report);
    }
}
