//! A signed PutRecords request.

use std::time::SystemTime;

use aws_sigv4::{
    http_request::{
        SignableBody, SignableRequest, SigningError, SigningInstructions, SigningSettings, sign,
    },
    sign::v4,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, InvalidHeaderValue, USER_AGENT},
};

use super::{body::BodyError, endpoint::Endpoint};
use crate::sink::{
    sessions::Session,
    signer::{NoSuchTime, SERVICE, Target},
};

const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const X_AMZ_TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const CBOR: &str = "application/x-amz-cbor-1.1";
const PUT_RECORDS: &str = "Kinesis_20131202.PutRecords";
const AGENT: &str = concat!("siem-relay/", env!("CARGO_PKG_VERSION"));
/// Number of headers that [`request`] sets.
const HEADERS: usize = 8;

/// A request could not be built or signed; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSent {
    #[error("cannot sign: {0}")]
    Time(#[from] NoSuchTime),
    #[error("cannot sign: {0}")]
    Sign(#[from] SigningError),
    #[error("cannot sign: {0}")]
    Params(#[from] v4::signing_params::BuildError),
    #[error("cannot write the body: {0}")]
    Body(#[from] BodyError),
    #[error("cannot build the request: {0}")]
    Header(#[from] InvalidHeaderValue),
}

/// Builds and signs a request for a stream of a region.
pub(super) fn request(
    session: &Session,
    region: &str,
    endpoint: &Endpoint,
    body: Vec<u8>,
    now: SystemTime,
) -> Result<Request<Bytes>, NotSent> {
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(CBOR));
    headers.insert(X_AMZ_TARGET, HeaderValue::from_static(PUT_RECORDS));
    headers.insert(HOST, HeaderValue::from_str(&endpoint.host)?);
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(CONTENT_LENGTH, body.len().into());
    if endpoint.is_root() {
        sign_root(session, region, &endpoint.host, &body, now, &mut headers)?;
        return Ok(post(endpoint, headers, body));
    }
    let instructions = instructions(session, region, endpoint, &body, now)?;
    let mut request = post(endpoint, headers, body);
    instructions.apply_to_request_http1x(&mut request);
    Ok(request)
}

/// Signature of a request to any path, which may need normalization and encoding.
fn instructions(
    session: &Session,
    region: &str,
    endpoint: &Endpoint,
    body: &[u8],
    now: SystemTime,
) -> Result<SigningInstructions, NotSent> {
    let identity = session.signer().credentials().clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        .settings(SigningSettings::default())
        .build()?
        .into();
    let signed = [("content-type", CBOR), ("x-amz-target", PUT_RECORDS)];
    let signable = SignableRequest::new(
        "POST",
        endpoint.uri.to_string(),
        signed.into_iter(),
        SignableBody::Bytes(body),
    )?;
    Ok(sign(signable, &params)?.into_parts().0)
}

/// Adds the signature headers of a request to `/`.
fn sign_root(
    session: &Session,
    region: &str,
    host: &str,
    body: &[u8],
    now: SystemTime,
    headers: &mut HeaderMap,
) -> Result<(), NotSent> {
    let to = Target {
        host,
        region,
        content_type: CBOR,
        target: PUT_RECORDS,
    };
    let signed = session.signer().sign(&to, body, now)?;
    let mut token = HeaderValue::from_str(session.signer().token())?;
    token.set_sensitive(true);
    headers.insert(X_AMZ_DATE, HeaderValue::try_from(signed.date)?);
    headers.insert(AUTHORIZATION, HeaderValue::try_from(signed.authorization)?);
    headers.insert(X_AMZ_SECURITY_TOKEN, token);
    Ok(())
}

fn post(endpoint: &Endpoint, headers: HeaderMap, body: Vec<u8>) -> Request<Bytes> {
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = endpoint.uri.clone();
    *request.headers_mut() = headers;
    request
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_credential_types::Credentials;
    use tokio::time::Instant;

    use super::*;
    use crate::sink::{AssumedWith, sessions::Lifetime, signer::tests::reference};

    /// A path occurs with a proxy in front of AWS.
    #[test]
    fn a_request_is_signed_for_its_host_and_path() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", Some("token".into()), None, "");
        let lifetime = Lifetime::new(Instant::now(), Duration::from_secs(900), 0);
        let session = Session::new(credentials.clone(), lifetime, AssumedWith::Current);
        let to = Target {
            host: "127.0.0.1:4566",
            region: "eu-west-1",
            content_type: CBOR,
            target: PUT_RECORDS,
        };
        for (base, url) in [
            ("http://127.0.0.1:4566", "http://127.0.0.1:4566/"),
            (
                "http://127.0.0.1:4566/kinesis",
                "http://127.0.0.1:4566/kinesis/",
            ),
        ] {
            let endpoint = Endpoint::new(base).unwrap();
            let request = request(&session, to.region, &endpoint, b"{}".to_vec(), at).unwrap();
            assert_eq!(request.uri().to_string(), url);
            let wanted = reference(&credentials, url.to_owned(), &to, b"{}", at);
            for (name, value) in [
                ("authorization", &*wanted.authorization),
                ("x-amz-date", &wanted.date),
                ("x-amz-security-token", "token"),
                ("content-type", CBOR),
                ("x-amz-target", PUT_RECORDS),
                ("content-length", "2"),
            ] {
                assert_eq!(request.headers()[name], value, "{name} of {url}");
            }
        }
    }
}
