//! HTTP client for URLs that the operator names. It follows no redirects and uses no proxy of the
//! environment.

use std::io;

use http_body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// Client that trusts the authorities of the system.
pub type HttpsClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// Creates a client. It takes http too, which [`service_url`](crate::domain::service_url) allows
/// on loopback only.
///
/// # Errors
///
/// The system has no root certificates.
pub fn client<B>() -> io::Result<HttpsClient<B>>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let connector = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
    let connector = connector.https_or_http().enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
