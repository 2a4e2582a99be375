//! The ledger while a standby is lost, and other faults of a commit.

use std::pin::pin;

use test_services::{Postgres, require};
use tokio::time::timeout;

use super::{super::testing, *};
use crate::store::{
    backpressure::Backpressure,
    catalog::Catalog,
    conformance::interrupt,
    memory::{Image, MemoryLog},
    partition::{self, Owner},
    ports::{Checkpoint, Counts, EventLog, NewChunk, NewEntry, Position},
    sql::{self, RegistryOptions, SqlRegistry},
    work::WorkFeed,
};

/// Time within which something is expected on a machine that is shared.
const SOON: Duration = Duration::from_secs(30);

/// Server of its own, with an integration and three partitions of the ledger.
struct Setup {
    server: Postgres,
    name: String,
    ledger: PostgresLedger,
    integration_id: IntegrationId,
}

fn lease(partition: Partition) -> Lease {
    Lease {
        partition,
        epoch: 1,
    }
}

fn anchor(position: u64) -> Anchor {
    Anchor {
        position: Position(position),
        entry_id: [7; 16],
    }
}

async fn set_up() -> Option<Setup> {
    let server = require(Postgres::start().await)?;
    let url = testing::empty(&server).await;
    let name = url.rsplit('/').next().unwrap().to_owned();
    let (database, instance_id) = (testing::open(&url).await, InstanceId::random());
    let partitions = format!(
        "INSERT INTO partition (partition, epoch, owner) \
        SELECT generate_series(0, 2), 1, '{instance_id}'"
    );
    server.sql(&name, &partitions).await;
    let ledger = PostgresLedger::new(database, instance_id, Duration::ZERO);
    for partition in 0..3 {
        ledger.load(lease(partition)).await.unwrap();
    }
    Some(Setup {
        server,
        name,
        ledger,
        integration_id: IntegrationId(uuid::Uuid::now_v7()),
    })
}

impl Setup {
    /// Moves a chunk of ten events to the backlog, in partition 0 or another.
    fn move_in(
        &self,
        partition: Partition,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        let segment = bytes::Bytes::from(vec![7; 100]);
        let chunk = Chunk {
            first_sequence: 1,
            count: 10,
            accepted_at: Timestamp::UNIX_EPOCH,
            settled: Default::default(),
            gaps: Vec::new(),
            pending_bytes: segment.len() as u64,
            segment,
            traces: Vec::new(),
        };
        let update = LedgerUpdate {
            integration_id: self.integration_id,
            checkpoint: Checkpoint {
                next_sequence: 11,
                position: Position(3),
                counts: Counts {
                    accepted: 10,
                    pending_bytes: 100,
                    ..Counts::default()
                },
                ..Checkpoint::default()
            },
            backlog: vec![BacklogChange::Add(chunk)],
        };
        let ledger = self.ledger.clone();
        async move {
            let updates = vec![update];
            ledger
                .settle(lease(partition), updates, Some(anchor(3)))
                .await
        }
    }

    async fn settle(&self, partition: Partition, position: u64) -> Result<(), StoreError> {
        let anchor = Some(anchor(position));
        self.ledger
            .settle(lease(partition), Vec::new(), anchor)
            .await
    }

    async fn query(&self, sql: &str) -> String {
        self.server.sql(&self.name, sql).await
    }

    async fn until_in_doubt(&self) {
        let in_doubt = timeout(SOON, async {
            while self.ledger.shared.moves.repeated.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        });
        in_doubt.await.expect("no write is in doubt");
    }

    /// Registers the integration, as far as the ledger looks at it.
    async fn register(&self) {
        let columns = "SELECT string_agg(quote_ident(column_name), ', ') || '|' || \
            string_agg(CASE column_name WHEN 'integration_id' THEN quote_literal('ID') \
            WHEN 'partition' THEN '0' ELSE CASE data_type WHEN 'text' THEN quote_literal('x') \
            WHEN 'bytea' THEN quote_literal('') ELSE '0' END END, ', ') \
            FROM information_schema.columns \
            WHERE table_name = 'integration' AND is_nullable = 'NO'";
        let columns = self.query(columns).await;
        let (names, values) = columns.split_once('|').unwrap();
        let values = values.replace("ID", &self.integration_id.to_string());
        self.query(&format!(
            "INSERT INTO integration ({names}) VALUES ({values})"
        ))
        .await;
    }
}

const WAITS_FOR_STANDBY: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_standby_delays_moves_and_ends_nothing() {
    let Some(setup) = set_up().await else {
        return;
    };
    setup.register().await;
    let standby = setup.server.add_standby().await;
    standby.pause();
    let moving = tokio::spawn(setup.move_in(0));
    setup.server.until(WAITS_FOR_STANDBY).await;
    setup.settle(1, 1).await.unwrap();
    setup.until_in_doubt().await;
    // Others would only lock their partitions as well.
    let refused = setup.move_in(1).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    for position in 2..20 {
        setup.settle(1, position).await.unwrap();
        setup.settle(2, position).await.unwrap();
    }
    assert!(!moving.is_finished(), "the move was not replicated");
    standby.resume();
    let moved = timeout(SOON, moving).await.expect("the move does not end");
    moved.unwrap().unwrap();
    let kept = "SELECT COUNT(*), SUM(octet_length(payload) + 128) - \
        (SELECT SUM(backlog_bytes) FROM partition), \
        (SELECT anchor_position FROM partition WHERE partition = 0) FROM backlog";
    assert_eq!(setup.query(kept).await, "1|0|3");
    // A write that fails at once is not in doubt.
    timeout(SOON, async {
        while let Err(error) = setup.move_in(0).await {
            assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
        }
    })
    .await
    .expect("moves do not resume");
    assert_eq!(setup.query(kept).await, "1|0|3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_in_doubt_is_fenced() {
    let Some(setup) = set_up().await else {
        return;
    };
    setup.register().await;
    let standby = setup.server.add_standby().await;
    standby.pause();
    let moving = tokio::spawn(setup.move_in(0));
    setup.server.until(WAITS_FOR_STANDBY).await;
    // The end of the session puts it in doubt, and releases its lock. Repetitions wait likewise.
    let take_over = "SET synchronous_commit = local; \
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'; \
        UPDATE partition SET epoch = 2 WHERE partition = 0";
    setup.query(take_over).await;
    let fenced = timeout(SOON, moving).await.expect("the write does not end");
    let fenced = fenced.unwrap();
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    let ended = timeout(SOON, async {
        while setup.ledger.shared.moves.repeated.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    });
    ended.await.expect("the repetition does not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_waits_for_a_write_in_doubt() {
    let Some(setup) = set_up().await else {
        return;
    };
    setup.settle(0, 4).await.unwrap();
    let tx = setup.ledger.shared.database.begin().await.unwrap();
    let write = "UPDATE partition SET anchor_position = 5 WHERE partition = 0";
    tx.execute_unprepared(write).await.unwrap();
    let ledger = setup.ledger.clone();
    let loading = tokio::spawn(async move { ledger.load(lease(0)).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    setup.server.until(waits).await;
    tx.commit().await.unwrap();
    let loaded = loading.await.unwrap().unwrap();
    assert_eq!(loaded.anchor, Some(anchor(5)));

    let tx = setup.ledger.shared.database.begin().await.unwrap();
    tx.execute_unprepared(write).await.unwrap();
    let refused = setup.ledger.load(lease(0)).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    drop(tx);
    setup.query("UPDATE partition SET epoch = 2").await;
    let fenced = setup.ledger.load(lease(0)).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anchors_are_secured_by_the_standby_for_all_partitions_at_once() {
    let Some(mut setup) = set_up().await else {
        return;
    };
    let Shared { secure_pause, .. } = Arc::get_mut(&mut setup.ledger.shared).unwrap();
    *secure_pause = Duration::from_millis(100);
    let standby = setup.server.add_standby().await;
    let ledger = &setup.ledger;
    assert!(ledger.secure_anchor(lease(0), anchor(1)).await.unwrap());
    standby.pause();
    let mut first = pin!(ledger.secure_anchor(lease(0), anchor(2)));
    let mut second = pin!(ledger.secure_anchor(lease(1), anchor(2)));
    assert!(interrupt(1, &mut first).await.is_none());
    assert!(interrupt(1, &mut second).await.is_none());
    let waits = async {
        setup.server.until(WAITS_FOR_STANDBY).await;
        // It does not keep settlements waiting.
        for partition in 0..3 {
            setup.settle(partition, 2).await.unwrap();
        }
        assert_eq!(setup.query(WAITS_FOR_STANDBY).await, "1");
        standby.resume();
    };
    let (first, second, ()) = tokio::join!(first, second, waits);
    assert!(first.unwrap() && second.unwrap());

    standby.pause();
    let in_doubt = ledger.secure_anchor(lease(0), anchor(3)).await;
    assert!(in_doubt.is_err(), "{in_doubt:?}");
    standby.resume();
    timeout(SOON, async {
        while !matches!(ledger.secure_anchor(lease(0), anchor(3)).await, Ok(true)) {}
    })
    .await
    .expect("anchors are not secured any more");
    // One that was recorded on an earlier timeline may be lost.
    ledger.loaded().insert(0, (1, 7));
    assert!(!ledger.secure_anchor(lease(0), anchor(3)).await.unwrap());
}

/// Parts of an owner with a log in memory.
async fn parts(ledger: &PostgresLedger, log: Arc<MemoryLog>) -> partition::Shared {
    let options = RegistryOptions {
        partitions: 1,
        tombstones: 1,
        failing_after: SOON,
    };
    let database = sql::Database::Postgres(ledger.shared.database.clone());
    let registry = SqlRegistry::open(database, options).await.unwrap();
    let work = Arc::new(WorkFeed::default());
    let catalog = Catalog::load(Arc::new(registry), Arc::clone(&work), SOON).await;
    let tail_bytes = 1 << 20;
    partition::Shared {
        log,
        ledger: Arc::new(ledger.clone()),
        catalog: Arc::new(catalog.unwrap()),
        work,
        backpressure: Arc::new(Backpressure::new(tail_bytes)),
        tail_bytes,
        linger: Duration::ZERO,
        failures: tokio::sync::mpsc::unbounded_channel().0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_trimmed_once_its_anchor_is_replicated() {
    let Some(mut setup) = set_up().await else {
        return;
    };
    let Shared { secure_pause, .. } = Arc::get_mut(&mut setup.ledger.shared).unwrap();
    *secure_pause = Duration::ZERO;
    let log = Arc::new(MemoryLog::open(Image::new(1, 1)));
    // Of an integration that does not exist, so that an entry is done when it is read.
    let append = async || {
        let chunk = NewChunk {
            integration_id: setup.integration_id,
            count: 1,
            segment: bytes::Bytes::from_static(&[1, 0, 0, 0, 7]),
            traces: Vec::new(),
        };
        let entry = NewEntry {
            id: rand::random(),
            revision: 0,
            chunks: vec![chunk],
        };
        log.append(0, vec![entry]).await.unwrap();
        log.bounds(0).await.unwrap()
    };
    append().await;
    let parts = parts(&setup.ledger, Arc::clone(&log)).await;
    let standby = setup.server.add_standby().await;
    standby.pause();
    let begun_at = log.bounds(0).await.unwrap().start;
    let owner = Owner::start(parts, lease(0)).await.unwrap();
    owner.write().await.unwrap();
    setup.server.until(WAITS_FOR_STANDBY).await;
    // It writes on, and an anchor that follows is trimmed to as well.
    let end = append().await.end;
    let recorded = format!(
        "SELECT count(*) FROM partition WHERE partition = 0 AND anchor_position = {}",
        end.0 - 1
    );
    timeout(SOON, async {
        while setup.query(&recorded).await != "1" {
            owner.write().await.unwrap();
        }
    })
    .await
    .expect("the second anchor is not recorded");
    assert_eq!(log.bounds(0).await.unwrap().start, begun_at);
    standby.resume();
    timeout(SOON, async {
        while log.bounds(0).await.unwrap().start.next() < end {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the log is not trimmed");
    assert_eq!(log.bounds(0).await.unwrap().start.next(), end);
    owner.stop();
}

#[tokio::test]
async fn a_panic_of_a_lane_is_answered() {
    let lane = Arc::new(Lane::new(true, Duration::ZERO));
    let (reply, answer) = oneshot::channel();
    lane.waiting().is_running = true;
    lane.waiting().writes.push_back(Write {
        lease: lease(0),
        timeline: None,
        updates: Vec::new(),
        anchor: None,
        asked_at: Instant::now(),
        reply,
    });
    let panics = Arc::clone(&lane);
    let task = tokio::spawn(async move {
        let _running = Running(&panics);
        panic!("a lane");
    });
    assert!(task.await.is_err());
    let answer = answer.await.unwrap();
    assert!(matches!(answer, Err(StoreError::Failed(_))), "{answer:?}");
    assert!(!lane.waiting().is_running);
}
