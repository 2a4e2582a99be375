//! Rates with a burst, by the [generic cell rate algorithm]: each key costs one point in time.
//! The limits here need partial grants, checks that take nothing, and a bound on the number of
//! keys, which crates for rate limiting do not offer together.
//!
//! [generic cell rate algorithm]: https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// One unit per interval, and up to `burst` units at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// A rate of one unit per `interval`, at least 1 ns, with a burst of at least 1.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }

    /// A rate of `units` per second, at least 1, with the units of one second as its burst.
    pub fn per_second(units: u32) -> Self {
        let units = units.max(1);
        Self::new(Duration::from_secs(1) / units, units)
    }

    /// Time in which an unused burst is available again.
    fn span(&self) -> Duration {
        self.interval * self.burst
    }
}

/// Units that are available: all of the burst from this time on.
#[derive(Clone, Copy, Debug)]
pub struct Level(Instant);

impl Level {
    /// A level with the whole burst.
    pub fn full(now: Instant) -> Self {
        Self(now)
    }

    /// Takes up to `wanted` units. Returns the number of those that were available.
    pub fn take(&mut self, rate: Rate, wanted: u32, now: Instant) -> u32 {
        let from = self.0.max(now);
        let left = (now + rate.span()).saturating_duration_since(from);
        let available = left.as_nanos() / rate.interval.as_nanos().max(1);
        let taken = wanted.min(u32::try_from(available).unwrap_or(u32::MAX));
        if taken > 0 {
            self.0 = from + rate.interval * taken;
        }
        taken
    }

    /// Takes units, available or not. The debt is at most one burst.
    pub fn charge(&mut self, rate: Rate, units: u32, now: Instant) {
        let charged = self.0.max(now) + rate.interval * units;
        self.0 = charged.min(now + 2 * rate.span());
    }

    /// Time until this number of units is available, at most the burst.
    pub fn wait(&self, rate: Rate, units: u32, now: Instant) -> Duration {
        let after = self.0.max(now) + rate.interval * units.min(rate.burst);
        after.saturating_duration_since(now + rate.span())
    }
}

/// Levels by key, of one rate. Idle keys are forgotten.
#[derive(Debug)]
pub struct Levels<K> {
    rate: Rate,
    max_keys: usize,
    levels: HashMap<K, Level>,
}

impl<K: Eq + Hash> Levels<K> {
    /// Keeps at most `max_keys` keys. If that many are busy, the half that has taken the least is
    /// forgotten, which gives each of them one more burst at most: keys that were invented and used
    /// once displace none that has used up its burst.
    pub fn new(rate: Rate, max_keys: usize) -> Self {
        Self {
            rate,
            max_keys,
            levels: HashMap::new(),
        }
    }

    /// Takes up to `wanted` units of a key. Returns the number of those that were available.
    pub fn take(&mut self, key: K, wanted: u32, now: Instant) -> u32 {
        let rate = self.rate;
        self.level(key, now).take(rate, wanted, now)
    }

    /// Takes one unit of a key.
    ///
    /// # Errors
    ///
    /// The time until one is available.
    pub fn admit(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        let level = self.level(key, now);
        match level.take(rate, 1, now) {
            0 => Err(level.wait(rate, 1, now)),
            _ => Ok(()),
        }
    }

    /// Checks that a unit of a key is available, and takes none.
    ///
    /// # Errors
    ///
    /// The time until one is available.
    pub fn check<Q>(&self, key: &Q, now: Instant) -> Result<(), Duration>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let wait = |level: &Level| level.wait(self.rate, 1, now);
        match self.levels.get(key).map_or(Duration::ZERO, wait) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    /// Gives back a unit of a key that was taken.
    pub fn give_back<Q>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some(level) = self.levels.get_mut(key)
            && let Some(before) = level.0.checked_sub(self.rate.interval)
        {
            level.0 = before;
        }
    }

    fn forget_half(&mut self) {
        let mut times: Vec<Instant> = self.levels.values().map(|level| level.0).collect();
        let (_, median, _) = times.select_nth_unstable(self.levels.len() / 2);
        let median = *median;
        self.levels.retain(|_, level| level.0 > median);
    }

    fn level(&mut self, key: K, now: Instant) -> &mut Level {
        if self.levels.len() >= self.max_keys && !self.levels.contains_key(&key) {
            self.levels.retain(|_, level| level.0 > now);
            // Otherwise each further key would search all of them again.
            if self.levels.len() > self.max_keys / 2 {
                self.forget_half();
            }
        }
        self.levels.entry(key).or_insert(Level::full(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate::new(Duration::from_secs(10), 5);

    #[test]
    fn a_burst_is_admitted_and_then_one_per_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut levels = Levels::new(RATE, 100);
        for _ in 0..5 {
            assert_eq!(levels.check("a", at(0)), Ok(()));
            assert_eq!(levels.admit("a", at(0)), Ok(()));
        }
        assert_eq!(levels.check("a", at(4)), Err(Duration::from_secs(6)));
        assert_eq!(levels.admit("a", at(4)), Err(Duration::from_secs(6)));
        assert_eq!(levels.admit("b", at(4)), Ok(()), "another key");
        assert_eq!(levels.admit("a", at(10)), Ok(()));
        assert_eq!(levels.admit("a", at(10)), Err(Duration::from_secs(10)));
        assert_eq!(levels.take("a", 9, at(1_000)), 5);
    }

    #[test]
    fn a_debt_is_at_most_one_burst() {
        let now = Instant::now();
        let mut level = Level::full(now);
        level.charge(RATE, 1_000, now);
        assert_eq!(level.take(RATE, 1, now + RATE.span()), 0);
        assert_eq!(level.wait(RATE, 1, now), Duration::from_secs(60));
        assert_eq!(level.take(RATE, 9, now + 2 * RATE.span()), 5);
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_idle_ones_go_first() {
        let start = Instant::now();
        let mut levels = Levels::new(RATE, 100);
        levels.take(1_000_000, 5, start + Duration::from_secs(60));
        for key in 0..99 {
            levels.take(key, 1, start);
        }
        let later = start + Duration::from_secs(60);
        levels.take(99, 1, later);
        assert!(levels.admit(1_000_000, later).is_err(), "it is busy");
        assert_eq!(levels.levels.len(), 2);
        for key in 0..10_000 {
            levels.take(key, 1, later);
            assert!(levels.levels.len() <= 100);
        }
        assert!(
            levels.admit(1_000_000, later).is_err(),
            "a flood of keys that were used once displaces it"
        );
    }

    #[test]
    fn a_unit_that_is_given_back_can_be_taken_again() {
        let (mut levels, now) = (Levels::new(RATE, 100), Instant::now());
        levels.take("a", 5, now);
        levels.give_back("a");
        levels.give_back("unknown");
        assert_eq!(levels.take("a", 5, now), 1);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            steps in prop::collection::vec((0_u64..20_000, 0_u32..8), 1..100),
        ) {
            let start = Instant::now();
            let (mut level, mut now) = (Level::full(start), start);
            let mut taken = 0;
            for (pause, wanted) in steps {
                now += Duration::from_millis(pause);
                let wait = level.wait(RATE, 1, now);
                let got = level.take(RATE, wanted, now);
                prop_assert_eq!(wait.is_zero(), got > 0 || wanted == 0 && wait.is_zero());
                taken += u128::from(got);
                let most = 5 + now.duration_since(start).as_millis() / 10_000;
                prop_assert!(taken <= most, "{} of {}", taken, most);
            }
        }
    }
}
