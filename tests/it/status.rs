//! Integration status: its changes, their attribution, SendTest and StreamStatus.

mod attribution;
mod feed;
mod matrix;
mod subscribers;
mod test_event;

use aws_stand_in::{Fault, Operation};
use siem_client::v1::{Status, StatusReason};

use crate::harness::{Customer, FeedEvent, Load, StatusFeed, TestEnv, error, fault, read_events};

/// A service with one customer, and a subscription to its status.
async fn watched() -> (TestEnv, Customer, StatusFeed) {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut statuses = env.api.watch(&["acme"], "").await;
    let before = statuses.until_synced().await;
    assert_eq!(before, [FeedEvent::current("acme", Status::Unknown)]);
    (env, customer, statuses)
}

fn active() -> FeedEvent {
    FeedEvent::current("acme", Status::Active)
}

fn unknown() -> FeedEvent {
    FeedEvent::current("acme", Status::Unknown)
}

async fn publish_one(env: &TestEnv) {
    let mut load = Load::new("acme", 1, rand::random());
    env.api.publish(&load.events(1)).await;
}

/// Makes the next calls of PutRecords fail.
fn fail_calls(env: &TestEnv, calls: u64, code: &str, status: u16) {
    let fault = Fault {
        calls: Some(calls),
        ..fault(Operation::PutRecords, None, error(code, status))
    };
    env.aws.add_fault(fault).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_delivery_makes_the_status_active() {
    let (env, _, mut statuses) = watched().await;
    publish_one(&env).await;
    assert_eq!(statuses.next().await, active());
    let status = statuses.last.unwrap();
    assert!(status.last_attempt_time.is_some());
    assert!(status.last_delivery_time.is_some());
    assert!(status.next_retry_time.is_none());
    assert_eq!(status.aws_error_code, "");
    let got = env.api.get("acme").await.status.unwrap();
    assert_eq!(got.status(), Status::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_external_id_is_unauthorized_until_corrected() {
    let (env, customer, mut statuses) = watched().await;
    let wrong = customer.with_external_id("not-the-one-that-is-trusted");
    env.api.configure(&wrong).await;
    publish_one(&env).await;
    let denied =
        FeedEvent::with_reason("acme", Status::Unauthorized, StatusReason::AssumeRoleDenied);
    assert_eq!(statuses.next().await, denied);
    let status = statuses.last.clone().unwrap();
    assert_eq!(status.aws_error_code, "AccessDenied");
    assert!(!status.aws_request_id.is_empty());
    assert!(status.next_retry_time.is_some());
    assert!(status.last_delivery_time.is_none());
    let message = "Unauthorized - check your Role ARN and External ID. ";
    assert!(status.message.starts_with(message), "{}", status.message);
    let counts = env.api.get("acme").await.counts.unwrap();
    assert_eq!(counts.pending, 1);
    assert!(counts.pending_bytes > 0);
    assert!(counts.oldest_pending_time.is_some());

    env.api.configure(&customer).await;
    assert_eq!(statuses.next().await, unknown());
    assert_eq!(statuses.next().await, active());
    read_events(&env.aws, &customer.stream_arn, 1).await;
    env.api.until_delivered("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_write_permission_is_unauthorized_until_granted() {
    let (env, customer, mut statuses) = watched().await;
    customer.make_role_that_may(&env.aws, "kinesis:GetRecords");
    publish_one(&env).await;
    let denied = FeedEvent::with_reason("acme", Status::Unauthorized, StatusReason::WriteDenied);
    assert_eq!(statuses.next().await, denied);
    let code = statuses.last.clone().unwrap().aws_error_code;
    assert_eq!(code, "AccessDeniedException");
    customer.make_role(&env.aws);
    assert_eq!(statuses.next().await, active());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_is_failing_until_created() {
    let (env, customer, mut statuses) = watched().await;
    publish_one(&env).await;
    assert_eq!(statuses.next().await, active());
    env.aws.delete_stream(&customer.stream_arn);
    publish_one(&env).await;
    let missing = FeedEvent::with_reason("acme", Status::Failing, StatusReason::StreamNotFound);
    assert_eq!(statuses.next().await, missing);
    let status = statuses.last.clone().unwrap();
    assert_eq!(status.aws_error_code, "ResourceNotFoundException");
    assert!(status.last_delivery_time.is_some(), "it was delivered once");
    customer.make_stream(&env.aws, 1);
    assert_eq!(statuses.next().await, active());
    read_events(&env.aws, &customer.stream_arn, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_faults_change_no_status() {
    let (env, customer, mut statuses) = watched().await;
    publish_one(&env).await;
    assert_eq!(statuses.next().await, active());
    for code in ["ProvisionedThroughputExceededException", "InternalFailure"] {
        fail_calls(&env, 2, code, 500);
    }
    publish_one(&env).await;
    read_events(&env.aws, &customer.stream_arn, 2).await;
    env.api.until_delivered("acme").await;
    // The deletion is the next change, so that no other one preceded it.
    env.api.delete("acme", false).await.unwrap();
    assert_eq!(statuses.next().await, FeedEvent::Deleted("acme".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_clears_the_previous_error() {
    let (env, customer, mut statuses) = watched().await;
    // The status stays UNKNOWN while it is throttled, but has the error code.
    fail_calls(&env, 1, "ProvisionedThroughputExceededException", 400);
    env.hang(Operation::PutRecords, None);
    publish_one(&env).await;
    let status = env
        .api
        .until_status("acme", |status| !status.aws_error_code.is_empty());
    let code = status.await.aws_error_code;
    assert_eq!(code, "ProvisionedThroughputExceededException");
    let other = customer.with_stream("elsewhere");
    let replaced = env.api.configure(&other).await.status.unwrap();
    assert_eq!(replaced.status(), Status::Unknown);
    assert_eq!(replaced.aws_error_code, "");
    assert!(replaced.last_attempt_time.is_none());
    assert!(replaced.next_retry_time.is_none());
    other.make_stream(&env.aws, 1);
    env.aws.clear_faults();
    // A call in flight may have delivered the first event to the old stream.
    publish_one(&env).await;
    assert_eq!(statuses.next().await, active());
}
