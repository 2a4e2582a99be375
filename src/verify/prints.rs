//! Which event came under a sequence, so that another one under the same shows.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::sequences::BLOCK;

/// Blocks that are kept, of 2 KiB each: 256 MiB, for 67 million sequences.
const MOST_BLOCKS: usize = 1 << 17;

/// What became of a comparison with the event that came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    Same,
    Another,
    /// It came too long ago to be remembered.
    Forgotten,
}

/// A part of an id's hash for each sequence. Two ids look the same by chance once in
/// four billion times.
#[derive(Debug, Default)]
pub(super) struct Prints {
    blocks: HashMap<(usize, u64), Box<[u32]>>,
    /// The oldest first.
    order: VecDeque<(usize, u64)>,
}

impl Prints {
    /// Remembers the id that came first under a sequence of an integration.
    pub(super) fn remember(&mut self, integration: usize, sequence: u64, id: &str) {
        self.remember_up_to(MOST_BLOCKS, integration, sequence, id);
    }

    fn remember_up_to(&mut self, most: usize, integration: usize, sequence: u64, id: &str) {
        let at = (integration, sequence / BLOCK);
        if !self.blocks.contains_key(&at) {
            if self.blocks.len() >= most
                && let Some(oldest) = self.order.pop_front()
            {
                self.blocks.remove(&oldest);
            }
            self.order.push_back(at);
        }
        let new = || vec![0; BLOCK as usize].into_boxed_slice();
        let block = self.blocks.entry(at).or_insert_with(new);
        block[(sequence % BLOCK) as usize] = print(id);
    }

    /// Compares with the id that came first under this sequence.
    pub(super) fn compare(&self, integration: usize, sequence: u64, id: &str) -> Compared {
        let block = self.blocks.get(&(integration, sequence / BLOCK));
        match block.map_or(0, |block| block[(sequence % BLOCK) as usize]) {
            0 => Compared::Forgotten,
            first if first == print(id) => Compared::Same,
            _ => Compared::Another,
        }
    }
}

/// Never 0, which stands for none.
fn print(id: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    (hasher.finish() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_and_never_taken_for_another() {
        let mut prints = Prints::default();
        for sequence in [1, 600, 1_200] {
            prints.remember_up_to(2, 0, sequence, &sequence.to_string());
        }
        prints.remember_up_to(2, 0, 601, "601");
        assert_eq!(prints.compare(0, 1, "1"), Compared::Forgotten);
        assert_eq!(prints.compare(0, 600, "600"), Compared::Same);
        assert_eq!(prints.compare(0, 601, "600"), Compared::Another);
        assert_eq!(prints.compare(0, 1_200, "1200"), Compared::Same);
        assert_eq!(prints.compare(1, 1_200, "1200"), Compared::Forgotten);
        assert_eq!((prints.blocks.len(), prints.order.len()), (2, 2));
    }
}
