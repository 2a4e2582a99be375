//! Clients of the library, and the settings that all of them share.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    admin::AdminClient,
    client::{Client, OAuthToken},
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, base_consumer::PartitionQueue},
    error::KafkaError as ClientError,
    metadata::Metadata,
    producer::{Producer as _, ProducerContext, ThreadedProducer},
};
use tokio::sync::Notify;

use secrecy::ExposeSecret;

use super::{
    KafkaError, KafkaOptions, KafkaSecurity, Mechanism, Password, Tls, Tokens,
    admin::{Admin, Broker, TokenAdmin},
    lock,
    writer::{Handed, delivered},
};
use crate::{secret_file::check_permissions, store::ports::Partition};

/// Time that a broker has for metadata, offsets and the identity of the cluster.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which an entry that is not committed is in doubt. Every partition with a replica on a
/// broker that was killed commits nothing until the cluster has given that broker up, after about
/// 9 s (`broker.session.timeout.ms`).
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(14);
/// Time after which a broker that does not answer is left.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(6);
/// Time that a broker waits for the other replicas.
const REPLICATION_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are fetched ahead for each partition, apart from the last answer. With 64
/// partitions a backlog takes twice 64 MiB.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// Most bytes of one answer to a fetch, which has several partitions.
const FETCH_BYTES: usize = 16 << 20;
/// Bytes of entries that wait in one producer; more than the appends in progress have.
const QUEUE_BYTES: usize = 64 << 20;
/// `max.message.bytes` that the topic must have at least, and most bytes of a batch.
pub(super) const MESSAGE_BYTES: usize = 4 << 20;
/// Longest time between two looks at events of a consumer.
const POLL: Duration = Duration::from_millis(100);

/// Callbacks of a client.
pub(super) struct Context {
    notes: Arc<Notes>,
    tokens: Option<Tokens>,
}

/// Observations of clients.
#[derive(Default)]
pub(super) struct Notes {
    /// Last error, for the message of a call that failed without a reason of its own.
    error: Mutex<Option<String>>,
    /// Message of a client that found itself connected to another cluster.
    other_cluster: Mutex<Option<String>>,
}

impl Notes {
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    pub(super) fn other_cluster(&self) -> Option<String> {
        lock(&self.other_cluster).clone()
    }

    pub(super) fn forget_error(&self) {
        lock(&self.error).take();
    }

    /// The error of a call, with the last one of the connections.
    pub(super) fn explain(&self, error: &ClientError) -> String {
        match (error.rdkafka_error_code(), self.error()) {
            (Some(code), Some(reason)) => format!("{code}; {reason}"),
            (Some(code), None) => code.to_string(),
            (None, _) => error.to_string(),
        }
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Is called with the mechanism OAUTHBEARER, after 80% of the life that it gave, and 10 s
    /// after an error.
    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self.tokens.as_ref().ok_or("there are no tokens")?;
        let now = SystemTime::now();
        let token = tokens.current(now)?;
        Ok(OAuthToken {
            token: token.value.expose_secret().to_owned(),
            // Brokers take it from the token.
            principal_name: "siem-relay".to_owned(),
            lifetime_ms: token.library_expiry(now),
        })
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The library compares the identity in every metadata answer, and only logs a change.
        if facility == "CLUSTERID" {
            lock(&self.notes.other_cluster).get_or_insert_with(|| message.to_owned());
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, "Kafka client: {message}"),
            _ => tracing::debug!(facility, "Kafka client: {message}"),
        }
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, "Kafka client: {reason}");
        // Follows the error of each broker, and says less.
        if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::AllBrokersDown) {
            *lock(&self.notes.error) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Handed>;

    fn delivery(&self, result: &rdkafka::message::DeliveryResult<'_>, handed: Box<Handed>) {
        let result = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error),
        };
        delivered(&handed, result);
    }
}

/// Contents of the files with credentials, to notice a change.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Credentials {
    /// Reads all files that the options name.
    pub(super) fn read(options: &KafkaOptions) -> Result<Self, KafkaError> {
        let mut files = BTreeMap::new();
        let secrets = options.security.secret_files();
        for path in options.security.files() {
            if secrets.contains(&path) {
                check_permissions(path).map_err(|error| KafkaError::File {
                    path: path.to_owned(),
                    source: error.into(),
                })?;
            }
            let content = read(path)?;
            files.insert(path.to_owned(), content);
        }
        Ok(Self { files })
    }
}

/// Reads a file with credentials.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, KafkaError> {
    let failed = |source: io::Error| KafkaError::File {
        path: path.to_owned(),
        source,
    };
    let content = fs::read(path).map_err(failed)?;
    match content.is_empty() {
        true => Err(failed(io::Error::other("it is empty"))),
        false => Ok(content),
    }
}

/// Settings of every client. Their values may be secret.
fn settings(options: &KafkaOptions) -> Result<ClientConfig, KafkaError> {
    let mut config = ClientConfig::new();
    let millis = |time: Duration| time.as_millis().to_string();
    config
        .set("bootstrap.servers", options.brokers.join(","))
        .set("client.id", "siem-relay")
        .set("allow.auto.create.topics", "false")
        .set("socket.timeout.ms", millis(SOCKET_TIMEOUT))
        .set(
            "socket.connection.setup.timeout.ms",
            millis(REQUEST_TIMEOUT),
        )
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "100")
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("log.connection.close", "false");
    match &options.security {
        KafkaSecurity::Plaintext => {
            config.set("security.protocol", "plaintext");
        }
        KafkaSecurity::Tls(tls) => {
            config.set("security.protocol", "ssl");
            set_tls(&mut config, tls)?;
        }
        KafkaSecurity::Sasl {
            mechanism,
            user,
            password,
            tls,
        } => {
            let password = match password {
                Password::Given(password) => password.expose_secret().to_owned(),
                Password::File(path) => {
                    String::from_utf8(read(path)?).map_err(|_| KafkaError::File {
                        path: path.clone(),
                        source: io::Error::other("it is not text"),
                    })?
                }
            };
            config
                .set("security.protocol", "sasl_ssl")
                .set(
                    "sasl.mechanism",
                    match mechanism {
                        Mechanism::Plain => "PLAIN",
                        Mechanism::ScramSha256 => "SCRAM-SHA-256",
                        Mechanism::ScramSha512 => "SCRAM-SHA-512",
                    },
                )
                .set("sasl.username", user)
                .set("sasl.password", password.trim_end_matches(['\r', '\n']));
            set_tls(&mut config, tls)?;
        }
        KafkaSecurity::Token { tls, .. } => {
            config
                .set("security.protocol", "sasl_ssl")
                .set("sasl.mechanism", "OAUTHBEARER");
            set_tls(&mut config, tls)?;
        }
    }
    Ok(config)
}

fn set_tls(config: &mut ClientConfig, tls: &Tls) -> Result<(), KafkaError> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| KafkaError::File {
                path: path.to_owned(),
                source: io::Error::other("its path is not UTF-8"),
            })
    };
    if let Some(path) = &tls.ca_file {
        config.set("ssl.ca.location", text(path)?);
    }
    if let Some(certificate) = &tls.certificate {
        config
            .set("ssl.certificate.location", text(&certificate.cert_file)?)
            .set("ssl.key.location", text(&certificate.key_file)?);
    }
    Ok(())
}

fn library_admin(settings: &ClientConfig) -> Result<AdminClient<Context>, KafkaError> {
    let mut settings = settings.clone();
    // Nothing takes its log lines away.
    settings.set_log_level(RDKafkaLogLevel::Emerg);
    let context = Context {
        notes: Arc::default(),
        tokens: None,
    };
    let client = settings.create_with_context(context);
    client.map_err(KafkaError::settings)
}

/// All clients that were made with the same credentials.
pub(super) struct Clients {
    settings: ClientConfig,
    fetch_wait: Duration,
    credentials: Credentials,
    topic: String,
    notes: Arc<Notes>,
    tokens: Option<Tokens>,
    admin: Admin,
    /// Clients by the broker that leads the partitions which are written through them. After one
    /// message that timed out, the library sends nothing more until all requests of the client
    /// have ended, so a broker that does not answer must hold up only its own partitions; with a
    /// client for each partition there would be too many connections.
    producers: Mutex<BTreeMap<i32, Arc<Producer>>>,
    consumers: Mutex<Vec<Arc<Consumer>>>,
}

impl Clients {
    /// Makes a consumer and a client of an administrator. Blocks for some milliseconds.
    pub(super) fn new(
        options: &KafkaOptions,
        fetch_wait: Duration,
        notes: Arc<Notes>,
    ) -> Result<Self, KafkaError> {
        let credentials = Credentials::read(options)?;
        let settings = settings(options)?;
        let (tokens, admin) = match &options.security {
            KafkaSecurity::Token { tokens, tls } => {
                let admin = TokenAdmin::new(tokens.clone(), tls)?;
                (Some(tokens.clone()), Admin::Own(admin))
            }
            _ => (None, Admin::Library(library_admin(&settings)?)),
        };
        let clients = Self {
            settings,
            fetch_wait,
            credentials,
            topic: options.topic.clone(),
            notes,
            tokens,
            admin,
            producers: Mutex::default(),
            consumers: Mutex::default(),
        };
        let consumer = clients.consumer().map_err(KafkaError::settings)?;
        lock(&clients.consumers).push(consumer);
        Ok(clients)
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(super) fn admin(&self) -> &Admin {
        &self.admin
    }

    fn context(&self) -> Context {
        Context {
            notes: Arc::clone(&self.notes),
            tokens: self.tokens.clone(),
        }
    }

    fn consumer(&self) -> Result<Arc<Consumer>, ClientError> {
        let mut settings = self.settings.clone();
        settings
            // Required to assign partitions; no group is joined and nothing is stored in it.
            .set("group.id", "siem-relay")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_uncommitted")
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", self.fetch_wait.as_millis().to_string())
            .set("fetch.error.backoff.ms", "200")
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.message.max.bytes", READ_AHEAD_BYTES.to_string())
            .set("fetch.max.bytes", FETCH_BYTES.to_string())
            .set("receive.message.max.bytes", (2 * FETCH_BYTES).to_string())
            .set("queued.min.messages", "1000")
            .set(
                "queued.max.messages.kbytes",
                (READ_AHEAD_BYTES >> 10).to_string(),
            )
            .set("max.poll.interval.ms", "86400000");
        Consumer::new(&settings, self.context())
    }

    /// The client for calls that have no client of their own.
    fn any(&self) -> Option<Arc<Consumer>> {
        lock(&self.consumers).first().cloned()
    }

    /// Makes a call with a client that is not busy with other calls. Blocks.
    fn call<T>(
        &self,
        call: impl FnOnce(&Client<Context>) -> Result<T, ClientError>,
    ) -> Result<T, String> {
        let consumer = self.any().ok_or("there is no client")?;
        call(consumer.client.client()).map_err(|error| self.notes.explain(&error))
    }

    /// Describes the topic. Blocks.
    pub(super) fn metadata(&self) -> Result<Metadata, String> {
        self.call(|client| client.fetch_metadata(Some(&self.topic), REQUEST_TIMEOUT))
    }

    /// Brokers that are known, and the leader of each partition. Blocks.
    pub(super) fn brokers(&self) -> Result<(Vec<Broker>, BTreeMap<Partition, Broker>), String> {
        let metadata = self.metadata()?;
        let brokers = metadata.brokers().iter();
        let brokers: Vec<Broker> = brokers
            .map(|one| (one.id(), format!("{}:{}", one.host(), one.port())))
            .collect();
        let topics = metadata.topics().iter();
        let partitions = topics.flat_map(|topic| topic.partitions());
        let leaders = partitions.filter_map(|partition| {
            let leader = brokers.iter().find(|(id, _)| *id == partition.leader())?;
            Some((partition.id() as Partition, leader.clone()))
        });
        Ok((brokers.clone(), leaders.collect()))
    }

    /// Offsets of the first entry of a partition, and after the last one. Blocks.
    pub(super) fn offsets(&self, partition: Partition) -> Result<(u64, u64), String> {
        let (low, high) = self.call(|client| {
            client.fetch_watermarks(&self.topic, partition as i32, REQUEST_TIMEOUT)
        })?;
        match (u64::try_from(low), u64::try_from(high)) {
            (Ok(low), Ok(high)) if low <= high => Ok((low, high)),
            _ => Err(format!("the broker answers with offsets {low} to {high}")),
        }
    }

    /// Identity of the cluster. Blocks.
    pub(super) fn cluster_id(&self) -> Result<String, String> {
        let consumer = self.any().ok_or("there is no client")?;
        self.cluster_id_by(consumer.client.client())
    }

    fn cluster_id_by(&self, client: &Client<Context>) -> Result<String, String> {
        let id = client.fetch_cluster_id(REQUEST_TIMEOUT);
        id.ok_or_else(|| {
            let reason = self.notes.error();
            reason.unwrap_or_else(|| "no broker names the identity of the cluster".to_owned())
        })
    }

    /// The producer for the partitions that a broker leads.
    pub(super) fn producer(&self, broker: i32) -> Option<Arc<Producer>> {
        lock(&self.producers).get(&broker).cloned()
    }

    /// Makes the producers for brokers that have none, or one that cannot be used any more.
    /// Blocks.
    pub(super) fn make_producers(
        &self,
        brokers: &BTreeSet<i32>,
        cluster: &str,
    ) -> Result<(), String> {
        lock(&self.producers).retain(|_, producer| producer.is_usable());
        for broker in brokers {
            if lock(&self.producers).contains_key(broker) {
                continue;
            }
            let producer =
                Producer::new(&self.settings, self.context()).map_err(|error| error.to_string())?;
            // Before it can ack anything.
            let found = self.cluster_id_by(producer.client.client())?;
            if found != cluster {
                let message =
                    format!("the brokers belong to the cluster {found}, not to {cluster}");
                lock(&self.notes.other_cluster).get_or_insert(message.clone());
                return Err(message);
            }
            lock(&self.producers).insert(*broker, Arc::new(producer));
        }
        Ok(())
    }

    /// Waits until nothing is in flight, for a limited time. Blocks.
    pub(super) fn flush(&self, time: Duration) {
        let producers: Vec<_> = lock(&self.producers).values().cloned().collect();
        for producer in producers {
            if let Err(error) = producer.client.flush(time) {
                tracing::warn!(%error, "entries are not confirmed before the Kafka client ends");
            }
        }
    }

    /// Begins to read a partition at an offset.
    pub(super) fn read(
        self: &Arc<Self>,
        partition: Partition,
        offset: u64,
    ) -> Result<Source, ClientError> {
        // One client reads a partition once; further readers are rare.
        let mut consumers = lock(&self.consumers);
        let free = |consumer: &&Arc<Consumer>| !lock(&consumer.partitions).contains(&partition);
        let consumer = match consumers.iter().find(free) {
            Some(consumer) => Arc::clone(consumer),
            None => {
                let consumer = self.consumer()?;
                consumers.push(Arc::clone(&consumer));
                consumer
            }
        };
        lock(&consumer.partitions).insert(partition);
        drop(consumers);
        let arrived = Arc::new(Notify::new());
        let mut source = Source {
            queue: consumer
                .client
                .split_partition_queue(&self.topic, partition as i32),
            arrived,
            consumer,
            clients: Arc::clone(self),
            partition,
        };
        let arrived = Arc::clone(&source.arrived);
        if let Some(queue) = &mut source.queue {
            queue.set_nonempty_callback(move || arrived.notify_one());
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(
            &self.topic,
            partition as i32,
            Offset::Offset(offset as i64),
        )?;
        source.consumer.client.incremental_assign(&assignment)?;
        Ok(source)
    }

    /// Ends the reading of a partition by one of the clients.
    fn release(&self, consumer: &Arc<Consumer>, partition: Partition) {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition(&self.topic, partition as i32);
        if let Err(error) = consumer.client.incremental_unassign(&assignment) {
            tracing::debug!(%error, partition, "a partition was not assigned");
        }
        let mut consumers = lock(&self.consumers);
        let mut partitions = lock(&consumer.partitions);
        partitions.remove(&partition);
        let is_idle = partitions.is_empty();
        drop(partitions);
        // The first one stays for other calls.
        if is_idle
            && let Some(at) = consumers
                .iter()
                .skip(1)
                .position(|one| Arc::ptr_eq(one, consumer))
        {
            consumers.remove(at + 1);
        }
    }
}

/// A client that writes.
pub(super) struct Producer {
    pub(super) client: ThreadedProducer<Context>,
}

impl Producer {
    fn new(settings: &ClientConfig, context: Context) -> Result<Self, ClientError> {
        let mut settings = settings.clone();
        settings
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set(
                "message.timeout.ms",
                DELIVERY_TIMEOUT.as_millis().to_string(),
            )
            .set(
                "request.timeout.ms",
                REPLICATION_TIMEOUT.as_millis().to_string(),
            )
            .set("retry.backoff.ms", "100")
            // Entries are batches already, and compressed.
            .set("linger.ms", "0")
            .set("compression.type", "none")
            .set("message.max.bytes", MESSAGE_BYTES.to_string())
            .set(
                "queue.buffering.max.kbytes",
                (QUEUE_BYTES >> 10).to_string(),
            );
        let client = settings.create_with_context(context)?;
        Ok(Self { client })
    }

    /// Whether the library gives the client up.
    fn is_usable(&self) -> bool {
        self.client.client().fatal_error().is_none()
    }
}

/// A client that reads each partition at most once.
struct Consumer {
    client: Arc<BaseConsumer<Context>>,
    /// Partitions that are read.
    partitions: Mutex<BTreeSet<Partition>>,
    is_unused: Arc<AtomicBool>,
}

impl Consumer {
    fn new(settings: &ClientConfig, context: Context) -> Result<Arc<Self>, ClientError> {
        let client: Arc<BaseConsumer<Context>> = Arc::new(settings.create_with_context(context)?);
        let is_unused = Arc::new(AtomicBool::new(false));
        let (polled, ends) = (Arc::clone(&client), Arc::clone(&is_unused));
        let poll = move || {
            while !ends.load(Ordering::Acquire) {
                // Errors were given to the context; entries arrive at the queues of partitions.
                let _error = polled.poll(POLL);
            }
            // The last owner, so that no other thread waits for the end of the client.
            drop(polled);
        };
        let thread = thread::Builder::new().name("kafka-consumer".to_owned());
        thread
            .spawn(poll)
            .map_err(|error| ClientError::ClientCreation(error.to_string()))?;
        Ok(Arc::new(Self {
            client,
            partitions: Mutex::default(),
            is_unused,
        }))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.is_unused.store(true, Ordering::Release);
    }
}

/// A partition that is being read.
pub(super) struct Source {
    /// None if the library does not know the partition.
    pub(super) queue: Option<PartitionQueue<Context>>,
    /// Is notified when something arrives in an empty queue.
    pub(super) arrived: Arc<Notify>,
    consumer: Arc<Consumer>,
    clients: Arc<Clients>,
    partition: Partition,
}

impl Source {
    /// Whether it belongs to these clients.
    pub(super) fn is_of(&self, clients: &Arc<Clients>) -> bool {
        Arc::ptr_eq(&self.clients, clients)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.clients.release(&self.consumer, self.partition);
    }
}
