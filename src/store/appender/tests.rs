//! Tests of the appender with several partitions.

use std::pin::pin;

use futures_util::poll;
use tokio::{sync::Semaphore, task::yield_now};

use super::*;
use crate::{
    domain::{integration::IntegrationId, organization::OrganizationId},
    store::{
        backpressure::Backpressure,
        memory::{Image, MemoryLog},
        ports::Position,
        sql::{self, RegistryOptions, SqlRegistry},
        sqlite,
        tests::planned,
    },
};

const LIMIT: Duration = Duration::from_secs(30);

/// An appender to a log with two partitions, and an integration of each.
struct Setup {
    image: Image,
    log: Arc<MemoryLog>,
    appender: Appender,
    ids: [IntegrationId; 2],
    backpressure: Arc<Backpressure>,
    memory: Arc<Semaphore>,
}

impl Setup {
    async fn new() -> Self {
        let engine = sqlite::testing::open_in_memory().await;
        let options = RegistryOptions {
            partitions: 2,
            tombstones: 10,
            failing_after: LIMIT,
        };
        let database = sql::Database::Sqlite(engine.database().clone());
        let registry = SqlRegistry::open(database, options).await.unwrap();
        let catalog = Catalog::load(Arc::new(registry), Arc::default(), LIMIT).await;
        let catalog = Arc::new(catalog.unwrap());
        let mut ids = [None; 2];
        for number in 0.. {
            let organization = OrganizationId::new(&format!("acme-{number}")).unwrap();
            let plan = planned(&organization);
            let stored = catalog.configure(&organization, &plan).await.unwrap();
            ids[stored.partition as usize] = Some(stored.integration.integration_id);
            if ids.iter().all(Option::is_some) {
                break;
            }
        }
        let image = Image::new(2, 1);
        let log = Arc::new(MemoryLog::open(image.clone()));
        let linger = Duration::ZERO;
        Self {
            appender: Appender::start(Arc::clone(&log) as _, catalog, None, linger),
            image,
            log,
            ids: ids.map(Option::unwrap),
            backpressure: Arc::new(Backpressure::new(0)),
            memory: Arc::new(Semaphore::new(1 << 20)),
        }
    }

    /// Appends an event to each of the partitions.
    async fn append(
        &self,
        partitions: &[usize],
        bytes: usize,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<>, StoreError> {
        let mut segments = Segments::default();
        for partition in partitions {
            let pushed: Result<(), ()> = segments.push(self.ids[*partition], |out| {
                out.resize(out.len() + bytes, 7);
                Ok(())
            });
            pushed.unwrap();
        }
        let memory = Arc::clone(&self.memory).acquire_owned().await.unwrap();
        let incoming = self.backpressure.incoming(segments.bytes());
        self.appender
            .append(segments, Some(Box::new(memory)), incoming)
            .await
    }

    fn held(&self) -> usize {
        (1 << 20) - self.memory.available_permits()
    }
}

#[tokio::test]
async fn a_partition_that_does_not_answer_holds_up_only_its_own_requests() {
    let setup = Setup::new().await;
    setup.image.hold(1, true);
    let mut both = pin!(setup.append(&[0, 1, 0], 1).await.unwrap());
    let mut held = pin!(setup.append(&[1], 1).await.unwrap());
    for _ in 0..10 {
        let other = setup.append(&[0], 1).await.unwrap();
        timeout(LIMIT, other).await.unwrap().unwrap();
    }
    assert!(poll!(&mut both).is_pending() && poll!(&mut held).is_pending());
    assert_eq!(setup.held(), 2);
    assert_eq!(setup.log.known_end(1), Position(1));
    setup.image.hold(1, false);
    timeout(LIMIT, both).await.unwrap().unwrap();
    timeout(LIMIT, held).await.unwrap().unwrap();
    assert_eq!(setup.held(), 0);
}

#[tokio::test]
async fn memory_is_held_until_all_parts_are_answered_though_nobody_waits() {
    let setup = Setup::new().await;
    setup.image.hold(1, true);
    drop(setup.append(&[0, 1], 1).await.unwrap());
    let other = setup.append(&[0], 1).await.unwrap();
    timeout(LIMIT, other).await.unwrap().unwrap();
    assert_eq!(setup.held(), 1);
    setup.image.hold(1, false);
    let last = setup.append(&[1], 1).await.unwrap();
    timeout(LIMIT, last).await.unwrap().unwrap();
    assert_eq!(setup.held(), 0);
}

#[tokio::test]
async fn a_stalled_partition_is_refused_more_than_a_little() {
    let setup = Setup::new().await;
    setup.image.hold(1, true);
    let mut waiting = vec![setup.append(&[1], 1).await.unwrap()];
    let is_appending = || lock(&setup.appender.lanes[1].load.appending_since).is_some();
    while !is_appending() {
        yield_now().await;
    }
    // More than an append takes is queued while the partition may yet answer.
    let large = STALLED_BYTES / 2;
    for _ in 0..3 {
        waiting.push(setup.append(&[1], large).await.unwrap());
    }
    let since = Instant::now().checked_sub(STALLED_AFTER);
    *lock(&setup.appender.lanes[1].load.appending_since) = since;
    for partitions in [&[1][..], &[0, 1]] {
        let refused = setup.append(partitions, 1).await.err();
        assert!(
            matches!(&refused, Some(StoreError::Failed(reason)) if reason.contains("1 of the event log is behind")),
            "{refused:?}"
        );
    }
    // Nothing of the refused requests is kept.
    assert_eq!(setup.log.known_end(0), Position(1));
    timeout(LIMIT, setup.append(&[0], 1).await.unwrap())
        .await
        .unwrap()
        .unwrap();
    setup.image.hold(1, false);
    for one in waiting {
        timeout(LIMIT, one).await.unwrap().unwrap();
    }
    timeout(LIMIT, setup.append(&[1], 1).await.unwrap())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_full_queue_holds_up_only_the_requests_for_it() {
    let setup = Setup::new().await;
    setup.image.hold(1, true);
    let mut waiting = Vec::new();
    while setup.appender.lanes[1].requests.capacity() > 0 {
        waiting.push(setup.append(&[1], 1).await.unwrap());
        yield_now().await;
    }
    {
        let mut blocked = pin!(setup.append(&[0, 1], 1));
        assert!(poll!(&mut blocked).is_pending());
        let other = setup.append(&[0], 1).await.unwrap();
        timeout(LIMIT, other).await.unwrap().unwrap();
        setup.image.hold(1, false);
        let queued = timeout(LIMIT, blocked).await.unwrap().unwrap();
        timeout(LIMIT, queued).await.unwrap().unwrap();
    }
    for one in waiting {
        timeout(LIMIT, one).await.unwrap().unwrap();
    }
    assert_eq!(setup.held(), 0);
}

#[test]
fn a_request_that_is_kept_in_part_is_in_doubt() {
    let (full, failed) = (Err(StoreError::Full), Err(StoreError::Failed("f".into())));
    let in_doubt = Err(StoreError::Unavailable("u".into()));
    let corrupt = Err(StoreError::Corrupt("c".into()));
    assert!(combine(&[Ok(()), Ok(())]).is_ok());
    let all_failed = combine(&[full.clone(), failed.clone()]);
    assert!(matches!(all_failed, Err(StoreError::Failed(_))));
    for kept in [Ok(()), in_doubt, corrupt] {
        for other in [&full, &failed] {
            for results in [[kept.clone(), other.clone()], [other.clone(), kept.clone()]] {
                let result = combine(&results);
                assert!(
                    matches!(result, Err(StoreError::Unavailable(_))),
                    "{results:?}"
                );
            }
        }
    }
}
