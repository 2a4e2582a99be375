//! Metrics and probes of the built binary: each metric changes when its cause is injected.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use aws_stand_in::{Effect, Operation};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    common::v1::any_value,
    metrics::v1::{Metric, metric::Data, number_data_point},
};
use siem_client::{ChannelOptions, v1};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server, transport::server::TcpIncoming};

use crate::harness::{
    Api, Customer, Load, Metrics, Process, ProcessEnv, error, event, fault, run, throttled_records,
    tool, with_timeout,
};

const LISTEN: [&str; 2] = ["--metrics-listen", "0"];

/// A service with the listener, and further arguments.
async fn start(env: &ProcessEnv, arguments: &[&str]) -> (Process, Metrics) {
    let process = env.start_with(&[&LISTEN[..], arguments].concat()).await;
    let metrics = Metrics::of(&process);
    (process, metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_of_events_start_at_zero_and_follow_what_becomes_of_events() {
    let env = ProcessEnv::new().await;
    let (process, metrics) = start(&env, &["--failing-after-seconds", "1"]).await;
    let before = metrics.scrape().await;
    for name in [
        "events_accepted_total",
        "events_delivered_total",
        "events_expired_total",
        "events_discarded_total",
        "events_unconfigured_total",
        "events_rejected_total{reason=\"INVALID_FIELD\"}",
        "aws_throttled_records_total",
        "aws_attempts_total{code=\"OK\",operation=\"PutRecords\"}",
        "aws_attempts_total{code=\"other\",operation=\"AssumeRole\"}",
        "api_refusals_total{reason=\"INTEGRATION_NOT_FOUND\"}",
    ] {
        assert_eq!(before.value(&format!("siem_relay_{name}")), 0.0, "{name}");
    }
    let api = &process.api;
    api.configure(&env.customer).await;
    let mut load = Load::new("acme", 5, 1);
    api.publish(&load.events(70)).await;
    let mut mixed = load.events(2);
    mixed.push(event("nobody"));
    mixed.push(v1::Event {
        network_id: "no uuid".to_owned(),
        ..event("acme")
    });
    let answer = api.try_publish(mixed).await.unwrap();
    assert_eq!((answer.accepted, answer.unconfigured), (2, 1));
    assert!(api.try_get("nobody").await.is_err());
    api.until_delivered("acme").await;
    let after = metrics.scrape().await;
    for (name, expected) in [
        ("events_accepted_total", 72.0),
        ("events_delivered_total", 72.0),
        ("events_unconfigured_total", 1.0),
        ("events_rejected_total{reason=\"INVALID_FIELD\"}", 1.0),
        ("api_refusals_total{reason=\"INTEGRATION_NOT_FOUND\"}", 1.0),
        ("ack_duration_seconds_count", 2.0),
        (
            "aws_attempts_total{code=\"OK\",operation=\"AssumeRole\"}",
            1.0,
        ),
    ] {
        assert_eq!(
            after.value(&format!("siem_relay_{name}")),
            expected,
            "{name}"
        );
    }
    for name in [
        "siem_relay_aws_attempts_total{code=\"OK\",operation=\"PutRecords\"}",
        "siem_relay_delivery_latency_seconds_count",
        "siem_relay_log_commit_duration_seconds_count",
        "siem_relay_log_sync_duration_seconds_count",
        "rpc_server_call_duration_seconds_count{rpc_method=\"siem.v1.EventService/Publish\",rpc_response_status_code=\"OK\",rpc_system_name=\"grpc\"}",
        "process_open_fds",
        "process_max_fds",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "siem_relay_disk_free_bytes",
        "siem_relay_database_bytes",
    ] {
        assert!(after.value(name) >= 1.0 || name.contains("cpu"), "{name}");
    }
    let of_get = "rpc_server_call_duration_seconds_count{rpc_method=\"siem.v1.SiemIntegrationService/Get\",rpc_response_status_code=\"NOT_FOUND\",rpc_system_name=\"grpc\"}";
    assert_eq!(after.value(of_get), 1.0);
    // A sync is a matter of milliseconds: in bounds for milliseconds all would be in the first bucket.
    let below_100 = "siem_relay_ack_duration_seconds_bucket{le=\"60\"}";
    assert_eq!(after.value(below_100), 2.0);
    let active = "siem_relay_integrations{reason=\"\",status=\"ACTIVE\"}";
    metrics
        .until("an active integration", |page| page.value(active) == 1.0)
        .await;

    // Waiting events show in the levels, and a Delete discards them.
    let throttle = env
        .aws
        .add_fault(fault(Operation::PutRecords, None, throttled_records()));
    api.publish(&load.events(30)).await;
    let code = "siem_relay_aws_attempts_total{code=\"ProvisionedThroughputExceededException\",operation=\"PutRecords\"}";
    let page = metrics
        .until("throttled events", |page| {
            page.value("siem_relay_pending_events") == 30.0
                && page.value("siem_relay_aws_throttled_records_total") >= 30.0
                && page.value(code) >= 1.0
                && page.value("siem_relay_pending_oldest_age_seconds") > 0.0
        })
        .await;
    assert!(page.value("siem_relay_pending_bytes") > 1000.0);
    assert!(page.value("siem_relay_tail_bytes") > 1000.0);
    assert!(page.value("siem_relay_log_bytes") > 1000.0);
    let failing = "siem_relay_integrations{reason=\"THROTTLED\",status=\"FAILING\"}";
    metrics
        .until("a throttled integration", |page| {
            page.value(failing) == 1.0 && page.value(active) == 0.0
        })
        .await;
    env.aws.clear_fault(throttle.unwrap());
    env.aws.delete_role(&env.customer.role_arn);
    api.delete("acme", false).await.unwrap();
    let page = metrics
        .until("the discarded events", |page| {
            page.value("siem_relay_pending_events") == 0.0
        })
        .await;
    let discarded = page.value("siem_relay_events_discarded_total");
    let delivered = page.value("siem_relay_events_delivered_total");
    assert_eq!(page.value("siem_relay_events_accepted_total"), 102.0);
    assert_eq!(discarded + delivered, 102.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_events_and_the_backlog_are_counted() {
    let env = ProcessEnv::new().await;
    let arguments = ["--log-tail-bytes", "0", "--retention-seconds", "3"];
    env.aws
        .add_fault(fault(
            Operation::PutRecords,
            None,
            error("InternalFailure", 500),
        ))
        .unwrap();
    let (process, metrics) = start(&env, &arguments).await;
    process.api.configure(&env.customer).await;
    let mut load = Load::new("acme", 5, 2);
    process.api.publish(&load.events(40)).await;
    metrics
        .until("events in the backlog", |page| {
            page.value("siem_relay_backlog_events") == 40.0
                && page.value("siem_relay_backlog_bytes") > 1000.0
                && page.value("siem_relay_pending_oldest_age_seconds") > 0.0
        })
        .await;
    let page = metrics
        .until("expired events", |page| {
            page.value("siem_relay_events_expired_total") == 40.0
        })
        .await;
    let failures =
        "siem_relay_aws_attempts_total{code=\"InternalFailure\",operation=\"PutRecords\"}";
    assert!(page.value(failures) >= 1.0);
}

/// Customers that share a role which does not exist.
async fn stuck(process: &Process, count: usize) -> Vec<String> {
    let mut organizations = Vec::new();
    for number in 0..count {
        let organization = format!("stuck-{number}");
        let customer = Customer::sharing("stuck", &organization);
        process.api.configure(&customer).await;
        process.api.publish(&[event(&organization)]).await;
        organizations.push(organization);
    }
    organizations
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_organizations_have_series_until_they_recover() {
    let env = ProcessEnv::new().await;
    let arguments = ["--metrics-organizations", "3"];
    let (process, metrics) = start(&env, &arguments).await;
    let organizations = stuck(&process, 5).await;
    let denied = "siem_relay_integrations{reason=\"ASSUME_ROLE_DENIED\",status=\"UNAUTHORIZED\"}";
    let page = metrics
        .until("five refused integrations", |page| {
            page.value(denied) == 5.0
        })
        .await;
    // Those whose events wait longest.
    let series = page.starting("siem_relay_organization_pending_events{");
    let expected = |name: &str| {
        let series = |organization| format!("{name}{{organization=\"{organization}\"");
        organizations[..3].iter().map(series).collect::<Vec<_>>()
    };
    let begins_as = |series: &[(&str, f64)], name| {
        let expected = expected(name);
        let pairs = series.iter().zip(&expected);
        series.len() == 3
            && pairs
                .into_iter()
                .all(|((series, _), start)| series.starts_with(start))
    };
    assert!(
        begins_as(&series, "siem_relay_organization_pending_events"),
        "{series:?}"
    );
    assert!(series.iter().all(|(_, value)| *value == 1.0), "{series:?}");
    let since = page.starting("siem_relay_organization_status_since_seconds{");
    assert!(
        begins_as(&since, "siem_relay_organization_status_since_seconds"),
        "{since:?}"
    );
    let why = "reason=\"ASSUME_ROLE_DENIED\",status=\"UNAUTHORIZED\"}";
    let started = page.value("process_start_time_seconds");
    assert!(
        since
            .iter()
            .all(|(series, at)| series.ends_with(why) && *at > started),
        "{since:?}"
    );
    let customer = Customer::new("stuck");
    customer.make_shared_role(&env.aws);
    customer.make_stream(&env.aws, 1);
    metrics
        .until("no series of organizations", |page| {
            page.starting("siem_relay_organization_").is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_cannot_create_series() {
    let env = ProcessEnv::new().await;
    let (process, metrics) = start(&env, &[]).await;
    let names = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| line.rsplit_once(' ').unwrap().0);
        series
            .filter(|series| !series.starts_with("rpc_"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(
        process
            .api
            .try_publish(vec![event("unknown-0")])
            .await
            .is_ok()
    );
    let before = metrics.scrape().await;
    for number in 1..200 {
        let organization = format!("unknown-{number}");
        let answer = process.api.try_publish(vec![event(&organization)]).await;
        assert_eq!(answer.unwrap().unconfigured, 1);
        assert!(process.api.try_get(&organization).await.is_err());
        let path = format!("/unknown.Service{number}/Method").parse().unwrap();
        let mut client = tonic::client::Grpc::new(process.api.channel());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let refused = client.unary(Request::new(()), path, codec).await;
        assert!(refused.is_err());
    }
    let after = metrics.scrape().await;
    assert_eq!(names(&after.text), names(&before.text));
    let other = "rpc_server_call_duration_seconds_count{error_type=\"UNIMPLEMENTED\",rpc_method=\"_OTHER\",rpc_response_status_code=\"UNIMPLEMENTED\",rpc_system_name=\"grpc\"}";
    assert_eq!(after.value(other), 199.0);
    let methods: std::collections::BTreeSet<_> = after
        .starting("rpc_server_call_duration_seconds_count{")
        .into_iter()
        .map(|(series, _)| series.to_owned())
        .collect();
    assert!(methods.len() <= 4, "{methods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_listener_unless_it_is_given() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    assert_eq!(listening(process.id()), 1);
    assert!(!process.log().contains("metrics"));
    process.stop().await;
    let (process, metrics) = start(&env, &[]).await;
    assert_eq!(listening(process.id()), 2);
    assert!(metrics.address.ip().is_loopback());
}

/// Number of TCP sockets of a process that listen.
fn listening(process: u32) -> usize {
    const LISTEN: &str = "0A";
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let targets = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    let inodes: Vec<String> = targets
        .filter_map(|target| {
            let target = target.to_str()?.strip_prefix("socket:[")?;
            Some(target.strip_suffix(']')?.to_owned())
        })
        .collect();
    let sockets = fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap();
    let fields = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| fields[3] == LISTEN && inodes.iter().any(|inode| inode == fields[9]))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_types_and_bad_requests_are_refused() {
    let env = ProcessEnv::new().await;
    let (_process, metrics) = start(&env, &[]).await;
    let page = metrics.get("/metrics").await;
    assert_eq!(
        page.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    for (path, body) in [
        ("/livez", "ok\n"),
        ("/readyz", "lease: ok\nlog: ok\ndatabase: ok\n"),
    ] {
        let answer = metrics.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
    assert_eq!(metrics.get("/").await.status, 404);
    let post = "POST /metrics HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n";
    let refused = metrics.request(post).await.unwrap();
    assert_eq!(
        (refused.status, refused.headers["allow"].as_str()),
        (405, "GET, HEAD")
    );
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: test\r\n\r\n",
        "x".repeat(100_000)
    );
    let refused = metrics.request(&long).await;
    assert!(refused.is_none_or(|answer| answer.status >= 400));
    assert_eq!(metrics.get("/livez").await.status, 200);
}

/// Clients that send nothing, half a request, or read no answer.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_keep_no_other_from_its_answer() {
    let env = ProcessEnv::new().await;
    let (process, metrics) = start(&env, &[]).await;
    let mut slow = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(metrics.address).await.unwrap();
        let sent = [
            "",
            "GET /metrics HTTP/1.1\r\nHo",
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        ];
        // The service may have closed it already.
        let _closed = stream.write_all(sent[number % 3].as_bytes()).await;
        slow.push(stream);
        if number % 50 == 0 {
            assert_eq!(metrics.get("/livez").await.status, 200);
        }
    }
    let page = metrics.scrape().await;
    assert!(page.value("process_open_fds") < 150.0);
    process.api.configure(&env.customer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_shuts_down_is_alive_and_not_ready() {
    let env = ProcessEnv::new().await;
    let (process, metrics) = start(&env, &["--aws-attempt-timeout-ms", "60000"]).await;
    env.aws
        .add_fault(fault(Operation::PutRecords, None, Effect::Hang))
        .unwrap();
    process.api.configure(&env.customer).await;
    process.api.publish(&[event("acme")]).await;
    let calls = || env.aws.call_count(Operation::AssumeRole, None);
    with_timeout("the call in flight", async {
        while calls() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    let answer = with_timeout("not ready", async {
        loop {
            let answer = metrics.get("/readyz").await;
            if answer.status != 200 {
                return answer;
            }
        }
    });
    let answer = answer.await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body, "stop: the service is shutting down\n");
    assert_eq!(metrics.get("/livez").await.status, 200);
    env.aws.clear_faults();
    let (status, log) = process.ended().await;
    assert!(status.success(), "{log}");
}

/// A collector that sends on the metrics that it gets.
struct Collector(mpsc::UnboundedSender<Vec<Metric>>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let resources = request.into_inner().resource_metrics.into_iter();
        for resource in resources {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let name = attributes.iter().find(|one| one.key == "service.name");
            let name = name.and_then(|one| one.value.clone()?.value);
            let expected = any_value::Value::StringValue("siem-relay".to_owned());
            assert_eq!(name, Some(expected));
            let scopes = resource.scope_metrics.into_iter();
            let metrics = scopes.flat_map(|scope| scope.metrics);
            let _ended = self.0.send(metrics.collect());
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn value_of(metrics: &[Metric], name: &str) -> Option<f64> {
    let metric = metrics.iter().find(|metric| metric.name == name)?;
    let points = match metric.data.as_ref()? {
        Data::Gauge(gauge) => &gauge.data_points,
        Data::Sum(sum) => &sum.data_points,
        _ => return None,
    };
    match points.first()?.value? {
        number_data_point::Value::AsDouble(value) => Some(value),
        number_data_point::Value::AsInt(value) => Some(value as f64),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_exported_while_it_runs_and_at_its_end() {
    let env = ProcessEnv::new().await;
    let (sender, mut exported) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let collector = Server::builder()
        .add_service(MetricsServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpIncoming::from(listener));
    let _collector = AbortOnDropHandle::new(tokio::spawn(collector));
    let launcher = [
        "/usr/bin/env".to_owned(),
        format!("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://{address}"),
        "OTEL_METRIC_EXPORT_INTERVAL=100".to_owned(),
    ];
    let process = env.start_under(&launcher).await;
    // There is no listener, and levels are exported all the same.
    assert_eq!(listening(process.id()), 1);
    with_timeout("a level", async {
        while let Some(metrics) = exported.recv().await {
            if value_of(&metrics, "siem_relay.partitions.owned") == Some(1.0) {
                return;
            }
        }
        panic!("the collector has ended");
    })
    .await;
    process.api.configure(&env.customer).await;
    process.api.publish(&[event("acme")]).await;
    process.api.until_delivered("acme").await;
    let log = process.stop().await;
    assert!(!log.contains("not exported"), "{log}");
    let mut last = Vec::new();
    while let Ok(metrics) = exported.try_recv() {
        last = metrics;
    }
    assert_eq!(value_of(&last, "siem_relay.events.delivered"), Some(1.0));
}

/// One that cannot be reached, and one that accepts connections and answers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_does_not_hold_up_the_stop() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [silent.local_addr().unwrap(), closed.local_addr().unwrap()];
    drop(closed);
    for address in addresses {
        let env = ProcessEnv::new().await;
        let launcher = [
            "/usr/bin/env".to_owned(),
            format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{address}"),
            "OTEL_METRIC_EXPORT_INTERVAL=50".to_owned(),
        ];
        let process = env.start_under_with(&launcher, &LISTEN).await;
        process.api.configure(&env.customer).await;
        process.api.publish(&[event("acme")]).await;
        process.api.until_delivered("acme").await;
        let metrics = Metrics::of(&process);
        assert_eq!(metrics.get("/readyz").await.status, 200);
        process.terminate().await;
        let ended = tokio::time::timeout(Duration::from_secs(60), process.ended()).await;
        let (status, log) = ended.expect("the stop waits for a collector");
        assert!(status.success(), "{log}");
    }
}

/// Families of a page: name, and its row of the table in `docs/metrics.md`.
fn rows(page: &str) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    let (mut help, mut kind) = (BTreeMap::new(), BTreeMap::new());
    let mut labels: BTreeMap<&str, std::collections::BTreeSet<&str>> = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').unwrap();
            help.insert(name, text);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, text) = rest.split_once(' ').unwrap();
            kind.insert(name, text);
        } else {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, given) = series.split_once('{').unwrap_or((series, ""));
            let suffixes = ["_bucket", "_sum", "_count"];
            let base = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
            let base = base.filter(|base| kind.get(base) == Some(&"histogram"));
            let names = given
                .split(',')
                .filter_map(|label| Some(label.split_once('=')?.0));
            labels
                .entry(base.unwrap_or(name))
                .or_default()
                .extend(names.filter(|name| *name != "le"));
        }
    }
    for (name, text) in help {
        let labels = labels[name].iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let row = format!("| `{name}` | {} | {labels} | {text} |", kind[name]);
        rows.insert(name.to_owned(), row);
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_metrics_is_what_a_scrape_has() {
    let env = ProcessEnv::new().await;
    let directory = env.dir.path().join("credentials");
    let made = run(tool(&["dev-credentials", directory.to_str().unwrap()])).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let file = |name| directory.join(name).to_str().unwrap().to_owned();
    let (cert, key) = (file("server.pem"), file("server.key"));
    let (process, metrics) = start(&env, &["--tls-cert", &cert, "--tls-key", &key]).await;
    let options = ChannelOptions::new(format!("https://{}", process.address));
    let api = Api::over(
        process.address,
        options.ca_file(file("ca.pem")).connect().unwrap(),
    );
    api.configure(&env.customer).await;
    api.publish(&[event("acme")]).await;
    api.until_delivered("acme").await;
    let stuck = Customer::sharing("stuck", "stuck");
    api.configure(&stuck).await;
    api.publish(&[event("stuck")]).await;
    // One that is the server's fault has one label more.
    let mut client = tonic::client::Grpc::new(api.channel());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = "/unknown.Service/Method".parse().unwrap();
    assert!(client.unary(Request::new(()), path, codec).await.is_err());
    let page = metrics
        .until("series of an organization", |page| {
            page.starting("siem_relay_organization_").len() == 4
        })
        .await;
    let in_a_month = page.value("process_start_time_seconds") + 86_400.0;
    assert!(page.value("siem_relay_tls_certificate_not_after_seconds") > in_a_month);

    let scraped = rows(&page.text);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/metrics.md")).unwrap();
    let documented: BTreeMap<String, String> = text
        .lines()
        .filter(|line| line.starts_with("| `") && !line.starts_with("| `/"))
        .map(|line| (line.split('`').nth(1).unwrap().to_owned(), line.to_owned()))
        .collect();
    let missing: Vec<&String> = scraped
        .iter()
        .filter(|(name, row)| documented.get(*name) != Some(row))
        .map(|(_, row)| row)
        .collect();
    assert!(
        missing.is_empty(),
        "docs/metrics.md lacks:\n{}",
        missing
            .into_iter()
            .map(|row| format!("{row}\n"))
            .collect::<String>()
    );
    let unknown: Vec<&String> = documented
        .iter()
        .filter(|(name, row)| !scraped.contains_key(*name) && !row.contains("with shared storage"))
        .map(|(name, _)| name)
        .collect();
    assert!(unknown.is_empty(), "no scrape has {unknown:?}");
}
