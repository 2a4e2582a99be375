//! Callers with rights: which requests are answered, and what others learn of an organization.

mod keys;
mod refusals;
mod streams;

use std::path::Path;

use http::Request as HttpRequest;
use http_body_util::{BodyExt as _, Full};
use siem_client::v1::{
    self, ErrorReason, publish_stream_response::Outcome, stream_status_response::Event,
};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{Service as _, ServiceExt as _};

use crate::harness::{Callers, Customer, ProcessEnv, TestEnv, bearer, event, reason, with_timeout};

/// Callers of the tests, with their scopes and organizations.
const CALLERS: [(&str, &str, &[&str]); 6] = [
    ("admin", "read write publish audit", &["*"]),
    ("reader", "read", &["acme", "team-*"]),
    ("writer", "write", &["acme"]),
    ("publisher", "publish", &["acme", "gone"]),
    ("auditor", "audit", &["*"]),
    ("dashboard", "read write", &["team-*", "gone"]),
];
/// Organizations with an integration.
const CONFIGURED: [&str; 3] = ["acme", "beta", "team-1"];
/// All organizations of the tests.
const ORGANIZATIONS: [&str; 5] = ["acme", "beta", "team-1", "gone", "never"];

fn entries() -> Vec<String> {
    let entry = |(subject, scopes, organizations): &(&str, &str, &[&str])| {
        Callers::caller(subject, scopes, organizations)
    };
    CALLERS.iter().map(entry).collect()
}

/// A service with callers and integrations.
struct Env {
    relay: TestEnv,
    callers: Callers,
}

impl Env {
    async fn start() -> Self {
        Self::with(Callers::new(&entries())).await
    }

    async fn with(callers: Callers) -> Self {
        let path = callers.path().to_str().unwrap().to_owned();
        let relay = TestEnv::with(&[("callers", &path), ("heartbeat-seconds", "1")]).await;
        let env = Self { relay, callers };
        for organization_id in CONFIGURED {
            env.create(organization_id).await;
        }
        env
    }

    async fn create(&self, organization_id: &str) {
        let customer = Customer::new(organization_id);
        customer.make_role(&self.relay.aws);
        customer.make_stream(&self.relay.aws, 1);
        self.configure(&customer).await;
    }

    async fn configure(&self, customer: &Customer) {
        let request = self.callers.by("admin", customer.request());
        self.relay
            .api
            .integrations()
            .configure(request)
            .await
            .unwrap();
    }
}

const RPCS: [&str; 11] = [
    "Configure",
    "GenerateExternalId",
    "Get",
    "List",
    "SendTest",
    "StreamStatus",
    "Publish",
    "PublishStream",
    "Health of the server",
    "Health of delivery",
    "Delete",
];

impl Env {
    /// Calls an RPC about an organization. Returns the outcome in a word.
    async fn call(&self, rpc: &str, token: &str, organization_id: &str) -> Result<String, Status> {
        let organization_id = organization_id.to_owned();
        let mut client = self.relay.api.integrations();
        let mut events = self.relay.api.events();
        let mut health = HealthClient::new(self.relay.api.channel());
        let one_event = vec![event(&organization_id)];
        let of_publish = |answer: v1::PublishResponse| match (answer.accepted, answer.rejections) {
            (1, rejections) if rejections.is_empty() => "accepted",
            (0, rejections) if rejections.is_empty() => "unconfigured",
            (_, rejections) => {
                assert_eq!(rejections[0].reason(), ErrorReason::PermissionDenied);
                assert_eq!(answer.unconfigured, 0);
                "rejected"
            }
        };
        let outcome = match rpc {
            "Configure" => {
                let request = Customer::new(&organization_id).request();
                client.configure(bearer(token, request)).await?;
                "ok"
            }
            "GenerateExternalId" => {
                let request = v1::GenerateExternalIdRequest { organization_id };
                client.generate_external_id(bearer(token, request)).await?;
                "ok"
            }
            "Get" => {
                client
                    .get(bearer(token, v1::GetRequest { organization_id }))
                    .await?;
                "ok"
            }
            "List" => {
                let request = bearer(token, v1::ListRequest::default());
                let page = client.list(request).await?.into_inner();
                let mut listed = page.integrations.iter();
                match listed.any(|one| one.organization_id == organization_id) {
                    true => "listed",
                    false => "unlisted",
                }
            }
            "SendTest" => {
                client
                    .send_test(bearer(token, v1::SendTestRequest { organization_id }))
                    .await?;
                "ok"
            }
            "StreamStatus" => {
                let request = v1::StreamStatusRequest {
                    organization_ids: vec![organization_id],
                    resume_token: String::new(),
                };
                let stream = client.stream_status(bearer(token, request)).await?;
                match stream.into_inner().message().await?.unwrap().event.unwrap() {
                    Event::Current(_) => "current",
                    Event::Absent(_) => "absent",
                    other => panic!("{other:?}"),
                }
            }
            "Publish" => {
                let request = v1::PublishRequest { events: one_event };
                of_publish(events.publish(bearer(token, request)).await?.into_inner())
            }
            "PublishStream" => {
                let request = v1::PublishStreamRequest {
                    request_id: "1".to_owned(),
                    events: one_event,
                };
                let requests = tokio_stream::iter([request]);
                let stream = events.publish_stream(bearer(token, requests)).await?;
                let answer = stream.into_inner().message().await?.unwrap();
                match answer.outcome.unwrap() {
                    Outcome::Result(answer) => of_publish(answer),
                    Outcome::Error(error) => panic!("{error:?}"),
                }
            }
            "Health of the server" => {
                health
                    .check(bearer(token, HealthCheckRequest::default()))
                    .await?;
                "ok"
            }
            "Health of delivery" => {
                let service = "delivery".to_owned();
                health
                    .check(bearer(token, HealthCheckRequest { service }))
                    .await?;
                "ok"
            }
            "Delete" => {
                let request = v1::DeleteRequest {
                    organization_id: organization_id.clone(),
                    allow_missing: false,
                    ..Default::default()
                };
                client.delete(bearer(token, request)).await?;
                "ok"
            }
            other => panic!("{other}"),
        };
        Ok(outcome.to_owned())
    }
}

/// Outcome of an RPC by rights alone, as the documentation describes them.
fn expected(rpc: &str, scopes: &str, covers: bool, exists: bool) -> &'static str {
    let scope = match rpc {
        "Configure" | "GenerateExternalId" | "SendTest" | "Delete" => "write",
        "Publish" | "PublishStream" => "publish",
        "Get" | "List" | "StreamStatus" => "read",
        _ => return "ok",
    };
    if !scopes.split(' ').any(|one| one == scope) {
        return "PermissionDenied";
    }
    match (rpc, covers, exists) {
        ("Configure" | "GenerateExternalId", true, _) => "ok",
        ("Configure" | "GenerateExternalId", false, _) => "PermissionDenied",
        ("Get" | "SendTest" | "Delete", true, true) => "ok",
        ("Get" | "SendTest" | "Delete", _, _) => "NotFound",
        ("List", true, true) => "listed",
        ("List", _, _) => "unlisted",
        ("StreamStatus", true, true) => "current",
        ("StreamStatus", _, _) => "absent",
        (_, true, true) => "accepted",
        (_, true, false) => "unconfigured",
        (_, false, _) => "rejected",
    }
}

fn covers(organizations: &[&str], organization_id: &str) -> bool {
    organizations
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => organization_id.starts_with(prefix),
            None => *pattern == organization_id,
        })
}

fn word(outcome: Result<String, Status>) -> String {
    outcome.unwrap_or_else(|status| format!("{:?}", status.code()))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_has_its_rights_and_no_others() {
    let env = Env::start().await;
    let mut wrong = Vec::new();
    for rpc in RPCS {
        for (subject, scopes, organizations) in CALLERS {
            let token = env.callers.token(subject);
            // A token that is limited to one of the caller's organizations, and one to another.
            for (limit, limited) in [("*", organizations), ("team-1", &["team-1"][..])] {
                let mut claims = Callers::claims(subject);
                claims["organizations"] = limit.into();
                let token = match limit {
                    "*" => token.clone(),
                    _ => env.callers.key.sign(&claims),
                };
                for organization_id in ORGANIZATIONS {
                    let covers = covers(organizations, organization_id)
                        && (limit == "*" || covers(limited, organization_id));
                    let exists = CONFIGURED.contains(&organization_id);
                    if rpc == "Delete" && exists {
                        env.configure(&Customer::new(organization_id)).await;
                    }
                    let outcome = word(env.call(rpc, &token, organization_id).await);
                    let expected = expected(rpc, scopes, covers, exists);
                    if outcome != expected {
                        wrong.push(format!(
                            "{rpc} by {subject} ({limit}) for {organization_id}: {outcome}, not {expected}"
                        ));
                    }
                    // It must look the same to the next caller.
                    if ["Configure", "Delete"].contains(&rpc) && !exists {
                        let request = v1::DeleteRequest {
                            organization_id: organization_id.to_owned(),
                            allow_missing: true,
                            ..Default::default()
                        };
                        let request = env.callers.by("admin", request);
                        env.relay.api.integrations().delete(request).await.unwrap();
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_valid_credentials_gets_an_answer() {
    let env = Env::start().await;
    let sign = |name: &str, value: serde_json::Value| {
        let mut claims = Callers::claims("admin");
        claims[name] = value;
        env.callers.key.sign(&claims)
    };
    let good = env.callers.token("admin");
    let bad = [
        String::new(),
        "x".to_owned(),
        good[..good.len() - 2].to_owned(),
        sign("exp", 1_700_000_000.into()),
        sign("aud", "another".into()),
        sign("iss", "https://another.example.com".into()),
        sign("sub", "unknown".into()),
        sign("organizations", 1.into()),
        crate::harness::TokenKey::new("first").sign(&Callers::claims("admin")),
    ];
    for token in &bad {
        for rpc in RPCS {
            let outcome = env.call(rpc, token, "acme").await;
            if rpc == "Health of the server" {
                assert_eq!(outcome.unwrap(), "ok");
                continue;
            }
            let status = outcome.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{rpc} {token}");
            assert_eq!(reason(&status), "UNAUTHENTICATED");
            let shown = format!("{status:?}");
            let parts = token.split('.').filter(|part| part.len() > 5);
            assert!(
                parts.into_iter().all(|part| !shown.contains(part)),
                "{shown}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_organization_answers_as_one_that_does_not_exist() {
    let env = Env::start().await;
    for subject in ["dashboard", "publisher", "reader", "writer"] {
        let token = env.callers.token(subject);
        for rpc in RPCS {
            // Foreign with an integration, and foreign without.
            let [with, without] = ["beta", "never"].map(|id| env.call(rpc, &token, id));
            let (with, without) = (with.await, without.await);
            let comparable = |outcome: Result<String, Status>| {
                outcome.map_err(|status| {
                    let details = status.details().to_vec();
                    (status.code(), status.message().to_owned(), details)
                })
            };
            assert_eq!(comparable(with), comparable(without), "{rpc} by {subject}");
        }
    }
    // As its own without an integration.
    let token = env.callers.token("dashboard");
    for rpc in ["Get", "SendTest", "Delete"] {
        let [foreign, own] = ["beta", "gone"].map(|id| env.call(rpc, &token, id));
        let (foreign, own) = (foreign.await.unwrap_err(), own.await.unwrap_err());
        assert_eq!(foreign.message(), own.message(), "{rpc}");
        assert_eq!(foreign.details(), own.details(), "{rpc}");
    }
    for organization_id in ["beta", "gone"] {
        let request = v1::DeleteRequest {
            organization_id: organization_id.to_owned(),
            allow_missing: true,
            ..Default::default()
        };
        let mut client = env.relay.api.integrations();
        let answer = client
            .delete(env.callers.by("dashboard", request))
            .await
            .unwrap();
        assert_eq!(answer.into_inner(), v1::DeleteResponse::default());
    }
    let request = env.callers.by(
        "admin",
        v1::GetRequest {
            organization_id: "beta".to_owned(),
        },
    );
    env.relay.api.integrations().get(request).await.unwrap();
    // A request that is wrong in other ways tells nothing more.
    let request = v1::ConfigureRequest {
        organization_id: "beta".to_owned(),
        ..v1::ConfigureRequest::default()
    };
    let mut client = env.relay.api.integrations();
    let status = client
        .configure(env.callers.by("dashboard", request))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::PermissionDenied, "PERMISSION_DENIED")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_of_a_request_is_authorized() {
    let env = Env::start().await;
    let ids = ["acme", "beta", "gone", "never", "acme"];
    let events: Vec<v1::Event> = ids.into_iter().map(event).collect();
    let request = v1::PublishRequest { events };
    let mut client = env.relay.api.events();
    let answer = client
        .publish(env.callers.by("publisher", request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.accepted, answer.unconfigured), (2, 1));
    let rejected: Vec<_> = answer
        .rejections
        .iter()
        .map(|one| (one.index, one.reason(), &*one.field))
        .collect();
    let denied = ErrorReason::PermissionDenied;
    assert_eq!(
        rejected,
        [
            (1, denied, "organization_id"),
            (3, denied, "organization_id")
        ]
    );
    assert_eq!(answer.rejections[0].message, answer.rejections[1].message);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_only_what_the_caller_may_see() {
    let env = Env::start().await;
    for number in 2..=4 {
        env.create(&format!("team-{number}")).await;
    }
    env.create("zeta").await;
    let mut client = env.relay.api.integrations();
    let mut list = async |subject: &str, page_token: &str| {
        let request = v1::ListRequest {
            page_size: 2,
            page_token: page_token.to_owned(),
            statuses: Vec::new(),
        };
        let page = client
            .list(env.callers.by(subject, request))
            .await?
            .into_inner();
        let ids = page.integrations.into_iter().map(|one| one.organization_id);
        Ok::<_, Status>((ids.collect::<Vec<String>>(), page.next_page_token))
    };
    let (first, token) = list("reader", "").await.unwrap();
    assert_eq!(first, ["acme", "team-1"]);
    assert!(!token.contains("team"), "{token}");
    let (second, next) = list("reader", &token).await.unwrap();
    assert_eq!(second, ["team-2", "team-3"]);
    let (third, end) = list("reader", &next).await.unwrap();
    // There is one more integration, but none for this caller.
    assert_eq!((third, &*end), (vec!["team-4".to_owned()], ""));
    for (subject, page_token) in [
        ("admin", &*token),
        ("dashboard", &token),
        ("reader", "acme"),
    ] {
        let status = list(subject, page_token).await.unwrap_err();
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{subject} {page_token}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_may_use_its_aws_accounts_only() {
    let mut callers = entries();
    callers[1] = Callers::caller("reader", "write", &["*"])
        + "[callers.aws_accounts]\nacme = ['222222222222']\n'team-*' = ['333333333333']\n";
    let env = Env::with(Callers::new(&callers)).await;
    let mut client = env.relay.api.integrations();
    let own = |id: &str| Customer::new(id).request();
    let moved = |id: &str| Customer::in_account(id, 333_333_333_333, "eu-west-1").request();
    for (request, validate_only, allowed) in [
        (own("acme"), false, true),
        (moved("acme"), false, false),
        (moved("acme"), true, false),
        (
            v1::ConfigureRequest {
                role_arn: moved("acme").role_arn,
                ..own("acme")
            },
            false,
            false,
        ),
        (
            v1::ConfigureRequest {
                role_arn: own("acme").role_arn,
                ..moved("acme")
            },
            false,
            false,
        ),
        (moved("team-1"), false, true),
        (own("team-1"), false, false),
        (own("beta"), false, true),
    ] {
        let request = v1::ConfigureRequest {
            validate_only,
            ..request
        };
        let shown = format!("{request:?}");
        match client.configure(env.callers.by("reader", request)).await {
            Ok(_) => assert!(allowed, "{shown}"),
            Err(status) => {
                assert!(!allowed, "{shown} {status:?}");
                assert_eq!(status.code(), Code::PermissionDenied);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_a_path_passes_by() {
    let env = Env::start().await;
    let service = "siem.v1.SiemIntegrationService";
    let message = crate::harness::framed(0, b"\x0a\x04beta");
    let call = async |path: &str, token: &str| {
        let mut request = HttpRequest::post(format!("http://{}{path}", env.relay.api.address()))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = tonic::body::Body::new(Full::new(bytes::Bytes::from(message.clone())));
        let mut channel = env.relay.api.channel();
        let answer = channel
            .ready()
            .await
            .unwrap()
            .call(request.body(body).unwrap())
            .await
            .unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap();
        let status = body.trailers().and_then(Status::from_header_map);
        let status = status
            .or_else(|| Status::from_header_map(&parts.headers))
            .unwrap();
        assert!(status.code() == Code::Ok || body.to_bytes().is_empty());
        status.code()
    };
    let (admin, reader) = (env.callers.token("admin"), env.callers.token("reader"));
    assert_eq!(call(&format!("/{service}/Get"), &admin).await, Code::Ok);
    assert_eq!(
        call(&format!("/{service}/Get"), &reader).await,
        Code::NotFound
    );
    for path in [
        format!("//{service}/Get"),
        format!("/{service}//Get"),
        format!("/{service}/Get/"),
        format!("/{service}/%47et"),
        format!("/{service}%2fGet"),
        format!("/x/../{service}/Get"),
        format!("/./{service}/Get"),
        format!("/{service}/get"),
        format!("/{}/Get", service.to_uppercase()),
        format!("/{service}/GET"),
        format!("/{service}/Delete2"),
        "/".to_owned(),
        "/grpc.health.v1.Health/List".to_owned(),
    ] {
        assert_eq!(call(&path, "").await, Code::Unauthenticated, "{path}");
        assert_eq!(call(&path, &admin).await, Code::Unimplemented, "{path}");
    }
    // The query is no part of the path.
    assert_eq!(
        call(&format!("/{service}/Get?x"), "").await,
        Code::Unauthenticated
    );
    assert_eq!(
        call(&format!("/{service}/Get?x"), &reader).await,
        Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_stops_the_start_and_a_later_one_changes_nothing() {
    let env = ProcessEnv::new().await;
    let callers = Callers::new(&[Callers::caller("admin", "reed", &["a b"])]);
    let path = callers.path();
    let path = path.to_str().unwrap();
    let arguments = ["--callers", path];
    let url = env.stand_in.url();
    let start = async |data_dir: &Path| {
        crate::harness::Process::try_start_under(&[], data_dir, &url, &arguments).await
    };
    let refused = start(env.dir.path()).await.err().unwrap();
    assert_eq!(refused.code, Some(64), "{refused:?}");
    for problem in [
        "callers[0].scopes[0]: is no scope",
        "callers[0].organizations[0]: is not a pattern",
    ] {
        assert!(refused.stderr.contains(problem), "{refused:?}");
    }
    callers.write(&[Callers::caller("admin", "read", &["*"])]);
    let process = start(env.dir.path()).await.unwrap();
    let mut client = process.api.integrations();
    client
        .list(callers.by("admin", v1::ListRequest::default()))
        .await
        .unwrap();
    callers.write(&[Callers::caller("admin", "reed", &["*"])]);
    process
        .until_logged("the callers file cannot be used", 0)
        .await;
    client
        .list(callers.by("admin", v1::ListRequest::default()))
        .await
        .unwrap();
    callers.write(&[Callers::caller("other", "read", &["*"])]);
    process.until_logged("callers reloaded", 0).await;
    let status = client
        .list(callers.by("admin", v1::ListRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    client
        .list(callers.by("other", v1::ListRequest::default()))
        .await
        .unwrap();
    let log = with_timeout("the stop", process.stop()).await;
    assert_eq!(
        log.matches("the callers file cannot be used").count(),
        1,
        "once, then hourly"
    );
}
