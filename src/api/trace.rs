//! A span for each request, child of the caller's trace.

use http::Request;
use tracing::Span;

use crate::telemetry::continue_trace;

/// Named after the RPC, without anything of its content.
pub(super) fn span<B>(request: &Request<B>) -> Span {
    let path = request.uri().path();
    let (service, method) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path, ""));
    let span = tracing::info_span!(
        "grpc",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
    );
    continue_trace(&span, request.headers());
    span
}
