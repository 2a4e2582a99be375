//! A signed PutRecords request.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningError, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_types::body::SdkBody;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, InvalidHeaderValue, USER_AGENT},
};

use super::endpoint::Endpoint;
use crate::sink::{
    sessions::Session,
    signer::{Hex, NoSuchTime, SERVICE, Target},
};

const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const X_AMZ_TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const JSON: &str = "application/x-amz-json-1.1";
const PUT_RECORDS: &str = "Kinesis_20131202.PutRecords";
const THIS: &str = concat!("siem-relay/", env!("CARGO_PKG_VERSION"));
/// Those above, and what the HTTP client adds.
const MOST_HEADERS: usize = 10;

/// A request could not be made or signed; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSent {
    #[error("cannot sign: {0}")]
    Time(#[from] NoSuchTime),
    #[error("cannot sign: {0}")]
    Sign(#[from] SigningError),
    #[error("cannot sign: {0}")]
    Params(#[from] v4::signing_params::BuildError),
    #[error("cannot build the request: {0}")]
    Header(#[from] InvalidHeaderValue),
    #[error("cannot build the request: {0}")]
    Convert(#[from] aws_smithy_runtime_api::http::HttpError),
}

/// Signs a body for a stream of a region.
pub(super) fn request(
    session: &Session,
    region: &str,
    endpoint: &Endpoint,
    body: Vec<u8>,
    now: SystemTime,
) -> Result<Request<SdkBody>, NotSent> {
    let mut headers = HeaderMap::with_capacity(MOST_HEADERS);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(X_AMZ_TARGET, HeaderValue::from_static(PUT_RECORDS));
    headers.insert(USER_AGENT, HeaderValue::from_static(THIS));
    headers.insert(CONTENT_LENGTH, body.len().into());
    if endpoint.is_root() {
        sign_root(session, region, &endpoint.host, &body, now, &mut headers)?;
        return Ok(post(endpoint, headers, body));
    }
    let instructions = {
        let identity = session.signer().credentials().clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(SERVICE)
            .time(now)
            .settings(SigningSettings::default())
            .build()?
            .into();
        let signed = [("content-type", JSON), ("x-amz-target", PUT_RECORDS)];
        let hash = Hex(digest(&SHA256, &body)).to_string();
        let signable = SignableRequest::new(
            "POST",
            endpoint.uri.to_string(),
            signed.into_iter(),
            SignableBody::Precomputed(hash),
        )?;
        sign(signable, &params)?.into_parts().0
    };
    let mut request = post(endpoint, headers, body);
    instructions.apply_to_request_http1x(&mut request);
    Ok(request)
}

/// Adds the headers of the signature of a request to `/`.
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
        content_type: JSON,
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

fn post(endpoint: &Endpoint, headers: HeaderMap, body: Vec<u8>) -> Request<SdkBody> {
    let mut request = Request::new(SdkBody::from(body));
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
    use crate::sink::{AssumedWith, sessions::Lifetime};

    fn headers(base: &str) -> (String, HeaderMap) {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", Some("token".into()), None, "");
        let lifetime = Lifetime::new(Instant::now(), Duration::from_secs(900), 0);
        let session = Session::new(credentials, lifetime, AssumedWith::Current);
        let endpoint = Endpoint::new(base).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let request = request(&session, "eu-west-1", &endpoint, b"{}".to_vec(), at).unwrap();
        let (parts, _body) = request.into_parts();
        (parts.uri.to_string(), parts.headers)
    }

    /// Such as a proxy's in front of AWS.
    #[test]
    fn an_endpoint_with_a_path_is_signed_with_it() {
        let (root, at_root) = headers("http://127.0.0.1:4566");
        let (path, at_path) = headers("http://127.0.0.1:4566/kinesis");
        assert_eq!(root, "http://127.0.0.1:4566/");
        assert_eq!(path, "http://127.0.0.1:4566/kinesis/");
        let names = |headers: &HeaderMap| {
            let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(&at_root), names(&at_path));
        let signature = |headers: &HeaderMap| {
            let value = headers[AUTHORIZATION].to_str().unwrap();
            let (scope, signature) = value.split_once(", Signature=").unwrap();
            (scope.to_owned(), signature.to_owned())
        };
        let (of_root, of_path) = (signature(&at_root), signature(&at_path));
        assert_eq!(of_root.0, of_path.0);
        assert_ne!(of_root.1, of_path.1);
    }
}
