//! The service as the listener for metrics and probes sees it: samples of its levels, and whether
//! requests would succeed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{Mutex, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{AppError, threads::Threads};
use crate::{
    api,
    config::Config,
    domain::attribution::IdentityState,
    metrics::{self, Check, Files, Process, Sample},
    monitoring::{Listener, Monitored},
    store::Store,
    telemetry,
};

/// Age up to which a sample is used again.
const MAX_AGE: Duration = Duration::from_millis(500);
/// Longest wait for a sample; after it the one before is served.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of samples for the OTLP export, unless it exports more often.
const EXPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Files of the embedded database.
const DATABASE_FILES: [&str; 2] = ["siem-relay.sqlite", "siem-relay.sqlite-wal"];

/// Metrics and probes of a service, from before its store is open to after it is closed.
pub(super) struct Monitor {
    shared: Arc<Shared>,
    /// Thread of the listener, so that probes are answered while all others are busy.
    threads: Option<(Threads, JoinHandle<()>)>,
    exporting: OnceLock<AbortOnDropHandle<()>>,
}

struct Shared {
    /// Set once the store is open.
    service: OnceLock<Service>,
    stopping: CancellationToken,
    /// Organizations that have series of their own.
    organizations: usize,
    slow_after: Duration,
    /// Directory of the embedded database.
    data_dir: Option<PathBuf>,
    sampled: Mutex<Option<Instant>>,
}

struct Service {
    store: Store,
    own_identity: watch::Receiver<IdentityState>,
    /// Threads on which the store reads.
    threads: Handle,
}

impl Monitor {
    /// Binds the address for metrics and probes, if there is one, and answers.
    pub(super) async fn start(config: &Config) -> Result<Self, AppError> {
        let shared = Arc::new(Shared {
            service: OnceLock::new(),
            stopping: CancellationToken::new(),
            organizations: config.metrics_organizations,
            slow_after: config.failing_after,
            data_dir: config
                .database_url
                .is_none()
                .then(|| config.data_dir.clone()),
            sampled: Mutex::default(),
        });
        let threads = match config.metrics_listen {
            None => None,
            Some(address) => {
                let threads = Threads::start("monitor", 1);
                let threads = threads.map_err(|source| AppError::Threads {
                    kind: "monitor",
                    source,
                })?;
                let monitored = Arc::clone(&shared);
                let binding = threads.spawn(Listener::bind(address));
                let bound = match binding.await {
                    Ok(bound) => bound,
                    Err(_panicked) => return Err(AppError::Defect("listener for metrics")),
                };
                let failed = |source| AppError::Listen { address, source };
                let listener = bound.map_err(failed)?;
                let address = listener.address().map_err(failed)?;
                tracing::info!(%address, "serving metrics and probes");
                let serving = threads.spawn(listener.serve(monitored));
                Some((threads, serving))
            }
        };
        Ok(Self {
            shared,
            threads,
            exporting: OnceLock::new(),
        })
    }

    /// Takes in the service that has started. `threads` are those on which its store was opened.
    pub(super) fn started(
        &self,
        store: Store,
        own_identity: watch::Receiver<IdentityState>,
        threads: Handle,
    ) {
        let exports = telemetry::metrics_interval();
        let exporting = exports.map(|interval| {
            let shared = Arc::clone(&self.shared);
            let period = interval.min(EXPORT_INTERVAL);
            AbortOnDropHandle::new(threads.spawn(async move { shared.keep_sampled(period).await }))
        });
        exporting.map(|task| self.exporting.set(task));
        let service = Service {
            store,
            own_identity,
            threads,
        };
        // It is set once.
        let _set = self.shared.service.set(service);
    }

    /// Answers from now on that the service is not ready.
    pub(super) fn stopping(&self) {
        self.shared.stopping.cancel();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some((_, serving)) = &self.threads {
            serving.abort();
        }
    }
}

impl Shared {
    async fn keep_sampled(&self, period: Duration) {
        let mut ticks = interval(period);
        loop {
            ticks.tick().await;
            self.sample().await;
        }
    }

    /// Publishes a new sample, if the last one is old. Calls at the same time share one.
    async fn sample(&self) {
        let Some(service) = self.service.get() else {
            return;
        };
        let mut sampled = self.sampled.lock().await;
        if sampled.is_some_and(|at| at.elapsed() < MAX_AGE) {
            return;
        }
        let (store, worst, slow_after) =
            (service.store.clone(), self.organizations, self.slow_after);
        let levels = async move { store.sample(worst, slow_after).await };
        let levels = timeout(TIMEOUT, service.threads.spawn(levels));
        let directory = self.data_dir.clone();
        // A disk that does not answer must not hold the thread.
        let of_system = spawn_blocking(move || (files(directory.as_deref()), process()));
        let of_system = timeout(TIMEOUT, of_system);
        let (levels, of_system) = tokio::join!(levels, of_system);
        let Ok(Ok(levels)) = levels else {
            tracing::debug!("a sample of the levels takes too long");
            return;
        };
        let (files, process) = match of_system {
            Ok(Ok(read)) => read,
            Ok(Err(_)) | Err(_) => (None, Process::default()),
        };
        let serving = api::serving(
            &service.own_identity.borrow(),
            *service.store.has_capacity().borrow(),
            *service.store.health().borrow(),
        );
        metrics::publish(Sample {
            serving: serving.map(|(name, holds)| Check { name, holds }).into(),
            files,
            process,
            ..levels
        });
        *sampled = Some(Instant::now());
    }
}

#[async_trait]
impl Monitored for Shared {
    async fn metrics(&self) -> String {
        self.sample().await;
        let text = spawn_blocking(telemetry::prometheus_page).await;
        text.unwrap_or_default()
    }

    async fn conditions(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let Some(service) = self.service.get() else {
            return vec![("start", Some("the service is starting"))];
        };
        if self.stopping.is_cancelled() {
            return vec![("stop", Some("the service is shutting down"))];
        }
        let problem = |name| match name {
            "lease" => "the lease of this instance has lapsed: it has no contact with the database",
            "log" => "the event log does not take entries",
            _ => "the database does not answer",
        };
        let checks = service.store.checks();
        let checks = checks.into_iter();
        checks
            .map(|check| (check.name, (!check.holds).then(|| problem(check.name))))
            .collect()
    }
}

fn files(directory: Option<&Path>) -> Option<Files> {
    let directory = directory?;
    let sizes = DATABASE_FILES.map(|name| fs::metadata(directory.join(name)));
    let disk = rustix::fs::statvfs(directory).ok()?;
    Some(Files {
        database_bytes: sizes.into_iter().flatten().map(|file| file.len()).sum(),
        free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        disk_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
    })
}

fn process() -> Process {
    use rustix::process::{Resource, getrlimit};
    let files = fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
    let usage = usage().unwrap_or_default();
    Process {
        // One of them is that of the directory.
        open_files: files.saturating_sub(1),
        max_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        ..usage
    }
}

/// Memory and CPU time, by `/proc/self/stat`.
fn usage() -> io::Result<Process> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may have spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> = fields
        .split_whitespace()
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    let field = |number: usize| fields.get(number).copied().unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    Ok(Process {
        // proc(5): the fields utime, stime and rss, counted from the state.
        cpu: Duration::from_secs_f64((field(11) + field(12)) as f64 / ticks),
        resident_bytes: field(21) * rustix::param::page_size() as u64,
        ..Process::default()
    })
}
