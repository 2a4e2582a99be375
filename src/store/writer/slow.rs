//! Says when writing takes long. Nothing is acked meanwhile, and otherwise nothing would say
//! why.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};

/// What takes longer is told. Disks answer within milliseconds, and callers wait for seconds.
const LONG: Duration = Duration::from_secs(1);
/// Between one time and the next: what is slow stays so for a while.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Slow {
    told: Option<Instant>,
}

/// What there is to say of what takes long, after so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Takes(Duration),
    Took(Duration),
}

impl Slow {
    /// Awaits what is written. Where that takes long, says so while it does, and then how
    /// long it took.
    pub(super) async fn watch<R>(&mut self, writing: impl Future<Output = R>) -> R {
        self.watch_and(writing, Word::log).await
    }

    async fn watch_and<R>(
        &mut self,
        writing: impl Future<Output = R>,
        mut tell: impl FnMut(Word),
    ) -> R {
        let begun = Instant::now();
        let mut writing = pin!(writing);
        loop {
            let next = self.told.map_or(begun, |told| told + TOLD_EVERY);
            let due = next.max(begun + LONG);
            if let Ok(written) = timeout_at(due, &mut writing).await {
                if self.told.is_some_and(|told| told > begun) {
                    tell(Word::Took(begun.elapsed()));
                }
                return written;
            }
            self.told = Some(Instant::now());
            tell(Word::Takes(begun.elapsed()));
        }
    }
}

impl Word {
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

    /// What is told where something takes so long, in whole seconds.
    async fn told(slow: &mut Slow, millis: u64) -> Vec<String> {
        let mut words = Vec::new();
        let writing = sleep(Duration::from_millis(millis));
        slow.watch_and(writing, |word| {
            words.push(match word {
                Word::Takes(time) => format!("takes {}", time.as_secs()),
                Word::Took(time) => format!("took {}", time.as_secs()),
            });
        })
        .await;
        words
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_told_while_it_does_and_once_it_is_over() {
        let mut slow = Slow::default();
        let nothing: [&str; 0] = [];
        assert_eq!(told(&mut slow, 900).await, nothing);
        assert_eq!(told(&mut slow, 3_000).await, ["takes 1", "took 3"]);
        // Nothing more of what is quick, and nothing of another stall within ten seconds.
        assert_eq!(told(&mut slow, 1).await, nothing);
        assert_eq!(told(&mut slow, 2_000).await, nothing);
        // A disk that hangs is told of all the same, for as long as it does.
        assert_eq!(
            told(&mut slow, 30_000).await,
            ["takes 5", "takes 15", "takes 25", "took 30"]
        );
        advance(TOLD_EVERY).await;
        assert_eq!(told(&mut slow, 1_500).await, ["takes 1", "took 1"]);
    }
}
