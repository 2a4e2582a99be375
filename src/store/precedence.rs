//! Deliveries before new events, where there is no time for both: what is delivered from
//! memory costs much less than what has to be read back.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::tail::Tail;

/// How long new events give way at the most where deliveries wait for each other.
const LONGEST: Duration = Duration::from_secs(1);
/// How long where deliveries are quick enough for what is too much to be gone by then.
const SHORT: Duration = Duration::from_millis(250);
/// How often to look at what nobody tells of.
const LOOK: Duration = Duration::from_millis(20);
/// Over how long it is told how quick deliveries are: a few requests of every kind.
const SPAN: Duration = Duration::from_millis(100);
const SECOND_IN_SPANS: u64 = 10;
/// After a wait in vain nobody waits for so many times as long.
const REST: u32 = 10;

/// Who is to go first.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    is_busy: AtomicBool,
    deliveries_queue: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pace: Pace,
    rests_until: Option<Instant>,
}

/// What was delivered lately.
#[derive(Debug, Default)]
struct Pace {
    since: Option<Instant>,
    /// Bytes since then.
    delivered: u64,
    /// Bytes in the span before that.
    before: u64,
}

impl Pace {
    fn add(&mut self, bytes: u64, now: Instant) {
        self.turn_over(now);
        self.delivered += bytes;
    }

    fn turn_over(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(*self.since.get_or_insert(now));
        if passed >= SPAN {
            let share = SPAN.as_secs_f64() / passed.as_secs_f64();
            self.before = (self.delivered as f64 * share) as u64;
            self.delivered = 0;
            self.since = Some(now);
        }
    }

    /// Bytes of a span: it shows at once that they are more, and soon that they are fewer.
    fn bytes(&mut self, now: Instant) -> u64 {
        self.turn_over(now);
        self.before.max(self.delivered)
    }
}

impl Precedence {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process has no time for more, and whether deliveries that could be made
    /// wait for others.
    pub(super) fn set(&self, is_busy: bool, deliveries_queue: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
        self.deliveries_queue
            .store(deliveries_queue, Ordering::Relaxed);
    }

    /// So much was delivered, from wherever it lay.
    pub(super) fn delivered(&self, bytes: u64) {
        self.state().pace.add(bytes, Instant::now());
    }

    /// Waits while the tail fills up and deliveries have no time for it, but not for ever.
    pub(super) async fn give_way(&self, tail: &Tail) {
        let began = Instant::now();
        loop {
            let drained = tail.drained();
            let now = Instant::now();
            if !self.is_busy.load(Ordering::Relaxed) || !tail.is_behind() || self.rests(tail, now) {
                return;
            }
            let waited = now - began;
            let left = self.longest(tail, now).saturating_sub(waited);
            if left.is_zero() {
                if !waited.is_zero() {
                    self.in_vain(tail, now, waited);
                }
                return;
            }
            // Whichever comes first, it is looked again.
            let _elapsed = timeout(left.min(LOOK), drained).await;
        }
    }

    /// How long a wait is worth it.
    fn longest(&self, tail: &Tail, now: Instant) -> Duration {
        if self.deliveries_queue.load(Ordering::Relaxed) {
            return LONGEST;
        }
        // All that the tail may take in a second: what is over its mark in a quarter of one.
        let enough = tail.most_bytes() as u64 / SECOND_IN_SPANS;
        match self.state().pace.bytes(now) >= enough {
            true => SHORT,
            false => Duration::ZERO,
        }
    }

    fn rests(&self, tail: &Tail, now: Instant) -> bool {
        tail.is_pressed() || self.state().rests_until.is_some_and(|until| now < until)
    }

    /// What fills the tail is of integrations that take nothing, or more slowly than it
    /// comes: the oldest leave it.
    fn in_vain(&self, tail: &Tail, now: Instant, waited: Duration) {
        self.state().rests_until = Some(now + waited * REST);
        tail.press(true);
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc};

    use jiff::Timestamp;
    use tokio::time::{advance, sleep};

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
    async fn waits(
        precedence: &Precedence,
        tail: &Tail,
        beside: impl Future<Output = ()>,
    ) -> Duration {
        let start = Instant::now();
        let mut waited = pin!(precedence.give_way(tail));
        tokio::select! {
            () = &mut waited => {}
            () = beside => waited.await,
        }
        start.elapsed()
    }

    fn precedence(is_busy: bool, deliveries_queue: bool) -> Precedence {
        let precedence = Precedence::default();
        precedence.set(is_busy, deliveries_queue);
        precedence
    }

    #[tokio::test(start_paused = true)]
    async fn waits_only_where_deliveries_wait_and_much_is_there_or_comes() {
        let never = std::future::pending;
        for idle in [precedence(false, false), precedence(false, true)] {
            assert_eq!(waits(&idle, &filled(), never()).await, Duration::ZERO);
        }
        let empty = Arc::new(Tail::new(MOST));
        let queued = precedence(true, true);
        assert_eq!(waits(&queued, &empty, never()).await, Duration::ZERO);
        assert_eq!(waits(&queued, &filled(), never()).await, LONGEST);
        let coming = Coming::new(&empty, MOST);
        let queued = precedence(true, true);
        assert_eq!(waits(&queued, &empty, never()).await, LONGEST);
        // Nobody waits again before the oldest have left it.
        assert!(empty.is_pressed());
        assert_eq!(waits(&queued, &empty, never()).await, Duration::ZERO);
        // Nor soon after.
        empty.press(false);
        advance(LONGEST * REST - LOOK).await;
        assert_eq!(waits(&queued, &empty, never()).await, Duration::ZERO);
        advance(LOOK).await;
        assert_eq!(waits(&queued, &empty, never()).await, LONGEST);
        empty.press(false);
        drop(coming);
        advance(LONGEST * REST).await;
        assert_eq!(waits(&queued, &empty, never()).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_as_soon_as_enough_is_delivered() {
        let nothing = Arc::new(Tail::new(0));
        let _coming = Coming::new(&nothing, 1);
        let queued = precedence(true, true);
        let never = std::future::pending();
        assert_eq!(waits(&queued, &nothing, never).await, Duration::ZERO);
        let tail = filled();
        let delivered = async {
            sleep(Duration::from_millis(333)).await;
            tail.finish(KEY, 1);
        };
        let waited = waits(&queued, &tail, delivered).await;
        assert_eq!(waited, Duration::from_millis(333));
        assert!(!tail.is_pressed());
    }

    /// Delivers so much of the tail's memory a second, for ever.
    async fn deliver(precedence: &Precedence, parts_of_ten: u64) {
        loop {
            precedence.delivered(MOST as u64 * parts_of_ten / 1000);
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// As long as it takes to know how quick deliveries are.
    async fn deliver_for_long(precedence: &Precedence, parts_of_ten: u64) {
        let long = Duration::from_secs(1);
        let _elapsed = timeout(long, deliver(precedence, parts_of_ten)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn waits_shortly_for_deliveries_that_are_quick() {
        let slow = precedence(true, false);
        deliver_for_long(&slow, 9).await;
        let waited = waits(&slow, &filled(), deliver(&slow, 9)).await;
        assert_eq!(waited, Duration::ZERO);

        let quick = precedence(true, false);
        deliver_for_long(&quick, 11).await;
        let tail = filled();
        let delivered = async {
            tokio::select! {
                () = deliver(&quick, 11) => {}
                () = sleep(Duration::from_millis(123)) => tail.finish(KEY, 1),
            }
        };
        assert_eq!(
            waits(&quick, &tail, delivered).await,
            Duration::from_millis(123)
        );
        assert!(!tail.is_pressed());

        // What fills the tail is of others.
        let tail = filled();
        assert_eq!(waits(&quick, &tail, deliver(&quick, 11)).await, SHORT);
        assert!(tail.is_pressed());
        tail.press(false);
        let again = waits(&quick, &tail, deliver(&quick, 11)).await;
        assert_eq!(again, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_no_longer_than_deliveries_go_on() {
        let precedence = precedence(true, false);
        deliver_for_long(&precedence, 11).await;
        let tail = filled();
        let waited = waits(&precedence, &tail, std::future::pending()).await;
        assert!((SPAN..SHORT).contains(&waited), "{waited:?}");
        assert!(tail.is_pressed());
    }
}
