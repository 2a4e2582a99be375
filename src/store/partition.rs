//! Owner of a partition: reads the log, numbers the events, keeps what is not delivered in
//! memory, and records in the ledger what became of it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    StoreError,
    accept_loss::WINDOW,
    backpressure::Backpressure,
    catalog::Catalog,
    ports::{
        Anchor, BacklogChange, Bounds, Entry, EntryId, EventLog, Lease, Ledger, LedgerUpdate,
        LogReader, Observed, Partition, Position,
    },
    queue::{Delivered, Move, Queue, Read, Released, Times},
    work::WorkFeed,
};
use crate::{
    domain::{
        chunk::Chunk,
        delivery::Settlement,
        integration::{IntegrationId, Progress},
        map::{Map, Set},
        status::Observation,
    },
    metrics,
};

/// Time between attempts to write the ledger after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Time between attempts to secure an anchor; those of an engine that replicates take longer.
const TRIM_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of segments that one transaction moves to backlogs.
const MOVE_BYTES: usize = 16 << 20;
/// The log may hold this many times the budget of the tail before its oldest entries are
/// released by moving what is left of them.
const LOG_FACTOR: usize = 4;
/// Most ranges of settled sequences of one checkpoint. Beyond it the integration's events move.
const MAX_RANGES: usize = 1024;
/// Most observations of one integration between two writes.
const MAX_OBSERVED: usize = 8;

/// Parts and settings that owners share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) work: Arc<WorkFeed>,
    pub(super) backpressure: Arc<Backpressure>,
    /// Budget of the tail, in bytes.
    pub(super) tail_bytes: usize,
    /// Longest time from a settlement to the begin of its write.
    pub(super) linger: Duration,
    /// Owners that cannot continue, and the reason.
    pub(super) failures: mpsc::UnboundedSender<(Lease, StoreError)>,
}

/// Owner of one partition.
pub(super) struct Owner {
    pub(super) lease: Lease,
    pub(super) shared: Shared,
    state: Mutex<State>,
    /// Position after the last entry that was read.
    read_to: watch::Sender<Position>,
    /// Held while the ledger is written, so that writes of an integration keep their order.
    writing: tokio::sync::Mutex<()>,
    wake: Notify,
    moved: Notify,
    /// Whether calls may be made for the partition.
    delivers: AtomicBool,
    /// Ends the tasks.
    stopped: CancellationToken,
}

#[derive(Default)]
struct State {
    queues: Map<IntegrationId, Queue>,
    /// Entries of which chunks are left in memory, and all entries after the first of them.
    entries: VecDeque<OpenEntry>,
    /// Bytes of `entries`.
    entry_bytes: usize,
    anchor: Option<Anchor>,
    anchor_is_durable: bool,
    /// Integrations whose checkpoint is not durable.
    dirty: Set<IntegrationId>,
    /// Observations of statuses that are not recorded.
    observed: Map<IntegrationId, Vec<Observed>>,
    /// Integrations whose observations are being recorded.
    observing: Set<IntegrationId>,
    /// Time of the next write; None if there is nothing to write.
    due: Option<Instant>,
    /// Time of the oldest change since the begin of the last write.
    unwritten_since: Option<Instant>,
    /// Time of the oldest change that is being written.
    writing_since: Option<Instant>,
    closing: bool,
    trimming: Arc<Mutex<Trimming>>,
    /// Acceptance time of the oldest chunk of each backlog that there was at the start.
    backlog_since: Map<IntegrationId, Timestamp>,
}

/// Task that trims the log once an anchor is secured.
#[derive(Default)]
struct Trimming {
    is_running: bool,
    /// Later anchor that was recorded meanwhile.
    next: Option<Anchor>,
}

/// Entry of the log that is needed.
struct OpenEntry {
    position: Position,
    id: EntryId,
    bytes: usize,
    /// Integration of each chunk that was kept.
    members: Vec<IntegrationId>,
    /// Chunks that are neither settled nor moved.
    left: usize,
}

/// Chunks of one integration that a write moves from the log to the backlog, and changes of chunks
/// that are in the backlog.
struct PlannedMove {
    integration_id: IntegrationId,
    moved: Option<Move>,
    changes: Vec<BacklogChange>,
}

/// Levels of a partition at one moment.
pub(super) struct Levels {
    /// Bytes of the entries that are needed.
    pub(super) entry_bytes: usize,
    /// Position after the last entry that was read.
    pub(super) read_to: Position,
    /// Time since the oldest change that is not durable.
    pub(super) unwritten_for: Option<Duration>,
    /// Integrations with pending events.
    pub(super) pending: Vec<Pending>,
}

/// Pending events of an integration.
pub(super) struct Pending {
    pub(super) integration_id: IntegrationId,
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Those of them that are in the backlog.
    pub(super) backlog_events: u64,
    pub(super) backlog_bytes: u64,
    /// Acceptance time of the oldest one in memory.
    pub(super) oldest: Option<Timestamp>,
}

/// Content of one write of the ledger.
struct Batch {
    updates: Vec<LedgerUpdate>,
    written: Vec<Written>,
    anchor: Option<Anchor>,
    observed: Map<IntegrationId, Vec<Observed>>,
}

/// Part of a write that was not durable before.
struct Written {
    integration_id: IntegrationId,
    delivered: Delivered,
    /// Changed chunks of the backlog.
    backlog: Vec<Chunk>,
}

impl Batch {
    fn add(&mut self, id: IntegrationId, queue: &Queue, planned: Option<&PlannedMove>) {
        let changed: Vec<Chunk> = queue.backlog_changes().cloned().collect();
        let moved = planned.and_then(|planned| planned.moved.as_ref());
        let mut backlog = planned.map_or_else(Vec::new, |planned| planned.changes.clone());
        // A chunk is in an update once.
        let replaced: Set<u64> = backlog.iter().map(BacklogChange::first_sequence).collect();
        let others = changed
            .iter()
            .filter(|chunk| !replaced.contains(&chunk.first_sequence));
        backlog.extend(others.cloned().map(BacklogChange::Update));
        let chunks = moved.into_iter().flat_map(|moved| &moved.chunks);
        let chunks = chunks.cloned().map(|mut chunk| {
            queue.refresh(&mut chunk);
            chunk
        });
        let unfinished = chunks.filter(|chunk| !chunk.is_finished());
        backlog.extend(unfinished.map(BacklogChange::Add));
        self.updates.push(LedgerUpdate {
            integration_id: id,
            checkpoint: moved
                .map_or_else(|| queue.checkpoint(), |moved| queue.checkpoint_after(moved)),
            backlog,
        });
        self.written.push(Written {
            integration_id: id,
            delivered: queue.unwritten(),
            backlog: changed,
        });
    }
}

/// Chunks that give-up puts in the place of others, by first sequence.
#[derive(Default)]
pub(super) struct Replaced {
    pub(super) chunks: BTreeMap<u64, Chunk>,
    /// Position up to which the tail moves, if chunks of it are replaced.
    pub(super) move_to: Option<Position>,
    /// Chunk whose stored bytes are set aside.
    pub(super) set_aside: Option<u64>,
    pub(super) expired: u64,
    pub(super) freed_bytes: u64,
}

impl State {
    fn release(&mut self, released: &Released, shared: &Shared, left: usize) {
        if released.bytes > 0 {
            shared.backpressure.removed(released.bytes, left == 0);
        }
        for position in &released.positions {
            let at = self
                .entries
                .binary_search_by_key(position, |entry| entry.position);
            if let Ok(at) = at {
                self.entries[at].left -= 1;
            }
        }
        self.pop_finished();
    }

    fn pop_finished(&mut self) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.left == 0) {
            self.entry_bytes -= entry.bytes;
            self.anchor = Some(Anchor {
                position: entry.position,
                entry_id: entry.id,
            });
            self.anchor_is_durable = false;
        }
    }

    fn mark_dirty(&mut self, id: IntegrationId, linger: Duration) {
        self.dirty.insert(id);
        let now = Instant::now();
        self.unwritten_since.get_or_insert(now);
        self.write_by(now + linger);
    }

    fn write_by(&mut self, due: Instant) {
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }
}

impl Owner {
    /// Takes over a partition: loads its ledger, and reads the log up to its present end.
    pub(super) async fn start(shared: Shared, lease: Lease) -> Result<Arc<Self>, StoreError> {
        let snapshot = shared.ledger.load(lease).await?;
        // The ledger may have integrations that another instance has created since the last read.
        shared.catalog.refresh().await?;
        let mut state = State {
            anchor: snapshot.anchor,
            anchor_is_durable: true,
            ..State::default()
        };
        for row in snapshot.integrations {
            if shared.catalog.replica().contains(row.integration_id) {
                let id = row.integration_id;
                let since = row.backlog_since.map(|since| (id, since));
                state.backlog_since.extend(since);
                state.queues.insert(id, Queue::load(row));
            }
        }
        let owner = Arc::new(Self {
            lease,
            shared,
            state: Mutex::new(state),
            read_to: watch::Sender::new(Position(0)),
            writing: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            moved: Notify::new(),
            delivers: AtomicBool::new(false),
            stopped: CancellationToken::new(),
        });
        let reader = match owner.replay(snapshot.anchor).await {
            Ok(reader) => reader,
            Err(error) => {
                owner.stop();
                return Err(error);
            }
        };
        if owner.has_failed() {
            owner.stop();
            return Err(StoreError::Failed(
                "its ledger cannot be written".to_owned(),
            ));
        }
        let catalog = &owner.shared.catalog;
        catalog.spawn(Arc::clone(&owner).read_on(reader));
        catalog.spawn(Arc::clone(&owner).write_on());
        Ok(owner)
    }

    /// Reads the log from the anchor to its end.
    async fn replay(&self, anchor: Option<Anchor>) -> Result<Box<dyn LogReader>, StoreError> {
        let partition = self.lease.partition;
        let log = &self.shared.log;
        let Bounds { start, end } = log.bounds(partition).await?;
        let from = anchor.map_or(start, |anchor| anchor.position);
        self.read_to.send_replace(from);
        let mut reader = log.reader(partition, from).await?;
        if let Some(anchor) = anchor {
            if end <= anchor.position {
                return Err(corrupt(anchor, "it ends before that entry"));
            }
            let entry = reader.next().await?;
            if (entry.position, entry.id) != (anchor.position, anchor.entry_id) {
                return Err(corrupt(anchor, "another entry is there"));
            }
            self.read_to.send_replace(entry.position.next());
        }
        // Otherwise new entries would be taken for ones that are settled.
        let settled_to = self.lock().queues.values().map(Queue::position).max();
        if let Some(settled_to) = settled_to.filter(|settled_to| *settled_to >= end) {
            return Err(StoreError::Corrupt(format!(
                "the log ends before position {}, up to which events are settled",
                settled_to.0
            )));
        }
        while *self.read_to.borrow() < end {
            let entry = reader.next().await?;
            // A log that is larger than the budget of the tail must not fill the memory.
            if self.take_in(&entry).await {
                self.move_what_must().await;
            }
            if entry.position.next() >= end {
                break;
            }
        }
        let is_short = self
            .lock()
            .queues
            .values()
            .any(Queue::has_settled_beyond_end);
        match is_short {
            true => Err(StoreError::Corrupt(
                "the log ends before events that are settled".to_owned(),
            )),
            false => Ok(reader),
        }
    }

    async fn read_on(self: Arc<Self>, mut reader: Box<dyn LogReader>) {
        loop {
            let next = tokio::select! {
                next = reader.next() => next,
                () = self.stopped.cancelled() => return,
            };
            match next {
                Ok(entry) => {
                    let must_move = self.take_in(&entry).await;
                    if must_move && self.shared.backpressure.is_far_over() {
                        self.move_what_must().await;
                    } else if must_move {
                        self.wake.notify_one();
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Ends this owner after an error that it cannot continue from.
    fn fail(&self, error: StoreError) {
        // Nobody receives it while the store closes.
        self.set_delivers(false);
        self.stopped.cancel();
        let _closing = self.shared.failures.send((self.lease, error));
    }

    /// Whether it cannot continue, or was stopped.
    pub(super) fn has_failed(&self) -> bool {
        self.stopped.is_cancelled()
    }

    /// Discards integrations that were deleted while this owner started.
    pub(super) fn discard_deleted(&self) {
        let replica = self.shared.catalog.replica();
        let ids = self.ids().into_iter();
        for id in ids.filter(|id| !replica.contains(*id)) {
            self.discard(id);
        }
    }

    /// Allows or forbids calls for the partition. Calls in flight are the caller's to end.
    pub(super) fn set_delivers(&self, delivers: bool) {
        self.delivers.store(delivers, Ordering::Release);
    }

    /// Whether calls may be made for the partition.
    pub(super) fn delivers(&self) -> bool {
        self.delivers.load(Ordering::Acquire)
    }

    /// The partition.
    pub(super) fn partition(&self) -> Partition {
        self.lease.partition
    }

    /// Integrations that have a ledger or events in memory.
    pub(super) fn ids(&self) -> Vec<IntegrationId> {
        self.lock().queues.keys().copied().collect()
    }

    /// Announces all pending events to the worker.
    pub(super) fn announce(&self) {
        let state = self.lock();
        let queues = state.queues.iter();
        // A gap that was not sent yet counts as expired already.
        let has_work = |queue: &Queue| {
            let progress = queue.progress();
            progress.pending() > 0 || progress.expired > 0
        };
        let pending = queues.filter(|(_, queue)| has_work(queue));
        let pending = pending.map(|(id, queue)| {
            let since = state.backlog_since.get(id).copied();
            // Without it nothing is known of the age, and retention looks.
            let since = since.or_else(|| queue.oldest_pending());
            (*id, since.unwrap_or(Timestamp::UNIX_EPOCH))
        });
        self.shared.work.all_pending(pending);
    }

    /// Numbers the events of an entry. Returns whether the oldest events must move to the backlog.
    async fn take_in(&self, entry: &Entry) -> bool {
        self.shared.catalog.wait_for(entry.revision).await;
        let replica = self.shared.catalog.replica();
        let mut appended = Vec::with_capacity(entry.chunks.len());
        let mut open = OpenEntry {
            position: entry.position,
            id: entry.id,
            bytes: 0,
            members: Vec::with_capacity(entry.chunks.len()),
            left: 0,
        };
        let mut state = self.lock();
        if state.closing {
            return false;
        }
        for chunk in &entry.chunks {
            let id = chunk.integration_id;
            let queue = match state.queues.get_mut(&id) {
                Some(queue) => queue,
                // The replica has applied the publisher's revision: unknown means deleted.
                None if !replica.contains(id) => continue,
                None => state.queues.entry(id).or_insert_with(Queue::new),
            };
            let before = queue.bytes();
            let segment = chunk.segment.clone();
            let traces = chunk.traces.clone();
            let first = queue.push(
                entry.position,
                entry.accepted_at,
                chunk.count,
                segment,
                traces,
            );
            let Some(first_sequence) = first else {
                continue;
            };
            let added = queue.bytes() - before;
            self.shared
                .backpressure
                .added(added, before == 0 && added > 0);
            open.bytes += chunk.segment.as_ref().map_or(0, |segment| segment.len());
            open.members.push(id);
            appended.push((id, first_sequence, entry.accepted_at));
        }
        open.left = open.members.len();
        state.entry_bytes += open.bytes;
        let members = open.members.clone();
        state.entries.push_back(open);
        // During a replay, events may be settled already.
        for id in members {
            let mut released = Released::default();
            let Some(queue) = state.queues.get_mut(&id) else {
                continue;
            };
            if queue.settled_ranges() == 0 {
                continue;
            }
            queue.advance(&mut released);
            let left = queue.bytes();
            state.release(&released, &self.shared, left);
            if !released.positions.is_empty() {
                state.mark_dirty(id, self.shared.linger);
            }
        }
        state.pop_finished();
        let must_move = self.position_to_move(&state).is_some();
        drop(state);
        self.shared.work.appended(appended.into_iter());
        self.read_to.send_replace(entry.position.next());
        must_move
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the log is read up to a position.
    async fn wait_for(&self, end: Position) {
        // The sender is a field of this value.
        let mut read_to = self.read_to.subscribe();
        tokio::select! {
            _read = read_to.wait_for(|read| *read >= end) => {}
            // Nobody reads any more.
            () = self.stopped.cancelled() => {}
            _failure = self.shared.catalog.failed() => {}
        }
    }

    pub(super) fn progress(&self, id: IntegrationId) -> Option<Progress> {
        self.lock().queues.get(&id).map(Queue::progress)
    }

    /// Times and counts of an integration.
    pub(super) fn shown(&self, id: IntegrationId) -> Option<(Times, Progress)> {
        let state = self.lock();
        let queue = state.queues.get(&id)?;
        Some((queue.times, queue.shown()))
    }

    /// Bytes of an integration's events in memory.
    pub(super) fn bytes_of(&self, id: IntegrationId) -> usize {
        self.lock().queues.get(&id).map_or(0, Queue::bytes)
    }

    /// Starts the move of the oldest events, if it is due.
    pub(super) fn press(&self) {
        self.wake.notify_one();
    }

    /// Integrations with a delivery, and its time.
    pub(super) fn delivered(&self) -> Vec<(Timestamp, IntegrationId)> {
        let state = self.lock();
        let queues = state.queues.iter();
        queues
            .filter_map(|(id, queue)| Some((queue.times.last_delivery?, *id)))
            .collect()
    }

    /// Discards an integration that was deleted. Returns its final counts.
    pub(super) fn discard(&self, id: IntegrationId) -> Option<Progress> {
        let mut state = self.lock();
        state.dirty.remove(&id);
        state.observed.remove(&id);
        let queue = state.queues.remove(&id)?;
        let mut released = Released::default();
        let progress = queue.discard(&mut released);
        metrics::EVENTS_DISCARDED.add(progress.discarded);
        state.release(&released, &self.shared, 0);
        state.write_by(Instant::now() + self.shared.linger);
        drop(state);
        self.wake.notify_one();
        Some(progress)
    }

    /// Records in memory what an attempt achieved, to be written soon.
    pub(super) fn settle(
        &self,
        id: IntegrationId,
        settlement: Option<&Settlement>,
        observed: Option<Observed>,
    ) {
        let catalog = &self.shared.catalog;
        let changes_status = observed
            .as_ref()
            .is_some_and(|observed| catalog.would_change_status(observed));
        let mut state = self.lock();
        let queue = match state.queues.entry(id) {
            hash_map::Entry::Occupied(queue) => queue.into_mut(),
            hash_map::Entry::Vacant(_) if !catalog.replica().contains(id) => return,
            hash_map::Entry::Vacant(none) => none.insert(Queue::new()),
        };
        let mut released = Released::default();
        if let Some(settlement) = settlement {
            queue.settle(settlement, &mut released);
            metrics::EVENTS_DELIVERED.add(settlement.accepted);
        }
        let mut records = false;
        let observed = observed.filter(|observed| !observed.is_outdated(&queue.times));
        if let Some(observed) = &observed {
            observed.note_times(&mut queue.times);
        }
        let left = queue.bytes();
        state.release(&released, &self.shared, left);
        if let Some(observed) = observed {
            // An observation that is not recorded yet may be what this one changes.
            let is_pending = state.observing.contains(&id) || state.observed.contains_key(&id);
            records = is_pending || catalog.would_record(&observed);
            if records {
                add_observed(state.observed.entry(id).or_default(), observed);
            }
        }
        let was_due = state.due;
        state.mark_dirty(id, self.shared.linger);
        if changes_status && records {
            state.write_by(Instant::now());
        }
        let sooner = state.due != was_due;
        drop(state);
        if sooner {
            self.wake.notify_one();
        }
    }

    /// Writes when something is due, until the store closes.
    async fn write_on(self: Arc<Self>) {
        loop {
            let (due, closing) = {
                let state = self.lock();
                (state.due, state.closing)
            };
            if closing {
                return;
            }
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep_until(due.unwrap_or(far)) => {
                    let _retried = self.write().await;
                }
            }
            self.move_what_must().await;
        }
    }

    /// Writes everything that is not durable. On an error it is due again soon.
    pub(super) async fn write(&self) -> Result<(), StoreError> {
        let written = {
            let _writes = self.lock_writes().await;
            self.write_ledger(Vec::new()).await
        };
        if let Err(error) = &written {
            tracing::error!(%error, "cannot write to the log");
            self.lock().write_by(Instant::now() + RETRY);
        }
        written
    }

    /// Records observations in the registry, then writes the checkpoints that are not durable,
    /// together with moves. This is the only place that writes the ledger. The caller holds
    /// [`Owner::lock_writes`].
    ///
    /// The status comes first: after a kill between the two, events are sent again and observed
    /// again. The other way round, nothing would correct the status.
    async fn write_ledger(&self, moves: Vec<PlannedMove>) -> Result<(), StoreError> {
        let Batch {
            mut updates,
            mut written,
            mut anchor,
            observed,
        } = self.collect(&moves);
        if updates.is_empty() && anchor.is_none() && observed.is_empty() {
            self.lock().writing_since = None;
            return Ok(());
        }
        let all: Vec<Observed> = observed.values().flatten().cloned().collect();
        let recorded = match all.is_empty() {
            true => Ok(()),
            false => self.shared.catalog.observe(&all).await,
        };
        let unrecorded: Set<IntegrationId> = match recorded.is_err() {
            true => observed.keys().copied().collect(),
            false => Set::default(),
        };
        self.end_recording(recorded.is_err().then_some(observed));
        if recorded.is_err() {
            // The others do not wait: a registry that commits nothing for a time must not keep
            // deliveries from being recorded.
            let waits = |planned: &PlannedMove| unrecorded.contains(&planned.integration_id);
            if matches!(recorded, Err(StoreError::Closed)) || moves.iter().any(waits) {
                self.cancel(&moves, &written);
                return recorded;
            }
            let (kept, later): (Vec<Written>, Vec<Written>) = written
                .into_iter()
                .partition(|one| !unrecorded.contains(&one.integration_id));
            self.cancel(&[], &later);
            written = kept;
            updates.retain(|update| !unrecorded.contains(&update.integration_id));
            // It must not pass a checkpoint that is not durable.
            anchor = None;
        }
        let settled = match updates.is_empty() && anchor.is_none() {
            true => Ok(()),
            false => self.shared.ledger.settle(self.lease, updates, anchor).await,
        };
        if let Err(error) = settled {
            self.cancel(&moves, &written);
            // After these errors memory may differ from the ledger; only a new start reads it again.
            let is_final = |error: &StoreError| {
                matches!(
                    error,
                    StoreError::Fenced | StoreError::Corrupt(_) | StoreError::Unavailable(_)
                )
            };
            if is_final(&error) {
                self.fail(error.clone());
            }
            return Err(error);
        }
        self.confirm(moves, &written, anchor);
        recorded?;
        if let Some(anchor) = anchor {
            self.trim(anchor).await;
        }
        Ok(())
    }

    /// Trims the log up to an anchor that is recorded, once no failover can take it back. Writes
    /// go on meanwhile. The caller holds [`Owner::lock_writes`].
    async fn trim(&self, anchor: Anchor) {
        let (shared, lease) = (self.shared.clone(), self.lease);
        let trimming = Arc::clone(&self.lock().trimming);
        {
            let mut trimming = lock_trimming(&trimming);
            if trimming.is_running {
                trimming.next = Some(anchor);
                return;
            }
        }
        let ledger = Arc::clone(&shared.ledger);
        let mut securing = Box::pin(async move { ledger.secure_anchor(lease, anchor).await });
        if let Some(secured) = (&mut securing).now_or_never() {
            trim_if(secured, &*shared.log, lease.partition, anchor).await;
            return;
        }
        lock_trimming(&trimming).is_running = true;
        let stopped = self.stopped.clone();
        self.shared.catalog.spawn(async move {
            let trims = async {
                let (mut anchor, mut secured) = (anchor, securing.await);
                loop {
                    let is_trimmed = trim_if(secured, &*shared.log, lease.partition, anchor).await;
                    {
                        let mut trimming = lock_trimming(&trimming);
                        match trimming.next.take() {
                            Some(next) => anchor = next,
                            None if is_trimmed => {
                                trimming.is_running = false;
                                return;
                            }
                            None => {}
                        }
                    }
                    sleep(TRIM_PAUSE).await;
                    secured = shared.ledger.secure_anchor(lease, anchor).await;
                }
            };
            tokio::select! {
                () = trims => {}
                () = stopped.cancelled() => {}
            }
        });
    }

    /// Ends the recording of observations, of which those that failed are to be recorded again.
    fn end_recording(&self, failed: Option<Map<IntegrationId, Vec<Observed>>>) {
        let mut state = self.lock();
        state.observing.clear();
        for (id, mut earlier) in failed.into_iter().flatten() {
            for later in state.observed.remove(&id).unwrap_or_default() {
                add_observed(&mut earlier, later);
            }
            state.observed.insert(id, earlier);
        }
    }

    /// Collects what is not durable, and moves.
    fn collect(&self, moves: &[PlannedMove]) -> Batch {
        let mut state = self.lock();
        state.due = None;
        let mut batch = Batch {
            updates: Vec::new(),
            written: Vec::new(),
            anchor: state.anchor.filter(|_| !state.anchor_is_durable),
            observed: std::mem::take(&mut state.observed),
        };
        state.writing_since = state.unwritten_since.take();
        state.observing = batch.observed.keys().copied().collect();
        let mut dirty = std::mem::take(&mut state.dirty);
        for planned in moves {
            dirty.remove(&planned.integration_id);
            if let Some(queue) = state.queues.get(&planned.integration_id) {
                batch.add(planned.integration_id, queue, Some(planned));
            }
        }
        for id in dirty {
            if let Some(queue) = state.queues.get(&id) {
                batch.add(id, queue, None);
            }
        }
        batch
    }

    /// Ends moves that were not written. What was not written is dirty again.
    fn cancel(&self, moves: &[PlannedMove], written: &[Written]) {
        let mut state = self.lock();
        state.unwritten_since = state.writing_since.take().or(state.unwritten_since);
        let dirty = written.iter().map(|written| written.integration_id);
        state.dirty.extend(dirty);
        for planned in moves {
            let mut released = Released::default();
            let Some(queue) = state.queues.get_mut(&planned.integration_id) else {
                continue;
            };
            queue.cancel_move(&mut released);
            let left = queue.bytes();
            state.release(&released, &self.shared, left);
        }
        state.write_by(Instant::now() + RETRY);
        drop(state);
        self.moved.notify_waiters();
        self.wake.notify_one();
    }

    /// Takes in what is durable now.
    fn confirm(&self, moves: Vec<PlannedMove>, written: &[Written], anchor: Option<Anchor>) {
        let mut state = self.lock();
        state.writing_since = None;
        for one in written {
            if let Some(queue) = state.queues.get_mut(&one.integration_id) {
                queue.confirm(one.delivered, &one.backlog);
            }
        }
        for planned in moves {
            let id = planned.integration_id;
            let (Some(queue), Some(moved)) = (state.queues.get_mut(&id), planned.moved) else {
                continue;
            };
            if moved.expired > 0 {
                metrics::EVENTS_EXPIRED.add(moved.expired);
                tracing::error!(
                    integration_id = %id,
                    events = moved.expired,
                    "a chunk of the log is damaged: its events are lost, and a gap event takes their place (docs/operations.md)"
                );
            }
            let written_to = moved.next_sequence();
            let mut released = Released::default();
            queue.finish_move(moved, &mut released);
            let left = queue.bytes();
            // The anchor must not pass a checkpoint that is not durable.
            let is_dirty =
                queue.next_sequence() != written_to || queue.backlog_changes().next().is_some();
            state.release(&released, &self.shared, left);
            if is_dirty {
                state.mark_dirty(id, self.shared.linger);
            }
        }
        state.anchor_is_durable |= anchor.is_some() && state.anchor == anchor;
        if !state.anchor_is_durable {
            state.write_by(Instant::now() + self.shared.linger);
        }
        drop(state);
        self.moved.notify_waiters();
        self.wake.notify_one();
    }

    /// Position up to which the oldest chunks must leave memory; None if they need not.
    fn position_to_move(&self, state: &State) -> Option<Position> {
        // Its share of what all owners of this instance must free.
        let mut excess = self
            .shared
            .backpressure
            .excess(state.entry_bytes)
            .unwrap_or(0);
        let limit = self.shared.tail_bytes.saturating_mul(LOG_FACTOR);
        let by_log = state
            .entry_bytes
            .checked_sub(limit)
            .filter(|over| *over > 0);
        if let Some(over) = by_log {
            excess = excess.max(over + limit / 4);
        }
        if excess == 0 {
            return None;
        }
        let mut up_to = None;
        for entry in &state.entries {
            up_to = Some(entry.position);
            excess = match excess.checked_sub(entry.bytes) {
                Some(left) if left > 0 => left,
                _ => break,
            };
        }
        up_to
    }

    /// Moves the oldest events to their backlogs while the tail or the log is too large, and the
    /// events of integrations whose checkpoint has become too large.
    pub(super) async fn move_what_must(&self) {
        let up_to = {
            let state = self.lock();
            self.position_to_move(&state)
        };
        let moved = match up_to {
            Some(up_to) => self.move_up_to(up_to).await,
            None => Ok(()),
        };
        self.shared.backpressure.relieved();
        if let Err(error) = moved {
            tracing::error!(%error, "cannot move events to the backlog");
            self.lock().write_by(Instant::now() + RETRY);
        }
        self.move_fragmented().await;
    }

    async fn move_up_to(&self, up_to: Position) -> Result<(), StoreError> {
        let max_bytes = MOVE_BYTES.min(self.shared.log.max_append_bytes());
        loop {
            let _writes = self.lock_writes().await;
            let (moves, is_last) = {
                let mut state = self.lock();
                let mut ids: Vec<IntegrationId> = Vec::new();
                let (mut bytes, mut step) = (0, up_to);
                let mut known: Set<IntegrationId> = Set::default();
                for entry in state.entries.iter().take_while(|one| one.position <= up_to) {
                    let members = entry.members.iter().copied();
                    ids.extend(members.filter(|id| known.insert(*id)));
                    bytes += entry.bytes;
                    if bytes >= max_bytes {
                        step = entry.position;
                        break;
                    }
                }
                let planned = ids.into_iter().filter_map(|id| {
                    let queue = state.queues.get_mut(&id)?;
                    Some(PlannedMove {
                        integration_id: id,
                        moved: Some(queue.plan_move(step, true)?),
                        changes: Vec::new(),
                    })
                });
                (planned.collect::<Vec<_>>(), step >= up_to)
            };
            if !moves.is_empty() {
                self.write_ledger(moves).await?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Moves all events to their backlogs, and writes everything. Nothing is delivered or appended
    /// meanwhile.
    pub(super) async fn move_all(&self) -> Result<(), StoreError> {
        let last = self.lock().entries.back().map(|entry| entry.position);
        if let Some(last) = last {
            self.move_up_to(last).await?;
        }
        while !self.is_clean() {
            self.write().await?;
        }
        Ok(())
    }

    async fn move_fragmented(&self) {
        let fragmented: Vec<IntegrationId> = {
            let state = self.lock();
            let dirty = state.dirty.iter();
            dirty
                .filter(|id| {
                    let queue = state.queues.get(*id);
                    queue.is_some_and(|queue| {
                        queue.settled_ranges() > MAX_RANGES || queue.span() > WINDOW / 4
                    })
                })
                .copied()
                .collect()
        };
        for id in fragmented {
            let _writes = self.lock_writes().await;
            let moved = {
                let mut state = self.lock();
                let queue = state.queues.get_mut(&id);
                queue.and_then(|queue| queue.plan_move(queue.last_position()?, true))
            };
            let planned = moved.map(|moved| PlannedMove {
                integration_id: id,
                moved: Some(moved),
                changes: Vec::new(),
            });
            if let Some(planned) = planned
                && let Err(error) = self.write_ledger(vec![planned]).await
            {
                tracing::error!(%error, "cannot move events to the backlog");
            }
        }
    }

    /// Reads pending events from a sequence on, first from the backlog.
    pub(super) async fn read(
        &self,
        id: IntegrationId,
        mut from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        loop {
            let moved = self.moved.notified();
            let (end, overlay) = {
                let mut state = self.lock();
                let Some(queue) = state.queues.get_mut(&id) else {
                    return Ok(Vec::new());
                };
                let end = queue.next_sequence() + WINDOW / 2;
                match queue.read(from, max_bytes) {
                    Ok(Read::Chunks(mut chunks)) => {
                        let read = chunks.len();
                        chunks.retain(|chunk| chunk.end_sequence() <= end);
                        if read == 0 || !chunks.is_empty() {
                            return Ok(chunks);
                        }
                        // Its oldest events move first.
                        self.wake.notify_one();
                        (None, BTreeMap::new())
                    }
                    Ok(Read::Before(end)) => (Some(end), queue.backlog_overlay()),
                    Ok(Read::Moving) => (None, BTreeMap::new()),
                    Err(first_sequence) => return Err(StoreError::DamagedChunk { first_sequence }),
                }
            };
            let Some(end) = end else {
                moved.await;
                continue;
            };
            let mut chunks = self.shared.ledger.read_backlog(id, from, max_bytes).await?;
            // Chunks that moved since may have settled events that the overlay lacks.
            chunks.retain(|chunk| chunk.first_sequence < end);
            let Some(last) = chunks.last().map(Chunk::end_sequence) else {
                from = end;
                continue;
            };
            for chunk in &mut chunks {
                Queue::overlay(&overlay, chunk);
            }
            chunks.retain(|chunk| !chunk.is_finished());
            if !chunks.is_empty() {
                return Ok(chunks);
            }
            from = last;
        }
    }

    /// States of at most `limit` pending chunks from a sequence on, with the position of those
    /// in the tail.
    pub(super) async fn states(
        &self,
        id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<(Option<Position>, Chunk)>, StoreError> {
        let (mut next, end, overlay) = {
            let state = self.lock();
            let Some(queue) = state.queues.get(&id) else {
                return Ok(Vec::new());
            };
            (from, queue.next_sequence(), queue.backlog_overlay())
        };
        let mut states: Vec<(Option<Position>, Chunk)> = Vec::new();
        while next < end && states.len() < limit {
            let found = self.shared.ledger.backlog_states(id, next, limit).await?;
            let is_last = found.len() < limit;
            next = found.last().map_or(end, Chunk::end_sequence);
            for mut chunk in found {
                Queue::overlay(&overlay, &mut chunk);
                if chunk.first_sequence < end && !chunk.is_finished() {
                    states.push((None, chunk));
                }
            }
            if is_last {
                break;
            }
        }
        states.truncate(limit);
        let left = limit - states.len();
        let state = self.lock();
        if let Some(queue) = state.queues.get(&id) {
            let tail = queue.states(from, left).into_iter();
            states.extend(tail.map(|(position, chunk)| (Some(position), chunk)));
        }
        Ok(states)
    }

    /// Excludes other writes of the ledger, so that those of an integration keep their order.
    pub(super) async fn lock_writes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.writing.lock().await
    }

    /// Writes chunks of which events were given up, together with the counts. The caller holds
    /// [`Owner::lock_writes`].
    pub(super) async fn replace(
        &self,
        id: IntegrationId,
        replaced: Replaced,
    ) -> Result<(), StoreError> {
        let Replaced {
            mut chunks,
            move_to,
            set_aside,
            expired,
            freed_bytes,
        } = replaced;
        let moved = {
            let mut state = self.lock();
            let Some(queue) = state.queues.get_mut(&id) else {
                return Ok(());
            };
            let moved = move_to.and_then(|up_to| queue.plan_move(up_to, false));
            queue.expire(expired, freed_bytes);
            moved
        };
        let moved = moved.map(|mut moved| {
            moved.expired = 0;
            for chunk in &mut moved.chunks {
                if let Some(state) = chunks.remove(&chunk.first_sequence) {
                    let segment = match state.pending_events() {
                        0 => bytes::Bytes::new(),
                        _ => std::mem::take(&mut chunk.segment),
                    };
                    *chunk = Chunk { segment, ..state };
                } else {
                    // A damaged chunk that moves along has become a gap.
                    moved.expired += chunk.gaps.iter().map(|gap| gap.count).sum::<u64>();
                }
            }
            moved
        });
        let changes =
            chunks
                .into_values()
                .map(|chunk| match set_aside == Some(chunk.first_sequence) {
                    true => BacklogChange::SetAside(chunk),
                    false => BacklogChange::Update(chunk),
                });
        let planned = PlannedMove {
            integration_id: id,
            moved,
            changes: changes.collect(),
        };
        let written = self.write_ledger(vec![planned]).await;
        if written.is_ok() {
            metrics::EVENTS_EXPIRED.add(expired);
        } else if let Some(queue) = self.lock().queues.get_mut(&id) {
            queue.unexpire(expired, freed_bytes);
        }
        written
    }

    /// Levels of this partition.
    pub(super) fn levels(&self) -> Levels {
        let state = self.lock();
        let mut levels = Levels {
            entry_bytes: state.entry_bytes,
            read_to: *self.read_to.borrow(),
            unwritten_for: state
                .writing_since
                .or(state.unwritten_since)
                .map(|since| since.elapsed()),
            pending: Vec::new(),
        };
        for (id, queue) in &state.queues {
            let progress = queue.progress();
            if progress.pending() > 0 {
                let in_backlog = queue.backlog_events().min(progress.pending());
                levels.pending.push(Pending {
                    integration_id: *id,
                    events: progress.pending(),
                    bytes: progress.pending_bytes,
                    backlog_events: in_backlog,
                    backlog_bytes: match in_backlog {
                        0 => 0,
                        _ => progress.pending_bytes.saturating_sub(queue.bytes() as u64),
                    },
                    oldest: queue.oldest_pending(),
                });
            }
        }
        levels
    }

    /// Acceptance times of the oldest pending event in memory of each integration.
    pub(super) fn oldest_pending(
        &self,
        ids: &[IntegrationId],
    ) -> HashMap<IntegrationId, Timestamp> {
        let state = self.lock();
        let queues = ids
            .iter()
            .filter_map(|id| Some((*id, state.queues.get(id)?)));
        queues
            .filter_map(|(id, queue)| Some((id, queue.oldest_pending()?)))
            .collect()
    }

    /// Ends the tasks and forgets everything. What is not durable is written before by
    /// [`Owner::write`].
    pub(super) fn stop(&self) {
        self.set_delivers(false);
        self.stopped.cancel();
        let mut state = self.lock();
        state.closing = true;
        // Its events do not use the budget of the others any more.
        for queue in std::mem::take(&mut state.queues).values() {
            let bytes = queue.bytes();
            if bytes > 0 {
                self.shared.backpressure.removed(bytes, true);
            }
        }
        state.dirty.clear();
        drop(state);
        self.wake.notify_one();
        self.moved.notify_waiters();
    }

    /// Whether everything is durable.
    pub(super) fn is_clean(&self) -> bool {
        let state = self.lock();
        state.dirty.is_empty() && state.observed.is_empty() && state.anchor_is_durable
    }
}

fn lock_trimming(trimming: &Mutex<Trimming>) -> MutexGuard<'_, Trimming> {
    trimming.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Trims the log if its anchor is secured. Returns false if that is to be tried again.
async fn trim_if(
    secured: Result<bool, StoreError>,
    log: &dyn EventLog,
    partition: Partition,
    anchor: Anchor,
) -> bool {
    match secured {
        Ok(true) => {
            if let Err(error) = log.trim(partition, anchor.position).await {
                // The next trim includes what this one would have removed.
                tracing::warn!(%error, "cannot trim the log");
            }
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::warn!(%error, "the log is not trimmed");
            false
        }
    }
}

fn corrupt(anchor: Anchor, problem: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "the log is not the one that was read before: entry {} is missing ({problem})",
        anchor.position.0
    ))
}

/// Adds an observation after others. One between two that show the same carries nothing.
fn add_observed(all: &mut Vec<Observed>, observed: Observed) {
    if let [.., before, last] = &mut all[..]
        && before.is_like(last)
        && last.is_like(&observed)
    {
        *last = observed;
        return;
    }
    if all.len() >= MAX_OBSERVED {
        // A success ends a period of failures, so it is not what is left out.
        let failed = |one: &Observed| one.observation != Observation::Accepted;
        let failed = all.iter().skip(1).position(failed);
        all.remove(failed.map_or(0, |at| at + 1));
    }
    all.push(observed);
}

/// Owners of the partitions of this instance.
pub(super) struct Partitions {
    owners: RwLock<Map<Partition, Arc<Owner>>>,
    catalog: Arc<Catalog>,
}

impl Partitions {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            owners: RwLock::default(),
            catalog,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Map<Partition, Arc<Owner>>> {
        self.owners.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Map<Partition, Arc<Owner>>> {
        self.owners.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, owner: Arc<Owner>) {
        self.write().insert(owner.lease.partition, owner);
    }

    /// Removes the owner under a lease, if there is one.
    pub(super) fn remove(&self, lease: Lease) -> Option<Arc<Owner>> {
        let mut owners = self.write();
        let is_it = owners.get(&lease.partition)?.lease == lease;
        is_it.then(|| owners.remove(&lease.partition)).flatten()
    }

    /// Owner of the partition of an integration, if that is this instance.
    pub(super) fn owner(&self, id: IntegrationId) -> Option<Arc<Owner>> {
        let partition = self.catalog.replica().partition_of(id)?;
        self.read().get(&partition).map(Arc::clone)
    }

    pub(super) fn all(&self) -> Vec<Arc<Owner>> {
        self.read().values().map(Arc::clone).collect()
    }

    /// Waits until the owner of a partition has read the log up to a position, if that is this
    /// instance.
    pub(super) async fn wait_for(&self, partition: Partition, end: Position) {
        let owner = self.read().get(&partition).map(Arc::clone);
        if let Some(owner) = owner {
            owner.wait_for(end).await;
        }
    }
}
