use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use http::HeaderMap;
use opentelemetry::trace::SpanId;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use tracing::{debug, debug_span, info, info_span, level_filters::LevelFilter, trace};

use super::*;

/// Writer and exporter that collects its input.
#[derive(Debug, Clone)]
struct Collector<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Collector<T> {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Vec::new())))
    }

    fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Collector<u8> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpanExporter for Collector<SpanData> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// Returns the log lines and the exported spans of `log`.
fn capture(format: LogFormat, directives: &str, log: impl FnOnce()) -> (String, Vec<SpanData>) {
    let (lines, spans) = (Collector::new(), Collector::new());
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(spans.clone())
        .build();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::registry()
        .with(traces(&provider, directives).unwrap().0)
        .with(
            logs(format, false, directives, move || writer.clone())
                .unwrap()
                .0,
        );
    tracing::subscriber::with_default(subscriber, log);
    provider.shutdown_with_timeout(FLUSH_DEADLINE).unwrap();
    (String::from_utf8(lines.all()).unwrap(), spans.all())
}

macro_rules! log_as {
    ($($target:literal),+) => {$(
        {
            let _span = info_span!(target: $target, "info span", at = $target).entered();
            let _inner = debug_span!(target: $target, "debug span", secret = "hidden").entered();
            info!(target: $target, "info event");
            debug!(target: $target, "debug event, hidden");
            trace!(target: $target, "debug event, hidden");
        }
    )+};
}

#[test]
fn no_directive_makes_a_dependency_log_more_than_info() {
    let loudest = "trace,aws_smithy_runtime=trace,hyper=trace,h2=trace,rustls=trace,sqlx=trace,\
                   sqlx::query=trace,sea_orm=trace,tonic=trace,tower=trace,[debug span]=trace,\
                   siem_relay=trace";
    let (lines, spans) = capture(LogFormat::Text, loudest, || {
        log_as!(
            "aws_smithy_runtime::client::orchestrator",
            "aws_config",
            "hyper::proto",
            "hyper_util::client",
            "h2::codec",
            "rustls::client",
            "sqlx::query",
            "sqlx_core::pool",
            "sea_orm::driver",
            "sea_orm_migration",
            "tonic::transport",
            "tower::buffer",
            "tower_http::trace",
            "siem_relay_lookalike",
            "a_crate_that_joins_later"
        );
    });
    assert_eq!(lines.matches("info event").count(), 15, "{lines}");
    assert!(!lines.contains("hidden"), "{lines}");
    assert_eq!(spans.len(), 15, "{spans:?}");
    for span in spans {
        assert_eq!(span.name, "info span");
        let events: Vec<&str> = span.events.iter().map(|event| &*event.name).collect();
        assert_eq!(events, ["info event"]);
    }
}

#[test]
fn directives_enable_debug_output_of_this_crate() {
    let log = || {
        let _span = debug_span!("debug span").entered();
        debug!("debug event");
    };
    let (lines, spans) = capture(LogFormat::Text, "info", log);
    assert_eq!((lines.as_str(), spans.len()), ("", 0));
    let (lines, spans) = capture(LogFormat::Text, "warn,siem_relay=debug", log);
    assert!(
        lines.contains("debug span: siem_relay::telemetry::tests: debug event"),
        "{lines}"
    );
    assert_eq!(spans[0].name, "debug span");
}

#[test]
fn the_log_level_does_not_remove_spans() {
    let (lines, spans) = capture(LogFormat::Text, "off", || {
        let _span = info_span!("a span").entered();
        info!("an event");
    });
    assert_eq!(lines, "");
    assert_eq!(spans.len(), 1);
}

#[test]
fn callsites_know_the_maximum_level() {
    let provider = SdkTracerProvider::builder().build();
    for (with_traces, directives, expected) in [
        (false, "warn", LevelFilter::WARN),
        (false, "info", LevelFilter::INFO),
        (true, "warn", LevelFilter::INFO),
        (true, "info,siem_relay=debug", LevelFilter::DEBUG),
    ] {
        let subscriber = tracing_subscriber::registry()
            .with(with_traces.then(|| traces(&provider, directives).unwrap().0))
            .with(
                logs(LogFormat::Text, false, directives, io::sink)
                    .unwrap()
                    .0,
            );
        let hint = subscriber.max_level_hint();
        assert_eq!(hint, Some(expected), "{with_traces} {directives}");
    }
}

#[test]
fn json_logs_have_one_object_per_line() {
    let (lines, _) = capture(LogFormat::Json, "info", || {
        let _span = info_span!("publish", request = 7).entered();
        info!(events = 3, "line\nbreak");
        info!("second");
    });
    let parsed: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(parsed.len(), 2, "{lines}");
    assert_eq!(parsed[0]["message"], "line\nbreak");
    assert_eq!(parsed[0]["events"], 3);
    assert_eq!(parsed[0]["span"]["request"], 7);
    assert_eq!(parsed[0]["level"], "INFO");
}

#[test]
fn the_trace_of_a_caller_is_continued() {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let mut headers = HeaderMap::new();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    headers.insert("traceparent", parent.parse().unwrap());
    let (_, spans) = capture(LogFormat::Text, "info", || {
        let span = info_span!("served");
        continue_trace(&span, &headers);
        span.in_scope(|| ());
    });
    assert_eq!(
        spans[0].span_context.trace_id().to_string(),
        "0af7651916cd43dd8448eb211c80319c"
    );
    assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
}

#[test]
fn a_caller_that_is_not_trusted_does_not_decide_about_sampling() {
    global::set_text_map_propagator(TraceContextPropagator::new());
    for sampled in ["00", "01"] {
        let mut headers = HeaderMap::new();
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{sampled}");
        headers.insert("traceparent", parent.parse().unwrap());
        let (_, spans) = capture(LogFormat::Text, "info", || {
            let span = info_span!("served");
            link_trace(&span, &headers);
            span.in_scope(|| ());
        });
        let [span] = &spans[..] else {
            panic!("{spans:?}");
        };
        let link = &span.links[0].span_context;
        assert_eq!(link.span_id().to_string(), "b7ad6b7169203331");
        assert_ne!(span.span_context.trace_id(), link.trace_id());
        assert_eq!(span.parent_span_id, SpanId::INVALID);
    }
}

#[test]
fn no_field_brings_control_characters_into_a_text_log() {
    let hostile = "a\nb\r\u{1b}[31mc\u{0}\u{7f}\u{9b}\u{2028}\u{202e}d";
    let error = io::Error::other(hostile);
    let (lines, _) = capture(LogFormat::Text, "info", || {
        let _span =
            info_span!("served", shown = %hostile, quoted = ?hostile, text = hostile).entered();
        info!(shown = %hostile, %error, quoted = ?hostile, text = hostile, "{hostile}");
    });
    assert_eq!(lines.matches('\n').count(), 1, "{lines:?}");
    let is_hostile = |c: char| c.is_control() && c != '\n' || "\u{2028}\u{202e}".contains(c);
    assert!(!lines.contains(is_hostile), "{lines:?}");
    assert!(lines.contains(r"a\nb\r\u{1b}[31mc"), "{lines:?}");
    assert!(lines.contains(" shown=a"), "{lines:?}");
    assert!(lines.contains("served{"), "{lines:?}");
}

#[test]
fn spans_of_single_requests_are_traced_and_not_logged() {
    let (lines, spans) = capture(LogFormat::Json, "info", || {
        let _request = info_span!("put_records", organization_id = "acme").entered();
        info!("within");
    });
    assert!(
        lines.contains("within") && !lines.contains("acme"),
        "{lines}"
    );
    assert!(spans.iter().any(|span| span.name == "put_records"));
}
