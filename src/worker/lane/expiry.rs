//! When it is looked whether what waits in a lane has to expire.

use tokio::time::Instant;

use super::Lanes;
use crate::domain::{event::GapReason, integration::IntegrationKey};

/// How a lane stands with retention.
#[derive(Debug, Default)]
pub(in crate::worker) struct Expiry {
    /// When to look; not before something can be too old.
    pub(super) at: Option<Instant>,
    /// Not to be looked at before.
    rests_until: Option<Instant>,
    /// It is being looked at.
    pub(super) running: bool,
    /// What waits shall expire rather than go out: no request begins.
    pub(super) holds: bool,
    /// Events that expired and were not told of in the log yet, and why they did.
    pub(in crate::worker) untold: Option<(u64, GapReason)>,
    /// When the last were told of.
    pub(in crate::worker) told_at: Option<Instant>,
}

/// When to look at a lane again.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct NextLook {
    pub(in crate::worker) at: Instant,
    /// Not before, whatever comes.
    pub(in crate::worker) rests: bool,
    /// No request begins before, where none may now: what is too old could not be recorded.
    pub(in crate::worker) holds: bool,
}

impl Expiry {
    /// Whether no request may begin.
    pub(in crate::worker) fn holds(&self) -> bool {
        self.holds
    }
}

impl Lanes {
    /// Looks at what waits in a lane at a moment, or earlier.
    pub(in crate::worker) fn expire_at(&mut self, key: IntegrationKey, at: Instant) {
        let Some(lane) = self.by_key.get_mut(&key) else {
            return;
        };
        let expiry = &mut lane.expiry;
        let at = expiry.rests_until.map_or(at, |rests| at.max(rests));
        if expiry.running || expiry.at.is_some_and(|before| before <= at) {
            return;
        }
        if let Some(before) = expiry.at.replace(at) {
            self.expiries.remove(&(before, key));
        }
        self.expiries.insert((at, key));
    }

    /// Whether it is known when a lane is looked at.
    pub(in crate::worker) fn knows_expiry(&self, key: IntegrationKey) -> bool {
        let lane = self.by_key.get(&key);
        lane.is_some_and(|lane| lane.expiry.running || lane.expiry.at.is_some())
    }

    /// A lane that is to be looked at now, if there is one. It is looked at until
    /// [`Lanes::end_expiry`].
    pub(in crate::worker) fn begin_expiry(&mut self, now: Instant) -> Option<IntegrationKey> {
        let (at, key) = self
            .expiries
            .first()
            .copied()
            .filter(|(at, _)| *at <= now)?;
        self.expiries.remove(&(at, key));
        let lane = self.by_key.get_mut(&key)?;
        lane.expiry.at = None;
        lane.expiry.running = true;
        Some(key)
    }

    /// Lets no request of a lane begin until [`Lanes::end_expiry`].
    pub(in crate::worker) fn hold(&mut self, key: IntegrationKey) {
        if let Some(lane) = self.by_key.get_mut(&key) {
            lane.expiry.holds = true;
        }
    }

    /// A lane was looked at, and is again at a moment.
    pub(in crate::worker) fn end_expiry(&mut self, key: IntegrationKey, next: NextLook) {
        let Some(lane) = self.by_key.get_mut(&key) else {
            return;
        };
        lane.expiry.running = false;
        lane.expiry.holds &= next.holds;
        lane.expiry.rests_until = next.rests.then_some(next.at);
        self.expire_at(key, next.at);
        self.queue(key);
    }
}
