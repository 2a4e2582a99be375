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

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::NotSet,
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, SqlErr,
    sea_query::{Expr, LockType, OnConflict},
};

use super::{
    Database, WriteTransaction, audit,
    entities::{integration, integration_id, meta, micros, tombstone, whole_micros},
    external_ids, keys, load_meta, save_meta,
};
use crate::{
    domain::{
        audit::{
            Actor, AuditAction, AuditChange, AuditEntry, configuration_changes, status_changes,
        },
        integration::IntegrationId,
        map::Map,
        organization::OrganizationId,
        status::{Stall, StatusDetail, observe},
    },
    store::{
        error::{ConfigureError, IssueError, StoreError},
        ports::{
            AuditLimits, AuditQuery, Claim, Issue, Keys, NextRetry, Observed, Plan, Ready,
            Registered, Registry, RegistryChange, RegistryChanges, Reseal, ResealPass, Tombstone,
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

    /// Runs a change of the keys in a transaction.
    async fn change_keys(
        &self,
        change: impl AsyncFnOnce(&WriteTransaction<'_>) -> Result<Keys, DbErr>,
    ) -> Result<Keys, StoreError> {
        let tx = self.db.begin().await?;
        let keys = change(&tx).await.map_err(|error| self.db.map(error))?;
        tx.commit().await?;
        Ok(keys)
    }

    /// Forgets reservations that have lapsed, in transactions that are short. Nothing depends on
    /// them, and those of earlier versions, of which only the hash is known, would keep their key.
    async fn forget_lapsed(&self, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let tx = self.db.begin().await?;
            let forgotten = external_ids::forget_lapsed(&tx, now, keys::STEP).await;
            let forgotten = forgotten.map_err(|error| self.db.map(error))?;
            tx.commit().await?;
            if forgotten < keys::STEP {
                return Ok(());
            }
        }
    }

    fn step_failed(&self, failed: keys::Failed) -> StoreError {
        match failed {
            keys::Failed::Db(error) => self.db.map(error),
            keys::Failed::Store(error) => error,
        }
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
        let keys = keys::lock(&tx, LockType::Share).await.map_err(db_error)?;
        let planned = plan(existing.as_ref(), &keys.unwrap_or_default())?;
        let revision = next_revisions(&tx, 1).await.map_err(db_error)?;
        let refusal = external_ids::refusal(
            &tx,
            organization_id,
            &planned.claim,
            planned.issued_only,
            planned.integration.updated_at,
        );
        if let Some(refusal) = refusal.await.map_err(db_error)? {
            return Err(refusal);
        }
        for claim in [&planned.claim].into_iter().chain(&planned.previous_claim) {
            let configured = external_ids::configured(&tx, claim).await;
            configured.map_err(db_error)?;
        }
        let changed = planned.changed.clone();
        let action = match &changed {
            None => AuditAction::Create,
            Some(_) => AuditAction::Replace,
        };
        let integration = &planned.integration;
        let changes = configuration_changes(
            existing.as_ref().map(|before| &*before.integration),
            Some(integration),
            changed
                .as_ref()
                .is_none_or(|changed| changed.contains(&"external_id")),
        );
        let (actor, at) = (planned.actor.clone(), integration.updated_at);
        let audited = AuditEntry::new(action, actor, organization_id.as_str(), at)
            .about(integration.integration_id, changes);
        let audited = audit::save_configure(&tx, audited).await;
        audited.map_err(db_error)?;
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
        claim: &Claim,
        issued_only: bool,
        now: Timestamp,
    ) -> Result<(), ConfigureError> {
        let db = self.db.reader();
        let refusal = external_ids::refusal(&db, organization_id, claim, issued_only, now);
        let refusal = refusal.await.map_err(|error| self.db.map(error))?;
        refusal.map_or(Ok(()), Err)
    }

    async fn issue_external_id(
        &self,
        organization_id: &OrganizationId,
        issue: &Issue<'_>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), IssueError> {
        let db_error = |error| self.db.map(error);
        let tx = self.db.begin().await?;
        let keys = keys::lock(&tx, LockType::Share).await.map_err(db_error)?;
        lock_revision(&tx).await.map_err(db_error)?;
        let claim = issue(&keys.unwrap_or_default())?;
        let issued = external_ids::issue(&tx, organization_id, claim, now);
        if !issued.await.map_err(db_error)? {
            return Err(IssueError::TooMany);
        }
        let action = AuditAction::IssueExternalId;
        let audited = AuditEntry::new(action, actor.clone(), organization_id.as_str(), now);
        audit::save(&tx, &[audited]).await.map_err(db_error)?;
        Ok(tx.commit().await?)
    }

    async fn retire_previous_external_id(
        &self,
        integration_id: IntegrationId,
        version: u64,
        now: Timestamp,
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
        let action = AuditAction::ExternalIdTookOver;
        let at = whole_micros(now);
        let audited = AuditEntry::new(action, Actor::service(), &row.organization_id, at).about(
            integration_id,
            vec![AuditChange::new("previous_external_id", "in use", "")],
        );
        audit::save(&tx, &[audited]).await.map_err(db_error)?;
        row.revision = next_revisions(&tx, 1).await.map_err(db_error)? as i64;
        update(&tx, row).await.map_err(db_error)?;
        tx.commit().await
    }

    async fn delete(
        &self,
        organization_id: &OrganizationId,
        etag: Option<&str>,
        actor: &Actor,
    ) -> Result<Option<Tombstone>, ConfigureError> {
        let db_error = |error| self.db.map(error);
        let tx = self.db.begin().await?;
        let row = find(&tx, organization_id).await.map_err(db_error)?;
        if let (Some(row), Some(etag)) = (&row, etag) {
            let stored = Registered::try_from(row.clone())?;
            if stored.integration.etag() != etag {
                return Err(ConfigureError::EtagMismatch);
            }
        }
        // Before rows that GenerateExternalId, which has this lock, may delete as well.
        lock_revision(&tx).await.map_err(db_error)?;
        let released = external_ids::release(&tx, organization_id);
        let released = released.await.map_err(db_error)?;
        let deleted_at = whole_micros(Timestamp::now());
        let Some(row) = row else {
            if released > 0 {
                let (action, name) = (AuditAction::Delete, organization_id.as_str());
                let audited = AuditEntry::new(action, actor.clone(), name, deleted_at);
                audit::save(&tx, &[audited]).await.map_err(db_error)?;
            }
            tx.commit().await?;
            return Ok(None);
        };
        let id = integration_id(&row.integration_id)?;
        let integration_key = row.integration_key;
        // One that cannot be read can be deleted.
        let deleted = Registered::try_from(row).ok();
        let deleted = deleted.as_ref().map(|deleted| &*deleted.integration);
        let action = AuditAction::Delete;
        let changes = configuration_changes(deleted, None, true);
        let organization = organization_id.as_str();
        let audited =
            AuditEntry::new(action, actor.clone(), organization, deleted_at).about(id, changes);
        audit::save(&tx, &[audited]).await.map_err(db_error)?;
        let tombstone = Tombstone {
            revision: next_revisions(&tx, 1).await.map_err(db_error)?,
            organization_id: organization_id.clone(),
            integration_id: id,
            deleted_at,
        };
        bury(&tx, integration_key, &tombstone)
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
            let Some(folded) = folds.remove(&id).and_then(|fold| fold.finish(id)) else {
                continue;
            };
            revised += u64::from(folded.changes != Changes::Times);
            audited.extend(folded.audit);
            rows.push((folded.row, folded.changes));
        }
        if rows.is_empty() {
            return Ok(());
        }
        audit::save(&tx, &audited).await.map_err(db_error)?;
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

    async fn record(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let tx = self.db.begin().await?;
        let saved = audit::save(&tx, entries).await;
        saved.map_err(|error| self.db.map(error))?;
        tx.commit().await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        audit::list(&self.db, query).await
    }

    async fn prune_audit(&self, now: Timestamp, limits: AuditLimits) -> Result<bool, StoreError> {
        audit::prune(&self.db, now, limits).await
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

    async fn start_keys(&self, first: &str, now: Timestamp) -> Result<Keys, StoreError> {
        self.forget_lapsed(now).await?;
        self.change_keys(async |tx| keys::start(tx, first).await)
            .await
    }

    async fn keys(&self) -> Result<Keys, StoreError> {
        let keys = keys::load(&self.db.reader()).await;
        keys.map_err(|error| self.db.map(error))
    }

    async fn key_usage(&self) -> Result<BTreeMap<Box<str>, u64>, StoreError> {
        let usage = keys::usage(&self.db.reader()).await;
        usage.map_err(|error| self.db.map(error))
    }

    async fn propose_key(&self, key: &str) -> Result<Keys, StoreError> {
        self.change_keys(async |tx| keys::propose(tx, key).await)
            .await
    }

    async fn withdraw_key(&self, key: &str) -> Result<Keys, StoreError> {
        self.change_keys(async |tx| keys::withdraw(tx, key).await)
            .await
    }

    async fn activate_key(&self, key: &str, ready: &Ready<'_>) -> Result<Keys, StoreError> {
        loop {
            let tx = self.db.begin().await?;
            let all_named = keys::name_active(&tx).await;
            let all_named = all_named.map_err(|error| self.db.map(error))?;
            tx.commit().await?;
            if !all_named {
                continue;
            }
            let tx = self.db.begin().await?;
            let activated = keys::activate(&tx, key, ready).await;
            if let Some(keys) = activated.map_err(|failed| self.step_failed(failed))? {
                tx.commit().await?;
                return Ok(keys);
            }
        }
    }

    async fn reseal(&self, pass: &mut ResealPass, reseal: &dyn Reseal) -> Result<(), StoreError> {
        let mut next = pass.clone();
        let tx = self.db.begin().await?;
        keys::reseal(&tx, &mut next, reseal)
            .await
            .map_err(|failed| self.step_failed(failed))?;
        tx.commit().await?;
        *pass = next;
        Ok(())
    }

    async fn retire_keys(&self, now: Timestamp) -> Result<Keys, StoreError> {
        self.forget_lapsed(now).await?;
        self.change_keys(async |tx| keys::retire(tx).await).await
    }

    async fn notified_to(&self) -> Result<Option<String>, StoreError> {
        let token = load_meta(&self.db.reader(), meta::NOTIFIED_TO).await;
        token.map_err(|error| self.db.map(error))
    }

    async fn set_notified_to(&self, token: &str) -> Result<(), StoreError> {
        let tx = self.db.begin().await?;
        let saved = save_meta(&tx, meta::NOTIFIED_TO, token).await;
        saved.map_err(|error| self.db.map(error))?;
        tx.commit().await
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
    /// Entry of the audit, if the status changes.
    audit: Option<AuditEntry>,
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
    fn finish(mut self, id: IntegrationId) -> Option<Folded> {
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
            let organization_id = &self.row.organization_id;
            AuditEntry::new(
                AuditAction::Status,
                Actor::service(),
                organization_id,
                status.since,
            )
            .about(id, status_changes(&self.before, status))
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
pub(super) async fn find_all(
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
pub(super) async fn update(
    tx: &WriteTransaction<'_>,
    row: integration::Model,
) -> Result<(), DbErr> {
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

/// Waits until no other transaction takes revisions or gives external IDs, and prevents that until
/// the end of this one.
async fn lock_revision(tx: &WriteTransaction<'_>) -> Result<(), DbErr> {
    meta::Entity::find_by_id(meta::REVISION)
        .lock_exclusive()
        .one(tx)
        .await
        .map(drop)
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
