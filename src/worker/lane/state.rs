//! One integration with work.

use std::{sync::Arc, time::Duration};

use tokio::{sync::RwLock, time::Instant};
use uuid::Uuid;

use super::expiry::Expiry;
use crate::{
    domain::{backoff::Backoff, delivery::Delivery, shard_rates::ShardRates, status::Reason},
    worker::places::{Class, Ticket, Turn},
};

/// Requests of one integration side by side before success says that more may be.
pub(super) const FIRST_WINDOW: usize = 2;

/// One integration with work.
#[derive(Debug)]
pub(in crate::worker) struct Lane {
    pub(in crate::worker) integration_id: Uuid,
    pub(in crate::worker) delivery: Delivery,
    /// Whoever gives events up has it alone; reading, requests and answers share it.
    pub(in crate::worker) still: Arc<RwLock<()>>,
    /// The sequence from which the log is read next.
    pub(in crate::worker) cursor: u64,
    /// A turn is reading the log.
    pub(in crate::worker) loading: bool,
    /// The last request could have held more, had other keys been at hand.
    pub(in crate::worker) starved: bool,
    /// What is expected of its next call.
    pub(in crate::worker) class: Class,
    /// Turns under way.
    pub(in crate::worker) turns: usize,
    /// Attempts whose settlement is not durable yet.
    pub(in crate::worker) unsettled: usize,
    /// Those of them that change what the log says of its events.
    pub(in crate::worker) unsaved: usize,
    /// When something of it was accepted, or it began to wait.
    pub(in crate::worker) undelivered_since: Instant,
    /// Why nothing was accepted at the last attempt, where that is no refusal.
    pub(in crate::worker) last_obstacle: Option<Reason>,
    /// Failures in a row.
    pub(in crate::worker) backoff: Backoff,
    pub(in crate::worker) retry_at: Option<Instant>,
    /// When it is looked at again, though it does not back off.
    pub(super) nap_until: Option<Instant>,
    /// What its stream takes, once that has refused something.
    pub(in crate::worker) flow: Option<Box<ShardRates>>,
    /// Its stream has to take more before more can go.
    pub(in crate::worker) limited: bool,
    /// While others of its requests are under way, it sends none that has room for more
    /// before this.
    pub(in crate::worker) held_until: Option<Instant>,
    /// When it last looked for something to send.
    pub(in crate::worker) looked_at: Option<Instant>,
    /// How many requests may be under way, as far as its success says.
    pub(in crate::worker) window: usize,
    /// How it stands with retention.
    pub(in crate::worker) expiry: Expiry,
    /// Turns up to this one began before something was mended.
    pub(super) mended: u64,
    pub(super) queued: Option<Ticket>,
}

impl Lane {
    pub(super) fn new(integration_id: Uuid, from: u64, class: Class) -> Self {
        Self {
            integration_id,
            delivery: Delivery::default(),
            still: Arc::default(),
            cursor: from,
            loading: false,
            starved: false,
            class,
            turns: 0,
            unsettled: 0,
            unsaved: 0,
            undelivered_since: Instant::now(),
            last_obstacle: None,
            backoff: Backoff::default(),
            retry_at: None,
            nap_until: None,
            flow: None,
            limited: false,
            held_until: None,
            looked_at: None,
            window: FIRST_WINDOW,
            expiry: Expiry::default(),
            mended: 0,
            queued: None,
        }
    }

    /// Until when a request that has room for more waits for those under way, which free
    /// their keys. None where nothing is to be waited for.
    pub(in crate::worker) fn may_hold_until(
        &self,
        linger: Duration,
        now: Instant,
    ) -> Option<Instant> {
        if self.flow.is_some() || self.delivery.is_narrowing() || self.delivery.in_flight() == 0 {
            return None;
        }
        let until = self.looked_at? + linger;
        (until > now).then_some(until)
    }

    /// Whether what a turn met is of the time before something was mended.
    pub(in crate::worker) fn is_outdated(&self, turn: &Turn) -> bool {
        turn.id <= self.mended
    }

    /// Whether it has all the turns that it may have. It queues again as they end.
    pub(super) fn is_busy(&self) -> bool {
        let most = match self.class {
            Class::Quick => self.window,
            Class::Slow => self.window.div_ceil(2),
            Class::Probe | Class::Hanging => 1,
        };
        self.turns >= most || self.expiry.holds
    }
}
