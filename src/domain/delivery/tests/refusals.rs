//! Records that AWS refuses, and configurations of which it refuses everything.

use super::*;

/// AWS that refuses the whole request, or record by record.
struct Aws {
    /// Sequences that it never takes.
    poison: BTreeSet<u64>,
    /// Answers during which it refuses everything.
    broken: std::ops::Range<usize>,
    by_record: bool,
    answers: usize,
}

impl Aws {
    fn answer(&mut self, batch: &Batch) -> Vec<Outcome> {
        let broken = self.broken.contains(&self.answers);
        self.answers += 1;
        // A gap is a record of its own.
        let poison =
            |record: &BatchRecord| record.gap.is_none() && self.poison.contains(&record.sequence);
        let whole = !self.by_record && batch.records.iter().any(poison);
        let records = batch.records.iter();
        records
            .map(|record| match broken || whole || poison(record) {
                true => Outcome::Refused,
                false => Outcome::Accepted,
            })
            .collect()
    }
}

/// Sends all there is; ends when nothing passes any more.
fn deliver(run: &mut Run, aws: &mut Aws, parallel: usize) {
    let mut in_vain = 0;
    while in_vain < 60 {
        if run.delivery.waiting() < run.limits.records || run.delivery.is_narrowing() {
            run.load();
        }
        while run.in_flight.len() < parallel && run.send() {}
        if run.in_flight.is_empty() {
            if run.loaded == run.chunks.len() {
                break;
            }
            continue;
        }
        let batch = run.in_flight.remove(0);
        let outcomes = aws.answer(&batch);
        let settlement = run.settle(batch, &outcomes);
        if settlement.refused > 0 {
            run.give_up_refused();
        }
        if settlement.narrowing && run.in_flight.is_empty() {
            assert!(run.send(), "the record to try next is loaded");
        }
        in_vain = match settlement.accepted_records() {
            0 => in_vain + usize::from(!settlement.narrowing),
            _ => 0,
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn gives_up_what_is_refused_while_others_pass_and_nothing_else(
        keys in prop::collection::vec(0u8..4, 2..80),
        poison in prop::collection::btree_set(1u64..80, 0..6),
        chunk_events in 1usize..20,
        records in 1usize..30,
        parallel in 1usize..4,
        broken in 0usize..30,
        length in prop_oneof![Just(0usize), 1usize..60],
        by_record: bool,
    ) {
        let total = keys.len() as u64;
        let poison: BTreeSet<u64> = poison.into_iter().filter(|one| *one <= total).collect();
        let limits = BatchLimits { records, bytes: 100_000, overhead_bytes: 10 };
        let mut run = Run::new(&keys, chunk_events, limits);
        let broken = broken..broken + length;
        let mut aws = Aws { poison, broken, by_record, answers: 0 };
        deliver(&mut run, &mut aws, parallel);
        let oracle = &run.oracle;
        prop_assert!(oracle.given_up.is_subset(&aws.poison), "{:?} given up", oracle.given_up);
        let good = (1..=total).filter(|one| !aws.poison.contains(one));
        for sequence in good {
            prop_assert!(oracle.accepted.contains(&sequence), "{sequence} is stuck");
        }
        // The last may have nothing beside them that passes.
        let left: BTreeSet<u64> = aws.poison.difference(&oracle.given_up).copied().collect();
        prop_assert_eq!(oracle.waiting(), left);
    }
}

fn run(keys: &[u8]) -> Run {
    let limits = BatchLimits {
        records: 500,
        bytes: 100_000,
        overhead_bytes: 0,
    };
    let mut run = Run::new(keys, 500, limits);
    run.load();
    run
}

/// Sends one request, which is refused as a whole.
fn refuse(run: &mut Run) -> (Vec<u64>, Settlement) {
    assert!(run.send());
    let batch = run.in_flight.remove(0);
    let sequences = batch.records.iter().map(|record| record.sequence).collect();
    let refused = vec![Outcome::Refused; batch.records.len()];
    let settlement = run.settle(batch, &refused);
    (sequences, settlement)
}

#[test]
fn where_every_size_is_refused_nothing_is_given_up() {
    let keys: Vec<u8> = (0..64).map(|at| at % 8).collect();
    let mut run = run(&keys);
    let mut sizes = Vec::new();
    for _ in 0..10 {
        let (sequences, settlement) = refuse(&mut run);
        sizes.push(sequences.len());
        assert_eq!(settlement.refused, 0);
        assert_eq!(settlement.narrowing, sizes.len() < 10);
    }
    assert_eq!(sizes, [64, 32, 16, 8, 4, 2, 1, 1, 1, 1]);
    // After the back-off the oldest comes first, and others than before after it.
    let mut tried = Vec::new();
    for _ in 0..4 {
        let (sequences, settlement) = refuse(&mut run);
        tried.extend(sequences);
        assert_eq!(settlement.narrowing, tried.len() < 4);
    }
    assert_eq!(tried, [1, 5, 6, 7]);
    assert!(run.oracle.given_up.is_empty());
    // The configuration is repaired: every key in order, in requests that grow.
    let mut sizes = Vec::new();
    while run.send() {
        sizes.push(run.in_flight[0].records.len());
        run.answer(0, |_| Outcome::Accepted);
    }
    assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 1]);
}

#[test]
fn a_single_record_that_is_refused_is_kept() {
    let mut run = run(&[1]);
    for _ in 0..50 {
        let (_, settlement) = refuse(&mut run);
        assert_eq!((settlement.refused, settlement.narrowing), (0, false));
    }
    run.answer(0, |_| Outcome::Accepted);
    assert!(run.send());
}

#[test]
fn what_another_configuration_met_proves_nothing() {
    let mut run = run(&[1, 2]);
    assert_eq!(refuse(&mut run).0, [1, 2]);
    assert_eq!(refuse(&mut run).0, [1]);
    assert!(run.send());
    run.answer(0, |_| Outcome::Accepted);
    run.delivery.forget_refusals();
    let (sequences, settlement) = refuse(&mut run);
    assert_eq!((sequences.as_slice(), settlement.refused), (&[1][..], 0));
}

#[test]
fn the_oldest_goes_again_where_what_was_to_be_tried_is_no_longer_at_hand() {
    let limits = BatchLimits {
        records: 500,
        bytes: 100_000,
        overhead_bytes: 0,
    };
    let mut run = Run::new(&[1, 2], 1, limits);
    run.load();
    run.load();
    assert_eq!(refuse(&mut run).0, [1, 2]);
    let (sequences, settlement) = refuse(&mut run);
    assert_eq!(
        (sequences.as_slice(), settlement.narrowing),
        (&[1][..], true)
    );
    assert_eq!(run.delivery.unload(), Some(1));
    run.loaded = 0;
    run.load();
    let (sequences, settlement) = refuse(&mut run);
    // Nothing else can be tried: now it backs off.
    assert_eq!(
        (sequences.as_slice(), settlement.narrowing),
        (&[1][..], false)
    );
}

#[test]
fn nothing_is_overtaken_while_another_key_only_has_to_wait() {
    let mut run = run(&[3, 1, 1, 2]);
    assert_eq!(refuse(&mut run).0, [1, 2, 3, 4]);
    assert_eq!(refuse(&mut run).0, [1, 2]);
    assert!(run.send());
    run.answer(0, |_| Outcome::Accepted);
    assert_eq!(refuse(&mut run).0, [2, 3]);
    assert_eq!(refuse(&mut run).0, [2]);
    let limits = run.limits;
    let denied = run.delivery.next_admitted_batch(limits, |key, _| key != 2);
    assert!(denied.is_none());
    assert_eq!(refuse(&mut run).0, [4]);
}
