//! Events as Publish receives them: whatever the bytes, prost and the decoder agree on whether they
//! are an event, and an accepted event becomes one line of JSON with the attributes of CloudEvents.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use serde_json::Value;
use siem_relay::{
    api::event_decoder::decode_event,
    domain::event::{Format, RecordHead, body_length, render_record},
    proto::v1,
};
use uuid::Uuid;

static FORMAT: LazyLock<Format> =
    LazyLock::new(|| Format::new("https://example.com", "com.example").unwrap());

fuzz_target!(|bytes: &[u8]| {
    let decoded = decode_event(bytes);
    assert_eq!(decoded.is_ok(), v1::Event::decode(bytes).is_ok());
    let Ok(event) = decoded else { return };
    let Ok(valid) = event.validate() else { return };
    let mut stored = Vec::new();
    if valid.store(&FORMAT, &mut stored).is_err() {
        return;
    }
    let mut record = Vec::new();
    let head = RecordHead::new(Uuid::nil());
    render_record(&head, 7, &stored, &mut record).unwrap();
    let line = record.strip_suffix(b"\n").unwrap();
    assert!(!line.contains(&b'\n'));
    assert!(line.len() >= body_length(&stored).unwrap());
    let json: Value = serde_json::from_slice(line).unwrap();
    for (attribute, value) in [
        ("specversion", "1.0".to_owned()),
        ("type", "com.example.ids.detection".to_owned()),
        ("subject", valid.network().to_string()),
        ("partitionkey", valid.device().to_string()),
        ("sequence", format!("{:020}", 7)),
    ] {
        assert_eq!(json[attribute], value, "{attribute}");
    }
    assert_eq!(json["data"]["type"], "TYPE_DETECTION");
});
