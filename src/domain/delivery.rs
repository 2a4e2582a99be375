//! The delivery of one integration's log, without any IO: which events go into the
//! next request, and what an answer settles.
//!
//! What it keeps true, whatever is in flight and whatever fails:
//! - two requests in flight never share a partition key;
//! - events of a key go out in log order;
//! - after a failure, a key's failed events are accepted before any event of that
//!   key which has not been sent yet;
//! - an event that was accepted is never sent again by this process.
//!
//! Records that AWS refuses while it takes others are put aside until the store has
//! given them up, and then a gap event takes their place. To find them out, a record
//! that was refused alone may be overtaken by one of its own key (see `refusal`).

mod batch;
mod chunk;
mod full;
mod give_up;
mod keys;
mod pick;
mod refusal;

use std::{cell::Cell, collections::VecDeque};

pub use self::{
    batch::{Batch, BatchLimits, Item, Outcome, Settlement},
    chunk::{Entry, Key, LoadedChunk},
};
use self::{
    chunk::{Chunk, State},
    keys::Keys,
    pick::Pick,
    refusal::{Record, Refusals},
};
use super::map::{Map, Set};

/// The part of an integration's log that is at hand, and what is in flight of it.
#[derive(Debug, Default)]
pub struct Delivery {
    /// In log order.
    chunks: VecDeque<Chunk>,
    keys: Keys,
    /// Of keys of which an event failed, the last event that was sent. Nothing after it
    /// goes while one up to it waits.
    failed: Map<Key, u64>,
    refusals: Refusals,
    bytes: usize,
    waiting: usize,
    in_flight: usize,
    /// Nothing may go until something is settled or loaded.
    exhausted: bool,
    /// The last answer took something.
    passes: bool,
}

impl Delivery {
    /// Adds the next chunk of the log. A chunk that is all settled is passed over
    /// and told as finished.
    pub fn load(&mut self, loaded: LoadedChunk) -> Option<i64> {
        let id = loaded.id;
        let Some(chunk) = Chunk::new(loaded, &mut self.keys) else {
            return Some(id);
        };
        self.exhausted = false;
        self.bytes += chunk.bytes.len();
        self.waiting += chunk.waiting;
        self.chunks.push_back(chunk);
        None
    }

    /// Events at hand that may be sent, now or later.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that are not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether it is being found out what is refused: the more is at hand, the better.
    pub fn is_narrowing(&self) -> bool {
        self.refusals.is_narrowing()
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
            refusals: std::mem::take(&mut self.refusals),
            ..Self::default()
        };
        from
    }

    /// The next request: the oldest events that may go. None where nothing may go now.
    pub fn next_batch(&mut self, limits: BatchLimits) -> Option<Batch> {
        self.next_batch_of(limits, |_, _| true)
    }

    /// As [`Delivery::next_batch`], of events that `admit`, given key and bytes, lets go
    /// now. What it refuses holds back its key.
    pub fn next_batch_of(
        &mut self,
        limits: BatchLimits,
        mut admit: impl FnMut(Key, usize) -> bool,
    ) -> Option<Batch> {
        let records = self.refusals.cap(limits.records);
        // While something is refused, one answer tells what the next request holds.
        let narrows = self.refusals.is_narrowing() && self.in_flight > 0;
        if self.exhausted || narrows || !self.keys.any_free() {
            return None;
        }
        let limits = BatchLimits { records, ..limits };
        let refused = Cell::new(false);
        let mut admit = |key, weight| {
            let admitted = admit(key, weight);
            refused.set(refused.get() || !admitted);
            admitted
        };
        let picked = match self.refusals.is_probing() {
            false => self.pick(limits, Pick::Oldest, &mut admit),
            true => self.pick_probe(limits, &refused, &mut admit),
        };
        if picked.is_empty() {
            self.exhausted = !refused.get();
            return None;
        }
        self.in_flight += 1;
        Some(Batch {
            items: picked,
            sent: self.refusals.sent(),
        })
    }

    /// Another record than those that were refused alone. Where one may go only later,
    /// none goes in its stead.
    fn pick_probe(
        &mut self,
        limits: BatchLimits,
        refused: &Cell<bool>,
        admit: &mut impl FnMut(Key, usize) -> bool,
    ) -> Vec<Item> {
        let mut picked = self.pick(limits, Pick::OtherKeys, admit);
        if picked.is_empty() && !refused.get() && self.refusals.may_overtake() {
            picked = self.pick(limits, Pick::Others, admit);
        }
        if picked.is_empty() && !refused.get() {
            // What was to be tried is not at hand any more.
            self.refusals.end_round(false);
            picked = self.pick(limits, Pick::Oldest, admit);
        }
        picked
    }

    /// Takes in what became of a batch: the outcome of each item. An item without an
    /// outcome counts as failed.
    pub fn settle(&mut self, batch: Batch, outcomes: &[Outcome]) -> Settlement {
        self.in_flight -= 1;
        self.exhausted = false;
        let outcome = |position| outcomes.get(position).copied().unwrap_or(Outcome::Failed);
        let records: Vec<Record> = batch
            .items
            .iter()
            .enumerate()
            .map(|(position, item)| Record {
                sequence: item.sequence,
                outcome: outcome(position),
                is_gap: item.gap.is_some(),
            })
            .collect();
        let findings = self.refusals.take_in(batch.sent, &records);
        let mut settlement = Settlement::default();
        let mut touched: Vec<i64> = Vec::new();
        for item in &batch.items {
            if let Some(chunk) = find(&mut self.chunks, item.chunk_id) {
                self.keys
                    .set_in_flight(chunk.slots[item.index as usize], false);
            }
        }
        for (item, record) in batch.items.iter().zip(records) {
            let Some(chunk) = find(&mut self.chunks, item.chunk_id) else {
                continue;
            };
            let slot = chunk.slots[item.index as usize];
            let state = &mut chunk.states[item.index as usize];
            if record.outcome == Outcome::Accepted {
                *state = State::Settled;
                chunk.unsettled -= 1;
                match item.gap {
                    Some(_) => settlement.gaps += 1,
                    None => settlement.accepted += 1,
                }
                settlement.accepted_bytes += item.stored.len() as u64;
                if touched.last() != Some(&item.chunk_id) {
                    touched.push(item.chunk_id);
                }
                continue;
            }
            let last = self.failed.entry(item.key).or_default();
            *last = item.sequence.max(*last);
            if findings.given_up.contains(&item.sequence) {
                *state = State::Refused;
                settlement.refused += 1;
                self.keys.refuse(slot);
            } else {
                *state = State::Waiting;
                chunk.waiting += 1;
                self.waiting += 1;
                self.keys.wait(slot);
            }
        }
        self.passes = settlement.passed() > 0;
        settlement.narrowing = findings.halved || (findings.probe && self.has_untried());
        if !findings.halved && !settlement.narrowing {
            self.refusals.end_round(findings.probe);
        }
        self.report(touched, &mut settlement);
        settlement
    }

    /// Whether there is a record that [`Delivery::next_batch`] may try after one that was
    /// refused alone.
    fn has_untried(&self) -> bool {
        let refusals = &self.refusals;
        let mut keys = Set::default();
        self.chunks.iter().any(|chunk| {
            let mut states = chunk.states.iter().enumerate();
            states.any(|(index, state)| {
                let key = chunk.entries[index].key;
                *state == State::Waiting
                    && (keys.insert(key) || refusals.may_overtake())
                    && !refusals.was_refused_alone(chunk.sequence(index))
            })
        })
    }

    fn report(&mut self, touched: Vec<i64>, settlement: &mut Settlement) {
        for id in touched {
            let Some(chunk) = find(&mut self.chunks, id) else {
                continue;
            };
            if chunk.unsettled == 0 {
                settlement.finished.push(id);
            } else {
                settlement
                    .partial
                    .push((id, chunk.bitmap(), chunk.unsettled_bytes()));
            }
        }
        if !settlement.finished.is_empty() {
            self.drop_finished();
        }
    }

    fn drop_finished(&mut self) {
        let Some(back) = self.chunks.back() else {
            return;
        };
        let end = back.sequence(back.states.len());
        let (bytes, keys) = (&mut self.bytes, &mut self.keys);
        self.chunks.retain(|chunk| {
            let keep = chunk.unsettled > 0;
            if !keep {
                *bytes -= chunk.bytes.len();
                chunk.slots.iter().for_each(|slot| keys.remove(*slot));
            }
            keep
        });
        let front = self.chunks.front();
        // Before it nothing waits.
        let from = front.map_or(end, |front| front.first_sequence);
        self.failed.retain(|_, last| *last >= from);
    }
}

/// Chunk numbers rise in log order, and few chunks are at hand.
fn find(chunks: &mut VecDeque<Chunk>, id: i64) -> Option<&mut Chunk> {
    let at = chunks.binary_search_by_key(&id, |chunk| chunk.id).ok()?;
    chunks.get_mut(at)
}

#[cfg(test)]
mod tests;
