//! `siem-relay publish --eve` with damaged and unusual files.

use serde_json::{Value, json};

use super::{DEVICE, NETWORK};
use crate::harness::{
    Customer, DeliveredEvent, TestEnv, ToolOutput, read_events, run_with_input, tool,
};

/// An alert with further members.
fn alert(number: u32, members: &str) -> String {
    format!(
        r#"{{"timestamp":"2026-02-03T04:05:{:02}.123456+0000","flow_id":{number},"event_type":"alert","proto":"TCP","alert":{{"signature_id":9000001,"severity":2}}{members}}}"#,
        number % 60
    )
}

/// Publishes EVE files into a service with one customer.
struct EvePublisher {
    env: TestEnv,
    customer: Customer,
    accepted: usize,
}

impl EvePublisher {
    async fn new() -> Self {
        let env = TestEnv::start().await;
        let (customer, _) = env.customer("acme").await;
        Self {
            env,
            customer,
            accepted: 0,
        }
    }

    async fn publish(&self, input: impl AsRef<[u8]>) -> ToolOutput {
        let mut command = tool(&["publish", "--organization", "acme", "--network", NETWORK]);
        command.args(["--device", DEVICE, "--eve", "-", "--address"]);
        command.arg(self.env.relay.address.to_string());
        run_with_input(command, input.as_ref()).await
    }

    /// Publishes a file with this number of alerts; returns their events in the stream.
    async fn deliver(
        &mut self,
        input: impl AsRef<[u8]>,
        alerts: usize,
    ) -> (ToolOutput, Vec<Value>) {
        let ended = self.publish(input).await;
        let accepted = format!("accepted      {alerts}\n");
        assert!(ended.stdout.contains(&accepted), "{ended:?}");
        self.accepted += alerts;
        let stream_arn = &self.customer.stream_arn;
        let mut arrived = read_events(&self.env.aws, stream_arn, self.accepted).await;
        arrived.sort_by_key(|event| event.sequence);
        arrived.dedup_by_key(|event| event.sequence);
        let new = arrived.split_off(self.accepted - alerts);
        (ended, new.into_iter().map(json_of).collect())
    }
}

fn json_of(arrived: DeliveredEvent) -> Value {
    // serde_json keeps the last of duplicate keys, which would hide them.
    let text = std::str::from_utf8(&arrived.record.data).unwrap();
    assert!(!repeats_a_key(text), "{text}");
    arrived.json
}

/// Whether an object has a duplicate key, which makes its canonical text shorter.
fn repeats_a_key(text: &str) -> bool {
    let keys = |text: &str| text.matches("\":").count();
    let value: Value = serde_json::from_str(text).unwrap();
    keys(&value.to_string()) != keys(text)
}

fn flows(records: &[Value]) -> Vec<u64> {
    let flow = |record: &Value| record["data"]["flow_id"].as_u64().unwrap();
    records.iter().map(flow).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn intact_records_of_a_damaged_file_are_delivered() {
    let mut publisher = EvePublisher::new().await;
    let (one, two, three) = (alert(1, ""), alert(2, ""), alert(3, ""));
    let cut = &alert(9, r#","http":{"url":"/a"}"#)[..150];
    // Further records are on the same line as a cut record, and as a complete one.
    let input = format!("{one}\n{cut}{two}\n{three}{one}\n{cut}\n{two}x\n");
    let (ended, records) = publisher.deliver(input, 5).await;
    assert_eq!(flows(&records), [1, 2, 3, 1, 2]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("broken        3\n"), "{ended:?}");
    assert!(ended.stderr.contains("line 2: broken"), "{ended:?}");
    // NULs before, inside and after a line.
    let nuls = "\0".repeat(20 << 20);
    let input = format!("{one}\n{nuls}{two}\n{cut}{nuls}{three}\n{nuls}");
    let (ended, records) = publisher.deliver(input, 3).await;
    assert_eq!(flows(&records), [1, 2, 3]);
    assert!(ended.stdout.contains("broken        1\n"), "{ended:?}");
    let words = "line 2: 20971520 NULs skipped";
    assert!(ended.stderr.contains(words), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_alert_object_is_not_published() {
    let mut publisher = EvePublisher::new().await;
    let inner = alert(7, "");
    let escaped = inner.replace('"', "\\\"");
    let members = format!(r#","related":{inner},"payload_printable":"{escaped}","n":1"#);
    let outer = alert(1, &members);
    let input = format!("{outer}\n{}\n{}\n", &outer[..outer.len() - 4], &outer[9..]);
    let (ended, records) = publisher.deliver(input, 1).await;
    assert_eq!(flows(&records), [1]);
    assert!(ended.stdout.contains("broken        2\n"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_keys_and_time_fractions_are_normalized() {
    let mut publisher = EvePublisher::new().await;
    let members = r#","proto":"UDP","tls":{"s":1,"s":2,"c":[{"a":1,"\u0061":{"b":1,"b":3}}]},"tls":{"s":4,"s":5,"c":[{"a":1,"\u0061":{"b":1,"b":3}}]}"#;
    let whole_second = alert(2, "").replace(".123456+0000", "Z");
    let nanoseconds = alert(3, "").replace(".123456+0000", ".123456789+01:00");
    let input = format!("{}\n{whole_second}\n{nanoseconds}\n", alert(1, members));
    let (ended, records) = publisher.deliver(input, 3).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let data = &records[0]["data"];
    assert_eq!(data["proto"], "UDP");
    let tls = json!({"s": 5, "c": [{"a": {"b": 3}}]});
    assert_eq!(data["context"]["tls"], tls);
    let times: Vec<&str> = records
        .iter()
        .map(|record| record["time"].as_str().unwrap())
        .collect();
    let expected = [
        "2026-02-03T04:05:01.123456Z",
        "2026-02-03T04:05:02.000000Z",
        "2026-02-03T03:05:03.123456Z",
    ];
    assert_eq!(times, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_text_is_replaced_and_counted() {
    let mut publisher = EvePublisher::new().await;
    let mut input = alert(1, r#","http":{"url":"/"#).into_bytes();
    input.truncate(input.len() - 1);
    input.extend_from_slice(b"\xff\x98\"}}\n");
    let lone = r#","in_iface":"eth\ud83d","http":{"url":"\udc00 \ud83d\ude00"}"#;
    input.extend_from_slice(format!("{}\n{}\n", alert(2, lone), alert(3, "")).as_bytes());
    let (ended, records) = publisher.deliver(input, 3).await;
    assert_eq!(
        records[0]["data"]["context"]["http"]["url"],
        "/\u{fffd}\u{fffd}"
    );
    assert_eq!(records[1]["data"]["in_iface"], "eth\u{fffd}");
    let url = "\u{fffd} \u{1f600}";
    assert_eq!(records[1]["data"]["context"]["http"]["url"], url);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("repaired      2 "), "{ended:?}");
    assert!(
        ended.stderr.contains("line 1: 2 sequences are not UTF-8"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("line 2: 2 escapes of a lone"),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_does_not_fit_its_field_is_kept_in_the_context() {
    let mut publisher = EvePublisher::new().await;
    let deep = format!("{}1{}", "[".repeat(90), "]".repeat(90));
    let members = [
        ("src_ip", r#""fe80::2%eth1""#),
        ("dest_ip", r#""192.0.2.0/24""#),
        ("src_ip", r#""x.x.x.x""#),
        ("dest_port", "70001"),
        ("src_port", "-1"),
        ("vlan", "[4097]"),
        ("vlan", "[1,2,3,4,5,6,7,8,9,10]"),
        ("flow_ids", &deep),
    ];
    let lines = members.map(|(key, value)| alert(5, &format!(r#","{key}":{value}"#)) + "\n");
    let (ended, records) = publisher.deliver(lines.concat(), members.len()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for ((key, value), record) in members.iter().zip(&records) {
        let data = &record["data"];
        assert!(data.get(key).is_none(), "{data}");
        let expected = match value.len() > 100 {
            true => json!(value),
            false => serde_json::from_str(value).unwrap(),
        };
        assert_eq!(data["context"][key], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_and_old_formats_are_read() {
    let mut publisher = EvePublisher::new().await;
    let old = r#"{"timestamp":"2026-02-03T04:05:06.123456+0000","flow_id":3,"alert":{"gid":1}}"#;
    let syslog = "<13>Feb  3 04:05:01 sensor suricata[123]: @cee: ";
    let input = format!(
        "\u{feff}@cee: {}\r\n{syslog}{}\r\n{old}\r\n",
        alert(1, ""),
        alert(2, "")
    );
    let (ended, records) = publisher.deliver(input, 3).await;
    assert_eq!(flows(&records), [1, 2, 3]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended.stderr.matches("the text before the record").count(),
        1
    );
    assert!(ended.stderr.contains("@cee: "), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_1_if_anything_was_unreadable() {
    let publisher = EvePublisher::new().await;
    let flow = r#"{"timestamp":"2026-02-03T04:05:06Z","event_type":"flow"}"#;
    let none = "the input contains no alert\n";
    let unreadable = "no line of the input could be read";
    for (input, code, words) in [
        ("", 0, none),
        ("\n \r\n", 0, none),
        (&format!("{flow}\n"), 0, none),
        ("nonsense\n", 1, unreadable),
        ("@cee: \n[1]\n", 1, unreadable),
        ("\0\0\0\n", 1, unreadable),
        (&format!("{flow}\nnonsense\n"), 1, "broken        1\n"),
        (&alert(1, r#","x":"#), 1, unreadable),
    ] {
        let ended = publisher.publish(input).await;
        assert_eq!(ended.code, Some(code), "{input:?}: {ended:?}");
        assert!(ended.stdout.contains(words), "{input:?}: {ended:?}");
    }
    let text = alert(1, "") + "\r\n";
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for input in [
        [&[0xff, 0xfe][..], &little].concat(),
        [&[0xfe, 0xff][..], &big].concat(),
        little,
        big,
    ] {
        let ended = publisher.publish(input).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended.stderr.contains("line 1: broken: this is UTF-16"),
            "{ended:?}"
        );
        assert!(!ended.stderr.contains("NULs"), "{ended:?}");
    }
}
