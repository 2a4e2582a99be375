//! A chunk's payload: one byte that names the coding, the CRC-32 of all else, then the
//! segment.

use super::tail::TailChunk;
use crate::domain::{
    delivery::{Entry, Key, LoadedChunk},
    gap::ChunkState,
    segment::{self, Damaged},
};

/// One LZ4 block with its length before it, without a CRC-32. Read, but no longer written.
/// From one coding to another it takes more than a bit.
const LZ4: u8 = 1;
/// As it is.
const PLAIN: u8 = 2;
/// LZ4 blocks, each with its length before it, and before that the length of both.
const LZ4_PIECES: u8 = 4;
/// Below it compression takes more than it saves.
const LEAST_PACKED: usize = 2 << 10;
/// With less LZ4 finds fewer repetitions: alerts in pieces of 16 KiB take 45% more.
const PIECE_BYTES: usize = 64 << 10;
const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + CHECKSUM_BYTES;
/// A payload that claims to unpack to more is damaged.
const MOST_BYTES: usize = 16 << 20;

/// What stands for an event that is gone.
const GIVEN_UP: Entry = Entry {
    key: 0,
    stored: 0..0,
    body_length: 0,
};

/// Bytes of the events alone.
pub(super) fn event_bytes(chunk: &TailChunk) -> u64 {
    (chunk.bytes.len() - chunk.count as usize * 4) as u64
}

/// The payload of segments put end to end.
pub(super) fn compress_all<'a>(segments: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut payload = vec![0; HEAD_BYTES];
    payload[0] = LZ4_PIECES;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for segment in segments {
        let mut rest = segment;
        while piece.len() + rest.len() >= PIECE_BYTES {
            let (now, later) = rest.split_at(PIECE_BYTES - piece.len());
            piece.extend_from_slice(now);
            pack_pieces(&piece, &mut payload);
            piece.clear();
            rest = later;
        }
        piece.extend_from_slice(rest);
    }
    pack_pieces(&piece, &mut payload);
    seal(payload)
}

/// The payload of a segment, which is not empty.
pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
    let is_small = bytes.len() < LEAST_PACKED;
    let room = if is_small {
        bytes.len()
    } else {
        bytes.len() / 2
    };
    let mut payload = Vec::with_capacity(HEAD_BYTES + room);
    payload.resize(HEAD_BYTES, 0);
    if is_small {
        payload[0] = PLAIN;
        payload.extend_from_slice(bytes);
    } else {
        payload[0] = LZ4_PIECES;
        pack_pieces(bytes, &mut payload);
    }
    seal(payload)
}

/// Puts the checksum in its place.
fn seal(mut payload: Vec<u8>) -> Vec<u8> {
    let sum = checksum(payload[0], &payload[HEAD_BYTES..]);
    payload[1..HEAD_BYTES].copy_from_slice(&sum);
    payload
}

fn pack_pieces(bytes: &[u8], payload: &mut Vec<u8>) {
    for piece in bytes.chunks(PIECE_BYTES) {
        let packed = lz4_flex::compress_prepend_size(piece);
        payload.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        payload.extend_from_slice(&packed);
    }
}

fn checksum(coding: u8, coded: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[coding]);
    sum.update(coded);
    sum.finalize().to_le_bytes()
}

/// The segment of a payload; nothing where its events were given up.
pub(super) fn decompress(payload: &[u8]) -> Result<Vec<u8>, Damaged> {
    match payload.split_first() {
        None => Ok(Vec::new()),
        Some((&LZ4, packed)) => unpack(packed, MOST_BYTES),
        Some((&PLAIN, rest)) => checked(PLAIN, rest).map(<[u8]>::to_vec),
        Some((&LZ4_PIECES, rest)) => unpack_pieces(checked(LZ4_PIECES, rest)?),
        Some(_) => Err(Damaged),
    }
}

fn checked(coding: u8, rest: &[u8]) -> Result<&[u8], Damaged> {
    let (sum, coded) = rest.split_first_chunk().ok_or(Damaged)?;
    match checksum(coding, coded) == *sum {
        true => Ok(coded),
        false => Err(Damaged),
    }
}

/// Whether a payload cannot be what was written of the chunk.
pub(super) fn is_damaged(payload: &[u8], chunk: &ChunkState) -> bool {
    if payload.is_empty() {
        return chunk.has_events();
    }
    let entries =
        decompress(payload).and_then(|bytes| segment::entries(&bytes.into(), chunk.count));
    entries.map(|entries| entries.len()) != Ok(chunk.count as usize)
}

fn unpack_pieces(mut pieces: &[u8]) -> Result<Vec<u8>, Damaged> {
    let mut bytes = Vec::new();
    while !pieces.is_empty() {
        let (length, rest) = pieces.split_first_chunk::<LENGTH_BYTES>().ok_or(Damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (packed, rest) = rest.split_at_checked(length).ok_or(Damaged)?;
        bytes.append(&mut unpack(packed, MOST_BYTES - bytes.len())?);
        pieces = rest;
    }
    Ok(bytes)
}

fn unpack(packed: &[u8], most: usize) -> Result<Vec<u8>, Damaged> {
    let (size, _) = lz4_flex::block::uncompressed_size(packed).map_err(|_| Damaged)?;
    if size > most {
        return Err(Damaged);
    }
    lz4_flex::decompress_size_prepended(packed).map_err(|_| Damaged)
}

/// A chunk to be delivered. Its gaps have the key `gap_key`.
pub(super) fn load(chunk: TailChunk, gap_key: Key) -> Result<LoadedChunk, Damaged> {
    let mut entries = match chunk.bytes.is_empty() {
        true if chunk.has_events() => return Err(Damaged),
        true => vec![GIVEN_UP; chunk.count as usize],
        false => segment::entries(&chunk.bytes, chunk.count)?,
    };
    if entries.len() != chunk.count as usize {
        return Err(Damaged);
    }
    for placed in &chunk.gaps {
        let entry = entries.get_mut(placed.index as usize).ok_or(Damaged)?;
        *entry = Entry {
            key: gap_key,
            ..GIVEN_UP
        };
    }
    Ok(LoadedChunk {
        id: chunk.id,
        first_sequence: chunk.first_sequence,
        entries,
        bytes: chunk.bytes,
        settled: chunk.settled,
        gaps: chunk.gaps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    proptest! {
        #[test]
        fn unpacks_what_it_packed(
            some in prop::collection::vec(any::<u8>(), 1..100),
            length in 1..3 * PIECE_BYTES,
        ) {
            let bytes: Vec<u8> = some.iter().copied().cycle().take(length).collect();
            prop_assert_eq!(decompress(&compress(&bytes)).unwrap(), bytes);
        }

        /// What does not compress takes more than it was.
        #[test]
        fn unpacks_noise(seed: u64, length in 1..3 * PIECE_BYTES) {
            let mut bytes = vec![0; length];
            StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
            prop_assert_eq!(decompress(&compress(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn unpacks_segments_behind_one_another(
            lengths in prop::collection::vec(0..PIECE_BYTES, 1..6),
        ) {
            let segments: Vec<Vec<u8>> = lengths
                .iter()
                .map(|length| (0..*length).map(|at| (at * length % 251) as u8).collect())
                .collect();
            let payload = compress_all(segments.iter().map(|one| &one[..]));
            prop_assert_eq!(decompress(&payload).unwrap(), segments.concat());
        }

        #[test]
        fn reads_a_single_block(bytes: Vec<u8>) {
            let payload = [&[LZ4][..], &lz4_flex::compress_prepend_size(&bytes)].concat();
            prop_assert_eq!(decompress(&payload).unwrap(), bytes);
        }

        #[test]
        fn a_bit_that_flips_is_damage(
            some in prop::collection::vec(any::<u8>(), 1..100),
            length in 1..2 * LEAST_PACKED,
            at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let bytes: Vec<u8> = some.iter().copied().cycle().take(length).collect();
            let mut payload = compress(&bytes);
            let at = at.index(payload.len());
            payload[at] ^= 1 << bit;
            prop_assert!(decompress(&payload).is_err());
        }

        #[test]
        fn garbage_is_damage(coding in 0..6u8, rest: Vec<u8>, count in 0..1000u32) {
            let payload = [&[coding], &rest[..]].concat();
            let Ok(bytes) = decompress(&payload) else {
                return Ok(());
            };
            let chunk = TailChunk {
                id: 1,
                first_sequence: 1,
                count,
                accepted_at: Timestamp::UNIX_EPOCH,
                bytes: bytes.into(),
                settled: Vec::new(),
                gaps: Vec::new(),
            };
            let _ = load(chunk, 0);
        }
    }
}
