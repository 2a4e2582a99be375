//! Whose turn it is. A lane exists for an integration that has work; no lane, no cost.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use tokio::{sync::RwLock, time::Instant};
use uuid::Uuid;

use crate::domain::{
    backoff::Backoff, delivery::Delivery, event::Head, integration::IntegrationKey,
};

/// One integration with work.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) integration_id: Uuid,
    pub(super) head: Head,
    pub(super) delivery: Delivery,
    /// Whoever reads the log, makes a request or takes in an answer shares it; whoever
    /// gives events up has it alone, so that the lane meanwhile knows what the store does.
    pub(super) still: Arc<RwLock<()>>,
    /// The sequence from which the log is read next.
    pub(super) cursor: u64,
    /// A turn is reading the log.
    pub(super) loading: bool,
    /// The last request could have held more, had other keys been at hand.
    pub(super) starved: bool,
    /// Its last call took long.
    pub(super) slow: bool,
    /// Turns under way.
    pub(super) turns: usize,
    /// Attempts whose settlement is not durable yet.
    pub(super) unsettled: usize,
    /// Failures in a row.
    pub(super) backoff: Backoff,
    /// Failures of some records in a row, while others pass.
    pub(super) pace: Backoff,
    pub(super) retry_at: Option<Instant>,
    queued: bool,
}

impl Lane {
    /// Whether its turns may take long: then they do not take the place of others'.
    fn is_slow(&self) -> bool {
        self.slow || self.backoff.is_failing()
    }

    fn most_turns(&self, each: usize) -> usize {
        match (self.backoff.is_failing(), self.slow) {
            (true, _) => 1,
            (false, true) => each.div_ceil(2),
            (false, false) => each,
        }
    }
}

/// How many turns may be under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct TurnLimits {
    /// Of lanes that answer quickly.
    pub(super) quick: usize,
    /// Of lanes that fail or take long.
    pub(super) slow: usize,
    /// Of one lane.
    pub(super) each: usize,
}

impl TurnLimits {
    /// A quarter is for those that fail or take long, so that the rest never waits for
    /// them.
    pub(super) fn new(most: usize, each: usize) -> Self {
        let slow = (most / 4).max(1);
        Self {
            quick: most.saturating_sub(slow).max(1),
            slow,
            each,
        }
    }
}

/// Which allowance a turn counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowance {
    Quick,
    Slow,
}

/// All lanes, and the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_key: HashMap<IntegrationKey, Lane>,
    ready: VecDeque<IntegrationKey>,
    ready_slow: VecDeque<IntegrationKey>,
    retries: BTreeSet<(Instant, IntegrationKey)>,
    quick_turns: usize,
    slow_turns: usize,
    /// Bytes of all chunks at hand, and of those that are being read.
    pub(super) loaded_bytes: usize,
}

impl Lanes {
    pub(super) fn get(&mut self, key: IntegrationKey) -> Option<&mut Lane> {
        self.by_key.get_mut(&key)
    }

    /// Makes the lane of an integration that has work from a sequence on, where it
    /// has none, and queues it.
    pub(super) fn open(&mut self, key: IntegrationKey, integration_id: Uuid, from: u64) {
        self.by_key.entry(key).or_insert_with(|| Lane {
            integration_id,
            head: Head::new(integration_id),
            delivery: Delivery::default(),
            still: Arc::default(),
            cursor: from,
            loading: false,
            starved: false,
            slow: false,
            turns: 0,
            unsettled: 0,
            backoff: Backoff::default(),
            pace: Backoff::default(),
            retry_at: None,
            queued: false,
        });
        self.queue(key);
    }

    /// Puts a lane behind all that wait, unless it waits already or backs off.
    pub(super) fn queue(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key)
            && lane.retry_at.is_none()
            && !lane.queued
        {
            lane.queued = true;
            match lane.is_slow() {
                true => self.ready_slow.push_back(key),
                false => self.ready.push_back(key),
            }
        }
    }

    /// The next lane that may take a turn.
    pub(super) fn next_ready(&mut self, most: TurnLimits) -> Option<(IntegrationKey, Allowance)> {
        while self.quick_turns < most.quick
            && let Some(key) = self.ready.pop_front()
        {
            if self.by_key.get(&key).is_some_and(Lane::is_slow) {
                self.ready_slow.push_back(key);
            } else if self.begin_turn(key, most.each) {
                self.quick_turns += 1;
                return Some((key, Allowance::Quick));
            }
        }
        while self.slow_turns < most.slow
            && let Some(key) = self.ready_slow.pop_front()
        {
            if self.begin_turn(key, most.each) {
                self.slow_turns += 1;
                return Some((key, Allowance::Slow));
            }
        }
        None
    }

    fn begin_turn(&mut self, key: IntegrationKey, each: usize) -> bool {
        let Some(lane) = self.by_key.get_mut(&key) else {
            return false;
        };
        lane.queued = false;
        // A lane that is full of turns queues again as they end.
        let may = lane.retry_at.is_none() && lane.turns < lane.most_turns(each);
        lane.turns += usize::from(may);
        may
    }

    /// A turn takes long: its lane is slow from now on, and the turn gives its place
    /// to a quick one.
    pub(super) fn slow_down(&mut self, key: IntegrationKey, allowance: &mut Allowance) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.slow = true;
        }
        if *allowance == Allowance::Quick {
            *allowance = Allowance::Slow;
            self.quick_turns -= 1;
            self.slow_turns += 1;
        }
    }

    /// Returns whether the lane is still there.
    pub(super) fn end_turn(&mut self, key: IntegrationKey, allowance: Allowance) -> bool {
        match allowance {
            Allowance::Quick => self.quick_turns -= 1,
            Allowance::Slow => self.slow_turns -= 1,
        }
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

    /// What was met under another configuration no longer counts.
    pub(super) fn configured(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.delivery.forget_refusals();
        }
        self.end_back_off(key);
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
