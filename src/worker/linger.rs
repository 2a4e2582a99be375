//! How long a request that would not be full waits for company after the one before. Pure.
//!
//! The first after a pause goes at once. Where events come so quickly that waiting makes
//! one request of many, it waits longer: what a request costs is then shared by more.

use std::time::Duration;

use tokio::time::Instant;

/// How much longer than the least a request waits where that is worth it.
const LONGER: u32 = 5;
/// Events that have to come within the longer wait to make it worth it.
const WORTH: f64 = 8.0;

/// The wait of one integration's next request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Linger {
    looked_at: Option<Instant>,
    found_at: Option<Instant>,
    is_longer: bool,
}

impl Linger {
    /// Events were looked for, and so many were found that may go. `least` is the shorter
    /// wait.
    pub(super) fn looked(&mut self, now: Instant, found: usize, least: Duration) {
        self.looked_at = Some(now);
        if found == 0 {
            return;
        }
        let longest = least * LONGER;
        self.is_longer = self.found_at.is_some_and(|before| {
            let span = now.saturating_duration_since(before).max(least);
            // At the rate at which these came.
            found as f64 * longest.as_secs_f64() >= WORTH * span.as_secs_f64() && !least.is_zero()
        });
        self.found_at = Some(now);
    }

    /// When events were looked for last.
    pub(super) fn looked_at(&self) -> Option<Instant> {
        self.looked_at
    }

    /// Until when a request waits that would not be full. None where it need not.
    pub(super) fn until(&self, least: Duration) -> Option<Instant> {
        let wait = match self.is_longer {
            true => least * LONGER,
            false => least,
        };
        self.looked_at.map(|looked_at| looked_at + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(20);

    fn after(looks: &[(u64, usize)], least: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut linger = Linger::default();
        for (millis, found) in looks {
            linger.looked(start + Duration::from_millis(*millis), *found, least);
        }
        let until = linger.until(least)?;
        Some(until - linger.looked_at().unwrap())
    }

    #[test]
    fn the_first_does_not_wait() {
        assert_eq!(after(&[], LEAST), None);
    }

    #[test]
    fn waits_longer_where_many_come() {
        assert_eq!(after(&[(0, 400)], LEAST), Some(LEAST));
        assert_eq!(after(&[(0, 1), (20, 1)], LEAST), Some(LEAST));
        assert_eq!(after(&[(0, 1), (20, 2)], LEAST), Some(LEAST * 5));
        assert_eq!(after(&[(0, 1), (100, 8)], LEAST), Some(LEAST * 5));
        assert_eq!(after(&[(0, 1), (100, 7)], LEAST), Some(LEAST));
        // To look in vain says nothing of how many come.
        assert_eq!(after(&[(0, 1), (20, 2), (25, 0)], LEAST), Some(LEAST * 5));
        assert_eq!(after(&[(0, 1), (99, 0), (100, 7)], LEAST), Some(LEAST));
        // After a pause a burst says little of what comes.
        assert_eq!(after(&[(0, 1), (10_000, 100)], LEAST), Some(LEAST));
    }

    #[test]
    fn none_is_asked_for() {
        let none = Duration::ZERO;
        assert_eq!(after(&[(0, 1), (0, 400)], none), Some(none));
    }
}
