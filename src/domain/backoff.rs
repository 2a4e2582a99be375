//! When a failing integration is tried again. Pure: time and chance come in.

use std::time::{Duration, Instant};

use super::status::{Fault, Meaning};

/// The waits of the retry loop.
#[derive(Clone, Copy, Debug)]
pub struct BackoffPolicy {
    /// Between attempts of a refused integration in its first minute. IAM is
    /// [eventually consistent], so what was just mended may still be refused.
    ///
    /// [eventually consistent]: https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency
    pub refused_first: Duration,
    /// The longest between attempts of a refused integration.
    pub refused_most: Duration,
}

/// How long refusals are retried at the first step before the wait doubles.
const FRESH: Duration = Duration::from_secs(60);
const THROTTLED_FIRST: Duration = Duration::from_millis(100);
const THROTTLED_MOST: Duration = Duration::from_secs(5);
const UNREACHABLE_FIRST: Duration = Duration::from_millis(200);
const UNREACHABLE_MOST: Duration = Duration::from_secs(10);

/// What one integration remembers of its failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    since: Option<Instant>,
    steps: u32,
    /// The last failure was this service's own.
    is_for_service: bool,
}

impl Backoff {
    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the last attempt failed for a fault of this service.
    pub fn is_for_service(&self) -> bool {
        self.is_for_service
    }

    /// Forgets the failures: something got through, or someone changed something.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// How long to wait after an attempt that failed at `now`. `chance` is in 0..1
    /// and spreads the waits of many integrations.
    pub fn fail(
        &mut self,
        policy: &BackoffPolicy,
        now: Instant,
        fault: &Fault,
        chance: f64,
    ) -> Duration {
        let since = *self.since.get_or_insert(now);
        let meaning = fault.meaning();
        self.is_for_service = meaning == Meaning::Ours;
        let wait = match meaning {
            Meaning::Throttled => doubled(THROTTLED_FIRST, self.steps, THROTTLED_MOST),
            Meaning::Unreachable => doubled(UNREACHABLE_FIRST, self.steps, UNREACHABLE_MOST),
            Meaning::Refused(_) | Meaning::SessionInvalid | Meaning::Ours => {
                if now.duration_since(since) < FRESH {
                    // Counts only once the first minute is over.
                    return jittered(policy.refused_first, chance);
                }
                doubled(policy.refused_first, self.steps + 1, policy.refused_most)
            }
        };
        self.steps = self.steps.saturating_add(1);
        jittered(wait, chance)
    }
}

fn doubled(first: Duration, steps: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << steps.min(16)).min(most)
}

/// Between 80% and 100% of the wait, so that the longest stays the longest.
fn jittered(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(0.8 + 0.2 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::status::{Cause, Stage};
    use proptest::prelude::*;

    const POLICY: BackoffPolicy = BackoffPolicy {
        refused_first: Duration::from_secs(5),
        refused_most: Duration::from_secs(300),
    };

    fn denied() -> Fault {
        Fault {
            stage: Stage::AssumeRole,
            cause: Cause::Service {
                code: "AccessDenied".into(),
                http_status: 403,
            },
            request_id: None,
        }
    }

    #[test]
    fn a_broken_integration_costs_at_most_20_calls_an_hour_after_its_first_minute() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let (mut now, mut calls) = (start, 0);
        while now < start + Duration::from_secs(3660) {
            if now >= start + Duration::from_secs(60) {
                calls += 1;
            }
            now += backoff.fail(&POLICY, now, &denied(), 0.0);
        }
        assert!(calls <= 20, "{calls} calls");
    }

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(chances in prop::collection::vec(0.0..1.0f64, 1..60), timeout: bool) {
            let fault = match timeout {
                true => Fault { stage: Stage::Write, cause: Cause::Timeout, request_id: None },
                false => denied(),
            };
            let (least, most) = match timeout {
                true => (Duration::from_millis(160), UNREACHABLE_MOST),
                false => (Duration::from_secs(4), POLICY.refused_most),
            };
            let mut backoff = Backoff::default();
            let mut now = Instant::now();
            for chance in chances {
                let wait = backoff.fail(&POLICY, now, &fault, chance);
                prop_assert!(least <= wait && wait <= most, "{wait:?}");
                now += wait;
            }
        }
    }
}
