//! Continuation of a caller's trace (W3C Trace Context).

use http::HeaderMap;
use opentelemetry::{
    Context, global,
    propagation::Extractor,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::exports_traces;
use crate::domain::trace::TraceContext;

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

/// The current span, if it is exported. Costs nothing if no traces are.
pub fn current_trace() -> Option<TraceContext> {
    if !exports_traces() {
        return None;
    }
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    (span.is_valid() && span.is_sampled()).then(|| TraceContext {
        trace_id: span.trace_id().to_bytes(),
        span_id: span.span_id().to_bytes(),
    })
}

/// Links `span` to other spans.
pub fn link_traces(span: &Span, traces: &[TraceContext]) {
    for one in traces {
        span.add_link(SpanContext::new(
            TraceId::from_bytes(one.trace_id),
            SpanId::from_bytes(one.span_id),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        ));
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
