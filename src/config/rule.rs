//! Rules that turn the text of a setting into a typed value. An error message follows the
//! name of the setting; it describes the problem and the remedy.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

use super::source::nearest;
use crate::{
    domain::{arn::RoleArn, service_url},
    store::{Keyring, KeyringError},
};

/// Type and limits of one setting.
pub(super) trait Rule {
    type Value;

    /// Description of the allowed values, for the settings table.
    fn limits(&self) -> String;

    /// Returns the value, or a message with the problem and the remedy.
    fn parse(&self, text: &str) -> Result<Self::Value, String>;

    /// Value of a setting that is not given, if it is not the parsed default text.
    fn absent(&self) -> Option<Self::Value> {
        None
    }

    fn is_switch(&self) -> bool {
        false
    }

    fn is_secret(&self) -> bool {
        false
    }
}

/// A setting that may stay unset.
pub(super) struct Optional<R>(pub R);

impl<R: Rule> Rule for Optional<R> {
    type Value = Option<R::Value>;

    fn limits(&self) -> String {
        self.0.limits()
    }

    fn parse(&self, text: &str) -> Result<Self::Value, String> {
        self.0.parse(text).map(Some)
    }

    fn absent(&self) -> Option<Self::Value> {
        Some(None)
    }

    fn is_secret(&self) -> bool {
        self.0.is_secret()
    }
}

/// An IP address and a port. Host names are refused, because a name may resolve to another
/// address after the check for loopback.
pub(super) struct Address;

impl Rule for Address {
    type Value = SocketAddr;

    fn limits(&self) -> String {
        "IP address and port; loopback, unless there are TLS and authentication".to_owned()
    }

    fn parse(&self, text: &str) -> Result<SocketAddr, String> {
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let advice = "give an IP address and a port, such as 127.0.0.1:50051 or [::1]:50051";
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        Err(if bare.parse::<IpAddr>().is_ok() {
            format!("{text:?} lacks a port; {advice}")
        } else {
            format!(
                "{text:?} is not an IP address and a port (host names are not resolved); {advice}"
            )
        })
    }
}

/// An address as [`Address`] takes it, or a port of 127.0.0.1 alone.
pub(super) struct MetricsAddress;

impl Rule for MetricsAddress {
    type Value = SocketAddr;

    fn limits(&self) -> String {
        "port of 127.0.0.1, or IP address and port".to_owned()
    }

    fn parse(&self, text: &str) -> Result<SocketAddr, String> {
        match text.parse::<u16>() {
            Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
            Err(_) => Address.parse(text),
        }
    }
}

/// The path of a directory.
pub(super) struct Directory;

impl Rule for Directory {
    type Value = PathBuf;

    fn limits(&self) -> String {
        "path".to_owned()
    }

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        path(text)
    }
}

/// The path of the key file. A key given here by mistake is refused.
pub(super) struct KeyFile;

impl Rule for KeyFile {
    type Value = PathBuf;

    fn limits(&self) -> String {
        "path of a file that exists".to_owned()
    }

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if Keyring::parse(text).is_ok() {
            return Err(
                "is a key instead of a path; write a new key into a file that only this service \
                 can read, and give its path. Do not use this key, because others may have seen it"
                    .to_owned(),
            );
        }
        path(text)
    }
}

/// The path of a file, such as one with a secret.
pub(super) struct SecretFile;

impl Rule for SecretFile {
    type Value = PathBuf;

    fn limits(&self) -> String {
        "path of a file that exists".to_owned()
    }

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        path(text)
    }
}

/// The path of a Unix socket.
pub(super) struct Socket;

/// Most bytes of the path of a Unix socket: `sun_path` has 108, with a NUL.
pub const MAX_SOCKET_PATH: usize = 107;

impl Rule for Socket {
    type Value = PathBuf;

    fn limits(&self) -> String {
        format!("path of up to {MAX_SOCKET_PATH} bytes")
    }

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if text.len() > MAX_SOCKET_PATH {
            return Err(format!(
                "has {} bytes, and the path of a socket at most {MAX_SOCKET_PATH}; give a shorter one",
                text.len()
            ));
        }
        path(text)
    }
}

/// A password.
pub(super) struct Password;

impl Rule for Password {
    type Value = SecretString;

    fn limits(&self) -> String {
        "text; not beside the file".to_owned()
    }

    fn parse(&self, text: &str) -> Result<SecretString, String> {
        // The message must not repeat the text.
        if text.is_empty() || text.contains(['\0', '\n', '\r']) {
            return Err("is empty or has a line break; give the password alone".to_owned());
        }
        Ok(SecretString::from(text))
    }

    fn is_secret(&self) -> bool {
        true
    }
}

pub(super) const LOG_URL: Syntax = Syntax {
    limits: "`kafka://HOST:PORT,HOST:PORT/TOPIC`, without a password",
    check: |text| check_url(text, "kafka://", "kafka://HOST:PORT,HOST:PORT/TOPIC"),
};

pub(super) const DATABASE_URL: Syntax = Syntax {
    limits: "`postgres://USER@HOST:PORT,HOST:PORT/DATABASE`, without a password",
    check: |text| check_url(text, "postgres://", "postgres://USER@HOST:PORT/DATABASE"),
};

pub(super) const TEMPLATE_URL: Syntax = Syntax {
    limits: "`https://BUCKET.s3.REGION.amazonaws.com/KEY`",
    check: |text| match text.strip_prefix("https://") {
        Some(rest) if rest.contains('/') && !rest.contains(char::is_whitespace) => Ok(()),
        _ => Err("is no address of a template; give \
                  https://BUCKET.s3.REGION.amazonaws.com/KEY"
            .to_owned()),
    },
};

/// Checks the scheme, and that no password is in the URL. The message does not repeat the text,
/// which may contain one.
fn check_url(text: &str, scheme: &str, example: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix(scheme) else {
        return Err(format!("does not begin with {scheme}; give {example}"));
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    if user.is_some_and(|user| user.contains(':')) {
        return Err(format!(
            "contains a password, which process lists show; give {example}, and the password by \
             its own setting"
        ));
    }
    Ok(())
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("is empty; give a path".to_owned());
    }
    if text.contains('\0') {
        return Err("contains a NUL character; give a path".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A boolean flag.
pub(super) struct Switch;

impl Rule for Switch {
    type Value = bool;

    fn limits(&self) -> String {
        "`true` or `false`".to_owned()
    }

    fn parse(&self, text: &str) -> Result<bool, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is neither true nor false; give one of these"))
    }

    fn is_switch(&self) -> bool {
        true
    }
}

/// A count.
pub(super) struct Count(pub RangeInclusive<usize>);

impl Rule for Count {
    type Value = usize;

    fn limits(&self) -> String {
        limits_of(&self.0)
    }

    fn parse(&self, text: &str) -> Result<usize, String> {
        whole_number(text, &self.0, "")
    }
}

/// A size in bytes.
pub(super) struct Bytes(pub RangeInclusive<usize>);

impl Rule for Bytes {
    type Value = usize;

    fn limits(&self) -> String {
        format!("{} bytes", limits_of(&self.0))
    }

    fn parse(&self, text: &str) -> Result<usize, String> {
        whole_number(text, &self.0, " bytes")
    }
}

/// A duration in milliseconds.
pub(super) struct Millis(pub RangeInclusive<u64>);

impl Rule for Millis {
    type Value = Duration;

    fn limits(&self) -> String {
        format!("{} ms", limits_of(&self.0))
    }

    fn parse(&self, text: &str) -> Result<Duration, String> {
        whole_number(text, &self.0, " ms").map(Duration::from_millis)
    }
}

/// A duration in seconds.
pub(super) struct Seconds(pub RangeInclusive<u64>);

impl Rule for Seconds {
    type Value = Duration;

    fn limits(&self) -> String {
        format!("{} s", limits_of(&self.0))
    }

    fn parse(&self, text: &str) -> Result<Duration, String> {
        whole_number(text, &self.0, " s").map(Duration::from_secs)
    }
}

fn limits_of<N: Display>(range: &RangeInclusive<N>) -> String {
    format!("{} to {}", range.start(), range.end())
}

fn whole_number<N>(text: &str, range: &RangeInclusive<N>, unit: &str) -> Result<N, String>
where
    N: TryFrom<u128> + PartialOrd + Display,
{
    let (least, most) = (range.start(), range.end());
    let advice = format!("give a whole number from {least} to {most}{unit}");
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "{text:?} is not a whole number in decimal digits; {advice}"
        ));
    }
    text.parse::<u128>()
        .ok()
        .and_then(|number| N::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("{text} is out of range; {advice}"))
}

/// A text with a syntax.
pub(super) struct Text(pub &'static Syntax);

/// The syntax of a text.
pub(super) struct Syntax {
    pub limits: &'static str,
    pub check: fn(&str) -> Result<(), String>,
}

impl Rule for Text {
    type Value = String;

    fn limits(&self) -> String {
        self.0.limits.to_owned()
    }

    fn parse(&self, text: &str) -> Result<String, String> {
        if text.is_empty() {
            return Err(format!("is empty; give {}", self.0.limits.replace('`', "")));
        }
        (self.0.check)(text).map(|()| text.to_owned())
    }
}

/// Origins of web pages, in the form in which browsers send them.
pub(super) struct Origins;

/// Most origins: each is compared with that of a request.
const MAX_ORIGINS: usize = 64;

impl Rule for Origins {
    type Value = Vec<String>;

    fn limits(&self) -> String {
        format!("up to {MAX_ORIGINS} of `https://HOST`, `https://HOST:PORT` or `http://HOST:PORT`")
    }

    fn parse(&self, text: &str) -> Result<Vec<String>, String> {
        let origins: Vec<&str> = text.split(',').map(str::trim).collect();
        if origins.len() > MAX_ORIGINS {
            return Err(format!(
                "has {} origins; give at most {MAX_ORIGINS}",
                origins.len()
            ));
        }
        origins.into_iter().map(origin).collect()
    }

    fn absent(&self) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}

/// Serialization of an origin: scheme and host in lower case, without the default port
/// (<https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin>).
fn origin(text: &str) -> Result<String, String> {
    let wrong = |problem: &str| {
        Err(format!(
            "{text:?} {problem}; give origins such as https://soc.example.com, separated by commas"
        ))
    };
    if text == "*" {
        return wrong("would let the pages of anyone call the API");
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, default_port, rest) = match lower.split_once("://") {
        Some(("https", rest)) => ("https", ":443", rest),
        Some(("http", rest)) => ("http", ":80", rest),
        _ => return wrong("does not begin with https:// or http://"),
    };
    let host = rest.strip_suffix(default_port).unwrap_or(rest);
    let is_authority = host.parse::<http::uri::Authority>().is_ok_and(|authority| {
        let port = authority.as_str().strip_prefix(authority.host());
        // A trailing colon is no port.
        !authority.host().is_empty() && (port == Some("") || authority.port_u16().is_some())
    });
    if !is_authority || host.contains(['@', '*']) {
        return wrong("is not an origin, which has a host, and no path, user or wildcard");
    }
    Ok(format!("{scheme}://{host}"))
}

/// The ARN of an IAM role.
pub(super) struct Role;

impl Rule for Role {
    type Value = RoleArn;

    fn limits(&self) -> String {
        "ARN of an IAM role".to_owned()
    }

    fn parse(&self, text: &str) -> Result<RoleArn, String> {
        RoleArn::parse(text).map_err(|error| error.to_string())
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for human readers.
    Text,
    /// One JSON object per line.
    Json,
}

/// A choice between two words, each with its value.
pub(super) struct Choice<T>(pub(super) [(&'static str, T); 2]);

impl<T: Copy> Rule for Choice<T> {
    type Value = T;

    fn limits(&self) -> String {
        let [(one, _), (other, _)] = self.0;
        format!("`{one}` or `{other}`")
    }

    fn parse(&self, text: &str) -> Result<T, String> {
        let [(one, _), (other, _)] = self.0;
        let found = self.0.iter().find(|(word, _)| *word == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("{text:?} is neither {one} nor {other}; give one of these"))
    }
}

pub(super) const LOG_FORMATS: Choice<LogFormat> =
    Choice([("text", LogFormat::Text), ("json", LogFormat::Json)]);

/// External IDs that Configure accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalIdPolicy {
    /// Any external ID, chosen by the customer or issued.
    Any,
    /// Only external IDs that were issued to the organization.
    Issued,
}

pub(super) const POLICIES: Choice<ExternalIdPolicy> = Choice([
    ("any", ExternalIdPolicy::Any),
    ("issued", ExternalIdPolicy::Issued),
]);

/// Treatment of a role that can be assumed without knowing its external ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalIdProof {
    /// Nothing is delivered with it.
    Refuse,
    /// Events are delivered, and the log warns.
    Warn,
}

pub(super) const PROOFS: Choice<ExternalIdProof> = Choice([
    ("refuse", ExternalIdProof::Refuse),
    ("warn", ExternalIdProof::Warn),
]);

/// Client for PutRecords requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutRecordsClient {
    /// The service's own client.
    Direct,
    /// The AWS SDK.
    Sdk,
}

pub(super) const CLIENTS: Choice<PutRecordsClient> = Choice([
    ("direct", PutRecordsClient::Direct),
    ("sdk", PutRecordsClient::Sdk),
]);

/// Keys of external IDs.
pub(super) struct Key;

impl Rule for Key {
    type Value = Keyring;

    fn limits(&self) -> String {
        "64 hexadecimal characters, or several such keys separated by spaces; not beside \
         `external-id-key-file`"
            .to_owned()
    }

    fn parse(&self, text: &str) -> Result<Keyring, String> {
        // The message must not repeat the text, which is a secret or close to one.
        Keyring::parse(text).map_err(|problem| {
            let problem = match problem {
                KeyringError::Malformed(_) => "is not a key".to_owned(),
                problem => problem.to_string(),
            };
            format!(
                "{problem}; give 64 hexadecimal characters, for example the output \
                 of siem-relay external-id"
            )
        })
    }

    fn is_secret(&self) -> bool {
        true
    }
}

/// A non-empty URI-reference, as CloudEvents 1.0 requires for `source`. Every record carries
/// it, so its length is limited.
pub(super) const EVENT_SOURCE: Syntax = Syntax {
    limits: "a URI-reference of up to 256 characters",
    check: uri_reference,
};

/// CloudEvents 1.0: `type` should start with a reverse-DNS name.
pub(super) const EVENT_TYPE_PREFIX: Syntax = Syntax {
    limits: "a reverse-DNS name, such as `com.example`, of up to 128 characters",
    check: reverse_dns,
};

/// URL of the receiver of notifications.
pub(super) const NOTIFICATION_URL: Syntax = Syntax {
    limits: "a URL with https, or with http on loopback, of up to 2,048 characters",
    check: notification_url,
};

fn notification_url(text: &str) -> Result<(), String> {
    // It may contain a secret, so no problem repeats it.
    match text.len() {
        0..=2048 => service_url::parse(text).map(drop).map_err(str::to_owned),
        _ => Err("has more than 2,048 characters; give a shorter URL".to_owned()),
    }
}

/// AWS STS API reference, AssumeRole, RoleSessionName.
pub(super) const ROLE_SESSION_NAME: Syntax = Syntax {
    limits: "2 to 64 of `A-Z a-z 0-9 _ + = , . @ -`",
    check: role_session_name,
};

/// The directives of tracing-subscriber's `EnvFilter`.
pub(super) const LOG_LEVEL: Syntax = Syntax {
    limits: "`error`, `warn`, `info`, `debug`, `trace` or `off`, or a list of directives, such as `info,siem_relay::worker=debug`",
    check: log_directives,
};

/// RFC 3986, section 4.1.
fn uri_reference(text: &str) -> Result<(), String> {
    let refuse = |what: &str| {
        Err(format!(
            "{text:?} {what}; give a URI-reference, such as https://example.com/ids"
        ))
    };
    if text.len() > 256 {
        return Err("has more than 256 characters; give a shorter URI-reference".to_owned());
    }
    if !text.bytes().all(is_uri_byte) {
        return refuse("contains a character that is not allowed in a URI");
    }
    if !has_valid_percent_escapes(text) {
        return refuse("contains a % without two hexadecimal digits");
    }
    if text.matches('#').count() > 1 {
        return refuse("contains more than one #");
    }
    // A colon before the first slash, question mark or number sign ends a scheme.
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    match first.split_once(':') {
        Some((scheme, _)) if !is_scheme(scheme) => refuse("does not start with a URI scheme"),
        _ => Ok(()),
    }
}

fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

fn has_valid_percent_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn reverse_dns(text: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= 128 && text.contains('.') && text.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a reverse-DNS name of up to 128 characters; give one, such as com.example"
    ))
}

fn role_session_name(text: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if (2..=64).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a role session name; give 2 to 64 letters, digits or any of _+=,.@-"
    ))
}

fn log_directives(text: &str) -> Result<(), String> {
    if !text.is_ascii() {
        // EnvFilter slices such text inside a character and panics.
        return Err(format!(
            "{text:?} contains non-ASCII characters; give directives such as info,siem_relay=debug"
        ));
    }
    // EnvFilter reads a word that is not a level as a target, and a missing level as `trace`.
    for word in text.split(',').map(str::trim) {
        if let Some(target) = word.strip_suffix('=') {
            return Err(format!(
                "{word:?} has no level after the =; give one, such as {target}=debug"
            ));
        }
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let is_level = levels.iter().any(|level| level.eq_ignore_ascii_case(word));
        if !is_level && !word.contains(['=', ':', '[']) {
            let hint = nearest(word, levels)
                .map(|level| format!("did you mean {level}? "))
                .unwrap_or_default();
            return Err(format!(
                "{word:?} is not a level; {hint}give one of {}, or target=level",
                levels.join(", ")
            ));
        }
    }
    EnvFilter::builder()
        .parse(text)
        .map(|_| ())
        .map_err(|error| {
            format!("{text:?} is not a list of log directives ({error}); give one such as info,siem_relay=debug")
        })
}
