//! SendTest, and Delete in the middle of a call.

use aws_stand_in::{Effect, Fault, Operation, RoleSpec, When};
use serde_json::json;
use siem_client::v1::{
    CheckName, CheckResult, ConfigureRequest, SendTestResponse, Status, StatusReason,
};
use tonic::Code;

use super::{active, publish_one, watched};
use crate::harness::{Customer, Load, Told, World, arrive, reason, within};

const REFUSED: &str = "Unauthorized - check your Role ARN and External ID";

fn result(answer: &SendTestResponse, name: CheckName) -> CheckResult {
    let check = answer.checks.iter().find(|check| check.name() == name);
    check.unwrap().result()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_event_arrives_and_counts_nowhere() {
    let (world, customer, mut statuses) = watched().await;
    let answer = world.api.send_test("acme").await;
    assert!(answer.delivered);
    assert_eq!(result(&answer, CheckName::AssumeRole), CheckResult::Passed);
    assert_eq!(result(&answer, CheckName::WriteRecord), CheckResult::Passed);
    assert_eq!(answer.status.as_ref().unwrap().status(), Status::Active);
    assert_eq!(statuses.next().await, active());

    let records = world.aws.records(&customer.stream_arn, 0, 10).unwrap();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    let receipt = answer.receipt.unwrap();
    assert_eq!(receipt.shard_id, record.shard_id);
    assert_eq!(receipt.sequence_number, record.sequence_number);
    assert!(receipt.latency.is_some());
    let json: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
    let integration = world.api.get("acme").await;
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
async fn a_refused_test_says_what_to_check() {
    let (world, customer, mut statuses) = watched().await;
    let wrong = Customer {
        external_id: "not-the-one-that-is-trusted".to_owned(),
        ..customer.clone()
    };
    world.api.configure(&wrong).await;
    let answer = world.api.send_test("acme").await;
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
    let denied = Told::because("acme", Status::Unauthorized, StatusReason::AssumeRoleDenied);
    assert_eq!(statuses.next().await, denied);

    // A role that is not there is refused in the same words.
    let nobody = Customer {
        role_arn: "arn:aws:iam::222222222222:role/nobody".to_owned(),
        ..customer.clone()
    };
    world.api.configure(&nobody).await;
    assert_eq!(world.api.send_test("acme").await.message, REFUSED);

    let status = world.api.try_send_test("ghost").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(&status), "INTEGRATION_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_test_ends_a_back_off_at_once() {
    let world = World::with(&[("retry-first-ms", "300000")]).await;
    let (customer, _) = world.customer("acme").await;
    let mut statuses = world.api.watch(&["acme"], "").await;
    statuses.until_synced().await;
    world.aws.delete_stream(&customer.stream_arn);
    publish_one(&world).await;
    let missing = Told::because("acme", Status::Failing, StatusReason::StreamNotFound);
    assert_eq!(statuses.next().await, missing);
    // A test that fails ends nothing.
    assert!(!world.api.send_test("acme").await.delivered);
    let status = world.api.get("acme").await.status.unwrap();
    assert!(status.next_retry_time.is_some());
    customer.make_stream(&world.aws, 1);
    assert!(world.api.send_test("acme").await.delivered);
    assert_eq!(statuses.next().await, active());
    arrive(&world.aws, &customer.stream_arn, 1).await;
    world.api.until_delivered("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configure_ends_a_back_off_at_once() {
    let world = World::with(&[("retry-first-ms", "300000")]).await;
    let (customer, _) = world.customer("acme").await;
    let mut statuses = world.api.watch(&["acme"], "").await;
    statuses.until_synced().await;
    world.aws.delete_stream(&customer.stream_arn);
    publish_one(&world).await;
    let missing = Told::because("acme", Status::Failing, StatusReason::StreamNotFound);
    assert_eq!(statuses.next().await, missing);
    customer.make_stream(&world.aws, 1);
    // The same again: nothing has changed, but someone has looked after it.
    world.api.configure(&customer).await;
    assert_eq!(statuses.next().await, active());
    arrive(&world.aws, &customer.stream_arn, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_waits_behind_nothing() {
    let (world, customer, _) = watched().await;
    // One device: its first request hangs, and no other one can begin.
    let hanging = world.hang(Operation::PutRecords, Some(1));
    let mut load = Load::new("acme", 1, 12);
    world.api.publish(&load.events(1000)).await;
    world.until_hanging(&hanging, 1).await;
    assert!(world.api.send_test("acme").await.delivered);
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 1, "the test event overtook all that waits");
    world.aws.clear_fault(hanging.id);
    arrive(&world.aws, &customer.stream_arn, 1000).await;
}

/// Events that wait in the log behind a stream that takes nothing.
const BACKLOG: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_test_does_not_wait_behind_a_backlog() {
    let (world, customer, _) = watched().await;
    let throttled = "ProvisionedThroughputExceededException";
    let fault = Fault {
        operation: Some(Operation::PutRecords),
        target: Some(customer.stream_arn.clone()),
        calls: None,
        when: When::Before,
        effect: Effect::FailRecords {
            probability: 1.0,
            seed: 0,
            code: throttled.to_owned(),
        },
    };
    let fault = world.aws.add_fault(fault).unwrap();
    let events = Load::new("acme", 500, 17).events(1000);
    for _ in 0..BACKLOG / 1000 {
        world.api.publish(&events).await;
    }
    let answer = world.api.send_test("acme").await;
    let pending = || async { world.api.get("acme").await.counts.unwrap().pending };
    assert_eq!(
        pending().await,
        BACKLOG as u64,
        "it came before all that waits"
    );
    assert!(!answer.delivered);
    let mut checks = answer.checks.iter();
    let write = checks
        .find(|check| check.name() == CheckName::WriteRecord)
        .unwrap();
    assert_eq!(write.aws_error_code, throttled);
    let call = world.aws.call_by_request_id(&write.aws_request_id).unwrap();
    assert_eq!((call.operation, call.records), (Operation::PutRecords, 1));

    // Where the test gets through, so does the rest.
    assert!(world.aws.clear_fault(fault));
    assert!(world.api.send_test("acme").await.delivered);
    let counts = world
        .api
        .until_counts("acme", |counts| counts.delivered > 0);
    assert_eq!(counts.await.accepted, BACKLOG as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_ends_the_call_under_way_and_no_write_begins_after_it() {
    for operation in [Operation::AssumeRole, Operation::PutRecords] {
        let (world, customer, mut statuses) = watched().await;
        let hanging = world.hang(operation, None);
        let mut load = Load::new("acme", 50, 13);
        world.api.publish(&load.events(4000)).await;
        world.until_hanging(&hanging, 1).await;
        let start = std::time::Instant::now();
        let counts = world.api.delete("acme", false).await.unwrap().unwrap();
        assert!(start.elapsed().as_secs() < 5, "it waited for the call");
        assert_eq!((counts.accepted, counts.discarded), (4000, 4000));
        world.until_hung_up(&hanging, operation).await;
        world.aws.reset_counts();
        world.aws.clear_fault(hanging.id);
        assert_eq!(statuses.next().await, Told::Deleted("acme".to_owned()));

        // Another one that is served shows that the service went on.
        let (other, integration) = world.customer("other").await;
        let mut load = Load::new("other", 1, 14);
        world.api.publish(&load.events(10)).await;
        let arrived = arrive(&world.aws, &other.stream_arn, 10).await;
        crate::harness::check_whole(&arrived, &integration.integration_id, &load.made);
        let late =
            world.aws.calls().into_iter().filter(|call| {
                call.outcome == "OK" && call.target.contains(&customer.organization_id)
            });
        assert_eq!(late.collect::<Vec<_>>(), [], "{operation:?}");
        let status = world.api.try_get("acme").await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_ends_a_test_under_way() {
    let (world, _, _) = watched().await;
    let hanging = world.hang(Operation::PutRecords, None);
    let api = world.api.clone();
    let test = tokio::spawn(async move { api.try_send_test("acme").await });
    world.until_hanging(&hanging, 1).await;
    world.api.delete("acme", false).await.unwrap();
    let status = within("the test", test).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_ends_a_rehearsal_under_way() {
    let (world, customer, _) = watched().await;
    for operation in [Operation::AssumeRole, Operation::PutRecords] {
        world.api.configure(&customer).await;
        let hanging = world.hang(operation, None);
        let request = ConfigureRequest {
            validate_only: true,
            ..customer.request()
        };
        let api = world.api.clone();
        let rehearsal = tokio::spawn(async move { api.try_configure(request).await });
        world.until_hanging(&hanging, 1).await;
        world.api.delete("acme", false).await.unwrap();
        let status = within("the rehearsal", rehearsal).await.unwrap();
        assert_eq!(status.unwrap_err().code(), Code::NotFound);
        world.aws.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_warn_a_role_that_does_not_require_the_external_id_is_told_and_delivered_to() {
    let world = World::with(&[("external-id-proof", "warn")]).await;
    let (customer, _) = world.customer("acme").await;
    let policy = |statement: serde_json::Value| {
        json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
    };
    for (delivered, condition) in [
        json!({}),
        json!({ "StringLike": { "sts:ExternalId": "*" } }),
        json!({ "StringEquals": { "sts:ExternalId": customer.external_id } }),
    ]
    .into_iter()
    .enumerate()
    {
        let required = delivered == 2;
        let trust = policy(json!({
            "Effect": "Allow",
            "Principal": { "AWS": "111111111111" },
            "Action": "sts:AssumeRole",
            "Condition": condition,
        }));
        let everything = policy(json!({ "Effect": "Allow", "Action": "*", "Resource": "*" }));
        let role = RoleSpec::new(&customer.role_arn, trust, everything);
        world.aws.put_role(role).unwrap();
        let answer = world.api.send_test("acme").await;
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
        publish_one(&world).await;
        world.api.until_delivered("acme").await;
        let counts = world.api.get("acme").await.counts.unwrap();
        assert_eq!(counts.delivered, delivered as u64 + 1);
    }
}
