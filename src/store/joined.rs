//! Segments of one integration that share a chunk: copied once, when all of it is known.

use crate::domain::segment::Segment;

/// Of its memory a segment may leave one part in so many empty before that is given back.
const WASTE: usize = 8;

/// At least one segment.
pub(super) struct Joined {
    first: Segment,
    more: Vec<Segment>,
    /// Of all of them.
    bytes: usize,
    count: u32,
}

impl From<Segment> for Joined {
    fn from(first: Segment) -> Self {
        Self {
            bytes: first.bytes.len(),
            count: first.count,
            first,
            more: Vec::new(),
        }
    }
}

impl Joined {
    /// Events of all segments.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Puts a segment behind the others, or gives it back where that would be too much for
    /// one chunk.
    pub(super) fn push(&mut self, next: Segment) -> Option<Segment> {
        if !Segment::fits(self.count + next.count, self.bytes + next.bytes.len()) {
            return Some(next);
        }
        self.count += next.count;
        self.bytes += next.bytes.len();
        self.more.push(next);
        None
    }

    /// One segment of all of them, in memory of about its own size: it stays in the tail,
    /// which counts what it holds.
    pub(super) fn join(self) -> Segment {
        let mut joined = self.first;
        if self.more.is_empty() {
            if joined.bytes.capacity() - self.bytes > self.bytes / WASTE {
                joined.bytes.shrink_to_fit();
            }
            return joined;
        }
        let mut bytes = Vec::with_capacity(self.bytes);
        bytes.append(&mut joined.bytes);
        for segment in self.more {
            bytes.extend_from_slice(&segment.bytes);
        }
        Segment {
            bytes,
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::segment::{SEGMENT_BYTES, SEGMENT_EVENTS};

    fn segments() -> impl Strategy<Value = Vec<Segment>> {
        let length = prop_oneof![8 => 4..3000_usize, 1 => 60_000..600_000_usize];
        let segment = (length, 0..2000_usize, 1..300_u32).prop_map(|(length, waste, count)| {
            let mut bytes = Vec::with_capacity(length + waste);
            bytes.resize(length, count as u8);
            Segment { bytes, count }
        });
        prop::collection::vec(segment, 1..20)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_everything_is_in_order(segments in segments()) {
            let sum = |segments: &[Segment]| {
                let bytes: Vec<u8> = segments.iter().flat_map(|one| one.bytes.clone()).collect();
                (bytes, segments.iter().map(|one| one.count).sum::<u32>())
            };
            let wanted = sum(&segments);
            let mut joined: Vec<Joined> = Vec::new();
            for segment in segments {
                let rest = match joined.last_mut() {
                    Some(last) => last.push(segment),
                    None => Some(segment),
                };
                joined.extend(rest.map(Joined::from));
            }
            let joined: Vec<Segment> = joined.into_iter().map(Joined::join).collect();
            prop_assert_eq!(sum(&joined), wanted);
            for segment in &joined {
                prop_assert!(segment.count <= SEGMENT_EVENTS);
                prop_assert!(segment.bytes.len() <= SEGMENT_BYTES);
                let most = segment.bytes.len() + segment.bytes.len() / WASTE;
                prop_assert!(segment.bytes.capacity() <= most);
            }
        }
    }
}
