//! Traces from a publish to its PutRecords request, the log level of a running service, and the
//! number of log lines of a lasting failure.

use aws_stand_in::{Effect, Operation};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use serde_json::json;
use siem_client::v1;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server, transport::server::TcpIncoming};

use crate::harness::{
    Load, Process, ProcessEnv, ToolOutput, error, fault, run, tool, with_timeout,
};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const TRACE_ID_BEFORE_KILL: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Collector that sends on the exported spans.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            let _ended = self.0.send(span);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

struct Traces {
    launcher: Vec<String>,
    spans: mpsc::UnboundedReceiver<Span>,
    seen: Vec<Span>,
    _serving: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
}

impl Traces {
    async fn collect() -> Self {
        let (sender, spans) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let launcher = [
            "/usr/bin/env",
            &format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{address}"),
            "OTEL_METRICS_EXPORTER=none",
            "OTEL_BSP_SCHEDULE_DELAY=100",
        ];
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(Collector(sender)))
            .serve_with_incoming(TcpIncoming::from(listener));
        Self {
            launcher: launcher.map(str::to_owned).to_vec(),
            spans,
            seen: Vec::new(),
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    /// The first span for which `is_wanted`, of all that were exported.
    async fn until(&mut self, is_wanted: impl Fn(&Span) -> bool) -> Span {
        loop {
            if let Some(span) = self.seen.iter().find(|span| is_wanted(span)) {
                return span.clone();
            }
            let names: Vec<_> = self.seen.iter().map(|span| &span.name).collect();
            let what = format!("another span than {names:?}");
            let next = with_timeout(&what, self.spans.recv()).await;
            self.seen.push(next.unwrap());
        }
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|one| one.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Publishes within a span of the caller.
async fn publish_in(process: &Process, trace_id: &str, events: Vec<v1::Event>) {
    let mut request = Request::new(v1::PublishRequest { events });
    let parent = format!("00-{trace_id}-b7ad6b7169203331-01");
    let parent = parent.parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    process.api.events().publish(request).await.unwrap();
}

/// Whether a span is a PutRecords call with a link to a trace.
fn links_to(span: &Span, trace_id: &str) -> bool {
    let mut links = span.links.iter();
    span.name == "put_records" && links.any(|link| hex::encode(&link.trace_id) == trace_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_kinesis_links_to_the_traces_of_its_publishes() {
    let env = ProcessEnv::new().await;
    let mut traces = Traces::collect().await;
    let trusting = ["--trust-trace-context"];
    let process = env.start_under_with(&traces.launcher, &trusting).await;
    let integration = process.api.configure(&env.customer).await;
    let mut load = Load::new("acme", 5, 7);
    publish_in(&process, TRACE_ID, load.events(3)).await;
    process.api.until_delivered("acme").await;
    let sent = traces.until(|span| links_to(span, TRACE_ID)).await;
    let published = traces
        .until(|span| span.name.ends_with("/Publish") && hex::encode(&span.trace_id) == TRACE_ID)
        .await;
    assert_eq!(sent.links[0].span_id, published.span_id);
    for (key, value) in [
        ("organization_id", "acme"),
        ("integration_id", &integration.integration_id),
        ("rpc.service", "Kinesis"),
        ("rpc.method", "PutRecords"),
        ("outcome", "Accepted"),
    ] {
        assert_eq!(attribute(&sent, key).as_deref(), Some(value), "{sent:?}");
    }
    let request_id = attribute(&sent, "aws.request_id");
    assert!(request_id.is_some_and(|id| !id.is_empty()), "{sent:?}");

    // A test waits for its calls, so they are in its trace.
    assert!(process.api.send_test("acme").await.delivered);
    let test = traces.until(|span| span.name.ends_with("/SendTest")).await;
    for method in ["AssumeRole", "PutRecords"] {
        let call = traces
            .until(|span| {
                span.trace_id == test.trace_id
                    && attribute(span, "rpc.method").as_deref() == Some(method)
            })
            .await;
        assert!(attribute(&call, "aws.request_id").is_some(), "{call:?}");
    }

    // The events of a killed process keep their trace in the log.
    let hang = fault(Operation::PutRecords, None, Effect::Hang);
    env.aws.add_fault(hang).unwrap();
    publish_in(&process, TRACE_ID_BEFORE_KILL, load.events(4)).await;
    process.kill().await;
    env.aws.clear_faults();
    let process = env.start_under_with(&traces.launcher, &trusting).await;
    process.api.until_delivered("acme").await;
    traces
        .until(|span| links_to(span, TRACE_ID_BEFORE_KILL))
        .await;
    process.stop().await;
}

async fn log_level(env: &ProcessEnv, filter: Option<&str>) -> ToolOutput {
    let mut command = tool(&["log-level"]);
    command.args(filter).arg("--data-dir").arg(env.dir.path());
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes_while_the_service_runs() {
    const DEBUG: &str = "request refused";
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let shown = log_level(&env, None).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("info (the setting"), "{shown:?}");
    process.api.try_get("nobody").await.unwrap_err();
    assert!(!process.log().contains(DEBUG));
    for (wrong, named) in [
        ("inof", "\"inof\""),
        ("info,siem_relay=loud", "siem_relay=loud"),
    ] {
        let refused = log_level(&env, Some(wrong)).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(named), "{refused:?}");
    }
    let set = log_level(&env, Some("info,siem_relay=debug")).await;
    assert_eq!(set.code, Some(0), "{set:?}");
    assert!(
        set.stdout.contains("from the next start on: info"),
        "{set:?}"
    );
    process.until_logged("the log level was changed", 0).await;
    process.api.try_get("nobody").await.unwrap_err();
    process.until_logged(DEBUG, 0).await;
    // The finest level shows no secret and nothing of other crates.
    assert_eq!(log_level(&env, Some("trace")).await.code, Some(0));
    process.api.configure(&env.customer).await;
    assert!(process.api.send_test("acme").await.delivered);
    let request = env.customer.request();
    assert_eq!(log_level(&env, Some("off")).await.code, Some(0));
    let before = process.log().matches(DEBUG).count();
    process.api.try_get("nobody").await.unwrap_err();
    let log = process.stop().await;
    assert!(!log.contains(&request.external_id), "{log}");
    assert_eq!(log.matches(DEBUG).count(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_failure_is_logged_once() {
    const ATTEMPTS: u64 = 20;
    let env = ProcessEnv::new().await;
    let fast = ["--retry-first-ms", "10", "--retry-most-ms", "20"];
    let process = env.start_with(&fast).await;
    process.api.configure(&env.customer).await;
    let mut denied = fault(
        Operation::PutRecords,
        None,
        error("AccessDeniedException", 400),
    );
    denied.calls = Some(ATTEMPTS);
    env.aws.add_fault(denied).unwrap();
    let mut load = Load::new("acme", 5, 7);
    process.api.publish(&load.events(3)).await;
    process.api.until_delivered("acme").await;
    let refused = Some("AccessDeniedException");
    let calls = env.aws.call_count(Operation::PutRecords, refused);
    assert_eq!(calls, ATTEMPTS);
    process.until_logged("\"status\":\"ACTIVE\"", 0).await;
    let log = process.stop().await;
    let about: Vec<_> = log.lines().filter(|line| line.contains("acme")).collect();
    let failed = |line: &&&str| line.contains("UNAUTHORIZED");
    assert_eq!(about.iter().filter(failed).count(), 1, "{about:#?}");
    // Created, refused, delivered.
    assert!(about.len() <= 3, "{about:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_require_its_external_id_is_logged_once() {
    let env = ProcessEnv::new().await;
    env.customer.make_role_with_trust(&env.aws, json!({}));
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    for _ in 0..3 {
        assert!(!process.api.send_test("acme").await.delivered);
    }
    let assumed = env.aws.call_count(Operation::AssumeRole, Some("OK"));
    assert!(assumed >= 3, "{assumed}");
    let log = process.stop().await;
    assert_eq!(log.matches("lacks the condition sts:ExternalId").count(), 1);
}
