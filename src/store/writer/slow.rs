//! Says when writing takes long. Nothing is acked meanwhile, and otherwise nothing would say
//! why.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};

/// What takes longer is told. Disks answer within milliseconds, and callers wait for seconds.
const LONG: Duration = Duration::from_secs(1);
/// Between one time and the next: what is slow stays so for a while.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub(super) struct Slow {
    told: Option<Instant>,
}

impl Slow {
    /// Awaits what is written. Where that takes long, says so while it does, and then how
    /// long it took.
    pub(super) async fn watch<R>(&mut self, writing: impl Future<Output = R>) -> R {
        let begun = Instant::now();
        let mut writing = pin!(writing);
        loop {
            let next = self.told.map_or(begun, |told| told + TOLD_EVERY);
            let due = next.max(begun + LONG);
            match timeout_at(due, &mut writing).await {
                Ok(written) => {
                    if self.told.is_some_and(|told| told > begun) {
                        let took_ms = begun.elapsed().as_millis() as u64;
                        tracing::warn!(took_ms, "writing to the log took long");
                    }
                    return written;
                }
                Err(_elapsed) => {
                    self.told = Some(Instant::now());
                    let since_ms = begun.elapsed().as_millis() as u64;
                    tracing::warn!(
                        since_ms,
                        "writing to the log takes long: nothing is acked meanwhile"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    /// How long ago it was told last, after something took so long.
    async fn told_after(slow: &mut Slow, millis: u64) -> Option<u128> {
        slow.watch(sleep(Duration::from_millis(millis))).await;
        slow.told.map(|told| told.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_told_while_it_does_and_again() {
        let mut slow = Slow::default();
        assert_eq!(told_after(&mut slow, 999).await, None);
        assert_eq!(told_after(&mut slow, 1_500).await, Some(500));
        // Soon after that, another stall is none to tell, but a disk that hangs is.
        assert_eq!(told_after(&mut slow, 1_500).await, Some(2_000));
        assert_eq!(told_after(&mut slow, 29_000).await, Some(1_000));
        // It is told again for as long as it lasts.
        assert_eq!(told_after(&mut slow, 95_000).await, Some(6_000));
        advance(TOLD_EVERY).await;
        assert_eq!(told_after(&mut slow, 1_100).await, Some(100));
    }
}
