//! Check that the benchmark runs and that every event arrives (`--sanity`). Time is not judged.

use super::{
    Failure,
    floor::{self, Method},
    idle,
    intake::Intake,
    loader,
    measure::{Bench, Scope},
    sink::Inspect,
    subscribers,
    table::progress,
    workload::{Mix, Workload, all},
};

const EVENTS: u64 = 3000;
const INTEGRATIONS: usize = 40;
const SUBSCRIBERS: usize = 50;

pub async fn run(scope: Scope) -> Result<(), Failure> {
    let scope = Scope {
        events: EVENTS,
        runs: 1,
        rate_seconds: 0.5,
        ..scope
    };
    for mut workload in all(None) {
        if workload.mix != Mix::Even || workload.organizations > 1 {
            workload.organizations = INTEGRATIONS;
        }
        check(&workload, &scope).await?;
    }
    let idle = idle::measure(INTEGRATIONS, &scope).await?;
    let subscribers = subscribers::measure(SUBSCRIBERS, 1, &scope).await?;
    progress(&format!(
        "everything arrived; {} idle integrations and {} subscribers were served",
        idle.integrations, subscribers.subscribers
    ));
    Ok(())
}

/// Checks, saturated and at a fixed rate, that each accepted event arrives with a distinct
/// sequence, that the service's counts agree, and that the baselines send and receive.
async fn check(workload: &Workload, scope: &Scope) -> Result<(), Failure> {
    progress(&format!("{}: {}", workload.name, workload.about));
    let mut bench = Bench::start(workload, scope).await?;
    let commands = [
        loader::Command::Saturate {
            events: scope.events * workload.tenths / 10,
        },
        loader::Command::Pace {
            events_per_second: 100.0 * workload.rate_batch as f64,
            seconds: scope.rate_seconds,
        },
    ];
    for command in commands {
        let run = bench.run(command, Inspect::Identities).await?;
        if run.distinct != run.events {
            return Err(format!(
                "{} events were accepted, but {} arrived",
                run.events, run.distinct
            )
            .into());
        }
    }
    let (mut floor, _ready) = bench.start_floor().await?;
    let mut floor_run = async |records_per_request, method| {
        let command = floor::Command {
            records: scope.events,
            records_per_request,
            records_per_second: None,
            method,
        };
        bench.floor_run(&mut floor, command).await
    };
    floor_run(floor::FULL_REQUEST as f64, Method::Sdk).await?;
    for method in [Method::Sdk, Method::Bare] {
        let sent = floor_run(1.5, method).await?.records_per_request;
        if (sent - 1.5).abs() > 0.1 {
            return Err(format!("the floor sent {sent} records per request instead of 1.5").into());
        }
    }
    drop(floor);
    let mut intake = Intake::start(workload, scope).await?;
    for command in commands {
        intake.run(command).await?;
    }
    bench.check_counts().await?;
    bench.stop().await
}
