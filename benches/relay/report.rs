//! Report of all measurements, as written in JSON. Reports of different versions are compared,
//! so keys never change; a field that is renamed keeps its key.

use std::{fs::File, io::Write, path::Path};

use serde::Serialize;

use super::{
    Failure,
    disturbed::{Denied, Takeover},
    growth::{Backlog, Growth},
    idle::Idle,
    instances::{IdleInstances, Instances},
    stats::{Latency, Samples, Spread, now_nanos},
    subscribers::Subscribers,
    workload::Workload,
};

/// Synced appends from which the disk's latency is measured.
const SYNCS: usize = 300;

/// Run of the service.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub events: u64,
    pub seconds: f64,
    pub events_per_second: f64,
    /// User and system time of the service in seconds per million events.
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

/// Run of the baseline of sending.
#[derive(Clone, Debug, Serialize)]
pub struct FloorRun {
    pub events_per_second: f64,
    pub cpu_per_million: f64,
    pub sink_cpu_per_million: f64,
    pub peak_megabytes: f64,
    pub records_per_request: f64,
    pub request: Latency,
}

/// Run of the baseline of receiving.
#[derive(Clone, Debug, Serialize)]
pub struct IntakeRun {
    pub events_per_second: f64,
    pub cpu_per_million: f64,
    pub ack: Latency,
}

/// Run of the service and runs of the baselines after it.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub run: Run,
    /// Run of the baseline that sends full requests with the AWS SDK.
    pub floor_run: FloorRun,
    #[serde(rename = "alike_run")]
    pub matched_floor: Option<MatchedFloor>,
    pub intake_run: IntakeRun,
}

impl Measured {
    /// CPU of both baselines together, with as many records per request as the run had.
    fn cpu_of_baselines(&self) -> f64 {
        let matched = self.matched_floor.as_ref().map(|matched| &matched.sdk);
        matched.unwrap_or(&self.floor_run).cpu_per_million + self.intake_run.cpu_per_million
    }
}

/// Runs of the baseline of sending with as many records per request as a run of the service
/// had; only for runs whose requests were less than half full.
#[derive(Clone, Debug, Serialize)]
pub struct MatchedFloor {
    pub sdk: FloorRun,
    /// Run that sends over a bare socket.
    pub bare: FloorRun,
}

/// Run of the service at a fixed rate, and runs of the baselines with as many events at the
/// same rate.
pub struct RateRun {
    /// Share of the maximum rate; None if the rate was given in events per second.
    pub share: Option<f64>,
    pub rate: f64,
    pub run: Run,
    pub sdk_run: FloorRun,
    pub bare_run: FloorRun,
    pub intake_run: IntakeRun,
}

impl RateRun {
    fn ratio_to_baselines(&self) -> f64 {
        let baselines = self.sdk_run.cpu_per_million + self.intake_run.cpu_per_million;
        self.run.cpu_per_million / baselines
    }
}

/// Figures of several runs of one kind.
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

/// Figures of several runs at one rate.
#[derive(Clone, Debug, Serialize)]
pub struct RateFigures {
    pub share: Option<f64>,
    pub rate: f64,
    pub figures: Figures,
    pub floor_cpu_per_million: Spread,
    pub bare_cpu_per_million: Spread,
    pub intake_cpu_per_million: Spread,
    pub intake_ack: LatencyFigures,
    /// CPU of the service divided by that of floor and intake together, for each run.
    #[serde(rename = "ratio_to_both")]
    pub ratio_to_baselines: Spread,
    pub runs: Vec<Run>,
}

/// CPU per request in µs, where requests are less than half full.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SmallRequests {
    pub records: Spread,
    /// CPU of the whole service divided by its requests.
    pub service: Spread,
    pub floor: Spread,
    /// Service divided by floor, for each run.
    pub ratio: Spread,
    /// Bare socket.
    pub bare: Spread,
}

impl SmallRequests {
    fn of(runs: &[Measured]) -> Self {
        let pairs = || {
            runs.iter()
                .filter_map(|measured| Some((&measured.run, measured.matched_floor.as_ref()?)))
        };
        let service = |run: &Run| run.cpu_per_million * run.records_per_request;
        let floor = |run: &FloorRun| run.cpu_per_million * run.records_per_request;
        Self {
            records: Spread::of(pairs().map(|(run, _)| run.records_per_request)),
            service: Spread::of(pairs().map(|(run, _)| service(run))),
            floor: Spread::of(pairs().map(|(_, matched)| floor(&matched.sdk))),
            ratio: Spread::of(pairs().map(|(run, matched)| service(run) / floor(&matched.sdk))),
            bare: Spread::of(pairs().map(|(_, matched)| floor(&matched.bare))),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct WorkloadReport {
    pub workload: Workload,
    /// Size of an event as published.
    pub event_bytes: f64,
    /// Size of an event in the stream.
    pub record_bytes: f64,
    pub saturated: Figures,
    pub floor_events_per_second: Spread,
    pub floor_cpu_per_million: Spread,
    pub floor_peak_megabytes: Spread,
    /// CPU of the service divided by that of the floor, for each run.
    pub ratio: Spread,
    pub intake_events_per_second: Spread,
    pub intake_cpu_per_million: Spread,
    /// CPU of the service divided by that of both baselines together, for each run.
    #[serde(rename = "ratio_to_both")]
    pub ratio_to_baselines: Spread,
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
        let ratios_to_baselines = runs
            .iter()
            .map(|measured| measured.run.cpu_per_million / measured.cpu_of_baselines());
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
            ratio_to_baselines: Spread::of(ratios_to_baselines),
            small_requests: SmallRequests::of(&runs),
            rates: grouped(rates),
            runs,
        }
    }
}

/// Groups consecutive runs at the same rate.
fn grouped(rates: Vec<RateRun>) -> Vec<RateFigures> {
    rates
        .chunk_by(|one, other| one.share == other.share && one.rate == other.rate)
        .map(|same| RateFigures {
            share: same[0].share,
            rate: same[0].rate,
            figures: Figures::of(same.iter().map(|rate| &rate.run)),
            floor_cpu_per_million: Spread::of(same.iter().map(|rate| rate.sdk_run.cpu_per_million)),
            bare_cpu_per_million: Spread::of(same.iter().map(|rate| rate.bare_run.cpu_per_million)),
            intake_cpu_per_million: Spread::of(
                same.iter().map(|rate| rate.intake_run.cpu_per_million),
            ),
            intake_ack: LatencyFigures::of(same.iter().map(|rate| &rate.intake_run.ack)),
            ratio_to_baselines: Spread::of(same.iter().map(RateRun::ratio_to_baselines)),
            runs: same.iter().map(|rate| rate.run.clone()).collect(),
        })
        .collect()
}

/// Report of one start of the benchmark.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub machine: Machine,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<WorkloadReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<Growth>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backlogs: Vec<Backlog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<Subscribers>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<Instances>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub idle_instances: Vec<IdleInstances>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub takeovers: Vec<Takeover>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<Denied>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    pub processors: usize,
    /// Latency of a synced append of 4 KiB, on which the latency of acks depends.
    pub disk_sync: Latency,
}

impl Machine {
    pub fn examine(data_dir: &Path) -> Result<Self, Failure> {
        Ok(Self {
            processors: std::thread::available_parallelism()?.get(),
            disk_sync: disk_sync(data_dir)?,
        })
    }
}

fn disk_sync(folder: &Path) -> Result<Latency, Failure> {
    let path = folder.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut samples = Samples::default();
    for _ in 0..SYNCS {
        let start = now_nanos();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        samples.add(start, now_nanos());
    }
    std::fs::remove_file(&path)?;
    Ok(samples.take())
}
