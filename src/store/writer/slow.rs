//! Says when the disk takes long: until then nothing else would tell why nothing is acked.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout};

/// A transaction that takes longer is told of. Disks answer within a few milliseconds, and
/// callers wait for seconds.
const LONG: Duration = Duration::from_secs(1);
/// A disk that is slow stays so for a while.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Slow {
    told: Option<Instant>,
}

impl Slow {
    /// Awaits what is written, and says where that takes long: while it does, and then how
    /// long it took. At most once a minute.
    pub(super) async fn watch<R>(&mut self, writing: impl Future<Output = R>) -> R {
        let begun = Instant::now();
        let mut writing = pin!(writing);
        if let Ok(written) = timeout(LONG, &mut writing).await {
            return written;
        }
        let now = Instant::now();
        if self.told.is_some_and(|told| now < told + TOLD_EVERY) {
            return writing.await;
        }
        self.told = Some(now);
        tracing::warn!(
            longer_than_ms = LONG.as_millis() as u64,
            "the disk is slow: a transaction is not written yet, and until it is nothing is acked"
        );
        let written = writing.await;
        let took_ms = begun.elapsed().as_millis() as u64;
        tracing::warn!(
            took_ms,
            "the disk was slow: the transaction is written, or has failed"
        );
        written
    }
}
