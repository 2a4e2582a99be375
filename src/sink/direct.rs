//! PutRecords without the AWS SDK's machinery: the body is written in one pass, in CBOR
//! and not in JSON, signed with a key that is kept, and the answer read without copies.
//! What it answers is what [`super::kinesis`] answers; the tests hold the two side by side.

mod answer;
mod body;
mod endpoint;
mod request;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use aws_config::SdkConfig;
use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::{
    client::{http::HttpConnector, orchestrator::HttpRequest, result::ConnectorError},
    http::Headers,
};
use aws_smithy_types::byte_stream::ByteStream;
use tokio::time::timeout;

use self::{
    answer::Answer,
    endpoint::Endpoints,
    request::{NotSent, request},
};
use super::{Record, RecordOutcome, sessions::Session};
use crate::domain::{
    arn::StreamArn,
    event::Head,
    status::{Cause, Fault, Stage},
};

/// An answer for 500 records has about 100 KB, and twice that where all of them fail.
const MOST_ANSWER_BYTES: usize = 1 << 20;

/// Writes with one connection pool for every region and session.
pub(super) struct Direct {
    connector: Connector,
    endpoints: Endpoints,
    attempt_timeout: Duration,
    told_of_cbor: AtomicBool,
}

/// An answer as it arrived.
struct Received {
    http_status: u16,
    request_id: Option<String>,
    error_type: Option<String>,
    body: Vec<u8>,
}

impl Direct {
    pub(super) fn new(sdk: &SdkConfig, connector: Connector, attempt_timeout: Duration) -> Self {
        Self {
            connector,
            endpoints: Endpoints::new(sdk),
            attempt_timeout,
            told_of_cbor: AtomicBool::new(false),
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
            let region = stream.region();
            tracing::error!(
                region,
                "Kinesis has no endpoint there, or the one that is configured is no URL"
            );
            return Err(fault(Cause::Connection));
        };
        let now = SystemTime::now();
        let request = body::write(head, records, stream.as_str())
            .map_err(NotSent::from)
            .and_then(|body| request(session, stream.region(), &endpoint, body, now))
            .and_then(|request| Ok(HttpRequest::try_from(request)?));
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
            .outcomes(records.len())
            .inspect_err(|fault| self.tell_of_cbor(fault)),
            Ok(Err(cause)) => Err(fault(cause)),
            Err(_elapsed) => Err(fault(Cause::Timeout)),
        }
    }

    /// AWS' own SDK for Java writes in CBOR; what stands in for AWS may not take it.
    fn tell_of_cbor(&self, fault: &Fault) {
        let unread = fault.code() == "SerializationException";
        if unread && !self.told_of_cbor.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "Kinesis' endpoint could not read a request: where it takes no CBOR, set put-records-client=sdk"
            );
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
