//! Keys of issuers by HTTP.

use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use siem_client::v1::ListRequest;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tonic::Code;

use crate::harness::{Callers, ProcessEnv, TestEnv, TokenKey, bearer, with_timeout};

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// HTTP server that answers every request in the same way, and counts them.
struct KeyServer {
    url: String,
    answer: Arc<Mutex<String>>,
    requests: watch::Receiver<u64>,
}

impl KeyServer {
    async fn start(answer: String) -> Self {
        Self::start_with(answer, None).await
    }

    /// A server with a certificate of its own, which is returned in PEM.
    async fn start_with_tls(answer: String) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = Self::start_with(answer, Some(acceptor)).await;
        (server, made.cert.pem())
    }

    async fn start_with(answer: String, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = match tls {
            Some(_) => format!("https://localhost:{}/keys", address.port()),
            None => format!("http://{address}/keys"),
        };
        let answer = Arc::new(Mutex::new(answer));
        let (count, requests) = watch::channel(0);
        let current = Arc::clone(&answer);
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let mut connection: Box<dyn Connection> = match &tls {
                    None => Box::new(connection),
                    Some(tls) => match tls.accept(connection).await {
                        Ok(connection) => Box::new(connection),
                        // The client does not trust the certificate.
                        Err(_) => continue,
                    },
                };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(connection.read_u8().await.unwrap());
                }
                let answer = current.lock().unwrap().clone();
                connection.write_all(answer.as_bytes()).await.unwrap();
                connection.shutdown().await.unwrap();
                count.send_modify(|count| *count += 1);
            }
        });
        Self {
            url,
            answer,
            requests,
        }
    }

    async fn until_requests(&mut self, number: u64) {
        let reached = self.requests.wait_for(|count| *count >= number);
        with_timeout("requests for keys", reached).await.unwrap();
    }
}

fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_server_that_is_down_at_the_start_is_asked_again() {
    let elsewhere = KeyServer::start(http("200 OK", &TokenKey::new("x").key_set())).await;
    let location = format!("location: {}\r\n", elsewhere.url);
    let redirect = http("302 Found", "").replace("connection", &format!("{location}connection"));
    let mut server = KeyServer::start(redirect).await;
    let location = format!("jwks_url = '{}'", server.url);
    let callers = Callers::with_keys(&location, &[Callers::caller("admin", "read", &["*"])]);
    let path = callers.path().to_str().unwrap().to_owned();
    let settings = [
        ("callers", path.as_str()),
        ("failed-authentications-per-second-per-address", "0"),
    ];
    let env = TestEnv::with(&settings).await;
    let list = async |token: &str| {
        let request = bearer(token, ListRequest::default());
        env.api.integrations().list(request).await.map(drop)
    };
    let token = callers.token("admin");
    // It waits for the first fetch, which fails.
    let status = list(&token).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status.message().contains("could not be fetched"),
        "{status:?}"
    );
    for useless in ["", "<html>", "{\"keys\":[]}"] {
        let before = *server.requests.borrow();
        *server.answer.lock().unwrap() = http("200 OK", useless);
        server.until_requests(before + 1).await;
        assert_eq!(
            list(&token).await.unwrap_err().code(),
            Code::Unauthenticated
        );
    }
    *server.answer.lock().unwrap() = http("200 OK", &callers.key.key_set());
    with_timeout("keys", async {
        while list(&token).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        *elsewhere.requests.borrow(),
        0,
        "redirects are not followed"
    );

    // Tokens with unknown keys cause no request so soon after the last one.
    let before = *server.requests.borrow();
    for number in 0..50 {
        let other = TokenKey::new(&number.to_string()).sign(&Callers::claims("admin"));
        let status = list(&other).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    assert_eq!(*server.requests.borrow(), before);
    list(&token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_by_https_from_a_server_of_a_trusted_authority_alone() {
    let env = ProcessEnv::new().await;
    let (mut server, pem) = KeyServer::start_with_tls(http("200 OK", "")).await;
    let location = format!("jwks_url = '{}'", server.url);
    let callers = Callers::with_keys(&location, &[Callers::caller("admin", "read", &["*"])]);
    *server.answer.lock().unwrap() = http("200 OK", &callers.key.key_set());
    let ca = env.dir.path().join("authority.pem");
    std::fs::write(&ca, pem).unwrap();
    let flag = format!("--callers={}", callers.path().display());
    let token = callers.token("admin");

    // The authorities of the system.
    let process = env.start_with(&[&flag]).await;
    process
        .until_logged("keys of an issuer of tokens cannot be fetched", 0)
        .await;
    let request = bearer(&token, ListRequest::default());
    let refused = process.api.integrations().list(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    process.kill().await;
    assert_eq!(*server.requests.borrow(), 0);

    let launcher = [
        "/usr/bin/env".to_owned(),
        format!("SSL_CERT_FILE={}", ca.display()),
    ];
    let process = env.start_under_with(&launcher, &[&flag]).await;
    server.until_requests(1).await;
    let request = bearer(&token, ListRequest::default());
    process.api.integrations().list(request).await.unwrap();
    process.kill().await;
}
