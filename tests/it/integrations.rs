//! Configure, Get, List and Delete.

mod external_ids;
mod secrecy;

use siem_client::v1::{self, ErrorReason, ListRequest, Status};
use tonic::Code;

use crate::harness::{Customer, Load, World, arrive, check_whole, reason, violated};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_configured_is_got_back() {
    let world = World::start().await;
    let (customer, created) = world.customer("acme").await;
    let got = world.api.get("acme").await;
    assert_eq!(got, created);
    assert_eq!(got.organization_id, "acme");
    assert_eq!(got.kinesis_stream_arn, customer.stream_arn);
    assert_eq!(got.role_arn, customer.role_arn);
    assert_eq!(got.external_id_hint, "acme", "its last four characters");
    assert_eq!(got.create_time, got.update_time);
    assert_eq!(got.create_time, got.external_id_set_time);
    let version = uuid::Uuid::parse_str(&got.integration_id).unwrap();
    assert_eq!(version.get_version_num(), 7);
    let status = got.status.unwrap();
    assert_eq!(status.status(), Status::Unknown);
    assert!(status.since_time.is_some() && status.last_attempt_time.is_none());
    assert_eq!(got.counts.unwrap(), v1::EventCounts::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_keeps_what_it_does_not_name() {
    let world = World::start().await;
    let (customer, created) = world.customer("acme").await;
    let request = v1::ConfigureRequest {
        external_id: String::new(),
        ..customer.with_stream("elsewhere").request()
    };
    let replaced = world.api.try_configure(request).await.unwrap();
    assert_eq!(replaced.integration_id, created.integration_id);
    assert!(replaced.kinesis_stream_arn.ends_with("/elsewhere"));
    assert_eq!(replaced.external_id_hint, created.external_id_hint);
    assert_eq!(replaced.external_id_set_time, created.external_id_set_time);
    assert_eq!(replaced.create_time, created.create_time);
    assert_ne!(replaced.etag, created.etag);
    // It is the stored external ID that the role is assumed with.
    customer.with_stream("elsewhere").make_stream(&world.aws, 1);
    assert!(world.api.send_test("acme").await.delivered);

    let request = v1::ConfigureRequest {
        external_id: "a-new-external-id-of-some-length-9999".to_owned(),
        ..customer.request()
    };
    let replaced = world.api.try_configure(request).await.unwrap();
    assert_eq!(replaced.external_id_hint, "9999");
    assert_ne!(replaced.external_id_set_time, created.external_id_set_time);
    let world = world.restart().await;
    assert_eq!(world.api.get("acme").await, replaced);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_guards_against_what_was_not_seen() {
    let world = World::start().await;
    let (customer, created) = world.customer("acme").await;
    let with = |etag: &str| v1::ConfigureRequest {
        etag: etag.to_owned(),
        ..customer.request()
    };
    let replaced = world.api.try_configure(with(&created.etag)).await.unwrap();
    assert_ne!(replaced.etag, created.etag, "each Configure changes it");
    for stale in [created.etag.as_str(), "nonsense"] {
        let status = world.api.try_configure(with(stale)).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(reason(&status), "ETAG_MISMATCH");
    }
    assert_eq!(world.api.get("acme").await.etag, replaced.etag);
    // An etag of an integration that is gone does not create another one.
    world.api.delete("acme", false).await.unwrap();
    let status = world
        .api
        .try_configure(with(&replaced.etag))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    let recreated = world.api.configure(&customer).await;
    assert_ne!(recreated.etag, created.etag, "no etag comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_saw_the_same_only_one_wins() {
    let world = World::start().await;
    let (customer, created) = world.customer("acme").await;
    let mut attempts = Vec::new();
    for n in 0..20 {
        let request = v1::ConfigureRequest {
            etag: created.etag.clone(),
            ..customer.with_stream(&format!("stream-{n}")).request()
        };
        let api = world.api.clone();
        attempts.push(tokio::spawn(
            async move { api.try_configure(request).await },
        ));
    }
    let mut won = Vec::new();
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(integration) => won.push(integration),
            Err(status) => assert_eq!(status.code(), Code::Aborted),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(world.api.get("acme").await, won[0]);
}

/// A Configure and a Delete that arrive together may share a commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_configure_that_is_deleted_at_once_is_answered() {
    let world = World::start().await;
    let pair = async |n: usize| {
        let organization_id = format!("org-{n}");
        let customer = Customer::new(&organization_id);
        let configure = world.api.try_configure(customer.request());
        let delete = world.api.delete(&organization_id, true);
        let (configured, counts) = tokio::join!(configure, delete);
        assert_eq!(configured.unwrap().organization_id, organization_id);
        counts.unwrap().is_some()
    };
    let deleted = futures_util::future::join_all((0..200).map(pair)).await;
    assert!(
        deleted.contains(&true),
        "no Delete came behind its Configure"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_organizations_do_not_share_an_external_id() {
    let world = World::start().await;
    let (first, _) = world.customer("first").await;
    let (second, _) = world.customer("second").await;
    for organization_id in ["second", "third"] {
        let request = v1::ConfigureRequest {
            organization_id: organization_id.to_owned(),
            external_id: first.external_id.clone(),
            ..second.request()
        };
        let status = world.api.try_configure(request).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        assert_eq!(reason(&status), "EXTERNAL_ID_IN_USE");
    }
    // Its own is no conflict, and once it is gone it is free.
    world.api.configure(&first).await;
    world.api.delete("first", false).await.unwrap();
    let request = v1::ConfigureRequest {
        external_id: first.external_id,
        ..second.request()
    };
    world.api.try_configure(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_violation_is_named_at_once() {
    let world = World::start().await;
    let empty = v1::ConfigureRequest::default();
    let status = world.api.try_configure(empty).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status), "INVALID_FIELD");
    let all = [
        "organization_id",
        "kinesis_stream_arn",
        "role_arn",
        "external_id",
    ];
    assert_eq!(violated(&status), all);
    let bad = v1::ConfigureRequest {
        organization_id: "not an id".to_owned(),
        kinesis_stream_arn: "arn:aws:sqs:eu-west-1:222222222222:queue".to_owned(),
        role_arn: "arn:aws:iam::2222:role/x".to_owned(),
        external_id: "sesame open".to_owned(),
        etag: "x".repeat(10_000),
        ..v1::ConfigureRequest::default()
    };
    let status = world.api.try_configure(bad).await.unwrap_err();
    assert_eq!(violated(&status), [&all[..], &["etag"]].concat());
    assert!(!status.message().contains("sesame"));

    let customer = Customer::new("acme");
    let cases: [(&str, v1::ConfigureRequest); 8] = [
        (
            "kinesis_stream_arn",
            with_stream(
                &customer,
                "arn:aws:firehose:eu-west-1:222222222222:deliverystream/x",
            ),
        ),
        (
            "kinesis_stream_arn",
            with_stream(&customer, "arn:aws:kinesis::222222222222:stream/x"),
        ),
        (
            "kinesis_stream_arn",
            with_stream(
                &customer,
                "arn:aws:kinesis:eu-west-1:222222222222:stream/x/consumer/y:1",
            ),
        ),
        (
            "kinesis_stream_arn",
            with_stream(&customer, &customer.role_arn),
        ),
        (
            "role_arn",
            with_role(&customer, "arn:aws:sts::222222222222:assumed-role/x/y"),
        ),
        (
            "role_arn",
            with_role(&customer, "arn:aws:iam::222222222222:user/x"),
        ),
        (
            "role_arn",
            with_role(&customer, "arn:aws-cn:iam::222222222222:role/x"),
        ),
        (
            "external_id",
            v1::ConfigureRequest {
                external_id: "x".repeat(1225),
                ..customer.request()
            },
        ),
    ];
    for (field, request) in cases {
        let status = world.api.try_configure(request).await.unwrap_err();
        assert_eq!(violated(&status), [field], "{status:?}");
    }
    let status = world.api.try_get("acme").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "nothing was saved");
}

fn with_stream(customer: &Customer, stream_arn: &str) -> v1::ConfigureRequest {
    v1::ConfigureRequest {
        kinesis_stream_arn: stream_arn.to_owned(),
        ..customer.request()
    }
}

fn with_role(customer: &Customer, role_arn: &str) -> v1::ConfigureRequest {
    v1::ConfigureRequest {
        role_arn: role_arn.to_owned(),
        ..customer.request()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let world = World::start().await;
    let expected = ErrorReason::IntegrationNotFound.as_str_name();
    for status in [
        world.api.try_get("ghost").await.unwrap_err(),
        world.api.delete("ghost", false).await.unwrap_err(),
        world.api.try_send_test("ghost").await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound);
        assert!(expected.ends_with(&reason(&status)));
    }
    assert_eq!(world.api.delete("ghost", true).await.unwrap(), None);
    for bad in ["", "a b", "é", &"x".repeat(65)] {
        let status = world.api.try_get(bad).await.unwrap_err();
        assert_eq!(violated(&status), ["organization_id"]);
        let status = world.api.delete(bad, true).await.unwrap_err();
        assert_eq!(violated(&status), ["organization_id"]);
        let status = world.api.try_send_test(bad).await.unwrap_err();
        assert_eq!(violated(&status), ["organization_id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_pages_in_order_and_filters() {
    let world = World::start().await;
    let mut names: Vec<String> = (0..25).map(|n| format!("org-{n}")).collect();
    for name in &names {
        world.customer(name).await;
    }
    names.sort();
    assert!(world.api.send_test("org-3").await.delivered);
    let mut listed: Vec<String> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRequest {
            page_size: 10,
            page_token,
            statuses: Vec::new(),
        };
        let page = world.api.list(request).await.unwrap();
        listed.extend(
            page.integrations
                .iter()
                .map(|one| one.organization_id.clone()),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        assert_eq!(page.integrations.len(), 10);
    }
    assert_eq!(listed, names);
    let all = world.api.list(ListRequest::default()).await.unwrap();
    assert_eq!(all.integrations.len(), 25);
    assert_eq!(all.next_page_token, "");
    assert_eq!(all.integrations[0], world.api.get(&names[0]).await);

    let filtered = async |statuses: &[Status], page_size| {
        let request = ListRequest {
            page_size,
            page_token: String::new(),
            statuses: statuses.iter().map(|status| *status as i32).collect(),
        };
        world.api.list(request).await.unwrap()
    };
    let active = filtered(&[Status::Active], 1).await;
    assert_eq!(active.integrations.len(), 1);
    assert_eq!(active.integrations[0].organization_id, "org-3");
    assert_eq!(active.next_page_token, "", "no empty page follows");
    assert_eq!(filtered(&[Status::Unknown], 0).await.integrations.len(), 24);
    let both = filtered(&[Status::Unknown, Status::Active], 0).await;
    assert_eq!(both.integrations.len(), 25);
    assert_eq!(filtered(&[Status::Failing], 0).await.integrations, []);

    let request = ListRequest {
        page_size: 1001,
        page_token: "not a token".to_owned(),
        statuses: vec![0, 77],
    };
    let status = world.api.list(request).await.unwrap_err();
    let fields = ["page_size", "page_token", "statuses[0]", "statuses[1]"];
    assert_eq!(violated(&status), fields);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_integration_takes_its_pending_events_along() {
    // After the one attempt nothing is on its way to the stream any more.
    let world = World::with(&[("retry-first-ms", "60000"), ("retry-most-ms", "60000")]).await;
    let (customer, created) = world.customer("acme").await;
    let mut load = Load::new("acme", 3, 20);
    world.api.publish(&load.events(100)).await;
    world.api.until_delivered("acme").await;
    world.aws.delete_stream(&customer.stream_arn);
    world.api.publish(&load.events(50)).await;
    let refused = |status: &v1::IntegrationStatus| status.status() == Status::Failing;
    world.api.until_status("acme", refused).await;
    let counts = world.api.delete("acme", false).await.unwrap().unwrap();
    assert_eq!(
        (counts.accepted, counts.delivered, counts.discarded),
        (150, 100, 50)
    );
    customer.make_stream(&world.aws, 1);

    // Nobody's events are never delivered later.
    let answer = world.api.try_publish(load.events(10)).await.unwrap();
    assert_eq!((answer.accepted, answer.unconfigured), (0, 10));

    let recreated = world.api.configure(&customer).await;
    assert_ne!(recreated.integration_id, created.integration_id);
    assert_eq!(recreated.counts.unwrap(), v1::EventCounts::default());
    let mut load = Load::new("acme", 3, 21);
    world.api.publish(&load.events(20)).await;
    let arrived = arrive(&world.aws, &customer.stream_arn, 20).await;
    check_whole(&arrived, &recreated.integration_id, &load.made);

    let world = world.restart().await;
    let counts = world.api.get("acme").await.counts.unwrap();
    assert_eq!((counts.accepted, counts.delivered), (20, 20));
}
