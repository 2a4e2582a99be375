//! Copies the registry of one database into another, whose tables are empty.
//!
//! Rows keep their revisions. The number of the newest one is copied last, by [`save_revisions`]:
//! until then, nobody who reads the other database finds them.

use std::collections::HashMap;

use sea_orm::{
    ActiveValue::NotSet, ColumnTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel,
    PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Value,
};

use super::{
    Database,
    audit::row as audit,
    entities::{integration, integration_id, issued_external_id, meta, tombstone},
    registry::load_number,
    save_meta, statement,
};
use crate::{
    domain::integration::IntegrationId,
    store::{
        error::StoreError,
        ports::{Claim, Partition, Reseal},
    },
};

/// Rows of one transaction: PostgreSQL binds at most 65,535 values, and a row of `integration` has
/// 29.
const ROWS: u64 = 1000;

/// Number of rows in each table of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct RowCounts {
    /// Integrations.
    pub(in crate::store) integrations: u64,
    /// External IDs that were issued.
    pub(in crate::store) issued: u64,
    /// Deletions that are remembered.
    pub(in crate::store) tombstones: u64,
    /// Rows of the audit.
    pub(in crate::store) audit: u64,
}

/// Revisions of a registry, and its other counters.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Revisions {
    newest: u64,
    /// Revision up to which deletions are forgotten.
    forgotten_to: u64,
    /// Number of ids that refusals in the audit have taken.
    refusals: u64,
}

/// Returns the number of rows in each table.
pub(in crate::store) async fn row_counts(db: &Database) -> Result<RowCounts, StoreError> {
    let reader = &db.reader();
    let counts = async {
        Ok(RowCounts {
            integrations: integration::Entity::find().count(reader).await?,
            issued: issued_external_id::Entity::find().count(reader).await?,
            tombstones: tombstone::Entity::find().count(reader).await?,
            audit: audit::Entity::find().count(reader).await?,
        })
    };
    counts.await.map_err(|error| db.map(error))
}

/// Returns the number of issued external IDs that no integration uses, and of which only the hash
/// is known.
pub(in crate::store) async fn unused_issued(db: &Database) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) AS unused FROM issued_external_id e \
        WHERE e.external_id_sealed IS NULL AND e.external_id_hmac NOT IN (SELECT external_id_hmac FROM integration) \
        AND e.external_id_hmac NOT IN (SELECT previous_external_id_hmac FROM integration \
            WHERE previous_external_id_hmac IS NOT NULL)";
    let reader = &db.reader();
    let unused = async {
        let row = reader.query_one_raw(statement(reader, sql, [])).await?;
        row.map_or(Ok(0), |row| row.try_get::<i64>("", "unused"))
    };
    let unused = unused.await.map_err(|error| db.map(error))?;
    Ok(unused.unsigned_abs())
}

/// Copies every table, and spreads the integrations over `partitions`. `keep_unused` says whether
/// issued external IDs are copied of which only the hash is known, and which no integration uses:
/// under another key the hash is worth nothing. Returns what was copied.
pub(in crate::store) async fn copy_registry(
    source: &Database,
    target: &Database,
    partitions: u32,
    keep_unused: bool,
    reseal: &dyn Reseal,
) -> Result<RowCounts, StoreError> {
    // Claim on each external ID that an integration uses, by its hash before.
    let mut hashes = HashMap::new();
    let integrations = copy_rows::<integration::Entity>(
        source,
        target,
        integration::Column::IntegrationKey,
        |row| row.integration_key.into(),
        |row| {
            let row = moved_integration(row, partitions, reseal, &mut hashes)?;
            let mut row = row.into_active_model();
            row.integration_key = NotSet;
            Ok(Some(row))
        },
    )
    .await?;
    let issued = copy_rows::<issued_external_id::Entity>(
        source,
        target,
        issued_external_id::Column::ExternalIdHmac,
        |row| row.external_id_hmac.clone().into(),
        |mut row| {
            let claim = match row.reseal(reseal)? {
                Some(claim) => Some(claim),
                None => hashes.get(&row.external_id_hmac).cloned(),
            };
            match claim {
                Some(claim) => {
                    row.external_id_hmac = claim.fingerprint;
                    row.external_id_sealed = Some(claim.sealed.bytes.into());
                    row.external_id_key_id = Some(claim.sealed.key_id.into());
                }
                None if keep_unused => {}
                None => return Ok(None),
            }
            Ok(Some(row.into_active_model()))
        },
    )
    .await?;
    let tombstones = copy_rows::<tombstone::Entity>(
        source,
        target,
        tombstone::Column::Revision,
        |row| row.revision.into(),
        |row| Ok(Some(row.into_active_model())),
    )
    .await?;
    let audit = copy_rows::<audit::Entity>(
        source,
        target,
        audit::Column::AuditId,
        |row| row.audit_id.into(),
        // With their ids, of which those of refusals have a meaning.
        |row| Ok(Some(row.into_active_model())),
    )
    .await?;
    Ok(RowCounts {
        integrations,
        issued,
        tombstones,
        audit,
    })
}

/// The row of an integration in the other database.
fn moved_integration(
    mut row: integration::Model,
    partitions: u32,
    reseal: &dyn Reseal,
    claims: &mut HashMap<Vec<u8>, Claim>,
) -> Result<integration::Model, StoreError> {
    let id = integration_id(&row.integration_id)?;
    row.partition = partition_of(id, partitions) as i32;
    let current = row.external_id_hmac.clone();
    let before = [current]
        .into_iter()
        .chain(row.previous_external_id_hmac.clone());
    claims.extend(before.zip(row.reseal(reseal)?));
    Ok(row)
}

/// Copies the rows of a table in the order of a column with unique values, of which `key` returns
/// that of a row. `convert` returns None for a row that is left out.
async fn copy_rows<E: EntityTrait>(
    source: &Database,
    target: &Database,
    order: E::Column,
    key: impl Fn(&E::Model) -> Value,
    mut convert: impl FnMut(E::Model) -> Result<Option<E::ActiveModel>, StoreError>,
) -> Result<u64, StoreError> {
    let (mut after, mut copied) = (None, 0);
    loop {
        let page = E::find()
            .apply_if(after, |page, after: Value| page.filter(order.gt(after)))
            .order_by_asc(order)
            .limit(ROWS);
        let rows = page.all(&source.reader()).await;
        let rows = rows.map_err(|error| source.map(error))?;
        let Some(last) = rows.last() else {
            return Ok(copied);
        };
        after = Some(key(last));
        let converted = rows.into_iter().filter_map(|row| convert(row).transpose());
        let converted: Vec<E::ActiveModel> = converted.collect::<Result<_, StoreError>>()?;
        if converted.is_empty() {
            continue;
        }
        copied += converted.len() as u64;
        let tx = target.begin().await?;
        let inserted = E::insert_many(converted).exec_without_returning(&tx).await;
        inserted.map_err(|error| target.map(error))?;
        tx.commit().await?;
    }
}

/// Partition of a new integration.
pub(in crate::store) fn partition_of(id: IntegrationId, partitions: u32) -> Partition {
    // Below `partitions`, which has 32 bits.
    (id.0.as_u128() % u128::from(partitions)) as Partition
}

/// Returns the revisions of a registry.
pub(in crate::store) async fn revisions(db: &Database) -> Result<Revisions, StoreError> {
    let reader = &db.reader();
    let revisions = async {
        Ok(Revisions {
            newest: load_number(reader, meta::REVISION).await?,
            forgotten_to: load_number(reader, meta::TOMBSTONE_FLOOR).await?,
            refusals: load_number(reader, meta::AUDIT_REFUSALS).await?,
        })
    };
    revisions.await.map_err(|error| db.map(error))
}

/// Saves the revisions of a registry that was copied. The next one is above them, and above all
/// that the database has given before.
pub(in crate::store) async fn save_revisions(
    db: &impl ConnectionTrait,
    revisions: Revisions,
) -> Result<(), DbErr> {
    for (name, revision) in [
        (meta::REVISION, revisions.newest),
        (meta::TOMBSTONE_FLOOR, revisions.forgotten_to),
        (meta::AUDIT_REFUSALS, revisions.refusals),
    ] {
        let before = load_number(db, name).await?;
        save_meta(db, name, &before.max(revision).to_string()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sea_orm::EntityTrait;

    use super::*;
    use crate::{
        domain::{integration::SealedExternalId, organization::OrganizationId},
        store::sql::testing::database,
    };

    /// A page and a half.
    const MANY: i64 = ROWS as i64 * 3 / 2;

    async fn all<E: EntityTrait>(db: &Database, order: E::Column) -> Vec<E::Model> {
        let rows = E::find().order_by_asc(order);
        rows.all(&db.reader()).await.unwrap()
    }

    async fn source() -> Database {
        let db = database().await;
        let tombstones = (1..=MANY).map(|revision| {
            tombstone::ActiveModel::from(tombstone::Model {
                revision,
                organization_id: format!("org-{revision}"),
                integration_id: IntegrationId(uuid::Uuid::from_u128(revision as u128)).to_string(),
                deleted_at: revision,
            })
        });
        let issued = (1..=MANY).map(|number| {
            issued_external_id::ActiveModel::from(issued_external_id::Model {
                external_id_hmac: number.to_be_bytes().to_vec(),
                organization_id: "acme".to_owned(),
                issued_at: number,
                external_id_sealed: None,
                external_id_key_id: None,
            })
        });
        // Changes and refusals.
        let audited = (-MANY..=MANY).filter(|id| *id != 0).map(|audit_id| {
            audit::ActiveModel::from(audit::Model {
                audit_id,
                organization_id: "acme".to_owned(),
                integration_id: String::new(),
                at: audit_id.abs(),
                caller: "alice".to_owned(),
                action: "refuse".to_owned(),
                detail: "{}".to_owned(),
                issuer: Some("https://issuer.example".to_owned()),
                peer: None,
                request_id: None,
                client_request_id: Some("theirs".to_owned()),
                method: None,
                code: "OK".to_owned(),
                reason: None,
                occurrences: 3,
                last_at: Some(7),
            })
        });
        let tx = db.begin().await.unwrap();
        for rows in audited.collect::<Vec<_>>().chunks(1000) {
            let inserted = audit::Entity::insert_many(rows.to_vec());
            inserted.exec_without_returning(&tx).await.unwrap();
        }
        let inserted = tombstone::Entity::insert_many(tombstones);
        inserted.exec_without_returning(&tx).await.unwrap();
        let inserted = issued_external_id::Entity::insert_many(issued);
        inserted.exec_without_returning(&tx).await.unwrap();
        save_meta(&tx, meta::REVISION, "7000").await.unwrap();
        tx.commit().await.unwrap();
        db
    }

    struct Nothing;

    impl Reseal for Nothing {
        fn target(&self) -> &str {
            "none"
        }

        fn of_integration(
            &self,
            _: &OrganizationId,
            _: IntegrationId,
            _: &SealedExternalId,
        ) -> Result<(SealedExternalId, Claim), StoreError> {
            panic!("there is no integration");
        }

        fn issued(&self, _: &OrganizationId, _: &SealedExternalId) -> Result<Claim, StoreError> {
            panic!("only hashes are known");
        }
    }

    #[tokio::test]
    async fn every_page_is_copied_once() {
        let (source, target) = (source().await, database().await);
        let copied = copy_registry(&source, &target, 4, true, &Nothing);
        let copied = copied.await.unwrap();
        assert_eq!(copied, row_counts(&source).await.unwrap());
        assert_eq!(copied, row_counts(&target).await.unwrap());
        let revision = tombstone::Column::Revision;
        assert_eq!(
            all::<tombstone::Entity>(&source, revision).await,
            all::<tombstone::Entity>(&target, revision).await
        );
        let hash = issued_external_id::Column::ExternalIdHmac;
        assert_eq!(
            all::<issued_external_id::Entity>(&source, hash).await,
            all::<issued_external_id::Entity>(&target, hash).await
        );
        let id = audit::Column::AuditId;
        let audited = all::<audit::Entity>(&target, id).await;
        assert_eq!(all::<audit::Entity>(&source, id).await, audited);
    }

    #[tokio::test]
    async fn hashes_of_another_key_are_counted_and_left_out() {
        let (source, target) = (source().await, database().await);
        assert_eq!(unused_issued(&source).await.unwrap(), MANY as u64);
        let copied = copy_registry(&source, &target, 4, false, &Nothing);
        assert_eq!(copied.await.unwrap().issued, 0);
        assert_eq!(row_counts(&target).await.unwrap().issued, 0);
    }

    #[tokio::test]
    async fn revisions_continue_above_both() {
        let (source, target) = (source().await, database().await);
        let revisions = revisions(&source).await.unwrap();
        for (before, after) in [("0", 7000), ("9000", 9000)] {
            let tx = target.begin().await.unwrap();
            save_meta(&tx, meta::REVISION, before).await.unwrap();
            save_revisions(&tx, revisions).await.unwrap();
            let saved = load_number(&tx, meta::REVISION).await.unwrap();
            assert_eq!(saved, after);
            tx.commit().await.unwrap();
        }
    }
}
