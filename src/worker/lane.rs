//! Whose turn it is. A lane exists for an integration that has work; no lane, no cost.

mod expiry;
mod state;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{RwLock, oneshot},
    time::Instant,
};
use uuid::Uuid;

pub(super) use self::{expiry::NextLook, state::Lane};
use super::places::{Class, Places, Turn};
use crate::domain::{integration::IntegrationKey, map::Map, status::Reason};

/// Between two looks for what came for shards that take more, while others do not.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How lanes take their turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneLimits {
    /// Turns in all.
    pub(super) turns: usize,
    /// Turns of one lane at the most.
    pub(super) turns_each: usize,
    /// Events of a full request.
    pub(super) records: usize,
    /// How long a request that would not be full waits after the one before.
    pub(super) linger: Duration,
}

/// A turn that may begin.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) key: IntegrationKey,
    pub(super) turn: Turn,
    /// The lane's.
    pub(super) still: Arc<RwLock<()>>,
}

/// What there was when it was looked what is due.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// When the next that rests is looked at.
    pub(super) next_wake: Option<Instant>,
    /// Whether some that are expected to succeed quickly wait for a place.
    pub(super) some_wait: bool,
}

/// All lanes, and the order of their turns.
#[derive(Debug)]
pub(super) struct Lanes {
    by_key: Map<IntegrationKey, Lane>,
    places: Places,
    limits: LaneLimits,
    /// Turns that take long, and how to tell them to end.
    overdue: Map<u64, oneshot::Sender<()>>,
    /// When each lane that rests is looked at again.
    wakes: BTreeSet<(Instant, IntegrationKey)>,
    /// When it is looked whether each lane's oldest events are too old.
    expiries: BTreeSet<(Instant, IntegrationKey)>,
    /// Bytes of all chunks at hand, and of those that are being read.
    pub(super) loaded_bytes: usize,
    seen: Seen,
    /// No turn begins any more.
    stopped: bool,
}

impl Lanes {
    pub(super) fn new(limits: LaneLimits) -> Self {
        Self {
            by_key: Map::default(),
            places: Places::new(limits.turns),
            limits,
            overdue: Map::default(),
            wakes: BTreeSet::new(),
            expiries: BTreeSet::new(),
            loaded_bytes: 0,
            seen: Seen::default(),
            stopped: false,
        }
    }

    pub(super) fn get(&mut self, key: IntegrationKey) -> Option<&mut Lane> {
        self.by_key.get_mut(&key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Makes the lane of an integration that has work from a sequence on, where it
    /// has none. `proven` is whether its last attempt succeeded.
    pub(super) fn open(
        &mut self,
        key: IntegrationKey,
        integration_id: Uuid,
        from: u64,
        proven: bool,
    ) {
        let class = Class::after(proven, false);
        self.by_key
            .entry(key)
            .or_insert_with(|| Lane::new(integration_id, from, class));
    }

    /// Queues a lane that may have something to send, at once or when that is worth a
    /// request. `log_end` is the sequence that the next event will get; `is_new` says
    /// that events came.
    pub(super) fn queue_what_waits(
        &mut self,
        key: IntegrationKey,
        log_end: u64,
        is_new: bool,
        now: Instant,
    ) {
        let limits = self.limits;
        let Some(lane) = self.by_key.get_mut(&key) else {
            return;
        };
        let unread = log_end.saturating_sub(lane.cursor) as usize;
        let waiting = lane.delivery.waiting() + unread;
        if waiting == 0 {
            return;
        }
        let rest = match lane.looked_at {
            Some(looked_at) if lane.limited && is_new => Some(looked_at + LOOK_AGAIN),
            _ if lane.limited => lane.nap_until,
            // The sooner it is found out what is refused, the better.
            _ if lane.delivery.is_narrowing() => None,
            _ if waiting < limits.records => {
                lane.looked_at.map(|looked_at| looked_at + limits.linger)
            }
            _ if lane.delivery.in_flight() > 0 => lane.held_until,
            _ => None,
        };
        match rest {
            Some(until) if until > now => self.nap(key, until),
            _ => self.queue(key),
        }
    }

    /// Looks at a lane again at a time, at the latest.
    pub(super) fn nap(&mut self, key: IntegrationKey, until: Instant) {
        if let Some(lane) = self.by_key.get_mut(&key)
            && lane.retry_at.is_none()
            && lane.queued.is_none()
            && lane.nap_until.is_none_or(|before| until < before)
        {
            let before = lane.nap_until.replace(until);
            before.map(|before| self.wakes.remove(&(before, key)));
            self.wakes.insert((until, key));
        }
    }

    /// Queues a lane, unless it waits already, backs off or has its turns.
    pub(super) fn queue(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key)
            && lane.retry_at.is_none()
            && lane.queued.is_none()
            && !lane.is_busy()
        {
            let nap = lane.nap_until.take();
            nap.map(|nap| self.wakes.remove(&(nap, key)));
            lane.queued = Some(self.places.queue(key, lane.class));
        }
    }

    /// What is expected of a lane's next call has changed.
    pub(super) fn expect(&mut self, key: IntegrationKey, class: Class) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.class = class;
            if let Some(ticket) = &mut lane.queued {
                *ticket = self.places.requeue(*ticket, class);
            }
        }
    }

    /// The next turn that may begin.
    pub(super) fn next_turn(&mut self) -> Option<Begun> {
        if self.stopped {
            return None;
        }
        while let Some((key, class)) = self.places.call_next() {
            if let Some(lane) = self.by_key.get_mut(&key) {
                lane.queued = None;
                if lane.retry_at.is_none() && !lane.is_busy() {
                    lane.turns += 1;
                    return Some(Begun {
                        key,
                        turn: self.places.take(class),
                        still: Arc::clone(&lane.still),
                    });
                }
            }
        }
        None
    }

    /// Lets no further turn begin.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// What there is after all that was due was begun.
    pub(super) fn see(&mut self) -> Seen {
        self.seen = Seen {
            next_wake: self.next_wake(),
            some_wait: self.some_wait(),
        };
        self.seen
    }

    /// Whether a turn may begin or make room, or all that was seen has changed in a way that
    /// is not to be missed.
    pub(super) fn is_due(&self) -> bool {
        let seen = self.seen;
        let earlier = |at| seen.next_wake.is_none_or(|seen| at < seen);
        self.places.are_called_for()
            || self.some_wait() != seen.some_wait
            || self.next_wake().is_some_and(earlier)
    }

    fn some_wait(&self) -> bool {
        self.places.some_wait(Class::Quick)
    }

    /// Ends calls that take long where others need their places.
    pub(super) fn make_room(&mut self) {
        let cut = self.places.make_room();
        self.cut(cut);
    }

    fn cut(&mut self, turns: Vec<u64>) {
        for turn in turns {
            // A call that is over needs no telling.
            let _over = self.overdue.remove(&turn).map(|cut| cut.send(()));
        }
    }

    /// The call of a turn takes long. Returns what tells that it is to end.
    pub(super) fn overdue(
        &mut self,
        key: IntegrationKey,
        turn: &mut Turn,
    ) -> oneshot::Receiver<()> {
        self.places.overdue(key, turn);
        let (cut, told) = oneshot::channel();
        self.overdue.insert(turn.id, cut);
        match self.get(key) {
            Some(lane) if lane.is_outdated(turn) => {
                let cut = self.places.cut(turn.id);
                self.cut(cut.into_iter().collect());
            }
            Some(lane) if lane.class != Class::Slow => self.expect(key, Class::Hanging),
            _ => {}
        }
        told
    }

    /// Returns whether the lane is still there.
    pub(super) fn end_turn(&mut self, key: IntegrationKey, turn: Turn) -> bool {
        self.overdue.remove(&turn.id);
        self.places.leave(turn);
        let lane = self.by_key.get_mut(&key);
        lane.map(|lane| lane.turns -= 1).is_some()
    }

    /// A request got through whole, or not: more go side by side, or fewer.
    pub(super) fn widen(&mut self, key: IntegrationKey, whole: bool) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.window = match whole {
                // More only helps where there is more to send.
                true if lane.delivery.waiting() == 0 => lane.window,
                true => lane.window + 1,
                false => lane.window / 2,
            }
            .clamp(1, self.limits.turns_each);
        }
    }

    pub(super) fn back_off(&mut self, key: IntegrationKey, until: Instant) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            let nap = lane.nap_until.take();
            nap.map(|nap| self.wakes.remove(&(nap, key)));
            let before = lane.retry_at.replace(until);
            before.map(|before| self.wakes.remove(&(before, key)));
            self.wakes.insert((until, key));
        }
    }

    /// The integration was configured: what was met before says nothing of it now.
    pub(super) fn configured(&mut self, key: IntegrationKey) {
        self.mend(key, Class::Probe);
    }

    /// A test event got through.
    pub(super) fn tested(&mut self, key: IntegrationKey) {
        self.mend(key, Class::Quick);
    }

    fn mend(&mut self, key: IntegrationKey, class: Class) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.mended = self.places.last_turn();
            lane.undelivered_since = Instant::now();
            let cut = self.places.cut_all(key);
            self.cut(cut);
            self.expect(key, class);
            self.end_back_off(key);
            self.queue(key);
        }
    }

    /// This service can deliver again: what waits for that is tried at once.
    pub(super) fn service_recovered(&mut self) {
        let waiting = self.by_key.iter();
        let waiting: Vec<_> = waiting
            .filter(|(_, lane)| lane.backoff.is_own_fault())
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            self.end_back_off(key);
        }
    }

    /// Lanes of which nothing has been accepted since before a moment, and why.
    pub(super) fn stalled_since(&self, before: Instant) -> Vec<(IntegrationKey, Option<Reason>)> {
        let lanes = self.by_key.iter();
        lanes
            .filter(|(_, lane)| lane.undelivered_since <= before)
            .map(|(key, lane)| (*key, lane.last_obstacle))
            .collect()
    }

    /// Ends a back-off at once, where there is one, and forgets the failures.
    pub(super) fn end_back_off(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.backoff.reset();
            if let Some(at) = lane.retry_at.take() {
                self.wakes.remove(&(at, key));
                self.queue(key);
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let (wake, expiry) = (self.wakes.first(), self.expiries.first());
        let times = wake.into_iter().chain(expiry);
        times.map(|(at, _)| *at).min()
    }

    /// Queues the lanes that have rested.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.wakes.first().copied()
            && at <= now
        {
            self.wakes.remove(&(at, key));
            if let Some(lane) = self.by_key.get_mut(&key) {
                lane.retry_at = None;
                lane.nap_until = None;
            }
            self.queue(key);
        }
    }

    pub(super) fn remove(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.remove(&key) {
            self.loaded_bytes -= lane.delivery.bytes();
            for at in [lane.retry_at, lane.nap_until].into_iter().flatten() {
                self.wakes.remove(&(at, key));
            }
            if let Some(at) = lane.expiry.at {
                self.expiries.remove(&(at, key));
            }
            lane.queued.map(|ticket| self.places.leave_queue(ticket));
        }
    }

    /// Lets go of what a lane has at hand, where nothing depends on it.
    pub(super) fn unload(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key)
            && lane.turns == 0
            && lane.unsaved == 0
            && lane.delivery.in_flight() == 0
            && !lane.delivery.is_empty()
        {
            self.loaded_bytes -= lane.delivery.bytes();
            if let Some(from) = lane.delivery.unload() {
                lane.cursor = from;
            }
        }
    }

    /// Ends the lane where nothing is left to do in it. `log_end` is the sequence
    /// that the next event will get.
    pub(super) fn close_if_done(&mut self, key: IntegrationKey, log_end: u64) {
        let done = self.by_key.get(&key).is_some_and(|lane| {
            lane.turns == 0
                && lane.unsettled == 0
                && lane.delivery.is_empty()
                && lane.cursor >= log_end
                && !lane.expiry.running
                && lane.expiry.untold.is_none()
        });
        if done {
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
