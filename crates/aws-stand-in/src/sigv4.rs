//! AWS Signature Version 4: parsing and verifying the `Authorization` header.
//!
//! See "Create a signed AWS API request" in the IAM User Guide. Presigned URLs are not
//! supported. Both services sign `POST /`.

use std::fmt::Write as _;

use aws_lc_rs::{constant_time, digest, hmac};
use http::{HeaderMap, Method};
use jiff::{civil::DateTime, tz::TimeZone};

/// Largest difference between the time of a request and the clock, in seconds.
const MAX_SKEW_SECONDS: i64 = 300;

/// Reason why a request is not authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AuthFailure {
    Missing,
    Incomplete(String),
    UnknownKey,
    Expired,
    BadSignature(String),
}

/// Parsed `Authorization` header, session token and time of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authorization<'a> {
    pub(super) access_key_id: &'a str,
    pub(super) session_token: Option<&'a str>,
    pub(super) region: &'a str,
    scope: &'a str,
    date: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
    amz_date: &'a str,
}

/// Parts of a request that its signature covers.
pub(super) struct Signed<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

impl<'a> Authorization<'a> {
    /// Parses the headers.
    ///
    /// # Errors
    /// `Missing` without the header, `Incomplete` if a part of it is missing.
    pub(super) fn parse(headers: &'a HeaderMap) -> Result<Self, AuthFailure> {
        let authorization = header(headers, "authorization").ok_or(AuthFailure::Missing)?;
        let incomplete =
            |part: &str| AuthFailure::Incomplete(format!("Authorization header requires {part}."));
        let fields = authorization
            .strip_prefix("AWS4-HMAC-SHA256")
            .ok_or_else(|| incomplete("the algorithm AWS4-HMAC-SHA256"))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            match field.trim().split_once('=') {
                Some(("Credential", value)) => credential = Some(value),
                Some(("SignedHeaders", value)) => signed_headers = Some(value),
                Some(("Signature", value)) => signature = Some(value),
                _ => {}
            }
        }
        let credential = credential.ok_or_else(|| incomplete("'Credential' parameter"))?;
        let invalid_scope =
            || incomplete("a Credential of the form KEY/DATE/REGION/SERVICE/aws4_request");
        let (access_key_id, scope) = credential.split_once('/').ok_or_else(invalid_scope)?;
        let parts: Vec<&str> = scope.split('/').collect();
        let [date, region, service, "aws4_request"] = parts[..] else {
            return Err(invalid_scope());
        };
        Ok(Self {
            access_key_id,
            session_token: header(headers, "x-amz-security-token"),
            region,
            scope,
            date,
            service,
            signed_headers: signed_headers
                .ok_or_else(|| incomplete("'SignedHeaders' parameter"))?,
            signature: signature.ok_or_else(|| incomplete("'Signature' parameter"))?,
            amz_date: header(headers, "x-amz-date")
                .ok_or_else(|| incomplete("existence of an 'X-Amz-Date' header"))?,
        })
    }

    /// Verifies the signature, the signed service and the time.
    pub(super) fn verify(
        &self,
        secret: &str,
        service: &str,
        now_seconds: i64,
        request: &Signed<'_>,
    ) -> Result<(), AuthFailure> {
        let bad = AuthFailure::BadSignature;
        if self.service != service {
            return Err(bad(format!(
                "Credential should be scoped to correct service: '{service}'. "
            )));
        }
        if !self.amz_date.starts_with(self.date) {
            return Err(bad("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP".to_owned()));
        }
        let sent = unix_seconds(self.amz_date)
            .ok_or_else(|| bad("Date must be in ISO-8601 'basic format'.".to_owned()))?;
        if (now_seconds - sent).abs() > MAX_SKEW_SECONDS {
            let problem = if sent < now_seconds {
                "expired"
            } else {
                "not yet current"
            };
            return Err(bad(format!(
                "Signature {problem}: {} is not within 5 minutes of the server's time",
                self.amz_date
            )));
        }
        // An unsigned header could be changed without invalidating the signature.
        for required in ["host", "x-amz-date"] {
            if !self.signed_headers.split(';').any(|name| name == required) {
                return Err(bad(format!(
                    "'{required}' must be a 'SignedHeader' in the AWS Authorization."
                )));
            }
        }
        let expected = self.signature_with(secret, request)?;
        constant_time::verify_slices_are_equal(expected.as_bytes(), self.signature.as_bytes())
            .map_err(|_| bad("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.".to_owned()))
    }

    fn signature_with(&self, secret: &str, request: &Signed<'_>) -> Result<String, AuthFailure> {
        let canonical = canonical_request(request, self.signed_headers)?;
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{}\n{}",
            self.amz_date,
            self.scope,
            sha256_hex(canonical.as_bytes())
        );
        let key = [self.date, self.region, self.service, "aws4_request"]
            .iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
                hmac_sha256(&key, part.as_bytes()).as_ref().to_vec()
            });
        Ok(hex::encode(hmac_sha256(&key, to_sign.as_bytes())))
    }
}

fn canonical_request(request: &Signed<'_>, signed_headers: &str) -> Result<String, AuthFailure> {
    let mut query: Vec<&str> = request.query.split('&').filter(|p| !p.is_empty()).collect();
    query.sort_unstable();
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        request.method,
        request.path,
        query.join("&")
    );
    for name in signed_headers.split(';') {
        let mut values = request.headers.get_all(name).iter().peekable();
        if values.peek().is_none() {
            return Err(AuthFailure::BadSignature(format!(
                "signed header '{name}' is missing"
            )));
        }
        canonical.push_str(name);
        canonical.push(':');
        for (index, value) in values.enumerate() {
            if index > 0 {
                canonical.push(',');
            }
            let value = String::from_utf8_lossy(value.as_bytes());
            for (index, word) in value.split(' ').filter(|word| !word.is_empty()).enumerate() {
                if index > 0 {
                    canonical.push(' ');
                }
                canonical.push_str(word);
            }
        }
        canonical.push('\n');
    }
    let hash = match header(request.headers, "x-amz-content-sha256") {
        Some("UNSIGNED-PAYLOAD") => "UNSIGNED-PAYLOAD".to_owned(),
        _ => sha256_hex(request.body),
    };
    let _ = write!(canonical, "\n{signed_headers}\n{hash}");
    Ok(canonical)
}

/// Converts a time such as `20260131T235959Z` into UNIX seconds.
fn unix_seconds(amz_date: &str) -> Option<i64> {
    let civil = DateTime::strptime("%Y%m%dT%H%M%SZ", amz_date).ok()?;
    let timestamp = TimeZone::UTC.to_timestamp(civil).ok()?;
    Some(timestamp.as_second())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    // Example of AWS' Signature Version 4 test suite, "get-vanilla-query-order-key-case".
    const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const SENT: i64 = 1_440_938_160;

    fn verify(now: i64, secret: &str, query: &str) -> Result<(), AuthFailure> {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("example.amazonaws.com"));
        headers.insert("x-amz-date", HeaderValue::from_static("20150830T123600Z"));
        headers.insert("authorization", HeaderValue::from_static(AUTHORIZATION));
        let request = Signed {
            method: &Method::GET,
            path: "/",
            query,
            headers: &headers,
            body: b"",
        };
        Authorization::parse(&headers)?.verify(secret, "service", now, &request)
    }

    #[test]
    fn verifies_the_published_example() {
        let query = "Param2=value2&Param1=value1";
        assert_eq!(verify(SENT, SECRET, query), Ok(()));
        assert_eq!(verify(SENT + 300, SECRET, query), Ok(()));
        for wrong in [
            verify(SENT, "another secret", query),
            verify(SENT, SECRET, "Param2=value2&Param1=value3"),
            verify(SENT + 301, SECRET, query),
            verify(SENT - 301, SECRET, query),
        ] {
            assert!(
                matches!(wrong, Err(AuthFailure::BadSignature(_))),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn missing_parts_are_reported() {
        let mut headers = HeaderMap::new();
        assert_eq!(Authorization::parse(&headers), Err(AuthFailure::Missing));
        headers.insert(
            "authorization",
            HeaderValue::from_static("AWS4-HMAC-SHA256 Credential=a/b"),
        );
        assert!(matches!(
            Authorization::parse(&headers),
            Err(AuthFailure::Incomplete(_))
        ));
    }

    proptest! {
        #[test]
        fn malformed_headers_are_refused(header in "(AWS4-HMAC-SHA256 )?[ -~]{0,80}", date in "[0-9TZ]{0,17}") {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", HeaderValue::from_str(&header).unwrap());
            headers.insert("x-amz-date", HeaderValue::from_str(&date).unwrap());
            let request = Signed { method: &Method::POST, path: "/", query: "", headers: &headers, body: b"" };
            let verdict = Authorization::parse(&headers)
                .and_then(|a| a.verify(SECRET, "sts", SENT, &request));
            prop_assert!(verdict.is_err());
        }
    }
}
