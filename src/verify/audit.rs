//! The audit of records against the promises of the service.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    event::{self, Event, Kind},
    integration::Integration,
    report::{ForeignRecord, GapRange, Listed, Report},
    sequences::IdHashes,
};

/// Maximum length of the excerpt of a foreign record.
const EXCERPT_CHARS: usize = 120;

/// First sequence that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// This sequence. Every integration starts at 1.
    At(u64),
    /// The lowest sequence that is read, if the beginning was not captured.
    LowestRead,
}

/// Claim to be proven.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Integrations to judge; all if empty. One that is named and has no record is incomplete.
    pub integrations: Vec<Uuid>,
    /// First sequence that is judged.
    pub first: Start,
    /// Last sequence that is judged, if known; otherwise the last that was read.
    pub last: Option<u64>,
    /// Whether an event that arrived after a later one of its device is a failure.
    pub strict_order: bool,
    /// Maximum number of findings of one kind that are listed; all are counted.
    pub listed: usize,
}

impl Default for Expectation {
    fn default() -> Self {
        Self {
            integrations: Vec::new(),
            first: Start::At(1),
            last: None,
            strict_order: false,
            listed: 20,
        }
    }
}

/// Evidence from the records read so far. Its memory does not grow with the number of records,
/// but with the number of devices, of gap events and of missing ranges.
#[derive(Debug)]
pub struct Audit {
    pub(super) expectation: Expectation,
    pub(super) integrations: Vec<Integration>,
    by_id: BTreeMap<Uuid, usize>,
    hashes: IdHashes,
    pub(super) records: u64,
    /// Records of integrations that are not to be judged.
    pub(super) unasked: u64,
    pub(super) foreign: Listed<ForeignRecord>,
    has_horizon: bool,
}

impl Audit {
    /// Creates an audit without records.
    pub fn new(expectation: Expectation) -> Self {
        let mut audit = Self {
            integrations: Vec::new(),
            by_id: BTreeMap::new(),
            hashes: IdHashes::default(),
            records: 0,
            unasked: 0,
            foreign: Listed::default(),
            has_horizon: false,
            expectation,
        };
        for id in audit.expectation.integrations.clone() {
            audit.integration(id);
        }
        audit
    }

    /// Adds the next record; `partition_key` is that of the Kinesis record, if known, and `place`
    /// returns the position of the record in the input.
    pub fn take(&mut self, data: &[u8], partition_key: Option<&str>, place: &dyn Fn() -> String) {
        match event::read(data, partition_key) {
            Ok(event) => self.event(event, place),
            Err(why) => self.foreign(why, data, place),
        }
    }

    pub(super) fn event(&mut self, event: Event<'_>, place: &dyn Fn() -> String) {
        self.records += 1;
        let asked = &self.expectation.integrations;
        if !asked.is_empty() && !asked.contains(&event.integration_id) {
            self.unasked += 1;
            return;
        }
        let number = self.integration(event.integration_id);
        let integration = &mut self.integrations[number];
        integration.records += 1;
        match event.kind {
            Kind::Detection {
                sequence,
                id,
                device,
            } => integration.detection(sequence, &id, device, &mut self.hashes),
            Kind::Gap(gap) => integration.gap(&gap),
            Kind::Test => integration.tests += 1,
            Kind::Malformed(why) => integration.malformed(why, place()),
        }
    }

    pub(super) fn foreign(&mut self, why: &str, data: &[u8], place: &dyn Fn() -> String) {
        self.records += 1;
        self.foreign.add(self.expectation.listed, || ForeignRecord {
            place: place(),
            why: why.to_owned(),
            excerpt: excerpt(data),
        });
    }

    fn integration(&mut self, id: Uuid) -> usize {
        if let Some(number) = self.by_id.get(&id) {
            return *number;
        }
        let number = self.integrations.len();
        let mut integration = Integration::new(id, number, self.expectation.listed);
        integration.horizon = self.has_horizon.then_some(0);
        self.integrations.push(integration);
        self.by_id.insert(id, number);
        number
    }

    /// Limits the judgement of each integration to the highest sequence read so far. A stream that
    /// is written to can be judged up to that, while later records may still fill its holes.
    pub fn set_horizon(&mut self) {
        self.has_horizon = true;
        for integration in &mut self.integrations {
            integration.horizon = Some(integration.last().unwrap_or(0));
            integration.beginning = integration.lowest();
        }
    }

    /// Whether nothing is missing up to the horizon.
    pub fn is_whole(&self) -> bool {
        self.integrations.iter().all(|integration| {
            let (first, last) = self.judged(integration);
            let gaps = integration.gap_ranges(first, last);
            integration.accounted().holes(first, last).is_empty()
                && !gaps.iter().any(GapRange::is_understated)
        })
    }

    /// Returns the first and last sequence that are judged; the first is above the last if there
    /// are none.
    pub(super) fn judged(&self, integration: &Integration) -> (u64, u64) {
        let first = match self.expectation.first {
            Start::At(first) => first,
            Start::LowestRead => {
                let lowest = integration.beginning.or_else(|| integration.lowest());
                lowest.unwrap_or(1)
            }
        };
        let read = integration.horizon.or(integration.last()).unwrap_or(0);
        (first, self.expectation.last.unwrap_or(read))
    }

    /// Returns the findings so far.
    pub fn report(&self) -> Report {
        Report::new(self)
    }
}

/// Returns the start of foreign text, without control characters, which could steer a terminal.
fn excerpt(data: &[u8]) -> String {
    let start = &data[..data.len().min(4 * EXCERPT_CHARS)];
    let text = String::from_utf8_lossy(start);
    let shown: String = text
        .trim()
        .chars()
        .take(EXCERPT_CHARS)
        .map(|each| if each.is_control() { '\u{fffd}' } else { each })
        .collect();
    match text.trim().len() > shown.len() || start.len() < data.len() {
        true => format!("{shown}…"),
        false => shown,
    }
}
