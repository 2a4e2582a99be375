//! The writer's statements. Hot ones are plain SQL that both databases know.

use std::sync::Arc;

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Value};
use serde_json::json;
use uuid::Uuid;

use super::{
    StoreError,
    catalog::{Slot, Tombstone},
    chunk,
    command::{Configure, ConfigureError, Deleted},
    draft::Draft,
    rows::{micros, mutable_columns, save_meta, statement},
    secret::Sealer,
    tail::TailChunk,
};
use crate::domain::{
    external_id::ExternalId,
    integration::{Integration, IntegrationKey, Progress, SealedExternalId, Snapshot},
    organization::OrganizationId,
    status::{Stall, StatusDetail},
};

/// Partitions over which integrations are spread when several instances share a database.
const PARTITIONS: u128 = 256;
/// Chunks of deleted integrations that one transaction removes.
const GARBAGE_CHUNKS: u64 = 64;

/// The name of the meta row that holds up to which revision deletions are forgotten.
pub(super) const TOMBSTONE_FLOOR: &str = "tombstone_floor";

async fn run(
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

/// Creates or replaces an integration.
pub(super) async fn configure(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    sealer: &Sealer,
    configure: Configure,
    now: Timestamp,
) -> Result<IntegrationKey, ConfigureError> {
    let existing = draft.find(&configure.organization_id).cloned();
    let current_etag = existing
        .as_ref()
        .map(|slot| slot.snapshot.integration.etag());
    if configure.etag.is_some() && configure.etag != current_etag {
        return Err(ConfigureError::EtagMismatch);
    }
    if let Some(external_id) = &configure.external_id {
        refuse_used(tx, sealer, external_id, &configure.organization_id).await?;
    }
    match existing {
        Some(slot) => replace(tx, draft, sealer, slot, configure, now).await,
        None => create(tx, draft, sealer, configure, now).await,
    }
}

async fn refuse_used(
    tx: &DatabaseTransaction,
    sealer: &Sealer,
    external_id: &ExternalId,
    organization_id: &OrganizationId,
) -> Result<(), ConfigureError> {
    let sql = "SELECT 1 FROM integration WHERE external_id_hmac = $1 AND organization_id <> $2";
    let values: [Value; 2] = [
        sealer.fingerprint(external_id).into(),
        organization_id.as_str().into(),
    ];
    let other = tx
        .query_one_raw(statement(tx, sql, values))
        .await
        .map_err(StoreError::Database)?;
    match other {
        Some(_) => Err(ConfigureError::ExternalIdInUse),
        None => Ok(()),
    }
}

async fn create(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    sealer: &Sealer,
    configure: Configure,
    now: Timestamp,
) -> Result<IntegrationKey, ConfigureError> {
    let external_id = configure
        .external_id
        .as_ref()
        .ok_or(ConfigureError::ExternalIdRequired)?;
    let integration_id = Uuid::now_v7();
    let integration = Integration {
        key: IntegrationKey(0),
        organization_id: configure.organization_id,
        integration_id,
        stream_arn: configure.stream_arn,
        role_arn: configure.role_arn,
        external_id: seal(sealer, external_id, integration_id)?,
        external_id_hint: external_id.hint().into(),
        external_id_set_at: now,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    let mut slot = Slot {
        snapshot: Snapshot {
            integration: Arc::new(integration),
            status: Arc::new(StatusDetail::unknown(now)),
            progress: Progress::NEW,
            revision: draft.next_revision(),
        },
        stall: Stall::default(),
    };
    let key = insert_integration(tx, &slot, sealer.fingerprint(external_id))
        .await
        .map_err(StoreError::Database)?;
    if let Some(integration) = Arc::get_mut(&mut slot.snapshot.integration) {
        integration.key = key;
    }
    audit(
        tx,
        &slot.snapshot.integration,
        now,
        &configure.caller,
        "create",
        json!({}),
    )
    .await
    .map_err(StoreError::Database)?;
    draft.insert(key, slot);
    Ok(key)
}

fn seal(
    sealer: &Sealer,
    external_id: &ExternalId,
    integration_id: Uuid,
) -> Result<SealedExternalId, StoreError> {
    sealer
        .seal(external_id, integration_id)
        .map_err(|_| StoreError::Sealing)
}

async fn insert_integration(
    tx: &DatabaseTransaction,
    slot: &Slot,
    fingerprint: Vec<u8>,
) -> Result<IntegrationKey, DbErr> {
    let integration = &slot.snapshot.integration;
    let sql = "INSERT INTO integration (revision, status, reason, status_since, \
        last_attempt_at, last_delivery_at, next_retry_at, aws_error_code, aws_request_id, \
        next_sequence, delivered, expired, discarded, organization_id, integration_id, \
        partition, stream_arn, role_arn, external_id_sealed, external_id_key_id, \
        external_id_hmac, external_id_hint, external_id_set_at, version, created_at, \
        updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
        $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26) RETURNING integration_key";
    let mut values = mutable_columns(slot);
    values.push(integration.organization_id.as_str().into());
    values.push(integration.integration_id.to_string().into());
    values.push(((integration.integration_id.as_u128() % PARTITIONS) as i32).into());
    values.extend(configured_columns(integration, fingerprint));
    values.push(micros(integration.created_at).into());
    values.push(micros(integration.updated_at).into());
    let row = tx.query_one_raw(statement(tx, sql, values)).await?;
    let row = row.ok_or(DbErr::RecordNotInserted)?;
    Ok(IntegrationKey(row.try_get("", "integration_key")?))
}

fn configured_columns(integration: &Integration, fingerprint: Vec<u8>) -> [Value; 8] {
    [
        integration.stream_arn.as_str().into(),
        integration.role_arn.as_str().into(),
        integration.external_id.bytes.to_vec().into(),
        integration.external_id.key_id.to_string().into(),
        fingerprint.into(),
        integration.external_id_hint.to_string().into(),
        micros(integration.external_id_set_at).into(),
        (integration.version as i64).into(),
    ]
}

async fn replace(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    sealer: &Sealer,
    mut slot: Slot,
    configure: Configure,
    now: Timestamp,
) -> Result<IntegrationKey, ConfigureError> {
    let before = Arc::clone(&slot.snapshot.integration);
    let stored = sealer.open(&before.external_id, before.integration_id);
    let external_id = match (configure.external_id, &stored) {
        (Some(given), _) => given,
        (None, Ok(stored)) => stored.clone(),
        (None, Err(_)) => return Err(StoreError::Sealing.into()),
    };
    let new_external_id = stored.map_or(true, |stored| stored.expose() != external_id.expose());
    let mut changed = Vec::new();
    let differs = [
        (
            "kinesis_stream_arn",
            before.stream_arn != configure.stream_arn,
        ),
        ("role_arn", before.role_arn != configure.role_arn),
        ("external_id", new_external_id),
    ];
    changed.extend(
        differs
            .iter()
            .filter(|(_, differs)| *differs)
            .map(|(field, _)| *field),
    );
    let integration = Integration {
        key: before.key,
        organization_id: before.organization_id.clone(),
        integration_id: before.integration_id,
        stream_arn: configure.stream_arn,
        role_arn: configure.role_arn,
        external_id: seal(sealer, &external_id, before.integration_id)?,
        external_id_hint: external_id.hint().into(),
        external_id_set_at: match new_external_id {
            true => now,
            false => before.external_id_set_at,
        },
        version: before.version + 1,
        created_at: before.created_at,
        updated_at: now,
    };
    if !changed.is_empty() {
        let unknown = StatusDetail::unknown(now);
        if slot.snapshot.status.is_change(&unknown) {
            slot.snapshot.revision = draft.next_revision();
            slot.snapshot.status = Arc::new(unknown);
        }
        slot.stall = Stall::default();
    }
    slot.snapshot.integration = Arc::new(integration);
    store_replaced(tx, &slot, sealer.fingerprint(&external_id))
        .await
        .map_err(StoreError::Database)?;
    let detail = json!({ "changed": changed });
    audit(
        tx,
        &slot.snapshot.integration,
        now,
        &configure.caller,
        "replace",
        detail,
    )
    .await
    .map_err(StoreError::Database)?;
    let key = before.key;
    draft.insert(key, slot);
    Ok(key)
}

async fn store_replaced(
    tx: &DatabaseTransaction,
    slot: &Slot,
    fingerprint: Vec<u8>,
) -> Result<(), DbErr> {
    let integration = &slot.snapshot.integration;
    let sql = "UPDATE integration SET stream_arn = $1, role_arn = $2, \
        external_id_sealed = $3, external_id_key_id = $4, external_id_hmac = $5, \
        external_id_hint = $6, external_id_set_at = $7, version = $8, updated_at = $9 \
        WHERE integration_key = $10";
    let mut values = configured_columns(integration, fingerprint).to_vec();
    values.push(micros(integration.updated_at).into());
    values.push(integration.key.0.into());
    run(tx, sql, values).await?;
    update_integration(tx, integration.key, slot).await
}

/// Deletes an integration and discards what is pending. Its chunks go later, in slices.
pub(super) async fn delete(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    organization_id: &OrganizationId,
    caller: &str,
    now: Timestamp,
) -> Result<Option<Deleted>, DbErr> {
    let Some(slot) = draft.find(organization_id).cloned() else {
        return Ok(None);
    };
    let integration = &slot.snapshot.integration;
    let tombstone = Tombstone {
        revision: draft.next_revision(),
        organization_id: organization_id.clone(),
        integration_id: integration.integration_id,
        deleted_at: now,
    };
    let sql = "DELETE FROM integration WHERE integration_key = $1";
    run(tx, sql, [integration.key.0.into()]).await?;
    let sql = "INSERT INTO tombstone (revision, organization_id, integration_id, deleted_at) \
        VALUES ($1, $2, $3, $4)";
    let values: [Value; 4] = [
        (tombstone.revision as i64).into(),
        organization_id.as_str().into(),
        tombstone.integration_id.to_string().into(),
        micros(now).into(),
    ];
    run(tx, sql, values).await?;
    let mut progress = slot.snapshot.progress;
    // Accepted by this very transaction, and discarded by it.
    progress.next_sequence += draft.remove(integration.key, tombstone);
    progress.discarded += progress.pending();
    progress.pending_bytes = 0;
    let detail = json!({ "discarded": progress.discarded });
    audit(tx, integration, now, caller, "delete", detail).await?;
    Ok(Some(Deleted {
        key: integration.key,
        integration_id: integration.integration_id,
        progress,
    }))
}

async fn audit(
    tx: &DatabaseTransaction,
    integration: &Integration,
    now: Timestamp,
    caller: &str,
    action: &str,
    detail: serde_json::Value,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO audit (organization_id, integration_id, at, caller, action, detail) \
        VALUES ($1, $2, $3, $4, $5, $6)";
    let values: [Value; 6] = [
        integration.organization_id.as_str().into(),
        integration.integration_id.to_string().into(),
        micros(now).into(),
        caller.into(),
        action.into(),
        detail.to_string().into(),
    ];
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
