//! Whose turn it is. A lane exists for an integration that has work; no lane, no cost.

use std::collections::{BTreeSet, HashMap};

use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use super::places::{Class, Places, Ticket, Turn};
use crate::domain::{
    backoff::Backoff, delivery::Delivery, event::Head, integration::IntegrationKey,
};

/// One integration with work.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) head: Head,
    pub(super) delivery: Delivery,
    /// The sequence from which the log is read next.
    pub(super) cursor: u64,
    /// A turn is reading the log.
    pub(super) loading: bool,
    /// The last request could have held more, had other keys been at hand.
    pub(super) starved: bool,
    /// What is expected of its next call.
    pub(super) class: Class,
    /// Turns under way.
    pub(super) turns: usize,
    /// Attempts whose settlement is not durable yet.
    pub(super) unsettled: usize,
    /// Failures in a row.
    pub(super) backoff: Backoff,
    /// Failures of some records in a row, while others pass.
    pub(super) pace: Backoff,
    pub(super) retry_at: Option<Instant>,
    /// Turns up to this one began before something was mended.
    mended: u64,
    queued: Option<Ticket>,
}

impl Lane {
    fn new(integration_id: Uuid, from: u64, class: Class) -> Self {
        Self {
            head: Head::new(integration_id),
            delivery: Delivery::default(),
            cursor: from,
            loading: false,
            starved: false,
            class,
            turns: 0,
            unsettled: 0,
            backoff: Backoff::default(),
            pace: Backoff::default(),
            retry_at: None,
            mended: 0,
            queued: None,
        }
    }

    /// Whether what a turn met is of the time before something was mended.
    pub(super) fn is_outdated(&self, turn: &Turn) -> bool {
        turn.id <= self.mended
    }

    /// Whether it has all the turns that it may have. It queues again as they end.
    fn is_busy(&self, each: usize) -> bool {
        let most = match self.class {
            Class::Quick => each,
            Class::Slow => each.div_ceil(2),
            Class::Probe | Class::Hanging => 1,
        };
        self.turns >= most
    }
}

/// All lanes, and the order of their turns.
#[derive(Debug)]
pub(super) struct Lanes {
    by_key: HashMap<IntegrationKey, Lane>,
    places: Places,
    /// Turns of one lane at the most.
    each: usize,
    /// Turns that take long, and how to tell them to end.
    overdue: HashMap<u64, oneshot::Sender<()>>,
    retries: BTreeSet<(Instant, IntegrationKey)>,
    /// Bytes of all chunks at hand, and of those that are being read.
    pub(super) loaded_bytes: usize,
}

impl Lanes {
    /// With so many turns in all, and of one lane.
    pub(super) fn new(most: usize, each: usize) -> Self {
        Self {
            by_key: HashMap::new(),
            places: Places::new(most),
            each,
            overdue: HashMap::new(),
            retries: BTreeSet::new(),
            loaded_bytes: 0,
        }
    }

    pub(super) fn get(&mut self, key: IntegrationKey) -> Option<&mut Lane> {
        self.by_key.get_mut(&key)
    }

    /// Makes the lane of an integration that has work from a sequence on, where it
    /// has none, and queues it. `proven` is whether its last attempt succeeded.
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
        self.queue(key);
    }

    /// Queues a lane, unless it waits already, backs off or has its turns.
    pub(super) fn queue(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key)
            && lane.retry_at.is_none()
            && lane.queued.is_none()
            && !lane.is_busy(self.each)
        {
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
    pub(super) fn next_turn(&mut self) -> Option<(IntegrationKey, Turn)> {
        while let Some((key, class)) = self.places.call_next() {
            if let Some(lane) = self.by_key.get_mut(&key) {
                lane.queued = None;
                if lane.retry_at.is_none() && !lane.is_busy(self.each) {
                    lane.turns += 1;
                    return Some((key, self.places.take(class)));
                }
            }
        }
        None
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
        if self.get(key).is_some_and(|lane| lane.class != Class::Slow) {
            self.expect(key, Class::Hanging);
        }
        self.places.overdue(key, turn);
        let (cut, told) = oneshot::channel();
        self.overdue.insert(turn.id, cut);
        told
    }

    /// Returns whether the lane is still there.
    pub(super) fn end_turn(&mut self, key: IntegrationKey, turn: Turn) -> bool {
        self.overdue.remove(&turn.id);
        self.places.leave(turn);
        let lane = self.by_key.get_mut(&key);
        lane.map(|lane| lane.turns -= 1).is_some()
    }

    pub(super) fn back_off(&mut self, key: IntegrationKey, until: Instant) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            let before = lane.retry_at.replace(until);
            before.map(|before| self.retries.remove(&(before, key)));
            self.retries.insert((until, key));
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
            let cut = self.places.cut_all(key);
            self.cut(cut);
            self.expect(key, class);
            self.end_back_off(key);
        }
    }

    /// Ends a back-off at once, and forgets the failures.
    pub(super) fn end_back_off(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.backoff.reset();
            if let Some(at) = lane.retry_at.take() {
                self.retries.remove(&(at, key));
            }
            self.queue(key);
        }
    }

    /// When the next back-off ends.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Queues the lanes whose back-off has ended.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.retries.first().copied()
            && at <= now
        {
            self.retries.remove(&(at, key));
            if let Some(lane) = self.by_key.get_mut(&key) {
                lane.retry_at = None;
            }
            self.queue(key);
        }
    }

    pub(super) fn remove(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.remove(&key) {
            self.loaded_bytes -= lane.delivery.bytes();
            if let Some(at) = lane.retry_at {
                self.retries.remove(&(at, key));
            }
            lane.queued.map(|ticket| self.places.leave_queue(ticket));
        }
    }

    /// Lets go of what a lane has at hand, where nothing depends on it.
    pub(super) fn unload(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key)
            && lane.turns == 0
            && lane.unsettled == 0
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
        });
        if done {
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
