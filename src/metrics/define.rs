//! The list of all metrics.

use std::{sync::atomic::Ordering, time::SystemTime};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};

use super::{
    ACK_DURATION, ATTEMPTS, CERTIFICATE_NOT_AFTER, Counter, DELIVERY_LATENCY, EVENTS_ACCEPTED,
    EVENTS_DELIVERED, EVENTS_DISCARDED, EVENTS_EXPIRED, EVENTS_REJECTED, EVENTS_UNCONFIGURED,
    Histogram, LOG_COMMIT_DURATION, LOG_SYNC_DURATION, NOTIFICATION_DUE_SINCE,
    NOTIFICATIONS_FAILED, NOTIFICATIONS_SENT, PARTITIONS_LOST, REFUSALS, RPC_DURATION, Sample,
    TAKEOVERS, THROTTLED_RECORDS, TLS_FILES_REFUSED, latest,
};
use crate::domain::{
    event::RejectionReason,
    status::{self, Operation, Reason, Status},
};

/// Units, by the Unified Code for Units of Measure; those in braces are not part of a name.
const EVENTS: &str = "{event}";
const BYTES: &str = "By";
const SECONDS: &str = "s";
const NONE: &str = "";

/// Bounds of the buckets of an ack and of a write, in seconds: a sync takes from a tenth of a
/// millisecond to seconds.
const SHORT: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];
/// Bounds of the buckets of a delivery: from the linger of a request to days of an outage.
const LONG: [f64; 16] = [
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0,
    604_800.0,
];
/// Bounds of `rpc.server.call.duration`, as OpenTelemetry's conventions have them.
const RPC: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

struct List<'a>(&'a Meter);

type Observer<'a, T> = &'a dyn AsyncInstrument<T>;

impl List<'_> {
    fn counters(
        &self,
        name: &'static str,
        help: &'static str,
        observe: impl Fn(Observer<'_, u64>) + Send + Sync + 'static,
    ) {
        let counter = self.0.u64_observable_counter(name).with_description(help);
        counter.with_callback(move |to| observe(to)).build();
    }

    fn counter(&self, name: &'static str, help: &'static str, counter: &'static Counter) {
        self.counters(name, help, |to| to.observe(counter.get(), &[]));
    }

    fn gauges(
        &self,
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        observe: impl Fn(&Sample, Observer<'_, f64>) + Send + Sync + 'static,
    ) {
        let gauge = self.0.f64_observable_gauge(name).with_unit(unit);
        let gauge = gauge.with_description(help);
        gauge
            .with_callback(move |to| observe(&latest(), to))
            .build();
    }

    fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        value: impl Fn(&Sample) -> f64 + Send + Sync + 'static,
    ) {
        self.gauges(name, unit, help, move |sample, to| {
            to.observe(value(sample), &[]);
        });
    }

    fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &[f64],
        into: &'static Histogram,
    ) {
        let histogram = self.0.f64_histogram(name).with_unit(SECONDS);
        let histogram = histogram
            .with_description(help)
            .with_boundaries(bounds.to_vec());
        into.0.get_or_init(|| histogram.build());
    }
}

/// Defines all metrics on a meter. `refusal_reasons` are the names of the errors' reasons, with
/// their numbers in the proto file.
pub fn define(meter: &Meter, refusal_reasons: Vec<(i32, &'static str)>) {
    let list = List(meter);
    events(&list);
    api(&list, refusal_reasons);
    aws(&list);
    integrations(&list);
    log(&list);
    ownership(&list);
    notifications(&list);
    process(&list);
}

fn notifications(list: &List<'_>) {
    list.counter(
        "siem_relay.notifications.sent",
        "Notifications that the receiver has accepted.",
        &NOTIFICATIONS_SENT,
    );
    list.counter(
        "siem_relay.notifications.failed",
        "Attempts to send a notification that failed.",
        &NOTIFICATIONS_FAILED,
    );
    list.gauge(
        "siem_relay.notifications.unsent.age",
        SECONDS,
        "Time since which the oldest notification is due that the receiver has not accepted; 0 if none is.",
        |_| match NOTIFICATION_DUE_SINCE.load(Ordering::Relaxed) {
            0 => 0.0,
            since => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                (now.unwrap_or_default().as_secs_f64() - since as f64).max(0.0)
            }
        },
    );
}

fn events(list: &List<'_>) {
    list.counter(
        "siem_relay.events.accepted",
        "Events that this instance has acked.",
        &EVENTS_ACCEPTED,
    );
    list.counter(
        "siem_relay.events.delivered",
        "Events that the customers' streams have accepted.",
        &EVENTS_DELIVERED,
    );
    list.counter(
        "siem_relay.events.expired",
        "Events that were given up and are announced by gap events.",
        &EVENTS_EXPIRED,
    );
    list.counter(
        "siem_relay.events.discarded",
        "Pending events that a Delete removed.",
        &EVENTS_DISCARDED,
    );
    list.counter(
        "siem_relay.events.unconfigured",
        "Published events of organizations without an integration.",
        &EVENTS_UNCONFIGURED,
    );
    list.counters(
        "siem_relay.events.rejected",
        "Published events that were rejected one by one, by reason.",
        |to| {
            for reason in RejectionReason::ALL {
                let label = KeyValue::new("reason", reason.as_str());
                to.observe(EVENTS_REJECTED[reason as usize].get(), &[label]);
            }
        },
    );
    list.gauge(
        "siem_relay.pending.events",
        EVENTS,
        "Events that were accepted and not yet delivered, expired or discarded.",
        |sample| sample.pending_events as f64,
    );
    list.gauge(
        "siem_relay.pending",
        BYTES,
        "Bytes of the pending events, before compression.",
        |sample| sample.pending_bytes as f64,
    );
    list.gauge(
        "siem_relay.pending.oldest_age",
        SECONDS,
        "Age of the oldest pending event; 0 if there is none.",
        |sample| sample.oldest_pending.as_secs_f64(),
    );
    list.histogram(
        "siem_relay.ack.duration",
        "Time from the append of a publish request to its ack.",
        &SHORT,
        &ACK_DURATION,
    );
    list.histogram(
        "siem_relay.delivery.latency",
        "Time from the acceptance of events to that of their records by the stream; one value for each chunk (the events of one integration in one publish request).",
        &LONG,
        &DELIVERY_LATENCY,
    );
}

fn api(list: &List<'_>, refusal_reasons: Vec<(i32, &'static str)>) {
    list.histogram(
        "rpc.server.call.duration",
        "Duration of calls to the API, by OpenTelemetry's semantic conventions; that of a stream until its end.",
        &RPC,
        &RPC_DURATION,
    );
    list.counters(
        "siem_relay.api.refusals",
        "Errors that the API answered with, by reason.",
        move |to| {
            for (number, name) in &refusal_reasons {
                let counter = usize::try_from(*number).ok();
                if let Some(counter) = counter.and_then(|at| REFUSALS.get(at)) {
                    to.observe(counter.get(), &[KeyValue::new("reason", *name)]);
                }
            }
        },
    );
    list.gauges(
        "siem_relay.tls.certificate.not_after",
        SECONDS,
        "End of the validity of the TLS certificate in use, in seconds since 1970; absent without TLS.",
        |_, to| {
            let at = CERTIFICATE_NOT_AFTER.load(Ordering::Relaxed);
            if at != 0 {
                to.observe(at as f64, &[]);
            }
        },
    );
    list.gauge(
        "siem_relay.tls.refused_files",
        NONE,
        "TLS files that cannot be used, so that those loaded before stay in use.",
        |_| TLS_FILES_REFUSED.load(Ordering::Relaxed) as f64,
    );
}

fn aws(list: &List<'_>) {
    list.counters(
        "siem_relay.aws.attempts",
        "Requests to AWS, by operation and error code: OK, AWS's own code, one of this service, or other.",
        |to| {
            let codes = || std::iter::once("OK").chain(status::codes()).chain(["other"]);
            for operation in Operation::ALL {
                for (counter, code) in ATTEMPTS[operation as usize].iter().zip(codes()) {
                    let labels = [
                        KeyValue::new("operation", operation.as_str()),
                        KeyValue::new("code", code),
                    ];
                    to.observe(counter.get(), &labels);
                }
            }
        },
    );
    list.counter(
        "siem_relay.aws.throttled_records",
        "Records that AWS throttled, alone or with their request; they are sent again.",
        &THROTTLED_RECORDS,
    );
    list.gauges(
        "siem_relay.serving",
        NONE,
        "Whether delivery and publish work, as gRPC's health service says.",
        |sample, to| {
            for check in &sample.serving {
                let label = KeyValue::new("service", check.name);
                to.observe(f64::from(u8::from(check.holds)), &[label]);
            }
        },
    );
}

fn integrations(list: &List<'_>) {
    list.gauges(
        "siem_relay.integrations",
        NONE,
        "Integrations of this instance's partitions, by status and reason.",
        |sample, to| {
            let healthy = [(Status::Unknown, None), (Status::Active, None)];
            let reasons = Reason::ALL.map(|reason| (reason.status(), Some(reason)));
            for (status, reason) in healthy.into_iter().chain(reasons) {
                let counted = sample.integrations.iter();
                let is_it =
                    |one: &&(Status, Option<Reason>, u64)| (one.0, one.1) == (status, reason);
                let count = counted
                    .filter(is_it)
                    .map(|(_, _, count)| *count)
                    .sum::<u64>();
                let labels = [
                    KeyValue::new("status", status.as_str()),
                    KeyValue::new("reason", reason.map_or("", Reason::as_str)),
                ];
                to.observe(count as f64, &labels);
            }
        },
    );
    let organization = |one: &super::Organization| {
        KeyValue::new(
            "organization",
            opentelemetry::StringValue::from(one.organization_id.clone()),
        )
    };
    list.gauges(
        "siem_relay.organization.pending.events",
        EVENTS,
        "Pending events of the organizations whose events wait longest (setting metrics-organizations).",
        move |sample, to| {
            for one in &sample.worst {
                to.observe(one.pending_events as f64, &[organization(one)]);
            }
        },
    );
    list.gauges(
        "siem_relay.organization.pending",
        BYTES,
        "Bytes of their pending events, before compression.",
        move |sample, to| {
            for one in &sample.worst {
                to.observe(one.pending_bytes as f64, &[organization(one)]);
            }
        },
    );
    list.gauges(
        "siem_relay.organization.oldest_age",
        SECONDS,
        "Age of their oldest pending event.",
        move |sample, to| {
            for one in &sample.worst {
                to.observe(one.oldest.as_secs_f64(), &[organization(one)]);
            }
        },
    );
    list.gauges(
        "siem_relay.organization.status_since",
        SECONDS,
        "Status of their integration, and the time since when it has it, in seconds since 1970.",
        move |sample, to| {
            for one in &sample.worst {
                let labels = [
                    organization(one),
                    KeyValue::new("status", one.status.as_str()),
                    KeyValue::new("reason", one.reason.map_or("", Reason::as_str)),
                ];
                to.observe(one.since.as_millisecond() as f64 / 1e3, &labels);
            }
        },
    );
}

fn log(list: &List<'_>) {
    list.histogram(
        "siem_relay.log.commit.duration",
        "Time of an append to the event log: until it is synced to disk, or all in-sync replicas have it.",
        &SHORT,
        &LOG_COMMIT_DURATION,
    );
    list.histogram(
        "siem_relay.log.sync.duration",
        "Time of the commit itself, with its sync to disk; of the embedded log.",
        &SHORT,
        &LOG_SYNC_DURATION,
    );
    list.gauge(
        "siem_relay.log",
        BYTES,
        "Bytes of the entries of the log that are not settled, before compression.",
        |sample| sample.log_bytes as f64,
    );
    list.gauge(
        "siem_relay.tail",
        BYTES,
        "Bytes of accepted events in memory.",
        |sample| sample.tail_bytes as f64,
    );
    list.gauge(
        "siem_relay.tail.limit",
        BYTES,
        "Limit on the bytes of accepted events in memory (setting log-tail-bytes; more with many integrations).",
        |sample| sample.tail_limit_bytes as f64,
    );
    list.gauge(
        "siem_relay.backlog.events",
        EVENTS,
        "Pending events that have left memory for the backlog.",
        |sample| sample.backlog_events as f64,
    );
    list.gauge(
        "siem_relay.backlog",
        BYTES,
        "Bytes of the events in the backlog, before compression.",
        |sample| sample.backlog_bytes as f64,
    );
    list.gauges(
        "siem_relay.backlog.stored",
        BYTES,
        "Bytes of the backlogs of all instances as they are stored; with shared storage.",
        |sample, to| {
            if let Some((bytes, _)) = sample.stored_backlogs {
                to.observe(bytes as f64, &[]);
            }
        },
    );
    list.gauges(
        "siem_relay.backlog.stored.limit",
        BYTES,
        "Limit on them (setting backlog-bytes); with shared storage.",
        |sample, to| {
            if let Some((_, limit)) = sample.stored_backlogs {
                to.observe(limit as f64, &[]);
            }
        },
    );
    let file = |value: fn(&super::Files) -> u64| {
        move |sample: &Sample, to: Observer<'_, f64>| {
            if let Some(files) = &sample.files {
                to.observe(value(files) as f64, &[]);
            }
        }
    };
    list.gauges(
        "siem_relay.database",
        BYTES,
        "Size of the database and its write-ahead log; of the embedded database.",
        file(|files| files.database_bytes),
    );
    list.gauges(
        "siem_relay.disk.free",
        BYTES,
        "Free bytes of the file system with data-dir; with the embedded database.",
        file(|files| files.free_bytes),
    );
    list.gauges(
        "siem_relay.disk.size",
        BYTES,
        "Size of the file system with data-dir; with the embedded database.",
        file(|files| files.disk_bytes),
    );
    list.gauge(
        "siem_relay.ledger.flush_age",
        SECONDS,
        "Time since the oldest delivery that is not recorded; 0 if all are.",
        |sample| sample.flush_age.as_secs_f64(),
    );
}

fn ownership(list: &List<'_>) {
    list.gauges(
        "siem_relay.ready",
        NONE,
        "Whether each condition of /readyz holds: lease, log and database.",
        |sample, to| {
            for check in &sample.checks {
                let label = KeyValue::new("check", check.name);
                to.observe(f64::from(u8::from(check.holds)), &[label]);
            }
        },
    );
    list.gauge(
        "siem_relay.partitions",
        NONE,
        "Partitions of the event log.",
        |sample| sample.partitions as f64,
    );
    list.gauge(
        "siem_relay.partitions.owned",
        NONE,
        "Partitions that this instance delivers for.",
        |sample| sample.partitions_owned as f64,
    );
    list.gauge(
        "siem_relay.partitions.given_up",
        NONE,
        "Partitions of this instance that nobody delivers, because their log is corrupt.",
        |sample| sample.partitions_given_up as f64,
    );
    list.counter(
        "siem_relay.partitions.taken_over",
        "Partitions that this instance began to deliver for.",
        &TAKEOVERS,
    );
    list.counter(
        "siem_relay.partitions.lost",
        "Partitions that this instance lost or gave back.",
        &PARTITIONS_LOST,
    );
    list.gauges(
        "siem_relay.partition.lag",
        NONE,
        "Entries of the log that the owner of the partition has not read.",
        |sample, to| {
            for (partition, lag) in &sample.partition_lag {
                let label = KeyValue::new("partition", partition.to_string());
                to.observe(*lag as f64, &[label]);
            }
        },
    );
    list.gauges(
        "siem_relay.lease.left",
        SECONDS,
        "Time until the lease of this instance ends; with shared storage.",
        |sample, to| {
            if let Some(left) = sample.lease_left {
                to.observe(left.as_secs_f64(), &[]);
            }
        },
    );
}

fn process(list: &List<'_>) {
    list.gauge(
        "process.open_fds",
        NONE,
        "Open file descriptors.",
        |sample| sample.process.open_files as f64,
    );
    list.gauge(
        "process.max_fds",
        NONE,
        "Limit on open file descriptors.",
        |sample| sample.process.max_files as f64,
    );
    list.gauge(
        "process.resident_memory",
        BYTES,
        "Resident memory.",
        |sample| sample.process.resident_bytes as f64,
    );
    let cpu = list.0.f64_observable_counter("process.cpu");
    cpu.with_unit(SECONDS)
        .with_description("CPU time of user and system.")
        .with_callback(|to| to.observe(latest().process.cpu.as_secs_f64(), &[]))
        .build();
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let started = started.unwrap_or_default().as_secs_f64();
    list.gauge(
        "process.start_time",
        SECONDS,
        "Start of the process, in seconds since 1970.",
        move |_| started,
    );
    list.gauges(
        "siem_relay.build.info",
        NONE,
        "Version and commit of the program; the value is 1.",
        |_, to| {
            let labels = [
                KeyValue::new("version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("commit", env!("BUILD_COMMIT")),
            ];
            to.observe(1.0, &labels);
        },
    );
}
