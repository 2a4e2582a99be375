use std::collections::BTreeMap;

use prost::Message;

use super::*;

mod round_trip;

const TIMESTAMP: &str = "2026-03-29T11:01:38.221126-0600";

fn origin() -> Origin {
    Origin::new("acme", Uuid::from_u128(1), Uuid::from_u128(2))
}

fn event(line: &str) -> v1::Event {
    match parse(line, &origin()) {
        Ok(Record::Alert(event)) => *event,
        other => panic!("no alert: {other:?} of {line}"),
    }
}

fn detection_of(event: v1::Event) -> v1::IdsDetection {
    let Some(v1::event::Payload::IdsDetection(detection)) = event.payload else {
        panic!("no detection");
    };
    detection
}

/// Returns the detection of a record with additional members.
fn detection(members: &str) -> v1::IdsDetection {
    detection_of(event(&format!(
        r#"{{"timestamp":"{TIMESTAMP}","event_type":"alert"{members}}}"#
    )))
}

#[test]
fn every_field_of_the_api_is_filled() {
    let line = r#"{"timestamp":"2026-03-29T11:01:38.221126-0600","flow_id":1959620435402694,
        "in_iface":"eth0","event_type":"alert","vlan":[10,20],"src_ip":"2001:db8::7",
        "src_port":49152,"dest_ip":"2001:db8::53","dest_port":443,"proto":"TCP",
        "app_proto":"tls","community_id":"1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
        "direction":"to_server","pcap_cnt":98966,
        "alert":{"action":"blocked","gid":1,"signature_id":9000001,"rev":3,
            "signature":"EXAMPLE Café ☕ 检测","category":"Misc activity","severity":2,
            "tx_id":7,"metadata":{"tag":["a","b"],"created_at":["2026_01_02"]}},
        "tls":{"sni":"www.example.com"}}"#;
    let event = event(line);
    assert_eq!(event.organization_id, "acme");
    assert_eq!(event.network_id, "00000000-0000-0000-0000-000000000001");
    assert_eq!(event.device_id, "00000000-0000-0000-0000-000000000002");
    assert_eq!(event.event_id, None);
    let time = event.observed_time.unwrap();
    assert_eq!((time.seconds, time.nanos), (1_774_803_698, 221_126_000));

    let strings = |values: &[&str]| v1::MetadataValues {
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    let expect = v1::IdsDetection {
        src_ip: "2001:db8::7".into(),
        src_port: Some(49152),
        dest_ip: "2001:db8::53".into(),
        dest_port: Some(443),
        proto: "TCP".into(),
        app_proto: "tls".into(),
        flow_id: Some(1_959_620_435_402_694),
        community_id: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=".into(),
        vlan: vec![10, 20],
        in_iface: "eth0".into(),
        direction: "to_server".into(),
        action: "blocked".into(),
        gid: Some(1),
        signature_id: Some(9_000_001),
        rev: Some(3),
        signature: Some("EXAMPLE Café ☕ 检测".into()),
        category: Some("Misc activity".into()),
        severity: Some(2),
        metadata: [
            ("tag".to_owned(), strings(&["a", "b"])),
            ("created_at".to_owned(), strings(&["2026_01_02"])),
        ]
        .into(),
        context_json: r#"{"pcap_cnt":98966,"alert":{"tx_id":7},"tls":{"sni":"www.example.com"}}"#
            .into(),
    };
    assert_eq!(detection_of(event), expect);
}

#[test]
fn context_keeps_order_and_digits() {
    let members = concat!(
        r#","z":1.0,"a":12345678901234567890123,"e":1E+400,"n":-0.0,"s":"\u00e9\/","#,
        r#""deep":{"b": [1.10, {"c":null}]},"alert":{"gid":1},"q\"k":0"#
    );
    let expect = concat!(
        r#"{"z":1.0,"a":12345678901234567890123,"e":1E+400,"n":-0.0,"s":"\u00e9\/","#,
        r#""deep":{"b": [1.10, {"c":null}]},"q\"k":0}"#
    );
    assert_eq!(detection(members).context_json, expect);
}

#[test]
fn an_alert_without_further_members_has_no_context() {
    assert_eq!(detection(r#","alert":{"gid":1}"#).context_json, "");
}

#[test]
fn a_value_that_does_not_fit_its_field_stays_in_the_context() {
    for member in [
        r#""src_port":"80""#,
        r#""src_port":-1"#,
        r#""src_port":80.0"#,
        r#""src_port":4294967296"#,
        r#""dest_port":null"#,
        r#""src_ip":"""#,
        r#""src_ip":3221225985"#,
        r#""proto":6"#,
        r#""flow_id":-7"#,
        r#""flow_id":18446744073709551616"#,
        r#""vlan":"10""#,
        r#""vlan":[10,-1]"#,
        r#""vlan":[]"#,
        r#""in_iface":["eth0"]"#,
        r#""direction":true"#,
        r#""src_port":65536"#,
        r#""dest_port":70000"#,
        r#""src_ip":"fe80::1%eth0""#,
        r#""src_ip":"192.0.2.0/24""#,
        r#""dest_ip":"2001:db8::/32""#,
        r#""dest_ip":"x.x.x.x""#,
        r#""dest_ip":"192.0.2.256""#,
        r#""vlan":[4096]"#,
        r#""vlan":4096"#,
        r#""vlan":[1,2,3,4,5,6,7,8,9]"#,
        r#""vlan":[1,70000]"#,
        r#""vlan":[[1]]"#,
    ] {
        let d = detection(&format!(r#",{member},"alert":{{}}"#));
        assert_eq!(d.context_json, format!("{{{member}}}"));
        let expect = v1::IdsDetection {
            context_json: d.context_json.clone(),
            ..Default::default()
        };
        assert_eq!(d, expect, "{member}");
    }
}

#[test]
fn a_value_of_the_alert_object_that_does_not_fit_stays_in_the_context() {
    for member in [
        r#""severity":"high""#,
        r#""gid":null"#,
        r#""gid":-1"#,
        r#""severity":1.5"#,
        r#""signature_id":4294967296"#,
        r#""rev":"2""#,
        r#""signature":{"a":1}"#,
        r#""action":"""#,
        r#""metadata":"text""#,
        r#""metadata":{}"#,
        r#""metadata":{"a":{"b":1},"c":[true],"d":null}"#,
        r#""source":{"ip":"192.0.2.1"}"#,
        r#""xff":"192.0.2.9""#,
    ] {
        let d = detection(&format!(r#","alert":{{{member}}}"#));
        assert_eq!(d.context_json, format!(r#"{{"alert":{{{member}}}}}"#));
        let expect = v1::IdsDetection {
            context_json: d.context_json.clone(),
            ..Default::default()
        };
        assert_eq!(d, expect, "{member}");
    }
}

#[test]
fn metadata_may_be_single_values() {
    let d = detection(
        r#","metadata":{"flowbits":["x"]},"alert":{"metadata":{"a":"one","b":2.50,"c":["x",7],"e":[],"d":[[1]]}}"#,
    );
    let values: BTreeMap<&str, Vec<&str>> = d
        .metadata
        .iter()
        .map(|(key, values)| {
            (
                key.as_str(),
                values.values.iter().map(String::as_str).collect(),
            )
        })
        .collect();
    let expect = [
        ("a", vec!["one"]),
        ("b", vec!["2.50"]),
        ("c", vec!["x", "7"]),
        ("e", vec![]),
    ];
    assert_eq!(values, BTreeMap::from(expect));
    assert_eq!(
        d.context_json,
        r#"{"metadata":{"flowbits":["x"]},"alert":{"metadata":{"d":[[1]]}}}"#
    );
}

#[test]
fn a_vlan_may_be_a_number_and_optional_texts_may_be_empty() {
    let d = detection(r#","vlan":10,"alert":{"signature":"","category":""}"#);
    assert_eq!(d.vlan, [10]);
    assert_eq!(
        (d.signature.as_deref(), d.category.as_deref()),
        (Some(""), Some(""))
    );
    assert_eq!(d.context_json, "");
}

#[test]
fn icmp_has_no_ports_or_ports_of_0() {
    let none =
        detection(r#","src_ip":"192.0.2.1","proto":"ICMP","icmp_type":8,"icmp_code":0,"alert":{}"#);
    assert_eq!((none.src_port, none.dest_port), (None, None));
    assert_eq!(none.context_json, r#"{"icmp_type":8,"icmp_code":0}"#);
    let zero = detection(r#","src_port":0,"dest_port":0,"proto":"ICMP","alert":{}"#);
    assert_eq!((zero.src_port, zero.dest_port), (Some(0), Some(0)));
}

#[test]
fn the_last_of_repeated_keys_counts() {
    let d = detection(
        r#","src_port":1,"x":1,"y":2,"src_port":2,"x":3,"alert":{"gid":1,"gid":9},"event_type":"alert""#,
    );
    assert_eq!((d.src_port, d.gid), (Some(2), Some(9)));
    assert_eq!(d.context_json, r#"{"x":3,"y":2}"#);
    let d = detection(r#","src_port":1,"src_port":"x","alert":{}"#);
    assert_eq!(
        (d.src_port, d.context_json.as_str()),
        (None, r#"{"src_port":"x"}"#)
    );
}

#[test]
fn equal_lines_make_equal_bytes() {
    let metadata: Vec<String> = (0..50).map(|n| format!(r#""key{n}":["v"]"#)).collect();
    let members = format!(r#","alert":{{"metadata":{{{}}}}}"#, metadata.join(","));
    let bytes = detection(&members).encode_to_vec();
    for _ in 0..5 {
        assert_eq!(detection(&members).encode_to_vec(), bytes);
    }
}

#[test]
fn other_event_types_are_named() {
    let line = r#"{"event_type":"flow","timestamp":7}"#;
    assert_eq!(
        parse(line, &origin()).unwrap(),
        Record::Other("flow".into())
    );
}

#[test]
fn an_error_says_what_is_wrong_with_the_line() {
    let check = |line: &str, expect: &str| {
        assert_eq!(
            parse(line, &origin()).unwrap_err().to_string(),
            expect,
            "{line}"
        );
    };
    check("nonsense", "not valid JSON at column 2");
    check(r#"{"a":1} x"#, "not valid JSON at column 9");
    check(
        r#"{"event_type":"alert","src_"#,
        "the JSON ends early, after 27 bytes; was the line cut?",
    );
    check("[1]", "not a JSON object");
    check("null", "not a JSON object");
    check(
        r#"{"event_type":null,"alert":[]}"#,
        "event_type is missing or not a string; is this EVE JSON?",
    );
    check(
        "{}",
        "event_type is missing or not a string; is this EVE JSON?",
    );
    check(
        r#"{"event_type":1}"#,
        "event_type is missing or not a string; is this EVE JSON?",
    );
    check(
        r#"{"event_type":"alert"}"#,
        "timestamp is missing or not a string",
    );
    check(
        r#"{"event_type":"alert","timestamp":"noon"}"#,
        "timestamp is not a time such as 2015-03-29T11:01:38.221126-0600, or out of the calendar's range",
    );
    for alert in ["", r#","alert":null"#, r#","alert":[]"#] {
        check(
            &format!(r#"{{"event_type":"alert","timestamp":"{TIMESTAMP}"{alert}}}"#),
            "alert is missing or not an object",
        );
    }
}

#[test]
fn hostile_lines_neither_crash_nor_hang() {
    let deep = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let d = detection(&format!(r#","alert":{{}},"deep":{deep}"#));
    let context: serde_json::Value = serde_json::from_str(&d.context_json).unwrap();
    assert_eq!(
        context["deep"], deep,
        "too deep for the API, so it is a string"
    );
    let d = detection(&format!(
        r#","alert":{{"metadata":{deep}}},"src_ip":{deep},"vlan":{deep}"#
    ));
    assert!(d.metadata.is_empty());
    let many: String = (0..200_000).map(|n| format!(r#","k{n}":0"#)).collect();
    detection(&format!(r#"{many},"alert":{{}}"#));
}

/// Returns, for each record of a line, the alert's flow id, its event type, or the error.
fn read_line(line: impl AsRef<[u8]>) -> Vec<String> {
    records(line.as_ref(), &origin())
        .map(|parsed| match parsed.record {
            Ok(Record::Alert(event)) => format!("{:?}", detection_of(*event).flow_id),
            Ok(Record::Other(event_type)) => event_type,
            Err(error) => error.to_string(),
        })
        .collect()
}

fn one(line: impl AsRef<[u8]>) -> (v1::IdsDetection, Vec<Repair>) {
    let origin = origin();
    let mut records = records(line.as_ref(), &origin);
    let Some(Parsed {
        record: Ok(Record::Alert(event)),
        repairs,
    }) = records.next()
    else {
        panic!("no alert");
    };
    assert!(records.next().is_none());
    (detection_of(*event), repairs)
}

#[test]
fn the_intact_records_of_a_damaged_line_are_read() {
    let alert = format!(r#"{{"timestamp":"{TIMESTAMP}","flow_id":7,"alert":{{}}}}"#);
    assert_eq!(
        read_line(&alert),
        ["Some(7)"],
        "old Suricata has no event_type"
    );
    assert_eq!(
        read_line(format!(r#"{{"timestamp":"2026","src_ip":"{alert}"#)),
        ["not valid JSON at column 33", "Some(7)"]
    );
    let flow = r#"{"event_type":"flow"}"#;
    assert_eq!(
        read_line(format!("{flow}{alert}{}", &alert[..20])),
        [
            "flow",
            "Some(7)",
            "the JSON ends early, after 112 bytes; was the line cut?"
        ]
        .map(|text| text.replace("112", &(flow.len() + alert.len() + 20).to_string()))
    );
    for blank in ["", " ", "\0", "\0\r\0 "] {
        assert!(read_line(blank).is_empty());
    }
}

#[test]
fn an_event_type_that_is_not_a_string_stays_in_the_context() {
    let line = format!(r#"{{"timestamp":"{TIMESTAMP}","event_type":7,"alert":{{}}}}"#);
    assert_eq!(one(line).0.context_json, r#"{"event_type":7}"#);
}

#[test]
fn invalid_characters_are_replaced() {
    let line = |member: &[u8]| {
        let start = format!(r#"{{"timestamp":"{TIMESTAMP}","event_type":"alert","#);
        [start.as_bytes(), member, br#","alert":{"signature":"x"}}"#].concat()
    };
    for (bytes, repaired, count) in [
        (&b"a\xffb\x98"[..], "a\u{fffd}b\u{fffd}", 2),
        // Overlong, and the end of a character.
        (b"\xc0\xaf\xe2\x98", "\u{fffd}\u{fffd}\u{fffd}", 3),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}", 3),
    ] {
        let (d, repairs) = one(line(&[br#""in_iface":""#, bytes, b"\""].concat()));
        assert_eq!(d.in_iface, repaired);
        assert_eq!(repairs, [Repair::Utf8(count)]);
        let (d, _) = one(line(&[br#"""#, bytes, br#"":1"#].concat()));
        assert_eq!(d.context_json, format!(r#"{{"{repaired}":1}}"#));
    }
    for (text, repaired, count) in [
        (r"\ud83d", "\u{fffd}", 1),
        (
            r"/\uDC00\ud83d\ude00\uD83Dx",
            "/\u{fffd}\u{1f600}\u{fffd}x",
            2,
        ),
        (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}", 1),
        (r"\ude00\ud83d", "\u{fffd}\u{fffd}", 2),
        (r"\ud83d\n", "\u{fffd}\n", 1),
    ] {
        let (d, repairs) = one(line(format!(r#""in_iface":"{text}""#).as_bytes()));
        assert_eq!(d.in_iface, repaired);
        assert_eq!(repairs, [Repair::Surrogates(count)]);
        let (d, _) = one(line(format!(r#""http":{{"url":"{text}"}}"#).as_bytes()));
        let context: serde_json::Value = serde_json::from_str(&d.context_json).unwrap();
        assert_eq!(context["http"]["url"], repaired);
    }
    let (d, repairs) = one(line(br#""in_iface":"\\ud83d \ud83d\ude00""#));
    assert_eq!((&*d.in_iface, repairs), ("\\ud83d \u{1f600}", vec![]));
}

#[test]
fn utf_16_is_recognised() {
    let text = format!(r#"{{"timestamp":"{TIMESTAMP}","alert":{{}}}}"#);
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for line in [
        little.clone(),
        big.clone(),
        [&[0xff, 0xfe][..], &little].concat(),
        [&[0xfe, 0xff][..], &big].concat(),
        big[1..].to_vec(),
        [&little[..], &[b'\r', 0]].concat(),
    ] {
        let read = read_line(&line);
        assert!(
            read.len() == 1 && read[0].starts_with("this is UTF-16"),
            "{read:?}"
        );
    }
}
