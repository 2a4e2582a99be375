//! Configure, Get, List and Delete.

mod external_ids;
mod secrecy;

use siem_client::v1::{self, ErrorReason, ListRequest, Status};
use tonic::Code;

use crate::harness::{Customer, Load, TestEnv, check_complete, read_events, reason, violated};

#[tokio::test(flavor = "multi_thread")]
async fn get_returns_the_configured_integration() {
    let env = TestEnv::start().await;
    let (customer, created) = env.customer("acme").await;
    let got = env.api.get("acme").await;
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
async fn a_replacement_keeps_an_omitted_external_id() {
    let env = TestEnv::start().await;
    let (customer, created) = env.customer("acme").await;
    let request = v1::ConfigureRequest {
        external_id: String::new(),
        ..customer.with_stream("elsewhere").request()
    };
    let replaced = env.api.try_configure(request).await.unwrap();
    assert_eq!(replaced.integration_id, created.integration_id);
    assert!(replaced.kinesis_stream_arn.ends_with("/elsewhere"));
    assert_eq!(replaced.external_id_hint, created.external_id_hint);
    assert_eq!(replaced.external_id_set_time, created.external_id_set_time);
    assert_eq!(replaced.create_time, created.create_time);
    assert_ne!(replaced.etag, created.etag);
    // The role is assumed with the stored external ID.
    customer.with_stream("elsewhere").make_stream(&env.aws, 1);
    assert!(env.api.send_test("acme").await.delivered);

    let request = v1::ConfigureRequest {
        external_id: "a-new-external-id-of-some-length-9999".to_owned(),
        ..customer.request()
    };
    let replaced = env.api.try_configure(request).await.unwrap();
    assert_eq!(replaced.external_id_hint, "9999");
    assert_ne!(replaced.external_id_set_time, created.external_id_set_time);
    let env = env.restart().await;
    assert_eq!(env.api.get("acme").await, replaced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_etag_is_refused() {
    let env = TestEnv::start().await;
    let (customer, created) = env.customer("acme").await;
    let with = |etag: &str| v1::ConfigureRequest {
        etag: etag.to_owned(),
        ..customer.request()
    };
    let replaced = env.api.try_configure(with(&created.etag)).await.unwrap();
    assert_ne!(replaced.etag, created.etag, "each Configure changes it");
    for stale in [created.etag.as_str(), "nonsense"] {
        let status = env.api.try_configure(with(stale)).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(reason(&status), "ETAG_MISMATCH");
    }
    assert_eq!(env.api.get("acme").await.etag, replaced.etag);
    for (etag, code) in [
        (&created.etag, Code::Aborted),
        (&"x".repeat(10_000), Code::Aborted),
        (&replaced.etag, Code::Ok),
        (&replaced.etag, Code::NotFound),
    ] {
        let request = v1::DeleteRequest {
            organization_id: "acme".to_owned(),
            etag: etag.clone(),
            ..Default::default()
        };
        let answer = env.api.integrations().delete(request).await;
        assert_eq!(
            answer.map_or_else(|status| status.code(), |_| Code::Ok),
            code
        );
    }
    // The etag of a deleted integration does not create another one.
    let status = env
        .api
        .try_configure(with(&replaced.etag))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    let recreated = env.api.configure(&customer).await;
    assert_ne!(recreated.etag, created.etag, "no etag is used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_replacements_with_one_etag_one_succeeds() {
    let env = TestEnv::start().await;
    let (customer, created) = env.customer("acme").await;
    let mut attempts = Vec::new();
    for n in 0..20 {
        let request = v1::ConfigureRequest {
            etag: created.etag.clone(),
            ..customer.with_stream(&format!("stream-{n}")).request()
        };
        let api = env.api.clone();
        attempts.push(tokio::spawn(
            async move { api.try_configure(request).await },
        ));
    }
    let mut successes = Vec::new();
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(integration) => successes.push(integration),
            Err(status) => assert_eq!(status.code(), Code::Aborted),
        }
    }
    assert_eq!(successes.len(), 1);
    assert_eq!(env.api.get("acme").await, successes[0]);
}

/// A Configure and a Delete that arrive together may share a commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_configure_deleted_in_the_same_commit_is_answered() {
    let env = TestEnv::start().await;
    let pair = async |n: usize| {
        let organization_id = format!("org-{n}");
        let customer = Customer::new(&organization_id);
        let configure = env.api.try_configure(customer.request());
        let delete = env.api.delete(&organization_id, true);
        let (configured, counts) = tokio::join!(configure, delete);
        assert_eq!(configured.unwrap().organization_id, organization_id);
        counts.unwrap().is_some()
    };
    let deleted = futures_util::future::join_all((0..200).map(pair)).await;
    assert!(deleted.contains(&true), "no Delete followed its Configure");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_organizations_cannot_share_an_external_id() {
    let env = TestEnv::start().await;
    let (first, _) = env.customer("first").await;
    let (second, _) = env.customer("second").await;
    for organization_id in ["second", "third"] {
        let request = v1::ConfigureRequest {
            organization_id: organization_id.to_owned(),
            external_id: first.external_id.clone(),
            ..second.request()
        };
        let status = env.api.try_configure(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason(&status), "INVALID_FIELD");
        assert_eq!(violated(&status), ["external_id"]);
    }
    // An organization may configure its own again, and a deleted one's is available.
    env.api.configure(&first).await;
    env.api.delete("first", false).await.unwrap();
    let request = v1::ConfigureRequest {
        external_id: first.external_id,
        ..second.request()
    };
    env.api.try_configure(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn configure_reports_every_violation_at_once() {
    let env = TestEnv::start().await;
    let empty = v1::ConfigureRequest::default();
    let status = env.api.try_configure(empty).await.unwrap_err();
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
    let status = env.api.try_configure(bad).await.unwrap_err();
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
        let status = env.api.try_configure(request).await.unwrap_err();
        assert_eq!(violated(&status), [field], "{status:?}");
    }
    let status = env.api.try_get("acme").await.unwrap_err();
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
async fn calls_on_a_missing_integration_are_not_found() {
    let env = TestEnv::start().await;
    let expected = ErrorReason::IntegrationNotFound.as_str_name();
    for status in [
        env.api.try_get("ghost").await.unwrap_err(),
        env.api.delete("ghost", false).await.unwrap_err(),
        env.api.try_send_test("ghost").await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound);
        assert!(expected.ends_with(&reason(&status)));
    }
    assert_eq!(env.api.delete("ghost", true).await.unwrap(), None);
    for bad in ["", "a b", "é", &"x".repeat(65)] {
        let status = env.api.try_get(bad).await.unwrap_err();
        assert_eq!(violated(&status), ["organization_id"]);
        let status = env.api.delete(bad, true).await.unwrap_err();
        assert_eq!(violated(&status), ["organization_id"]);
        let status = env.api.try_send_test(bad).await.unwrap_err();
        assert_eq!(violated(&status), ["organization_id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_pages_in_order_and_filters_by_status() {
    let env = TestEnv::start().await;
    let mut names: Vec<String> = (0..25).map(|n| format!("org-{n}")).collect();
    for name in &names {
        env.customer(name).await;
    }
    names.sort();
    assert!(env.api.send_test("org-3").await.delivered);
    let mut listed: Vec<String> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRequest {
            page_size: 10,
            page_token,
            statuses: Vec::new(),
        };
        let page = env.api.list(request).await.unwrap();
        listed.extend(
            page.integrations
                .iter()
                .map(|integration| integration.organization_id.clone()),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        assert_eq!(page.integrations.len(), 10);
    }
    assert_eq!(listed, names);
    let all = env.api.list(ListRequest::default()).await.unwrap();
    assert_eq!(all.integrations.len(), 25);
    assert_eq!(all.next_page_token, "");
    assert_eq!(all.integrations[0], env.api.get(&names[0]).await);

    let filtered = async |statuses: &[Status], page_size| {
        let request = ListRequest {
            page_size,
            page_token: String::new(),
            statuses: statuses.iter().map(|status| *status as i32).collect(),
        };
        env.api.list(request).await.unwrap()
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
    let status = env.api.list(request).await.unwrap_err();
    let fields = ["page_size", "page_token", "statuses[0]", "statuses[1]"];
    assert_eq!(violated(&status), fields);
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_discards_pending_events() {
    // After the first attempt nothing is in flight.
    let env = TestEnv::with(&[("retry-first-ms", "60000"), ("retry-most-ms", "60000")]).await;
    let (customer, created) = env.customer("acme").await;
    let mut load = Load::new("acme", 3, 20);
    env.api.publish(&load.events(100)).await;
    env.api.until_delivered("acme").await;
    env.aws.delete_stream(&customer.stream_arn);
    env.api.publish(&load.events(50)).await;
    let refused = |status: &v1::IntegrationStatus| status.status() == Status::Failing;
    env.api.until_status("acme", refused).await;
    let counts = env.api.delete("acme", false).await.unwrap().unwrap();
    assert_eq!(
        (counts.accepted, counts.delivered, counts.discarded),
        (150, 100, 50)
    );
    customer.make_stream(&env.aws, 1);

    // Events without an integration are not delivered later.
    let answer = env.api.try_publish(load.events(10)).await.unwrap();
    assert_eq!((answer.accepted, answer.unconfigured), (0, 10));

    let recreated = env.api.configure(&customer).await;
    assert_ne!(recreated.integration_id, created.integration_id);
    assert_eq!(recreated.counts.unwrap(), v1::EventCounts::default());
    let mut load = Load::new("acme", 3, 21);
    env.api.publish(&load.events(20)).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 20).await;
    check_complete(&arrived, &recreated.integration_id, &load.made);

    let env = env.restart().await;
    let counts = env.api.get("acme").await.counts.unwrap();
    assert_eq!((counts.accepted, counts.delivered), (20, 20));
}
