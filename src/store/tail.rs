//! The newest part of the log, in bounded memory: an integration that keeps up
//! reads nothing back.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::domain::{
    bitmap,
    gap::{ChunkState, PlacedGap},
    integration::IntegrationKey,
    map::Map,
};

/// A chunk as it was appended.
#[derive(Clone, Debug)]
pub(super) struct TailChunk {
    pub(super) id: i64,
    pub(super) first_sequence: u64,
    pub(super) count: u32,
    /// Lengths and bodies, not compressed; empty where only gaps are left.
    pub(super) bytes: Bytes,
    /// A bit an event that is settled; empty where none is.
    pub(super) settled: Vec<u8>,
    /// Gaps that wait.
    pub(super) gaps: Vec<PlacedGap>,
}

#[derive(Debug, Default)]
struct State {
    /// Of each integration the newest chunks without a hole, in log order.
    chunks: Map<IntegrationKey, VecDeque<TailChunk>>,
    /// All chunks in the order they came; some may be gone already.
    order: VecDeque<(IntegrationKey, u64)>,
    count: usize,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tail {
    state: Mutex<State>,
    most_bytes: usize,
}

impl Tail {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            most_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an integration's newest chunk; the oldest of all make room for it.
    pub(super) fn push(&self, key: IntegrationKey, chunk: TailChunk) {
        let mut state = self.lock();
        state.bytes += chunk.bytes.len();
        state.count += 1;
        state.order.push_back((key, chunk.first_sequence));
        state.chunks.entry(key).or_default().push_back(chunk);
        while state.bytes > self.most_bytes {
            let Some((key, first_sequence)) = state.order.pop_front() else {
                return;
            };
            state.evict(key, first_sequence);
        }
        state.compact();
    }

    /// The chunks from a sequence on, up to `most_bytes` but at least one. None
    /// where the sequence is older than what is kept.
    pub(super) fn read(
        &self,
        key: IntegrationKey,
        from: u64,
        most_bytes: usize,
    ) -> Option<Vec<TailChunk>> {
        let state = self.lock();
        let chunks = state.chunks.get(&key)?;
        if chunks.front()?.first_sequence > from {
            return None;
        }
        let mut bytes = 0;
        let found = chunks
            .iter()
            .skip_while(|chunk| chunk.first_sequence < from)
            .take_while(|chunk| {
                let fits = bytes == 0 || bytes + chunk.bytes.len() <= most_bytes;
                bytes += chunk.bytes.len();
                fits
            })
            .cloned()
            .collect();
        Some(found)
    }

    /// Notes what is settled of a chunk.
    pub(super) fn settle(&self, key: IntegrationKey, chunk_id: i64, settled: &[u8]) {
        let mut state = self.lock();
        if let Some(chunk) = state.find(key, chunk_id) {
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
        let mut state = self.lock();
        let Some(chunk) = state.find(key, given_up.id) else {
            return;
        };
        chunk.settled = bitmap::union(&chunk.settled, &given_up.settled);
        chunk.gaps.clone_from(&given_up.gaps);
        if !given_up.has_events() {
            let freed = std::mem::take(&mut chunk.bytes);
            state.bytes -= freed.len();
        }
    }

    /// Drops a chunk that is finished.
    pub(super) fn finish(&self, key: IntegrationKey, chunk_id: i64) {
        let mut state = self.lock();
        let Some(chunks) = state.chunks.get_mut(&key) else {
            return;
        };
        let Some(at) = chunks.iter().position(|chunk| chunk.id == chunk_id) else {
            return;
        };
        let freed = chunks.remove(at);
        if chunks.is_empty() {
            state.chunks.remove(&key);
        }
        state.free(freed);
    }

    /// Drops all of an integration.
    pub(super) fn forget(&self, key: IntegrationKey) {
        let mut state = self.lock();
        let freed = state.chunks.remove(&key).unwrap_or_default();
        state.free(freed);
    }
}

impl State {
    fn find(&mut self, key: IntegrationKey, chunk_id: i64) -> Option<&mut TailChunk> {
        let chunks = self.chunks.get_mut(&key)?;
        chunks.iter_mut().find(|chunk| chunk.id == chunk_id)
    }

    fn evict(&mut self, key: IntegrationKey, first_sequence: u64) {
        let Some(chunks) = self.chunks.get_mut(&key) else {
            return;
        };
        // Finished chunks may have left holes only before chunks that remain, so
        // all up to this one go.
        let up_to = chunks.partition_point(|chunk| chunk.first_sequence <= first_sequence);
        let freed: Vec<TailChunk> = chunks.drain(..up_to).collect();
        if chunks.is_empty() {
            self.chunks.remove(&key);
        }
        self.free(freed);
    }

    fn free(&mut self, chunks: impl IntoIterator<Item = TailChunk>) {
        for chunk in chunks {
            self.bytes -= chunk.bytes.len();
            self.count -= 1;
        }
    }

    /// Keeps the order from outgrowing what it orders.
    fn compact(&mut self) {
        if self.order.len() < 1024 + 4 * self.count {
            return;
        }
        let chunks = &self.chunks;
        self.order.retain(|(key, first_sequence)| {
            chunks.get(key).is_some_and(|chunks| {
                chunks
                    .binary_search_by_key(first_sequence, |chunk| chunk.first_sequence)
                    .is_ok()
            })
        });
    }
}
