//! What arrived in a stream, as its reader sees it.

use std::collections::{BTreeMap, HashMap};

use aws_stand_in::{Control, Record, RecordStream};
use serde_json::Value;
use uuid::Uuid;

use super::{Published, within};

/// A detection, or a gap, that arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub gap: Option<GapTold>,
    pub record: Record,
    pub json: Value,
    pub sequence: u64,
    pub id: Uuid,
    pub device: Uuid,
    /// Its number in its load; 0 for a gap.
    pub number: u32,
}

/// What a gap says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapTold {
    pub first: u64,
    pub last: u64,
    pub count: u64,
    pub reason: String,
}

/// Reads a record; None for a test event, which has no sequence.
pub fn read(record: Record) -> Option<Arrived> {
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
    let gap = (text("type") == "com.meter.siem.gap").then(|| GapTold {
        first: number("first_sequence"),
        last: number("last_sequence"),
        count: number("count"),
        reason: data["reason"].as_str().unwrap().to_owned(),
    });
    Some(Arrived {
        gap,
        sequence: digits.parse().unwrap(),
        id: uuid("id"),
        device: uuid("partitionkey"),
        number: number("signature_id") as u32,
        record,
        json,
    })
}

/// Follows a stream until `enough` different sequences have arrived, or are told by gaps;
/// tells all that did.
pub async fn arrive(aws: &Control, stream_arn: &str, enough: usize) -> Vec<Arrived> {
    let mut records = aws.subscribe(stream_arn).unwrap();
    let mut arrived = Vec::new();
    within("records", async {
        let mut sequences = BTreeMap::new();
        while sequences.len() < enough {
            let next = next(&mut records).await;
            let first = next.gap.as_ref().map_or(next.sequence, |gap| gap.first);
            sequences.extend((first..=next.sequence).map(|each| (each, ())));
            arrived.push(next);
        }
    })
    .await;
    arrived
}

async fn next(records: &mut RecordStream) -> Arrived {
    loop {
        let record = records.next().await.expect("the stream is there");
        if let Some(arrived) = read(record) {
            return arrived;
        }
    }
}

/// Checks what a reader may rely on: within the integration no sequence is missing, a
/// sequence that came twice is the same event, every published event is there under its
/// own id, and in the order of `sequence` each device's events stand as published.
/// Returns the events in that order, each once.
#[track_caller]
pub fn check_whole(
    arrived: &[Arrived],
    integration_id: &str,
    published: &[Published],
) -> Vec<Arrived> {
    let mut by_sequence: BTreeMap<u64, Arrived> = BTreeMap::new();
    for one in arrived {
        assert_eq!(one.json["integrationid"], integration_id);
        let first = by_sequence.entry(one.sequence).or_insert(one.clone());
        assert_eq!(
            first.record.data, one.record.data,
            "a sequence is one event"
        );
    }
    let holes: Vec<u64> = (1..=published.len() as u64)
        .filter(|sequence| !by_sequence.contains_key(sequence))
        .collect();
    assert!(holes.is_empty(), "sequences {holes:?} are missing");
    assert_eq!(
        by_sequence.len(),
        published.len(),
        "more than was published"
    );
    let ordered: Vec<Arrived> = by_sequence.into_values().collect();
    check_devices(&ordered, published);
    ordered
}

/// As [`check_whole`] of a log that has gaps: each event that was published is there, or
/// a gap tells that it is not. Returns the gaps in the order of their sequence.
#[track_caller]
pub fn check_with_gaps(
    arrived: &[Arrived],
    integration_id: &str,
    published: &[Published],
) -> Vec<GapTold> {
    let (gaps, events): (Vec<Arrived>, Vec<Arrived>) =
        arrived.iter().cloned().partition(|one| one.gap.is_some());
    let mut told: BTreeMap<u64, GapTold> = BTreeMap::new();
    for one in gaps {
        assert_eq!(one.json["subject"], integration_id);
        assert_eq!(one.json["partitionkey"], integration_id);
        let gap = one.gap.unwrap();
        assert_eq!(one.sequence, gap.last, "a gap has the last of its range");
        told.insert(gap.first, gap);
    }
    let missing = |one: &Published| told.values().any(|gap| gap.covers(one.number.into()));
    let there: BTreeMap<u64, &Arrived> = events.iter().map(|one| (one.sequence, one)).collect();
    let mut expired = 0;
    for one in published {
        match there.get(&u64::from(one.number)) {
            Some(event) => assert_eq!((event.id, event.device), (one.event_id, one.device)),
            None => {
                assert!(missing(one), "{} is missing and no gap tells", one.number);
                expired += 1;
            }
        }
    }
    let told: Vec<GapTold> = told.into_values().collect();
    assert_eq!(told.iter().map(|gap| gap.count).sum::<u64>(), expired);
    told
}

impl GapTold {
    fn covers(&self, sequence: u64) -> bool {
        (self.first..=self.last).contains(&sequence)
    }
}

#[track_caller]
fn check_devices(ordered: &[Arrived], published: &[Published]) {
    let mut expected: HashMap<Uuid, Vec<Published>> = HashMap::new();
    for one in published {
        expected.entry(one.device).or_default().push(one.clone());
    }
    let mut found: HashMap<Uuid, Vec<Published>> = HashMap::new();
    for one in ordered {
        found.entry(one.device).or_default().push(Published {
            event_id: one.id,
            device: one.device,
            number: one.number,
        });
    }
    assert_eq!(found, expected);
}

/// Checks that records which no failure touched also arrived in order, device by device,
/// and only once.
#[track_caller]
pub fn check_in_order(arrived: &[Arrived]) {
    let mut last: HashMap<Uuid, u64> = HashMap::new();
    for one in arrived {
        let before = last.insert(one.device, one.sequence);
        assert!(
            before.is_none_or(|before| before < one.sequence),
            "{} after {before:?} of the same device",
            one.sequence
        );
    }
}
