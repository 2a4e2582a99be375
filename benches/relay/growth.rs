//! Cost of an event as the number of integrations (`--growth`) or the backlog (`--backlog`)
//! grows.

use serde::Serialize;

use super::{
    Failure, loader,
    measure::{Bench, Scope},
    report::{Figures, Run},
    sink::{self, Inspect, Tally},
    stats::now_nanos,
    table::progress,
    workload::Workload,
};

#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    pub integrations: usize,
    pub figures: Figures,
    pub runs: Vec<Run>,
}

/// Measures saturated runs of an even load over this number of integrations.
pub async fn integrations(number: usize, scope: &Scope) -> Result<Growth, Failure> {
    let workload = Workload::of_organizations(number);
    progress(&format!("growth: {}", workload.about));
    let mut bench = Bench::start(&workload, scope).await?;
    let command = loader::Command::Saturate {
        events: scope.events,
    };
    let mut runs = Vec::new();
    for _ in 0..scope.runs {
        let run = bench.run(command, Inspect::Nothing).await?;
        progress(&format!(
            "  {:.0} events/s, {:.2} CPU-s per million, {:.1} MB, {} roles assumed",
            run.events_per_second, run.cpu_per_million, run.peak_megabytes, run.assumed_roles
        ));
        runs.push(run);
    }
    bench.check_counts().await?;
    bench.stop().await?;
    Ok(Growth {
        integrations: number,
        figures: Figures::of(runs.iter()),
        runs,
    })
}

/// Cost of events that had to wait for delivery.
#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    pub events: u64,
    pub integrations: usize,
    /// Cost of accepting events while the sink refused all records.
    pub taking_cpu_per_million: f64,
    pub taking_peak_megabytes: f64,
    pub waiting_database_bytes_per_event: f64,
    /// Cost of delivering them afterwards.
    pub draining_cpu_per_million: f64,
    pub draining_events_per_second: f64,
    pub draining_peak_megabytes: f64,
}

/// Publishes while the sink refuses all records, then measures their delivery.
pub async fn backlog(events: u64, integrations: usize, scope: &Scope) -> Result<Backlog, Failure> {
    progress(&format!(
        "backlog: {events} events of {integrations} integration(s)"
    ));
    let workload = Workload::of_organizations(integrations);
    let mut bench = Bench::start(&workload, scope).await?;
    bench.reset_sink(Inspect::Nothing).await?;
    let refuse = |refuse| sink::Command::Refuse { refuse };
    let _refusing: Tally = bench.sink.call(&refuse(true)).await?;
    bench.reset_peak()?;
    let empty = bench.service_usage()?;
    let command = loader::Command::Saturate { events };
    let published: loader::Published = bench.loader.call(&command).await?;
    let taken = bench.service_usage()?;

    bench.reset_peak()?;
    let start = now_nanos();
    let _accepting: Tally = bench.sink.call(&refuse(false)).await?;
    let tally = bench.await_records(published.accepted).await?;
    bench.wait_until_settled().await?;
    let drained = bench.service_usage()?;
    bench.stop().await?;
    let millions = published.accepted as f64 / 1e6;
    let seconds = tally.last_nanos.saturating_sub(start) as f64 / 1e9;
    let backlog = Backlog {
        events: published.accepted,
        integrations,
        taking_cpu_per_million: (taken.cpu_seconds - empty.cpu_seconds) / millions,
        taking_peak_megabytes: taken.peak_bytes as f64 / 1e6,
        waiting_database_bytes_per_event: (taken.written_bytes - empty.written_bytes) as f64
            / published.accepted as f64,
        draining_cpu_per_million: (drained.cpu_seconds - taken.cpu_seconds) / millions,
        draining_events_per_second: published.accepted as f64 / seconds,
        draining_peak_megabytes: drained.peak_bytes as f64 / 1e6,
    };
    progress(&format!(
        "  taking {:.2}, draining {:.2} CPU-s per million at {:.0} events/s, peak {:.1} MB",
        backlog.taking_cpu_per_million,
        backlog.draining_cpu_per_million,
        backlog.draining_events_per_second,
        backlog.draining_peak_megabytes,
    ));
    Ok(backlog)
}
