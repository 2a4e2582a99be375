use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

const NETWORK: &str = "0198c0de-7a11-7000-8000-0000000000AA";
const DEVICE: &str = "0198c0de-7a11-7000-8000-0000000000bb";
const INTEGRATION: Uuid = Uuid::from_u128(0x0198_c0de_7a11_7000_8000_0000_0000_00cc);

fn format() -> Format {
    Format::new("https://meter.com", "com.meter").unwrap()
}

pub(super) fn event(detection: Detection<'_>) -> Event<'_> {
    Event {
        organization_id: "acme",
        network_id: NETWORK,
        device_id: DEVICE,
        observed_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 250_000_000,
        }),
        event_id: None,
        payload: Some(Payload::Detection(detection)),
    }
}

pub(super) fn full() -> Detection<'static> {
    let mut vlan = Vlans::default();
    vlan.push(100);
    vlan.push(4_095);
    let mut metadata = Metadata::default();
    for (key, values) in [
        ("tag", &["old"][..]),
        ("deployment", &["Perimeter", "Internal"]),
        ("tag", &["a \"b\""]),
        ("empty", &[]),
    ] {
        values.iter().for_each(|value| metadata.push_value(value));
        metadata.end_entry(key);
    }
    metadata.sort();
    Detection {
        src_ip: "2001:db8::1",
        src_port: Some(0),
        dest_ip: "192.0.2.7",
        dest_port: Some(65_535),
        proto: "TCP",
        app_proto: "http",
        flow_id: Some(u64::MAX),
        community_id: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
        vlan,
        in_iface: "eth0",
        direction: "to_server",
        action: "allowed",
        gid: Some(1),
        signature_id: Some(2_001_219),
        rev: Some(20),
        signature: Some("ET SCAN \u{1F600}\n"),
        category: Some(""),
        severity: Some(2),
        metadata,
        context_json: "{\"http\":\n {\"length\":1.50}}",
    }
}

/// Renders the record of an event.
pub(super) fn text(event: &Event<'_>) -> Result<String, Rejection> {
    let mut stored = Vec::new();
    let info = event.validate()?.store(&format(), &mut stored)?;
    let mut out = Vec::new();
    render_record(&RecordHead::new(INTEGRATION), 42, &stored, &mut out).unwrap();
    assert_eq!(out.len(), info.body_length + RECORD_OVERHEAD);
    Ok(String::from_utf8(out).unwrap())
}

fn record(event: &Event<'_>) -> Value {
    serde_json::from_str(&text(event).unwrap()).unwrap()
}

#[test]
fn a_detection_becomes_one_line_of_json() {
    let mut event = event(full());
    event.event_id = Some("0198C0DE-7a11-7000-8000-0000000000DD");
    let expected = concat!(
        r#"{"specversion":"1.0","integrationid":"0198c0de-7a11-7000-8000-0000000000cc","#,
        r#""sequence":"00000000000000000042","#,
        r#""partitionkey":"0198c0de-7a11-7000-8000-0000000000bb","#,
        r#""id":"0198c0de-7a11-7000-8000-0000000000dd","source":"https://meter.com","#,
        r#""type":"com.meter.ids.detection","subject":"0198c0de-7a11-7000-8000-0000000000aa","#,
        r#""time":"2023-11-14T22:13:20.250000Z","datacontenttype":"application/json","#,
        r#""data":{"type":"TYPE_DETECTION","src_ip":"2001:db8::1","src_port":0,"#,
        r#""dest_ip":"192.0.2.7","dest_port":65535,"proto":"TCP","app_proto":"http","#,
        r#""flow_id":18446744073709551615,"community_id":"1:LQU9qZlK+B5F3KDmev6m5PMibrg=","#,
        r#""vlan":[100,4095],"in_iface":"eth0","direction":"to_server","action":"allowed","#,
        r#""gid":1,"signature_id":2001219,"rev":20,"signature":"ET SCAN 😀\n","category":"","#,
        r#""severity":2,"metadata":{"deployment":["Perimeter","Internal"],"empty":[],"#,
        r#""tag":["a \"b\""]},"context":{"http":  {"length":1.50}}}}"#,
        "\n"
    );
    assert_eq!(text(&event).unwrap(), expected);
}

#[test]
fn unset_fields_are_left_out() {
    let data = &record(&event(Detection::default()))["data"];
    assert_eq!(data, &json!({"type": "TYPE_DETECTION"}));
}

#[test]
fn a_time_always_has_six_fractional_digits() {
    for (nanos, text) in [
        (0, "2023-11-14T22:13:20.000000Z"),
        (500_000_000, "2023-11-14T22:13:20.500000Z"),
        (1_000, "2023-11-14T22:13:20.000001Z"),
        (123_456_789, "2023-11-14T22:13:20.123456Z"),
        (999_999_999, "2023-11-14T22:13:20.999999Z"),
    ] {
        let mut event = event(full());
        event.observed_time = Some(Timestamp {
            seconds: 1_700_000_000,
            nanos,
        });
        assert_eq!(record(&event)["time"], text, "{nanos}");
    }
}

/// An id is derived from all nanoseconds, including those truncated in the text.
#[test]
fn an_id_depends_on_truncated_nanoseconds() {
    for nanos in [0, 250_000_000, 123_456_789_i32] {
        let mut event = event(full());
        event.observed_time = Some(Timestamp {
            seconds: 1_700_000_000,
            nanos,
        });
        let text = text(&event).unwrap();
        let (_, data) = text.trim_end().split_once(r#""data":"#).unwrap();
        let uuid = |text: &str| Uuid::try_parse(text).unwrap().into_bytes();
        let mut name = [uuid(NETWORK), uuid(DEVICE)].concat();
        name.extend(1_700_000_000_i64.to_be_bytes());
        name.extend(nanos.to_be_bytes());
        name.extend_from_slice(&data.as_bytes()[..data.len() - 1]);
        let id = Uuid::new_v5(&DETECTION_NAMESPACE, &name).to_string();
        assert_eq!(record(&event)["id"], id, "{nanos}");
    }
}

#[test]
fn the_same_detection_has_the_same_id() {
    let id = |event: &Event<'_>| record(event)["id"].as_str().unwrap().to_owned();
    let first = event(full());
    let version = Uuid::try_parse(&id(&first)).unwrap();
    assert_eq!(version.get_version_num(), 5);

    let mut twin = first.clone();
    twin.network_id = "0198c0de-7a11-7000-8000-0000000000aa";
    twin.organization_id = "other";
    let Some(Payload::Detection(detection)) = &mut twin.payload else {
        panic!("it is a detection");
    };
    let mut reordered = Metadata::default();
    for (key, values) in full().metadata.iter().collect::<Vec<_>>().into_iter().rev() {
        values.iter().for_each(|value| reordered.push_value(value));
        reordered.end_entry(key);
    }
    reordered.sort();
    detection.metadata = reordered;
    assert_eq!(id(&first), id(&twin));

    let mut later = first.clone();
    later.observed_time = Some(Timestamp {
        seconds: 1_700_000_000,
        nanos: 250_000_001,
    });
    let mut elsewhere = first.clone();
    elsewhere.device_id = NETWORK;
    let other_content = event(Detection {
        rev: Some(21),
        ..full()
    });
    for different in [later, elsewhere, other_content] {
        assert_ne!(id(&first), id(&different));
    }
}

#[test]
fn the_longest_record_is_exactly_one_mebibyte() {
    let with_context = |padding: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(padding));
    let base = text(&event(Detection {
        context_json: &with_context(0),
        ..Detection::default()
    }))
    .unwrap()
    .len();
    let fits = MAX_RECORD_LENGTH - PARTITION_KEY_LENGTH - base;
    let context = with_context(fits);
    let longest = event(Detection {
        context_json: &context,
        ..Detection::default()
    });
    assert_eq!(
        text(&longest).unwrap().len() + PARTITION_KEY_LENGTH,
        1_048_576
    );

    let context = with_context(fits + 1);
    let mut out = b"before".to_vec();
    let too_long = event(Detection {
        context_json: &context,
        ..Detection::default()
    });
    let rejection = too_long
        .validate()
        .unwrap()
        .store(&format(), &mut out)
        .unwrap_err();
    assert_eq!(rejection.reason, RejectionReason::RecordTooLarge);
    assert_eq!(out, b"before");

    let huge = "\u{1}".repeat(MAX_RECORD_LENGTH + 1);
    let rejection = text(&event(Detection {
        signature: Some(&huge),
        ..Detection::default()
    }));
    assert_eq!(
        rejection.unwrap_err().reason,
        RejectionReason::RecordTooLarge
    );
}

#[test]
fn a_test_event_has_no_sequence() {
    let mut out = Vec::new();
    let time = Time::new(0, 0).unwrap();
    render_test(
        INTEGRATION,
        &format(),
        Uuid::from_u128(7),
        time,
        "it \"works\"",
        &mut out,
    );
    assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
    assert_eq!(out.last(), Some(&b'\n'));
    let record: Value = serde_json::from_slice(&out).unwrap();
    let key = INTEGRATION.to_string();
    assert_eq!(
        record,
        json!({
            "specversion": "1.0", "integrationid": key, "partitionkey": key,
            "id": "00000000-0000-0000-0000-000000000007", "source": "https://meter.com",
            "type": "TYPE_TEST", "subject": key, "time": "1970-01-01T00:00:00.000000Z",
            "datacontenttype": "application/json",
            "data": {"type": "TYPE_TEST", "message": "it \"works\""},
        })
    );
}

#[test]
fn a_gap_has_the_sequence_of_its_last_event() {
    let gap = Gap {
        first_sequence: 3,
        last_sequence: 10,
        count: 8,
        first_time: Time::new(0, 1_000_000).unwrap(),
        last_time: Time::new(60, 0).unwrap(),
        reason: GapReason::RetentionAge,
    };
    let render = |gap: &Gap| {
        let mut out = Vec::new();
        let id = render_gap(INTEGRATION, &format(), gap, &mut out);
        (id, String::from_utf8(out).unwrap())
    };
    let (id, text) = render(&gap);
    let record: Value = serde_json::from_str(&text).unwrap();
    let key = INTEGRATION.to_string();
    assert_eq!(
        record,
        json!({
            "specversion": "1.0", "integrationid": key, "sequence": "00000000000000000010",
            "partitionkey": key, "id": id.to_string(), "source": "https://meter.com",
            "type": "com.meter.siem.gap", "subject": key, "time": "1970-01-01T00:01:00.000000Z",
            "datacontenttype": "application/json",
            "data": {
                "first_sequence": 3, "last_sequence": 10, "count": 8,
                "first_time": "1970-01-01T00:00:00.001000Z", "last_time": "1970-01-01T00:01:00.000000Z",
                "reason": "RETENTION_AGE",
            },
        })
    );
    assert!(text.ends_with("}\n"));
    assert_eq!(render(&gap), (id, text));
    let wider = Gap {
        first_sequence: 2,
        ..gap
    };
    assert_ne!(render(&wider).0, id);
}

#[test]
fn settings_that_are_invalid_in_an_event_are_refused() {
    for source in ["", " ", "https://exa mple.com", "é", &"s".repeat(1_025)] {
        let error = Format::new(source, "com.example").unwrap_err();
        assert_eq!(error, FormatError::Source);
    }
    for prefix in ["", "com example", "com.\"", &"p".repeat(257)] {
        let error = Format::new("https://example.com", prefix).unwrap_err();
        assert_eq!(error, FormatError::TypePrefix);
    }
    assert!(Format::new("urn:\"quoted\"", "com.example").is_ok());
}

proptest! {
    #[test]
    fn every_text_is_preserved(
        signature: String,
        proto: String,
        entries in vec((any::<String>(), vec(any::<String>(), 0..3)), 0..6),
    ) {
        let mut metadata = Metadata::default();
        for (key, values) in &entries {
            values.iter().for_each(|value| metadata.push_value(value));
            metadata.end_entry(key);
        }
        metadata.sort();
        let detection = Detection {
            signature: Some(&signature),
            proto: &proto,
            metadata,
            ..Detection::default()
        };
        let event = event(detection);
        let text = text(&event).unwrap();
        prop_assert_eq!(text.find(['\n', '\r']), Some(text.len() - 1));
        let data = &record(&event)["data"];
        prop_assert_eq!(data["signature"].as_str(), Some(&*signature));
        prop_assert_eq!(data["proto"].as_str().unwrap_or_default(), proto);
        // Like a protobuf map, a JSON object keeps the last value of a name.
        let expected: serde_json::Map<_, _> = entries
            .into_iter()
            .map(|(key, values)| (key, json!(values)))
            .collect();
        let metadata = data.get("metadata").cloned().unwrap_or(json!({}));
        prop_assert_eq!(metadata, Value::Object(expected));
    }
}
