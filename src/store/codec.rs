//! Stored form of log entries and of backlog segments.
//!
//! A payload is one byte that names the coding, the CRC-32 of everything else, and the coded
//! bytes. The header of an entry has a version byte, a CRC-32 of its own, the registry revision
//! and a member for each chunk, so that a damaged payload leaves it readable.

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    error::StoreError,
    ports::{Entry, EntryChunk, EntryId, NewEntry, Position},
};
use crate::domain::{
    integration::IntegrationId,
    segment::Damaged,
    trace::{MAX_TRACES, TraceContext},
};

/// One LZ4 block with its length before it, without a CRC-32. Read, but not written any more.
const LZ4: u8 = 1;
/// Not compressed.
const PLAIN: u8 = 2;
/// LZ4 blocks, each with its uncompressed length before it, and before that the length of both.
/// Differs from the other codings in more than one bit.
const LZ4_PIECES: u8 = 4;
/// Bytes below which compression costs more than it saves.
const MIN_COMPRESSED: usize = 2 << 10;
/// Uncompressed bytes of one block. In blocks of 16 KiB alerts take 45% more.
const PIECE_BYTES: usize = 64 << 10;
const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;
const PAYLOAD_HEAD_BYTES: usize = 1 + CHECKSUM_BYTES;
/// Most bytes of a segment of the backlog; a payload that claims to be longer is damaged.
const MAX_SEGMENT_BYTES: usize = 16 << 20;

/// Header without traces.
const PLAIN_HEADER: u8 = 1;
/// Header with the number of members before them, and after them, for each, a byte with the number
/// of its traces, and these. Only written if an event is traced, so that programs from before it
/// can read what is not.
const TRACED_HEADER: u8 = 2;
/// Most traces of an entry, 12 KiB; those of later chunks are left out. An entry has a limit in
/// Kafka.
const MAX_ENTRY_TRACES: usize = 512;
const MEMBER_BYTES: usize = 24;

/// Stored form of an entry, apart from its position and the time of its acceptance.
#[derive(Clone, Debug)]
pub(super) struct StoredEntry {
    /// As in [`NewEntry::id`].
    pub(super) id: EntryId,
    /// Revision and chunks.
    pub(super) header: Vec<u8>,
    /// Segments of all chunks.
    pub(super) payload: Vec<u8>,
}

impl StoredEntry {
    /// Encodes an entry.
    pub(super) fn encode(entry: &NewEntry) -> Self {
        let mut body = Vec::with_capacity(8 + entry.chunks.len() * MEMBER_BYTES);
        body.extend_from_slice(&entry.revision.to_le_bytes());
        let is_traced = entry.chunks.iter().any(|chunk| !chunk.traces.is_empty());
        if is_traced {
            body.extend_from_slice(&(entry.chunks.len() as u32).to_le_bytes());
        }
        for chunk in &entry.chunks {
            body.extend_from_slice(chunk.integration_id.0.as_bytes());
            body.extend_from_slice(&chunk.count.to_le_bytes());
            body.extend_from_slice(&(chunk.segment.len() as u32).to_le_bytes());
        }
        if is_traced {
            let mut left = MAX_ENTRY_TRACES;
            for chunk in &entry.chunks {
                let kept = chunk.traces.len().min(MAX_TRACES).min(left);
                let traces = &chunk.traces[..kept];
                left -= kept;
                body.push(traces.len() as u8);
                for trace in traces {
                    body.extend_from_slice(&trace.trace_id);
                    body.extend_from_slice(&trace.span_id);
                }
            }
        }
        let version = match is_traced {
            true => TRACED_HEADER,
            false => PLAIN_HEADER,
        };
        let header = with_checksum(version, &body);
        let segments = entry.chunks.iter().map(|chunk| &chunk.segment[..]);
        Self {
            id: entry.id,
            header,
            payload: compress(segments),
        }
    }

    /// Decodes an entry.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the header is damaged or of an unknown version.
    pub(super) fn decode(
        &self,
        position: Position,
        accepted_at: Timestamp,
    ) -> Result<Entry, StoreError> {
        decode(self.id, &self.header, &self.payload, position, accepted_at)
    }
}

/// Decodes an entry from its parts, as [`StoredEntry::decode`] does.
pub(super) fn decode(
    id: EntryId,
    header: &[u8],
    payload: &[u8],
    position: Position,
    accepted_at: Timestamp,
) -> Result<Entry, StoreError> {
    let Header { revision, members } = Header::decode(header, position)?;
    let length = members.iter().map(|member| member.bytes as usize).sum();
    let segments = decompress_up_to(payload, length)
        .ok()
        .filter(|segments| segments.len() == length)
        .map(Bytes::from);
    let mut at = 0;
    let chunks = members.into_iter().map(|member| {
        let range = at..at + member.bytes as usize;
        at = range.end;
        EntryChunk {
            integration_id: member.integration_id,
            count: member.count,
            segment: segments
                .as_ref()
                // A slice would keep the memory of the whole entry.
                .map(|segments| Bytes::copy_from_slice(&segments[range]))
                .ok_or(Damaged),
            traces: member.traces,
        }
    });
    Ok(Entry {
        position,
        id,
        accepted_at,
        revision,
        chunks: chunks.collect(),
    })
}

/// Chunk of an entry, as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The integration.
    pub(super) integration_id: IntegrationId,
    /// Number of events.
    pub(super) count: u32,
    /// Bytes of the segment.
    pub(super) bytes: u32,
    /// As in [`NewChunk::traces`](super::ports::NewChunk::traces).
    pub(super) traces: Vec<TraceContext>,
}

/// Header of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// As in [`NewEntry::revision`].
    pub(super) revision: u64,
    /// The chunks, in the order of their segments.
    pub(super) members: Vec<Member>,
}

impl Header {
    /// Decodes the header of the entry at a position.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is damaged or of an unknown version.
    pub(super) fn decode(header: &[u8], position: Position) -> Result<Self, StoreError> {
        let is_unknown = |version: &&u8| ![PLAIN_HEADER, TRACED_HEADER].contains(*version);
        if let Some(version) = header.first().filter(is_unknown) {
            return Err(StoreError::Corrupt(format!(
                "the entry at position {} of the log has the unknown format {version}",
                position.0
            )));
        }
        Self::members(header).map_err(|Damaged| {
            let position = position.0;
            StoreError::Corrupt(format!(
                "the header of the entry at position {position} of the log is damaged"
            ))
        })
    }

    fn members(header: &[u8]) -> Result<Self, Damaged> {
        let (version, rest) = header.split_first().ok_or(Damaged)?;
        let body = without_checksum(*version, rest)?;
        let (revision, mut members) = body.split_first_chunk().ok_or(Damaged)?;
        let mut traces = None;
        if *version == TRACED_HEADER {
            let (count, rest) = members.split_first_chunk().ok_or(Damaged)?;
            let bytes = (u32::from_le_bytes(*count) as usize).checked_mul(MEMBER_BYTES);
            let (before, after) = rest
                .split_at_checked(bytes.ok_or(Damaged)?)
                .ok_or(Damaged)?;
            (members, traces) = (before, Some(after));
        }
        if !members.len().is_multiple_of(MEMBER_BYTES) {
            return Err(Damaged);
        }
        let member = |member: &[u8]| {
            let (id, rest) = member.split_first_chunk().ok_or(Damaged)?;
            let (count, rest) = rest.split_first_chunk().ok_or(Damaged)?;
            let (bytes, _) = rest.split_first_chunk().ok_or(Damaged)?;
            Ok(Member {
                integration_id: IntegrationId(Uuid::from_bytes(*id)),
                count: u32::from_le_bytes(*count),
                bytes: u32::from_le_bytes(*bytes),
                traces: Vec::new(),
            })
        };
        let mut members = members
            .chunks(MEMBER_BYTES)
            .map(member)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(mut traces) = traces {
            for member in &mut members {
                member.traces = split_traces(&mut traces)?;
            }
            if !traces.is_empty() {
                return Err(Damaged);
            }
        }
        Ok(Self {
            revision: u64::from_le_bytes(*revision),
            members,
        })
    }
}

/// Takes the traces of one member off the front.
fn split_traces(bytes: &mut &[u8]) -> Result<Vec<TraceContext>, Damaged> {
    let (count, mut rest) = bytes.split_first().ok_or(Damaged)?;
    let mut traces = Vec::new();
    for _ in 0..*count {
        let (trace_id, after) = rest.split_first_chunk().ok_or(Damaged)?;
        let (span_id, after) = after.split_first_chunk().ok_or(Damaged)?;
        traces.push(TraceContext {
            trace_id: *trace_id,
            span_id: *span_id,
        });
        rest = after;
    }
    *bytes = rest;
    Ok(traces)
}

/// Returns the payload of segments, one after another; nothing if they are empty.
pub(super) fn compress<'a>(segments: impl Iterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let length: usize = segments.clone().map(<[u8]>::len).sum();
    if length == 0 {
        return Vec::new();
    }
    let is_small = length < MIN_COMPRESSED;
    let capacity = if is_small { length } else { length / 2 };
    let mut payload = Vec::with_capacity(PAYLOAD_HEAD_BYTES + capacity);
    payload.resize(PAYLOAD_HEAD_BYTES, 0);
    if is_small {
        payload[0] = PLAIN;
        for segment in segments {
            payload.extend_from_slice(segment);
        }
    } else {
        payload[0] = LZ4_PIECES;
        compress_pieces(segments, &mut payload);
    }
    let sum = checksum(payload[0], &payload[PAYLOAD_HEAD_BYTES..]);
    payload[1..PAYLOAD_HEAD_BYTES].copy_from_slice(&sum);
    payload
}

fn compress_pieces<'a>(segments: impl Iterator<Item = &'a [u8]>, payload: &mut Vec<u8>) {
    let mut piece = Vec::new();
    for mut segment in segments {
        while piece.len() + segment.len() >= PIECE_BYTES {
            let (now, later) = segment.split_at(PIECE_BYTES - piece.len());
            if piece.is_empty() {
                compress_piece(now, payload);
            } else {
                piece.extend_from_slice(now);
                compress_piece(&piece, payload);
                piece.clear();
            }
            segment = later;
        }
        piece.extend_from_slice(segment);
    }
    if !piece.is_empty() {
        compress_piece(&piece, payload);
    }
}

fn compress_piece(piece: &[u8], payload: &mut Vec<u8>) {
    let compressed = lz4_flex::compress_prepend_size(piece);
    payload.extend_from_slice(&(compressed.len() as u32).to_le_bytes());
    payload.extend_from_slice(&compressed);
}

/// Returns the segment of a payload; nothing if the payload is empty.
pub(super) fn decompress(payload: &[u8]) -> Result<Vec<u8>, Damaged> {
    decompress_up_to(payload, MAX_SEGMENT_BYTES)
}

/// As [`decompress`], of at most `max_bytes`.
pub(super) fn decompress_up_to(payload: &[u8], max_bytes: usize) -> Result<Vec<u8>, Damaged> {
    match payload.split_first() {
        None => Ok(Vec::new()),
        Some((&LZ4, compressed)) => decompress_piece(compressed, max_bytes),
        Some((&PLAIN, rest)) => without_checksum(PLAIN, rest).map(<[u8]>::to_vec),
        Some((&LZ4_PIECES, rest)) => {
            decompress_pieces(without_checksum(LZ4_PIECES, rest)?, max_bytes)
        }
        Some(_) => Err(Damaged),
    }
}

fn decompress_pieces(mut pieces: &[u8], max_bytes: usize) -> Result<Vec<u8>, Damaged> {
    let mut bytes = Vec::new();
    while !pieces.is_empty() {
        let (length, rest) = pieces.split_first_chunk::<LENGTH_BYTES>().ok_or(Damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (compressed, rest) = rest.split_at_checked(length).ok_or(Damaged)?;
        bytes.append(&mut decompress_piece(compressed, max_bytes - bytes.len())?);
        pieces = rest;
    }
    Ok(bytes)
}

fn decompress_piece(compressed: &[u8], max_bytes: usize) -> Result<Vec<u8>, Damaged> {
    let (size, _) = lz4_flex::block::uncompressed_size(compressed).map_err(|_| Damaged)?;
    if size > max_bytes {
        return Err(Damaged);
    }
    lz4_flex::decompress_size_prepended(compressed).map_err(|_| Damaged)
}

/// Whether bytes are a segment of this number of events.
pub(super) fn is_segment(bytes: &[u8], count: u32) -> bool {
    let (mut rest, mut events) = (bytes, 0);
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let Some((_, next)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else {
            return false;
        };
        events += 1;
        rest = next;
    }
    rest.is_empty() && events == count
}

/// `kind`, the CRC-32 of all else, and `body`.
fn with_checksum(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &checksum(kind, body)[..], body].concat()
}

fn without_checksum(kind: u8, rest: &[u8]) -> Result<&[u8], Damaged> {
    let (sum, body) = rest.split_first_chunk().ok_or(Damaged)?;
    match checksum(kind, body) == *sum {
        true => Ok(body),
        false => Err(Damaged),
    }
}

fn checksum(kind: u8, body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[kind]);
    sum.update(body);
    sum.finalize().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{domain::integration::testing::testing_id, store::ports::NewChunk};

    fn one(bytes: &[u8]) -> Vec<u8> {
        compress(std::iter::once(bytes))
    }

    fn cycled(some: &[u8], length: usize) -> Vec<u8> {
        some.iter().copied().cycle().take(length).collect()
    }

    fn trace(at: u8) -> TraceContext {
        TraceContext {
            trace_id: [at + 1; 16],
            span_id: [at + 2; 8],
        }
    }

    fn entry(lengths: &[usize]) -> NewEntry {
        let chunks = lengths.iter().enumerate().map(|(at, length)| NewChunk {
            integration_id: testing_id(at as i64 % 3),
            count: at as u32 + 1,
            segment: cycled(&[at as u8, 1, 2, 3, 5, 8], *length).into(),
            traces: vec![trace(at as u8); at % 3],
        });
        NewEntry {
            id: [7; 16],
            revision: 12,
            chunks: chunks.collect(),
        }
    }

    fn decode(stored: &StoredEntry) -> Result<Entry, StoreError> {
        stored.decode(Position(3), Timestamp::UNIX_EPOCH)
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(
            some in prop::collection::vec(any::<u8>(), 1..100),
            length in 0..3 * PIECE_BYTES,
        ) {
            let bytes = cycled(&some, length);
            prop_assert_eq!(decompress(&one(&bytes)).unwrap(), bytes);
        }

        /// Incompressible bytes take more than before.
        #[test]
        fn reads_noise(seed: u64, length in 1..3 * PIECE_BYTES) {
            let mut bytes = vec![0; length];
            StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
            prop_assert_eq!(decompress(&one(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn reads_a_single_block(bytes: Vec<u8>) {
            let payload = [&[LZ4][..], &lz4_flex::compress_prepend_size(&bytes)].concat();
            prop_assert_eq!(decompress(&payload).unwrap(), bytes);
        }

        #[test]
        fn a_flipped_bit_of_a_payload_is_damage(
            some in prop::collection::vec(any::<u8>(), 1..100),
            length in 1..2 * MIN_COMPRESSED,
            at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let mut payload = one(&cycled(&some, length));
            let at = at.index(payload.len());
            payload[at] ^= 1 << bit;
            prop_assert!(decompress(&payload).is_err());
        }

        #[test]
        fn garbage_is_damage_or_a_payload(coding in 0..6u8, rest: Vec<u8>, count in 0..9u32) {
            if let Ok(bytes) = decompress(&[&[coding], &rest[..]].concat()) {
                let _ = is_segment(&bytes, count);
            }
        }

        #[test]
        fn an_entry_is_read_as_it_was_written(
            lengths in prop::collection::vec(1..PIECE_BYTES, 1..6),
        ) {
            let new = entry(&lengths);
            let read = decode(&StoredEntry::encode(&new)).unwrap();
            prop_assert_eq!((read.id, read.revision), (new.id, new.revision));
            prop_assert_eq!(read.position, Position(3));
            prop_assert_eq!(read.chunks.len(), new.chunks.len());
            for (read, new) in read.chunks.iter().zip(&new.chunks) {
                prop_assert_eq!(read.integration_id, new.integration_id);
                prop_assert_eq!(read.count, new.count);
                prop_assert_eq!(read.segment.as_ref(), Ok(&new.segment));
                prop_assert_eq!(&read.traces, &new.traces);
            }
        }

        #[test]
        fn a_flipped_bit_of_a_header_is_corruption(at: prop::sample::Index, bit in 0..8u8) {
            let mut stored = StoredEntry::encode(&entry(&[10, 20]));
            let at = at.index(stored.header.len());
            stored.header[at] ^= 1 << bit;
            prop_assert!(matches!(decode(&stored), Err(StoreError::Corrupt(_))));
        }

        #[test]
        fn a_damaged_payload_leaves_the_header(at: prop::sample::Index, bit in 0..8u8) {
            let mut stored = StoredEntry::encode(&entry(&[10, 5000]));
            let at = at.index(stored.payload.len());
            stored.payload[at] ^= 1 << bit;
            let read = decode(&stored).unwrap();
            let read: Vec<_> = read.chunks.iter().map(|one| (one.count, &one.segment)).collect();
            prop_assert_eq!(read, [(1, &Err(Damaged)), (2, &Err(Damaged))]);
        }
    }

    #[test]
    fn the_header_of_what_is_not_traced_is_that_of_earlier_programs() {
        let mut new = entry(&[10, 10]);
        assert_eq!(StoredEntry::encode(&new).header[0], TRACED_HEADER);
        new.chunks[1].traces.clear();
        assert_eq!(StoredEntry::encode(&new).header[0], PLAIN_HEADER);
        // A flood of traces is cut off and hides nothing else.
        let mut many = entry(&[1; 100]);
        for chunk in &mut many.chunks {
            chunk.traces = vec![trace(7); 2 * MAX_TRACES];
        }
        let read = decode(&StoredEntry::encode(&many)).unwrap();
        let traces: usize = read.chunks.iter().map(|chunk| chunk.traces.len()).sum();
        assert_eq!((read.chunks.len(), traces), (100, MAX_ENTRY_TRACES));
    }

    #[test]
    fn a_payload_of_another_length_is_damaged() {
        let mut stored = StoredEntry::encode(&entry(&[100]));
        stored.payload = one(&[1; 99]);
        let read = decode(&stored).unwrap();
        assert_eq!(read.chunks[0].segment, Err(Damaged));
    }

    #[test]
    fn a_segment_has_its_events_and_nothing_else() {
        let segment = [&[1, 0, 0, 0, 9][..], &[0, 0, 0, 0]].concat();
        assert!(is_segment(&segment, 2));
        assert!(!is_segment(&segment, 1));
        assert!(!is_segment(&segment[..8], 2));
        assert!(is_segment(&[], 0));
    }
}
