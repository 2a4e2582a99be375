//! The registry and its replica in memory. The replica is fed by the registry alone, also with
//! changes that this instance made, so that it never shows what is not committed.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    ConfigureError, Failure, StoreError,
    ports::{NextRetry, Observed, Plan, Registered, Registry, RegistryChange, Tombstone},
    queue::Times,
    replica::Replica,
    work::WorkFeed,
};
use crate::domain::{
    integration::IntegrationId,
    organization::OrganizationId,
    status::{Observation, Stall, Status, observe},
};

/// Changes that are read from the registry at once.
const PAGE: usize = 1000;
/// Time between attempts to read the registry after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Catalog {
    registry: Arc<dyn Registry>,
    replica: Replica,
    work: Arc<WorkFeed>,
    /// Held while the replica is brought up to date, so that changes are applied in order.
    refreshing: Mutex<()>,
    failing_after: Duration,
    failure: OnceLock<Failure>,
    failed: CancellationToken,
}

impl Catalog {
    /// Loads the registry. `failing_after` is the time without a delivery after which
    /// throttling or an outage becomes the status.
    pub(super) async fn load(
        registry: Arc<dyn Registry>,
        work: Arc<WorkFeed>,
        failing_after: Duration,
    ) -> Result<Self, StoreError> {
        let catalog = Self {
            registry,
            replica: Replica::default(),
            work,
            refreshing: Mutex::default(),
            failing_after,
            failure: OnceLock::new(),
            failed: CancellationToken::new(),
        };
        catalog.read_changes(|_| ()).await?;
        Ok(catalog)
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.replica
    }

    pub(super) fn registry(&self) -> &dyn Registry {
        &*self.registry
    }

    /// Brings the replica up to date.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        self.read_changes(|id| self.work.configured(id)).await
    }

    async fn read_changes(&self, configured: impl Fn(IntegrationId)) -> Result<(), StoreError> {
        let _refreshing = self.refreshing.lock().await;
        loop {
            let after = self.replica.cursor();
            let changes = self.registry.changes_after(after, PAGE).await?;
            let new_versions: Vec<IntegrationId> = changes
                .changes
                .iter()
                .filter_map(|change| match change {
                    RegistryChange::Current(current) => {
                        let integration = &current.integration;
                        let known = self.replica.version(integration.integration_id);
                        (known != Some(integration.version)).then_some(integration.integration_id)
                    }
                    RegistryChange::Deleted(_) => None,
                })
                .collect();
            let is_complete = self.replica.apply(changes);
            new_versions.into_iter().for_each(&configured);
            if is_complete {
                return Ok(());
            }
        }
    }

    /// Waits until the replica has applied a revision.
    pub(super) async fn wait_for(&self, revision: u64) {
        while self.replica.applied() < revision && !self.failed.is_cancelled() {
            if let Err(error) = self.refresh().await {
                if matches!(error, StoreError::Closed) {
                    return;
                }
                tracing::error!(%error, "cannot read the registry");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    pub(super) async fn configure(
        &self,
        organization_id: &OrganizationId,
        plan: &Plan<'_>,
    ) -> Result<Registered, ConfigureError> {
        let stored = self.registry.configure(organization_id, plan).await?;
        self.refresh().await?;
        Ok(stored)
    }

    pub(super) async fn delete(
        &self,
        organization_id: &OrganizationId,
        caller: &str,
    ) -> Result<Option<Tombstone>, StoreError> {
        let deleted = self.registry.delete(organization_id, caller).await?;
        match &deleted {
            // From here on the deletion must be finished.
            Some(tombstone) => self.wait_for(tombstone.revision).await,
            None => self.refresh().await?,
        }
        Ok(deleted)
    }

    pub(super) async fn retire_previous_external_id(
        &self,
        id: IntegrationId,
        version: u64,
    ) -> Result<(), StoreError> {
        self.registry
            .retire_previous_external_id(id, version)
            .await?;
        self.refresh().await
    }

    /// Records observations.
    pub(super) async fn observe(&self, observed: &[Observed]) -> Result<(), StoreError> {
        self.registry.observe(observed).await?;
        self.refresh().await
    }

    /// Whether an observation changes status or reason, as far as this instance knows.
    pub(super) fn would_change_status(&self, observed: &Observed) -> bool {
        let changes = self.replica.look(observed.integration_id, |registered| {
            let mut stall = registered.stall;
            let status = &registered.status;
            let next = observe(
                status,
                &mut stall,
                self.failing_after,
                observed.at,
                &observed.observation,
            );
            status.is_change(&next)
        });
        changes == Some(true)
    }

    /// Whether the registry would store anything of an observation, as far as this instance
    /// knows.
    pub(super) fn would_record(&self, observed: &Observed) -> bool {
        let records = self.replica.look(observed.integration_id, |registered| {
            let status = &registered.status;
            let is_well = status.status == Status::Active
                && status.next_retry.is_none()
                && status.aws_error_code.is_none()
                && registered.stall == Stall::default();
            !(is_well && observed.is_well())
        });
        records == Some(true)
    }

    /// Spawns a task of the store, whose panic ends the store instead of going unnoticed.
    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let catalog = Arc::clone(self);
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                catalog.fail(&StoreError::Failed("a task of the store panicked".into()));
            }
        });
    }

    /// Ends the store after an error that it cannot continue from.
    pub(super) fn fail(&self, error: &StoreError) {
        tracing::error!(%error, "the store cannot continue");
        self.failure.get_or_init(|| match error {
            StoreError::Corrupt(problem) => Failure::Damaged(problem.clone()),
            error => Failure::Lost(error.to_string()),
        });
        self.failed.cancel();
    }

    /// Returns the reason once the store cannot continue.
    pub(super) async fn failed(&self) -> Option<Failure> {
        self.failed.cancelled().await;
        self.failure.get().cloned()
    }
}

impl Observed {
    /// Whether it shows only that events are delivered.
    fn is_well(&self) -> bool {
        self.observation == Observation::Accepted && self.next_retry == NextRetry::None
    }

    /// Whether both show only that events are delivered, with the same configuration.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.version == other.version && self.is_well() && other.is_well()
    }

    /// Whether an attempt that began later has succeeded, so that this one shows nothing new.
    pub(super) fn is_outdated(&self, times: &Times) -> bool {
        times.version == self.version && times.accepted_began_at > Some(self.began_at)
    }

    /// Updates the times of attempts.
    pub(super) fn note_times(&self, times: &mut Times) {
        if matches!(self.observation, Observation::Stalled(_)) {
            return;
        }
        let at = Timestamp::from_microsecond(self.at.as_microsecond()).unwrap_or(self.at);
        if times.version != self.version {
            times.accepted_began_at = None;
        }
        times.version = self.version;
        times.last_attempt = Some(at);
        if self.observation == Observation::Accepted {
            times.last_delivery = Some(at);
            times.accepted_began_at = times.accepted_began_at.max(Some(self.began_at));
        }
    }
}
