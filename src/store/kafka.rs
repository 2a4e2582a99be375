//! The event log on a topic of Kafka.
//!
//! One message is one entry, and offset `n` is position `n + 1`. Every entry is committed by the
//! in-sync replicas before it is acked, and readers see committed entries only. The topic keeps
//! everything until the service deletes it, so offsets are dense: a hole is a loss.
//!
//! docs/decisions/kafka-client.md says why the client is librdkafka.

mod admin;
mod client;
mod reader;
#[cfg(test)]
mod tests;
mod token;
mod topic;
mod url;
mod writer;

use std::{
    collections::BTreeSet,
    io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use rand::Rng;
use rdkafka::{error::KafkaError as ClientError, types::RDKafkaErrorCode};
use secrecy::SecretString;
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};

use self::{
    admin::AdminError,
    client::{Clients, Credentials, Notes},
    reader::Reader,
    topic::{Settings, check_replicas, check_settings, in_sync},
    writer::{PartitionLog, State, encode, unavailable},
};
pub use self::{
    token::{Token, TokenIssuer, Tokens},
    topic::create_topic,
    url::LogCredentials,
};
use super::{
    error::{Failure, StoreError},
    ports::{Availability, Bounds, EventLog, LogReader, NewEntry, Partition, Position},
};

/// Bytes of segments in one append, which are in flight together.
const APPEND_BYTES: usize = 4 << 20;
/// Time between two looks at leaders, replicas and files of credentials.
const REFRESH: Duration = Duration::from_secs(10);
/// Time between two checks of the topic's settings.
const CHECK_SETTINGS: Duration = Duration::from_secs(60 * 60);
/// Half of the time from the first probe of a partition in doubt to the second, which doubles
/// after each.
const PROBE_BACKOFF: Duration = Duration::from_millis(250);
/// Longest time between two probes.
const MAX_PROBE_BACKOFF: Duration = Duration::from_secs(2);
/// Time between two deletions of trimmed entries. An entry is deleted no earlier than this after
/// it was trimmed, so that a database that loses its last commits finds it again.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// Time that a broker waits for an entry before it answers that there is none. It delays the first
/// read of another partition on the same broker, and its inverse is the load of an idle instance.
const FETCH_WAIT: Duration = Duration::from_millis(250);
/// Time until offsets that contradict earlier ones are asked for again, in which a broker that was
/// stopped learns that it leads no more.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Time that entries in flight have when the log is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of the log on Kafka.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// Brokers to begin with, each as `host:port`.
    pub brokers: Vec<String>,
    /// Name of the topic.
    pub topic: String,
    /// Protection of the connections.
    pub security: KafkaSecurity,
    /// Accept a topic with one copy of each partition. The loss of a disk then loses events.
    pub allow_single_replica: bool,
}

/// Protection of the connections to Kafka. Files are read again every 10 s; when one has
/// changed, new connections use it.
#[derive(Clone, Debug)]
pub enum KafkaSecurity {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// TLS.
    Tls(Tls),
    /// A password over TLS.
    Sasl {
        /// Kind of exchange.
        mechanism: Mechanism,
        /// Name of the user.
        user: String,
        /// The password.
        password: Password,
        /// Settings of TLS.
        tls: Tls,
    },
    /// Tokens (OAUTHBEARER) over TLS.
    Token {
        /// The tokens.
        tokens: Tokens,
        /// Settings of TLS.
        tls: Tls,
    },
}

/// A password.
#[derive(Clone, Debug)]
pub enum Password {
    /// The password itself.
    Given(SecretString),
    /// File with it. A line end after it is ignored.
    File(PathBuf),
}

/// Kind of authentication by password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password itself is sent.
    Plain,
    /// A proof with SHA-256.
    ScramSha256,
    /// A proof with SHA-512.
    ScramSha512,
}

/// Settings of TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// PEM file of the authorities that sign the brokers' certificates; None for those of the
    /// system.
    pub ca_file: Option<PathBuf>,
    /// Certificate that is shown to the brokers.
    pub certificate: Option<Certificate>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM file of the certificate and its issuers.
    pub cert_file: PathBuf,
    /// PEM file of the private key.
    pub key_file: PathBuf,
}

impl KafkaSecurity {
    /// Gets the first token, if there are any.
    async fn start(&self) -> Result<(), KafkaError> {
        match self {
            Self::Token { tokens, .. } => tokens.start().await,
            _ => Ok(()),
        }
    }

    /// Files that only their owner may use.
    fn secret_files(&self) -> Vec<&Path> {
        let (password, tls) = match self {
            Self::Plaintext => (None, None),
            Self::Tls(tls) | Self::Token { tls, .. } => (None, Some(tls)),
            Self::Sasl { password, tls, .. } => (Some(password), Some(tls)),
        };
        let password = password.and_then(|password| match password {
            Password::File(file) => Some(file),
            Password::Given(_) => None,
        });
        let certificate = tls.and_then(|tls| tls.certificate.as_ref());
        let key = certificate.map(|one| &one.key_file);
        password
            .into_iter()
            .chain(key)
            .map(PathBuf::as_path)
            .collect()
    }

    /// Files with credentials, except tokens: connections renew these by themselves.
    fn files(&self) -> Vec<&Path> {
        let (password, tls) = match self {
            Self::Plaintext => (None, None),
            Self::Tls(tls) | Self::Token { tls, .. } => (None, Some(tls)),
            Self::Sasl { password, tls, .. } => match password {
                Password::File(file) => (Some(file), Some(tls)),
                Password::Given(_) => (None, Some(tls)),
            },
        };
        let ca = tls.and_then(|tls| tls.ca_file.as_ref());
        let certificate = tls.and_then(|tls| tls.certificate.as_ref());
        let certificate = certificate.map(|one| [&one.cert_file, &one.key_file]);
        let files = password.into_iter().chain(ca);
        files
            .chain(certificate.into_iter().flatten())
            .map(PathBuf::as_path)
            .collect()
    }
}

/// Reason that the log on Kafka could not be opened, or its topic not be created.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// A file with credentials cannot be used.
    #[error("cannot use the file {path} for Kafka: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// There is no token.
    #[error("cannot get a token for Kafka: {0}")]
    Token(String),
    /// The library refuses a setting.
    #[error("the Kafka client refuses its settings: {0}")]
    Settings(String),
    /// No broker answers.
    #[error(
        "no Kafka broker of {brokers} answers ({reason}): check the address, TLS and credentials"
    )]
    Unreachable {
        /// The addresses.
        brokers: String,
        /// The error of the last attempt.
        reason: String,
    },
    /// The addresses that the brokers name for themselves do not answer.
    #[error(
        "Kafka answers at {brokers}, but broker {broker} names {address} as its address, and that does not answer ({reason}): correct advertised.listeners of the broker, or the network"
    )]
    Advertised {
        /// The addresses that answered.
        brokers: String,
        /// Number of the broker.
        broker: i32,
        /// The address that it names.
        address: String,
        /// The error of the last attempt.
        reason: String,
    },
    /// The topic cannot be read or described.
    #[error("cannot use the Kafka topic {topic} ({reason})")]
    Topic {
        /// The topic.
        topic: String,
        /// The error.
        reason: String,
    },
    /// The topic does not exist.
    #[error("the Kafka topic {0} does not exist: make it with `siem-relay log create-topic`")]
    NoTopic(String),
    /// The topic could lose events.
    #[error("the Kafka topic {topic} could lose events: {}", violations.join("; "))]
    Unsafe {
        /// The topic.
        topic: String,
        /// Each setting with its value and the right value.
        violations: Vec<String>,
    },
    /// The topic could not be created.
    #[error("cannot create the Kafka topic {topic}: {reason}")]
    Create {
        /// The topic.
        topic: String,
        /// The error.
        reason: String,
    },
}

impl KafkaError {
    fn settings(error: ClientError) -> Self {
        Self::Settings(match error {
            // The value may be secret.
            ClientError::ClientConfig(_, reason, setting, _) => format!("{setting}: {reason}"),
            error => error.to_string(),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a call that blocks.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(call)
        .await
        .map_err(|error| error.try_into_panic())
    {
        Ok(value) => value,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime ends, and the caller with it.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Offset of a position.
fn offset_of(position: Position) -> u64 {
    position.0.saturating_sub(1)
}

/// Position of an offset.
fn end_of(offset: u64) -> Position {
    Position(offset + 1)
}

/// Times that tests shorten.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) trim_interval: Duration,
    pub(super) fetch_wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            trim_interval: TRIM_INTERVAL,
            fetch_wait: FETCH_WAIT,
        }
    }
}

/// The log.
pub(in crate::store) struct KafkaLog {
    shared: Arc<Shared>,
}

struct Shared {
    options: KafkaOptions,
    fetch_wait: Duration,
    /// Identity of the cluster.
    cluster: String,
    notes: Arc<Notes>,
    clients: watch::Sender<Arc<Clients>>,
    partitions: Vec<Arc<PartitionLog>>,
    availability: watch::Sender<Availability>,
    obstacles: Mutex<Obstacles>,
    end: watch::Sender<Option<End>>,
    /// Is notified when a partition is in doubt or corrupt.
    trouble: Arc<Notify>,
}

/// Reasons that no partition takes entries.
#[derive(Default)]
struct Obstacles {
    /// Violation by the settings of the topic.
    settings: Option<String>,
    /// Violation by its replicas or partitions.
    replicas: Option<String>,
    /// Copies that a committed entry has at least.
    in_sync: usize,
}

impl Obstacles {
    fn first(&self) -> Option<&String> {
        self.settings.as_ref().or(self.replicas.as_ref())
    }
}

/// End of the log.
#[derive(Clone, Debug)]
enum End {
    Closed,
    Failed(String),
}

/// State of a partition by metadata.
#[derive(Clone, Copy)]
struct Replicas {
    leader: Option<i32>,
    all: usize,
    in_sync: usize,
}

/// State of the topic by metadata.
struct View {
    partitions: Vec<Replicas>,
    violation: Option<String>,
    /// Addresses of the brokers, with their numbers.
    brokers: Vec<(i32, String)>,
}

impl View {
    fn leaders(&self) -> BTreeSet<i32> {
        self.partitions
            .iter()
            .filter_map(|one| one.leader)
            .collect()
    }

    /// Whether enough copies of a partition are in sync to commit entries.
    fn is_writable(&self, partition: Partition, in_sync: usize) -> bool {
        let replicas = self.partitions.get(partition as usize);
        replicas.is_some_and(|one| one.leader.is_some() && one.in_sync >= in_sync.min(one.all))
    }
}

/// Error of a look at the topic.
enum ViewError {
    NoTopic,
    Failed(String),
}

impl From<String> for ViewError {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// Looks at the topic. Blocks.
fn view(clients: &Clients, options: &KafkaOptions) -> Result<View, ViewError> {
    let metadata = clients.metadata()?;
    let topics = metadata.topics();
    let topic = topics.iter().find(|one| one.name() == options.topic);
    let topic = topic.ok_or(ViewError::NoTopic)?;
    if let Some(error) = topic.error() {
        return Err(match RDKafkaErrorCode::from(error) {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                ViewError::NoTopic
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                ViewError::Failed("the right to describe it (Describe) is missing".to_owned())
            }
            code => ViewError::Failed(code.to_string()),
        });
    }
    let mut partitions = vec![
        Replicas {
            leader: None,
            all: 0,
            in_sync: 0,
        };
        topic.partitions().len()
    ];
    for partition in topic.partitions() {
        let at = partitions.get_mut(partition.id() as usize);
        let at = at.ok_or_else(|| "its partitions have gaps in their numbers".to_owned())?;
        *at = Replicas {
            leader: (partition.leader() >= 0).then(|| partition.leader()),
            all: partition.replicas().len(),
            in_sync: partition.isr().len(),
        };
    }
    let brokers = metadata.brokers().iter();
    Ok(View {
        partitions,
        violation: check_replicas(topic, options.allow_single_replica),
        brokers: brokers
            .map(|one| (one.id(), format!("{}:{}", one.host(), one.port())))
            .collect(),
    })
}

impl KafkaLog {
    /// Opens the log: checks that the topic cannot lose events, and that the brokers answer at
    /// the addresses that they name.
    ///
    /// Must be called within a runtime, in which tasks watch the topic until the log is dropped.
    pub(in crate::store) async fn open(options: &KafkaOptions) -> Result<Self, KafkaError> {
        Self::open_with(options, Pace::default()).await
    }

    pub(super) async fn open_with(options: &KafkaOptions, pace: Pace) -> Result<Self, KafkaError> {
        options.security.start().await?;
        let notes = Arc::new(Notes::default());
        let started = blocking({
            let (options, notes) = (options.clone(), Arc::clone(&notes));
            move || start(&options, pace.fetch_wait, notes)
        });
        let (clients, view, cluster) = started.await?;
        let settings = match read_settings(&clients, options).await {
            Ok(settings) => settings,
            // Leaders that do not answer are the better explanation.
            Err(error) => {
                let answers = ask_leaders(&clients, &view).await;
                let failures = silent_leaders(&answers, &view, options);
                return Err(failures.into_iter().next().unwrap_or(error));
            }
        };
        let mut violations = check_settings(&settings, options.allow_single_replica);
        violations.extend(view.violation.clone());
        if !violations.is_empty() {
            return Err(KafkaError::Unsafe {
                topic: options.topic.clone(),
                violations,
            });
        }
        let trouble = Arc::new(Notify::new());
        let count = view.partitions.len() as Partition;
        let partitions = (0..count)
            .map(|number| Arc::new(PartitionLog::new(number, Arc::clone(&trouble))))
            .collect();
        let shared = Arc::new(Shared {
            options: options.clone(),
            fetch_wait: pace.fetch_wait,
            cluster,
            notes,
            clients: watch::Sender::new(clients),
            partitions,
            availability: watch::Sender::new(Availability::Unavailable),
            obstacles: Mutex::new(Obstacles {
                in_sync: in_sync(&settings),
                ..Obstacles::default()
            }),
            end: watch::Sender::new(None),
            trouble,
        });
        shared.reach_leaders(&view).await?;
        shared.notes.forget_error();
        shared.update_availability();
        tokio::spawn(watch(Arc::downgrade(&shared)));
        tokio::spawn(trim(Arc::downgrade(&shared), pace.trim_interval));
        Ok(Self { shared })
    }

    /// Deletes the topic.
    #[cfg(test)]
    pub(super) async fn delete_topic(&self) -> Result<(), String> {
        tests::delete_topic(&self.shared.options).await
    }

    fn partition(&self, partition: Partition) -> Result<&Arc<PartitionLog>, StoreError> {
        self.shared
            .partitions
            .get(partition as usize)
            .ok_or_else(|| {
                StoreError::Failed(format!("the event log has no partition {partition}"))
            })
    }
}

/// Makes the clients, and looks at the topic. Blocks.
fn start(
    options: &KafkaOptions,
    fetch_wait: Duration,
    notes: Arc<Notes>,
) -> Result<(Arc<Clients>, View, String), KafkaError> {
    let clients = Arc::new(Clients::new(options, fetch_wait, notes)?);
    let brokers = options.brokers.join(",");
    let view = view(&clients, options).map_err(|error| match error {
        ViewError::NoTopic => KafkaError::NoTopic(options.topic.clone()),
        ViewError::Failed(reason) => KafkaError::Unreachable {
            brokers: brokers.clone(),
            reason,
        },
    })?;
    let failed = |reason| KafkaError::Unreachable { brokers, reason };
    let cluster = clients.cluster_id().map_err(failed)?;
    Ok((clients, view, cluster))
}

/// Asks one partition of each leader for its offsets. Returns the errors.
async fn ask_leaders(clients: &Arc<Clients>, view: &View) -> Vec<(i32, Option<String>)> {
    let partition_of = |leader| {
        let mut partitions = view.partitions.iter();
        partitions.position(|one| one.leader == Some(leader))
    };
    let leaders = view.leaders().into_iter();
    let asked = leaders.filter_map(|leader| Some((leader, partition_of(leader)?)));
    let answers = asked.map(async |(leader, partition)| {
        let clients = Arc::clone(clients);
        let offsets = blocking(move || clients.offsets(partition as Partition)).await;
        (leader, offsets.err())
    });
    join_all(answers).await
}

/// Errors for the leaders that did not answer [`ask_leaders`].
fn silent_leaders(
    answers: &[(i32, Option<String>)],
    view: &View,
    options: &KafkaOptions,
) -> Vec<KafkaError> {
    let failed = |(leader, error): &(i32, Option<String>)| {
        let address = view.brokers.iter().find(|(id, _)| id == leader);
        Some(KafkaError::Advertised {
            brokers: options.brokers.join(","),
            broker: *leader,
            address: address.map_or_else(String::new, |(_, address)| address.clone()),
            reason: error.clone()?,
        })
    };
    answers.iter().filter_map(failed).collect()
}

async fn read_settings(
    clients: &Arc<Clients>,
    options: &KafkaOptions,
) -> Result<Settings, KafkaError> {
    let settings = topic::settings(clients, &options.topic).await;
    settings.map_err(|reason| KafkaError::Topic {
        topic: options.topic.clone(),
        reason,
    })
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.shared.finish(End::Closed);
        // The end of the clients takes some 100 ms. Without a thread it is waited for here.
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("kafka-end".to_owned());
        let _without = thread.spawn(move || drop(shared));
    }
}

impl Shared {
    fn clients(&self) -> Arc<Clients> {
        Arc::clone(&self.clients.borrow())
    }

    fn watch_clients(&self) -> watch::Receiver<Arc<Clients>> {
        self.clients.subscribe()
    }

    fn check_open(&self) -> Result<(), StoreError> {
        match &*self.end.borrow() {
            None => Ok(()),
            Some(End::Closed) => Err(StoreError::Closed),
            Some(End::Failed(reason)) => Err(StoreError::Corrupt(reason.clone())),
        }
    }

    async fn closed(&self) {
        // Fails only if the sender is gone, and it is in `self`.
        let _ = self.end.subscribe().wait_for(Option::is_some).await;
    }

    fn finish(&self, end: End) {
        self.end.send_if_modified(|current| {
            let is_first = current.is_none();
            current.get_or_insert(end);
            is_first
        });
        self.availability.send_replace(Availability::Unavailable);
    }

    /// Ends the log if a client is connected to another cluster.
    fn check_cluster(&self) -> Result<(), StoreError> {
        if let Some(message) = self.notes.other_cluster() {
            self.finish(End::Failed(format!(
                "another Kafka cluster answers: {message}"
            )));
        }
        self.check_open()
    }

    /// Asks one partition of each leader for its offsets, and opens the partitions of those that
    /// answer.
    ///
    /// # Errors
    ///
    /// `Advertised` if none answers.
    async fn reach_leaders(self: &Arc<Self>, view: &View) -> Result<(), KafkaError> {
        let leaders = view.leaders();
        let brokers = self.options.brokers.join(",");
        let clients = self.clients();
        let made = blocking({
            let (clients, leaders, cluster) =
                (clients.clone(), leaders.clone(), self.cluster.clone());
            move || clients.make_producers(&leaders, &cluster)
        });
        made.await.map_err(|reason| KafkaError::Unreachable {
            brokers: brokers.clone(),
            reason,
        })?;
        let answers = ask_leaders(&clients, view).await;
        for (partition, replicas) in self.partitions.iter().zip(&view.partitions) {
            partition.set_leader(replicas.leader);
            let reached = |(leader, error): &(i32, Option<String>)| {
                Some(*leader) == replicas.leader && error.is_none()
            };
            if answers.iter().any(reached) {
                partition.resume(u64::MAX);
            }
        }
        let failures = silent_leaders(&answers, view, &self.options);
        let some_answered = failures.len() < answers.len();
        for failure in failures {
            if !some_answered {
                return Err(failure);
            }
            tracing::warn!("{failure}");
        }
        Ok(())
    }

    fn has_trouble(&self) -> bool {
        let in_doubt = |one: &Arc<PartitionLog>| matches!(one.state(), State::Doubt(_));
        lock(&self.obstacles).first().is_some() || self.partitions.iter().any(in_doubt)
    }

    fn update_availability(&self) {
        let is_open = self.end.borrow().is_none()
            && lock(&self.obstacles).first().is_none()
            && self.partitions.iter().any(|one| one.state() == State::Open);
        let availability = match is_open {
            true => Availability::Open,
            false => Availability::Unavailable,
        };
        self.availability.send_if_modified(|current| {
            let is_new = *current != availability;
            *current = availability;
            is_new
        });
    }

    /// Looks at credentials, leaders and replicas, and probes the partitions that are in doubt.
    async fn refresh(self: &Arc<Self>) {
        self.renew_clients().await;
        let clients = self.clients();
        let view = blocking({
            let (shared, clients) = (Arc::clone(self), Arc::clone(&clients));
            move || shared.look(&clients)
        });
        let Some(view) = view.await else {
            return;
        };
        let in_sync = lock(&self.obstacles).in_sync;
        let due = self
            .partitions
            .iter()
            .filter(|one| one.awaits_probe() && view.is_writable(one.number, in_sync));
        join_all(due.map(async |partition| {
            let (clients, number) = (Arc::clone(&clients), partition.number);
            let Ok((_, mut high)) = blocking(move || clients.offsets(number)).await else {
                return;
            };
            if end_of(high) < partition.known_end() {
                match self.look_again(number).await {
                    Ok((_, again)) => high = again,
                    Err(_) => return,
                }
            }
            match partition.resume(high) {
                State::Open => {
                    tracing::info!(partition = number, "the event log takes entries again");
                }
                State::Corrupt(reason) => tracing::error!("{reason}"),
                State::Doubt(_) => {}
            }
        }))
        .await;
    }

    /// Offsets of the first entry of a partition, and after the last one that is committed, if
    /// its leader is known to know them.
    async fn offsets(self: &Arc<Self>, number: Partition) -> Result<(u64, u64), String> {
        let shared = Arc::clone(self);
        let in_sync = lock(&self.obstacles).in_sync;
        let offsets = blocking(move || {
            let clients = shared.clients();
            let view = view(&clients, &shared.options).map_err(|error| match error {
                ViewError::NoTopic => "the topic does not exist".to_owned(),
                ViewError::Failed(reason) => reason,
            })?;
            match view.is_writable(number, in_sync) {
                true => clients.offsets(number),
                false => Err("too few replicas are in sync to know its end".to_owned()),
            }
        });
        offsets.await
    }

    /// Asks for the offsets once more, because a partition seems to end before an entry that this
    /// instance knew: a broker that was stopped, and does not know yet that it leads it no more,
    /// answers with the end that it had.
    async fn look_again(self: &Arc<Self>, number: Partition) -> Result<(u64, u64), String> {
        sleep(LOOK_AGAIN).await;
        self.offsets(number).await
    }

    /// Takes over the state of the topic. None if it is not known. Blocks.
    fn look(&self, clients: &Clients) -> Option<View> {
        let result = view(clients, &self.options);
        let (view, violation) = match result {
            Ok(view) if view.partitions.len() < self.partitions.len() => {
                let (now, before) = (view.partitions.len(), self.partitions.len());
                let violation = format!("it has {now} partitions and had {before}");
                (Some(view), Some(violation))
            }
            Ok(view) => {
                let violation = view.violation.clone();
                (Some(view), violation)
            }
            Err(ViewError::NoTopic) => (None, Some("it does not exist".to_owned())),
            Err(ViewError::Failed(reason)) => {
                tracing::debug!(reason, "the topic cannot be looked at");
                return None;
            }
        };
        let violation = violation.map(|violation| self.violation(&violation));
        let mut obstacles = lock(&self.obstacles);
        note_obstacle(&mut obstacles.replicas, violation);
        drop(obstacles);
        let view = view?;
        for (partition, replicas) in self.partitions.iter().zip(&view.partitions) {
            partition.set_leader(replicas.leader);
        }
        if let Err(reason) = clients.make_producers(&view.leaders(), &self.cluster) {
            tracing::warn!(reason, "cannot make a producer");
        }
        Some(view)
    }

    fn violation(&self, violation: &str) -> String {
        format!(
            "the Kafka topic {} could lose events: {violation}",
            self.options.topic
        )
    }

    async fn check_settings(&self) {
        let settings = match topic::settings(&self.clients(), &self.options.topic).await {
            Ok(settings) => settings,
            Err(reason) => {
                tracing::warn!(reason, "the settings of the topic cannot be checked");
                return;
            }
        };
        let violations = check_settings(&settings, self.options.allow_single_replica);
        let violation = (!violations.is_empty()).then(|| self.violation(&violations.join("; ")));
        let mut obstacles = lock(&self.obstacles);
        obstacles.in_sync = in_sync(&settings);
        note_obstacle(&mut obstacles.settings, violation);
    }

    /// Makes new clients if credentials have changed, and uses them if they work.
    async fn renew_clients(self: &Arc<Self>) {
        let old = self.clients();
        let shared = Arc::clone(self);
        let new = blocking(move || {
            let credentials = Credentials::read(&shared.options)?;
            if credentials == *old.credentials() {
                return Ok(None);
            }
            let (new, view, cluster) = start(
                &shared.options,
                shared.fetch_wait,
                Arc::clone(&shared.notes),
            )?;
            new.make_producers(&view.leaders(), &cluster)
                .map(|()| Some(new))
                .map_err(|reason| KafkaError::Unreachable {
                    brokers: shared.options.brokers.join(","),
                    reason,
                })
        });
        match new.await {
            Ok(None) => {}
            Ok(Some(new)) => {
                tracing::info!("new credentials for Kafka are in use");
                let old = self.clients.send_replace(new);
                // Partitions leave the old producers once nothing is in flight.
                blocking(move || old.flush(CLOSE_TIMEOUT)).await;
            }
            Err(error) => tracing::warn!(
                "new credentials for Kafka do not work, the old ones are used: {error}"
            ),
        }
    }

    /// Deletes entries of partitions, each below an offset. Returns the partitions that are done.
    async fn delete(&self, targets: &[(Partition, u64)]) -> Vec<Partition> {
        let clients = self.clients();
        let topic = &self.options.topic;
        let asked = Arc::clone(&clients);
        let deleted = match blocking(move || asked.brokers()).await {
            Ok((_, leaders)) => clients.admin().delete(topic, targets, &leaders).await,
            Err(reason) => Err(AdminError::Other(reason)),
        };
        let deleted = match deleted {
            Ok(deleted) => deleted,
            Err(error) => {
                tracing::warn!(%error, "entries that are not needed cannot be deleted from the topic");
                return Vec::new();
            }
        };
        let mut done = Vec::new();
        for (partition, outcome) in deleted {
            match outcome {
                Ok(()) => done.push(partition),
                Err(error) => tracing::warn!(
                    %error,
                    partition,
                    "entries that are not needed cannot be deleted from the topic (the right Delete is required)"
                ),
            }
        }
        done
    }
}

/// Sets a reason that no partition takes entries, and logs a change.
fn note_obstacle(current: &mut Option<String>, new: Option<String>) {
    if *current == new {
        return;
    }
    match &new {
        Some(violation) => tracing::error!("no events are accepted: {violation}"),
        None => tracing::info!("the topic keeps all events again"),
    }
    *current = new;
}

/// Looks at the topic from time to time, and more often while something is wrong.
async fn watch(shared: Weak<Shared>) {
    let mut backoff = PROBE_BACKOFF;
    let (mut looked, mut settings_checked) = (Instant::now(), Instant::now());
    let (trouble, mut end) = match shared.upgrade() {
        Some(shared) => (Arc::clone(&shared.trouble), shared.end.subscribe()),
        None => return,
    };
    let mut has_trouble = false;
    loop {
        let jitter = rand::rng().random_range(0.9..1.1);
        let due = looked + if has_trouble { backoff } else { REFRESH }.mul_f64(jitter);
        let is_calm = tokio::select! {
            () = sleep_until(due) => !has_trouble,
            () = trouble.notified() => false,
            _ = end.wait_for(Option::is_some) => return,
        };
        if let Some(shared) = shared.upgrade() {
            shared.update_availability();
        }
        // A partition that fails again and again is not probed at the rate of its appends.
        backoff = match is_calm {
            true => PROBE_BACKOFF,
            false => (2 * backoff).min(MAX_PROBE_BACKOFF),
        };
        tokio::select! {
            () = sleep_until(looked + backoff.mul_f64(jitter)) => {}
            _ = end.wait_for(Option::is_some) => return,
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // Clients and leaders are not touched any more once the log has ended.
        if shared.check_cluster().is_err() {
            return;
        }
        shared.refresh().await;
        looked = Instant::now();
        let is_violated = lock(&shared.obstacles).settings.is_some();
        let interval = if is_violated { REFRESH } else { CHECK_SETTINGS };
        if settings_checked.elapsed() >= interval {
            settings_checked = Instant::now();
            shared.check_settings().await;
        }
        shared.update_availability();
        has_trouble = shared.has_trouble();
    }
}

/// Deletes trimmed entries from time to time: those that were trimmed before the last time.
async fn trim(shared: Weak<Shared>, interval: Duration) {
    let Some(mut end) = shared.upgrade().map(|shared| shared.end.subscribe()) else {
        return;
    };
    let mut seen: Vec<u64> = Vec::new();
    let mut deleted: Vec<u64> = Vec::new();
    loop {
        tokio::select! {
            () = sleep(interval) => {}
            _ = end.wait_for(Option::is_some) => return,
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let now = shared.partitions.iter().map(|one| one.trimmed_below().0);
        let mut ready = std::mem::replace(&mut seen, now.collect());
        ready.resize(seen.len(), 0);
        deleted.resize(seen.len(), 0);
        for ((ready, deleted), now) in ready.iter_mut().zip(&mut deleted).zip(&seen) {
            // It falls only when the partition is another log than before.
            if now < ready {
                (*ready, *deleted) = (0, 0);
            }
        }
        let targets: Vec<(Partition, u64)> = (0..)
            .zip(ready.iter().zip(&deleted))
            .filter(|(_, (ready, deleted))| ready > deleted)
            .map(|(partition, (ready, _))| (partition, offset_of(Position(*ready))))
            .filter(|(_, offset)| *offset > 0)
            .collect();
        if targets.is_empty() {
            continue;
        }
        for partition in shared.delete(&targets).await {
            let at = partition as usize;
            if let (Some(deleted), Some(ready)) = (deleted.get_mut(at), ready.get(at)) {
                *deleted = *ready;
            }
        }
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    fn partitions(&self) -> u32 {
        self.shared.partitions.len() as u32
    }

    fn max_append_bytes(&self) -> usize {
        APPEND_BYTES
    }

    async fn append(&self, partition: Partition, entries: Vec<NewEntry>) -> Result<(), StoreError> {
        self.shared.check_cluster()?;
        let partition = self.partition(partition)?;
        if let Some(violation) = lock(&self.shared.obstacles).first() {
            return Err(StoreError::Failed(violation.clone()));
        }
        if entries.is_empty() {
            return Ok(());
        }
        let stored = encode(&entries)?;
        drop(entries);
        let clients = self.shared.clients();
        let answer = partition.hand_over(&clients, &self.shared.options.topic, &stored)?;
        drop((stored, clients));
        let ended = |_| StoreError::Unavailable("the Kafka client has ended".to_owned());
        answer.await.map_err(ended)??;
        match self.shared.notes.other_cluster() {
            Some(message) => Err(StoreError::Unavailable(message)),
            None => Ok(()),
        }
    }

    async fn reader(
        &self,
        partition: Partition,
        from: Position,
    ) -> Result<Box<dyn LogReader>, StoreError> {
        self.shared.check_cluster()?;
        let partition = Arc::clone(self.partition(partition)?);
        if matches!(partition.state(), State::Corrupt(_)) {
            // A later reader has a new lease, and verifies the log by its anchor.
            let number = partition.number;
            let offsets = self.shared.offsets(number).await;
            let (low, high) = offsets.map_err(|reason| unavailable(number, &reason))?;
            if (end_of(low)..=end_of(high)).contains(&from) {
                partition.begin_anew(high)?;
            }
        }
        Ok(Box::new(Reader::new(
            Arc::clone(&self.shared),
            partition,
            from,
        )))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.shared.check_cluster()?;
        let partition = self.partition(partition)?;
        let number = partition.number;
        let known = partition.known_end();
        let failed = |reason: String| unavailable(number, &reason);
        let offsets = self.shared.offsets(number).await;
        let (mut low, mut high) = offsets.map_err(failed)?;
        // The end that a corrupt partition had is the one of another log.
        if !matches!(partition.state(), State::Corrupt(_)) {
            if end_of(high) < known {
                (low, high) = self.shared.look_again(number).await.map_err(failed)?;
            }
            if end_of(high) < known {
                return Err(partition.cut(known, end_of(high)));
            }
            partition.learn_end(end_of(high));
        }
        Ok(Bounds {
            start: end_of(low),
            end: end_of(high),
        })
    }

    fn known_end(&self, partition: Partition) -> Position {
        let partition = self.shared.partitions.get(partition as usize);
        partition.map_or(end_of(0), |partition| partition.known_end())
    }

    async fn trim(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        self.shared.check_open()?;
        self.partition(partition)?.trim(below);
        Ok(())
    }

    async fn remove(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        let Bounds { start, end } = self.bounds(partition).await?;
        let below = below.min(end);
        if start >= below {
            return Ok(());
        }
        // Readers of this instance pass over what is missing.
        self.trim(partition, below).await?;
        let deleted = self.shared.delete(&[(partition, offset_of(below))]).await;
        if deleted.is_empty() {
            return Err(unavailable(partition, "its entries cannot be deleted"));
        }
        match self.bounds(partition).await?.start {
            start if start >= below => Ok(()),
            start => Err(unavailable(
                partition,
                &format!(
                    "it begins at {} after a deletion below {}",
                    start.0, below.0
                ),
            )),
        }
    }

    fn availability(&self) -> watch::Receiver<Availability> {
        self.shared.availability.subscribe()
    }

    async fn ended(&self) -> Option<Failure> {
        let mut end = self.shared.end.subscribe();
        // Fails only if the sender is gone, and it is in `self`.
        let end = end.wait_for(Option::is_some).await;
        match end.as_deref() {
            Ok(Some(End::Failed(reason))) => Some(Failure::Lost(reason.clone())),
            _ => None,
        }
    }

    async fn close(&self) {
        self.shared.finish(End::Closed);
        let clients = self.shared.clients();
        blocking(move || clients.flush(CLOSE_TIMEOUT)).await;
    }
}
