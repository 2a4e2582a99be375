//! AWS within the process, behind the real SDK and without sockets, so that hours pass
//! on a paused clock.

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

/// What AWS is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    AssumeRole {
        role_arn: String,
        external_id: Option<String>,
    },
    CallerIdentity,
    /// How many records are to be written.
    PutRecords(usize),
}

/// What AWS answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said {
    Yes,
    /// An error code, with HTTP status 403.
    No(&'static str),
    Hang,
}

type Script = dyn Fn(&Asked) -> Said + Send + Sync;

/// Answers by a script, and remembers what was asked when.
#[derive(Clone)]
pub(crate) struct Aws(Arc<State>);

struct State {
    script: Mutex<Arc<Script>>,
    asked: Mutex<Vec<(Instant, Asked)>>,
    hanging: AtomicUsize,
    /// Answer to whoever assumes a role without knowing its external ID.
    probes: Mutex<Said>,
}

impl Aws {
    pub(crate) fn new(script: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Self {
        Self(Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            asked: Mutex::default(),
            hanging: AtomicUsize::new(0),
            probes: Mutex::new(Said::No("AccessDenied")),
        }))
    }

    /// Answers by another script from now on.
    pub(crate) fn now(&self, script: impl Fn(&Asked) -> Said + Send + Sync + 'static) {
        *self.0.script.lock().unwrap() = Arc::new(script);
    }

    /// Answers from now on who assumes a role without knowing its external ID.
    pub(crate) fn answer_probes(&self, said: Said) {
        *self.0.probes.lock().unwrap() = said;
    }

    /// What was asked so far, and when.
    pub(crate) fn asked(&self) -> Vec<(Instant, Asked)> {
        self.0.asked.lock().unwrap().clone()
    }

    /// How much was asked so far.
    pub(crate) fn count(&self) -> usize {
        self.0.asked.lock().unwrap().len()
    }

    /// When each role was to be assumed.
    pub(crate) fn assumed(&self) -> HashMap<String, Vec<Instant>> {
        let mut assumed = HashMap::new();
        for (at, asked) in self.asked() {
            if let Asked::AssumeRole { role_arn, .. } = asked {
                assumed.entry(role_arn).or_insert_with(Vec::new).push(at);
            }
        }
        assumed
    }

    /// Calls that hang and were not given up.
    pub(crate) fn hanging(&self) -> usize {
        self.0.hanging.load(Ordering::SeqCst)
    }

    /// A sink that calls it.
    pub(crate) fn sink(&self, external_ids: Arc<dyn ExternalIds>) -> AwsSink {
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
            // Its connections can be taken from it.
            put_records_client: PutRecordsClient::Sdk,
            ..AwsOptions::default()
        };
        AwsSink::with_config(&sdk, &options, external_ids)
    }

    fn take(&self, request: &HttpRequest) -> (usize, Asked, Said) {
        let asked = read(request);
        let mut all = self.0.asked.lock().unwrap();
        if is_probe(request) {
            return (0, asked, *self.0.probes.lock().unwrap());
        }
        all.push((Instant::now(), asked.clone()));
        let script = Arc::clone(&self.0.script.lock().unwrap());
        (all.len(), asked.clone(), script(&asked))
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
            let (number, asked, said) = aws.take(&request);
            if matches!(said, Said::Hang) {
                let _hanging = Hanging::begin(&aws.0);
                pending::<()>().await;
            }
            Ok(answer(number, &asked, said))
        })
    }
}

/// Counts a call that hangs, until it is given up.
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

fn read(request: &HttpRequest) -> Asked {
    let body = request.body().bytes().unwrap();
    if request.headers().get("x-amz-target").is_some() {
        let json: Value = serde_json::from_slice(body).unwrap();
        return Asked::PutRecords(json["Records"].as_array().unwrap().len());
    }
    let mut form = server::form(std::str::from_utf8(body).unwrap());
    match form["Action"].as_str() {
        "AssumeRole" => Asked::AssumeRole {
            role_arn: form.remove("RoleArn").unwrap(),
            external_id: form.remove("ExternalId"),
        },
        _ => Asked::CallerIdentity,
    }
}

fn answer(number: usize, asked: &Asked, said: Said) -> HttpResponse {
    let (status, body) = match (said, asked) {
        (Said::No(code), Asked::PutRecords(_)) => (400, json!({ "__type": code }).to_string()),
        (Said::No(code), _) => (403, server::error_xml(code, "told for people")),
        (_, Asked::AssumeRole { .. }) => (200, server::assumed_xml(number, in_an_hour())),
        (_, Asked::CallerIdentity) => (200, CALLER.to_owned()),
        (_, Asked::PutRecords(records)) => (200, server::written_json(*records).to_string()),
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
