//! How the text of one setting becomes a typed value. A message says what is wrong
//! and what to do, after the setting's name.

use std::{
    fmt::{self, Display},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretBox};

use crate::domain::arn::RoleArn;

/// What a setting allows.
pub(super) trait Rule {
    type Value;

    /// The allowed values, for the table.
    fn limits(&self) -> String;

    /// The value, or what is wrong and what to do.
    fn parse(&self, text: &str) -> Result<Self::Value, String>;

    /// The value where nothing is given, if that is not the default text.
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

/// An IP address and a port. Host names are refused: what one resolves to may
/// change between the check for loopback and the listening.
pub(super) struct Address;

impl Rule for Address {
    type Value = SocketAddr;

    fn limits(&self) -> String {
        "IP address and port; loopback, unless `insecure` is set".to_owned()
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
                "{text:?} is not an IP address and a port (host names are not looked up); {advice}"
            )
        })
    }
}

/// A directory's path.
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

/// The path of the file that holds the key, and not the key itself by mistake.
pub(super) struct KeyFile;

impl Rule for KeyFile {
    type Value = PathBuf;

    fn limits(&self) -> String {
        "path of a file that exists".to_owned()
    }

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if key(text).is_some() {
            return Err(
                "holds a key where a path belongs; write the key into a file that only this \
                 service may read, and make a new one, since this one may have been seen"
                    .to_owned(),
            );
        }
        path(text)
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("is empty; give a path".to_owned());
    }
    if text.contains('\0') {
        return Err("holds a NUL character; give a path".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// Yes or no.
pub(super) struct Switch;

impl Rule for Switch {
    type Value = bool;

    fn limits(&self) -> String {
        "`true` or `false`".to_owned()
    }

    fn parse(&self, text: &str) -> Result<bool, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is neither true nor false; give one of the two"))
    }

    fn is_switch(&self) -> bool {
        true
    }
}

/// A number of things.
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

/// A time in milliseconds.
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

/// A time in seconds.
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
            "{text:?} is not a whole number in digits; {advice}"
        ));
    }
    text.parse::<u128>()
        .ok()
        .and_then(|number| N::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("{text} is out of range; {advice}"))
}

/// Text with a syntax of its own.
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

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One of two words, and what each means.
pub(super) struct Either<T>(pub(super) [(&'static str, T); 2]);

impl<T: Copy> Rule for Either<T> {
    type Value = T;

    fn limits(&self) -> String {
        let [(one, _), (other, _)] = self.0;
        format!("`{one}` or `{other}`")
    }

    fn parse(&self, text: &str) -> Result<T, String> {
        let [(one, _), (other, _)] = self.0;
        let found = self.0.iter().find(|(word, _)| *word == text);
        found
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| format!("{text:?} is neither {one} nor {other}; give one of the two"))
    }
}

pub(super) const LOG_FORMATS: Either<LogFormat> =
    Either([("text", LogFormat::Text), ("json", LogFormat::Json)]);

/// Which external IDs may be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalIdPolicy {
    /// Any that a customer brings.
    Any,
    /// Only those that were issued to the organization.
    Issued,
}

pub(super) const POLICIES: Either<ExternalIdPolicy> = Either([
    ("any", ExternalIdPolicy::Any),
    ("issued", ExternalIdPolicy::Issued),
]);

/// Treatment of a role that can be assumed without knowing its external ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalIdProof {
    /// Nothing is delivered with it.
    Refuse,
    /// The log warns.
    Warn,
}

pub(super) const PROOFS: Either<ExternalIdProof> = Either([
    ("refuse", ExternalIdProof::Refuse),
    ("warn", ExternalIdProof::Warn),
]);

/// Who makes PutRecords requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutRecordsClient {
    /// This service itself.
    Direct,
    /// The AWS SDK.
    Sdk,
}

pub(super) const CLIENTS: Either<PutRecordsClient> = Either([
    ("direct", PutRecordsClient::Direct),
    ("sdk", PutRecordsClient::Sdk),
]);

/// A key of 256 bits, wiped from memory with its last copy; printing it with `{:?}`
/// does not show it.
#[derive(Clone)]
pub struct ExternalIdKey(Arc<SecretBox<[u8; 32]>>);

impl ExternalIdKey {
    /// The key from 64 hexadecimal characters, as a key file and the environment hold
    /// it; `None` where `text` is anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        key(text)
    }

    /// The 32 bytes.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for ExternalIdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExternalIdKey([redacted])")
    }
}

pub(super) struct Key;

impl Rule for Key {
    type Value = ExternalIdKey;

    fn limits(&self) -> String {
        "64 hexadecimal characters; not beside `external-id-key-file`".to_owned()
    }

    fn parse(&self, text: &str) -> Result<ExternalIdKey, String> {
        // The text is a secret, or nearly one: it is not repeated.
        key(text).ok_or_else(|| {
            "is not a key; give 64 hexadecimal characters, such as siem-relay external-id prints"
                .to_owned()
        })
    }

    fn is_secret(&self) -> bool {
        true
    }
}

fn key(text: &str) -> Option<ExternalIdKey> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let secret = SecretBox::init_with_mut(|bytes: &mut [u8; 32]| {
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
    });
    Some(ExternalIdKey(Arc::new(secret)))
}

/// The value of one hexadecimal digit.
fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}
