//! Statuses, as settlements change them.

use std::{future::poll_fn, pin::pin, task::Poll};

use tokio::time::timeout;

use super::{
    super::{
        command::Unsettled,
        draft::{Draft, NextRetry, Observed},
        settlements::Settlements,
    },
    *,
};

fn observed(observation: Observation) -> Observed {
    Observed {
        version: 1,
        at: rows::now(),
        observation,
        next_retry: NextRetry::Never,
    }
}

fn denied() -> Observation {
    Observation::Failed(Fault {
        stage: Stage::AssumeRole,
        cause: Cause::Service {
            code: "AccessDenied".into(),
            http_status: 403,
        },
        request_id: None,
    })
}

/// What went and came back within one transaction is told to nobody, and so is as it was.
#[tokio::test]
async fn what_nobody_is_told_moves_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    let (done, settled) = oneshot::channel();
    let settle = Settle {
        key,
        settlement: Settlement::default(),
        observed: Some(observed(Observation::Accepted)),
        tells: Tells::Waiting(done),
    };
    store.settle(settle).await;
    settled.await.unwrap();
    let before = store.get(key).unwrap().status;
    assert_eq!(before.status, Status::Active);

    let packs = super::super::packs::Packs::default();
    let mut draft = Draft::new(&store.catalog, &packs, 10, Duration::from_secs(60));
    let both = [observed(denied()), observed(Observation::Accepted)];
    assert!(!draft.observe(key, &both));
    let after = Arc::clone(&draft.slot_mut(key).unwrap().snapshot.status);
    assert_eq!((after.status, after.since), (Status::Active, before.since));
    assert!(after.last_attempt > before.last_attempt);

    let mut draft = Draft::new(&store.catalog, &packs, 10, Duration::from_secs(60));
    assert!(draft.observe(key, &[observed(denied())]));
    let after = Arc::clone(&draft.slot_mut(key).unwrap().snapshot.status);
    assert!(after.since > before.since);
    store.close().await;
}

/// A writer that would look again soon is woken for a status that changes, and for no other.
#[tokio::test]
async fn only_a_status_that_changes_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 0);
    options.settle_linger = Duration::from_secs(600);
    let key = MasterKey::from_hex(KEY).unwrap();
    let store = Store::open(options, key).await.unwrap();
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    let settle = |observation, tells| Settle {
        key,
        settlement: Settlement::default(),
        observed: Some(observed(observation)),
        tells,
    };
    let (queue, mut fetch) = Settlements::new(
        Arc::clone(&store.catalog),
        Arc::clone(&store.tail),
        Arc::default(),
        Duration::from_secs(60),
    );
    fetch.fetch(&mut Unsettled::default(), true);
    let wakes = async |observation| {
        let permit = queue.reserve().await.unwrap();
        permit.settle(settle(observation, Tells::Nobody));
        let mut called = pin!(fetch.called());
        poll_fn(|cx| Poll::Ready(called.as_mut().poll(cx).is_ready())).await
    };
    assert!(wakes(Observation::Accepted).await);
    // It is due in ten minutes, but for what it tells.
    let (done, told) = oneshot::channel();
    let accepted = settle(Observation::Accepted, Tells::Waiting(done));
    store.settle(accepted).await;
    told.await.unwrap();
    let status = &store.get(key).unwrap().status;
    assert_eq!(status.status, Status::Active);
    assert!(!wakes(Observation::Accepted).await);
    assert!(wakes(denied()).await);
    store.close().await;
}

/// Those who publish are not kept waiting by others whose statuses go to and fro.
#[tokio::test]
async fn what_changes_statuses_takes_publishes_along() {
    const MANY: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    let mut keys = Vec::new();
    for which in 0..MANY {
        let organization = format!("org-{which}");
        store.configure(configuration(&organization)).await.unwrap();
        keys.push(store.key_of(&organization).unwrap());
    }
    // Whenever the writer looks, one of them or another has changed.
    let news = async {
        for count in 0_usize.. {
            let mixed = (count as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let observation = match (mixed ^ (mixed >> 29)).count_ones() % 2 {
                0 => Observation::Accepted,
                _ => denied(),
            };
            let settle = Settle {
                key: keys[count % MANY],
                settlement: Settlement::default(),
                observed: Some(observed(observation)),
                tells: Tells::Nobody,
            };
            store.settle(settle).await;
            tokio::task::yield_now().await;
        }
    };
    let published = async {
        for _ in 0..20 {
            assert!(append(&store, "org-0", 1).await);
        }
    };
    tokio::select! {
        () = news => unreachable!("there is news without end"),
        published = timeout(Duration::from_secs(180), published) => {
            published.expect("news kept publishes from the log");
        }
    }
    store.close().await;
}
