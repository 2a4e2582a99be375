//! Delivery through lost answers, failed calls, expired sessions, restarts, backlogs and replaced
//! streams.

use aws_stand_in::{Effect, Fault, Operation, SessionLifetime, When};
use siem_client::v1::{Status, StatusReason};

use super::{check_delivered, check_hazards, fail_records};
use crate::harness::{
    FeedEvent, Load, TestEnv, check_complete, check_in_order, error, fault, read_events,
};

fn put_records(effect: Effect, when: When, calls: Option<u64>) -> Fault {
    Fault {
        calls,
        when,
        ..fault(Operation::PutRecords, None, effect)
    }
}

#[track_caller]
fn check_faults_are_used_up(env: &TestEnv) {
    let left = env.aws.faults();
    let used_up = left.iter().all(|(_, fault)| fault.calls == Some(0));
    assert!(used_up, "{left:?} did not happen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_causes_only_duplicates() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    for effect in [Effect::Reset, Effect::Garbage { status: 502 }] {
        let lost = put_records(effect, When::After, Some(3));
        env.aws.add_fault(lost).unwrap();
    }
    let mut load = Load::new("acme", 10, 5);
    env.api.publish(&load.events(2000)).await;
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert!(stored > 2000, "requests without an answer were sent again");
    check_faults_are_used_up(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_lose_nothing() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    let internal = error("InternalFailure", 500);
    for effect in [internal, Effect::Reset, Effect::Garbage { status: 503 }] {
        let failing = put_records(effect, When::Before, Some(2));
        env.aws.add_fault(failing).unwrap();
    }
    let mut load = Load::new("acme", 10, 6);
    env.api.publish(&load.events(1500)).await;
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 1500, "only failed records were sent again");
    check_faults_are_used_up(&env);
    check_hazards(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_expire_early_are_renewed() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    env.aws.set_session_lifetime(Some(SessionLifetime {
        seconds: 1,
        announced: false,
    }));
    let mut load = Load::new("acme", 10, 7);
    for _ in 0..5 {
        env.api.publish(&load.events(200)).await;
        read_events(&env.aws, &customer.stream_arn, load.made.len()).await;
        env.aws.expire_sessions();
    }
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 1000, "sent once");
    let assumed = env.aws.call_count(Operation::AssumeRole, Some("OK"));
    assert!(assumed >= 5, "assumed {assumed} times");
    let status = env.api.get("acme").await.status.unwrap();
    assert_eq!(status.status(), Status::Active);
    check_hazards(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_resumes_delivery() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    env.aws
        .add_fault(fail_records(&customer.stream_arn, 0.5, 8))
        .unwrap();
    let mut load = Load::new("acme", 10, 8);
    env.api.publish(&load.events(3000)).await;
    let some = |counts: &siem_client::v1::EventCounts| counts.delivered > 100;
    let before = env.api.until_counts("acme", some).await;
    check_hazards(&env);
    let env = env.restart().await;
    // A restart forgets which records failed, so that they may share a request with later ones.
    env.aws.reset_counts();
    let after = env.api.get("acme").await;
    assert_eq!(after.integration_id, integration.integration_id);
    assert!(after.counts.unwrap().delivered >= before.delivered);
    env.aws.clear_faults();
    env.api.publish(&load.events(500)).await;
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 3500, "an orderly stop settles every delivery");
    check_hazards(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_beyond_memory_is_read_back_in_order() {
    for tail_bytes in ["0", "300000"] {
        let env = TestEnv::with(&[("log-tail-bytes", tail_bytes)]).await;
        let (customer, integration) = env.customer("acme").await;
        // A backlog builds up while the stream is missing.
        env.aws.delete_stream(&customer.stream_arn);
        let mut load = Load::new("acme", 10, 9);
        env.api.publish(&load.events(4000)).await;
        let mut statuses = env.api.watch(&["acme"], "").await;
        let missing = FeedEvent::with_reason("acme", Status::Failing, StatusReason::StreamNotFound);
        statuses.until(&missing).await;
        customer.make_stream(&env.aws, 1);
        // More is published while the backlog is read.
        for _ in 0..20 {
            env.api.publish(&load.events(50)).await;
        }
        let arrived = read_events(&env.aws, &customer.stream_arn, load.made.len()).await;
        check_in_order(&arrived);
        check_complete(&arrived, &integration.integration_id, &load.made);
        check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
        let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
        assert_eq!(stored, 5000, "sent once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_events_go_to_the_new_stream() {
    let env = TestEnv::start().await;
    let (old, integration) = env.customer("acme").await;
    let mut load = Load::new("acme", 10, 10);
    env.api.publish(&load.events(700)).await;
    env.api.until_delivered("acme").await;
    env.aws.delete_stream(&old.stream_arn);
    env.api.publish(&load.events(1300)).await;
    let new = old.with_stream("new-home");
    new.make_stream(&env.aws, 2);
    let replaced = env.api.configure(&new).await;
    assert_eq!(replaced.integration_id, integration.integration_id);
    let arrived = read_events(&env.aws, &new.stream_arn, 1300).await;
    let first = arrived.iter().map(|event| event.sequence).min();
    assert_eq!(first, Some(701), "the sequence continues across streams");
    let last = arrived.iter().map(|event| event.sequence).max();
    assert_eq!(last, Some(2000));
    check_in_order(&arrived);
    let counts = env.api.until_delivered("acme").await;
    assert_eq!((counts.accepted, counts.delivered), (2000, 2000));
}

/// Publishes single events, between which the integration becomes idle. An event that arrives at that
/// moment must be delivered.
#[tokio::test(flavor = "multi_thread")]
async fn events_published_as_an_integration_becomes_idle_are_delivered() {
    let env = TestEnv::with(&[("settle-linger-ms", "1"), ("commit-linger-ms", "0")]).await;
    let (customer, integration) = env.customer("acme").await;
    let mut load = Load::new("acme", 3, 11);
    for _ in 0..600 {
        env.api.publish(&load.events(1)).await;
    }
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    check_hazards(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_share_no_partition_key() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    let mut load = Load::new("acme", 3000, 15);
    // Success raises the number of requests that may be in flight.
    env.api.publish(&load.events(2000)).await;
    env.api.until_delivered("acme").await;
    let hanging = env.hang(Operation::PutRecords, None);
    env.api.publish(&load.events(4000)).await;
    env.until_hanging(&hanging, 2).await;
    env.aws
        .add_fault(fail_records(&customer.stream_arn, 0.2, 15))
        .unwrap();
    let slow = Effect::Delay { milliseconds: 20 };
    env.aws
        .add_fault(put_records(slow, When::After, None))
        .unwrap();
    env.aws.clear_fault(hanging.id);
    env.api.publish(&load.events(2000)).await;
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 8000, "sent once");
    check_hazards(&env);
}
