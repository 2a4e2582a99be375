//! Loaded chunk: the state of each of its records.

use bytes::Bytes;

use super::{
    BatchRecord, Key,
    keys::{Keys, Slot},
};
use crate::domain::{
    chunk::Chunk,
    segment::{self, Damaged, SegmentEvent},
    sequences::Sequences,
    trace::TraceContext,
};

/// Upper bound of the body of a gap event, with its head.
const GAP_BYTES: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordState {
    Waiting,
    InFlight,
    /// To be given up. Only after that is durable, a gap replaces it.
    Refused,
    /// Accepted, or covered by a gap.
    Settled,
}

#[derive(Debug)]
pub(super) struct LoadedChunk {
    chunk: Chunk,
    /// One per sequence. That of a gap has the gap key, and no bytes.
    pub(super) events: Vec<SegmentEvent>,
    /// Slot of each event's key.
    pub(super) slots: Vec<Slot>,
    pub(super) states: Vec<RecordState>,
    /// Number of records that wait.
    pub(super) waiting: usize,
}

fn without_bytes(partition_key: Key) -> SegmentEvent {
    SegmentEvent {
        partition_key,
        stored: 0..0,
        body_length: 0,
    }
}

impl LoadedChunk {
    pub(super) fn new(chunk: Chunk, gap_key: Key, keys: &mut Keys) -> Result<Self, Damaged> {
        let mut events = match chunk.pending_events() {
            // The segment may have been removed.
            0 => vec![without_bytes(gap_key); chunk.count as usize],
            _ => segment::events(&chunk.segment, chunk.count)?,
        };
        if events.len() != chunk.count as usize {
            return Err(Damaged);
        }
        for gap in &chunk.gaps {
            let index = gap.last_sequence.checked_sub(chunk.first_sequence);
            let event = index.and_then(|index| events.get_mut(index as usize));
            *event.ok_or(Damaged)? = without_bytes(gap_key);
        }
        let mut states = vec![RecordState::Waiting; events.len()];
        for sequence in chunk.settled.iter() {
            let index = sequence.checked_sub(chunk.first_sequence);
            let state = index.and_then(|index| states.get_mut(index as usize));
            *state.ok_or(Damaged)? = RecordState::Settled;
        }
        let mut waiting = 0;
        let mut slots = Vec::with_capacity(events.len());
        for (event, state) in events.iter().zip(&states) {
            let slot = keys.add(event.partition_key);
            if *state == RecordState::Waiting {
                keys.add_waiting(slot);
                waiting += 1;
            }
            slots.push(slot);
        }
        Ok(Self {
            chunk,
            events,
            slots,
            states,
            waiting,
        })
    }

    pub(super) fn first_sequence(&self) -> u64 {
        self.chunk.first_sequence
    }

    pub(super) fn end_sequence(&self) -> u64 {
        self.chunk.end_sequence()
    }

    pub(super) fn sequence(&self, index: usize) -> u64 {
        self.chunk.first_sequence + index as u64
    }

    pub(super) fn traces(&self) -> &[TraceContext] {
        &self.chunk.traces
    }

    pub(super) fn is_finished(&self) -> bool {
        self.chunk.is_finished()
    }

    pub(super) fn bytes(&self) -> usize {
        self.chunk.segment.len()
    }

    /// Bytes of a record's body, as a request counts them.
    pub(super) fn body_bytes(&self, index: usize) -> usize {
        match self.events[index].body_length {
            // The body of a gap event is rendered when it is sent.
            0 => GAP_BYTES,
            bytes => bytes as usize,
        }
    }

    pub(super) fn record(&self, index: usize) -> BatchRecord {
        let (event, sequence) = (&self.events[index], self.sequence(index));
        let gaps = &self.chunk.gaps;
        let gap = gaps.iter().find(|gap| gap.last_sequence == sequence);
        BatchRecord {
            sequence,
            key: event.partition_key,
            stored: match gap {
                Some(_) => Bytes::new(),
                None => {
                    let stored = event.stored.start as usize..event.stored.end as usize;
                    self.chunk.segment.slice(stored)
                }
            },
            body_bytes: self.body_bytes(index),
            gap: gap.map(|gap| Box::new(*gap)),
        }
    }

    /// Settles accepted records, whose state is set already. Returns the chunk's new state if
    /// any of them is in it.
    pub(super) fn settle(&mut self, accepted: &Sequences) -> Option<Chunk> {
        let (first, last) = (self.chunk.first_sequence, self.chunk.last_sequence());
        if accepted.within(first, last).is_empty() {
            return None;
        }
        self.chunk.settle(accepted);
        let events = self.events.iter().zip(&self.states);
        self.chunk.pending_bytes = events
            .filter(|(_, state)| **state != RecordState::Settled)
            .map(|(event, _)| event.stored.len() as u64)
            .sum();
        Some(self.chunk.state())
    }

    /// Sequences of the records in a state, with the stored bytes of each.
    pub(super) fn in_state(&self, wanted: RecordState) -> impl Iterator<Item = (u64, u32)> + '_ {
        let states = self.states.iter().enumerate();
        states
            .filter(move |(_, state)| **state == wanted)
            .map(|(index, _)| {
                let bytes = self.events[index].stored.len() as u32;
                (self.sequence(index), bytes)
            })
    }

    /// Applies what was given up of the chunk, except to records in flight. A refused record
    /// that was given up does not block its key any more.
    pub(super) fn apply(&mut self, given_up: &Chunk, gap_key: Key, keys: &mut Keys) {
        for index in 0..self.states.len() {
            let before = self.states[index];
            if !matches!(before, RecordState::Waiting | RecordState::Refused) {
                continue;
            }
            let sequence = self.sequence(index);
            let settled = given_up.settled.contains(sequence);
            if !settled && !given_up.is_gap(sequence) {
                continue;
            }
            let slot = self.slots[index];
            if before == RecordState::Refused {
                keys.unblock(slot);
            } else {
                keys.remove_waiting(slot);
                self.waiting -= 1;
            }
            if settled {
                self.states[index] = RecordState::Settled;
            } else {
                self.states[index] = RecordState::Waiting;
                self.waiting += 1;
                self.slots[index] = keys.add(gap_key);
                keys.add_waiting(self.slots[index]);
                keys.remove(slot);
                self.events[index] = without_bytes(gap_key);
            }
        }
        self.chunk.settle(&given_up.settled);
        self.chunk.gaps.clone_from(&given_up.gaps);
        self.chunk.pending_bytes = given_up.pending_bytes;
    }
}
