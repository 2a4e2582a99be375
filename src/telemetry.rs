//! Logs on standard error; traces and metrics by OTLP if the standard `OTEL_…` variables request
//! them; metrics for Prometheus if the setting `metrics-listen` does.

mod escape;
mod export;
mod filter;
mod level;
mod propagation;
mod readers;

use std::{
    io::{self, IsTerminal as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    metrics::SdkMeterProvider,
    propagation::TraceContextPropagator,
    trace::SdkTracerProvider,
};
use tracing::Subscriber;
use tracing_subscriber::{
    Layer, fmt::MakeWriter, layer::SubscriberExt as _, registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use self::filter::Directives;
use crate::config::{Config, LogFormat};

pub use self::{
    level::{LevelError, LogLevel, log_level, set_log_level},
    propagation::{continue_trace, current_trace, link_trace, link_traces},
    readers::{metrics_interval, prometheus_page},
};

/// Maximum time that a shutdown waits for the export of the last spans and metrics.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// Name of the tracer and the meter, the instrumentation scope of spans and metrics.
const TRACER: &str = "siem-relay";

type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

static EXPORTS_TRACES: AtomicBool = AtomicBool::new(false);

/// Reason that telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log level is not a list of directives.
    #[error("log-level is not a list of directives: {0}")]
    Directives(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter rejects the `OTEL_…` variables.
    #[error(
        "the exporter of traces or metrics cannot be set up: {0}; correct the OTEL_ variables, or set OTEL_TRACES_EXPORTER=none and OTEL_METRICS_EXPORTER=none"
    )]
    Exporter(#[from] ExporterBuildError),
    /// The metrics for Prometheus cannot be set up.
    #[error("the metrics for Prometheus cannot be set up: {0}")]
    Prometheus(#[from] OTelSdkError),
    /// A variable has a value that this program does not support.
    #[error("{variable} is {value:?}, which is not supported; set it to {allowed}")]
    Unsupported {
        /// Name of the environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// Description of the supported values.
        allowed: &'static str,
    },
    /// Another subscriber is installed already.
    #[error("logging is set up already: {0}")]
    SetUpAlready(#[from] tracing_subscriber::util::TryInitError),
}

/// Guard that exports the last spans and metrics when it is dropped, within five seconds. Keep it
/// until the end of the process, and drop it while another thread drives the async runtime.
#[derive(Debug)]
#[must_use = "spans and metrics are lost when it is dropped early"]
pub struct TelemetryGuard {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        let (traces, metrics) = (self.traces.take(), self.metrics.take());
        let shutdown = move || {
            let ends = |what, ended: OTelSdkResult| {
                if let Err(error) = ended {
                    tracing::warn!(%error, "the last {what} were not exported");
                }
            };
            thread::scope(|scope| {
                // At the same time, since each may use the whole deadline.
                scope.spawn(|| {
                    let ended = traces.map(|one| one.shutdown_with_timeout(FLUSH_DEADLINE));
                    ended.into_iter().for_each(|ended| ends("spans", ended));
                });
                let ended = metrics.map(|one| one.shutdown_with_timeout(FLUSH_DEADLINE));
                ended.into_iter().for_each(|ended| ends("metrics", ended));
            });
        };
        shutdown();
    }
}

/// Sets up logs and traces for the whole process. Call it inside the Tokio runtime, which
/// drives the exporter's connection.
///
/// # Errors
///
/// [`TelemetryError`] if a setting or an `OTEL_…` variable is not supported.
pub fn init(config: &Config) -> Result<TelemetryGuard, TelemetryError> {
    let environment = |name: &str| std::env::var(name).ok();
    let provider = export::provider(environment)?;
    let metrics = readers::provider(config.metrics_listen.is_some(), environment)?;
    let is_terminal = io::stderr().is_terminal();
    let format = config.log_format.unwrap_or(if is_terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let with_color = is_terminal && environment("NO_COLOR").is_none_or(|value| value.is_empty());
    global::set_text_map_propagator(TraceContextPropagator::new());
    let directives = &config.log_level;
    let (traces, spans_directives) = provider
        .as_ref()
        .map(|provider| traces(provider, directives))
        .transpose()?
        .unzip();
    let (logs, lines_directives) = logs(format, with_color, directives, io::stderr)?;
    tracing_subscriber::registry()
        .with(traces)
        .with(logs)
        .try_init()?;
    let mut replace = vec![level::replacing(lines_directives)];
    replace.extend(spans_directives.map(level::replacing));
    level::install(directives, replace);
    EXPORTS_TRACES.store(provider.is_some(), Ordering::Relaxed);
    Ok(TelemetryGuard {
        traces: provider,
        metrics,
    })
}

/// Whether this process exports traces, once [`init`] has returned.
pub fn exports_traces() -> bool {
    EXPORTS_TRACES.load(Ordering::Relaxed)
}

/// The layer that writes log lines.
fn logs<S, W>(
    format: LogFormat,
    with_color: bool,
    directives: &str,
    writer: W,
) -> Result<(BoxedLayer<S>, Directives<S>), TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, directives) = filter::logs(directives)?;
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(with_color)
        .with_writer(writer);
    let layer = match format {
        LogFormat::Text => layer.fmt_fields(escape::Fields).with_filter(filter).boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    };
    Ok((layer, directives))
}

/// The layer that creates OpenTelemetry spans.
fn traces<S>(
    provider: &SdkTracerProvider,
    directives: &str,
) -> Result<(BoxedLayer<S>, Directives<S>), TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let (filter, directives) = filter::traces(directives)?;
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(TRACER))
        .with_location(false)
        .with_threads(false)
        .with_filter(filter)
        .boxed();
    Ok((layer, directives))
}

#[cfg(test)]
mod tests;
