//! The composition root: builds the parts of the service, runs them, and shuts them down in
//! order.

mod monitor;
mod threads;

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinHandle},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::{monitor::Monitor, threads::Threads};
#[cfg(feature = "kafka")]
use crate::sink::MskTokens;
use crate::{
    admin::{Admin, AdminError, Answer, Commands, Request},
    api::{
        Api, Callers, ConnectionOptions, Delivery, LimitOptions, ServeError, Tls, TlsOptions,
        WebOptions, max_connections,
    },
    config::{self, Config, ExternalIdPolicy, ExternalIdProof, KeySource},
    domain::{
        arn::Partition,
        attribution,
        backoff::BackoffPolicy,
        delivery::BatchLimits,
        error_chain::error_chain,
        event::{Format, FormatError, MAX_BODY_LENGTH, MAX_RECORD_LENGTH},
        external_id::ExternalId,
        integration::{Integration, IntegrationId},
        retention::Retention,
        verdict::{TestError, TestVerdict, ValidationReport},
    },
    gate::Gate,
    notifications::{self, Receiver},
    sink::{
        AwsOptions, AwsSink, ExternalIds, PutRecordsClient, Sink, StandInAccess, Unreadable,
        credential_process,
    },
    store::{
        AuditLimits, Deleted, Failure, KeyError, Keyring, LogOptions, OpenError, PostgresOptions,
        SharedError, SharedOptions, Store, StoreOptions,
    },
    telemetry::{log_level, set_log_level},
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
        /// Problem and remedy.
        problem: String,
    },
    /// The store failed and cannot continue.
    #[error(transparent)]
    StoreFailed(#[from] Failure),
    /// The event source or the type prefix is invalid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The socket for commands cannot be used.
    #[error(transparent)]
    Admin(#[from] AdminError),
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
    callers: Option<Callers>,
    issued_external_ids_only: bool,
    heartbeat: Duration,
    publish_bytes_in_flight: usize,
    connections: ConnectionOptions,
    tls: Option<Tls>,
    web: Option<WebOptions>,
    limits: LimitOptions,
    trust_trace_context: bool,
    shutdown_deadline: Duration,
    admin: Option<Admin>,
    notifications: Option<Receiver>,
    retention: Duration,
    monitor: Monitor,
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
        // First, so that probes are answered while the store opens, which may take long.
        let monitor = Monitor::start(config).await?;
        let format = Arc::new(Format::new(
            &config.event_source,
            &config.event_type_prefix,
        )?);
        let tls = tls(config)?;
        let connections = connection_options(config);
        let callers = config.callers.as_deref().map(Callers::open).transpose();
        let callers = callers.map_err(|error| AppError::Setting {
            setting: "callers",
            problem: error_chain(&error),
        })?;
        let notifications = notification_receiver(config)?;
        let failed = |source| AppError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if stand_in.is_none() {
            check_credential_process(config).await?;
        }
        let gate = Gate::default();
        let keyring = keyring(config)?;
        let options = store_options(config);
        let store = match shared_options(config)? {
            Some(shared) => Store::open_shared(&shared, &options, &keyring, gate.clone()).await?,
            None => Store::open(options, &keyring, gate.clone()).await?,
        };
        let admin = bind_admin(config).await?;
        let external_ids = Arc::new(StoredExternalIds(store.clone()));
        let options = sink_options(config, stand_in);
        let sink = AwsSink::new(options, external_ids, gate.clone()).await;
        sink.recall(delivered_before(&store));
        let options = worker_options(config, &format);
        let worker = Worker::new(store.clone(), sink, gate, options);
        monitor.started(store.clone(), worker.identity_state(), intake.handle());
        tracing::info!(%address, "listening");
        Ok(Self {
            address,
            listener,
            store,
            worker,
            format,
            callers,
            issued_external_ids_only: config.external_id_policy == ExternalIdPolicy::Issued,
            heartbeat: config.heartbeat,
            publish_bytes_in_flight: config.publish_bytes_in_flight,
            connections,
            tls,
            web: web_options(config),
            limits: limit_options(config),
            trust_trace_context: config.trust_trace_context,
            shutdown_deadline: config.shutdown_deadline,
            admin,
            notifications,
            retention: config.retention,
            monitor,
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
        if let Some(receiver) = self.notifications {
            let store = self.store.clone();
            let sending = notifications::run(
                store,
                watch.clone(),
                receiver,
                self.retention,
                api_stop.clone(),
            );
            self.intake.spawn(sending);
        }
        let api = Api {
            store: self.store.clone(),
            delivery: Deliveries(self.worker.clone()),
            watch,
            format: self.format,
            issued_external_ids_only: self.issued_external_ids_only,
            own_identity: self.worker.identity_state(),
            callers: self.callers,
            publish_bytes_in_flight: self.publish_bytes_in_flight,
            connections: self.connections,
            tls: self.tls,
            web: self.web,
            limits: self.limits,
            trust_trace_context: self.trust_trace_context,
            stop: api_stop.clone(),
        };
        let mut api = self.intake.spawn(api.serve(self.listener));
        if let Some(admin) = self.admin {
            let commands = Arc::new(StoreCommands(self.store.clone()));
            self.intake.spawn(admin.serve(commands, api_stop.clone()));
        }
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
        self.monitor.stopping();
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

pub(crate) fn keyring(config: &Config) -> Result<Keyring, KeyError> {
    match config.key_source() {
        KeySource::Given(keyring) => Ok(keyring),
        KeySource::File(path) => Keyring::from_file(&path),
        KeySource::DataDirFile(path) => {
            create_data_dir(&config.data_dir)?;
            Keyring::from_file_or_new(&path)
        }
    }
}

/// Refuses to start with a secret in the environment that a program for AWS credentials would
/// inherit.
async fn check_credential_process(config: &Config) -> Result<(), AppError> {
    let given = [
        ("external-id-key", config.external_id_key.is_some()),
        ("log-password", config.log_password.is_some()),
        ("database-password", config.database_password.is_some()),
    ];
    let Some((setting, _)) = given.into_iter().find(|(_, is_given)| *is_given) else {
        return Ok(());
    };
    match credential_process().await {
        None => Ok(()),
        Some(profile) => Err(AppError::Setting {
            setting,
            problem: format!(
                "is in the environment, and the credential_process of the AWS profile {profile} \
                 would inherit it; put it into a file with mode 0600 and set {setting}-file"
            ),
        }),
    }
}

/// Listens for commands. None if there is no directory for the socket, or its default path does not
/// do.
async fn bind_admin(config: &Config) -> Result<Option<Admin>, AppError> {
    let path = config.admin_socket();
    let is_default = config.admin_socket.is_none();
    let is_shared = config.database_url.is_some();
    if is_default && is_shared && !config.data_dir.exists() {
        return Ok(None);
    }
    match Admin::bind(&path).await {
        Ok(admin) => Ok(Some(admin)),
        // Several instances may have the same default, and a directory a long path.
        Err(error) if is_default && (is_shared || matches!(error, AdminError::TooLong(_))) => {
            tracing::error!(%error, "this process takes no commands");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads the keys as [`keyring`] does, and makes none. None if there is none yet.
pub(crate) fn existing_keyring(config: &Config) -> Result<Option<Keyring>, KeyError> {
    match config.key_source() {
        KeySource::DataDirFile(path) => match Keyring::from_file(&path) {
            Err(KeyError::Secret(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        },
        _ => keyring(config).map(Some),
    }
}

fn create_data_dir(data_dir: &Path) -> Result<(), KeyError> {
    std::fs::create_dir_all(data_dir).map_err(|source| KeyError::Create {
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
    let credentials = crate::store::LogCredentials {
        password: config.log_password.clone(),
        password_file: config.log_password_file.clone(),
        msk: &|region| Arc::new(Msk(MskTokens::new(region))),
    };
    let options =
        crate::store::KafkaOptions::parse(url, credentials, config.log_allow_single_replica);
    options.map(LogOptions::Kafka)
}

/// Tokens for Amazon MSK by this service's own AWS credentials.
#[cfg(feature = "kafka")]
#[derive(Debug)]
struct Msk(MskTokens);

#[cfg(feature = "kafka")]
#[async_trait::async_trait]
impl crate::store::TokenIssuer for Msk {
    async fn issue(&self) -> Result<crate::store::Token, String> {
        let token = self.0.issue().await?;
        Ok(crate::store::Token {
            value: token.value,
            issued_at: token.issued_at,
            expires_at: Some(token.expires_at),
        })
    }
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
        audit: AuditLimits {
            max_age: config.audit_retention,
            max_entries: config.audit_max_entries as u64,
        },
    }
}

/// Receiver of notifications; None if there is none.
fn notification_receiver(config: &Config) -> Result<Option<Receiver>, AppError> {
    // The configuration has both or neither.
    let (Some(url), Some(secret_file)) =
        (&config.notification_url, &config.notification_secret_file)
    else {
        return Ok(None);
    };
    let receiver = Receiver::new(url, secret_file);
    receiver.map(Some).map_err(|error| AppError::Setting {
        setting: error.setting(),
        problem: error_chain(&error),
    })
}

/// Loads the files of the TLS server. None without `tls-cert`.
pub(crate) fn load_tls(config: &Config) -> Result<Option<Tls>, AppError> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let loaded = Tls::load(TlsOptions {
        cert: cert.clone(),
        key: key.clone(),
        client_ca: config.tls_client_ca.clone(),
        // With a callers file a token may take the place of a certificate.
        require_client_cert: config.callers.is_none(),
        http1: config.has_browsers(),
    });
    loaded.map(Some).map_err(|error| AppError::Setting {
        setting: error.setting,
        problem: error.problem,
    })
}

/// Loads the files of the TLS server, and warns of what listens without protection.
fn tls(config: &Config) -> Result<Option<Tls>, AppError> {
    let is_exposed = !config.listen.ip().to_canonical().is_loopback();
    let listen = config.listen;
    if is_exposed && config.tls_cert.is_none() {
        tracing::warn!(
            %listen,
            "insecure: the API listens beyond loopback without TLS; whoever is on the network \
             between can read and change requests unless a mesh or proxy encrypts them"
        );
    }
    if is_exposed && !config.has_authentication() {
        tracing::warn!(
            %listen,
            "insecure-no-authentication: anyone who can reach the API can configure, delete and \
             publish"
        );
    }
    load_tls(config)
}

fn connection_options(config: &Config) -> ConnectionOptions {
    ConnectionOptions {
        max: max_connections(config.max_connections, config.requests_in_flight),
        max_per_peer: config.max_connections_per_peer,
        max_streams: config.max_streams_per_connection,
        idle: config.connection_idle,
        age: config.connection_age,
        stall: config.stall_timeout,
        http1: config.has_browsers(),
    }
}

fn web_options(config: &Config) -> Option<WebOptions> {
    config.has_browsers().then(|| WebOptions {
        console: config.console,
        template_url: config.console_template_url.clone(),
        origins: config.grpc_web_origins.clone(),
        has_tls: config.tls_cert.is_some(),
        has_authentication: config.has_authentication(),
    })
}

fn limit_options(config: &Config) -> LimitOptions {
    // The settings have at most six digits.
    let number = |setting: usize| u32::try_from(setting).unwrap_or(u32::MAX);
    LimitOptions {
        requests_per_second: number(config.requests_per_second_per_caller),
        streams: config.streams_per_caller,
        events_per_second: number(config.events_per_second_per_organization),
        test_interval: config.test_interval,
        failed_authentications_per_second: number(config.failed_authentications_per_second),
    }
}

pub(crate) fn sink_options(config: &Config, stand_in: Option<StandInAccess>) -> AwsOptions {
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

    fn may_call(&self, integration: &Integration) -> bool {
        self.is_current(integration) && self.0.may_call(integration.integration_id)
    }
}

/// Commands of an operator.
struct StoreCommands(Store);

#[async_trait]
impl Commands for StoreCommands {
    async fn execute(&self, request: Request) -> Answer {
        let keys = match request {
            Request::KeysList => self.0.keys().await,
            Request::KeysRotate => self.0.rotate_keys().await,
            Request::LogLevel { filter } => {
                let level = match filter {
                    Some(filter) => set_log_level(&filter),
                    None => log_level(),
                };
                return match level {
                    Ok(level) => Answer::LogLevel(level),
                    Err(error) => Answer::Error(error.to_string()),
                };
            }
        };
        match keys {
            Ok(report) => Answer::Keys(report),
            Err(error) => Answer::Error(error.to_string()),
        }
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

    fn account(&self) -> Option<Arc<str>> {
        self.0.account()
    }

    async fn deleted(&self, id: IntegrationId) -> Deleted {
        self.0.deleted(id).await
    }
}
