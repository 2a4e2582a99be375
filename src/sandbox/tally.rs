//! Checks and counts the records that were read back. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use aws_stand_in::Record;

/// Violation of the event format in a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// Not a CloudEvent.
    #[error("record {index} is not a CloudEvent of this service: {what}")]
    Event {
        /// Index of the record in the stream.
        index: u64,
        /// The violation.
        what: String,
    },
    /// Two sequences have the same id.
    #[error("record {index} has the id {id} of an earlier event")]
    RepeatedId {
        /// Index of the record in the stream.
        index: u64,
        /// The id.
        id: Uuid,
    },
}

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An event with a sequence that was not read before.
    New,
    /// An event with a sequence that was read before: delivery is at least once.
    Repeat,
    /// A test event.
    Test,
    /// A gap event, which stands for events that were not delivered.
    Gap,
}

/// Counts of what was read back, by integration.
#[derive(Debug, Default)]
pub(super) struct Tally {
    runs: BTreeMap<String, Run>,
    with_ids: bool,
}

/// Counts of one integration.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Largest sequence up to which none is missing.
    pub(super) complete_to: u64,
    /// Sequences read beyond the first missing one.
    ahead: BTreeSet<u64>,
    pub(super) repeats: u64,
    pub(super) tests: u64,
    /// Events for which gap events stand.
    pub(super) in_gaps: u64,
    ids: HashSet<Uuid>,
}

impl Run {
    /// Number of sequences read beyond the first missing one.
    pub(super) fn beyond_missing(&self) -> usize {
        self.ahead.len()
    }

    fn take(&mut self, sequence: u64) -> Kind {
        if sequence <= self.complete_to || !self.ahead.insert(sequence) {
            self.repeats += 1;
            return Kind::Repeat;
        }
        while self.ahead.remove(&(self.complete_to + 1)) {
            self.complete_to += 1;
        }
        Kind::New
    }
}

impl Tally {
    /// Counts; with `with_ids` it also checks that no two events share an id.
    pub(super) fn new(with_ids: bool) -> Self {
        Self {
            with_ids,
            ..Self::default()
        }
    }

    /// Checks and counts a record.
    pub(super) fn take(&mut self, record: &Record) -> Result<Kind, Defect> {
        let index = record.index;
        let defect = |what: String| Defect::Event { index, what };
        let event: CloudEvent =
            serde_json::from_slice(&record.data).map_err(|error| defect(error.to_string()))?;
        let id = event.check(record).map_err(defect)?;
        let run = self.runs.entry(event.integrationid).or_default();
        let Some(sequence) = event.sequence else {
            run.tests += 1;
            return Ok(Kind::Test);
        };
        // `check` has verified that it is a number.
        let sequence = sequence.parse().unwrap_or_default();
        if let Some(first) = event.data.get("first_sequence").and_then(Value::as_u64) {
            let new = (first..=sequence).filter(|each| run.take(*each) == Kind::New);
            run.in_gaps += new.count() as u64;
            return Ok(Kind::Gap);
        }
        let seen = run.take(sequence);
        if self.with_ids && seen == Kind::New && !run.ids.insert(id) {
            return Err(Defect::RepeatedId { index, id });
        }
        Ok(seen)
    }

    /// Counts of an integration.
    pub(super) fn run(&self, integration_id: &str) -> Option<&Run> {
        self.runs.get(integration_id)
    }

    /// Largest sequence up to which none is missing.
    pub(super) fn complete_to(&self, integration_id: &str) -> u64 {
        self.run(integration_id).map_or(0, |run| run.complete_to)
    }

    /// All integrations with records, oldest first: UUIDv7 sorts by time.
    pub(super) fn runs(&self) -> impl Iterator<Item = (&str, &Run)> {
        self.runs.iter().map(|(id, run)| (id.as_str(), run))
    }
}

/// Attributes of a record.
#[derive(Deserialize)]
struct CloudEvent {
    specversion: String,
    id: String,
    source: String,
    r#type: String,
    subject: String,
    time: String,
    datacontenttype: String,
    partitionkey: String,
    integrationid: String,
    sequence: Option<String>,
    data: Map<String, Value>,
}

impl CloudEvent {
    /// Returns the id.
    fn check(&self, record: &Record) -> Result<Uuid, String> {
        let must = |holds: bool, what: &str| match holds {
            true => Ok(()),
            false => Err(what.to_owned()),
        };
        must(record.data.ends_with(b"\n"), "no newline at its end")?;
        must(self.specversion == "1.0", "specversion is not 1.0")?;
        must(!self.source.is_empty(), "source is empty")?;
        must(!self.r#type.is_empty(), "type is empty")?;
        must(
            self.datacontenttype == "application/json",
            "datacontenttype is not application/json",
        )?;
        must(
            self.partitionkey == record.partition_key,
            "partitionkey is not the record's",
        )?;
        must(
            Uuid::parse_str(&self.integrationid).is_ok(),
            "integrationid is not a UUID",
        )?;
        must(
            Uuid::parse_str(&self.subject).is_ok(),
            "subject is not a UUID",
        )?;
        must(
            self.time.ends_with('Z') && self.time.parse::<jiff::Timestamp>().is_ok(),
            "time is not RFC 3339 in UTC",
        )?;
        match &self.sequence {
            None => must(
                self.data.get("type").and_then(Value::as_str) == Some("TYPE_TEST"),
                "sequence is missing",
            ),
            Some(sequence) => must(
                sequence.len() == 20
                    && sequence.parse::<u64>().is_ok_and(|number| number > 0)
                    && sequence.bytes().all(|byte| byte.is_ascii_digit()),
                "sequence is not 20 digits from 1",
            ),
        }?;
        Uuid::parse_str(&self.id).map_err(|_| "id is not a UUID".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INTEGRATION: &str = "01980000-0000-7000-8000-000000000001";
    const DEVICE: &str = "5e250000-0000-4000-8000-000000000001";

    fn event(sequence: u64) -> Value {
        json!({
            "specversion": "1.0",
            "id": Uuid::from_u128(sequence.into()),
            "source": "https://example.com",
            "type": "com.example.ids.detection",
            "subject": DEVICE,
            "time": "2026-01-01T00:00:00Z",
            "datacontenttype": "application/json",
            "partitionkey": DEVICE,
            "integrationid": INTEGRATION,
            "sequence": format!("{sequence:020}"),
            "data": {"type": "TYPE_DETECTION"},
        })
    }

    fn record(event: &Value) -> Record {
        Record {
            index: 0,
            shard_id: "shardId-000000000000".into(),
            sequence_number: "1".into(),
            partition_key: DEVICE.into(),
            data: format!("{event}\n").into(),
            arrived_at_ms: 0,
        }
    }

    #[test]
    fn sequences_count_once_and_holes_show() {
        let mut tally = Tally::new(true);
        let mut take = |sequence| tally.take(&record(&event(sequence)));
        assert_eq!(take(1), Ok(Kind::New));
        assert_eq!(take(3), Ok(Kind::New));
        assert_eq!(take(3), Ok(Kind::Repeat));
        assert_eq!(tally.complete_to(INTEGRATION), 1);
        assert_eq!(tally.run(INTEGRATION).unwrap().beyond_missing(), 1);
        assert_eq!(tally.take(&record(&event(2))), Ok(Kind::New));
        assert_eq!(tally.complete_to(INTEGRATION), 3);
        assert_eq!(tally.run(INTEGRATION).unwrap().repeats, 1);
    }

    #[test]
    fn a_gap_fills_its_range_and_is_counted() {
        let mut tally = Tally::new(true);
        let mut gap = event(4);
        gap["data"] = json!({"first_sequence": 2, "last_sequence": 4});
        assert_eq!(tally.take(&record(&event(1))), Ok(Kind::New));
        assert_eq!(tally.take(&record(&gap)), Ok(Kind::Gap));
        let run = tally.run(INTEGRATION).unwrap();
        assert_eq!((run.complete_to, run.in_gaps), (4, 3));
    }

    #[test]
    fn a_shared_id_is_a_defect_where_ids_count() {
        let mut second = event(2);
        second["id"] = event(1)["id"].clone();
        for with_ids in [true, false] {
            let mut tally = Tally::new(with_ids);
            tally.take(&record(&event(1))).unwrap();
            let taken = tally.take(&record(&second));
            assert_eq!(taken.is_err(), with_ids, "{taken:?}");
        }
    }

    #[test]
    fn each_attribute_must_be_there() {
        let whole = event(1);
        for name in whole.as_object().unwrap().keys() {
            let mut event = whole.clone();
            event.as_object_mut().unwrap().remove(name);
            let taken = Tally::default().take(&record(&event));
            assert!(taken.is_err(), "{name}: {taken:?}");
        }
        let mut test = whole.clone();
        test.as_object_mut().unwrap().remove("sequence");
        test["data"]["type"] = "TYPE_TEST".into();
        assert_eq!(Tally::default().take(&record(&test)), Ok(Kind::Test));
    }
}
