//! Streams and their callers' rights, which may end or change while they run.

use siem_client::v1::{
    self, StreamStatusResponse, publish_stream_response::Outcome, stream_status_response::Event,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use super::{CONFIGURED, Env, entries};
use crate::harness::{Callers, bearer, event, with_timeout};

/// Subscription of a caller.
struct Feed {
    stream: Streaming<StreamStatusResponse>,
    token: String,
}

impl Feed {
    async fn open(env: &Env, subject: &str, organizations: &[&str], resume: &str) -> Self {
        let request = v1::StreamStatusRequest {
            organization_ids: organizations.iter().map(|id| (*id).to_owned()).collect(),
            resume_token: resume.to_owned(),
        };
        let request = env.callers.by(subject, request);
        let stream = env.relay.api.integrations().stream_status(request).await;
        Self {
            stream: stream.unwrap().into_inner(),
            token: String::new(),
        }
    }

    /// The next message other than a heartbeat, in a word with its organization.
    async fn next(&mut self) -> String {
        loop {
            let message = with_timeout("a status message", self.stream.message()).await;
            let message = message.unwrap().unwrap();
            self.token = message.resume_token;
            return match message.event.unwrap() {
                Event::Current(current) => format!("current {}", current.organization_id),
                Event::Deleted(deleted) => format!("deleted {}", deleted.organization_id),
                Event::Absent(absent) => format!("absent {}", absent.organization_id),
                Event::Synced(_) => "synced".to_owned(),
                Event::Reset(_) => "reset".to_owned(),
                Event::Heartbeat(_) => continue,
            };
        }
    }

    async fn until_synced(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last| last != "synced") {
            seen.push(self.next().await);
        }
        seen
    }

    async fn end(&mut self) -> Status {
        loop {
            match with_timeout("the end of the stream", self.stream.message()).await {
                Ok(message) => assert!(message.is_some(), "it ended without an error"),
                Err(status) => return status,
            }
        }
    }
}

async fn delete(env: &Env, organization_id: &str) {
    let request = v1::DeleteRequest {
        organization_id: organization_id.to_owned(),
        allow_missing: false,
        ..Default::default()
    };
    let request = env.callers.by("admin", request);
    env.relay.api.integrations().delete(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_stream_has_only_what_its_caller_may_see() {
    let env = Env::start().await;
    let mut all = Feed::open(&env, "reader", &[], "").await;
    assert_eq!(
        all.until_synced().await,
        ["current acme", "current team-1", "synced"]
    );
    let mut named = Feed::open(&env, "reader", &["beta", "acme", "never"], "").await;
    let expected = ["absent beta", "absent never", "current acme", "synced"];
    assert_eq!(named.until_synced().await, expected);
    // All that are named are foreign, which must not mean all.
    let mut foreign = Feed::open(&env, "reader", &["beta", "never"], "").await;
    assert_eq!(
        foreign.until_synced().await,
        ["absent beta", "absent never", "synced"]
    );
    // Changes of others pass by: the next message is about an own one.
    env.create("zeta").await;
    delete(&env, "beta").await;
    env.create("team-2").await;
    assert_eq!(all.next().await, "current team-2");
    delete(&env, "team-1").await;
    assert_eq!(all.next().await, "deleted team-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_token_is_bound_to_its_caller() {
    let env = Env::start().await;
    let mut feed = Feed::open(&env, "reader", &[], "").await;
    feed.until_synced().await;
    assert!(!feed.token.contains('.'), "{}", feed.token);
    env.create("team-2").await;
    let mut resumed = Feed::open(&env, "reader", &[], &feed.token).await;
    assert_eq!(resumed.until_synced().await, ["current team-2", "synced"]);
    for subject in ["admin", "dashboard"] {
        let mut other = Feed::open(&env, subject, &[], &feed.token).await;
        assert_eq!(other.next().await, "reset", "{subject}");
    }
    let mut forged = Feed::open(&env, "reader", &[], "history.1").await;
    assert_eq!(forged.next().await, "reset");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_rights_begins_a_status_stream_anew() {
    let env = Env::start().await;
    let mut feed = Feed::open(&env, "reader", &[], "").await;
    feed.until_synced().await;
    let before = feed.token.clone();
    let mut callers = entries();
    callers[1] = Callers::caller("reader", "read", &["beta"]);
    env.callers.write(&callers);
    assert_eq!(
        feed.until_synced().await,
        ["reset", "current beta", "synced"]
    );
    let mut resumed = Feed::open(&env, "reader", &[], &before).await;
    assert_eq!(resumed.next().await, "reset");
    let mut resumed = Feed::open(&env, "reader", &[], &feed.token).await;
    assert_eq!(resumed.next().await, "synced");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_rights_of_their_caller() {
    let env = Env::start().await;
    let mut status = Feed::open(&env, "admin", &[], "").await;
    status.until_synced().await;

    let channel = env.relay.api.channel();
    let request = HealthCheckRequest {
        service: "delivery".to_owned(),
    };
    let request = env.callers.by("admin", request);
    let health = HealthClient::new(channel.clone()).watch(request).await;
    let mut health = health.unwrap().into_inner();
    health.message().await.unwrap().unwrap();

    let (asking, asked) = mpsc::channel(1);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    asking.send(list.clone()).await.unwrap();
    let request = env.callers.by("admin", ReceiverStream::new(asked));
    let reflection = ServerReflectionClient::new(channel)
        .server_reflection_info(request)
        .await;
    let mut reflection = reflection.unwrap().into_inner();
    reflection.message().await.unwrap().unwrap();

    let (publishing, published) = mpsc::channel(1);
    let request = |number: u32| v1::PublishStreamRequest {
        request_id: number.to_string(),
        events: vec![event("acme")],
    };
    publishing.send(request(1)).await.unwrap();
    let requests = env.callers.by("admin", ReceiverStream::new(published));
    let answers = env.relay.api.events().publish_stream(requests).await;
    let mut answers = answers.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert!(matches!(first.outcome, Some(Outcome::Result(_))));

    env.callers.write(&entries()[1..]);
    let ends = [
        status.end().await,
        with_timeout("health", health.message()).await.unwrap_err(),
        with_timeout("reflection", reflection.message())
            .await
            .unwrap_err(),
        with_timeout("answers", answers.message())
            .await
            .unwrap_err(),
    ];
    for end in ends {
        assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    }
    for method in [
        "siem.v1.SiemIntegrationService/StreamStatus",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "siem.v1.EventService/PublishStream",
    ] {
        let [entry] = &env.refused(method, 1).await[..] else {
            panic!("{method} is there several times");
        };
        assert_eq!(entry.principal, format!("{}#admin", Callers::ISSUER));
        assert_eq!((entry.code.as_str(), entry.count), ("UNAUTHENTICATED", 1));
    }
    // Whoever is not revoked goes on.
    let mut other = Feed::open(&env, "reader", &["acme"], "").await;
    assert_eq!(other.until_synced().await, ["current acme", "synced"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_expires_or_its_scope_is_taken() {
    let env = Env::start().await;
    let mut claims = Callers::claims("reader");
    claims["exp"] = (claims["iat"].as_u64().unwrap() + 3).into();
    let request = bearer(
        &env.callers.key.sign(&claims),
        v1::StreamStatusRequest::default(),
    );
    let stream = env
        .relay
        .api
        .integrations()
        .stream_status(request)
        .await
        .unwrap();
    let mut short = Feed {
        stream: stream.into_inner(),
        token: String::new(),
    };
    let mut long = Feed::open(&env, "reader", &[], "").await;
    let end = short.end().await;
    assert_eq!(end.code(), Code::Unauthenticated);
    assert!(end.message().contains("expired"), "{end:?}");
    let mut callers = entries();
    callers[1] = Callers::caller("reader", "publish", &["*"]);
    env.callers.write(&callers);
    assert_eq!(long.end().await.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_stream_is_authorized() {
    let env = Env::start().await;
    let requests = ["acme", "beta", "never", "acme"].map(|id| v1::PublishStreamRequest {
        request_id: id.to_owned(),
        events: vec![event(id)],
    });
    let requests = env.callers.by("publisher", tokio_stream::iter(requests));
    let answers = env.relay.api.events().publish_stream(requests).await;
    let mut answers = answers.unwrap().into_inner();
    let mut outcomes = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let Some(Outcome::Result(result)) = answer.outcome else {
            panic!("{answer:?}");
        };
        outcomes.push((result.accepted, result.rejections.len()));
    }
    assert_eq!(outcomes, [(1, 0), (0, 1), (0, 1), (1, 0)]);
    let organization_id = CONFIGURED[0].to_owned();
    let request = env.callers.by("admin", v1::GetRequest { organization_id });
    let answer = env
        .relay
        .api
        .integrations()
        .get(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.integration.unwrap().counts.unwrap().accepted, 2);
}
