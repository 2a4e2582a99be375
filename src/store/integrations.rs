//! Creating, replacing and deleting integrations, within the writer's transaction.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};
use serde_json::json;
use uuid::Uuid;

use super::{
    StoreError,
    catalog::{Slot, Tombstone},
    command::{Configure, ConfigureError, Deleted},
    draft::Draft,
    rows::{micros, mutable_columns, statement},
    secret::Sealer,
    statements::{run, update_integration},
};
use crate::domain::{
    external_id::ExternalId,
    integration::{Integration, IntegrationKey, PreviousExternalId, Progress, Snapshot},
    organization::OrganizationId,
    status::{Stall, StatusDetail},
};

/// Partitions over which integrations are spread when several instances share a database.
const PARTITIONS: u128 = 256;

/// How long a previous external ID serves at the most.
const PREVIOUS_SERVES: Duration = Duration::from_secs(7 * 24 * 3600);
/// Issued external IDs that an organization may hold; beyond it the oldest goes.
const MOST_ISSUED: i64 = 10;

/// What a Configure makes of what there is.
pub(super) struct Plan {
    pub(super) integration: Integration,
    /// In clear, to find it again.
    external_id: ExternalId,
    /// The fingerprint of the one before, where it goes on serving.
    previous_fingerprint: Option<Vec<u8>>,
    /// The fields that differ from before; None where it is created.
    changed: Option<Vec<&'static str>>,
    issued_only: bool,
    caller: Box<str>,
}

/// Decides what a Configure makes, and whether it may.
pub(super) fn plan(
    existing: Option<&Snapshot>,
    configure: Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Plan, ConfigureError> {
    let current_etag = existing.map(|snapshot| snapshot.integration.etag());
    if configure.etag.is_some() && configure.etag != current_etag {
        return Err(ConfigureError::EtagMismatch);
    }
    match existing {
        None => plan_creation(configure, sealer, now),
        Some(before) => plan_replacement(&before.integration, configure, sealer, now),
    }
}

fn plan_creation(
    configure: Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Plan, ConfigureError> {
    let external_id = configure
        .external_id
        .ok_or(ConfigureError::ExternalIdRequired)?;
    let integration_id = Uuid::now_v7();
    let sealed = sealer.seal(&external_id, integration_id);
    Ok(Plan {
        integration: Integration {
            // Numbered when it is stored.
            key: IntegrationKey(0),
            organization_id: configure.organization_id,
            integration_id,
            stream_arn: configure.stream_arn,
            role_arn: configure.role_arn,
            external_id: sealed.map_err(|_| StoreError::Sealing)?,
            external_id_hint: external_id.hint().into(),
            external_id_set_at: now,
            previous: None,
            version: 1,
            created_at: now,
            updated_at: now,
        },
        external_id,
        previous_fingerprint: None,
        changed: None,
        issued_only: configure.issued_only,
        caller: configure.caller,
    })
}

fn plan_replacement(
    before: &Integration,
    configure: Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Plan, ConfigureError> {
    let stored = sealer
        .open(&before.external_id, before.integration_id)
        .map_err(|_| StoreError::Sealing)?;
    let keep_previous = configure.keep_previous;
    let external_id = configure.external_id.unwrap_or_else(|| stored.clone());
    let new_external_id = stored.expose() != external_id.expose();
    let sealed = sealer.seal(&external_id, before.integration_id);
    let previous_fingerprint = match (new_external_id, keep_previous) {
        (true, true) => Some(sealer.fingerprint(&stored)),
        (true, false) => None,
        (false, _) => match &before.previous {
            Some(previous) => Some(
                sealer.fingerprint(
                    &sealer
                        .open(&previous.external_id, before.integration_id)
                        .map_err(|_| StoreError::Sealing)?,
                ),
            ),
            None => None,
        },
    };
    let differences = [
        (
            "kinesis_stream_arn",
            before.stream_arn != configure.stream_arn,
        ),
        ("role_arn", before.role_arn != configure.role_arn),
        ("external_id", new_external_id),
    ];
    let changed = differences.into_iter().filter(|(_, differs)| *differs);
    Ok(Plan {
        integration: Integration {
            key: before.key,
            organization_id: before.organization_id.clone(),
            integration_id: before.integration_id,
            stream_arn: configure.stream_arn,
            role_arn: configure.role_arn,
            external_id: sealed.map_err(|_| StoreError::Sealing)?,
            external_id_hint: external_id.hint().into(),
            external_id_set_at: match new_external_id {
                true => now,
                false => before.external_id_set_at,
            },
            previous: match (new_external_id, keep_previous) {
                (true, true) => Some(PreviousExternalId {
                    external_id: before.external_id.clone(),
                    hint: before.external_id_hint.clone(),
                    until: now + PREVIOUS_SERVES,
                }),
                (true, false) => None,
                (false, _) => before.previous.clone(),
            },
            version: before.version + 1,
            created_at: before.created_at,
            updated_at: now,
        },
        external_id,
        previous_fingerprint,
        // One that was configured before the policy changed may stay.
        issued_only: configure.issued_only && new_external_id,
        changed: Some(changed.map(|(field, _)| field).collect()),
        caller: configure.caller,
    })
}

impl Plan {
    /// Refuses an external ID that another organization uses or was issued, and one
    /// that was not issued where it must be.
    pub(super) async fn check_external_id(
        &self,
        db: &impl ConnectionTrait,
        sealer: &Sealer,
    ) -> Result<(), ConfigureError> {
        let sql = "SELECT organization_id FROM integration WHERE external_id_hmac = $1 \
            UNION SELECT organization_id FROM integration WHERE previous_external_id_hmac = $1 \
            UNION SELECT organization_id FROM issued_external_id WHERE external_id_hmac = $1";
        let fingerprint = sealer.fingerprint(&self.external_id);
        let holders = owners(db, sql, fingerprint.clone()).await?;
        let own = self.integration.organization_id.as_str();
        if holders.iter().any(|holder| holder != own) {
            return Err(ConfigureError::ExternalIdInUse);
        }
        if self.issued_only {
            let sql = "SELECT organization_id FROM issued_external_id WHERE external_id_hmac = $1";
            if owners(db, sql, fingerprint).await?.is_empty() {
                return Err(ConfigureError::ExternalIdNotIssued);
            }
        }
        Ok(())
    }
}

async fn owners(
    db: &impl ConnectionTrait,
    sql: &str,
    fingerprint: Vec<u8>,
) -> Result<Vec<String>, StoreError> {
    let rows = db
        .query_all_raw(statement(db, sql, [fingerprint.into()]))
        .await?;
    let owners: Result<Vec<String>, DbErr> = rows
        .iter()
        .map(|row| row.try_get("", "organization_id"))
        .collect();
    Ok(owners?)
}

/// Reserves an external ID for an organization.
pub(super) async fn issue(
    tx: &DatabaseTransaction,
    sealer: &Sealer,
    organization_id: &OrganizationId,
    external_id: &ExternalId,
    now: Timestamp,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO issued_external_id (external_id_hmac, organization_id, issued_at) \
        VALUES ($1, $2, $3)";
    let values: [Value; 3] = [
        sealer.fingerprint(external_id).into(),
        organization_id.as_str().into(),
        micros(now).into(),
    ];
    run(tx, sql, values).await?;
    let sql = "DELETE FROM issued_external_id WHERE organization_id = $1 AND issued_at < \
        (SELECT MIN(issued_at) FROM (SELECT issued_at FROM issued_external_id \
        WHERE organization_id = $1 ORDER BY issued_at DESC LIMIT $2) newest)";
    let values: [Value; 2] = [organization_id.as_str().into(), MOST_ISSUED.into()];
    run(tx, sql, values).await.map(drop)
}

/// Forgets the external ID before, now that the one of this version works.
pub(super) async fn retire_previous(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    key: IntegrationKey,
    version: u64,
    now: Timestamp,
) -> Result<(), DbErr> {
    let Some(slot) = draft.slot_mut(key) else {
        return Ok(());
    };
    let integration = &slot.snapshot.integration;
    if integration.version != version || integration.previous.is_none() {
        return Ok(());
    }
    let retired = Integration {
        previous: None,
        ..(**integration).clone()
    };
    let sql = "UPDATE integration SET previous_external_id_sealed = NULL, \
        previous_external_id_hmac = NULL, previous_external_id_hint = NULL, \
        previous_external_id_until = NULL WHERE integration_key = $1";
    run(tx, sql, [key.0.into()]).await?;
    audit(
        tx,
        &retired,
        now,
        "siem-relay",
        "external_id_took_over",
        json!({}),
    )
    .await?;
    slot.snapshot.integration = Arc::new(retired);
    Ok(())
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
) -> Result<IntegrationKey, DbErr> {
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
    draft.insert(key, slot);
    Ok(key)
}

async fn insert(
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
    mut slot: Slot,
    plan: Plan,
    fingerprint: Vec<u8>,
) -> Result<IntegrationKey, DbErr> {
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
    update_integration(tx, key, &slot).await?;
    let detail = json!({ "changed": changed });
    audit(tx, &integration, now, &plan.caller, "replace", detail).await?;
    slot.snapshot.integration = Arc::new(integration);
    draft.insert(key, slot);
    Ok(key)
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
