use std::{future::poll_fn, pin::pin, task::Poll, thread};

use tokio::time::timeout;

use super::*;
use crate::{domain::delivery::Settlement, store::Tells};

/// A test that waits for so long has failed.
const FOREVER: Duration = Duration::from_secs(180);

fn queue() -> (Settlements, Fetch) {
    Settlements::new(
        Arc::new(Catalog::new(0)),
        Arc::new(Tail::new(0)),
        Arc::default(),
        Duration::from_secs(60),
    )
}

fn attempt() -> Settle {
    Settle {
        key: IntegrationKey(7),
        settlement: Settlement::default(),
        observed: None,
        tells: Tells::Nobody,
    }
}

async fn hand_in(settlements: &Settlements) {
    settlements.reserve().await.unwrap().settle(attempt());
}

async fn is_called(fetch: &Fetch) -> bool {
    let mut called = pin!(fetch.called());
    poll_fn(|cx| Poll::Ready(called.as_mut().poll(cx).is_ready())).await
}

#[tokio::test]
async fn a_writer_is_woken_where_it_rests_or_much_waits() {
    let (settlements, mut fetch) = queue();
    let mut unsettled = Unsettled::default();
    fetch.fetch(&mut unsettled, false);
    hand_in(&settlements).await;
    assert!(is_called(&fetch).await);
    // It comes by itself.
    fetch.fetch(&mut unsettled, true);
    assert_eq!(unsettled.count, 1);
    for _ in 1..MOST / 2 {
        hand_in(&settlements).await;
        assert!(!is_called(&fetch).await);
    }
    hand_in(&settlements).await;
    assert!(is_called(&fetch).await);
    fetch.fetch(&mut unsettled, true);
    assert_eq!(unsettled.count, 1 + MOST / 2);
    drop(fetch);
    assert!(settlements.reserve().await.is_none());
}

/// Whoever hands one in as the writer goes to rest wakes it.
#[tokio::test]
async fn none_is_forgotten() {
    const ALL: usize = 200_000;
    let (settlements, mut fetch) = queue();
    let from = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            for at in 0..ALL {
                hand_in(&settlements).await;
                // Now and then the writer gets to rest.
                for _ in 0..at % 64 {
                    std::hint::spin_loop();
                }
            }
        });
    });
    let mut unsettled = Unsettled::default();
    while unsettled.count < ALL {
        // It writes for a while, and rests where nothing is left to write.
        fetch.fetch(&mut unsettled, true);
        let before = unsettled.count;
        fetch.fetch(&mut unsettled, false);
        if unsettled.count == before && unsettled.count < ALL {
            let called = timeout(FOREVER, fetch.called());
            called.await.expect("some wait, and nobody told");
        }
    }
    drop(fetch);
    from.join().unwrap();
}
