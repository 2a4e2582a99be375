//! The segments of one commit, by integration: copied once, when all of it is known, into
//! chunks of their own size.

use std::collections::BTreeSet;

use crate::domain::{
    integration::IntegrationKey,
    map::Map,
    segment::{Part, Segments, fits},
};

/// Of its memory a chunk may leave one part in so many empty before that is given back.
const WASTE: usize = 8;
/// No further piece.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Default)]
pub(super) struct Gathered {
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    /// In the order in which they were begun.
    chunks: Vec<Planned>,
    /// The last chunk of each integration.
    last_of: Map<IntegrationKey, usize>,
}

/// What one request brought.
struct Source {
    bytes: Vec<u8>,
    /// Pieces that are not copied yet.
    pieces: u32,
}

/// Where a segment lies.
struct Piece {
    source: u32,
    start: u32,
    end: u32,
    /// The piece behind it in its chunk.
    next: u32,
}

/// A chunk in the making; nothing where it has no events.
struct Planned {
    key: IntegrationKey,
    first: u32,
    last: u32,
    count: u32,
    bytes: usize,
}

/// A chunk's events, in memory of about their own size: they stay in the tail, which counts
/// what it holds.
pub(super) struct Joined {
    pub(super) key: IntegrationKey,
    pub(super) count: u32,
    pub(super) bytes: Vec<u8>,
}

impl Gathered {
    /// Makes room for so many integrations.
    pub(super) fn expect(&mut self, integrations: usize) {
        self.last_of.reserve(integrations);
        self.chunks.reserve(integrations);
        self.pieces.reserve(integrations);
        self.sources.reserve(integrations);
    }

    /// Takes segments of integrations that exist. Returns how many events those are.
    pub(super) fn take(
        &mut self,
        segments: Segments,
        exists: impl Fn(IntegrationKey) -> bool,
    ) -> u32 {
        let (bytes, parts) = segments.into_parts();
        let source = self.sources.len() as u32;
        let (mut pieces, mut events, mut start) = (0, 0, 0);
        for part in parts {
            let end = start + part.bytes;
            if self.last_of.contains_key(&part.key) || exists(part.key) {
                let piece = Piece {
                    source,
                    start,
                    end,
                    next: NONE,
                };
                self.add(part, piece);
                events += part.count;
                pieces += 1;
            }
            start = end;
        }
        self.sources.push(Source { bytes, pieces });
        events
    }

    fn add(&mut self, part: Part, piece: Piece) {
        let at = self.pieces.len() as u32;
        self.pieces.push(piece);
        let (count, bytes) = (part.count, part.bytes as usize);
        let last = self.last_of.get(&part.key);
        if let Some(chunk) = last.and_then(|last| self.chunks.get_mut(*last))
            && fits(chunk.count + count, chunk.bytes + bytes)
        {
            self.pieces[chunk.last as usize].next = at;
            chunk.last = at;
            chunk.count += count;
            chunk.bytes += bytes;
            return;
        }
        self.last_of.insert(part.key, self.chunks.len());
        self.chunks.push(Planned {
            key: part.key,
            first: at,
            last: at,
            count,
            bytes,
        });
    }

    /// Lets go of all of an integration. Returns how many events that were.
    pub(super) fn forget(&mut self, key: IntegrationKey) -> u64 {
        if self.last_of.remove(&key).is_none() {
            return 0;
        }
        let of_it = self.chunks.iter_mut().filter(|chunk| chunk.key == key);
        of_it
            .map(|chunk| u64::from(std::mem::take(&mut chunk.count)))
            .sum()
    }

    /// The chunks; those of one integration in the order in which their events came. All
    /// chunks of integrations that have one of more than `small` bytes come first: the others
    /// can so have rows together.
    pub(super) fn join(self, small: usize) -> impl Iterator<Item = Joined> {
        let Self {
            mut sources,
            pieces,
            mut chunks,
            ..
        } = self;
        chunks.retain(|chunk| chunk.count > 0);
        let large = chunks.iter().filter(|chunk| chunk.bytes > small);
        let large: BTreeSet<i64> = large.map(|chunk| chunk.key.0).collect();
        if !large.is_empty() {
            chunks.sort_by_key(|chunk| !large.contains(&chunk.key.0));
        }
        chunks.into_iter().map(move |chunk| Joined {
            key: chunk.key,
            count: chunk.count,
            bytes: match whole(&chunk, &pieces, &mut sources) {
                Some(bytes) => bytes,
                None => copied(&chunk, &pieces, &mut sources),
            },
        })
    }
}

/// All that a request brought, where it is all of a chunk.
fn whole(chunk: &Planned, pieces: &[Piece], sources: &mut [Source]) -> Option<Vec<u8>> {
    let piece = &pieces[chunk.first as usize];
    let source = &mut sources[piece.source as usize];
    let all = 0..source.bytes.len();
    if all.len() != chunk.bytes || (piece.start as usize..piece.end as usize) != all {
        return None;
    }
    let mut bytes = std::mem::take(&mut source.bytes);
    if bytes.capacity() - bytes.len() > bytes.len() / WASTE {
        bytes.shrink_to_fit();
    }
    Some(bytes)
}

fn copied(chunk: &Planned, pieces: &[Piece], sources: &mut [Source]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunk.bytes);
    let mut at = chunk.first;
    while let Some(piece) = pieces.get(at as usize) {
        let source = &mut sources[piece.source as usize];
        bytes.extend_from_slice(&source.bytes[piece.start as usize..piece.end as usize]);
        source.pieces -= 1;
        if source.pieces == 0 {
            source.bytes = Vec::new();
        }
        at = piece.next;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::domain::segment::SEGMENT_BYTES;

    /// Bytes of an event at the most.
    const LONGEST: usize = 600_000;

    /// One event: its integration, and how long it is.
    type Event = (i64, usize);

    fn requests() -> impl Strategy<Value = Vec<Vec<Event>>> {
        let length = prop_oneof![20 => 0..3000_usize, 1 => 60_000..LONGEST - 3];
        let run = (0..5_i64, length, 1..300_usize);
        let events = prop::collection::vec(run, 0..8).prop_map(|runs| {
            let run = |(key, length, times): (i64, usize, usize)| {
                let times = if length > 3000 { 1 } else { times };
                std::iter::repeat_n((key, length), times)
            };
            runs.into_iter().flat_map(run).collect()
        });
        prop::collection::vec(events, 0..8)
    }

    fn segments(events: &[Event], next: &mut u8) -> Segments {
        let mut segments = Segments::default();
        for (key, length) in events {
            *next = next.wrapping_add(1);
            let pushed: Result<(), ()> = segments.push(IntegrationKey(*key), |out| {
                out.resize(out.len() + length, *next);
                Ok(())
            });
            pushed.unwrap();
        }
        segments
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_everything_is_in_order(
            requests in requests(),
            absent in prop::collection::btree_set(0..5_i64, 0..3),
            deleted in prop::option::of(0..5_i64),
            after in 0..8_usize,
            small in 0..200_000_usize,
        ) {
            let mut gathered = Gathered::default();
            let mut wanted: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
            let mut counts: BTreeMap<i64, u64> = BTreeMap::new();
            let mut absent: BTreeSet<i64> = absent;
            let mut next = 0;
            for (at, events) in requests.into_iter().enumerate() {
                let (bytes, parts) = segments(&events, &mut next.clone()).into_parts();
                let segments = segments(&events, &mut next);
                let mut start = 0;
                let mut events = 0;
                for part in parts {
                    let end = start + part.bytes as usize;
                    if !absent.contains(&part.key.0) {
                        wanted.entry(part.key.0).or_default().extend(&bytes[start..end]);
                        *counts.entry(part.key.0).or_default() += u64::from(part.count);
                        events += part.count;
                    }
                    start = end;
                }
                prop_assert_eq!(gathered.take(segments, |key| !absent.contains(&key.0)), events);
                if let Some(key) = deleted.filter(|_| at == after) {
                    let gone = gathered.forget(IntegrationKey(key));
                    prop_assert_eq!(gone, counts.remove(&key).unwrap_or(0));
                    wanted.remove(&key);
                    absent.insert(key);
                }
            }
            let mut found: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
            let mut lengths: Vec<(i64, usize)> = Vec::new();
            for Joined { key, count, bytes } in gathered.join(small) {
                lengths.push((key.0, bytes.len()));
                let left = counts.get_mut(&key.0).unwrap();
                *left -= u64::from(count);
                // A segment may end with one event too many for its bytes.
                prop_assert!(fits(count, bytes.len().min(SEGMENT_BYTES)));
                prop_assert!(bytes.len() < SEGMENT_BYTES + LONGEST);
                prop_assert!(bytes.capacity() <= bytes.len() + bytes.len() / WASTE);
                found.entry(key.0).or_default().extend(&bytes);
            }
            let large = lengths.iter().filter(|(_, bytes)| *bytes > small);
            let large: BTreeSet<i64> = large.map(|(key, _)| *key).collect();
            prop_assert!(lengths.is_sorted_by_key(|(key, _)| !large.contains(key)));
            prop_assert_eq!(found, wanted);
            prop_assert!(counts.values().all(|left| *left == 0));
        }
    }
}
