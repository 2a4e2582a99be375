//! `siem-relay verify`, as a customer's auditor runs it.

use std::{fs, path::Path};

use aws_stand_in::{LongTermCredentials, Operation, Record};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    Customer, Load, TestEnv, ToolOutput, failing_records, fault, reader_credentials, run,
    run_with_input, tool, with_aws,
};

const EVENTS: u64 = 400;

/// A stream written by one integration while single records failed at random.
struct Stream {
    env: TestEnv,
    customer: Customer,
    integration_id: String,
    records: Vec<Record>,
}

impl Stream {
    async fn new() -> Self {
        let env = TestEnv::start().await;
        let customer = Customer::new("acme");
        customer.make_role(&env.aws);
        customer.make_stream(&env.aws, 3);
        let integration = env.api.configure(&customer).await;
        assert!(env.api.send_test("acme").await.delivered);
        let failing = fault(Operation::PutRecords, None, failing_records(0.2, 5));
        env.aws.add_fault(failing).unwrap();
        let mut load = Load::new("acme", 12, 77);
        for _ in 0..4 {
            env.api.publish(&load.events(EVENTS as usize / 4)).await;
        }
        env.api.until_delivered("acme").await;
        env.aws.clear_faults();
        Self {
            records: env.aws.records(&customer.stream_arn, 0, 10_000).unwrap(),
            integration_id: integration.integration_id,
            customer,
            env,
        }
    }

    fn lines(&self) -> Vec<String> {
        let text = |record: &Record| String::from_utf8(record.data.to_vec()).unwrap();
        self.records.iter().map(text).collect()
    }

    /// The lines without the events of some sequences.
    fn lines_without(&self, sequences: &[u64]) -> String {
        let lost = |line: &String| sequences.iter().any(|each| line.contains(&sequence(*each)));
        self.lines()
            .into_iter()
            .filter(|line| !lost(line))
            .collect()
    }

    async fn verify_as(&self, reader: &LongTermCredentials, arguments: &[&str]) -> ToolOutput {
        let mut all = vec![
            "verify",
            "--output",
            "json",
            "--stream",
            &self.customer.stream_arn,
        ];
        all.extend(arguments);
        run(with_aws(tool(&all), &self.env.aws_url(), reader)).await
    }
}

fn sequence(number: u64) -> String {
    format!("\"sequence\":\"{number:020}\"")
}

async fn verify(input: &str, arguments: &[&str]) -> ToolOutput {
    let mut all = vec!["verify", "-", "--output", "json"];
    all.extend(arguments);
    run_with_input(tool(&all), input.as_bytes()).await
}

/// The only integration of a report.
fn integration(ended: &ToolOutput) -> Value {
    let report = ended.json();
    assert_eq!(
        report["integrations"].as_array().unwrap().len(),
        1,
        "{report}"
    );
    report["integrations"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivered_stream_is_complete() {
    let stream = Stream::new().await;
    let ended = stream
        .verify_as(&reader_credentials(&stream.env.aws), &[])
        .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let found = integration(&ended);
    assert_eq!(found["integration_id"], stream.integration_id.as_str());
    assert_eq!(found["first_sequence"], 1);
    assert_eq!(found["last_sequence"], EVENTS);
    assert_eq!(
        (&found["events"], &found["tests"]),
        (&json!(EVENTS), &json!(1))
    );
    assert_eq!(found["duplicates"], 0);
    assert_eq!(found["records"], stream.records.len());
    // Without waiting, a sequence that is yet to be delivered is a hole.
    let more = stream
        .verify_as(
            &reader_credentials(&stream.env.aws),
            &["--last-sequence", "401", "--wait", "0"],
        )
        .await;
    assert_eq!(more.code, Some(1));
    assert_eq!(
        integration(&more)["holes"]["first"],
        json!([{"first": 401, "last": 401}])
    );
    // The default output is text.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("captured");
    fs::write(&path, stream.lines().concat()).unwrap();
    let text = run(tool(&["verify", path.to_str().unwrap()])).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(
        text.stdout.contains("sequences     1 to 400\n"),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout.ends_with("verdict       complete\n"),
        "{}",
        text.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_each_kind_of_damage() {
    let stream = Stream::new().await;
    let whole = stream.lines().concat();
    assert_eq!(verify(&whole, &[]).await.code, Some(0));

    let holes = verify(&stream.lines_without(&[1, 17, 18, 19, 200]), &[]).await;
    assert_eq!(holes.code, Some(1));
    let expected = json!({"sequences": 5, "count": 3, "first": [
        {"first": 1, "last": 1}, {"first": 17, "last": 19}, {"first": 200, "last": 200},
    ]});
    assert_eq!(integration(&holes)["holes"], expected);
    let rest = stream.lines_without(&[1, 2, 3, 400]);
    assert_eq!(verify(&rest, &[]).await.code, Some(1));
    assert_eq!(verify(&rest, &["--from-first-read"]).await.code, Some(0));
    assert_eq!(
        verify(&rest, &["--first-sequence", "4"]).await.code,
        Some(0)
    );
    let counted = ["--from-first-read", "--last-sequence", "400"];
    assert_eq!(verify(&rest, &counted).await.code, Some(1));

    let twice = verify(&whole.repeat(2), &[]).await;
    assert_eq!(twice.code, Some(0));
    assert_eq!(integration(&twice)["duplicates"], EVENTS);

    let line = stream
        .lines()
        .into_iter()
        .find(|line| line.contains(&sequence(42)))
        .unwrap();
    let renumbered = line.replace(&sequence(42), &sequence(43));
    let conflict = verify(&format!("{whole}{renumbered}"), &[]).await;
    assert_eq!(conflict.code, Some(1));
    assert_eq!(
        integration(&conflict)["id_conflicts"],
        json!({"count": 1, "first": [43]})
    );

    let foreign = verify(
        &format!("hello\n{whole}{{\"another\":\"producer\"}}\n"),
        &[],
    )
    .await;
    assert_eq!(foreign.code, Some(0), "a stream may be shared");
    assert_eq!(foreign.json()["foreign"]["count"], 2);
    assert_eq!(
        foreign.json()["foreign"]["first"][0]["place"],
        "standard input:1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn disorder_fails_only_with_strict_order() {
    let stream = Stream::new().await;
    let mut lines: Vec<String> = stream
        .lines_without(&[])
        .lines()
        .map(|line| format!("{line}\n"))
        .collect();
    lines.sort_by_key(|line| {
        line.split("\"sequence\":\"")
            .nth(1)
            .map(|rest| rest[..20].to_owned())
    });
    let sorted = verify(&lines.concat(), &["--strict-order"]).await;
    assert_eq!(sorted.code, Some(0), "{sorted:?}");
    let moved = lines
        .iter()
        .position(|line| line.contains(&sequence(5)))
        .unwrap();
    let moved = lines.remove(moved);
    lines.push(moved);
    let late = verify(&lines.concat(), &[]).await;
    assert_eq!(late.code, Some(0));
    assert_eq!(integration(&late)["out_of_order"]["count"], 1);
    assert_eq!(
        integration(&late)["out_of_order"]["first"][0]["sequence"],
        5
    );
    assert_eq!(
        verify(&lines.concat(), &["--strict-order"]).await.code,
        Some(1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_the_aws_cli_is_read() {
    let stream = Stream::new().await;
    let page = |records: &[Record]| {
        let records: Vec<Value> = records
            .iter()
            .map(|record| {
                json!({
                    "SequenceNumber": record.sequence_number,
                    "ApproximateArrivalTimestamp": "2026-01-02T03:04:05.678000+00:00",
                    "Data": STANDARD.encode(&record.data),
                    "PartitionKey": record.partition_key,
                })
            })
            .collect();
        let page = json!({"Records": records, "NextShardIterator": "AAA", "MillisBehindLatest": 0});
        serde_json::to_string_pretty(&page).unwrap() + "\n"
    };
    let pages: String = stream.records.chunks(90).map(page).collect();
    let ended = verify(&pages, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(integration(&ended)["events"], EVENTS);
    assert_eq!(ended.json()["foreign"]["count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_input_exits_with_2() {
    let stream = Stream::new().await;
    let mut wrong = reader_credentials(&stream.env.aws);
    wrong.secret_access_key = "another".to_owned();
    let refused = stream.verify_as(&wrong, &[]).await;
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("ListShards on"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("InvalidSignatureException"),
        "{}",
        refused.stderr
    );
    assert_eq!(verify("", &[]).await.code, Some(2));
    let gzip = run_with_input(tool(&["verify", "-"]), &[0x1f, 0x8b, 8, 0]).await;
    assert_eq!(gzip.code, Some(2));
    assert!(gzip.stderr.contains("gunzip"), "{}", gzip.stderr);
    let absent = Path::new("/nowhere/captured");
    let absent = run(tool(&["verify", absent.to_str().unwrap()])).await;
    assert_eq!(absent.code, Some(2));
    assert!(
        absent.stderr.contains("/nowhere/captured"),
        "{}",
        absent.stderr
    );
    for arguments in [
        &["verify"][..],
        &["verify", "-", "--stream", "x"],
        &["verify", "-", "--wait", "1"],
    ] {
        assert_eq!(run(tool(arguments)).await.code, Some(64), "{arguments:?}");
    }
}
