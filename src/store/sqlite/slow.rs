//! Log lines about writes that take long. Nothing is acked meanwhile, and nothing else would
//! say why.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};

/// Duration from which a write is logged. Disks answer within milliseconds, and callers wait for
/// seconds.
const LONG: Duration = Duration::from_secs(1);
/// Least time between two log lines: a slow disk stays slow for a while.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Watches writes one after another.
#[derive(Default)]
pub(super) struct Slow {
    logged: Option<Instant>,
}

/// A log line about a slow write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// It has taken this long so far.
    Takes(Duration),
    /// It has ended after this time.
    Took(Duration),
}

impl Slow {
    /// Awaits a write, and logs while it takes long and how long it took.
    pub(super) async fn watch<R>(&mut self, writing: impl Future<Output = R>) -> R {
        self.watch_and(writing, Line::log).await
    }

    async fn watch_and<R>(
        &mut self,
        writing: impl Future<Output = R>,
        mut log: impl FnMut(Line),
    ) -> R {
        let begun = Instant::now();
        let mut writing = pin!(writing);
        loop {
            let next = self.logged.map_or(begun, |logged| logged + LOG_INTERVAL);
            let due = next.max(begun + LONG);
            if let Ok(written) = timeout_at(due, &mut writing).await {
                if self.logged.is_some_and(|logged| logged > begun) {
                    log(Line::Took(begun.elapsed()));
                }
                return written;
            }
            self.logged = Some(Instant::now());
            log(Line::Takes(begun.elapsed()));
        }
    }
}

impl Line {
    fn log(self) {
        let millis = |time: Duration| time.as_millis() as u64;
        match self {
            Self::Takes(time) => tracing::warn!(
                since_ms = millis(time),
                "writing to the log takes long: nothing is acked meanwhile"
            ),
            Self::Took(time) => {
                tracing::warn!(took_ms = millis(time), "writing to the log took long");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    /// Lines about a write that takes this long, in whole seconds.
    async fn lines(slow: &mut Slow, millis: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let writing = sleep(Duration::from_millis(millis));
        slow.watch_and(writing, |line| {
            lines.push(match line {
                Line::Takes(time) => format!("takes {}", time.as_secs()),
                Line::Took(time) => format!("took {}", time.as_secs()),
            });
        })
        .await;
        lines
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_write_is_logged_while_it_lasts_and_when_it_ends() {
        let mut slow = Slow::default();
        let nothing: [&str; 0] = [];
        assert_eq!(lines(&mut slow, 900).await, nothing);
        assert_eq!(lines(&mut slow, 3_000).await, ["takes 1", "took 3"]);
        // Nothing about a quick write, nor about another stall within ten seconds.
        assert_eq!(lines(&mut slow, 1).await, nothing);
        assert_eq!(lines(&mut slow, 2_000).await, nothing);
        // A disk that hangs is logged for as long as it does.
        assert_eq!(
            lines(&mut slow, 30_000).await,
            ["takes 5", "takes 15", "takes 25", "took 30"]
        );
        advance(LOG_INTERVAL).await;
        assert_eq!(lines(&mut slow, 1_500).await, ["takes 1", "took 1"]);
    }
}
