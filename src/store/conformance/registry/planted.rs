//! Planted defects, each of which the suite must find.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
};

use async_trait::async_trait;

use super::*;
use crate::{
    domain::{
        audit::{AuditAction, AuditEntry},
        map::Map,
    },
    store::ports::{AuditLimits, AuditQuery, Issue, Plan, Ready, Reseal, ResealPass, Tombstone},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    /// A revision is given before the order of the commits is known: a reader sees later
    /// revisions first.
    EarlyRevision,
    /// An observation of an old version is applied.
    OldVersion,
    /// An observation of an attempt that began before the last one is applied.
    OldAttempt,
    /// A deletion is not among the changes.
    LostDeletion,
    /// Deletions are forgotten without notice.
    NoFloor,
    /// `up_to` is the newest revision although there are more changes.
    TooFar,
    /// An observation is applied again.
    Repeated,
    /// Deletions are missing in the audit.
    UnauditedDeletion,
    /// The audit of an organization has entries of others.
    ForeignAudit,
    /// A page of the audit repeats entries of the time at which the one before ended.
    RepeatedAudit,
    /// Refusals take the share of other entries.
    DisplacingRefusals,
}

const DEFECTS: [Defect; 11] = [
    Defect::EarlyRevision,
    Defect::OldVersion,
    Defect::OldAttempt,
    Defect::LostDeletion,
    Defect::NoFloor,
    Defect::TooFar,
    Defect::Repeated,
    Defect::UnauditedDeletion,
    Defect::ForeignAudit,
    Defect::RepeatedAudit,
    Defect::DisplacingRefusals,
];

struct Faulty {
    inner: Shared,
    defect: Defect,
    /// Revisions that were returned once.
    seen: Mutex<HashSet<u64>>,
}

#[async_trait]
impl Registry for Faulty {
    fn database_id(&self) -> &str {
        self.inner.database_id()
    }

    async fn configure(
        &self,
        organization_id: &OrganizationId,
        plan: &Plan<'_>,
    ) -> Result<Registered, ConfigureError> {
        self.inner.configure(organization_id, plan).await
    }

    async fn check_external_id(
        &self,
        organization_id: &OrganizationId,
        claim: &Claim,
        issued_only: bool,
        now: Timestamp,
    ) -> Result<(), ConfigureError> {
        let checked = self
            .inner
            .check_external_id(organization_id, claim, issued_only, now);
        checked.await
    }

    async fn issue_external_id(
        &self,
        organization_id: &OrganizationId,
        issue: &Issue<'_>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), IssueError> {
        let issued = self
            .inner
            .issue_external_id(organization_id, issue, actor, now);
        issued.await
    }

    async fn retire_previous_external_id(
        &self,
        integration_id: IntegrationId,
        version: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let retired = self
            .inner
            .retire_previous_external_id(integration_id, version, now);
        retired.await
    }

    async fn delete(
        &self,
        organization_id: &OrganizationId,
        etag: Option<&str>,
        actor: &Actor,
    ) -> Result<Option<Tombstone>, ConfigureError> {
        self.inner.delete(organization_id, etag, actor).await
    }

    async fn start_keys(&self, first: &str, now: Timestamp) -> Result<Keys, StoreError> {
        self.inner.start_keys(first, now).await
    }

    async fn keys(&self) -> Result<Keys, StoreError> {
        self.inner.keys().await
    }

    async fn key_usage(&self) -> Result<BTreeMap<Box<str>, u64>, StoreError> {
        self.inner.key_usage().await
    }

    async fn propose_key(&self, key: &str) -> Result<Keys, StoreError> {
        self.inner.propose_key(key).await
    }

    async fn withdraw_key(&self, key: &str) -> Result<Keys, StoreError> {
        self.inner.withdraw_key(key).await
    }

    async fn activate_key(&self, key: &str, ready: &Ready<'_>) -> Result<Keys, StoreError> {
        self.inner.activate_key(key, ready).await
    }

    async fn reseal(&self, pass: &mut ResealPass, reseal: &dyn Reseal) -> Result<(), StoreError> {
        self.inner.reseal(pass, reseal).await
    }

    async fn retire_keys(&self, now: Timestamp) -> Result<Keys, StoreError> {
        self.inner.retire_keys(now).await
    }

    async fn notified_to(&self) -> Result<Option<String>, StoreError> {
        self.inner.notified_to().await
    }

    async fn set_notified_to(&self, token: &str) -> Result<(), StoreError> {
        self.inner.set_notified_to(token).await
    }

    async fn observe(&self, observed: &[Observed]) -> Result<(), StoreError> {
        let mut observed = observed.to_vec();
        match self.defect {
            Defect::OldVersion => {
                let mut versions = Map::default();
                for change in self.inner.changes_after(0, ALL).await?.changes {
                    if let RegistryChange::Current(one) = change {
                        let integration = &one.integration;
                        versions.insert(integration.integration_id, integration.version);
                    }
                }
                for one in &mut observed {
                    one.version = *versions.get(&one.integration_id).unwrap_or(&one.version);
                }
            }
            Defect::OldAttempt => observed.iter_mut().for_each(|one| one.began_at = one.at),
            Defect::Repeated => {
                for one in &observed {
                    self.inner.observe(std::slice::from_ref(one)).await?;
                }
            }
            _ => {}
        }
        self.inner.observe(&observed).await
    }

    async fn record(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        self.inner.record(entries).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        let mut query = query.clone();
        match self.defect {
            Defect::ForeignAudit => query.organizations = None,
            Defect::RepeatedAudit => {
                if let Some(before) = &mut query.before {
                    before.id = i64::MAX;
                }
            }
            _ => {}
        }
        let mut found = self.inner.audit(&query).await?;
        if self.defect == Defect::UnauditedDeletion {
            found.retain(|entry| entry.action != Some(AuditAction::Delete));
        }
        Ok(found)
    }

    async fn prune_audit(
        &self,
        now: Timestamp,
        mut limits: AuditLimits,
    ) -> Result<bool, StoreError> {
        if self.defect == Defect::DisplacingRefusals {
            let everything = AuditQuery {
                organizations: None,
                start: None,
                end: None,
                before: None,
                limit: ALL,
            };
            let all = self.inner.audit(&everything).await?;
            let refused = all.iter().filter(|entry| entry.id < 0).count() as u64;
            limits.max_entries = limits.max_entries.saturating_sub(refused);
        }
        self.inner.prune_audit(now, limits).await
    }

    async fn changes_after(
        &self,
        revision: u64,
        limit: usize,
    ) -> Result<RegistryChanges, StoreError> {
        let mut found = self.inner.changes_after(revision, limit).await?;
        match self.defect {
            Defect::EarlyRevision => {
                let newest = found.up_to;
                let mut seen = self.seen.lock().unwrap();
                found.changes.retain(|change| {
                    let revision = change.revision();
                    // The last one of all is on its way, with one before it.
                    revision + 1 != newest || !seen.insert(revision)
                });
            }
            Defect::LostDeletion => found
                .changes
                .retain(|change| matches!(change, RegistryChange::Current(_))),
            Defect::NoFloor => found.forgotten_to = 0,
            Defect::TooFar if found.more => {
                found.up_to = self.inner.changes_after(revision, ALL).await?.up_to;
            }
            _ => {}
        }
        Ok(found)
    }
}

#[tokio::test]
async fn every_planted_defect_is_found() {
    for defect in DEFECTS {
        let open = async |db: &_| {
            let faulty: Shared = Arc::new(Faulty {
                inner: open_sql(db).await,
                defect,
                seen: Mutex::default(),
            });
            faulty
        };
        let found = suite(database, open).await;
        assert!(found.is_err(), "{defect:?} was not found");
    }
}
