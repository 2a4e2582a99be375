//! Rate of the AWS calls that deliver nothing: tests, validations, probes of trust policies, and
//! evidence about this service's own identity. AWS limits all calls of an account together, so
//! that those of tests must leave a share to delivery, which is never held up here.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::domain::rate::{Level, Rate};

/// 100 calls per second. STS grants an account some hundreds per second and region ([quotas]), of
/// which delivery to 10,000 integrations needs three on average.
///
/// [quotas]: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
const CALLS: Rate = Rate::new(Duration::from_millis(10), 100);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace(Mutex<Level>);

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(Level::full(Instant::now().into_std())))
    }
}

impl Pace {
    fn level(&self) -> MutexGuard<'_, Level> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a test may make this number of calls, at most a burst.
    pub(super) async fn admit(&self, calls: u32) {
        loop {
            let wait = {
                let (mut level, now) = (self.level(), Instant::now().into_std());
                let wait = level.wait(CALLS, calls, now);
                if wait.is_zero() {
                    level.charge(CALLS, calls, now);
                    return;
                }
                wait
            };
            sleep(wait).await;
        }
    }

    /// Counts a call that does not wait, because delivery may need its answer. Tests wait longer
    /// instead.
    pub(super) fn count(&self) {
        self.level().charge(CALLS, 1, Instant::now().into_std());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tests_wait_for_their_rate_and_for_what_delivery_needed() {
        let (pace, start) = (Pace::default(), Instant::now());
        let admitted = (0..100).map(|_| pace.admit(2));
        futures_util::future::join_all(admitted).await;
        // The first 100 calls are the burst.
        let took = start.elapsed();
        assert!((990..1_200).contains(&took.as_millis()), "{took:?}");
        tokio::time::advance(Duration::from_secs(2)).await;
        for _ in 0..150 {
            pace.count();
        }
        let start = Instant::now();
        pace.admit(1).await;
        let took = start.elapsed();
        assert!((500..600).contains(&took.as_millis()), "{took:?}");
    }
}
