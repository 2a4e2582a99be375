//! Content of a request, and the effect of its answer.

use super::*;

#[test]
fn a_request_holds_no_more_bytes_than_allowed_but_at_least_one_event() {
    let limits = |records| BatchLimits {
        records: 500,
        bytes: records * (EVENT_BYTES + 6),
        overhead_bytes: 6,
    };
    let mut delivery = delivery(&[1, 2, 3, 4, 5], 5);
    let batch = delivery.next_batch(limits(3)).unwrap();
    assert_eq!(batch.records.len(), 3);
    let _settled = settle(&mut delivery, batch, &[Outcome::Accepted; 3]);
    let batch = delivery.next_batch(limits(0)).unwrap();
    assert_eq!(batch.records.len(), 1);
    let _settled = settle(&mut delivery, batch, &[Outcome::Accepted]);
}

#[test]
fn an_item_without_an_outcome_is_sent_again() {
    let mut delivery = delivery(&[1, 2], 2);
    let limits = BatchLimits {
        records: 500,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let batch = delivery.next_batch(limits).unwrap();
    let settlement = settle(&mut delivery, batch, &[Outcome::Accepted]);
    assert_eq!(settlement.accepted, 1);
    let batch = delivery.next_batch(limits).unwrap();
    assert_eq!(batch.records[0].sequence, 2);
    let _settled = settle(&mut delivery, batch, &[Outcome::Accepted]);
}

#[test]
fn a_request_that_is_not_full_can_wait_for_keys_of_others() {
    let limits = BatchLimits {
        records: 3,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let mut delivery = delivery(&[1, 2, 1, 1, 3, 2], 6);
    let first = delivery.next_full_batch(limits).unwrap();
    assert_eq!(first.records.len(), 3);
    // Only the one of the third key may go now.
    assert!(delivery.next_full_batch(limits).is_none());
    assert_eq!((delivery.waiting(), delivery.in_flight()), (3, 1));
    let _settled = settle(&mut delivery, first, &[Outcome::Accepted; 3]);
    let second = delivery.next_full_batch(limits).unwrap();
    let sequences: Vec<u64> = second
        .records
        .iter()
        .map(|record| record.sequence)
        .collect();
    assert_eq!(sequences, [4, 5, 6]);
    let _settled = settle(&mut delivery, second, &[Outcome::Accepted; 3]);
}

/// Keys of both halves.
const HALVES: [u8; 2] = [1, 3];

fn keys_of(batch: &Batch) -> Vec<Key> {
    batch.records.iter().map(|record| record.key).collect()
}

#[test]
fn where_much_waits_a_request_leaves_half_of_the_keys_to_another() {
    let limits = BatchLimits {
        records: 4,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let [one, other] = HALVES;
    let mut delivery = delivery(&[one, other].repeat(6), 3);
    // Nothing is known of the stream yet.
    let first = delivery.next_batch(limits).unwrap();
    assert_eq!(keys_of(&first), [one, other, one, other].map(Key::from));
    let _settled = settle(&mut delivery, first, &[Outcome::Accepted; 4]);
    let first = delivery.next_batch(limits).unwrap();
    assert_eq!(keys_of(&first), [Key::from(one); 4]);
    let second = delivery.next_batch(limits).unwrap();
    assert_eq!(keys_of(&second), [Key::from(other); 4]);
    for batch in [second, first] {
        let _settled = settle(&mut delivery, batch, &[Outcome::Accepted; 4]);
    }
    assert!(delivery.is_empty());
}

#[test]
fn a_half_with_too_little_for_a_request_is_filled_up_from_the_other() {
    let limits = BatchLimits {
        records: 3,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let [one, other] = HALVES;
    let keys = [one, one, one, one, other, other, other, other, one];
    let mut delivery = delivery(&keys, 9);
    let mut sequences = Vec::new();
    while let Some(batch) = delivery.next_batch(limits) {
        let of_batch: Vec<u64> = batch.records.iter().map(|record| record.sequence).collect();
        sequences.push(of_batch);
        let _settled = settle(&mut delivery, batch, &[Outcome::Accepted; 3]);
    }
    // Of the first half only two are left, so that one of the other fits.
    assert_eq!(sequences, [[1, 2, 3], [4, 5, 9], [6, 7, 8]]);
}

#[test]
fn a_segment_without_the_events_of_its_chunk_is_damaged() {
    let chunk = log(&[1, 2, 3], 3).remove(0);
    let load = |chunk: Chunk| delivery(&[], 1).load(chunk);
    assert_eq!(load(chunk.clone()), Ok(()));
    assert_eq!(load(chunk.state()), Err(Damaged));
    let cut = chunk.segment.slice(..chunk.segment.len() - 1);
    let damaged = Chunk {
        segment: cut,
        ..chunk.clone()
    };
    assert_eq!(load(damaged), Err(Damaged));
    let damaged = Chunk { count: 4, ..chunk };
    assert_eq!(load(damaged), Err(Damaged));
}
