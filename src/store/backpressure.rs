//! Backpressure: one byte budget for accepted events that are not delivered yet.
//!
//! Accepted events stay in memory, the tail, until they are delivered or moved to a backlog. The
//! setting `log-tail-bytes` is the budget of the tail; it grows with the number of integrations
//! beyond 800 that share it, up to twice as much, because small requests cost more. While the tail is over three quarters of
//! it, a request waits, at most a second, if one of its integrations has as much of the tail as
//! integrations have on average, or more: delivery from memory costs much less than from a
//! backlog. If deliveries free nothing for 100 ms, or a second was not enough, the oldest events
//! move to their backlogs. If the tail is over the budget at the end of the second, the events of
//! such integrations are refused as overloaded; others are accepted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::domain::{integration::IntegrationId, map::Set, segment::Segments};

/// Longest wait of a request.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Integrations that share the budget before it grows.
const SHARERS: usize = 800;
/// Time in which delivery must free something for a request to wait on.
const PROGRESS: Duration = Duration::from_millis(100);

/// Use of the budget by all partitions that this instance owns.
#[derive(Debug)]
pub(super) struct Backpressure {
    /// Budget of up to [`SHARERS`] integrations.
    budget: usize,
    /// Bytes in the tail.
    bytes: AtomicUsize,
    /// Integrations that have bytes in the tail.
    integrations: AtomicUsize,
    /// Bytes that are being appended.
    incoming: AtomicUsize,
    /// Bytes that left the tail, ever.
    released: AtomicUsize,
    /// A request waited in vain: the oldest events are to move.
    pressed: AtomicBool,
    drained: Notify,
}

/// Bytes that count as incoming until this value is dropped.
#[derive(Debug)]
pub(super) struct Incoming {
    backpressure: Arc<Backpressure>,
    bytes: usize,
}

impl Backpressure {
    pub(super) fn new(budget: usize) -> Self {
        Self {
            budget,
            bytes: AtomicUsize::new(0),
            integrations: AtomicUsize::new(0),
            incoming: AtomicUsize::new(0),
            released: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            drained: Notify::new(),
        }
    }

    /// Counts bytes as incoming.
    pub(super) fn incoming(self: &Arc<Self>, bytes: usize) -> Incoming {
        self.incoming.fetch_add(bytes, Ordering::Relaxed);
        Incoming {
            backpressure: Arc::clone(self),
            bytes,
        }
    }

    /// Records bytes of an integration that entered the tail. `is_first` says that it had none.
    pub(super) fn added(&self, bytes: usize, is_first: bool) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.integrations
            .fetch_add(usize::from(is_first), Ordering::Relaxed);
    }

    /// Records bytes of an integration that left the tail. `was_last` says that none are left.
    pub(super) fn removed(&self, bytes: usize, was_last: bool) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.released.fetch_add(bytes, Ordering::Relaxed);
        self.integrations
            .fetch_sub(usize::from(was_last), Ordering::Relaxed);
        if before > self.mark() && before - bytes <= self.mark() {
            self.drained.notify_waiters();
        }
    }

    /// Bytes that the oldest events of a partition, which has `of_partition` bytes, must free for
    /// the tail to be half of the budget, if it is over the budget or a request waited in vain.
    pub(super) fn excess(&self, of_partition: usize) -> Option<usize> {
        let limit = match self.pressed.load(Ordering::Relaxed) {
            true => self.mark(),
            false => self.budget(),
        };
        let bytes = self.bytes.load(Ordering::Relaxed);
        let excess = (bytes > limit).then(|| bytes - self.budget() / 2)?;
        let share = excess as f64 * (of_partition as f64 / bytes as f64).min(1.0);
        // At least one byte, which is one entry.
        Some((share.ceil() as usize).max(1))
    }

    /// Whether the tail is twice the budget, so that nothing is read before events have moved.
    pub(super) fn is_far_over(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.budget().saturating_mul(2)
    }

    /// Ends the effect of a wait in vain, after the oldest events moved.
    pub(super) fn relieved(&self) {
        if self.pressed.swap(false, Ordering::Relaxed) {
            self.drained.notify_waiters();
        }
    }

    /// Bytes in the tail, and the budget.
    pub(super) fn levels(&self) -> (usize, usize) {
        (self.bytes.load(Ordering::Relaxed), self.budget())
    }

    fn press(&self, press: impl Fn()) {
        if !self.pressed.swap(true, Ordering::Relaxed) {
            press();
        }
    }

    /// Bytes from which requests wait.
    fn mark(&self) -> usize {
        self.budget() / 4 * 3
    }

    fn budget(&self) -> usize {
        let integrations = self.integrations.load(Ordering::Relaxed);
        let shares = (self.budget / SHARERS).saturating_mul(integrations);
        shares.clamp(self.budget, self.budget.saturating_mul(2))
    }

    fn used(&self) -> usize {
        self.bytes.load(Ordering::Relaxed) + self.incoming.load(Ordering::Relaxed)
    }

    /// Waits as the module describes. `bytes_of` returns the bytes that an integration has in the
    /// tail, and `press` starts the move of the oldest events. Returns the integrations whose
    /// events are to be refused.
    pub(super) async fn admit(
        &self,
        segments: &Segments,
        bytes_of: impl Fn(IntegrationId) -> usize,
        press: impl Fn(),
    ) -> Set<IntegrationId> {
        if self.used() <= self.mark() || self.budget == 0 {
            return Set::default();
        }
        let has_share = |id: IntegrationId| {
            let integrations = self.integrations.load(Ordering::Relaxed);
            let bytes = bytes_of(id);
            bytes > 0 && bytes * integrations >= self.bytes.load(Ordering::Relaxed)
        };
        let ids = || segments.parts().iter().map(|part| part.integration_id);
        let end = Instant::now() + MAX_WAIT;
        let (mut released, mut next_look) = (None, Instant::now());
        loop {
            let drained = self.drained.notified();
            if self.used() <= self.mark() || !ids().any(has_share) {
                return Set::default();
            }
            let now = Instant::now();
            if now >= end {
                break;
            }
            if now >= next_look {
                let before = released.replace(self.released.load(Ordering::Relaxed));
                if before == released {
                    self.press(&press);
                }
                next_look = now + PROGRESS;
            }
            let _elapsed = timeout_at(next_look.min(end), drained).await;
        }
        self.press(&press);
        match self.used() > self.budget() {
            true => ids().filter(|id| has_share(*id)).collect(),
            false => Set::default(),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.backpressure
            .incoming
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin};

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::domain::integration::testing::testing_id;

    const BUDGET: usize = 8000;

    fn segments(ids: &[i64]) -> Segments {
        let mut segments = Segments::default();
        for id in ids {
            let pushed: Result<(), ()> = segments.push(testing_id(*id), |_| Ok(()));
            pushed.unwrap();
        }
        segments
    }

    /// Backpressure with a tail of two integrations: 1 has all but a byte.
    fn filled(bytes: usize) -> Backpressure {
        let backpressure = Backpressure::new(BUDGET);
        backpressure.added(bytes - 1, true);
        backpressure.added(1, true);
        backpressure
    }

    /// Result and time of a request, and how often it pressed.
    async fn admit(
        backpressure: &Backpressure,
        ids: &[i64],
        bytes: usize,
    ) -> (usize, Duration, usize) {
        let (start, presses) = (Instant::now(), Cell::new(0));
        let bytes_of = |id| match id == testing_id(1) {
            true => bytes - 1,
            false => usize::from(id == testing_id(2)),
        };
        let press = || presses.set(presses.get() + 1);
        let refused = backpressure.admit(&segments(ids), bytes_of, press).await;
        assert!(refused.iter().all(|id| *id == testing_id(1)), "{refused:?}");
        (refused.len(), start.elapsed(), presses.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_only_over_the_mark_and_with_a_share() {
        let (mark, over) = (BUDGET / 4 * 3, BUDGET / 4 * 3 + 1);
        let at_once = (0, Duration::ZERO, 0);
        assert_eq!(admit(&filled(mark), &[1, 2], mark).await, at_once);
        assert_eq!(admit(&filled(over), &[2, 3], over).await, at_once);
        let (refused, waited, presses) = admit(&filled(over), &[1, 2], over).await;
        assert_eq!((refused, waited, presses), (0, MAX_WAIT, 1));
        let incoming = Arc::new(filled(mark));
        let _bytes = incoming.incoming(1);
        assert_eq!(admit(&incoming, &[1], mark).await.1, MAX_WAIT);
    }

    #[test]
    fn many_integrations_share_up_to_twice_as_much() {
        let backpressure = Backpressure::new(SHARERS * 10);
        for integrations in 1..3 * SHARERS {
            backpressure.added(1, true);
            let expected = (integrations * 10).clamp(SHARERS * 10, SHARERS * 20);
            assert_eq!(backpressure.budget(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_when_delivery_has_freed_enough() {
        let over = BUDGET / 4 * 3 + 1000;
        let backpressure = filled(over);
        let delivers = async {
            for _ in 0..10 {
                sleep(PROGRESS / 2).await;
                backpressure.removed(100, false);
            }
        };
        let mut admitted = pin!(admit(&backpressure, &[1], over));
        let waited = tokio::select! {
            waited = &mut admitted => waited,
            () = delivers => admitted.await,
        };
        assert_eq!(waited, (0, PROGRESS * 5, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn without_progress_the_oldest_events_are_to_move_soon() {
        let over = BUDGET / 4 * 3 + 1000;
        let backpressure = filled(over);
        assert_eq!(backpressure.excess(usize::MAX), None);
        let mut admitted = pin!(admit(&backpressure, &[1], over));
        assert!(timeout(PROGRESS * 3 / 2, &mut admitted).await.is_err());
        let excess = backpressure.excess(usize::MAX).unwrap();
        assert_eq!(excess, over - BUDGET / 2);
        backpressure.removed(excess, false);
        backpressure.relieved();
        assert_eq!(admitted.await, (0, PROGRESS * 3 / 2, 1));
        assert_eq!(backpressure.excess(usize::MAX), None);
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_budget_those_with_a_share_are_refused() {
        let over = BUDGET + 1;
        let backpressure = filled(over);
        let (refused, waited, _) = admit(&backpressure, &[2, 1, 3], over).await;
        assert_eq!((refused, waited), (1, MAX_WAIT));
        assert_eq!(
            admit(&backpressure, &[2, 3], over).await,
            (0, Duration::ZERO, 0)
        );
    }
}
