//! Spans of requests, as children of the callers' traces, and log lines for failed requests.

use std::{sync::Arc, time::Duration};

use http::Request;
use tower_http::{
    classify::{GrpcCode, GrpcFailureClass},
    trace::MakeSpan,
};
use tracing::Span;

use crate::telemetry::continue_trace;

/// RPCs so frequent that a span for each request would slow them down measurably.
const FREQUENT: [&str; 2] = [
    "/siem.v1.EventService/Publish",
    "/siem.v1.EventService/PublishStream",
];

/// Creates the spans of requests.
#[derive(Clone)]
pub(super) struct RequestSpans {
    shared: Arc<[(&'static str, Span)]>,
}

impl RequestSpans {
    /// With `may_share`, all requests of a frequent RPC share one span. In the log the span
    /// only names the RPC, so this is safe unless traces are exported.
    pub(super) fn new(may_share: bool) -> Self {
        let shared = FREQUENT.into_iter().filter(|_| may_share);
        Self {
            shared: shared.map(|path| (path, rpc_span(path))).collect(),
        }
    }
}

impl<B> MakeSpan<B> for RequestSpans {
    fn make_span(&mut self, request: &Request<B>) -> Span {
        let path = request.uri().path();
        if let Some((_, span)) = self.shared.iter().find(|(shared, _)| *shared == path) {
            return span.clone();
        }
        let span = rpc_span(path);
        continue_trace(&span, request.headers());
        span
    }
}

/// Span that names the RPC, without any content of the request.
fn rpc_span(path: &str) -> Span {
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

/// Logs a failed request: as an error if the code indicates a defect of this service,
/// otherwise for debugging only, because operators need not act on a caller's mistake or a
/// stream that a shutdown ended.
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

    fn span(spans: &mut RequestSpans, path: &str) -> Span {
        let request = Request::builder().uri(path).body(()).unwrap();
        spans.make_span(&request)
    }

    /// Number of different spans for three requests of each path.
    fn count_spans(paths: &[&str], may_share: bool) -> usize {
        let mut spans = RequestSpans::new(may_share);
        let paths = std::iter::repeat_n(paths, 3).flatten();
        let kept: Vec<Span> = paths.map(|path| span(&mut spans, path)).collect();
        let ids = kept.iter().map(|span| span.id().unwrap().into_u64());
        ids.collect::<BTreeSet<u64>>().len()
    }

    #[test]
    fn only_frequent_rpcs_share_spans_and_only_if_allowed() {
        tracing::subscriber::with_default(registry(), || {
            assert_eq!(count_spans(&FREQUENT, true), FREQUENT.len());
            assert_eq!(count_spans(&FREQUENT, false), 3 * FREQUENT.len());
            let get = "/siem.v1.SiemIntegrationService/Get";
            assert_eq!(count_spans(&[get], true), 3);
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
