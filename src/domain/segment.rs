//! Segments: consecutive events in the log's format, each with its length before it (4 bytes,
//! little endian). Concatenated segments are a segment.

use std::ops::Range;

use bytes::Bytes;

use super::{
    event::{StoredEventInfo, inspect},
    integration::IntegrationId,
    sequences::Sequences,
    trace::TraceContext,
};

/// Most events of one segment, and so of one chunk.
pub const SEGMENT_EVENTS: u32 = 500;
/// Bytes of a segment from which no further event is appended.
pub const SEGMENT_BYTES: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;
/// Number of events from which the length of further ones is estimated.
const REPRESENTATIVE: u32 = 4;
/// Most bytes of capacity that are reserved at once for expected events.
const MAX_RESERVED: usize = 4 << 20;

/// Whether `count` events of `bytes` bytes in all may be one segment.
pub fn fits(count: u32, bytes: usize) -> bool {
    count <= SEGMENT_EVENTS && bytes <= SEGMENT_BYTES
}

/// Stored events of any integrations in order of arrival, in one buffer.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    events: u32,
    trace: Option<TraceContext>,
}

/// Segment of consecutive events of one integration within the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Number of events.
    pub count: u32,
    /// Bytes of the events with their lengths.
    pub bytes: u32,
}

impl Segments {
    /// Makes an empty buffer with capacity for `bytes`, at most 4 MiB.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes.min(MAX_RESERVED)),
            ..Self::default()
        }
    }

    /// Appends one event, which `store` writes. Appends nothing if it fails.
    pub fn push<T, E>(
        &mut self,
        integration_id: IntegrationId,
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
                self.extend(integration_id, bytes as u32);
                Ok(value)
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    fn extend(&mut self, integration_id: IntegrationId, bytes: u32) {
        match self.parts.last_mut() {
            Some(last) if last.integration_id == integration_id && !last.is_full() => {
                last.count += 1;
                last.bytes += bytes;
            }
            _ => self.parts.push(Part {
                integration_id,
                count: 1,
                bytes,
            }),
        }
    }

    /// The same events, published in this span.
    #[must_use]
    pub fn with_trace(mut self, trace: Option<TraceContext>) -> Self {
        self.trace = trace;
        self
    }

    /// Span in which the events were published, if it is traced.
    pub fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// Appends a part of another buffer with its bytes.
    pub fn push_part(&mut self, part: Part, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.parts.push(part);
        self.events += part.count;
    }

    /// Reserves capacity for the rest of a request, to avoid the repeated copies of growth by
    /// doubling: `read` bytes of the request became the present content, `left` follow.
    pub fn expect(&mut self, read: usize, left: usize) {
        if self.events < REPRESENTATIVE || read == 0 {
            return;
        }
        let each = self.bytes.len() / self.events as usize;
        if self.bytes.capacity() - self.bytes.len() < each {
            // An eighth more, because events differ in length.
            let capacity = (left as u128 * self.bytes.len() as u128 * 9 / 8) / read as u128;
            let capacity = usize::try_from(capacity)
                .map_or(MAX_RESERVED, |capacity| capacity.min(MAX_RESERVED));
            self.bytes.reserve_exact(capacity.max(each));
        }
    }

    /// Whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Number of events in all parts.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Parts in the order of their bytes.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes and the parts that they consist of.
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

/// One event of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentEvent {
    /// Partition key: the UUID of the device.
    pub partition_key: u128,
    /// Position of the stored event in the segment, without its length.
    pub stored: Range<u32>,
    /// Bytes of the event's body as it is sent.
    pub body_length: u32,
}

/// Bytes of the stored events of a segment whose sequences are not in `settled`. The first event
/// has `first_sequence`.
pub fn pending_bytes(bytes: &[u8], first_sequence: u64, settled: &Sequences) -> u64 {
    let (mut pending, mut at, mut sequence) = (0, 0, first_sequence);
    while let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let length = u64::from(u32::from_le_bytes(*length));
        if !settled.contains(sequence) {
            pending += length;
        }
        sequence += 1;
        at += LENGTH_BYTES + length as usize;
    }
    pending
}

/// Returns position, partition key and body length of each event of a segment. `count` is the
/// expected number of events, used only to reserve capacity.
pub fn events(bytes: &Bytes, count: u32) -> Result<Vec<SegmentEvent>, Damaged> {
    let mut events = Vec::with_capacity(count.min(SEGMENT_EVENTS) as usize);
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
        let StoredEventInfo {
            partition_key,
            body_length,
        } = inspect(stored).map_err(|_| Damaged)?;
        events.push(SegmentEvent {
            partition_key: partition_key.as_u128(),
            stored: start as u32..at as u32,
            body_length: body_length as u32,
        });
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::integration::testing::testing_id;

    fn push(segments: &mut Segments, key: i64, length: usize) {
        let pushed: Result<(), ()> = segments.push(testing_id(key), |out| {
            out.resize(out.len() + length, b'x');
            Ok(())
        });
        pushed.unwrap();
    }

    proptest! {
        #[test]
        fn parts_describe_the_bytes(
            events in prop::collection::vec((0..3_i64, 0..2000_usize, 1..9_usize, any::<bool>()), 0..30),
        ) {
            let mut segments = Segments::default();
            let mut wanted = Vec::new();
            for (key, length, times, fails) in events {
                for _ in 0..times * times {
                    if fails {
                        let failed = segments.push(testing_id(key), |out| {
                            out.resize(out.len() + length, b'x');
                            Err::<(), ()>(())
                        });
                        prop_assert_eq!(failed, Err(()));
                    } else {
                        push(&mut segments, key, length);
                        wanted.push((testing_id(key), length));
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
                    found.push((part.integration_id, length as usize));
                    at += 4 + length as usize;
                }
                prop_assert_eq!(found.len() - before, part.count as usize);
            }
            prop_assert_eq!(at, bytes.len());
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_part_does_not_exceed_the_limits_of_a_segment() {
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
    fn capacity_for_expected_events_is_reserved_once() {
        let mut segments = Segments::default();
        let (events, size) = (500, 400);
        let mut growths = 0;
        for index in 0..events {
            let before = segments.bytes.capacity();
            segments.expect(index * size, (events - index) * size);
            push(&mut segments, index as i64 % 7, 900);
            growths += usize::from(segments.bytes.capacity() != before);
        }
        // A few, until the length of the events is estimated.
        assert!(growths <= 4, "{growths}");
        assert!(segments.bytes.capacity() < segments.bytes.len() * 5 / 4);
    }

    #[test]
    fn reserved_capacity_is_limited() {
        let mut segments = Segments::default();
        for _ in 0..REPRESENTATIVE {
            push(&mut segments, 1, 100_000);
        }
        segments.bytes.shrink_to_fit();
        segments.expect(1, usize::MAX);
        assert!(segments.bytes.capacity() <= segments.bytes.len() + MAX_RESERVED);
    }
}
