//! The ledger on PostgreSQL in the suites, beside the log in memory. A crash goes on with new
//! connections, as another instance.

use std::{pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, QueryResult, Value};

use super::{
    Acquire, Checked, Damage, Harness, Ports, call, ensure, interrupt, ledger, owner,
    sqlite::{add_integration, delete_integration},
};
use crate::{
    domain::integration::IntegrationId,
    store::{
        error::StoreError,
        memory::{Fault, Image, MemoryLog},
        ports::{Anchor, Lease, Ledger, Partition, Position},
        postgres::{Database, InstanceId, PostgresLedger, testing},
        sql::{self, statement},
    },
};

/// Makes engines with this number of partitions, each in a database of its own.
struct Postgres(Partition);

struct Engine {
    partitions: Partition,
    url: String,
    image: Image,
    log: Arc<MemoryLog>,
    instance: Instance,
}

#[derive(Clone)]
struct Instance {
    partitions: Partition,
    id: InstanceId,
    database: Database,
    ledger: PostgresLedger,
}

impl Instance {
    async fn open(url: &str, partitions: Partition) -> Self {
        Self::open_with(url, partitions, Duration::ZERO).await
    }

    async fn open_with(url: &str, partitions: Partition, settle_pause: Duration) -> Self {
        let (database, id) = (testing::open(url).await, InstanceId::random());
        Self {
            partitions,
            id,
            ledger: PostgresLedger::new(database.clone(), id, settle_pause),
            database,
        }
    }

    async fn execute(&self, sql: &str, values: Vec<Value>) -> Checked<Vec<QueryResult>> {
        let tx = call("begin", self.database.begin()).await?;
        let rows = call(sql, tx.query_all_raw(statement(&*tx, sql, values))).await?;
        call("commit", tx.commit()).await?;
        Ok(rows)
    }

    async fn take_all(&self) -> Checked<Vec<Lease>> {
        let sql = "INSERT INTO partition AS p (partition, epoch, owner) \
            SELECT generate_series(0, $1 - 1), 1, $2 \
            ON CONFLICT (partition) DO UPDATE SET epoch = p.epoch + 1, owner = excluded.owner \
            RETURNING partition, epoch";
        let values = vec![(self.partitions as i32).into(), self.id.to_string().into()];
        let rows = self.execute(sql, values).await?;
        let lease = |row: &QueryResult| {
            Ok(Lease {
                partition: row.try_get::<i32>("", "partition")? as Partition,
                epoch: row.try_get::<i64>("", "epoch")? as u64,
            })
        };
        let leases: Result<Vec<Lease>, sea_orm::DbErr> = rows.iter().map(lease).collect();
        leases.map_err(|error| error.to_string())
    }

    /// Writes the anchor of a partition.
    async fn settle(&self, lease: &Lease) -> Result<(), StoreError> {
        let anchor = Anchor {
            position: Position(7),
            entry_id: [7; 16],
        };
        self.ledger.settle(*lease, Vec::new(), Some(anchor)).await
    }

    /// Compares the sizes of the backlogs with what the database keeps of them.
    async fn check_backlog_bytes(&self) -> Checked {
        // One statement, as a write that was interrupted may go on.
        let sql = "SELECT ((SELECT COALESCE(SUM(octet_length(payload) + 128), 0) FROM backlog) - \
            (SELECT COALESCE(SUM(backlog_bytes), 0) FROM partition))::bigint AS more";
        let rows = self.execute(sql, Vec::new()).await?;
        let more = rows.first().map(|row| row.try_get::<i64>("", "more"));
        ensure!(
            matches!(more, Some(Ok(0))),
            "the backlogs take {more:?} bytes more than is kept of them"
        );
        call("backlog_bytes", self.ledger.backlog_bytes()).await?;
        Ok(())
    }
}

#[async_trait]
impl Acquire for Instance {
    async fn acquire(&self) -> Result<Vec<Lease>, StoreError> {
        self.take_all().await.map_err(StoreError::Failed)
    }
}

#[async_trait]
impl Harness for Postgres {
    async fn create(&self) -> Checked<Box<dyn super::Engine>> {
        let Self(partitions) = *self;
        let url = testing::migrated().await.ok_or("no PostgreSQL")?;
        let image = Image::new(partitions, 1);
        Ok(Box::new(Engine {
            partitions,
            log: Arc::new(MemoryLog::open(image.clone())),
            image,
            instance: Instance::open(&url, partitions).await,
            url,
        }))
    }
}

#[async_trait]
impl super::Engine for Engine {
    fn ports(&self) -> Ports {
        Ports {
            log: self.log.clone(),
            ledger: Arc::new(self.instance.ledger.clone()),
            acquire: Arc::new(self.instance.clone()),
        }
    }

    async fn crash(&mut self) -> Checked {
        self.instance.check_backlog_bytes().await?;
        self.log.kill();
        self.log = Arc::new(MemoryLog::open(self.image.clone()));
        self.instance = Instance::open(&self.url, self.partitions).await;
        Ok(())
    }

    async fn add_integration(&self, id: IntegrationId, partition: Partition) -> Checked {
        let Instance { database, .. } = &self.instance;
        add_integration(sql::Database::Postgres(database.clone()), id).await?;
        let sql = "UPDATE integration SET partition = $1 WHERE integration_id = $2";
        let values = vec![(partition as i32).into(), id.to_string().into()];
        self.instance.execute(sql, values).await.map(drop)
    }

    async fn delete_integration(&self, id: IntegrationId) -> Checked {
        let Instance { database, .. } = &self.instance;
        delete_integration(sql::Database::Postgres(database.clone()), id).await
    }

    async fn damage(&mut self, damage: Damage) -> Checked<bool> {
        match damage {
            Damage::Payload(partition, position) => self.image.damage_payload(partition, position),
            Damage::Header(partition, position) => self.image.damage_header(partition, position),
            Damage::Lost(partition, position) => self.image.lose(partition, position),
            Damage::Recreated(partition) => self.image.recreate(partition),
            Damage::Backlog(id, first_sequence) => {
                let sql = "UPDATE backlog SET payload = set_byte(payload, \
                    octet_length(payload) / 2, 255 - get_byte(payload, octet_length(payload) / 2)) \
                    WHERE integration_id = $1::uuid AND first_sequence = $2";
                let values = vec![id.to_string().into(), (first_sequence as i64).into()];
                self.instance.execute(sql, values).await?;
            }
            Damage::PositionsForgotten => self.image.forget_positions(),
        }
        Ok(true)
    }

    fn inject(&self, fault: Fault) -> bool {
        self.image.inject(fault);
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_conforms() {
    if testing::migrated().await.is_some() {
        assert_eq!(ledger::suite(&Postgres(1), 4).await, Ok(()));
        assert_eq!(ledger::suite(&Postgres(3), 2).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_loses_nothing() {
    if testing::migrated().await.is_some() {
        assert_eq!(owner::suite(&Postgres(1), 4).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_partitions_share_a_transaction() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let pause = Duration::from_secs(3600);
    let instance = Instance::open_with(&url, 20, pause).await;
    let leases = instance.take_all().await.unwrap();
    instance.settle(&leases[0]).await.unwrap();
    let others = futures_util::future::join_all(leases[1..].iter().map(|one| instance.settle(one)));
    let mut others = pin!(others);
    assert!(
        interrupt(20, &mut others).await.is_none(),
        "the pause is not kept"
    );
    instance.ledger.hurry();
    let answers = others.await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let sql = "SELECT COUNT(DISTINCT xmin::text) AS transactions FROM partition";
    let rows = instance.execute(sql, Vec::new()).await.unwrap();
    assert_eq!(rows[0].try_get::<i64>("", "transactions").unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_or_locked_partition_does_not_hold_up_others() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let instance = Instance::open(&url, 4).await;
    let leases = instance.take_all().await.unwrap();
    let lose = "UPDATE partition SET epoch = epoch + 1 WHERE partition = 1";
    instance.execute(lose, Vec::new()).await.unwrap();
    let tx = instance.database.begin().await.unwrap();
    let lock = "SELECT FROM partition WHERE partition = 2 FOR NO KEY UPDATE";
    tx.execute_unprepared(lock).await.unwrap();
    let mut locked = pin!(instance.settle(&leases[2]));
    assert!(interrupt(2, &mut locked).await.is_none());
    let (first, lost, last) = tokio::join!(
        instance.settle(&leases[0]),
        instance.settle(&leases[1]),
        instance.settle(&leases[3]),
    );
    assert!(first.is_ok() && last.is_ok(), "{first:?} {last:?}");
    assert!(matches!(lost, Err(StoreError::Fenced)), "{lost:?}");
    assert!(interrupt(2, &mut locked).await.is_none());
    drop(tx);
    locked.await.unwrap();
}
