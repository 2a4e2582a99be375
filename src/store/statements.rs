//! The writer's statements on the log. Plain SQL that both databases know.

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Value};
use serde_json::json;

use super::{
    catalog::Slot,
    chunk,
    many::run_many,
    rows::{micros, mutable_columns, save_meta, statement},
    tail::TailChunk,
};
use crate::domain::integration::IntegrationKey;

/// Chunks of deleted integrations that one transaction removes.
const GARBAGE_CHUNKS: u64 = 64;
/// Bytes of a chunk that may share its statement with others.
const SMALL_CHUNK: usize = 64 << 10;

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

/// A chunk to be inserted.
pub(super) struct NewChunk {
    pub(super) key: IntegrationKey,
    pub(super) chunk: TailChunk,
}

/// Appends chunks to the log.
pub(super) async fn insert_chunks(
    tx: &DatabaseTransaction,
    chunks: &[NewChunk],
    now: Timestamp,
) -> Result<(), DbErr> {
    let sql = |rows: &str| {
        format!(
            "INSERT INTO chunk (chunk_id, integration_key, first_sequence, event_count, \
            pending_bytes, accepted_at, payload) VALUES {rows}"
        )
    };
    let accepted_at = micros(now);
    let values = |NewChunk { key, chunk }: &NewChunk, values: &mut Vec<Value>| {
        values.extend([
            chunk.id.into(),
            key.0.into(),
            (chunk.first_sequence as i64).into(),
            (chunk.count as i32).into(),
            (chunk::body_bytes(chunk) as i64).into(),
            accepted_at.into(),
            chunk::compress(&chunk.bytes).into(),
        ] as [Value; 7]);
    };
    // Payloads of one statement are in memory together.
    for some in chunks.chunk_by(|one, next| one.is_small() && next.is_small()) {
        run_many(tx, some, 7, sql, values).await?;
    }
    Ok(())
}

impl NewChunk {
    fn is_small(&self) -> bool {
        self.chunk.bytes.len() <= SMALL_CHUNK
    }
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

/// How far an integration's log has come, and when.
pub(super) struct Advance {
    pub(super) key: IntegrationKey,
    pub(super) last_attempt: Option<Timestamp>,
    pub(super) last_delivery: Option<Timestamp>,
    pub(super) next_sequence: u64,
    pub(super) delivered: u64,
}

/// Updates integrations of which nothing else has changed.
pub(super) async fn advance(tx: &DatabaseTransaction, advances: &[Advance]) -> Result<(), DbErr> {
    let sql = |rows: &str| {
        format!(
            "WITH advance (integration_key, last_attempt_at, last_delivery_at, next_sequence, \
            delivered) AS (VALUES {rows}) UPDATE integration SET \
            last_attempt_at = advance.last_attempt_at, \
            last_delivery_at = advance.last_delivery_at, \
            next_sequence = advance.next_sequence, delivered = advance.delivered \
            FROM advance WHERE integration.integration_key = advance.integration_key"
        )
    };
    let values = |advance: &Advance, values: &mut Vec<Value>| {
        values.extend([
            advance.key.0.into(),
            advance.last_attempt.map(micros).into(),
            advance.last_delivery.map(micros).into(),
            (advance.next_sequence as i64).into(),
            (advance.delivered as i64).into(),
        ] as [Value; 5]);
    };
    run_many(tx, advances, 5, sql, values).await
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
