//! The writer's statements on the log. Plain SQL that both databases know.

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Value};
use serde_json::json;

use super::{
    catalog::Slot,
    chunk,
    rows::{micros, mutable_columns, save_meta, statement},
    tail::TailChunk,
};
use crate::domain::integration::IntegrationKey;

/// Chunks of deleted integrations that one transaction removes.
const GARBAGE_CHUNKS: u64 = 64;

/// The name of the meta row that holds up to which revision deletions are forgotten.
pub(super) const TOMBSTONE_FLOOR: &str = "tombstone_floor";

pub(super) async fn run(
    tx: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<u64, DbErr> {
    let result = tx.execute_raw(statement(tx, sql, values)).await?;
    Ok(result.rows_affected())
}

pub(super) async fn insert_chunk(
    tx: &DatabaseTransaction,
    key: IntegrationKey,
    chunk: &TailChunk,
    now: Timestamp,
) -> Result<u64, DbErr> {
    let pending_bytes = chunk::body_bytes(chunk);
    let sql = "INSERT INTO chunk (chunk_id, integration_key, first_sequence, event_count, \
        pending_bytes, accepted_at, payload) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let values: [Value; 7] = [
        chunk.id.into(),
        key.0.into(),
        (chunk.first_sequence as i64).into(),
        (chunk.count as i32).into(),
        (pending_bytes as i64).into(),
        micros(now).into(),
        chunk::compress(&chunk.bytes).into(),
    ];
    run(tx, sql, values).await?;
    Ok(pending_bytes)
}

pub(super) async fn accept_part(
    tx: &DatabaseTransaction,
    chunk_id: i64,
    accepted: &[u8],
    pending_bytes: u64,
) -> Result<(), DbErr> {
    let sql = "UPDATE chunk SET accepted = $1, pending_bytes = $2 WHERE chunk_id = $3";
    let values: [Value; 3] = [
        accepted.to_vec().into(),
        (pending_bytes as i64).into(),
        chunk_id.into(),
    ];
    run(tx, sql, values).await.map(drop)
}

pub(super) async fn delete_chunks(tx: &DatabaseTransaction, ids: &[i64]) -> Result<(), DbErr> {
    if ids.is_empty() {
        return Ok(());
    }
    // One statement text, however many there are.
    let sql = "DELETE FROM chunk WHERE chunk_id IN (SELECT value FROM json_each($1))";
    run(tx, sql, [json!(ids).to_string().into()])
        .await
        .map(drop)
}

pub(super) async fn update_integration(
    tx: &DatabaseTransaction,
    key: IntegrationKey,
    slot: &Slot,
) -> Result<(), DbErr> {
    let sql = "UPDATE integration SET revision = $1, status = $2, reason = $3, \
        status_since = $4, last_attempt_at = $5, last_delivery_at = $6, next_retry_at = $7, \
        aws_error_code = $8, aws_request_id = $9, next_sequence = $10, delivered = $11, \
        expired = $12, discarded = $13 WHERE integration_key = $14";
    let mut values = mutable_columns(slot);
    values.push(key.0.into());
    run(tx, sql, values).await.map(drop)
}

/// Removes a slice of the chunks of deleted integrations; what is left stays listed.
pub(super) async fn collect_garbage(
    tx: &DatabaseTransaction,
    garbage: &mut Vec<IntegrationKey>,
) -> Result<(), DbErr> {
    let Some(key) = garbage.last().copied() else {
        return Ok(());
    };
    let sql = "DELETE FROM chunk WHERE chunk_id IN \
        (SELECT chunk_id FROM chunk WHERE integration_key = $1 LIMIT $2)";
    let values: [Value; 2] = [key.0.into(), (GARBAGE_CHUNKS as i64).into()];
    if run(tx, sql, values).await? < GARBAGE_CHUNKS {
        garbage.pop();
    }
    Ok(())
}

/// Forgets deletions up to a revision.
pub(super) async fn forget_tombstones(db: &DatabaseConnection, revision: u64) -> Result<(), DbErr> {
    save_meta(db, TOMBSTONE_FLOOR, &revision.to_string()).await?;
    let sql = "DELETE FROM tombstone WHERE revision <= $1";
    run(db, sql, [(revision as i64).into()]).await.map(drop)
}
