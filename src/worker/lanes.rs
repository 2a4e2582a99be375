//! Lanes: the state of each integration that has work, and the order in which they are
//! dispatched. An integration without work has no lane.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{RwLock, oneshot},
    time::Instant,
};

use super::permits::{Class, Permit, Permits, Queued};
use crate::domain::{
    backoff::Backoff, delivery::Delivery, event::GapReason, integration::IntegrationId, map::Map,
    shard_rates::ShardRates, status::Reason,
};

/// Requests of one integration in flight before success raises the limit.
pub(super) const FIRST_WINDOW: usize = 2;
/// Delay after the last selection until new events are selected for a stream of which some
/// shards are throttled: they may belong to other shards.
const THROTTLED_LINGER: Duration = Duration::from_millis(20);

/// Limits of dispatching.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneLimits {
    /// Most requests in flight in all.
    pub(super) requests: usize,
    /// Most requests in flight of one lane.
    pub(super) requests_per_lane: usize,
    /// Records of a full request.
    pub(super) records: usize,
    /// Linger of a request that would not be full.
    pub(super) linger: Duration,
}

/// An integration with work.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) delivery: Delivery,
    /// Held exclusively to give events up; shared by reading, selecting and settling.
    pub(super) give_up_lock: Arc<RwLock<()>>,
    /// Sequence from which events are read next.
    pub(super) cursor: u64,
    /// Events are being read.
    pub(super) loading: bool,
    /// The last request could have been larger if records of other keys had been loaded.
    pub(super) lacks_keys: bool,
    /// Expected result of the next call.
    pub(super) class: Class,
    /// Number of permits in use.
    pub(super) permits: usize,
    /// Time of the last acceptance, or of the begin of the wait for one.
    pub(super) undelivered_since: Instant,
    /// Reason why the last attempt delivered nothing, if it is no refusal.
    pub(super) last_obstacle: Option<Reason>,
    /// Consecutive failures.
    pub(super) backoff: Backoff,
    /// End of the backoff.
    pub(super) retry_at: Option<Instant>,
    /// Time at which the lane is queued, while it does not back off.
    queue_at: Option<Instant>,
    /// Nothing is left to do: the lane is removed at `queue_at`. Until then it knows when the
    /// last request was made, so that the next one lingers.
    closes: bool,
    /// This instance has ceased to deliver for the integration, at least for a time: what is
    /// loaded is outdated, and the lane is removed with its last permit.
    pub(super) abandoned: bool,
    /// Rates of the stream's shards, once the stream has refused a record.
    pub(super) rates: Option<Box<ShardRates>>,
    /// Records wait only for the rates.
    pub(super) throttled: bool,
    /// Time until which only full requests are sent, while others are in flight.
    pub(super) full_only_until: Option<Instant>,
    /// Time of the last selection of records.
    pub(super) selected_at: Option<Instant>,
    /// Most requests in flight, according to their success.
    pub(super) window: usize,
    pub(super) expiry: Expiry,
    /// Permits up to this id were granted before the configuration changed or a test passed.
    outdated_to: u64,
    queued: Option<Queued>,
}

/// Schedule of retention of one lane.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// Time of the next check; not before an event can be too old.
    at: Option<Instant>,
    /// Time before which no check is made.
    not_before: Option<Instant>,
    running: bool,
    /// Events that wait are to expire rather than be sent: no request is dispatched.
    pub(super) suspends: bool,
    /// Expired events that were not logged yet, and the reason.
    pub(super) unlogged: Option<(u64, GapReason)>,
    /// Time of the last line of the log.
    pub(super) logged_at: Option<Instant>,
}

/// Next check of a lane's retention.
#[derive(Clone, Copy, Debug)]
pub(super) struct NextCheck {
    pub(super) at: Instant,
    /// The check is not made earlier, whatever is appended.
    pub(super) not_before: bool,
    /// If no request may be dispatched now, none is until then.
    pub(super) suspends: bool,
}

/// Permission for a lane to send one request.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) id: IntegrationId,
    pub(super) permit: Permit,
    /// The lane's lock.
    pub(super) give_up_lock: Arc<RwLock<()>>,
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    by_id: Map<IntegrationId, Lane>,
    permits: Permits,
    limits: LaneLimits,
    /// Overdue calls by permit, with the sender that cancels each.
    overdue: Map<u64, oneshot::Sender<()>>,
    /// Times at which lanes end a backoff or are queued.
    wakes: BTreeSet<(Instant, IntegrationId)>,
    /// Times of the checks of retention.
    expiries: BTreeSet<(Instant, IntegrationId)>,
    /// Bytes of all loaded chunks, and of those that are being read.
    pub(super) loaded_bytes: usize,
    /// Time at which the run loop wakes, if it is not notified.
    known_wake: Option<Instant>,
    stopped: bool,
}

impl Lane {
    fn new(id: IntegrationId, cursor: u64, class: Class) -> Self {
        Self {
            delivery: Delivery::new(id),
            give_up_lock: Arc::default(),
            cursor,
            loading: false,
            lacks_keys: false,
            class,
            permits: 0,
            undelivered_since: Instant::now(),
            last_obstacle: None,
            backoff: Backoff::default(),
            retry_at: None,
            queue_at: None,
            closes: false,
            abandoned: false,
            rates: None,
            throttled: false,
            full_only_until: None,
            selected_at: None,
            window: FIRST_WINDOW,
            expiry: Expiry::default(),
            outdated_to: 0,
            queued: None,
        }
    }

    /// Time until which a request that would not be full waits for those in flight, whose keys
    /// become free. None if it need not wait.
    pub(super) fn lingers_until(&self, linger: Duration, now: Instant) -> Option<Instant> {
        if self.rates.is_some() || self.delivery.is_narrowing() || self.delivery.in_flight() == 0 {
            return None;
        }
        let until = self.selected_at? + linger;
        (until > now).then_some(until)
    }

    /// Whether a request was dispatched before the configuration changed or a test passed, so
    /// that its failure says nothing of the next.
    pub(super) fn is_outdated(&self, permit: &Permit) -> bool {
        permit.id <= self.outdated_to
    }

    /// Whether nothing is loaded, in flight or checked.
    fn is_idle(&self) -> bool {
        self.permits == 0
            && self.delivery.is_empty()
            && !self.expiry.running
            && self.expiry.unlogged.is_none()
    }

    /// Whether it may have no further permit now. It is queued when it releases one.
    fn is_saturated(&self) -> bool {
        let limit = match self.class {
            Class::Quick => self.window,
            Class::Slow => self.window.div_ceil(2),
            Class::Probe | Class::Hanging => 1,
        };
        self.permits >= limit || self.expiry.suspends || self.abandoned
    }
}

impl Lanes {
    pub(super) fn new(limits: LaneLimits) -> Self {
        Self {
            by_id: Map::default(),
            permits: Permits::new(limits.requests),
            limits,
            overdue: Map::default(),
            wakes: BTreeSet::new(),
            expiries: BTreeSet::new(),
            loaded_bytes: 0,
            known_wake: None,
            stopped: false,
        }
    }

    pub(super) fn get(&mut self, id: IntegrationId) -> Option<&mut Lane> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Opens the lane of an integration that has work from a sequence on, unless it has one.
    /// `proven` is whether its last attempt succeeded.
    pub(super) fn open(&mut self, id: IntegrationId, from: u64, proven: bool) {
        let class = Class::after(proven, false);
        let lane = self.by_id.entry(id);
        lane.or_insert_with(|| Lane::new(id, from, class));
    }

    /// Queues a lane that may have records to send, at once or when a request is due.
    /// `end_sequence` is the sequence of the next event to be accepted; `appended` is whether
    /// events were just appended.
    pub(super) fn queue_pending(
        &mut self,
        id: IntegrationId,
        end_sequence: u64,
        appended: bool,
        now: Instant,
    ) {
        let limits = self.limits;
        let Some(lane) = self.by_id.get_mut(&id) else {
            return;
        };
        let unread = end_sequence.saturating_sub(lane.cursor) as usize;
        let waiting = lane.delivery.waiting() + unread;
        if waiting == 0 {
            return;
        }
        lane.closes = false;
        let due = match lane.selected_at {
            Some(selected_at) if lane.throttled && appended => Some(selected_at + THROTTLED_LINGER),
            _ if lane.throttled => lane.queue_at,
            // The next answer shows more of what is refused.
            _ if lane.delivery.is_narrowing() => None,
            selected_at if waiting < limits.records => {
                selected_at.map(|selected_at| selected_at + limits.linger)
            }
            _ if lane.delivery.in_flight() > 0 => lane.full_only_until,
            _ => None,
        };
        match due {
            Some(at) if at > now => self.queue_at(id, at),
            _ => self.queue(id),
        }
    }

    /// Queues a lane at a time, or earlier.
    pub(super) fn queue_at(&mut self, id: IntegrationId, at: Instant) {
        if let Some(lane) = self.by_id.get_mut(&id)
            && lane.retry_at.is_none()
            && lane.queued.is_none()
            && lane.queue_at.is_none_or(|before| at < before)
        {
            let before = lane.queue_at.replace(at);
            before.map(|before| self.wakes.remove(&(before, id)));
            self.wakes.insert((at, id));
        }
    }

    /// Queues a lane, unless it is queued, backs off or may have no further permit.
    pub(super) fn queue(&mut self, id: IntegrationId) {
        if let Some(lane) = self.by_id.get_mut(&id)
            && lane.retry_at.is_none()
            && lane.queued.is_none()
            && !lane.is_saturated()
        {
            let at = lane.queue_at.take();
            at.map(|at| self.wakes.remove(&(at, id)));
            lane.queued = Some(self.permits.queue(id, lane.class));
        }
    }

    /// Sets the expected result of a lane's next call.
    pub(super) fn expect(&mut self, id: IntegrationId, class: Class) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.class = class;
            if let Some(queued) = &mut lane.queued {
                *queued = self.permits.requeue(*queued, class);
            }
        }
    }

    /// Grants the next permit, if there is one and a lane that waits for it.
    pub(super) fn next_dispatch(&mut self) -> Option<Dispatch> {
        if self.stopped {
            return None;
        }
        while let Some((id, class)) = self.permits.next() {
            if let Some(lane) = self.by_id.get_mut(&id) {
                lane.queued = None;
                if lane.retry_at.is_none() && !lane.is_saturated() {
                    lane.permits += 1;
                    return Some(Dispatch {
                        id,
                        permit: self.permits.take(class),
                        give_up_lock: Arc::clone(&lane.give_up_lock),
                    });
                }
            }
        }
        None
    }

    /// Ends dispatching.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Returns the time at which a lane is due next; the run loop wakes by then.
    pub(super) fn plan_wake(&mut self) -> Option<Instant> {
        self.known_wake = self.next_wake();
        self.known_wake
    }

    /// Whether the run loop must be notified: a permit can be granted or reclaimed, or a lane is
    /// due before the loop wakes.
    pub(super) fn needs_run(&self) -> bool {
        let earlier = |at| self.known_wake.is_none_or(|known| at < known);
        self.permits.can_grant() || self.next_wake().is_some_and(earlier)
    }

    fn next_wake(&self) -> Option<Instant> {
        let (wake, expiry) = (self.wakes.first(), self.expiries.first());
        let times = wake.into_iter().chain(expiry);
        times.map(|(at, _)| *at).min()
    }

    /// Reclaims permits of overdue calls for lanes that wait.
    pub(super) fn reclaim(&mut self) {
        let permits = self.permits.reclaim();
        self.cancel(permits);
    }

    fn cancel(&mut self, permits: Vec<u64>) {
        for permit in permits {
            // The call may have ended already.
            let _ended = self.overdue.remove(&permit).map(|cancel| cancel.send(()));
        }
    }

    /// Marks a call as overdue. The returned receiver gets a message when it must end.
    pub(super) fn set_overdue(
        &mut self,
        id: IntegrationId,
        permit: &mut Permit,
    ) -> oneshot::Receiver<()> {
        self.permits.set_overdue(id, permit);
        let (cancel, cancelled) = oneshot::channel();
        self.overdue.insert(permit.id, cancel);
        match self.get(id) {
            Some(lane) if lane.is_outdated(permit) => {
                let permit = self.permits.cancel(permit.id);
                self.cancel(permit.into_iter().collect());
            }
            Some(lane) if lane.class != Class::Slow => self.expect(id, Class::Hanging),
            _ => {}
        }
        cancelled
    }

    /// Releases a permit. Returns whether its lane is open.
    pub(super) fn release(&mut self, id: IntegrationId, permit: Permit) -> bool {
        self.overdue.remove(&permit.id);
        self.permits.release(permit);
        let lane = self.by_id.get_mut(&id);
        lane.map(|lane| lane.permits -= 1).is_some()
    }

    /// Adapts the number of requests in flight of a lane to the success of one.
    pub(super) fn adapt_window(&mut self, id: IntegrationId, success: bool) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.window = match success {
                // A wider window helps only if more records wait.
                true if lane.delivery.waiting() == 0 => lane.window,
                true => lane.window + 1,
                false => lane.window / 2,
            }
            .clamp(1, self.limits.requests_per_lane);
        }
    }

    /// Starts or prolongs a backoff.
    pub(super) fn back_off(&mut self, id: IntegrationId, until: Instant) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            let at = lane.queue_at.take();
            let before = lane.retry_at.replace(until);
            for at in at.into_iter().chain(before) {
                self.wakes.remove(&(at, id));
            }
            self.wakes.insert((until, id));
        }
    }

    /// Ends a backoff, if there is one, and forgets the failures.
    pub(super) fn end_backoff(&mut self, id: IntegrationId) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.backoff.reset();
            if let Some(at) = lane.retry_at.take() {
                self.wakes.remove(&(at, id));
                self.queue(id);
            }
        }
    }

    /// Starts anew after the integration was configured.
    pub(super) fn configured(&mut self, id: IntegrationId) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.delivery.forget_refusals();
        }
        self.restart(id, Class::Probe);
    }

    /// Starts anew after a test event was accepted.
    pub(super) fn tested(&mut self, id: IntegrationId) {
        self.restart(id, Class::Quick);
    }

    fn restart(&mut self, id: IntegrationId, class: Class) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.outdated_to = self.permits.last_id();
            lane.undelivered_since = Instant::now();
            let permits = self.permits.cancel_all(id);
            self.cancel(permits);
            self.expect(id, class);
            self.end_backoff(id);
            self.queue(id);
        }
    }

    /// Retries the lanes that back off because of a fault of this service, which is over.
    pub(super) fn service_recovered(&mut self) {
        let lanes = self.by_id.iter();
        let waiting: Vec<_> = lanes
            .filter(|(_, lane)| lane.backoff.is_own_fault())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.end_backoff(id);
        }
    }

    /// Lanes of which nothing was accepted since `before`, with the last known obstacle.
    pub(super) fn stalled_since(&self, before: Instant) -> Vec<(IntegrationId, Option<Reason>)> {
        let lanes = self.by_id.iter();
        lanes
            .filter(|(_, lane)| lane.undelivered_since <= before)
            .map(|(id, lane)| (*id, lane.last_obstacle))
            .collect()
    }

    /// Queues the lanes that are due.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, id)) = self.wakes.first().copied()
            && at <= now
        {
            self.wakes.remove(&(at, id));
            let Some(lane) = self.by_id.get_mut(&id) else {
                continue;
            };
            lane.retry_at = None;
            lane.queue_at = None;
            match lane.closes && lane.is_idle() {
                true => self.remove(id),
                false => self.queue(id),
            }
        }
    }

    /// Removes a lane whose content is outdated, at the latest with its last permit.
    pub(super) fn abandon(&mut self, id: IntegrationId) {
        match self.by_id.get_mut(&id) {
            Some(lane) if lane.permits > 0 || lane.expiry.running => lane.abandoned = true,
            Some(_) => self.remove(id),
            None => {}
        }
    }

    /// Removes a lane. Its permits are released by their holders.
    pub(super) fn remove(&mut self, id: IntegrationId) {
        if let Some(lane) = self.by_id.remove(&id) {
            self.loaded_bytes -= lane.delivery.bytes();
            for at in [lane.retry_at, lane.queue_at].into_iter().flatten() {
                self.wakes.remove(&(at, id));
            }
            if let Some(at) = lane.expiry.at {
                self.expiries.remove(&(at, id));
            }
            lane.queued.map(|queued| self.permits.leave_queue(queued));
        }
    }

    /// Drops the loaded chunks of a lane, unless it holds a permit.
    pub(super) fn unload(&mut self, id: IntegrationId) {
        if let Some(lane) = self.by_id.get_mut(&id)
            && lane.permits == 0
            && lane.delivery.in_flight() == 0
        {
            self.loaded_bytes -= lane.delivery.bytes();
            if let Some(from) = lane.delivery.unload() {
                lane.cursor = from;
            }
        }
    }

    /// Removes a lane that has no work, once the linger after its last request is over.
    /// `end_sequence` is the sequence of the next event to be accepted.
    pub(super) fn close_if_done(&mut self, id: IntegrationId, end_sequence: u64) {
        let Some(lane) = self.by_id.get_mut(&id) else {
            return;
        };
        if lane.cursor < end_sequence || !lane.is_idle() {
            return;
        }
        let until = lane.selected_at.map(|at| at + self.limits.linger);
        match until.filter(|until| *until > Instant::now()) {
            Some(until) => {
                lane.closes = true;
                self.queue_at(id, until);
            }
            None => self.remove(id),
        }
    }

    /// Checks the retention of a lane at a time, or earlier.
    pub(super) fn expire_at(&mut self, id: IntegrationId, at: Instant) {
        let Some(lane) = self.by_id.get_mut(&id) else {
            return;
        };
        let expiry = &mut lane.expiry;
        let at = expiry.not_before.map_or(at, |bound| at.max(bound));
        if expiry.running || expiry.at.is_some_and(|before| before <= at) {
            return;
        }
        if let Some(before) = expiry.at.replace(at) {
            self.expiries.remove(&(before, id));
        }
        self.expiries.insert((at, id));
    }

    /// Whether a check of a lane's retention is planned or running.
    pub(super) fn has_expiry(&self, id: IntegrationId) -> bool {
        let lane = self.by_id.get(&id);
        lane.is_some_and(|lane| lane.expiry.running || lane.expiry.at.is_some())
    }

    /// Begins a check that is due, if there is one. It runs until [`Lanes::end_expiry`].
    pub(super) fn begin_expiry(&mut self, now: Instant) -> Option<IntegrationId> {
        let first = self.expiries.first().copied();
        let (at, id) = first.filter(|(at, _)| *at <= now)?;
        self.expiries.remove(&(at, id));
        let lane = self.by_id.get_mut(&id)?;
        lane.expiry.at = None;
        lane.expiry.running = true;
        Some(id)
    }

    /// Dispatches no request of a lane until [`Lanes::end_expiry`].
    pub(super) fn suspend(&mut self, id: IntegrationId) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.expiry.suspends = true;
        }
    }

    /// Ends a check, and plans the next one.
    pub(super) fn end_expiry(&mut self, id: IntegrationId, next: NextCheck) {
        let Some(lane) = self.by_id.get_mut(&id) else {
            return;
        };
        lane.expiry.running = false;
        lane.expiry.suspends &= next.suspends;
        lane.expiry.not_before = next.not_before.then_some(next.at);
        self.expire_at(id, next.at);
        self.queue(id);
    }
}

#[cfg(test)]
mod tests;
