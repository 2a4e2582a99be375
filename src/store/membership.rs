//! Membership of this instance: which partitions it owns, and until when. It starts and stops the
//! owners of partitions, and ends calls for which the right has lapsed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    StoreError, StoreOptions,
    partition::{self, Owner, Partitions},
    ports::{Lease, Membership as Polled, NextRetry, Observed, Ownership, Partition},
};
use crate::{
    boot_time::BootTime,
    domain::{
        integration::IntegrationId,
        map::{Map, Set},
        status::{Cause, Fault, Observation, Reason, Stage},
    },
    gate::Gate,
    metrics,
};

/// Time between polls while something happens.
const POLL: Duration = Duration::from_millis(100);
/// Time between polls otherwise.
const IDLE_POLL: Duration = Duration::from_secs(1);
/// Time without events and configurations after which an instance is idle.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// Time until a partition whose owner could not start is tried again.
const START_RETRY: Duration = Duration::from_secs(1);
/// Statuses of integrations that are recorded at once.
const REPORTED: usize = 500;
/// Longest wait for the calls of a partition that is given back. Later ones are cancelled.
const DRAIN: Duration = Duration::from_secs(5);
/// Time between attempts to write what is pending of a partition that is given back.
const WRITE_RETRY: Duration = Duration::from_millis(100);
/// Time between two looks at the size of all backlogs.
const LOOK_AT_BACKLOGS: Duration = Duration::from_secs(5);
/// Time before the end of the lease at which all calls end: nothing that the system sends for them
/// later may reach AWS after it.
const MARGIN: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Membership {
    ownership: Arc<dyn Ownership>,
    of_owners: partition::Shared,
    partitions: Arc<Partitions>,
    gate: Gate,
    /// Time without an owner that works after which the statuses of a partition show it.
    stalled_after: Duration,
    /// Limit on the bytes of all backlogs.
    backlog_bytes: u64,
    /// Bytes of all backlogs that were seen last.
    stored_backlogs: AtomicU64,
    health: watch::Sender<Health>,
    /// Time until which calls may be made; None without a limit.
    until: watch::Sender<Option<BootTime>>,
    /// Revision that all living instances have confirmed.
    confirmed: watch::Sender<u64>,
    state: Mutex<State>,
    /// Held while calls are ended or allowed again.
    switching: tokio::sync::Mutex<()>,
    /// Polls at once.
    wake: Notify,
    closing: CancellationToken,
}

struct State {
    /// History of the database that is known.
    timeline: u32,
    /// Partitions whose owner is being started or stopped.
    changing: Set<Partition>,
    /// Time from which on the owner of a partition could not start.
    failing_since: Map<Partition, Instant>,
    /// Those of which this was recorded in the statuses.
    reported: Set<Partition>,
    /// Partitions that cannot be delivered, under their epochs.
    given_up: Map<Partition, u64>,
    /// Time at which the lease lapsed and calls were ended.
    suspended_at: Option<Instant>,
    /// Number of partitions that was logged last.
    logged: usize,
    active_at: Instant,
}

/// Trouble of this instance with shared storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Its lease has lapsed: it accepts and delivers nothing.
    pub has_lapsed: bool,
    /// Partitions that it does not deliver because their log is corrupt.
    pub given_up: usize,
    /// The backlogs of all integrations have reached their limit: events of integrations that
    /// cannot be delivered are refused.
    pub is_over: bool,
    /// They are a quarter above it: it accepts nothing.
    pub is_full: bool,
    /// The database has not answered the last poll.
    pub is_silent: bool,
}

impl Membership {
    /// Joins, and starts the owners of partitions. An instance that shares nothing starts all of
    /// them before this returns, and fails if one cannot be started.
    pub(super) async fn start(
        ownership: Arc<dyn Ownership>,
        of_owners: partition::Shared,
        failures: mpsc::UnboundedReceiver<(Lease, StoreError)>,
        partitions: Arc<Partitions>,
        gate: Gate,
        options: &StoreOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let polled = ownership.poll(of_owners.catalog.confirmed()).await?;
        let membership = Arc::new(Self {
            ownership,
            of_owners,
            partitions,
            gate,
            stalled_after: options.failing_after,
            backlog_bytes: options.backlog_bytes,
            stored_backlogs: AtomicU64::new(0),
            health: watch::Sender::new(Health::default()),
            until: watch::Sender::new(polled.until),
            confirmed: watch::Sender::new(polled.confirmed),
            state: Mutex::new(State {
                timeline: polled.timeline,
                changing: Set::default(),
                failing_since: Map::default(),
                reported: Set::default(),
                given_up: Map::default(),
                suspended_at: None,
                logged: 0,
                active_at: Instant::now(),
            }),
            switching: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            closing: CancellationToken::new(),
        });
        let catalog = &membership.of_owners.catalog;
        if polled.until.is_none() {
            for lease in polled.leases {
                let owner = Owner::start(membership.of_owners.clone(), lease).await?;
                membership.admit(owner);
            }
            catalog.spawn(Arc::clone(&membership).end_on_failure(failures));
        } else {
            membership.apply(polled).await;
            catalog.spawn(Arc::clone(&membership).run(failures));
            catalog.spawn(Arc::clone(&membership).watch_deadline());
            catalog.spawn(Arc::clone(&membership).watch_backlogs());
        }
        Ok(membership)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the ownership is shared with other instances.
    pub(super) fn is_shared(&self) -> bool {
        self.until.borrow().is_some()
    }

    /// Whether this instance has lost contact with the others, so that nothing that it knows is
    /// certain, and no call may start.
    pub(super) fn has_lapsed(&self) -> bool {
        let until = *self.until.borrow();
        until.is_some_and(|until| until <= BootTime::now() + MARGIN)
    }

    /// Time until the lease ends; None without a limit.
    pub(super) fn lease_left(&self) -> Option<Duration> {
        let until = *self.until.borrow();
        until.map(|until| until.since(BootTime::now()))
    }

    /// Bytes of all backlogs as they are stored, and the limit on them; None if nothing is shared.
    pub(super) fn stored_backlogs(&self) -> Option<(u64, u64)> {
        let stored = self.stored_backlogs.load(Ordering::Relaxed);
        self.is_shared().then_some((stored, self.backlog_bytes))
    }

    /// History of the database, which resume tokens name.
    pub(super) fn timeline(&self) -> u32 {
        self.lock().timeline
    }

    /// Notes that something happens, so that others are asked more often.
    pub(super) fn touch(&self) {
        if self.is_shared() {
            self.lock().active_at = Instant::now();
        }
    }

    /// Polls at once.
    pub(super) fn poll_now(&self) {
        self.wake.notify_one();
    }

    /// Waits until no living instance makes calls for what was deleted up to a revision.
    pub(super) async fn wait_for_confirmation(&self, revision: u64) {
        self.poll_now();
        let mut confirmed = self.confirmed.subscribe();
        let is_shared = self.is_shared();
        // The sender is a field of this value.
        let _confirmed = confirmed
            .wait_for(|confirmed| !is_shared || *confirmed >= revision)
            .await;
    }

    /// Ends the store if the only instance has an owner that cannot continue.
    async fn end_on_failure(
        self: Arc<Self>,
        mut failures: mpsc::UnboundedReceiver<(Lease, StoreError)>,
    ) {
        if let Some((_, error)) = failures.recv().await {
            self.of_owners.catalog.fail(&error);
        }
    }

    async fn run(self: Arc<Self>, mut failures: mpsc::UnboundedReceiver<(Lease, StoreError)>) {
        let mut fails = false;
        loop {
            let is_idle = self.lock().active_at.elapsed() > IDLE_AFTER;
            tokio::select! {
                () = sleep(if is_idle { IDLE_POLL } else { POLL }) => {}
                () = self.wake.notified() => {}
                Some((lease, error)) = failures.recv() => {
                    self.failed(lease, &error).await;
                    continue;
                }
                () = self.closing.cancelled() => return,
            }
            let polled = self
                .ownership
                .poll(self.of_owners.catalog.confirmed())
                .await;
            if self.closing.is_cancelled() {
                return;
            }
            match polled {
                Ok(polled) => {
                    if std::mem::take(&mut fails) {
                        self.set_health(|health| health.is_silent = false);
                        tracing::info!("the database answers again");
                    }
                    self.apply(polled).await;
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        self.set_health(|health| health.is_silent = true);
                        tracing::error!(%error, "cannot renew the lease of this instance; deliveries end with it");
                    }
                }
            }
        }
    }

    async fn apply(self: &Arc<Self>, polled: Polled) {
        let catalog = &self.of_owners.catalog;
        let timeline = self.lock().timeline;
        if polled.timeline != timeline {
            tracing::warn!(
                timeline = polled.timeline,
                "the database continues on another timeline: everything is read again"
            );
            for owner in self.partitions.all() {
                self.lose(&owner).await;
            }
            if let Err(error) = catalog.reload().await {
                tracing::error!(%error, "cannot read the registry");
                return;
            }
            self.lock().timeline = polled.timeline;
        }
        if self.has_lapsed() {
            // Others have gone on without this instance: it knows what they did before it does
            // anything.
            if let Err(error) = catalog.refresh().await {
                tracing::error!(%error, "cannot read the registry");
                return;
            }
        }
        self.until.send_replace(polled.until);
        self.confirmed.send_replace(polled.confirmed);
        if polled.revision > catalog.replica().applied() {
            self.touch();
            let follow = Arc::clone(catalog);
            catalog.spawn(async move {
                if let Err(error) = follow.refresh().await {
                    // The next poll tries again.
                    tracing::warn!(%error, "cannot read the registry");
                }
            });
        }
        for owner in self.partitions.all() {
            if !polled.leases.contains(&owner.lease) && self.begin(owner.lease.partition) {
                tracing::info!(
                    partition = owner.lease.partition,
                    "another instance owns the partition"
                );
                self.lose(&owner).await;
                self.end(owner.lease.partition);
            }
        }
        self.resume().await;
        self.forget_given_up(&polled.leases);
        let owned: Set<Partition> = self
            .partitions
            .all()
            .iter()
            .map(|owner| owner.lease.partition)
            .collect();
        for lease in polled.leases {
            let is_given_up = self.lock().given_up.get(&lease.partition) == Some(&lease.epoch);
            if !owned.contains(&lease.partition) && !is_given_up && self.begin(lease.partition) {
                catalog.spawn(Arc::clone(self).start_owner(lease));
            }
        }
        self.log_partitions(owned.len());
        for partition in polled.to_release {
            let mut owners = self.partitions.all().into_iter();
            if let Some(owner) = owners.find(|owner| owner.lease.partition == partition)
                && self.begin(partition)
            {
                catalog.spawn(Arc::clone(self).release(owner));
            }
        }
    }

    /// Forgets partitions that are not this instance's any more, or under another epoch: their
    /// log may have been repaired.
    fn forget_given_up(&self, leases: &[Lease]) {
        let mut state = self.lock();
        if state.given_up.is_empty() {
            return;
        }
        state.given_up.retain(|partition, epoch| {
            leases.contains(&Lease {
                partition: *partition,
                epoch: *epoch,
            })
        });
        let given_up = state.given_up.len();
        self.set_health(|health| health.given_up = given_up);
    }

    fn log_partitions(&self, owned: usize) {
        let mut state = self.lock();
        if state.changing.is_empty() && state.logged != owned {
            state.logged = owned;
            tracing::info!(partitions = owned, "this instance delivers for partitions");
        }
    }

    /// Begins to start or stop an owner. Returns false if that is under way.
    fn begin(&self, partition: Partition) -> bool {
        self.lock().changing.insert(partition)
    }

    fn end(&self, partition: Partition) {
        self.lock().changing.remove(&partition);
    }

    /// Takes in a new owner, and begins to deliver for it.
    fn admit(&self, owner: Arc<Owner>) {
        let mut state = self.lock();
        state.failing_since.remove(&owner.lease.partition);
        state.reported.remove(&owner.lease.partition);
        owner.set_delivers(state.suspended_at.is_none());
        metrics::TAKEOVERS.add(1);
        self.partitions.insert(Arc::clone(&owner));
        drop(state);
        if owner.has_failed() && self.is_shared() {
            // Its failure came before it could be found. The next poll starts another.
            self.partitions.remove(owner.lease);
            owner.stop();
            return;
        }
        owner.discard_deleted();
        owner.announce();
    }

    async fn start_owner(self: Arc<Self>, lease: Lease) {
        let partition = lease.partition;
        match Owner::start(self.of_owners.clone(), lease).await {
            Ok(owner) => {
                tracing::debug!(
                    partition,
                    epoch = lease.epoch,
                    "this instance delivers for the partition"
                );
                self.admit(owner);
            }
            Err(StoreError::Fenced | StoreError::Closed) => {}
            Err(error) => {
                self.give_up_if_corrupt(lease, &error);
                sleep(START_RETRY).await;
            }
        }
        self.end(partition);
        self.poll_now();
    }

    fn give_up_if_corrupt(self: &Arc<Self>, lease: Lease, error: &StoreError) {
        let partition = lease.partition;
        match error {
            StoreError::Corrupt(problem) => {
                tracing::error!(
                    partition,
                    problem,
                    "nothing of the partition is delivered: docs/operations.md says what to do"
                );
                let mut state = self.lock();
                state.given_up.insert(partition, lease.epoch);
                let given_up = state.given_up.len();
                self.set_health(|health| health.given_up = given_up);
                drop(state);
                let catalog = &self.of_owners.catalog;
                let unreadable = Fault::unanswered(Stage::Write, Cause::LogUnreadable);
                let observation = Observation::Failed(unreadable);
                catalog.spawn(Arc::clone(self).report(partition, observation));
            }
            error => self.note_failed_start(partition, error),
        }
    }

    /// Trouble of this instance, as it changes.
    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn set_health(&self, set: impl FnOnce(&mut Health)) {
        self.health.send_if_modified(|health| {
            let before = *health;
            set(health);
            *health != before
        });
    }

    /// Returns once the lease has been lapsed for a time.
    pub(super) async fn lapsed_for(&self, time: Duration) {
        let mut health = self.health.subscribe();
        loop {
            let lapsed = health.wait_for(|health| health.has_lapsed).await.is_ok();
            let since = self.lock().suspended_at;
            match (lapsed, since) {
                (true, Some(since)) => {
                    tokio::select! {
                        () = sleep_until(since + time) => return,
                        _changed = health.wait_for(|health| !health.has_lapsed) => {}
                    }
                }
                // It is renewed at this moment.
                (true, None) => tokio::task::yield_now().await,
                // The sender is a field of this value.
                (false, _) => return,
            }
        }
    }

    /// Notes that the owner of a partition could not start. If that lasts, no status shows it.
    fn note_failed_start(self: &Arc<Self>, partition: Partition, error: &StoreError) {
        let mut state = self.lock();
        let now = Instant::now();
        let since = *state.failing_since.entry(partition).or_insert(now);
        if since == now {
            tracing::error!(partition, %error, "cannot deliver for the partition; it is tried again");
        }
        if since.elapsed() >= self.stalled_after && state.reported.insert(partition) {
            tracing::error!(partition, %error, "nothing of the partition is delivered");
            let stalled = Observation::Stalled(Reason::ServiceUnavailable);
            let catalog = &self.of_owners.catalog;
            catalog.spawn(Arc::clone(self).report(partition, stalled));
        }
    }

    /// Records that nothing of a partition is delivered, in the status of each integration.
    async fn report(self: Arc<Self>, partition: Partition, observation: Observation) {
        let catalog = &self.of_owners.catalog;
        let now = Timestamp::now();
        let all = catalog.replica().of_partition(partition).into_iter();
        let observed = all.map(|(integration_id, version)| Observed {
            integration_id,
            version,
            began_at: now,
            at: now,
            observation: observation.clone(),
            next_retry: NextRetry::None,
        });
        let observed: Vec<Observed> = observed.collect();
        for some in observed.chunks(REPORTED) {
            while let Err(error) = catalog.observe(some).await {
                tracing::error!(%error, partition, "cannot record that nothing is delivered");
                if matches!(error, StoreError::Closed) || self.closing.is_cancelled() {
                    return;
                }
                sleep(START_RETRY).await;
            }
        }
    }

    /// Stops an owner that cannot continue. Unless its log is corrupt, it is started anew.
    async fn failed(self: &Arc<Self>, lease: Lease, error: &StoreError) {
        let mut owners = self.partitions.all().into_iter();
        let Some(owner) = owners.find(|owner| owner.lease == lease) else {
            return;
        };
        if !self.begin(lease.partition) {
            return;
        }
        self.lose(&owner).await;
        self.give_up_if_corrupt(lease, error);
        self.end(lease.partition);
        self.poll_now();
    }

    /// Ends all calls of a partition that this instance does not own any more.
    async fn lose(&self, owner: &Owner) {
        metrics::PARTITIONS_LOST.add(1);
        owner.set_delivers(false);
        self.partitions.remove(owner.lease);
        let ids = owner.ids();
        owner.stop();
        self.end_calls(&ids).await;
    }

    /// Ends calls in flight, of integrations for which none starts any more.
    async fn end_calls(&self, ids: &[IntegrationId]) {
        self.of_owners.work.lost(ids.iter().copied());
        join_all(ids.iter().map(|id| self.gate.shut(*id))).await;
    }

    /// Gives a partition back: its calls end, their answers are written, and the next owner
    /// continues from there.
    async fn release(self: Arc<Self>, owner: Arc<Owner>) {
        let lease = owner.lease;
        owner.set_delivers(false);
        let ids = owner.ids();
        let _elapsed = timeout(DRAIN, join_all(ids.iter().map(|id| self.gate.drain(*id)))).await;
        self.end_calls(&ids).await;
        let written = timeout(DRAIN, async {
            while owner.write().await.is_err() || !owner.is_clean() {
                sleep(WRITE_RETRY).await;
            }
        });
        if written.await.is_err() {
            tracing::warn!(
                partition = lease.partition,
                "deliveries of the partition could not be recorded, and are sent again"
            );
        }
        self.partitions.remove(lease);
        metrics::PARTITIONS_LOST.add(1);
        owner.stop();
        if let Err(error) = self.ownership.release(&[lease]).await {
            // Another instance takes it over all the same: the next poll asks again.
            tracing::warn!(%error, partition = lease.partition, "cannot give the partition back");
        }
        self.end(lease.partition);
        self.poll_now();
    }

    /// Ends all calls when the lease lapses.
    async fn watch_deadline(self: Arc<Self>) {
        let mut until = self.until.subscribe();
        loop {
            let Some(at) = *until.borrow_and_update() else {
                return;
            };
            let left = at.since(BootTime::now() + MARGIN);
            if left.is_zero() {
                self.suspend().await;
                if until.changed().await.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                () = sleep(left) => {}
                _changed = until.changed() => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    async fn watch_backlogs(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = sleep(LOOK_AT_BACKLOGS) => {}
                () = self.closing.cancelled() => return,
            }
            match self.of_owners.ledger.backlog_bytes().await {
                Ok(bytes) => {
                    self.stored_backlogs.store(bytes, Ordering::Relaxed);
                    let (limit, before) = (self.backlog_bytes, self.health.borrow().is_over);
                    let is_over = bytes >= limit;
                    self.set_health(|health| {
                        health.is_over = is_over;
                        health.is_full = bytes - bytes / 5 >= limit;
                    });
                    if before != is_over {
                        match is_over {
                            true => tracing::error!(
                                bytes,
                                limit,
                                "the backlogs have reached their limit: events of integrations that cannot be delivered are refused (setting backlog-bytes)"
                            ),
                            false => tracing::info!(
                                bytes,
                                limit,
                                "the backlogs are below their limit again"
                            ),
                        }
                    }
                }
                // A failed renewal of the lease is logged, and says more.
                Err(error) => tracing::debug!(%error, "cannot read the size of the backlogs"),
            }
        }
    }

    async fn suspend(&self) {
        let _switching = self.switching.lock().await;
        if !self.has_lapsed() || self.lock().suspended_at.is_some() {
            return;
        }
        self.lock().suspended_at = Some(Instant::now());
        self.set_health(|health| health.has_lapsed = true);
        tracing::error!(
            "the lease of this instance has lapsed: it sends and accepts nothing until the database answers"
        );
        let owners = self.partitions.all();
        owners.iter().for_each(|owner| owner.set_delivers(false));
        for owner in owners {
            self.of_owners.work.lost(owner.ids().into_iter());
        }
        // Those of tests, too.
        self.gate.shut_every().await;
    }

    /// Continues after a lapsed lease was renewed, with the partitions that nobody has taken.
    async fn resume(&self) {
        if self.lock().suspended_at.is_none() {
            return;
        }
        let _switching = self.switching.lock().await;
        if self.has_lapsed() || self.lock().suspended_at.take().is_none() {
            return;
        }
        self.set_health(|health| health.has_lapsed = false);
        tracing::info!("the lease of this instance is renewed");
        let changing = self.lock().changing.clone();
        for owner in self.partitions.all() {
            if !changing.contains(&owner.lease.partition) {
                owner.set_delivers(true);
                owner.announce();
            }
        }
    }

    /// Leaves, after all calls have ended and everything is written.
    pub(super) async fn leave(&self) {
        self.closing.cancel();
        self.gate.shut_all();
        let _elapsed = timeout(DRAIN, self.gate.shut_every()).await;
        if let Err(error) = self.ownership.leave().await {
            tracing::warn!(%error, "others take over only after the lease of this instance has lapsed");
        }
    }
}
