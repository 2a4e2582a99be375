//! The delivery worker: who has work, whose turn it is, send, settle.

mod busy;
mod give_up;
mod lane;
mod linger;
mod load;
mod outcome;
mod places;
mod retention;
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
    lane::{LaneLimits, Lanes},
};
use crate::{
    domain::{
        backoff::BackoffPolicy, delivery::BatchLimits, event::Format, integration::IntegrationKey,
        retention::Retention, standing::Standing, status::Status,
    },
    sink::{Gate, Sink},
    store::{Attention, Deleted, Load, Store},
};

/// Integrations of which events expire at a time.
const EXPIRING: usize = 4;

/// How the worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Requests under way in all.
    pub requests_in_flight: usize,
    /// Requests under way for one integration at the most.
    pub requests_in_flight_per_integration: usize,
    /// How long a request that would not be full waits after the one before.
    pub send_linger: Duration,
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

impl<S: Sink> Worker<S> {
    /// A worker that does nothing until [`Worker::run`].
    pub fn new(store: Store, sink: S, options: WorkerOptions) -> Self {
        let gate = sink.gate().clone();
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
            defect: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Delivers until `stop`; then finishes what is in flight and returns once it is
    /// settled. `kill` cancels what is in flight. It returns without `stop` only after
    /// a defect.
    pub async fn run(&self, stop: CancellationToken, kill: CancellationToken) {
        let shared = &self.shared;
        for (key, since) in shared.store.backlog() {
            self.adopt(*key, 1, *since);
        }
        let mut busy = Busy::new();
        let mut standing = pin!(shared.sink.watch_standing());
        while !stop.is_cancelled() && !shared.defect.is_cancelled() {
            retention::start(shared, &stop);
            self.start_turns(&mut busy);
            let next_wake = shared.lanes().next_wake();
            let next_wake = next_wake.into_iter().chain(busy.next_look()).min();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                () = stop.cancelled() => {}
                () = shared.defect.cancelled() => {}
                () = &mut standing => {}
                () = sleep_until(next_wake.unwrap_or(far)) => {}
                () = shared.wake.notified() => {}
                attention = shared.store.attention() => {
                    for (key, attention) in attention {
                        self.attend(key, attention);
                    }
                }
            }
        }
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

    /// How this service itself stands with AWS.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.sink.standing()
    }

    /// Something waits from a sequence on, and from a time.
    fn adopt(&self, key: IntegrationKey, from: u64, since: Timestamp) {
        // Under the lanes' lock, so that a deletion in between finds the lane.
        let mut lanes = self.shared.lanes();
        if let Some(snapshot) = self.shared.store.get(key) {
            let proven = snapshot.status.status == Status::Active;
            lanes.open(key, snapshot.integration.integration_id, from, proven);
            let pending_bytes = snapshot.progress.pending_bytes;
            retention::begin(&self.shared, &mut lanes, key, since, pending_bytes);
            let log_end = snapshot.progress.next_sequence;
            lanes.queue_what_waits(key, log_end, true, Instant::now());
        }
    }

    fn attend(&self, key: IntegrationKey, attention: Attention) {
        if let Some(from) = attention.appended_from {
            self.adopt(key, from, Timestamp::now());
        }
        if attention.configured {
            let mut lanes = self.shared.lanes();
            if let Some(lane) = lanes.get(key) {
                lane.delivery.forget_refusals();
            }
            lanes.configured(key);
        }
    }

    fn start_turns(&self, busy: &mut Busy) {
        let mut lanes = self.shared.lanes();
        lanes.wake(Instant::now());
        lanes.make_room();
        while let Some((key, turn)) = lanes.next_turn() {
            let defect = self.shared.defect.clone().drop_guard();
            // It is large, and a task moves what it is made of.
            let turn = Box::pin(turn::take(Arc::clone(&self.shared), key, turn));
            self.shared.turns.spawn(async move {
                turn.await;
                // A panic drops it armed.
                let _sound = defect.disarm();
            });
        }
        self.shared.store.tell_load(Load {
            is_busy: busy.is_busy(),
            deliveries_queue: lanes.some_wait(),
        });
    }
}
