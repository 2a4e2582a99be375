//! A pack as it is written: an outline that says whose chunks lie in it, and their
//! segments behind one another, compressed together.

use std::ops::Range;

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Value};

use crate::{
    domain::{bitmap, integration::IntegrationKey, segment::Damaged},
    store::{
        chunk,
        many::tuples,
        rows::micros,
        script::Script,
        statements::{NewChunk, run},
    },
};

/// Chunks of a pack at the least: fewer have rows of their own.
const LEAST_CHUNKS: usize = 2;
/// Bytes of segments beyond which a pack takes no further chunk.
const MOST_BYTES: usize = 4 << 20;
/// The outline's first byte.
const VERSION: u8 = 1;
const MEMBER_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 4;

/// A chunk within a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Member {
    pub(super) key: IntegrationKey,
    pub(super) first_sequence: u64,
    pub(super) count: u32,
    /// Bytes of its segment.
    pub(super) bytes: u32,
    /// Events of the pack before its own.
    pub(super) start: u32,
}

impl Member {
    pub(super) fn end(&self) -> u32 {
        self.start + self.count
    }

    /// Whether all of its events are done with, by what is done with of the pack.
    pub(super) fn is_done(&self, done: &[u8]) -> bool {
        (self.start..self.end()).all(|event| bitmap::get(done, event as usize))
    }

    /// Which of its events are done with, by what is done with of the pack.
    pub(super) fn accepted(&self, done: &[u8]) -> Vec<u8> {
        let mut accepted = Vec::new();
        for index in 0..self.count {
            if bitmap::get(done, (self.start + index) as usize) {
                bitmap::set(&mut accepted, index as usize);
            }
        }
        accepted
    }
}

/// Chunks that become a pack.
#[derive(Clone, Copy)]
pub(in crate::store) struct NewPack<'a>(&'a [NewChunk]);

impl<'a> NewPack<'a> {
    /// Where packs lie among chunks; the rest get rows.
    pub(in crate::store) fn among(chunks: &[NewChunk]) -> Vec<Range<usize>> {
        let (mut packs, mut begin, mut bytes) = (Vec::new(), 0, 0);
        for at in 0..=chunks.len() {
            let next = chunks.get(at).filter(|next| next.is_small());
            if let Some(next) = next
                && bytes < MOST_BYTES
            {
                bytes += next.chunk.bytes.len();
                continue;
            }
            if at - begin >= LEAST_CHUNKS {
                packs.push(begin..at);
            }
            (begin, bytes) = match next {
                Some(next) => (at, next.chunk.bytes.len()),
                None => (at + 1, 0),
            };
        }
        packs
    }

    pub(in crate::store) fn of(chunks: &'a [NewChunk]) -> Self {
        Self(chunks)
    }

    /// Its number: that of its first chunk.
    pub(in crate::store) fn id(&self) -> i64 {
        self.0.first().map_or(0, |new| new.chunk.id)
    }

    pub(in crate::store) fn members(&self) -> Vec<Member> {
        let mut start = 0;
        let member = |new: &NewChunk| {
            let member = Member {
                key: new.key,
                first_sequence: new.chunk.first_sequence,
                count: new.chunk.count,
                bytes: new.chunk.bytes.len() as u32,
                start,
            };
            start = member.end();
            member
        };
        self.0.iter().map(member).collect()
    }

    fn payload(&self) -> Vec<u8> {
        chunk::compress_all(self.0.iter().map(|new| &new.chunk.bytes[..]))
    }

    /// Writes it within a transaction.
    pub(in crate::store) async fn insert(
        &self,
        tx: &impl ConnectionTrait,
        now: Timestamp,
    ) -> Result<(), DbErr> {
        let values: [Value; COLUMNS] = [
            self.id().into(),
            micros(now).into(),
            encode(&self.members()).into(),
            self.payload().into(),
        ];
        let sql = insert_sql(tx.get_database_backend());
        run(tx, &sql, values).await.map(drop)
    }

    /// [`NewPack::insert`], by a script.
    pub(in crate::store) fn add_to(&self, script: &mut Script, now: Timestamp) {
        script.add(&insert_sql(DbBackend::Sqlite));
        script.bind(self.id()).bind(micros(now));
        script.bind(encode(&self.members())).bind(self.payload());
    }
}

/// Columns of a row of `pack`.
const COLUMNS: usize = 4;

fn insert_sql(backend: DbBackend) -> String {
    let row = tuples(backend, 1, COLUMNS);
    format!("INSERT INTO pack (pack_id, accepted_at, outline, payload) VALUES {row}")
}

/// A version, the CRC-32 of what follows, and the members.
fn encode(members: &[Member]) -> Vec<u8> {
    let mut listed = Vec::with_capacity(members.len() * MEMBER_BYTES);
    for member in members {
        listed.extend_from_slice(&member.key.0.to_le_bytes());
        listed.extend_from_slice(&member.first_sequence.to_le_bytes());
        listed.extend_from_slice(&member.count.to_le_bytes());
        listed.extend_from_slice(&member.bytes.to_le_bytes());
    }
    let sum = crc32fast::hash(&listed).to_le_bytes();
    [&[VERSION], &sum[..], &listed].concat()
}

/// The members of an outline.
pub(super) fn decode(outline: &[u8]) -> Result<Vec<Member>, Damaged> {
    let (version, rest) = outline.split_first().ok_or(Damaged)?;
    let (sum, listed) = rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(Damaged)?;
    let sound = *version == VERSION
        && crc32fast::hash(listed).to_le_bytes() == *sum
        && listed.len().is_multiple_of(MEMBER_BYTES);
    if !sound {
        return Err(Damaged);
    }
    let mut start: u32 = 0;
    let member = |listed: &[u8]| {
        let (key, rest) = listed.split_first_chunk().ok_or(Damaged)?;
        let (first_sequence, rest) = rest.split_first_chunk().ok_or(Damaged)?;
        let (count, rest) = rest.split_first_chunk().ok_or(Damaged)?;
        let (bytes, _) = rest.split_first_chunk().ok_or(Damaged)?;
        let member = Member {
            key: IntegrationKey(i64::from_le_bytes(*key)),
            first_sequence: u64::from_le_bytes(*first_sequence),
            count: u32::from_le_bytes(*count),
            bytes: u32::from_le_bytes(*bytes),
            start,
        };
        start = start.checked_add(member.count).ok_or(Damaged)?;
        Ok(member)
    };
    listed.chunks(MEMBER_BYTES).map(member).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members() -> impl Strategy<Value = Vec<Member>> {
        let one = (any::<i64>(), any::<u64>(), 1..500u32, any::<u32>());
        prop::collection::vec(one, 0..20).prop_map(|all| {
            let mut start = 0;
            let member = |(key, first_sequence, count, bytes)| {
                let member = Member {
                    key: IntegrationKey(key),
                    first_sequence,
                    count,
                    bytes,
                    start,
                };
                start += count;
                member
            };
            all.into_iter().map(member).collect()
        })
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(members in members()) {
            prop_assert_eq!(decode(&encode(&members)), Ok(members));
        }

        #[test]
        fn a_bit_that_flips_is_damage(members in members(), at: prop::sample::Index, bit in 0..8u8) {
            let mut outline = encode(&members);
            let at = at.index(outline.len());
            outline[at] ^= 1 << bit;
            prop_assert_eq!(decode(&outline), Err(Damaged));
        }

        #[test]
        fn garbage_is_no_outline(outline: Vec<u8>) {
            prop_assert_eq!(decode(&outline), Err(Damaged));
        }
    }
}
