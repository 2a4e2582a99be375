//! Delivery: dispatches integrations with work, sends their events, settles the answers, and
//! expires what retention does not keep.

mod attempt;
mod give_up;
mod lanes;
mod load;
mod permits;
mod retention;
mod settle;
mod stalled;
mod test_event;
#[cfg(test)]
mod tests;

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::lanes::{Dispatch, LaneLimits, Lanes};
use crate::{
    domain::{
        arn::Partition, attribution::IdentityState, backoff::BackoffPolicy, delivery::BatchLimits,
        event::Format, integration::IntegrationId, map::Map, retention::Retention, status::Status,
    },
    gate::Gate,
    sink::Sink,
    store::{Attention, Deleted, Store},
};

/// Most steps of retention at a time.
const EXPIRING: usize = 4;
/// Most integrations with new events that are attended under one lock of the lanes, since
/// attempts wait for it.
const ATTENDED: usize = 64;

/// Settings of the worker.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Most requests in flight.
    pub requests_in_flight: usize,
    /// Most requests in flight for one integration.
    pub requests_in_flight_per_integration: usize,
    /// Time after a request for which a further one that would not be full waits for more
    /// events. The first one after a pause does not wait.
    pub send_linger: Duration,
    /// Time after which a status is no longer active if events wait and none is accepted,
    /// whether there were attempts or not.
    pub stalled_after: Duration,
    /// Limits of one request.
    pub limits: BatchLimits,
    /// Delays after failures.
    pub backoff: BackoffPolicy,
    /// Most bytes of loaded events for one integration, before compression.
    pub window_bytes_per_integration: usize,
    /// Bytes of loaded events in all. If more than half of them are used, integrations unload
    /// theirs between attempts.
    pub window_bytes: usize,
    /// Limits of pending events.
    pub retention: Retention,
    /// Format of test events and gap events.
    pub format: Format,
}

/// The worker. Cheap to clone: a clone is a handle.
pub struct Worker<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

struct Shared<S> {
    store: Store,
    sink: S,
    options: WorkerOptions,
    lanes: Mutex<Lanes>,
    gate: Gate,
    /// Wakes the run loop.
    wake: Notify,
    /// Attempts, checks of retention and reports.
    tasks: TaskTracker,
    /// Limits the steps of retention at a time.
    expiring: Semaphore,
    /// Cancelled after a task panicked, since its integration would no longer be delivered and
    /// nothing would show it.
    defect: CancellationToken,
}

impl<S> Shared<S> {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sequence of the integration's next event; 0 if this instance does not deliver for it. To be
    /// asked while the
    /// lanes are locked if a lane is closed by it: later events then open a new one.
    fn end_sequence(&self, id: IntegrationId) -> u64 {
        self.store.next_sequence(id).unwrap_or(0)
    }

    /// Removes the lane of an integration that this instance has ceased to deliver for. If it
    /// delivers for it again, a new lane begins with all that is pending.
    fn remove_lost(&self, lanes: &mut Lanes, id: IntegrationId) {
        lanes.remove(id);
        if self.store.delivers(id) {
            self.store.announce(id);
        }
    }
}

/// Cancels a token if it is dropped by a panic.
struct CancelOnPanic<'a>(&'a CancellationToken);

impl Drop for CancelOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

/// Ends dispatching when it is dropped.
struct StopOnDrop<'a, S>(&'a Shared<S>);

impl<S> Drop for StopOnDrop<'_, S> {
    fn drop(&mut self) {
        self.0.lanes().stop();
    }
}

impl<S: Sink> Shared<S> {
    /// Unlocks the lanes and starts the attempts for which there are permits.
    fn dispatch(self: &Arc<Self>, mut lanes: MutexGuard<'_, Lanes>) {
        let dispatches: Vec<_> = std::iter::from_fn(|| lanes.next_dispatch()).collect();
        let needs_run = lanes.needs_run();
        drop(lanes);
        for dispatch in dispatches {
            self.start(dispatch);
        }
        if needs_run {
            self.wake.notify_one();
        }
    }

    fn start(self: &Arc<Self>, dispatch: Dispatch) {
        self.spawn(attempt::boxed(Arc::clone(self), dispatch));
    }

    /// Spawns a task that the worker waits for when it ends.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let _cancel = CancelOnPanic(&shared.defect);
            task.await;
        });
    }
}

impl<S: Sink> Worker<S> {
    /// Makes a worker that does nothing until [`Worker::run`].
    pub fn new(store: Store, sink: S, gate: Gate, options: WorkerOptions) -> Self {
        let lanes = Lanes::new(LaneLimits {
            requests: options.requests_in_flight,
            requests_per_lane: options.requests_in_flight_per_integration,
            records: options.limits.records,
            linger: options.send_linger,
        });
        let shared = Shared {
            store,
            sink,
            options,
            lanes: Mutex::new(lanes),
            gate,
            wake: Notify::new(),
            tasks: TaskTracker::new(),
            expiring: Semaphore::new(EXPIRING),
            defect: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Delivers until `stop`. Then it waits for the requests in flight and returns once their
    /// answers are settled in the store, which writes them before it closes. `kill` cancels the
    /// requests in flight. It returns without `stop` only after a defect. All attempts are tasks
    /// of the current runtime.
    pub async fn run(&self, stop: CancellationToken, kill: CancellationToken) {
        let shared = &self.shared;
        // Attempts start one another, so dispatching ends however this future does.
        let stopped = StopOnDrop(shared);
        let mut next_report = Instant::now();
        let mut identity_watch = pin!(shared.sink.watch_identity());
        let mut identity = shared.sink.identity_state();
        while !stop.is_cancelled() && !shared.defect.is_cancelled() {
            let next_wake = self.start_due(&stop);
            if Instant::now() >= next_report {
                shared.spawn(stalled::report(Arc::clone(shared)));
                next_report = Instant::now() + shared.options.stalled_after / 10;
            }
            // Without lanes no event waits.
            let report = (!shared.lanes().is_empty()).then_some(next_report);
            let next_wake = next_wake.into_iter().chain(report).min();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                () = stop.cancelled() => {}
                () = shared.defect.cancelled() => {}
                () = &mut identity_watch => {}
                Ok(()) = identity.changed() => {
                    if *identity.borrow_and_update() == IdentityState::Good {
                        shared.lanes().service_recovered();
                    }
                }
                () = sleep_until(next_wake.unwrap_or(far)) => {}
                () = shared.wake.notified() => {}
                attention = shared.store.attention() => self.attend(attention),
            }
        }
        drop(stopped);
        shared.tasks.close();
        tokio::select! {
            () = shared.tasks.wait() => {}
            () = kill.cancelled() => {
                shared.gate.shut_all();
                shared.tasks.wait().await;
            }
        }
    }

    /// Ends the delivery of a deleted integration, and returns its final counts. Then no AWS
    /// call is in flight for it, and none will start.
    pub async fn deleted(&self, id: IntegrationId) -> Deleted {
        let shared = &self.shared;
        shared.gate.shut(id).await;
        shared.lanes().remove(id);
        shared.sink.forget(id);
        shared.store.discard(id)
    }

    /// State of this service's own AWS identity.
    pub fn identity_state(&self) -> watch::Receiver<IdentityState> {
        self.shared.sink.identity_state()
    }

    /// Partition of this service's own AWS credentials, once known.
    pub fn partition(&self) -> Option<Partition> {
        self.shared.sink.partition()
    }

    /// Account of this service's own AWS credentials, once known.
    pub fn account(&self) -> Option<Arc<str>> {
        self.shared.sink.account()
    }

    /// Attends integrations with new events or a new configuration.
    fn attend(&self, attention: Map<IntegrationId, Attention>) {
        let mut attention = attention.into_iter();
        while attention.len() > 0 {
            let mut lanes = self.shared.lanes();
            for (id, attention) in attention.by_ref().take(ATTENDED) {
                if attention.deleted {
                    let worker = self.clone();
                    self.shared.spawn(async move {
                        worker.deleted(id).await;
                    });
                    continue;
                }
                if attention.lost {
                    lanes.abandon(id);
                }
                if let Some((from, accepted_at)) = attention.appended {
                    self.appended(&mut lanes, id, from, accepted_at);
                }
                if attention.configured {
                    lanes.configured(id);
                }
            }
        }
    }

    /// Handles events from a sequence on, the first of which was accepted at `accepted_at`. A
    /// deletion meanwhile removes the lane afterwards, because the lanes are locked.
    fn appended(&self, lanes: &mut Lanes, id: IntegrationId, from: u64, accepted_at: Timestamp) {
        let store = &self.shared.store;
        let Some(progress) = store.progress(id) else {
            return;
        };
        if lanes.get(id).is_none()
            && let Some(snapshot) = store.get(id)
        {
            // Older events may be announced a moment later.
            let new = progress.next_sequence.saturating_sub(from);
            let from = if progress.pending() > new { 1 } else { from };
            lanes.open(id, from, snapshot.status.status == Status::Active);
        }
        if lanes.get(id).is_some() {
            retention::plan(&self.shared, lanes, id, accepted_at, progress.pending_bytes);
            lanes.queue_pending(id, progress.next_sequence, true, Instant::now());
        }
    }

    /// Starts what is due. Returns the time at which more will be.
    fn start_due(&self, stop: &CancellationToken) -> Option<Instant> {
        let shared = &self.shared;
        let now = Instant::now();
        let mut lanes = shared.lanes();
        let expiring: Vec<_> = std::iter::from_fn(|| lanes.begin_expiry(now)).collect();
        lanes.wake(now);
        lanes.reclaim();
        let dispatches: Vec<_> = std::iter::from_fn(|| lanes.next_dispatch()).collect();
        let next_wake = lanes.plan_wake();
        drop(lanes);
        for id in expiring {
            shared.spawn(retention::check(Arc::clone(shared), id, stop.clone()));
        }
        for dispatch in dispatches {
            shared.start(dispatch);
        }
        next_wake
    }
}
