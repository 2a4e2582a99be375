//! Each test compares the decoder with prost's.

use proptest::{collection::vec, prelude::*, sample::Index};
use prost::Message;

use super::*;
use crate::{domain::event::Vlans, proto::v1};

/// The decoded event as prost's message, and its VLANs apart: the decoder keeps only the
/// first few.
fn as_prost(event: &Event<'_>) -> (v1::Event, Vlans) {
    let mut vlans = Vlans::default();
    let payload = event.payload.as_ref().map(|Payload::Detection(detection)| {
        vlans = detection.vlan;
        v1::event::Payload::IdsDetection(detection_as_prost(detection))
    });
    let event = v1::Event {
        organization_id: event.organization_id.into(),
        network_id: event.network_id.into(),
        device_id: event.device_id.into(),
        observed_time: event.observed_time.map(|time| prost_types::Timestamp {
            seconds: time.seconds,
            nanos: time.nanos,
        }),
        event_id: event.event_id.map(Into::into),
        payload,
    };
    (event, vlans)
}

fn detection_as_prost(detection: &Detection<'_>) -> v1::IdsDetection {
    let metadata = detection.metadata.iter().map(|(key, values)| {
        let values = values.iter().map(|&value| value.into()).collect();
        (key.to_owned(), v1::MetadataValues { values })
    });
    v1::IdsDetection {
        src_ip: detection.src_ip.into(),
        src_port: detection.src_port,
        dest_ip: detection.dest_ip.into(),
        dest_port: detection.dest_port,
        proto: detection.proto.into(),
        app_proto: detection.app_proto.into(),
        flow_id: detection.flow_id,
        community_id: detection.community_id.into(),
        vlan: Vec::new(),
        in_iface: detection.in_iface.into(),
        direction: detection.direction.into(),
        action: detection.action.into(),
        gid: detection.gid,
        signature_id: detection.signature_id,
        rev: detection.rev,
        signature: detection.signature.map(Into::into),
        category: detection.category.map(Into::into),
        severity: detection.severity,
        metadata: metadata.collect(),
        context_json: detection.context_json.into(),
    }
}

/// Decodes both ways and compares. Returns whether the bytes are an event.
fn same_as_prost(bytes: &[u8]) -> bool {
    let decoded = decode_event(bytes);
    let mut expected = v1::Event::decode(bytes);
    let mut expected_vlans = Vlans::default();
    if let Ok(event) = &mut expected
        && let Some(v1::event::Payload::IdsDetection(detection)) = &mut event.payload
    {
        std::mem::take(&mut detection.vlan)
            .into_iter()
            .for_each(|id| expected_vlans.push(id));
    }
    match (&decoded, expected) {
        (Ok(event), Ok(expected)) => {
            assert_eq!(as_prost(event), (expected, expected_vlans));
            assert_sorted(event);
        }
        (Err(_), Err(_)) => {}
        (decoded, expected) => panic!("decoded {decoded:?} where prost decoded {expected:?}"),
    }
    decoded.is_ok()
}

fn assert_sorted(event: &Event<'_>) {
    if let Some(Payload::Detection(detection)) = &event.payload {
        let keys: Vec<_> = detection.metadata.iter().map(|(key, _)| key).collect();
        assert!(keys.is_sorted_by(|left, right| left < right), "{keys:?}");
    }
}

prop_compose! {
    fn any_rule()(
        gid: Option<u32>,
        signature_id: Option<u32>,
        rev: Option<u32>,
        signature: Option<String>,
        category: Option<String>,
        severity: Option<u32>,
        metadata in prop::collection::hash_map(any::<String>(), vec(any::<String>(), 0..4), 0..5),
    ) -> v1::IdsDetection {
        v1::IdsDetection {
            gid,
            signature_id,
            rev,
            signature,
            category,
            severity,
            metadata: metadata
                .into_iter()
                .map(|(key, values)| (key, v1::MetadataValues { values }))
                .collect(),
            ..Default::default()
        }
    }
}

prop_compose! {
    fn any_detection()(
        rule in any_rule(),
        texts in vec(any::<String>(), 9),
        src_port: Option<u32>,
        dest_port: Option<u32>,
        flow_id: Option<u64>,
        vlan in vec(any::<u32>(), 0..12),
    ) -> v1::IdsDetection {
        let mut texts = texts.into_iter();
        let mut text = || texts.next().unwrap_or_default();
        v1::IdsDetection {
            src_ip: text(),
            src_port,
            dest_ip: text(),
            dest_port,
            proto: text(),
            app_proto: text(),
            flow_id,
            community_id: text(),
            vlan,
            in_iface: text(),
            direction: text(),
            action: text(),
            context_json: text(),
            ..rule
        }
    }
}

prop_compose! {
    fn any_event()(
        texts in vec(any::<String>(), 3),
        time: Option<(i64, i32)>,
        event_id: Option<String>,
        detection in prop::option::of(any_detection()),
    ) -> v1::Event {
        v1::Event {
            organization_id: texts[0].clone(),
            network_id: texts[1].clone(),
            device_id: texts[2].clone(),
            observed_time: time.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
            event_id,
            payload: detection.map(v1::event::Payload::IdsDetection),
        }
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn tag(number: u32, wire_type: u64) -> Vec<u8> {
    varint(u64::from(number) << 3 | wire_type)
}

fn delimited(number: u32, bytes: &[u8]) -> Vec<u8> {
    [&tag(number, 2)[..], &varint(bytes.len() as u64), bytes].concat()
}

/// String field, sometimes not UTF-8.
fn wire_string(number: u32) -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        20 => "[a-c]{0,2}".prop_map(move |text| delimited(number, text.as_bytes())),
        10 => any::<String>().prop_map(move |text| delimited(number, text.as_bytes())),
        1 => vec(any::<u8>(), 0..4).prop_map(move |bytes| delimited(number, &bytes)),
    ]
    .boxed()
}

fn wire_uint64(number: u32) -> BoxedStrategy<Vec<u8>> {
    any::<u64>()
        .prop_map(move |value| [tag(number, 0), varint(value)].concat())
        .boxed()
}

/// Field with an unknown number, or a known one with another wire type.
fn wire_unknown() -> BoxedStrategy<Vec<u8>> {
    let scalar = (1..40_u32, 0..8_u64, vec(any::<u8>(), 0..12))
        .prop_map(|(number, wire_type, bytes)| [tag(number, wire_type), bytes].concat());
    let skipped = (21..1_000_u32, any::<u64>(), vec(any::<u8>(), 0..8)).prop_flat_map(
        |(number, value, bytes)| {
            let fields = vec![
                [tag(number, 0), varint(value)].concat(),
                [tag(number, 1), value.to_le_bytes().to_vec()].concat(),
                delimited(number, &bytes),
                [tag(number, 5), vec![0; 4]].concat(),
            ];
            let group = [tag(number, 3), fields.concat(), tag(number, 4)].concat();
            prop::sample::select([fields, vec![group]].concat())
        },
    );
    prop_oneof![1 => scalar, 30 => skipped].boxed()
}

fn wire_message(
    number: u32,
    fields: impl Strategy<Value = Vec<u8>> + 'static,
    max: usize,
) -> BoxedStrategy<Vec<u8>> {
    vec(fields, 0..max)
        .prop_map(move |fields| delimited(number, &fields.concat()))
        .boxed()
}

fn wire_detection() -> BoxedStrategy<Vec<u8>> {
    let texts = prop::sample::select(vec![1, 3, 5, 6, 8, 10, 11, 12, 16, 17, 20]);
    let numbers = prop::sample::select(vec![2, 4, 7, 9, 13, 14, 15, 18]);
    let packed = vec(any::<u64>(), 0..5)
        .prop_map(|ids| delimited(9, &ids.into_iter().flat_map(varint).collect::<Vec<_>>()));
    let values = wire_message(2, prop_oneof![9 => wire_string(1), 1 => wire_unknown()], 4);
    let entry = prop_oneof![
        10 => wire_string(1),
        10 => values,
        1 => wire_unknown()
    ];
    let field = prop_oneof![
        8 => texts.prop_flat_map(wire_string),
        6 => numbers.prop_flat_map(wire_uint64),
        2 => packed,
        6 => wire_message(19, entry, 4),
        1 => wire_unknown(),
    ];
    wire_message(6, field, 12)
}

fn wire_event() -> BoxedStrategy<Vec<u8>> {
    let texts = prop::sample::select(vec![1, 2, 3, 5]);
    let time = wire_message(4, prop_oneof![wire_uint64(1), wire_uint64(2)], 3);
    let field = prop_oneof![
        4 => texts.prop_flat_map(wire_string),
        2 => time,
        4 => wire_detection(),
        1 => wire_unknown(),
    ];
    vec(field, 0..8).prop_map(|fields| fields.concat()).boxed()
}

proptest! {
    #[test]
    fn decodes_events_as_prost_does(event in any_event()) {
        prop_assert!(same_as_prost(&event.encode_to_vec()));
    }

    #[test]
    fn merges_repeated_and_reordered_fields_as_prost_does(bytes in wire_event()) {
        same_as_prost(&bytes);
    }

    #[test]
    fn rejects_damaged_bytes_as_prost_does(
        bytes in wire_event(),
        damage in vec((any::<Index>(), any::<u8>()), 0..3),
        end: Index,
    ) {
        let mut bytes = bytes;
        bytes.push(0x08);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        same_as_prost(&bytes);
        same_as_prost(&bytes[..end.index(bytes.len())]);
    }

    #[test]
    fn decodes_any_bytes_as_prost_does(bytes in vec(any::<u8>(), 0..200)) {
        same_as_prost(&bytes);
    }
}

#[test]
fn varints_overflow_as_in_prost() {
    let with = |last: u8| [&[0x08][..], &[0xff; 9], &[last]].concat();
    let timestamp = |bytes: &[u8]| delimited(4, bytes);
    assert!(same_as_prost(&timestamp(&with(1))));
    assert!(!same_as_prost(&timestamp(&with(2))));
    assert!(!same_as_prost(&timestamp(&with(0x80))));
    assert!(same_as_prost(&timestamp(&[0x08, 0x80, 0x00])));
    assert!(!same_as_prost(&timestamp(&[0x08, 0x80])));
}

#[test]
fn nesting_limit_is_prosts() {
    let groups = |depth: usize| [tag(30, 3).repeat(depth), tag(30, 4).repeat(depth)].concat();
    let in_detection = |bytes: &[u8]| delimited(6, bytes);
    let in_entry = |bytes: &[u8]| in_detection(&delimited(19, bytes));
    let in_values = |bytes: &[u8]| in_entry(&delimited(2, bytes));
    let mut answers = Vec::new();
    for depth in 90..110 {
        let groups = groups(depth);
        answers.push(same_as_prost(&groups));
        answers.push(same_as_prost(&in_detection(&groups)));
        answers.push(same_as_prost(&in_entry(&groups)));
        answers.push(same_as_prost(&in_values(&groups)));
        answers.push(same_as_prost(&delimited(4, &groups)));
    }
    assert!(answers.contains(&true) && answers.contains(&false));
    assert!(!same_as_prost(&tag(30, 3).repeat(1_000_000)));
    assert!(!same_as_prost(&[tag(30, 3), tag(31, 4)].concat()));
    assert!(!same_as_prost(&tag(30, 4)));
}

#[test]
fn errors_name_the_field() {
    let error = decode_event(&delimited(6, &delimited(16, &[0xff]))).unwrap_err();
    assert_eq!(error.field(), "ids_detection.signature");
    assert_eq!(
        error.to_string(),
        "ids_detection.signature is not protobuf of siem.v1.Event: text is not UTF-8"
    );
    let error = decode_event(&[0x0a]).unwrap_err();
    assert_eq!(error.field(), "organization_id");
    let rejection = Rejection::from(decode_event(&[0x07]).unwrap_err());
    assert_eq!(rejection.reason, RejectionReason::MalformedEvent);
    assert_eq!(rejection.field, "");
}
