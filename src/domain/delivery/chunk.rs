//! A chunk at hand: which of its events wait, are in flight, or are done with.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Item,
    keys::{Keys, Slot},
};
use crate::domain::{
    bitmap,
    gap::{ChunkState, Marked, PlacedGap},
};

/// A partition key: the UUID of a device, or of the integration.
pub type Key = u128;

/// One event of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its partition key.
    pub key: Key,
    /// Where it is in the chunk's bytes; nowhere for a gap.
    pub stored: Range<u32>,
    /// Bytes of its body as it is sent; 0 for a gap.
    pub body_length: u32,
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
    /// A bit an event: accepted or given up already. Empty where none is.
    pub settled: Vec<u8>,
    /// Gaps that wait in the place of events, by index.
    pub gaps: Vec<PlacedGap>,
}

/// What a gap event weighs at the most, with its head.
const GAP_BYTES: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    InFlight,
    /// To be given up; it is in its place until that is durable.
    Refused,
    /// Accepted, or given up.
    Settled,
}

#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) id: i64,
    pub(super) first_sequence: u64,
    pub(super) entries: Vec<Entry>,
    /// Of each entry's key.
    pub(super) slots: Vec<Slot>,
    pub(super) bytes: Bytes,
    pub(super) states: Vec<State>,
    pub(super) waiting: usize,
    pub(super) unsettled: usize,
    /// By index.
    gaps: Vec<PlacedGap>,
}

impl Chunk {
    /// None where all of it is settled.
    pub(super) fn new(loaded: LoadedChunk, keys: &mut Keys) -> Option<Self> {
        let states: Vec<State> = (0..loaded.entries.len())
            .map(|index| match bitmap::get(&loaded.settled, index) {
                true => State::Settled,
                false => State::Waiting,
            })
            .collect();
        let waiting = states.iter().filter(|s| **s == State::Waiting).count();
        if waiting == 0 {
            return None;
        }
        let add = |(entry, state): (&Entry, &State)| {
            let slot = keys.add(entry.key);
            if *state == State::Waiting {
                keys.wait(slot);
            }
            slot
        };
        let slots = loaded.entries.iter().zip(&states).map(add).collect();
        Some(Self {
            id: loaded.id,
            first_sequence: loaded.first_sequence,
            entries: loaded.entries,
            slots,
            bytes: loaded.bytes,
            states,
            waiting,
            unsettled: waiting,
            gaps: loaded.gaps,
        })
    }

    pub(super) fn sequence(&self, index: usize) -> u64 {
        self.first_sequence + index as u64
    }

    fn gap(&self, index: usize) -> Option<&PlacedGap> {
        self.gaps.iter().find(|gap| gap.index as usize == index)
    }

    /// Bytes of an event, as a request counts them.
    pub(super) fn weight(&self, index: usize) -> usize {
        match self.entries[index].body_length {
            // A gap's body is made when it is sent.
            0 => GAP_BYTES,
            bytes => bytes as usize,
        }
    }

    pub(super) fn item(&self, index: usize) -> Item {
        let entry = &self.entries[index];
        Item {
            sequence: self.sequence(index),
            key: entry.key,
            stored: self
                .bytes
                .slice(entry.stored.start as usize..entry.stored.end as usize),
            weight: self.weight(index),
            gap: self.gap(index).map(|placed| Box::new(placed.gap)),
            chunk_id: self.id,
            index: index as u32,
        }
    }

    pub(super) fn bitmap(&self) -> Vec<u8> {
        let mut bitmap = vec![0; self.states.len().div_ceil(8)];
        for (index, state) in self.states.iter().enumerate() {
            if *state == State::Settled {
                bitmap::set(&mut bitmap, index);
            }
        }
        bitmap
    }

    pub(super) fn unsettled_bytes(&self) -> u64 {
        self.entries
            .iter()
            .zip(&self.states)
            .filter(|(_, state)| **state != State::Settled)
            .map(|(entry, _)| entry.stored.len() as u64)
            .sum()
    }

    /// Its events in a state; None where there are none.
    pub(super) fn marked(&self, wanted: State) -> Option<Marked> {
        let mut marked = Marked {
            chunk_id: self.id,
            ..Marked::default()
        };
        for (index, state) in self.states.iter().enumerate() {
            if *state == wanted {
                bitmap::set(&mut marked.events, index);
                marked.bytes += self.entries[index].stored.len() as u64;
            }
        }
        (!marked.events.is_empty()).then_some(marked)
    }

    /// Takes in what was given up of it, but for what is in flight. The key of each
    /// refused event that is done with is no longer busy.
    pub(super) fn apply(&mut self, state: &ChunkState, gap_key: Key, keys: &mut Keys) {
        for index in 0..self.states.len() {
            let before = self.states[index];
            if !matches!(before, State::Waiting | State::Refused) {
                continue;
            }
            let gap = state.gaps.iter().any(|gap| gap.index as usize == index);
            let settled = bitmap::get(&state.settled, index);
            if !gap && !settled {
                continue;
            }
            let slot = self.slots[index];
            if before == State::Refused {
                keys.end_refusal(slot);
            } else {
                keys.leave(slot);
                self.waiting -= 1;
            }
            if settled {
                self.states[index] = State::Settled;
                self.unsettled -= 1;
            } else {
                self.states[index] = State::Waiting;
                self.waiting += 1;
                self.slots[index] = keys.add(gap_key);
                keys.wait(self.slots[index]);
                keys.remove(slot);
                self.entries[index] = Entry {
                    key: gap_key,
                    stored: 0..0,
                    body_length: 0,
                };
            }
        }
        self.gaps.clone_from(&state.gaps);
    }
}
