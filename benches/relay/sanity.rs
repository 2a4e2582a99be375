//! That the benchmark runs and everything arrives, whatever time it takes.

use super::{
    Failure,
    floor::{self, Means},
    idle, loader,
    measure::{Bench, Intake, Size},
    sink::Watch,
    subscribers,
    table::tell,
    workload::{Mix, Workload, all},
};

const EVENTS: u64 = 3000;
const INTEGRATIONS: usize = 40;
const SUBSCRIBERS: usize = 50;

pub async fn run(size: Size) -> Result<(), Failure> {
    let size = Size {
        events: EVENTS,
        runs: 1,
        rate_seconds: 0.5,
        ..size
    };
    for mut workload in all(None) {
        if workload.mix != Mix::Even || workload.organizations > 1 {
            workload.organizations = INTEGRATIONS;
        }
        everything_arrives(&workload, &size).await?;
    }
    let idle = idle::measure(INTEGRATIONS, &size).await?;
    let told = subscribers::measure(SUBSCRIBERS, 1, &size).await?;
    tell(&format!(
        "everything arrived; {} idle integrations and {} subscribers were served",
        idle.integrations, told.subscribers
    ));
    Ok(())
}

/// At full speed and at a rate: each accepted event arrives once, under a sequence of
/// its own, and the service's counts agree.
async fn everything_arrives(workload: &Workload, size: &Size) -> Result<(), Failure> {
    tell(&format!("{}: {}", workload.name, workload.about));
    let mut bench = Bench::start(workload, size).await?;
    let orders = [
        loader::Order::Saturate {
            events: size.events * workload.tenths / 10,
        },
        loader::Order::Pace {
            events_per_second: 100.0 * workload.rate_batch as f64,
            seconds: size.rate_seconds,
        },
    ];
    for order in orders {
        let run = bench.run(order, Watch::Identities).await?;
        if run.distinct != run.events {
            return Err(format!("{} events, but {} arrived", run.events, run.distinct).into());
        }
    }
    let (mut floor, _ready) = bench.floor().await?;
    let mut floor_run = async |records_per_request, means| {
        let order = floor::Order {
            records: size.events,
            records_per_request,
            records_per_second: None,
            means,
        };
        bench.floor_run(&mut floor, order).await
    };
    floor_run(floor::RECORDS as f64, Means::Sdk).await?;
    for means in [Means::Sdk, Means::Bare] {
        let sent = floor_run(1.5, means).await?.records_per_request;
        if (sent - 1.5).abs() > 0.1 {
            return Err(format!("the floor sent {sent} records a request, and not 1.5").into());
        }
    }
    drop(floor);
    let mut intake = Intake::start(workload, size).await?;
    for order in orders {
        intake.run(order).await?;
    }
    bench.check_counts().await?;
    bench.stop().await
}
