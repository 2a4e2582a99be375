//! When publishes wait for deliveries: what the worker and the settlements tell of them.

use futures_util::FutureExt;

use super::*;

const TAIL: usize = 34 * SEGMENT_BYTES;
/// More than three quarters of the tail.
const EVENTS: u32 = 30;

#[tokio::test]
async fn publishes_wait_for_queues_and_for_what_is_quick() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), TAIL).await;
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    assert!(append(&store, "acme", EVENTS).await);
    let more = segments([(key, 1)]);
    let waits = || store.give_way(&more).now_or_never().is_none();
    for (is_busy, deliveries_queue, expected) in [
        (false, false, false),
        (false, true, false),
        (true, true, true),
        (true, false, false),
    ] {
        store.tell_load(Load {
            is_busy,
            deliveries_queue,
        });
        assert_eq!(waits(), expected, "{is_busy} {deliveries_queue}");
    }
    // A tenth of the tail in a tenth of a second is quick. Looked at once, before it is durable.
    let mut delivery = Delivery::default();
    for chunk in store.read_log(key, 1, TAIL).await.unwrap() {
        assert_eq!(delivery.load(chunk), None);
    }
    let batch = delivery.next_batch(LIMITS).unwrap();
    let outcomes = vec![Outcome::Accepted; batch.items.len()];
    let settlement = delivery.settle(batch, &outcomes);
    assert!(settlement.accepted_bytes > TAIL as u64 / 10);
    let permit = store.reserve_settle().await.unwrap();
    permit.settle(Settle {
        key,
        settlement,
        observed: None,
        tells: Tells::Nobody,
    });
    assert!(waits());
    store.tell_load(Load {
        is_busy: false,
        deliveries_queue: false,
    });
    assert!(!waits());
    store.close().await;
}
