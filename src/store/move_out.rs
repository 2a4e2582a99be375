//! Moves everything out of the embedded store into shared storage: integrations, external IDs,
//! statuses, audit, counts and sequences, and every event that is pending.
//!
//! Pending events go to the backlogs of the database, with their sequences, gaps and settled
//! events. Before, the embedded log is replayed as at each start, and all of it moves to the
//! embedded backlogs: its events get the sequences there that they would have got anyway. So the
//! log of the shared storage begins empty, and every checkpoint lies before its first entry.
//!
//! # Interruptions
//!
//! Two marks decide which side may be used. A database with the mark of a move is refused by every
//! instance, and so is a directory that is marked as moved.
//!
//! | step | directory | database |
//! | --- | --- | --- |
//! | 1. [`move_in::begin`] | used | refused: `copying` |
//! | 2. everything is copied, read again and compared; [`move_in::set_copied`] | used | refused: `copied` |
//! | 3. [`sqlite::Engine::set_moved`] | refused | refused: `copied` |
//! | 4. [`move_in::finish`] | refused | used |
//!
//! Both are never used. The directory is not marked before the whole copy is committed, by the
//! synchronous standbys as well, so one of them always has everything: up to step 2 a repetition
//! starts over, because the directory may have been used again since; after step 3 it has nothing
//! to do but step 4. In the other order, a kill between steps 3 and 4 would leave two copies in
//! use, which send every pending event twice and new ones under the same sequences.
//!
//! Revisions go on above those of the source. Status streams do not resume: their tokens name the
//! database.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;

use super::{
    Engines, GiveUp, OpenError, SharedError, SharedOptions, Store, StoreError, StoreOptions, Which,
    check_keys,
    partition::Owner,
    ports::{
        BacklogChange, Checkpoint, Lease, Ledger, LedgerRow, LedgerUpdate, Partition, Position,
        Registry, RegistryChange,
    },
    postgres::{self, MoveInError, move_in},
    secret::{Keyring, Resealer, Sealer},
    sql::{
        self,
        copy::{copy_registry, partition_of, revisions, row_counts, unused_issued},
    },
    sqlite,
};
use crate::{
    domain::{chunk::Chunk, integration::IntegrationId},
    gate::Gate,
};

/// Integrations that are read at once.
const PAGE: usize = 500;
/// Bytes of segments that are in memory at once.
const BATCH_BYTES: usize = 8 << 20;
/// Chunks that are compared at once.
const COMPARED_CHUNKS: usize = 1000;

/// Content of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Integrations.
    pub integrations: u64,
    /// Events that are pending.
    pub pending: u64,
    /// Issued external IDs that no integration uses, which were left out.
    pub dropped: u64,
}

/// Reason that the move was not completed.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// There is nothing to move.
    #[error("there is no database in the data directory {0}: name that of the stopped service")]
    NoSource(PathBuf),
    /// The directory cannot be used.
    #[error(transparent)]
    Source(#[from] OpenError),
    /// Its external IDs were encrypted with another key than the given one.
    #[error(
        "the external IDs in {0} were encrypted with another key: give theirs with --from-external-id-key-file"
    )]
    SourceKey(PathBuf),
    /// The shared storage cannot be used.
    #[error(transparent)]
    Target(#[from] SharedError),
    /// Nothing can be moved into the database.
    #[error(transparent)]
    Refused(#[from] MoveInError),
    /// The log holds entries, or has an owner who read some.
    #[error(
        "partition {0} of the log is not empty: give a topic of its own to the database, made with `siem-relay log create-topic`"
    )]
    LogNotEmpty(Partition),
    /// Everything was moved to another database.
    #[error(
        "everything in the data directory was moved to another database, with the id {0}: give the URL of that one"
    )]
    MovedElsewhere(String),
    /// The mark of the database does not fit the directory's.
    #[error(
        "the database does not hold what was moved to it: docs/operations.md says how to go back to the data directory"
    )]
    Lost,
    /// Issued external IDs would be lost.
    #[error(
        "{0} external IDs were issued by an earlier version and are not used by an integration yet: only their hashes under the present key are known, so they can be moved only with the same key; with --drop-issued they are left out, and their organizations have to generate others"
    )]
    Issued(u64),
    /// The copy is not equal to the source.
    #[error("the copy is not complete ({0}): run the move again; the data directory is unchanged")]
    Differs(String),
    /// A request to the storage failed.
    #[error("the storage failed, and nothing is lost: run the move again ({0})")]
    Storage(#[from] StoreError),
}

/// The embedded store, of which all events are in the backlogs.
struct Source {
    engine: Arc<sqlite::Engine>,
    store: Store,
    database: sql::Database,
    owner: Arc<Owner>,
}

/// The shared storage.
struct Target {
    postgres: postgres::Database,
    database: sql::Database,
    engines: Engines,
}

impl Store {
    /// Moves everything out of the directory of `options`, which no other process may use, into
    /// empty shared storage; see the module. `from_keyring` has the keys of the directory,
    /// `keyring` those of the shared storage. `drop_issued` allows to leave out what [`MoveError::Issued`] counts.
    ///
    /// After an error or a kill it can be repeated. Returns None if everything was copied already.
    pub async fn move_out(
        options: &StoreOptions,
        from_keyring: &Keyring,
        shared: &SharedOptions,
        keyring: &Keyring,
        drop_issued: bool,
    ) -> Result<Option<Moved>, MoveError> {
        if !sqlite::exists(&options.data_dir) {
            return Err(MoveError::NoSource(options.data_dir.clone()));
        }
        let (from_sealer, sealer) = (Sealer::new(from_keyring)?, Sealer::new(keyring)?);
        let (engine, engines) = match Self::embedded(options).await {
            Err(OpenError::Moved { from, to, .. }) => {
                let target = Target::connect(shared, options, &sealer).await?;
                target.complete(&from, &to).await?;
                return Ok(None);
            }
            embedded => embedded?,
        };
        let database = sql::Database::Sqlite(engine.database().clone());
        if !check_keys(&engines, &from_sealer).await?.is_empty() {
            engines.log.close().await;
            return Err(MoveError::SourceKey(options.data_dir.clone()));
        }
        let from_keys = engines.registry.keys().await?;
        let store = Self::start(engines, options, from_sealer, Gate::default()).await?;
        let target = Target::connect(shared, options, &sealer).await?;
        let keys = target.engines.registry.keys().await?;
        // The first key of the keyring need not be the active one.
        let is_same_key = from_keys.stored().eq([&*keys.active]);
        let dropped = match is_same_key {
            true => 0,
            false => unused_issued(&database).await?,
        };
        if dropped > 0 && !drop_issued {
            return Err(MoveError::Issued(dropped));
        }
        target.check_log().await?;
        let [owner] = &store.shared.partitions.all()[..] else {
            return Err(StoreError::Corrupt("the log has no owner".to_owned()).into());
        };
        let owner = Arc::clone(owner);
        owner.move_all().await?;
        let source = Source {
            engine,
            store,
            database,
            owner,
        };
        let from = source.registry().database_id().to_owned();
        move_in::begin(&target.postgres, &from, shared.lease).await?;
        let moved = copy(&source, &target, &sealer, is_same_key, dropped).await?;
        let revisions = revisions(&source.database).await?;
        move_in::set_copied(&target.postgres, &from, revisions).await?;
        let to = target.engines.registry.database_id();
        source.engine.set_moved(to).await?;
        source.store.close().await;
        target.complete(&from, to).await?;
        Ok(Some(moved))
    }
}

impl Source {
    fn registry(&self) -> &dyn Registry {
        self.store.shared.catalog.registry()
    }

    fn ledger(&self) -> &dyn Ledger {
        &*self.store.shared.ledger
    }

    /// Calls `look` with the ledgers of all integrations, page by page, in the order of revisions.
    async fn pages(&self, mut after: u64) -> Result<Option<(Vec<LedgerRow>, u64)>, StoreError> {
        loop {
            let page = self.registry().changes_after(after, PAGE).await?;
            let ids = page.changes.iter().filter_map(|change| match change {
                RegistryChange::Current(current) => Some(current.integration.integration_id),
                RegistryChange::Deleted(_) => None,
            });
            let ids: Vec<IntegrationId> = ids.collect();
            after = page.up_to;
            if page.changes.is_empty() {
                return Ok(None);
            }
            if !ids.is_empty() {
                return Ok(Some((self.ledger().rows_of(&ids).await?, after)));
            }
        }
    }

    /// Reads chunks of a backlog. A damaged chunk becomes a gap first, as at its delivery, and its
    /// bytes are set aside in the directory.
    async fn read(
        &self,
        id: IntegrationId,
        from: u64,
        checkpoint: &mut Checkpoint,
    ) -> Result<Vec<Chunk>, StoreError> {
        loop {
            match self.ledger().read_backlog(id, from, BATCH_BYTES / 2).await {
                Err(StoreError::DamagedChunk { first_sequence }) => {
                    let given_up = self.owner.give_up(GiveUp {
                        integration_id: id,
                        which: Which::Damaged(first_sequence),
                        in_flight: BTreeMap::new(),
                    });
                    let events = given_up.await?.expired;
                    tracing::error!(
                        integration_id = %id,
                        first_sequence,
                        events,
                        "a chunk of the backlog is damaged: a gap event takes the place of its events"
                    );
                    let rows = self.ledger().rows_of(&[id]).await?;
                    if let Some(row) = rows.into_iter().next() {
                        *checkpoint = moved_checkpoint(row.checkpoint)?;
                    }
                }
                read => return read,
            }
        }
    }
}

impl Target {
    async fn connect(
        shared: &SharedOptions,
        options: &StoreOptions,
        sealer: &Sealer,
    ) -> Result<Self, SharedError> {
        let connected = super::shared::connect(shared, options, sealer, Duration::ZERO).await?;
        let (postgres, engines) = connected;
        Ok(Self {
            database: sql::Database::Postgres(postgres.clone()),
            postgres,
            engines,
        })
    }

    async fn check_log(&self) -> Result<(), MoveError> {
        let log = &self.engines.log;
        for partition in 0..log.partitions() {
            let bounds = log.bounds(partition).await?;
            if bounds.start != bounds.end {
                return Err(MoveError::LogNotEmpty(partition));
            }
        }
        Ok(())
    }

    /// Lets instances use the database, to which a directory was moved that is marked.
    async fn complete(&self, from: &str, to: &str) -> Result<(), MoveError> {
        if self.engines.registry.database_id() != to {
            return Err(MoveError::MovedElsewhere(to.to_owned()));
        }
        if !move_in::finish(&self.postgres, from).await? {
            return Err(MoveError::Lost);
        }
        self.engines.log.close().await;
        Ok(())
    }
}

/// Copies everything, and compares it with the source.
async fn copy(
    source: &Source,
    target: &Target,
    sealer: &Sealer,
    is_same_key: bool,
    dropped: u64,
) -> Result<Moved, MoveError> {
    let partitions = target.engines.log.partitions();
    let keys = target.engines.registry.keys().await?;
    let resealer = Resealer {
        from: &source.store.shared.sealer,
        to: sealer.under(&keys)?,
    };
    let copied = copy_registry(
        &source.database,
        &target.database,
        partitions,
        is_same_key,
        &resealer,
    );
    let copied = copied.await?;
    tracing::info!(integrations = copied.integrations, "the registry is copied");
    let mut leases = HashMap::new();
    for partition in 0..partitions {
        let lease = target.engines.ownership.seize(partition).await?;
        // Writes of a partition that was loaded are refused after a promotion, which may have
        // taken back what was written before.
        target.engines.ledger.load(lease).await?;
        leases.insert(partition, lease);
    }
    let mut writes = Writes {
        ledger: &*target.engines.ledger,
        leases,
        updates: BTreeMap::new(),
        bytes: 0,
    };
    let mut after = 0;
    while let Some((rows, read_to)) = source.pages(after).await? {
        after = read_to;
        for row in rows {
            copy_ledger(source, row, partitions, &mut writes).await?;
        }
        writes.flush().await?;
    }
    let counted = row_counts(&target.database).await?;
    let mut expected = row_counts(&source.database).await?;
    expected.issued -= dropped.min(expected.issued);
    if counted != expected || copied != expected {
        let text = format!("{counted:?} instead of {expected:?}");
        return Err(MoveError::Differs(text));
    }
    let pending = compare(source, target).await?;
    Ok(Moved {
        integrations: counted.integrations,
        pending,
        dropped,
    })
}

/// Updates of the ledger that are not written.
struct Writes<'a> {
    ledger: &'a dyn Ledger,
    leases: HashMap<Partition, Lease>,
    updates: BTreeMap<Partition, Vec<LedgerUpdate>>,
    bytes: usize,
}

impl Writes<'_> {
    /// Adds chunks to the last update, if that is of the same integration.
    fn add(
        &mut self,
        partition: Partition,
        integration_id: IntegrationId,
        checkpoint: &Checkpoint,
        chunks: Vec<Chunk>,
    ) {
        self.bytes += chunks
            .iter()
            .map(|chunk| chunk.segment.len())
            .sum::<usize>();
        let updates = self.updates.entry(partition).or_default();
        let chunks = chunks.into_iter().map(BacklogChange::Add);
        match updates.last_mut() {
            Some(last) if last.integration_id == integration_id => {
                last.checkpoint = checkpoint.clone();
                last.backlog.extend(chunks);
            }
            _ => updates.push(LedgerUpdate {
                integration_id,
                checkpoint: checkpoint.clone(),
                backlog: chunks.collect(),
            }),
        }
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        let updates = std::mem::take(&mut self.updates).into_iter();
        let settled = updates.filter_map(|(partition, updates)| {
            let lease = *self.leases.get(&partition)?;
            Some(self.ledger.settle(lease, updates, None))
        });
        join_all(settled).await.into_iter().collect()
    }
}

/// Copies checkpoint and backlog of an integration.
async fn copy_ledger(
    source: &Source,
    row: LedgerRow,
    partitions: u32,
    writes: &mut Writes<'_>,
) -> Result<(), StoreError> {
    let id = row.integration_id;
    let partition = partition_of(id, partitions);
    let mut checkpoint = moved_checkpoint(row.checkpoint)?;
    writes.add(partition, id, &checkpoint, Vec::new());
    if row.backlog_since.is_none() {
        return Ok(());
    }
    let mut from = 0;
    loop {
        let chunks = source.read(id, from, &mut checkpoint).await?;
        let Some(last) = chunks.last() else {
            return Ok(());
        };
        from = last.end_sequence();
        writes.add(partition, id, &checkpoint, chunks);
        if writes.bytes >= BATCH_BYTES {
            writes.flush().await?;
        }
    }
}

/// Checkpoint before the first entry of the other log.
fn moved_checkpoint(checkpoint: Checkpoint) -> Result<Checkpoint, StoreError> {
    match checkpoint.settled.is_empty() {
        true => Ok(Checkpoint {
            position: Position(0),
            ..checkpoint
        }),
        false => Err(StoreError::Corrupt(
            "events after a checkpoint are settled that did not move to the backlog".to_owned(),
        )),
    }
}

/// Compares the ledgers, without the events. Returns the number of pending events.
async fn compare(source: &Source, target: &Target) -> Result<u64, MoveError> {
    let ledger = &*target.engines.ledger;
    let (mut after, mut pending) = (0, 0);
    while let Some((rows, read_to)) = source.pages(after).await? {
        after = read_to;
        let ids: Vec<IntegrationId> = rows.iter().map(|row| row.integration_id).collect();
        let copied = ledger.rows_of(&ids).await?.into_iter();
        let mut copied: HashMap<_, _> = copied.map(|row| (row.integration_id, row)).collect();
        for row in rows {
            let id = row.integration_id;
            let counts = row.checkpoint.counts;
            let settled = counts.delivered + counts.expired;
            pending += counts.accepted.saturating_sub(settled);
            let since = row.backlog_since;
            let expected = (moved_checkpoint(row.checkpoint)?, since, row.backlog_bytes);
            let found = copied.remove(&id);
            let found = found.map(|row| (row.checkpoint, row.backlog_since, row.backlog_bytes));
            let is_equal = found.as_ref() == Some(&expected)
                && (since.is_none() || has_same_chunks(source.ledger(), ledger, id).await?);
            if !is_equal {
                return Err(MoveError::Differs(format!("the integration {id} differs")));
            }
        }
    }
    Ok(pending)
}

async fn has_same_chunks(
    source: &dyn Ledger,
    target: &dyn Ledger,
    id: IntegrationId,
) -> Result<bool, StoreError> {
    let mut from = 0;
    loop {
        let expected = source.backlog_states(id, from, COMPARED_CHUNKS).await?;
        if target.backlog_states(id, from, COMPARED_CHUNKS).await? != expected {
            return Ok(false);
        }
        match expected.last() {
            Some(last) => from = last.end_sequence(),
            None => return Ok(true),
        }
    }
}
