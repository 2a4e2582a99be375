//! How events lie behind one another in the log: each a length (4 bytes, little endian)
//! and the event as it is stored. Segments put end to end are a segment.

use bytes::Bytes;

use super::{
    delivery::Entry,
    event::{Outline, outline},
    integration::IntegrationKey,
};

/// Events in one segment, and so in one chunk, at the most.
pub const SEGMENT_EVENTS: u32 = 500;
/// Bytes from which a segment takes no further event.
pub const SEGMENT_BYTES: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;
/// Events that tell how long others are.
const REPRESENTATIVE: u32 = 4;
/// Room that is made at once for what is expected, at the most.
const MOST_ROOM: usize = 4 << 20;

/// Whether one segment may have so many events of so many bytes in all.
pub fn fits(count: u32, bytes: usize) -> bool {
    count <= SEGMENT_EVENTS && bytes <= SEGMENT_BYTES
}

/// Stored events of any integrations in the order in which they came, in one memory.
#[derive(Debug, Default)]
pub struct Segments {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    events: u32,
}

/// Events of one integration behind one another: a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The integration.
    pub key: IntegrationKey,
    /// How many events.
    pub count: u32,
    /// Bytes of lengths and events.
    pub bytes: u32,
}

impl Segments {
    /// Nothing yet, and room for so many bytes, as far as that is allowed.
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes.min(MOST_ROOM)),
            ..Self::default()
        }
    }

    /// Appends what `store` writes as one event; nothing where it fails.
    pub fn push<T, E>(
        &mut self,
        key: IntegrationKey,
        store: impl FnOnce(&mut Vec<u8>) -> Result<T, E>,
    ) -> Result<T, E> {
        let start = self.bytes.len();
        self.bytes.extend([0; LENGTH_BYTES]);
        match store(&mut self.bytes) {
            Ok(value) => {
                let bytes = self.bytes.len() - start;
                let length = ((bytes - LENGTH_BYTES) as u32).to_le_bytes();
                self.bytes[start..start + LENGTH_BYTES].copy_from_slice(&length);
                self.events += 1;
                self.extend(key, bytes as u32);
                Ok(value)
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    fn extend(&mut self, key: IntegrationKey, bytes: u32) {
        match self.parts.last_mut() {
            Some(last) if last.key == key && !last.is_full() => {
                last.count += 1;
                last.bytes += bytes;
            }
            _ => self.parts.push(Part {
                key,
                count: 1,
                bytes,
            }),
        }
    }

    /// Makes room for what is still to come, which a growth by doubling would copy again
    /// and again: `read` bytes became what is there, and `left` are not read yet.
    pub fn expect(&mut self, read: usize, left: usize) {
        if self.events < REPRESENTATIVE || read == 0 {
            return;
        }
        let each = self.bytes.len() / self.events as usize;
        if self.bytes.capacity() - self.bytes.len() < each {
            // They are not all alike.
            let room = (left as u128 * self.bytes.len() as u128 * 9 / 8) / read as u128;
            let room = usize::try_from(room).map_or(MOST_ROOM, |room| room.min(MOST_ROOM));
            self.bytes.reserve_exact(room.max(each));
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Events of all parts.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The parts, in the order in which they lie behind one another.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All bytes, and what they are.
    pub fn into_parts(self) -> (Vec<u8>, Vec<Part>) {
        (self.bytes, self.parts)
    }
}

impl Part {
    fn is_full(self) -> bool {
        self.count >= SEGMENT_EVENTS || self.bytes as usize >= SEGMENT_BYTES
    }
}

/// The bytes are not a segment: the log is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of the log is damaged")]
pub struct Damaged;

/// Where each event of a segment lies, and its key. `count` events are expected.
pub fn entries(bytes: &Bytes, count: u32) -> Result<Vec<Entry>, Damaged> {
    let mut entries = Vec::with_capacity(count.min(SEGMENT_EVENTS) as usize);
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes
            .get(at..at + LENGTH_BYTES)
            .and_then(|length| length.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or(Damaged)?;
        let start = at + LENGTH_BYTES;
        at = start + length as usize;
        let stored = bytes.get(start..at).ok_or(Damaged)?;
        let Outline {
            partition_key,
            body_length,
        } = outline(stored).map_err(|_| Damaged)?;
        entries.push(Entry {
            key: partition_key.as_u128(),
            stored: start as u32..at as u32,
            body_length: body_length as u32,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(segments: &mut Segments, key: i64, length: usize) {
        let pushed: Result<(), ()> = segments.push(IntegrationKey(key), |out| {
            out.resize(out.len() + length, b'x');
            Ok(())
        });
        pushed.unwrap();
    }

    proptest! {
        #[test]
        fn parts_tell_what_lies_where(
            events in prop::collection::vec((0..3_i64, 0..2000_usize, 1..9_usize, any::<bool>()), 0..30),
        ) {
            let mut segments = Segments::default();
            let mut wanted = Vec::new();
            for (key, length, times, fails) in events {
                for _ in 0..times * times {
                    if fails {
                        let failed = segments.push(IntegrationKey(key), |out| {
                            out.resize(out.len() + length, b'x');
                            Err::<(), ()>(())
                        });
                        prop_assert_eq!(failed, Err(()));
                    } else {
                        push(&mut segments, key, length);
                        wanted.push((IntegrationKey(key), length));
                    }
                }
            }
            prop_assert_eq!(segments.events() as usize, wanted.len());
            let (bytes, parts) = segments.into_parts();
            let (mut at, mut found) = (0, Vec::new());
            for part in parts {
                let end = at + part.bytes as usize;
                prop_assert!(fits(part.count, part.bytes as usize));
                let before = found.len();
                while at < end {
                    let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    found.push((part.key, length as usize));
                    at += 4 + length as usize;
                }
                prop_assert_eq!(found.len() - before, part.count as usize);
            }
            prop_assert_eq!(at, bytes.len());
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_part_takes_no_more_than_a_segment_may_hold() {
        let mut segments = Segments::default();
        for _ in 0..SEGMENT_EVENTS + 1 {
            push(&mut segments, 1, 10);
        }
        for _ in 0..3 {
            push(&mut segments, 2, SEGMENT_BYTES / 2);
        }
        let counts: Vec<u32> = segments.parts().iter().map(|part| part.count).collect();
        assert_eq!(counts, [SEGMENT_EVENTS, 1, 2, 1]);
    }

    #[test]
    fn room_for_what_is_expected_is_made_once() {
        let mut segments = Segments::default();
        let (events, size) = (500, 400);
        let mut growths = 0;
        for index in 0..events {
            let before = segments.bytes.capacity();
            segments.expect(index * size, (events - index) * size);
            push(&mut segments, index as i64 % 7, 900);
            growths += usize::from(segments.bytes.capacity() != before);
        }
        // A few until it is known how long they are.
        assert!(growths <= 4, "{growths}");
        assert!(segments.bytes.capacity() < segments.bytes.len() * 5 / 4);
    }

    #[test]
    fn no_more_room_is_made_than_is_reasonable() {
        let mut segments = Segments::default();
        for _ in 0..REPRESENTATIVE {
            push(&mut segments, 1, 100_000);
        }
        segments.bytes.shrink_to_fit();
        segments.expect(1, usize::MAX);
        assert!(segments.bytes.capacity() <= segments.bytes.len() + MOST_ROOM);
    }
}
