//! Signs PutRecords requests by [Signature Version 4]. Only their time, host and body differ, so
//! that they are signed without a generic canonical request, with a key that is cached for the
//! day. The tests compare the signatures with those of `aws-sigv4`.
//!
//! [Signature Version 4]: https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use aws_credential_types::Credentials;
use aws_lc_rs::{
    digest::{Context, Digest, SHA256, digest},
    hmac::{self, HMAC_SHA256},
};
use aws_sigv4::sign::v4::generate_signing_key;
use jiff::{Timestamp, tz::Offset};
use zeroize::Zeroizing;

/// Service name in a signature.
pub(super) const SERVICE: &str = "kinesis";
/// Length in bytes of a SHA-256 and of a signing key.
const HASH_LENGTH: usize = 32;

/// Signed values of a request, except time and body.
pub(super) struct Target<'a> {
    /// Value of the header `host`.
    pub(super) host: &'a str,
    pub(super) region: &'a str,
    pub(super) content_type: &'a str,
    pub(super) target: &'a str,
}

/// Headers of a signed request, except the session token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signed {
    /// Value of `x-amz-date`.
    pub(super) date: String,
    /// Value of `authorization`.
    pub(super) authorization: String,
}

/// The time of a request cannot be represented in a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time of the clock cannot be signed")]
pub(super) struct NoSuchTime;

/// Signs with a session's credentials.
pub(super) struct Signer {
    credentials: Credentials,
    key: Mutex<Option<DayKey>>,
}

/// A signing key, valid for a day in a region.
struct DayKey {
    day: Box<str>,
    region: Box<str>,
    key: Zeroizing<[u8; HASH_LENGTH]>,
}

impl Signer {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            key: Mutex::new(None),
        }
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The session token, sent with each signed request.
    pub(super) fn token(&self) -> &str {
        self.credentials.session_token().unwrap_or_default()
    }

    /// Signs a POST to `/` without a query and with the headers `content-type`, `host`,
    /// `x-amz-date`, `x-amz-security-token` and `x-amz-target`.
    pub(super) fn sign(
        &self,
        to: &Target<'_>,
        body: &[u8],
        at: SystemTime,
    ) -> Result<Signed, NoSuchTime> {
        const HEADERS: &str = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target";
        let date = date(at).ok_or(NoSuchTime)?;
        let (day, region) = (&date[..8], to.region);
        let body = hex(digest(&SHA256, body).as_ref());
        let request = sha256_of(&[
            "POST\n/\n\ncontent-type:",
            to.content_type,
            "\nhost:",
            to.host,
            "\nx-amz-date:",
            &date,
            "\nx-amz-security-token:",
            self.token(),
            "\nx-amz-target:",
            to.target,
            "\n\n",
            HEADERS,
            "\n",
            text(&body),
        ]);
        let scope = [day, "/", region, "/", SERVICE, "/aws4_request"].concat();
        let request = hex(request.as_ref());
        let signable = [
            "AWS4-HMAC-SHA256\n",
            &date,
            "\n",
            &scope,
            "\n",
            text(&request),
        ]
        .concat();
        let key = hmac::Key::new(HMAC_SHA256, &*self.key(day, region, at));
        let signature = hex(hmac::sign(&key, signable.as_bytes()).as_ref());
        let authorization = [
            "AWS4-HMAC-SHA256 Credential=",
            self.credentials.access_key_id(),
            "/",
            &scope,
            ", SignedHeaders=",
            HEADERS,
            ", Signature=",
            text(&signature),
        ]
        .concat();
        Ok(Signed {
            date,
            authorization,
        })
    }

    fn key(&self, day: &str, region: &str, at: SystemTime) -> Zeroizing<[u8; HASH_LENGTH]> {
        let mut kept = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(kept) if *kept.day == *day && *kept.region == *region => kept.key.clone(),
            _ => {
                let secret = self.credentials.secret_access_key();
                let derived = generate_signing_key(secret, at, region, SERVICE);
                let mut key = Zeroizing::new([0; HASH_LENGTH]);
                key.copy_from_slice(derived.as_ref());
                *kept = Some(DayKey {
                    day: day.into(),
                    region: region.into(),
                    key: key.clone(),
                });
                key
            }
        }
    }
}

fn sha256_of(parts: &[&str]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part.as_bytes());
    }
    context.finish()
}

/// Basic format of ISO 8601, in seconds.
fn date(at: SystemTime) -> Option<String> {
    let at = Offset::UTC.to_datetime(Timestamp::try_from(at).ok()?);
    let year = u16::try_from(at.year()).ok()?;
    let mut date = String::with_capacity("20150830T123600Z".len());
    let [century, year] = [year / 100, year % 100].map(|part| part as i8);
    for part in [century, year, at.month(), at.day()] {
        push_two_digits(&mut date, part);
    }
    date.push('T');
    for part in [at.hour(), at.minute(), at.second()] {
        push_two_digits(&mut date, part);
    }
    date.push('Z');
    Some(date)
}

fn push_two_digits(out: &mut String, number: i8) {
    for digit in [number / 10, number % 10] {
        out.push(char::from(b'0' + digit as u8));
    }
}

/// A SHA-256 in lower case hexadecimal digits.
fn hex(hash: &[u8]) -> [u8; 2 * HASH_LENGTH] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [b'0'; 2 * HASH_LENGTH];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}

/// Hexadecimal digits as text.
fn text(digits: &[u8]) -> &str {
    str::from_utf8(digits).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use aws_sigv4::{
        http_request::{SignableBody, SignableRequest, SigningSettings, sign},
        sign::v4,
    };
    use proptest::prelude::*;

    use super::*;

    const TARGET: &str = "Kinesis_20131202.PutRecords";
    const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

    /// Headers of `aws-sigv4` for a POST to a URL.
    pub(in crate::sink) fn reference(
        credentials: &Credentials,
        url: String,
        to: &Target<'_>,
        body: &[u8],
        at: SystemTime,
    ) -> Signed {
        let identity = credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(to.region)
            .name(SERVICE)
            .time(at)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let request = SignableRequest::new(
            "POST",
            url,
            [
                ("content-type", to.content_type),
                ("x-amz-target", to.target),
            ]
            .into_iter(),
            SignableBody::Bytes(body),
        );
        let (instructions, _signature) = sign(request.unwrap(), &params).unwrap().into_parts();
        let header = |wanted: &str| {
            let mut headers = instructions.headers();
            let (_, value) = headers.find(|(name, _)| *name == wanted).unwrap();
            value.to_owned()
        };
        Signed {
            date: header("x-amz-date"),
            authorization: header("authorization"),
        }
    }

    proptest! {
        #[test]
        fn signs_as_the_sdk_does(
            access_key_id in "[A-Z0-9]{16,128}",
            secret in "[A-Za-z0-9+/]{1,80}",
            token in "[A-Za-z0-9+/=]{1,200}",
            host in "[a-z0-9.-]{0,30}[a-z](:[1-9][0-9]{3})?",
            region in "[a-z]{2}-[a-z]{4,9}-[1-9]",
            body: Vec<u8>,
            // To the last day but one of the year 9999.
            times in prop::collection::vec((0..253_402_214_400_u64, 0..1_000_000_000_u32), 1..4),
        ) {
            let credentials = Credentials::new(access_key_id, secret, Some(token), None, "test");
            let signer = Signer::new(credentials.clone());
            let other = "eu-other-1".to_owned();
            for (seconds, nanos) in times {
                let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
                // Another region, another day, and the cached key.
                for (region, later) in [(&region, 0), (&other, 0), (&region, 0), (&region, 86_400)] {
                    let at = at + Duration::from_secs(later);
                    let to = Target { host: &host, region, content_type: CONTENT_TYPE, target: TARGET };
                    let signed = signer.sign(&to, &body, at);
                    prop_assert_eq!(signed.unwrap(), reference(&credentials, format!("https://{host}/"), &to, &body, at));
                }
            }
        }
    }
}
