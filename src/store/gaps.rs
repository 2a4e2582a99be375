//! Giving events up, within the writer's transaction, and how gaps stand in a chunk's row.

mod damaged;
mod expire;

pub use self::expire::Keep;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use serde::{Deserialize, Serialize};

use super::{
    draft::Draft,
    rows::{damaged, statement},
    statements::{ProgressRow, run, save_progress},
};
use crate::domain::{
    bitmap,
    event::{Gap, GapReason, Time},
    gap::{ChunkState, Marked, PlacedGap, give_up},
    integration::IntegrationKey,
};

/// What to give up.
#[derive(Clone, Debug)]
pub struct GiveUp {
    /// The integration.
    pub key: IntegrationKey,
    /// Which of its events.
    pub what: What,
    /// Events and gaps that are in flight, and stay as they are.
    pub in_flight: Vec<Marked>,
}

/// Events to give up.
#[derive(Clone, Debug)]
pub enum What {
    /// These, which AWS refuses.
    Refused(Vec<Marked>),
    /// The oldest, as far as they are not kept.
    Expired(Keep),
    /// Those of a chunk that cannot be read back, if that is so.
    Damaged(i64),
}

/// What was given up.
#[derive(Clone, Debug, Default)]
pub struct GivenUp {
    /// The chunks that are not as they were.
    pub chunks: Vec<ChunkState>,
    /// How many events.
    pub expired: u64,
    /// Why, where it was not that they were refused.
    pub reason: Option<GapReason>,
    /// There may be more to expire, from this sequence on.
    pub next: Option<u64>,
}

/// A gap as it stands in the database. Times are microseconds since the Unix epoch.
#[derive(Deserialize, Serialize)]
struct StoredGap {
    index: u32,
    first_sequence: u64,
    count: u64,
    first_time: i64,
    last_time: i64,
    reason: String,
}

/// The column of a chunk's gaps: JSON, or nothing where there are none.
pub(super) fn encode(gaps: &[PlacedGap]) -> Result<Option<String>, DbErr> {
    if gaps.is_empty() {
        return Ok(None);
    }
    let stored: Vec<StoredGap> = gaps
        .iter()
        .map(|placed| StoredGap {
            index: placed.index,
            first_sequence: placed.gap.first_sequence,
            count: placed.gap.count,
            first_time: placed.gap.first_time.micros(),
            last_time: placed.gap.last_time.micros(),
            reason: placed.gap.reason.as_str().to_owned(),
        })
        .collect();
    let text = serde_json::to_string(&stored);
    text.map(Some)
        .map_err(|error| DbErr::Custom(error.to_string()))
}

/// The gaps of a chunk that wait.
pub(super) fn decode(
    text: Option<&str>,
    first_sequence: u64,
    settled: &[u8],
) -> Result<Vec<PlacedGap>, DbErr> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let stored: Vec<StoredGap> = serde_json::from_str(text).map_err(|_| damaged("gaps"))?;
    stored
        .into_iter()
        .filter(|one| !bitmap::get(settled, one.index as usize))
        .map(|one| {
            let mut reasons = GapReason::ALL.into_iter();
            let reason = reasons.find(|reason| reason.as_str() == one.reason);
            Ok(PlacedGap {
                index: one.index,
                gap: Gap {
                    first_sequence: one.first_sequence,
                    last_sequence: first_sequence + u64::from(one.index),
                    count: one.count,
                    first_time: Time::from_micros(one.first_time),
                    last_time: Time::from_micros(one.last_time),
                    reason: reason.ok_or_else(|| damaged("reason"))?,
                },
            })
        })
        .collect()
}

/// A chunk's row without its payload.
struct Row {
    state: ChunkState,
    pending_bytes: u64,
}

const COLUMNS: &str =
    "chunk_id, first_sequence, event_count, accepted, gaps, pending_bytes, accepted_at";

fn row(row: &QueryResult) -> Result<Row, DbErr> {
    let first_sequence = row.try_get::<i64>("", "first_sequence")? as u64;
    let settled: Option<Vec<u8>> = row.try_get("", "accepted")?;
    let settled = settled.unwrap_or_default();
    let gaps: Option<String> = row.try_get("", "gaps")?;
    Ok(Row {
        state: ChunkState {
            id: row.try_get("", "chunk_id")?,
            first_sequence,
            count: row.try_get::<i32>("", "event_count")? as u32,
            gaps: decode(gaps.as_deref(), first_sequence, &settled)?,
            settled,
            accepted_at: Time::from_micros(row.try_get("", "accepted_at")?),
        },
        pending_bytes: row.try_get::<i64>("", "pending_bytes")? as u64,
    })
}

/// Gives events up: counts them as expired, and puts gaps in their place.
pub(super) async fn apply(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    ask: &GiveUp,
) -> Result<GivenUp, DbErr> {
    let Some(slot) = draft.slot_mut(ask.key) else {
        return Ok(GivenUp::default());
    };
    let pending_bytes = slot.snapshot.progress.pending_bytes;
    let (given_up, freed) = match &ask.what {
        What::Refused(events) => give_up_refused(tx, ask, events).await?,
        What::Expired(keep) => expire::expire(tx, ask, keep, pending_bytes).await?,
        What::Damaged(chunk_id) => {
            damaged::set_aside(tx, ask, *chunk_id, &slot.snapshot.integration).await?
        }
    };
    if given_up.expired > 0 {
        let progress = &mut slot.snapshot.progress;
        progress.expired += given_up.expired;
        progress.pending_bytes = progress.pending_bytes.saturating_sub(freed);
        save_progress(tx, &[ProgressRow::of(ask.key, slot)]).await?;
    }
    Ok(given_up)
}

/// Also tells how many bytes they had.
async fn give_up_refused(
    tx: &DatabaseTransaction,
    ask: &GiveUp,
    refused: &[Marked],
) -> Result<(GivenUp, u64), DbErr> {
    // All is read before anything is written.
    let mut rows = Vec::with_capacity(refused.len());
    for events in refused {
        let sql =
            format!("SELECT {COLUMNS} FROM chunk WHERE chunk_id = $1 AND integration_key = $2");
        let values: [Value; 2] = [events.chunk_id.into(), ask.key.0.into()];
        if let Some(found) = tx.query_one_raw(statement(tx, &sql, values)).await? {
            rows.push((events, row(&found)?));
        }
    }
    let mut given_up = GivenUp::default();
    let mut freed = 0;
    for (events, mut row) in rows {
        let mut in_flight = ask.in_flight.iter();
        let in_flight = in_flight.find(|one| one.chunk_id == events.chunk_id);
        let chunks = std::slice::from_mut(&mut row.state);
        given_up.expired += give_up(chunks, |chunk, index| {
            let flies = in_flight.is_some_and(|one| one.has(index));
            let goes = !flies && (chunk.is_gap(index) || events.has(index));
            goes.then_some(GapReason::RecordRefused)
        });
        row.pending_bytes -= events.bytes.min(row.pending_bytes);
        freed += events.bytes;
        save(tx, &row).await?;
        given_up.chunks.push(row.state);
    }
    Ok((given_up, freed))
}

async fn save(tx: &DatabaseTransaction, row: &Row) -> Result<(), DbErr> {
    let sql = "UPDATE chunk SET accepted = $1, gaps = $2, pending_bytes = $3 WHERE chunk_id = $4";
    let values: [Value; 4] = [
        row.state.settled.clone().into(),
        encode(&row.state.gaps)?.into(),
        (row.pending_bytes as i64).into(),
        row.state.id.into(),
    ];
    run(tx, sql, values).await?;
    if row.state.has_events() {
        return Ok(());
    }
    let sql = "UPDATE chunk SET payload = $1 WHERE chunk_id = $2";
    let values: [Value; 2] = [Vec::<u8>::new().into(), row.state.id.into()];
    run(tx, sql, values).await.map(drop)
}
