//! A span for each request, child of the caller's trace, and a log line where one
//! fails.

use std::time::Duration;

use http::Request;
use tower_http::classify::{GrpcCode, GrpcFailureClass};
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
