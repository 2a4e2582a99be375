//! Planted defects, each of which the suite must find.

use std::{collections::HashSet, sync::Mutex};

use async_trait::async_trait;

use super::*;
use crate::{
    domain::map::Map,
    store::ports::{Plan, Tombstone},
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
}

const DEFECTS: [Defect; 7] = [
    Defect::EarlyRevision,
    Defect::OldVersion,
    Defect::OldAttempt,
    Defect::LostDeletion,
    Defect::NoFloor,
    Defect::TooFar,
    Defect::Repeated,
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
        fingerprint: &[u8],
        issued_only: bool,
    ) -> Result<(), ConfigureError> {
        let checked = self
            .inner
            .check_external_id(organization_id, fingerprint, issued_only);
        checked.await
    }

    async fn issue_external_id(
        &self,
        organization_id: &OrganizationId,
        fingerprint: &[u8],
    ) -> Result<(), StoreError> {
        let issued = self.inner.issue_external_id(organization_id, fingerprint);
        issued.await
    }

    async fn retire_previous_external_id(
        &self,
        integration_id: IntegrationId,
        version: u64,
    ) -> Result<(), StoreError> {
        let retired = self
            .inner
            .retire_previous_external_id(integration_id, version);
        retired.await
    }

    async fn delete(
        &self,
        organization_id: &OrganizationId,
        caller: &str,
    ) -> Result<Option<Tombstone>, StoreError> {
        self.inner.delete(organization_id, caller).await
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
