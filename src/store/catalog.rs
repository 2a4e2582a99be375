//! The registry and its replica in memory. The replica is fed by the registry alone, also with
//! changes that this instance made, so that it never shows what is not committed.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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
    audit::Actor,
    integration::IntegrationId,
    map::Map,
    organization::OrganizationId,
    status::{Observation, Stall, Status, observe},
};

/// Changes that are read from the registry at once.
const PAGE: usize = 1000;
/// Time between attempts to read the registry after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Reads without a revision after which it counts as lost.
const MISSING: u32 = 10;

/// See the module.
pub(super) struct Catalog {
    registry: Arc<dyn Registry>,
    replica: Replica,
    work: Arc<WorkFeed>,
    /// Held while the replica is brought up to date, so that changes are applied in order.
    refreshing: Mutex<()>,
    /// Number of reads of the registry that began, and of the last of them that succeeded.
    reads: AtomicU64,
    last_success: AtomicU64,
    /// Deleted integrations, with the revision of the deletion, until their calls have ended.
    ending: std::sync::Mutex<Map<IntegrationId, u64>>,
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
            reads: AtomicU64::new(0),
            last_success: AtomicU64::new(0),
            ending: std::sync::Mutex::default(),
            failing_after,
            failure: OnceLock::new(),
            failed: CancellationToken::new(),
        };
        catalog.read_changes(|_| (), |_| ()).await?;
        Ok(catalog)
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.replica
    }

    pub(super) fn registry(&self) -> &dyn Registry {
        &*self.registry
    }

    /// Brings the replica up to date with what was committed before the call. Calls that wait at
    /// the same time share a read.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        let configured = |id| self.work.configured(id);
        self.read_changes(configured, |id| self.work.deleted(id))
            .await
    }

    /// Reads the whole registry again, because what was read before may have been taken back.
    pub(super) async fn reload(&self) -> Result<(), StoreError> {
        {
            // A read under way would otherwise add its changes to the empty replica.
            let _refreshing = self.refreshing.lock().await;
            self.replica.rebuild();
            // Its result is outdated: the next refresh reads.
            self.last_success.store(0, Ordering::Release);
        }
        self.refresh().await
    }

    fn ending(&self) -> MutexGuard<'_, Map<IntegrationId, u64>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that no call is in flight for a deleted integration, and none will start.
    pub(super) fn ended(&self, id: IntegrationId) {
        self.ending().remove(&id);
    }

    /// Revision up to which no calls are made for deleted integrations.
    pub(super) fn confirmed(&self) -> u64 {
        let ending = self.ending();
        let applied = self.replica.applied();
        let first = ending.values().min();
        first.map_or(applied, |first| applied.min(first - 1))
    }

    async fn read_changes(
        &self,
        configured: impl Fn(IntegrationId),
        deleted: impl Fn(IntegrationId),
    ) -> Result<(), StoreError> {
        let before = self.reads.load(Ordering::Acquire);
        let _refreshing = self.refreshing.lock().await;
        if self.last_success.load(Ordering::Acquire) > before {
            return Ok(());
        }
        let read = self.reads.fetch_add(1, Ordering::AcqRel) + 1;
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
            let applied = {
                // A deletion is confirmed only after its calls have ended.
                let mut ending = self.ending();
                let applied = self.replica.apply(changes);
                ending.extend(applied.deleted.iter().copied());
                applied
            };
            applied.deleted.iter().for_each(|(id, _)| deleted(*id));
            new_versions.into_iter().for_each(&configured);
            if applied.is_complete {
                self.last_success.store(read, Ordering::Release);
                return Ok(());
            }
        }
    }

    /// Waits until the replica has applied a revision.
    pub(super) async fn wait_for(&self, revision: u64) {
        let mut missing = 0;
        while self.replica.applied() < revision && !self.failed.is_cancelled() {
            match self.refresh().await {
                Ok(()) if self.replica.applied() >= revision => return,
                // A database shows every commit that it has confirmed, unless a promotion took it back.
                Ok(()) if missing == MISSING => {
                    tracing::error!(revision, "the registry has lost a revision");
                    return;
                }
                Ok(()) => missing += 1,
                Err(StoreError::Closed) => return,
                Err(error) => tracing::error!(%error, "cannot read the registry"),
            }
            tokio::time::sleep(RETRY).await;
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
        etag: Option<&str>,
        actor: &Actor,
    ) -> Result<Option<Tombstone>, ConfigureError> {
        let deleted = self.registry.delete(organization_id, etag, actor).await?;
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
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.registry
            .retire_previous_external_id(id, version, now)
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
