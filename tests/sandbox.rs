//! `siem-relay sandbox`, as its users run it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "an unexpected value fails the test, and a skipped test says so"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const NETWORK: &str = "4e740000-0000-4000-8000-00000000000a";
const DEVICE: &str = "5e250000-0000-4000-8000-00000000000b";

/// The sandbox with its own temporary directory.
fn sandbox(arguments: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-relay"));
    command
        .arg("sandbox")
        .args(arguments)
        .env("TMPDIR", directory)
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let output = sandbox(arguments, directory.path()).output().unwrap();
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 0, "the temporary directory is not empty");
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Lines of standard output, which are CloudEvents only.
fn events(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Checks every attribute; returns the sequence.
fn check_event(event: &Value) -> u64 {
    let text = |name: &str| {
        event[name]
            .as_str()
            .unwrap_or_else(|| panic!("{name}: {event}"))
    };
    let uuid = |name: &str| {
        uuid::Uuid::parse_str(text(name)).unwrap_or_else(|_| panic!("{name}: {event}"));
    };
    assert_eq!(text("specversion"), "1.0");
    assert_eq!(text("source"), "https://meter.com");
    assert_eq!(text("type"), "com.meter.ids.detection");
    assert_eq!(text("datacontenttype"), "application/json");
    assert!(text("time").ends_with('Z'), "{event}");
    text("time").parse::<jiff::Timestamp>().unwrap();
    for name in ["id", "subject", "partitionkey", "integrationid"] {
        uuid(name);
    }
    assert_eq!(event["data"]["type"], "TYPE_DETECTION");
    assert!(event["data"]["src_ip"].is_string(), "{event}");
    assert_eq!(text("sequence").len(), 20);
    text("sequence").parse().unwrap()
}

/// Checks that the sequences are 1 to `count`, each once.
fn check_complete(events: &[Value], count: usize) {
    let sequences: BTreeSet<u64> = events.iter().map(check_event).collect();
    assert_eq!(events.len(), count);
    assert_eq!(sequences, (1..=count as u64).collect());
}

#[test]
fn two_hundred_events_arrive() {
    let output = run(&["--events", "200"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let events = events(&output);
    check_complete(&events, 200);
    let distinct = |name: &str| {
        let values = events.iter().map(|event| event[name].to_string());
        values.collect::<BTreeSet<_>>().len()
    };
    assert_eq!(distinct("id"), 200);
    assert_eq!(distinct("integrationid"), 1);
    assert!(distinct("partitionkey") > 1);
    let log = stderr(&output);
    for part in ["ACTIVE", "delivered 200", "pending 0"] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[test]
fn a_secure_sandbox_delivers_and_prints_commands_with_credentials() {
    let output = run(&["--secure", "--events", "200"]);
    assert!(output.status.success(), "{}", stderr(&output));
    check_complete(&events(&output), 200);

    let directory = tempfile::tempdir().unwrap();
    let mut child = sandbox(&["--secure", "--port", "0"], directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(check_event(&serde_json::from_str(&line).unwrap()), 1);
    drop(out);
    let output = child.wait_with_output().unwrap();
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("https://127.0.0.1:"), "{log}");
    assert!(!log.contains("-plaintext"), "{log}");
    let command = log.lines().find(|line| line.starts_with("grpcurl "));
    let command = command.unwrap();
    for part in [
        " -cacert ",
        "/ca.pem ",
        "-H \"authorization: Bearer $(cat ",
        "/admin.token)\"",
    ] {
        assert!(command.contains(part), "{part}: {command}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Alerts as in real files, and the lines of a file with them and a record of another type.
fn eve_lines() -> (Vec<Value>, Vec<String>) {
    let alert = |seconds: u32, extra: Value| {
        let mut line = json!({
            "timestamp": format!("2026-01-02T03:04:{seconds:02}.123456+0100"),
            "event_type": "alert",
            "flow_id": u64::MAX - 1,
            "alert": {"action": "allowed", "gid": 1, "signature_id": 1_000_000 + seconds, "rev": 3,
                      "signature": "Détection d’exemple 検知", "category": "Misc activity", "severity": 3},
        });
        line.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        line
    };
    let alerts = vec![
        alert(
            1,
            json!({"src_ip": "192.0.2.1", "src_port": 5, "dest_ip": "198.51.100.1", "dest_port": 80,
                        "proto": "TCP", "app_proto": "http", "vlan": [10, 20],
                        "http": {"hostname": "www.example.com", "length": 12}}),
        ),
        alert(
            2,
            json!({"src_ip": "2001:db8::1", "src_port": 6, "dest_ip": "2001:db8::2", "dest_port": 53, "proto": "UDP"}),
        ),
        alert(
            3,
            json!({"src_ip": "192.0.2.3", "dest_ip": "203.0.113.3", "proto": "ICMP", "icmp_type": 8, "icmp_code": 0}),
        ),
        alert(
            4,
            json!({"src_ip": "2001:db8::4", "dest_ip": "2001:db8::5", "proto": "IPv6-ICMP", "icmp_type": 134}),
        ),
    ];
    let mut lines: Vec<String> = alerts.iter().map(Value::to_string).collect();
    // A duplicate is another event with the same id.
    lines.push(lines[0].clone());
    lines.insert(2, json!({"event_type": "flow", "flow_id": 7}).to_string());
    (alerts, lines)
}

fn run_eve(lines: &[String]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("eve.json");
    fs::write(&path, lines.join("\n")).unwrap();
    let path = path.to_str().unwrap();
    run(&[
        "--eve",
        path,
        "--organization",
        "other",
        "--network",
        NETWORK,
        "--device",
        DEVICE,
    ])
}

#[test]
fn an_eve_file_arrives_complete_and_in_order() {
    let (alerts, lines) = eve_lines();
    let output = run_eve(&lines);
    let log = stderr(&output);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("skipped       1 (flow 1)"), "{log}");
    let mut events = events(&output);
    check_complete(&events, 5);
    events.sort_by_key(check_event);
    assert_eq!(events[0]["id"], events[4]["id"]);
    for (event, line) in events.iter().zip(&alerts) {
        assert_eq!(event["subject"], NETWORK);
        assert_eq!(event["partitionkey"], DEVICE);
        let time: jiff::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
        let observed: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
        assert_eq!(time, observed);
        let data = &event["data"];
        for name in [
            "src_ip",
            "src_port",
            "dest_ip",
            "dest_port",
            "proto",
            "app_proto",
            "flow_id",
            "vlan",
        ] {
            assert_eq!(data[name], line[name], "{name}");
        }
        for (name, value) in line["alert"].as_object().unwrap() {
            assert_eq!(&data[name], value, "{name}");
        }
        for name in ["icmp_type", "icmp_code", "http"] {
            assert_eq!(data["context"][name], line[name], "{name}");
        }
    }
}

#[test]
fn a_broken_line_is_reported_and_the_rest_arrives() {
    let (_, mut lines) = eve_lines();
    lines.insert(1, r#"{"event_type":"alert","#.to_owned());
    let output = run_eve(&lines);
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("line 2: broken"), "{log}");
    assert!(log.contains("1 lines are broken"), "{log}");
    check_complete(&events(&output), 5);
}

#[test]
fn a_real_file_arrives() {
    let Some(path) = env::var_os("SIEM_RELAY_TEST_EVE") else {
        eprintln!("SKIPPED: set SIEM_RELAY_TEST_EVE to a Suricata EVE file");
        return;
    };
    let text = fs::read_to_string(&path).unwrap();
    let alerts: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["event_type"] == "alert")
        .collect();
    let output = run(&["--eve", path.to_str().unwrap(), "--organization", "other"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut events = events(&output);
    check_complete(&events, alerts.len());
    events.sort_by_key(check_event);
    for (event, alert) in events.iter().zip(&alerts) {
        assert_eq!(
            event["data"]["signature_id"],
            alert["alert"]["signature_id"]
        );
        assert_eq!(event["data"]["flow_id"], alert["flow_id"]);
    }
}

#[test]
fn errors_have_a_reason_and_an_exit_code() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, code, reason) in [
        (
            &["--port", &port, "--events", "5"][..],
            1,
            "choose another with --port",
        ),
        (
            &["--eve", "/there/is/none"],
            1,
            "cannot open /there/is/none",
        ),
        (&["--organization", "a b"], 64, "--organization"),
        (&["--events", "5", "--eve", "x"], 64, "cannot be used with"),
    ] {
        let output = run(arguments);
        let log = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {log}");
        assert!(log.contains(reason), "{arguments:?}: {log}");
        assert_eq!(events(&output).len(), 0);
    }
}

/// A wrong external ID is configured during a run, which must end by itself and report the status.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_run_ends_with_the_status() {
    use siem_client::v1::{
        ConfigureRequest, siem_integration_service_client::SiemIntegrationServiceClient,
    };
    let directory = tempfile::tempdir().unwrap();
    let mut child = sandbox(
        &["--events", "100000", "--port", "0", "--timeout", "1"],
        directory.path(),
    )
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = log.by_ref().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("siem-relay "));
    let line = line.unwrap();
    let address = line.split_whitespace().next_back().unwrap();
    let request = ConfigureRequest {
        organization_id: "acme".into(),
        kinesis_stream_arn: "arn:aws:kinesis:us-east-1:222222222222:stream/detections".into(),
        role_arn: "arn:aws:iam::222222222222:role/siem-delivery".into(),
        external_id: "not-the-external-id".into(),
        ..ConfigureRequest::default()
    };
    SiemIntegrationServiceClient::new(siem_client::channel(address).unwrap())
        .configure(request)
        .await
        .unwrap();
    let rest: Vec<String> = log.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:#?}");
    let reason = rest.last().unwrap();
    assert!(reason.contains("of 100000 events arrived"), "{reason}");
    assert!(
        reason.contains("UNAUTHORIZED (ASSUME_ROLE_DENIED)"),
        "{reason}"
    );
}

#[test]
fn a_closed_pipe_ends_the_sandbox_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = sandbox(&["--port", "0"], directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(check_event(&serde_json::from_str(&line).unwrap()), 1);
    drop(out);
    let output = child.wait_with_output().unwrap();
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("SiemIntegrationService/SendTest"), "{log}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_stand_in_alone_prints_the_variables_to_export() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = sandbox(&["--aws-only", "--aws-port", "0"], directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let exports: BTreeMap<String, String> = out
        .lines()
        .take(5)
        .map(|line| {
            let line = line.unwrap();
            let (name, value) = line
                .strip_prefix("export ")
                .unwrap()
                .split_once('=')
                .unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect();
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "AWS_ENDPOINT_URL_STS",
    ] {
        assert!(exports.contains_key(name), "{name}: {exports:?}");
    }
    let address = exports["AWS_ENDPOINT_URL_KINESIS"]
        .strip_prefix("http://")
        .unwrap();
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    let request =
        format!("GET /_control/health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let answer = std::io::read_to_string(connection).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let terminated = Command::new("kill").arg(child.id().to_string()).status();
    assert!(terminated.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
