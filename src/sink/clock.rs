//! Offset of this machine's clock from AWS's, measured as the [SDK] does: AWS refuses
//! signatures that are more than five minutes off, and its answers carry a `Date`.
//!
//! [SDK]: https://docs.aws.amazon.com/sdkref/latest/guide/feature-clock-skew-correction.html

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept, context::BeforeDeserializationInterceptorContextRef, dyn_dispatch_hint,
        },
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{DateTime, config_bag::ConfigBag, date_time::Format};

/// Offset that is not corrected, because AWS tolerates it.
const TOLERATED: Duration = Duration::from_secs(4 * 60);
/// Change of the offset after which it is logged again.
const LOGGED_CHANGE_MS: i64 = 60_000;

/// Clock that follows AWS's clock. Cheap to clone; clones share the offset.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Lead of AWS's clock over this machine's, in ms; 0 if it is tolerated.
    offset_ms: AtomicI64,
    logged_ms: AtomicI64,
}

impl Clock {
    /// The time by AWS's clock.
    pub(super) fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let offset = self.offset_ms();
        if offset == 0 {
            return now;
        }
        let by = Duration::from_millis(offset.unsigned_abs());
        let shifted = match offset > 0 {
            true => now.checked_add(by),
            false => now.checked_sub(by),
        };
        shifted.unwrap_or(now)
    }

    /// Lead of AWS's clock over this machine's, in ms; 0 if AWS tolerates it.
    pub(super) fn offset_ms(&self) -> i64 {
        self.0.offset_ms.load(Ordering::Relaxed)
    }

    /// Whether the offset differs from `before` by more than the tolerance, so that a request
    /// signed then has to be signed again.
    pub(super) fn is_off_since(&self, before: i64) -> bool {
        let tolerated = TOLERATED.as_millis() as u64;
        self.offset_ms().abs_diff(before) > tolerated
    }

    /// Measures the offset by the header `Date` of an answer that has just arrived.
    pub(super) fn learn(&self, date: &str) {
        let date = DateTime::from_str(date, Format::HttpDate);
        let Some(theirs) = date.ok().and_then(|date| SystemTime::try_from(date).ok()) else {
            return;
        };
        let measured = milliseconds_ahead(theirs, SystemTime::now());
        let tolerated = TOLERATED.as_millis() as u64;
        let offset = match measured.unsigned_abs() > tolerated {
            true => measured,
            false => 0,
        };
        self.0.offset_ms.store(offset, Ordering::Relaxed);
    }

    /// Logs a new offset, and its end. Callers run this after a call of the SDK, whose logs are
    /// muted.
    pub(super) fn report(&self) {
        let offset = self.offset_ms();
        let logged = self.0.logged_ms.load(Ordering::Relaxed);
        let differs = offset.abs_diff(logged) >= LOGGED_CHANGE_MS as u64;
        // Only one of concurrent callers logs it.
        let logged = &self.0.logged_ms;
        if differs && logged.swap(offset, Ordering::Relaxed) != offset {
            log(offset);
        }
    }
}

/// Whether an answer of this content type is an HTML page, such as an error page of a proxy.
pub(super) fn is_page(content_type: Option<&str>) -> bool {
    content_type.is_some_and(|kind| kind.starts_with("text/html"))
}

fn log(offset_ms: i64) {
    match offset_ms {
        0 => tracing::info!("the clock of this machine agrees with AWS's again"),
        _ => tracing::error!(
            offset_seconds = offset_ms / 1000,
            "the clock of this machine is {} s {} AWS's: requests are signed with AWS's time; set the clock right",
            (offset_ms / 1000).abs(),
            if offset_ms > 0 { "behind" } else { "ahead of" },
        ),
    }
}

fn milliseconds_ahead(theirs: SystemTime, ours: SystemTime) -> i64 {
    let milliseconds = |by: Duration| i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => milliseconds(ahead),
        Err(behind) => -milliseconds(behind.duration()),
    }
}

/// Signing time of the SDK's calls, instead of the offset that each SDK client would measure.
impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        Self::now(self)
    }
}

/// Measures the offset by the answers to the SDK's calls.
#[dyn_dispatch_hint]
impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "Clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.response().headers();
        // The date of a cached answer is old, and an HTML page is not from AWS.
        let is_page = is_page(headers.get("content-type"));
        if let (None, false, Some(date)) = (headers.get("age"), is_page, headers.get("date")) {
            self.learn(date);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http_date(at: SystemTime) -> String {
        DateTime::from(at).fmt(Format::HttpDate).unwrap()
    }

    #[test]
    fn corrects_only_an_offset_that_aws_would_refuse() {
        let clock = Clock::default();
        let ours = SystemTime::now();
        for (ahead, follows) in [
            (600, true),
            (239, false),
            (-600, true),
            (-239, false),
            (0, false),
        ] {
            let by = Duration::from_secs(i64::unsigned_abs(ahead));
            let theirs = if ahead < 0 { ours - by } else { ours + by };
            clock.learn(&http_date(theirs));
            let offset = clock.offset_ms() as f64 / 1000.0;
            let expected = if follows { ahead as f64 } else { 0.0 };
            assert!((offset - expected).abs() < 30.0, "{ahead}: {offset}");
            let now = milliseconds_ahead(clock.now(), SystemTime::now());
            assert!((now - clock.offset_ms()).abs() < 1000);
        }
    }

    #[test]
    fn an_invalid_date_is_ignored() {
        let clock = Clock::default();
        clock.learn("yesterday");
        assert_eq!(clock.offset_ms(), 0);
    }
}
