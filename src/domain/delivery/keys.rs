//! The partition keys of the events at hand. Each has a number, so that most of what is
//! asked of a key takes no look into a map.

use super::Key;
use crate::domain::map::Map;

/// A key's number, for as long as an event of it is at hand.
pub(super) type Slot = u32;

#[derive(Debug, Default)]
pub(super) struct Keys {
    slots: Map<Key, Slot>,
    states: Vec<KeyState>,
    unused: Vec<Slot>,
    /// Keys of which an event waits and which are not busy.
    free: usize,
    /// Counts the requests that were begun.
    round: u64,
}

#[derive(Debug)]
struct KeyState {
    key: Key,
    /// Its events at hand.
    events: u32,
    /// Of those, what waits.
    waiting: u32,
    /// A request with it is in flight.
    in_flight: bool,
    /// Its events that are to be given up.
    refused: u32,
    /// The round in which an event of it was passed over.
    passed_over: u64,
    /// The round in which an event of it that failed was taken.
    retried: u64,
}

impl KeyState {
    fn is_free(&self) -> bool {
        self.waiting > 0 && !self.is_busy()
    }

    fn is_busy(&self) -> bool {
        self.in_flight || self.refused > 0
    }
}

impl Keys {
    /// An event that does not wait.
    pub(super) fn add(&mut self, key: Key) -> Slot {
        let slot = *self.slots.entry(key).or_insert_with(|| {
            let state = KeyState {
                key,
                events: 0,
                waiting: 0,
                in_flight: false,
                refused: 0,
                passed_over: 0,
                retried: 0,
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
        self.states[slot as usize].events += 1;
        slot
    }

    /// An event that does not wait is no longer at hand.
    pub(super) fn remove(&mut self, slot: Slot) {
        let state = &mut self.states[slot as usize];
        state.events -= 1;
        if state.events == 0 {
            self.slots.remove(&state.key);
            self.unused.push(slot);
        }
    }

    /// An event of the key waits.
    pub(super) fn wait(&mut self, slot: Slot) {
        self.change(slot, |state| state.waiting += 1);
    }

    /// An event of the key that waited does not wait any more.
    pub(super) fn leave(&mut self, slot: Slot) {
        self.change(slot, |state| state.waiting -= 1);
    }

    /// Whether a request with the key is in flight.
    pub(super) fn set_in_flight(&mut self, slot: Slot, in_flight: bool) {
        self.change(slot, |state| state.in_flight = in_flight);
    }

    /// An event of the key is to be given up.
    pub(super) fn refuse(&mut self, slot: Slot) {
        self.change(slot, |state| state.refused += 1);
    }

    /// An event of the key that was to be given up was, or will not be.
    pub(super) fn end_refusal(&mut self, slot: Slot) {
        self.change(slot, |state| state.refused -= 1);
    }

    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut KeyState)) {
        let state = &mut self.states[slot as usize];
        let before = state.is_free();
        change(state);
        self.free = self.free + usize::from(state.is_free()) - usize::from(before);
    }

    pub(super) fn is_busy(&self, slot: Slot) -> bool {
        self.states[slot as usize].is_busy()
    }

    /// Whether an event waits whose key is not busy.
    pub(super) fn any_free(&self) -> bool {
        self.free > 0
    }

    /// Begins a request: nothing was passed over yet.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// Later events of the key wait for one that was passed over.
    pub(super) fn pass_over(&mut self, slot: Slot) {
        self.states[slot as usize].passed_over = self.round;
    }

    /// Whether the key is busy, or an event of it was passed over.
    pub(super) fn is_held_back(&self, slot: Slot) -> bool {
        let state = &self.states[slot as usize];
        state.is_busy() || state.passed_over == self.round
    }

    /// An event of the key that failed goes.
    pub(super) fn retry(&mut self, slot: Slot) {
        self.states[slot as usize].retried = self.round;
    }

    pub(super) fn is_retried(&self, slot: Slot) -> bool {
        self.states[slot as usize].retried == self.round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_busy_until_all_of_its_refused_events_are_given_up() {
        let mut keys = Keys::default();
        let slot = keys.add(7);
        for _ in 0..2 {
            assert_eq!(keys.add(7), slot);
            keys.refuse(slot);
        }
        keys.wait(slot);
        keys.end_refusal(slot);
        assert!(keys.is_busy(slot) && !keys.any_free());
        // Nor does an answer free it meanwhile.
        keys.set_in_flight(slot, false);
        assert!(keys.is_busy(slot) && !keys.any_free());
        keys.end_refusal(slot);
        assert!(!keys.is_busy(slot) && keys.any_free());
    }

    #[test]
    fn a_number_is_used_anew_only_once_no_event_has_it() {
        let mut keys = Keys::default();
        let (first, second) = (keys.add(1), keys.add(2));
        assert_ne!(first, second);
        assert_eq!(keys.add(1), first);
        keys.remove(first);
        assert_ne!(keys.add(3), first);
        keys.remove(first);
        assert_eq!(keys.add(4), first);
        assert!(!keys.is_busy(first));
    }
}
