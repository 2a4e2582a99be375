//! Spans of requests, and log lines for failed requests.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Request;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio_util::sync::CancellationToken;
use tower_http::{classify::GrpcFailureClass, trace::MakeSpan};
use tracing::Span;

use crate::{
    proto::DESCRIPTOR_SET,
    telemetry::{continue_trace, link_trace},
};

/// RPCs so frequent that a span for each request would slow them down measurably.
const FREQUENT: [&str; 2] = [
    "/siem.v1.EventService/Publish",
    "/siem.v1.EventService/PublishStream",
];
/// Path of the span of every path that is no RPC.
const UNKNOWN: &str = "unknown";
/// Interval in which malformed requests are summed up in one line of the log.
const MALFORMED_INTERVAL: Duration = Duration::from_secs(60);

/// Requests that could not be read, since the last report. One for the process, because errors
/// are made without access to their server.
static MALFORMED: AtomicU64 = AtomicU64::new(0);

/// Counts a request that cannot be read.
pub(super) fn count_malformed_request() {
    MALFORMED.fetch_add(1, Ordering::Relaxed);
}

/// Logs the number of malformed requests once a minute, if there were any.
pub(super) async fn report_malformed_requests(stop: CancellationToken) {
    while stop
        .run_until_cancelled(tokio::time::sleep(MALFORMED_INTERVAL))
        .await
        .is_some()
    {
        let count = MALFORMED.swap(0, Ordering::Relaxed);
        if count > 0 {
            tracing::warn!(
                count,
                "malformed requests in the last minute; log-level=info,siem_relay=debug logs each"
            );
        }
    }
}

/// Creates the spans of requests.
#[derive(Clone)]
pub(super) struct RequestSpans {
    shared: Arc<[(&'static str, Span)]>,
    /// Paths of all RPCs.
    known: Arc<HashSet<String>>,
    trusts_callers: bool,
}

impl RequestSpans {
    /// With `may_share`, all requests of a frequent RPC share one span. In the log the span
    /// only names the RPC, so this is safe unless traces are exported. With `trusts_callers`,
    /// spans continue the traces of callers, and the callers decide about sampling.
    pub(super) fn new(may_share: bool, trusts_callers: bool) -> Self {
        let shared = FREQUENT.into_iter().filter(|_| may_share);
        Self {
            shared: shared.map(|path| (path, rpc_span(path))).collect(),
            known: Arc::new(known_paths().collect()),
            trusts_callers,
        }
    }
}

/// Paths of all RPCs.
pub(super) fn known_paths() -> impl Iterator<Item = String> {
    let sets = [
        DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    sets.into_iter().flat_map(paths)
}

/// Paths of the RPCs of a descriptor set.
fn paths(set: &[u8]) -> Vec<String> {
    let mut paths = Vec::new();
    for file in FileDescriptorSet::decode(set).unwrap_or_default().file {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                paths.push(format!("/{package}.{service}/{}", method.name()));
            }
        }
    }
    paths
}

impl<B> MakeSpan<B> for RequestSpans {
    fn make_span(&mut self, request: &Request<B>) -> Span {
        let path = request.uri().path();
        if let Some((_, span)) = self.shared.iter().find(|(shared, _)| *shared == path) {
            return span.clone();
        }
        let span = rpc_span(match self.known.contains(path) {
            true => path,
            false => UNKNOWN,
        });
        match self.trusts_callers {
            true => continue_trace(&span, request.headers()),
            false => link_trace(&span, request.headers()),
        }
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

/// Logs a failed request, for debugging only: operators need not act on a caller's mistake, and
/// no caller may fill the log. A defect of this service is logged where it is found.
pub(super) fn log_failure(failure: GrpcFailureClass, latency: Duration, _: &Span) {
    tracing::debug!(%failure, latency_ms = latency.as_millis(), "request refused");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tracing_subscriber::registry;

    use super::*;

    fn span(spans: &mut RequestSpans, path: &str) -> Span {
        let request = Request::builder().uri(path).body(()).unwrap();
        spans.make_span(&request)
    }

    /// Number of different spans for three requests of each path.
    fn count_spans(paths: &[&str], may_share: bool) -> usize {
        let mut spans = RequestSpans::new(may_share, false);
        let paths = std::iter::repeat_n(paths, 3).flatten();
        let kept: Vec<Span> = paths.map(|path| span(&mut spans, path)).collect();
        let ids = kept.iter().map(|span| span.id().unwrap().into_u64());
        ids.collect::<BTreeSet<u64>>().len()
    }

    #[test]
    fn paths_from_outside_share_one_span() {
        let spans = RequestSpans::new(false, false);
        assert!(spans.known.len() < 20, "{:?}", spans.known);
        assert!(spans.known.iter().all(|path| path.len() < 100));
        assert!(!spans.known.contains("/siem.v1.EventService/Publish2"));
    }

    #[tokio::test(start_paused = true)]
    async fn malformed_requests_are_reported_once_a_minute() {
        for _ in 0..1000 {
            count_malformed_request();
        }
        assert!(MALFORMED.load(Ordering::Relaxed) >= 1000);
        let stop = CancellationToken::new();
        let reporting = tokio::spawn(report_malformed_requests(stop.clone()));
        tokio::time::sleep(MALFORMED_INTERVAL * 3 / 2).await;
        assert!(
            MALFORMED.load(Ordering::Relaxed) < 1000,
            "they were reported"
        );
        stop.cancel();
        reporting.await.unwrap();
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
        let known = RequestSpans::new(true, false).known;
        assert!(
            FREQUENT.iter().all(|path| known.contains(*path)),
            "{known:?}"
        );
        for path in [
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(known.contains(path), "{path}");
        }
    }
}
