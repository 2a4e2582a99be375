//! Work that the process finishes while it shuts down: recording of deliveries, export of traces.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server, transport::server::TcpIncoming};

use crate::harness::{Load, Process, ProcessEnv, SyncFaults, database, read_events};

const UNWRITTEN: &str = "cannot write to the log";
const FORBID: &str = "CREATE TRIGGER unwritten BEFORE UPDATE ON progress \
    BEGIN SELECT RAISE(ABORT, 'not now'); END";
const RECORDED: usize = 100;
const UNRECORDED: usize = 50;
const ALL: usize = RECORDED + UNRECORDED;
const ALLOW: &str = "DROP TRIGGER unwritten";

/// Delivers events, of which the last [`UNRECORDED`] cannot be recorded before [`allow`] is called with
/// the returned database.
async fn deliver_unrecorded(env: &ProcessEnv, process: &Process) -> DatabaseConnection {
    process.api.configure(&env.customer).await;
    let mut load = Load::new("acme", 5, 91);
    process.api.publish(&load.events(RECORDED)).await;
    process.api.until_delivered("acme").await;
    let db = database(env.dir.path()).await;
    db.execute_unprepared(FORBID).await.unwrap();
    process.api.publish(&load.events(UNRECORDED)).await;
    read_events(&env.aws, &env.customer.stream_arn, ALL).await;
    process.until_logged(UNWRITTEN, 0).await;
    db
}

async fn allow(db: DatabaseConnection) {
    db.execute_unprepared(ALLOW).await.unwrap();
    db.close().await.unwrap();
}

/// Recording of deliveries is retried until the shutdown deadline, so that nothing is sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_recorded_at_shutdown_once_the_log_is_writable() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let db = deliver_unrecorded(&env, &process).await;
    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    let before = process.log().matches(UNWRITTEN).count();
    process.until_logged(UNWRITTEN, before).await;
    allow(db).await;
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    let all = ALL as u64;
    assert_eq!((counts.accepted, counts.delivered), (all, all));
    assert_eq!(env.stored(), all);
}

/// Deliveries that cannot be synced are not taken for recorded: the process logs that and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_at_shutdown_exits_with_1() {
    let env = ProcessEnv::new().await;
    let syncs = SyncFaults::new().await;
    let process = env.start_under(&syncs.launcher()).await;
    let db = deliver_unrecorded(&env, &process).await;
    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    syncs.fail();
    allow(db).await;
    let (status, log) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    let words = "the disk does not keep what is written";
    assert!(log.contains(words), "{log}");
}

/// A collector that sends on the names of exported spans.
struct Collector(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            let _ended = self.0.send(span.name);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_exported_at_shutdown() {
    let env = ProcessEnv::new().await;
    let (names, mut exported) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://{}",
        listener.local_addr().unwrap()
    );
    let collector = Server::builder()
        .add_service(TraceServiceServer::new(Collector(names)))
        .serve_with_incoming(TcpIncoming::from(listener));
    let _collector = AbortOnDropHandle::new(tokio::spawn(collector));
    let traces_only = "OTEL_METRICS_EXPORTER=none".to_owned();
    let launcher = ["/usr/bin/env".to_owned(), endpoint, traces_only];
    let process = env.start_under(&launcher).await;
    process.api.configure(&env.customer).await;
    let log = process.stop().await;
    assert!(!log.contains("not exported"), "{log}");
    let names: Vec<String> = std::iter::from_fn(|| exported.try_recv().ok()).collect();
    let exported = names.iter().any(|name| name.ends_with("Configure"));
    assert!(exported, "{names:?}");
}
