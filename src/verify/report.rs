//! The findings of an audit: as JSON for programs, as text for people.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::{Audit, integration::Integration};

/// Result of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every sequence was read or is announced as missing by a gap event, and nothing
    /// contradicts another record.
    Complete,
    /// Something is missing without a gap event, or contradicts the promises of the service.
    Incomplete,
    /// No event of siem-relay was read.
    NothingRead,
}

/// A range of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The first sequence.
    pub first: u64,
    /// The last sequence.
    pub last: u64,
}

/// Number of findings of one kind, and a list of the first of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed<T> {
    /// Number of all findings.
    pub count: u64,
    /// The first findings, up to a limit.
    pub first: Vec<T>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            count: 0,
            first: Vec::new(),
        }
    }
}

impl<T> Listed<T> {
    /// Counts a finding, and lists it if the list is shorter than `limit`.
    pub(super) fn add(&mut self, limit: usize, finding: impl FnOnce() -> T) {
        self.count += 1;
        if self.first.len() < limit {
            self.first.push(finding());
        }
    }
}

/// All findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Verdict over all integrations.
    pub verdict: Verdict,
    /// Number of records that were read.
    pub records: u64,
    /// Number of records of integrations that were not to be judged.
    pub unasked: u64,
    /// Records that are not CloudEvents of siem-relay; a stream may be shared.
    pub foreign: Listed<ForeignRecord>,
    /// Findings for each integration, in the order of creation.
    pub integrations: Vec<IntegrationReport>,
}

/// A record that is not an event of siem-relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForeignRecord {
    /// Its position in the input.
    pub place: String,
    /// Reason why it is not an event of siem-relay.
    pub why: String,
    /// Its first characters.
    pub excerpt: String,
}

/// Findings for one integration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IntegrationReport {
    /// The integration.
    pub integration_id: Uuid,
    /// Verdict over the findings below.
    pub verdict: Verdict,
    /// The lowest sequence that was read, or that is in the range of a gap.
    pub first_sequence: Option<u64>,
    /// The highest sequence that was read.
    pub last_sequence: Option<u64>,
    /// Range in which nothing may be missing; none if no sequence is expected.
    pub judged: Option<Range>,
    /// Number of records of every kind.
    pub records: u64,
    /// Number of different events.
    pub events: u64,
    /// Number of repeated events. Delivery is at least once.
    pub duplicates: u64,
    /// Number of repeated events that were read too long after the first to compare their ids.
    pub duplicates_not_compared: u64,
    /// Number of test events.
    pub tests: u64,
    /// Missing sequences without a gap event. A failure.
    pub holes: Holes,
    /// Gap events, which announce that sequences are missing.
    pub gaps: Gaps,
    /// Sequences under which different events, or different gaps, were read. A failure.
    pub id_conflicts: Listed<u64>,
    /// Records that are not valid events. A failure.
    pub malformed: Listed<MalformedRecord>,
    /// Events that arrived after later ones of their device. A failure if order is strict.
    pub out_of_order: OutOfOrder,
}

/// Missing sequences without a gap event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holes {
    /// Number of missing sequences.
    pub sequences: u64,
    /// Number of ranges.
    pub count: u64,
    /// The first ranges, up to a limit.
    pub first: Vec<Range>,
}

/// Gap events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gaps {
    /// Number of different gap events.
    pub events: u64,
    /// Number of repeated gap events.
    pub duplicates: u64,
    /// Number of gap events that overlap another. An event that two of them announce is counted
    /// twice, so that the loss of as many other events is not noticed.
    pub overlapping: u64,
    /// Number of sequences in their ranges that were not read.
    pub sequences: u64,
    /// Number of sequences in their ranges that were read. These events were delivered before
    /// others of the range expired, or the answer about them was lost before they expired.
    pub arrived: u64,
    /// The first gap events, up to a limit.
    pub first: Vec<GapReport>,
    /// Ranges in which more is missing than their gap events count. A failure.
    pub understated: Listed<GapRange>,
}

/// One gap event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GapReport {
    /// First sequence of its range.
    pub first: u64,
    /// Last sequence of its range.
    pub last: u64,
    /// Number of events that it announces as missing.
    pub count: u64,
    /// Reason why they were not delivered.
    pub reason: String,
}

/// The judged part of the range of a gap event, or of several that overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GapRange {
    /// First sequence of the range.
    pub first: u64,
    /// Last sequence of the range.
    pub last: u64,
    /// Number of events that the gap events announce as missing.
    pub announced: u64,
    /// Number of sequences that were not read.
    pub missing: u64,
    /// Number of gap events.
    #[serde(skip)]
    pub(super) gaps: u64,
}

impl GapRange {
    /// Number of sequences in the range.
    pub(super) fn len(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether more is missing than announced, so that events are lost without notice. The gap
    /// events may announce events outside the range; their number is not known.
    pub(super) fn is_understated(&self) -> bool {
        self.missing > self.announced
    }
}

/// A record of an integration that is not a valid event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MalformedRecord {
    /// Its position in the input.
    pub place: String,
    /// The reason.
    pub why: String,
}

/// Events that arrived after later ones of their device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutOfOrder {
    /// The events.
    #[serde(flatten)]
    pub events: Listed<LateEvent>,
    /// Number of their devices.
    pub devices: u64,
    /// Number of events of devices beyond the first million, whose order was not checked.
    pub not_watched: u64,
}

/// An event that arrived after a later one of its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LateEvent {
    /// The device, which is the partition key.
    pub device: Uuid,
    /// Sequence of the event.
    pub sequence: u64,
    /// The highest sequence of the device that had arrived before it.
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
            foreign: audit.foreign.clone(),
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
            duplicates_not_compared: integration.duplicates_not_compared,
            tests: integration.tests,
            holes: holes(audit, integration),
            gaps: gaps(audit, integration),
            id_conflicts: integration.id_conflicts.clone(),
            malformed: integration.malformed.clone(),
            out_of_order: integration.out_of_order.clone(),
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
            || (strict_order && self.out_of_order.events.count > 0)
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
    let ranges = integration.gap_ranges(first, last);
    let sequences: u64 = ranges.iter().map(|range| range.missing).sum();
    let covered: u64 = ranges.iter().map(GapRange::len).sum();
    let mut understated = Listed::default();
    for range in ranges.iter().filter(|range| range.is_understated()) {
        understated.add(listed, || *range);
    }
    let overlapping = ranges.iter().map(|range| range.gaps);
    Gaps {
        events: integration.gaps.len() as u64,
        duplicates: integration.gap_duplicates,
        overlapping: overlapping.filter(|gaps| *gaps > 1).sum(),
        sequences,
        arrived: covered - sequences,
        first: integration.gaps.values().take(listed).cloned().collect(),
        understated,
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Complete => "complete",
            Self::Incomplete => "INCOMPLETE",
            Self::NothingRead => "no event of siem-relay was read",
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{} to {}", self.first, self.last),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for integration in &self.integrations {
            writeln!(f, "{integration}")?;
        }
        writeln!(f, "records       {}", self.records)?;
        if self.unasked > 0 {
            writeln!(f, "not judged    {} of other integrations", self.unasked)?;
        }
        if self.foreign.count > 0 {
            writeln!(f, "foreign       {}", self.foreign.count)?;
            list(f, self.foreign.count, &self.foreign.first, |record| {
                format!("{}: {}: {}", record.place, record.why, record.excerpt)
            })?;
        }
        writeln!(f, "verdict       {}", self.verdict)
    }
}

impl fmt::Display for IntegrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "integration   {}", self.integration_id)?;
        match (self.first_sequence, self.last_sequence) {
            (Some(first), Some(last)) => writeln!(f, "sequences     {}", Range { first, last })?,
            _ => writeln!(f, "sequences     none")?,
        }
        if let Some(judged) = self.judged
            && (Some(judged.first), Some(judged.last)) != (self.first_sequence, self.last_sequence)
        {
            writeln!(f, "judged        {judged}")?;
        }
        writeln!(f, "events        {}", self.events)?;
        write!(f, "duplicates    {}", self.duplicates)?;
        match self.duplicates_not_compared {
            0 => writeln!(f)?,
            count => writeln!(f, " ({count} too late to compare the ids)")?,
        }
        writeln!(f, "tests         {}", self.tests)?;
        self.fmt_missing(f)?;
        self.fmt_order(f)?;
        if self.id_conflicts.count > 0 {
            let count = self.id_conflicts.count;
            writeln!(f, "CONFLICTS     {count} sequences had more than one event")?;
            list(f, count, &self.id_conflicts.first, u64::to_string)?;
        }
        if self.malformed.count > 0 {
            writeln!(f, "MALFORMED     {}", self.malformed.count)?;
            list(f, self.malformed.count, &self.malformed.first, |one| {
                format!("{}: {}", one.place, one.why)
            })?;
        }
        writeln!(f, "verdict       {}", self.verdict)
    }
}

impl IntegrationReport {
    fn fmt_missing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gaps = &self.gaps;
        match gaps.events {
            0 => writeln!(f, "gaps          none")?,
            events => {
                writeln!(
                    f,
                    "gaps          {events}, for {} missing events",
                    gaps.sequences
                )?;
                list(f, events, &gaps.first, |gap| {
                    let (first, last) = (gap.first, gap.last);
                    let range = Range { first, last };
                    format!(
                        "{range}: {} events, {}",
                        gap.count,
                        gap.reason.escape_debug()
                    )
                })?;
            }
        }
        if gaps.arrived > 0 {
            writeln!(
                f,
                "              {} events within their ranges were delivered",
                gaps.arrived
            )?;
        }
        if gaps.overlapping > 0 {
            writeln!(
                f,
                "              {} of them overlap: events in several ranges may be counted twice",
                gaps.overlapping
            )?;
        }
        if gaps.understated.count > 0 {
            writeln!(f, "UNDERSTATED   {} ranges", gaps.understated.count)?;
            list(f, gaps.understated.count, &gaps.understated.first, |one| {
                let (first, last) = (one.first, one.last);
                let range = Range { first, last };
                format!(
                    "{range}: {} are missing, {} were announced",
                    one.missing, one.announced
                )
            })?;
        }
        let holes = &self.holes;
        match holes.count {
            0 => writeln!(f, "holes         none"),
            count => {
                writeln!(f, "HOLES         {count}, of {} events", holes.sequences)?;
                list(f, count, &holes.first, Range::to_string)
            }
        }
    }

    fn fmt_order(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = &self.out_of_order;
        if order.not_watched > 0 {
            let count = order.not_watched;
            writeln!(
                f,
                "              order not checked for {count} events: too many devices"
            )?;
        }
        match order.events.count {
            0 => writeln!(f, "out of order  none"),
            count => {
                writeln!(f, "out of order  {count}, of {} devices", order.devices)?;
                list(f, count, &order.events.first, |late| {
                    let (device, sequence, after) = (late.device, late.sequence, late.after);
                    format!("{sequence} arrived after {after} of device {device}")
                })
            }
        }
    }
}

/// Writes the listed findings, and the number of further ones.
fn list<T>(
    f: &mut fmt::Formatter<'_>,
    count: u64,
    first: &[T],
    describe: impl Fn(&T) -> String,
) -> fmt::Result {
    for one in first {
        writeln!(f, "              {}", describe(one))?;
    }
    match count - first.len() as u64 {
        0 => Ok(()),
        more => writeln!(f, "              and {more} more"),
    }
}
