//! Events that wait too long, or are too much, expire, and a gap event says so.

use std::time::Duration;

use aws_stand_in::Operation;
use siem_client::v1;

use crate::harness::{Arrived, Customer, GapTold, Load, World, arrive, check_with_gaps, verified};

const HOUR: Duration = Duration::from_secs(3600);
/// Default retention of events.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// A customer whose role is not there yet.
async fn refused_customer(world: &World) -> (Customer, v1::Integration) {
    let customer = Customer::new("acme");
    customer.make_stream(&world.aws, 2);
    let integration = world.api.configure(&customer).await;
    (customer, integration)
}

fn unauthorized(status: &v1::IntegrationStatus) -> bool {
    status.status() == v1::Status::Unauthorized
}

fn gap(first: u64, last: u64, count: u64, reason: &str) -> GapTold {
    GapTold {
        first,
        last,
        count,
        reason: reason.to_owned(),
    }
}

/// An auditor finds every sequence in the stream, or told of by so many gaps.
async fn check_verified(world: &World, customer: &Customer, accepted: u64, gaps: u64) {
    let url = world.aws_url();
    let report = verified(&world.aws, &url, &customer.stream_arn, accepted).await;
    assert_eq!(report["gaps"]["events"], gaps, "{report}");
}

fn told_times(arrived: &[Arrived]) -> Vec<(String, String)> {
    let gaps = arrived.iter().filter(|one| one.gap.is_some());
    let time = |one: &Arrived, name: &str| one.json["data"][name].as_str().unwrap().to_owned();
    gaps.map(|one| (time(one, "first_time"), time(one, "last_time")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_week_of_refusals_becomes_one_gap_and_what_came_later_arrives() {
    let world = World::start().await;
    let (customer, integration) = refused_customer(&world).await;
    let mut load = Load::new("acme", 5, 31);
    for _ in 0..30 {
        world.api.publish(&load.events(10)).await;
    }
    world.api.until_status("acme", unauthorized).await;
    let world = world.restart_after(WEEK - HOUR).await;
    world.api.publish(&load.events(40)).await;
    let counts = world.api.get("acme").await.counts.unwrap();
    assert_eq!((counts.expired, counts.pending), (0, 340));
    // The first are too old now, and nothing can tell the customer yet.
    let world = world.restart_after(2 * HOUR).await;
    let expired = |counts: &v1::EventCounts| counts.expired > 0;
    let counts = world.api.until_counts("acme", expired).await;
    assert_eq!((counts.expired, counts.pending), (300, 40));
    let status = world.api.until_status("acme", unauthorized).await;
    assert_eq!(status.reason(), v1::StatusReason::AssumeRoleDenied);
    // The gap waits as long as it takes, and takes in what expires later.
    let world = world.restart_after(WEEK).await;
    let expired = |counts: &v1::EventCounts| counts.expired > 300;
    let counts = world.api.until_counts("acme", expired).await;
    assert_eq!((counts.expired, counts.pending), (340, 0));
    assert_eq!(
        (counts.pending_bytes, counts.oldest_pending_time),
        (0, None)
    );
    world.api.publish(&load.events(60)).await;
    let world = world.restart_after(HOUR).await;
    customer.make_role(&world.aws);
    let arrived = arrive(&world.aws, &customer.stream_arn, 400).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, [gap(1, 340, 340, "RETENTION_AGE")]);
    let times = told_times(&arrived);
    assert!(times.iter().all(|(first, last)| first < last), "{times:?}");
    let counts = world.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (60, 340));
    let status = world.api.get("acme").await.status.unwrap();
    assert_eq!(status.status(), v1::Status::Active);
    check_verified(&world, &customer, 400, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_at_the_start_is_not_sent() {
    let never = [("retry-first-ms", "3600000"), ("retry-most-ms", "3600000")];
    let world = World::with(&never).await;
    let (customer, integration) = refused_customer(&world).await;
    let mut load = Load::new("acme", 5, 32);
    for _ in 0..300 {
        world.api.publish(&load.events(1)).await;
    }
    world.api.until_status("acme", unauthorized).await;
    customer.make_role(&world.aws);
    let world = world.restart_after(WEEK + HOUR).await;
    let arrived = arrive(&world.aws, &customer.stream_arn, 300).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, [gap(1, 300, 300, "RETENTION_AGE")]);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (0, 300));
    world.api.publish(&load.events(10)).await;
    world.api.until_delivered("acme").await;
    check_verified(&world, &customer, 310, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_expire_while_the_service_runs_but_not_in_flight() {
    let settings = [
        ("retention-seconds", "1"),
        ("max-records-per-request", "100"),
        ("aws-attempt-timeout-ms", "60000"),
    ];
    let world = World::with(&settings).await;
    let (customer, integration) = world.customer("acme").await;
    let hanging = world.hang(Operation::PutRecords, None);
    let mut load = Load::new("acme", 3, 34);
    world.api.publish(&load.events(250)).await;
    world.until_hanging(&hanging, 1).await;
    world.api.publish(&load.events(150)).await;
    let expired = |counts: &v1::EventCounts| counts.expired == 300;
    let counts = world.api.until_counts("acme", expired).await;
    assert_eq!((counts.pending, counts.delivered), (100, 0));
    assert!(counts.pending_bytes > 0);
    assert!(world.aws.clear_fault(hanging.id));
    let arrived = arrive(&world.aws, &customer.stream_arn, 400).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, [gap(101, 400, 300, "RETENTION_AGE")]);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (100, 300));
    assert_eq!(counts.pending_bytes, 0);
    check_verified(&world, &customer, 400, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_expires_the_oldest_and_keeps_the_newest() {
    const LIMIT: u64 = 2 << 20;
    let settings = [
        ("retention-bytes", &*LIMIT.to_string()),
        // What is in flight does not expire: nothing is while events do.
        ("retry-first-ms", "3600000"),
        ("retry-most-ms", "3600000"),
    ];
    let world = World::with(&settings).await;
    let (customer, integration) = refused_customer(&world).await;
    let mut load = Load::new("acme", 5, 35);
    for _ in 0..80 {
        world.api.publish(&load.events(100)).await;
        world.api.get("acme").await;
    }
    let within = |counts: &v1::EventCounts| counts.pending_bytes <= LIMIT;
    let counts = world.api.until_counts("acme", within).await;
    assert!(counts.pending_bytes > LIMIT / 2, "{counts:?}");
    assert!(counts.expired > 0);
    let world = world.restart().await;
    assert_eq!(world.api.get("acme").await.counts.unwrap(), counts);
    customer.make_role(&world.aws);
    world.api.configure(&customer).await;
    let arrived = arrive(&world.aws, &customer.stream_arn, 8000).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    let expired = counts.expired;
    assert_eq!(gaps, [gap(1, expired, expired, "RETENTION_SIZE")]);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!(
        (counts.delivered, counts.expired),
        (8000 - expired, expired)
    );
    check_verified(&world, &customer, 8000, 1).await;
}
