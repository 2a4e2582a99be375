//! The readers of the metrics: Prometheus' page and the OTLP export. Both read the same meter.

use std::{sync::OnceLock, time::Duration};

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use super::{
    TelemetryError,
    export::{METRICS, is_requested, resource},
};
use crate::{api, metrics};

/// Interval of the export, in milliseconds.
const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
/// The interval if the variable has none, by the specification.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

static PROMETHEUS: OnceLock<Registry> = OnceLock::new();
static EXPORT_INTERVAL: OnceLock<Duration> = OnceLock::new();

/// Defines all metrics if somebody reads them: Prometheus, with `is_scraped`, or a collector, if the
/// variables request it. The SDK itself reads endpoint, headers, timeout, compression, temporality
/// and interval from the environment.
pub(super) fn provider(
    is_scraped: bool,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<SdkMeterProvider>, TelemetryError> {
    let is_exported = is_requested(&METRICS, &variable)?;
    if !is_scraped && !is_exported {
        return Ok(None);
    }
    let mut builder = SdkMeterProvider::builder().with_resource(resource(&variable));
    if is_scraped {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false);
        builder = builder.with_reader(exporter.build()?);
        PROMETHEUS.get_or_init(|| registry);
    }
    if is_exported {
        let exporter = MetricExporter::builder().with_tonic().build()?;
        builder = builder.with_reader(PeriodicReader::builder(exporter).build());
        let given = variable(INTERVAL).and_then(|text| text.parse().ok());
        let interval = given
            .filter(|millis| *millis > 0)
            .map(Duration::from_millis);
        EXPORT_INTERVAL.get_or_init(|| interval.unwrap_or(DEFAULT_INTERVAL));
    }
    let provider = builder.build();
    metrics::define(&provider.meter(super::TRACER), api::refusal_reasons());
    Ok(Some(provider))
}

/// Interval in which metrics are exported; None if they are not.
pub fn metrics_interval() -> Option<Duration> {
    EXPORT_INTERVAL.get().copied()
}

/// All metrics in Prometheus' text format; empty unless [`init`] found the setting
/// `metrics-listen`.
///
/// [`init`]: super::init
pub fn prometheus_page() -> String {
    let families = PROMETHEUS.get().map(Registry::gather).unwrap_or_default();
    match TextEncoder::new().encode_to_string(&families) {
        Ok(page) => page,
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written as text");
            String::new()
        }
    }
}
