//! PutRecords without the AWS SDK's machinery: the body is written in one pass, signed
//! with the SDK's own signer, and the answer read without copies. What it answers is
//! what [`super::kinesis`] answers; the tests hold the two side by side.

mod answer;
mod body;
mod endpoint;

use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_lc_rs::digest::{SHA256, digest};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningError, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::{
    client::{http::HttpConnector, orchestrator::HttpRequest, result::ConnectorError},
    http::Headers,
};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use tokio::time::timeout;

use self::{
    answer::Answer,
    endpoint::{Endpoint, Endpoints},
};
use super::{Record, RecordOutcome, sessions::Session};
use crate::domain::{
    arn::StreamArn,
    event::Head,
    status::{Cause, Fault, Stage},
};

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "Kinesis_20131202.PutRecords";
const USER_AGENT: &str = concat!("siem-relay/", env!("CARGO_PKG_VERSION"));
/// An answer for 500 records has below 100 KB.
const MOST_ANSWER_BYTES: usize = 4 << 20;

/// Writes with one connection pool for every region and session.
pub(super) struct Direct {
    connector: Connector,
    endpoints: Endpoints,
    attempt_timeout: Duration,
}

/// An answer as it arrived.
struct Received {
    http_status: u16,
    request_id: Option<String>,
    error_type: Option<String>,
    body: Vec<u8>,
}

/// A request could not be made or signed; nothing was sent.
#[derive(Debug, thiserror::Error)]
enum NotSent {
    #[error("cannot sign: {0}")]
    Sign(#[from] SigningError),
    #[error("cannot sign: {0}")]
    Params(#[from] v4::signing_params::BuildError),
    #[error("cannot build the request: {0}")]
    Request(#[from] http::Error),
    #[error("cannot build the request: {0}")]
    Convert(#[from] aws_smithy_runtime_api::http::HttpError),
}

impl Direct {
    pub(super) fn new(sdk: &SdkConfig, connector: Connector, attempt_timeout: Duration) -> Self {
        Self {
            connector,
            endpoints: Endpoints::new(sdk),
            attempt_timeout,
        }
    }

    /// Writes the records, of which there is at least one.
    ///
    /// # Errors
    ///
    /// Where the call failed, or where its answer does not tell record by record.
    pub(super) async fn put(
        &self,
        session: &Session,
        stream: &StreamArn,
        head: &Head,
        records: &[Record],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let fault = |cause| Fault {
            stage: Stage::Write,
            cause,
            request_id: None,
        };
        let Some(endpoint) = self.endpoints.of(stream).await else {
            return Err(fault(Cause::Connection));
        };
        let body = body::write(head, records, stream.as_str());
        let request = request(session, stream.region(), &endpoint, body, SystemTime::now());
        let request = request.map_err(|error| {
            tracing::error!(%error, "cannot make a PutRecords request");
            fault(Cause::Connection)
        })?;
        match timeout(self.attempt_timeout, self.exchange(request)).await {
            Ok(Ok(Received {
                http_status,
                request_id,
                error_type,
                body,
            })) => Answer {
                http_status,
                request_id: request_id.as_deref(),
                error_type: error_type.as_deref(),
                body: &body,
            }
            .outcomes(records.len()),
            Ok(Err(cause)) => Err(fault(cause)),
            Err(_elapsed) => Err(fault(Cause::Timeout)),
        }
    }

    async fn exchange(&self, request: HttpRequest) -> Result<Received, Cause> {
        let response = self.connector.call(request).await.map_err(cause)?;
        let http_status = response.status().as_u16();
        let request_id = request_id(response.headers()).map(str::to_owned);
        let error_type = response.headers().get("x-amzn-errortype");
        let error_type = error_type.map(str::to_owned);
        let mut body = ByteStream::new(response.into_body());
        let mut whole = Vec::new();
        while let Some(piece) = body.next().await {
            // What broke off in the middle is no answer of AWS.
            let piece = piece.map_err(|_| Cause::NotAws { http_status })?;
            if whole.len() + piece.len() > MOST_ANSWER_BYTES {
                return Err(Cause::NotAws { http_status });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Received {
            http_status,
            request_id,
            error_type,
            body: whole,
        })
    }
}

fn cause(error: ConnectorError) -> Cause {
    match error.is_timeout() {
        true => Cause::Timeout,
        false => Cause::Connection,
    }
}

fn request_id(headers: &Headers) -> Option<&str> {
    headers
        .get("x-amzn-requestid")
        .or_else(|| headers.get("x-amz-request-id"))
}

fn request(
    session: &Session,
    region: &str,
    endpoint: &Endpoint,
    body: Vec<u8>,
    now: SystemTime,
) -> Result<HttpRequest, NotSent> {
    let settings = SigningSettings::default();
    let params = v4::SigningParams::builder()
        .identity(session.identity())
        .region(region)
        .name("kinesis")
        .time(now)
        .settings(settings)
        .build()?
        .into();
    let signed = [("content-type", CONTENT_TYPE), ("x-amz-target", TARGET)];
    let hash = hex(digest(&SHA256, &body).as_ref());
    let signable = SignableRequest::new(
        "POST",
        endpoint.url.as_str(),
        signed.into_iter(),
        SignableBody::Precomputed(hash),
    )?;
    let (instructions, _signature) = sign(signable, &params)?.into_parts();
    let mut request = http::Request::builder()
        .method("POST")
        .uri(&endpoint.url)
        .header("content-type", CONTENT_TYPE)
        .header("x-amz-target", TARGET)
        .header("user-agent", USER_AGENT)
        .header("content-length", body.len())
        .body(SdkBody::from(body))?;
    instructions.apply_to_request_http1x(&mut request);
    Ok(HttpRequest::try_from(request)?)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}
