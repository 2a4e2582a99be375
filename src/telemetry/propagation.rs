//! Continuation of a caller's trace (W3C Trace Context).

use http::HeaderMap;
use opentelemetry::{Context, global, propagation::Extractor, trace::TraceContextExt as _};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Makes `span` a child of the span in the `traceparent` header, if there is one. Then the header
/// also decides whether it is sampled. Call it before the span is entered for the first time.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    // Fails if no traces are exported; then there is no trace to continue.
    let _ = span.set_parent(context(headers));
}

/// Links `span` to the span in the `traceparent` header, if there is one. The span keeps its own
/// trace and its own decision to sample.
pub fn link_trace(span: &Span, headers: &HeaderMap) {
    let caller = context(headers).span().span_context().clone();
    if caller.is_valid() {
        span.add_link(caller);
    }
}

fn context(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
