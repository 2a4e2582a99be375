//! Starts with a backlog: a small one in tests, a large one as a measurement:
//!
//! ```sh
//! SIEM_RELAY_TEST_INTEGRATIONS=10000 SIEM_RELAY_TEST_EVENTS=500 \
//!     cargo test --release --test it backlog -- --nocapture
//! ```
//!
//! `…_EVENTS` is the number of events of each integration, `…_PER_PUBLISH` the number of them in a
//! request, which share a chunk. `…_FOLDER` names a data directory that is kept, and used again if it
//! has a database. `…_DRAIN_PERCENT` of all events must be delivered at the end.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use aws_stand_in::{Operation, RecordStream, StandIn};
use futures_util::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;
use tonic_health::pb::health_check_response::ServingStatus;

use siem_client::v1;

use crate::harness::{Api, Customer, Load, Process, parameter, print, stand_in, with_timeout};

/// Events of a request.
const REQUEST_EVENTS: u64 = 1000;
const CONCURRENCY: usize = 64;

struct Shape {
    integrations: u64,
    events: u64,
    per_publish: u64,
}

fn customer(number: u64) -> Customer {
    Customer::sharing("all", &format!("org-{number}"))
}

async fn configure(api: &Api, shape: &Shape) {
    let configured = stream::iter(0..shape.integrations)
        .map(|number| async move { api.try_configure(customer(number).request()).await })
        .buffer_unordered(CONCURRENCY)
        .try_collect::<Vec<_>>();
    configured.await.unwrap();
}

/// Publishes each request, with events of several integrations, repeatedly.
async fn publish(api: &Api, shape: &Shape) {
    let per_integration: Vec<Vec<v1::Event>> = (0..shape.integrations)
        .map(|number| {
            let mut load = Load::new(&format!("org-{number}"), 2, number);
            load.events(shape.per_publish as usize)
        })
        .collect();
    let in_a_request = (REQUEST_EVENTS / shape.per_publish) as usize;
    let requests: Vec<Vec<v1::Event>> = per_integration
        .chunks(in_a_request)
        .map(|several| several.concat())
        .collect();
    for _ in 0..shape.events / shape.per_publish {
        let published = stream::iter(requests.clone())
            .map(|events| async move { api.try_publish(events).await })
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<_>>();
        published.await.unwrap();
    }
}

fn database_mebibytes(folder: &Path) -> u64 {
    let file = fs::metadata(folder.join("siem-relay.sqlite")).unwrap();
    file.len() >> 20
}

/// Publishes while the role does not exist, then kills the process.
async fn build_backlog(folder: &Path, stand_in: &StandIn, shape: &Shape) {
    let no_retry = ["--retry-first-ms", "3600000", "--retry-most-ms", "3600000"];
    let process = Process::start(folder, &stand_in.url(), &no_retry).await;
    let start = Instant::now();
    configure(&process.api, shape).await;
    print(&format!("configured in {:?}", start.elapsed()));
    publish(&process.api, shape).await;
    let (elapsed, peak) = (start.elapsed(), process.peak_bytes() >> 20);
    let events = shape.integrations * shape.events;
    print(&format!(
        "published {events} events by {elapsed:?}; peak {peak} MiB"
    ));
    process.kill().await;
}

/// Waits until an event of each integration has arrived.
async fn until_all_have_some(records: &mut RecordStream, shape: &Shape) {
    let mut seen = HashSet::new();
    while (seen.len() as u64) < shape.integrations {
        let record = with_timeout("a record", records.next()).await.unwrap();
        let event: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
        seen.insert(event["integrationid"].as_str().unwrap().to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_backlog_serves_and_delivers() {
    let shape = Shape {
        integrations: parameter("INTEGRATIONS", 200),
        events: parameter("EVENTS", 20),
        per_publish: parameter("PER_PUBLISH", 5),
    };
    let temporary = TempDir::new().unwrap();
    let kept = std::env::var_os("SIEM_RELAY_TEST_FOLDER").map(PathBuf::from);
    let folder = kept.as_deref().unwrap_or(temporary.path());
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    let stream_arn = customer(0).stream_arn;
    customer(0).make_stream(&aws, 16);
    if !folder.join("siem-relay.sqlite").exists() {
        build_backlog(folder, &stand_in, &shape).await;
    }
    print(&format!("database {} MiB", database_mebibytes(folder)));

    customer(0).make_shared_role(&aws);
    let mut records = aws.subscribe(&stream_arn).unwrap();
    let start = Instant::now();
    let report = |what: &str, process: &Process| {
        let (elapsed, peak) = (start.elapsed(), process.peak_bytes() >> 20);
        print(&format!("{what} after {elapsed:?}; peak {peak} MiB"));
    };
    let process = Process::start(folder, &stand_in.url(), &[]).await;
    report("listens", &process);
    let mut health = process.api.health("").await;
    health.until(ServingStatus::Serving).await;
    report("serves", &process);
    let counts = process.api.get("org-7").await.counts.unwrap();
    assert_eq!(counts.accepted, shape.events);
    report("answers", &process);
    with_timeout("a record", records.next()).await.unwrap();
    report("delivers", &process);
    until_all_have_some(&mut records, &shape).await;
    report("has delivered of each", &process);
    let wanted = shape.integrations * shape.events * parameter("DRAIN_PERCENT", 100) / 100;
    while aws.stream(&stream_arn).unwrap().accepted < wanted {
        with_timeout("a record", records.next()).await.unwrap();
    }
    report("has delivered all", &process);
}

/// With memory for a part of the backlog, requests are as full as with memory for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_beyond_the_window_is_sent_in_full_requests() {
    let shape = Shape {
        integrations: 60,
        events: 200,
        per_publish: 5,
    };
    let folder = TempDir::new().unwrap();
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    customer(0).make_stream(&aws, 16);
    build_backlog(folder.path(), &stand_in, &shape).await;
    customer(0).make_shared_role(&aws);
    let settings = [
        "--window-bytes=1048576",
        "--window-bytes-per-integration=1048576",
        "--requests-in-flight=16",
        "--max-records-per-request=50",
    ];
    let process = Process::start(folder.path(), &stand_in.url(), &settings).await;
    for number in 0..shape.integrations {
        let organization_id = customer(number).organization_id;
        process.api.until_delivered(&organization_id).await;
    }
    let requests = aws.call_count(Operation::PutRecords, None);
    let least = shape.integrations * shape.events / 50;
    assert!(requests <= 2 * least, "{requests} requests, not {least}");
}
