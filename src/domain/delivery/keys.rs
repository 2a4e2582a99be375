//! Partition keys of the loaded records. Each has a slot, so that most operations on a key
//! need no look-up in a map.

use super::Key;
use crate::domain::map::Map;

/// Index of a key, valid while a record of the key is loaded.
pub(super) type Slot = u32;

#[derive(Debug, Default)]
pub(super) struct Keys {
    slots: Map<Key, Slot>,
    states: Vec<KeyState>,
    unused: Vec<Slot>,
    /// Number of keys of which a record waits and may be sent.
    free: usize,
    /// Number of requests begun.
    request: u64,
}

#[derive(Debug, Default)]
struct KeyState {
    key: Key,
    /// Number of loaded records.
    records: u32,
    /// Number of those that wait.
    waiting: u32,
    /// A request with the key is in flight.
    in_flight: bool,
    /// Number of refused records that block the key.
    blocked: u32,
    /// Last request for which a record of the key was held back.
    held_back: u64,
    /// Last request that contains a failed record of the key.
    retried: u64,
}

impl KeyState {
    fn is_free(&self) -> bool {
        self.waiting > 0 && !self.is_unavailable()
    }

    fn is_unavailable(&self) -> bool {
        self.in_flight || self.blocked > 0
    }
}

impl Keys {
    /// Adds a record that does not wait.
    pub(super) fn add(&mut self, key: Key) -> Slot {
        let slot = *self.slots.entry(key).or_insert_with(|| {
            let state = KeyState {
                key,
                ..KeyState::default()
            };
            match self.unused.pop() {
                Some(slot) => {
                    self.states[slot as usize] = state;
                    slot
                }
                None => {
                    self.states.push(state);
                    self.states.len() as Slot - 1
                }
            }
        });
        self.states[slot as usize].records += 1;
        slot
    }

    /// Removes a record that does not wait.
    pub(super) fn remove(&mut self, slot: Slot) {
        let state = &mut self.states[slot as usize];
        state.records -= 1;
        if state.records == 0 {
            self.slots.remove(&state.key);
            self.unused.push(slot);
        }
    }

    /// Makes a record of the key wait.
    pub(super) fn add_waiting(&mut self, slot: Slot) {
        self.change(slot, |state| state.waiting += 1);
    }

    /// Makes a record of the key that waits wait no more.
    pub(super) fn remove_waiting(&mut self, slot: Slot) {
        self.change(slot, |state| state.waiting -= 1);
    }

    /// Sets whether a request with the key is in flight.
    pub(super) fn set_in_flight(&mut self, slot: Slot, in_flight: bool) {
        self.change(slot, |state| state.in_flight = in_flight);
    }

    /// Blocks the key until its refused record is given up or kept.
    pub(super) fn block(&mut self, slot: Slot) {
        self.change(slot, |state| state.blocked += 1);
    }

    /// Ends one [`Keys::block`].
    pub(super) fn unblock(&mut self, slot: Slot) {
        self.change(slot, |state| state.blocked -= 1);
    }

    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut KeyState)) {
        let state = &mut self.states[slot as usize];
        let before = state.is_free();
        change(state);
        self.free = self.free + usize::from(state.is_free()) - usize::from(before);
    }

    /// Whether no record of the key may be sent.
    pub(super) fn is_unavailable(&self, slot: Slot) -> bool {
        self.states[slot as usize].is_unavailable()
    }

    /// Whether a record waits that may be sent.
    pub(super) fn any_free(&self) -> bool {
        self.free > 0
    }

    /// Begins a request, for which no key is held back yet.
    pub(super) fn begin_request(&mut self) {
        self.request += 1;
    }

    /// Holds back the later records of a key from this request.
    pub(super) fn hold_back(&mut self, slot: Slot) {
        self.states[slot as usize].held_back = self.request;
    }

    /// Whether no further record of the key may be in this request.
    pub(super) fn is_held_back(&self, slot: Slot) -> bool {
        let state = &self.states[slot as usize];
        state.is_unavailable() || state.held_back == self.request
    }

    /// Notes that a failed record of the key is in this request.
    pub(super) fn add_retry(&mut self, slot: Slot) {
        self.states[slot as usize].retried = self.request;
    }

    /// Whether a failed record of the key is in this request.
    pub(super) fn has_retry(&self, slot: Slot) -> bool {
        self.states[slot as usize].retried == self.request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_blocked_until_all_of_its_refused_records_are_given_up() {
        let mut keys = Keys::default();
        let slot = keys.add(7);
        for _ in 0..2 {
            assert_eq!(keys.add(7), slot);
            keys.block(slot);
        }
        keys.add_waiting(slot);
        keys.unblock(slot);
        assert!(keys.is_unavailable(slot) && !keys.any_free());
        // An answer does not release it either.
        keys.set_in_flight(slot, false);
        assert!(keys.is_unavailable(slot) && !keys.any_free());
        keys.unblock(slot);
        assert!(!keys.is_unavailable(slot) && keys.any_free());
    }

    #[test]
    fn a_slot_is_used_again_only_after_its_last_record_was_removed() {
        let mut keys = Keys::default();
        let (first, second) = (keys.add(1), keys.add(2));
        assert_ne!(first, second);
        assert_eq!(keys.add(1), first);
        keys.remove(first);
        assert_ne!(keys.add(3), first);
        keys.remove(first);
        assert_eq!(keys.add(4), first);
        assert!(!keys.is_unavailable(first));
    }
}
