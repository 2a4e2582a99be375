//! Export of traces and metrics by OTLP, configured by the standard variables (OpenTelemetry specification,
//! "Environment Variable Specification" and "OTLP Exporter").

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};

use super::TelemetryError;

const SERVICE_NAME: &str = "siem-relay";

/// Samplers that the SDK supports. It silently replaces any other by `parentbased_always_on`.
const SAMPLERS: &str = "always_on, always_off, traceidratio, parentbased_always_on, \
                        parentbased_always_off or parentbased_traceidratio";

/// Returns the provider that exports spans, if the variables request it. The SDK itself reads
/// endpoint, headers, timeout, compression, sampler and limits from the environment.
pub(super) fn provider(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    if !is_traced(&variable)? {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let provider = SdkTracerProvider::builder()
        .with_resource(resource(&variable))
        .with_batch_exporter(exporter)
        .build();
    Ok(Some(provider))
}

/// Whether traces are to be exported.
fn is_traced(variable: impl Fn(&str) -> Option<String>) -> Result<bool, TelemetryError> {
    if !is_requested(&TRACES, &variable)? {
        return Ok(false);
    }
    only(
        "OTEL_TRACES_SAMPLER",
        given(&variable, "OTEL_TRACES_SAMPLER"),
        SAMPLERS,
        |value| {
            let base = value.strip_prefix("parentbased_").unwrap_or(value);
            ["always_on", "always_off", "traceidratio"].contains(&base)
        },
    )?;
    Ok(true)
}

/// Attributes of this process.
pub(super) fn resource(variable: impl Fn(&str) -> Option<String>) -> Resource {
    let mut resource = Resource::builder();
    if !is_named(&variable) {
        resource = resource.with_service_name(SERVICE_NAME);
    }
    resource.build()
}

/// Variables of one kind of telemetry.
pub(super) struct Signal {
    exporter: &'static str,
    endpoint: &'static str,
    protocol: &'static str,
}

const TRACES: Signal = Signal {
    exporter: "OTEL_TRACES_EXPORTER",
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
};

/// Variables of metrics.
pub(super) const METRICS: Signal = Signal {
    exporter: "OTEL_METRICS_EXPORTER",
    endpoint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
};

/// Value of a variable. By the specification, an empty value counts as not set.
fn given(variable: impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

/// Refuses a value that this program does not support.
fn only(
    variable: &'static str,
    value: Option<String>,
    allowed: &'static str,
    is_allowed: fn(&str) -> bool,
) -> Result<(), TelemetryError> {
    match value {
        Some(value) if !is_allowed(&value) => Err(TelemetryError::Unsupported {
            variable,
            value,
            allowed,
        }),
        _ => Ok(()),
    }
}

/// Whether a signal is to be exported: an endpoint is set, and no variable disables the export.
pub(super) fn is_requested(
    signal: &Signal,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<bool, TelemetryError> {
    let set = |name: &str| given(&variable, name);
    let is_disabled =
        set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let (endpoint_name, endpoint) = first_set(set, signal.endpoint, "OTEL_EXPORTER_OTLP_ENDPOINT");
    let exporter = set(signal.exporter);
    if is_disabled || endpoint.is_none() || exporter.as_deref() == Some("none") {
        return Ok(false);
    }
    only(signal.exporter, exporter, "otlp or none", |value| {
        value == "otlp"
    })?;
    only(endpoint_name, endpoint, "an http:// address", |value| {
        !value.to_ascii_lowercase().starts_with("https://")
    })?;
    let (name, protocol) = first_set(set, signal.protocol, "OTEL_EXPORTER_OTLP_PROTOCOL");
    only(name, protocol, "grpc", |value| value == "grpc")?;
    Ok(true)
}

/// Name and value of the variable for one signal if it is set, or else of the one for all signals.
fn first_set(
    set: impl Fn(&str) -> Option<String>,
    one: &'static str,
    all: &'static str,
) -> (&'static str, Option<String>) {
    match set(one) {
        Some(value) => (one, Some(value)),
        None => (all, set(all)),
    }
}

/// Whether the variables set the service name.
fn is_named(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty())
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|attributes| {
            attributes
                .split(',')
                .filter_map(|attribute| attribute.split_once('='))
                .any(|(key, _)| key.trim() == "service.name")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + use<'a> {
        move |name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn an_endpoint_enables_traces_unless_a_variable_disables_them() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://192.0.2.1:4317");
        for (set, expected) in [
            (&[][..], false),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], false),
            (&[endpoint], true),
            (
                &[(
                    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                    "http://192.0.2.1:4317",
                )],
                true,
            ),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], false),
            (&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], false),
            (&[endpoint, ("OTEL_TRACES_EXPORTER", "otlp")], true),
            (&[endpoint, ("OTEL_SDK_DISABLED", "True")], false),
            (&[endpoint, ("OTEL_SDK_DISABLED", "false")], true),
            (
                &[
                    endpoint,
                    ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ],
                true,
            ),
        ] {
            assert_eq!(is_traced(variables(set)).unwrap(), expected, "{set:?}");
        }
    }

    #[test]
    fn unsupported_values_are_refused_with_the_variable() {
        for (name, value) in [
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "HTTPS://example.com:4317",
            ),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "xray"),
        ] {
            let set = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://192.0.2.1:4317"),
                (name, value),
            ];
            let error = is_traced(variables(&set)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn a_service_name_in_the_environment_is_kept() {
        for (set, expected) in [
            (&[][..], false),
            (&[("OTEL_SERVICE_NAME", "relay-1")], true),
            (
                &[("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=relay-1")],
                true,
            ),
            (
                &[("OTEL_RESOURCE_ATTRIBUTES", "service.name.x=relay-1")],
                false,
            ),
        ] {
            assert_eq!(is_named(variables(set)), expected, "{set:?}");
        }
    }
}
