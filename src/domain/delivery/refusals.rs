//! Decision whether AWS refuses one record or every record, when it answers that a value of
//! the request is invalid.
//!
//! Requests are halved until a record is refused alone. That proves nothing yet, because the
//! configuration may be refused. A record counts as refused only after three answers: it was
//! refused alone; another record was accepted, in a request sent after that; it was refused
//! alone again, in a request sent after that. A refusal in a request of which other records
//! are accepted counts as the first two. While nothing is accepted, nothing is given up.
//!
//! The other record has a different key. If none is loaded, it may be the next one of the same
//! key, but only if something was accepted since the refusals began, or after many rounds
//! without success: if everything is refused, no record shall be overtaken.

use std::collections::{HashMap, HashSet};

use super::RecordOutcome;

/// Other records that are tried after one was refused alone, before all are assumed to be
/// refused.
const PROBES: usize = 3;
/// Rounds without an accepted record after which a record may be overtaken by one of its own
/// key.
const ROUNDS_UNTIL_OVERTAKING: usize = 20;
/// Most sequences that are remembered as refused alone.
const MAX_REFUSED_ALONE: usize = 256;
/// Most records that are suspected at a time.
const MAX_SUSPECTS: usize = 4096;

/// State of the evidence when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    clock: u64,
    last_accepted: u64,
}

/// Verdict on one record of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    Failed,
    /// AWS refuses a value of the record or of the request.
    Refused,
}

impl Verdict {
    /// `is_current` is whether the request used the current configuration: a refusal of
    /// another one says nothing.
    pub(super) fn of(outcome: Option<&RecordOutcome>, is_current: bool) -> Self {
        match outcome {
            Some(RecordOutcome::Accepted { .. }) => Self::Accepted,
            Some(RecordOutcome::Failed(fault)) if is_current && fault.refuses_values() => {
                Self::Refused
            }
            Some(RecordOutcome::Failed(_)) | None => Self::Failed,
        }
    }
}

/// Record of an answered request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    pub(super) sequence: u64,
    pub(super) verdict: Verdict,
    /// A gap event, which is never given up.
    pub(super) is_gap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// Clock at the first refusal that counts.
    since: u64,
    /// It was refused in a request of which other records were accepted.
    beside_accepted: bool,
}

/// Conclusions from an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Sequences of records that are refused while others are accepted.
    pub(super) refused: Vec<u64>,
    /// Nothing was accepted, and a smaller request will show more.
    pub(super) halved: bool,
    /// A record was refused alone, and other records may show more.
    pub(super) probe: bool,
}

/// Evidence about refused records of one integration.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Most records of a request while narrowing.
    max_records: Option<usize>,
    /// Number of answers that refused something.
    clock: u64,
    /// Clock at the sending of the newest request of which a record was accepted.
    last_accepted: u64,
    suspects: HashMap<u64, Suspect>,
    /// Records of this round that were refused alone, one after the other.
    round: usize,
    /// Records that were refused alone since one was accepted.
    refused_alone: HashSet<u64>,
    /// A record was accepted since the refusals began.
    accepts: bool,
    /// Rounds since a record was accepted.
    rounds: usize,
}

impl Refusals {
    pub(super) fn sent(&self) -> Sent {
        Sent {
            clock: self.clock,
            last_accepted: self.last_accepted,
        }
    }

    /// Most records of the next request; `limit` while nothing is refused.
    pub(super) fn max_records(&mut self, limit: usize) -> usize {
        self.max_records = self.max_records.filter(|max| *max < limit);
        self.max_records.unwrap_or(limit)
    }

    pub(super) fn is_narrowing(&self) -> bool {
        self.max_records.is_some()
    }

    /// Whether the next request tries a record other than those that were refused alone.
    pub(super) fn is_probing(&self) -> bool {
        self.round > 0
    }

    pub(super) fn was_refused_alone(&self, sequence: u64) -> bool {
        self.refused_alone.contains(&sequence)
    }

    /// Whether a record that was refused alone may be overtaken by one of its own key.
    pub(super) fn may_overtake(&self) -> bool {
        self.accepts || self.rounds >= ROUNDS_UNTIL_OVERTAKING
    }

    /// Ends the round: the next request starts with the oldest record again.
    pub(super) fn end_round(&mut self, all_tried: bool) {
        self.rounds = self.rounds.saturating_add(usize::from(self.round > 0));
        self.round = 0;
        if all_tried || self.refused_alone.len() > MAX_REFUSED_ALONE {
            self.refused_alone.clear();
        }
    }

    /// Forgets all evidence, because the configuration has changed. Requests in flight were
    /// sent before.
    pub(super) fn forget(&mut self) {
        *self = Self {
            clock: self.clock + 1,
            ..Self::default()
        };
    }

    /// Learns from an answer.
    pub(super) fn learn(&mut self, sent: Sent, records: &[Judged]) -> Findings {
        let any = |wanted: Verdict| records.iter().any(|record| record.verdict == wanted);
        let (accepted, refused) = (any(Verdict::Accepted), any(Verdict::Refused));
        let mut findings = Findings::default();
        // Other failures say nothing about refusals.
        if !accepted && (!refused || any(Verdict::Failed)) {
            return findings;
        }
        if refused {
            self.clock += 1;
        }
        if accepted {
            self.note_accepted(sent, records);
        }
        let names_record = accepted || records.len() == 1;
        for record in records {
            let sequence = record.sequence;
            if record.verdict != Verdict::Refused || record.is_gap || !names_record {
                continue;
            }
            if self.is_proven(sequence, sent, accepted) {
                self.suspects.remove(&sequence);
                // A gap may get its sequence.
                self.refused_alone.remove(&sequence);
                self.round = 0;
                findings.refused.push(sequence);
            } else {
                self.suspect(sequence, accepted);
            }
        }
        if !accepted {
            self.narrow(records, &mut findings);
        }
        findings
    }

    fn note_accepted(&mut self, sent: Sent, records: &[Judged]) {
        self.last_accepted = self.last_accepted.max(sent.clock);
        self.round = 0;
        self.refused_alone.clear();
        self.rounds = 0;
        self.accepts = true;
        self.max_records = self.max_records.map(|max| max.saturating_mul(2));
        if !self.suspects.is_empty() {
            for record in records {
                if record.verdict == Verdict::Accepted {
                    self.suspects.remove(&record.sequence);
                }
            }
        }
    }

    fn is_proven(&self, sequence: u64, sent: Sent, accepted: bool) -> bool {
        self.suspects.get(&sequence).is_some_and(|suspect| {
            accepted || suspect.beside_accepted || sent.last_accepted >= suspect.since
        })
    }

    fn suspect(&mut self, sequence: u64, beside_accepted: bool) {
        if self.suspects.len() >= MAX_SUSPECTS {
            self.suspects.clear();
        }
        let since = self.clock;
        let suspect = self.suspects.entry(sequence).or_insert(Suspect {
            since,
            beside_accepted: false,
        });
        suspect.beside_accepted |= beside_accepted;
    }

    fn narrow(&mut self, records: &[Judged], findings: &mut Findings) {
        if self.max_records.is_none() {
            self.accepts = false;
        }
        self.max_records = Some((records.len() / 2).max(1));
        match records {
            [record] if findings.refused.is_empty() => {
                self.refused_alone.insert(record.sequence);
                self.round += 1;
                findings.probe = self.round <= PROBES;
            }
            _ => findings.halved = true,
        }
    }
}
