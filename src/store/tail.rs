//! The newest part of the log, in bounded memory: an integration that keeps up
//! reads nothing back. Chunks that lie in a pack are read from here alone, so they stay
//! until they are finished or have rows of their own.

mod state;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, futures::Notified};

use self::state::{Kept, State, find_mut, position};
use crate::domain::{
    bitmap,
    gap::{ChunkState, PlacedGap, has_events},
    integration::IntegrationKey,
    map::Map,
};

/// A chunk as it was appended.
#[derive(Clone, Debug)]
pub(super) struct TailChunk {
    pub(super) id: i64,
    pub(super) first_sequence: u64,
    pub(super) count: u32,
    pub(super) accepted_at: Timestamp,
    /// A segment, not compressed; empty where only gaps are left.
    pub(super) bytes: Bytes,
    /// A bit an event that is settled; empty where none is.
    pub(super) settled: Vec<u8>,
    /// Gaps that wait.
    pub(super) gaps: Vec<PlacedGap>,
}

/// What the tail has of an integration's log.
#[derive(Debug)]
pub(super) enum Found {
    /// The chunks from the sequence on.
    Chunks(Vec<TailChunk>),
    /// Only what begins at this sequence.
    From(u64),
    /// Nothing.
    Nothing,
    /// It is getting rows; ask again once [`Tail::moved`] says so.
    Moving,
}

/// A chunk that leaves the tail for a row.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) chunk: TailChunk,
    /// Whoever read it knows it by its number.
    pub(super) is_read: bool,
}

/// Events that are on their way into the tail, or come to nothing.
pub(super) struct Coming {
    tail: Arc<Tail>,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tail {
    state: Mutex<State>,
    moved: Notify,
    drained: Notify,
    /// Bytes that are on their way into it.
    coming: AtomicUsize,
    pressed: AtomicBool,
    least_bytes: usize,
}

impl Tail {
    /// `least_bytes` are what few integrations share; see [`State::most_bytes`].
    pub(super) fn new(least_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            moved: Notify::new(),
            drained: Notify::new(),
            coming: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            least_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and tells whoever waits until it is no longer nearly full.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let was_behind = state.bytes > self.mark(&state);
        let changed = change(&mut state);
        let is_behind = state.bytes > self.mark(&state);
        drop(state);
        if was_behind && !is_behind {
            self.drained.notify_waiters();
        }
        changed
    }

    /// Adds an integration's newest chunk.
    pub(super) fn push(&self, key: IntegrationKey, chunk: TailChunk, packed: bool) {
        self.change(|state| Self::add(state, key, chunk, packed));
    }

    fn add(state: &mut State, key: IntegrationKey, chunk: TailChunk, packed: bool) {
        let bytes = chunk.bytes.len();
        state.add(key, bytes);
        state.packed_bytes += if packed { bytes } else { 0 };
        state.count += 1;
        state.order.push_back((chunk.id, key));
        let chunks = state.chunks.entry(key).or_default();
        chunks.push_back(Kept {
            chunk,
            packed,
            is_read: false,
            is_moving: false,
        });
        state.compact();
    }

    /// What it may take now, in bytes.
    pub(super) fn most_bytes(&self) -> usize {
        self.lock().most_bytes(self.least_bytes)
    }

    /// How many integrations have events in it.
    pub(super) fn sharers(&self) -> usize {
        self.lock().sharers()
    }

    /// Bytes of the chunks that have no rows.
    pub(super) fn packed_bytes(&self) -> usize {
        self.lock().packed_bytes
    }

    /// Whether what is counted is what is there.
    #[cfg(test)]
    pub(super) fn is_sound(&self) -> bool {
        self.lock().is_sound()
    }

    /// Whether deliveries are so far behind that it will soon be too small, and one of the
    /// keys has as much of it as each has on average, or more.
    pub(super) fn is_behind(&self, mut keys: impl Iterator<Item = IntegrationKey>) -> bool {
        let coming = self.coming.load(Ordering::Relaxed);
        let state = self.lock();
        self.least_bytes > 0
            && state.bytes + coming > self.mark(&state)
            && keys.any(|key| state.has_its_share(key))
    }

    /// Whether the oldest are to leave it before it is full: to wait for their delivery was
    /// in vain.
    pub(super) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Sets [`Tail::is_pressed`].
    pub(super) fn press(&self, pressed: bool) {
        self.pressed.store(pressed, Ordering::Relaxed);
    }

    fn mark(&self, state: &State) -> usize {
        state.most_bytes(self.least_bytes) / 4 * 3
    }

    /// Waits until they are not. It counts from this call on.
    pub(super) fn drained(&self) -> Notified<'_> {
        self.drained.notified()
    }

    /// The number of the chunk up to which the oldest would have to go for the rest to be
    /// `keep` of 8 parts of what the tail may take. None where it has no more than that.
    pub(super) fn overflow(&self, keep: usize) -> Option<i64> {
        let state = self.lock();
        let most = state.most_bytes(self.least_bytes) / 8 * keep;
        let mut excess = state.bytes.checked_sub(most)?;
        let mut last = None;
        let mut order = state.order.iter();
        while excess > 0 {
            let (id, key) = order.next()?;
            let bytes = state
                .find(*key, *id)
                .map_or(0, |kept| kept.chunk.bytes.len());
            excess = excess.saturating_sub(bytes);
            last = Some(*id);
        }
        last
    }

    /// Lets the oldest chunks up to a number go. They have rows.
    pub(super) fn evict(&self, up_to: i64) {
        self.change(|state| {
            while let Some((id, key)) = state.order.front().copied()
                && id <= up_to
            {
                state.order.pop_front();
                state.evict(key, id);
            }
            state.compact();
        });
        self.moved.notify_waiters();
    }

    /// The chunks up to a number that have no rows, by integration, in log order. Nobody
    /// reads those that nobody has read, until [`Tail::evict`] or [`Tail::keep`].
    pub(super) fn leave(&self, up_to: i64) -> Vec<(IntegrationKey, Vec<Leaving>)> {
        let mut state = self.lock();
        let State { chunks, order, .. } = &mut *state;
        let mut at: Map<IntegrationKey, usize> = Map::default();
        let mut leaving: Vec<(IntegrationKey, Vec<Leaving>)> = Vec::new();
        for (id, key) in order.iter().take_while(|(id, _)| *id <= up_to) {
            let Some(kept) = chunks.get_mut(key).and_then(|chunks| find_mut(chunks, *id)) else {
                continue;
            };
            if !kept.packed {
                continue;
            }
            kept.is_moving = !kept.is_read;
            let at = *at.entry(*key).or_insert_with(|| {
                leaving.push((*key, Vec::new()));
                leaving.len() - 1
            });
            leaving[at].1.push(kept.leaving());
        }
        leaving
    }

    /// The chunks stay after all.
    pub(super) fn keep(&self) {
        let mut state = self.lock();
        for kept in state.chunks.values_mut().flatten() {
            kept.is_moving = false;
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Of an integration, the first `most` chunks from a sequence on that have no rows.
    pub(super) fn packed_from(&self, key: IntegrationKey, from: u64, most: usize) -> Vec<Leaving> {
        let state = self.lock();
        let chunks = state.chunks.get(&key).into_iter().flatten();
        chunks
            .filter(|kept| kept.packed && kept.chunk.first_sequence >= from)
            .take(most)
            .map(Kept::leaving)
            .collect()
    }

    /// A chunk that has no row.
    pub(super) fn packed(&self, key: IntegrationKey, chunk_id: i64) -> Option<Leaving> {
        let state = self.lock();
        let kept = state.find(key, chunk_id)?;
        kept.packed.then(|| kept.leaving())
    }

    /// A chunk has a row now, and stays all the same.
    pub(super) fn unpacked(&self, key: IntegrationKey, chunk_id: i64) {
        let mut state = self.lock();
        if let Some(kept) = state.find_mut(key, chunk_id)
            && std::mem::replace(&mut kept.packed, false)
        {
            let bytes = kept.chunk.bytes.len();
            state.packed_bytes -= bytes;
        }
    }

    /// The chunks from a sequence on, up to `most_bytes` but at least one.
    pub(super) fn read(&self, key: IntegrationKey, from: u64, most_bytes: usize) -> Found {
        let mut state = self.lock();
        let Some(chunks) = state.chunks.get_mut(&key) else {
            return Found::Nothing;
        };
        let begins = chunks.front().map(|kept| kept.chunk.first_sequence);
        if let Some(begins) = begins.filter(|begins| *begins > from) {
            return Found::From(begins);
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        let ahead = chunks
            .iter_mut()
            .skip_while(|kept| kept.chunk.first_sequence < from);
        for kept in ahead {
            bytes += kept.chunk.bytes.len();
            if !found.is_empty() && (bytes > most_bytes || kept.is_moving) {
                break;
            }
            if kept.is_moving {
                return Found::Moving;
            }
            kept.is_read = true;
            found.push(kept.chunk.clone());
        }
        Found::Chunks(found)
    }

    /// Waits until chunks that got rows have them. It counts from this call on.
    pub(super) fn moved(&self) -> Notified<'_> {
        self.moved.notified()
    }

    /// When the oldest event that waits here was accepted.
    pub(super) fn oldest_pending(&self, key: IntegrationKey) -> Option<Timestamp> {
        let state = self.lock();
        let mut chunks = state.chunks.get(&key)?.iter();
        let pending = chunks.find(|kept| kept.chunk.has_events())?;
        Some(pending.chunk.accepted_at)
    }

    /// Notes what is settled of a chunk.
    pub(super) fn settle(&self, key: IntegrationKey, chunk_id: i64, settled: &[u8]) {
        let mut state = self.lock();
        if let Some(kept) = state.find_mut(key, chunk_id) {
            let chunk = &mut kept.chunk;
            chunk.settled = bitmap::union(&chunk.settled, settled);
            let settled = &chunk.settled;
            chunk
                .gaps
                .retain(|gap| !bitmap::get(settled, gap.index as usize));
        }
    }

    /// Takes in what was given up of a chunk.
    pub(super) fn give_up(&self, key: IntegrationKey, given_up: &ChunkState) {
        if given_up.is_finished() {
            self.finish(key, given_up.id);
            return;
        }
        self.change(|state| {
            let Some(kept) = state.find_mut(key, given_up.id) else {
                return;
            };
            let chunk = &mut kept.chunk;
            chunk.settled = bitmap::union(&chunk.settled, &given_up.settled);
            chunk.gaps.clone_from(&given_up.gaps);
            if !given_up.has_events() {
                let freed = std::mem::take(&mut chunk.bytes);
                state.take(key, freed.len());
            }
        });
    }

    /// Drops a chunk that is finished.
    pub(super) fn finish(&self, key: IntegrationKey, chunk_id: i64) {
        self.change(|state| {
            let Some(chunks) = state.chunks.get_mut(&key) else {
                return;
            };
            let Ok(at) = position(chunks, chunk_id) else {
                return;
            };
            let freed = chunks.remove(at);
            if chunks.is_empty() {
                state.chunks.remove(&key);
            }
            state.free(key, freed);
        });
    }

    /// Drops all of an integration.
    pub(super) fn forget(&self, key: IntegrationKey) {
        self.change(|state| {
            let freed = state.chunks.remove(&key).unwrap_or_default();
            state.free(key, freed);
        });
    }
}

impl Coming {
    pub(super) fn new(tail: &Arc<Tail>, bytes: usize) -> Self {
        tail.coming.fetch_add(bytes, Ordering::Relaxed);
        Self {
            tail: Arc::clone(tail),
            bytes,
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.tail.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl TailChunk {
    /// Whether events are left to send, gaps aside.
    pub(super) fn has_events(&self) -> bool {
        has_events(self.count, &self.settled, &self.gaps)
    }
}
