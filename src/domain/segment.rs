//! How rendered events lie behind one another in the log: each a length (4 bytes,
//! little endian) and a body. Segments put end to end are a segment.

use bytes::Bytes;

use super::{delivery::Entry, event::partition_key_uuid, integration::IntegrationKey};

/// Events in one segment, and so in one chunk, at the most.
pub const SEGMENT_EVENTS: u32 = 500;
/// Bytes from which a segment takes no further event.
pub const SEGMENT_BYTES: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;
/// Events that tell how long others are.
const REPRESENTATIVE: u32 = 4;

/// Rendered events of one integration.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Lengths and bodies.
    pub bytes: Vec<u8>,
    /// How many events.
    pub count: u32,
}

impl Segment {
    /// Appends what `render` writes as one event; nothing where it fails.
    pub fn push<T, E>(
        &mut self,
        render: impl FnOnce(&mut Vec<u8>) -> Result<T, E>,
    ) -> Result<T, E> {
        let start = self.bytes.len();
        self.bytes.extend([0; LENGTH_BYTES]);
        match render(&mut self.bytes) {
            Ok(value) => {
                let length = (self.bytes.len() - start - LENGTH_BYTES) as u32;
                self.bytes[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
                self.count += 1;
                Ok(value)
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    /// Appends an event that was rendered elsewhere. The first gets memory of its own size:
    /// many segments hold one event.
    pub fn push_rendered(&mut self, body: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact(LENGTH_BYTES + body.len());
        }
        self.bytes
            .extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(body);
        self.count += 1;
    }

    /// Whether its events tell how long others are.
    pub fn is_representative(&self) -> bool {
        self.count >= REPRESENTATIVE
    }

    /// Makes room for about so many more events like those that are there, which a growth
    /// by doubling would copy again and again.
    pub fn expect(&mut self, more: usize) {
        if !self.is_representative() {
            return;
        }
        let each = self.bytes.len() / self.count as usize;
        if self.bytes.capacity() - self.bytes.len() < each {
            let more = more.min(SEGMENT_EVENTS.saturating_sub(self.count) as usize);
            // They are not all of one length.
            let room = (more * each * 9 / 8).min(SEGMENT_BYTES);
            self.bytes.reserve_exact(room);
        }
    }

    /// Whether the next event belongs into another segment.
    pub fn is_full(&self) -> bool {
        self.count >= SEGMENT_EVENTS || self.bytes.len() >= SEGMENT_BYTES
    }

    /// Whether one segment may have so many events of so many bytes in all.
    pub fn fits(count: u32, bytes: usize) -> bool {
        count <= SEGMENT_EVENTS && bytes <= SEGMENT_BYTES
    }

    /// Bytes of the bodies alone.
    pub fn body_bytes(&self) -> u64 {
        (self.bytes.len() - self.count as usize * LENGTH_BYTES) as u64
    }
}

/// A segment and whose it is.
#[derive(Debug)]
pub struct OwnedSegment {
    /// The integration.
    pub key: IntegrationKey,
    /// Its events.
    pub segment: Segment,
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
        let body = bytes.get(start..at).ok_or(Damaged)?;
        entries.push(Entry {
            key: partition_key_uuid(body).ok_or(Damaged)?.as_u128(),
            body: start as u32..at as u32,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(segment: &mut Segment, length: usize) {
        let rendered: Result<(), ()> = segment.push(|out| {
            out.resize(out.len() + length, b'x');
            Ok(())
        });
        rendered.unwrap();
    }

    #[test]
    fn room_for_what_is_expected_is_made_once() {
        let mut segment = Segment::default();
        for _ in 0..REPRESENTATIVE {
            segment.expect(usize::MAX);
            push(&mut segment, 900);
        }
        segment.bytes.shrink_to_fit();
        let mut growths = 0;
        for index in segment.count..SEGMENT_EVENTS {
            let before = segment.bytes.capacity();
            segment.expect((SEGMENT_EVENTS - index) as usize);
            push(&mut segment, 900);
            growths += usize::from(segment.bytes.capacity() != before);
        }
        assert_eq!(growths, 1);
        assert!(segment.bytes.capacity() < segment.bytes.len() * 5 / 4);
    }

    #[test]
    fn no_more_room_is_made_than_a_segment_may_take() {
        let mut segment = Segment::default();
        for _ in 0..REPRESENTATIVE {
            push(&mut segment, 100_000);
        }
        segment.bytes.shrink_to_fit();
        segment.expect(usize::MAX);
        assert!(segment.bytes.capacity() <= segment.bytes.len() + SEGMENT_BYTES);
    }
}
