//! What was measured, as JSON has it.

use serde::Serialize;

use super::{spread::Spread, stats::Latency, workload::Workload};

/// One piece of work by the service.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub events: u64,
    pub seconds: f64,
    pub events_per_second: f64,
    /// User and system seconds of the service's process for a million events.
    pub cpu_per_million: f64,
    pub sink_cpu_per_million: f64,
    pub loader_cpu_per_million: f64,
    pub peak_megabytes: f64,
    pub written_bytes_per_event: f64,
    pub requests: u64,
    pub records_per_request: f64,
    pub request_bytes_per_record: f64,
    pub assumed_roles: u64,
    pub ack: Latency,
    pub to_stream: Latency,
    #[serde(skip)]
    pub distinct: u64,
}

/// The same work by the AWS SDK alone.
#[derive(Clone, Debug, Serialize)]
pub struct FloorRun {
    pub events_per_second: f64,
    pub cpu_per_million: f64,
    pub sink_cpu_per_million: f64,
    pub peak_megabytes: f64,
    pub records_per_request: f64,
    pub request: Latency,
}

/// Events that were taken and synced, and nothing else.
#[derive(Clone, Debug, Serialize)]
pub struct IntakeRun {
    pub events_per_second: f64,
    pub cpu_per_million: f64,
    pub ack: Latency,
}

/// A run, and the floors beside it.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub run: Run,
    /// With full requests.
    pub floor_run: FloorRun,
    /// With requests as full as the run's; None where those hold half of what they may, or
    /// more.
    pub alike_run: Option<AlikeRun>,
    pub intake_run: IntakeRun,
}

impl Measured {
    /// CPU that sending requests as full as the run's and taking its events come to.
    fn both_floors(&self) -> f64 {
        let sending = self.alike_run.as_ref().map(|alike| &alike.sdk);
        sending.unwrap_or(&self.floor_run).cpu_per_million + self.intake_run.cpu_per_million
    }
}

/// Ready-made requests that are as full as those of a run.
#[derive(Clone, Debug, Serialize)]
pub struct AlikeRun {
    pub sdk: FloorRun,
    /// By a socket alone.
    pub bare: FloorRun,
}

/// A run at a rate.
#[derive(Clone, Debug, Serialize)]
pub struct RateRun {
    /// Of the maximum; None where the rate itself was asked for.
    pub share: Option<f64>,
    pub rate: f64,
    pub run: Run,
    /// The same number of records at the same rate.
    pub floor_run: FloorRun,
    /// By a socket alone.
    pub bare_run: FloorRun,
    pub intake_run: IntakeRun,
}

impl RateRun {
    fn ratio_to_both(&self) -> f64 {
        let both = self.floor_run.cpu_per_million + self.intake_run.cpu_per_million;
        self.run.cpu_per_million / both
    }
}

/// What several runs of one kind say.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub events_per_second: Spread,
    pub cpu_per_million: Spread,
    pub peak_megabytes: Spread,
    pub written_bytes_per_event: Spread,
    pub records_per_request: Spread,
    pub ack: LatencyFigures,
    pub to_stream: LatencyFigures,
    pub sink_cpu_per_million: Spread,
    pub loader_cpu_per_million: Spread,
}

#[derive(Clone, Debug, Serialize)]
pub struct LatencyFigures {
    pub p50_ms: Spread,
    pub p99_ms: Spread,
    pub p999_ms: Spread,
}

impl LatencyFigures {
    fn of<'a>(latencies: impl Iterator<Item = &'a Latency> + Clone) -> Self {
        Self {
            p50_ms: Spread::of(latencies.clone().map(|latency| latency.p50_ms)),
            p99_ms: Spread::of(latencies.clone().map(|latency| latency.p99_ms)),
            p999_ms: Spread::of(latencies.map(|latency| latency.p999_ms)),
        }
    }
}

impl Figures {
    pub fn of<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Self {
        let spread = |figure: fn(&Run) -> f64| Spread::of(runs.clone().map(figure));
        Self {
            events_per_second: spread(|run| run.events_per_second),
            cpu_per_million: spread(|run| run.cpu_per_million),
            peak_megabytes: spread(|run| run.peak_megabytes),
            written_bytes_per_event: spread(|run| run.written_bytes_per_event),
            records_per_request: spread(|run| run.records_per_request),
            ack: LatencyFigures::of(runs.clone().map(|run| &run.ack)),
            to_stream: LatencyFigures::of(runs.clone().map(|run| &run.to_stream)),
            sink_cpu_per_million: spread(|run| run.sink_cpu_per_million),
            loader_cpu_per_million: spread(|run| run.loader_cpu_per_million),
        }
    }
}

/// Latencies at one rate.
#[derive(Clone, Debug, Serialize)]
pub struct RateFigures {
    pub share: Option<f64>,
    pub rate: f64,
    pub figures: Figures,
    pub floor_cpu_per_million: Spread,
    pub bare_cpu_per_million: Spread,
    pub intake_cpu_per_million: Spread,
    pub intake_ack: LatencyFigures,
    /// CPU of the service over that of floor and intake together, run by run.
    pub ratio_to_both: Spread,
    pub runs: Vec<Run>,
}

/// What a request takes where it is not full, in µs of CPU, whatever is in it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SmallRequests {
    pub records: Spread,
    /// Everything that the service does, divided by its requests.
    pub service: Spread,
    pub floor: Spread,
    /// Of service and floor, run by run.
    pub ratio: Spread,
    /// A socket alone: nothing is made, signed or understood.
    pub bare: Spread,
}

impl SmallRequests {
    fn of(runs: &[Measured]) -> Self {
        let pairs = || {
            runs.iter()
                .filter_map(|measured| Some((&measured.run, measured.alike_run.as_ref()?)))
        };
        let service = |run: &Run| run.cpu_per_million * run.records_per_request;
        let floor = |run: &FloorRun| run.cpu_per_million * run.records_per_request;
        Self {
            records: Spread::of(pairs().map(|(run, _)| run.records_per_request)),
            service: Spread::of(pairs().map(|(run, _)| service(run))),
            floor: Spread::of(pairs().map(|(_, alike)| floor(&alike.sdk))),
            ratio: Spread::of(pairs().map(|(run, alike)| service(run) / floor(&alike.sdk))),
            bare: Spread::of(pairs().map(|(_, alike)| floor(&alike.bare))),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct WorkloadReport {
    pub workload: Workload,
    /// Bytes of an event as published, and as the record that lands in the stream.
    pub event_bytes: f64,
    pub record_bytes: f64,
    pub saturated: Figures,
    pub floor_events_per_second: Spread,
    pub floor_cpu_per_million: Spread,
    pub floor_peak_megabytes: Spread,
    /// CPU of the service over that of the floor, run by run.
    pub ratio: Spread,
    pub intake_events_per_second: Spread,
    pub intake_cpu_per_million: Spread,
    /// CPU of the service over that of both floors together, run by run: of sending requests
    /// that are as full as the run's, and of taking its events.
    pub ratio_to_both: Spread,
    /// Of runs with requests that are not full.
    pub small_requests: SmallRequests,
    pub runs: Vec<Measured>,
    pub rates: Vec<RateFigures>,
}

impl WorkloadReport {
    pub fn new(
        workload: Workload,
        event_bytes: f64,
        record_bytes: f64,
        runs: Vec<Measured>,
        rates: Vec<RateRun>,
    ) -> Self {
        let floor = |figure: fn(&FloorRun) -> f64| {
            Spread::of(runs.iter().map(|measured| figure(&measured.floor_run)))
        };
        let ratios = runs
            .iter()
            .map(|Measured { run, floor_run, .. }| run.cpu_per_million / floor_run.cpu_per_million);
        let intake = |figure: fn(&IntakeRun) -> f64| {
            Spread::of(runs.iter().map(|measured| figure(&measured.intake_run)))
        };
        let both = runs
            .iter()
            .map(|measured| measured.run.cpu_per_million / measured.both_floors());
        Self {
            workload,
            event_bytes,
            record_bytes,
            saturated: Figures::of(runs.iter().map(|measured| &measured.run)),
            floor_events_per_second: floor(|run| run.events_per_second),
            floor_cpu_per_million: floor(|run| run.cpu_per_million),
            floor_peak_megabytes: floor(|run| run.peak_megabytes),
            ratio: Spread::of(ratios),
            intake_events_per_second: intake(|run| run.events_per_second),
            intake_cpu_per_million: intake(|run| run.cpu_per_million),
            ratio_to_both: Spread::of(both),
            small_requests: SmallRequests::of(&runs),
            rates: grouped(rates),
            runs,
        }
    }
}

/// Runs at the same rate, which follow one another.
fn grouped(rates: Vec<RateRun>) -> Vec<RateFigures> {
    rates
        .chunk_by(|one, other| one.share == other.share && one.rate == other.rate)
        .map(|same| RateFigures {
            share: same[0].share,
            rate: same[0].rate,
            figures: Figures::of(same.iter().map(|rate| &rate.run)),
            floor_cpu_per_million: Spread::of(
                same.iter().map(|rate| rate.floor_run.cpu_per_million),
            ),
            bare_cpu_per_million: Spread::of(same.iter().map(|rate| rate.bare_run.cpu_per_million)),
            intake_cpu_per_million: Spread::of(
                same.iter().map(|rate| rate.intake_run.cpu_per_million),
            ),
            intake_ack: LatencyFigures::of(same.iter().map(|rate| &rate.intake_run.ack)),
            ratio_to_both: Spread::of(same.iter().map(RateRun::ratio_to_both)),
            runs: same.iter().map(|rate| rate.run.clone()).collect(),
        })
        .collect()
}

/// Everything of one start of the benchmark.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub machine: Machine,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<WorkloadReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<super::growth::Growth>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backlogs: Vec<super::growth::Backlog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<super::idle::Idle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<super::subscribers::Subscribers>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    pub processors: usize,
    /// Of 4 KiB appends.
    pub disk_sync: Latency,
}
