//! The composition root: builds the parts of the service, runs them, and shuts them down in
//! order.

mod threads;

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinHandle},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::threads::Threads;
use crate::{
    api::{Api, Delivery, ServeError},
    config::{self, Config, ExternalIdPolicy, ExternalIdProof, KeySource},
    domain::{
        arn::Partition,
        attribution,
        backoff::BackoffPolicy,
        delivery::BatchLimits,
        event::{Format, FormatError, MAX_BODY_LENGTH, MAX_RECORD_LENGTH},
        external_id::ExternalId,
        integration::{Integration, IntegrationId},
        retention::Retention,
        verdict::{TestError, TestVerdict, ValidationReport},
    },
    gate::Gate,
    sink::{AwsOptions, AwsSink, ExternalIds, PutRecordsClient, Sink, StandInAccess, Unreadable},
    store::{
        Deleted, Failure, KeyError, LogOptions, MasterKey, OpenError, PostgresOptions, SharedError,
        SharedOptions, Store, StoreOptions,
    },
    watch::{self, Watch},
    worker::{Worker, WorkerOptions},
};

/// Minimum time that the store has to write pending data, also when the other parts have used
/// up the shutdown deadline.
const MIN_CLOSE_TIME: Duration = Duration::from_secs(10);

/// Reason that the service did not start or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Address of the setting `listen`.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// The system cannot start threads.
    #[error("cannot start the {kind} threads: {source}")]
    Threads {
        /// `intake` or `delivery`.
        kind: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// The external ID key cannot be read or created.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Shared storage cannot be opened.
    #[error(transparent)]
    SharedStore(#[from] SharedError),
    /// A setting is wrong.
    #[error("{setting}: {problem}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The store failed and cannot continue.
    #[error(transparent)]
    StoreFailed(#[from] Failure),
    /// The event source or the type prefix is invalid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The API failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A part of the service ended although it was not asked to.
    #[error("the {0} ended unexpectedly; this is a defect of siem-relay")]
    Defect(&'static str),
}

/// The service with its store open and its address bound, before it answers requests.
pub struct App {
    address: SocketAddr,
    listener: TcpListener,
    store: Store,
    worker: Worker<AwsSink>,
    format: Arc<Format>,
    issued_external_ids_only: bool,
    heartbeat: Duration,
    publish_bytes_in_flight: usize,
    shutdown_deadline: Duration,
    /// Threads that handle requests and write the log.
    intake: Threads,
    /// Threads that deliver.
    delivery: Threads,
}

/// Runs the service until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AppError> {
    App::start(&config, None).await?.run(shutdown).await
}

impl App {
    /// Opens the store and binds the address. With a stand-in, AWS calls go to it, and
    /// credentials and endpoints of the environment are ignored.
    pub async fn start(config: &Config, stand_in: Option<StandInAccess>) -> Result<Self, AppError> {
        let start = |kind, count| {
            let started = Threads::start(kind, count);
            started.map_err(|source| AppError::Threads { kind, source })
        };
        let intake = start("intake", config.intake_threads)?;
        let delivery = start("delivery", config.delivery_threads)?;
        let (config, intake_handle) = (config.clone(), intake.handle());
        let opening = intake_handle
            .spawn(async move { Self::open(&config, stand_in, intake, delivery).await });
        opening.await.unwrap_or_else(|error| {
            log_panic(Some(error));
            Err(AppError::Defect("start"))
        })
    }

    /// Opens all parts. It runs on the intake threads, since the tasks that the parts spawn stay
    /// on the threads on which they are opened.
    async fn open(
        config: &Config,
        stand_in: Option<StandInAccess>,
        intake: Threads,
        delivery: Threads,
    ) -> Result<Self, AppError> {
        let format = Arc::new(Format::new(
            &config.event_source,
            &config.event_type_prefix,
        )?);
        let failed = |source| AppError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let gate = Gate::default();
        let key = master_key(config)?;
        let options = store_options(config);
        let store = match shared_options(config)? {
            Some(shared) => Store::open_shared(&shared, &options, &key, gate.clone()).await?,
            None => Store::open(options, key, gate.clone()).await?,
        };
        let external_ids = Arc::new(StoredExternalIds(store.clone()));
        let options = sink_options(config, stand_in);
        let sink = AwsSink::new(options, external_ids, gate.clone()).await;
        sink.recall(delivered_before(&store));
        let options = worker_options(config, &format);
        let worker = Worker::new(store.clone(), sink, gate, options);
        tracing::info!(%address, "listening");
        Ok(Self {
            address,
            listener,
            store,
            worker,
            format,
            issued_external_ids_only: config.external_id_policy == ExternalIdPolicy::Issued,
            heartbeat: config.heartbeat,
            publish_bytes_in_flight: config.publish_bytes_in_flight,
            shutdown_deadline: config.shutdown_deadline,
            intake,
            delivery,
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers and delivers until `shutdown`. Then, within the deadline: accepts no further
    /// requests, answers those in flight, ends the status streams, finishes and settles the
    /// deliveries in flight, and closes the store.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let api_stop = CancellationToken::new();
        let worker_stop = CancellationToken::new();
        let kill = CancellationToken::new();
        let watch = Watch::new(self.store.clone(), self.heartbeat, api_stop.clone());
        self.intake.spawn(watch::log_changes(watch.clone()));
        let api = Api {
            store: self.store.clone(),
            delivery: Deliveries(self.worker.clone()),
            watch,
            format: self.format,
            issued_external_ids_only: self.issued_external_ids_only,
            own_identity: self.worker.identity_state(),
            publish_bytes_in_flight: self.publish_bytes_in_flight,
            stop: api_stop.clone(),
        };
        let mut api = self.intake.spawn(api.serve(self.listener));
        let worker = self.worker;
        let (stop_token, kill_token) = (worker_stop.clone(), kill.clone());
        let delivering = async move { worker.run(stop_token, kill_token).await };
        let mut worker = self.delivery.spawn(delivering);

        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = &mut api => Err(api_error(ended)),
            ended = &mut worker => {
                log_panic(ended.err());
                Err(AppError::Defect("delivery worker"))
            }
            failure = self.store.ended() => {
                Err(failure.map_or(AppError::Defect("store"), AppError::from))
            }
        };
        tracing::info!("shutting down");
        let deadline = Instant::now() + self.shutdown_deadline;
        // Both at once, so that a slow stream takes no time from the deliveries.
        api_stop.cancel();
        worker_stop.cancel();
        let api_ended = matches!(ended, Err(AppError::Serve(_) | AppError::Defect("API")));
        let worker_ended = matches!(ended, Err(AppError::Defect("delivery worker")));
        tokio::join!(
            async {
                if !api_ended {
                    join(api, deadline, "answer every request").await;
                }
            },
            async {
                if !worker_ended {
                    finish(worker, deadline, &kill).await;
                }
            },
        );
        let close_deadline = deadline.max(Instant::now() + MIN_CLOSE_TIME);
        let closing = async {
            self.store.close().await;
            self.store.ended().await
        };
        match timeout_at(close_deadline, closing).await {
            Ok(Some(failure)) => ended.and(Err(failure.into())),
            Ok(None) => ended,
            Err(_elapsed) => {
                tracing::warn!(
                    "the store did not close in time; events that were not settled are sent again after a restart"
                );
                ended
            }
        }
    }
}

/// Integrations with a delivery before this process started, and the time since then.
fn delivered_before(store: &Store) -> Vec<(Arc<Integration>, Duration)> {
    let now = Timestamp::now();
    let delivered = store.delivered_last(attribution::MAX_ROLES).into_iter();
    delivered
        .filter_map(|(integration, at)| {
            let ago = Duration::try_from(now.duration_since(at)).ok()?;
            Some((integration, ago))
        })
        .collect()
}

fn api_error(ended: Result<Result<(), ServeError>, JoinError>) -> AppError {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) => AppError::Defect("API"),
        Err(error) => {
            log_panic(Some(error));
            AppError::Defect("API")
        }
    }
}

fn log_panic(error: Option<JoinError>) {
    if let Some(error) = error {
        tracing::error!(%error, "a part of the service panicked");
    }
}

async fn join<T>(mut task: JoinHandle<T>, deadline: Instant, action: &str) {
    if timeout_at(deadline, &mut task).await.is_err() {
        tracing::warn!("the shutdown deadline passed before the service could {action}");
        task.abort();
    }
}

async fn finish(mut worker: JoinHandle<()>, deadline: Instant, kill: &CancellationToken) {
    if timeout_at(deadline, &mut worker).await.is_err() {
        tracing::warn!(
            "the shutdown deadline passed; cancelling the deliveries in flight, whose events are sent again after a restart"
        );
        kill.cancel();
        join(
            worker,
            Instant::now() + MIN_CLOSE_TIME,
            "end its deliveries",
        )
        .await;
    }
}

pub(crate) fn master_key(config: &Config) -> Result<MasterKey, KeyError> {
    match config.key_source() {
        KeySource::Given(key) => Ok(MasterKey::from_bytes(key.expose())),
        KeySource::File(path) => MasterKey::from_file(&path),
        KeySource::DataDirFile(path) => {
            create_data_dir(&config.data_dir)?;
            MasterKey::from_file_or_new(&path)
        }
    }
}

fn create_data_dir(data_dir: &Path) -> Result<(), KeyError> {
    std::fs::create_dir_all(data_dir).map_err(|source| KeyError::File {
        action: "create",
        path: data_dir.to_owned(),
        source,
    })
}

/// Location of shared storage; None if the service keeps everything in its directory.
pub(crate) fn shared_options(config: &Config) -> Result<Option<SharedOptions>, AppError> {
    // The configuration has both or neither.
    let (Some(log), Some(database)) = (&config.log_url, &config.database_url) else {
        return Ok(None);
    };
    let wrong = |setting| move |problem| AppError::Setting { setting, problem };
    let database = PostgresOptions::parse(
        database,
        config.database_password.clone(),
        config.database_password_file.clone(),
    );
    Ok(Some(SharedOptions {
        log: log_options(config, log).map_err(wrong("log-url"))?,
        database: database.map_err(wrong("database-url"))?,
        lease: config.lease,
    }))
}

#[cfg(feature = "kafka")]
fn log_options(config: &Config, url: &str) -> Result<LogOptions, String> {
    let options = crate::store::KafkaOptions::parse(
        url,
        config.log_password.clone(),
        config.log_password_file.clone(),
        config.log_allow_single_replica,
    );
    options.map(LogOptions::Kafka)
}

#[cfg(not(feature = "kafka"))]
fn log_options(_: &Config, _: &str) -> Result<LogOptions, String> {
    Err(
        "this build has no Kafka client: use an image or a release, or build with \
        `cargo build --release --features kafka`"
            .to_owned(),
    )
}

pub(crate) fn store_options(config: &Config) -> StoreOptions {
    StoreOptions {
        data_dir: config.data_dir.clone(),
        disk_reserve_bytes: config.disk_reserve_bytes as u64,
        log_tail_bytes: config.log_tail_bytes,
        commit_linger: config.commit_linger,
        settle_linger: config.settle_linger,
        failing_after: config.failing_after,
        backlog_bytes: config.backlog_bytes as u64,
        tombstones: config.status_tombstones,
    }
}

fn sink_options(config: &Config, stand_in: Option<StandInAccess>) -> AwsOptions {
    AwsOptions {
        attempt_timeout: config.aws_attempt_timeout,
        assume_role_duration: config.assume_role_duration,
        role_session_prefix: format!("{}-", config.role_session_name),
        put_records_client: match config.put_records_client {
            config::PutRecordsClient::Direct => PutRecordsClient::Direct,
            config::PutRecordsClient::Sdk => PutRecordsClient::Sdk,
        },
        canary_role_arn: config.canary_role_arn.clone(),
        require_external_id: config.external_id_proof == ExternalIdProof::Refuse,
        stand_in,
        ..AwsOptions::default()
    }
}

fn worker_options(config: &Config, format: &Format) -> WorkerOptions {
    WorkerOptions {
        requests_in_flight: config.requests_in_flight,
        requests_in_flight_per_integration: config.requests_in_flight_per_integration,
        send_linger: config.send_linger,
        // Long enough for several attempts to reach their timeout, whose failures set the status
        // earlier.
        stalled_after: config.failing_after.max(6 * config.aws_attempt_timeout),
        limits: BatchLimits {
            records: config.max_records_per_request,
            bytes: config.max_request_bytes,
            overhead_bytes: MAX_RECORD_LENGTH - MAX_BODY_LENGTH,
        },
        backoff: BackoffPolicy {
            refused_first: config.retry_first,
            refused_max: config.retry_most,
        },
        window_bytes_per_integration: config.window_bytes_per_integration,
        window_bytes: config.window_bytes,
        retention: Retention {
            age: config.retention,
            bytes: config.retention_bytes as u64,
        },
        format: format.clone(),
    }
}

/// The sink's port to the external IDs in the store.
struct StoredExternalIds(Store);

impl ExternalIds for StoredExternalIds {
    fn open(&self, integration: &Integration) -> Result<ExternalId, Unreadable> {
        let opened = self.0.open_external_id(integration);
        opened.map_err(|_| Unreadable)
    }

    fn open_previous(&self, integration: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        let opened = self.0.open_previous_external_id(integration)?;
        Some(opened.map_err(|_| Unreadable))
    }

    fn current_accepted(&self, integration: &Integration) {
        let (store, version) = (self.0.clone(), integration.version);
        let id = integration.integration_id;
        tokio::spawn(async move { store.retire_previous_external_id(id, version).await });
    }

    fn is_current(&self, integration: &Integration) -> bool {
        self.0.version(integration.integration_id) == Some(integration.version)
    }
}

/// The API's port to the worker.
struct Deliveries<S>(Worker<S>);

impl<S: Sink> Delivery for Deliveries<S> {
    async fn send_test(&self, organization_id: &str) -> Result<TestVerdict, TestError> {
        self.0.send_test(organization_id).await
    }

    async fn validate_only(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<ValidationReport, TestError> {
        self.0.validate_only(integration).await
    }

    fn partition(&self) -> Option<Partition> {
        self.0.partition()
    }

    async fn deleted(&self, id: IntegrationId) -> Deleted {
        self.0.deleted(id).await
    }
}
