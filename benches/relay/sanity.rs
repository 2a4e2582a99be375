//! Check that the benchmark runs and that every event arrives (`--sanity`). Time is not judged.

use super::{
    Failure,
    floor::{self, Method},
    idle,
    instances::{self, Storage},
    intake::Intake,
    loader,
    measure::{Bench, Scope},
    report::Run,
    sink::Inspect,
    subscribers,
    table::progress,
    workload::{Mix, Workload, all},
};

const EVENTS: u64 = 3000;
const INTEGRATIONS: usize = 40;
const SUBSCRIBERS: usize = 50;

/// With numbers of instances it checks these instead.
pub async fn run(scope: Scope, shared: &instances::Options) -> Result<(), Failure> {
    let scope = Scope {
        events: EVENTS,
        runs: 1,
        rate_seconds: 0.5,
        ..scope
    };
    if !shared.instances.is_empty() {
        return on_shared_storage(&scope, shared).await;
    }
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

/// Checks that each event that one of the instances accepts arrives, and that the floor and the
/// counters of the storage work.
async fn on_shared_storage(scope: &Scope, options: &instances::Options) -> Result<(), Failure> {
    let mut storage = Storage::open(options).await?;
    let workload = Workload::of_organizations(INTEGRATIONS);
    let command = loader::Command::Saturate {
        events: scope.events,
    };
    for &number in &options.instances {
        let shared = Some((&mut storage, number));
        let mut bench = Bench::start_instances(&workload, scope, shared).await?;
        let inspect = Inspect::Identities;
        let measured = instances::run(&mut bench, Some(&mut storage), command, inspect).await?;
        let Run {
            events, distinct, ..
        } = measured.run;
        if distinct != events {
            return Err(format!("{events} events were accepted, but {distinct} arrived").into());
        }
        let floor = measured.floor.ok_or("the floor did not run")?;
        if floor.events_per_message < 1.0 || measured.statements_per_thousand == Some(0.0) {
            return Err("the storage's counters do not work".into());
        }
        bench.wait_until_settled().await?;
        bench.check_counts().await?;
        bench.stop().await?;
    }
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
