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
use crate::domain::integration::IntegrationKey;

/// How often to look at what nobody tells of.
const LOOK: Duration = Duration::from_millis(20);
/// Over how long it is told how quick deliveries are: a few requests of every kind.
const SPAN: Duration = Duration::from_millis(100);
const SECOND_IN_SPANS: u64 = 10;
/// After a wait for quick deliveries that was in vain, or that outlasted them, nobody waits
/// for so many times as long.
const REST: u32 = 10;

/// Why new events give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Deliveries that could be made wait for others.
    Queue,
    /// Deliveries are so quick that what is too much is soon gone.
    Pace,
}

impl Reason {
    /// How long that is worth a wait.
    const fn longest(self) -> Duration {
        match self {
            Self::Queue => Duration::from_secs(1),
            Self::Pace => Duration::from_millis(250),
        }
    }
}

/// What keeps deliveries from being made.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Those who deliver have no time for more.
    pub is_busy: bool,
    /// Deliveries that could be made wait for others.
    pub deliveries_queue: bool,
}

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

/// What was delivered lately. A large answer after a slow request may pass for a quick one,
/// for a span or two.
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

    pub(super) fn set(&self, load: Load) {
        self.is_busy.store(load.is_busy, Ordering::Relaxed);
        self.deliveries_queue
            .store(load.deliveries_queue, Ordering::Relaxed);
    }

    /// So much was delivered, from wherever it lay.
    pub(super) fn delivered(&self, bytes: u64) {
        self.state().pace.add(bytes, Instant::now());
    }

    /// Waits while deliveries have no time for what waits in the tail, but not for ever.
    /// Whose events are few there does not wait: of `keys`, all that have some to append,
    /// one has to have its share of the tail.
    pub(super) async fn give_way(
        &self,
        tail: &Tail,
        keys: impl Iterator<Item = IntegrationKey> + Clone,
    ) {
        let began = Instant::now();
        let mut before = None;
        loop {
            let drained = tail.drained();
            let now = Instant::now();
            let waits = self.is_busy.load(Ordering::Relaxed)
                && !tail.is_pressed()
                && tail.is_behind(keys.clone());
            let reason = waits.then(|| self.reason(tail, now)).flatten();
            let waited = now - began;
            let Some(reason) = reason else {
                if waits && before == Some(Reason::Pace) {
                    self.rest(now, waited.min(Reason::Pace.longest()));
                }
                return;
            };
            if waited >= reason.longest() {
                // What fills the tail is of integrations that take it too slowly.
                tail.press(true);
                if reason == Reason::Pace && before == Some(reason) {
                    self.rest(now, reason.longest());
                }
                return;
            }
            before = Some(reason);
            let left = reason.longest() - waited;
            // Whichever comes first, it is looked again.
            let _elapsed = timeout(left.min(LOOK), drained).await;
        }
    }

    fn reason(&self, tail: &Tail, now: Instant) -> Option<Reason> {
        if self.deliveries_queue.load(Ordering::Relaxed) {
            return Some(Reason::Queue);
        }
        // All that the tail may take in a second: what is over its mark in a quarter of one.
        let enough = tail.most_bytes() as u64 / SECOND_IN_SPANS;
        let mut state = self.state();
        let rests = state.rests_until.is_some_and(|until| now < until);
        (!rests && state.pace.bytes(now) >= enough).then_some(Reason::Pace)
    }

    /// So long was waited for nothing.
    fn rest(&self, now: Instant, waited: Duration) {
        let until = now + waited * REST;
        let mut state = self.state();
        state.rests_until = state.rests_until.max(Some(until));
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
    const OTHER: IntegrationKey = IntegrationKey(2);
    const MOST: usize = 8000;
    const QUEUE: Duration = Reason::Queue.longest();
    const PACE: Duration = Reason::Pace.longest();

    fn push(tail: &Tail, key: IntegrationKey, bytes: usize) {
        let chunk = TailChunk {
            id: key.0,
            first_sequence: 1,
            count: 1,
            accepted_at: Timestamp::UNIX_EPOCH,
            bytes: vec![0; bytes].into(),
            settled: Vec::new(),
            gaps: Vec::new(),
        };
        tail.push(key, chunk, true);
    }

    fn filled() -> Arc<Tail> {
        let tail = Tail::new(MOST);
        push(&tail, KEY, MOST - 1000);
        Arc::new(tail)
    }

    /// Waits beside what else happens.
    async fn waits(
        precedence: &Precedence,
        tail: &Tail,
        beside: impl Future<Output = ()>,
    ) -> Duration {
        let start = Instant::now();
        let mut waited = pin!(precedence.give_way(tail, [KEY].into_iter()));
        tokio::select! {
            () = &mut waited => {}
            () = beside => waited.await,
        }
        start.elapsed()
    }

    fn precedence(is_busy: bool, deliveries_queue: bool) -> Precedence {
        let precedence = Precedence::default();
        precedence.set(Load {
            is_busy,
            deliveries_queue,
        });
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
        assert_eq!(waits(&queued, &filled(), never()).await, QUEUE);
        let little = Arc::new(Tail::new(MOST));
        push(&little, KEY, 1);
        let coming = Coming::new(&little, MOST);
        let queued = precedence(true, true);
        assert_eq!(waits(&queued, &little, never()).await, QUEUE);
        // Nobody waits again before the oldest have left it.
        assert!(little.is_pressed());
        assert_eq!(waits(&queued, &little, never()).await, Duration::ZERO);
        little.press(false);
        drop(coming);
        assert_eq!(waits(&queued, &little, never()).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_events_are_few_does_not_wait() {
        let tail = Tail::new(MOST);
        push(&tail, KEY, MOST - 1000);
        push(&tail, OTHER, 1);
        let never = std::future::pending;
        assert_eq!(waits(&precedence(true, true), &tail, never()).await, QUEUE);
        tail.press(false);
        let start = Instant::now();
        for keys in [vec![OTHER], vec![IntegrationKey(3)], Vec::new()] {
            let queued = precedence(true, true);
            queued.give_way(&tail, keys.into_iter()).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let both = [OTHER, KEY].into_iter();
        precedence(true, true).give_way(&tail, both).await;
        assert_eq!(start.elapsed(), QUEUE);
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

    /// Delivers so many tenths of the tail's memory a second, for ever.
    async fn deliver(precedence: &Precedence, tenths: u64) {
        loop {
            precedence.delivered(MOST as u64 * tenths / 1000);
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// As long as it takes to know how quick deliveries are.
    async fn deliver_for_long(precedence: &Precedence, tenths: u64) {
        let _elapsed = timeout(SPAN * 3, deliver(precedence, tenths)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn waits_shortly_for_deliveries_that_are_quick() {
        let quick = precedence(true, false);
        deliver_for_long(&quick, 11).await;
        let tail = filled();
        let delivered = async {
            tokio::select! {
                () = deliver(&quick, 11) => {}
                () = sleep(Duration::from_millis(123)) => tail.finish(KEY, 1),
            }
        };
        let waited = waits(&quick, &tail, delivered).await;
        assert_eq!(waited, Duration::from_millis(123));
        assert!(!tail.is_pressed());

        // What fills the tail is of others.
        let tail = filled();
        assert_eq!(waits(&quick, &tail, deliver(&quick, 11)).await, PACE);
        assert!(tail.is_pressed());
        tail.press(false);
        advance(PACE * REST - SPAN * 4).await;
        deliver_for_long(&quick, 11).await;
        let again = waits(&quick, &tail, deliver(&quick, 11)).await;
        assert_eq!(again, Duration::ZERO);
        deliver_for_long(&quick, 11).await;
        assert_eq!(waits(&quick, &tail, deliver(&quick, 11)).await, PACE);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_no_longer_than_deliveries_are_quick() {
        let precedence = precedence(true, false);
        deliver_for_long(&precedence, 11).await;
        let tail = filled();
        let waited = waits(&precedence, &tail, std::future::pending()).await;
        assert!((SPAN..PACE).contains(&waited), "{waited:?}");
        assert!(!tail.is_pressed());
        // Not again for the next that are quick for a moment.
        deliver_for_long(&precedence, 11).await;
        let again = waits(&precedence, &tail, deliver(&precedence, 11)).await;
        assert_eq!(again, Duration::ZERO);
    }

    /// The clock goes on between two looks at it.
    #[tokio::test]
    async fn who_does_not_wait_presses_nothing() {
        let slow = precedence(true, false);
        let tail = filled();
        slow.give_way(&tail, [KEY].into_iter()).await;
        assert!(!tail.is_pressed());
        assert_eq!(slow.state().rests_until, None);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_nothing_where_deliveries_are_slow() {
        let slow = precedence(true, false);
        deliver_for_long(&slow, 9).await;
        let tail = filled();
        let waited = waits(&slow, &tail, deliver(&slow, 9)).await;
        assert_eq!(waited, Duration::ZERO);
        assert!(!tail.is_pressed());
    }
}
