//! Statuses, as settlements change them.

use super::{
    super::draft::{Draft, NextRetry, Observed},
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

/// While nothing else is due for long.
#[tokio::test]
async fn only_a_status_that_changes_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 0);
    options.settle_linger = Duration::from_secs(600);
    let key = MasterKey::from_hex(KEY).unwrap();
    let store = Store::open(options, key).await.unwrap();
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    let attempt = async |observation, done| {
        let settle = Settle {
            key,
            settlement: Settlement::default(),
            observed: Some(observed(observation)),
            tells: Tells::Waiting(done),
        };
        store.settle(settle).await;
    };
    let (done, told) = oneshot::channel();
    attempt(Observation::Accepted, done).await;
    told.await.unwrap();
    assert_eq!(store.get(key).unwrap().status.status, Status::Active);

    // What tells nothing new waits until there is news.
    let (done, mut same) = oneshot::channel();
    attempt(Observation::Accepted, done).await;
    assert!(append(&store, "acme", 1).await);
    assert!(same.try_recv().is_err());
    let (done, told) = oneshot::channel();
    attempt(denied(), done).await;
    told.await.unwrap();
    same.await.unwrap();
    let status = &store.get(key).unwrap().status;
    assert_eq!(status.status, Status::Unauthorized);
    store.close().await;
}
