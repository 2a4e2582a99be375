//! Whose turn it is. A lane exists for an integration that has work; no lane, no cost.

use std::collections::{BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;
use uuid::Uuid;

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

/// All lanes, and the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_key: HashMap<IntegrationKey, Lane>,
    ready: VecDeque<IntegrationKey>,
    retries: BTreeSet<(Instant, IntegrationKey)>,
    /// Turns under way in all.
    pub(super) turns: usize,
    /// Bytes of all chunks at hand.
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
            head: Head::new(integration_id),
            delivery: Delivery::default(),
            cursor: from,
            loading: false,
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
            self.ready.push_back(key);
        }
    }

    /// The next lane that may take a turn.
    pub(super) fn next_ready(&mut self, most_turns_each: usize) -> Option<IntegrationKey> {
        while let Some(key) = self.ready.pop_front() {
            let Some(lane) = self.by_key.get_mut(&key) else {
                continue;
            };
            lane.queued = false;
            let most_turns = match lane.backoff.is_failing() {
                true => 1,
                false => most_turns_each,
            };
            // A lane that is full of turns queues again as they end.
            if lane.retry_at.is_none() && lane.turns < most_turns {
                lane.turns += 1;
                self.turns += 1;
                return Some(key);
            }
        }
        None
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
