//! A span for each request, child of the caller's trace, and a log line where one
//! fails.

use std::{sync::Arc, time::Duration};

use http::Request;
use tower_http::{
    classify::{GrpcCode, GrpcFailureClass},
    trace::MakeSpan,
};
use tracing::Span;

use crate::telemetry::{continue_trace, exports_traces};

/// RPCs that come so often that a span of its own for each request would show in its cost.
const FREQUENT: [&str; 2] = [
    "/siem.v1.EventService/Publish",
    "/siem.v1.EventService/PublishStream",
];

/// Makes the spans of requests. Where only the log sees them, all requests of a frequent RPC
/// share one: there it says no more than which RPC it is.
#[derive(Clone)]
pub(super) struct Spans {
    shared: Arc<[(&'static str, Span)]>,
}

impl Spans {
    pub(super) fn new() -> Self {
        let shared = FREQUENT.into_iter().filter(|_| !exports_traces());
        Self {
            shared: shared.map(|path| (path, named(path))).collect(),
        }
    }
}

impl<B> MakeSpan<B> for Spans {
    fn make_span(&mut self, request: &Request<B>) -> Span {
        let path = request.uri().path();
        if let Some((_, span)) = self.shared.iter().find(|(shared, _)| *shared == path) {
            return span.clone();
        }
        let span = named(path);
        continue_trace(&span, request.headers());
        span
    }
}

/// Named after the RPC, without anything of its content.
fn named(path: &str) -> Span {
    let (service, method) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path, ""));
    tracing::info_span!(
        "grpc",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
    )
}

/// Logs an answer that shows a defect of ours. Other errors tell the caller what it
/// did wrong, or that a shutdown ends its stream; that is no news to whoever runs us.
pub(super) fn log_failure(failure: GrpcFailureClass, latency: Duration, _: &Span) {
    let latency_ms = latency.as_millis();
    let code = match &failure {
        GrpcFailureClass::Status(status) => status.code(),
        _ => None,
    };
    match code {
        None | Some(GrpcCode::Unknown | GrpcCode::Internal | GrpcCode::DataLoss) => {
            tracing::error!(%failure, latency_ms, "request failed");
        }
        Some(_) => tracing::debug!(%failure, latency_ms, "request refused"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use tracing_subscriber::registry;

    use super::*;
    use crate::proto::DESCRIPTOR_SET;

    fn span(spans: &mut Spans, path: &str) -> Span {
        let request = Request::builder().uri(path).body(()).unwrap();
        spans.make_span(&request)
    }

    #[test]
    fn frequent_rpcs_share_a_span_each_and_others_have_their_own() {
        tracing::subscriber::with_default(registry(), || {
            let mut spans = Spans::new();
            let mut ids = BTreeSet::new();
            let kept: Vec<Span> = (0..3)
                .flat_map(|_| FREQUENT.map(|path| span(&mut spans, path)))
                .collect();
            ids.extend(kept.iter().map(|span| span.id().unwrap().into_u64()));
            assert_eq!(ids.len(), FREQUENT.len());
            let get = "/siem.v1.SiemIntegrationService/Get";
            let others = [span(&mut spans, get), span(&mut spans, get)];
            ids.extend(others.iter().map(|span| span.id().unwrap().into_u64()));
            assert_eq!(ids.len(), FREQUENT.len() + 2);
        });
    }

    #[test]
    fn frequent_rpcs_exist() {
        let files = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap().file;
        let paths = files.iter().flat_map(|file| {
            file.service.iter().flat_map(|service| {
                let path =
                    |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
                service.method.iter().map(move |method| path(method.name()))
            })
        });
        let paths: BTreeSet<String> = paths.collect();
        assert!(
            FREQUENT.iter().all(|path| paths.contains(*path)),
            "{paths:?}"
        );
    }
}
