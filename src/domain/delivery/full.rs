//! Only what makes a full request.

use super::{Batch, BatchLimits, Delivery, chunk::State, find};

impl Delivery {
    /// As [`Delivery::next_batch`], but None as well where the request would have room for
    /// more. Not while it is being found out what is refused.
    pub fn next_full_batch(&mut self, limits: BatchLimits) -> Option<Batch> {
        let batch = self.next_batch(limits)?;
        let weights = batch.items.iter().map(|item| item.weight);
        let bytes = weights.sum::<usize>() + batch.items.len() * limits.overhead_bytes;
        // The next event may have been too long for what was left.
        let is_full = batch.items.len() >= limits.records || bytes > limits.bytes / 2;
        if is_full {
            return Some(batch);
        }
        self.put_back(batch);
        None
    }

    /// Takes a batch back that was not sent.
    fn put_back(&mut self, batch: Batch) {
        self.in_flight -= 1;
        self.waiting += batch.items.len();
        for item in &batch.items {
            if let Some(chunk) = find(&mut self.chunks, item.chunk_id) {
                let (index, slots) = (item.index as usize, &chunk.slots);
                self.keys.set_in_flight(slots[index], false);
                self.keys.wait(slots[index]);
                chunk.states[index] = State::Waiting;
                chunk.waiting += 1;
            }
        }
    }
}
