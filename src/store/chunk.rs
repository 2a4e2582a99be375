//! A chunk's payload: one byte that names the coding, then the segment.

use bytes::Bytes;

use super::tail::TailChunk;
use crate::domain::{
    delivery::LoadedChunk,
    segment::{self, Damaged},
};

/// LZ4 block with its length before it.
const LZ4: u8 = 1;
/// A payload that claims to unpack to more is damaged.
const MOST_BYTES: usize = 16 << 20;

/// Bytes of the event bodies alone.
pub(super) fn body_bytes(chunk: &TailChunk) -> u64 {
    (chunk.bytes.len() - chunk.count as usize * 4) as u64
}

pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut payload = vec![LZ4];
    payload.append(&mut lz4_flex::compress_prepend_size(bytes));
    payload
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, Damaged> {
    let Some((&LZ4, packed)) = payload.split_first() else {
        return Err(Damaged);
    };
    let (size, _) = lz4_flex::block::uncompressed_size(packed).map_err(|_| Damaged)?;
    if size > MOST_BYTES {
        return Err(Damaged);
    }
    lz4_flex::decompress_size_prepended(packed).map_err(|_| Damaged)
}

/// A chunk from its row.
pub(super) fn from_row(
    id: i64,
    first_sequence: u64,
    count: u32,
    accepted: Vec<u8>,
    payload: &[u8],
) -> Result<LoadedChunk, Damaged> {
    let bytes = Bytes::from(decompress(payload)?);
    load(id, first_sequence, count, accepted, bytes)
}

/// A chunk from memory.
pub(super) fn from_tail(chunk: TailChunk) -> Result<LoadedChunk, Damaged> {
    load(
        chunk.id,
        chunk.first_sequence,
        chunk.count,
        chunk.accepted,
        chunk.bytes,
    )
}

fn load(
    id: i64,
    first_sequence: u64,
    count: u32,
    accepted: Vec<u8>,
    bytes: Bytes,
) -> Result<LoadedChunk, Damaged> {
    let entries = segment::entries(&bytes)?;
    if entries.len() != count as usize {
        return Err(Damaged);
    }
    Ok(LoadedChunk {
        id,
        first_sequence,
        entries,
        bytes,
        accepted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacks_what_it_packed(bytes: Vec<u8>) {
            prop_assert_eq!(decompress(&compress(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn garbage_is_damage(payload: Vec<u8>, count: u32) {
            let _ = from_row(1, 1, count, Vec::new(), &payload);
        }
    }
}
