//! Deliveries before new events, where there is no time for both: what is delivered from
//! memory costs much less than what has to be read back.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::tail::Tail;

/// How long new events give way at the most.
const LONGEST: Duration = Duration::from_secs(1);
/// How often to look at what nobody tells of.
const LOOK: Duration = Duration::from_millis(20);

/// Whether deliveries wait for each other.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    wait: AtomicBool,
}

impl Precedence {
    pub(super) fn set(&self, deliveries_wait: bool) {
        self.wait.store(deliveries_wait, Ordering::Relaxed);
    }

    /// Waits while deliveries wait and the tail fills up, but not for ever.
    pub(super) async fn give_way(&self, tail: &Tail) {
        let until = Instant::now() + LONGEST;
        loop {
            let drained = tail.drained();
            let left = until.saturating_duration_since(Instant::now());
            let waits = self.wait.load(Ordering::Relaxed) && tail.is_behind();
            if !waits || tail.is_pressed() {
                return;
            }
            if left.is_zero() {
                // What fills it is of integrations that take nothing.
                tail.press(true);
                return;
            }
            // Whichever comes first, it is looked again.
            let _elapsed = timeout(left.min(LOOK), drained).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc};

    use jiff::Timestamp;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        domain::integration::IntegrationKey,
        store::tail::{Coming, TailChunk},
    };

    const KEY: IntegrationKey = IntegrationKey(1);
    const MOST: usize = 800;

    fn filled() -> Arc<Tail> {
        let tail = Tail::new(MOST);
        let chunk = TailChunk {
            id: 1,
            first_sequence: 1,
            count: 1,
            accepted_at: Timestamp::UNIX_EPOCH,
            bytes: vec![0; MOST - 100].into(),
            settled: Vec::new(),
            gaps: Vec::new(),
        };
        tail.push(KEY, chunk, true);
        Arc::new(tail)
    }

    /// Waits beside what else happens.
    async fn waits(wait: bool, tail: &Tail, beside: impl Future<Output = ()>) -> Duration {
        let precedence = Precedence::default();
        precedence.set(wait);
        let start = Instant::now();
        let mut waited = pin!(precedence.give_way(tail));
        tokio::select! {
            () = &mut waited => {}
            () = beside => waited.await,
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn waits_only_where_deliveries_wait_and_much_is_there_or_comes() {
        let never = std::future::pending;
        assert_eq!(waits(false, &filled(), never()).await, Duration::ZERO);
        let empty = Arc::new(Tail::new(MOST));
        assert_eq!(waits(true, &empty, never()).await, Duration::ZERO);
        assert_eq!(waits(true, &filled(), never()).await, LONGEST);
        let coming = Coming::new(&empty, MOST);
        assert_eq!(waits(true, &empty, never()).await, LONGEST);
        // Nobody waits again before the oldest have left it.
        assert!(empty.is_pressed());
        assert_eq!(waits(true, &empty, never()).await, Duration::ZERO);
        empty.press(false);
        drop(coming);
        assert_eq!(waits(true, &empty, never()).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_as_soon_as_enough_is_delivered() {
        let nothing = Arc::new(Tail::new(0));
        let _coming = Coming::new(&nothing, 1);
        let never = std::future::pending();
        assert_eq!(waits(true, &nothing, never).await, Duration::ZERO);
        let tail = filled();
        let delivered = async {
            sleep(Duration::from_millis(333)).await;
            tail.finish(KEY, 1);
        };
        let waited = waits(true, &tail, delivered).await;
        assert_eq!(waited, Duration::from_millis(333));
    }
}
