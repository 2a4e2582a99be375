//! The store on storage that several instances share: the log on Kafka, everything else on
//! PostgreSQL.

use std::{sync::Arc, time::Duration};

use super::{
    AcceptedLoss, Engines, Store, StoreError, StoreOptions,
    accept_loss::{accept_loss, readable_from, with_lease},
    ports::{EventLog, Ledger, Ownership, Partition},
    postgres::{
        self, InstanceId, OwnershipOptions, PostgresLedger, PostgresOptions, PostgresOwnership,
        SETTLE_PAUSE, move_in,
    },
    secret::{MasterKey, Sealer},
    sql::{self, RegistryOptions, SqlRegistry},
};
use crate::{boot_time::BootTime, gate::Gate};

/// Location and settings of shared storage.
#[derive(Clone, Debug)]
pub struct SharedOptions {
    /// The log.
    pub log: LogOptions,
    /// The database.
    pub database: PostgresOptions,
    /// Time for which a lease holds; the same for all instances.
    pub lease: Duration,
}

/// Location of a shared log.
#[derive(Clone, Debug)]
pub enum LogOptions {
    /// A topic of Kafka.
    #[cfg(feature = "kafka")]
    Kafka(super::KafkaOptions),
}

/// Reason that shared storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The database.
    #[error(transparent)]
    Database(#[from] postgres::OpenError),
    /// The log on Kafka.
    #[cfg(feature = "kafka")]
    #[error(transparent)]
    Kafka(#[from] super::KafkaError),
    /// The stored external IDs were encrypted with another key.
    #[error(
        "the external IDs in the database were encrypted with another key: every instance needs the external ID key that the database was first used with"
    )]
    WrongKey,
    /// A move into the database is not complete.
    #[error(
        "the move of an embedded service into the database is not complete: run `siem-relay move` again"
    )]
    IncompleteMove,
    /// A request to the storage failed.
    #[error("cannot use the shared storage: {0}")]
    Storage(#[from] StoreError),
}

async fn open_log(options: &LogOptions) -> Result<Arc<dyn EventLog>, SharedError> {
    match *options {
        #[cfg(feature = "kafka")]
        LogOptions::Kafka(ref options) => {
            Ok(Arc::new(super::kafka::KafkaLog::open(options).await?))
        }
    }
}

/// Connects to shared storage. `settle_pause` is that of [`PostgresLedger::new`].
pub(super) async fn connect(
    shared: &SharedOptions,
    options: &StoreOptions,
    sealer: &Sealer,
    settle_pause: Duration,
) -> Result<(postgres::Database, Engines), SharedError> {
    let database = postgres::open(shared.database.clone()).await?;
    let log = open_log(&shared.log).await?;
    let registry = RegistryOptions {
        partitions: log.partitions(),
        tombstones: options.tombstones,
        failing_after: options.failing_after,
    };
    let of_registry = sql::Database::Postgres(database.clone());
    let registry = SqlRegistry::open(of_registry, registry).await?;
    if !registry.check_key(sealer.key_id().as_bytes()).await? {
        return Err(SharedError::WrongKey);
    }
    let instance_id = InstanceId::random();
    let ownership = OwnershipOptions {
        partitions: log.partitions(),
        lease: shared.lease,
        clock: Arc::new(BootTime::now),
    };
    let ownership = PostgresOwnership::open(database.clone(), instance_id, ownership).await?;
    let ledger = PostgresLedger::new(database.clone(), instance_id, settle_pause);
    let engines = Engines {
        log,
        registry: Arc::new(registry),
        ledger: Arc::new(ledger) as Arc<dyn Ledger>,
        ownership: Arc::new(ownership) as Arc<dyn Ownership>,
    };
    Ok((database, engines))
}

/// Connects to shared storage into which nothing is being moved.
async fn engines(
    shared: &SharedOptions,
    options: &StoreOptions,
    sealer: &Sealer,
) -> Result<(postgres::Database, Engines), SharedError> {
    let (database, engines) = connect(shared, options, sealer, SETTLE_PAUSE).await?;
    match move_in::is_incomplete(&database).await? {
        false => Ok((database, engines)),
        true => Err(SharedError::IncompleteMove),
    }
}

impl Store {
    /// Opens the store on shared storage, as one of any number of instances, and starts its tasks
    /// on the current runtime. Of `options` it needs neither directory nor disk reserve.
    pub async fn open_shared(
        shared: &SharedOptions,
        options: &StoreOptions,
        key: &MasterKey,
        gate: Gate,
    ) -> Result<Self, SharedError> {
        let sealer = Sealer::new(key)?;
        let (database, engines) = engines(shared, options, &sealer).await?;
        // A move looks for instances and then sets its mark, so the mark is looked for once more
        // after this instance can be found.
        engines.ownership.poll(0).await?;
        if move_in::is_incomplete(&database).await? {
            engines.ownership.leave().await?;
            return Err(SharedError::IncompleteMove);
        }
        Ok(Self::start(engines, options, sealer, gate).await?)
    }

    /// Makes the topic of a shared log.
    #[cfg_attr(
        not(feature = "kafka"),
        expect(unused_variables, reason = "there is no kind of shared log")
    )]
    pub async fn create_topic(
        log: &LogOptions,
        partitions: u32,
        replication: u32,
    ) -> Result<(), SharedError> {
        match *log {
            #[cfg(feature = "kafka")]
            LogOptions::Kafka(ref options) => {
                Ok(super::kafka::create_topic(options, partitions, Some(replication)).await?)
            }
        }
    }

    /// Accepts that entries of a partition of the shared log are lost: see [`AcceptedLoss`]. None
    /// without a `window` if none are. Running instances continue with the partition afterwards.
    pub async fn accept_shared_loss(
        shared: &SharedOptions,
        options: &StoreOptions,
        key: &MasterKey,
        partition: Partition,
        window: Option<u64>,
    ) -> Result<Option<AcceptedLoss>, SharedError> {
        let sealer = Sealer::new(key)?;
        let (_, engines) = engines(shared, options, &sealer).await?;
        Ok(accept(engines, partition, window).await?)
    }
}

/// Takes a partition over, accepts its loss, and gives it back. None if nothing is lost.
pub(super) async fn accept(
    engines: Engines,
    partition: Partition,
    window: Option<u64>,
) -> Result<Option<AcceptedLoss>, StoreError> {
    let Engines {
        log,
        registry,
        ledger,
        ownership,
    } = engines;
    if partition >= log.partitions() {
        let last = log.partitions() - 1;
        return Err(StoreError::Failed(format!(
            "there is no partition {partition}; the last one is {last}"
        )));
    }
    let from = readable_from(&*log, partition).await?;
    let lease = ownership.seize(partition).await?;
    let accepting = accept_loss(&*log, &*registry, &*ledger, lease, from, window);
    let accepted = with_lease(&*ownership, accepting).await;
    let released = ownership.release(&[lease]).await;
    if let Err(error) = released.and(ownership.leave().await) {
        tracing::warn!(%error, "the partition is delivered only after the lease has lapsed");
    }
    log.close().await;
    accepted
}
