//! Whole records: every member is preserved, in a field or in the context.

use std::{fs, io, io::Write};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// Rebuilds the record from the detection, to compare it with the line.
fn reassemble(d: &v1::IdsDetection) -> Map<String, Value> {
    let mut record: Map<String, Value> = match d.context_json.as_str() {
        "" => Map::new(),
        text => serde_json::from_str(text).unwrap(),
    };
    let mut alert: Map<String, Value> = match record.remove("alert") {
        Some(Value::Object(alert)) => alert,
        None => Map::new(),
        Some(other) => panic!("alert in the context is {other}"),
    };
    let mut put = |key: &str, value: Value| {
        if value != json!(null) && value != json!("") && value != json!([]) {
            assert_eq!(record.insert(key.into(), value), None, "{key} is repeated");
        }
    };
    put("src_ip", json!(d.src_ip));
    put("src_port", json!(d.src_port));
    put("dest_ip", json!(d.dest_ip));
    put("dest_port", json!(d.dest_port));
    put("proto", json!(d.proto));
    put("app_proto", json!(d.app_proto));
    put("flow_id", json!(d.flow_id));
    put("community_id", json!(d.community_id));
    put("vlan", json!(d.vlan));
    put("in_iface", json!(d.in_iface));
    put("direction", json!(d.direction));
    let mut put = |key: &str, value: Value| {
        if value != json!(null) {
            assert_eq!(alert.insert(key.into(), value), None, "{key} is repeated");
        }
    };
    put(
        "action",
        Some(&d.action)
            .filter(|text| !text.is_empty())
            .map_or(Value::Null, |text| json!(text)),
    );
    put("gid", json!(d.gid));
    put("signature_id", json!(d.signature_id));
    put("rev", json!(d.rev));
    put("signature", json!(d.signature));
    put("category", json!(d.category));
    put("severity", json!(d.severity));
    if !d.metadata.is_empty() {
        let metadata = alert.entry("metadata").or_insert_with(|| json!({}));
        for (key, values) in &d.metadata {
            let previous = metadata
                .as_object_mut()
                .unwrap()
                .insert(key.clone(), json!(values.values));
            assert_eq!(previous, None, "{key} is repeated");
        }
    }
    record.insert("alert".into(), Value::Object(alert));
    record
}

/// Generates any JSON value, without numbers that lose precision as `f64`.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_members(names: &'static [&'static str]) -> impl Strategy<Value = Map<String, Value>> {
    let key = prop_oneof![
        prop::sample::select(names).prop_map(str::to_owned),
        "\\PC{1,6}".prop_map(|name| format!("x{name}")),
    ];
    prop::collection::btree_map(key, any_value(), 0..12).prop_map(|map| map.into_iter().collect())
}

const TOP: &[&str] = &[
    "src_ip",
    "src_port",
    "dest_ip",
    "dest_port",
    "proto",
    "app_proto",
    "flow_id",
    "community_id",
    "vlan",
    "in_iface",
    "direction",
    "metadata",
    "http",
    "gid",
];
const ALERT: &[&str] = &[
    "action",
    "gid",
    "signature_id",
    "rev",
    "signature",
    "category",
    "severity",
    "tx_id",
];

proptest! {
    #[test]
    fn nothing_of_a_record_is_lost(top in any_members(TOP), alert in any_members(ALERT)) {
        let mut expect = top;
        if let Some(Value::Number(id)) = expect.get("vlan").cloned()
            && id.as_u64().is_some_and(|id| u32::try_from(id).is_ok())
        {
            expect.insert("vlan".into(), json!([id]));
        }
        expect.insert("alert".into(), Value::Object(alert));
        let mut record = expect.clone();
        record.insert("timestamp".into(), json!(TIMESTAMP));
        record.insert("event_type".into(), json!("alert"));
        let event = event(&Value::Object(record).to_string());
        prop_assert_eq!(reassemble(&detection_of(event)), expect);
    }

    #[test]
    fn any_text_is_an_alert_another_type_or_an_error(text in "\\PC{0,64}") {
        let _ = parse(&text, &origin());
    }

    #[test]
    fn any_cut_of_a_line_is_an_error(at in 1usize..95) {
        let line = r#"{"timestamp":"2026-03-29T11:01:38Z","event_type":"alert","alert":{"signature":"a","gid":1},"z":1}"#;
        prop_assert!(parse(&line[..at], &origin()).is_err());
    }
}

/// Real captures cannot be distributed, so the path of one is given in a variable.
#[test]
fn a_real_file_loses_nothing() {
    const VARIABLE: &str = "SIEM_RELAY_TEST_EVE";
    let Some(path) = std::env::var_os(VARIABLE) else {
        // The test harness hides the output of `eprintln!` in a test that passes.
        let mut stderr = io::stderr();
        writeln!(stderr, "\nSKIPPED a_real_file_loses_nothing: set {VARIABLE}=/path/to/eve.json to run it on a real Suricata EVE file").unwrap();
        return;
    };
    let text = fs::read_to_string(path).unwrap();
    let mut alerts = 0;
    for (number, line) in text.lines().enumerate() {
        let expect: Map<String, Value> = serde_json::from_str(line).unwrap();
        if expect["event_type"] != "alert" {
            continue;
        }
        alerts += 1;
        let mut got = reassemble(&detection_of(event(line)));
        for key in ["timestamp", "event_type"] {
            got.insert(key.into(), expect[key].clone());
        }
        assert_eq!(got, expect, "line {}", number + 1);
    }
    assert!(alerts > 0, "the file has no alert");
}
