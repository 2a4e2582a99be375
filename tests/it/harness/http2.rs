//! HTTP/2 clients that send and read no more than they are asked to.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::Request;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Status;

use super::with_timeout;

/// A connection. Its frames are read all the time, bodies only by [`Http2::call`].
pub struct Http2 {
    send: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A call whose answer nobody reads.
pub struct OpenCall {
    pub answer: ResponseFuture,
    pub request: SendStream<Bytes>,
}

impl Http2 {
    pub async fn connect(address: SocketAddr, window: u32) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), window).await
    }

    /// A connection whose answers have a window of this size each, which never grows by itself.
    pub async fn over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        window: u32,
    ) -> Self {
        let mut builder = Builder::new();
        builder
            .initial_window_size(window)
            .initial_connection_window_size(64 << 20);
        let handshake = builder.handshake::<_, Bytes>(io);
        let (send, connection) = with_timeout("HTTP/2", handshake).await.unwrap();
        Self {
            send,
            connection: tokio::spawn(connection),
        }
    }

    /// Sends a request with this body, and its end unless the call is to stay half-sent.
    pub async fn open(&mut self, method: &str, body: Vec<u8>, end: bool) -> OpenCall {
        let request = Request::post(format!("http://localhost/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut send = self.send.clone().ready().await.unwrap();
        let (answer, mut request) = send.send_request(request, false).unwrap();
        request.send_data(body.into(), end).unwrap();
        OpenCall { answer, request }
    }

    /// Performs a call. None if the connection has ended.
    pub async fn call(&mut self, method: &str, body: Vec<u8>) -> Option<Status> {
        let call = async {
            let mut send = self.send.clone().ready().await.ok()?;
            let request = Request::post(format!("http://localhost/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (answer, mut request) = send.send_request(request, false).ok()?;
            request.send_data(body.into(), true).ok()?;
            status(answer).await
        };
        with_timeout(method, call).await
    }

    /// Waits until the server has ended the connection.
    pub async fn ended(self) {
        let _how = with_timeout("the end of a connection", self.connection).await;
        // Without it the client would end the connection.
        drop(self.send);
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.connection.is_finished()
    }
}

/// Reads an answer to its end. None if the connection ended before.
pub async fn status(answer: ResponseFuture) -> Option<Status> {
    let answer = answer.await.ok()?;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Some(status);
    }
    let mut body: RecvStream = answer.into_body();
    while let Some(data) = body.data().await {
        let length = data.ok()?.len();
        body.flow_control().release_capacity(length).ok()?;
    }
    let trailers = body.trailers().await.ok()??;
    Status::from_header_map(&trailers)
}

/// A TLS client, by the PEM texts of the server's authority and of its own certificate and key.
#[derive(Clone)]
pub struct TlsClient {
    connector: TlsConnector,
}

impl TlsClient {
    pub fn new(authority: &str, own: Option<(&str, &str)>) -> Self {
        Self::with_protocols(authority, own, &["h2"])
    }

    /// A client that offers these protocols by ALPN.
    pub fn with_protocols(authority: &str, own: Option<(&str, &str)>, protocols: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config
                    .with_client_auth_cert(vec![certificate], key)
                    .unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let protocols = protocols.iter();
        config.alpn_protocols = protocols.map(|name| name.as_bytes().to_vec()).collect();
        Self {
            connector: TlsConnector::from(Arc::new(config)),
        }
    }

    pub async fn handshake(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let handshake = self.connector.connect(name, stream);
        with_timeout("a TLS handshake", handshake).await
    }

    /// A connection on which a call has succeeded. None if the server refuses the client.
    pub async fn connect(&self, address: SocketAddr) -> Option<Http2> {
        let stream = self.handshake(address).await.ok()?;
        let mut builder = Builder::new();
        builder.initial_window_size(65_535);
        let (send, connection) = builder.handshake::<_, Bytes>(stream).await.ok()?;
        let mut client = Http2 {
            send,
            connection: tokio::spawn(connection),
        };
        // A server refuses a client's certificate after the client's side of the handshake.
        let status = client
            .call("grpc.health.v1.Health/Check", vec![0; 5])
            .await?;
        (status.code() == tonic::Code::Ok).then_some(client)
    }
}
