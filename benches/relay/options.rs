//! Command line of the benchmark.

use std::{fs, path::PathBuf};

use clap::Parser;

use super::{
    Failure, disturbed, growth, idle,
    instances::{self, Storage},
    measure::{self, Scope},
    process,
    report::{Machine, Report},
    sanity, subscribers,
    table::{self, progress},
    workload::{self, Workload},
};

/// Environment variable with the path of the EVE file of the workload `eve`.
const EVE_VARIABLE: &str = "SIEM_RELAY_TEST_EVE";
/// Fixed rates as shares of the maximum rate.
const SHARES: [f64; 3] = [0.1, 0.5, 0.9];
/// Fixed rate in events per second, far from saturation.
const RATE: f64 = 10_000.0;

/// Measures the service and its baselines. Without a selection, it measures all workloads.
#[derive(Debug, Parser)]
#[command(name = "relay")]
struct Options {
    /// Workload to measure, as named by --list; may be repeated.
    #[arg(long)]
    workload: Vec<String>,
    /// Lists the workloads.
    #[arg(long)]
    list: bool,
    /// Events of each saturated run.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Runs of each kind; the report has their median.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of each run at a fixed rate.
    #[arg(long, default_value_t = 5.0)]
    rate_seconds: f64,
    /// Skips the runs at fixed rates.
    #[arg(long)]
    saturated_only: bool,
    /// Makes one short run of each kind.
    #[arg(long)]
    quick: bool,
    /// Size of an event as published, in bytes; overrides the workload's.
    #[arg(long)]
    event_bytes: Option<usize>,
    /// Events per request of a saturated run; overrides the workload's.
    #[arg(long)]
    batch: Option<usize>,
    /// Sensors of each integration; overrides the workload's.
    #[arg(long)]
    devices: Option<u128>,
    /// Time until the sink answers a PutRecords request.
    #[arg(long, default_value_t = 0)]
    sink_delay_ms: u64,
    /// Measures this number of idle integrations, such as 100000, instead of workloads.
    #[arg(long)]
    idle: Option<usize>,
    /// Measures this number of status subscribers, such as 10000, instead of workloads.
    #[arg(long)]
    subscribers: Option<usize>,
    /// Connections that the subscribers share.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Measures an even load over these numbers of integrations, such as 1,10,100, instead of
    /// workloads.
    #[arg(long, value_delimiter = ',')]
    growth: Vec<usize>,
    /// Measures backlogs of these numbers of events, such as 10000,100000, instead of
    /// workloads.
    #[arg(long, value_delimiter = ',')]
    backlog: Vec<u64>,
    /// Integrations that share a backlog.
    #[arg(long, default_value_t = 1)]
    backlog_integrations: usize,
    #[command(flatten)]
    shared: instances::Options,
    /// Checks that everything runs and that every event arrives; measures nothing.
    #[arg(long)]
    sanity: bool,
    /// File for the report in JSON.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/relay-bench.json"))]
    json: PathBuf,
    /// Directory for the service's data, on the disk to be measured.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    data_dir: PathBuf,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

pub fn run() -> Result<(), Failure> {
    process::one_thread()?.block_on(Options::parse().run())
}

impl Options {
    async fn run(self) -> Result<(), Failure> {
        let scope = self.scope();
        if self.list {
            for workload in workload::all(Some(PathBuf::new())) {
                table::print(&format!("{:<14} {}", workload.name, workload.about));
            }
            return Ok(());
        }
        fs::create_dir_all(&scope.data_dir)?;
        if self.sanity {
            return sanity::run(scope, &self.shared).await;
        }
        let mut report = Report {
            machine: Machine::examine(&scope.data_dir)?,
            ..Report::default()
        };
        let measured = self.measure(&scope, &mut report).await;
        fs::write(&self.json, serde_json::to_string_pretty(&report)?)?;
        table::report(&report);
        progress(&format!("the full report is in {}", self.json.display()));
        // Figures that were measured before a failure are reported.
        measured
    }

    fn scope(&self) -> Scope {
        let fixed_rates = |rates: &[f64]| match self.saturated_only {
            true => Vec::new(),
            false => rates.to_vec(),
        };
        let scope = Scope {
            events: self.events,
            runs: self.runs.max(1),
            rate_seconds: self.rate_seconds,
            shares: fixed_rates(&SHARES),
            rates: fixed_rates(&[RATE]),
            sink_delay_ms: self.sink_delay_ms,
            data_dir: self.data_dir.clone(),
        };
        match self.quick {
            true => Scope {
                events: self.events.min(100_000),
                runs: 1,
                rate_seconds: self.rate_seconds.min(1.0),
                ..scope
            },
            false => scope,
        }
    }

    async fn measure(&self, scope: &Scope, report: &mut Report) -> Result<(), Failure> {
        if !self.shared.instances.is_empty() {
            return self.measure_instances(scope, report).await;
        }
        if let Some(integrations) = self.idle {
            report.idle = Some(idle::measure(integrations, scope).await?);
        }
        if let Some(number) = self.subscribers {
            let measured = subscribers::measure(number, self.connections, scope).await?;
            report.subscribers = Some(measured);
        }
        for &number in &self.growth {
            report
                .growth
                .push(growth::integrations(number, scope).await?);
        }
        for &events in &self.backlog {
            let backlog = growth::backlog(events, self.backlog_integrations, scope).await?;
            report.backlogs.push(backlog);
        }
        let others_selected = self.idle.is_some()
            || self.subscribers.is_some()
            || !self.growth.is_empty()
            || !self.backlog.is_empty();
        if !others_selected || !self.workload.is_empty() {
            for workload in self.workloads()? {
                report
                    .workloads
                    .push(measure::workload(&workload, scope).await?);
            }
        }
        Ok(())
    }

    /// Measures on shared storage: idle integrations or faults if these are selected, and else the
    /// selected workloads, or `one` and `even`.
    async fn measure_instances(&self, scope: &Scope, report: &mut Report) -> Result<(), Failure> {
        let mut storage = Storage::open(&self.shared).await?;
        if let Some(integrations) = self.idle {
            for &number in &self.shared.instances {
                let idle = instances::idle(integrations, number, &mut storage, scope).await?;
                report.idle_instances.push(idle);
            }
            return Ok(());
        }
        if self.shared.takeover {
            for &number in &self.shared.instances {
                for signal in ["KILL", "TERM"] {
                    let takeover = disturbed::takeover(number, signal, &mut storage, scope);
                    report.takeovers.push(takeover.await?);
                }
            }
            return Ok(());
        }
        let mut workloads = self.workloads()?;
        if let Some(denied) = self.shared.denied {
            workloads.retain(|workload| workload.name == "even");
            for workload in &workloads {
                for &number in &self.shared.instances {
                    for denied in [0, denied] {
                        let one = disturbed::denied(workload, number, denied, &mut storage, scope);
                        report.denied.push(one.await?);
                    }
                }
            }
            return Ok(());
        }
        if self.workload.is_empty() {
            workloads.retain(|workload| ["one", "even"].contains(&workload.name.as_str()));
        }
        for workload in &workloads {
            for &number in [0].iter().chain(&self.shared.instances) {
                let measured = instances::measure(workload, number, &mut storage, scope);
                report.instances.push(measured.await?);
            }
        }
        Ok(())
    }

    /// Returns the selected workloads with the options applied.
    fn workloads(&self) -> Result<Vec<Workload>, Failure> {
        let eve = std::env::var_os(EVE_VARIABLE).map(PathBuf::from);
        if eve.is_none() {
            progress(&format!(
                "skipped: the workload eve; set {EVE_VARIABLE} to the path of a real EVE file"
            ));
        }
        let mut all = workload::all(eve);
        for name in &self.workload {
            if all.iter().all(|workload| workload.name != *name) {
                return Err(format!("unknown workload {name:?}; --list names all").into());
            }
        }
        all.retain(|workload| self.workload.is_empty() || self.workload.contains(&workload.name));
        for workload in &mut all {
            workload.batch = self.batch.unwrap_or(workload.batch);
            workload.devices = self.devices.unwrap_or(workload.devices);
            if workload.eve.is_none() {
                workload.event_bytes = self.event_bytes.or(workload.event_bytes);
            }
        }
        Ok(all)
    }
}
