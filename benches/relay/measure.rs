//! Measurement of a workload: saturated runs of the service and of both baselines, one after
//! the other, then runs at fixed rates.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    Failure,
    floor::{self, Method},
    instances::Storage,
    intake::Intake,
    loader,
    process::{Child, Role, Usage},
    report::{FloorRun, MatchedFloor, Measured, RateRun, Run, WorkloadReport},
    service::{Admin, Service},
    sink::{self, Inspect, Tally},
    stats::Spread,
    table::progress,
    workload::Workload,
};

/// Time in which the service records the last deliveries, which is part of its cost.
const SETTLE_TIME: Duration = Duration::from_millis(300);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(300);
/// Limit of the floor's requests in a run with as many records per request as the service.
const MAX_MATCHED_REQUESTS: f64 = 20_000.0;

/// Extent of the measurements.
#[derive(Clone, Debug)]
pub struct Scope {
    pub events: u64,
    pub runs: usize,
    pub rate_seconds: f64,
    /// Fixed rates as shares of the maximum rate.
    pub shares: Vec<f64>,
    /// Fixed rates in events per second.
    pub rates: Vec<f64>,
    pub sink_delay_ms: u64,
    pub data_dir: PathBuf,
}

/// Service, sink and loader, ready for a workload.
pub struct Bench {
    /// One, or several on shared storage.
    pub services: Vec<Service>,
    pub sink: Child,
    pub loader: Child,
    pub admin: Admin,
    pub event_bytes: f64,
    workload: Workload,
    sink_address: SocketAddr,
    data_dir: tempfile::TempDir,
}

/// Usage of each process at one time.
struct Usages {
    service: Usage,
    sink: Usage,
    loader: Usage,
}

impl Bench {
    /// Starts the processes, configures the integrations and delivers one event of each, so
    /// that all roles are assumed before the first run.
    pub async fn start(workload: &Workload, scope: &Scope) -> Result<Self, Failure> {
        Self::start_instances(workload, scope, None).await
    }

    /// Starts as [`Bench::start`] does, with a number of instances on shared storage.
    pub async fn start_instances(
        workload: &Workload,
        scope: &Scope,
        shared: Option<(&mut Storage, usize)>,
    ) -> Result<Self, Failure> {
        let data_dir = tempfile::tempdir_in(&scope.data_dir)?;
        let delay_ms = scope.sink_delay_ms;
        let role = Role::Sink(sink::Config { delay_ms });
        let (sink, sink_address) = Child::start(role).await?;
        let services = match shared {
            None => vec![Service::start(data_dir.path(), sink_address).await?],
            Some((storage, instances)) => {
                storage
                    .start(instances, data_dir.path(), sink_address)
                    .await?
            }
        };
        let addresses: Vec<_> = services.iter().map(|service| service.address).collect();
        let admin = Admin::new(addresses[0])?;
        admin.configure(workload.organizations).await?;
        let role = Role::Loader(loader::Config {
            addresses,
            workload: workload.clone(),
        });
        let (loader, loader::Ready { event_bytes }) = Child::start(role).await?;
        let mut bench = Self {
            services,
            sink,
            loader,
            admin,
            event_bytes,
            workload: workload.clone(),
            sink_address,
            data_dir,
        };
        let warmup = loader::Command::Warmup;
        bench.publish(warmup, Inspect::Nothing).await?;
        Ok(bench)
    }

    /// Publishes, and waits until everything has arrived and is settled.
    async fn publish(
        &mut self,
        command: loader::Command,
        inspect: Inspect,
    ) -> Result<(loader::Published, Tally), Failure> {
        self.reset_sink(inspect).await?;
        let published: loader::Published = self.loader.call(&command).await?;
        if published.rejected + published.unconfigured > 0 {
            return Err(format!("the service did not accept every event: {published:?}").into());
        }
        let arrived = timeout(ARRIVAL_TIMEOUT, self.await_records(published.accepted)).await;
        let tally = arrived.map_err(|_| "accepted events did not arrive in time")??;
        sleep(SETTLE_TIME).await;
        Ok((published, tally))
    }

    pub async fn reset_sink(&mut self, inspect: Inspect) -> Result<(), Failure> {
        let command = sink::Command::Reset { inspect };
        let _old: Tally = self.sink.call(&command).await?;
        Ok(())
    }

    pub async fn await_records(&mut self, records: u64) -> Result<Tally, Failure> {
        let command = sink::Command::AwaitRecords { records };
        self.sink.call(&command).await
    }

    /// Resources of all instances together.
    pub fn service_usage(&self) -> Result<Usage, Failure> {
        let mut usages = self.services.iter().map(Service::usage);
        usages.try_fold(Usage::default(), |sum, usage| Ok(sum + usage?))
    }

    pub fn reset_peak(&self) -> Result<(), Failure> {
        self.services.iter().try_for_each(Service::reset_peak)
    }

    fn usages(&self) -> Result<Usages, Failure> {
        Ok(Usages {
            service: self.service_usage()?,
            sink: self.sink.usage()?,
            loader: self.loader.usage()?,
        })
    }

    pub async fn run(
        &mut self,
        command: loader::Command,
        inspect: Inspect,
    ) -> Result<Run, Failure> {
        self.reset_peak()?;
        let before = self.usages()?;
        let (published, tally) = self.publish(command, inspect).await?;
        let after = self.usages()?;
        let events = published.accepted as f64;
        let millions = events / 1e6;
        let seconds = tally.last_nanos.saturating_sub(published.first_nanos) as f64 / 1e9;
        let written = after.service.written_bytes - before.service.written_bytes;
        let cpu = |after: Usage, before: Usage| (after.cpu_seconds - before.cpu_seconds) / millions;
        Ok(Run {
            events: published.accepted,
            seconds,
            events_per_second: events / seconds,
            cpu_per_million: cpu(after.service, before.service),
            sink_cpu_per_million: cpu(after.sink, before.sink),
            loader_cpu_per_million: cpu(after.loader, before.loader),
            peak_megabytes: after.service.peak_bytes as f64 / 1e6,
            written_bytes_per_event: written as f64 / events,
            requests: tally.requests,
            records_per_request: tally.records as f64 / tally.requests as f64,
            request_bytes_per_record: tally.bytes as f64 / tally.records as f64,
            assumed_roles: tally.assumed_roles,
            ack: published.ack,
            to_stream: tally.latency,
            distinct: tally.distinct,
        })
    }

    /// Waits until nothing is pending by the service's counts, which lag behind the sink's on
    /// shared storage and after refused records, which may arrive twice.
    pub async fn wait_until_settled(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while self.admin.counts().await?.pending > 0 {
            if Instant::now() > deadline {
                return Err("the service did not settle its events in time".into());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Fails unless the service's own counts say that everything is delivered.
    pub async fn check_counts(&self) -> Result<(), Failure> {
        let counts = self.admin.counts().await?;
        match counts.accepted == counts.delivered && counts.pending == 0 {
            true => Ok(()),
            false => Err(format!("the service's counts do not add up: {counts:?}").into()),
        }
    }

    /// Starts the floor, which sends to the same sink.
    pub async fn start_floor(&self) -> Result<(Child, floor::Ready), Failure> {
        let role = Role::Floor(floor::Config {
            sink: self.sink_address,
            workload: self.workload.clone(),
        });
        Child::start(role).await
    }

    pub async fn floor_run(
        &mut self,
        floor: &mut Child,
        command: floor::Command,
    ) -> Result<FloorRun, Failure> {
        self.reset_sink(Inspect::Nothing).await?;
        // Makes the floor prepare its requests before the measurement.
        let prepare = floor::Command {
            records: 0,
            ..command
        };
        let _prepared: floor::Sent = floor.call(&prepare).await?;
        floor.reset_peak()?;
        let (before, sink_before) = (floor.usage()?, self.sink.usage()?);
        let sent: floor::Sent = floor.call(&command).await?;
        let (after, sink_after) = (floor.usage()?, self.sink.usage()?);
        let tally = self.await_records(sent.records).await?;
        let millions = sent.records as f64 / 1e6;
        let seconds = tally.last_nanos.saturating_sub(sent.first_nanos) as f64 / 1e9;
        Ok(FloorRun {
            events_per_second: sent.records as f64 / seconds,
            cpu_per_million: (after.cpu_seconds - before.cpu_seconds) / millions,
            sink_cpu_per_million: (sink_after.cpu_seconds - sink_before.cpu_seconds) / millions,
            peak_megabytes: after.peak_bytes as f64 / 1e6,
            records_per_request: tally.records as f64 / tally.requests as f64,
            request: sent.request,
        })
    }

    pub async fn stop(self) -> Result<(), Failure> {
        drop((self.loader, self.sink));
        for service in self.services {
            service.stop().await?;
        }
        Ok(self.data_dir.close()?)
    }
}

pub async fn workload(workload: &Workload, scope: &Scope) -> Result<WorkloadReport, Failure> {
    progress(&format!("{}: {}", workload.name, workload.about));
    let mut bench = Bench::start(workload, scope).await?;
    let (mut floor, floor_ready) = bench.start_floor().await?;
    let mut intake = Intake::start(workload, scope).await?;
    let events = (scope.events * workload.tenths / 10).max(1);
    let command = loader::Command::Saturate { events };
    let mut runs = Vec::new();
    for number in 1..=scope.runs {
        let run = bench.run(command, Inspect::Nothing).await?;
        let full = floor::Command {
            records: events,
            records_per_request: floor::FULL_REQUEST as f64,
            records_per_second: None,
            method: Method::Sdk,
        };
        let floor_run = bench.floor_run(&mut floor, full).await?;
        let matched_floor = matched_floor(&mut bench, &mut floor, &run).await?;
        let intake_run = intake.run(command).await?;
        progress(&format!(
            "  run {number}: {:.0} events/s, {:.2} CPU-s per million, floor {:.2}, intake alone {:.2}, {:.1} records a request{}",
            run.events_per_second,
            run.cpu_per_million,
            floor_run.cpu_per_million,
            intake_run.cpu_per_million,
            run.records_per_request,
            matched_floor
                .as_ref()
                .map_or_else(String::new, |matched| format!(
                    ", floor with as many records a request {:.2}, bare socket {:.2}",
                    matched.sdk.cpu_per_million, matched.bare.cpu_per_million
                )),
        ));
        runs.push(Measured {
            run,
            floor_run,
            matched_floor,
            intake_run,
        });
    }
    let rates = runs.iter().map(|measured| measured.run.events_per_second);
    let max_rate = Spread::of(rates).median;
    let rates = rate_runs(&mut bench, &mut floor, &mut intake, scope, max_rate).await?;
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

/// Runs the floor with as many records per request as a run of the service had. Returns None
/// if that run's requests were at least half full.
async fn matched_floor(
    bench: &mut Bench,
    floor: &mut Child,
    run: &Run,
) -> Result<Option<MatchedFloor>, Failure> {
    let records_per_request = run.records_per_request.max(1.0);
    if records_per_request >= floor::FULL_REQUEST as f64 / 2.0 {
        return Ok(None);
    }
    let mut matched_run = async |method| {
        let command = floor::Command {
            records: (run.events).min((MAX_MATCHED_REQUESTS * records_per_request) as u64),
            records_per_request,
            records_per_second: None,
            method,
        };
        bench.floor_run(floor, command).await
    };
    Ok(Some(MatchedFloor {
        sdk: matched_run(Method::Sdk).await?,
        bare: matched_run(Method::Bare).await?,
    }))
}

async fn rate_runs(
    bench: &mut Bench,
    floor: &mut Child,
    intake: &mut Intake,
    scope: &Scope,
    max_rate: f64,
) -> Result<Vec<RateRun>, Failure> {
    let shares = scope.shares.iter();
    let shares = shares.map(|share| (Some(*share), share * max_rate));
    let fixed = scope.rates.iter().map(|rate| (None, *rate));
    let fixed = fixed.filter(|(_, rate)| *rate < max_rate);
    let mut all = Vec::new();
    for (share, rate) in shares.chain(fixed) {
        for _ in 0..scope.runs {
            let command = loader::Command::Pace {
                events_per_second: rate,
                seconds: scope.rate_seconds,
            };
            let run = bench.run(command, Inspect::Times).await?;
            let mut floor_run = async |method| {
                let command = floor::Command {
                    records: run.events,
                    records_per_request: floor::FULL_REQUEST as f64,
                    records_per_second: Some(rate),
                    method,
                };
                bench.floor_run(floor, command).await
            };
            let sdk_run = floor_run(Method::Sdk).await?;
            let bare_run = floor_run(Method::Bare).await?;
            let intake_run = intake.run(command).await?;
            progress(&format!(
                "  at {rate:.0} events/s: ack p50 {:.2} p99 {:.2} ms, to stream p50 {:.1} p99 {:.1} ms, {:.2} CPU-s per million, floor {:.2}, bare {:.2}, intake alone {:.2}",
                run.ack.p50_ms,
                run.ack.p99_ms,
                run.to_stream.p50_ms,
                run.to_stream.p99_ms,
                run.cpu_per_million,
                sdk_run.cpu_per_million,
                bare_run.cpu_per_million,
                intake_run.cpu_per_million,
            ));
            all.push(RateRun {
                share,
                rate,
                run,
                sdk_run,
                bare_run,
                intake_run,
            });
        }
    }
    Ok(all)
}
