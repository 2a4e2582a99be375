//! The writer's statements on the log. Plain SQL that both databases know, but for what is
//! added to a script, which is SQLite's.

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, Value};
use serde_json::json;

use super::{
    catalog::Slot,
    chunk,
    many::{run_many, tuples},
    rows::{micros, save_meta, statement, status_columns},
    script::Script,
    tail::TailChunk,
};
use crate::domain::integration::{IntegrationKey, Progress, Snapshot};

/// Chunks of deleted integrations that one transaction removes.
const GARBAGE_CHUNKS: u64 = 64;
/// Bytes of a chunk that may share its statement, or its row, with others.
pub(super) const SMALL_CHUNK: usize = 32 << 10;

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

/// Columns of a row of `chunk`, as it is inserted.
const CHUNK_COLUMNS: usize = 7;

fn insert_chunks_sql(insert: &str, rows: &str) -> String {
    format!(
        "{insert} INTO chunk (chunk_id, integration_key, first_sequence, event_count, \
        pending_bytes, accepted_at, payload) VALUES {rows}"
    )
}

/// Appends chunks to the log.
pub(super) async fn insert_chunks(
    tx: &DatabaseTransaction,
    chunks: &[&NewChunk],
) -> Result<(), DbErr> {
    let values = |new: &&NewChunk, values: &mut Vec<Value>| {
        let (id, key, first, count, bytes, at, payload) = new.row();
        values.extend([
            id.into(),
            key.into(),
            first.into(),
            count.into(),
            bytes.into(),
            at.into(),
            payload.into(),
        ] as [Value; CHUNK_COLUMNS]);
    };
    // What a row that fails leaves behind goes with the transaction: SQLite need not be able
    // to undo the statement alone, for which it would keep a copy of each page.
    let insert = match tx.get_database_backend() {
        DbBackend::Sqlite => "INSERT OR FAIL",
        _ => "INSERT",
    };
    let sql = |rows: &str| insert_chunks_sql(insert, rows);
    // Payloads of one statement are in memory together.
    for some in chunks.chunk_by(|one, next| one.is_small() && next.is_small()) {
        run_many(tx, some, CHUNK_COLUMNS, sql, values).await?;
    }
    Ok(())
}

/// [`insert_chunks`], by a script and with one statement.
pub(super) fn add_chunks(script: &mut Script, chunks: &[NewChunk]) {
    let rows = tuples(DbBackend::Sqlite, chunks.len(), CHUNK_COLUMNS);
    script.add(&insert_chunks_sql("INSERT", &rows));
    for new in chunks {
        let (id, key, first, count, bytes, at, payload) = new.row();
        script.bind(id).bind(key).bind(first).bind(count);
        script.bind(bytes).bind(at).bind(payload);
    }
}

impl NewChunk {
    pub(super) fn is_small(&self) -> bool {
        self.chunk.bytes.len() <= SMALL_CHUNK
    }

    /// In the order of the columns.
    fn row(&self) -> (i64, i64, i64, i32, i64, i64, Vec<u8>) {
        let chunk = &self.chunk;
        (
            chunk.id,
            self.key.0,
            chunk.first_sequence as i64,
            chunk.count as i32,
            chunk::event_bytes(chunk) as i64,
            micros(chunk.accepted_at),
            chunk::compress(&chunk.bytes),
        )
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

/// Deletes rows of a table by their numbers.
pub(super) fn add_deletion(script: &mut Script, table: &str, number: &str, ids: &[i64]) {
    let sql = format!("DELETE FROM {table} WHERE {number} IN (SELECT value FROM json_each(?))");
    script.add(&sql).bind(json!(ids).to_string());
}

/// Saves an integration's status.
pub(super) async fn save_status(
    tx: &DatabaseTransaction,
    key: IntegrationKey,
    slot: &Slot,
) -> Result<(), DbErr> {
    let sql = "UPDATE integration SET revision = $1, status = $2, reason = $3, \
        status_since = $4, next_retry_at = $5, aws_error_code = $6, aws_request_id = $7 \
        WHERE integration_key = $8";
    let mut values = status_columns(slot);
    values.push(key.0.into());
    run(tx, sql, values).await.map(drop)
}

/// How far an integration's log has come, and when it was last attempted: a row of
/// `progress`.
pub(super) struct ProgressRow {
    key: IntegrationKey,
    progress: Progress,
    last_attempt: Option<Timestamp>,
    last_delivery: Option<Timestamp>,
}

impl ProgressRow {
    /// Whose it is.
    pub(super) fn key(&self) -> IntegrationKey {
        self.key
    }

    pub(super) fn of(key: IntegrationKey, slot: &Slot) -> Self {
        let Snapshot {
            progress, status, ..
        } = &slot.snapshot;
        Self {
            key,
            progress: *progress,
            last_attempt: status.last_attempt,
            last_delivery: status.last_delivery,
        }
    }

    /// In the order of the columns.
    fn columns(&self) -> [Option<i64>; PROGRESS_COLUMNS] {
        [
            Some(self.key.0),
            Some(self.progress.next_sequence as i64),
            Some(self.progress.delivered as i64),
            Some(self.progress.expired as i64),
            Some(self.progress.discarded as i64),
            self.last_attempt.map(micros),
            self.last_delivery.map(micros),
        ]
    }
}

/// Saves rows of `progress`, of integrations old and new.
pub(super) async fn save_progress(
    tx: &DatabaseTransaction,
    rows: &[ProgressRow],
) -> Result<(), DbErr> {
    let sql = |rows: &str| save_progress_sql(&format!("VALUES {rows}"));
    let values = |row: &ProgressRow, values: &mut Vec<Value>| {
        values.extend(row.columns().map(Value::from));
    };
    run_many(tx, rows, PROGRESS_COLUMNS, sql, values).await
}

/// [`save_progress`], by a script and with one statement text, however many there are.
pub(super) fn add_progress(script: &mut Script, rows: &[ProgressRow]) {
    let rows: Vec<_> = rows.iter().map(ProgressRow::columns).collect();
    // An upsert's SELECT needs a WHERE: <https://www.sqlite.org/lang_upsert.html>.
    let sql = save_progress_sql(
        "SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6 \
        FROM json_each(?) WHERE true",
    );
    script.add(&sql).bind(json!(rows).to_string());
}

/// Columns of a row of `progress`.
const PROGRESS_COLUMNS: usize = 7;

fn save_progress_sql(rows: &str) -> String {
    format!(
        "INSERT INTO progress (integration_key, next_sequence, delivered, expired, \
        discarded, last_attempt_at, last_delivery_at) {rows} \
        ON CONFLICT (integration_key) DO UPDATE SET \
        next_sequence = excluded.next_sequence, delivered = excluded.delivered, \
        expired = excluded.expired, discarded = excluded.discarded, \
        last_attempt_at = excluded.last_attempt_at, \
        last_delivery_at = excluded.last_delivery_at"
    )
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
