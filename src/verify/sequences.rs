//! A set of sequences that stays small: runs are kept by their ends, and what is ragged
//! by a bit a sequence.

use std::collections::BTreeMap;

/// Sequences of one block; what is full becomes part of a run.
pub(super) const BLOCK: u64 = 512;
const WORDS: usize = 8;

/// A set of numbers that mostly lie side by side. It takes memory by runs, and in a
/// block that is not full yet by about 100 bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct SequenceSet {
    /// Blocks that are full: the first and the last of each run. No two touch.
    full: BTreeMap<u64, u64>,
    partial: BTreeMap<u64, [u64; WORDS]>,
    len: u64,
}

impl SequenceSet {
    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The lowest.
    pub(super) fn first(&self) -> Option<u64> {
        let full = self.full.keys().next().map(|block| block * BLOCK);
        let partial = self.partial.iter().next().and_then(|(block, words)| {
            let bit = (0..BLOCK).find(|bit| has(words, *bit))?;
            Some(block * BLOCK + bit)
        });
        full.into_iter().chain(partial).min()
    }

    /// The highest.
    pub(super) fn last(&self) -> Option<u64> {
        let full = self.full.values().next_back();
        let full = full.map(|block| block * BLOCK + (BLOCK - 1));
        let partial = self.partial.iter().next_back().and_then(|(block, words)| {
            let bit = (0..BLOCK).rfind(|bit| has(words, *bit))?;
            Some(block * BLOCK + bit)
        });
        full.into_iter().chain(partial).max()
    }

    /// Adds one; false where it was there.
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

    /// Adds all from `first` to `last`.
    pub(super) fn insert_range(&mut self, first: u64, last: u64) {
        // Whole blocks are a run; the two ends go in one by one.
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

    /// How many there are from `first` to `last`.
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

    /// First and last of each run, in order; no two touch.
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

    /// First and last of each run of `first` to `last` that is not in the set.
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

    /// Makes a run of blocks full, of which any may be already.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Sequences around the edges of blocks, and ranges over several of them.
    fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let one = (0..3_000u64).prop_map(|sequence| (sequence, sequence));
        let range = (0..3_000u64, 0..1_800u64).prop_map(|(first, more)| (first, first + more));
        prop::collection::vec(prop_oneof![6 => one, 1 => range], 0..60)
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_it_stands_for(steps in steps(), from in 0..3_000u64, more in 0..3_000u64) {
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
    fn the_largest_numbers_fit() {
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
    fn what_is_whole_is_one_run() {
        let mut set = SequenceSet::default();
        for sequence in (1..=1_000_000).rev() {
            set.insert(sequence);
        }
        assert_eq!(set.runs(), [(1, 1_000_000)]);
        assert!(set.full.len() == 1 && set.partial.len() <= 2);
    }
}
