//! Planted defects, each of which a suite must find.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::{sync::watch, task::yield_now};

use super::{Acquire, Checked, Damage, Engine, Harness, Ports, ledger, log, memory::DENSE, owner};
use crate::{
    domain::{chunk::Chunk, integration::IntegrationId},
    store::{
        error::{Failure, StoreError},
        memory::Fault,
        ports::{
            Anchor, Availability, BacklogChange, Bounds, Checkpoint, Entry, EntryChunk, EventLog,
            Lease, Ledger, LedgerRow, LedgerSnapshot, LedgerUpdate, LogReader, NewEntry, Partition,
            Position,
        },
    },
};

/// Defect of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// A reader returns entries out of order if several are there.
    OutOfOrder,
    /// A reader merges two entries if both are there.
    Merged,
    /// A reader passes over an entry now and then.
    Skipped,
    /// A reader that was cancelled loses the entry.
    LostByCancelling,
    /// A reader returns entries before their commit.
    Early,
    /// An append is answered before its commit.
    AckedEarly,
    /// An append of several entries keeps only the first.
    Torn,
    /// An append of several entries keeps them in the reverse order.
    Reversed,
    /// An append adds its entries twice.
    Doubled,
    /// A trim removes one position too much.
    TrimmedTooFar,
    /// A removal returns before anything is removed.
    RemovedLater,
    /// The known end is that before the last append.
    KnownEndLags,
    /// The position counter starts again if the log is empty.
    PositionReused,
    /// After a crash the log has other entries at the same positions.
    Recreated,
    /// Any lease may settle.
    Unfenced,
    /// The anchor is written without regard to the lease.
    UnfencedAnchor,
    /// The epoch does not rise after a crash.
    EpochReused,
    /// A settle is several transactions.
    NotAtomic,
    /// The checkpoint is durable before the changes of the backlog.
    CheckpointFirst,
    /// Gaps of the backlog are not stored.
    GapsLost,
    /// Only the first gap of a chunk is stored.
    SecondGapLost,
    /// A repeated settle counts again what was delivered.
    CountedTwice,
    /// Settled sequences above the checkpoint are not stored.
    SettledLost,
    /// A lower next sequence is stored.
    NotMonotone,
    /// A repetition is ignored, but for its changes of the backlog.
    RepetitionChangesBacklog,
    /// An update stores the segment that it is given.
    UpdateStoresSegment,
    /// An anchor is not stored.
    AnchorLost,
    /// A read of the backlog begins with the first chunk that begins at or after the sequence.
    ReadsFromNextChunk,
    /// Times lose their fractions of a second.
    TimesCut,
}

/// Defects that the suite of the log finds.
const OF_LOG: [Defect; 14] = [
    Defect::OutOfOrder,
    Defect::Merged,
    Defect::Skipped,
    Defect::LostByCancelling,
    Defect::Early,
    Defect::AckedEarly,
    Defect::Torn,
    Defect::Reversed,
    Defect::Doubled,
    Defect::TrimmedTooFar,
    Defect::RemovedLater,
    Defect::KnownEndLags,
    Defect::PositionReused,
    Defect::Recreated,
];

/// Defects that the suite of the ledger finds.
const OF_LEDGER: [Defect; 15] = [
    Defect::Unfenced,
    Defect::UnfencedAnchor,
    Defect::EpochReused,
    Defect::NotAtomic,
    Defect::CheckpointFirst,
    Defect::GapsLost,
    Defect::SecondGapLost,
    Defect::CountedTwice,
    Defect::SettledLost,
    Defect::NotMonotone,
    Defect::RepetitionChangesBacklog,
    Defect::UpdateStoresSegment,
    Defect::AnchorLost,
    Defect::ReadsFromNextChunk,
    Defect::TimesCut,
];

/// Defects that harm an owner, each of which its suite finds by itself.
const OF_OWNER: [Defect; 14] = [
    Defect::OutOfOrder,
    Defect::Merged,
    Defect::Skipped,
    Defect::LostByCancelling,
    Defect::Early,
    Defect::AckedEarly,
    Defect::Torn,
    Defect::TrimmedTooFar,
    Defect::Recreated,
    Defect::CheckpointFirst,
    Defect::GapsLost,
    Defect::CountedTwice,
    Defect::SettledLost,
    Defect::AnchorLost,
];

/// Makes engines with a defect out of others.
struct Planted<'a> {
    defect: Defect,
    inner: &'a dyn Harness,
}

struct PlantedEngine {
    inner: Box<dyn Engine>,
    shared: Arc<Shared>,
}

/// State of a defect.
struct Shared {
    defect: Defect,
    memory: Mutex<Memory>,
    /// Wakes readers of early entries.
    early: watch::Sender<()>,
}

#[derive(Default)]
struct Memory {
    epochs: BTreeMap<Partition, u64>,
    early: Vec<Arc<Entry>>,
    last: BTreeMap<IntegrationId, (u64, u64)>,
    checkpoints: BTreeMap<IntegrationId, Checkpoint>,
    end: Position,
    appends: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }
}

impl<'a> Planted<'a> {
    fn new(defect: Defect, inner: &'a dyn Harness) -> Self {
        Self { defect, inner }
    }
}

#[async_trait]
impl Harness for Planted<'_> {
    async fn create(&self) -> Checked<Box<dyn Engine>> {
        let shared = Shared {
            defect: self.defect,
            memory: Mutex::default(),
            early: watch::Sender::new(()),
        };
        Ok(Box::new(PlantedEngine {
            inner: self.inner.create().await?,
            shared: Arc::new(shared),
        }))
    }
}

#[async_trait]
impl Engine for PlantedEngine {
    fn ports(&self) -> Ports {
        let inner = self.inner.ports();
        let port = Arc::new(Port {
            inner,
            shared: self.shared.clone(),
        });
        Ports {
            log: port.clone(),
            ledger: port.clone(),
            acquire: port,
        }
    }

    async fn crash(&mut self) -> Checked {
        self.shared.lock().early.clear();
        let damage = match self.shared.defect {
            Defect::PositionReused => Some(Damage::PositionsForgotten),
            Defect::Recreated => Some(Damage::Recreated(0)),
            _ => None,
        };
        if let Some(damage) = damage {
            self.inner.damage(damage).await?;
        }
        self.inner.crash().await
    }

    async fn add_integration(&self, id: IntegrationId, partition: Partition) -> Checked {
        self.inner.add_integration(id, partition).await
    }

    async fn delete_integration(&self, id: IntegrationId) -> Checked {
        self.inner.delete_integration(id).await
    }

    async fn damage(&mut self, damage: Damage) -> Checked<bool> {
        self.inner.damage(damage).await
    }

    fn inject(&self, fault: Fault) -> bool {
        self.inner.inject(fault)
    }
}

/// Ports with a defect.
struct Port {
    inner: Ports,
    shared: Arc<Shared>,
}

#[async_trait]
impl EventLog for Port {
    fn partitions(&self) -> u32 {
        self.inner.log.partitions()
    }

    fn max_append_bytes(&self) -> usize {
        self.inner.log.max_append_bytes()
    }

    async fn append(&self, partition: Partition, entries: Vec<NewEntry>) -> Result<(), StoreError> {
        let log = &self.inner.log;
        let end = log.known_end(partition);
        self.shared.lock().end = end;
        match self.shared.defect {
            Defect::Early => {
                let early = (end.0..).zip(&entries);
                let early = early.map(|(position, new)| early_entry(position, new));
                self.shared.lock().early.extend(early);
                self.shared.early.send_replace(());
                for _ in 0..5 {
                    yield_now().await;
                }
                log.append(partition, entries).await
            }
            Defect::AckedEarly => {
                let log = log.clone();
                tokio::spawn(async move { log.append(partition, entries).await });
                Ok(())
            }
            Defect::Torn => {
                log.append(partition, entries.into_iter().take(1).collect())
                    .await
            }
            Defect::Reversed => {
                log.append(partition, entries.into_iter().rev().collect())
                    .await
            }
            Defect::Doubled => {
                self.shared.lock().appends += 1;
                if self.shared.lock().appends.is_multiple_of(5) {
                    log.append(partition, entries.clone()).await?;
                }
                log.append(partition, entries).await
            }
            _ => log.append(partition, entries).await,
        }
    }

    async fn reader(
        &self,
        partition: Partition,
        from: Position,
    ) -> Result<Box<dyn LogReader>, StoreError> {
        Ok(Box::new(Reader {
            inner: self.inner.log.reader(partition, from).await?,
            shared: self.shared.clone(),
            ready: VecDeque::new(),
            next: from,
        }))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.inner.log.bounds(partition).await
    }

    fn known_end(&self, partition: Partition) -> Position {
        match self.shared.is(Defect::KnownEndLags) {
            true => self.shared.lock().end,
            false => self.inner.log.known_end(partition),
        }
    }

    async fn trim(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        let below = match self.shared.is(Defect::TrimmedTooFar) {
            true => below.next(),
            false => below,
        };
        self.inner.log.trim(partition, below).await
    }

    async fn remove(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        match self.shared.is(Defect::RemovedLater) {
            true => Ok(()),
            false => self.inner.log.remove(partition, below).await,
        }
    }

    fn availability(&self) -> watch::Receiver<Availability> {
        self.inner.log.availability()
    }

    async fn ended(&self) -> Option<Failure> {
        self.inner.log.ended().await
    }

    async fn close(&self) {
        self.inner.log.close().await;
    }
}

fn early_entry(position: u64, new: &NewEntry) -> Arc<Entry> {
    let chunks = new.chunks.iter().map(|chunk| EntryChunk {
        integration_id: chunk.integration_id,
        count: chunk.count,
        segment: Ok(chunk.segment.clone()),
        traces: chunk.traces.clone(),
    });
    Arc::new(Entry {
        position: Position(position),
        id: new.id,
        // As the memory log assigns it, so that only durability differs.
        accepted_at: Timestamp::UNIX_EPOCH + Duration::from_secs(position),
        revision: new.revision,
        chunks: chunks.collect(),
    })
}

struct Reader {
    inner: Box<dyn LogReader>,
    shared: Arc<Shared>,
    ready: VecDeque<Arc<Entry>>,
    next: Position,
}

impl Reader {
    /// The entry after the one that was read, if it is there already.
    fn another(&mut self) -> Option<Arc<Entry>> {
        self.inner.next().now_or_never()?.ok()
    }

    fn early(&self) -> Option<Arc<Entry>> {
        let memory = self.shared.lock();
        let mut early = memory.early.iter();
        early.find(|entry| entry.position >= self.next).cloned()
    }
}

#[async_trait]
impl LogReader for Reader {
    async fn next(&mut self) -> Result<Arc<Entry>, StoreError> {
        if let Some(entry) = self.ready.pop_front() {
            return Ok(entry);
        }
        if self.shared.is(Defect::Early) {
            let mut changed = self.shared.early.subscribe();
            loop {
                if let Some(entry) = self.another()
                    && entry.position >= self.next
                {
                    self.next = entry.position.next();
                    return Ok(entry);
                }
                if let Some(entry) = self.early() {
                    self.next = entry.position.next();
                    return Ok(entry);
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    entry = self.inner.next() => {
                        let entry = entry?;
                        if entry.position >= self.next {
                            self.next = entry.position.next();
                            return Ok(entry);
                        }
                    }
                }
            }
        }
        let entry = self.inner.next().await?;
        match self.shared.defect {
            Defect::OutOfOrder => {
                if let Some(other) = self.another() {
                    self.ready.push_back(entry);
                    return Ok(other);
                }
            }
            Defect::Merged => {
                if let Some(other) = self.another() {
                    let mut merged = Entry::clone(&other);
                    merged.chunks.splice(0..0, entry.chunks.iter().cloned());
                    return Ok(Arc::new(merged));
                }
            }
            Defect::Skipped if entry.id[0] < 32 => return self.inner.next().await,
            Defect::LostByCancelling => yield_now().await,
            _ => {}
        }
        Ok(entry)
    }
}

#[async_trait]
impl Acquire for Port {
    async fn acquire(&self) -> Result<Vec<Lease>, StoreError> {
        let mut leases = self.inner.acquire.acquire().await?;
        let mut memory = self.shared.lock();
        for lease in &mut leases {
            memory.epochs.insert(lease.partition, lease.epoch);
            if self.shared.is(Defect::EpochReused) {
                lease.epoch = 1;
            }
        }
        Ok(leases)
    }
}

impl Port {
    fn current(&self, lease: Lease) -> Lease {
        let epochs = &self.shared.lock().epochs;
        Lease {
            epoch: epochs.get(&lease.partition).copied().unwrap_or(lease.epoch),
            ..lease
        }
    }

    fn alter(&self, update: &mut LedgerUpdate) {
        let mut memory = self.shared.lock();
        let id = update.integration_id;
        match self.shared.defect {
            Defect::CountedTwice => {
                let counts = &mut update.checkpoint.counts;
                let settled = (update.checkpoint.next_sequence, counts.delivered);
                if memory.last.insert(id, settled) == Some(settled) {
                    counts.delivered += 1;
                }
            }
            Defect::SettledLost => update.checkpoint.settled = Default::default(),
            Defect::TimesCut => {
                let cut = |at: Timestamp| Timestamp::from_second(at.as_second()).ok();
                update.checkpoint.last_delivery = update.checkpoint.last_delivery.and_then(cut);
            }
            Defect::RepetitionChangesBacklog => {
                let stored = memory.checkpoints.entry(id).or_default();
                match update.checkpoint.next_sequence < stored.next_sequence {
                    true => update.checkpoint = stored.clone(),
                    false => *stored = update.checkpoint.clone(),
                }
            }
            _ => {}
        }
        for change in &mut update.backlog {
            let (BacklogChange::Add(chunk)
            | BacklogChange::Update(chunk)
            | BacklogChange::SetAside(chunk)) = change;
            match self.shared.defect {
                Defect::GapsLost => chunk.gaps.clear(),
                Defect::SecondGapLost => chunk.gaps.truncate(1),
                Defect::UpdateStoresSegment if !chunk.segment.is_empty() => {
                    *change = BacklogChange::Add(chunk.clone());
                }
                _ => {}
            }
        }
    }
}

#[async_trait]
impl Ledger for Port {
    async fn load(&self, lease: Lease) -> Result<LedgerSnapshot, StoreError> {
        self.inner.ledger.load(lease).await
    }

    async fn settle(
        &self,
        lease: Lease,
        mut updates: Vec<LedgerUpdate>,
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError> {
        for update in &mut updates {
            self.alter(update);
        }
        let ledger = &self.inner.ledger;
        match self.shared.defect {
            Defect::Unfenced | Defect::EpochReused => {
                ledger.settle(self.current(lease), updates, anchor).await
            }
            Defect::UnfencedAnchor => {
                ledger
                    .settle(self.current(lease), Vec::new(), anchor)
                    .await?;
                ledger.settle(lease, updates, None).await
            }
            Defect::AnchorLost => ledger.settle(lease, updates, None).await,
            Defect::NotAtomic => {
                for update in updates {
                    ledger.settle(lease, vec![update], None).await?;
                }
                ledger.settle(lease, Vec::new(), anchor).await
            }
            Defect::CheckpointFirst => {
                let checkpoints = updates.iter().cloned().map(|update| LedgerUpdate {
                    backlog: Vec::new(),
                    ..update
                });
                ledger.settle(lease, checkpoints.collect(), anchor).await?;
                ledger.settle(lease, updates, anchor).await
            }
            Defect::NotMonotone => {
                for update in &mut updates {
                    let mut memory = self.shared.lock();
                    let last = memory.last.entry(update.integration_id).or_default();
                    let next = &mut update.checkpoint.next_sequence;
                    last.0 = last.0.max(*next);
                    *next = last.0;
                }
                ledger.settle(lease, updates, anchor).await
            }
            _ => ledger.settle(lease, updates, anchor).await,
        }
    }

    async fn read_backlog(
        &self,
        integration_id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        let read = self
            .inner
            .ledger
            .read_backlog(integration_id, from, max_bytes)
            .await?;
        let begins = |chunk: &Chunk| chunk.first_sequence >= from;
        Ok(match self.shared.is(Defect::ReadsFromNextChunk) {
            true => read.into_iter().filter(begins).collect(),
            false => read,
        })
    }

    async fn backlog_states(
        &self,
        integration_id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        self.inner
            .ledger
            .backlog_states(integration_id, from, limit)
            .await
    }

    async fn oldest_pending(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<std::collections::HashMap<IntegrationId, Timestamp>, StoreError> {
        self.inner.ledger.oldest_pending(integration_ids).await
    }

    async fn rows_of(&self, ids: &[IntegrationId]) -> Result<Vec<LedgerRow>, StoreError> {
        self.inner.ledger.rows_of(ids).await
    }

    async fn forget_anchor(&self, lease: Lease) -> Result<(), StoreError> {
        self.inner.ledger.forget_anchor(lease).await
    }

    async fn remove_deleted(&self) -> Result<bool, StoreError> {
        self.inner.ledger.remove_deleted().await
    }
}

/// Checks that a suite has found a defect, by its effect and not by its own time limit.
fn check_found(defect: Defect, found: Checked) {
    let violation = found.expect_err(&format!("{defect:?} is not found"));
    assert!(!violation.ends_with(": hangs"), "{defect:?}: {violation}");
}

#[tokio::test(start_paused = true)]
async fn the_suite_of_the_log_finds_planted_defects() {
    for defect in OF_LOG {
        let planted = Planted::new(defect, &DENSE);
        check_found(defect, log::suite(&planted, 5).await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_of_the_ledger_finds_planted_defects() {
    for defect in OF_LEDGER {
        let planted = Planted::new(defect, &DENSE);
        check_found(defect, ledger::suite(&planted, 5).await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_of_an_owner_finds_planted_defects() {
    for defect in OF_OWNER {
        let planted = Planted::new(defect, &DENSE);
        check_found(defect, owner::suite(&planted, 10).await);
    }
}
