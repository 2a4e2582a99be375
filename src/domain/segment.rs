//! How rendered events lie behind one another in the log: each a length (4 bytes,
//! little endian) and a body. Segments put end to end are a segment.

use bytes::Bytes;

use super::{delivery::Entry, event::partition_key_uuid, integration::IntegrationKey};

/// Events in one segment, and so in one chunk, at the most.
pub const SEGMENT_EVENTS: u32 = 500;
/// Bytes from which a segment takes no further event.
pub const SEGMENT_BYTES: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;
/// What a segment begins with: most events fit, and many segments hold one.
const FIRST_BYTES: usize = 1024;

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
        if start == 0 {
            self.bytes.reserve(FIRST_BYTES);
        }
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

    /// Whether the next event belongs into another segment.
    pub fn is_full(&self) -> bool {
        self.count >= SEGMENT_EVENTS || self.bytes.len() >= SEGMENT_BYTES
    }

    /// Whether `next` fits behind it.
    pub fn takes(&self, next: &Self) -> bool {
        self.count + next.count <= SEGMENT_EVENTS
            && self.bytes.len() + next.bytes.len() <= SEGMENT_BYTES
    }

    /// Puts `next` behind it.
    pub fn append(&mut self, next: &Self) {
        self.bytes.extend_from_slice(&next.bytes);
        self.count += next.count;
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

/// Where each event of a segment lies, and its key.
pub fn entries(bytes: &Bytes) -> Result<Vec<Entry>, Damaged> {
    let mut entries = Vec::new();
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
