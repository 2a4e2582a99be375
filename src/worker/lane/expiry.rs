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

    /// A lane was looked at, and is again `at` a moment; where `rests`, not before it.
    pub(in crate::worker) fn end_expiry(&mut self, key: IntegrationKey, at: Instant, rests: bool) {
        let Some(lane) = self.by_key.get_mut(&key) else {
            return;
        };
        lane.expiry.running = false;
        lane.expiry.holds = false;
        lane.expiry.rests_until = rests.then_some(at);
        self.expire_at(key, at);
        self.queue(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::worker::lane::LaneLimits;

    const ONE: IntegrationKey = IntegrationKey(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn lanes() -> Lanes {
        let mut lanes = Lanes::new(LaneLimits {
            turns: 16,
            turns_each: 4,
            records: 10,
            linger: Duration::ZERO,
        });
        lanes.open(ONE, Uuid::nil(), 1, true);
        lanes
    }

    #[test]
    fn looks_at_the_earliest_time_and_at_one_thing_at_a_time() {
        let (mut lanes, now) = (lanes(), Instant::now());
        assert!(!lanes.knows_expiry(ONE));
        lanes.expire_at(ONE, now + 9 * SECOND);
        lanes.expire_at(ONE, now + 5 * SECOND);
        lanes.expire_at(ONE, now + 7 * SECOND);
        assert_eq!(lanes.next_wake(), Some(now + 5 * SECOND));
        assert_eq!(lanes.begin_expiry(now + 4 * SECOND), None);
        assert_eq!(lanes.begin_expiry(now + 5 * SECOND), Some(ONE));
        lanes.expire_at(ONE, now);
        assert_eq!(
            lanes.begin_expiry(now + 9 * SECOND),
            None,
            "it is under way"
        );
        assert!(lanes.knows_expiry(ONE));
        lanes.end_expiry(ONE, now + 20 * SECOND, true);
        lanes.expire_at(ONE, now + 6 * SECOND);
        assert_eq!(lanes.next_wake(), Some(now + 20 * SECOND), "it rests");
        lanes.remove(ONE);
        assert_eq!(lanes.next_wake(), None);
    }

    #[test]
    fn no_turn_begins_while_it_is_held() {
        let (mut lanes, now) = (lanes(), Instant::now());
        lanes.queue(ONE);
        lanes.expire_at(ONE, now);
        lanes.hold(ONE);
        assert!(lanes.next_turn().is_none());
        lanes.queue(ONE);
        assert!(lanes.next_turn().is_none());
        assert_eq!(lanes.begin_expiry(now), Some(ONE));
        lanes.close_if_done(ONE, 1);
        assert!(lanes.get(ONE).is_some(), "what looks at it finds it");
        lanes.end_expiry(ONE, now + SECOND, false);
        let (key, turn) = lanes.next_turn().expect("it was queued");
        assert_eq!(key, ONE);
        lanes.end_turn(ONE, turn);
        lanes.close_if_done(ONE, 1);
        assert!(lanes.get(ONE).is_none());
    }
}
