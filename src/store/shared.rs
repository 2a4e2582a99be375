//! The store on storage that several instances share: the log on Kafka, everything else on
//! PostgreSQL.

use std::{sync::Arc, time::Duration};

use super::{
    AcceptedLoss, Engines, Store, StoreError, StoreOptions,
    accept_loss::{accept_loss, readable_from, with_lease},
    check_keys,
    ports::{EventLog, Ledger, Ownership, Partition},
    postgres::{
        self, InstanceId, OwnershipOptions, PostgresLedger, PostgresOptions, PostgresOwnership,
        SETTLE_PAUSE, move_in,
    },
    secret::{Keyring, Sealer},
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
    /// Stored external IDs were encrypted with keys that are not given, or are about to be.
    #[error(
        "external IDs in the database are encrypted with another key: this instance needs the external ID key with the id {}, as the others have it, beside the present ones", .0.join(" and that with the id ")
    )]
    MissingKeys(Vec<Box<str>>),
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
    let instance_id = InstanceId::random();
    let ownership = OwnershipOptions {
        partitions: log.partitions(),
        lease: shared.lease,
        clock: Arc::new(BootTime::now),
        keys: sealer.key_ids().map(str::to_owned).collect(),
    };
    let ownership = PostgresOwnership::open(database.clone(), instance_id, ownership).await?;
    let ledger = PostgresLedger::new(database.clone(), instance_id, settle_pause);
    let engines = Engines {
        log,
        registry: Arc::new(registry),
        ledger: Arc::new(ledger) as Arc<dyn Ledger>,
        ownership: Arc::new(ownership) as Arc<dyn Ownership>,
    };
    let missing = check_keys(&engines, sealer).await?;
    match missing.is_empty() {
        true => Ok((database, engines)),
        false => Err(SharedError::MissingKeys(missing)),
    }
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
        keyring: &Keyring,
        gate: Gate,
    ) -> Result<Self, SharedError> {
        let sealer = Sealer::new(keyring)?;
        let (database, engines) = engines(shared, options, &sealer).await?;
        // A move looks for instances and then sets its mark, and a rotation proposes a key and then
        // looks for instances that lack it. So both are looked for once more after this instance
        // can be found.
        engines.ownership.poll(0).await?;
        let is_incomplete = move_in::is_incomplete(&database).await?;
        let missing = check_keys(&engines, &sealer).await?;
        if is_incomplete || !missing.is_empty() {
            engines.ownership.leave().await?;
            return Err(match is_incomplete {
                true => SharedError::IncompleteMove,
                false => SharedError::MissingKeys(missing),
            });
        }
        let store = Self::start(engines, options, sealer, gate).await?;
        store.prune_audit(options.audit);
        Ok(store)
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
        keyring: &Keyring,
        partition: Partition,
        window: Option<u64>,
    ) -> Result<Option<AcceptedLoss>, SharedError> {
        let sealer = Sealer::new(keyring)?;
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
