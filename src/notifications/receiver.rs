//! The receiver of notifications, and their signatures.
//!
//! Headers and signatures are those of [Standard Webhooks].
//!
//! [Standard Webhooks]: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full, Limited};
use jiff::Timestamp;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::message::Message;
use crate::{
    domain::service_url,
    https::{self, HttpsClient},
    secret_file::{self, SecretFileError},
    store::StoreError,
};

/// Time of a request until the head of its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which the body of an answer is read, so that its connection can be used again.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of such a body.
const MAX_BODY: usize = 64 << 10;
/// Bytes of a key, as Standard Webhooks has them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets in the file: the current one and those of a rotation.
const MAX_SECRETS: usize = 4;

/// Reason why a receiver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The URL is wrong.
    #[error("{0}")]
    Url(&'static str),
    /// The secrets cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The system has no root certificates.
    #[error("found no root certificates")]
    Roots(#[source] io::Error),
}

impl ReceiverError {
    /// Name of the setting that is wrong.
    pub fn setting(&self) -> &'static str {
        match self {
            Self::Url(_) | Self::Roots(_) => "notification-url",
            Self::Secret(_) => "notification-secret-file",
        }
    }
}

/// Reason why secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// A line is not a secret.
    #[error(
        "line {0} is not a secret; give `whsec_` and the base64 of 24 to 64 random bytes, as `echo whsec_$(openssl rand -base64 32)` prints"
    )]
    Line(usize),
    /// There is no secret, or there are too many.
    #[error("the file has {0} secrets; give 1 to 4, one per line")]
    Number(usize),
}

/// Reason why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the state of the integration cannot be read")]
    Store(#[from] StoreError),
    #[error("notification-secret-file")]
    Secret(#[from] SecretError),
    #[error("the receiver did not answer within 10 s")]
    Timeout,
    #[error("the receiver cannot be reached")]
    Connection(#[from] hyper_util::client::legacy::Error),
    #[error("the receiver answered HTTP status {status}{}", redirect(*.status))]
    Status {
        status: u16,
        retry_after: Option<Duration>,
    },
}

fn redirect(status: u16) -> &'static str {
    match status {
        300..400 => "; redirects are not followed",
        _ => "",
    }
}

impl SendError {
    /// Time for which the receiver asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Webhook of the operator.
pub struct Receiver {
    url: Uri,
    secret_file: PathBuf,
    client: HttpsClient<Full<Bytes>>,
}

impl Receiver {
    /// Creates a receiver, after checking URL and secrets.
    ///
    /// # Errors
    ///
    /// See [`ReceiverError`].
    pub fn new(url: &str, secret_file: &Path) -> Result<Self, ReceiverError> {
        read_keys(secret_file)?;
        Ok(Self {
            url: service_url::parse(url).map_err(ReceiverError::Url)?,
            secret_file: secret_file.to_owned(),
            client: https::client().map_err(ReceiverError::Roots)?,
        })
    }

    /// Makes one attempt, signed with its time `now`.
    pub(super) async fn send(&self, message: &Message, now: Timestamp) -> Result<(), SendError> {
        let signatures = read_keys(&self.secret_file)?;
        let timestamp = now.as_second();
        let signatures: Vec<String> = signatures
            .iter()
            .map(|key| sign(key, &message.id, timestamp, &message.body))
            .collect();
        let mut request = Request::new(Full::from(message.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = [
            (CONTENT_TYPE, "application/json".to_owned()),
            (
                USER_AGENT,
                format!("siem-relay/{}", env!("CARGO_PKG_VERSION")),
            ),
            (ID, message.id.clone()),
            (TIMESTAMP, timestamp.to_string()),
            (SIGNATURE, signatures.join(" ")),
        ];
        for (name, value) in headers {
            // Ids, numbers and base64 are always header values.
            if let Ok(value) = value.try_into() {
                request.headers_mut().insert(name, value);
            }
        }
        let answer = timeout(TIMEOUT, self.client.request(request)).await;
        let answer = answer.map_err(|_| SendError::Timeout)??;
        let (head, body) = answer.into_parts();
        // The status decides, whatever becomes of the body.
        let read = Limited::new(body, MAX_BODY).collect();
        drop(timeout(BODY_TIMEOUT, read).await);
        match head.status.is_success() {
            true => Ok(()),
            false => Err(SendError::Status {
                status: head.status.as_u16(),
                retry_after: retry_after(&head.headers),
            }),
        }
    }
}

const ID: http::HeaderName = http::HeaderName::from_static("webhook-id");
const TIMESTAMP: http::HeaderName = http::HeaderName::from_static("webhook-timestamp");
const SIGNATURE: http::HeaderName = http::HeaderName::from_static("webhook-signature");

/// Delay in seconds. A date is ignored: it would depend on the receiver's clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

fn read_keys(path: &Path) -> Result<Vec<Zeroizing<Vec<u8>>>, SecretError> {
    parse_keys(&secret_file::read_text(path)?)
}

fn parse_keys(text: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, SecretError> {
    let lines = text.lines().map(str::trim).enumerate();
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<Zeroizing<Vec<u8>>> = keys
        .map(|(number, line)| {
            let key = line.strip_prefix("whsec_");
            let key = key.and_then(|key| BASE64_STANDARD.decode(key).ok());
            let key = key.map(Zeroizing::new);
            let key = key.filter(|key| KEY_BYTES.contains(&key.len()));
            key.ok_or(SecretError::Line(number + 1))
        })
        .collect::<Result<_, _>>()?;
    match keys.len() {
        1..=MAX_SECRETS => Ok(keys),
        number => Err(SecretError::Number(number)),
    }
}

fn sign(key: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, key));
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the reference implementations of Standard Webhooks.
    #[test]
    fn a_signature_is_that_of_the_reference() {
        let keys = parse_keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signature = sign(
            &keys[0],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            body,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn wrong_secrets_are_refused_without_being_repeated() {
        for (text, problem) in [
            ("", "has 0 secrets"),
            ("# none\n\n", "has 0 secrets"),
            ("\nsecret", "line 2 is not"),
            ("whsec_AAAA", "line 1 is not"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa!!", "line 1 is not"),
        ] {
            let error = parse_keys(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text:?}: {error}");
            assert!(!error.contains("MfKQ9"), "{error}");
        }
    }
}
