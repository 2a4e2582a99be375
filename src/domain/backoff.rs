//! Delays between the attempts of a failing integration. Time and randomness are arguments.

use std::time::{Duration, Instant};

use super::status::{Fault, Meaning};

/// Configured delays between retries.
#[derive(Clone, Copy, Debug)]
pub struct BackoffPolicy {
    /// Delay between attempts of a refused integration in its first minute. IAM is
    /// [eventually consistent], so a policy that was just corrected may not apply yet.
    ///
    /// [eventually consistent]: https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency
    pub refused_first: Duration,
    /// Longest delay between attempts of a refused integration.
    pub refused_max: Duration,
}

/// Time for which refusals are retried with the first delay, before it doubles.
const FIRST_DELAY_PERIOD: Duration = Duration::from_secs(60);
const THROTTLED_FIRST: Duration = Duration::from_millis(100);
const THROTTLED_MAX: Duration = Duration::from_secs(5);
const UNREACHABLE_FIRST: Duration = Duration::from_millis(200);
const UNREACHABLE_MAX: Duration = Duration::from_secs(10);

/// Consecutive failures of one integration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    since: Option<Instant>,
    doublings: u32,
    /// The last failure was a fault of this service.
    is_own_fault: bool,
}

impl Backoff {
    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the last attempt failed because of a fault of this service.
    pub fn is_own_fault(&self) -> bool {
        self.is_own_fault
    }

    /// Forgets the failures, after a record was accepted or the integration was changed.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Records an attempt that failed at `now`, and returns the delay before the next one.
    /// `jitter` is in 0..1 and spreads the retries of integrations that fail together.
    pub fn fail(
        &mut self,
        policy: &BackoffPolicy,
        now: Instant,
        fault: &Fault,
        jitter: f64,
    ) -> Duration {
        let since = *self.since.get_or_insert(now);
        let meaning = fault.meaning();
        self.is_own_fault = meaning == Meaning::Ours;
        let delay = match meaning {
            Meaning::Throttled => doubled(THROTTLED_FIRST, self.doublings, THROTTLED_MAX),
            Meaning::Unreachable => doubled(UNREACHABLE_FIRST, self.doublings, UNREACHABLE_MAX),
            Meaning::Refused(_) | Meaning::SessionInvalid | Meaning::Ours => {
                if now.duration_since(since) < FIRST_DELAY_PERIOD {
                    return jittered(policy.refused_first, jitter);
                }
                doubled(policy.refused_first, self.doublings + 1, policy.refused_max)
            }
        };
        self.doublings = self.doublings.saturating_add(1);
        jittered(delay, jitter)
    }
}

fn doubled(first: Duration, doublings: u32, max: Duration) -> Duration {
    first.saturating_mul(1 << doublings.min(16)).min(max)
}

/// Between 80% and 100% of the delay, so that jitter never exceeds a maximum.
fn jittered(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.8 + 0.2 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::status::{Cause, Stage};
    use proptest::prelude::*;

    const POLICY: BackoffPolicy = BackoffPolicy {
        refused_first: Duration::from_secs(5),
        refused_max: Duration::from_secs(300),
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
        fn delays_stay_within_their_bounds(jitters in prop::collection::vec(0.0..1.0f64, 1..60), timeout: bool) {
            let fault = match timeout {
                true => Fault { stage: Stage::Write, cause: Cause::Timeout, request_id: None },
                false => denied(),
            };
            let (min, max) = match timeout {
                true => (Duration::from_millis(160), UNREACHABLE_MAX),
                false => (Duration::from_secs(4), POLICY.refused_max),
            };
            let mut backoff = Backoff::default();
            let mut now = Instant::now();
            for jitter in jitters {
                let delay = backoff.fail(&POLICY, now, &fault, jitter);
                prop_assert!(min <= delay && delay <= max, "{delay:?}");
                now += delay;
            }
        }
    }
}
