//! Events that are to be given up, and what becomes of them.

use super::{Delivery, Key, chunk::State, find};
use crate::domain::gap::{ChunkState, Marked};

impl Delivery {
    /// Events that are refused while others pass, to be given up. Their keys wait until
    /// [`Delivery::apply`] or [`Delivery::keep_refused`].
    pub fn refused(&self) -> Vec<Marked> {
        self.marked(State::Refused)
    }

    /// Events in flight.
    pub fn events_in_flight(&self) -> Vec<Marked> {
        self.marked(State::InFlight)
    }

    fn marked(&self, state: State) -> Vec<Marked> {
        let chunks = self.chunks.iter();
        chunks.filter_map(|chunk| chunk.marked(state)).collect()
    }

    /// Takes in what was given up. What is in flight was not.
    pub fn apply(&mut self, given_up: &[ChunkState], gap_key: Key) {
        for state in given_up {
            if let Some(chunk) = find(&mut self.chunks, state.id) {
                let before = chunk.waiting;
                chunk.apply(state, gap_key, &mut self.keys);
                self.waiting = self.waiting + chunk.waiting - before;
            }
        }
        self.exhausted = false;
        self.drop_finished();
    }

    /// Lets refused events wait again, since they could not be given up.
    pub fn keep_refused(&mut self) {
        for chunk in &mut self.chunks {
            for (state, slot) in chunk.states.iter_mut().zip(&chunk.slots) {
                if *state == State::Refused {
                    *state = State::Waiting;
                    chunk.waiting += 1;
                    self.waiting += 1;
                    self.keys.end_refusal(*slot);
                    self.keys.wait(*slot);
                }
            }
        }
        self.exhausted = false;
    }

    /// Forgets what was refused: the configuration is another one.
    pub fn forget_refusals(&mut self) {
        self.refusals.forget();
    }
}
