//! How a signed request reaches its endpoint.

use std::{io, sync::Arc};

use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::{
    http::HttpConnector as _, orchestrator::HttpRequest, result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::{legacy::connect::HttpConnector, proxy::matcher::Matcher};
use tower::ServiceExt;

use super::{
    super::connection_log,
    connection::{Connection, Unanswered},
    endpoint::Endpoint,
    pool::Pool,
    received::{Received, receive},
};
use crate::domain::status::Cause;

/// One pool of connections for every region and session.
pub(super) struct Transport {
    /// None where there are no root certificates: then the SDK tells what that means.
    connector: Option<HttpsConnector<HttpConnector>>,
    pool: Arc<Pool>,
    /// What goes through one takes the SDK's way.
    proxies: Matcher,
    sdk: Connector,
}

impl Transport {
    pub(super) fn new(sdk: Connector, proxies: Matcher) -> Self {
        let connector = connector().inspect_err(|error| {
            tracing::warn!(%error, "found no root certificates; PutRecords takes the SDK's connections");
        });
        Self {
            connector: connector.ok(),
            pool: Arc::default(),
            proxies,
            sdk,
        }
    }

    /// Sends a request and takes its answer. What is rare has a memory of its own, so that
    /// this takes little while it waits.
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
            _ => Box::pin(self.exchange_by_sdk(endpoint, request.map(SdkBody::from))).await,
        }
    }

    async fn exchange_directly(
        &self,
        connector: &HttpsConnector<HttpConnector>,
        endpoint: &Arc<Endpoint>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Received, Cause> {
        // A connection takes the path alone.
        *request.uri_mut() = endpoint.path.clone();
        loop {
            let at_rest = self.pool.take(endpoint);
            let is_new = at_rest.is_none();
            let mut connection = match at_rest {
                Some(connection) => connection,
                None => Box::pin(connect(connector, endpoint)).await?,
            };
            match connection.exchange(request).await {
                Ok(received) => {
                    // Who refuses may do so before the request has come in whole.
                    if received.http_status == 200 {
                        self.pool.keep(endpoint, connection);
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
                    connection_log::warn(&endpoint.host, &error);
                    return Err(Cause::Connection);
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

/// The SDK's TLS, as far as it goes: rustls over aws-lc with the system's roots.
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
    let stream = stream.map_err(|error| {
        connection_log::warn(&endpoint.host, &*error);
        Cause::Connection
    })?;
    Connection::open(stream).await.map_err(|error| {
        connection_log::warn(&endpoint.host, &error);
        Cause::Connection
    })
}

fn cause(endpoint: &Endpoint, error: &ConnectorError) -> Cause {
    if error.is_timeout() {
        return Cause::Timeout;
    }
    connection_log::warn(&endpoint.host, error);
    Cause::Connection
}
