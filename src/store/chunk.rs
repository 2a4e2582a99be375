//! A chunk's payload: one byte that names the coding, then the segment.

use super::tail::TailChunk;
use crate::domain::{
    delivery::{Entry, Key, LoadedChunk},
    segment::{self, Damaged},
};

/// LZ4 block with its length before it.
const LZ4: u8 = 1;
/// A payload that claims to unpack to more is damaged.
const MOST_BYTES: usize = 16 << 20;

/// What stands for an event whose body is gone.
const GIVEN_UP: Entry = Entry { key: 0, body: 0..0 };

/// Bytes of the event bodies alone.
pub(super) fn body_bytes(chunk: &TailChunk) -> u64 {
    (chunk.bytes.len() - chunk.count as usize * 4) as u64
}

pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut payload = vec![LZ4];
    payload.append(&mut lz4_flex::compress_prepend_size(bytes));
    payload
}

/// The segment of a payload; nothing where its events were given up.
pub(super) fn decompress(payload: &[u8]) -> Result<Vec<u8>, Damaged> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    let Some((&LZ4, packed)) = payload.split_first() else {
        return Err(Damaged);
    };
    let (size, _) = lz4_flex::block::uncompressed_size(packed).map_err(|_| Damaged)?;
    if size > MOST_BYTES {
        return Err(Damaged);
    }
    lz4_flex::decompress_size_prepended(packed).map_err(|_| Damaged)
}

/// A chunk to be delivered. Its gaps have the key `gap_key`.
pub(super) fn load(chunk: TailChunk, gap_key: Key) -> Result<LoadedChunk, Damaged> {
    let mut entries = match chunk.bytes.is_empty() {
        true => vec![GIVEN_UP; chunk.count as usize],
        false => segment::entries(&chunk.bytes)?,
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacks_what_it_packed(bytes: Vec<u8>) {
            prop_assert_eq!(decompress(&compress(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn garbage_is_damage(payload: Vec<u8>, count in 0..1000u32) {
            let Ok(bytes) = decompress(&payload) else {
                return Ok(());
            };
            let chunk = TailChunk {
                id: 1,
                first_sequence: 1,
                count,
                bytes: bytes.into(),
                settled: Vec::new(),
                gaps: Vec::new(),
            };
            let _ = load(chunk, 0);
        }
    }
}
