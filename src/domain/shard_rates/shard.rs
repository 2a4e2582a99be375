//! The rate of one shard.

use std::time::{Duration, Instant};

use super::Fate;

const RECORDS_PER_SECOND: f64 = 1000.0;
const BYTES_PER_SECOND: f64 = 1_048_576.0;
/// What is saved up before more is sent, so that requests do not become small.
const PORTION: f64 = 0.1;
/// What is saved up at the most while there is nothing to send.
const MOST_SAVED: f64 = 0.2;
/// The wait after a refusal; it doubles while nothing is accepted.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// Over which time the accepted is averaged.
const MEMORY: f64 = 1.0;
/// How much a rate rises a second, just after a refusal; it doubles each
/// [`RISE_DOUBLES`].
const RISE: f64 = 0.005;
const RISE_DOUBLES: f64 = 2.0;
const RISE_MOST: f64 = 1.0;
/// What remains of the accepted rate after a refusal.
const STEP_BACK: f64 = 0.98;
const LEAST_RATE: f64 = 0.001;
/// What was accepted of late, in seconds' worth, below which a shard takes nothing.
const SILENT: f64 = 0.0005;
/// A rate that falls by less than this is no attempt to find the limit.
const ATTEMPT: f64 = 0.7;
/// Where what is accepted falls nearly as the rate does, the refusals do not come of
/// the rate: this power of the rate's fall tells the two apart.
const FALLS_ALONG: f64 = 0.7;
/// How long a rate stays to be seen whether its fall helps.
const TRIAL: Duration = Duration::from_secs(2);
/// How long a rate stays where falling did not help; it doubles each time.
const STAYS_FIRST: Duration = Duration::from_secs(5);
const STAYS_MOST: Duration = Duration::from_secs(60);
/// Without refusals for so long, the next one is another matter.
const QUIET: f64 = 3.0;
const MOST_RATE: f64 = 1000.0;

/// What is known of a shard: its range of hashes, as far as seen, and its rate.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) id: Box<str>,
    pub(super) low: u128,
    pub(super) high: u128,
    /// In shares of the documented limits.
    rate: f64,
    /// What may be sent, in seconds' worth of the documented limits: records and bytes.
    saved: [f64; 2],
    saved_at: Instant,
    paused_until: Instant,
    pause: Option<Duration>,
    /// Records may go that are found now.
    open: bool,
    /// Not all that was found could go.
    limited: bool,
    /// As it was when the last answer came.
    was_limited: bool,
    /// What was accepted of late, in seconds' worth of the limits.
    accepted: [f64; 2],
    accepted_at: Instant,
    since: Instant,
    refused_at: Instant,
    /// It was over a limit once: before that it takes what comes.
    throttled: bool,
    attempt: Option<Attempt>,
    stays: Duration,
    stays_until: Instant,
    /// Of the answer at hand.
    here: Counts,
}

/// A fall of the rate, of which it is to be seen whether it helps.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    rate_before: f64,
    accepted_before: f64,
    /// It has fallen far enough to tell.
    is_judged_next: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    accepted: [f64; 2],
    throttled: bool,
    failed: bool,
}

fn cost(weight: usize) -> [f64; 2] {
    // Exact: a record has at most 10 MiB.
    [1.0 / RECORDS_PER_SECOND, weight as f64 / BYTES_PER_SECOND]
}

impl Shard {
    pub(super) fn new(now: Instant, id: &str, hash: u128) -> Self {
        Self {
            id: id.into(),
            low: hash,
            high: hash,
            rate: 1.0,
            saved: [PORTION; 2],
            saved_at: now,
            paused_until: now,
            pause: None,
            open: false,
            limited: false,
            was_limited: true,
            accepted: [0.0; 2],
            accepted_at: now,
            since: now,
            refused_at: now,
            throttled: false,
            attempt: None,
            stays: STAYS_FIRST,
            stays_until: now,
            here: Counts::default(),
        }
    }

    fn portion(&self) -> f64 {
        PORTION * self.rate
    }

    fn save(&mut self, now: Instant) {
        let elapsed = seconds(self.saved_at, now);
        let most = MOST_SAVED * self.rate;
        self.saved = self
            .saved
            .map(|saved| (saved + elapsed * self.rate).min(most));
        self.saved_at = now;
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.save(now);
        // A hair less, since a wake-up at the very moment may round.
        let least = self.portion() * 0.99;
        let saved = !self.throttled || self.saved.iter().all(|saved| *saved >= least);
        self.open = saved && now >= self.paused_until;
        self.was_limited |= self.limited;
        self.limited = false;
    }

    pub(super) fn admit(&mut self, weight: usize) -> bool {
        let spent = self.throttled && self.saved.iter().any(|saved| *saved <= 0.0);
        if !self.open || spent {
            self.open = false;
            self.limited = true;
            return false;
        }
        let cost = cost(weight);
        self.saved = [self.saved[0] - cost[0], self.saved[1] - cost[1]];
        true
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limited
    }

    /// When a portion will be saved up.
    pub(super) fn opens_at(&self) -> Instant {
        if !self.throttled {
            return self.paused_until;
        }
        let least = self.saved[0].min(self.saved[1]);
        let wait = (self.portion() - least).max(0.0) / self.rate;
        self.paused_until
            .max(self.saved_at + Duration::from_secs_f64(wait))
    }

    /// How long it is left alone, where more than one answer in a row accepted nothing.
    pub(super) fn stalled(&self) -> Option<Duration> {
        self.pause.filter(|pause| *pause > PAUSE_FIRST * 2)
    }

    pub(super) fn count(&mut self, weight: usize, fate: Fate<'_>) {
        match fate {
            Fate::Accepted(_) => {
                let cost = cost(weight);
                let before = self.here.accepted;
                self.here.accepted = [before[0] + cost[0], before[1] + cost[1]];
            }
            Fate::Throttled => self.here.throttled = true,
            Fate::Failed => self.here.failed = true,
        }
    }

    /// Adapts to what was counted of an answer.
    pub(super) fn adapt(&mut self, now: Instant) {
        let here = std::mem::take(&mut self.here);
        let nothing = here.accepted[0] == 0.0;
        if nothing && !here.throttled && !here.failed {
            return;
        }
        let elapsed = seconds(self.accepted_at, now);
        let kept = (-elapsed / MEMORY).exp();
        let before = self.accepted;
        self.accepted = [0, 1].map(|at: usize| before[at] * kept + here.accepted[at]);
        self.accepted_at = now;
        if here.throttled || here.failed {
            self.pause(now, nothing, here.throttled);
        } else {
            self.pause = None;
            if self.was_limited {
                self.rise(now, elapsed);
            }
        }
        self.was_limited = self.limited;
    }

    fn rise(&mut self, now: Instant, elapsed: f64) {
        let doublings = seconds(self.refused_at, now) / RISE_DOUBLES;
        let rise = (RISE * doublings.exp2()).min(RISE_MOST);
        self.rate = (self.rate * (1.0 + rise * elapsed.min(1.0))).min(MOST_RATE);
    }

    fn pause(&mut self, now: Instant, nothing: bool, throttled: bool) {
        // Several requests of one moment meet the same limit.
        if now < self.paused_until && !nothing {
            return;
        }
        if throttled && nothing && self.accepted[0] < SILENT {
            // The pause is enough: no rate is learned from a shard that takes nothing, and
            // no debt is left for when it does again.
            self.throttled = true;
            self.saved = [0.0; 2];
            self.saved_at = now;
            self.refused_at = now;
        } else if throttled {
            self.save(now);
            self.saved = self.saved.map(|saved| saved.min(0.0));
            self.step_back(now);
            self.refused_at = now;
        }
        if now < self.paused_until {
            return;
        }
        let pause = match (nothing, self.pause) {
            (true, Some(before)) => (before * 2).min(PAUSE_MOST),
            _ => PAUSE_FIRST,
        };
        self.pause = nothing.then_some(pause);
        self.paused_until = now + pause;
    }

    /// The rate becomes what was accepted, where that is known and helps.
    fn step_back(&mut self, now: Instant) {
        self.throttled = true;
        let age = seconds(self.since, now);
        if age < 0.8 * MEMORY || now < self.stays_until {
            return;
        }
        let accepted = self.accepted[0].max(self.accepted[1]);
        let measured = accepted / (MEMORY * (1.0 - (-age / MEMORY).exp()));
        if seconds(self.refused_at, now) > QUIET {
            self.attempt = None;
        }
        if self.attempt.is_some_and(|attempt| attempt.is_judged_next) && self.undo(now, measured) {
            return;
        }
        let before = self.rate;
        if self.was_limited {
            self.rate = before.min(measured.max(before / 10.0));
        }
        self.rate = (self.rate * STEP_BACK).max(LEAST_RATE);
        let attempt = self.attempt.get_or_insert(Attempt {
            rate_before: before,
            accepted_before: measured,
            is_judged_next: false,
        });
        if self.rate < attempt.rate_before * ATTEMPT {
            attempt.is_judged_next = true;
            self.stays_until = now + TRIAL;
        }
    }

    /// Undoes a fall of the rate that did not help. Returns whether it did so.
    fn undo(&mut self, now: Instant, measured: f64) -> bool {
        let Some(attempt) = self.attempt.take() else {
            return false;
        };
        let fall = (self.rate / attempt.rate_before).min(1.0);
        let is_useless = measured < attempt.accepted_before * fall.powf(FALLS_ALONG);
        if is_useless {
            self.rate = attempt.rate_before;
            self.stays_until = now + self.stays;
            self.stays = (self.stays * 2).min(STAYS_MOST);
        } else {
            self.stays = STAYS_FIRST;
        }
        is_useless
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
