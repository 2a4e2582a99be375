//! [Signature Version 4] of a PutRecords request: few headers, always the same, and a key
//! that is derived from the secret once for each day. The tests hold it against the SDK's
//! own signer.
//!
//! [Signature Version 4]: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use aws_credential_types::Credentials;
use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac::{self, HMAC_SHA256},
};

use crate::domain::event::Time;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "kinesis";
const DATE_LENGTH: usize = 8;

/// What of a request is signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signable<'a> {
    pub(super) region: &'a str,
    /// As the `host` header has it.
    pub(super) host: &'a str,
    /// As [`canonical_path`] makes it.
    pub(super) path: &'a str,
    pub(super) content_type: &'a str,
    pub(super) target: &'a str,
    /// SHA-256, in lowercase hex.
    pub(super) body_hash: &'a str,
}

/// The headers that a signature adds.
#[derive(PartialEq, Eq)]
pub(super) struct Signed<'a> {
    pub(super) authorization: String,
    pub(super) date: String,
    pub(super) security_token: Option<&'a str>,
}

/// Signs with one session's credentials.
pub(super) struct Signer {
    credentials: Credentials,
    derived: Mutex<Option<Derived>>,
}

/// The key of a day in a region.
struct Derived {
    date: [u8; DATE_LENGTH],
    region: Box<str>,
    key: hmac::Key,
}

impl Signer {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            derived: Mutex::default(),
        }
    }

    /// Signs a request of this moment.
    pub(super) fn sign(&self, signable: &Signable<'_>, now: SystemTime) -> Signed<'_> {
        let security_token = self.credentials.session_token();
        let date = basic_date(now);
        let day = &date[..DATE_LENGTH];
        let names = match security_token {
            Some(_) => "content-type;host;x-amz-date;x-amz-security-token;x-amz-target",
            None => "content-type;host;x-amz-date;x-amz-target",
        };
        let canonical = canonical(signable, &date, security_token, names);
        let scope = format!("{day}/{}/{SERVICE}/aws4_request", signable.region);
        let hash = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{hash}");
        let key = self.key(day, signable.region);
        let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
        let id = self.credentials.access_key_id();
        Signed {
            authorization: format!(
                "{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
            ),
            date,
            security_token,
        }
    }

    fn key(&self, day: &str, region: &str) -> hmac::Key {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*derived
            && known.date == day.as_bytes()
            && *known.region == *region
        {
            return known.key.clone();
        }
        let key = derive(self.credentials.secret_access_key(), day, region);
        *derived = day.as_bytes().try_into().ok().map(|date| Derived {
            date,
            region: region.into(),
            key: key.clone(),
        });
        key
    }
}

fn derive(secret: &str, day: &str, region: &str) -> hmac::Key {
    let secret = zeroize::Zeroizing::new(format!("AWS4{secret}"));
    let first = hmac::Key::new(HMAC_SHA256, secret.as_bytes());
    let parts = [day, region, SERVICE, "aws4_request"];
    parts.into_iter().fold(first, |key, part| {
        hmac::Key::new(HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
    })
}

fn canonical(
    signable: &Signable<'_>,
    date: &str,
    security_token: Option<&str>,
    names: &str,
) -> String {
    let Signable {
        host,
        path,
        content_type,
        target,
        body_hash,
        region: _,
    } = signable;
    let mut text = String::with_capacity(1024);
    for part in ["POST\n", path, "\n\n"] {
        text.push_str(part);
    }
    let headers = [
        ("content-type", Some(*content_type)),
        ("host", Some(*host)),
        ("x-amz-date", Some(date)),
        ("x-amz-security-token", security_token),
        ("x-amz-target", Some(*target)),
    ];
    for (name, value) in headers {
        if let Some(value) = value {
            for part in [name, ":", value.trim(), "\n"] {
                text.push_str(part);
            }
        }
    }
    for part in ["\n", names, "\n", body_hash] {
        text.push_str(part);
    }
    text
}

/// A URL's path without dot segments and empty ones, percent-encoded once more.
pub(super) fn canonical_path(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let is_folder = ["/", "/.", "/.."].iter().any(|end| path.ends_with(end));
    let end = if is_folder && !segments.is_empty() {
        "/"
    } else {
        ""
    };
    let plain = format!("/{}{end}", segments.join("/"));
    let mut text = String::with_capacity(plain.len());
    for byte in plain.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// `YYYYMMDD'T'HHMMSS'Z'`.
fn basic_date(now: SystemTime) -> String {
    let seconds = Time::from(now).seconds();
    let whole = Time::new(seconds, 0).unwrap_or(Time::MIN).to_string();
    whole.replace(['-', ':'], "")
}

/// Lowercase hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sigv4::{
        http_request::{SignableBody, SignableRequest, SigningSettings, sign},
        sign::v4,
    };
    use proptest::prelude::*;

    use super::*;

    /// What the SDK's signer adds: name and value, sorted.
    fn by_the_sdk(
        credentials: &Credentials,
        signable: &Signable<'_>,
        path: &str,
        now: SystemTime,
    ) -> Vec<(String, String)> {
        let identity = credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(signable.region)
            .name(SERVICE)
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let headers = [
            ("content-type", signable.content_type),
            ("x-amz-target", signable.target),
        ];
        let url = format!("https://{}{path}", signable.host);
        let body = SignableBody::Precomputed(signable.body_hash.to_owned());
        let request = SignableRequest::new("POST", &url, headers.into_iter(), body).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        let mut added: Vec<_> = instructions
            .headers()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        added.sort();
        added
    }

    fn by_us(signed: Signed<'_>) -> Vec<(String, String)> {
        let mut added = vec![
            ("authorization".to_owned(), signed.authorization),
            ("x-amz-date".to_owned(), signed.date),
        ];
        if let Some(token) = signed.security_token {
            added.push(("x-amz-security-token".to_owned(), token.to_owned()));
        }
        added
    }

    proptest! {
        #[test]
        fn is_what_the_sdk_signs(
            secret in "[A-Za-z0-9/+]{1,80}",
            token in prop::option::of("[A-Za-z0-9/+=]{1,400}"),
            region in "[a-z]{2}-[a-z]{4,9}-[1-9]",
            host in "[a-z0-9.-]{1,20}[a-z](:[1-9][0-9]{3})?",
            path in "(/([a-z~%$]{1,3}|[.]{1,2}|))*",
            body: Vec<u8>,
            seconds in prop::collection::vec(0..4_000_000_000_u64, 1..4),
        ) {
            let path = format!("{path}/");
            prop_assume!(url_is_sound(&host));
            let credentials = Credentials::new("ASIAEXAMPLE", secret, token, None, "test");
            let signer = Signer::new(credentials.clone());
            let body_hash = hex(digest(&SHA256, &body).as_ref());
            let signable = Signable {
                region: &region,
                host: &host,
                path: &canonical_path(&path),
                content_type: "application/x-amz-json-1.1",
                target: "Kinesis_20131202.PutRecords",
                body_hash: &body_hash,
            };
            // Of several days: the key follows.
            for seconds in seconds {
                let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
                let signed = by_us(signer.sign(&signable, now));
                prop_assert_eq!(signed, by_the_sdk(&credentials, &signable, &path, now));
            }
        }
    }

    fn url_is_sound(host: &str) -> bool {
        let url = format!("https://{host}/");
        url.parse::<http::Uri>()
            .is_ok_and(|uri| uri.host().is_some())
    }

    #[test]
    fn the_key_follows_the_region() {
        let credentials = Credentials::new("ASIAEXAMPLE", "secret", None, None, "test");
        let signer = Signer::new(credentials.clone());
        for region in ["eu-west-1", "us-east-1", "eu-west-1"] {
            let signable = Signable {
                region,
                host: "kinesis.example.com",
                path: "/",
                content_type: "a",
                target: "b",
                body_hash: "c",
            };
            let now = SystemTime::UNIX_EPOCH;
            let signed = by_us(signer.sign(&signable, now));
            assert_eq!(signed, by_the_sdk(&credentials, &signable, "/", now));
        }
    }
}
