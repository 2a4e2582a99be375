//! Event log in memory, for tests. The durable content is an [`Image`], which outlives the logs
//! that are opened on it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{sync::watch, task::yield_now};

use super::{
    error::{Failure, StoreError},
    ports::{
        Availability, Bounds, Entry, EntryChunk, EventLog, LogReader, NewEntry, Partition, Position,
    },
};
use crate::domain::segment::Damaged;

/// First position. A checkpoint with position 0 covers no entry.
const FIRST: Position = Position(1);

/// Outcome of an append, injected by a test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing is kept.
    Full,
    /// Nothing is kept.
    Failed,
    /// The first `kept` entries are kept, the next `late` land with a later append, and the rest
    /// is lost.
    Unavailable {
        /// Entries that are kept.
        kept: usize,
        /// Entries that land later.
        late: usize,
    },
}

/// Durable content of a log. Clones are the same image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    /// Partitions whose appends wait.
    held: watch::Sender<BTreeSet<Partition>>,
    max_step: u64,
}

#[derive(Debug)]
struct State {
    partitions: Vec<Content>,
    faults: VecDeque<Fault>,
    /// Number of appended entries, which is also the time of the log in seconds.
    clock: u64,
}

#[derive(Debug)]
struct Content {
    entries: BTreeMap<Position, Arc<Entry>>,
    bounds: Bounds,
    damaged_headers: BTreeSet<Position>,
    late: Vec<NewEntry>,
}

impl Content {
    const EMPTY: Bounds = Bounds {
        start: FIRST,
        end: FIRST,
    };

    fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            bounds: Self::EMPTY,
            damaged_headers: BTreeSet::new(),
            late: Vec::new(),
        }
    }
}

impl Image {
    /// Makes an empty log. Consecutive positions differ by 1 to `max_step`. With 1, a missing
    /// entry is noticed.
    pub(crate) fn new(partitions: u32, max_step: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                partitions: (0..partitions).map(|_| Content::new()).collect(),
                faults: VecDeque::new(),
                clock: 0,
            })),
            changed: watch::Sender::new(()),
            held: watch::Sender::default(),
            max_step,
        }
    }

    /// Determines the outcome of an append that follows, in the order of the calls.
    pub(crate) fn inject(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Holds appends to a partition, or lets them go on.
    pub(crate) fn hold(&self, partition: Partition, hold: bool) {
        self.held.send_modify(|held| {
            let _changed = match hold {
                true => held.insert(partition),
                false => held.remove(&partition),
            };
        });
    }

    /// Makes the events of an entry unreadable.
    pub(crate) fn damage_payload(&self, partition: Partition, position: Position) {
        self.change(partition, position, |entry| {
            for chunk in &mut entry.chunks {
                chunk.segment = Err(Damaged);
            }
        });
    }

    /// Makes an entry unreadable.
    pub(crate) fn damage_header(&self, partition: Partition, position: Position) {
        let mut state = self.lock();
        let content = &mut state.partitions[partition as usize];
        content.damaged_headers.insert(position);
    }

    /// Loses an entry.
    pub(crate) fn lose(&self, partition: Partition, position: Position) {
        let mut state = self.lock();
        let content = &mut state.partitions[partition as usize];
        content.entries.remove(&position);
    }

    /// Replaces all entries of a partition by others at the same positions.
    pub(crate) fn recreate(&self, partition: Partition) {
        let mut state = self.lock();
        for entry in state.partitions[partition as usize].entries.values_mut() {
            let mut other = Entry::clone(entry);
            other.id = other.id.map(|byte| !byte);
            *entry = Arc::new(other);
        }
    }

    /// Forgets which positions were used, of every partition without entries.
    pub(crate) fn forget_positions(&self) {
        for content in &mut self.lock().partitions {
            if content.entries.is_empty() {
                content.bounds = Content::EMPTY;
            }
        }
    }

    fn change(&self, partition: Partition, position: Position, change: impl FnOnce(&mut Entry)) {
        let mut state = self.lock();
        let content = &mut state.partitions[partition as usize];
        if let Some(entry) = content.entries.get_mut(&position) {
            let mut other = Entry::clone(entry);
            change(&mut other);
            *entry = Arc::new(other);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, partition: Partition, entries: Vec<NewEntry>) -> Result<(), StoreError> {
        let mut state = self.lock();
        let late = std::mem::take(&mut state.partitions[partition as usize].late);
        self.add(&mut state, partition, late);
        let result = match state.faults.pop_front() {
            None => {
                self.add(&mut state, partition, entries);
                Ok(())
            }
            Some(Fault::Full) => Err(StoreError::Full),
            Some(Fault::Failed) => Err(StoreError::Failed("injected".into())),
            Some(Fault::Unavailable { kept, late }) => {
                let mut entries = entries.into_iter();
                let kept = entries.by_ref().take(kept).collect();
                self.add(&mut state, partition, kept);
                let late = entries.take(late);
                state.partitions[partition as usize].late.extend(late);
                Err(StoreError::Unavailable("injected".into()))
            }
        };
        drop(state);
        self.changed.send_replace(());
        result
    }

    fn add(&self, state: &mut State, partition: Partition, entries: Vec<NewEntry>) {
        for new in entries {
            state.clock += 1;
            let content = &mut state.partitions[partition as usize];
            let position = Position(content.bounds.end.0 + state.clock % self.max_step);
            let chunks = new.chunks.into_iter();
            let entry = Entry {
                position,
                id: new.id,
                accepted_at: Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(state.clock),
                revision: new.revision,
                chunks: chunks
                    .map(|chunk| EntryChunk {
                        integration_id: chunk.integration_id,
                        count: chunk.count,
                        segment: Ok(chunk.segment),
                        traces: chunk.traces,
                    })
                    .collect(),
            };
            content.entries.insert(position, Arc::new(entry));
            content.bounds.end = position.next();
        }
    }

    /// First entry from a position on; None if there is none yet.
    fn next(&self, partition: Partition, from: Position) -> Result<Option<Arc<Entry>>, StoreError> {
        let state = self.lock();
        let content = &state.partitions[partition as usize];
        let from = from.max(content.bounds.start);
        let next = content.entries.range(from..).next();
        let position = next.map_or(content.bounds.end, |(position, _)| *position);
        if self.max_step == 1 && from < position {
            return Err(StoreError::Corrupt(format!("no entry at {}", from.0)));
        }
        if content.damaged_headers.contains(&position) {
            let message = format!("the header of entry {} is damaged", position.0);
            return Err(StoreError::Corrupt(message));
        }
        Ok(next.map(|(_, entry)| entry.clone()))
    }
}

/// Log on an [`Image`]. Each value is one process: closing it is the end of the process.
#[derive(Debug)]
pub(crate) struct MemoryLog {
    image: Image,
    closed: watch::Sender<bool>,
    availability: watch::Sender<Availability>,
}

impl MemoryLog {
    /// Opens an image.
    pub(crate) fn open(image: Image) -> Self {
        Self {
            image,
            closed: watch::Sender::new(false),
            availability: watch::Sender::new(Availability::Open),
        }
    }

    /// Ends the log at once. Unfinished appends keep nothing.
    pub(crate) fn kill(&self) {
        self.closed.send_replace(true);
    }

    fn check_open(&self) -> Result<(), StoreError> {
        match *self.closed.borrow() {
            true => Err(StoreError::Closed),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn partitions(&self) -> u32 {
        self.image.lock().partitions.len() as u32
    }

    fn max_append_bytes(&self) -> usize {
        usize::MAX
    }

    async fn append(&self, partition: Partition, entries: Vec<NewEntry>) -> Result<(), StoreError> {
        // Fails only if the sender is gone, and it is in `self`.
        let mut held = self.image.held.subscribe();
        let _ = held.wait_for(|held| !held.contains(&partition)).await;
        // Points at which a caller may give up: here nothing is kept, below all is.
        let ticks = self.image.lock().clock % 3;
        for _ in 0..=ticks {
            yield_now().await;
        }
        self.check_open()?;
        let result = self.image.commit(partition, entries);
        yield_now().await;
        result
    }

    async fn reader(
        &self,
        partition: Partition,
        from: Position,
    ) -> Result<Box<dyn LogReader>, StoreError> {
        self.check_open()?;
        Ok(Box::new(MemoryReader {
            image: self.image.clone(),
            closed: self.closed.subscribe(),
            partition,
            from,
        }))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.check_open()?;
        Ok(self.image.lock().partitions[partition as usize].bounds)
    }

    fn known_end(&self, partition: Partition) -> Position {
        self.image.lock().partitions[partition as usize].bounds.end
    }

    async fn remove(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        self.trim(partition, below).await
    }

    async fn trim(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        self.check_open()?;
        let mut state = self.image.lock();
        let content = &mut state.partitions[partition as usize];
        let below = below.min(content.bounds.end);
        content.entries = content.entries.split_off(&below);
        content.bounds.start = content.bounds.start.max(below);
        Ok(())
    }

    fn availability(&self) -> watch::Receiver<Availability> {
        self.availability.subscribe()
    }

    async fn ended(&self) -> Option<Failure> {
        // Fails only if the sender is gone, and it is in `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
        None
    }

    async fn close(&self) {
        self.kill();
    }
}

struct MemoryReader {
    image: Image,
    closed: watch::Receiver<bool>,
    partition: Partition,
    from: Position,
}

#[async_trait]
impl LogReader for MemoryReader {
    async fn next(&mut self) -> Result<Arc<Entry>, StoreError> {
        loop {
            let mut changed = self.image.changed.subscribe();
            if let Some(entry) = self.image.next(self.partition, self.from)? {
                self.from = entry.position.next();
                return Ok(entry);
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = self.closed.wait_for(|closed| *closed) => return Err(StoreError::Closed),
            }
        }
    }
}
