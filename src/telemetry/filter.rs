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

/// For log lines: what the directives let through, within the cap.
pub(super) fn logs<S>(directives: &str) -> Result<impl Filter<S> + use<S>, ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    Ok(EnvFilter::builder().parse(directives)?.and(cap()))
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
