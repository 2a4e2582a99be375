//! What many integrations cost that have nothing to do.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;

use super::{
    Failure, configure::Admin, measure::Size, process::Child, service::Service, sink, table::tell,
};

/// After the start, until memory and CPU are looked at.
const CALM: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    pub integrations: usize,
    /// To configure them all, many at once.
    pub configure_seconds: f64,
    pub empty_megabytes: f64,
    /// After all were configured, and after a restart.
    pub configured_megabytes: f64,
    pub restarted_megabytes: f64,
    /// Over the empty service, after the restart.
    pub bytes_per_integration: f64,
    pub empty_start_seconds: f64,
    /// From the start of the process until it listens, and until it answers.
    pub start_seconds: f64,
    pub answer_seconds: f64,
    /// At rest: CPU seconds in a second.
    pub cpu_at_rest: f64,
    pub empty_cpu_at_rest: f64,
}

fn megabytes(service: &Service) -> Result<f64, Failure> {
    Ok(service.usage()?.resident_bytes as f64 / 1e6)
}

async fn cpu_at_rest(service: &Service, seconds: f64) -> Result<f64, Failure> {
    let before = service.usage()?.cpu_seconds;
    sleep(Duration::from_secs_f64(seconds)).await;
    Ok((service.usage()?.cpu_seconds - before) / seconds)
}

pub async fn measure(integrations: usize, size: &Size) -> Result<Idle, Failure> {
    tell(&format!("idle: {integrations} integrations"));
    std::fs::create_dir_all(&size.data_dir)?;
    let data_dir = tempfile::tempdir_in(&size.data_dir)?;
    let mut sink = Child::start("sink", &sink::Plan { delay_ms: 0 })?;
    let address = sink.answer().await?;

    let service = Service::start(data_dir.path(), address).await?;
    sleep(CALM).await;
    let empty_megabytes = megabytes(&service)?;
    let empty_start_seconds = service.started_in.as_secs_f64();
    let empty_cpu_at_rest = cpu_at_rest(&service, size.rate_seconds).await?;
    let begun = Instant::now();
    Admin::new(service.address)?.configure(integrations).await?;
    let configure_seconds = begun.elapsed().as_secs_f64();
    sleep(CALM).await;
    let configured_megabytes = megabytes(&service)?;
    service.stop().await?;

    let begun = Instant::now();
    let service = Service::start(data_dir.path(), address).await?;
    let admin = Admin::new(service.address)?;
    while !admin.answers().await {}
    let answer_seconds = begun.elapsed().as_secs_f64();
    sleep(CALM).await;
    let restarted_megabytes = megabytes(&service)?;
    let idle = Idle {
        integrations,
        configure_seconds,
        empty_megabytes,
        configured_megabytes,
        restarted_megabytes,
        bytes_per_integration: (restarted_megabytes - empty_megabytes) * 1e6 / integrations as f64,
        empty_start_seconds,
        start_seconds: service.started_in.as_secs_f64(),
        answer_seconds,
        cpu_at_rest: cpu_at_rest(&service, size.rate_seconds).await?,
        empty_cpu_at_rest,
    };
    service.stop().await?;
    Ok(idle)
}
