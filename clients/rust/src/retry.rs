//! What to do about a failure, and when.

use rand::Rng;
use tokio::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What a failure calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Send again, later.
    Retry,
    /// The request itself is at fault: sending it again would not help.
    Refuse,
    /// No request would get through.
    Stop,
}

/// For a stream that ended. It does not tell which request is at fault.
pub(super) fn of_stream(code: Code) -> Remedy {
    match code {
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied | Code::NotFound => {
            Remedy::Stop
        }
        // OutOfRange is what tonic says of a message above its decoding limit.
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => Remedy::Refuse,
        _ => Remedy::Retry,
    }
}

/// For the answer to one request, on a stream that goes on.
pub(super) fn of_answer(code: Code, has_retry_info: bool) -> Remedy {
    match code {
        _ if has_retry_info => Remedy::Retry,
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Remedy::Refuse,
        _ => Remedy::Retry,
    }
}

/// Wait that the server asks for in a `RetryInfo`.
pub(super) fn retry_after(status: &Status) -> Option<Duration> {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
}

/// Waits grow with each failure in a row, and end when nothing got through for
/// too long.
#[derive(Debug)]
pub(super) struct Backoff {
    pub(super) min_wait: Duration,
    pub(super) max_wait: Duration,
    pub(super) give_up_after: Duration,
    failures: u32,
    progress: Instant,
}

impl Backoff {
    pub(super) fn new(min_wait: Duration, max_wait: Duration, give_up_after: Duration) -> Self {
        Self {
            min_wait,
            max_wait,
            give_up_after,
            failures: 0,
            progress: Instant::now(),
        }
    }

    /// A request was answered.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
        self.work_began();
    }

    /// There was nothing to do until now, so nothing was late.
    pub(super) fn work_began(&mut self) {
        self.progress = Instant::now();
    }

    /// How long nothing got through.
    pub(super) fn stalled(&self) -> Duration {
        self.progress.elapsed()
    }

    /// How long to wait after one more failure; `None`: give up. What the server
    /// asks for is kept, up to `max_wait`. Jitter keeps clients apart.
    pub(super) fn failed(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let left = self.give_up_after.checked_sub(self.stalled())?;
        if left.is_zero() {
            return None;
        }
        let doubled = 2u32.saturating_pow(self.failures);
        self.failures = self.failures.saturating_add(1);
        let wait = match asked {
            Some(asked) => asked.mul_f64(rand::rng().random_range(1.0..1.25)),
            None => self
                .min_wait
                .saturating_mul(doubled)
                .min(self.max_wait)
                .mul_f64(rand::rng().random_range(0.5..1.0)),
        };
        Some(wait.min(self.max_wait).min(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(5),
            Duration::from_secs(300),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_stay_bounded_and_end() {
        let start = Instant::now();
        let mut backoff = backoff();
        let mut waits = Vec::new();
        while let Some(wait) = backoff.failed(None) {
            waits.push(wait);
            tokio::time::advance(wait).await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(300));
        assert!(waits[0] >= Duration::from_millis(50) && waits[0] < Duration::from_millis(100));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(5)));
        assert!(waits[20] >= Duration::from_millis(2500));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_starts_over() {
        let mut backoff = backoff();
        for _ in 0..10 {
            backoff.failed(None);
        }
        tokio::time::advance(Duration::from_secs(299)).await;
        backoff.progress();
        tokio::time::advance(Duration::from_secs(299)).await;
        assert!(backoff.failed(None).unwrap() < Duration::from_millis(100));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(backoff.failed(None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_wish_counts_within_bounds() {
        let mut backoff = backoff();
        let wait = backoff.failed(Some(Duration::from_secs(2))).unwrap();
        assert!(wait >= Duration::from_secs(2) && wait < Duration::from_millis(2500));
        let wait = backoff.failed(Some(Duration::from_secs(3600))).unwrap();
        assert_eq!(wait, Duration::from_secs(5));
    }

    #[test]
    fn what_each_failure_calls_for() {
        for code in [
            Code::Unavailable,
            Code::ResourceExhausted,
            Code::Aborted,
            Code::Internal,
        ] {
            assert_eq!(of_stream(code), Remedy::Retry, "{code:?}");
            assert_eq!(of_answer(code, false), Remedy::Retry, "{code:?}");
        }
        assert_eq!(of_answer(Code::InvalidArgument, false), Remedy::Refuse);
        assert_eq!(of_answer(Code::FailedPrecondition, true), Remedy::Retry);
        assert_eq!(of_stream(Code::OutOfRange), Remedy::Refuse);
        assert_eq!(of_stream(Code::Unimplemented), Remedy::Stop);
    }
}
