//! Events in a customer's stream, as its reader sees them, and checks of their completeness.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use aws_stand_in::{Control, Record, RecordStream};
use serde_json::Value;
use uuid::Uuid;

use super::{Published, with_timeout};

/// A detection or a gap in a customer's stream.
#[derive(Clone, Debug)]
pub struct DeliveredEvent {
    pub gap: Option<Gap>,
    pub record: Record,
    pub json: Value,
    pub sequence: u64,
    pub id: Uuid,
    pub device: Uuid,
    /// [`Published::number`] of a detection; 0 for a gap.
    pub number: u32,
}

/// Data of a gap event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub first: u64,
    pub last: u64,
    pub count: u64,
    pub reason: String,
}

/// Parses a record; None for a test event, which has no sequence.
fn parse(record: Record) -> Option<DeliveredEvent> {
    assert_eq!(record.data.last(), Some(&b'\n'), "a record is one line");
    let json: Value = serde_json::from_slice(&record.data).unwrap();
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    let uuid = |name: &str| Uuid::parse_str(&text(name)).unwrap();
    assert_eq!(text("partitionkey"), record.partition_key);
    if text("type") == "TYPE_TEST" {
        assert!(json.get("sequence").is_none());
        return None;
    }
    let digits = text("sequence");
    assert_eq!(digits.len(), 20, "a sequence sorts as text");
    let data = &json["data"];
    let number = |name: &str| data[name].as_u64().unwrap_or_default();
    let gap = (text("type") == "com.meter.siem.gap").then(|| Gap {
        first: number("first_sequence"),
        last: number("last_sequence"),
        count: number("count"),
        reason: data["reason"].as_str().unwrap().to_owned(),
    });
    Some(DeliveredEvent {
        gap,
        sequence: digits.parse().unwrap(),
        id: uuid("id"),
        device: uuid("partitionkey"),
        number: number("signature_id") as u32,
        record,
        json,
    })
}

/// Reads a stream until `count` different sequences have arrived, by themselves or in gaps.
/// Returns every event that was read, duplicates included.
pub async fn read_events(aws: &Control, stream_arn: &str, count: usize) -> Vec<DeliveredEvent> {
    let mut records = aws.subscribe(stream_arn).unwrap();
    let mut arrived = Vec::new();
    with_timeout("records", async {
        let mut sequences = BTreeSet::new();
        while sequences.len() < count {
            let next = next(&mut records).await;
            let first = next.gap.as_ref().map_or(next.sequence, |gap| gap.first);
            sequences.extend(first..=next.sequence);
            arrived.push(next);
        }
    })
    .await;
    arrived
}

async fn next(records: &mut RecordStream) -> DeliveredEvent {
    loop {
        let record = records.next().await.expect("the stream is there");
        if let Some(event) = parse(record) {
            return event;
        }
    }
}

/// The events by sequence. Copies of a sequence must be identical.
#[track_caller]
fn by_sequence(arrived: &[DeliveredEvent]) -> BTreeMap<u64, DeliveredEvent> {
    let mut by_sequence: BTreeMap<u64, DeliveredEvent> = BTreeMap::new();
    for event in arrived {
        let first = by_sequence.entry(event.sequence).or_insert(event.clone());
        assert_eq!(
            first.record.data, event.record.data,
            "a sequence is one event"
        );
    }
    by_sequence
}

/// Checks that no sequence of the integration is missing, that copies of a sequence are the same
/// event, that every published event arrived under its id, and that by `sequence` each device's
/// events are in the order of publishing. Returns the events by `sequence`, without duplicates.
#[track_caller]
pub fn check_complete(
    arrived: &[DeliveredEvent],
    integration_id: &str,
    published: &[Published],
) -> Vec<DeliveredEvent> {
    for event in arrived {
        assert_eq!(event.json["integrationid"], integration_id);
    }
    let by_sequence = by_sequence(arrived);
    let holes: Vec<u64> = (1..=published.len() as u64)
        .filter(|sequence| !by_sequence.contains_key(sequence))
        .collect();
    assert!(holes.is_empty(), "sequences {holes:?} are missing");
    assert_eq!(
        by_sequence.len(),
        published.len(),
        "more than was published"
    );
    let ordered: Vec<DeliveredEvent> = by_sequence.into_values().collect();
    check_devices(&ordered, published);
    ordered
}

/// Checks a stream of events of which some were acked, as after a kill of the service: sequences
/// 1 to `accepted` without a hole, one event each, and every acked event. Returns the events by
/// `sequence`, without duplicates.
#[track_caller]
pub fn check_acked(
    arrived: &[DeliveredEvent],
    accepted: u64,
    acked: &HashSet<Uuid>,
) -> Vec<DeliveredEvent> {
    let by_sequence = by_sequence(arrived);
    assert!(by_sequence.keys().copied().eq(1..=accepted), "a hole");
    let ids: HashSet<Uuid> = by_sequence.values().map(|event| event.id).collect();
    assert_eq!(ids.len() as u64, accepted, "an event has one sequence");
    let lost = acked.difference(&ids).count();
    assert_eq!(lost, 0, "of {} acked events", acked.len());
    by_sequence.into_values().collect()
}

/// Checks that every published event arrived or is in a gap. Returns the gaps by `sequence`.
#[track_caller]
pub fn check_with_gaps(
    arrived: &[DeliveredEvent],
    integration_id: &str,
    published: &[Published],
) -> Vec<Gap> {
    let (gap_events, events): (Vec<DeliveredEvent>, Vec<DeliveredEvent>) = arrived
        .iter()
        .cloned()
        .partition(|event| event.gap.is_some());
    let mut gaps: BTreeMap<u64, Gap> = BTreeMap::new();
    for event in gap_events {
        assert_eq!(event.json["subject"], integration_id);
        assert_eq!(event.json["partitionkey"], integration_id);
        let gap = event.gap.unwrap();
        assert_eq!(event.sequence, gap.last, "a gap has the last of its range");
        gaps.insert(gap.first, gap);
    }
    let in_gap = |sequence| gaps.values().any(|gap| gap.covers(sequence));
    let by_sequence: BTreeMap<u64, &DeliveredEvent> =
        events.iter().map(|event| (event.sequence, event)).collect();
    let mut expired = 0;
    for one in published {
        let sequence = u64::from(one.number);
        match by_sequence.get(&sequence) {
            Some(event) => assert_eq!((event.id, event.device), (one.event_id, one.device)),
            None => {
                assert!(in_gap(sequence), "{sequence} is missing and in no gap");
                expired += 1;
            }
        }
    }
    let gaps: Vec<Gap> = gaps.into_values().collect();
    assert_eq!(gaps.iter().map(|gap| gap.count).sum::<u64>(), expired);
    gaps
}

impl Gap {
    fn covers(&self, sequence: u64) -> bool {
        (self.first..=self.last).contains(&sequence)
    }
}

#[track_caller]
fn check_devices(ordered: &[DeliveredEvent], published: &[Published]) {
    let mut expected: HashMap<Uuid, Vec<Published>> = HashMap::new();
    for one in published {
        expected.entry(one.device).or_default().push(one.clone());
    }
    let mut found: HashMap<Uuid, Vec<Published>> = HashMap::new();
    for event in ordered {
        found.entry(event.device).or_default().push(Published {
            event_id: event.id,
            device: event.device,
            number: event.number,
        });
    }
    assert_eq!(found, expected);
}

/// Checks that each device's events arrived in order and once, as they do without failures.
#[track_caller]
pub fn check_in_order(arrived: &[DeliveredEvent]) {
    let mut last: HashMap<Uuid, u64> = HashMap::new();
    for event in arrived {
        let before = last.insert(event.device, event.sequence);
        assert!(
            before.is_none_or(|before| before < event.sequence),
            "{} after {before:?} of the same device",
            event.sequence
        );
    }
}
