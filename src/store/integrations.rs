//! Creating, replacing and deleting integrations, within the writer's transaction.

use std::sync::Arc;

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};
use serde_json::json;

use super::{
    StoreError,
    catalog::{Slot, Tombstone},
    command::{Configure, ConfigureError, Deleted},
    draft::Draft,
    plan::{Plan, plan},
    rows::{micros, statement, status_columns},
    secret::Sealer,
    statements::{ProgressRow, run, save_progress, save_status},
};
use crate::domain::{
    integration::{Integration, IntegrationKey, Progress, Snapshot},
    organization::OrganizationId,
    status::{Reason, Stall, StatusDetail},
};

/// Partitions over which integrations are spread when several instances share a database.
const PARTITIONS: u128 = 256;

/// Creates or replaces an integration. Returns what was stored.
pub(super) async fn configure(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    sealer: &Sealer,
    configure: Configure,
    now: Timestamp,
) -> Result<Snapshot, ConfigureError> {
    let existing = draft.find(&configure.organization_id).cloned();
    let snapshot = existing.as_ref().map(|slot| &slot.snapshot);
    let plan = plan(snapshot, configure, sealer, now)?;
    plan.check_external_id(tx, sealer).await?;
    let fingerprint = sealer.fingerprint(&plan.external_id);
    let stored = match existing {
        Some(slot) => replace(tx, draft, slot, plan, fingerprint).await,
        None => create(tx, draft, plan, fingerprint).await,
    };
    Ok(stored.map_err(StoreError::Database)?)
}

async fn create(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    plan: Plan,
    fingerprint: Vec<u8>,
) -> Result<Snapshot, DbErr> {
    let mut integration = plan.integration;
    let now = integration.created_at;
    let mut slot = Slot {
        snapshot: Snapshot {
            integration: Arc::new(integration.clone()),
            status: Arc::new(StatusDetail::unknown(now)),
            progress: Progress::NEW,
            revision: draft.next_revision(),
        },
        stall: Stall::default(),
    };
    integration.key = insert(tx, &slot, fingerprint).await?;
    audit(tx, &integration, now, &plan.caller, "create", json!({})).await?;
    let key = integration.key;
    slot.snapshot.integration = Arc::new(integration);
    let stored = slot.snapshot.clone();
    draft.insert(key, slot);
    Ok(stored)
}

async fn insert(
    tx: &DatabaseTransaction,
    slot: &Slot,
    fingerprint: Vec<u8>,
) -> Result<IntegrationKey, DbErr> {
    let integration = &slot.snapshot.integration;
    let sql = "INSERT INTO integration (revision, status, reason, status_since, \
        next_retry_at, aws_error_code, aws_request_id, organization_id, integration_id, \
        partition, stream_arn, role_arn, external_id_sealed, external_id_key_id, \
        external_id_hmac, external_id_hint, external_id_set_at, version, created_at, \
        updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
        $16, $17, $18, $19, $20) RETURNING integration_key";
    let mut values = status_columns(slot);
    values.push(integration.organization_id.as_str().into());
    values.push(integration.integration_id.to_string().into());
    values.push(((integration.integration_id.as_u128() % PARTITIONS) as i32).into());
    values.extend(configured_columns(integration, fingerprint));
    values.push(micros(integration.created_at).into());
    values.push(micros(integration.updated_at).into());
    let row = tx.query_one_raw(statement(tx, sql, values)).await?;
    let row = row.ok_or(DbErr::RecordNotInserted)?;
    let key = IntegrationKey(row.try_get("", "integration_key")?);
    save_progress(tx, &[ProgressRow::of(key, slot)]).await?;
    Ok(key)
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
    mut slot: Slot,
    plan: Plan,
    fingerprint: Vec<u8>,
) -> Result<Snapshot, DbErr> {
    let integration = plan.integration;
    let (key, now) = (integration.key, integration.updated_at);
    let changed = plan.changed.unwrap_or_default();
    if !changed.is_empty() {
        // What was met before says nothing of what is configured now.
        let mut unknown = StatusDetail::unknown(now);
        match slot.snapshot.status.is_change(&unknown) {
            true => slot.snapshot.revision = draft.next_revision(),
            false => unknown.since = slot.snapshot.status.since,
        }
        slot.snapshot.status = Arc::new(unknown);
        slot.stall = Stall::default();
    }
    let sql = "UPDATE integration SET stream_arn = $1, role_arn = $2, \
        external_id_sealed = $3, external_id_key_id = $4, external_id_hmac = $5, \
        external_id_hint = $6, external_id_set_at = $7, version = $8, updated_at = $9, \
        previous_external_id_sealed = $10, previous_external_id_hmac = $11, \
        previous_external_id_hint = $12, previous_external_id_until = $13 \
        WHERE integration_key = $14";
    let mut values = configured_columns(&integration, fingerprint).to_vec();
    values.push(micros(now).into());
    let previous = integration.previous.as_ref();
    values.push(previous.map(|one| one.external_id.bytes.to_vec()).into());
    values.push(plan.previous_fingerprint.into());
    values.push(previous.map(|one| one.hint.to_string()).into());
    values.push(previous.map(|one| micros(one.until)).into());
    values.push(key.0.into());
    run(tx, sql, values).await?;
    save_status(tx, key, &slot).await?;
    save_progress(tx, &[ProgressRow::of(key, &slot)]).await?;
    let detail = json!({ "changed": changed });
    audit(tx, &integration, now, &plan.caller, "replace", detail).await?;
    slot.snapshot.integration = Arc::new(integration);
    let stored = slot.snapshot.clone();
    draft.insert(key, slot);
    Ok(stored)
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
    for table in ["integration", "progress"] {
        let sql = format!("DELETE FROM {table} WHERE integration_key = $1");
        run(tx, &sql, [integration.key.0.into()]).await?;
    }
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

/// Records a change of status.
pub(super) async fn audit_status(
    tx: &DatabaseTransaction,
    snapshot: &Snapshot,
) -> Result<(), DbErr> {
    let status = &snapshot.status;
    let detail = json!({
        "status": status.status.as_str(),
        "reason": status.reason.map(Reason::as_str),
        "aws_error_code": status.aws_error_code.as_deref(),
        "aws_request_id": status.aws_request_id.as_deref(),
    });
    let integration = &snapshot.integration;
    audit(
        tx,
        integration,
        status.since,
        "siem-relay",
        "status",
        detail,
    )
    .await
}

pub(super) async fn audit(
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
