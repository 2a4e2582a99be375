//! Why AWS was not reached, for the log: a status only says that it was not.

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

/// Logs that a server was not reached, or broke off: each failure of each once a minute.
/// The error is one of the connection, and holds nothing of what was to be sent on it.
pub(super) fn tell(server: &str, error: &dyn Error) {
    let error = with_sources(error);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_due(format!("{server} {error}"), Instant::now()) {
        tracing::warn!(server, error, "AWS cannot be reached");
    }
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
