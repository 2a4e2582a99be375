//! Issued external IDs, and their rotation.

use std::{io, process::Stdio};

use siem_client::v1;

use crate::harness::{Customer, Load, World, arrive, reason, run, tool, violated, within};

async fn publish(world: &World, load: &mut Load, count: usize) {
    world.api.publish(&load.events(count)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_leaves_no_gap() {
    let world = World::start().await;
    let (customer, _) = world.customer("acme").await;
    let mut load = Load::new("acme", 1, 7);
    publish(&world, &mut load, 1).await;
    arrive(&world.aws, &customer.stream_arn, 1).await;

    // Configured beside the old one, before the customer has changed its trust policy.
    let new = Customer {
        external_id: "the-new-external-id-0123456789".to_owned(),
        ..customer.clone()
    };
    let request = v1::ConfigureRequest {
        keep_previous_external_id: true,
        ..new.request()
    };
    let configured = world.api.try_configure(request).await.unwrap();
    assert_eq!(configured.external_id_hint, "6789");
    let old_hint = configured.previous_external_id_hint.clone();
    assert!(customer.external_id.ends_with(&old_hint) && !old_hint.is_empty());
    assert!(configured.previous_external_id_expire_time.is_some());
    publish(&world, &mut load, 1).await;
    arrive(&world.aws, &customer.stream_arn, 2).await;
    let test = world.api.send_test("acme").await;
    assert!(test.delivered && test.checks[0].message.contains("the new one is refused"));

    // The customer changes its trust policy: the new one takes over, for good.
    new.make_role(&world.aws);
    assert!(world.api.send_test("acme").await.delivered);
    world.aws.expire_sessions();
    publish(&world, &mut load, 1).await;
    arrive(&world.aws, &customer.stream_arn, 3).await;
    let world = world.restart().await;
    let got = world.api.get("acme").await;
    assert_eq!(got.previous_external_id_hint, "");
    assert_eq!(got.previous_external_id_expire_time, None);
    assert_eq!(got.external_id_hint, "6789");
}

/// Configures another external ID, beside the one that serves.
async fn rotate(world: &World, customer: &Customer, external_id: &str) -> v1::Integration {
    let new = Customer {
        external_id: external_id.to_owned(),
        ..customer.clone()
    };
    let request = v1::ConfigureRequest {
        keep_previous_external_id: true,
        ..new.request()
    };
    world.api.try_configure(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_new_one_can_be_corrected_without_a_gap() {
    let world = World::start().await;
    let (customer, _) = world.customer("acme").await;
    let mut load = Load::new("acme", 1, 7);
    publish(&world, &mut load, 1).await;
    arrive(&world.aws, &customer.stream_arn, 1).await;
    let first = rotate(&world, &customer, "mistyped-external-id-1111").await;
    let corrected = rotate(&world, &customer, "the-new-external-id-2222").await;
    assert_eq!(corrected.external_id_hint, "2222");
    let serves = |integration: &v1::Integration| {
        (
            integration.previous_external_id_hint.clone(),
            integration.previous_external_id_expire_time,
        )
    };
    assert!(customer.external_id.ends_with(&serves(&first).0));
    assert_eq!(serves(&corrected), serves(&first), "no longer than before");
    publish(&world, &mut load, 1).await;
    arrive(&world.aws, &customer.stream_arn, 2).await;
    // The one that was never right is free for others.
    let other = Customer {
        external_id: "mistyped-external-id-1111".to_owned(),
        ..Customer::new("globex")
    };
    world.api.configure(&other).await;

    // Back to the one that serves: then there is none before it but the last.
    let back = rotate(&world, &customer, &customer.external_id).await;
    assert_eq!(back.previous_external_id_hint, "2222");
    publish(&world, &mut load, 1).await;
    arrive(&world.aws, &customer.stream_arn, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keeping_the_previous_one_a_new_one_counts_at_once() {
    let world = World::start().await;
    let (customer, _) = world.customer("acme").await;
    let new = Customer {
        external_id: "the-new-external-id-0123456789".to_owned(),
        ..customer
    };
    world.api.configure(&new).await;
    assert!(!world.api.send_test("acme").await.delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_issued_ones_where_the_policy_says_so() {
    let world = World::with(&[("external-id-policy", "issued")]).await;
    let customer = Customer::new("acme");
    let status = world
        .api
        .try_configure(customer.request())
        .await
        .unwrap_err();
    assert_eq!(violated(&status), ["external_id"]);
    let issued = Customer {
        external_id: world.api.generate_external_id("acme").await,
        ..customer
    };
    assert_eq!(issued.external_id.len(), 64);
    // Whoever else uses it is refused, though nobody has configured it.
    let other = Customer {
        organization_id: "globex".to_owned(),
        ..issued.clone()
    };
    let status = world.api.try_configure(other.request()).await.unwrap_err();
    assert_eq!(reason(&status), "EXTERNAL_ID_IN_USE");
    issued.make_role(&world.aws);
    issued.make_stream(&world.aws, 1);
    world.api.configure(&issued).await;
    assert!(world.api.send_test("acme").await.delivered);
    // What was configured may stay as it is.
    let again = v1::ConfigureRequest {
        external_id: String::new(),
        ..issued.request()
    };
    world.api.try_configure(again).await.unwrap();
}

/// It is shown once: where that fails it is lost, which must not look like success.
#[tokio::test]
async fn a_new_external_id_that_cannot_be_shown_is_a_failure() {
    let arguments = [
        "onboarding",
        "--stream=arn:aws:kinesis:eu-west-1:222222222222:stream/detections",
        "--role-name=siem-delivery",
        "--principal=111111111111",
        "--format=terraform",
        "--generate-external-id",
    ];
    let shown = run(tool(&arguments)).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stderr.contains("shown this once"), "{shown:?}");
    let mut unseen = tool(&arguments);
    unseen.stdout(Stdio::null());
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    unseen.stderr(writer);
    let ended = within("the end of the tool", unseen.status()).await;
    assert_eq!(ended.unwrap().code(), Some(1));
}
