//! Reading the log back from the database.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, StreamTrait, Value};
use serde_json::json;

use super::{
    StoreError, chunk, gaps,
    rows::{statement, time},
    tail::TailChunk,
};
use crate::domain::integration::IntegrationKey;

/// Chunks that one query reads at the most: enough for a request of events that came one
/// by one.
const MOST_CHUNKS: i64 = 512;
/// Chunks that are added up one by one: enough for any request of full chunks.
const SOME_CHUNKS: i64 = 64;

pub(super) async fn oldest_pending(
    db: &DatabaseConnection,
    keys: &[IntegrationKey],
) -> Result<HashMap<IntegrationKey, Timestamp>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "SELECT value AS integration_key, (SELECT accepted_at FROM chunk \
        WHERE integration_key = value AND pending_bytes > 0 \
        ORDER BY first_sequence LIMIT 1) AS oldest \
        FROM json_each($1)";
    let keys: Vec<i64> = keys.iter().map(|key| key.0).collect();
    let rows = db
        .query_all_raw(statement(db, sql, [json!(keys).to_string().into()]))
        .await?;
    let mut oldest = HashMap::new();
    for row in &rows {
        if let Some(at) = row.try_get::<Option<i64>>("", "oldest")? {
            let key = IntegrationKey(row.try_get("", "integration_key")?);
            oldest.insert(key, time(at)?);
        }
    }
    Ok(oldest)
}

pub(super) async fn log(
    db: &DatabaseConnection,
    key: IntegrationKey,
    from: u64,
    most_bytes: usize,
) -> Result<Vec<TailChunk>, StoreError> {
    let limit = chunks_within(db, key, from, most_bytes).await?;
    let sql = "SELECT chunk_id, first_sequence, event_count, accepted, gaps, payload \
        FROM chunk WHERE integration_key = $1 AND first_sequence >= $2 \
        ORDER BY first_sequence LIMIT $3";
    let values: [Value; 3] = [key.0.into(), (from as i64).into(), limit.into()];
    // Of a chunk that is settled in part all is read: what it takes shows only then.
    let mut rows = db.stream_raw(statement(db, sql, values)).await?;
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let chunk = chunk(&row)?;
        bytes += chunk.bytes.len();
        if !chunks.is_empty() && bytes > most_bytes {
            break;
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn chunk(row: &QueryResult) -> Result<TailChunk, StoreError> {
    let chunk_id: i64 = row.try_get("", "chunk_id")?;
    let first_sequence = row.try_get::<i64>("", "first_sequence")? as u64;
    let settled: Option<Vec<u8>> = row.try_get("", "accepted")?;
    let settled = settled.unwrap_or_default();
    let gaps: Option<String> = row.try_get("", "gaps")?;
    let payload: Vec<u8> = row.try_get("", "payload")?;
    let bytes = chunk::decompress(&payload).map_err(|_| StoreError::Damaged { chunk_id })?;
    Ok(TailChunk {
        id: chunk_id,
        first_sequence,
        count: row.try_get::<i32>("", "event_count")? as u32,
        bytes: bytes.into(),
        gaps: gaps::decode(gaps.as_deref(), first_sequence, &settled)?,
        settled,
    })
}

/// How many chunks to read, so that they unpack to about `most_bytes`; at least one.
async fn chunks_within(
    db: &DatabaseConnection,
    key: IntegrationKey,
    from: u64,
    most_bytes: usize,
) -> Result<i64, StoreError> {
    let count = async |sql: &str, chunks: i64| {
        let values: [Value; 4] = [
            key.0.into(),
            (from as i64).into(),
            chunks.into(),
            (most_bytes as i64).into(),
        ];
        let row = db.query_one_raw(statement(db, sql, values)).await?;
        row.map_or(Ok(0), |row| row.try_get::<i64>("", "fitting"))
    };
    // Counted there: each row that is handed over costs more than the look at its chunk.
    let some = count(FITTING, SOME_CHUNKS).await?;
    if some < SOME_CHUNKS {
        return Ok(some.max(1));
    }
    let all = count(ALL_FITTING, MOST_CHUNKS).await?;
    Ok(all.max(some))
}

/// How many of the next chunks are within the bytes, added up one by one.
const FITTING: &str = "SELECT COUNT(*) AS fitting FROM \
    (SELECT SUM(pending_bytes) OVER (ORDER BY first_sequence ROWS UNBOUNDED PRECEDING) AS total \
    FROM (SELECT first_sequence, pending_bytes FROM chunk WHERE integration_key = $1 \
    AND first_sequence >= $2 ORDER BY first_sequence LIMIT $3) next_ones) totals WHERE total <= $4";

/// How many the next chunks are, where all of them are within the bytes; else none.
const ALL_FITTING: &str = "SELECT CASE WHEN SUM(pending_bytes) <= $4 THEN COUNT(*) ELSE 0 END \
    AS fitting FROM (SELECT pending_bytes FROM chunk WHERE integration_key = $1 \
    AND first_sequence >= $2 ORDER BY first_sequence LIMIT $3) next_ones";
