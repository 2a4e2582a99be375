//! SendTest, and Delete while calls are in flight.

use aws_stand_in::Operation;
use serde_json::json;
use siem_client::v1::{
    CheckName, CheckResult, ConfigureRequest, SendTestResponse, Status, StatusReason,
};
use tonic::Code;

use super::{active, publish_one, watched};
use crate::harness::{
    Customer, FeedEvent, Load, TestEnv, check_complete, fault, read_events, reason,
    throttled_records, with_timeout,
};

const REFUSED: &str = "Unauthorized - check your Role ARN and External ID";

fn result(answer: &SendTestResponse, name: CheckName) -> CheckResult {
    let check = answer.checks.iter().find(|check| check.name() == name);
    check.unwrap().result()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_event_arrives_and_is_not_counted() {
    let (env, customer, mut statuses) = watched().await;
    let answer = env.api.send_test("acme").await;
    assert!(answer.delivered);
    assert_eq!(result(&answer, CheckName::AssumeRole), CheckResult::Passed);
    assert_eq!(result(&answer, CheckName::WriteRecord), CheckResult::Passed);
    assert_eq!(answer.status.as_ref().unwrap().status(), Status::Active);
    assert_eq!(statuses.next().await, active());

    let records = env.aws.records(&customer.stream_arn, 0, 10).unwrap();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    let receipt = answer.receipt.unwrap();
    assert_eq!(receipt.shard_id, record.shard_id);
    assert_eq!(receipt.sequence_number, record.sequence_number);
    assert!(receipt.latency.is_some());
    let json: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
    let integration = env.api.get("acme").await;
    assert_eq!(json["id"], receipt.event_id);
    assert_eq!(json["type"], "TYPE_TEST");
    assert_eq!(json["data"]["type"], "TYPE_TEST");
    assert_eq!(json["subject"], integration.integration_id);
    assert_eq!(json["partitionkey"], integration.integration_id);
    assert_eq!(json["integrationid"], integration.integration_id);
    assert!(json.get("sequence").is_none());
    assert_eq!(integration.counts.unwrap().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_test_reports_checks_and_remedy() {
    let (env, customer, mut statuses) = watched().await;
    let wrong = customer.with_external_id("not-the-one-that-is-trusted");
    env.api.configure(&wrong).await;
    let answer = env.api.send_test("acme").await;
    assert!(!answer.delivered);
    assert_eq!(answer.message, REFUSED);
    assert!(answer.receipt.is_none());
    assert_eq!(result(&answer, CheckName::AssumeRole), CheckResult::Failed);
    assert_eq!(
        result(&answer, CheckName::WriteRecord),
        CheckResult::Skipped
    );
    let check = &answer.checks[0];
    assert_eq!(check.aws_error_code, "AccessDenied");
    assert!(!check.aws_request_id.is_empty() && !check.remedy.is_empty());
    let status = answer.status.unwrap();
    assert_eq!(status.status(), Status::Unauthorized);
    let denied =
        FeedEvent::with_reason("acme", Status::Unauthorized, StatusReason::AssumeRoleDenied);
    assert_eq!(statuses.next().await, denied);

    // A role that does not exist has the same message.
    let nobody = Customer {
        role_arn: "arn:aws:iam::222222222222:role/nobody".to_owned(),
        ..customer.clone()
    };
    env.api.configure(&nobody).await;
    assert_eq!(env.api.send_test("acme").await.message, REFUSED);

    let status = env.api.try_send_test("ghost").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(&status), "INTEGRATION_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_test_ends_the_backoff_at_once() {
    let env = TestEnv::with(&[("retry-first-ms", "300000")]).await;
    let (customer, _) = env.customer("acme").await;
    let mut statuses = env.api.watch_changes("acme").await;
    env.aws.delete_stream(&customer.stream_arn);
    publish_one(&env).await;
    let missing = FeedEvent::with_reason("acme", Status::Failing, StatusReason::StreamNotFound);
    assert_eq!(statuses.next().await, missing);
    // A failed test does not end the backoff.
    assert!(!env.api.send_test("acme").await.delivered);
    let status = env.api.get("acme").await.status.unwrap();
    assert!(status.next_retry_time.is_some());
    customer.make_stream(&env.aws, 1);
    assert!(env.api.send_test("acme").await.delivered);
    assert_eq!(statuses.next().await, active());
    read_events(&env.aws, &customer.stream_arn, 1).await;
    env.api.until_delivered("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configure_ends_the_backoff_at_once() {
    let env = TestEnv::with(&[("retry-first-ms", "300000")]).await;
    let (customer, _) = env.customer("acme").await;
    let mut statuses = env.api.watch_changes("acme").await;
    env.aws.delete_stream(&customer.stream_arn);
    publish_one(&env).await;
    let missing = FeedEvent::with_reason("acme", Status::Failing, StatusReason::StreamNotFound);
    assert_eq!(statuses.next().await, missing);
    customer.make_stream(&env.aws, 1);
    // A Configure ends the backoff without a change as well: the cause may have been repaired.
    env.api.configure(&customer).await;
    assert_eq!(statuses.next().await, active());
    read_events(&env.aws, &customer.stream_arn, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_does_not_wait_for_requests_in_flight() {
    let (env, customer, _) = watched().await;
    // All events have one partition key: its first request hangs, and no other may begin.
    let hanging = env.hang(Operation::PutRecords, Some(1));
    let mut load = Load::new("acme", 1, 12);
    env.api.publish(&load.events(1000)).await;
    env.until_hanging(&hanging, 1).await;
    assert!(env.api.send_test("acme").await.delivered);
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 1, "the test event overtook all pending events");
    env.aws.clear_fault(hanging.id);
    read_events(&env.aws, &customer.stream_arn, 1000).await;
}

/// Pending events of a stream that accepts nothing.
const BACKLOG: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_test_does_not_wait_behind_a_backlog() {
    let (env, customer, _) = watched().await;
    let stream_arn = Some(&*customer.stream_arn);
    let throttling = fault(Operation::PutRecords, stream_arn, throttled_records());
    let throttling = env.aws.add_fault(throttling).unwrap();
    let events = Load::new("acme", 500, 17).events(1000);
    for _ in 0..BACKLOG / 1000 {
        env.api.publish(&events).await;
    }
    let answer = env.api.send_test("acme").await;
    let pending = || async { env.api.get("acme").await.counts.unwrap().pending };
    assert_eq!(
        pending().await,
        BACKLOG as u64,
        "the test overtook all pending events"
    );
    assert!(!answer.delivered);
    let mut checks = answer.checks.iter();
    let write = checks
        .find(|check| check.name() == CheckName::WriteRecord)
        .unwrap();
    let throttled = "ProvisionedThroughputExceededException";
    assert_eq!(write.aws_error_code, throttled);
    let call = env.aws.call_by_request_id(&write.aws_request_id).unwrap();
    assert_eq!((call.operation, call.records), (Operation::PutRecords, 1));

    // Once the test is delivered, so is the rest.
    assert!(env.aws.clear_fault(throttling));
    assert!(env.api.send_test("acme").await.delivered);
    let counts = env.api.until_counts("acme", |counts| counts.delivered > 0);
    assert_eq!(counts.await.accepted, BACKLOG as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_cancels_the_call_in_flight_and_no_write_follows() {
    for operation in [Operation::AssumeRole, Operation::PutRecords] {
        let (env, customer, mut statuses) = watched().await;
        let hanging = env.hang(operation, None);
        let mut load = Load::new("acme", 50, 13);
        env.api.publish(&load.events(4000)).await;
        env.until_hanging(&hanging, 1).await;
        let start = std::time::Instant::now();
        let counts = env.api.delete("acme", false).await.unwrap().unwrap();
        assert!(
            start.elapsed().as_secs() < 5,
            "the delete waited for the call"
        );
        assert_eq!((counts.accepted, counts.discarded), (4000, 4000));
        env.until_cancelled(&hanging, operation).await;
        env.aws.reset_counts();
        env.aws.clear_fault(hanging.id);
        assert_eq!(statuses.next().await, FeedEvent::Deleted("acme".to_owned()));

        // Delivery for another customer shows that the service continues.
        let (other, integration) = env.customer("other").await;
        let mut load = Load::new("other", 1, 14);
        env.api.publish(&load.events(10)).await;
        let arrived = read_events(&env.aws, &other.stream_arn, 10).await;
        check_complete(&arrived, &integration.integration_id, &load.made);
        let late =
            env.aws.calls().into_iter().filter(|call| {
                call.outcome == "OK" && call.target.contains(&customer.organization_id)
            });
        assert_eq!(late.collect::<Vec<_>>(), [], "{operation:?}");
        let status = env.api.try_get("acme").await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_cancels_a_test_in_flight() {
    let (env, _, _) = watched().await;
    let hanging = env.hang(Operation::PutRecords, None);
    let api = env.api.clone();
    let test = tokio::spawn(async move { api.try_send_test("acme").await });
    env.until_hanging(&hanging, 1).await;
    env.api.delete("acme", false).await.unwrap();
    let status = with_timeout("the test", test).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_cancels_a_validate_only_in_flight() {
    let (env, customer, _) = watched().await;
    for operation in [Operation::AssumeRole, Operation::PutRecords] {
        env.api.configure(&customer).await;
        let hanging = env.hang(operation, None);
        let request = ConfigureRequest {
            validate_only: true,
            ..customer.request()
        };
        let api = env.api.clone();
        let validation = tokio::spawn(async move { api.try_configure(request).await });
        env.until_hanging(&hanging, 1).await;
        env.api.delete("acme", false).await.unwrap();
        let status = with_timeout("validate_only", validation).await.unwrap();
        assert_eq!(status.unwrap_err().code(), Code::NotFound);
        env.aws.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_proof_warn_an_open_role_is_reported_and_delivered_to() {
    let env = TestEnv::with(&[("external-id-proof", "warn")]).await;
    let (customer, _) = env.customer("acme").await;
    for (delivered, condition) in [
        json!({}),
        json!({ "StringLike": { "sts:ExternalId": "*" } }),
        json!({ "StringEquals": { "sts:ExternalId": customer.external_id } }),
    ]
    .into_iter()
    .enumerate()
    {
        let required = delivered == 2;
        customer.make_role_with_trust(&env.aws, condition);
        let answer = env.api.send_test("acme").await;
        assert!(answer.delivered, "{answer:?}");
        let expected = match required {
            true => CheckResult::Passed,
            false => CheckResult::Failed,
        };
        assert_eq!(result(&answer, CheckName::ExternalIdRequired), expected);
        let mut checks = answer.checks.iter();
        let check = checks.find(|check| check.name() == CheckName::ExternalIdRequired);
        assert_eq!(check.unwrap().remedy.is_empty(), required);
        assert_eq!(answer.status.unwrap().status(), Status::Active);
        publish_one(&env).await;
        env.api.until_delivered("acme").await;
        let counts = env.api.get("acme").await.counts.unwrap();
        assert_eq!(counts.delivered, delivered as u64 + 1);
    }
}
