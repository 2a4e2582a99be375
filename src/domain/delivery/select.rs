//! Selection of the records of the next request.

use std::cell::Cell;

use super::{
    Batch, BatchLimits, BatchRecord, Delivery, Key, find, keys::Slot, loaded::RecordState,
};
use crate::domain::trace::{TraceContext, add_traces};

/// Number of full requests that must wait for the keys to be split. Then, if the stream accepts
/// records, a request prefers one half of the keys: with all of them in every request, only one
/// request could be in flight.
const SPLIT_FROM: usize = 2;

/// Records that a request may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidates {
    /// All.
    All,
    /// Those of keys of which none was refused alone.
    OtherKeys,
    /// Those that were not refused alone.
    NotRefusedAlone,
}

/// Half of the keys.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Half(Slot);

impl Half {
    fn of(slot: Slot) -> Self {
        Self(slot % 2)
    }

    fn other(self) -> Self {
        Self(1 - self.0)
    }
}

/// Records selected so far.
struct Selection {
    limits: BatchLimits,
    candidates: Candidates,
    records: Vec<BatchRecord>,
    /// Slots of the records' keys.
    slots: Vec<Slot>,
    bytes: usize,
    /// The next record exceeds a limit.
    is_full: bool,
}

impl Delivery {
    /// Returns the next request: the oldest records that may be sent. None if none may be sent
    /// now.
    pub fn next_batch(&mut self, limits: BatchLimits) -> Option<Batch> {
        self.next_admitted_batch(limits, |_, _| true)
    }

    /// Same as [`Delivery::next_batch`] for records that `admit`, given key and bytes, admits.
    /// A record that is not admitted holds back its key.
    pub fn next_admitted_batch(
        &mut self,
        limits: BatchLimits,
        mut admit: impl FnMut(Key, usize) -> bool,
    ) -> Option<Batch> {
        let records = self.refusals.max_records(limits.records);
        // While narrowing, the next request depends on the answer to the last one.
        let awaits_answer = self.refusals.is_narrowing() && self.in_flight > 0;
        if self.exhausted || awaits_answer || !self.keys.any_free() {
            return None;
        }
        let limits = BatchLimits { records, ..limits };
        let denied = Cell::new(false);
        let mut admit = |key, bytes| {
            let admitted = admit(key, bytes);
            denied.set(denied.get() || !admitted);
            admitted
        };
        let records = match self.refusals.is_probing() {
            false => self.select(limits, Candidates::All, &mut admit),
            true => self.select_probe(limits, &denied, &mut admit),
        };
        if records.is_empty() {
            self.exhausted = !denied.get();
            return None;
        }
        self.in_flight += 1;
        Some(Batch {
            traces: self.traces_of(&records),
            records,
            sent: self.refusals.sent(),
        })
    }

    /// Spans in which the events of records, in the order of their sequences, were published.
    fn traces_of(&self, records: &[BatchRecord]) -> Vec<TraceContext> {
        let mut traces = Vec::new();
        for chunk in &self.chunks {
            if chunk.traces().is_empty() {
                continue;
            }
            let from = records.partition_point(|one| one.sequence < chunk.first_sequence());
            let first = records.get(from);
            if first.is_some_and(|first| first.sequence < chunk.end_sequence()) {
                add_traces(&mut traces, chunk.traces().iter().copied());
            }
        }
        traces
    }

    /// Same as [`Delivery::next_batch`], but also None if the request could contain more. Not
    /// to be used while narrowing.
    pub fn next_full_batch(&mut self, limits: BatchLimits) -> Option<Batch> {
        let batch = self.next_batch(limits)?;
        let bodies = batch.records.iter().map(|record| record.body_bytes);
        let bytes = bodies.sum::<usize>() + batch.records.len() * limits.overhead_bytes;
        // The next record may have exceeded the bytes that were left.
        let is_full = batch.records.len() >= limits.records || bytes > limits.bytes / 2;
        if is_full {
            return Some(batch);
        }
        self.put_back(batch);
        None
    }

    /// Takes back a batch that was not sent.
    fn put_back(&mut self, batch: Batch) {
        self.in_flight -= 1;
        self.waiting += batch.records.len();
        for record in &batch.records {
            if let Some((chunk, index)) = find(&mut self.chunks, record.sequence) {
                self.keys.set_in_flight(chunk.slots[index], false);
                self.keys.add_waiting(chunk.slots[index]);
                chunk.states[index] = RecordState::Waiting;
                chunk.waiting += 1;
            }
        }
    }

    /// Selects a record other than those that were refused alone. If `admit` denies one for
    /// now, no other replaces it.
    fn select_probe(
        &mut self,
        limits: BatchLimits,
        denied: &Cell<bool>,
        admit: &mut impl FnMut(Key, usize) -> bool,
    ) -> Vec<BatchRecord> {
        let mut records = self.select(limits, Candidates::OtherKeys, admit);
        if records.is_empty() && !denied.get() && self.refusals.may_overtake() {
            records = self.select(limits, Candidates::NotRefusedAlone, admit);
        }
        if records.is_empty() && !denied.get() {
            // The records to try are not loaded any more.
            self.refusals.end_round(false);
            records = self.select(limits, Candidates::All, admit);
        }
        records
    }

    /// Takes the records of a request, the oldest first, and returns them in the order of
    /// their sequences.
    fn select(
        &mut self,
        limits: BatchLimits,
        candidates: Candidates,
        admit: &mut impl FnMut(Key, usize) -> bool,
    ) -> Vec<BatchRecord> {
        let capacity = limits.records.min(self.waiting);
        let mut selection = Selection {
            limits,
            candidates,
            records: Vec::with_capacity(capacity),
            slots: Vec::with_capacity(capacity),
            bytes: 0,
            is_full: false,
        };
        self.keys.begin_request();
        let splits = self.accepts
            && candidates == Candidates::All
            && self.waiting / SPLIT_FROM >= limits.records;
        match splits.then(|| self.oldest_half()).flatten() {
            None => self.select_from(None, admit, &mut selection),
            Some(half) => {
                self.select_from(Some(half), admit, &mut selection);
                if !selection.is_full {
                    self.select_from(Some(half.other()), admit, &mut selection);
                    selection.records.sort_unstable_by_key(|one| one.sequence);
                }
            }
        }
        self.waiting -= selection.records.len();
        for slot in selection.slots {
            self.keys.set_in_flight(slot, true);
        }
        selection.records
    }

    /// Half with the key of the oldest record that may be sent.
    fn oldest_half(&self) -> Option<Half> {
        let chunks = self.chunks.iter().filter(|chunk| chunk.waiting > 0);
        let mut records = chunks.flat_map(|chunk| chunk.slots.iter().zip(&chunk.states));
        let oldest = records.find(|(slot, state)| {
            **state == RecordState::Waiting && !self.keys.is_unavailable(**slot)
        });
        oldest.map(|(slot, _)| Half::of(*slot))
    }

    fn select_from(
        &mut self,
        half: Option<Half>,
        admit: &mut impl FnMut(Key, usize) -> bool,
        selection: &mut Selection,
    ) {
        let (keys, refusals) = (&mut self.keys, &self.refusals);
        let Selection {
            limits, candidates, ..
        } = *selection;
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.waiting > 0) {
            for index in 0..chunk.states.len() {
                if chunk.states[index] != RecordState::Waiting {
                    continue;
                }
                let (key, slot) = (chunk.events[index].partition_key, chunk.slots[index]);
                let sequence = chunk.sequence(index);
                if half.is_some_and(|half| half != Half::of(slot)) {
                    continue;
                }
                if candidates == Candidates::NotRefusedAlone && refusals.was_refused_alone(sequence)
                {
                    continue;
                }
                let failed_up_to = self.failed.get(&key);
                let is_retry = failed_up_to.is_some_and(|last| sequence <= *last);
                let held_back = keys.is_held_back(slot)
                    || (failed_up_to.is_some() && !is_retry && keys.has_retry(slot))
                    || (candidates == Candidates::OtherKeys
                        && refusals.was_refused_alone(sequence));
                if held_back {
                    // Later records of the key must not overtake it.
                    keys.hold_back(slot);
                    continue;
                }
                let bytes = chunk.body_bytes(index) + limits.overhead_bytes;
                let full = selection.records.len() == limits.records
                    || selection.bytes + bytes > limits.bytes;
                if full && !selection.records.is_empty() {
                    selection.is_full = true;
                    return;
                }
                if !admit(key, bytes) {
                    keys.hold_back(slot);
                    continue;
                }
                if is_retry {
                    keys.add_retry(slot);
                }
                chunk.states[index] = RecordState::InFlight;
                chunk.waiting -= 1;
                keys.remove_waiting(slot);
                selection.bytes += bytes;
                selection.records.push(chunk.record(index));
                selection.slots.push(slot);
            }
        }
    }
}
