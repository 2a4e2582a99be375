//! Chunks get rows of their own, within the writer's transaction.

use sea_orm::{DatabaseTransaction, DbErr};

use super::PackDraft;
use crate::{
    domain::{bitmap, segment},
    store::{
        gaps::{GiveUp, What},
        rows::damaged,
        statements::{self, NewChunk, accept_part},
        tail::{Leaving, Tail, TailChunk},
    },
};

/// Microseconds within which all chunks were accepted that become one.
const APART: i64 = 1_000_000;

/// Bytes of chunks that are written at once, at the least.
const AT_ONCE: usize = 1 << 20;

/// Gives rows to the chunks of every pack that begins up to a number. Those of one
/// integration that nobody has read become one where they follow each other.
pub(in crate::store) async fn unpack_up_to(
    tx: &DatabaseTransaction,
    packs: &mut PackDraft<'_>,
    tail: &Tail,
    up_to: i64,
) -> Result<(), DbErr> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    let mut ids = Vec::new();
    for (key, leaving) in tail.leave(up_to) {
        ids.extend(leaving.iter().map(|one| one.chunk.id));
        bytes += leaving
            .iter()
            .map(|one| one.chunk.bytes.len())
            .sum::<usize>();
        let own = leaving.into_iter().filter_map(|one| {
            let accepted = packs.accepted(one.chunk.id)?;
            Some(Row {
                may_join: !one.is_read && accepted.is_empty(),
                accepted,
                new: NewChunk {
                    key,
                    chunk: one.chunk,
                },
            })
        });
        join(own, &mut rows);
        // What is joined is a copy.
        if bytes >= AT_ONCE {
            insert(tx, &std::mem::take(&mut rows)).await?;
            bytes = 0;
        }
    }
    insert(tx, &rows).await?;
    for id in ids {
        packs.settle(id, None);
    }
    Ok(())
}

/// Gives rows to the chunks that may be given up.
pub(in crate::store) async fn unpack_for(
    tx: &DatabaseTransaction,
    packs: &mut PackDraft<'_>,
    tail: &Tail,
    ask: &GiveUp,
) -> Result<(), DbErr> {
    let key = ask.key;
    let leaving: Vec<Leaving> = match &ask.what {
        What::Refused(events) => {
            let chunks = events.iter();
            chunks
                .filter_map(|events| tail.packed(key, events.chunk_id))
                .collect()
        }
        What::Expired(keep) => tail.packed_from(key, keep.from, keep.most_looked_at()),
        What::Damaged(_) => Vec::new(),
    };
    let rows: Vec<Row> = leaving
        .into_iter()
        .filter_map(|one| {
            Some(Row {
                may_join: false,
                accepted: packs.accepted(one.chunk.id)?,
                new: NewChunk {
                    key,
                    chunk: one.chunk,
                },
            })
        })
        .collect();
    insert(tx, &rows).await?;
    for row in &rows {
        packs.unpack(key, row.new.chunk.id);
    }
    Ok(())
}

/// A row to be written.
pub(super) struct Row {
    pub(super) new: NewChunk,
    /// What of it is done with; empty where nothing is.
    pub(super) accepted: Vec<u8>,
    pub(super) may_join: bool,
}

/// Joins rows of one integration, in log order, where they may be one chunk.
fn join(own: impl Iterator<Item = Row>, rows: &mut Vec<Row>) {
    let mut run: Vec<Row> = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for row in own {
        let chunk = &row.new.chunk;
        let follows = run.first().zip(run.last()).is_some_and(|(first, last)| {
            let may_join = last.may_join && row.may_join;
            may_join && follows(&last.new.chunk, chunk) && is_near(&first.new.chunk, chunk)
        });
        if !follows || !segment::fits(count + chunk.count, bytes + chunk.bytes.len()) {
            rows.extend(joined(std::mem::take(&mut run)));
            (count, bytes) = (0, 0);
        }
        count += chunk.count;
        bytes += chunk.bytes.len();
        run.push(row);
    }
    rows.extend(joined(run));
}

fn follows(before: &TailChunk, chunk: &TailChunk) -> bool {
    before.first_sequence + u64::from(before.count) == chunk.first_sequence
}

fn is_near(first: &TailChunk, chunk: &TailChunk) -> bool {
    let micros = |chunk: &TailChunk| chunk.accepted_at.as_microsecond();
    (micros(chunk) - micros(first)).abs() < APART
}

/// One row of all, with the number of the first.
fn joined(run: Vec<Row>) -> Option<Row> {
    let mut rest = run.into_iter();
    let mut first = rest.next()?;
    if rest.len() == 0 {
        return Some(first);
    }
    let mut bytes = first.new.chunk.bytes.to_vec();
    for row in rest {
        bytes.extend_from_slice(&row.new.chunk.bytes);
        first.new.chunk.count += row.new.chunk.count;
    }
    first.new.chunk.bytes = bytes.into();
    Some(first)
}

/// Writes rows.
pub(super) async fn insert(tx: &DatabaseTransaction, rows: &[Row]) -> Result<(), DbErr> {
    // Before anything is written.
    let partial = rows.iter().filter(|row| !row.accepted.is_empty());
    let partial = partial.map(|row| Ok((row, pending_bytes(&row.new.chunk, &row.accepted)?)));
    let partial: Vec<(&Row, u64)> = partial.collect::<Result<_, DbErr>>()?;
    let new: Vec<&NewChunk> = rows.iter().map(|row| &row.new).collect();
    statements::insert_chunks(tx, &new).await?;
    for (row, pending_bytes) in partial {
        accept_part(tx, row.new.chunk.id, &row.accepted, pending_bytes).await?;
    }
    Ok(())
}

/// Bytes of the events that are not done with.
fn pending_bytes(chunk: &TailChunk, accepted: &[u8]) -> Result<u64, DbErr> {
    let entries = segment::entries(&chunk.bytes, chunk.count).map_err(|_| damaged("a segment"))?;
    let pending = entries.iter().enumerate();
    let pending = pending.filter(|(index, _)| !bitmap::get(accepted, *index));
    Ok(pending.map(|(_, entry)| entry.stored.len() as u64).sum())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::integration::IntegrationKey;

    /// A chunk of one event, accepted so many milliseconds after the first.
    fn row(first_sequence: u64, millis: i64, may_join: bool) -> Row {
        Row {
            may_join,
            accepted: Vec::new(),
            new: NewChunk {
                key: IntegrationKey(1),
                chunk: TailChunk {
                    id: first_sequence as i64 * 10,
                    first_sequence,
                    count: 1,
                    accepted_at: Timestamp::from_millisecond(millis).unwrap(),
                    bytes: vec![0; 8].into(),
                    settled: Vec::new(),
                    gaps: Vec::new(),
                },
            },
        }
    }

    /// Numbers and counts of what they become.
    fn joined(rows: Vec<Row>) -> Vec<(i64, u32)> {
        let mut all = Vec::new();
        join(rows.into_iter(), &mut all);
        let chunks = all.iter().map(|row| &row.new.chunk);
        chunks.map(|chunk| (chunk.id, chunk.count)).collect()
    }

    #[test]
    fn joins_what_follows_within_a_second_and_nobody_knows() {
        let near = vec![row(1, 0, true), row(2, 600, true), row(3, 999, true)];
        assert_eq!(joined(near), [(10, 3)]);
        // None is older than its row says by more than that.
        let apart = vec![row(1, 0, true), row(2, 600, true), row(3, 1200, true)];
        assert_eq!(joined(apart), [(10, 2), (30, 1)]);
        let with_a_hole = vec![row(1, 0, true), row(3, 0, true)];
        assert_eq!(joined(with_a_hole), [(10, 1), (30, 1)]);
        let known = vec![row(1, 0, false), row(2, 0, true), row(3, 0, true)];
        assert_eq!(joined(known), [(10, 1), (20, 2)]);
        assert_eq!(joined(Vec::new()), []);
    }
}
