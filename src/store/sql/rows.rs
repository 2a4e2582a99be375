//! Rows of ledgers as values of the contract. The columns have the same names in every database;
//! times are microseconds since the Unix epoch.

use bytes::Bytes;
use jiff::Timestamp;
use sea_orm::{DbErr, QueryResult};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    domain::{
        chunk::Chunk,
        event::{Gap, GapReason, Time},
        integration::IntegrationId,
        segment::SEGMENT_EVENTS,
        sequences::Sequences,
    },
    store::{
        codec,
        ports::{Anchor, Checkpoint, Counts, LedgerRow, Position},
    },
};

/// Most chunks of one read: enough for a request of events that came one by one.
pub(in crate::store) const READ_CHUNKS: i64 = 512;
/// Columns of [`chunk_state`].
pub(in crate::store) const CHUNK_COLUMNS: &str =
    "first_sequence, event_count, accepted_at, accepted, gaps, pending_bytes";

/// A row holds content that this version cannot read.
pub(in crate::store) fn unreadable(what: &str) -> DbErr {
    DbErr::Custom(format!(
        "the database holds what this version cannot read: {what}"
    ))
}

/// A time from its column.
pub(in crate::store) fn time(micros: i64) -> Result<Timestamp, DbErr> {
    Timestamp::from_microsecond(micros).map_err(|_| unreadable("a time"))
}

/// A sequence before the first sequences of all chunks that end after a sequence, and that
/// sequence.
pub(in crate::store) fn span(from: u64) -> (i64, i64) {
    let after = from as i64 - i64::from(SEGMENT_EVENTS) - 1;
    (after, from as i64)
}

/// Chunks of a backlog that are read from rows with [`CHUNK_COLUMNS`] and `payload`.
pub(in crate::store) struct ChunkReader {
    max_bytes: usize,
    bytes: usize,
    /// The chunks that were read.
    pub(in crate::store) chunks: Vec<Chunk>,
}

/// Result of reading one row.
pub(in crate::store) enum ChunkRead {
    /// The chunk was taken.
    Taken,
    /// The chunk does not belong to this read any more.
    Enough,
    /// The first chunk, with this first sequence, is damaged.
    Damaged(u64),
}

impl ChunkReader {
    /// Reads about `max_bytes`, but at least one chunk.
    pub(in crate::store) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            bytes: 0,
            chunks: Vec::new(),
        }
    }

    /// Reads the next row.
    pub(in crate::store) fn read(&mut self, row: &QueryResult) -> Result<ChunkRead, DbErr> {
        let mut chunk = chunk_state(row)?;
        let payload: Vec<u8> = row.try_get("", "payload")?;
        let is_whole = match chunk.pending_events() {
            0 => true,
            _ => match codec::decompress(&payload) {
                Ok(segment) => {
                    chunk.segment = segment.into();
                    codec::is_segment(&chunk.segment, chunk.count)
                }
                Err(_) => false,
            },
        };
        // A chunk that is settled in part keeps all of its segment.
        self.bytes += match chunk.settled.is_empty() {
            true => chunk.pending_bytes as usize,
            false => chunk.segment.len(),
        };
        let is_first = self.chunks.is_empty();
        Ok(match is_whole {
            true if is_first || self.bytes <= self.max_bytes => {
                self.chunks.push(chunk);
                ChunkRead::Taken
            }
            false if is_first => ChunkRead::Damaged(chunk.first_sequence),
            _ => ChunkRead::Enough,
        })
    }
}

/// The anchor of a row with the columns `anchor_position` and `anchor_entry_id`.
pub(in crate::store) fn anchor(row: &QueryResult) -> Result<Option<Anchor>, DbErr> {
    let position: Option<i64> = row.try_get("", "anchor_position")?;
    let Some(position) = position else {
        return Ok(None);
    };
    let entry_id: Vec<u8> = row.try_get("", "anchor_entry_id")?;
    Ok(Some(Anchor {
        position: Position(u64::try_from(position).map_err(|_| unreadable("anchor_position"))?),
        entry_id: entry_id
            .try_into()
            .map_err(|_| unreadable("an entry's id"))?,
    }))
}

/// Gap as it is stored. Times are microseconds since the Unix epoch.
#[derive(Deserialize, Serialize)]
struct StoredGap {
    /// Index of its last sequence in the chunk.
    index: u32,
    first_sequence: u64,
    count: u64,
    first_time: i64,
    last_time: i64,
    reason: String,
}

/// The column of a chunk's gaps: JSON, or nothing if there are none.
pub(in crate::store) fn encode_gaps(chunk: &Chunk) -> Option<String> {
    if chunk.gaps.is_empty() {
        return None;
    }
    let stored: Vec<StoredGap> = chunk
        .gaps
        .iter()
        .map(|gap| StoredGap {
            index: (gap.last_sequence - chunk.first_sequence) as u32,
            first_sequence: gap.first_sequence,
            count: gap.count,
            first_time: gap.first_time.micros(),
            last_time: gap.last_time.micros(),
            reason: gap.reason.as_str().to_owned(),
        })
        .collect();
    Some(json!(stored).to_string())
}

fn decode_gaps(
    text: Option<&str>,
    first_sequence: u64,
    settled: &Sequences,
) -> Result<Vec<Gap>, DbErr> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let stored: Vec<StoredGap> = serde_json::from_str(text).map_err(|_| unreadable("gaps"))?;
    let gap = |stored: StoredGap| {
        let mut reasons = GapReason::ALL.into_iter();
        let reason = reasons.find(|reason| reason.as_str() == stored.reason);
        Ok(Gap {
            first_sequence: stored.first_sequence,
            last_sequence: first_sequence + u64::from(stored.index),
            count: stored.count,
            first_time: Time::from_micros(stored.first_time),
            last_time: Time::from_micros(stored.last_time),
            reason: reason.ok_or_else(|| unreadable("the reason of a gap"))?,
        })
    };
    let gaps: Result<Vec<Gap>, DbErr> = stored.into_iter().map(gap).collect();
    let mut gaps = gaps?;
    // A settlement of an earlier version left them in the column.
    gaps.retain(|gap| !settled.contains(gap.last_sequence));
    Ok(gaps)
}

/// A chunk without its segment.
pub(in crate::store) fn chunk_state(row: &QueryResult) -> Result<Chunk, DbErr> {
    let first_sequence = number(row, "first_sequence")?;
    let count: i32 = row.try_get("", "event_count")?;
    let count = u32::try_from(count).map_err(|_| unreadable("event_count"))?;
    let bitmap: Option<Vec<u8>> = row.try_get("", "accepted")?;
    let settled = Sequences::from_bitmap(first_sequence, &bitmap.unwrap_or_default());
    let gaps: Option<String> = row.try_get("", "gaps")?;
    Ok(Chunk {
        first_sequence,
        count,
        accepted_at: time(row.try_get("", "accepted_at")?)?,
        segment: Bytes::new(),
        gaps: decode_gaps(gaps.as_deref(), first_sequence, &settled)?,
        settled,
        pending_bytes: number(row, "pending_bytes")?,
        traces: Vec::new(),
    })
}

/// A number that is not negative.
pub(in crate::store) fn number(row: &QueryResult, column: &str) -> Result<u64, DbErr> {
    u64::try_from(row.try_get::<i64>("", column)?).map_err(|_| unreadable(column))
}

/// A time that may be missing.
pub(in crate::store) fn optional_time(
    row: &QueryResult,
    column: &str,
) -> Result<Option<Timestamp>, DbErr> {
    row.try_get::<Option<i64>>("", column)?
        .map(time)
        .transpose()
}

/// Id in the column `integration_id`.
pub(in crate::store) fn integration_id(row: &QueryResult) -> Result<IntegrationId, DbErr> {
    let text: String = row.try_get("", "integration_id")?;
    let id = Uuid::parse_str(&text).map_err(|_| unreadable("integration_id"))?;
    Ok(IntegrationId(id))
}

/// Ledger of one integration: the columns of `progress`, `integration_id`, `backlog_since` and
/// `backlog_bytes`.
pub(in crate::store) fn ledger_row(row: &QueryResult) -> Result<LedgerRow, DbErr> {
    let settled: Option<Vec<u8>> = row.try_get("", "settled")?;
    let settled = Sequences::decode(&settled.unwrap_or_default());
    let checkpoint = Checkpoint {
        next_sequence: number(row, "next_sequence")?,
        position: Position(number(row, "position")?),
        settled: settled.map_err(|_| unreadable("settled"))?,
        counts: Counts {
            accepted: number(row, "accepted")?,
            delivered: number(row, "delivered")?,
            expired: number(row, "expired")?,
            pending_bytes: number(row, "pending_bytes")?,
        },
        last_attempt: optional_time(row, "last_attempt_at")?,
        last_delivery: optional_time(row, "last_delivery_at")?,
    };
    Ok(LedgerRow {
        integration_id: integration_id(row)?,
        checkpoint,
        backlog_since: optional_time(row, "backlog_since")?,
        backlog_bytes: number(row, "backlog_bytes")?,
    })
}
