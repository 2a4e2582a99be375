//! PutRecords without the AWS SDK's machinery: the body is written in one pass, in CBOR
//! and not in JSON, signed with a key that is kept, and the answer read without copies.
//! What it answers is what [`super::kinesis`] answers; the tests hold the two side by side.

mod answer;
mod body;
mod connection;
mod endpoint;
mod pool;
mod received;
mod request;
mod transport;

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
    received::Received,
    request::{NotSent, request},
    transport::Transport,
};
use super::{Record, RecordOutcome, clock::Clock, sessions::Session};
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
    told_of_cbor: AtomicBool,
}

impl Direct {
    /// `connector` carries what goes through one of the proxies.
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
        head: &RecordHead,
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
            return Err(fault(Cause::NotBuilt));
        };
        let now = self.clock.now();
        let request = body::write(head, records, stream.as_str())
            .map_err(NotSent::from)
            .and_then(|body| request(session, stream.region(), &endpoint, body, now));
        let request = request.map_err(|error| {
            tracing::error!(%error, "cannot make a PutRecords request");
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
                .inspect_err(|fault| self.tell_of_cbor(fault))
            }
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
}
