//! Instances on shared storage under faults: one that ends (`--takeover`), and customers that deny
//! access (`--denied`).

use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

use super::{
    Failure,
    instances::{RATE, Storage},
    loader,
    measure::{Bench, Scope},
    process::{Child, Role},
    sink::{self, Inspect, Tally},
    stats::Latency,
    table::progress,
    workload::Workload,
};

/// Time from the start of publishing until an instance is stopped.
const STOP_AFTER: Duration = Duration::from_secs(5);
/// Time after publishing in which records arrive at the streams that take them.
const ARRIVE_WITHIN: Duration = Duration::from_secs(5);
/// Integrations of the measurement of a takeover.
const INTEGRATIONS: usize = 100;

/// Events that were published to one instance while another one ended.
#[derive(Clone, Debug, Serialize)]
pub struct Takeover {
    pub instances: usize,
    pub signal: String,
    pub events: u64,
    /// From publishing until the stream. The maximum is the time of the takeover.
    pub to_stream: Latency,
    pub duplicates: u64,
}

/// Publishes to the first instance, and ends the last one by a signal.
pub async fn takeover(
    instances: usize,
    signal: &str,
    storage: &mut Storage,
    scope: &Scope,
) -> Result<Takeover, Failure> {
    progress(&format!("takeover: {instances} instances, SIG{signal}"));
    let workload = Workload::of_organizations(INTEGRATIONS);
    let mut bench = Bench::start_instances(&workload, scope, Some((storage, instances))).await?;
    let role = Role::Loader(loader::Config {
        addresses: vec![bench.services[0].address],
        workload,
    });
    let (loader, loader::Ready { .. }) = Child::start(role).await?;
    bench.loader = loader;
    let ended = match bench.services.len() {
        0 | 1 => return Err("a takeover needs two instances".into()),
        number => bench.services.remove(number - 1),
    };
    bench.reset_sink(Inspect::Times).await?;
    let pace = loader::Command::Pace {
        events_per_second: RATE / 5.0,
        seconds: scope.rate_seconds.max(20.0),
    };
    let stop = async {
        sleep(STOP_AFTER).await;
        ended.signal(signal).await
    };
    let (published, ()) = tokio::try_join!(bench.loader.call(&pace), stop)?;
    let loader::Published { accepted, .. } = published;
    let arrived = bench.await_records(accepted).await?;
    // With duplicates as many records may have arrived before the last event.
    bench.wait_until_settled().await?;
    let rest = bench.await_records(accepted).await?;
    drop(ended);
    bench.stop().await?;
    Ok(Takeover {
        instances,
        signal: signal.to_owned(),
        events: accepted,
        to_stream: Latency {
            max_ms: arrived.latency.max_ms.max(rest.latency.max_ms),
            ..arrived.latency
        },
        duplicates: rest.records.saturating_sub(accepted),
    })
}

/// Delivery to the customers that take their events while others deny access.
#[derive(Clone, Debug, Serialize)]
pub struct Denied {
    pub instances: usize,
    pub organizations: usize,
    pub denied: usize,
    pub published: u64,
    pub arrived: u64,
    pub to_stream: Latency,
    pub ack: Latency,
    /// Of all instances.
    pub cpu_per_million: f64,
    /// Chunks in the backlog at the end.
    pub backlog_chunks: i64,
}

/// Publishes at the fixed rate while the streams of the first organizations deny access.
pub async fn denied(
    workload: &Workload,
    instances: usize,
    denied: usize,
    storage: &mut Storage,
    scope: &Scope,
) -> Result<Denied, Failure> {
    progress(&format!(
        "{instances} instances, {denied} of {} organizations deny access",
        workload.organizations
    ));
    let shared = Some((&mut *storage, instances));
    let mut bench = Bench::start_instances(workload, scope, shared).await?;
    let deny = sink::Command::Deny {
        organizations: denied,
    };
    let _denying: Tally = bench.sink.call(&deny).await?;
    bench.reset_sink(Inspect::Times).await?;
    let before = bench.service_usage()?;
    let pace = loader::Command::Pace {
        events_per_second: RATE,
        seconds: scope.rate_seconds,
    };
    let published: loader::Published = bench.loader.call(&pace).await?;
    sleep(ARRIVE_WITHIN).await;
    let tally = bench.await_records(0).await?;
    let after = bench.service_usage()?;
    let backlog = "SELECT count(*) FROM backlog";
    let backlog_chunks = storage.number(backlog).await?;
    // The next measurement begins with an empty backlog.
    let allow = sink::Command::Deny { organizations: 0 };
    let _allowing: Tally = bench.sink.call(&allow).await?;
    bench.wait_until_settled().await?;
    bench.stop().await?;
    Ok(Denied {
        instances,
        organizations: workload.organizations,
        denied,
        published: published.accepted,
        arrived: tally.records,
        to_stream: tally.latency,
        ack: published.ack,
        cpu_per_million: (after.cpu_seconds - before.cpu_seconds) / published.accepted as f64 * 1e6,
        backlog_chunks,
    })
}
