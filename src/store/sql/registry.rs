//! Registry in a SQL database, with the same statements for SQLite and PostgreSQL.
//!
//! A transaction locks the rows of its integrations first, in the order of their ids, and then the
//! row of the revision; after that it locks no row that another transaction may hold. Transactions
//! that take revisions commit one after the other, so revisions become visible in their order.
//!
//! An external ID is given to an organization after the revision was taken. Each statement sees
//! what was committed before it began (READ COMMITTED in PostgreSQL), so it sees every external ID
//! that was given before, and no other is given until the commit. The three columns that hold
//! external IDs need no common index for this.
//!
//! # Timelines
//!
//! A promoted standby may lack the last commits of the primary, which others saw. Therefore the
//! high bits of a revision are PostgreSQL's timeline, which rises with each promotion: no revision
//! is used twice, and those of a new timeline are above all earlier ones. The first of a timeline
//! raises the revision up to which deletions are forgotten, so that whoever saw an earlier one
//! reads everything anew. In SQLite the timeline is 0.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::NotSet,
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, SqlErr,
    sea_query::{Expr, OnConflict},
};
use serde_json::{Value, json};

use super::{
    Database, WriteTransaction,
    entities::{audit, integration, integration_id, meta, micros, tombstone, whole_micros},
    external_ids,
};
use crate::{
    domain::{
        integration::IntegrationId,
        map::Map,
        organization::OrganizationId,
        status::{Reason, Stall, StatusDetail, observe},
    },
    store::{
        error::{ConfigureError, StoreError},
        ports::{
            NextRetry, Observed, Plan, Registered, Registry, RegistryChange, RegistryChanges,
            Tombstone,
        },
    },
};

/// Rows of one statement: SQLite binds at most 32,766 values, PostgreSQL 65,535, and a row of
/// `integration` has 29.
const ROWS: usize = 1000;
/// Attempts of a Configure that meets a concurrent one of the same organization or external ID.
const ATTEMPTS: u32 = 3;
/// Bits of a revision below its timeline. With them, a timeline has 23 bits.
const TIMELINE_SHIFT: u32 = 40;
/// Caller of changes that nobody asked for.
const SERVICE: &str = "siem-relay";

/// Settings of a registry.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct RegistryOptions {
    /// Number of partitions over which new integrations are spread; at least 1.
    pub(in crate::store) partitions: u32,
    /// Most deletions that are remembered.
    pub(in crate::store) tombstones: usize,
    /// Time without a delivery after which throttling or an outage becomes the status.
    pub(in crate::store) failing_after: Duration,
}

/// See the module.
pub(in crate::store) struct SqlRegistry {
    db: Database,
    options: RegistryOptions,
}

impl SqlRegistry {
    /// Opens the registry of a database, whose tables exist.
    pub(in crate::store) async fn open(
        db: Database,
        options: RegistryOptions,
    ) -> Result<Self, StoreError> {
        let registry = Self { db, options };
        let tx = registry.db.begin().await?;
        let started = start_revisions(&tx).await;
        started.map_err(|error| registry.db.map(error))?;
        tx.commit().await?;
        Ok(registry)
    }

    /// Whether the external IDs in this database are sealed with the key that has this check
    /// value. The first check value that is given is stored.
    pub(in crate::store) async fn check_key(&self, check: &[u8]) -> Result<bool, StoreError> {
        let db_error = |error| self.db.map(error);
        let given = hex::encode(check);
        let stored = super::load_meta(&self.db.reader(), meta::KEY_CHECK).await;
        if let Some(stored) = stored.map_err(db_error)? {
            return Ok(stored == given);
        }
        let tx = self.db.begin().await?;
        // Another instance may have stored another value meanwhile.
        let row = meta::Model {
            name: meta::KEY_CHECK.to_owned(),
            value: given.clone(),
        };
        let insert = meta::Entity::insert(row.into_active_model()).on_conflict_do_nothing();
        insert.exec_without_returning(&tx).await.map_err(db_error)?;
        let stored = super::load_meta(&tx, meta::KEY_CHECK).await;
        let stored = stored.map_err(db_error)?;
        tx.commit().await?;
        Ok(stored.is_some_and(|stored| stored == given))
    }

    /// Configures once. None if a concurrent Configure has created the integration meanwhile.
    async fn try_configure(
        &self,
        organization_id: &OrganizationId,
        plan: &Plan<'_>,
    ) -> Result<Option<Registered>, ConfigureError> {
        let db_error = |error| self.db.map(error);
        let tx = self.db.begin().await?;
        let row = find(&tx, organization_id).await.map_err(db_error)?;
        let existing = row.clone().map(Registered::try_from).transpose()?;
        let planned = plan(existing.as_ref())?;
        let revision = next_revisions(&tx, 1).await.map_err(db_error)?;
        let refusal = external_ids::refusal(
            &tx,
            organization_id,
            &planned.fingerprint,
            planned.issued_only,
        );
        if let Some(refusal) = refusal.await.map_err(db_error)? {
            return Err(refusal);
        }
        let changed = planned.changed.clone();
        let (action, detail) = match &changed {
            None => ("create", json!({})),
            Some(changed) => ("replace", json!({ "changed": changed })),
        };
        let at = micros(planned.integration.updated_at);
        let id = planned.integration.integration_id;
        let caller = planned.caller.to_string();
        let audited = audit_row(organization_id.as_str(), id, at, &caller, action, detail);
        save_audit(&tx, vec![audited]).await.map_err(db_error)?;
        let (saved, stored) = match row {
            None => {
                let mut row = integration::Model::new(planned, self.options.partitions);
                row.revision = revision as i64;
                row.status_revision = revision as i64;
                let stored = Registered::try_from(row.clone())?;
                let mut row = row.into_active_model();
                row.integration_key = NotSet;
                let insert = integration::Entity::insert(row);
                (insert.exec_without_returning(&tx).await.map(drop), stored)
            }
            Some(mut row) => {
                let before = row.status()?;
                let now = planned.integration.updated_at;
                row.set_configuration(planned);
                row.revision = revision as i64;
                if changed.is_some_and(|changed| !changed.is_empty()) {
                    // The old status says nothing about the new configuration.
                    let mut unknown = StatusDetail::unknown(now);
                    match before.is_change(&unknown) {
                        true => row.status_revision = revision as i64,
                        false => unknown.since = before.since,
                    }
                    row.set_status(&unknown, Stall::default());
                }
                let stored = Registered::try_from(row.clone())?;
                (update(&tx, row).await, stored)
            }
        };
        match saved {
            Err(error) if is_conflict(&error) => return Ok(None),
            saved => saved.map_err(db_error)?,
        }
        tx.commit().await?;
        Ok(Some(stored))
    }
}

#[async_trait]
impl Registry for SqlRegistry {
    fn database_id(&self) -> &str {
        self.db.database_id()
    }

    async fn configure(
        &self,
        organization_id: &OrganizationId,
        plan: &Plan<'_>,
    ) -> Result<Registered, ConfigureError> {
        for _ in 0..ATTEMPTS {
            if let Some(stored) = self.try_configure(organization_id, plan).await? {
                return Ok(stored);
            }
        }
        let reason = "concurrent configurations are in conflict";
        Err(StoreError::Failed(reason.into()).into())
    }

    async fn check_external_id(
        &self,
        organization_id: &OrganizationId,
        fingerprint: &[u8],
        issued_only: bool,
    ) -> Result<(), ConfigureError> {
        let db = self.db.reader();
        let refusal = external_ids::refusal(&db, organization_id, fingerprint, issued_only);
        let refusal = refusal.await.map_err(|error| self.db.map(error))?;
        refusal.map_or(Ok(()), Err)
    }

    async fn issue_external_id(
        &self,
        organization_id: &OrganizationId,
        fingerprint: &[u8],
    ) -> Result<(), StoreError> {
        let tx = self.db.begin().await?;
        let issued = external_ids::issue(&tx, organization_id, fingerprint, Timestamp::now());
        issued.await.map_err(|error| self.db.map(error))?;
        tx.commit().await
    }

    async fn retire_previous_external_id(
        &self,
        integration_id: IntegrationId,
        version: u64,
    ) -> Result<(), StoreError> {
        let db_error = |error| self.db.map(error);
        let tx = self.db.begin().await?;
        let rows = find_all(&tx, &[integration_id]).await.map_err(db_error)?;
        let Some(mut row) = rows.into_iter().next() else {
            return Ok(());
        };
        if row.version != version as i64 || row.previous_external_id_hmac.is_none() {
            return Ok(());
        }
        row.clear_previous();
        let action = "external_id_took_over";
        let at = micros(Timestamp::now());
        let organization_id = row.organization_id.as_str();
        let audited = audit_row(
            organization_id,
            integration_id,
            at,
            SERVICE,
            action,
            json!({}),
        );
        save_audit(&tx, vec![audited]).await.map_err(db_error)?;
        row.revision = next_revisions(&tx, 1).await.map_err(db_error)? as i64;
        update(&tx, row).await.map_err(db_error)?;
        tx.commit().await
    }

    async fn delete(
        &self,
        organization_id: &OrganizationId,
        caller: &str,
    ) -> Result<Option<Tombstone>, StoreError> {
        let db_error = |error| self.db.map(error);
        let tx = self.db.begin().await?;
        let Some(row) = find(&tx, organization_id).await.map_err(db_error)? else {
            return Ok(None);
        };
        let deleted_at = whole_micros(Timestamp::now());
        let id = integration_id(&row.integration_id)?;
        let at = micros(deleted_at);
        let audited = audit_row(
            organization_id.as_str(),
            id,
            at,
            caller,
            "delete",
            json!({}),
        );
        save_audit(&tx, vec![audited]).await.map_err(db_error)?;
        let tombstone = Tombstone {
            revision: next_revisions(&tx, 1).await.map_err(db_error)?,
            organization_id: organization_id.clone(),
            integration_id: id,
            deleted_at,
        };
        bury(&tx, row.integration_key, &tombstone)
            .await
            .map_err(db_error)?;
        let forgotten = forget_tombstones(&tx, self.options.tombstones).await;
        forgotten.map_err(db_error)?;
        tx.commit().await?;
        Ok(Some(tombstone))
    }

    async fn observe(&self, observed: &[Observed]) -> Result<(), StoreError> {
        let db_error = |error| self.db.map(error);
        let mut ids: Vec<_> = observed.iter().map(|one| one.integration_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let tx = self.db.begin().await?;
        let mut folds = Map::default();
        for row in find_all(&tx, &ids).await.map_err(db_error)? {
            folds.insert(integration_id(&row.integration_id)?, Fold::new(row)?);
        }
        for one in observed {
            if let Some(fold) = folds.get_mut(&one.integration_id) {
                fold.add(one, self.options.failing_after);
            }
        }
        let mut rows = Vec::new();
        let mut audited = Vec::new();
        let mut revised = 0;
        for id in ids {
            let Some(folded) = folds.remove(&id).and_then(Fold::finish) else {
                continue;
            };
            revised += u64::from(folded.changes != Changes::Times);
            if let Some(detail) = folded.audit {
                let row = &folded.row;
                let organization_id = row.organization_id.as_str();
                let at = row.status_since;
                audited.push(audit_row(
                    organization_id,
                    id,
                    at,
                    SERVICE,
                    "status",
                    detail,
                ));
            }
            rows.push((folded.row, folded.changes));
        }
        if rows.is_empty() {
            return Ok(());
        }
        save_audit(&tx, audited).await.map_err(db_error)?;
        if revised > 0 {
            let mut revision = next_revisions(&tx, revised).await.map_err(db_error)? as i64;
            for (row, changes) in &mut rows {
                match changes {
                    Changes::Times => continue,
                    Changes::Details => {}
                    Changes::Status => row.status_revision = revision,
                }
                row.revision = revision;
                revision += 1;
            }
        }
        let rows = rows.into_iter().map(|(row, _)| row).collect();
        save_statuses(&tx, rows).await.map_err(db_error)?;
        tx.commit().await
    }

    async fn changes_after(
        &self,
        revision: u64,
        limit: usize,
    ) -> Result<RegistryChanges, StoreError> {
        let db_error = |error| self.db.map(error);
        // One state for all statements: else an integration that changes between the first two is
        // above the newest revision of the first, and missing in an answer that claims to be
        // complete.
        let db = &self.db.begin_snapshot().await?;
        let newest = load_number(db, meta::REVISION).await.map_err(db_error)?;
        let after = revision as i64;
        let fetched = limit as u64 + 1;
        let integrations = integration::Entity::find()
            .filter(integration::Column::Revision.gt(after))
            .order_by_asc(integration::Column::Revision)
            .limit(fetched)
            .all(db)
            .await
            .map_err(db_error)?;
        let tombstones = tombstone::Entity::find()
            .filter(tombstone::Column::Revision.gt(after))
            .order_by_asc(tombstone::Column::Revision)
            .limit(fetched)
            .all(db)
            .await
            .map_err(db_error)?;
        let floor = load_number(db, meta::TOMBSTONE_FLOOR).await;
        let mut changes = Vec::with_capacity(integrations.len() + tombstones.len());
        for row in integrations {
            changes.push(RegistryChange::Current(row.try_into()?));
        }
        for row in tombstones {
            changes.push(RegistryChange::Deleted(row.try_into()?));
        }
        changes.sort_unstable_by_key(RegistryChange::revision);
        let more = changes.len() > limit;
        changes.truncate(limit);
        Ok(RegistryChanges {
            up_to: match more {
                true => changes.last().map_or(revision, RegistryChange::revision),
                false => newest,
            },
            more,
            changes,
            forgotten_to: floor.map_err(db_error)?,
        })
    }
}

/// Extent of a change by observations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    /// Only the time of the last attempt that was recorded.
    Times,
    /// Details of the status.
    Details,
    /// Status or reason.
    Status,
}

/// Observations of one integration, folded into its status.
struct Fold {
    row: integration::Model,
    before: StatusDetail,
    stall_before: Stall,
    status: StatusDetail,
    stall: Stall,
    began_at: Option<i64>,
}

/// Result of a [`Fold`] that changes the row.
struct Folded {
    row: integration::Model,
    changes: Changes,
    /// Detail of the audit, if the status changes.
    audit: Option<Value>,
}

impl Fold {
    fn new(row: integration::Model) -> Result<Self, StoreError> {
        let (status, stall) = (row.status()?, row.stall()?);
        Ok(Self {
            before: status.clone(),
            stall_before: stall,
            status,
            stall,
            began_at: row.observed_began_at,
            row,
        })
    }

    fn add(&mut self, observed: &Observed, failing_after: Duration) {
        let began_at = Some(micros(observed.began_at));
        if observed.version as i64 != self.row.version || began_at < self.began_at {
            return;
        }
        let at = whole_micros(observed.at);
        let observation = &observed.observation;
        let mut status = observe(
            &self.status,
            &mut self.stall,
            failing_after,
            at,
            observation,
        );
        status.next_retry = match observed.next_retry {
            NextRetry::Unchanged => self.status.next_retry,
            NextRetry::None => None,
            NextRetry::At(at) => Some(whole_micros(at)),
        };
        self.status = status;
        self.began_at = began_at;
    }

    /// Returns the row as it is to be stored; None if nothing of it changes.
    fn finish(mut self) -> Option<Folded> {
        let changes = if self.before.is_change(&self.status) {
            Changes::Status
        } else {
            // A change that was taken back within one call is no change.
            self.status.since = self.before.since;
            let same = self.before.is_same_except_last_times(&self.status);
            match same && self.stall == self.stall_before {
                true if self.began_at == self.row.observed_began_at => return None,
                true => Changes::Times,
                false => Changes::Details,
            }
        };
        self.row.observed_began_at = self.began_at;
        self.row.set_status(&self.status, self.stall);
        let status = &self.status;
        let audit = (changes == Changes::Status).then(|| {
            json!({
                "status": status.status.as_str(),
                "reason": status.reason.map(Reason::as_str),
                "aws_error_code": status.aws_error_code.as_deref(),
                "aws_request_id": status.aws_request_id.as_deref(),
            })
        });
        Some(Folded {
            row: self.row,
            changes,
            audit,
        })
    }
}

/// Whether a transaction failed because of a concurrent one with the same unique value.
fn is_conflict(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

/// Finds and locks the integration of an organization.
async fn find(
    tx: &WriteTransaction<'_>,
    organization_id: &OrganizationId,
) -> Result<Option<integration::Model>, DbErr> {
    integration::Entity::find()
        .filter(integration::Column::OrganizationId.eq(organization_id.as_str()))
        .lock_exclusive()
        .one(tx)
        .await
}

/// Finds and locks integrations, given in the order of their ids.
async fn find_all(
    tx: &WriteTransaction<'_>,
    ids: &[IntegrationId],
) -> Result<Vec<integration::Model>, DbErr> {
    let mut rows = Vec::with_capacity(ids.len());
    for ids in ids.chunks(ROWS) {
        let texts = ids.iter().map(IntegrationId::to_string);
        let found = integration::Entity::find()
            .filter(integration::Column::IntegrationId.is_in(texts))
            .order_by_asc(integration::Column::IntegrationId)
            .lock_exclusive()
            .all(tx)
            .await?;
        rows.extend(found);
    }
    Ok(rows)
}

/// Replaces the row of an integration.
async fn update(tx: &WriteTransaction<'_>, row: integration::Model) -> Result<(), DbErr> {
    let row = row.into_active_model().reset_all();
    integration::Entity::update(row)
        .exec_without_returning(tx)
        .await
        .map(drop)
}

/// Saves what observations change of existing rows.
async fn save_statuses(
    tx: &WriteTransaction<'_>,
    rows: Vec<integration::Model>,
) -> Result<(), DbErr> {
    use integration::Column;
    // Every row exists and is locked, so that each insertion becomes an update.
    let update = OnConflict::column(Column::IntegrationKey)
        .update_columns([
            Column::Revision,
            Column::StatusRevision,
            Column::Status,
            Column::Reason,
            Column::StatusSince,
            Column::NextRetryAt,
            Column::AwsErrorCode,
            Column::AwsRequestId,
            Column::StallSince,
            Column::StallUntil,
            Column::ObservedBeganAt,
        ])
        .to_owned();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let some = rows
            .by_ref()
            .take(ROWS)
            .map(IntoActiveModel::into_active_model);
        integration::Entity::insert_many::<integration::ActiveModel, _>(some)
            .on_conflict(update.clone())
            .exec_without_returning(tx)
            .await?;
    }
    Ok(())
}

/// Replaces an integration by its tombstone.
async fn bury(
    tx: &WriteTransaction<'_>,
    integration_key: i64,
    tombstone: &Tombstone,
) -> Result<(), DbErr> {
    integration::Entity::delete_by_id(integration_key)
        .exec(tx)
        .await?;
    let row = tombstone::Model {
        revision: tombstone.revision as i64,
        organization_id: tombstone.organization_id.as_str().to_owned(),
        integration_id: tombstone.integration_id.to_string(),
        deleted_at: micros(tombstone.deleted_at),
    };
    tombstone::Entity::insert(row.into_active_model())
        .exec_without_returning(tx)
        .await
        .map(drop)
}

/// Forgets the oldest tombstones beyond `max`.
async fn forget_tombstones(tx: &WriteTransaction<'_>, max: usize) -> Result<(), DbErr> {
    use tombstone::{Column::Revision, Entity};
    let newest_forgotten: Option<i64> = Entity::find()
        .select_only()
        .column(Revision)
        .order_by_desc(Revision)
        .offset(max as u64)
        .limit(1)
        .into_tuple()
        .one(tx)
        .await?;
    let Some(floor) = newest_forgotten else {
        return Ok(());
    };
    let forget = Entity::delete_many().filter(Revision.lte(floor));
    forget.exec(tx).await?;
    let floor_before = load_number(tx, meta::TOMBSTONE_FLOOR).await?;
    raise_floor(tx, floor_before.max(floor as u64)).await
}

/// Sets the revision up to which deletions are forgotten.
async fn raise_floor(tx: &WriteTransaction<'_>, floor: u64) -> Result<(), DbErr> {
    let row = meta::Model {
        name: meta::TOMBSTONE_FLOOR.to_owned(),
        value: floor.to_string(),
    };
    let update = OnConflict::column(meta::Column::Name)
        .update_column(meta::Column::Value)
        .to_owned();
    meta::Entity::insert(row.into_active_model())
        .on_conflict(update)
        .exec_without_returning(tx)
        .await
        .map(drop)
}

fn audit_row(
    organization_id: &str,
    integration_id: IntegrationId,
    at: i64,
    caller: &str,
    action: &str,
    detail: Value,
) -> audit::ActiveModel {
    let row = audit::Model {
        audit_id: 0,
        organization_id: organization_id.to_owned(),
        integration_id: integration_id.to_string(),
        at,
        caller: caller.to_owned(),
        action: action.to_owned(),
        detail: detail.to_string(),
    };
    let mut row = row.into_active_model();
    row.audit_id = NotSet;
    row
}

async fn save_audit(tx: &WriteTransaction<'_>, rows: Vec<audit::ActiveModel>) -> Result<(), DbErr> {
    for rows in rows.chunks(ROWS) {
        audit::Entity::insert_many(rows.to_vec())
            .exec_without_returning(tx)
            .await?;
    }
    Ok(())
}

/// Reads a number from `meta`; 0 if it is not there.
pub(super) async fn load_number(db: &impl ConnectionTrait, name: &str) -> Result<u64, DbErr> {
    match meta::Entity::find_by_id(name).one(db).await? {
        Some(row) => parse_meta(&row),
        None => Ok(0),
    }
}

fn parse_meta(row: &meta::Model) -> Result<u64, DbErr> {
    let parsed = row.value.parse();
    parsed.map_err(|_| DbErr::Type(format!("the stored {} is not a number", row.name)))
}

/// Takes the next `count` revisions and returns the first. Until the end of the transaction no
/// other transaction takes one.
async fn next_revisions(tx: &WriteTransaction<'_>, count: u64) -> Result<u64, DbErr> {
    // Eight hexadecimal digits of the file name are the timeline.
    let newest = match tx.get_database_backend() {
        DbBackend::Postgres => format!(
            "GREATEST(CAST(value AS BIGINT), CAST(CAST('x' || \
            LEFT(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS BIT(32)) AS BIGINT) \
            << {TIMELINE_SHIFT})"
        ),
        _ => "CAST(value AS BIGINT)".to_owned(),
    };
    let next = format!("CAST({newest} + {count} AS TEXT)");
    let updated = meta::Entity::update_many()
        .col_expr(meta::Column::Value, Expr::cust(next))
        .filter(meta::Column::Name.eq(meta::REVISION))
        .exec_with_returning(tx)
        .await?;
    let row = updated.first().ok_or(DbErr::RecordNotUpdated)?;
    let before = parse_meta(row)? - count;
    if before > 0 && before.is_multiple_of(1 << TIMELINE_SHIFT) {
        raise_floor(tx, before).await?;
    }
    Ok(before + 1)
}

/// Makes the row of the revision, if there is none: the newest revision of a database from before
/// this row existed is the largest that is stored.
async fn start_revisions(tx: &WriteTransaction<'_>) -> Result<(), DbErr> {
    if meta::Entity::find_by_id(meta::REVISION)
        .one(tx)
        .await?
        .is_some()
    {
        return Ok(());
    }
    let integrations: Option<Option<i64>> = integration::Entity::find()
        .select_only()
        .column_as(integration::Column::Revision.max(), "revision")
        .into_tuple()
        .one(tx)
        .await?;
    let tombstones: Option<Option<i64>> = tombstone::Entity::find()
        .select_only()
        .column_as(tombstone::Column::Revision.max(), "revision")
        .into_tuple()
        .one(tx)
        .await?;
    let floor = load_number(tx, meta::TOMBSTONE_FLOOR).await? as i64;
    let newest = [integrations.flatten(), tombstones.flatten(), Some(floor)];
    let row = meta::Model {
        name: meta::REVISION.to_owned(),
        value: newest.into_iter().flatten().max().unwrap_or(0).to_string(),
    };
    meta::Entity::insert(row.into_active_model())
        .on_conflict_do_nothing()
        .exec_without_returning(tx)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::testing::database;

    const OPTIONS: RegistryOptions = RegistryOptions {
        partitions: 1,
        tombstones: 10,
        failing_after: Duration::from_secs(60),
    };

    #[tokio::test]
    async fn revisions_go_on_after_those_that_are_stored() {
        let db = database().await;
        let row = tombstone::Model {
            revision: 41,
            organization_id: "acme".into(),
            integration_id: IntegrationId(uuid::Uuid::nil()).to_string(),
            deleted_at: 0,
        };
        let row = row.into_active_model();
        let reader = db.reader();
        let inserted = tombstone::Entity::insert(row).exec_without_returning(&reader);
        inserted.await.unwrap();
        for first in [42, 45] {
            // Opened again, it continues.
            SqlRegistry::open(db.clone(), OPTIONS).await.unwrap();
            let tx = db.begin().await.unwrap();
            assert_eq!(next_revisions(&tx, 3).await.unwrap(), first);
            tx.commit().await.unwrap();
        }
    }
}
