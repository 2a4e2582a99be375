//! Connections over TCP, with or without TLS.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{
    ConnectError,
    codegen::{Service, StdError, http::Uri},
};

use crate::channel::{ChannelError, Identity};

/// Time for name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HTTP_2: &[u8] = b"h2";

/// Files and name by which the two ends of a TLS connection know each other.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) server_name: ServerName<'static>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) identity: Option<Identity>,
}

impl Tls {
    /// Reads the files. The provider of cryptography is named here, since the process of a user
    /// may have chosen another one, two, or none.
    pub(super) fn config(&self) -> Result<ClientConfig, ChannelError> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = certificates("client certificate", certificate)?;
                let what = "client key";
                let key_der = PrivateKeyDer::from_pem_slice(&read(what, key)?);
                let key_der = key_der
                    .map_err(|_| content(what, key, "it has no private key in PEM format"))?;
                let config = config.with_client_auth_cert(chain, key_der);
                config.map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => content(
                        what,
                        key,
                        &format!("it is not the key of {}", certificate.display()),
                    ),
                    error => content(what, key, &error.to_string()),
                })?
            }
        };
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, ChannelError> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            // Systems have some certificates that rustls does not parse.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return match roots.is_empty() {
                true => Err(ChannelError::NoSystemRoots),
                false => Ok(roots),
            };
        };
        let what = "file of authorities";
        for certificate in certificates(what, path)? {
            let added = roots.add(certificate);
            added.map_err(|error| content(what, path, &error.to_string()))?;
        }
        Ok(roots)
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ChannelError> {
    fs::read(path).map_err(|error| ChannelError::File {
        what,
        path: path.to_owned(),
        error,
    })
}

fn content(what: &'static str, path: &Path, problem: &str) -> ChannelError {
    ChannelError::Content {
        what,
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ChannelError> {
    let text = read(what, path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match parsed {
        Ok(parsed) if !parsed.is_empty() => Ok(parsed),
        _ => Err(content(what, path, "it has no certificate in PEM format")),
    }
}

/// Opens connections. It replaces tonic's own connector, which takes the process's provider of
/// cryptography and reads certificates only once.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<Arc<Tls>>,
    /// A token is sent in clear: only loopback is reached, whatever a name resolves to.
    loopback_only: bool,
}

impl Connector {
    pub(super) fn new(tls: Option<Tls>, loopback_only: bool) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self {
            tcp,
            tls: tls.map(Arc::new),
            loopback_only,
        }
    }

    async fn connect(mut self, uri: Uri) -> Result<TokioIo<Connection>, StdError> {
        let stream = self.tcp.call(uri).await?.into_inner();
        if self.loopback_only && !stream.peer_addr()?.ip().to_canonical().is_loopback() {
            return Err("the address is not on loopback, and a token is not sent in clear".into());
        }
        let Some(tls) = self.tls else {
            return Ok(TokioIo::new(Box::new(stream)));
        };
        let name = tls.server_name.clone();
        let config = spawn_blocking(move || tls.config()).await??;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        if stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
            return Err("the server speaks TLS without HTTP/2".into());
        }
        Ok(TokioIo::new(Box::new(stream)))
    }
}

/// A byte stream, encrypted or not.
pub(super) type Connection = Box<dyn Stream>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    /// From this type tonic derives UNAVAILABLE.
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        // Neither TCP nor TLS has a limit of its own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let address = uri.authority().map(ToString::to_string);
            let address = address.unwrap_or_default();
            let failed = |reason: &str| {
                ConnectError(format!("cannot connect to {address}: {reason}").into())
            };
            match timeout(CONNECT_TIMEOUT, this.connect(uri)).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(error)) => Err(failed(&chain(&*error))),
                Err(_) => Err(failed("it takes too long")),
            }
        })
    }
}

/// Text of an error and its causes; tonic shows only the first.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
