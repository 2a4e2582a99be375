//! What was found, for programs; [`super::text`] tells it to people.

use serde::Serialize;
use uuid::Uuid;

use super::{
    Audit,
    integration::{Integration, Samples, Told},
};

/// What is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every sequence is there, or a gap event stands for it, and nothing contradicts.
    Complete,
    /// Something is missing in silence, or contradicts what was promised.
    Incomplete,
    /// There was nothing of siem-relay's to judge.
    NothingRead,
}

/// Sequences from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// Some of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed<T> {
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: Vec<T>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Over all integrations.
    pub verdict: Verdict,
    /// Records that were read.
    pub records: u64,
    /// Records of integrations that were not asked for.
    pub unasked: u64,
    /// Records that are no CloudEvent of siem-relay's; a stream may be shared.
    pub foreign: Listed<ForeignRecord>,
    /// In the order in which they were created.
    pub integrations: Vec<IntegrationReport>,
}

/// A record that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForeignRecord {
    /// Where it was found.
    pub place: String,
    /// What it is, or is not.
    pub why: String,
    /// How it begins.
    pub excerpt: String,
}

/// What was found of one integration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IntegrationReport {
    /// Whose.
    pub integration_id: Uuid,
    /// Over all below.
    pub verdict: Verdict,
    /// The lowest sequence that was read, or that a gap stands for.
    pub first_sequence: Option<u64>,
    /// The highest sequence that was read.
    pub last_sequence: Option<u64>,
    /// From where to where nothing may be missing; none where nothing is expected.
    pub judged: Option<Range>,
    /// Records, of every kind.
    pub records: u64,
    /// Events that were read, each counted once.
    pub events: u64,
    /// Events that came again. Delivery is at least once.
    pub duplicates: u64,
    /// Those of them that came too long after the first to compare their ids.
    pub duplicates_not_compared: u64,
    /// Test events.
    pub tests: u64,
    /// What is missing in silence. A failure.
    pub holes: Holes,
    /// What is missing and was announced.
    pub gaps: Gaps,
    /// Sequences under which different events, or different gaps, were read. A failure.
    pub id_conflicts: Listed<u64>,
    /// Records that are not as promised. A failure.
    pub malformed: Listed<MalformedRecord>,
    /// Events that arrived after later ones of their device.
    pub out_of_order: OutOfOrder,
}

/// Sequences that are missing, and no gap event says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holes {
    /// How many sequences.
    pub sequences: u64,
    /// How many ranges.
    pub count: u64,
    /// The first of the ranges.
    pub first: Vec<Range>,
}

/// Gap events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gaps {
    /// How many, each counted once.
    pub events: u64,
    /// How many came again.
    pub duplicates: u64,
    /// How many overlap another. Their counts add up, though one may have taken in the
    /// other, so that as much may be missing of what they share.
    pub overlapping: u64,
    /// Sequences that they stand for and that were not read.
    pub sequences: u64,
    /// Sequences within their ranges that were read: of events that were delivered before
    /// others beside them expired, or of which the answer was lost before they did.
    pub arrived: u64,
    /// The first of them.
    pub first: Vec<GapReport>,
    /// Ranges of which more is missing than their gap events count. A failure.
    pub understated: Listed<UnderstatedRange>,
}

/// One gap event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GapReport {
    /// The first sequence of its range.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// How many events it stands for.
    pub count: u64,
    /// Why they were not delivered.
    pub reason: String,
}

/// More is missing than was announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnderstatedRange {
    /// The first sequence of the gaps.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// What they count.
    pub announced: u64,
    /// What is missing.
    pub missing: u64,
}

/// A record of an integration that is not as promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MalformedRecord {
    /// Where it was found.
    pub place: String,
    /// What is wrong.
    pub why: String,
}

/// Events that arrived after later ones of their device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutOfOrder {
    /// How many events.
    pub count: u64,
    /// Of how many devices.
    pub devices: u64,
    /// Events of devices beyond the first million, whose order was not watched.
    pub not_watched: u64,
    /// The first of them.
    pub first: Vec<LateEvent>,
}

/// An event that arrived after a later one of its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LateEvent {
    /// The device, which is the partition key.
    pub device: Uuid,
    /// The event's sequence.
    pub sequence: u64,
    /// The highest sequence of the device that had arrived.
    pub after: u64,
}

impl Report {
    pub(super) fn new(audit: &Audit) -> Self {
        let mut integrations: Vec<IntegrationReport> = audit
            .integrations
            .iter()
            .map(|integration| IntegrationReport::new(audit, integration))
            .collect();
        integrations.sort_by_key(|one| one.integration_id);
        let incomplete = integrations
            .iter()
            .any(|one| one.verdict != Verdict::Complete);
        let verdict = match (integrations.is_empty(), incomplete) {
            (true, _) => Verdict::NothingRead,
            (false, true) => Verdict::Incomplete,
            (false, false) => Verdict::Complete,
        };
        Self {
            verdict,
            records: audit.records,
            unasked: audit.unasked,
            foreign: listed(&audit.foreign, ForeignRecord::clone),
            integrations,
        }
    }
}

impl IntegrationReport {
    fn new(audit: &Audit, integration: &Integration) -> Self {
        let (first, last) = audit.judged(integration);
        let mut report = Self {
            integration_id: integration.id,
            verdict: Verdict::Complete,
            first_sequence: integration.first(),
            last_sequence: integration.last(),
            judged: (first <= last).then_some(Range { first, last }),
            records: integration.records,
            events: integration.events.len(),
            duplicates: integration.duplicates,
            duplicates_not_compared: integration.not_compared,
            tests: integration.tests,
            holes: holes(audit, integration),
            gaps: gaps(audit, integration),
            id_conflicts: listed(&integration.conflicts, |sequence| *sequence),
            malformed: listed(&integration.malformed, |(place, why)| MalformedRecord {
                place: place.clone(),
                why: why.clone(),
            }),
            out_of_order: out_of_order(integration),
        };
        if report.fails(audit.expectation.strict_order) {
            report.verdict = Verdict::Incomplete;
        }
        report
    }

    fn fails(&self, strict_order: bool) -> bool {
        self.records == 0
            || self.holes.count > 0
            || self.gaps.understated.count > 0
            || self.id_conflicts.count > 0
            || self.malformed.count > 0
            || (strict_order && self.out_of_order.count > 0)
    }
}

fn listed<T, U>(samples: &Samples<T>, tell: impl Fn(&T) -> U) -> Listed<U> {
    Listed {
        count: samples.count,
        first: samples.first.iter().map(tell).collect(),
    }
}

fn holes(audit: &Audit, integration: &Integration) -> Holes {
    let (first, last) = audit.judged(integration);
    let holes = integration.accounted().holes(first, last);
    let sequences = holes
        .iter()
        .map(|(first, last)| (last - first).saturating_add(1));
    Holes {
        sequences: sequences.fold(0, u64::saturating_add),
        count: holes.len() as u64,
        first: holes
            .iter()
            .take(audit.expectation.listed)
            .map(|(first, last)| Range {
                first: *first,
                last: *last,
            })
            .collect(),
    }
}

fn gaps(audit: &Audit, integration: &Integration) -> Gaps {
    let listed = audit.expectation.listed;
    let (first, last) = audit.judged(integration);
    let told = integration.told(first, last);
    let missing = |told: &Told| integration.missing(told.first, told.last);
    let sequences: u64 = told.iter().map(missing).sum();
    let announced: u64 = told.iter().map(|told| told.last - told.first + 1).sum();
    let overlapping = told.iter().map(|told| told.gaps).filter(|gaps| *gaps > 1);
    let understated = integration.understated(first, last);
    Gaps {
        events: integration.gaps.len() as u64,
        duplicates: integration.gap_duplicates,
        overlapping: overlapping.sum(),
        sequences,
        arrived: announced - sequences,
        first: integration
            .gaps
            .iter()
            .take(listed)
            .map(|(last, gap)| GapReport {
                first: gap.first,
                last: *last,
                count: gap.count,
                reason: gap.reason.to_string(),
            })
            .collect(),
        understated: Listed {
            count: understated.len() as u64,
            first: understated
                .iter()
                .take(listed)
                .map(|range| UnderstatedRange {
                    first: range.first,
                    last: range.last,
                    announced: range.announced,
                    missing: missing(range),
                })
                .collect(),
        },
    }
}

fn out_of_order(integration: &Integration) -> OutOfOrder {
    OutOfOrder {
        count: integration.late.count,
        devices: integration.late_devices,
        not_watched: integration.unwatched,
        first: integration
            .late
            .first
            .iter()
            .map(|late| LateEvent {
                device: late.device,
                sequence: late.sequence,
                after: late.after,
            })
            .collect(),
    }
}
