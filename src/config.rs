//! Flags, environment and file become one validated [`Config`].
//!
//! Each setting is one row of the table below. Its name in kebab-case is its flag
//! (`--data-dir`) and its key in the TOML file (`data-dir`, or `data_dir`); with
//! `SIEM_RELAY_` before it, in capitals, it is its environment variable
//! (`SIEM_RELAY_DATA_DIR`). A flag wins over the environment, the environment over
//! the file, the file over the default. All values come as text and are checked
//! together, so that one run names every problem.

mod nearest;
mod problem;
mod rule;
mod source;
mod syntax;
mod table;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use problem::{ConfigError, Origin, Problem};
pub use rule::{ExternalIdKey, ExternalIdPolicy, ExternalIdProof, LogFormat, PutRecordsClient};
pub use source::{CONFIG_FLAG, CONFIG_VARIABLE, Sources};
pub use table::settings_table_markdown;

use crate::domain::arn::RoleArn;

use rule::{
    Address, Bytes, CLIENTS, Count, Directory, Key, KeyFile, LOG_FORMATS, Millis, Optional,
    POLICIES, PROOFS, Role, Rule, Seconds, Switch, Text,
};
use source::Given;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

/// What the process exits with when its configuration is wrong: `EX_USAGE` of
/// `sysexits.h`.
pub const EXIT_USAGE: u8 = 64;

/// One row of the settings table.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The name, in kebab-case, with the unit last.
    pub name: &'static str,
    /// The default as text, or in parentheses what stands in for it.
    pub default: &'static str,
    /// The values that are allowed.
    pub limits: String,
    /// What the setting does, in one sentence.
    pub help: &'static str,
    /// Whether it is a yes-or-no flag, which needs no value.
    pub is_switch: bool,
    /// Whether only the environment may hold it: flags show in process lists, and
    /// files are copied.
    pub is_secret: bool,
}

impl Setting {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        source::variable_of(self.name)
    }
}

/// Makes [`Config`], the table and the reading of each row out of the same rows:
/// `field: type = "name", "default", rule, "help";`
macro_rules! settings {
    ($($field:ident: $type:ty = $name:literal, $default:literal, $rule:expr, $help:literal;)+) => {
        /// The validated configuration. Printing it with `{:?}` shows no secret.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub struct Config {
            $(#[doc = $help] pub $field: $type,)+
        }

        /// What could be read, row by row: `None` where a problem was found.
        struct Draft {
            $($field: Option<$type>,)+
        }

        impl Draft {
            fn read(given: &Given, problems: &mut Vec<Problem>) -> Self {
                Self {
                    $($field: read($name, $default, &$rule, given, problems),)+
                }
            }

            fn finish(self) -> Option<Config> {
                Some(Config { $($field: self.$field?,)+ })
            }
        }

        /// Every setting, in the order in which it is documented.
        pub fn settings() -> Vec<Setting> {
            vec![$(describe($name, $default, &$rule, $help),)+]
        }
    };
}

settings! {
    listen: SocketAddr = "listen", "127.0.0.1:50051", Address,
        "The address and port on which the gRPC API listens; port 0 takes a free one.";
    insecure: bool = "insecure", "false", Switch,
        "Allows listening beyond loopback, where anyone who reaches the port may use the API.";
    data_dir: PathBuf = "data-dir", "./data", Directory,
        "The directory of the database; it is created where it is absent, and one process holds it.";
    external_id_key_file: Option<PathBuf> = "external-id-key-file", "(DATA_DIR/external-id.key, made at the first start)", Optional(KeyFile),
        "The file with the key that encrypts external IDs at rest, as 64 hexadecimal characters.";
    external_id_key: Option<ExternalIdKey> = "external-id-key", "(none)", Optional(Key),
        "The key itself, in place of a file.";
    external_id_policy: ExternalIdPolicy = "external-id-policy", "any", POLICIES,
        "Which external IDs may be configured: `any` that a customer brings, or only those `issued` by GenerateExternalId.";
    event_source: String = "event-source", "https://meter.com", Text(&syntax::EVENT_SOURCE),
        "The CloudEvents attribute source of every event.";
    event_type_prefix: String = "event-type-prefix", "com.meter", Text(&syntax::EVENT_TYPE_PREFIX),
        "What the CloudEvents attribute type of every event starts with.";
    max_records_per_request: usize = "max-records-per-request", "500", Count(1..=500),
        "The most records that one PutRecords request carries.";
    max_request_bytes: usize = "max-request-bytes", "5242880", Bytes(MIB..=10 * MIB),
        "The most bytes of records and partition keys that one PutRecords request carries.";
    requests_in_flight: usize = "requests-in-flight", "64", Count(4..=4096),
        "How many PutRecords requests may be under way in all.";
    requests_in_flight_per_integration: usize = "requests-in-flight-per-integration", "16", Count(1..=64),
        "How many PutRecords requests may be under way for one integration; how many are follows its backlog and success.";
    send_linger: Duration = "send-linger-ms", "80", Millis(0..=1000),
        "How long a PutRecords request that would not be full waits after the one before, so that more events share what a request costs; the first after a pause goes at once.";
    commit_linger: Duration = "commit-linger-ms", "1", Millis(0..=50),
        "How long a publish waits for others to share its commit and its sync to disk, where the last few were shared.";
    settle_linger: Duration = "settle-linger-ms", "50", Millis(1..=50),
        "How long a delivered batch waits for others before they are recorded together.";
    retention: Duration = "retention-seconds", "604800", Seconds(1..=31_536_000),
        "How long events of an integration wait for delivery; what is older expires, and a gap event in the stream says so.";
    retention_bytes: usize = "retention-bytes", "1073741824", Bytes(MIB..=1024 * GIB),
        "How many bytes of events may wait for one integration, before compression; beyond it the oldest expire, until 63/64 of it are left.";
    disk_reserve_bytes: usize = "disk-reserve-bytes", "67108864", Bytes(MIB..=1024 * GIB),
        "How much of the disk is kept free of events, so that deliveries can still be recorded when it nears full; of a small disk an eighth at the most.";
    log_tail_bytes: usize = "log-tail-bytes", "33554432", Bytes(0..=16 * GIB),
        "How much of the newest part of the log stays in memory, so that integrations that keep up read nothing back; up to twice as much where over 800 have events in it.";
    publish_bytes_in_flight: usize = "publish-bytes-in-flight", "16777216", Bytes(16 * MIB..=16 * GIB),
        "How many bytes of publishes may be in memory before they are durable; more must wait.";
    window_bytes: usize = "window-bytes", "33554432", Bytes(MIB..=16 * GIB),
        "How much of the log may be in memory to be delivered, in all; beyond it each request under way has about 1 MiB.";
    window_bytes_per_integration: usize = "window-bytes-per-integration", "4194304", Bytes(64 * KIB..=GIB),
        "How much of the log may be in memory to be delivered for one integration, and one chunk.";
    put_records_client: PutRecordsClient = "put-records-client", "direct", CLIENTS,
        "Who makes PutRecords requests: the service itself, in CBOR (`direct`), or the AWS SDK, in JSON (`sdk`), where an endpoint that is not AWS' takes only that; both do the same otherwise.";
    aws_attempt_timeout: Duration = "aws-attempt-timeout-ms", "10000", Millis(100..=60_000),
        "How long one call to AWS may take.";
    canary_role_arn: Option<RoleArn> = "canary-role-arn", "(none)", Optional(Role),
        "A role in an account of the operator's own that this service may always assume, without an external ID; where it cannot, refused roles are this service's fault and not their customers'.";
    external_id_proof: ExternalIdProof = "external-id-proof", "refuse", PROOFS,
        "What happens to a role that can be assumed without knowing its external ID: nothing is delivered (`refuse`), or the log warns (`warn`). Roles are tried after each Configure and then daily.";
    assume_role_duration: Duration = "assume-role-duration-seconds", "3600", Seconds(900..=43_200),
        "How long assumed credentials are asked to be valid; a role that grants less, or more than 3600 where the service's own credentials are an assumed role, is assumed for 3600.";
    role_session_name: String = "role-session-name", "siem-relay", Text(&syntax::ROLE_SESSION_NAME),
        "The session name that customers see in CloudTrail.";
    failing_after: Duration = "failing-after-seconds", "60", Seconds(1..=3600),
        "How long nothing may get through, for throttling, an outage or a fault of this service, before the status of an integration becomes FAILING.";
    heartbeat: Duration = "heartbeat-seconds", "30", Seconds(1..=3600),
        "How often StreamStatus sends a heartbeat.";
    status_tombstones: usize = "status-tombstones", "100000", Count(0..=10_000_000),
        "How many deletions are remembered for StreamStatus clients that resume.";
    intake_threads: usize = "intake-threads", "1", Count(1..=256),
        "How many threads take requests and write the log; several move more, and take more for each event.";
    delivery_threads: usize = "delivery-threads", "1", Count(1..=256),
        "How many threads deliver; several move more, and take more for each event.";
    shutdown_deadline: Duration = "shutdown-deadline-seconds", "30", Seconds(1..=600),
        "How long a shutdown may take to finish what is under way, and to record what was delivered where that cannot be written at once.";
    retry_first: Duration = "retry-first-ms", "5000", Millis(10..=3_600_000),
        "How long a refused integration waits before its first retry.";
    retry_most: Duration = "retry-most-ms", "300000", Millis(10..=3_600_000),
        "How long a refused integration waits at most between retries.";
    log_format: Option<LogFormat> = "log-format", "(text on a terminal, else json)", Optional(LOG_FORMATS),
        "The format of the logs on standard error.";
    log_level: String = "log-level", "info", Text(&syntax::LOG_LEVEL),
        "What is logged; the libraries underneath never log more than info, since their details may hold secrets.";
}

/// Where the key that encrypts external IDs is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// It was given itself.
    Given(ExternalIdKey),
    /// It is in a file that the operator named, which must be there.
    File(PathBuf),
    /// It is in the file of the data directory, made with mode 0600 where absent.
    DataDirFile(PathBuf),
}

impl Config {
    /// Reads all sources.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem that was found.
    pub fn load(sources: Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let given = Given::gather(sources, &mut problems);
        Self::validate(&given, problems)
    }

    /// Reads settings by name, as flags, without environment or file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem that was found.
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

    /// Where the key that encrypts external IDs is.
    pub fn key_source(&self) -> KeySource {
        match (&self.external_id_key, &self.external_id_key_file) {
            (Some(key), _) => KeySource::Given(key.clone()),
            (None, Some(path)) => KeySource::File(path.clone()),
            (None, None) => KeySource::DataDirFile(self.data_dir.join("external-id.key")),
        }
    }

    fn validate(given: &Given, mut problems: Vec<Problem>) -> Result<Self, ConfigError> {
        let draft = Draft::read(given, &mut problems);
        check_together(&draft, given, &mut problems);
        match (draft.finish(), problems.is_empty()) {
            (Some(config), true) => Ok(config),
            _ => Err(ConfigError { problems }),
        }
    }
}

fn read<R: Rule>(
    name: &'static str,
    default: &str,
    rule: &R,
    given: &Given,
    problems: &mut Vec<Problem>,
) -> Option<R::Value> {
    let Some(value) = given.get(name) else {
        // A test proves that every default parses.
        return rule.absent().or_else(|| rule.parse(default).ok());
    };
    match rule.parse(&value.text) {
        Ok(parsed) => Some(parsed),
        Err(what) => {
            problems.push(Problem::new(name, value.origin.clone(), what));
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

/// The rules that need more than one setting. Each is skipped where one of its
/// settings could not be read, since that problem is told already.
fn check_together(draft: &Draft, given: &Given, problems: &mut Vec<Problem>) {
    let mut refuse = |name: &str, what: String| {
        problems.push(Problem::new(name, given.origin(name), what));
    };
    if let (Some(listen), Some(false)) = (draft.listen, draft.insecure)
        && !listen.ip().to_canonical().is_loopback()
    {
        refuse(
            "listen",
            format!(
                "{listen} is beyond loopback, where anyone who reaches it may use the API; \
                 listen on 127.0.0.1 or [::1], or set insecure to allow it"
            ),
        );
    }
    if given.get("external-id-key").is_some() && given.get("external-id-key-file").is_some() {
        refuse(
            "external-id-key",
            "is set beside external-id-key-file; set only one of the two".to_owned(),
        );
    }
    let shares = [
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
    for (name, each, name_of_all, all) in shares {
        if let (Some(each), Some(all)) = (each, all)
            && each > all
            && given.get(name).is_some()
        {
            refuse(
                name,
                format!("{each} is more than {name_of_all}, {all}; lower it or raise the other"),
            );
        }
    }
    if let (Some(first), Some(most)) = (draft.retry_first, draft.retry_most)
        && first > most
    {
        let (first, most) = (first.as_millis(), most.as_millis());
        if given.get("retry-first-ms").is_some() {
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
