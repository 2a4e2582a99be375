//! What one request holds, and what its answer leaves.

use super::*;

#[test]
fn a_request_holds_no_more_bytes_than_allowed_but_at_least_one_event() {
    let limits = |bytes| BatchLimits {
        records: 500,
        bytes,
        overhead_bytes: 6,
    };
    let mut delivery = Delivery::default();
    for chunk in log(&[1, 2, 3, 4, 5], 5) {
        delivery.load(chunk);
    }
    let batch = delivery.next_batch(limits(50)).unwrap();
    assert_eq!(batch.items.len(), 3);
    let _settled = delivery.settle(batch, &[Outcome::Accepted; 3]);
    let batch = delivery.next_batch(limits(1)).unwrap();
    assert_eq!(batch.items.len(), 1);
    let _settled = delivery.settle(batch, &[Outcome::Accepted]);
}

#[test]
fn an_item_without_an_outcome_is_sent_again() {
    let mut delivery = Delivery::default();
    for chunk in log(&[1, 2], 2) {
        delivery.load(chunk);
    }
    let limits = BatchLimits {
        records: 500,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let batch = delivery.next_batch(limits).unwrap();
    let settlement = delivery.settle(batch, &[Outcome::Accepted]);
    assert_eq!(settlement.accepted, 1);
    let batch = delivery.next_batch(limits).unwrap();
    assert_eq!(batch.items[0].sequence, 2);
    let _settled = delivery.settle(batch, &[Outcome::Accepted]);
}

#[test]
fn a_request_with_room_can_wait_for_keys_of_others() {
    let limits = BatchLimits {
        records: 3,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let mut delivery = Delivery::default();
    for chunk in log(&[1, 2, 1, 1, 3, 2], 6) {
        delivery.load(chunk);
    }
    let first = delivery.next_full_batch(limits).unwrap();
    assert_eq!(first.items.len(), 3);
    // Only the one of the third key may go now.
    assert!(delivery.next_full_batch(limits).is_none());
    assert_eq!((delivery.waiting(), delivery.in_flight()), (3, 1));
    let _settled = delivery.settle(first, &[Outcome::Accepted; 3]);
    let second = delivery.next_full_batch(limits).unwrap();
    let sequences: Vec<u64> = second.items.iter().map(|item| item.sequence).collect();
    assert_eq!(sequences, [4, 5, 6]);
    let _settled = delivery.settle(second, &[Outcome::Accepted; 3]);
}

/// Keys of both halves.
const HALVES: [u8; 2] = [1, 3];

fn keys_of(batch: &Batch) -> Vec<Key> {
    batch.items.iter().map(|item| item.key).collect()
}

#[test]
fn where_much_waits_a_request_leaves_half_of_the_keys_to_another() {
    let limits = BatchLimits {
        records: 4,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let [one, other] = HALVES;
    let mut delivery = Delivery::default();
    for chunk in log(&[one, other].repeat(6), 3) {
        delivery.load(chunk);
    }
    // Nothing is known of the stream yet.
    let first = delivery.next_batch(limits).unwrap();
    assert_eq!(keys_of(&first), [one, other, one, other].map(Key::from));
    let _settled = delivery.settle(first, &[Outcome::Accepted; 4]);
    let first = delivery.next_batch(limits).unwrap();
    assert_eq!(keys_of(&first), [Key::from(one); 4]);
    let second = delivery.next_batch(limits).unwrap();
    assert_eq!(keys_of(&second), [Key::from(other); 4]);
    for batch in [second, first] {
        let _settled = delivery.settle(batch, &[Outcome::Accepted; 4]);
    }
    assert!(delivery.is_empty());
}

#[test]
fn a_half_with_too_little_for_a_request_leaves_room_for_the_other() {
    let limits = BatchLimits {
        records: 3,
        bytes: 1000,
        overhead_bytes: 0,
    };
    let [one, other] = HALVES;
    let mut delivery = Delivery::default();
    let keys = [one, one, one, one, other, other, other, other, one];
    for chunk in log(&keys, 9) {
        delivery.load(chunk);
    }
    let mut sequences = Vec::new();
    while let Some(batch) = delivery.next_batch(limits) {
        let of_batch: Vec<u64> = batch.items.iter().map(|item| item.sequence).collect();
        sequences.push(of_batch);
        let _settled = delivery.settle(batch, &[Outcome::Accepted; 3]);
    }
    // Of the first half only two are left, so that there is room for one of the other.
    assert_eq!(sequences, [[1, 2, 3], [4, 5, 9], [6, 7, 8]]);
}
