//! Whether AWS refuses one record or all of them, where it says that the request's
//! values are not acceptable.
//!
//! The batch is halved until a record is refused alone. That proves nothing yet: the
//! configuration may be what is refused. A record is given up only once it was refused
//! alone, then another passed that was sent after that, then it was refused alone again
//! in a request that was sent after that. To be refused beside records that pass is as
//! much as both of the first two. So long as nothing passes, nothing is given up.
//!
//! The other that has to pass is of another key. Where none is at hand, it may be the next
//! of the same key, but only if something has passed since the refusals began, or after
//! many attempts in vain: where everything is refused, nothing shall be overtaken.

use std::collections::{HashMap, HashSet};

use super::Outcome;

/// Other records that are tried when one was refused alone, before all are taken to be.
const PROBES: usize = 3;
/// Rounds in vain after which a record may be overtaken by one of its own key.
const MOST_ROUNDS: usize = 20;
/// Records that are remembered as refused alone at the most.
const MOST_ALONE: usize = 256;
/// Records that are suspected at the most.
const MOST_SUSPECTS: usize = 4096;

/// What was known when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    clock: u64,
    last_pass: u64,
}

/// One record of a request, and what became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) outcome: Outcome,
    /// What stands for records that were given up is never given up.
    pub(super) is_gap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// When it was refused alone, or beside others that passed, first.
    since: u64,
    /// Others of the same request passed.
    beside: bool,
}

/// What an answer showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Sequences of records that are refused while others pass.
    pub(super) given_up: Vec<u64>,
    /// Nothing passed, and a smaller request will tell more.
    pub(super) halved: bool,
    /// A record was refused alone, and other records may tell more.
    pub(super) probe: bool,
}

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Records that a request may hold, while something is refused.
    cap: Option<usize>,
    /// Counts answers that refused something.
    clock: u64,
    /// When the newest request was sent of which something passed.
    last_pass: u64,
    suspects: HashMap<u64, Suspect>,
    /// Records that were refused alone, one after the other.
    round: usize,
    /// Records that were refused alone since something passed.
    alone: HashSet<u64>,
    /// Something passed since the refusals began.
    passed: bool,
    /// Rounds since something passed.
    rounds: usize,
}

impl Refusals {
    pub(super) fn sent(&self) -> Sent {
        Sent {
            clock: self.clock,
            last_pass: self.last_pass,
        }
    }

    /// How many records the next request may hold.
    pub(super) fn cap(&mut self, most: usize) -> usize {
        self.cap = self.cap.filter(|cap| *cap < most);
        self.cap.unwrap_or(most)
    }

    pub(super) fn is_narrowing(&self) -> bool {
        self.cap.is_some()
    }

    /// Whether the next request tries another record than those that were refused alone.
    pub(super) fn is_probing(&self) -> bool {
        self.round > 0
    }

    pub(super) fn was_refused_alone(&self, sequence: u64) -> bool {
        self.alone.contains(&sequence)
    }

    /// Whether a record that was refused alone may be overtaken by one of its own key.
    pub(super) fn may_overtake(&self) -> bool {
        self.passed || self.rounds >= MOST_ROUNDS
    }

    /// The next request begins with the oldest record again.
    pub(super) fn end_round(&mut self, all_tried: bool) {
        self.rounds = self.rounds.saturating_add(usize::from(self.round > 0));
        self.round = 0;
        if all_tried || self.alone.len() > MOST_ALONE {
            self.alone.clear();
        }
    }

    /// Forgets what another configuration met.
    pub(super) fn forget(&mut self) {
        *self = Self {
            clock: self.clock + 1,
            ..Self::default()
        };
    }

    pub(super) fn take_in(&mut self, sent: Sent, records: &[Record]) -> Findings {
        let is = |wanted: Outcome| records.iter().any(|record| record.outcome == wanted);
        let (passed, refused) = (is(Outcome::Accepted), is(Outcome::Refused));
        let mut findings = Findings::default();
        // Whatever else fails tells nothing of a refusal.
        if !passed && (!refused || is(Outcome::Failed)) {
            return findings;
        }
        if refused {
            self.clock += 1;
        }
        if passed {
            self.pass(sent, records);
        }
        let individually = passed || records.len() == 1;
        for record in records {
            let sequence = record.sequence;
            if record.outcome != Outcome::Refused || record.is_gap || !individually {
                continue;
            }
            if self.is_proven(sequence, sent, passed) {
                self.suspects.remove(&sequence);
                // A gap will have its sequence.
                self.alone.remove(&sequence);
                self.round = 0;
                findings.given_up.push(sequence);
            } else {
                self.suspect(sequence, passed);
            }
        }
        if !passed {
            self.narrow(records, &mut findings);
        }
        findings
    }

    fn pass(&mut self, sent: Sent, records: &[Record]) {
        self.last_pass = self.last_pass.max(sent.clock);
        self.round = 0;
        self.alone.clear();
        self.rounds = 0;
        self.passed = true;
        self.cap = self.cap.map(|cap| cap.saturating_mul(2));
        if !self.suspects.is_empty() {
            for record in records {
                if record.outcome == Outcome::Accepted {
                    self.suspects.remove(&record.sequence);
                }
            }
        }
    }

    fn is_proven(&self, sequence: u64, sent: Sent, passed: bool) -> bool {
        self.suspects
            .get(&sequence)
            .is_some_and(|suspect| passed || suspect.beside || sent.last_pass >= suspect.since)
    }

    fn suspect(&mut self, sequence: u64, beside: bool) {
        if self.suspects.len() >= MOST_SUSPECTS {
            self.suspects.clear();
        }
        let since = self.clock;
        let suspect = self.suspects.entry(sequence).or_insert(Suspect {
            since,
            beside: false,
        });
        suspect.beside |= beside;
    }

    fn narrow(&mut self, records: &[Record], findings: &mut Findings) {
        if self.cap.is_none() {
            self.passed = false;
        }
        self.cap = Some((records.len() / 2).max(1));
        match records {
            [record] if findings.given_up.is_empty() => {
                self.alone.insert(record.sequence);
                self.round += 1;
                findings.probe = self.round <= PROBES;
            }
            _ => findings.halved = true,
        }
    }
}
