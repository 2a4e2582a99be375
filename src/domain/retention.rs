//! Limits on the age and size of the events that wait for delivery.

use std::time::Duration;

use jiff::Timestamp;

/// Limits of one integration's pending events.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Longest time for which an event is kept.
    pub age: Duration,
    /// Most bytes of events that are kept, before compression.
    pub bytes: u64,
}

/// An integration over its byte limit is brought below it by this fraction (1/64) of the
/// limit, so that an integration that is always over the limit does not expire events at every
/// append.
const SLACK: u64 = 64;

impl Retention {
    /// Acceptance time up to which events are too old.
    pub fn accepted_before(&self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.age).unwrap_or(Timestamp::MIN)
    }

    /// Time left until events accepted at `accepted_at` are too old.
    pub fn until_too_old(&self, accepted_at: Timestamp, now: Timestamp) -> Duration {
        let age = now.duration_since(accepted_at);
        let left = jiff::SignedDuration::try_from(self.age)
            .unwrap_or(jiff::SignedDuration::MAX)
            .saturating_sub(age);
        Duration::try_from(left).unwrap_or_default()
    }

    /// Whether pending events exceed the byte limit, so that some have to expire.
    pub fn is_exceeded(&self, pending_bytes: u64) -> bool {
        pending_bytes > self.bytes
    }

    /// Bytes of the pending events that may be kept.
    pub fn keep_bytes(&self, pending_bytes: u64) -> u64 {
        match self.is_exceeded(pending_bytes) {
            true => self.bytes - self.bytes / SLACK,
            false => self.bytes,
        }
    }

    /// Time between two checks for events that are too old. Events that pass the age limit
    /// between them expire together.
    pub fn pause(&self) -> Duration {
        (self.age / 1000).clamp(Duration::from_millis(10), Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn events_expire_at_the_age_limit() {
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
    fn an_exceeded_byte_limit_is_undercut() {
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
