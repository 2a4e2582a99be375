//! What is logged and traced. The directives decide, but never past this cap: only
//! this crate's own code may say more than `INFO`. Below it, the AWS SDK writes signed
//! requests (their bodies too, with external IDs, where `LOG_SIGNABLE_BODY` is set) and
//! the HTTP stack writes headers. The cap is for every crate but ours, so that one
//! which joins later need not be remembered here.

use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter,
    filter::{FilterExt as _, FilterFn, ParseError},
    layer::Filter,
    registry::LookupSpan,
};

const OWN_CRATE: &str = "siem_relay";

/// Spans of which there is one for each request to AWS. What is logged within them names
/// what it is about itself, and to write down a span's fields costs more than the rest of it.
const FOR_TRACES_ALONE: [&str; 1] = ["put_records"];

/// For log lines: what the directives let through, within the cap.
pub(super) fn logs<S>(directives: &str) -> Result<impl Filter<S> + use<S>, ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let wanted = EnvFilter::builder().parse(directives)?;
    let is_for_logs: fn(&Metadata<'_>) -> bool = is_for_logs;
    let for_logs = FilterFn::new(is_for_logs).with_max_level_hint(LevelFilter::TRACE);
    Ok(wanted.and(cap()).and(for_logs))
}

/// For traces: `INFO`, and what the directives let through beyond, within the cap. A
/// quieter log does not thin out traces; their sampler does.
pub(super) fn traces<S>(directives: &str) -> Result<impl Filter<S> + use<S>, ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let wanted = EnvFilter::builder().parse(directives)?;
    Ok(wanted.or(LevelFilter::INFO).and(cap()))
}

fn is_for_logs(metadata: &Metadata<'_>) -> bool {
    !metadata.is_span() || !FOR_TRACES_ALONE.contains(&metadata.name())
}

fn cap() -> FilterFn {
    // With a hint, the level that the directives need stays known to callsites.
    let within: fn(&Metadata<'_>) -> bool =
        |metadata| *metadata.level() <= Level::INFO || is_own(metadata);
    FilterFn::new(within).with_max_level_hint(LevelFilter::TRACE)
}

/// Whether our own code speaks: a target is free text, so the module counts as well.
fn is_own(metadata: &Metadata<'_>) -> bool {
    is_in_own_crate(metadata.target()) && metadata.module_path().is_none_or(is_in_own_crate)
}

fn is_in_own_crate(path: &str) -> bool {
    path.split("::").next() == Some(OWN_CRATE)
}
