//! PutRecords without the AWS SDK: the body is written in one pass, in CBOR instead of JSON,
//! signed with a cached key, and the answer read without copies. The results equal those of
//! [`super::kinesis`]; the same tests run with both.

mod answer;
mod body;
mod connection;
mod endpoint;
mod pool;
mod request;
mod transport;

#[cfg(feature = "fuzzing")]
pub use self::answer::fuzz_answer;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use aws_config::SdkConfig;
use aws_smithy_http_client::Connector;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::time::timeout;

use self::{
    answer::Answer,
    body::BodyError,
    endpoint::Endpoints,
    request::{NotSent, request},
    transport::{Received, Transport},
};
use super::{Record, RecordOutcome, aws::record_request_id, clock::Clock, sessions::Session};
use crate::domain::{
    arn::StreamArn,
    event::RecordHead,
    status::{Cause, Fault, Stage},
};

/// Writes with one connection pool for every region and session.
pub(super) struct Direct {
    transport: Transport,
    endpoints: Endpoints,
    attempt_timeout: Duration,
    clock: Clock,
    logged_cbor: AtomicBool,
}

impl Direct {
    /// `connector` sends the requests that go through one of the proxies.
    pub(super) fn new(
        sdk: &SdkConfig,
        connector: Connector,
        proxies: Matcher,
        attempt_timeout: Duration,
        clock: Clock,
    ) -> Self {
        Self {
            transport: Transport::new(connector, proxies),
            endpoints: Endpoints::new(sdk),
            attempt_timeout,
            clock,
            logged_cbor: AtomicBool::new(false),
        }
    }

    /// Writes the records, at least one.
    ///
    /// # Errors
    ///
    /// If the call failed, or its answer does not list an outcome per record.
    pub(super) async fn put(
        &self,
        session: &Session,
        stream: &StreamArn,
        head: &RecordHead,
        records: &[Record],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let fault = |cause| Fault::unanswered(Stage::Write, cause);
        let Some(endpoint) = self.endpoints.of(stream).await else {
            let region = stream.region();
            tracing::error!(
                region,
                "there is no Kinesis endpoint for the region, or the configured one is not a URL: check AWS_ENDPOINT_URL_KINESIS and AWS_ENDPOINT_URL"
            );
            return Err(fault(Cause::NotBuilt));
        };
        let now = self.clock.now();
        let request = body::write(head, records, stream.as_str())
            .map_err(NotSent::from)
            .and_then(|body| request(session, stream.region(), &endpoint, body, now));
        let request = request.map_err(|error| {
            tracing::error!(%error, "cannot build a PutRecords request");
            fault(match error {
                NotSent::Body(BodyError::Unreadable(_) | BodyError::Length) => Cause::LogUnreadable,
                _ => Cause::NotBuilt,
            })
        })?;
        let exchange = self.transport.exchange(&endpoint, request);
        match timeout(self.attempt_timeout, exchange).await {
            Ok(Ok(Received {
                http_status,
                request_id,
                error_type,
                date,
                body,
            })) => {
                record_request_id(request_id.as_deref());
                if let Some(date) = date {
                    self.clock.learn(&date);
                }
                Answer {
                    http_status,
                    request_id: request_id.as_deref(),
                    error_type: error_type.as_deref(),
                    body: &body,
                }
                .outcomes(records.len())
                .inspect_err(|fault| self.log_cbor(fault))
            }
            Ok(Err(cause)) => Err(fault(cause)),
            Err(_elapsed) => Err(fault(Cause::Timeout)),
        }
    }

    /// Logs once that an endpoint cannot parse CBOR, as substitutes for AWS may not.
    fn log_cbor(&self, fault: &Fault) {
        if fault.is_unparsed_request() && !self.logged_cbor.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the Kinesis endpoint could not parse a request: if it does not accept CBOR, set put-records-client=sdk"
            );
        }
    }
}
