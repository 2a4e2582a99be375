//! Which events a request takes.

use super::{BatchLimits, Delivery, Item, Key, chunk::State, keys::Slot};

/// Where at least so many full requests wait, and the stream takes them, each is of one half
/// of the keys first: with all of them in every request only one could be under way.
const SPLIT_FROM: usize = 2;

/// Which events a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// The oldest.
    Oldest,
    /// Those of keys of which none was refused alone.
    OtherKeys,
    /// Those that were not refused alone.
    Others,
}

/// A half of the keys at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Side(Slot);

impl Side {
    fn of(slot: Slot) -> Self {
        Self(slot % 2)
    }

    fn other(self) -> Self {
        Self(1 - self.0)
    }
}

/// A request in the making.
struct Picked {
    items: Vec<Item>,
    /// Of the items' keys.
    slots: Vec<Slot>,
    bytes: usize,
    /// The next event had no room.
    is_full: bool,
}

impl Delivery {
    /// Takes what may go, the oldest first, in log order.
    pub(super) fn pick(
        &mut self,
        limits: BatchLimits,
        pick: Pick,
        admit: &mut impl FnMut(Key, usize) -> bool,
    ) -> Vec<Item> {
        let most = limits.records.min(self.waiting);
        let mut picked = Picked {
            items: Vec::with_capacity(most),
            slots: Vec::with_capacity(most),
            bytes: 0,
            is_full: false,
        };
        self.keys.begin();
        let much = self.waiting / SPLIT_FROM >= limits.records;
        let splits = much && self.passes && pick == Pick::Oldest;
        match splits.then(|| self.oldest_side()).flatten() {
            None => self.pick_of(None, limits, pick, admit, &mut picked),
            Some(side) => {
                self.pick_of(Some(side), limits, pick, admit, &mut picked);
                if !picked.is_full {
                    self.pick_of(Some(side.other()), limits, pick, admit, &mut picked);
                    picked.items.sort_unstable_by_key(|item| item.sequence);
                }
            }
        }
        self.waiting -= picked.items.len();
        for slot in picked.slots {
            self.keys.set_in_flight(slot, true);
        }
        picked.items
    }

    /// That of the oldest event whose key is not busy.
    fn oldest_side(&self) -> Option<Side> {
        let waiting = self.chunks.iter().filter(|chunk| chunk.waiting > 0);
        let mut events = waiting.flat_map(|chunk| chunk.slots.iter().zip(&chunk.states));
        let oldest =
            events.find(|(slot, state)| **state == State::Waiting && !self.keys.is_busy(**slot));
        oldest.map(|(slot, _)| Side::of(*slot))
    }

    fn pick_of(
        &mut self,
        side: Option<Side>,
        limits: BatchLimits,
        pick: Pick,
        admit: &mut impl FnMut(Key, usize) -> bool,
        picked: &mut Picked,
    ) {
        let keys = &mut self.keys;
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.waiting > 0) {
            for index in 0..chunk.states.len() {
                if chunk.states[index] != State::Waiting {
                    continue;
                }
                let (key, slot) = (chunk.entries[index].key, chunk.slots[index]);
                let sequence = chunk.sequence(index);
                if side.is_some_and(|side| side != Side::of(slot)) {
                    continue;
                }
                if pick == Pick::Others && self.refusals.was_refused_alone(sequence) {
                    continue;
                }
                let unsent = self.failed.get(&key).map(|last| sequence > *last);
                let held_back = keys.is_held_back(slot)
                    || (unsent == Some(true) && keys.is_retried(slot))
                    || (pick == Pick::OtherKeys && self.refusals.was_refused_alone(sequence));
                if held_back {
                    // Its later events wait for it.
                    keys.pass_over(slot);
                    continue;
                }
                let weight = chunk.weight(index) + limits.overhead_bytes;
                let full =
                    picked.items.len() == limits.records || picked.bytes + weight > limits.bytes;
                if full && !picked.items.is_empty() {
                    picked.is_full = true;
                    return;
                }
                if !admit(key, weight) {
                    keys.pass_over(slot);
                    continue;
                }
                if unsent == Some(false) {
                    keys.retry(slot);
                }
                picked.bytes += weight;
                chunk.states[index] = State::InFlight;
                chunk.waiting -= 1;
                keys.leave(slot);
                picked.items.push(chunk.item(index));
                picked.slots.push(slot);
            }
        }
    }
}
