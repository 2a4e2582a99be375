//! Reads flags, environment and file into one validated [`Config`].
//!
//! Each setting is one row of the `settings!` table below. Its name in kebab-case is its flag
//! (`--data-dir`) and its key in the TOML file (`data-dir` or `data_dir`); the prefix
//! `SIEM_RELAY_` and the name in upper case are its environment variable
//! (`SIEM_RELAY_DATA_DIR`). A flag overrides the environment, the environment overrides the
//! file, and the file overrides the default. All values are read as text and checked together,
//! so that one run reports every problem.

mod rule;
mod source;

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

pub use rule::{ExternalIdPolicy, ExternalIdProof, LogFormat, MAX_SOCKET_PATH, PutRecordsClient};
pub use source::{CONFIG_FLAG, CONFIG_VARIABLE, Sources};

use secrecy::SecretString;

use crate::{domain::arn::RoleArn, store::Keyring};

use rule::{
    Address, Bytes, CLIENTS, Count, DATABASE_URL, Directory, EVENT_SOURCE, EVENT_TYPE_PREFIX, Key,
    KeyFile, LOG_FORMATS, LOG_LEVEL, LOG_URL, MetricsAddress, Millis, NOTIFICATION_URL, Optional,
    Origins, POLICIES, PROOFS, Password, ROLE_SESSION_NAME, Role, Rule, Seconds, SecretFile,
    Socket, Switch, TEMPLATE_URL, Text,
};
use source::{RawValues, variable_of};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

/// Exit code for wrong options or settings: `EX_USAGE` of `sysexits.h`.
pub const EXIT_USAGE: u8 = 64;

/// One row of the settings table.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The name, in kebab-case, with the unit last.
    pub name: &'static str,
    /// The default as text, or its description in parentheses.
    pub default: &'static str,
    /// Description of the allowed values.
    pub limits: String,
    /// Purpose of the setting, in one sentence.
    pub help: &'static str,
    /// Whether it is a boolean flag, which needs no value.
    pub is_switch: bool,
    /// Whether it is accepted from the environment only: flags are visible in process lists,
    /// and files are copied.
    pub is_secret: bool,
}

impl Setting {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        variable_of(self.name)
    }
}

/// Generates [`Config`], [`settings`] and the parser of each setting from the same rows:
/// `field: type = "name", "default", rule, "help";`
macro_rules! settings {
    ($($field:ident: $type:ty = $name:literal, $default:literal, $rule:expr, $help:literal;)+) => {
        /// The validated configuration. Its `Debug` output contains no secret.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub struct Config {
            $(#[doc = $help] pub $field: $type,)+
        }

        /// The parsed settings; `None` for a setting with a problem.
        struct Draft {
            $($field: Option<$type>,)+
        }

        impl Draft {
            fn read(values: &RawValues, problems: &mut Vec<Problem>) -> Self {
                Self {
                    $($field: read($name, $default, &$rule, values, problems),)+
                }
            }

            fn finish(self) -> Option<Config> {
                Some(Config { $($field: self.$field?,)+ })
            }
        }

        /// All settings, in the order of the documentation.
        pub fn settings() -> Vec<Setting> {
            vec![$(describe($name, $default, &$rule, $help),)+]
        }
    };
}

settings! {
    listen: SocketAddr = "listen", "127.0.0.1:50051", Address,
        "The address and port on which the gRPC API listens; with port 0 the system picks a free port.";
    insecure: bool = "insecure", "false", Switch,
        "Allows listening beyond loopback without TLS, for a mesh or a proxy that ends TLS in front of the service.";
    insecure_no_authentication: bool = "insecure-no-authentication", "false", Switch,
        "Allows listening beyond loopback without authentication of callers; anyone who can reach the port can then use the API.";
    tls_cert: Option<PathBuf> = "tls-cert", "(none: no TLS)", Optional(SecretFile),
        "The PEM file of the service's certificate and its intermediates; it is read again when it changes, together with key and authorities.";
    tls_key: Option<PathBuf> = "tls-key", "(none)", Optional(SecretFile),
        "The PEM file of the certificate's private key, which only its owner may read.";
    tls_client_ca: Option<PathBuf> = "tls-client-ca", "(none: no client certificates)", Optional(SecretFile),
        "The PEM file of the authorities of clients' certificates, and of their CRLs; clients must then have a certificate or, with `callers`, a token.";
    max_connections: usize = "max-connections", "4096", Count(16..=1_000_000),
        "The maximum number of client connections; fewer if the limit on open files permits fewer. If it is reached, connections without any request are closed in favour of new ones.";
    max_connections_per_peer: usize = "max-connections-per-peer", "1024", Count(1..=1_000_000),
        "The maximum number of client connections from one IPv4 address or one IPv6 /64 network; raise it if a proxy in front of the service opens more.";
    max_streams_per_connection: usize = "max-streams-per-connection", "100", Count(1..=20_000),
        "The maximum number of requests and streams in progress on one connection; further ones wait at the client.";
    connection_idle: Duration = "connection-idle-seconds", "300", Seconds(1..=86_400),
        "The time without a request in progress after which a connection is closed in order.";
    connection_age: Duration = "connection-age-seconds", "1800", Seconds(1..=604_800),
        "The age, give or take a tenth, at which a connection is closed in order after its requests and streams, so that clients spread over all instances.";
    stall_timeout: Duration = "stall-timeout-seconds", "30", Seconds(1..=600),
        "The time after which a connection is cut whose client takes no bytes, or does not read an answer.";
    grpc_web: bool = "grpc-web", "false", Switch,
        "Answers gRPC-Web, for browsers, at the same address, and HTTP/1.1 for it beside HTTP/2.";
    grpc_web_origins: Vec<String> = "grpc-web-origins", "(none: the service's own origin)", Origins,
        "The origins of pages, other than the service's own, that may call the API by gRPC-Web, separated by commas; `*` is none.";
    console: bool = "console", "false", Switch,
        "Serves the web page on which integrations are configured, tested and watched, at `/console/` of the same address; it implies `grpc-web`.";
    console_template_url: Option<String> = "console-template-url", "(none: no link)", Optional(Text(&TEMPLATE_URL)),
        "The address of the CloudFormation template that `siem-relay onboarding` prints, in an S3 bucket that customers can read; the console then links to the creation of a stack from it.";
    callers: Option<PathBuf> = "callers", "(none: every request has all rights)", Optional(SecretFile),
        "The file with the callers that may use the API, and their rights; it is read again when it changes.";
    data_dir: PathBuf = "data-dir", "./data", Directory,
        "The directory of the database; it is created if absent, and only one process can use it at a time.";
    log_url: Option<String> = "log-url", "(none: the log is in DATA_DIR)", Optional(Text(&LOG_URL)),
        "The topic of the event log, if several instances share it: `kafka://HOST:PORT,HOST:PORT/TOPIC`. It needs `database-url`.";
    log_password: Option<SecretString> = "log-password", "(none)", Optional(Password),
        "The password for the brokers of `log-url`.";
    log_password_file: Option<PathBuf> = "log-password-file", "(none)", Optional(SecretFile),
        "The file with that password, or with a token for `mechanism=oauthbearer`; it is read again when it changes.";
    log_allow_single_replica: bool = "log-allow-single-replica", "false", Switch,
        "Accepts a topic with one replica, which loses acknowledged events together with its broker: for development.";
    database_url: Option<String> = "database-url", "(none: the database is in DATA_DIR)", Optional(Text(&DATABASE_URL)),
        "The PostgreSQL database, if several instances share it: `postgres://USER@HOST:PORT,HOST:PORT/DATABASE`. It needs `log-url`.";
    database_password: Option<SecretString> = "database-password", "(none)", Optional(Password),
        "The password for `database-url`.";
    database_password_file: Option<PathBuf> = "database-password-file", "(none)", Optional(SecretFile),
        "The file with that password, which is read again for each connection.";
    lease: Duration = "lease-seconds", "10", Seconds(5..=30),
        "The time after which other instances take over from one that has lost contact with the database, and after which that one sends nothing; the same for all instances.";
    backlog_bytes: usize = "backlog-bytes", "10737418240", Bytes(MIB..=1024 * GIB),
        "The maximum size of the compressed backlogs of all integrations together, with `database-url`; above it events of integrations that are UNAUTHORIZED or FAILING are rejected as OVERLOADED, and a quarter above it all publishes are refused.";
    external_id_key_file: Option<PathBuf> = "external-id-key-file", "(DATA_DIR/external-id.key, created at the first start)", Optional(KeyFile),
        "The file with the key that encrypts external IDs at rest, as 64 hexadecimal characters. It may have several keys, one per line, of which `siem-relay keys rotate` makes the first the active one; `#` begins a comment. Nobody but its owner may have access, apart from the group of a file of root.";
    external_id_key: Option<Keyring> = "external-id-key", "(none)", Optional(Key),
        "The key itself, or several, instead of a file. Not with `credential_process` in the AWS profile, which would inherit it.";
    admin_socket: Option<PathBuf> = "admin-socket", "(DATA_DIR/admin.sock)", Optional(Socket),
        "The Unix socket for commands to the running service, such as `siem-relay keys`; only root and the user of the service may use it. With `database-url` there is none by default if DATA_DIR does not exist.";
    external_id_policy: ExternalIdPolicy = "external-id-policy", "any", POLICIES,
        "The external IDs that Configure accepts: `any`, or only those `issued` by GenerateExternalId.";
    event_source: String = "event-source", "https://meter.com", Text(&EVENT_SOURCE),
        "The CloudEvents attribute source of every event.";
    event_type_prefix: String = "event-type-prefix", "com.meter", Text(&EVENT_TYPE_PREFIX),
        "The prefix of the CloudEvents attribute type of every event.";
    max_records_per_request: usize = "max-records-per-request", "500", Count(1..=500),
        "The maximum number of records in one PutRecords request.";
    max_request_bytes: usize = "max-request-bytes", "5242880", Bytes(MIB..=10 * MIB),
        "The maximum size of the records and partition keys in one PutRecords request.";
    requests_in_flight: usize = "requests-in-flight", "64", Count(4..=4096),
        "The maximum number of PutRecords requests in flight, over all integrations.";
    requests_in_flight_per_integration: usize = "requests-in-flight-per-integration", "16", Count(1..=64),
        "The maximum number of PutRecords requests in flight for one integration; the current limit adapts to its backlog and to whether requests succeed.";
    send_linger: Duration = "send-linger-ms", "80", Millis(0..=1000),
        "The time that a PutRecords request that would not be full waits after the previous one, so that more events share the cost of a request; the first request after a pause is sent at once.";
    commit_linger: Duration = "commit-linger-ms", "1", Millis(0..=50),
        "The time that a publish waits for others to share its commit and its sync to disk; it waits only if the last few commits were shared.";
    settle_linger: Duration = "settle-linger-ms", "50", Millis(1..=50),
        "The time that a delivered batch waits for others, so that they are recorded together.";
    retention: Duration = "retention-seconds", "604800", Seconds(1..=31_536_000),
        "The time that events wait for delivery; older events expire, and a gap event in the stream announces them.";
    retention_bytes: usize = "retention-bytes", "1073741824", Bytes(MIB..=1024 * GIB),
        "The maximum size of the events that wait for one integration, before compression; above it the oldest expire until 63/64 of it remain.";
    disk_reserve_bytes: usize = "disk-reserve-bytes", "67108864", Bytes(MIB..=1024 * GIB),
        "The disk space that events may not use, so that deliveries can be recorded when the disk is nearly full; at most an eighth of the disk.";
    log_tail_bytes: usize = "log-tail-bytes", "33554432", Bytes(0..=16 * GIB),
        "Memory for accepted events that are not delivered yet, in bytes; up to twice as much if more than 800 integrations share it. Above three quarters of it, publishes for integrations with a large part of it wait up to a second; then the oldest events move to the backlog on disk, and if that is not enough, events of such integrations are rejected as OVERLOADED. With 0 all events move there.";
    publish_bytes_in_flight: usize = "publish-bytes-in-flight", "16777216", Bytes(16 * MIB..=16 * GIB),
        "The maximum size of published events in memory that are not durable yet; further requests wait.";
    requests_per_second_per_caller: usize = "requests-per-second-per-caller", "50000", Count(0..=1_000_000),
        "The maximum number of requests per second of one caller, each message of a PublishStream included; further ones are refused as RATE_LIMITED. The default leaves a part of an instance, which answers about 70,000 of the smallest requests per second, to others. 0: no limit. Limits count in each instance alone; a caller without a certificate or token is its address.";
    failed_authentications_per_second: usize = "failed-authentications-per-second-per-address", "50", Count(0..=1_000_000),
        "The maximum number of failed authentications per second from one IPv4 address, or one /64 network of IPv6, and ten times as many at once after a pause; further requests from there are refused as RATE_LIMITED before their token is checked, except with tokens that were verified before. Raise it if many callers with short-lived tokens come through one proxy. 0: no limit.";
    streams_per_caller: usize = "streams-per-caller", "2000", Count(0..=1_000_000),
        "The maximum number of open streams of one caller: PublishStream, StreamStatus, reflection and Watch of health. 0: no limit.";
    events_per_second_per_organization: usize = "events-per-second-per-organization", "0", Count(0..=1_000_000),
        "The maximum number of published events per second of one organization; further ones are rejected one by one as RATE_LIMITED. 0: no limit.";
    test_interval: Duration = "test-interval-seconds", "10", Seconds(0..=3600),
        "The interval in which an organization may call SendTest, Configure with `validate_only`, and GenerateExternalId once each, and five times at once after a pause; the same holds for a Configure whose external ID is refused. 0: no limit.";
    window_bytes: usize = "window-bytes", "33554432", Bytes(MIB..=16 * GIB),
        "The maximum size of the log in memory for delivery, over all integrations; each request in flight takes about 1 MiB in addition.";
    window_bytes_per_integration: usize = "window-bytes-per-integration", "4194304", Bytes(64 * KIB..=GIB),
        "The maximum size of the log in memory for delivery to one integration; one chunk may exceed it.";
    put_records_client: PutRecordsClient = "put-records-client", "direct", CLIENTS,
        "The client for PutRecords requests: the service's own, in CBOR (`direct`), or the AWS SDK, in JSON (`sdk`), for endpoints other than AWS that accept only JSON; otherwise both behave the same.";
    aws_attempt_timeout: Duration = "aws-attempt-timeout-ms", "10000", Millis(100..=60_000),
        "The timeout of one call to AWS.";
    canary_role_arn: Option<RoleArn> = "canary-role-arn", "(none)", Optional(Role),
        "A role in an account of the operator that this service may always assume, without an external ID; while it cannot, refused roles count as a fault of this service and not of the customers.";
    external_id_proof: ExternalIdProof = "external-id-proof", "refuse", PROOFS,
        "The treatment of a role that can be assumed without knowing its external ID: nothing is delivered (`refuse`), or events are delivered and the log warns (`warn`). Roles are tested after each Configure and then daily.";
    assume_role_duration: Duration = "assume-role-duration-seconds", "3600", Seconds(900..=43_200),
        "The lifetime requested for assumed credentials; 3600 is used for a role that allows less, and instead of more than 3600 if the service's own credentials are an assumed role.";
    role_session_name: String = "role-session-name", "siem-relay", Text(&ROLE_SESSION_NAME),
        "The session name that customers see in CloudTrail.";
    failing_after: Duration = "failing-after-seconds", "60", Seconds(1..=3600),
        "The time without any delivery, because of throttling, an outage or a fault of this service, after which the status of an integration becomes FAILING.";
    heartbeat: Duration = "heartbeat-seconds", "30", Seconds(1..=3600),
        "The interval between heartbeats of StreamStatus.";
    status_tombstones: usize = "status-tombstones", "100000", Count(0..=10_000_000),
        "The number of deletions remembered for StreamStatus clients that resume.";
    audit_retention: Duration = "audit-retention-seconds", "34560000", Seconds(1..=315_360_000),
        "The time that entries of the audit are kept; older ones are removed in the background.";
    audit_max_entries: usize = "audit-max-entries", "10000000", Count(100..=1_000_000_000),
        "The maximum number of entries of the audit, of which each takes about 500 bytes of the database; the oldest are removed in the background. A tenth is for refused calls, which displace no other entries.";
    intake_threads: usize = "intake-threads", "1", Count(1..=256),
        "The number of threads that handle requests and write the log; more threads raise the throughput and the CPU time for each event.";
    delivery_threads: usize = "delivery-threads", "1", Count(1..=256),
        "The number of threads that deliver; more threads raise the throughput and the CPU time for each event.";
    shutdown_deadline: Duration = "shutdown-deadline-seconds", "30", Seconds(1..=600),
        "The time limit of a shutdown for finishing requests and deliveries in flight, and for recording deliveries that could not be recorded at once.";
    retry_first: Duration = "retry-first-ms", "5000", Millis(10..=3_600_000),
        "The delay before the first retry of a refused integration.";
    retry_most: Duration = "retry-most-ms", "300000", Millis(10..=3_600_000),
        "The maximum delay between retries of a refused integration.";
    trust_trace_context: bool = "trust-trace-context", "false", Switch,
        "Continues the traces of callers, and with them their decision to sample; otherwise each request begins a trace of its own that has a link to the caller's.";
    notification_url: Option<String> = "notification-url", "(none: no notifications)", Optional(Text(&NOTIFICATION_URL)),
        "The webhook that is sent each change of an integration's status, each deletion, and a warning before events expire. It needs `notification-secret-file`.";
    notification_secret_file: Option<PathBuf> = "notification-secret-file", "(none)", Optional(SecretFile),
        "The file with the secret that signs notifications, as `whsec_` and the base64 of 24 to 64 random bytes; or with several, one per line, each of which makes a signature. It is read again for each attempt.";
    metrics_listen: Option<SocketAddr> = "metrics-listen", "(none: no listener)", Optional(MetricsAddress),
        "The address and port of a listener, in clear text and without authentication, for `/metrics` (Prometheus), `/livez` and `/readyz`; a port alone is one of 127.0.0.1. Beyond loopback, only the monitoring should reach it: it shows names of organizations, and no secret.";
    metrics_organizations: usize = "metrics-organizations", "20", Count(0..=1000),
        "The maximum number of organizations with metrics of their own: those whose integration is UNAUTHORIZED or FAILING, or whose oldest event waits longer than `failing-after-seconds`, the longest waiting first.";
    log_format: Option<LogFormat> = "log-format", "(text on a terminal, else json)", Optional(LOG_FORMATS),
        "The format of the logs on standard error.";
    log_level: String = "log-level", "info", Text(&LOG_LEVEL),
        "The log level, or levels by module; dependencies never log more than info, since their details may contain secrets.";
}

/// Location of the key that encrypts external IDs.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// The key itself, from the environment.
    Given(Keyring),
    /// An existing file named by the operator.
    File(PathBuf),
    /// A file in the data directory, created with mode 0600 if absent.
    DataDirFile(PathBuf),
}

impl Config {
    /// Reads and checks all sources.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all problems.
    pub fn load(sources: Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let values = RawValues::collect(sources, &mut problems);
        let draft = Draft::read(&values, &mut problems);
        check_together(&draft, &values, &mut problems);
        match (draft.finish(), problems.is_empty()) {
            (Some(config), true) => Ok(config),
            _ => Err(ConfigError { problems }),
        }
    }

    /// Reads settings as flags, without environment or file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all problems.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Result<Self, ConfigError> {
        let flags = pairs
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text));
        Self::load(Sources {
            flags: flags.collect(),
            ..Sources::default()
        })
    }

    /// Whether browsers may call: by gRPC-Web of their own, or through the console.
    pub fn has_browsers(&self) -> bool {
        self.grpc_web || self.console
    }

    /// Whether callers are authenticated.
    pub fn has_authentication(&self) -> bool {
        self.callers.is_some() || self.tls_client_ca.is_some()
    }

    /// Path of the socket for commands.
    pub fn admin_socket(&self) -> PathBuf {
        let in_data_dir = || self.data_dir.join("admin.sock");
        self.admin_socket.clone().unwrap_or_else(in_data_dir)
    }

    /// Location of the key that encrypts external IDs.
    pub fn key_source(&self) -> KeySource {
        match (&self.external_id_key, &self.external_id_key_file) {
            (Some(key), _) => KeySource::Given(key.clone()),
            (None, Some(path)) => KeySource::File(path.clone()),
            (None, None) => KeySource::DataDirFile(self.data_dir.join("external-id.key")),
        }
    }
}

fn read<R: Rule>(
    name: &'static str,
    default: &str,
    rule: &R,
    values: &RawValues,
    problems: &mut Vec<Problem>,
) -> Option<R::Value> {
    let Some(value) = values.get(name) else {
        // Every default parses: see the test `every_default_is_allowed`.
        return rule.absent().or_else(|| rule.parse(default).ok());
    };
    match rule.parse(&value.text) {
        Ok(parsed) => Some(parsed),
        Err(message) => {
            problems.push(Problem::new(name, value.origin.clone(), message));
            None
        }
    }
}

fn describe<R: Rule>(
    name: &'static str,
    default: &'static str,
    rule: &R,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        default,
        limits: rule.limits(),
        help,
        is_switch: rule.is_switch(),
        is_secret: rule.is_secret(),
    }
}

/// Checks that involve more than one setting. A check is skipped if one of its settings could
/// not be parsed, since that problem is reported already.
fn check_together(draft: &Draft, values: &RawValues, problems: &mut Vec<Problem>) {
    let mut refuse = |name: &str, message: String| {
        problems.push(Problem::new(name, values.origin(name), message));
    };
    if let (Some(listen), Some(insecure), Some(insecure_no_authentication)) = (
        draft.listen,
        draft.insecure,
        draft.insecure_no_authentication,
    ) {
        let missing = missing_protection(
            listen,
            values.get("tls-cert").is_some(),
            values.get("callers").is_some() || values.get("tls-client-ca").is_some(),
            insecure,
            insecure_no_authentication,
        );
        for problem in missing {
            refuse("listen", problem);
        }
    }
    let needed = [
        ("tls-cert", "tls-key"),
        ("tls-key", "tls-cert"),
        ("tls-client-ca", "tls-cert"),
        ("grpc-web-origins", "grpc-web"),
        ("console-template-url", "console"),
        ("notification-url", "notification-secret-file"),
        ("notification-secret-file", "notification-url"),
    ];
    for (name, other) in needed {
        if values.get(name).is_some() && values.get(other).is_none() {
            refuse(name, format!("is set without {other}; set both"));
        }
    }
    for name in ["external-id-key", "log-password", "database-password"] {
        let file = format!("{name}-file");
        if values.get(name).is_some() && values.get(&file).is_some() {
            refuse(
                name,
                format!("is set together with {file}; set only one of them"),
            );
        }
    }
    let shared = [("log-url", "database-url"), ("database-url", "log-url")];
    for (name, other) in shared {
        if values.get(name).is_some() && values.get(other).is_none() {
            refuse(
                name,
                format!(
                    "is set without {other}; set both, or neither to keep everything in data-dir"
                ),
            );
        }
    }
    if values.get("database-url").is_some()
        && values.get("external-id-key").is_none()
        && values.get("external-id-key-file").is_none()
    {
        refuse(
            "database-url",
            "needs the key that encrypts external IDs, the same for all instances; set \
             external-id-key in the environment or external-id-key-file"
                .to_owned(),
        );
    }
    let limits_and_totals = [
        (
            "requests-in-flight-per-integration",
            draft.requests_in_flight_per_integration,
            "requests-in-flight",
            draft.requests_in_flight,
        ),
        (
            "window-bytes-per-integration",
            draft.window_bytes_per_integration,
            "window-bytes",
            draft.window_bytes,
        ),
    ];
    for (name, limit, total_name, total) in limits_and_totals {
        if let (Some(limit), Some(total)) = (limit, total)
            && limit > total
            && values.get(name).is_some()
        {
            refuse(
                name,
                format!("{limit} is more than {total_name}, {total}; lower it or raise the other"),
            );
        }
    }
    if let (Some(first), Some(most)) = (draft.retry_first, draft.retry_most)
        && first > most
    {
        let (first, most) = (first.as_millis(), most.as_millis());
        if values.get("retry-first-ms").is_some() {
            refuse(
                "retry-first-ms",
                format!("{first} is more than retry-most-ms, {most}; lower it or raise the other"),
            );
        } else {
            refuse(
                "retry-most-ms",
                format!("{most} is less than retry-first-ms, {first}; raise it or lower the other"),
            );
        }
    }
}

/// Problems of an address that is not loopback, each with its remedy: at most one for TLS and one
/// for authentication.
fn missing_protection(
    listen: SocketAddr,
    has_tls: bool,
    has_authentication: bool,
    insecure: bool,
    insecure_no_authentication: bool,
) -> Vec<String> {
    if listen.ip().to_canonical().is_loopback() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if !has_tls && !insecure {
        problems.push(format!(
            "{listen} is not a loopback address and there is no TLS; set tls-cert and tls-key, \
             listen on 127.0.0.1 or [::1], or set insecure if a mesh or proxy ends TLS"
        ));
    }
    if !has_authentication && !insecure_no_authentication {
        problems.push(format!(
            "{listen} is not a loopback address and callers are not authenticated, so anyone who \
             can reach it could use the API; set callers or tls-client-ca, listen on 127.0.0.1 or [::1], or \
             set insecure-no-authentication to allow it"
        ));
    }
    problems
}

/// Source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File(PathBuf),
    /// The default, because no value was given.
    Default,
}

/// One problem of a configuration. It never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the setting, or of an unknown key, variable or file.
    pub name: String,
    /// Source of the value.
    pub origin: Origin,
    /// The problem and its remedy.
    pub message: String,
}

impl Problem {
    fn new(name: &str, origin: Origin, message: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            origin,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            origin,
            message,
        } = self;
        match origin {
            Origin::Flag => write!(f, "flag --{name}: {message}"),
            Origin::Environment => {
                write!(f, "environment variable {}: {message}", variable_of(name))
            }
            Origin::File(path) => write!(f, "{name} in file {}: {message}", path.display()),
            Origin::Default => write!(f, "{name} (default): {message}"),
        }
    }
}

/// All problems of a configuration, one per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem{}{}", problems.len(), plural(problems), lines(problems))]
pub struct ConfigError {
    /// The problems; never empty.
    pub problems: Vec<Problem>,
}

fn plural(problems: &[Problem]) -> &'static str {
    if problems.len() == 1 { "" } else { "s" }
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}

/// Returns the table of all settings as Markdown. `docs/settings.md` has it between the comments
/// `<!-- settings -->` and `<!-- /settings -->`.
pub fn settings_table_markdown() -> String {
    let mut table = String::from(
        "| flag and file key | environment variable | default | allowed | purpose |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    let escape = |text: &str| text.replace('|', "\\|");
    for setting in settings() {
        let flag = match setting.is_secret {
            true => "(environment only)".to_owned(),
            false => format!("`{}`", setting.name),
        };
        let described = setting.default.strip_prefix('(');
        let default = match described.and_then(|rest| rest.strip_suffix(')')) {
            Some(described) => escape(described),
            None => format!("`{}`", setting.default),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {flag} | `{}` | {default} | {} | {} |",
            setting.variable(),
            escape(&setting.limits),
            escape(setting.help),
        );
    }
    table
}

#[cfg(test)]
mod tests;
