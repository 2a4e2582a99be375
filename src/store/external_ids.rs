//! Whose an external ID is: used, issued, or serving until its successor works.

use std::sync::Arc;

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};
use serde_json::json;

use super::{
    StoreError,
    command::ConfigureError,
    draft::Draft,
    integrations::audit,
    plan::Plan,
    rows::{micros, statement},
    secret::Sealer,
    statements::run,
};
use crate::domain::{
    external_id::ExternalId,
    integration::{Integration, IntegrationKey},
    organization::OrganizationId,
};

/// Issued external IDs that an organization may hold; beyond it the oldest goes.
const MOST_ISSUED: i64 = 10;

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
