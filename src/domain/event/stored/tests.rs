use proptest::{collection::vec, prelude::*};

use super::*;
use crate::domain::event::{
    Detection, Event, Format, MAX_BODY_LENGTH, RECORD_OVERHEAD, RecordHead, Timestamp,
    render_record,
    tests::{event, full},
};

const INTEGRATION: Uuid = Uuid::from_u128(7);

fn usual() -> Format {
    Format::new("https://meter.com", "com.meter").unwrap()
}

fn stored(event: &Event<'_>, format: &Format) -> Vec<u8> {
    let mut out = b"before".to_vec();
    let info = event.validate().unwrap().store(format, &mut out).unwrap();
    let stored = out.split_off(6);
    assert_eq!(inspect(&stored), Ok(info));
    assert_eq!(body_length(&stored), Ok(info.body_length));
    stored
}

fn record(stored: &[u8]) -> Result<String, UnreadableEvent> {
    let mut out = Vec::new();
    render_record(&RecordHead::new(INTEGRATION), 1, stored, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// The bytes that earlier versions wrote must stay readable.
#[test]
fn events_of_earlier_versions_are_readable() {
    let mut old = vec![1];
    old.extend([0x11; 16]);
    old.extend([0x22; 16]);
    old.extend(376_u32.to_le_bytes());
    old.extend(1_700_000_000_i64.to_le_bytes());
    old.extend(250_000_000_u32.to_le_bytes());
    old.extend((1 | 1 << 3 | 1 << 15 | 1_u32 << 30).to_le_bytes());
    old.push(16);
    old.extend([0x33; 16]);
    for value in [&b"192.0.2.1\""[..], b"443", b"ET \\\"SCAN\\\"\""] {
        old.push(value.len() as u8);
        old.extend(value);
    }
    let expected = concat!(
        r#"{"specversion":"1.0","integrationid":"00000000-0000-0000-0000-000000000007","#,
        r#""sequence":"00000000000000000001","#,
        r#""partitionkey":"11111111-1111-1111-1111-111111111111","#,
        r#""id":"33333333-3333-3333-3333-333333333333","source":"https://meter.com","#,
        r#""type":"com.meter.ids.detection","subject":"22222222-2222-2222-2222-222222222222","#,
        r#""time":"2023-11-14T22:13:20.250000Z","datacontenttype":"application/json","#,
        r#""data":{"type":"TYPE_DETECTION","src_ip":"192.0.2.1","dest_port":443,"#,
        r#""signature":"ET \"SCAN\""}}"#,
        "\n"
    );
    assert_eq!(record(&old).as_deref(), Ok(expected));
    let key = Uuid::from_bytes([0x11; 16]);
    assert_eq!(inspect(&old).map(|info| info.partition_key), Ok(key));
}

/// Own source and type, a derived id, and fields up to the last.
#[test]
fn events_of_earlier_versions_keep_their_ids() {
    let signature = format!("ET {}", "x".repeat(300));
    let expected = format!(
        concat!(
            r#"{{"specversion":"1.0","integrationid":"00000000-0000-0000-0000-000000000007","#,
            r#""sequence":"00000000000000000001","#,
            r#""partitionkey":"11111111-1111-1111-1111-111111111111","#,
            r#""id":"048fec4c-8249-5694-a914-02a404bd577a","source":"urn:a","#,
            r#""type":"b","subject":"22222222-2222-2222-2222-222222222222","#,
            r#""time":"2023-11-14T22:13:20.250000Z","datacontenttype":"application/json","#,
            r#""data":{{"type":"TYPE_DETECTION","src_ip":"192.0.2.1","dest_port":443,"#,
            r#""signature":"{}","category":"c","severity":3,"metadata":{{"k":["v"]}},"#,
            r#""context":{{"a":1}}}}}}"#,
            "\n"
        ),
        signature
    );
    let mut old = vec![1];
    old.extend([0x11; 16]);
    old.extend([0x22; 16]);
    // Three less, because the stored length is that with the shortest fraction.
    old.extend(((expected.len() - RECORD_OVERHEAD - 3) as u32).to_le_bytes());
    old.extend(1_700_000_000_i64.to_le_bytes());
    old.extend(250_000_000_u32.to_le_bytes());
    let fields = 1 | 1 << 3 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19;
    old.extend((fields | 1_u32 << 29).to_le_bytes());
    for value in [
        &br#"","source":"urn:a","type":"b","subject":""#[..],
        b"192.0.2.1\"",
        b"443",
    ] {
        old.push(value.len() as u8);
        old.extend(value);
    }
    old.push(255);
    old.extend((signature.len() as u32 + 1).to_le_bytes());
    old.extend(format!("{signature}\"").as_bytes());
    for value in [&b"c\""[..], b"3", br#""k":["v"]}"#, br#"{"a":1}"#] {
        old.push(value.len() as u8);
        old.extend(value);
    }
    assert_eq!(record(&old).as_deref(), Ok(&*expected));
    assert!(inspect(&old).is_ok());
}

/// Earlier versions wrote a time of a whole second with seven bytes less, and accepted events
/// that just fitted with that.
#[test]
fn an_event_of_an_earlier_version_at_the_size_limit_is_readable() {
    let whole_second = |padding: usize| {
        let context = format!("{{\"a\":\"{}\"}}", "x".repeat(padding));
        let mut event = event(Detection {
            context_json: &context,
            ..Detection::default()
        });
        event.observed_time = Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        });
        stored(&event, &usual())
    };
    let spare = MAX_BODY_LENGTH - inspect(&whole_second(1_000)).unwrap().body_length;
    let mut old = whole_second(1_000 + spare);
    assert_eq!(body_length(&old), Ok(MAX_BODY_LENGTH));
    // Lengthen the context by seven bytes, which fits only with the shorter time.
    let lengths = [33..37, HEADER_LENGTH + 1..HEADER_LENGTH + 5];
    for at in lengths {
        let length = u32::from_le_bytes(old[at.clone()].try_into().unwrap()) + 7;
        old[at].copy_from_slice(&length.to_le_bytes());
    }
    let end = old.len() - 2;
    old.splice(end..end, [b'x'; 7]);
    let text = record(&old).unwrap();
    assert_eq!(text.len(), MAX_BODY_LENGTH + RECORD_OVERHEAD);
    assert!(text.contains(r#""time":"2023-11-14T22:13:20Z""#));
    assert_eq!(inspect(&old).unwrap().body_length, MAX_BODY_LENGTH);
}

#[test]
fn an_event_of_the_older_format_is_readable() {
    let stored = stored(&event(full()), &usual());
    let record_before = record(&stored).unwrap();
    let body = record_before[RECORD_OVERHEAD - 1..].trim_end();
    assert_eq!(inspect(body.as_bytes()), inspect(&stored));
    assert_eq!(record(body.as_bytes()).as_deref(), Ok(&*record_before));
    for wrong in ["", "\"", "\"partitionkey\":\"0198", &body[1..]] {
        assert_eq!(inspect(wrong.as_bytes()), Err(UnreadableEvent), "{wrong}");
    }
}

#[test]
fn source_and_type_are_those_at_the_time_of_publishing() {
    let format = Format::new("urn:\"other\"", "com.example").unwrap();
    let stored = stored(&event(full()), &format);
    let record: serde_json::Value = serde_json::from_str(&record(&stored).unwrap()).unwrap();
    assert_eq!(record["source"], "urn:\"other\"");
    assert_eq!(record["type"], "com.example.ids.detection");
}

#[test]
fn a_stored_event_has_less_than_half_the_size_of_its_record() {
    let stored = stored(&event(full()), &usual());
    assert!(stored.len() * 2 < record(&stored).unwrap().len());
}

#[test]
fn incomplete_events_are_refused() {
    let stored = stored(&event(full()), &usual());
    for end in 0..stored.len() {
        assert_eq!(inspect(&stored[..end]), Err(UnreadableEvent), "{end}");
        assert_eq!(record(&stored[..end]), Err(UnreadableEvent), "{end}");
    }
    let longer = [&stored[..], b"x"].concat();
    assert_eq!(inspect(&longer), Err(UnreadableEvent));
    assert_eq!(record(&longer), Err(UnreadableEvent));
}

proptest! {
    #[test]
    fn values_of_every_length_round_trip(
        signature in "[a-z\"]{0,600}",
        category in "[a-z]{0,40}",
        id: Option<u128>,
        times in 1..4_usize,
    ) {
        let (long, id) = (signature.repeat(times), id.map(|id| Uuid::from_u128(id).to_string()));
        let mut detection = full();
        detection.signature = Some(&long);
        detection.category = Some(&category);
        let event = Event { event_id: id.as_deref(), ..event(detection) };
        let stored = stored(&event, &usual());
        let record: serde_json::Value = serde_json::from_str(&record(&stored).unwrap()).unwrap();
        prop_assert_eq!(record["data"]["signature"].as_str(), Some(&*long));
        prop_assert_eq!(record["data"]["category"].as_str(), Some(&*category));
        if let Some(id) = &id {
            prop_assert_eq!(record["id"].as_str(), Some(&**id));
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_readable(at: prop::sample::Index, byte: u8, some in vec(any::<u8>(), 0..80)) {
        let mut stored = stored(&event(full()), &usual());
        let at = at.index(stored.len());
        stored[at] = byte;
        let mut out = Vec::new();
        let rendered = render_record(&RecordHead::new(INTEGRATION), 1, &stored, &mut out);
        if inspect(&stored).is_ok() {
            // The record has the stated length.
            prop_assert_eq!(rendered, Ok(()));
            prop_assert_eq!(out.len(), RECORD_OVERHEAD + body_length(&stored).unwrap());
        }
        let garbage = [&[CODE][..], &some].concat();
        let _ = inspect(&garbage);
        let _ = render_record(&RecordHead::new(INTEGRATION), 1, &garbage, &mut out);
    }
}
