//! What the process takes of memory, against its settings.

use aws_stand_in::{Effect, Fault, Operation, When};
use futures_util::{StreamExt, TryStreamExt, stream};
use siem_client::v1::{self, event::Payload};
use tempfile::TempDir;

use crate::harness::{Api, Customer, Load, Process, say, stand_in};

const MIB: u64 = 1 << 20;
const WINDOW: u64 = 2 * MIB;
const TAIL: u64 = MIB;
const INTAKE: u64 = 16 * MIB;
const REQUESTS: u64 = 16;
const REQUEST: u64 = MIB;
/// Of the window, the tail and the requests in flight.
const DELIVERY: u64 = WINDOW + TAIL + REQUESTS * REQUEST;

/// Publishes at once, and what of each arrives before there is room for it.
const AT_ONCE: u64 = 48;
const UNREAD: u64 = MIB / 4;

/// Of each kind, and of each of them, large events.
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

/// A request for each customer, again and again, more at once than there is room for.
async fn pile_up(api: &Api, customers: &[Customer]) {
    let requests = (0..EVENTS / 4).flat_map(|_| customers).map(|customer| {
        let mut load = Load::new(&customer.organization_id, 3, 1);
        let events: Vec<_> = (0..4).map(|_| large(&mut load)).collect();
        async move { api.try_publish(events.clone()).await }
    });
    let published = stream::iter(requests).buffer_unordered(AT_ONCE as usize);
    published.try_collect::<Vec<_>>().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_its_settings_whatever_waits_and_hangs() {
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    let folder = TempDir::new().unwrap();
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let url = stand_in.url();
    let start = || Process::start(folder.path(), &url, &settings);
    let crowd = |kind: &'static str, count| {
        (0..count).map(move |number| Customer::sharing(kind, &format!("{kind}-{number}")))
    };
    let good: Vec<_> = crowd("good", INTEGRATIONS).collect();
    let hanging: Vec<_> = crowd("hangs", HANGING).collect();
    let all = [&good[..], &hanging[..]].concat();

    // What it takes without events is no part of the account.
    let process = start().await;
    for customer in &all {
        process.api.configure(customer).await;
    }
    process.api.send_test("good-0").await;
    let base = process.peak_bytes();
    process.kill().await;

    let process = start().await;
    pile_up(&process.api, &all).await;
    // A request is held as it came, stored, compressed and written.
    let bound = base + 5 * INTAKE + AT_ONCE * UNREAD + WINDOW + TAIL;
    let peak = process.peak_bytes();
    say(&format!("base {base}, taking in {peak} of {bound}"));
    assert!(
        peak < bound,
        "{peak} bytes, beyond {bound}, of them {base} at rest"
    );
    process.kill().await;

    for customer in [&good[0], &hanging[0]] {
        customer.make_shared_role(&aws);
        customer.make_stream(&aws, 4);
    }
    aws.add_fault(Fault {
        operation: Some(Operation::PutRecords),
        target: Some(hanging[0].stream_arn.clone()),
        calls: None,
        when: When::Before,
        effect: Effect::Hang,
    })
    .unwrap();
    let process = start().await;
    for customer in &good {
        process.api.until_delivered(&customer.organization_id).await;
    }
    // What is freed is not always given back.
    let bound = base + 3 * DELIVERY / 2;
    let peak = process.peak_bytes();
    say(&format!("delivering {peak} of {bound}"));
    assert!(
        peak < bound,
        "{peak} bytes, beyond {bound}, of them {base} at rest"
    );
    let backlog = all.len() as u64 * EVENTS as u64 * EVENT;
    assert!(bound - base < backlog / 2, "the bound is none");
}
