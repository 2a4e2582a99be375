//! Why a connection to AWS failed, for the log: a status only says that it did.

use std::{
    collections::HashMap,
    error::Error,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::sources::with_sources;

/// Who asks in vain asks again, and with it all others who need the same server.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Failures that are told within that time.
const MOST_TOLD: usize = 256;

static TOLD: LazyLock<Mutex<Told>> = LazyLock::new(Mutex::default);

/// Logs why a server was not reached, or broke off: each failure of each once a minute.
/// The error is one of the connection, and holds nothing of what was to be sent on it.
pub(super) fn tell(server: &str, error: &dyn Error) {
    tell_that(server, &with_sources(error));
}

/// [`tell`], in words.
pub(super) fn tell_that(server: &str, error: &str) {
    let is_due = {
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_due(failure(server, error), Instant::now())
    };
    if is_due {
        tracing::warn!(server, error, "the connection to AWS failed");
    }
}

/// What fails again is the same failure, though it may tell times and ports.
fn failure(server: &str, error: &str) -> String {
    let words = error.chars().filter(|char| !char.is_ascii_digit());
    format!("{server} {}", words.collect::<String>())
}

/// When each failure was told.
#[derive(Default)]
struct Told(HashMap<String, Instant>);

impl Told {
    fn is_due(&mut self, failure: String, now: Instant) -> bool {
        self.0.retain(|_, at| now < *at + TOLD_EVERY);
        let is_due = self.0.len() < MOST_TOLD && !self.0.contains_key(&failure);
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
    fn a_failure_is_the_same_at_another_time() {
        let expired = |seconds| format!("certificate expired: {seconds} seconds ago");
        let one = failure("kinesis.test:443", &expired(1));
        assert_eq!(failure("kinesis.test:443", &expired(22)), one);
        assert_ne!(failure("kinesis.test:8443", &expired(1)), one);
    }

    #[test]
    fn each_is_told_once_a_minute_and_no_more_than_so_many() {
        let mut told = Told::default();
        let now = Instant::now();
        let mut tell = |failure: usize, seconds| {
            told.is_due(failure.to_string(), now + Duration::from_secs(seconds))
        };
        assert!(tell(0, 0));
        assert!(!tell(0, 59));
        for other in 1..MOST_TOLD {
            assert!(tell(other, 59));
        }
        assert!(!tell(MOST_TOLD, 59));
        assert!(tell(0, 60));
        assert!(!tell(1, 60) && !tell(MOST_TOLD, 60));
        assert!(tell(MOST_TOLD, 119));
    }
}
