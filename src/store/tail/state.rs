//! The chunks of the tail, and the order in which they came.

use std::collections::VecDeque;

use super::{Leaving, TailChunk};
use crate::domain::{integration::IntegrationKey, map::Map};

/// So many integrations have room for the records of fuller requests; where more share the
/// tail it may take more, up to [`MOST_TIMES`] as much.
const SHARERS: usize = if cfg!(test) { 4 } else { 800 };
/// Where the writer asks whether too much lies in packs, it leaves as much for a tail that
/// has just shrunk.
const MOST_TIMES: usize = 2;

/// A chunk of the tail.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) chunk: TailChunk,
    /// It has no row of its own.
    pub(super) packed: bool,
    /// It was handed out, and is known by its number.
    pub(super) is_read: bool,
    /// It is getting a row, perhaps together with others.
    pub(super) is_moving: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Of each integration the newest chunks, in log order. Before the first of them
    /// everything that is not finished has a row.
    pub(super) chunks: Map<IntegrationKey, VecDeque<Kept>>,
    /// All chunks in the order they came; some may be gone already.
    pub(super) order: VecDeque<(i64, IntegrationKey)>,
    pub(super) count: usize,
    pub(super) bytes: usize,
    /// Of those, each integration's; none has 0.
    bytes_of: Map<IntegrationKey, usize>,
    /// Of all bytes, what lies in packs.
    pub(super) packed_bytes: usize,
}

impl Kept {
    pub(super) fn leaving(&self) -> Leaving {
        Leaving {
            chunk: self.chunk.clone(),
            is_read: self.is_read,
        }
    }
}

/// Numbers rise in log order.
pub(super) fn position(chunks: &VecDeque<Kept>, chunk_id: i64) -> Result<usize, usize> {
    chunks.binary_search_by_key(&chunk_id, |kept| kept.chunk.id)
}

pub(super) fn find_mut(chunks: &mut VecDeque<Kept>, chunk_id: i64) -> Option<&mut Kept> {
    let at = position(chunks, chunk_id).ok()?;
    chunks.get_mut(at)
}

impl State {
    pub(super) fn find(&self, key: IntegrationKey, chunk_id: i64) -> Option<&Kept> {
        let chunks = self.chunks.get(&key)?;
        chunks.get(position(chunks, chunk_id).ok()?)
    }

    pub(super) fn find_mut(&mut self, key: IntegrationKey, chunk_id: i64) -> Option<&mut Kept> {
        find_mut(self.chunks.get_mut(&key)?, chunk_id)
    }

    pub(super) fn evict(&mut self, key: IntegrationKey, chunk_id: i64) {
        let Some(chunks) = self.chunks.get_mut(&key) else {
            return;
        };
        // Finished chunks may have left holes only before chunks that remain, so
        // all up to this one go.
        let up_to = chunks.partition_point(|kept| kept.chunk.id <= chunk_id);
        let freed: Vec<Kept> = chunks.drain(..up_to).collect();
        if chunks.is_empty() {
            self.chunks.remove(&key);
        }
        self.free(key, freed);
    }

    pub(super) fn add(&mut self, key: IntegrationKey, bytes: usize) {
        self.bytes += bytes;
        if bytes > 0 {
            *self.bytes_of.entry(key).or_default() += bytes;
        }
    }

    pub(super) fn take(&mut self, key: IntegrationKey, bytes: usize) {
        self.bytes -= bytes;
        debug_assert!(bytes == 0 || self.bytes_of.contains_key(&key));
        if let Some(left) = self.bytes_of.get_mut(&key) {
            *left -= bytes;
            if *left == 0 {
                self.bytes_of.remove(&key);
            }
        }
    }

    /// How many integrations have bytes in it.
    pub(super) fn sharers(&self) -> usize {
        self.bytes_of.len()
    }

    /// What the tail may take, where it may take `least` for a few integrations: the less
    /// each has of it, the less a request for one holds, and each request costs the same.
    pub(super) fn most_bytes(&self, least: usize) -> usize {
        let shares = least / SHARERS * self.sharers();
        shares.clamp(least, least.saturating_mul(MOST_TIMES))
    }

    /// Whether an integration has as much as each has on average, or more.
    pub(super) fn has_its_share(&self, key: IntegrationKey) -> bool {
        let of_key = self.bytes_of.get(&key);
        of_key.is_some_and(|bytes| bytes * self.bytes_of.len() >= self.bytes)
    }

    pub(super) fn free(&mut self, key: IntegrationKey, chunks: impl IntoIterator<Item = Kept>) {
        for kept in chunks {
            let bytes = kept.chunk.bytes.len();
            self.take(key, bytes);
            self.packed_bytes -= if kept.packed { bytes } else { 0 };
            self.count -= 1;
        }
    }

    /// Whether what is counted is what is there.
    #[cfg(test)]
    pub(in crate::store) fn is_sound(&self) -> bool {
        let bytes =
            |chunks: &VecDeque<Kept>| chunks.iter().map(|kept| kept.chunk.bytes.len()).sum();
        let of_each = self
            .chunks
            .iter()
            .map(|(key, chunks)| (*key, bytes(chunks)));
        let bytes_of: Map<IntegrationKey, usize> =
            of_each.filter(|(_, bytes)| *bytes > 0).collect();
        let packed = self.chunks.values().flatten().filter(|kept| kept.packed);
        self.bytes_of == bytes_of
            && self.bytes == bytes_of.values().sum::<usize>()
            && self.packed_bytes == packed.map(|kept| kept.chunk.bytes.len()).sum::<usize>()
    }

    /// Keeps the order from outgrowing what it orders.
    pub(super) fn compact(&mut self) {
        if self.order.len() < 1024 + 4 * self.count {
            return;
        }
        let chunks = &self.chunks;
        self.order.retain(|(id, key)| {
            let of_key = chunks.get(key);
            of_key.is_some_and(|chunks| position(chunks, *id).is_ok())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use jiff::Timestamp;

    use super::*;
    use crate::store::tail::Tail;

    fn chunk(id: i64, bytes: usize) -> TailChunk {
        TailChunk {
            id,
            first_sequence: id as u64,
            count: 1,
            accepted_at: Timestamp::UNIX_EPOCH,
            bytes: vec![0; bytes].into(),
            settled: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// Whoever waits for room is told of it, wherever it comes from.
    #[test]
    fn more_than_a_few_share_more() {
        const LEAST: usize = SHARERS * 10;
        let tail = Tail::new(LEAST);
        let push = |number: usize, bytes| {
            tail.push(
                IntegrationKey(number as i64),
                chunk(number as i64, bytes),
                false,
            );
        };
        for number in 1..=SHARERS {
            push(number, 8);
            assert_eq!(tail.most_bytes(), LEAST);
        }
        let all = || (1..).map(|number| IntegrationKey(number as i64));
        assert!(tail.is_behind(all().take(1)));
        let mut drained = pin!(tail.drained());
        let mut is_told = || {
            let mut cx = Context::from_waker(Waker::noop());
            drained.as_mut().poll(&mut cx).is_ready()
        };
        assert!(!is_told());
        let mut number = SHARERS;
        while tail.is_behind(all().take(1)) {
            assert!(!is_told());
            number += 1;
            push(number, 1);
        }
        assert!(is_told());
        assert_eq!(tail.most_bytes(), number * 10);
        for number in number + 1..3 * SHARERS {
            push(number, 1);
        }
        assert_eq!(tail.most_bytes(), 2 * LEAST);
        assert!(tail.is_sound());
    }

    #[test]
    fn what_is_delivered_leaves_nothing_behind() {
        let tail = Tail::new(1 << 20);
        let key = IntegrationKey(1);
        for id in 1..20_000 {
            tail.push(key, chunk(id, 8), id % 2 == 0);
            tail.finish(key, id);
        }
        let state = tail.lock();
        assert!(state.order.len() <= 1024, "{}", state.order.len());
        assert_eq!((state.count, state.bytes, state.packed_bytes), (0, 0, 0));
        assert!(state.bytes_of.is_empty());
    }
}
