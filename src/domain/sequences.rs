//! Sets of sequences of one integration, as sorted ranges.

use super::bitmap;

/// Set of sequences, stored as disjoint ranges in ascending order. Cheap for the few long
/// ranges that settled events form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences {
    /// First and last sequence of each range. Ranges neither overlap nor touch.
    ranges: Vec<(u64, u64)>,
}

/// The bytes are not an encoded set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a set of sequences is damaged")]
pub struct InvalidSequences;

impl Sequences {
    /// Set of the sequences from `first` to `last`.
    pub fn range(first: u64, last: u64) -> Self {
        let mut set = Self::default();
        set.insert(first, last);
        set
    }

    /// Adds the sequences from `first` to `last`. Returns the number of those that were not in
    /// the set.
    pub fn insert(&mut self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        // Ranges that overlap or touch the new one are replaced by their union.
        let begin = self
            .ranges
            .partition_point(|(_, end)| end.saturating_add(1) < first);
        let end = self
            .ranges
            .partition_point(|(start, _)| *start <= last.saturating_add(1));
        let joined = &self.ranges[begin..end];
        let known: u64 = joined
            .iter()
            .map(|(start, stop)| {
                let (start, stop) = ((*start).max(first), (*stop).min(last));
                (stop + 1).saturating_sub(start)
            })
            .sum();
        let union = (
            joined.first().map_or(first, |(start, _)| first.min(*start)),
            joined.last().map_or(last, |(_, stop)| last.max(*stop)),
        );
        self.ranges.splice(begin..end, [union]);
        last - first + 1 - known
    }

    /// Adds one sequence. Returns whether it was not in the set.
    pub fn add(&mut self, sequence: u64) -> bool {
        self.insert(sequence, sequence) == 1
    }

    /// Adds the sequences of another set. Returns the number of those that were not in this
    /// one.
    pub fn extend(&mut self, other: &Self) -> u64 {
        let added = other.ranges.iter();
        added.map(|(first, last)| self.insert(*first, *last)).sum()
    }

    /// Whether a sequence is in the set.
    pub fn contains(&self, sequence: u64) -> bool {
        self.covers(sequence, sequence)
    }

    /// Whether every sequence from `first` to `last` is in the set.
    pub fn covers(&self, first: u64, last: u64) -> bool {
        let at = self.ranges.partition_point(|(_, end)| *end < first);
        first > last
            || self
                .ranges
                .get(at)
                .is_some_and(|(start, end)| *start <= first && last <= *end)
    }

    /// The sequences from `first` to `last` that are in the set.
    pub fn within(&self, first: u64, last: u64) -> Self {
        let at = self.ranges.partition_point(|(_, end)| *end < first);
        let ranges = self.ranges[at..]
            .iter()
            .take_while(|(start, _)| *start <= last)
            .map(|(start, end)| ((*start).max(first), (*end).min(last)));
        Self {
            ranges: ranges.collect(),
        }
    }

    /// Removes all sequences below `from`.
    pub fn remove_below(&mut self, from: u64) {
        let at = self.ranges.partition_point(|(_, end)| *end < from);
        self.ranges.drain(..at);
        if let Some((start, _)) = self.ranges.first_mut() {
            *start = from.max(*start);
        }
    }

    /// Number of sequences.
    pub fn count(&self) -> u64 {
        self.ranges
            .iter()
            .map(|(first, last)| last - first + 1)
            .sum()
    }

    /// Number of ranges.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// First and last sequence of each range, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }

    /// The sequences, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// Set of the sequences whose bit is set in a bitmap that begins at `first`.
    pub fn from_bitmap(first: u64, bitmap: &[u8]) -> Self {
        (0..bitmap.len() * 8)
            .filter(|index| bitmap::get(bitmap, *index))
            .map(|index| first + index as u64)
            .collect()
    }

    /// Bitmap that begins at `first`, with the bits of the sequences of the set; empty for an
    /// empty set. No sequence of the set may be below `first`.
    pub fn to_bitmap(&self, first: u64) -> Vec<u8> {
        let mut bitmap = Vec::new();
        for sequence in self.iter() {
            bitmap::set(&mut bitmap, (sequence - first) as usize);
        }
        bitmap
    }

    /// Bytes for storage: for each range its distance from the end of the one before, and its
    /// length minus one, as LEB128 numbers.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut before = 0;
        for (first, last) in self.ranges() {
            write_number(first - before, &mut bytes);
            write_number(last - first, &mut bytes);
            before = last;
        }
        bytes
    }

    /// Reads the bytes of [`Sequences::encode`].
    pub fn decode(mut bytes: &[u8]) -> Result<Self, InvalidSequences> {
        let mut set = Self::default();
        let mut before: u64 = 0;
        while !bytes.is_empty() {
            let first = before.checked_add(read_number(&mut bytes)?);
            let first = first.ok_or(InvalidSequences)?;
            let last = first.checked_add(read_number(&mut bytes)?);
            let last = last.ok_or(InvalidSequences)?;
            if set.insert(first, last) != last - first + 1 {
                return Err(InvalidSequences);
            }
            before = last;
        }
        Ok(set)
    }
}

impl FromIterator<u64> for Sequences {
    fn from_iter<T: IntoIterator<Item = u64>>(sequences: T) -> Self {
        let mut set = Self::default();
        for sequence in sequences {
            match set.ranges.last_mut() {
                // The usual case of ascending sequences.
                Some((_, last)) if *last + 1 == sequence => *last = sequence,
                _ => drop(set.add(sequence)),
            }
        }
        set
    }
}

fn write_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &mut &[u8]) -> Result<u64, InvalidSequences> {
    let mut number: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(InvalidSequences)?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(InvalidSequences);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(InvalidSequences)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set(
            inserted in prop::collection::vec((1..200u64, 0..20u64), 0..30),
            (first, length) in (1..200u64, 0..50u64),
            below in 1..250u64,
        ) {
            let (mut set, mut model) = (Sequences::default(), BTreeSet::new());
            for (first, length) in inserted {
                let all = first..=first + length;
                let added = all.clone().filter(|one| model.insert(*one)).count() as u64;
                prop_assert_eq!(set.insert(first, first + length), added);
            }
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), model.clone());
            prop_assert_eq!(set.count(), model.len() as u64);
            let touching = set.ranges.windows(2).any(|two| two[0].1 + 1 >= two[1].0);
            prop_assert!(!touching);
            let range = first..=first + length;
            prop_assert_eq!(
                set.covers(first, first + length),
                range.clone().all(|one| model.contains(&one))
            );
            let within: Vec<u64> = model.range(range).copied().collect();
            let found = set.within(first, first + length);
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), within.clone());
            prop_assert_eq!(&within.into_iter().collect::<Sequences>(), &found);
            prop_assert_eq!(Sequences::from_bitmap(1, &set.to_bitmap(1)), set.clone());
            prop_assert_eq!(Sequences::decode(&set.encode()), Ok(set.clone()));
            set.remove_below(below);
            let left: Vec<u64> = model.range(below..).copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), left);
        }

        #[test]
        fn garbage_is_refused_or_a_set(bytes: Vec<u8>) {
            if let Ok(set) = Sequences::decode(&bytes) {
                prop_assert_eq!(Sequences::decode(&set.encode()), Ok(set));
            }
        }
    }
}
