//! Transport of signed requests to their endpoint.

use std::{io, sync::Arc};

use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::{
    http::HttpConnector as _, orchestrator::HttpRequest, result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::{legacy::connect::HttpConnector, proxy::matcher::Matcher};
use tower::ServiceExt;

use super::{
    super::{connection_log, fault::connection_failed},
    connection::{Connection, Unanswered},
    endpoint::Endpoint,
    pool::Pool,
};
use crate::{domain::status::Cause, sink::clock::is_page};

/// Length limit of an answer. That for 500 records has about 100 KB, and twice that if all fail.
const MAX_ANSWER: usize = 1 << 20;

/// One connection pool for all regions and sessions.
pub(super) struct Transport {
    /// None without root certificates: then the SDK's connector reports that.
    connector: Option<HttpsConnector<HttpConnector>>,
    pool: Arc<Pool>,
    proxies: Matcher,
    /// For requests that go through a proxy.
    sdk: Connector,
}

impl Transport {
    pub(super) fn new(sdk: Connector, proxies: Matcher) -> Self {
        let connector = connector().inspect_err(|error| {
            tracing::warn!(%error, "found no root certificates: PutRecords uses the SDK's connections");
        });
        Self {
            connector: connector.ok(),
            pool: Arc::default(),
            proxies,
            sdk,
        }
    }

    /// Sends a request and receives its answer. Dropping the future closes the connection, so that
    /// nothing more of the request is written.
    pub(super) async fn exchange(
        &self,
        endpoint: &Arc<Endpoint>,
        request: Request<Bytes>,
    ) -> Result<Received, Cause> {
        match &self.connector {
            Some(connector) if self.proxies.intercept(&endpoint.uri).is_none() => {
                self.exchange_directly(connector, endpoint, request.map(Full::new))
                    .await
            }
            // Boxed because it is rare, to keep this future small.
            _ => Box::pin(self.exchange_by_sdk(endpoint, request.map(SdkBody::from))).await,
        }
    }

    async fn exchange_directly(
        &self,
        connector: &HttpsConnector<HttpConnector>,
        endpoint: &Arc<Endpoint>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Received, Cause> {
        // HTTP/1 sends the path alone.
        *request.uri_mut() = endpoint.path.clone();
        loop {
            let idle = self.pool.take(endpoint);
            let is_new = idle.is_none();
            let mut connection = match idle {
                Some(connection) => connection,
                None => Box::pin(connect(connector, endpoint)).await?,
            };
            match connection.exchange(request).await {
                Ok(received) => {
                    // A refusal may arrive before the whole request was written.
                    if received.http_status == 200 {
                        self.pool.add(endpoint, connection);
                    }
                    return Ok(received);
                }
                Err(Unanswered::Unsent(unsent)) if !is_new => request = *unsent,
                Err(Unanswered::Unsent(_)) => {
                    connection_log::warn_message(
                        &endpoint.host,
                        "closed before a request was sent",
                    );
                    return Err(Cause::Connection);
                }
                Err(Unanswered::Broken(error)) => {
                    return Err(connection_failed(&endpoint.host, &error));
                }
                Err(Unanswered::Failed(cause)) => return Err(cause),
            }
        }
    }

    async fn exchange_by_sdk(
        &self,
        endpoint: &Endpoint,
        request: Request<SdkBody>,
    ) -> Result<Received, Cause> {
        let request = HttpRequest::try_from(request).map_err(|_| Cause::NotBuilt)?;
        let response = self.sdk.call(request).await;
        let response = response.map_err(|error| cause(endpoint, &error))?;
        let response = response.try_into_http1x().map_err(|_| Cause::Connection)?;
        receive(response).await
    }
}

/// The same TLS as the SDK's: rustls over aws-lc with the system's roots.
fn connector() -> io::Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let connector = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
    Ok(connector.https_or_http().enable_http1().wrap_connector(tcp))
}

async fn connect(
    connector: &HttpsConnector<HttpConnector>,
    endpoint: &Endpoint,
) -> Result<Box<Connection>, Cause> {
    let stream = connector.clone().oneshot(endpoint.uri.clone()).await;
    let stream = stream.map_err(|error| connection_failed(&endpoint.host, &*error))?;
    let opened = Connection::open(stream).await;
    opened.map_err(|error| connection_failed(&endpoint.host, &error))
}

fn cause(endpoint: &Endpoint, error: &ConnectorError) -> Cause {
    if error.is_timeout() {
        return Cause::Timeout;
    }
    connection_failed(&endpoint.host, error)
}

/// A complete answer, not necessarily from AWS.
pub(super) struct Received {
    pub(super) http_status: u16,
    pub(super) request_id: Option<String>,
    pub(super) error_type: Option<String>,
    /// Header `Date`, unless the answer is cached or an HTML page.
    pub(super) date: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Receives an answer. One that is cut off or too long is not from AWS.
pub(super) async fn receive<B>(response: Response<B>) -> Result<Received, Cause>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, mut body) = response.into_parts();
    let http_status = head.status.as_u16();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Cause::NotAws { http_status })?;
        let piece = frame.into_data().unwrap_or_default();
        if whole.len() + piece.len() > MAX_ANSWER {
            return Err(Cause::NotAws { http_status });
        }
        whole.extend_from_slice(&piece);
    }
    let header = |name| header(&head.headers, name);
    Ok(Received {
        http_status,
        request_id: header("x-amzn-requestid").or_else(|| header("x-amz-request-id")),
        error_type: header("x-amzn-errortype"),
        date: header("date").filter(|_| {
            let is_page = is_page(header("content-type").as_deref());
            !is_page && !head.headers.contains_key("age")
        }),
        body: whole,
    })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        time::Duration,
    };

    use tokio::{net::TcpListener, time::sleep};

    use super::*;
    use crate::sink::{AwsOptions, config};

    fn transport() -> Transport {
        let sdk = config::connector(&AwsOptions::default());
        Transport::new(sdk, Matcher::builder().build())
    }

    fn post(endpoint: &Endpoint, length: usize) -> Request<Bytes> {
        Request::post(endpoint.uri.clone())
            .header("host", &*endpoint.host)
            .header("content-length", length)
            .body(vec![b' '; length].into())
            .unwrap()
    }

    #[tokio::test]
    async fn nothing_is_written_after_a_call_was_cancelled() {
        // More than the buffers of the kernel hold.
        const LENGTH: usize = 64 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let endpoint = Arc::new(Endpoint::new(&url).unwrap());
        let transport = transport();
        let mut call = Box::pin(transport.exchange(&endpoint, post(&endpoint, LENGTH)));
        let mut server = tokio::select! {
            _ = &mut call => panic!("there is no answer"),
            accepted = listener.accept() => accepted.unwrap().0.into_std().unwrap(),
        };
        tokio::select! {
            _ = &mut call => panic!("there is no answer"),
            () = sleep(Duration::from_millis(300)) => {}
        }
        // No task runs meanwhile, so that the kernel's buffers are drained.
        let mut drained = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match server.read(&mut buffer) {
                Ok(count) => drained += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!((1..LENGTH).contains(&drained), "{drained}");
        drop(call);
        sleep(Duration::from_millis(100)).await;
        match server.read(&mut buffer) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}
