//! The delivery worker: who has work, whose turn it is, send, settle.

mod busy;
mod give_up;
mod lane;
mod load;
mod outcome;
mod places;
mod request;
mod retention;
mod stalled;
mod test_event;
#[cfg(test)]
mod tests;
mod turn;

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

use self::{
    busy::Busy,
    lane::{Begun, LaneLimits, Lanes},
};
use crate::{
    domain::{
        arn::Partition, attribution::IdentityState, backoff::BackoffPolicy, delivery::BatchLimits,
        event::Format, integration::IntegrationKey, map::Map, retention::Retention, status::Status,
    },
    gate::Gate,
    sink::Sink,
    store::{Attention, Deleted, Load, Store},
};

/// Integrations of which events expire at a time.
const EXPIRING: usize = 4;
/// Integrations with events that came are looked at so many at a time: turns wait meanwhile.
const AT_ONCE: usize = 64;

/// How the worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Requests under way in all.
    pub requests_in_flight: usize,
    /// Requests under way for one integration at the most.
    pub requests_in_flight_per_integration: usize,
    /// How long a request that would not be full waits after the one before, so that more
    /// events share what a request costs. The first after a pause goes at once.
    pub send_linger: Duration,
    /// Events that wait this long, of which none is accepted meanwhile, leave no status
    /// active, whether there were attempts or not.
    pub stalled_after: Duration,
    /// What one request may hold.
    pub limits: BatchLimits,
    /// The waits after failures.
    pub backoff: BackoffPolicy,
    /// Bytes of the log at hand for one integration, before compression.
    pub window_bytes_per_integration: usize,
    /// Bytes of the log at hand in all; beyond it an integration lets go after its turn.
    pub window_bytes: usize,
    /// How long events wait at the most, and how many.
    pub retention: Retention,
    /// How test events are written.
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
    wake: Notify,
    turns: TaskTracker,
    /// Steps of retention side by side, so that they share transactions and others get on.
    expiring: Semaphore,
    /// Held by the one that reports integrations of which nothing is delivered.
    reporting: tokio::sync::Mutex<()>,
    /// Cancelled where a turn panicked: its integration would stand still unseen.
    defect: CancellationToken,
}

impl<S> Shared<S> {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sequence that the integration's next event will get; 0 where it is gone.
    /// Whoever ends a lane by it asks while holding the lanes: events that come later
    /// then find the lane ended, and make a new one.
    fn log_end(&self, key: IntegrationKey) -> u64 {
        self.store.next_sequence(key).unwrap_or(0)
    }
}

/// Tells of a defect where it is dropped by a panic.
struct TellOfPanic<'a>(&'a CancellationToken);

impl Drop for TellOfPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

/// Lets no further turn begin once it is dropped.
struct StopOnDrop<'a, S>(&'a Shared<S>);

impl<S> Drop for StopOnDrop<'_, S> {
    fn drop(&mut self) {
        self.0.lanes().stop();
    }
}

impl<S: Sink> Shared<S> {
    /// Lets go of the lanes, begins the turns that may begin, and has the rest looked at
    /// where something is due in it.
    fn release(self: &Arc<Self>, mut lanes: MutexGuard<'_, Lanes>) {
        let begun: Vec<_> = std::iter::from_fn(|| lanes.next_turn()).collect();
        let is_due = lanes.is_due();
        drop(lanes);
        for begun in begun {
            self.begin(begun);
        }
        if is_due {
            self.wake.notify_one();
        }
    }

    fn begin(self: &Arc<Self>, begun: Begun) {
        self.spawn(turn::boxed(Arc::clone(self), begun));
    }
}

impl<S: Send + Sync + 'static> Shared<S> {
    /// Spawns what the worker waits for as it ends.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(self);
        self.turns.spawn(async move {
            let _watched = TellOfPanic(&shared.defect);
            work.await;
        });
    }
}

impl<S: Sink> Worker<S> {
    /// A worker that does nothing until [`Worker::run`].
    pub fn new(store: Store, sink: S, gate: Gate, options: WorkerOptions) -> Self {
        let lanes = Lanes::new(LaneLimits {
            turns: options.requests_in_flight,
            turns_each: options.requests_in_flight_per_integration,
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
            turns: TaskTracker::new(),
            expiring: Semaphore::new(EXPIRING),
            reporting: tokio::sync::Mutex::new(()),
            defect: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Delivers until `stop`; then finishes what is in flight and returns once all that came
    /// of it is queued for the store, which writes it before it closes. `kill` cancels what
    /// is in flight. It returns without `stop` only after a defect. All turns are tasks of the
    /// runtime on which this runs.
    pub async fn run(&self, stop: CancellationToken, kill: CancellationToken) {
        let shared = &self.shared;
        // Turns begin one another: they end with this, whatever ends it.
        let stopped = StopOnDrop(shared);
        for some in shared.store.backlog().chunks(AT_ONCE) {
            let mut lanes = shared.lanes();
            for (key, since) in some {
                self.adopt(&mut lanes, *key, 1, *since);
            }
        }
        let mut busy = Busy::new();
        let mut begun = Vec::new();
        let mut next_sweep = Instant::now();
        let mut watching = pin!(shared.sink.watch_identity());
        let mut identity = shared.sink.identity_state();
        while !stop.is_cancelled() && !shared.defect.is_cancelled() {
            let next_wake = self.start(&mut begun, &mut busy, &stop);
            let next_wake = next_wake.into_iter().chain(busy.next_look()).min();
            if Instant::now() >= next_sweep {
                shared.spawn(stalled::report(Arc::clone(shared)));
                next_sweep = Instant::now() + shared.options.stalled_after / 10;
            }
            // Without lanes nothing waits.
            let sweep = (!shared.lanes().is_empty()).then_some(next_sweep);
            let next_wake = next_wake.into_iter().chain(sweep).min();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                () = stop.cancelled() => {}
                () = shared.defect.cancelled() => {}
                () = &mut watching => {}
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
        shared.turns.close();
        tokio::select! {
            () = shared.turns.wait() => {}
            () = kill.cancelled() => {
                shared.gate.shut_all();
                shared.turns.wait().await;
            }
        }
    }

    /// Tells the worker that an integration was deleted. When it returns, no AWS
    /// call is under way for it, and none will begin.
    pub async fn deleted(&self, deleted: &Deleted) {
        self.shared.gate.shut(deleted.key).await;
        self.shared.lanes().remove(deleted.key);
        self.shared.sink.forget(deleted.integration_id);
    }

    /// State of this service's own AWS identity.
    pub fn identity_state(&self) -> watch::Receiver<IdentityState> {
        self.shared.sink.identity_state()
    }

    /// Partition of this service's own AWS credentials, once it is known.
    pub fn partition(&self) -> Option<Partition> {
        self.shared.sink.partition()
    }

    /// Something waits from a sequence on, and from a time. A deletion in between finds the
    /// lane, since the lanes are held.
    fn adopt(&self, lanes: &mut Lanes, key: IntegrationKey, from: u64, since: Timestamp) {
        let store = &self.shared.store;
        if lanes.get(key).is_none()
            && let Some(snapshot) = store.get(key)
        {
            let proven = snapshot.status.status == Status::Active;
            lanes.open(key, snapshot.integration.integration_id, from, proven);
        }
        if let Some(progress) = store.progress(key) {
            retention::begin(&self.shared, lanes, key, since, progress.pending_bytes);
            lanes.queue_what_waits(key, progress.next_sequence, true, Instant::now());
        }
    }

    fn attend(&self, attention: Map<IntegrationKey, Attention>) {
        let now = Timestamp::now();
        let mut attention = attention.into_iter();
        while attention.len() > 0 {
            let mut lanes = self.shared.lanes();
            for (key, attention) in attention.by_ref().take(AT_ONCE) {
                if let Some(from) = attention.appended_from {
                    self.adopt(&mut lanes, key, from, now);
                }
                if attention.configured {
                    if let Some(lane) = lanes.get(key) {
                        lane.delivery.forget_refusals();
                    }
                    lanes.configured(key);
                }
                if attention.settled > 0 {
                    turn::settled(&self.shared, &mut lanes, key, attention);
                }
            }
        }
    }

    /// Starts what is due. Returns when more will be. `begun` is empty, and is so after.
    fn start(
        &self,
        begun: &mut Vec<Begun>,
        busy: &mut Busy,
        stop: &CancellationToken,
    ) -> Option<Instant> {
        let shared = &self.shared;
        let now = Instant::now();
        let (expiring, seen) = {
            let mut lanes = shared.lanes();
            let expiring: Vec<_> = std::iter::from_fn(|| lanes.begin_expiry(now)).collect();
            lanes.wake(now);
            lanes.make_room();
            begun.extend(std::iter::from_fn(|| lanes.next_turn()));
            (expiring, lanes.see())
        };
        for key in expiring {
            retention::start(shared, key, stop);
        }
        for begun in begun.drain(..) {
            shared.begin(begun);
        }
        shared.store.tell_load(Load {
            is_busy: busy.is_busy(),
            deliveries_queue: seen.some_wait,
        });
        seen.next_wake
    }
}
