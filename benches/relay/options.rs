//! What is asked for on the command line.

use std::{fs, path::PathBuf};

use clap::Parser;

use super::{
    Failure, disk, growth, idle,
    measure::{self, Size},
    report::{Machine, Report},
    sanity, subscribers,
    table::{self, tell},
    workload,
};

/// A real EVE file is measured where this names one.
const EVE_VARIABLE: &str = "SIEM_RELAY_TEST_EVE";
const SHARES: [f64; 3] = [0.1, 0.5, 0.9];
/// Far from saturation.
const RATE: f64 = 10_000.0;

/// Measures the service against its floor. Without a choice: every workload.
#[derive(Debug, Parser)]
#[command(name = "relay")]
struct Options {
    /// Only these workloads, as --list names them; may be repeated.
    #[arg(long)]
    workload: Vec<String>,
    /// Lists the workloads.
    #[arg(long)]
    list: bool,
    /// Events of each saturated run.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Runs of each kind, of which the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of each run at a rate.
    #[arg(long, default_value_t = 5.0)]
    rate_seconds: f64,
    /// No runs at rates.
    #[arg(long)]
    saturated_only: bool,
    /// One short run of everything that is asked for.
    #[arg(long)]
    quick: bool,
    /// Events of another size as published, in bytes.
    #[arg(long)]
    event_bytes: Option<usize>,
    /// Another number of events in each request of a saturated run.
    #[arg(long)]
    batch: Option<usize>,
    /// Another number of sensors in each integration.
    #[arg(long)]
    devices: Option<u128>,
    /// How long the sink takes for each PutRecords.
    #[arg(long, default_value_t = 0)]
    sink_delay_ms: u64,
    /// Configured integrations at rest, such as 100000, in place of workloads.
    #[arg(long)]
    idle: Option<usize>,
    /// Status subscribers, such as 10000, in place of workloads.
    #[arg(long)]
    subscribers: Option<usize>,
    /// Connections that the subscribers share.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Even load over so many integrations, such as 1,10,100, in place of workloads.
    #[arg(long, value_delimiter = ',')]
    growth: Vec<usize>,
    /// Backlogs of so many events, such as 10000,100000, in place of workloads.
    #[arg(long, value_delimiter = ',')]
    backlog: Vec<u64>,
    /// Integrations over which a backlog is spread.
    #[arg(long, default_value_t = 1)]
    backlog_integrations: usize,
    /// Only that everything runs and arrives; nothing is measured.
    #[arg(long)]
    sanity: bool,
    /// Where the report goes, as JSON.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/relay-bench.json"))]
    json: PathBuf,
    /// Where the service keeps its data: on the disk to be measured.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    data_dir: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

pub fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(Options::parse().run())
}

impl Options {
    async fn run(self) -> Result<(), Failure> {
        let size = self.size();
        if self.list {
            for workload in workload::all(Some(PathBuf::new())) {
                table::print(&format!("{:<14} {}", workload.name, workload.about));
            }
            return Ok(());
        }
        if self.sanity {
            return sanity::run(size).await;
        }
        let report = self.measure(&size).await?;
        fs::write(&self.json, serde_json::to_string_pretty(&report)?)?;
        table::report(&report);
        tell(&format!("the whole report is in {}", self.json.display()));
        Ok(())
    }

    fn size(&self) -> Size {
        let none = self.saturated_only;
        let size = Size {
            events: self.events,
            runs: self.runs.max(1),
            rate_seconds: self.rate_seconds,
            shares: if none { Vec::new() } else { SHARES.to_vec() },
            rates: if none { Vec::new() } else { vec![RATE] },
            sink_delay_ms: self.sink_delay_ms,
            data_dir: self.data_dir.clone(),
        };
        match self.quick {
            true => Size {
                events: self.events.min(100_000),
                runs: 1,
                rate_seconds: self.rate_seconds.min(1.0),
                ..size
            },
            false => size,
        }
    }

    async fn measure(&self, size: &Size) -> Result<Report, Failure> {
        fs::create_dir_all(&size.data_dir)?;
        let mut report = Report {
            machine: Machine {
                processors: std::thread::available_parallelism()?.get(),
                disk_sync: disk::sync_latency(&size.data_dir)?,
            },
            ..Report::default()
        };
        if let Some(integrations) = self.idle {
            report.idle = Some(idle::measure(integrations, size).await?);
        }
        if let Some(number) = self.subscribers {
            let measured = subscribers::measure(number, self.connections, size).await?;
            report.subscribers = Some(measured);
        }
        for &number in &self.growth {
            report
                .growth
                .push(growth::integrations(number, size).await?);
        }
        for &events in &self.backlog {
            let backlog = growth::backlog(events, self.backlog_integrations, size).await?;
            report.backlogs.push(backlog);
        }
        let asked_for_others = self.idle.is_some()
            || self.subscribers.is_some()
            || !self.growth.is_empty()
            || !self.backlog.is_empty();
        if !asked_for_others || !self.workload.is_empty() {
            for workload in self.workloads()? {
                report
                    .workloads
                    .push(measure::workload(&workload, size).await?);
            }
        }
        Ok(report)
    }

    /// The workloads that are asked for, with what is asked of each.
    fn workloads(&self) -> Result<Vec<workload::Workload>, Failure> {
        let eve = std::env::var_os(EVE_VARIABLE).map(PathBuf::from);
        if eve.is_none() {
            tell(&format!(
                "skipped: the workload eve needs a real EVE file, named by {EVE_VARIABLE}"
            ));
        }
        let mut all = workload::all(eve);
        for name in &self.workload {
            if all.iter().all(|workload| workload.name != *name) {
                return Err(format!("there is no workload {name:?}; see --list").into());
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
