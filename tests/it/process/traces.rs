//! What a process exports of its traces as it ends.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server, transport::server::TcpIncoming};

use super::Ground;
use crate::harness::Process;

/// Tells the names of the spans that are exported to it.
struct Collector(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|one| one.scope_spans);
        for span in scopes.flat_map(|one| one.spans) {
            let _over = self.0.send(span.name);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_exported_as_the_process_ends() {
    let ground = Ground::new().await;
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
    let within_env = ["/usr/bin/env".to_owned(), endpoint];
    let url = ground.stand_in.url();
    let process = Process::try_start_within(&within_env, ground.dir.path(), &url, &[])
        .await
        .unwrap();
    process.api.configure(&ground.customer).await;
    process.terminate().await;
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    assert!(!log.contains("not exported"), "{log}");
    let names: Vec<String> = std::iter::from_fn(|| exported.try_recv().ok()).collect();
    let is_there = names.iter().any(|name| name.ends_with("Configure"));
    assert!(is_there, "{names:?}");
}
