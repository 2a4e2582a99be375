//! Filters for logs and traces: the directives, limited by a cap that no directive can lift.
//! Only this crate may log below `INFO`. At those levels the AWS SDK logs signed requests (with
//! their bodies, which contain external IDs, if `LOG_SIGNABLE_BODY` is set), and the HTTP stack
//! logs headers. The cap applies to every other crate, so that a new dependency is covered too.

use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter,
    filter::{FilterExt as _, FilterFn, ParseError},
    layer::Filter,
    registry::LookupSpan,
    reload,
};

const OWN_CRATE: &str = "siem_relay";

/// Spans of single AWS requests. They are not logged: formatting their fields costs more than
/// the rest of the span, and the log lines within them name their subject.
const TRACE_ONLY_SPANS: [&str; 1] = ["put_records"];

/// Directives in use, which can be replaced.
pub(super) struct Directives<S>(reload::Handle<EnvFilter, S>);

impl<S> Directives<S> {
    /// Replaces the directives. The cap stays.
    pub(super) fn replace(&self, wanted: EnvFilter) -> Result<(), reload::Error> {
        self.0.reload(wanted)
    }
}

/// Parses directives.
pub(super) fn parse(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(directives)
}

/// Filter for log lines: the directives, within the cap.
pub(super) fn logs<S>(
    directives: &str,
) -> Result<(impl Filter<S> + use<S>, Directives<S>), ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (wanted, handle) = reload::Layer::new(parse(directives)?);
    let is_for_logs: fn(&Metadata<'_>) -> bool = is_for_logs;
    let for_logs = FilterFn::new(is_for_logs).with_max_level_hint(LevelFilter::TRACE);
    Ok((wanted.and(cap()).and(for_logs), Directives(handle)))
}

/// Filter for traces: `INFO`, and more if the directives allow it, within the cap. A higher log
/// level does not remove spans; the sampler of the traces does.
pub(super) fn traces<S>(
    directives: &str,
) -> Result<(impl Filter<S> + use<S>, Directives<S>), ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (wanted, handle) = reload::Layer::new(parse(directives)?);
    Ok((wanted.or(LevelFilter::INFO).and(cap()), Directives(handle)))
}

fn is_for_logs(metadata: &Metadata<'_>) -> bool {
    !metadata.is_span() || !TRACE_ONLY_SPANS.contains(&metadata.name())
}

fn cap() -> FilterFn {
    // Without the hint, callsites could not skip levels that the directives disable.
    let within: fn(&Metadata<'_>) -> bool =
        |metadata| *metadata.level() <= Level::INFO || is_own(metadata);
    FilterFn::new(within).with_max_level_hint(LevelFilter::TRACE)
}

/// Whether this crate logs. The target is free text, so the module path is checked as well.
fn is_own(metadata: &Metadata<'_>) -> bool {
    is_in_own_crate(metadata.target()) && metadata.module_path().is_none_or(is_in_own_crate)
}

fn is_in_own_crate(path: &str) -> bool {
    path.split("::").next() == Some(OWN_CRATE)
}
