//! Identity of a span that events were published in (W3C Trace Context).

/// Most traces that are kept of one chunk, and linked from one request. Together with
/// the bytes of one it bounds the header of a log entry.
pub const MAX_TRACES: usize = 16;

/// A sampled span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace id, not zero.
    pub trace_id: [u8; 16],
    /// Id of the span in the trace, not zero.
    pub span_id: [u8; 8],
}

/// Adds traces that are not among `traces` yet, up to [`MAX_TRACES`].
pub fn add_traces(traces: &mut Vec<TraceContext>, more: impl IntoIterator<Item = TraceContext>) {
    for one in more {
        if traces.len() == MAX_TRACES {
            return;
        }
        if !traces.contains(&one) {
            traces.push(one);
        }
    }
}
