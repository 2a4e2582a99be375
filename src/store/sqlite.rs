//! The SQLite engine: log, ledger and ownership of its only partition in one database file, which
//! one process uses at a time.

mod check;
mod connect;
mod database;
mod failure;
mod inspect;
mod ledger;
mod log;
mod migrate_packs;
mod permissions;
mod schema;
mod script;
mod slow;
mod space;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use sea_orm_migration::MigratorTrait;
use tokio::sync::watch;
use uuid::Uuid;

pub(super) use self::database::{Database, WriteTransaction};
pub use self::inspect::Inspection;
pub(super) use self::inspect::inspect;
use self::{
    connect::{MIGRATION, READS, WRITES, connect, page_bytes, write_back},
    log::{Log, watch_space},
    migrate_packs::migrate_packs,
    schema::Migrator,
    space::{Allotment, Space, disk_bytes},
};
use super::{
    error::StoreError,
    ports::{Availability, InstanceKeys, Lease, Membership, Ownership, Partition},
    sql::{load_meta, save_meta, statement},
};

const DATABASE_FILE: &str = "siem-relay.sqlite";
const LOCK_FILE: &str = "lock";
/// Row of `meta` with the id of the database to which everything was moved.
const MOVED_TO: &str = "moved_to";
/// Name in the table of migrations, by which versions that do not know [`MOVED_TO`] refuse the
/// database as well.
const MOVED: &str = "moved_to_shared_storage";
/// The only partition.
const PARTITION: Partition = 0;

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// Directory of the database, made if it is missing.
    pub data_dir: PathBuf,
    /// Bytes of the disk that events leave free; of a small disk an eighth.
    pub disk_reserve_bytes: u64,
    /// Time within which a settlement is durable. For half of it, it waits for an append to share
    /// the transaction.
    pub settle_linger: Duration,
}

/// Reason that the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error(
        "another siem-relay uses the data directory {0}: stop it, or choose another with --data-dir"
    )]
    InUse(PathBuf),
    /// The directory cannot be used.
    #[error("cannot use the data directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Stored external IDs were encrypted with keys that are not given.
    #[error(
        "external IDs in {path} were encrypted with another key: bring back the external ID key with the id {}, beside the present ones", .missing.join(" and that with the id ")
    )]
    MissingKeys {
        /// The directory.
        path: PathBuf,
        /// Ids of the keys.
        missing: Vec<Box<str>>,
    },
    /// The database contradicts itself, or is no database.
    #[error(
        "the database {path} is damaged ({what}): nothing in it was changed; docs/operations.md says how to restore or recover it, or to start anew"
    )]
    Damaged {
        /// File of the database.
        path: PathBuf,
        /// First damage that was found.
        what: String,
    },
    /// A newer version made it.
    #[error(
        "the database {path} was made by a newer version of siem-relay (it has {migration}): nothing in it was changed; start that version, or a newer one"
    )]
    Newer {
        /// File of the database.
        path: PathBuf,
        /// Migration that this version does not know.
        migration: String,
    },
    /// Its content was moved to shared storage.
    #[error(
        "everything in {data_dir} was moved to shared storage: start with --log-url and --database-url; docs/operations.md says when and how to go back"
    )]
    Moved {
        /// The directory.
        data_dir: PathBuf,
        /// Id of the database in it.
        from: String,
        /// Id of the database to which it was moved.
        to: String,
    },
    /// The disk has no space for the start.
    #[error("the disk of {0} is full: free space, and start again")]
    Full(PathBuf),
    /// The database failed.
    #[error("cannot open the database in {path}: {source}")]
    Database {
        /// File of the database.
        path: PathBuf,
        /// The error.
        source: StoreError,
    },
}

impl OpenError {
    fn of(path: &Path, error: &DbErr) -> Self {
        let path = path.to_owned();
        if failure::is_damage(error) {
            let what = error.to_string();
            return Self::Damaged { path, what };
        }
        if failure::is_full(error) {
            return Self::Full(path);
        }
        let source = failure::translate(error);
        Self::Database { path, source }
    }
}

/// The engine. Cheap to clone: clones are the same engine.
#[derive(Clone)]
pub(super) struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    log: Log,
    /// Keeps other processes away from the directory, until it is closed.
    lock: Mutex<Option<File>>,
}

/// Whether a directory has a database.
pub(super) fn exists(data_dir: &Path) -> bool {
    data_dir.join(DATABASE_FILE).is_file()
}

/// Opens the database in a directory and migrates it.
///
/// Must be called within a runtime, in which a task watches the free space of the disk.
pub(super) async fn open(options: &SqliteOptions) -> Result<Engine, OpenError> {
    let data_dir = &options.data_dir;
    let lock = lock(data_dir)?;
    let path = data_dir.join(DATABASE_FILE);
    permissions::tighten(data_dir, &path, &data_dir.join(LOCK_FILE));
    let failed = |error: DbErr| OpenError::of(&path, &error);
    let disk = disk_bytes(data_dir).map_err(|source| OpenError::Directory {
        path: data_dir.clone(),
        source,
    })?;
    let allotment = || Allotment::of(disk, options.disk_reserve_bytes, page_bytes(&path));
    let db = connect(&path, MIGRATION, &allotment()).await;
    prepare(&db.map_err(failed)?, &path).await?;
    // Before, a journal may have had to be rolled back.
    let allotment = allotment();
    let writes = connect(&path, WRITES, &allotment).await.map_err(failed)?;
    let reads = connect(&path, READS, &allotment).await.map_err(failed)?;
    let database_id = database_id(&writes).await.map_err(failed)?;
    let batch_bytes = allotment.batch_bytes();
    let availability = watch::Sender::new(Availability::Open);
    let space = Space::new(&path, allotment, availability.clone());
    let database = Database::new(writes, reads, database_id);
    let log = Log::open(
        &database,
        Some(space),
        availability,
        options.settle_linger,
        batch_bytes,
    );
    let log = log.await.map_err(|source| OpenError::Database {
        path: path.clone(),
        source,
    })?;
    let engine = Engine::of(database, log, Some(lock));
    tokio::spawn(watch_space(Arc::downgrade(&engine.shared)));
    Ok(engine)
}

/// Opens an empty database in memory.
#[cfg(test)]
pub(super) async fn open_in_memory(settle_linger: Duration) -> Result<Engine, StoreError> {
    let failed = |error: DbErr| failure::translate(&error);
    let db = connect::connect_to_memory().await.map_err(failed)?;
    Migrator::up(&db, None).await.map_err(failed)?;
    migrate_packs(&db).await.map_err(failed)?;
    let database_id = database_id(&db).await.map_err(failed)?;
    let database = Database::in_memory(db, database_id);
    let availability = watch::Sender::new(Availability::Open);
    let batch_bytes = Allotment::of(u64::MAX, 0, 1).batch_bytes();
    let log = Log::open(&database, None, availability, settle_linger, batch_bytes).await?;
    Ok(Engine::of(database, log, None))
}

/// Takes the lock, which is released with the file, and with the process however it ends.
fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Directory {
        path: data_dir.to_owned(),
        source,
    };
    fs::create_dir_all(data_dir).map_err(failed)?;
    let file = File::create(data_dir.join(LOCK_FILE)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Makes the database, or checks it and migrates it to the newest schema.
async fn prepare(db: &DatabaseConnection, path: &Path) -> Result<(), OpenError> {
    let failed = |error: DbErr| OpenError::of(path, &error);
    let damaged = |what| OpenError::Damaged {
        path: path.to_owned(),
        what,
    };
    if let Some(what) = check::damage(db, path).await.map_err(failed)? {
        return Err(damaged(what));
    }
    if let Some(to) = moved_to(db).await.map_err(failed)? {
        let data_dir = path.parent().unwrap_or(path).to_owned();
        let from = database_id(db).await.map_err(failed)?;
        return Err(OpenError::Moved { data_dir, from, to });
    }
    if let Some(migration) = newer_migration(db).await.map_err(failed)? {
        let path = path.to_owned();
        return Err(OpenError::Newer { path, migration });
    }
    write_back(db).await;
    Migrator::up(db, None).await.map_err(failed)?;
    if let Some(what) = migrate_packs(db).await.map_err(failed)? {
        return Err(damaged(what));
    }
    db.close_by_ref().await.map_err(failed)
}

/// Migration of a newer version that the database has.
async fn newer_migration(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let known = Migrator::migrations();
    let applied = Migrator::get_migration_models(db).await?;
    let mut versions = applied.into_iter().map(|applied| applied.version);
    Ok(versions.find(|version| known.iter().all(|known| known.name() != version)))
}

/// Id of the database to which everything was moved.
async fn moved_to(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let applied = Migrator::get_migration_models(db).await?;
    match applied.iter().any(|applied| applied.version == MOVED) {
        true => load_meta(db, MOVED_TO).await,
        false => Ok(None),
    }
}

async fn database_id(db: &DatabaseConnection) -> Result<String, DbErr> {
    if let Some(id) = load_meta(db, "database_id").await? {
        return Ok(id);
    }
    let id = Uuid::new_v4().simple().to_string();
    save_meta(db, "database_id", &id).await?;
    Ok(id)
}

impl Engine {
    fn of(database: Database, log: Log, lock: Option<File>) -> Self {
        let shared = Shared {
            database,
            log,
            lock: Mutex::new(lock),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Notes that everything was moved to another database: this one is not opened again.
    pub(super) async fn set_moved(&self, to: &str) -> Result<(), StoreError> {
        let database = self.database();
        let tx = database.begin().await?;
        let moved = async {
            save_meta(&*tx, MOVED_TO, to).await?;
            let sql = "INSERT INTO seaql_migrations (version, applied_at) VALUES ($1, $2)";
            let values = [MOVED.into(), Timestamp::now().as_second().into()];
            tx.execute_raw(statement(&*tx, sql, values)).await
        };
        moved.await.map_err(|error| database.map(error))?;
        tx.commit().await
    }

    /// The database, which the registry shares.
    pub(super) fn database(&self) -> &Database {
        &self.shared.database
    }
}

fn check_partition(partition: Partition) -> Result<(), StoreError> {
    match partition {
        PARTITION => Ok(()),
        other => Err(StoreError::Failed(format!("there is no partition {other}"))),
    }
}

impl Engine {
    /// Takes the partition over under a new epoch.
    pub(super) async fn acquire(&self) -> Result<Lease, StoreError> {
        let Shared { database, log, .. } = &*self.shared;
        let tx = database.begin().await?;
        let sql = "INSERT INTO partition (partition, epoch) VALUES ($1, 1) \
            ON CONFLICT (partition) DO UPDATE SET epoch = epoch + 1 RETURNING epoch";
        let values = [(PARTITION as i32).into()];
        let row = tx.query_one_raw(statement(&*tx, sql, values)).await;
        let row = row.map_err(|error| database.map(error))?;
        let row = row.ok_or_else(|| StoreError::Corrupt("a partition has no epoch".to_owned()))?;
        let epoch = row.try_get::<i64>("", "epoch");
        let epoch = epoch.map_err(|error| database.map(error))? as u64;
        tx.commit().await?;
        log.set_epoch(epoch);
        let partition = PARTITION;
        Ok(Lease { partition, epoch })
    }
}

/// One process uses the database at a time, so the lease never ends.
#[async_trait]
impl Ownership for Engine {
    async fn poll(&self, confirmed: u64) -> Result<Membership, StoreError> {
        let lease = match self.shared.log.epoch() {
            0 => self.acquire().await?,
            epoch => Lease {
                partition: PARTITION,
                epoch,
            },
        };
        Ok(Membership {
            leases: vec![lease],
            to_release: Vec::new(),
            until: None,
            revision: confirmed,
            confirmed,
            instances: 1,
            timeline: 0,
        })
    }

    async fn seize(&self, partition: Partition) -> Result<Lease, StoreError> {
        check_partition(partition)?;
        self.acquire().await
    }

    async fn release(&self, _leases: &[Lease]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn leave(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// No other process can have the database.
    async fn instances(&self) -> Result<Vec<InstanceKeys>, StoreError> {
        Ok(Vec::new())
    }
}
