//! The delivery of one integration's log, without any IO: which events go into the
//! next request, and what an answer settles.
//!
//! What it keeps true, whatever is in flight and whatever fails:
//! - two requests in flight never share a partition key;
//! - events of a key go out in log order;
//! - after a failure, a key's failed events are accepted before any event of that
//!   key which has not been sent yet;
//! - an event that was accepted is never sent again by this process.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
};

use bytes::Bytes;

/// A partition key: the UUID of a device, or of the integration.
pub type Key = u128;

/// One event of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its partition key.
    pub key: Key,
    /// Where its body is in the chunk's bytes.
    pub body: Range<u32>,
}

/// A chunk of the log, as it was read.
#[derive(Clone, Debug)]
pub struct LoadedChunk {
    /// The store's number of the chunk.
    pub id: i64,
    /// The sequence of its first event.
    pub first_sequence: u64,
    /// Its events in log order.
    pub entries: Vec<Entry>,
    /// What the entries point into.
    pub bytes: Bytes,
    /// A bit an event, lowest first: accepted already. Empty where none is.
    pub accepted: Vec<u8>,
}

/// What a request may hold.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Events at the most.
    pub records: usize,
    /// Bytes at the most, counted as body, key and [`BatchLimits::overhead_bytes`].
    pub bytes: usize,
    /// What each record weighs beyond its stored body.
    pub overhead_bytes: usize,
}

/// One event of a request.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its place in the integration's log.
    pub sequence: u64,
    /// Its partition key.
    pub key: Key,
    /// Its stored body.
    pub body: Bytes,
    chunk_id: i64,
    index: u32,
}

/// The events of one request. Hand it back to [`Delivery::settle`], whatever happened.
#[derive(Debug)]
#[must_use = "a batch that is not settled blocks its keys"]
pub struct Batch {
    /// In log order; at least one.
    pub items: Vec<Item>,
}

/// What an answer changed, for the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Chunks of which every event is accepted.
    pub finished: Vec<i64>,
    /// Chunks that are accepted in part: number, bitmap, bytes that still wait.
    pub partial: Vec<(i64, Vec<u8>, u64)>,
    /// Events accepted by this answer.
    pub accepted: u64,
    /// Stored bytes of those events.
    pub accepted_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight,
    Accepted,
}

#[derive(Debug)]
struct Chunk {
    id: i64,
    first_sequence: u64,
    entries: Vec<Entry>,
    bytes: Bytes,
    states: Vec<State>,
    waiting: usize,
    unaccepted: usize,
}

impl Chunk {
    fn new(loaded: LoadedChunk) -> Self {
        let states: Vec<State> = (0..loaded.entries.len())
            .map(|index| match bit(&loaded.accepted, index) {
                true => State::Accepted,
                false => State::Waiting,
            })
            .collect();
        let waiting = states.iter().filter(|s| **s == State::Waiting).count();
        Self {
            id: loaded.id,
            first_sequence: loaded.first_sequence,
            entries: loaded.entries,
            bytes: loaded.bytes,
            states,
            waiting,
            unaccepted: waiting,
        }
    }

    fn item(&self, index: usize) -> Item {
        let entry = &self.entries[index];
        Item {
            sequence: self.first_sequence + index as u64,
            key: entry.key,
            body: self
                .bytes
                .slice(entry.body.start as usize..entry.body.end as usize),
            chunk_id: self.id,
            index: index as u32,
        }
    }

    fn bitmap(&self) -> Vec<u8> {
        let mut bitmap = vec![0; self.states.len().div_ceil(8)];
        for (index, state) in self.states.iter().enumerate() {
            if *state == State::Accepted {
                bitmap[index / 8] |= 1 << (index % 8);
            }
        }
        bitmap
    }

    fn unaccepted_bytes(&self) -> u64 {
        self.entries
            .iter()
            .zip(&self.states)
            .filter(|(_, state)| **state != State::Accepted)
            .map(|(entry, _)| entry.body.len() as u64)
            .sum()
    }
}

fn bit(bitmap: &[u8], index: usize) -> bool {
    bitmap
        .get(index / 8)
        .is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    last_sent: u64,
    /// Events up to the last that were sent and are not accepted.
    outstanding: usize,
}

/// The part of an integration's log that is at hand, and what is in flight of it.
#[derive(Debug, Default)]
pub struct Delivery {
    /// In log order.
    chunks: VecDeque<Chunk>,
    /// Keys of which a request is in flight.
    busy: HashSet<Key>,
    /// Keys of which an event failed that is not accepted yet.
    failed: HashMap<Key, Failed>,
    bytes: usize,
    waiting: usize,
    in_flight: usize,
    /// Nothing may go until something is settled or loaded.
    exhausted: bool,
}

impl Delivery {
    /// Adds the next chunk of the log. A chunk that is all accepted is passed over
    /// and told as finished.
    pub fn load(&mut self, loaded: LoadedChunk) -> Option<i64> {
        let chunk = Chunk::new(loaded);
        if chunk.unaccepted == 0 {
            return Some(chunk.id);
        }
        self.exhausted = false;
        self.bytes += chunk.bytes.len();
        self.waiting += chunk.waiting;
        self.chunks.push_back(chunk);
        None
    }

    /// Events at hand that are neither accepted nor in flight.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that are not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes of the chunks at hand.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no chunk is at hand.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Forgets the chunks at hand, to read them again later. Only while nothing is
    /// in flight. Returns the sequence from which to read.
    pub fn unload(&mut self) -> Option<u64> {
        debug_assert_eq!(self.in_flight, 0);
        let from = self.chunks.front().map(|chunk| chunk.first_sequence);
        *self = Self {
            failed: std::mem::take(&mut self.failed),
            ..Self::default()
        };
        from
    }

    /// The next request: the oldest events that may go. None where nothing may go now.
    pub fn next_batch(&mut self, limits: BatchLimits) -> Option<Batch> {
        self.next_batch_of(limits, |_, _| true)
    }

    /// As [`Delivery::next_batch`], of events that `admit`, given key and bytes, lets go
    /// now. It is asked at most once for each, and what it refuses holds back its key.
    pub fn next_batch_of(
        &mut self,
        limits: BatchLimits,
        mut admit: impl FnMut(Key, usize) -> bool,
    ) -> Option<Batch> {
        if self.exhausted {
            return None;
        }
        let mut picked = Vec::new();
        let mut passed_over = HashSet::new();
        let mut refused = false;
        let mut bytes = 0;
        'chunks: for chunk in self.chunks.iter_mut().filter(|chunk| chunk.waiting > 0) {
            for index in 0..chunk.states.len() {
                if chunk.states[index] != State::Waiting {
                    continue;
                }
                let entry = &chunk.entries[index];
                let sequence = chunk.first_sequence + index as u64;
                let held_back = self.busy.contains(&entry.key)
                    || passed_over.contains(&entry.key)
                    || self
                        .failed
                        .get(&entry.key)
                        .is_some_and(|failed| sequence > failed.last_sent);
                if held_back {
                    // Its later events wait for it.
                    passed_over.insert(entry.key);
                    continue;
                }
                let weight = entry.body.len() + limits.overhead_bytes;
                let full = picked.len() == limits.records || bytes + weight > limits.bytes;
                if full && !picked.is_empty() {
                    break 'chunks;
                }
                if !admit(entry.key, weight) {
                    refused = true;
                    passed_over.insert(entry.key);
                    continue;
                }
                bytes += weight;
                chunk.states[index] = State::InFlight;
                chunk.waiting -= 1;
                picked.push(chunk.item(index));
            }
        }
        if picked.is_empty() {
            self.exhausted = !refused;
            return None;
        }
        self.waiting -= picked.len();
        self.in_flight += 1;
        self.busy.extend(picked.iter().map(|item| item.key));
        Some(Batch { items: picked })
    }

    /// Takes in what became of a batch: whether each item was accepted. An item
    /// without an outcome counts as failed.
    pub fn settle(&mut self, batch: Batch, accepted: &[bool]) -> Settlement {
        self.in_flight -= 1;
        self.exhausted = false;
        let mut settlement = Settlement::default();
        let mut touched: Vec<i64> = Vec::new();
        for (position, item) in batch.items.iter().enumerate() {
            self.busy.remove(&item.key);
            let accepted = accepted.get(position).copied().unwrap_or(false);
            self.track_failed(item, accepted);
            let Some(chunk) = find(&mut self.chunks, item.chunk_id) else {
                continue;
            };
            let index = item.index as usize;
            if accepted {
                chunk.states[index] = State::Accepted;
                chunk.unaccepted -= 1;
                settlement.accepted += 1;
                settlement.accepted_bytes += item.body.len() as u64;
                if touched.last() != Some(&item.chunk_id) {
                    touched.push(item.chunk_id);
                }
            } else {
                chunk.states[index] = State::Waiting;
                chunk.waiting += 1;
                self.waiting += 1;
            }
        }
        self.report(touched, &mut settlement);
        settlement
    }

    /// Events of a key are sent in order, so all of it up to the last that was sent
    /// has been sent.
    fn track_failed(&mut self, item: &Item, accepted: bool) {
        match self.failed.get_mut(&item.key) {
            Some(failed) if item.sequence <= failed.last_sent => {
                failed.outstanding -= usize::from(accepted);
                if failed.outstanding == 0 {
                    self.failed.remove(&item.key);
                }
            }
            Some(failed) => {
                failed.last_sent = item.sequence;
                failed.outstanding += usize::from(!accepted);
            }
            None if !accepted => {
                let failed = Failed {
                    last_sent: item.sequence,
                    outstanding: 1,
                };
                self.failed.insert(item.key, failed);
            }
            None => {}
        }
    }

    fn report(&mut self, touched: Vec<i64>, settlement: &mut Settlement) {
        for id in touched {
            let Some(chunk) = find(&mut self.chunks, id) else {
                continue;
            };
            if chunk.unaccepted == 0 {
                settlement.finished.push(id);
            } else {
                settlement
                    .partial
                    .push((id, chunk.bitmap(), chunk.unaccepted_bytes()));
            }
        }
        if !settlement.finished.is_empty() {
            let bytes = &mut self.bytes;
            self.chunks.retain(|chunk| {
                let keep = chunk.unaccepted > 0;
                if !keep {
                    *bytes -= chunk.bytes.len();
                }
                keep
            });
        }
    }
}

/// Chunk numbers rise in log order, and few chunks are at hand.
fn find(chunks: &mut VecDeque<Chunk>, id: i64) -> Option<&mut Chunk> {
    let at = chunks.binary_search_by_key(&id, |chunk| chunk.id).ok()?;
    chunks.get_mut(at)
}

#[cfg(test)]
mod tests;
