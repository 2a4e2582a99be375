//! Parsing of one record as an event of siem-relay.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

/// The type of a test event, which has no sequence.
const TEST: &str = "TYPE_TEST";
/// End of the type of a gap event; the prefix before it is a setting of the service.
const GAP: &str = ".siem.gap";
const SEQUENCE_DIGITS: usize = 20;

/// One CloudEvent of siem-relay.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) integration_id: Uuid,
    pub(super) kind: Kind<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Detection {
        sequence: u64,
        id: Cow<'a, str>,
        device: Uuid,
    },
    Gap(Gap<'a>),
    Test,
    /// A record with an integration id that is not a valid event, and the reason.
    Malformed(String),
}

/// Data of a gap event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap<'a> {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) count: u64,
    pub(super) reason: Cow<'a, str>,
}

/// A string that is borrowed if it has no escapes, also inside an option.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[derive(Deserialize)]
struct CloudEvent<'a> {
    #[serde(borrow)]
    specversion: Option<Text<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    source: Option<Text<'a>>,
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    partitionkey: Option<Text<'a>>,
    #[serde(borrow)]
    integrationid: Option<Text<'a>>,
    #[serde(borrow)]
    sequence: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct GapData<'a> {
    first_sequence: u64,
    last_sequence: u64,
    count: u64,
    #[serde(borrow)]
    reason: Text<'a>,
}

/// Reads a record; `record_key` is the partition key of the Kinesis record, if known.
///
/// # Errors
///
/// The reason why it is not a CloudEvent of siem-relay.
pub(super) fn read<'a>(
    data: &'a [u8],
    record_key: Option<&str>,
) -> Result<Event<'a>, &'static str> {
    let event: CloudEvent<'a> = match serde_json::from_slice(data) {
        Ok(event) => event,
        Err(error) => return unreadable(data, &error),
    };
    if event.specversion.is_none() {
        return Err("not a CloudEvent");
    }
    let Some(integration_id) = &event.integrationid else {
        return Err("a CloudEvent without integrationid");
    };
    let integration_id =
        Uuid::try_parse(&integration_id.0).map_err(|_| "integrationid is not a UUID")?;
    let kind = kind(event, record_key).unwrap_or_else(|why| Kind::Malformed(why.to_owned()));
    Ok(Event {
        integration_id,
        kind,
    })
}

/// Reads a record that is not a well-formed event. If it names an integration, it counts as an
/// event of siem-relay that is malformed.
fn unreadable<'a>(data: &'a [u8], error: &serde_json::Error) -> Result<Event<'a>, &'static str> {
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return Err("not JSON");
    };
    let integration_id = value.get("integrationid").and_then(Value::as_str);
    let integration_id = integration_id.and_then(|id| Uuid::try_parse(id).ok());
    Ok(Event {
        integration_id: integration_id.ok_or("not a CloudEvent")?,
        kind: Kind::Malformed(error.to_string()),
    })
}

fn kind<'a>(event: CloudEvent<'a>, record_key: Option<&str>) -> Result<Kind<'a>, &'static str> {
    let required = |text: Option<Text<'a>>, missing| match text {
        Some(Text(text)) if !text.is_empty() => Ok(text),
        _ => Err(missing),
    };
    if event.specversion.is_none_or(|version| version.0 != "1.0") {
        return Err("specversion is not 1.0");
    }
    let id = required(event.id, "id is missing")?;
    let r#type = required(event.r#type, "type is missing")?;
    required(event.source, "source is missing")?;
    let partition_key = required(event.partitionkey, "partitionkey is missing")?;
    if record_key.is_some_and(|key| key != partition_key) {
        return Err("partitionkey differs from the partition key of the record");
    }
    let device = Uuid::try_parse(&partition_key).map_err(|_| "partitionkey is not a UUID")?;
    let Some(sequence) = event.sequence else {
        return match &*r#type == TEST {
            true => Ok(Kind::Test),
            false => Err("sequence is missing"),
        };
    };
    let sequence =
        sequence_of(&sequence.0).ok_or("sequence is not a number above 0 of 20 digits")?;
    match r#type.ends_with(GAP) {
        true => gap(event.data, sequence).map(Kind::Gap),
        false => Ok(Kind::Detection {
            sequence,
            id,
            device,
        }),
    }
}

fn sequence_of(text: &str) -> Option<u64> {
    let digits = text.len() == SEQUENCE_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    let sequence = digits.then(|| text.parse().ok()).flatten();
    sequence.filter(|sequence| *sequence > 0)
}

fn gap(data: Option<&RawValue>, sequence: u64) -> Result<Gap<'_>, &'static str> {
    let data = data.map(|data| serde_json::from_str::<GapData<'_>>(data.get()));
    let Some(Ok(data)) = data else {
        return Err("a gap without first_sequence, last_sequence, count and reason");
    };
    let (first, last) = (data.first_sequence, data.last_sequence);
    if first == 0 || first > last {
        return Err("a gap whose first_sequence is 0 or above its last_sequence");
    }
    if sequence != last {
        return Err("a gap whose sequence is not its last_sequence");
    }
    if data.count == 0 || data.count > (last - first).saturating_add(1) {
        return Err("a gap whose count does not fit its range");
    }
    Ok(Gap {
        first,
        last,
        count: data.count,
        reason: data.reason.0,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::event::{
        Detection, Event as Published, Format, Gap as Announced, GapReason, Payload, RecordHead,
        Time, Timestamp, render_gap, render_record, render_test,
    };

    const INTEGRATION: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);
    const DEVICE: &str = "5e250000-0000-4000-8000-000000000001";

    fn format() -> Format {
        Format::new("https://example.com", "com.example").unwrap()
    }

    fn detection(sequence: u64) -> Vec<u8> {
        let event = Published {
            organization_id: "acme",
            network_id: "4e740000-0000-4000-8000-000000000001",
            device_id: DEVICE,
            observed_time: Some(Timestamp {
                seconds: 1_767_225_600,
                nanos: 0,
            }),
            event_id: None,
            payload: Some(Payload::Detection(Detection {
                src_ip: "192.0.2.1",
                signature: Some("x"),
                ..Detection::default()
            })),
        };
        let (mut stored, mut record) = (Vec::new(), Vec::new());
        event
            .validate()
            .unwrap()
            .store(&format(), &mut stored)
            .unwrap();
        render_record(
            &RecordHead::new(INTEGRATION),
            sequence,
            &stored,
            &mut record,
        )
        .unwrap();
        record
    }

    #[test]
    fn events_of_the_service_are_read() {
        let record = detection(42);
        let event = read(&record, Some(DEVICE)).unwrap();
        assert_eq!(event.integration_id, INTEGRATION);
        let Kind::Detection {
            sequence, device, ..
        } = event.kind
        else {
            panic!("{event:?}");
        };
        assert_eq!((sequence, device.to_string()), (42, DEVICE.to_owned()));

        let time = Time::new(1_767_225_600, 0).unwrap();
        let mut test = Vec::new();
        render_test(
            INTEGRATION,
            &format(),
            Uuid::from_u128(7),
            time,
            "hello",
            &mut test,
        );
        assert_eq!(read(&test, None).unwrap().kind, Kind::Test);

        let mut gap = Vec::new();
        let announced = Announced {
            first_sequence: 3,
            last_sequence: 9,
            count: 7,
            first_time: time,
            last_time: time,
            reason: GapReason::RetentionAge,
        };
        render_gap(INTEGRATION, &format(), &announced, &mut gap);
        let expected = Gap {
            first: 3,
            last: 9,
            count: 7,
            reason: "RETENTION_AGE".into(),
        };
        assert_eq!(read(&gap, None).unwrap().kind, Kind::Gap(expected));
    }

    #[test]
    fn foreign_records_are_distinguished_from_malformed_ones() {
        let foreign = |data: &str| read(data.as_bytes(), None).unwrap_err();
        assert_eq!(foreign("{"), "not JSON");
        assert_eq!(foreign("[1]"), "not a CloudEvent");
        assert_eq!(foreign(r#"{"a":1}"#), "not a CloudEvent");
        assert_eq!(
            foreign(r#"{"specversion":"1.0","id":"1","source":"x","type":"y"}"#),
            "a CloudEvent without integrationid"
        );
        let whole: Value = serde_json::from_slice(&detection(1)).unwrap();
        let broken = |name: &str, value: Value| {
            let mut event = whole.clone();
            event[name] = value;
            let text = event.to_string();
            let kind = read(text.as_bytes(), None).unwrap().kind;
            assert!(matches!(kind, Kind::Malformed(_)), "{name}: {kind:?}");
        };
        broken("specversion", json!("2.0"));
        broken("id", json!(""));
        broken("source", json!(null));
        broken("type", json!(7));
        broken("partitionkey", json!(null));
        broken("partitionkey", json!("a device"));
        broken("sequence", json!(1));
        for sequence in [
            "1",
            "00000000000000000000",
            "0000000000000000000x",
            "+0000000000000000001",
        ] {
            broken("sequence", json!(sequence));
        }
        broken("sequence", json!(null));
        broken("type", json!("com.example.siem.gap"));
        assert!(matches!(
            read(&detection(1), Some("another")).unwrap().kind,
            Kind::Malformed(_)
        ));
    }

    #[test]
    fn a_gap_must_be_consistent() {
        for (first, last, count, good) in [
            (1, 5, 5, true),
            (1, 5, 2, true),
            (5, 5, 1, true),
            (1, 5, 6, false),
            (1, 5, 0, false),
            (6, 5, 1, false),
            (0, 5, 1, false),
            (1, 6, 1, false),
        ] {
            let data = json!({
                "first_sequence": first, "last_sequence": last, "count": count, "reason": "R",
            });
            let data = RawValue::from_string(data.to_string()).unwrap();
            assert_eq!(gap(Some(&data), 5).is_ok(), good, "{first} {last} {count}");
        }
    }
}
