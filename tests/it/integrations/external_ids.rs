//! Issued external IDs, and rotation of external IDs.

use std::{io, process::Stdio};

use siem_client::v1;

use crate::harness::{Customer, Load, TestEnv, read_events, run, tool, violated, with_timeout};

async fn publish(env: &TestEnv, load: &mut Load, count: usize) {
    env.api.publish(&load.events(count)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_does_not_interrupt_delivery() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut load = Load::new("acme", 1, 7);
    publish(&env, &mut load, 1).await;
    read_events(&env.aws, &customer.stream_arn, 1).await;

    // The new one is configured before the customer has changed its trust policy.
    let new = customer.with_external_id("the-new-external-id-0123456789");
    let configured = rotate(&env, &new).await;
    assert_eq!(configured.external_id_hint, "6789");
    let old_hint = configured.previous_external_id_hint.clone();
    assert!(customer.external_id.ends_with(&old_hint) && !old_hint.is_empty());
    assert!(configured.previous_external_id_expire_time.is_some());
    publish(&env, &mut load, 1).await;
    read_events(&env.aws, &customer.stream_arn, 2).await;
    let test = env.api.send_test("acme").await;
    assert!(test.delivered && test.checks[0].message.contains("the new one is refused"));

    // Once the customer has changed its trust policy, only the new one is used.
    new.make_role(&env.aws);
    assert!(env.api.send_test("acme").await.delivered);
    env.aws.expire_sessions();
    publish(&env, &mut load, 1).await;
    read_events(&env.aws, &customer.stream_arn, 3).await;
    let env = env.restart().await;
    let got = env.api.get("acme").await;
    assert_eq!(got.previous_external_id_hint, "");
    assert_eq!(got.previous_external_id_expire_time, None);
    assert_eq!(got.external_id_hint, "6789");
}

/// Configures another external ID and keeps the one in use as the previous one.
async fn rotate(env: &TestEnv, new: &Customer) -> v1::Integration {
    let request = v1::ConfigureRequest {
        keep_previous_external_id: true,
        ..new.request()
    };
    env.api.try_configure(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_new_external_id_can_be_corrected_during_a_rotation() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut load = Load::new("acme", 1, 7);
    publish(&env, &mut load, 1).await;
    read_events(&env.aws, &customer.stream_arn, 1).await;
    let mistyped = customer.with_external_id("mistyped-external-id-1111");
    let first = rotate(&env, &mistyped).await;
    let correct = customer.with_external_id("the-new-external-id-2222");
    let corrected = rotate(&env, &correct).await;
    assert_eq!(corrected.external_id_hint, "2222");
    let previous = |integration: &v1::Integration| {
        (
            integration.previous_external_id_hint.clone(),
            integration.previous_external_id_expire_time,
        )
    };
    assert!(customer.external_id.ends_with(&previous(&first).0));
    assert_eq!(
        previous(&corrected),
        previous(&first),
        "no longer than before"
    );
    publish(&env, &mut load, 1).await;
    read_events(&env.aws, &customer.stream_arn, 2).await;
    // The mistyped one is available to others.
    let other = Customer::new("globex").with_external_id(&mistyped.external_id);
    env.api.configure(&other).await;

    // A rotation back to the one in use keeps the last one as the previous one.
    let back = rotate(&env, &customer).await;
    assert_eq!(back.previous_external_id_hint, "2222");
    publish(&env, &mut load, 1).await;
    read_events(&env.aws, &customer.stream_arn, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_external_id_without_rotation_applies_at_once() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let new = customer.with_external_id("the-new-external-id-0123456789");
    env.api.configure(&new).await;
    assert!(!env.api.send_test("acme").await.delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_issued_policy_accepts_only_issued_external_ids() {
    let env = TestEnv::with(&[("external-id-policy", "issued")]).await;
    let customer = Customer::new("acme");
    let status = env.api.try_configure(customer.request()).await.unwrap_err();
    assert_eq!(violated(&status), ["external_id"]);
    let issued = Customer {
        external_id: env.api.generate_external_id("acme").await,
        ..customer
    };
    assert_eq!(issued.external_id.len(), 64);
    // Another organization may not use it, even before it is configured.
    let other = Customer {
        organization_id: "globex".to_owned(),
        ..issued.clone()
    };
    let status = env.api.try_configure(other.request()).await.unwrap_err();
    assert_eq!(violated(&status), ["external_id"]);
    issued.make_role(&env.aws);
    issued.make_stream(&env.aws, 1);
    env.api.configure(&issued).await;
    assert!(env.api.send_test("acme").await.delivered);
    // A configured one may be kept.
    let again = v1::ConfigureRequest {
        external_id: String::new(),
        ..issued.request()
    };
    env.api.try_configure(again).await.unwrap();
}

/// A new external ID is shown once. If that fails it is lost, which must not look like success.
#[tokio::test]
async fn onboarding_fails_if_a_new_external_id_cannot_be_shown() {
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
    assert!(shown.stderr.contains("shown only this once"), "{shown:?}");
    let mut command = tool(&arguments);
    command.stdout(Stdio::null());
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    command.stderr(writer);
    let ended = with_timeout("the end of the tool", command.status()).await;
    assert_eq!(ended.unwrap().code(), Some(1));
}
