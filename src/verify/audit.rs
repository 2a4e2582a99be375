//! Takes records in, and says what is proven.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    event::{self, Event, Kind},
    integration::{Integration, Samples},
    prints::Prints,
    report::{ForeignRecord, Report},
};

/// How much of a record is shown that is none of ours.
const EXCERPT_CHARS: usize = 120;

/// Where the records of an integration are to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// With this sequence. Every integration starts at 1.
    Sequence(u64),
    /// With whatever is read: the beginning was not captured.
    Read,
}

/// What is to be proven.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Only of these integrations; of all that are met where there is none. One that
    /// is named and not met is incomplete.
    pub integrations: Vec<Uuid>,
    /// Where the records begin.
    pub first: First,
    /// Up to which sequence the records reach, where that is known.
    pub last: Option<u64>,
    /// Whether events that arrived after later ones of their device are a failure.
    pub strict_order: bool,
    /// How many of anything are listed one by one; all are counted.
    pub listed: usize,
}

impl Default for Expectation {
    fn default() -> Self {
        Self {
            integrations: Vec::new(),
            first: First::Sequence(1),
            last: None,
            strict_order: false,
            listed: 20,
        }
    }
}

/// What was read so far. Its memory does not grow with records, but with devices, gap
/// events and the raggedness of what is missing.
#[derive(Debug)]
pub struct Audit {
    pub(super) expectation: Expectation,
    pub(super) integrations: Vec<Integration>,
    by_id: BTreeMap<Uuid, usize>,
    prints: Prints,
    pub(super) records: u64,
    /// Records of integrations that were not asked for.
    pub(super) unasked: u64,
    pub(super) foreign: Samples<ForeignRecord>,
    has_horizon: bool,
}

impl Audit {
    /// Nothing read yet.
    pub fn new(expectation: Expectation) -> Self {
        let mut audit = Self {
            integrations: Vec::new(),
            by_id: BTreeMap::new(),
            prints: Prints::default(),
            records: 0,
            unasked: 0,
            foreign: Samples::new(expectation.listed),
            has_horizon: false,
            expectation,
        };
        for id in audit.expectation.integrations.clone() {
            audit.integration(id);
        }
        audit
    }

    /// Takes the next record; `partition_key` is the one that Kinesis had it under, and
    /// `place` says where it was found.
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
            } => integration.detection(sequence, &id, device, &mut self.prints),
            Kind::Gap(gap) => integration.gap(&gap),
            Kind::Test => integration.tests += 1,
            Kind::Malformed(what) => integration.malformed.add(|| (place(), what)),
        }
    }

    pub(super) fn foreign(&mut self, why: &str, data: &[u8], place: &dyn Fn() -> String) {
        self.records += 1;
        self.foreign.add(|| ForeignRecord {
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

    /// From here on, what comes above the highest sequence of now fills no hole that
    /// was there, and makes none: a stream that is written to is judged up to here.
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
            integration.accounted().holes(first, last).is_empty()
                && integration.understated(first, last).is_empty()
        })
    }

    /// First and last sequence that are to be there; the first is above the last where
    /// none is.
    pub(super) fn judged(&self, integration: &Integration) -> (u64, u64) {
        let first = match self.expectation.first {
            First::Sequence(first) => first,
            First::Read => {
                let lowest = integration.beginning.or_else(|| integration.lowest());
                lowest.unwrap_or(1)
            }
        };
        let read = integration.horizon.or(integration.last()).unwrap_or(0);
        (first, self.expectation.last.unwrap_or(read))
    }

    /// What is proven so far.
    pub fn report(&self) -> Report {
        Report::new(self)
    }
}

/// The start of foreign text, without what would steer a terminal.
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
