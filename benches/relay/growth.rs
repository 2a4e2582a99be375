//! Whether the cost of an event stays what it is, with more integrations and more backlog.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    Failure, loader,
    measure::{Bench, Size},
    report::{Figures, Run},
    sink::{self, Tally, Watch},
    stats::now_nanos,
    table::tell,
    workload::Workload,
};

#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    pub integrations: usize,
    pub figures: Figures,
    pub runs: Vec<Run>,
}

/// Even load of so many integrations.
pub async fn integrations(number: usize, size: &Size) -> Result<Growth, Failure> {
    let workload = Workload::of_organizations(number);
    tell(&format!("growth: {}", workload.about));
    let mut bench = Bench::start(&workload, size).await?;
    let order = loader::Order::Saturate {
        events: size.events,
    };
    let mut runs = Vec::new();
    for _ in 0..size.runs {
        let run = bench.run(order, Watch::Nothing).await?;
        tell(&format!(
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

/// Events that waited, and what it took to send them.
#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    pub events: u64,
    pub integrations: usize,
    /// While nothing could be delivered.
    pub taking_cpu_per_million: f64,
    pub taking_peak_megabytes: f64,
    pub waiting_database_bytes_per_event: f64,
    /// Once it could.
    pub draining_cpu_per_million: f64,
    pub draining_events_per_second: f64,
    pub draining_peak_megabytes: f64,
}

/// Publishes while the sink refuses, then lets it take everything.
pub async fn backlog(events: u64, integrations: usize, size: &Size) -> Result<Backlog, Failure> {
    tell(&format!(
        "backlog: {events} events of {integrations} integration(s)"
    ));
    let workload = Workload::of_organizations(integrations);
    let mut bench = Bench::start(&workload, size).await?;
    let watch = Watch::Nothing;
    let _reset: Tally = bench.sink.ask(&sink::Order::Reset { watch }).await?;
    let refuse = |refuse| sink::Order::Refuse { refuse };
    let _refusing: Tally = bench.sink.ask(&refuse(true)).await?;
    bench.service.reset_peak()?;
    let empty = bench.service.usage()?;
    let order = loader::Order::Saturate { events };
    let sent: loader::Sent = bench.loader.ask(&order).await?;
    let taken = bench.service.usage()?;

    bench.service.reset_peak()?;
    let start = now_nanos();
    let _taking: Tally = bench.sink.ask(&refuse(false)).await?;
    let records = sent.accepted;
    let tally: Tally = bench.sink.ask(&sink::Order::Until { records }).await?;
    settled(&bench).await?;
    let drained = bench.service.usage()?;
    bench.stop().await?;
    let millions = sent.accepted as f64 / 1e6;
    let seconds = tally.last_nanos.saturating_sub(start) as f64 / 1e9;
    let backlog = Backlog {
        events: sent.accepted,
        integrations,
        taking_cpu_per_million: (taken.cpu_seconds - empty.cpu_seconds) / millions,
        taking_peak_megabytes: taken.peak_bytes as f64 / 1e6,
        waiting_database_bytes_per_event: (taken.written_bytes - empty.written_bytes) as f64
            / sent.accepted as f64,
        draining_cpu_per_million: (drained.cpu_seconds - taken.cpu_seconds) / millions,
        draining_events_per_second: sent.accepted as f64 / seconds,
        draining_peak_megabytes: drained.peak_bytes as f64 / 1e6,
    };
    tell(&format!(
        "  taking {:.2}, draining {:.2} CPU-s per million at {:.0} events/s, peak {:.1} MB",
        backlog.taking_cpu_per_million,
        backlog.draining_cpu_per_million,
        backlog.draining_events_per_second,
        backlog.draining_peak_megabytes,
    ));
    Ok(backlog)
}

/// Waits until nothing is pending. What was refused may have come twice.
async fn settled(bench: &Bench) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while bench.admin.counts().await?.pending > 0 {
        if Instant::now() > deadline {
            return Err("the backlog was not settled".into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
