//! Channels to servers with TLS, and to servers that want a token.

use std::{
    collections::HashSet,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Barrier, mpsc},
    task::JoinSet,
    time::{advance, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Streaming,
    transport::{Server, server::Connected},
};

use super::*;
use crate::{
    PublishLoop, PublisherError, PublisherOptions, StatusEvent, StatusWatch, Update,
    testing::{FaultyServer, TEST_TIMEOUT},
    v1::{
        self, event_service_client::EventServiceClient, event_service_server::EventServiceServer,
        stream_status_response::Event,
    },
};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `NAME.pem` and `NAME.key`.
fn issue(directory: &Path, issuer: &Issuer, name: &str, purpose: ExtendedKeyUsagePurpose) {
    let names = match purpose {
        ExtendedKeyUsagePurpose::ServerAuth => ["localhost", "127.0.0.1", "::1"].as_slice(),
        _ => &[name],
    };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
    fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// An encrypted connection for tonic, which implements this only with its own TLS.
struct Io(TlsStream<TcpStream>);

impl Connected for Io {
    /// Certificate of the client.
    type ConnectInfo = Option<CertificateDer<'static>>;

    fn connect_info(&self) -> Self::ConnectInfo {
        let certificates = self.0.get_ref().1.peer_certificates();
        certificates.map(|certificates| certificates[0].clone())
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A server over TLS, and a directory with `ca.pem`, `server.pem` and more.
struct Secure {
    directory: TempDir,
    authority: Issuer,
    port: u16,
    /// Certificates of the clients, in order of their calls.
    clients: Arc<Mutex<Vec<Option<CertificateDer<'static>>>>>,
    tasks: JoinSet<()>,
}

impl Secure {
    async fn start(wants_certificate: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let authority = authority();
        let path = directory.path();
        fs::write(path.join("ca.pem"), authority.pem()).unwrap();
        issue(
            path,
            &authority,
            "server",
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match wants_certificate {
            false => config.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let certificate = CertificateDer::from_pem_file(path.join("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(path.join("server.key")).unwrap();
        let mut config = config.with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, incoming) = mpsc::channel(8);
        let clients = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&clients);
        let service = EventServiceServer::with_interceptor(
            FaultyServer::default(),
            move |request: Request<()>| {
                let client = request
                    .extensions()
                    .get::<Option<CertificateDer<'static>>>();
                seen.lock().unwrap().push(client.cloned().flatten());
                Ok(request)
            },
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = connections.send(Ok::<_, Infallible>(Io(stream))).await;
                }
            }
        });
        tasks.spawn(async move {
            let incoming = ReceiverStream::new(incoming);
            let _ = Server::builder()
                .serve_with_incoming(service, incoming)
                .await;
        });
        Self {
            directory,
            authority,
            port,
            clients,
            tasks,
        }
    }

    fn options(&self, host: &str) -> ChannelOptions {
        ChannelOptions::new(format!("https://{host}:{}", self.port))
            .ca_file(self.directory.path().join("ca.pem"))
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn publish(channel: &Channel) -> Result<u32, Status> {
    let request = v1::PublishRequest {
        events: vec![v1::Event::default()],
    };
    let mut client = EventServiceClient::new(channel.clone());
    let answer = timeout(TEST_TIMEOUT, client.publish(request)).await;
    Ok(answer.expect("it hangs")?.into_inner().accepted)
}

#[tokio::test]
async fn tls_verifies_the_host_against_the_authorities_of_the_file() {
    let server = Secure::start(false).await;
    for host in ["localhost", "127.0.0.1"] {
        let channel = server.options(host).connect().unwrap();
        assert_eq!(publish(&channel).await.unwrap(), 1, "{host}");
    }
    // TLS neither needs a provider of the process nor installs one.
    assert!(CryptoProvider::get_default().is_none());

    let refused = |options: ChannelOptions| async move {
        let status = publish(&options.connect().unwrap()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        status.message().to_owned()
    };
    let other_name = refused(server.options("127.0.0.2")).await;
    assert!(other_name.contains("127.0.0.2"), "{other_name}");
    let foreign = server.directory.path().join("foreign.pem");
    fs::write(&foreign, authority().pem()).unwrap();
    let message = refused(server.options("localhost").ca_file(&foreign)).await;
    assert!(message.contains("invalid peer certificate"), "{message}");
}

#[tokio::test]
async fn a_client_certificate_is_presented_and_read_again_for_each_connection() {
    let server = Secure::start(true).await;
    let directory = server.directory.path();
    let anonymous = server.options("localhost").connect().unwrap();
    let status = publish(&anonymous).await.unwrap_err();
    // TLS 1.3 reports the missing certificate after the client has begun its call.
    let lost = crate::retry::lost_connection(status);
    assert_eq!(lost.code(), Code::Unavailable, "{lost}");

    let purpose = || ExtendedKeyUsagePurpose::ClientAuth;
    issue(directory, &server.authority, "sensor", purpose());
    let options = server
        .options("localhost")
        .identity_files(directory.join("sensor.pem"), directory.join("sensor.key"));
    publish(&options.connect().unwrap()).await.unwrap();
    let first = server.clients.lock().unwrap().pop().unwrap().unwrap();
    let certificate = || CertificateDer::from_pem_file(directory.join("sensor.pem")).unwrap();
    assert_eq!(first, certificate());

    let before_renewal = options.connect().unwrap();
    issue(directory, &server.authority, "sensor", purpose());
    publish(&before_renewal).await.unwrap();
    let second = server.clients.lock().unwrap().pop().unwrap().unwrap();
    assert_eq!(second, certificate());
    assert_ne!(first, second);
}

#[tokio::test]
async fn unusable_files_are_named_when_the_channel_is_made() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let issuer = authority();
    fs::write(path.join("ca.pem"), issuer.pem()).unwrap();
    fs::write(path.join("text"), "not\na certificate").unwrap();
    for name in ["one", "two"] {
        issue(path, &issuer, name, ExtendedKeyUsagePurpose::ClientAuth);
    }
    let options = || ChannelOptions::new("https://localhost:1").ca_file(path.join("ca.pem"));
    let problem = |options: ChannelOptions| options.connect().unwrap_err().to_string();
    let expect = |options, ends: [&str; 2]| {
        let text = problem(options);
        assert!(ends.iter().all(|end| text.contains(end)), "{text}");
    };
    expect(
        options().ca_file(path.join("absent")),
        ["cannot read file of authorities", "absent"],
    );
    expect(
        options().ca_file(path.join("text")),
        ["text", "no certificate in PEM format"],
    );
    expect(
        options().identity_files(path.join("one.pem"), path.join("text")),
        ["client key", "no private key in PEM format"],
    );
    expect(
        options().identity_files(path.join("one.pem"), path.join("two.key")),
        ["two.key", "it is not the key of"],
    );
    expect(
        options().token_file(path.join("text")),
        ["token file", "one token, without Bearer"],
    );
    assert!(
        options()
            .identity_files(path.join("one.pem"), path.join("one.key"))
            .connect()
            .is_ok()
    );
}

#[tokio::test]
async fn a_token_is_never_sent_in_clear_beyond_loopback() {
    let channel = |address: &str| {
        ChannelOptions::new(address)
            .token(Token::new("secret-7").unwrap())
            .connect()
    };
    for bad in [
        "http://192.0.2.1:1",
        "relay.example.com:1",
        "http://localhost.example.com:1",
        "http://0.0.0.0:1",
        "http://[2001:db8::1]:1",
        "http://127.0.0.1.example.com:1",
    ] {
        let error = channel(bad).unwrap_err();
        assert!(matches!(error, ChannelError::TokenInClear(_)), "{bad}");
    }
    for good in [
        "http://127.0.0.1:1",
        "127.9.9.9:1",
        "http://[::1]:1",
        "http://[::ffff:127.0.0.1]:1",
        "LOCALHOST:1",
    ] {
        assert!(channel(good).is_ok(), "{good}");
    }
    let error = ChannelOptions::new("http://localhost:1").ca_file("ca.pem");
    let error = error.connect().unwrap_err();
    assert!(matches!(error, ChannelError::CertificateWithoutTls(_)));
    // A name of loopback that leads elsewhere.
    let connector = Connector::new(None, true);
    let mut refused = connector.clone();
    let elsewhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    if let Some(own) = own_address() {
        let port = elsewhere.local_addr().unwrap().port();
        let uri = format!("http://{}", SocketAddr::new(own, port));
        let error = refused.call(uri.parse().unwrap()).await.err().unwrap();
        assert!(error.to_string().contains("not on loopback"), "{error}");
    }
}

/// Address of this machine that is not on loopback, if it has one.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: this only chooses a route.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn tokens_are_checked_and_not_printed() {
    for bad in [
        "",
        " \n",
        "two words",
        "Bearer x",
        "ümlaut",
        &"x".repeat(8_193),
    ] {
        assert!(Token::new(bad).is_err(), "{bad}");
    }
    let token = Token::new(" secret-7\n").unwrap();
    let options = ChannelOptions::new("localhost:1").token(token.clone());
    let function = ChannelOptions::new("localhost:1").token_function({
        let token = token.clone();
        move || std::future::ready(Ok::<_, Infallible>(token.clone()))
    });
    let printed = format!("{token:?} {options:?} {function:?}");
    assert!(!printed.contains("secret-7"), "{printed}");
    let rejected = Token::new("secret 7").unwrap_err();
    assert!(!format!("{rejected:?} {rejected}").contains("secret"));
}

/// A server on loopback that accepts some tokens.
#[derive(Clone)]
struct Guarded {
    server: FaultyServer,
    valid: Arc<Mutex<HashSet<String>>>,
    calls: Arc<AtomicU32>,
    address: SocketAddr,
}

impl Guarded {
    async fn start(server: FaultyServer, valid: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guarded = Self {
            server,
            valid: Arc::default(),
            calls: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        guarded.accept_only(valid);
        let this = guarded.clone();
        let check = move |request: Request<()>| {
            this.calls.fetch_add(1, Ordering::Relaxed);
            let token = request.metadata().get("authorization");
            let token = token.and_then(|token| token.to_str().ok()?.strip_prefix("Bearer "));
            let valid = this.valid.lock().unwrap();
            match token.is_some_and(|token| valid.contains(token)) {
                true => Ok(request),
                false => Err(Status::unauthenticated("no such token")),
            }
        };
        let events = EventServiceServer::with_interceptor(guarded.server.clone(), check.clone());
        let statuses =
            v1::siem_integration_service_server::SiemIntegrationServiceServer::with_interceptor(
                Statuses(AtomicU32::new(0)),
                check,
            );
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .add_service(events)
                .add_service(statuses)
                .serve_with_incoming(incoming),
        );
        guarded
    }

    fn accept_only(&self, valid: &[&str]) {
        *self.valid.lock().unwrap() = valid.iter().map(|token| (*token).to_owned()).collect();
    }

    fn options(&self) -> ChannelOptions {
        ChannelOptions::new(self.address.to_string())
    }

    /// A channel whose tokens are `token-1`, `token-2` and so on, and their number.
    fn counting(&self) -> (Channel, Arc<AtomicU32>) {
        let fetches = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&fetches);
        let channel = self
            .options()
            .token_function(move || {
                let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                async move {
                    let token = Token::new(&format!("token-{number}"))?;
                    Ok::<_, ChannelError>(token.expires_in(Duration::from_secs(3600)))
                }
            })
            .connect();
        (channel.unwrap(), fetches)
    }
}

#[tokio::test]
async fn a_token_that_is_refused_is_fetched_anew_once() {
    let server = Guarded::start(FaultyServer::default(), &["token-2"]).await;
    let (channel, fetches) = server.counting();
    assert_eq!(publish(&channel).await.unwrap(), 1);
    assert_eq!(publish(&channel).await.unwrap(), 1);
    assert_eq!(fetches.load(Ordering::Relaxed), 2);
    assert_eq!(server.calls.load(Ordering::Relaxed), 3);
    assert_eq!(server.server.events().len(), 2, "each is accepted once");

    server.accept_only(&[]);
    let status = publish(&channel).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(fetches.load(Ordering::Relaxed), 3);
    assert_eq!(server.calls.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn the_time_limit_of_a_call_includes_the_fetch_of_a_token() {
    let never = || std::future::pending::<Result<Token, Infallible>>();
    let options = ChannelOptions::new("http://127.0.0.1:1").token_function(never);
    let mut request = Request::new(v1::PublishRequest::default());
    request.set_timeout(Duration::from_millis(20));
    let mut client = EventServiceClient::new(options.connect().unwrap());
    let answer = timeout(Duration::from_secs(20), client.publish(request)).await;
    let status = answer.expect("the limit has no effect").unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);

    for (text, millis) in [("2H", 7_200_000), ("3M", 180_000), ("4S", 4_000), ("5m", 5)] {
        let expected = Duration::from_millis(millis);
        assert_eq!(time_limit_of(text), Some(expected), "{text}");
    }
    assert_eq!(time_limit_of("6000u"), Some(Duration::from_millis(6)));
    assert_eq!(
        time_limit_of("99999999n"),
        Some(Duration::from_nanos(99_999_999))
    );
    for bad in ["", "S", "1", "1x", "-1S", "123456789S", "1é"] {
        assert_eq!(time_limit_of(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn a_fixed_token_is_not_sent_twice() {
    let server = Guarded::start(FaultyServer::default(), &["other"]).await;
    let channel = server.options().token(Token::new("fixed").unwrap());
    let status = publish(&channel.connect().unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(server.calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_hundred_calls_share_each_fetch_whether_it_succeeds_or_fails() {
    let server = Guarded::start(FaultyServer::default(), &["token-2"]).await;
    let (channel, fetches) = server.counting();
    let calls = |channel: &Channel| {
        let mut calls = JoinSet::new();
        let barrier = Arc::new(Barrier::new(100));
        for _ in 0..100 {
            let (channel, barrier) = (channel.clone(), Arc::clone(&barrier));
            calls.spawn(async move {
                barrier.wait().await;
                publish(&channel).await
            });
        }
        calls.join_all()
    };
    for answer in calls(&channel).await {
        assert_eq!(answer.unwrap(), 1);
    }
    assert_eq!(fetches.load(Ordering::Relaxed), 2);

    let failures = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&failures);
    let channel = server
        .options()
        .token_function(move || {
            count.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::task::yield_now().await;
                Err::<Token, _>("the issuer is away")
            }
        })
        .connect()
        .unwrap();
    for answer in calls(&channel).await {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "cannot get a token: the issuer is away");
    }
    assert_eq!(failures.load(Ordering::Relaxed), 1);
}

/// Tokens whose fetches are answered by the test.
fn scripted() -> (
    Arc<Tokens>,
    mpsc::Receiver<tokio::sync::oneshot::Sender<Token>>,
) {
    let (requests, script) = mpsc::channel(8);
    let source = Source::function(move || {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let requests = requests.clone();
        async move {
            requests.send(answer).await?;
            Ok::<_, StdError>(answered.await?)
        }
    });
    (Arc::new(Tokens::new(source)), script)
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_ahead_of_its_expiry_and_by_one_call() {
    let (tokens, mut script) = scripted();
    let token = |text: &str| {
        Token::new(text)
            .unwrap()
            .expires_in(Duration::from_secs(100))
    };
    let header = |text: &str| format!("Bearer {text}");
    let first = tokio::spawn({
        let tokens = Arc::clone(&tokens);
        async move { tokens.current().await }
    });
    script.recv().await.unwrap().send(token("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap().header(), header("first"));

    advance(Duration::from_secs(79)).await;
    tokens.current().await.unwrap();
    assert!(script.try_recv().is_err(), "it is not renewed yet");
    advance(Duration::from_secs(2)).await;
    for _ in 0..10 {
        // Calls go on with the earlier token.
        assert_eq!(tokens.current().await.unwrap().header(), header("first"));
    }
    let renewal = script.recv().await.unwrap();
    assert!(script.try_recv().is_err(), "one call renews it");
    drop(renewal);

    // It failed: the earlier token serves until it expires, and is renewed later.
    advance(Duration::from_secs(1)).await;
    assert_eq!(tokens.current().await.unwrap().header(), header("first"));
    advance(Duration::from_secs(6)).await;
    tokens.current().await.unwrap();
    script.recv().await.unwrap().send(token("second")).unwrap();
    // The lock is free once the renewal has ended.
    let again = tokens.fetch_ended().await;
    assert_eq!(again.unwrap().header(), header("second"));
    assert_eq!(tokens.current().await.unwrap().header(), header("second"));

    advance(Duration::from_secs(101)).await;
    let mut expired = Box::pin(tokens.current());
    tokio::select! {
        biased;
        _ = &mut expired => panic!("an expired token was used"),
        answer = script.recv() => answer.unwrap().send(token("third")).unwrap(),
    }
    assert_eq!(expired.await.unwrap().header(), header("third"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_does_not_end_the_fetch_for_others() {
    let (tokens, mut script) = scripted();
    let mut first = Box::pin(tokens.current());
    let answer = tokio::select! {
        biased;
        _ = &mut first => panic!("nothing was fetched"),
        answer = script.recv() => answer.unwrap(),
    };
    drop(first);
    let mut second = Box::pin(tokens.current());
    assert!(
        timeout(Duration::from_millis(1), &mut second)
            .await
            .is_err()
    );
    answer.send(Token::new("shared").unwrap()).unwrap();
    assert_eq!(second.await.unwrap().header(), "Bearer shared");
    assert!(script.try_recv().is_err());

    // One that never ends fails by itself.
    let (tokens, mut script) = scripted();
    let (result, _answer) = tokio::join!(tokens.current(), script.recv());
    assert!(result.err().unwrap().contains("takes too long"));
}

#[tokio::test]
async fn a_file_is_read_again_when_its_token_is_refused() {
    let server = Guarded::start(FaultyServer::default(), &["first"]).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, "first\n").unwrap();
    let channel = server.options().token_file(&path).connect().unwrap();
    publish(&channel).await.unwrap();
    fs::write(&path, "second\n").unwrap();
    server.accept_only(&["second"]);
    publish(&channel).await.unwrap();
    assert_eq!(server.calls.load(Ordering::Relaxed), 3);
    // The same token is not sent twice.
    server.accept_only(&["third"]);
    let status = publish(&channel).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(server.calls.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_after_some_time() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, "first").unwrap();
    let tokens = Arc::new(Tokens::new(Source::File(path.clone())));
    assert_eq!(tokens.current().await.unwrap().header(), "Bearer first");
    fs::write(&path, "second").unwrap();
    assert_eq!(tokens.current().await.unwrap().header(), "Bearer first");
    advance(Duration::from_secs(61)).await;
    assert_eq!(tokens.current().await.unwrap().header(), "Bearer second");
    fs::remove_file(&path).unwrap();
    advance(Duration::from_secs(61)).await;
    let problem = tokens.current().await.err().unwrap();
    assert!(problem.contains("cannot read token file"), "{problem}");
}

fn publisher_options() -> PublisherOptions {
    PublisherOptions {
        linger: Duration::ZERO,
        min_retry_wait: Duration::from_millis(1),
        max_retry_wait: Duration::from_millis(2),
        give_up_after: Duration::from_secs(30),
        max_requests_in_flight: 1,
        max_batch_events: 1,
        ..PublisherOptions::default()
    }
}

/// Publishes three events. Returns the result and the causes of retries.
async fn run_publisher(channel: Channel) -> (Result<(), PublisherError>, Vec<Status>) {
    let (sender, mut updates, publisher) = PublishLoop::new(channel, publisher_options());
    let feed = async move {
        for tag in 0..3 {
            if sender.send(&v1::Event::default(), tag).await.is_err() {
                break;
            }
        }
    };
    let causes = async {
        let mut causes = Vec::new();
        while let Some(update) = updates.recv().await {
            if let Update::Retrying(retrying) = update {
                causes.push(retrying.cause);
            }
        }
        causes
    };
    let all = async { tokio::join!(feed, causes, publisher.run()) };
    let ((), causes, result) = timeout(TEST_TIMEOUT, all).await.expect("it hangs");
    (result, causes)
}

#[tokio::test]
async fn a_publisher_continues_with_a_new_token_once() {
    use crate::testing::Fault::{Accept, Answer, Break};
    for fault in [Break(Code::Unauthenticated), Answer(Code::Unauthenticated)] {
        // At the start the token is refused; later an open stream is ended.
        let plan = vec![Accept, fault, Accept, fault];
        let server = Guarded::start(FaultyServer::with_plan(plan), &["token-2"]).await;
        let (channel, _) = server.counting();
        let (result, causes) = run_publisher(channel).await;
        result.unwrap();
        assert_eq!(causes.len(), 2, "{fault:?}");
        assert_eq!(server.server.events().len(), 3, "{fault:?}");

        let plan = vec![Accept, fault, fault];
        let server = Guarded::start(FaultyServer::with_plan(plan), &["token-1"]).await;
        let (channel, _) = server.counting();
        let (result, _) = run_publisher(channel).await;
        let Err(PublisherError::Refused(status)) = result else {
            panic!("{fault:?}: {result:?}");
        };
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let server = Guarded::start(FaultyServer::default(), &[]).await;
    let (channel, fetches) = server.counting();
    let (result, _) = run_publisher(channel).await;
    assert!(matches!(result, Err(PublisherError::Refused(_))));
    assert_eq!(fetches.load(Ordering::Relaxed), 2);
}

/// A server that ends each connection with this GOAWAY. tonic derives a code from it by which
/// no server refused anything.
#[tokio::test]
async fn a_goaway_is_a_lost_connection() {
    const INTERNAL_ERROR: u8 = 2;
    const INADEQUATE_SECURITY: u8 = 12;
    for reason in [INTERNAL_ERROR, INADEQUATE_SECURITY] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
                let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, reason];
                let mut preface = [0; 24];
                let _ = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut preface).await;
                let _ = stream
                    .write_all(&[&settings[..], &goaway[..]].concat())
                    .await;
                open.push(stream);
            }
        });
        let options = PublisherOptions {
            give_up_after: Duration::from_millis(100),
            ..publisher_options()
        };
        let channel = crate::channel(&address).unwrap();
        let (sender, _, publisher) = PublishLoop::new(channel, options);
        sender.send(&v1::Event::default(), 0).await.unwrap();
        let ended = timeout(TEST_TIMEOUT, publisher.run())
            .await
            .expect("it hangs");
        let Err(PublisherError::GaveUp { last, .. }) = ended else {
            panic!("{reason}: {ended:?}");
        };
        assert_eq!(last.code(), Code::Unavailable, "{reason}: {last}");
        let channel = crate::channel(&address).unwrap();
        let mut watch = StatusWatch::new(channel, vec![]);
        let next = timeout(Duration::from_millis(300), watch.next()).await;
        assert!(next.is_err(), "{reason}: the watch ended: {next:?}");
        server.abort();
    }
}

/// Statuses: each stream has the marker of an empty snapshot and one deletion, and then ends as
/// UNAUTHENTICATED; those after the third only end so.
struct Statuses(AtomicU32);

type StatusStream = ReceiverStream<Result<v1::StreamStatusResponse, Status>>;

#[tonic::async_trait]
impl v1::siem_integration_service_server::SiemIntegrationService for Statuses {
    type StreamStatusStream = StatusStream;

    async fn stream_status(
        &self,
        _: Request<v1::StreamStatusRequest>,
    ) -> Result<Response<StatusStream>, Status> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let (messages, stream) = mpsc::channel(3);
        if number < 3 {
            let events = [
                Event::Synced(v1::StatusSynced::default()),
                Event::Deleted(v1::StatusDeleted::default()),
            ];
            for event in events {
                let message = v1::StreamStatusResponse {
                    event: Some(event),
                    resume_token: number.to_string(),
                };
                messages.try_send(Ok(message)).unwrap();
            }
        }
        let expired = Status::unauthenticated("the token has expired");
        messages.try_send(Err(expired)).unwrap();
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn configure(
        &self,
        _: Request<v1::ConfigureRequest>,
    ) -> Result<Response<v1::ConfigureResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn generate_external_id(
        &self,
        _: Request<v1::GenerateExternalIdRequest>,
    ) -> Result<Response<v1::GenerateExternalIdResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_onboarding(
        &self,
        _: Request<v1::GetOnboardingRequest>,
    ) -> Result<Response<v1::GetOnboardingResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_audit_entries(
        &self,
        _: Request<v1::ListAuditEntriesRequest>,
    ) -> Result<Response<v1::ListAuditEntriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(
        &self,
        _: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn send_test(
        &self,
        _: Request<v1::SendTestRequest>,
    ) -> Result<Response<v1::SendTestResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test]
async fn a_watch_continues_with_a_new_token_once() {
    let server = Guarded::start(FaultyServer::default(), &["token-1"]).await;
    let (channel, _) = server.counting();
    let mut watch = StatusWatch::new(channel, vec![]);
    let snapshot = timeout(TEST_TIMEOUT, watch.next()).await.expect("it hangs");
    assert!(matches!(snapshot.unwrap(), StatusEvent::Snapshot(_)));
    for number in 0..3 {
        let event = timeout(TEST_TIMEOUT, watch.next()).await.expect("it hangs");
        assert!(matches!(event.unwrap(), StatusEvent::Deleted(_)));
        assert_eq!(watch.resume_token(), number.to_string());
    }
    let ended = timeout(TEST_TIMEOUT, watch.next()).await.expect("it hangs");
    assert_eq!(ended.unwrap_err().code, Code::Unauthenticated);
    assert_eq!(server.calls.load(Ordering::Relaxed), 4);
}

/// A body of which the server reads a part before it refuses the call.
#[tokio::test]
async fn a_stream_is_sent_again_from_its_first_message() {
    let server = Guarded::start(FaultyServer::default(), &["token-2"]).await;
    let (channel, _) = server.counting();
    let (messages, outgoing) = mpsc::channel(4);
    let request = |id: &str| v1::PublishStreamRequest {
        request_id: id.to_owned(),
        events: vec![v1::Event::default()],
    };
    for id in ["1", "2"] {
        messages.send(request(id)).await.unwrap();
    }
    let mut client = EventServiceClient::new(channel);
    let call = client.publish_stream(ReceiverStream::new(outgoing));
    let answers = timeout(TEST_TIMEOUT, call).await.expect("it hangs");
    let mut answers: Streaming<_> = answers.unwrap().into_inner();
    messages.send(request("3")).await.unwrap();
    drop(messages);
    let mut ids = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        ids.push(answer.request_id);
    }
    assert_eq!(ids, ["1", "2", "3"]);
}
