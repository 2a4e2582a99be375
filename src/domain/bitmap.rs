//! Bitmaps with one bit per event of a chunk, lowest bit first. Bits beyond the end of a
//! bitmap count as not set.

/// Whether a bit is set.
pub fn get(bitmap: &[u8], index: usize) -> bool {
    bitmap
        .get(index / 8)
        .is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}

/// Sets a bit.
pub fn set(bitmap: &mut Vec<u8>, index: usize) {
    if bitmap.len() <= index / 8 {
        bitmap.resize(index / 8 + 1, 0);
    }
    bitmap[index / 8] |= 1 << (index % 8);
}

/// The bits that are set in either.
pub fn union(one: &[u8], other: &[u8]) -> Vec<u8> {
    let length = one.len().max(other.len());
    let byte = |bitmap: &[u8], at: usize| bitmap.get(at).copied().unwrap_or(0);
    (0..length)
        .map(|at| byte(one, at) | byte(other, at))
        .collect()
}

/// Whether the first `count` bits are set.
pub fn is_full(bitmap: &[u8], count: u32) -> bool {
    (0..count as usize).all(|index| get(bitmap, index))
}
