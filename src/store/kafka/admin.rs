//! Requests of an administrator: settings of the topic, its creation, deletion of entries.
//!
//! The library makes them, except with tokens, which `rdkafka` gives to no client for
//! administration ([issue 757]): then they are written here. Their versions are known to brokers
//! from 2.0 to 4.x.
//!
//! [issue 757]: https://github.com/fede1024/rust-rdkafka/issues/757

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
        DeleteRecordsResponse, DescribeConfigsRequest, DescribeConfigsResponse, RequestHeader,
        ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
        SaslHandshakeResponse, TopicName,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        describe_configs_request::DescribeConfigsResource,
    },
    protocol::{Decodable, Encodable, HeaderVersion, StrBytes},
};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    types::RDKafkaErrorCode,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Tls, Tokens,
    client::{Context, read},
    token::initial_response,
    topic::Settings,
};
use crate::store::ports::Partition;

/// Time that the brokers have for a request.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of an answer.
const ANSWER_BYTES: usize = 4 << 20;
/// Value of `resource_type` for topics, and of `config_source` for settings of the topic itself.
const TOPIC: i8 = 2;
const SET_ON_TOPIC: i8 = 1;

/// Reason that a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    #[error("it exists already")]
    Exists,
    #[error("the cluster has too few brokers")]
    FewBrokers,
    #[error("a right on the topic is missing")]
    Unauthorized,
    #[error("{0}")]
    Other(String),
}

impl From<RDKafkaErrorCode> for AdminError {
    fn from(code: RDKafkaErrorCode) -> Self {
        match code {
            RDKafkaErrorCode::TopicAlreadyExists => Self::Exists,
            RDKafkaErrorCode::InvalidReplicationFactor => Self::FewBrokers,
            RDKafkaErrorCode::TopicAuthorizationFailed => Self::Unauthorized,
            code => Self::Other(code.to_string()),
        }
    }
}

impl From<rdkafka::error::KafkaError> for AdminError {
    fn from(error: rdkafka::error::KafkaError) -> Self {
        match error.rdkafka_error_code() {
            Some(code) => code.into(),
            None => Self::Other(error.to_string()),
        }
    }
}

/// Checks an error code of a broker; 0 is none.
fn check(code: i16) -> Result<(), AdminError> {
    Err(match ResponseError::try_from_code(code) {
        None if code == 0 => return Ok(()),
        Some(ResponseError::TopicAlreadyExists) => AdminError::Exists,
        Some(ResponseError::InvalidReplicationFactor) => AdminError::FewBrokers,
        Some(ResponseError::TopicAuthorizationFailed) => AdminError::Unauthorized,
        Some(error) => AdminError::Other(error.to_string()),
        None => AdminError::Other(format!("error {code}")),
    })
}

/// A broker to ask: its number, and its address as `host:port`.
pub(super) type Broker = (i32, String);

/// Client of an administrator.
pub(super) enum Admin {
    Library(AdminClient<Context>),
    Own(TokenAdmin),
}

impl Admin {
    fn options() -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(TIMEOUT))
            .operation_timeout(Some(TIMEOUT))
    }

    /// Effective settings of a topic. `brokers` are asked one after another.
    pub(super) async fn settings(
        &self,
        topic: &str,
        brokers: &[Broker],
    ) -> Result<Settings, AdminError> {
        let client = match self {
            Self::Library(client) => client,
            Self::Own(own) => return own.settings(topic, brokers).await,
        };
        let resource = ResourceSpecifier::Topic(topic);
        let described = client
            .describe_configs([&resource], &Self::options())
            .await?;
        let described = described.into_iter().next();
        let none = || AdminError::Other("the brokers describe no topic".to_owned());
        let described = described.ok_or_else(none)??;
        let entries = described.entries.into_iter().filter_map(|entry| {
            let on_topic = entry.source == ConfigSource::DynamicTopic;
            Some((entry.name, (entry.value?, on_topic)))
        });
        Ok(entries.collect())
    }

    /// Creates a topic.
    pub(super) async fn create(
        &self,
        topic: &str,
        partitions: u32,
        replication: u32,
        settings: &[(&str, &str)],
        brokers: &[Broker],
    ) -> Result<(), AdminError> {
        let client = match self {
            Self::Library(client) => client,
            Self::Own(own) => {
                let created = own.create(topic, partitions, replication, settings, brokers);
                return created.await;
            }
        };
        let replication = TopicReplication::Fixed(replication as i32);
        let mut new = NewTopic::new(topic, partitions as i32, replication);
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let created = client.create_topics([&new], &Self::options()).await?;
        match created.into_iter().next() {
            Some(Ok(_)) => Ok(()),
            Some(Err((_, code))) => Err(code.into()),
            None => Err(AdminError::Other("the cluster gives no answer".to_owned())),
        }
    }

    /// Deletes entries of partitions, each below an offset. `leaders` are the brokers that lead
    /// them. Returns the outcome for each partition that was answered.
    pub(super) async fn delete(
        &self,
        topic: &str,
        targets: &[(Partition, u64)],
        leaders: &BTreeMap<Partition, Broker>,
    ) -> Result<Vec<(Partition, Result<(), AdminError>)>, AdminError> {
        let client = match self {
            Self::Library(client) => client,
            Self::Own(own) => return Ok(own.delete(topic, targets, leaders).await),
        };
        let mut list = TopicPartitionList::new();
        for (partition, offset) in targets {
            list.add_partition_offset(topic, *partition as i32, Offset::Offset(*offset as i64))?;
        }
        let deleted = client.delete_records(&list, &Self::options()).await?;
        let outcomes = deleted.elements().into_iter().map(|element| {
            let outcome = element.error().map_err(AdminError::from);
            (element.partition() as Partition, outcome)
        });
        Ok(outcomes.collect())
    }
}

/// Client of an administrator that authenticates by tokens. It connects for each request: there
/// is one a minute.
pub(super) struct TokenAdmin {
    tokens: Tokens,
    tls: Arc<ClientConfig>,
}

/// Answer that the connection, and not the request, failed.
type Failure = String;

impl TokenAdmin {
    /// Reads the files of TLS.
    pub(super) fn new(tokens: Tokens, tls: &Tls) -> Result<Self, super::KafkaError> {
        Ok(Self {
            tokens,
            tls: Arc::new(tls_config(tls)?),
        })
    }

    async fn settings(&self, topic: &str, brokers: &[Broker]) -> Result<Settings, AdminError> {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(TOPIC)
            .with_resource_name(StrBytes::from_string(topic.to_owned()))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let mut failure = None;
        for (_, address) in brokers {
            let answer = self
                .call(address, ApiKey::DescribeConfigs, 2, &request)
                .await;
            let answer: DescribeConfigsResponse = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            let described = answer.results.into_iter().next();
            let none = || AdminError::Other("the brokers describe no topic".to_owned());
            let described = described.ok_or_else(none)?;
            check(described.error_code)?;
            let entries = described.configs.into_iter().filter_map(|entry| {
                let on_topic = entry.config_source == SET_ON_TOPIC;
                Some((entry.name.to_string(), (entry.value?.to_string(), on_topic)))
            });
            return Ok(entries.collect());
        }
        Err(AdminError::Other(failure.unwrap_or_else(no_broker)))
    }

    async fn create(
        &self,
        topic: &str,
        partitions: u32,
        replication: u32,
        settings: &[(&str, &str)],
        brokers: &[Broker],
    ) -> Result<(), AdminError> {
        let text = |text: &str| StrBytes::from_string(text.to_owned());
        let settings = settings.iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
        });
        let new = CreatableTopic::default()
            .with_name(TopicName(text(topic)))
            .with_num_partitions(partitions as i32)
            .with_replication_factor(replication as i16)
            .with_configs(settings.collect());
        let request = CreateTopicsRequest::default()
            .with_topics(vec![new])
            .with_timeout_ms(TIMEOUT.as_millis() as i32);
        let mut failure = None;
        for (_, address) in brokers {
            let answer = self.call(address, ApiKey::CreateTopics, 2, &request).await;
            let answer: CreateTopicsResponse = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            let created = answer.topics.into_iter().next();
            let none = || AdminError::Other("the cluster gives no answer".to_owned());
            let created = created.ok_or_else(none)?;
            // Brokers with ZooKeeper do not forward the request to the controller.
            if created.error_code == ResponseError::NotController.code() {
                continue;
            }
            let checked = check(created.error_code);
            return checked.map_err(|error| match (error, created.error_message) {
                (AdminError::Other(error), Some(message)) => {
                    AdminError::Other(format!("{error}: {message}"))
                }
                (error, _) => error,
            });
        }
        Err(AdminError::Other(failure.unwrap_or_else(no_broker)))
    }

    async fn delete(
        &self,
        topic: &str,
        targets: &[(Partition, u64)],
        leaders: &BTreeMap<Partition, Broker>,
    ) -> Vec<(Partition, Result<(), AdminError>)> {
        let mut of_brokers: BTreeMap<&Broker, Vec<&(Partition, u64)>> = BTreeMap::new();
        for target in targets {
            if let Some(leader) = leaders.get(&target.0) {
                of_brokers.entry(leader).or_default().push(target);
            }
        }
        let mut outcomes = Vec::new();
        for ((_, address), targets) in of_brokers {
            let partitions = targets.iter().map(|(partition, offset)| {
                DeleteRecordsPartition::default()
                    .with_partition_index(*partition as i32)
                    .with_offset(*offset as i64)
            });
            let of_topic = DeleteRecordsTopic::default()
                .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
                .with_partitions(partitions.collect());
            let request = DeleteRecordsRequest::default()
                .with_topics(vec![of_topic])
                .with_timeout_ms(TIMEOUT.as_millis() as i32);
            let answer = self.call(address, ApiKey::DeleteRecords, 1, &request).await;
            let answer: Result<DeleteRecordsResponse, Failure> = answer;
            match answer {
                Ok(answer) => {
                    let results = answer.topics.into_iter().flat_map(|one| one.partitions);
                    outcomes.extend(
                        results
                            .map(|one| (one.partition_index as Partition, check(one.error_code))),
                    );
                }
                Err(error) => outcomes.extend(
                    targets
                        .iter()
                        .map(|(partition, _)| (*partition, Err(AdminError::Other(error.clone())))),
                ),
            }
        }
        outcomes
    }

    /// Connects to a broker, makes a request and returns the answer.
    async fn call<Q, A>(
        &self,
        address: &str,
        key: ApiKey,
        version: i16,
        request: &Q,
    ) -> Result<A, Failure>
    where
        Q: Encodable + HeaderVersion,
        A: Decodable + HeaderVersion,
    {
        let call = async {
            let mut connection = self.connect(address).await?;
            connection.call(key, version, request).await
        };
        match timeout(TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|error| format!("{address}: {error}")),
            Err(_) => Err(format!(
                "{address}: no answer within {} s",
                TIMEOUT.as_secs()
            )),
        }
    }

    async fn connect(&self, address: &str) -> Result<Connection, Failure> {
        let (host, _) = address.rsplit_once(':').ok_or("it has no port")?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(text)?;
        let stream = TcpStream::connect(address).await.map_err(text)?;
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        let stream = tls.connect(name, stream).await.map_err(text)?;
        let mut connection = Connection { stream, calls: 0 };
        let mechanism = StrBytes::from_static_str("OAUTHBEARER");
        let handshake = SaslHandshakeRequest::default().with_mechanism(mechanism);
        let answer = connection.call(ApiKey::SaslHandshake, 1, &handshake);
        let answer: SaslHandshakeResponse = answer.await?;
        if answer.error_code != 0 {
            return Err("it does not accept OAUTHBEARER".to_owned());
        }
        let token = self.tokens.current(SystemTime::now())?;
        let authenticate =
            SaslAuthenticateRequest::default().with_auth_bytes(initial_response(&token).into());
        let answer = connection.call(ApiKey::SaslAuthenticate, 1, &authenticate);
        let answer: SaslAuthenticateResponse = answer.await?;
        match answer.error_code {
            0 => Ok(connection),
            _ => Err(answer.error_message.map_or_else(
                || "authentication failed".to_owned(),
                |message| format!("authentication failed: {message}"),
            )),
        }
    }
}

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

fn no_broker() -> Failure {
    "no broker takes the request".to_owned()
}

struct Connection {
    stream: TlsStream<TcpStream>,
    calls: i32,
}

impl Connection {
    async fn call<Q, A>(&mut self, key: ApiKey, version: i16, request: &Q) -> Result<A, Failure>
    where
        Q: Encodable + HeaderVersion,
        A: Decodable + HeaderVersion,
    {
        self.calls += 1;
        let header = RequestHeader::default()
            .with_request_api_key(key as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.calls)
            .with_client_id(Some(StrBytes::from_static_str("siem-relay")));
        let mut message = BytesMut::new();
        header
            .encode(&mut message, Q::header_version(version))
            .map_err(text)?;
        request.encode(&mut message, version).map_err(text)?;
        let mut framed = BytesMut::with_capacity(4 + message.len());
        framed.put_u32(message.len() as u32);
        framed.put(message);
        self.stream.write_all(&framed).await.map_err(text)?;
        self.stream.flush().await.map_err(text)?;
        let length = self.stream.read_u32().await.map_err(text)? as usize;
        if length > ANSWER_BYTES {
            return Err(format!("an answer of {length} bytes is too long"));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(text)?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, A::header_version(version));
        if header.map_err(text)?.correlation_id != self.calls {
            return Err("it answers another request".to_owned());
        }
        let decoded = A::decode(&mut answer, version).map_err(text)?;
        match answer.has_remaining() {
            true => Err("its answer is longer than expected".to_owned()),
            false => Ok(decoded),
        }
    }
}

/// Authorities and certificate of the files, or the authorities of the system.
fn tls_config(tls: &Tls) -> Result<ClientConfig, super::KafkaError> {
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |problem: String| super::KafkaError::File {
            path,
            source: std::io::Error::other(problem),
        }
    };
    let certificates = |path: &Path| {
        let content = read(path)?;
        let all = CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
        match all {
            Ok(all) if !all.is_empty() => Ok(all),
            Ok(_) => Err(unusable(path)("it has no certificate in PEM".to_owned())),
            Err(error) => Err(unusable(path)(error.to_string())),
        }
    };
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| unusable(path)(error.to_string()))?;
            }
        }
        None => {
            // Some of a system's certificates may be unusable; the others serve.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| super::KafkaError::Settings(error.to_string()))?
        .with_root_certificates(roots);
    let Some(own) = &tls.certificate else {
        return Ok(config.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&own.key_file)?)
        .map_err(|error| unusable(&own.key_file)(error.to_string()))?;
    config
        .with_client_auth_cert(certificates(&own.cert_file)?, key)
        .map_err(|error| unusable(&own.cert_file)(error.to_string()))
}
