//! A start with a large backlog, measured. It is asked for by name:
//!
//! ```sh
//! cargo test --release --test it backlog -- --ignored --nocapture
//! ```
//!
//! `SIEM_RELAY_TEST_INTEGRATIONS`, `…_EVENTS` (of each) and `…_PER_PUBLISH` (events of
//! one integration that come together, and so share a chunk) make it another one.

use std::{fs, path::Path, time::Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use siem_relay::sandbox::aws::{Control, RoleSpec};
use tempfile::TempDir;

use crate::harness::{Api, Customer, Load, Process, encode, knob, say, stand_in, within};

const EACH_REQUEST: u64 = 1000;
const AT_ONCE: usize = 64;

struct Shape {
    integrations: u64,
    events: u64,
    per_publish: u64,
}

/// All use one role and one stream, each with an external ID of its own.
fn customer(number: u64) -> Customer {
    Customer {
        organization_id: format!("org-{number}"),
        external_id: format!("external-id-{number}"),
        ..Customer::new("all")
    }
}

fn make_role(aws: &Control) {
    let statement = |action: &str, who: &str| {
        json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", who: if who == "Principal" { json!({ "AWS": "111111111111" }) } else { json!("*") },
            "Action": action,
        }] })
        .to_string()
    };
    let (trust, permissions) = (
        statement("sts:AssumeRole", "Principal"),
        statement("kinesis:*", "Resource"),
    );
    let role = RoleSpec::new(&customer(0).role_arn, trust, permissions);
    aws.put_role(role).unwrap();
}

async fn configure(api: &Api, shape: &Shape) {
    let configured = stream::iter(0..shape.integrations)
        .map(|number| async move { api.try_configure(customer(number).request()).await })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>();
    configured.await.unwrap();
}

/// Requests that hold events of several integrations, the same again and again.
async fn publish(api: &Api, shape: &Shape) {
    let per_integration: Vec<Vec<Bytes>> = (0..shape.integrations)
        .map(|number| {
            let mut load = Load::new(&format!("org-{number}"), 2, number);
            encode(&load.events(shape.per_publish as usize))
        })
        .collect();
    let together = (EACH_REQUEST / shape.per_publish) as usize;
    let requests: Vec<Vec<Bytes>> = per_integration
        .chunks(together)
        .map(|several| several.concat())
        .collect();
    for _ in 0..shape.events / shape.per_publish {
        let published = stream::iter(requests.clone())
            .map(|events| async move { api.try_publish(events).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<_>>();
        published.await.unwrap();
    }
}

/// The most memory that the process ever had in use, in MiB.
fn peak_mebibytes(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn database_mebibytes(folder: &Path) -> u64 {
    let file = fs::metadata(folder.join("siem-relay.sqlite")).unwrap();
    file.len() >> 20
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement that takes minutes"]
async fn a_start_with_a_large_backlog_serves_and_delivers_at_once() {
    let shape = Shape {
        integrations: knob("INTEGRATIONS", 10_000),
        events: knob("EVENTS", 500),
        per_publish: knob("PER_PUBLISH", 10),
    };
    let folder = TempDir::new().unwrap();
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    customer(0).make_stream(&aws, 16);
    let patient = ["--retry-first-ms", "3600000", "--retry-most-ms", "3600000"];
    let process = Process::start(folder.path(), &stand_in.url(), &patient).await;
    let begun = Instant::now();
    configure(&process.api, &shape).await;
    say(&format!("configured in {:?}", begun.elapsed()));
    publish(&process.api, &shape).await;
    say(&format!(
        "published {} events by {:?}; peak {} MiB",
        shape.integrations * shape.events,
        begun.elapsed(),
        peak_mebibytes(&process),
    ));
    process.kill().await;
    say(&format!(
        "database {} MiB",
        database_mebibytes(folder.path())
    ));

    make_role(&aws);
    let begun = Instant::now();
    let process = Process::start(folder.path(), &stand_in.url(), &[]).await;
    say(&format!("listens after {:?}", begun.elapsed()));
    process.api.get("org-7").await;
    say(&format!("answers after {:?}", begun.elapsed()));
    let mut records = aws.subscribe(&customer(0).stream_arn).unwrap();
    within("a record", records.next()).await.unwrap();
    say(&format!("first record after {:?}", begun.elapsed()));
    for part in [100, 10, 2, 1] {
        let wanted = shape.integrations * shape.events / part;
        let stored = || aws.stream(&customer(0).stream_arn).unwrap().accepted;
        while stored() < wanted {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        say(&format!(
            "1/{part} of all records after {:?}; peak {} MiB",
            begun.elapsed(),
            peak_mebibytes(&process)
        ));
    }
}
