//! Log of failed connections to AWS. A status only says `UNREACHABLE`; the log says why.

use std::{
    collections::HashMap,
    error::Error,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::error_chain::error_chain;

/// Interval at which the same failure is logged again: callers retry, and all callers of one
/// server fail alike.
const INTERVAL: Duration = Duration::from_secs(60);
/// Limit of the failures that are logged within the interval.
const MAX_FAILURES: usize = 256;

static LOGGED: LazyLock<Mutex<Logged>> = LazyLock::new(Mutex::default);

/// Logs why a server was not reached or closed the connection, each failure of each server
/// once a minute. The error concerns the connection and repeats nothing of the request.
pub(super) fn warn(server: &str, error: &dyn Error) {
    warn_message(server, &error_chain(error));
}

/// [`warn`] with a message instead of an error.
pub(super) fn warn_message(server: &str, error: &str) {
    let is_due = {
        let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
        logged.is_due(failure(server, error), Instant::now())
    };
    if is_due {
        tracing::warn!(server, error, "the connection to AWS failed");
    }
}

/// Identifies a failure: the message without digits, because it may contain times and ports.
fn failure(server: &str, error: &str) -> String {
    let words = error.chars().filter(|char| !char.is_ascii_digit());
    format!("{server} {}", words.collect::<String>())
}

/// Time at which each failure was logged.
#[derive(Default)]
struct Logged(HashMap<String, Instant>);

impl Logged {
    fn is_due(&mut self, failure: String, now: Instant) -> bool {
        self.0.retain(|_, at| now < *at + INTERVAL);
        let is_due = self.0.len() < MAX_FAILURES && !self.0.contains_key(&failure);
        if is_due {
            self.0.insert(failure, now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_identified_without_times() {
        let expired = |seconds| format!("certificate expired: {seconds} seconds ago");
        let one = failure("kinesis.test:443", &expired(1));
        assert_eq!(failure("kinesis.test:443", &expired(22)), one);
        assert_ne!(failure("kinesis.test:8443", &expired(1)), one);
    }

    #[test]
    fn each_failure_is_logged_once_a_minute_up_to_the_limit() {
        let mut logged = Logged::default();
        let now = Instant::now();
        let mut is_due = |failure: usize, seconds| {
            logged.is_due(failure.to_string(), now + Duration::from_secs(seconds))
        };
        assert!(is_due(0, 0));
        assert!(!is_due(0, 59));
        for other in 1..MAX_FAILURES {
            assert!(is_due(other, 59));
        }
        assert!(!is_due(MAX_FAILURES, 59));
        assert!(is_due(0, 60));
        assert!(!is_due(1, 60) && !is_due(MAX_FAILURES, 60));
        assert!(is_due(MAX_FAILURES, 119));
    }
}
