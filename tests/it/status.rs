//! What the status says, and who is told.

mod attribution;
mod feed;
mod matrix;
mod subscribers;
mod test_event;

use aws_stand_in::{Effect, Fault, Operation, When};
use siem_client::v1::{Status, StatusReason};

use crate::harness::{Customer, Load, StatusFeed, Told, World, arrive};

/// A world with one organization that is watched from the start.
async fn watched() -> (World, Customer, StatusFeed) {
    let world = World::start().await;
    let (customer, _) = world.customer("acme").await;
    let mut statuses = world.api.watch(&["acme"], "").await;
    let before = statuses.until_synced().await;
    assert_eq!(before, [Told::current("acme", Status::Unknown)]);
    (world, customer, statuses)
}

fn active() -> Told {
    Told::current("acme", Status::Active)
}

fn unknown() -> Told {
    Told::current("acme", Status::Unknown)
}

async fn publish_one(world: &World) {
    let mut load = Load::new("acme", 1, rand::random());
    world.api.publish(&load.events(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_delivery_makes_it_active() {
    let (world, _, mut statuses) = watched().await;
    publish_one(&world).await;
    assert_eq!(statuses.next().await, active());
    let told = statuses.last.unwrap();
    assert!(told.last_attempt_time.is_some());
    assert!(told.last_delivery_time.is_some());
    assert!(told.next_retry_time.is_none());
    assert_eq!(told.aws_error_code, "");
    let got = world.api.get("acme").await.status.unwrap();
    assert_eq!(got.status(), Status::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_external_id_shows_and_heals() {
    let (world, customer, mut statuses) = watched().await;
    let wrong = Customer {
        external_id: "not-the-one-that-is-trusted".to_owned(),
        ..customer.clone()
    };
    world.api.configure(&wrong).await;
    publish_one(&world).await;
    let denied = Told::because("acme", Status::Unauthorized, StatusReason::AssumeRoleDenied);
    assert_eq!(statuses.next().await, denied);
    let told = statuses.last.clone().unwrap();
    assert_eq!(told.aws_error_code, "AccessDenied");
    assert!(!told.aws_request_id.is_empty());
    assert!(told.next_retry_time.is_some());
    assert!(told.last_delivery_time.is_none());
    let message = "Unauthorized - check your Role ARN and External ID. ";
    assert!(told.message.starts_with(message), "{}", told.message);
    let counts = world.api.get("acme").await.counts.unwrap();
    assert_eq!(counts.pending, 1);
    assert!(counts.pending_bytes > 0);
    assert!(counts.oldest_pending_time.is_some());

    world.api.configure(&customer).await;
    assert_eq!(statuses.next().await, unknown());
    assert_eq!(statuses.next().await, active());
    arrive(&world.aws, &customer.stream_arn, 1).await;
    world.api.until_delivered("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_write_shows_and_heals_by_itself() {
    let (world, customer, mut statuses) = watched().await;
    customer.make_role_that_may(&world.aws, "kinesis:GetRecords");
    publish_one(&world).await;
    let denied = Told::because("acme", Status::Unauthorized, StatusReason::WriteDenied);
    assert_eq!(statuses.next().await, denied);
    let code = statuses.last.clone().unwrap().aws_error_code;
    assert_eq!(code, "AccessDeniedException");
    customer.make_role(&world.aws);
    assert_eq!(statuses.next().await, active());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_shows_and_heals_by_itself() {
    let (world, customer, mut statuses) = watched().await;
    publish_one(&world).await;
    assert_eq!(statuses.next().await, active());
    world.aws.delete_stream(&customer.stream_arn);
    publish_one(&world).await;
    let missing = Told::because("acme", Status::Failing, StatusReason::StreamNotFound);
    assert_eq!(statuses.next().await, missing);
    let told = statuses.last.clone().unwrap();
    assert_eq!(told.aws_error_code, "ResourceNotFoundException");
    assert!(told.last_delivery_time.is_some(), "it was delivered once");
    customer.make_stream(&world.aws, 1);
    assert_eq!(statuses.next().await, active());
    arrive(&world.aws, &customer.stream_arn, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_soon_changes_no_status() {
    let (world, customer, mut statuses) = watched().await;
    publish_one(&world).await;
    assert_eq!(statuses.next().await, active());
    for code in ["ProvisionedThroughputExceededException", "InternalFailure"] {
        let fault = Fault {
            operation: Some(Operation::PutRecords),
            target: None,
            calls: Some(2),
            when: When::Before,
            effect: Effect::Error {
                code: code.to_owned(),
                status: 500,
                message: String::new(),
            },
        };
        world.aws.add_fault(fault).unwrap();
    }
    publish_one(&world).await;
    arrive(&world.aws, &customer.stream_arn, 2).await;
    world.api.until_delivered("acme").await;
    // A change that is told next proves that none came before it.
    world.api.delete("acme", false).await.unwrap();
    assert_eq!(statuses.next().await, Told::Deleted("acme".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_integration_that_is_mended_forgets_what_it_met_before() {
    let (world, customer, mut statuses) = watched().await;
    // The status stays Unknown while it is throttled, but tells the code.
    let fault = Fault {
        operation: Some(Operation::PutRecords),
        target: None,
        calls: Some(1),
        when: When::Before,
        effect: Effect::Error {
            code: "ProvisionedThroughputExceededException".to_owned(),
            status: 400,
            message: String::new(),
        },
    };
    world.aws.add_fault(fault).unwrap();
    world.hang(Operation::PutRecords, None);
    publish_one(&world).await;
    let status = world
        .api
        .until_status("acme", |status| !status.aws_error_code.is_empty());
    let code = status.await.aws_error_code;
    assert_eq!(code, "ProvisionedThroughputExceededException");
    let other = customer.with_stream("elsewhere");
    let replaced = world.api.configure(&other).await.status.unwrap();
    assert_eq!(replaced.status(), Status::Unknown);
    assert_eq!(replaced.aws_error_code, "");
    assert!(replaced.last_attempt_time.is_none());
    assert!(replaced.next_retry_time.is_none());
    other.make_stream(&world.aws, 1);
    world.aws.clear_faults();
    // A call that was under way may still have taken the event to the old stream.
    publish_one(&world).await;
    assert_eq!(statuses.next().await, active());
}
