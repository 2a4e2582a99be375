//! Classification of failures, and the waits between attempts.

use std::error::Error;

use rand::Rng;
use tokio::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Reaction to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Send again, later.
    Retry,
    /// Give the request up: it is at fault itself and would fail again.
    Refuse,
    /// End: no request can succeed.
    Stop,
}

/// Shortest and longest wait between the attempts of a call or a watch, unless the server asks for a
/// longer one.
pub(super) const MIN_WAIT: Duration = Duration::from_millis(100);
pub(super) const MAX_WAIT: Duration = Duration::from_secs(5);

/// Reaction to the end of a stream. It does not say which request is at fault.
pub(super) fn of_stream(code: Code, has_retry_info: bool) -> Remedy {
    match code {
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied | Code::NotFound => {
            Remedy::Stop
        }
        // tonic answers OUT_OF_RANGE to a message above its decoding limit.
        _ if has_retry_info => Remedy::Retry,
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::ResourceExhausted => Remedy::Refuse,
        _ => Remedy::Retry,
    }
}

/// Reaction to an error that answers one request; the stream stays open.
pub(super) fn of_answer(code: Code, has_retry_info: bool) -> Remedy {
    match code {
        _ if has_retry_info => Remedy::Retry,
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Remedy::Refuse,
        _ => Remedy::Retry,
    }
}

/// Whether the server ends an open stream because the caller's token or certificate has expired
/// or was refused since. Opening the stream again helps once, if it helps.
pub(super) fn needs_new_token(code: Code) -> bool {
    code == Code::Unauthenticated
}

/// Returns UNAVAILABLE in place of the status that tonic derives from a failure of the connection:
/// GOAWAY, RST_STREAM or a closed socket become INTERNAL, UNKNOWN, CANCELLED or
/// PERMISSION_DENIED. Only such a status has a source; one that the server sent has none.
pub(super) fn lost_connection(status: Status) -> Status {
    match (status.source(), status.code()) {
        (None, _) | (Some(_), Code::Unavailable) => status,
        (Some(_), _) => {
            let message = format!("the connection was lost: {}", status.message());
            Status::unavailable(message)
        }
    }
}

/// Wait that the server asks for in a `RetryInfo`.
pub(super) fn retry_after(status: &Status) -> Option<Duration> {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
}

/// Exponential backoff, which gives up after a time without progress.
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
    pub(super) fn answered(&mut self) {
        self.failures = 0;
    }

    /// An event got its final answer.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
        self.work_began();
    }

    /// Restarts the time without progress: there was nothing to do until now.
    pub(super) fn work_began(&mut self) {
        self.progress = Instant::now();
    }

    /// Time without progress.
    pub(super) fn stalled(&self) -> Duration {
        self.progress.elapsed()
    }

    /// Time until the publisher gives up, if there is no progress.
    pub(super) fn left(&self) -> Duration {
        self.give_up_after.saturating_sub(self.stalled())
    }

    /// Returns the wait after this number of earlier failures in a row. Jitter spreads the
    /// attempts of many clients.
    pub(super) fn wait(&self, failures: u32) -> Duration {
        self.min_wait
            .saturating_mul(2u32.saturating_pow(failures))
            .min(self.max_wait)
            .mul_f64(rand::rng().random_range(0.5..1.0))
            .min(self.left())
    }

    /// Returns the wait after one more failure; `None` means to give up. It is never shorter than
    /// the one that the server asks for, and may then exceed `max_wait`.
    pub(super) fn failed(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        let wait = self.wait(self.failures);
        self.failures = self.failures.saturating_add(1);
        let Some(asked) = asked else {
            return Some(wait);
        };
        let asked =
            Duration::try_from_secs_f64(asked.as_secs_f64() * rand::rng().random_range(1.0..1.25));
        asked
            .ok()
            .map(|asked| asked.max(wait))
            .filter(|wait| *wait <= left)
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
    async fn a_wait_that_the_server_asks_for_is_never_shortened() {
        let mut backoff = backoff();
        let wait = backoff.failed(Some(Duration::from_secs(2))).unwrap();
        assert!(wait >= Duration::from_secs(2) && wait < Duration::from_millis(2500));
        let wait = backoff.failed(Some(Duration::from_secs(60))).unwrap();
        assert!(wait >= Duration::from_secs(60) && wait <= Duration::from_secs(75));
        assert_eq!(backoff.failed(Some(Duration::from_secs(3600))), None);
        assert_eq!(backoff.failed(Some(Duration::MAX)), None);
    }

    #[test]
    fn each_code_has_its_reaction() {
        for code in [Code::Unavailable, Code::Aborted, Code::Internal] {
            assert_eq!(of_stream(code, false), Remedy::Retry, "{code:?}");
            assert_eq!(of_answer(code, false), Remedy::Retry, "{code:?}");
        }
        for code in [Code::ResourceExhausted, Code::FailedPrecondition] {
            assert_eq!(of_stream(code, true), Remedy::Retry, "{code:?}");
            assert_eq!(of_answer(code, true), Remedy::Retry, "{code:?}");
            assert_eq!(of_stream(code, false), Remedy::Refuse, "{code:?}");
            assert_eq!(of_answer(code, false), Remedy::Refuse, "{code:?}");
        }
        assert_eq!(of_answer(Code::InvalidArgument, false), Remedy::Refuse);
        assert_eq!(of_stream(Code::OutOfRange, false), Remedy::Refuse);
        assert_eq!(of_stream(Code::Unimplemented, true), Remedy::Stop);
    }
}
