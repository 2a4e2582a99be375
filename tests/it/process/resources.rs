//! Memory and threads of the process, by its settings.

use std::fs;

use aws_stand_in::{Effect, Operation};
use futures_util::{StreamExt, TryStreamExt, stream};
use siem_client::v1::{self, event::Payload};

use crate::harness::{Api, Customer, Load, Process, ProcessEnv, fault, print};

const MIB: u64 = 1 << 20;
const WINDOW: u64 = 2 * MIB;
const TAIL: u64 = MIB;
const INTAKE: u64 = 16 * MIB;
const REQUESTS: u64 = 16;
const REQUEST: u64 = MIB;
/// Memory of the window, the tail and the requests in flight.
const DELIVERY: u64 = WINDOW + TAIL + REQUESTS * REQUEST;

/// Concurrent publishes, and the bytes of each that arrive before the budget admits it.
const CONCURRENCY: u64 = 48;
const UNREAD: u64 = MIB / 4;

/// Healthy and hanging integrations, and the number and size of events of each.
const INTEGRATIONS: usize = 24;
const HANGING: usize = 8;
const EVENTS: usize = 32;
const EVENT: u64 = MIB / 8;

fn settings() -> Vec<String> {
    [
        ("window-bytes", WINDOW),
        ("window-bytes-per-integration", WINDOW / 4),
        ("log-tail-bytes", TAIL),
        ("publish-bytes-in-flight", INTAKE),
        ("requests-in-flight", REQUESTS),
        ("max-request-bytes", REQUEST),
        ("aws-attempt-timeout-ms", 60_000),
    ]
    .iter()
    .map(|(name, value)| format!("--{name}={value}"))
    .collect()
}

fn large(load: &mut Load) -> v1::Event {
    let mut event = load.events(1).remove(0);
    if let Some(Payload::IdsDetection(detection)) = &mut event.payload {
        detection.context_json = format!(r#"{{"x":"{}"}}"#, "x".repeat(EVENT as usize));
    }
    event
}

/// Publishes for every customer, more at once than the budget admits.
async fn build_backlog(api: &Api, customers: &[Customer]) {
    let requests = (0..EVENTS / 4).flat_map(|_| customers).map(|customer| {
        let mut load = Load::new(&customer.organization_id, 3, 1);
        let events: Vec<_> = (0..4).map(|_| large(&mut load)).collect();
        async move { api.try_publish(events.clone()).await }
    });
    let published = stream::iter(requests).buffer_unordered(CONCURRENCY as usize);
    published.try_collect::<Vec<_>>().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_its_settings_with_backlog_and_hanging_calls() {
    let env = ProcessEnv::new().await;
    let aws = &env.aws;
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let start = || env.start_with(&settings);
    let customers = |kind: &'static str, count| {
        (0..count).map(move |number| Customer::sharing(kind, &format!("{kind}-{number}")))
    };
    let good: Vec<_> = customers("good", INTEGRATIONS).collect();
    let hanging: Vec<_> = customers("hangs", HANGING).collect();
    let all = [&good[..], &hanging[..]].concat();

    // Memory that is used without events is not part of the bounds.
    let process = start().await;
    for customer in &all {
        process.api.configure(customer).await;
    }
    process.api.send_test("good-0").await;
    let base = process.peak_bytes();
    process.kill().await;

    let process = start().await;
    build_backlog(&process.api, &all).await;
    // A request is in memory as received, stored, compressed and written.
    let bound = base + 5 * INTAKE + CONCURRENCY * UNREAD + WINDOW + TAIL;
    let peak = process.peak_bytes();
    print(&format!("base {base}, accepting {peak} of {bound}"));
    assert!(
        peak < bound,
        "{peak} bytes, beyond {bound}, of them {base} idle"
    );
    process.kill().await;

    for customer in [&good[0], &hanging[0]] {
        customer.make_shared_role(aws);
        customer.make_stream(aws, 4);
    }
    let stream_arn = Some(&*hanging[0].stream_arn);
    aws.add_fault(fault(Operation::PutRecords, stream_arn, Effect::Hang))
        .unwrap();
    let process = start().await;
    for customer in &good {
        process.api.until_delivered(&customer.organization_id).await;
    }
    // Freed memory is not always returned to the operating system.
    let bound = base + 3 * DELIVERY / 2;
    let peak = process.peak_bytes();
    print(&format!("delivering {peak} of {bound}"));
    assert!(
        peak < bound,
        "{peak} bytes, beyond {bound}, of them {base} idle"
    );
    let backlog = all.len() as u64 * EVENTS as u64 * EVENT;
    assert!(bound - base < backlog / 2, "the bound is below the backlog");
}

/// Threads of this name.
fn thread_count(process: &Process, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    tasks
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            // A thread may have ended since.
            fs::read_to_string(comm).is_ok_and(|comm| comm.trim_end() == name)
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn thread_settings_are_applied() {
    let env = ProcessEnv::new().await;
    for (arguments, expected) in [
        (&[][..], [1, 1]),
        (&["--intake-threads=2", "--delivery-threads=3"], [2, 3]),
    ] {
        let process = env.start_with(arguments).await;
        let counts = ["intake", "delivery"].map(|name| thread_count(&process, name));
        assert_eq!(counts, expected);
        process.kill().await;
    }
}
