//! The ledger: one row of `progress` for each integration, and the chunks of its backlog.
//!
//! Every statement of a settlement takes any number of rows, as a JSON array, so that the text of
//! a script does not depend on them.

use std::{collections::HashMap, ops::Range};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, StreamTrait, Value};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{Engine, check_partition, script::Script};
use crate::{
    domain::{chunk::Chunk, integration::IntegrationId},
    store::{
        codec,
        error::StoreError,
        ports::{
            Anchor, BacklogChange, Checkpoint, Counts, Lease, Ledger, LedgerRow, LedgerSnapshot,
            LedgerUpdate, Position,
        },
        sql::{
            rows::{
                self, CHUNK_COLUMNS, ChunkRead, ChunkReader, READ_CHUNKS, chunk_state, encode_gaps,
                integration_id, ledger_row, optional_time,
            },
            statement,
        },
    },
};

/// Chunks of deleted integrations that one transaction removes.
const REMOVED_CHUNKS: i64 = 64;

/// The rows that a JSON array names by integration id (0), next sequence of the checkpoint (1)
/// and first sequence (2). A settlement that was overtaken by a later one names none.
pub(super) const NAMED: &str = "json_each(?) u \
    CROSS JOIN integration i ON i.integration_id = u.value->>0 \
    CROSS JOIN backlog b ON b.integration_key = i.integration_key \
        AND b.first_sequence = u.value->>2 \
    LEFT JOIN progress p ON p.integration_key = i.integration_key \
    WHERE MAX(COALESCE(p.next_sequence, 1), 1) <= MAX(u.value->>1, 1)";

const LEDGER_COLUMNS: &str = "i.integration_id, p.next_sequence, p.position, p.settled, \
    p.accepted, p.delivered, p.expired, p.pending_bytes, p.last_attempt_at, p.last_delivery_at";
/// The integration with an id that is the first parameter.
const INTEGRATION: &str =
    "integration_key = (SELECT integration_key FROM integration WHERE integration_id = $1)";

/// A settlement as it is written. Each list has rows of [`chunk_row`] or [`ProgressRow`].
pub(super) struct Settlement {
    pub(super) epoch: u64,
    anchor: Option<Anchor>,
    progress: Vec<ProgressRow>,
    added: Vec<Json>,
    /// Payloads of the added chunks, one after another.
    payloads: Vec<u8>,
    updated: Vec<Json>,
    set_aside: Vec<Json>,
    removed: Vec<Json>,
}

/// Integration, next sequence, position, settled sequences in hexadecimal, accepted, delivered,
/// expired and pending bytes, last attempt and last delivery.
type ProgressRow = (String, u64, u64, String, [u64; 4], Option<i64>, Option<i64>);

impl Settlement {
    fn of(epoch: u64, updates: &[LedgerUpdate], anchor: Option<Anchor>) -> Self {
        let mut settlement = Self {
            epoch,
            anchor,
            progress: Vec::with_capacity(updates.len()),
            added: Vec::new(),
            payloads: Vec::new(),
            updated: Vec::new(),
            set_aside: Vec::new(),
            removed: Vec::new(),
        };
        for update in updates {
            let id = update.integration_id.to_string();
            for change in &update.backlog {
                settlement.change(&id, update.checkpoint.next_sequence, change);
            }
            settlement
                .progress
                .push(progress_row(id, &update.checkpoint));
        }
        settlement
    }

    fn change(&mut self, id: &str, next_sequence: u64, change: &BacklogChange) {
        let (BacklogChange::Add(chunk)
        | BacklogChange::Update(chunk)
        | BacklogChange::SetAside(chunk)) = change;
        let mut payload = Vec::new();
        if let BacklogChange::Add(chunk) = change
            && chunk.pending_events() > 0
        {
            payload = codec::compress(std::iter::once(&chunk.segment[..]));
        }
        let begin = self.payloads.len() + 1;
        let row = chunk_row(id, next_sequence, chunk, begin..begin + payload.len());
        if let BacklogChange::SetAside(_) = change {
            self.set_aside.push(row.clone());
        }
        let is_added = matches!(change, BacklogChange::Add(_));
        if is_added || chunk.is_finished() {
            self.removed.push(row.clone());
        }
        if chunk.is_finished() {
            return;
        }
        if is_added {
            self.payloads.append(&mut payload);
            self.added.push(row);
        } else {
            self.updated.push(row);
        }
    }

    /// Position of the anchor that it writes.
    pub(super) fn anchor(&self) -> Option<Position> {
        self.anchor.map(|anchor| anchor.position)
    }

    /// About the bytes that are bound to the script.
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.removed.len() + self.updated.len();
        self.payloads.len() + 128 * (chunks + self.progress.len())
    }

    /// Adds its statements to a script.
    pub(super) fn add_to(&self, script: &mut Script) {
        if !self.set_aside.is_empty() {
            script.add(&format!(
                "INSERT INTO damaged_chunk (chunk_id, organization_id, integration_id, \
                first_sequence, event_count, accepted_at, set_aside_at, accepted, payload) \
                SELECT b.chunk_id, i.organization_id, i.integration_id, b.first_sequence, \
                b.event_count, b.accepted_at, ?, b.accepted, b.payload FROM {NAMED} \
                ON CONFLICT (chunk_id) DO NOTHING"
            ));
            script.bind(Timestamp::now().as_microsecond());
            script.bind(json_text(&self.set_aside));
        }
        if !self.removed.is_empty() {
            script.add(&format!(
                "DELETE FROM backlog WHERE rowid IN (SELECT b.rowid FROM {NAMED})"
            ));
            script.bind(json_text(&self.removed));
        }
        if !self.added.is_empty() {
            script.add(
                "INSERT INTO backlog (chunk_id, integration_key, first_sequence, event_count, \
                accepted_at, accepted, gaps, pending_bytes, payload) \
                SELECT ids.last + 1 + u.key, i.integration_key, u.value->>2, u.value->>3, \
                u.value->>4, unhex(u.value->>5), u.value->>6, u.value->>7, \
                COALESCE(substr(?, u.value->>8, u.value->>9), x'') \
                FROM (SELECT MAX(COALESCE((SELECT MAX(chunk_id) FROM backlog), 0), \
                    COALESCE((SELECT MAX(chunk_id) FROM damaged_chunk), 0)) AS last) ids \
                CROSS JOIN json_each(?) u \
                CROSS JOIN integration i ON i.integration_id = u.value->>0 \
                LEFT JOIN progress p ON p.integration_key = i.integration_key \
                WHERE MAX(COALESCE(p.next_sequence, 1), 1) <= MAX(u.value->>1, 1)",
            );
            script.bind(self.payloads.clone());
            script.bind(json_text(&self.added));
        }
        if !self.updated.is_empty() {
            script.add(&format!(
                "UPDATE backlog SET accepted = n.accepted, gaps = n.gaps, \
                pending_bytes = n.pending_bytes, \
                payload = CASE WHEN n.has_events THEN payload ELSE x'' END \
                FROM (SELECT b.rowid AS id, unhex(u.value->>5) AS accepted, \
                u.value->>6 AS gaps, u.value->>7 AS pending_bytes, u.value->>10 AS has_events \
                FROM {NAMED}) n WHERE backlog.rowid = n.id"
            ));
            script.bind(json_text(&self.updated));
        }
        if !self.progress.is_empty() {
            script.add(
                "INSERT INTO progress (integration_key, next_sequence, position, settled, \
                accepted, delivered, expired, pending_bytes, last_attempt_at, last_delivery_at) \
                SELECT i.integration_key, u.value->>1, u.value->>2, unhex(u.value->>3), \
                u.value->>'$[4][0]', u.value->>'$[4][1]', u.value->>'$[4][2]', \
                u.value->>'$[4][3]', u.value->>5, u.value->>6 FROM json_each(?) u \
                CROSS JOIN integration i ON i.integration_id = u.value->>0 WHERE true \
                ORDER BY i.integration_key \
                ON CONFLICT (integration_key) DO UPDATE SET \
                next_sequence = excluded.next_sequence, position = excluded.position, \
                settled = excluded.settled, accepted = excluded.accepted, \
                delivered = excluded.delivered, expired = excluded.expired, \
                pending_bytes = excluded.pending_bytes, \
                last_attempt_at = excluded.last_attempt_at, \
                last_delivery_at = excluded.last_delivery_at \
                WHERE MAX(progress.next_sequence, 1) <= MAX(excluded.next_sequence, 1)",
            );
            script.bind(json_text(&self.progress));
        }
        if let Some(Anchor { position, entry_id }) = self.anchor {
            script.add("UPDATE partition SET anchor_position = ?, anchor_entry_id = ?");
            script.bind(position.0 as i64).bind(entry_id.to_vec());
        }
    }
}

fn json_text(rows: &impl Serialize) -> String {
    json!(rows).to_string()
}

fn progress_row(id: String, checkpoint: &Checkpoint) -> ProgressRow {
    let Counts {
        accepted,
        delivered,
        expired,
        pending_bytes,
    } = checkpoint.counts;
    (
        id,
        checkpoint.next_sequence,
        checkpoint.position.0,
        hex::encode(checkpoint.settled.encode()),
        [accepted, delivered, expired, pending_bytes],
        checkpoint.last_attempt.map(Timestamp::as_microsecond),
        checkpoint.last_delivery.map(Timestamp::as_microsecond),
    )
}

/// Integration, next sequence of its checkpoint, first sequence, number of events, acceptance
/// time, bitmap of the settled events in hexadecimal, gaps, pending bytes, begin of the payload
/// from 1 and its length, and whether events are pending.
fn chunk_row(id: &str, next_sequence: u64, chunk: &Chunk, payload: Range<usize>) -> Json {
    let settled = chunk.settled.to_bitmap(chunk.first_sequence);
    json!([
        id,
        next_sequence,
        chunk.first_sequence,
        chunk.count,
        chunk.accepted_at.as_microsecond(),
        (!settled.is_empty()).then(|| hex::encode(settled)),
        encode_gaps(chunk),
        chunk.pending_bytes,
        payload.start,
        payload.len(),
        chunk.pending_events() > 0,
    ])
}

impl Engine {
    fn check_lease(&self, lease: Lease) -> Result<(), StoreError> {
        check_partition(lease.partition)?;
        match lease.epoch == self.shared.log.epoch() {
            true => self.shared.database.check(),
            false => Err(StoreError::Fenced),
        }
    }

    async fn rows<T>(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
        read: impl Fn(&QueryResult) -> Result<T, DbErr>,
    ) -> Result<Vec<T>, StoreError> {
        let database = &self.shared.database;
        let db = database.reader();
        let rows = async {
            // One by one: all rows at once would take more memory than their content.
            let rows = db.stream_raw(statement(db, sql, values)).await?;
            rows.and_then(|row| std::future::ready(read(&row)))
                .try_collect()
                .await
        };
        rows.await.map_err(|error| database.map(error))
    }
}

#[async_trait]
impl Ledger for Engine {
    async fn load(&self, lease: Lease) -> Result<LedgerSnapshot, StoreError> {
        self.check_lease(lease)?;
        let sql = "SELECT anchor_position, anchor_entry_id FROM partition WHERE partition = $1";
        let anchors = self
            .rows(sql, [(lease.partition as i32).into()], rows::anchor)
            .await?;
        // Of the chunks it reads only the index.
        let sql = format!(
            "SELECT {LEDGER_COLUMNS}, b.since AS backlog_since, \
            COALESCE(b.bytes, 0) AS backlog_bytes \
            FROM progress p JOIN integration i ON i.integration_key = p.integration_key \
            LEFT JOIN (SELECT integration_key, MIN(accepted_at) AS since, \
            SUM(pending_bytes) AS bytes FROM backlog GROUP BY integration_key) b \
            ON b.integration_key = p.integration_key"
        );
        Ok(LedgerSnapshot {
            anchor: anchors.into_iter().flatten().next(),
            integrations: self.rows(&sql, [], ledger_row).await?,
        })
    }

    async fn settle(
        &self,
        lease: Lease,
        updates: Vec<LedgerUpdate>,
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError> {
        self.check_lease(lease)?;
        if updates.is_empty() && anchor.is_none() {
            return Ok(());
        }
        self.write_settlement(Settlement::of(lease.epoch, &updates, anchor))
            .await
    }

    async fn read_backlog(
        &self,
        integration_id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        // The bytes are summed up in the database, from the index: each row that is returned
        // costs more than the look at its chunk.
        let sql = format!(
            "SELECT {CHUNK_COLUMNS}, payload FROM backlog WHERE {INTEGRATION} \
            AND first_sequence IN (SELECT first_sequence FROM (SELECT first_sequence, \
            SUM(pending_bytes) OVER following AS total, ROW_NUMBER() OVER following AS number \
            FROM (SELECT first_sequence, pending_bytes FROM backlog WHERE {INTEGRATION} \
            AND first_sequence > $2 AND first_sequence + event_count > $3 \
            ORDER BY first_sequence LIMIT {READ_CHUNKS}) \
            WINDOW following AS (ORDER BY first_sequence ROWS UNBOUNDED PRECEDING)) \
            WHERE total <= $4 OR number = 1) ORDER BY first_sequence"
        );
        let [id, after, from] = span(integration_id, from);
        let most = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let values = [id, after, from, most.into()];
        let database = &self.shared.database;
        let failed = |error: DbErr| database.map(error);
        let db = database.reader();
        let rows = db.stream_raw(statement(db, &sql, values)).await;
        let mut rows = rows.map_err(failed)?;
        let mut reader = ChunkReader::new(max_bytes);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            match reader.read(&row).map_err(failed)? {
                ChunkRead::Taken => {}
                ChunkRead::Enough => break,
                ChunkRead::Damaged(first_sequence) => {
                    return Err(StoreError::DamagedChunk { first_sequence });
                }
            }
        }
        Ok(reader.chunks)
    }

    async fn backlog_states(
        &self,
        integration_id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        let sql = format!(
            "SELECT {CHUNK_COLUMNS} FROM backlog WHERE {INTEGRATION} AND first_sequence > $2 \
            AND first_sequence + event_count > $3 ORDER BY first_sequence LIMIT {limit}"
        );
        self.rows(&sql, span(integration_id, from), chunk_state)
            .await
    }

    async fn oldest_pending(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<HashMap<IntegrationId, Timestamp>, StoreError> {
        if integration_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = "SELECT i.integration_id, (SELECT accepted_at FROM backlog b \
            WHERE b.integration_key = i.integration_key AND b.pending_bytes > 0 \
            ORDER BY b.first_sequence LIMIT 1) AS oldest \
            FROM json_each($1) u CROSS JOIN integration i ON i.integration_id = u.value";
        let ids = integration_ids.iter().map(IntegrationId::to_string);
        let ids = json_text(&ids.collect::<Vec<_>>());
        let read = |row: &QueryResult| Ok((integration_id(row)?, optional_time(row, "oldest")?));
        let oldest = self.rows(sql, [ids.into()], read).await?;
        let pending = oldest.into_iter();
        Ok(pending.filter_map(|(id, at)| Some((id, at?))).collect())
    }

    async fn rows_of(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<Vec<LedgerRow>, StoreError> {
        let of_integration = "FROM backlog b WHERE b.integration_key = i.integration_key";
        let sql = format!(
            "SELECT {LEDGER_COLUMNS}, (SELECT MIN(accepted_at) {of_integration}) AS backlog_since, \
            (SELECT COALESCE(SUM(pending_bytes), 0) {of_integration}) AS backlog_bytes \
            FROM json_each($1) u CROSS JOIN integration i ON i.integration_id = u.value \
            JOIN progress p ON p.integration_key = i.integration_key"
        );
        let ids = integration_ids.iter().map(IntegrationId::to_string);
        let ids = json_text(&ids.collect::<Vec<_>>());
        self.rows(&sql, [ids.into()], ledger_row).await
    }

    async fn forget_anchor(&self, lease: Lease) -> Result<(), StoreError> {
        self.check_lease(lease)?;
        let database = &self.shared.database;
        let tx = database.begin().await?;
        let sql = "UPDATE partition SET anchor_position = NULL, anchor_entry_id = NULL \
            WHERE partition = $1 AND epoch = $2";
        let values: [Value; 2] = [(lease.partition as i32).into(), (lease.epoch as i64).into()];
        let updated = tx.execute_raw(statement(&*tx, sql, values)).await;
        updated.map_err(|error| database.map(error))?;
        tx.commit().await
    }

    async fn remove_deleted(&self) -> Result<bool, StoreError> {
        // Steps from integration to integration, not over all of their chunks.
        let sql = "WITH RECURSIVE stored (integration_key) AS ( \
            SELECT MIN(integration_key) FROM backlog UNION ALL \
            SELECT (SELECT MIN(b.integration_key) FROM backlog b \
                WHERE b.integration_key > s.integration_key) \
            FROM stored s WHERE s.integration_key IS NOT NULL) \
            SELECT integration_key FROM (SELECT integration_key FROM stored \
            WHERE integration_key IS NOT NULL UNION SELECT integration_key FROM progress) \
            WHERE integration_key NOT IN (SELECT integration_key FROM integration) LIMIT 1";
        let key = |row: &QueryResult| row.try_get::<i64>("", "integration_key");
        let database = &self.shared.database;
        let mut budget = REMOVED_CHUNKS;
        while let Some(key) = self.rows(sql, [], key).await?.first().copied() {
            let tx = database.begin().await?;
            let removed = async {
                let sql = "DELETE FROM backlog WHERE rowid IN \
                    (SELECT rowid FROM backlog WHERE integration_key = $1 LIMIT $2)";
                let values: [Value; 2] = [key.into(), budget.into()];
                let chunks = tx.execute_raw(statement(&*tx, sql, values)).await?;
                let chunks = chunks.rows_affected() as i64;
                if chunks < budget {
                    let sql = "DELETE FROM progress WHERE integration_key = $1";
                    tx.execute_raw(statement(&*tx, sql, [key.into()])).await?;
                }
                Ok(chunks)
            };
            let removed = removed.await.map_err(|error| database.map(error))?;
            tx.commit().await?;
            budget -= removed.max(1);
            if budget <= 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Parameters for the chunks of an integration that end after a sequence: the integration, a
/// sequence before the first sequences of all of them, and the sequence.
fn span(integration_id: IntegrationId, from: u64) -> [Value; 3] {
    let (after, from) = rows::span(from);
    [integration_id.to_string().into(), after.into(), from.into()]
}
