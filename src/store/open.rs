//! Opening the store: lock, key, database, migrations, and what was known before.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use sea_orm_migration::MigratorTrait;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    KeyError, MasterKey, Store, StoreError,
    catalog::{Catalog, CatalogDiff, Slot},
    check::damage,
    connect::{PREPARES, READS, WRITES, connect, page_bytes, write_back},
    express::Express,
    failure,
    packs::{self, Packs},
    precedence::Precedence,
    rows::{load_meta, load_slots, load_tombstones, save_meta, statement},
    schema::Migrator,
    secret::Sealer,
    settlements::Settlements,
    space::{Allotment, Space, disk_bytes},
    statements::TOMBSTONE_FLOOR,
    tail::Tail,
    work::WorkFeed,
    writer::Writer,
};
use crate::domain::integration::IntegrationKey;

const DATABASE_FILE: &str = "siem-relay.sqlite";
const LOCK_FILE: &str = "lock";
/// What packs may have held at the most, as they were appended, for each byte of the tail:
/// what few events are left of does not stay for long.
const MOST_PACKED: u64 = 4;
/// Commands that wait for the writer at the most.
const COMMANDS: usize = 1024;

/// How to open the store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Made where it is missing.
    pub data_dir: PathBuf,
    /// How much of the disk events leave free, in bytes; of a small disk an eighth.
    pub disk_reserve_bytes: u64,
    /// How much of the newest log stays in memory, in bytes; up to twice as much where many
    /// integrations have events in it.
    pub log_tail_bytes: usize,
    /// How long an append waits for others to share its sync.
    pub commit_linger: Duration,
    /// How long a settlement waits for others.
    pub settle_linger: Duration,
    /// How long nothing may get through before throttling or an outage is the status.
    pub failing_after: Duration,
    /// Deletions that are remembered for status streams that resume.
    pub tombstones: usize,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "another siem-relay uses the data directory {0}: stop it, or choose another with --data-dir"
    )]
    InUse(PathBuf),
    /// The directory cannot be used.
    #[error("cannot use the data directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The external ID key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What is stored was sealed with another key.
    #[error(
        "the external IDs in {0} were encrypted with another key: bring back the external ID key that belongs to this data directory"
    )]
    WrongKey(PathBuf),
    /// The database contradicts itself, or is none.
    #[error(
        "the database {path} is damaged ({what}): nothing in it was changed; docs/operations.md says how to restore or recover it, or to start anew"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What was found first.
        what: String,
    },
    /// A newer version made it.
    #[error(
        "the database {path} was made by a newer version of siem-relay (it has {migration}): nothing in it was changed; start that version, or a newer one"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// What this version does not know.
        migration: String,
    },
    /// Not even the start finds room on the disk.
    #[error("the disk of {0} is full: free space, and start again")]
    Full(PathBuf),
    /// The database.
    #[error("cannot open the database in {path}: {source}")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
}

impl Store {
    /// Opens the store in a directory, migrates it, and starts its writer on the
    /// current runtime. [`Store::close`] ends it.
    pub async fn open(options: StoreOptions, key: MasterKey) -> Result<Self, OpenError> {
        let lock = lock(&options.data_dir)?;
        let path = options.data_dir.join(DATABASE_FILE);
        let failed = |source: DbErr| OpenError::of(&path, source);
        let disk = disk_bytes(&options.data_dir).map_err(|source| OpenError::Directory {
            path: options.data_dir.clone(),
            source,
        })?;
        let allotment = || Allotment::of(disk, options.disk_reserve_bytes, page_bytes(&path));
        let sealer = Sealer::new(&key).map_err(|_| KeyError::Malformed)?;
        match prepare(&path, &allotment()).await.map_err(failed)? {
            Prepared::Ready => {}
            Prepared::Damaged(what) => return Err(OpenError::Damaged { path, what }),
            Prepared::Newer(migration) => return Err(OpenError::Newer { path, migration }),
        }
        // The first look may have been at what a journal was to undo.
        let allotment = allotment();
        let db = connect(&path, WRITES, &allotment).await.map_err(failed)?;
        let reader = connect(&path, READS, &allotment).await.map_err(failed)?;
        let known = Known::load(&db).await.map_err(failed)?;
        if known.sealed_with_another_key(&sealer) {
            return Err(OpenError::WrongKey(options.data_dir));
        }
        let space = Space::new(&path, allotment);
        Ok(known.start(&options, db, reader, Arc::new(sealer), lock, space))
    }
}

/// The lock goes with the file handle, and with the process however it ends.
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

impl OpenError {
    fn of(path: &Path, source: DbErr) -> Self {
        let path = path.to_owned();
        if failure::is_damage(&source) {
            let what = source.to_string();
            return Self::Damaged { path, what };
        }
        if failure::is_full(&source) {
            return Self::Full(path);
        }
        let source = source.into();
        Self::Database { path, source }
    }
}

/// What was found before the database is used.
enum Prepared {
    Ready,
    Damaged(String),
    /// A migration that this version does not know.
    Newer(String),
}

/// Makes the database, or checks it and brings it to the newest schema.
async fn prepare(path: &Path, allotment: &Allotment) -> Result<Prepared, DbErr> {
    let db = connect(path, PREPARES, allotment).await?;
    if let Some(what) = damage(&db, path).await? {
        return Ok(Prepared::Damaged(what));
    }
    if let Some(migration) = newer_migration(&db).await? {
        return Ok(Prepared::Newer(migration));
    }
    write_back(&db).await;
    Migrator::up(&db, None).await?;
    let damaged = packs::recover(&db).await?;
    db.close().await?;
    Ok(damaged.map_or(Prepared::Ready, Prepared::Damaged))
}

/// A migration that a newer version made, where there is one.
async fn newer_migration(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let known = Migrator::migrations();
    let made = Migrator::get_migration_models(db).await?;
    let mut versions = made.into_iter().map(|made| made.version);
    Ok(versions.find(|version| known.iter().all(|known| known.name() != version)))
}

/// What a database holds at start.
struct Known {
    slots: Vec<Slot>,
    backlog: Vec<(IntegrationKey, Timestamp)>,
    tombstones: Vec<super::Tombstone>,
    floor: u64,
    database_id: String,
    next_chunk_id: i64,
    garbage: Vec<IntegrationKey>,
}

impl Known {
    async fn load(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let floor = load_meta(db, TOMBSTONE_FLOOR).await?;
        let slots = load_slots(db).await?;
        let backlog = slots
            .iter()
            .filter_map(|(slot, since)| Some((slot.snapshot.integration.key, (*since)?)));
        Ok(Self {
            backlog: backlog.collect(),
            slots: slots.into_iter().map(|(slot, _)| slot).collect(),
            tombstones: load_tombstones(db).await?,
            floor: floor.and_then(|text| text.parse().ok()).unwrap_or(0),
            database_id: database_id(db).await?,
            next_chunk_id: next_chunk_id(db).await?,
            garbage: garbage(db).await?,
        })
    }

    fn sealed_with_another_key(&self, sealer: &Sealer) -> bool {
        let key_ids: HashSet<&str> = self
            .slots
            .iter()
            .map(|slot| &*slot.snapshot.integration.external_id.key_id)
            .collect();
        key_ids.iter().any(|id| *id != sealer.key_id())
    }

    fn start(
        self,
        options: &StoreOptions,
        db: DatabaseConnection,
        reader: DatabaseConnection,
        sealer: Arc<Sealer>,
        lock: File,
        space: Space,
    ) -> Store {
        let live = self.slots.iter().map(|slot| slot.snapshot.revision);
        let dead = self.tombstones.iter().map(|tombstone| tombstone.revision);
        let revision = live.chain(dead).max().unwrap_or(0).max(self.floor);
        let catalog = Arc::new(Catalog::new(options.tombstones));
        catalog.restore(self.floor);
        let slots = self.slots.into_iter();
        let diff = CatalogDiff {
            slots: slots
                .map(|slot| (slot.snapshot.integration.key, Some(slot)))
                .collect(),
            tombstones: self.tombstones,
        };
        catalog.apply(diff, revision);
        let (commands, received) = mpsc::channel(COMMANDS);
        let tail = Arc::new(Tail::new(options.log_tail_bytes));
        let work = Arc::new(WorkFeed::default());
        let has_room = space.subscribe();
        let precedence = Arc::<Precedence>::default();
        let (settlements, fetch) = Settlements::new(
            Arc::clone(&catalog),
            Arc::clone(&tail),
            Arc::clone(&precedence),
            options.failing_after,
        );
        let failure = Arc::new(OnceLock::new());
        let writer = Writer {
            db,
            express: Express::default(),
            commands: received,
            settlements: fetch,
            catalog: Arc::clone(&catalog),
            tail: Arc::clone(&tail),
            work: Arc::clone(&work),
            sealer: Arc::clone(&sealer),
            commit_linger: options.commit_linger,
            shared: 0,
            settle_linger: options.settle_linger,
            failing_after: options.failing_after,
            revision,
            next_chunk_id: self.next_chunk_id,
            packs: Packs::default(),
            most_packed: MOST_PACKED * options.log_tail_bytes as u64,
            garbage: self.garbage,
            space,
            failure: Arc::clone(&failure),
            lock,
        };
        tokio::spawn(writer.run());
        Store {
            commands,
            settlements,
            catalog,
            tail,
            work,
            precedence,
            sealer,
            backlog: self.backlog.into(),
            reader,
            database_id: self.database_id.into(),
            has_room,
            failure,
        }
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

async fn next_chunk_id(db: &DatabaseConnection) -> Result<i64, DbErr> {
    let sql = "SELECT COALESCE(MAX(last), 0) + 1 AS next FROM (\
        SELECT MAX(chunk_id) AS last FROM chunk UNION ALL \
        SELECT MAX(chunk_id) AS last FROM damaged_chunk UNION ALL \
        SELECT MAX(pack_id) AS last FROM damaged_pack) ids";
    let row = db.query_one_raw(statement(db, sql, [])).await?;
    row.map_or(Ok(1), |row| row.try_get("", "next"))
}

/// Deleted integrations whose chunks a stop left behind. It steps from integration to
/// integration, and not over all of their chunks.
async fn garbage(db: &DatabaseConnection) -> Result<Vec<IntegrationKey>, DbErr> {
    let sql = "WITH RECURSIVE logged (integration_key) AS ( \
        SELECT MIN(integration_key) FROM chunk UNION ALL \
        SELECT (SELECT MIN(c.integration_key) FROM chunk c \
            WHERE c.integration_key > l.integration_key) \
        FROM logged l WHERE l.integration_key IS NOT NULL) \
        SELECT integration_key FROM logged WHERE integration_key IS NOT NULL \
        AND integration_key NOT IN (SELECT integration_key FROM integration)";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    rows.iter()
        .map(|row| Ok(IntegrationKey(row.try_get("", "integration_key")?)))
        .collect()
}
