//! A scripted AWS behind the real SDK, without sockets, so that tests can pause the clock.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{AwsOptions, AwsSink, ExternalIds, PutRecordsClient, tests::server};
use crate::gate::Gate;

/// A request to AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    AssumeRole {
        role_arn: String,
        external_id: Option<String>,
    },
    CallerIdentity,
    /// Number of records.
    PutRecords(usize),
}

/// Reply of AWS.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Ok,
    /// An error code, with HTTP status 403.
    Error(&'static str),
    Hang,
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// Replies by a script, and records the requests.
#[derive(Clone)]
pub(crate) struct Aws(Arc<State>);

struct State {
    script: Mutex<Arc<Script>>,
    requests: Mutex<Vec<(Instant, Request)>>,
    hanging: AtomicUsize,
    /// Reply to probes without the external ID.
    probes: Mutex<Reply>,
}

impl Aws {
    pub(crate) fn new(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self(Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            requests: Mutex::default(),
            hanging: AtomicUsize::new(0),
            probes: Mutex::new(Reply::Error("AccessDenied")),
        }))
    }

    /// Replaces the script.
    pub(crate) fn set_script(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.0.script.lock().unwrap() = Arc::new(script);
    }

    /// Sets the reply to probes without the external ID.
    pub(crate) fn answer_probes(&self, reply: Reply) {
        *self.0.probes.lock().unwrap() = reply;
    }

    /// Requests so far, with their times.
    pub(crate) fn requests(&self) -> Vec<(Instant, Request)> {
        self.0.requests.lock().unwrap().clone()
    }

    /// Number of requests so far.
    pub(crate) fn count(&self) -> usize {
        self.0.requests.lock().unwrap().len()
    }

    /// Times of AssumeRole for each role.
    pub(crate) fn assumed(&self) -> HashMap<String, Vec<Instant>> {
        let mut assumed = HashMap::new();
        for (at, request) in self.requests() {
            if let Request::AssumeRole { role_arn, .. } = request {
                assumed.entry(role_arn).or_insert_with(Vec::new).push(at);
            }
        }
        assumed
    }

    /// Number of calls that hang and were not cancelled.
    pub(crate) fn hanging(&self) -> usize {
        self.0.hanging.load(Ordering::SeqCst)
    }

    /// A sink that calls this AWS.
    pub(crate) fn sink(&self, external_ids: Arc<dyn ExternalIds>) -> AwsSink {
        self.sink_with(external_ids, Gate::default())
    }

    /// A sink that calls this AWS through a gate.
    pub(crate) fn sink_with(&self, external_ids: Arc<dyn ExternalIds>, gate: Gate) -> AwsSink {
        let own = Credentials::new("AKIAOWN", "own-secret", None, None, "testing");
        let connector = SharedHttpConnector::new(Connector(self.clone()));
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .endpoint_url("http://aws.example.com")
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(own))
            .build();
        let options = AwsOptions {
            // Only the SDK accepts a connector.
            put_records_client: PutRecordsClient::Sdk,
            ..AwsOptions::default()
        };
        AwsSink::with_config(&sdk, &options, external_ids, gate)
    }

    fn take(&self, http: &HttpRequest) -> (usize, Request, Reply) {
        let request = read(http);
        let mut all = self.0.requests.lock().unwrap();
        if is_probe(http) {
            return (0, request, *self.0.probes.lock().unwrap());
        }
        all.push((Instant::now(), request.clone()));
        let script = Arc::clone(&self.0.script.lock().unwrap());
        (all.len(), request.clone(), script(&request))
    }
}

struct Connector(Aws);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let aws = self.0.clone();
        HttpConnectorFuture::new(async move {
            let (number, request, reply) = aws.take(&request);
            if matches!(reply, Reply::Hang) {
                let _hanging = Hanging::begin(&aws.0);
                pending::<()>().await;
            }
            Ok(answer(number, &request, reply))
        })
    }
}

/// Counts a call that hangs, until it is cancelled.
struct Hanging(Arc<State>);

impl Hanging {
    fn begin(state: &Arc<State>) -> Self {
        state.hanging.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(state))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

fn is_probe(request: &HttpRequest) -> bool {
    let body = request.body().bytes().unwrap();
    request.headers().get("x-amz-target").is_none()
        && server::is_probe(&server::form(std::str::from_utf8(body).unwrap()))
}

fn read(request: &HttpRequest) -> Request {
    let body = request.body().bytes().unwrap();
    if request.headers().get("x-amz-target").is_some() {
        let json: Value = serde_json::from_slice(body).unwrap();
        return Request::PutRecords(json["Records"].as_array().unwrap().len());
    }
    let mut form = server::form(std::str::from_utf8(body).unwrap());
    match form["Action"].as_str() {
        "AssumeRole" => Request::AssumeRole {
            role_arn: form.remove("RoleArn").unwrap(),
            external_id: form.remove("ExternalId"),
        },
        _ => Request::CallerIdentity,
    }
}

fn answer(number: usize, request: &Request, reply: Reply) -> HttpResponse {
    let (status, body) = match (reply, request) {
        (Reply::Error(code), Request::PutRecords(_)) => {
            (400, json!({ "__type": code }).to_string())
        }
        (Reply::Error(code), _) => (403, server::error_xml(code, "a message")),
        (_, Request::AssumeRole { .. }) => (200, server::assumed_xml(number, in_an_hour())),
        (_, Request::CallerIdentity) => (200, CALLER.to_owned()),
        (_, Request::PutRecords(records)) => (200, server::written_json(*records).to_string()),
    };
    let status = StatusCode::try_from(status).unwrap();
    let mut response = HttpResponse::new(status, SdkBody::from(body));
    let headers = response.headers_mut();
    headers.insert("x-amzn-requestid", format!("request-{number}"));
    response
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

const CALLER: &str = r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>arn:aws:iam::111111111111:user/relay</Arn>
    <UserId>AIDAEXAMPLE</UserId>
    <Account>111111111111</Account>
  </GetCallerIdentityResult>
</GetCallerIdentityResponse>"#;
