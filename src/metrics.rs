//! Metrics of this process. Counters and histograms are values of this module, which the other
//! modules change where something happens; levels, such as the number of pending events, are read
//! from where they are kept when somebody asks, as a [`Sample`]. `define` is the only list of all
//! of them: from it come the Prometheus page, the OTLP export and `docs/metrics.md`.
//!
//! Labels are of closed sets, so that no caller and no customer can create series: the exceptions
//! are the partitions of the log, and the organizations in [`Sample::worst`], of which there are at
//! most as many as the setting `metrics-organizations` says.

mod define;
mod sample;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{KeyValue, metrics};

pub use self::{
    define::define,
    sample::{Check, Files, Organization, Process, Sample, latest, publish},
};
use crate::domain::{
    event::RejectionReason,
    status::{self, Operation},
};

/// Number of values of a reason of an error, with some to spare: reasons are numbered from 0.
const REFUSAL_REASONS: usize = 64;

/// Events that were acked, by this instance.
pub static EVENTS_ACCEPTED: Counter = Counter::new();
/// Events that were answered as unconfigured.
pub static EVENTS_UNCONFIGURED: Counter = Counter::new();
/// Events that were answered with a rejection.
pub static EVENTS_REJECTED: [Counter; RejectionReason::ALL.len()] =
    [const { Counter::new() }; RejectionReason::ALL.len()];
/// Events that a stream accepted.
pub static EVENTS_DELIVERED: Counter = Counter::new();
/// Events that gap events replaced.
pub static EVENTS_EXPIRED: Counter = Counter::new();
/// Events that a Delete removed.
pub static EVENTS_DISCARDED: Counter = Counter::new();
/// Records that AWS throttled, alone or with their request.
pub static THROTTLED_RECORDS: Counter = Counter::new();
/// Errors of the API, by the number of their reason.
pub static REFUSALS: [Counter; REFUSAL_REASONS] = [const { Counter::new() }; REFUSAL_REASONS];
/// Partitions that this instance began to deliver for.
pub static TAKEOVERS: Counter = Counter::new();
/// Partitions that it lost or gave back.
pub static PARTITIONS_LOST: Counter = Counter::new();
static ATTEMPTS: [[Counter; CODES]; Operation::ALL.len()] =
    [const { [const { Counter::new() }; CODES] }; Operation::ALL.len()];
/// Outcomes of an attempt: success, each known code, and all others.
const CODES: usize = status::CODE_COUNT + 2;

/// Time from the begin of a Publish's append to its ack.
pub static ACK_DURATION: Histogram = Histogram::new();
/// Time from the acceptance of a chunk of events to the acceptance of its records by the stream.
pub static DELIVERY_LATENCY: Histogram = Histogram::new();
/// Time of an append to the log.
pub static LOG_COMMIT_DURATION: Histogram = Histogram::new();
/// Time of the commit of a transaction of the embedded database, which syncs the disk.
pub static LOG_SYNC_DURATION: Histogram = Histogram::new();
static RPC_DURATION: Histogram = Histogram::new();

/// End of the validity of the TLS certificate that is in use, in seconds since 1970; 0 without.
pub static CERTIFICATE_NOT_AFTER: AtomicI64 = AtomicI64::new(0);
/// Notifications that the receiver has accepted.
pub static NOTIFICATIONS_SENT: Counter = Counter::new();
/// Attempts to send a notification that failed.
pub static NOTIFICATIONS_FAILED: Counter = Counter::new();
/// Time since which the oldest notification is due, in seconds since 1970; 0 if none is.
pub static NOTIFICATION_DUE_SINCE: AtomicI64 = AtomicI64::new(0);

/// TLS files that cannot be used, so that earlier ones stay in use.
pub static TLS_FILES_REFUSED: AtomicU64 = AtomicU64::new(0);

/// A number of occurrences. It starts at 0, so that also the first one is an increase.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds occurrences.
    pub fn add(&self, count: u64) {
        if count > 0 {
            self.0.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations in buckets. It records nothing while metrics are neither served nor exported.
#[derive(Debug)]
pub struct Histogram(OnceLock<metrics::Histogram<f64>>);

impl Histogram {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Records one duration.
    pub fn record(&self, duration: Duration) {
        self.record_with(duration, &[]);
    }

    fn record_with(&self, duration: Duration, labels: &[KeyValue]) {
        if let Some(histogram) = self.0.get() {
            histogram.record(duration.as_secs_f64(), labels);
        }
    }
}

/// Counts a request to AWS. `code` is that of its first fault, of the request or of a record; None
/// if there was none.
pub fn count_attempt(operation: Operation, code: Option<&str>) {
    let index = match code {
        None => 0,
        Some(code) => {
            let known = status::codes().position(|known| known == code);
            known.map_or(CODES - 1, |known| known + 1)
        }
    };
    ATTEMPTS[operation as usize][index].add(1);
}

/// Counts an error of the API by the number of its reason in the proto file.
pub fn count_refusal(reason: i32) {
    let counter = usize::try_from(reason).ok().and_then(|at| REFUSALS.get(at));
    counter.into_iter().for_each(|counter| counter.add(1));
}

/// Records a call of the API. `method` is a known one without the leading slash, or `_OTHER`;
/// `code` is gRPC's, by name.
pub fn record_rpc(method: &opentelemetry::StringValue, code: &'static str, duration: Duration) {
    // Those that are the server's, by OpenTelemetry's conventions for gRPC.
    let is_error = matches!(
        code,
        "UNKNOWN"
            | "DEADLINE_EXCEEDED"
            | "UNIMPLEMENTED"
            | "INTERNAL"
            | "UNAVAILABLE"
            | "DATA_LOSS"
    );
    let labels = [
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method.clone()),
        KeyValue::new("rpc.response.status_code", code),
        KeyValue::new("error.type", code),
    ];
    RPC_DURATION.record_with(duration, if is_error { &labels } else { &labels[..3] });
}

/// Whether [`record_rpc`] records anything.
pub fn records_rpcs() -> bool {
    RPC_DURATION.0.get().is_some()
}
