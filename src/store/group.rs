//! Group commit: the segments of waiting requests become chunks, one run of chunks per
//! integration, and the chunks become entries of the log.

use std::mem;

use super::ports::{EntryId, NewChunk, NewEntry};
use crate::domain::{
    integration::IntegrationId,
    map::Map,
    segment::{Part, Segments, fits},
    trace::{TraceContext, add_traces},
};

/// Bytes of segments from which an entry takes no further chunk.
const ENTRY_BYTES: usize = 1 << 20;
/// A chunk stays in memory until it is delivered, so its buffer is shrunk if more than one part
/// in this many is unused.
const MAX_UNUSED_FRACTION: usize = 8;
/// Marks the last piece of a chunk.
const NO_PIECE: u32 = u32::MAX;

/// Segments of several requests, by integration. They are copied once, when all are known.
#[derive(Default)]
pub(super) struct Group {
    requests: Vec<RequestBytes>,
    pieces: Vec<Piece>,
    /// In the order in which they were begun.
    chunks: Vec<ChunkPlan>,
    /// Index of the last chunk of each integration.
    last_chunks: Map<IntegrationId, usize>,
}

/// Bytes of one request.
struct RequestBytes {
    bytes: Vec<u8>,
    /// Pieces that are not copied yet.
    pieces: u32,
}

/// Position of a segment in the bytes of a request.
struct Piece {
    request: u32,
    start: u32,
    end: u32,
    /// Index of the next piece of the same chunk.
    next: u32,
}

struct ChunkPlan {
    integration_id: IntegrationId,
    first_piece: u32,
    last_piece: u32,
    count: u32,
    bytes: usize,
    traces: Vec<TraceContext>,
}

impl Group {
    /// Adds the segments of a request.
    pub(super) fn add(&mut self, segments: Segments) {
        let trace = segments.trace();
        let (bytes, parts) = segments.into_parts();
        let request = self.requests.len() as u32;
        let mut start = 0;
        let pieces = parts.len() as u32;
        for part in parts {
            let end = start + part.bytes;
            self.add_part(part, request, start..end, trace);
            start = end;
        }
        self.requests.push(RequestBytes { bytes, pieces });
    }

    fn add_part(
        &mut self,
        part: Part,
        request: u32,
        range: std::ops::Range<u32>,
        trace: Option<TraceContext>,
    ) {
        let at = self.pieces.len() as u32;
        self.pieces.push(Piece {
            request,
            start: range.start,
            end: range.end,
            next: NO_PIECE,
        });
        let (count, bytes) = (part.count, part.bytes as usize);
        let last = self.last_chunks.get(&part.integration_id);
        if let Some(chunk) = last.and_then(|last| self.chunks.get_mut(*last))
            && fits(chunk.count + count, chunk.bytes + bytes)
        {
            self.pieces[chunk.last_piece as usize].next = at;
            chunk.last_piece = at;
            chunk.count += count;
            chunk.bytes += bytes;
            add_traces(&mut chunk.traces, trace);
            return;
        }
        self.last_chunks
            .insert(part.integration_id, self.chunks.len());
        self.chunks.push(ChunkPlan {
            integration_id: part.integration_id,
            first_piece: at,
            last_piece: at,
            count,
            bytes,
            traces: trace.into_iter().collect(),
        });
    }

    /// The entries, each with about [`ENTRY_BYTES`] at most. The chunks of an integration are in
    /// the order of its events. `id` makes the identity of an entry.
    pub(super) fn into_entries(self, revision: u64, id: impl Fn() -> EntryId) -> Vec<NewEntry> {
        let Self {
            mut requests,
            pieces,
            chunks,
            ..
        } = self;
        let (mut entries, mut current, mut bytes) = (Vec::new(), Vec::new(), 0);
        for plan in chunks {
            if bytes >= ENTRY_BYTES {
                entries.push(mem::take(&mut current));
                bytes = 0;
            }
            bytes += plan.bytes;
            let segment = take_whole(&plan, &pieces, &mut requests)
                .unwrap_or_else(|| copy(&plan, &pieces, &mut requests));
            current.push(NewChunk {
                integration_id: plan.integration_id,
                count: plan.count,
                segment: segment.into(),
                traces: plan.traces,
            });
        }
        if !current.is_empty() {
            entries.push(current);
        }
        let entry = |chunks| NewEntry {
            id: id(),
            revision,
            chunks,
        };
        entries.into_iter().map(entry).collect()
    }
}

/// Takes the buffer of a request that is exactly one chunk.
fn take_whole(
    plan: &ChunkPlan,
    pieces: &[Piece],
    requests: &mut [RequestBytes],
) -> Option<Vec<u8>> {
    let piece = &pieces[plan.first_piece as usize];
    let request = &mut requests[piece.request as usize];
    let whole = piece.start == 0 && piece.end as usize == request.bytes.len();
    if !whole || request.bytes.len() != plan.bytes {
        return None;
    }
    let mut bytes = mem::take(&mut request.bytes);
    if bytes.capacity() - bytes.len() > bytes.len() / MAX_UNUSED_FRACTION {
        bytes.shrink_to_fit();
    }
    Some(bytes)
}

fn copy(plan: &ChunkPlan, pieces: &[Piece], requests: &mut [RequestBytes]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(plan.bytes);
    let mut at = plan.first_piece;
    while let Some(piece) = pieces.get(at as usize) {
        let request = &mut requests[piece.request as usize];
        bytes.extend_from_slice(&request.bytes[piece.start as usize..piece.end as usize]);
        request.pieces -= 1;
        if request.pieces == 0 {
            request.bytes = Vec::new();
        }
        at = piece.next;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::{integration::testing::testing_id, segment::SEGMENT_BYTES};

    /// Most bytes of an event.
    const LONGEST: usize = 600_000;

    /// Number of the integration, and length, of one event.
    type Event = (i64, usize);

    fn requests() -> impl Strategy<Value = Vec<Vec<Event>>> {
        let length = prop_oneof![20 => 0..3000_usize, 1 => 60_000..LONGEST - 3];
        let run = (0..5_i64, length, 1..300_usize);
        let events = prop::collection::vec(run, 0..8).prop_map(|runs| {
            let run = |(id, length, times): (i64, usize, usize)| {
                let times = if length > 3000 { 1 } else { times };
                std::iter::repeat_n((id, length), times)
            };
            runs.into_iter().flat_map(run).collect()
        });
        prop::collection::vec(events, 0..8)
    }

    fn segments(events: &[Event], next: &mut u8) -> Segments {
        let mut segments = Segments::default();
        for (id, length) in events {
            *next = next.wrapping_add(1);
            let pushed: Result<(), ()> = segments.push(testing_id(*id), |out| {
                out.resize(out.len() + length, *next);
                Ok(())
            });
            pushed.unwrap();
        }
        segments
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_everything_is_in_order(requests in requests()) {
            let mut group = Group::default();
            let mut expected: BTreeMap<IntegrationId, (Vec<u8>, u32)> = BTreeMap::new();
            let mut next = 0;
            for events in requests {
                let segments = segments(&events, &mut next);
                let copy = segments.clone();
                let (bytes, parts) = copy.into_parts();
                let mut start = 0;
                for part in parts {
                    let end = start + part.bytes as usize;
                    let of = expected.entry(part.integration_id).or_default();
                    of.0.extend(&bytes[start..end]);
                    of.1 += part.count;
                    start = end;
                }
                group.add(segments);
            }
            let mut found: BTreeMap<IntegrationId, (Vec<u8>, u32)> = BTreeMap::new();
            let entries = group.into_entries(7, || [0; 16]);
            for entry in entries {
                prop_assert_eq!(entry.revision, 7);
                prop_assert!(!entry.chunks.is_empty());
                let bytes: usize = entry.chunks.iter().map(|chunk| chunk.segment.len()).sum();
                prop_assert!(bytes < ENTRY_BYTES + SEGMENT_BYTES + LONGEST);
                for NewChunk { integration_id, count, segment, .. } in entry.chunks {
                    // A segment may exceed its limit by one event.
                    prop_assert!(fits(count, segment.len().min(SEGMENT_BYTES)));
                    prop_assert!(segment.len() < SEGMENT_BYTES + LONGEST);
                    let of = found.entry(integration_id).or_default();
                    of.0.extend(&segment);
                    of.1 += count;
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
