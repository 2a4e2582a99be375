//! Lost answers, ended sessions, restarts, a log that is read back, new streams.

use aws_stand_in::{Effect, Fault, Operation, SessionLifetime, When};
use siem_client::v1::{Status, StatusReason};

use super::{check_delivered, check_hazards, fail_records};
use crate::harness::{Load, Told, World, arrive, check_in_order, check_whole};

fn put_records(effect: Effect, when: When, calls: Option<u64>) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: None,
        calls,
        when,
        effect,
    }
}

#[track_caller]
fn check_every_fault_was_met(world: &World) {
    let left = world.aws.faults();
    let met = left.iter().all(|(_, fault)| fault.calls == Some(0));
    assert!(met, "{left:?} were not met");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_makes_duplicates_and_nothing_else() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    for effect in [Effect::Reset, Effect::Garbage { status: 502 }] {
        let lost = put_records(effect, When::After, Some(3));
        world.aws.add_fault(lost).unwrap();
    }
    let mut load = Load::new("acme", 10, 5);
    world.api.publish(&load.events(2000)).await;
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert!(stored > 2000, "what was not answered was sent again");
    check_every_fault_was_met(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_fail_for_a_while_lose_nothing() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    let internal = || Effect::Error {
        code: "InternalFailure".to_owned(),
        status: 500,
        message: String::new(),
    };
    for effect in [internal(), Effect::Reset, Effect::Garbage { status: 503 }] {
        let failing = put_records(effect, When::Before, Some(2));
        world.aws.add_fault(failing).unwrap();
    }
    let mut load = Load::new("acme", 10, 6);
    world.api.publish(&load.events(1500)).await;
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 1500, "sent again only what had failed");
    check_every_fault_was_met(&world);
    check_hazards(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_end_early_are_assumed_anew() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    world.aws.set_session_lifetime(Some(SessionLifetime {
        seconds: 1,
        announced: false,
    }));
    let mut load = Load::new("acme", 10, 7);
    for _ in 0..5 {
        world.api.publish(&load.events(200)).await;
        arrive(&world.aws, &customer.stream_arn, load.made.len()).await;
        world.aws.expire_sessions();
    }
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 1000, "sent once");
    let assumed = world.aws.call_count(Operation::AssumeRole, Some("OK"));
    assert!(assumed >= 5, "assumed {assumed} times");
    let status = world.api.get("acme").await.status.unwrap();
    assert_eq!(status.status(), Status::Active);
    check_hazards(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_stopped() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    world
        .aws
        .add_fault(fail_records(&customer.stream_arn, 0.5, 8))
        .unwrap();
    let mut load = Load::new("acme", 10, 8);
    world.api.publish(&load.events(3000)).await;
    let part = |counts: &siem_client::v1::EventCounts| counts.delivered > 100;
    let before = world.api.until_counts("acme", part).await;
    check_hazards(&world);
    let world = world.restart().await;
    // Which records failed is not remembered, so they may share a request with later ones.
    world.aws.reset_counts();
    let after = world.api.get("acme").await;
    assert_eq!(after.integration_id, integration.integration_id);
    assert!(after.counts.unwrap().delivered >= before.delivered);
    world.aws.clear_faults();
    world.api.publish(&load.events(500)).await;
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 3500, "an orderly stop settles what it delivered");
    check_hazards(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_beyond_memory_is_read_back_in_order() {
    for tail_bytes in ["0", "300000"] {
        let world = World::with(&[("log-tail-bytes", tail_bytes)]).await;
        let (customer, integration) = world.customer("acme").await;
        // The stream comes late, so that a backlog stands.
        world.aws.delete_stream(&customer.stream_arn);
        let mut load = Load::new("acme", 10, 9);
        world.api.publish(&load.events(4000)).await;
        let mut statuses = world.api.watch(&["acme"], "").await;
        let missing = Told::because("acme", Status::Failing, StatusReason::StreamNotFound);
        statuses.until(&missing).await;
        customer.make_stream(&world.aws, 1);
        // More comes while the backlog is read.
        for _ in 0..20 {
            world.api.publish(&load.events(50)).await;
        }
        let arrived = arrive(&world.aws, &customer.stream_arn, load.made.len()).await;
        check_in_order(&arrived);
        check_whole(&arrived, &integration.integration_id, &load.made);
        check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
        let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
        assert_eq!(stored, 5000, "sent once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_events_go_to_the_new_stream() {
    let world = World::start().await;
    let (old, integration) = world.customer("acme").await;
    let mut load = Load::new("acme", 10, 10);
    world.api.publish(&load.events(700)).await;
    world.api.until_delivered("acme").await;
    world.aws.delete_stream(&old.stream_arn);
    world.api.publish(&load.events(1300)).await;
    let new = old.with_stream("new-home");
    new.make_stream(&world.aws, 2);
    let replaced = world.api.configure(&new).await;
    assert_eq!(replaced.integration_id, integration.integration_id);
    let arrived = arrive(&world.aws, &new.stream_arn, 1300).await;
    let first = arrived.iter().map(|one| one.sequence).min();
    assert_eq!(first, Some(701), "the sequence goes on over streams");
    let last = arrived.iter().map(|one| one.sequence).max();
    assert_eq!(last, Some(2000));
    check_in_order(&arrived);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!((counts.accepted, counts.delivered), (2000, 2000));
}

/// Small publishes beside delivery, with pauses of the integration in between: no event
/// may be left behind when its integration just comes to rest.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_as_an_integration_comes_to_rest_are_delivered() {
    let world = World::with(&[("settle-linger-ms", "1"), ("commit-linger-ms", "0")]).await;
    let (customer, integration) = world.customer("acme").await;
    let mut load = Load::new("acme", 3, 11);
    for _ in 0..600 {
        world.api.publish(&load.events(1)).await;
    }
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    check_hazards(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_requests_are_under_way_and_share_no_key() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    let mut load = Load::new("acme", 3000, 15);
    // What gets through lets more requests go side by side.
    world.api.publish(&load.events(2000)).await;
    world.api.until_delivered("acme").await;
    let hanging = world.hang(Operation::PutRecords, None);
    world.api.publish(&load.events(4000)).await;
    world.until_hanging(&hanging, 2).await;
    world
        .aws
        .add_fault(fail_records(&customer.stream_arn, 0.2, 15))
        .unwrap();
    let slow = Effect::Delay { milliseconds: 20 };
    world
        .aws
        .add_fault(put_records(slow, When::After, None))
        .unwrap();
    world.aws.clear_fault(hanging.id);
    world.api.publish(&load.events(2000)).await;
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 8000, "sent once");
    check_hazards(&world);
}
