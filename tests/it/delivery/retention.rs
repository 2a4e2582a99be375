//! Retention: events that are too old or too many expire, and a gap event replaces them.

use std::time::Duration;

use aws_stand_in::Operation;
use siem_client::v1;

use crate::harness::{
    Customer, DeliveredEvent, Gap, Load, TestEnv, check_with_gaps, read_events, run_verify,
};

const HOUR: Duration = Duration::from_secs(3600);
/// Default retention of events.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// A customer whose role does not exist yet.
async fn refused_customer(env: &TestEnv) -> (Customer, v1::Integration) {
    let customer = Customer::new("acme");
    customer.make_stream(&env.aws, 2);
    let integration = env.api.configure(&customer).await;
    (customer, integration)
}

fn unauthorized(status: &v1::IntegrationStatus) -> bool {
    status.status() == v1::Status::Unauthorized
}

fn gap(first: u64, last: u64, count: u64, reason: &str) -> Gap {
    Gap {
        first,
        last,
        count,
        reason: reason.to_owned(),
    }
}

/// Checks with `verify` that every sequence is in the stream or in one of this number of gaps.
async fn check_verified(env: &TestEnv, customer: &Customer, accepted: u64, gaps: u64) {
    let url = env.aws_url();
    let report = run_verify(&env.aws, &url, &customer.stream_arn, accepted).await;
    assert_eq!(report["gaps"]["events"], gaps, "{report}");
}

/// First and last time of each gap.
fn gap_times(arrived: &[DeliveredEvent]) -> Vec<(String, String)> {
    let gaps = arrived.iter().filter(|event| event.gap.is_some());
    let time =
        |event: &DeliveredEvent, name: &str| event.json["data"][name].as_str().unwrap().to_owned();
    gaps.map(|event| (time(event, "first_time"), time(event, "last_time")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_events_become_one_gap_and_later_events_arrive() {
    let env = TestEnv::start().await;
    let (customer, integration) = refused_customer(&env).await;
    let mut load = Load::new("acme", 5, 31);
    for _ in 0..30 {
        env.api.publish(&load.events(10)).await;
    }
    env.api.until_status("acme", unauthorized).await;
    let env = env.restart_after(WEEK - HOUR).await;
    env.api.publish(&load.events(40)).await;
    let counts = env.api.get("acme").await.counts.unwrap();
    assert_eq!((counts.expired, counts.pending), (0, 340));
    // The first events are too old now, and the gap cannot be delivered yet.
    let env = env.restart_after(2 * HOUR).await;
    let expired = |counts: &v1::EventCounts| counts.expired > 0;
    let counts = env.api.until_counts("acme", expired).await;
    assert_eq!((counts.expired, counts.pending), (300, 40));
    let status = env.api.until_status("acme", unauthorized).await;
    assert_eq!(status.reason(), v1::StatusReason::AssumeRoleDenied);
    // The gap does not expire, and is merged with later ones.
    let env = env.restart_after(WEEK).await;
    let expired = |counts: &v1::EventCounts| counts.expired > 300;
    let counts = env.api.until_counts("acme", expired).await;
    assert_eq!((counts.expired, counts.pending), (340, 0));
    assert_eq!(
        (counts.pending_bytes, counts.oldest_pending_time),
        (0, None)
    );
    env.api.publish(&load.events(60)).await;
    let env = env.restart_after(HOUR).await;
    customer.make_role(&env.aws);
    let arrived = read_events(&env.aws, &customer.stream_arn, 400).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, [gap(1, 340, 340, "RETENTION_AGE")]);
    let times = gap_times(&arrived);
    assert!(times.iter().all(|(first, last)| first < last), "{times:?}");
    let counts = env.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (60, 340));
    let status = env.api.get("acme").await.status.unwrap();
    assert_eq!(status.status(), v1::Status::Active);
    check_verified(&env, &customer, 400, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_too_old_at_the_start_are_not_sent() {
    let no_retry = [("retry-first-ms", "3600000"), ("retry-most-ms", "3600000")];
    let env = TestEnv::with(&no_retry).await;
    let (customer, integration) = refused_customer(&env).await;
    let mut load = Load::new("acme", 5, 32);
    for _ in 0..300 {
        env.api.publish(&load.events(1)).await;
    }
    env.api.until_status("acme", unauthorized).await;
    customer.make_role(&env.aws);
    let env = env.restart_after(WEEK + HOUR).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 300).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, [gap(1, 300, 300, "RETENTION_AGE")]);
    let counts = env.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (0, 300));
    env.api.publish(&load.events(10)).await;
    env.api.until_delivered("acme").await;
    check_verified(&env, &customer, 310, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_expire_while_the_service_runs_but_not_in_flight() {
    let settings = [
        ("retention-seconds", "1"),
        ("max-records-per-request", "100"),
        ("aws-attempt-timeout-ms", "60000"),
    ];
    let env = TestEnv::with(&settings).await;
    let (customer, integration) = env.customer("acme").await;
    let hanging = env.hang(Operation::PutRecords, None);
    let mut load = Load::new("acme", 3, 34);
    env.api.publish(&load.events(250)).await;
    env.until_hanging(&hanging, 1).await;
    env.api.publish(&load.events(150)).await;
    let expired = |counts: &v1::EventCounts| counts.expired == 300;
    let counts = env.api.until_counts("acme", expired).await;
    assert_eq!((counts.pending, counts.delivered), (100, 0));
    assert!(counts.pending_bytes > 0);
    assert!(env.aws.clear_fault(hanging.id));
    let arrived = read_events(&env.aws, &customer.stream_arn, 400).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, [gap(101, 400, 300, "RETENTION_AGE")]);
    let counts = env.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (100, 300));
    assert_eq!(counts.pending_bytes, 0);
    check_verified(&env, &customer, 400, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_retention_bytes_the_oldest_events_expire() {
    const LIMIT: u64 = 2 << 20;
    let settings = [
        ("retention-bytes", &*LIMIT.to_string()),
        // Events in flight do not expire, so nothing must be in flight while events expire.
        ("retry-first-ms", "3600000"),
        ("retry-most-ms", "3600000"),
    ];
    let env = TestEnv::with(&settings).await;
    let (customer, integration) = refused_customer(&env).await;
    let mut load = Load::new("acme", 5, 35);
    for _ in 0..80 {
        env.api.publish(&load.events(100)).await;
        env.api.get("acme").await;
    }
    let below_limit = |counts: &v1::EventCounts| counts.pending_bytes <= LIMIT;
    let counts = env.api.until_counts("acme", below_limit).await;
    assert!(counts.pending_bytes > LIMIT / 2, "{counts:?}");
    assert!(counts.expired > 0);
    let env = env.restart().await;
    assert_eq!(env.api.get("acme").await.counts.unwrap(), counts);
    customer.make_role(&env.aws);
    env.api.configure(&customer).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 8000).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    let expired = counts.expired;
    assert_eq!(gaps, [gap(1, expired, expired, "RETENTION_SIZE")]);
    let counts = env.api.until_delivered("acme").await;
    assert_eq!(
        (counts.delivered, counts.expired),
        (8000 - expired, expired)
    );
    check_verified(&env, &customer, 8000, 1).await;
}
