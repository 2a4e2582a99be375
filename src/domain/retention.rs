//! How long events wait for delivery at the most, and how many.

use std::time::Duration;

use jiff::Timestamp;

/// The limits of one integration's log.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// How long events are kept.
    pub age: Duration,
    /// How many bytes of them are kept, before compression.
    pub bytes: u64,
}

/// A log that is over its limit is brought below it by this part of the limit, so that
/// one that overflows all the time does not expire events at every append.
const SLACK: u64 = 64;

impl Retention {
    /// Events that were accepted up to this moment are too old.
    pub fn accepted_before(&self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.age).unwrap_or(Timestamp::MIN)
    }

    /// How long it takes until events of a moment are too old.
    pub fn until_too_old(&self, accepted_at: Timestamp, now: Timestamp) -> Duration {
        let age = now.duration_since(accepted_at);
        let left = jiff::SignedDuration::try_from(self.age)
            .unwrap_or(jiff::SignedDuration::MAX)
            .saturating_sub(age);
        Duration::try_from(left).unwrap_or_default()
    }

    /// Whether so much waits that some of it has to go.
    pub fn is_exceeded(&self, pending_bytes: u64) -> bool {
        pending_bytes > self.bytes
    }

    /// What may stay of a log.
    pub fn keep_bytes(&self, pending_bytes: u64) -> u64 {
        match self.is_exceeded(pending_bytes) {
            true => self.bytes - self.bytes / SLACK,
            false => self.bytes,
        }
    }

    /// How long events may be too old before that is looked for again: events that
    /// become too old one after the other go together.
    pub fn pause(&self) -> Duration {
        (self.age / 1000).clamp(Duration::from_millis(10), Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn says_what_is_too_old_and_when() {
        let retention = Retention {
            age: DAY,
            bytes: 6400,
        };
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        let limit = retention.accepted_before(now);
        assert_eq!(now.duration_since(limit).as_secs(), 86_400);
        assert_eq!(retention.until_too_old(now, now), DAY);
        assert_eq!(retention.until_too_old(limit, now), Duration::ZERO);
        let long_ago = Timestamp::UNIX_EPOCH;
        assert_eq!(retention.until_too_old(long_ago, now), Duration::ZERO);
        // The clock was set back.
        assert_eq!(retention.until_too_old(now, limit), DAY * 2);
    }

    #[test]
    fn a_log_over_its_limit_is_brought_below_it() {
        let retention = Retention {
            age: DAY,
            bytes: 6400,
        };
        assert!(!retention.is_exceeded(6400));
        assert_eq!(retention.keep_bytes(6400), 6400);
        assert!(retention.is_exceeded(6401));
        assert_eq!(retention.keep_bytes(6401), 6300);
    }
}
