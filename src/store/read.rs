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

/// What one read of the log takes.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// The sequence from which on.
    pub(super) from: u64,
    /// About so many bytes, but at least one chunk where there is one.
    pub(super) most_bytes: usize,
    /// The sequence before which everything that waits has a row. What begins there or later
    /// may lack one, and so is not read.
    pub(super) end: u64,
    /// All that waits has so many bytes: where that is little, nothing needs to be added up.
    pub(super) pending_bytes: u64,
}

pub(super) async fn log(
    db: &DatabaseConnection,
    key: IntegrationKey,
    span: Span,
) -> Result<Vec<TailChunk>, StoreError> {
    if span.pending_bytes <= span.most_bytes as u64 {
        return within(db, key, span, Some(i64::MAX)).await;
    }
    let last = last_within(db, key, span).await?;
    match within(db, key, span, last).await {
        // What was added up may be gone by now; only without a bound does nothing mean that
        // the log ends.
        Ok(chunks) if chunks.is_empty() && last.is_some() => within(db, key, span, None).await,
        chunks => chunks,
    }
}

/// The chunks up to one that begins at `last`, or only the next one.
async fn within(
    db: &DatabaseConnection,
    key: IntegrationKey,
    span: Span,
    last: Option<i64>,
) -> Result<Vec<TailChunk>, StoreError> {
    // SQLite compiles a statement anew for each value of a limit that is bound to it.
    let limit = if last.is_some() { MOST_CHUNKS } else { 1 };
    let sql = format!(
        "SELECT chunk_id, first_sequence, event_count, accepted_at, accepted, gaps, \
        payload \
        FROM chunk WHERE integration_key = $1 AND first_sequence >= $2 \
        AND first_sequence <= $3 ORDER BY first_sequence LIMIT {limit}"
    );
    let last = last.unwrap_or(i64::MAX).min(span.end as i64 - 1);
    let values: [Value; 3] = [key.0.into(), (span.from as i64).into(), last.into()];
    // Of a chunk that is settled in part all is read: what it takes shows only then.
    let mut rows = db.stream_raw(statement(db, &sql, values)).await?;
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let chunk = chunk(&row)?;
        bytes += chunk.bytes.len();
        if !chunks.is_empty() && bytes > span.most_bytes {
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
        accepted_at: time(row.try_get("", "accepted_at")?)?,
        bytes: bytes.into(),
        gaps: gaps::decode(gaps.as_deref(), first_sequence, &settled)?,
        settled,
    })
}

/// The first sequence of the last chunk that is within the bytes; None where not even the
/// first is.
async fn last_within(
    db: &DatabaseConnection,
    key: IntegrationKey,
    span: Span,
) -> Result<Option<i64>, StoreError> {
    let ask = async |sql: String| {
        let values: [Value; 3] = [
            key.0.into(),
            (span.from as i64).into(),
            (span.most_bytes as i64).into(),
        ];
        db.query_one_raw(statement(db, &sql, values)).await
    };
    // Added up there: each row that is handed over costs more than the look at its chunk.
    let sql = format!(
        "SELECT COUNT(*) AS fitting, MAX(first_sequence) AS last FROM \
        (SELECT first_sequence, SUM(pending_bytes) OVER \
        (ORDER BY first_sequence ROWS UNBOUNDED PRECEDING) AS total \
        FROM (SELECT first_sequence, pending_bytes FROM chunk WHERE integration_key = $1 \
        AND first_sequence >= $2 ORDER BY first_sequence LIMIT {SOME_CHUNKS}) next_ones) totals \
        WHERE total <= $3"
    );
    let Some(row) = ask(sql).await? else {
        return Ok(None);
    };
    let last: Option<i64> = row.try_get("", "last")?;
    if row.try_get::<i64>("", "fitting")? < SOME_CHUNKS {
        return Ok(last);
    }
    let sql = format!(
        "SELECT CASE WHEN SUM(pending_bytes) <= $3 THEN MAX(first_sequence) END AS last FROM \
        (SELECT first_sequence, pending_bytes FROM chunk WHERE integration_key = $1 \
        AND first_sequence >= $2 ORDER BY first_sequence LIMIT {MOST_CHUNKS}) next_ones"
    );
    let all = match ask(sql).await? {
        Some(row) => row.try_get::<Option<i64>>("", "last")?,
        None => None,
    };
    Ok(all.or(last))
}
