//! Cost of idle integrations (`--idle`).

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;

use super::{
    Failure,
    measure::Scope,
    process::{Child, Role},
    service::{Admin, Service},
    sink,
    table::progress,
};

/// Time after which the service has finished its work and is idle.
pub const IDLE_AFTER: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    pub integrations: usize,
    /// Time of configuring all integrations by concurrent calls.
    pub configure_seconds: f64,
    pub empty_megabytes: f64,
    /// Memory after all were configured.
    pub configured_megabytes: f64,
    /// Memory after a restart.
    pub restarted_megabytes: f64,
    /// Memory after the restart beyond that of the empty service.
    pub bytes_per_integration: f64,
    pub empty_start_seconds: f64,
    /// Time from the start of the process until it listens.
    pub start_seconds: f64,
    /// Time from the start of the process until it answers a call.
    pub answer_seconds: f64,
    /// CPU seconds per second.
    #[serde(rename = "cpu_at_rest")]
    pub idle_cpu: f64,
    #[serde(rename = "empty_cpu_at_rest")]
    pub empty_idle_cpu: f64,
}

fn megabytes(service: &Service) -> Result<f64, Failure> {
    Ok(service.usage()?.resident_bytes as f64 / 1e6)
}

/// Measures CPU seconds per second.
pub async fn idle_cpu(service: &Service, seconds: f64) -> Result<f64, Failure> {
    let before = service.usage()?.cpu_seconds;
    sleep(Duration::from_secs_f64(seconds)).await;
    Ok((service.usage()?.cpu_seconds - before) / seconds)
}

pub async fn measure(integrations: usize, scope: &Scope) -> Result<Idle, Failure> {
    progress(&format!("idle: {integrations} integrations"));
    let data_dir = tempfile::tempdir_in(&scope.data_dir)?;
    let role = Role::Sink(sink::Config { delay_ms: 0 });
    let (_sink, address) = Child::start(role).await?;

    let service = Service::start(data_dir.path(), address).await?;
    sleep(IDLE_AFTER).await;
    let empty_megabytes = megabytes(&service)?;
    let empty_start_seconds = service.started_in.as_secs_f64();
    let empty_idle_cpu = idle_cpu(&service, scope.rate_seconds).await?;
    let start = Instant::now();
    Admin::new(service.address)?.configure(integrations).await?;
    let configure_seconds = start.elapsed().as_secs_f64();
    sleep(IDLE_AFTER).await;
    let configured_megabytes = megabytes(&service)?;
    service.stop().await?;

    let start = Instant::now();
    let service = Service::start(data_dir.path(), address).await?;
    let admin = Admin::new(service.address)?;
    while !admin.answers().await {}
    let answer_seconds = start.elapsed().as_secs_f64();
    sleep(IDLE_AFTER).await;
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
        idle_cpu: idle_cpu(&service, scope.rate_seconds).await?,
        empty_idle_cpu,
    };
    service.stop().await?;
    Ok(idle)
}
