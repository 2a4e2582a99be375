//! One workload: the service and the floor side by side, then latencies at shares of
//! the service's maximum rate.

mod intake;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

pub use self::intake::Intake;
use super::{
    Failure,
    configure::Admin,
    floor::{self, Means},
    loader,
    process::Child,
    report::{AlikeRun, FloorRun, Measured, RateRun, Run, WorkloadReport},
    service::Service,
    sink::{self, Tally, Watch},
    spread::Spread,
    table::tell,
    usage::Usage,
    workload::Workload,
};

/// After the last record, the service settles; that belongs to its cost.
const SETTLED: Duration = Duration::from_millis(300);
/// Without progress for so long, something is broken.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests of the floor where they are no fuller than the service's.
const MOST_ALIKE: f64 = 20_000.0;

/// How much is measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Size {
    pub events: u64,
    pub runs: usize,
    pub rate_seconds: f64,
    /// Shares of the maximum rate.
    pub shares: Vec<f64>,
    /// Rates in events a second.
    pub rates: Vec<f64>,
    pub sink_delay_ms: u64,
    pub data_dir: PathBuf,
}

/// The processes of one workload, ready.
pub struct Bench {
    pub service: Service,
    pub sink: Child,
    pub loader: Child,
    pub admin: Admin,
    pub event_bytes: f64,
    workload: Workload,
    sink_address: std::net::SocketAddr,
    data_dir: tempfile::TempDir,
}

/// CPU of each process over a piece of work.
struct Before {
    service: Usage,
    sink: Usage,
    loader: Usage,
}

impl Bench {
    /// Starts them, configures the integrations, and has one event delivered for each, so
    /// that no role need be assumed later.
    pub async fn start(workload: &Workload, size: &Size) -> Result<Self, Failure> {
        std::fs::create_dir_all(&size.data_dir)?;
        let data_dir = tempfile::tempdir_in(&size.data_dir)?;
        let plan = sink::Plan {
            delay_ms: size.sink_delay_ms,
        };
        let mut sink = Child::start("sink", &plan)?;
        let sink_address = sink.answer().await?;
        let service = Service::start(data_dir.path(), sink_address).await?;
        let admin = Admin::new(service.address)?;
        admin.configure(workload.organizations).await?;
        let plan = loader::Plan {
            address: service.address,
            workload: workload.clone(),
        };
        let mut loader = Child::start("loader", &plan)?;
        let ready: loader::Ready = loader.answer().await?;
        let mut bench = Self {
            service,
            sink,
            loader,
            admin,
            event_bytes: ready.event_bytes,
            workload: workload.clone(),
            sink_address,
            data_dir,
        };
        bench.order(loader::Order::Greet, Watch::Nothing).await?;
        Ok(bench)
    }

    /// Has the loader do something, and waits until everything has arrived.
    async fn order(
        &mut self,
        order: loader::Order,
        watch: Watch,
    ) -> Result<(loader::Sent, Tally), Failure> {
        let _before: Tally = self.sink.ask(&sink::Order::Reset { watch }).await?;
        let sent: loader::Sent = self.loader.ask(&order).await?;
        if sent.rejected + sent.unconfigured > 0 {
            return Err(format!("not all events were accepted: {sent:?}").into());
        }
        let all = sink::Order::Until {
            records: sent.accepted,
        };
        let arrived = timeout(PATIENCE, self.sink.ask::<Tally>(&all)).await;
        let tally = arrived.map_err(|_| "events that were accepted did not arrive")??;
        sleep(SETTLED).await;
        Ok((sent, tally))
    }

    fn before(&self) -> Result<Before, Failure> {
        self.service.reset_peak()?;
        Ok(Before {
            service: self.service.usage()?,
            sink: self.sink.usage()?,
            loader: self.loader.usage()?,
        })
    }

    /// Measures one order.
    pub async fn run(&mut self, order: loader::Order, watch: Watch) -> Result<Run, Failure> {
        let before = self.before()?;
        let (sent, tally) = self.order(order, watch).await?;
        let (service, sink, loader) = (
            self.service.usage()?,
            self.sink.usage()?,
            self.loader.usage()?,
        );
        let events = sent.accepted as f64;
        let millions = events / 1e6;
        let seconds = tally.last_nanos.saturating_sub(sent.first_nanos) as f64 / 1e9;
        let cpu = |after: Usage, before: Usage| (after.cpu_seconds - before.cpu_seconds) / millions;
        Ok(Run {
            events: sent.accepted,
            seconds,
            events_per_second: events / seconds,
            cpu_per_million: cpu(service, before.service),
            sink_cpu_per_million: cpu(sink, before.sink),
            loader_cpu_per_million: cpu(loader, before.loader),
            peak_megabytes: service.peak_bytes as f64 / 1e6,
            written_bytes_per_event: (service.written_bytes - before.service.written_bytes) as f64
                / events,
            requests: tally.requests,
            records_per_request: tally.records as f64 / tally.requests as f64,
            request_bytes_per_record: tally.bytes as f64 / tally.records as f64,
            assumed_roles: tally.assumed_roles,
            ack: sent.ack,
            to_stream: tally.latency,
            distinct: tally.distinct,
        })
    }

    /// That the service's own counts say the same.
    pub async fn check_counts(&self) -> Result<(), Failure> {
        let counts = self.admin.counts().await?;
        match counts.accepted == counts.delivered && counts.pending == 0 {
            true => Ok(()),
            false => Err(format!("the counts do not add up: {counts:?}").into()),
        }
    }

    /// The floor, which is to write to the same sink.
    pub async fn floor(&self) -> Result<(Child, floor::Ready), Failure> {
        let plan = floor::Plan {
            sink: self.sink_address,
            workload: self.workload.clone(),
        };
        let mut floor = Child::start("floor", &plan)?;
        let ready = floor.answer().await?;
        Ok((floor, ready))
    }

    pub async fn floor_run(
        &mut self,
        floor: &mut Child,
        order: floor::Order,
    ) -> Result<FloorRun, Failure> {
        let watch = Watch::Nothing;
        let _before: Tally = self.sink.ask(&sink::Order::Reset { watch }).await?;
        // What is to be ready is made before anything is measured.
        let nothing = floor::Order {
            records: 0,
            ..order
        };
        let _ready: floor::Done = floor.ask(&nothing).await?;
        floor.reset_peak()?;
        let (before, sink_before) = (floor.usage()?, self.sink.usage()?);
        let done: floor::Done = floor.ask(&order).await?;
        let (after, sink_after) = (floor.usage()?, self.sink.usage()?);
        let all = sink::Order::Until {
            records: done.records,
        };
        let tally: Tally = self.sink.ask(&all).await?;
        let millions = done.records as f64 / 1e6;
        let seconds = tally.last_nanos.saturating_sub(done.first_nanos) as f64 / 1e9;
        Ok(FloorRun {
            events_per_second: done.records as f64 / seconds,
            cpu_per_million: (after.cpu_seconds - before.cpu_seconds) / millions,
            sink_cpu_per_million: (sink_after.cpu_seconds - sink_before.cpu_seconds) / millions,
            peak_megabytes: after.peak_bytes as f64 / 1e6,
            records_per_request: tally.records as f64 / tally.requests as f64,
            request: done.request,
        })
    }

    pub async fn stop(self) -> Result<(), Failure> {
        drop((self.loader, self.sink));
        self.service.stop().await?;
        Ok(self.data_dir.close()?)
    }
}

/// Measures a workload.
pub async fn workload(workload: &Workload, size: &Size) -> Result<WorkloadReport, Failure> {
    tell(&format!("{}: {}", workload.name, workload.about));
    let mut bench = Bench::start(workload, size).await?;
    let (mut floor, floor_ready) = bench.floor().await?;
    let mut intake = Intake::start(workload, size).await?;
    let events = (size.events * workload.tenths / 10).max(1);
    let order = loader::Order::Saturate { events };
    let mut runs = Vec::new();
    for number in 1..=size.runs {
        let run = bench.run(order, Watch::Nothing).await?;
        let full = floor::Order {
            records: events,
            records_per_request: floor::RECORDS as f64,
            records_per_second: None,
            means: Means::Sdk,
        };
        let floor_run = bench.floor_run(&mut floor, full).await?;
        let alike_run = match as_full(&run) {
            Some(order) => Some(alike_run(&mut bench, &mut floor, order).await?),
            None => None,
        };
        let intake_run = intake.run(order).await?;
        tell(&format!(
            "  run {number}: {:.0} events/s, {:.2} CPU-s per million, floor {:.2}, intake alone {:.2}, {:.1} records a request{}",
            run.events_per_second,
            run.cpu_per_million,
            floor_run.cpu_per_million,
            intake_run.cpu_per_million,
            run.records_per_request,
            alike_run.as_ref().map_or_else(String::new, |alike| format!(
                ", floor with as few {:.2}, bare {:.2}",
                alike.sdk.cpu_per_million, alike.bare.cpu_per_million
            )),
        ));
        runs.push(Measured {
            run,
            floor_run,
            alike_run,
            intake_run,
        });
    }
    let speeds = runs.iter().map(|measured| measured.run.events_per_second);
    let most = Spread::of(speeds).median;
    let rates = rates(&mut bench, &mut floor, &mut intake, size, most).await?;
    drop((floor, intake));
    bench.check_counts().await?;
    let event_bytes = bench.event_bytes;
    bench.stop().await?;
    Ok(WorkloadReport::new(
        workload.clone(),
        event_bytes,
        floor_ready.record_bytes,
        runs,
        rates,
    ))
}

/// The floor with requests as full as those of a run; None where those hold half of what
/// they may, or more.
fn as_full(run: &Run) -> Option<floor::Order> {
    let records_per_request = run.records_per_request.max(1.0);
    (records_per_request < floor::RECORDS as f64 / 2.0).then_some(floor::Order {
        records: run.events.min((MOST_ALIKE * records_per_request) as u64),
        records_per_request,
        records_per_second: None,
        means: Means::Sdk,
    })
}

async fn alike_run(
    bench: &mut Bench,
    floor: &mut Child,
    order: floor::Order,
) -> Result<AlikeRun, Failure> {
    let sdk = bench.floor_run(floor, order).await?;
    let means = Means::Bare;
    let bare = bench
        .floor_run(floor, floor::Order { means, ..order })
        .await?;
    Ok(AlikeRun { sdk, bare })
}

async fn rates(
    bench: &mut Bench,
    floor: &mut Child,
    intake: &mut Intake,
    size: &Size,
    most: f64,
) -> Result<Vec<RateRun>, Failure> {
    let shares = size.shares.iter().map(|share| (Some(*share), share * most));
    let fixed = size.rates.iter().map(|rate| (None, *rate));
    let fixed = fixed.filter(|(_, rate)| *rate < most);
    let mut all = Vec::new();
    for (share, rate) in shares.chain(fixed) {
        for _ in 0..size.runs {
            let order = loader::Order::Pace {
                events_per_second: rate,
                seconds: size.rate_seconds,
            };
            let run = bench.run(order, Watch::Times).await?;
            let floor_order = floor::Order {
                records: run.events,
                records_per_request: floor::RECORDS as f64,
                records_per_second: Some(rate),
                means: Means::Sdk,
            };
            let floor_run = bench.floor_run(floor, floor_order).await?;
            let bare_order = floor::Order {
                means: Means::Bare,
                ..floor_order
            };
            let bare_run = bench.floor_run(floor, bare_order).await?;
            let intake_run = intake.run(order).await?;
            tell(&format!(
                "  at {rate:.0} events/s: ack p50 {:.2} p99 {:.2} ms, to stream p50 {:.1} p99 {:.1} ms, {:.2} CPU-s per million, floor {:.2}, bare {:.2}, intake alone {:.2}",
                run.ack.p50_ms,
                run.ack.p99_ms,
                run.to_stream.p50_ms,
                run.to_stream.p99_ms,
                run.cpu_per_million,
                floor_run.cpu_per_million,
                bare_run.cpu_per_million,
                intake_run.cpu_per_million,
            ));
            all.push(RateRun {
                share,
                rate,
                run,
                floor_run,
                bare_run,
                intake_run,
            });
        }
    }
    Ok(all)
}
