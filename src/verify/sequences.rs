//! The sequences that were read, and hashes of their event ids, in bounded or compact form.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Number of sequences in a block. Full blocks are merged into runs.
const BLOCK: u64 = 512;
const WORDS: usize = 8;
/// Maximum number of blocks of hashes, of 2 KiB each: 256 MiB, for 67 million sequences.
const MAX_HASH_BLOCKS: usize = 1 << 17;

/// Set of mostly adjacent sequences. Its memory depends on the number of runs, plus about 100
/// bytes for each block that is not full.
#[derive(Clone, Debug, Default)]
pub(super) struct SequenceSet {
    /// First and last block of each run of full blocks. No two runs are adjacent.
    full: BTreeMap<u64, u64>,
    partial: BTreeMap<u64, [u64; WORDS]>,
    len: u64,
}

impl SequenceSet {
    /// Returns the number of sequences.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the lowest sequence.
    pub(super) fn first(&self) -> Option<u64> {
        let full = self.full.keys().next().map(|block| block * BLOCK);
        let partial = self.partial.iter().next().and_then(|(block, words)| {
            let bit = (0..BLOCK).find(|bit| has(words, *bit))?;
            Some(block * BLOCK + bit)
        });
        full.into_iter().chain(partial).min()
    }

    /// Returns the highest sequence.
    pub(super) fn last(&self) -> Option<u64> {
        let full = self.full.values().next_back();
        let full = full.map(|block| block * BLOCK + (BLOCK - 1));
        let partial = self.partial.iter().next_back().and_then(|(block, words)| {
            let bit = (0..BLOCK).rfind(|bit| has(words, *bit))?;
            Some(block * BLOCK + bit)
        });
        full.into_iter().chain(partial).max()
    }

    /// Adds a sequence; false if it was present.
    pub(super) fn insert(&mut self, sequence: u64) -> bool {
        let (block, bit) = (sequence / BLOCK, (sequence % BLOCK) as usize);
        if self.is_full(block) {
            return false;
        }
        let words = self.partial.entry(block).or_default();
        let mask = 1 << (bit % 64);
        if words[bit / 64] & mask != 0 {
            return false;
        }
        words[bit / 64] |= mask;
        if *words == [u64::MAX; WORDS] {
            self.partial.remove(&block);
            self.fill(block, block);
        }
        self.len += 1;
        true
    }

    /// Adds all sequences from `first` to `last`.
    pub(super) fn insert_range(&mut self, first: u64, last: u64) {
        // Whole blocks are added as a run, the sequences at both ends one by one.
        let whole_from = first.div_ceil(BLOCK);
        let whole_to = match last % BLOCK == BLOCK - 1 {
            true => last / BLOCK + 1,
            false => last / BLOCK,
        };
        if whole_from >= whole_to {
            for sequence in first..=last {
                self.insert(sequence);
            }
            return;
        }
        for sequence in first..whole_from * BLOCK {
            self.insert(sequence);
        }
        let last_of_whole = (whole_to - 1) * BLOCK + (BLOCK - 1);
        let added = (last_of_whole - whole_from * BLOCK)
            .saturating_add(1)
            .saturating_sub(self.count(whole_from * BLOCK, last_of_whole));
        self.len = self.len.saturating_add(added);
        self.partial
            .retain(|block, _| !(whole_from..whole_to).contains(block));
        self.fill(whole_from, whole_to - 1);
        for sequence in last_of_whole.saturating_add(1)..=last {
            self.insert(sequence);
        }
    }

    /// Returns the number of sequences from `first` to `last`.
    pub(super) fn count(&self, first: u64, last: u64) -> u64 {
        let from = self
            .full
            .range(..=first / BLOCK)
            .next_back()
            .map_or(first / BLOCK, |(start, _)| *start);
        let full = self.full.range(from..=last / BLOCK).map(|(start, end)| {
            let start = (start * BLOCK).max(first);
            let end = (end * BLOCK + (BLOCK - 1)).min(last);
            end.checked_sub(start)
                .map_or(0, |more| more.saturating_add(1))
        });
        let partial = self
            .partial
            .range(first / BLOCK..=last / BLOCK)
            .map(|(block, words)| {
                let inside = |bit: u64| (first..=last).contains(&(block * BLOCK + bit));
                (0..BLOCK)
                    .filter(|bit| has(words, *bit) && inside(*bit))
                    .count() as u64
            });
        full.chain(partial).fold(0, u64::saturating_add)
    }

    /// Returns the first and last sequence of each run, in order; no two runs are adjacent.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        let full = self
            .full
            .iter()
            .map(|(start, end)| (start * BLOCK, end * BLOCK + (BLOCK - 1)));
        let partial = self.partial.iter().flat_map(|(block, words)| {
            (0..BLOCK)
                .filter(|bit| has(words, *bit))
                .map(move |bit| (block * BLOCK + bit, block * BLOCK + bit))
        });
        let (mut full, mut partial) = (full.peekable(), partial.peekable());
        let mut runs: Vec<(u64, u64)> = Vec::new();
        loop {
            let next = match (full.peek(), partial.peek()) {
                (Some(run), Some(one)) if run.0 < one.0 => full.next(),
                (Some(_), None) => full.next(),
                _ => partial.next(),
            };
            let Some((first, last)) = next else {
                return runs;
            };
            match runs.last_mut() {
                Some(run) if run.1 + 1 == first => run.1 = last,
                _ => runs.push((first, last)),
            }
        }
    }

    /// Returns the first and last sequence of each run from `first` to `last` that is absent.
    pub(super) fn holes(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut next = first;
        for (start, end) in self.runs() {
            if end < next {
                continue;
            }
            if start > last {
                break;
            }
            if start > next {
                holes.push((next, start - 1));
            }
            match end.checked_add(1) {
                Some(after) => next = after,
                None => return holes,
            }
        }
        if next <= last {
            holes.push((next, last));
        }
        holes
    }

    fn is_full(&self, block: u64) -> bool {
        let before = self.full.range(..=block).next_back();
        before.is_some_and(|(_, end)| block <= *end)
    }

    /// Marks a run of blocks as full; some may be full already.
    fn fill(&mut self, mut from: u64, mut to: u64) {
        if let Some((start, end)) = self.full.range(..=from).next_back()
            && end.saturating_add(1) >= from
        {
            from = *start;
            to = to.max(*end);
        }
        while let Some((start, end)) = self.full.range(from..=to.saturating_add(1)).next() {
            let (start, end) = (*start, *end);
            to = to.max(end);
            self.full.remove(&start);
        }
        self.full.insert(from, to);
    }
}

fn has(words: &[u64; WORDS], bit: u64) -> bool {
    words[bit as usize / 64] & (1 << (bit % 64)) != 0
}

/// Result of comparing an event with the first one of its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdComparison {
    Same,
    Different,
    /// The hash of the first id is no longer kept.
    Unknown,
}

/// Hash of the first event id of each sequence. Two different ids have the same hash once in
/// four billion times.
#[derive(Debug, Default)]
pub(super) struct IdHashes {
    /// Hashes by number of the integration and of the block; 0 for an unknown id.
    blocks: HashMap<(usize, u64), Box<[u32]>>,
    /// Keys of the blocks, the oldest first.
    order: VecDeque<(usize, u64)>,
}

impl IdHashes {
    /// Keeps the hash of the first id of a sequence.
    pub(super) fn insert(&mut self, integration: usize, sequence: u64, id: &str) {
        self.insert_bounded(MAX_HASH_BLOCKS, integration, sequence, id);
    }

    fn insert_bounded(&mut self, max_blocks: usize, integration: usize, sequence: u64, id: &str) {
        let key = (integration, sequence / BLOCK);
        if !self.blocks.contains_key(&key) {
            if self.blocks.len() >= max_blocks
                && let Some(oldest) = self.order.pop_front()
            {
                self.blocks.remove(&oldest);
            }
            self.order.push_back(key);
        }
        let new = || vec![0; BLOCK as usize].into_boxed_slice();
        let block = self.blocks.entry(key).or_insert_with(new);
        block[(sequence % BLOCK) as usize] = hash(id);
    }

    /// Compares an id with the first one of its sequence.
    pub(super) fn compare(&self, integration: usize, sequence: u64, id: &str) -> IdComparison {
        let block = self.blocks.get(&(integration, sequence / BLOCK));
        match block.map_or(0, |block| block[(sequence % BLOCK) as usize]) {
            0 => IdComparison::Unknown,
            first if first == hash(id) => IdComparison::Same,
            _ => IdComparison::Different,
        }
    }
}

/// Returns a hash other than 0, which stands for an unknown id.
fn hash(id: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    (hasher.finish() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Generates sequences around the borders of blocks, and ranges over several of them.
    fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let one = (0..3_000u64).prop_map(|sequence| (sequence, sequence));
        let range = (0..3_000u64, 0..1_800u64).prop_map(|(first, more)| (first, first + more));
        prop::collection::vec(prop_oneof![6 => one, 1 => range], 0..60)
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_btree_set(steps in steps(), from in 0..3_000u64, more in 0..3_000u64) {
            let (mut set, mut naive) = (SequenceSet::default(), BTreeSet::new());
            for (first, last) in steps {
                match first == last {
                    true => prop_assert_eq!(set.insert(first), naive.insert(first)),
                    false => {
                        set.insert_range(first, last);
                        naive.extend(first..=last);
                    }
                }
                prop_assert_eq!(set.len(), naive.len() as u64);
            }
            prop_assert_eq!(set.first(), naive.first().copied());
            prop_assert_eq!(set.last(), naive.last().copied());
            let to = from + more;
            prop_assert_eq!(set.count(from, to), naive.range(from..=to).count() as u64);
            let runs = set.runs();
            let all: Vec<u64> = runs.iter().flat_map(|run| run.0..=run.1).collect();
            prop_assert!(runs.windows(2).all(|two| two[0].1 + 1 < two[1].0));
            prop_assert_eq!(all, naive.iter().copied().collect::<Vec<_>>());
            let holes: Vec<u64> = set.holes(from, to).iter().flat_map(|hole| hole.0..=hole.1).collect();
            prop_assert_eq!(holes, (from..=to).filter(|one| !naive.contains(one)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_largest_sequences_do_not_overflow() {
        let mut set = SequenceSet::default();
        assert!(set.insert(u64::MAX));
        set.insert_range(1, u64::MAX - 5_000);
        assert_eq!(set.runs(), [(1, u64::MAX - 5_000), (u64::MAX, u64::MAX)]);
        assert_eq!(set.holes(1, u64::MAX), [(u64::MAX - 4_999, u64::MAX - 1)]);
        set.insert_range(1, u64::MAX);
        assert_eq!(set.holes(1, u64::MAX), []);
        assert_eq!(set.len(), u64::MAX);
    }

    #[test]
    fn adjacent_sequences_are_one_run() {
        let mut set = SequenceSet::default();
        for sequence in (1..=1_000_000).rev() {
            set.insert(sequence);
        }
        assert_eq!(set.runs(), [(1, 1_000_000)]);
        assert!(set.full.len() == 1 && set.partial.len() <= 2);
    }

    #[test]
    fn the_oldest_hashes_are_dropped_and_ids_compared_as_unknown() {
        let mut hashes = IdHashes::default();
        for sequence in [1, 600, 1_200] {
            hashes.insert_bounded(2, 0, sequence, &sequence.to_string());
        }
        hashes.insert_bounded(2, 0, 601, "601");
        assert_eq!(hashes.compare(0, 1, "1"), IdComparison::Unknown);
        assert_eq!(hashes.compare(0, 600, "600"), IdComparison::Same);
        assert_eq!(hashes.compare(0, 601, "600"), IdComparison::Different);
        assert_eq!(hashes.compare(0, 1_200, "1200"), IdComparison::Same);
        assert_eq!(hashes.compare(1, 1_200, "1200"), IdComparison::Unknown);
        assert_eq!((hashes.blocks.len(), hashes.order.len()), (2, 2));
    }
}
