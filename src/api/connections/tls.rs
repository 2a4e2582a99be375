//! TLS: certificate, key and authorities of clients, read again when they change.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use aws_lc_rs::digest;
use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs as provider,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime,
        pem::{PemObject, SectionKind},
    },
    server::{
        NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Reason, Table, lock};
use crate::{
    metrics,
    secret_file::{self, SecretFileError},
};

/// Interval of checks for changed files. They are compared by content: Kubernetes replaces a
/// directory's link, so that a watch on a file would see nothing.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Interval of log lines about a problem that persists.
const ALARM_INTERVAL: Duration = Duration::from_secs(3600);
/// Bytes of a file of certificates.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Files of the TLS server, in PEM.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Certificate of this service, followed by its intermediates.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of clients' certificates, and CRLs.
    pub client_ca: Option<PathBuf>,
    /// Refuses clients without a certificate. Without effect if `client_ca` is None.
    pub require_client_cert: bool,
    /// Offers HTTP/1.1 beside HTTP/2.
    pub http1: bool,
}

/// Problem with a file of the TLS server.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct TlsError {
    /// Setting that names the file.
    pub setting: &'static str,
    /// The problem and its remedy.
    pub problem: String,
}

const CERT: &str = "tls-cert";
const KEY: &str = "tls-key";
const CLIENT_CA: &str = "tls-client-ca";

/// Acceptor of TLS connections.
#[derive(Debug)]
pub struct Tls {
    options: TlsOptions,
    current: RwLock<Arc<Loaded>>,
}

/// Content of the files. Certificate and key replace each other together; authorities replace each
/// other apart from them, so that a bad certificate does not keep an authority that was removed.
#[derive(Clone)]
struct Loaded {
    pair: Pair,
    clients: Option<Clients>,
    acceptor: TlsAcceptor,
}

/// Certificate and key.
#[derive(Clone)]
struct Pair {
    /// SHA-256 of the content of both files.
    digest: [u8; 32],
    certified: Arc<SingleCertAndKey>,
    /// Validity of the certificate, in seconds since 1970.
    not_before: i64,
    not_after: i64,
}

/// Authorities of clients.
#[derive(Clone)]
struct Clients {
    /// SHA-256 of the content of the file.
    digest: [u8; 32],
    verifier: Arc<dyn ClientCertVerifier>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Loaded");
        debug
            .field("not_after", &self.pair.not_after)
            .finish_non_exhaustive()
    }
}

/// Result of comparing the files with what is loaded.
#[derive(Debug, Default)]
struct Reload {
    /// Something was loaded.
    has_changed: bool,
    /// Problems of files, of which the earlier content stays in use.
    problems: Vec<TlsError>,
}

impl Tls {
    /// Reads the files. A certificate that is not valid now is accepted with an error in the log,
    /// because delivery does not depend on it.
    ///
    /// # Errors
    ///
    /// [`TlsError`] for the first problem of a file.
    pub fn load(options: TlsOptions) -> Result<Self, TlsError> {
        let pair = Pair::load(&PairFiles::read(&options)?, &options)?;
        let clients = match &options.client_ca {
            Some(path) => Some(Clients::load(&read(CLIENT_CA, path)?, path, &options)?),
            None => None,
        };
        Ok(Self {
            current: RwLock::new(Arc::new(Loaded::new(pair, clients, options.http1))),
            options,
        })
    }

    /// End of the validity of the certificate, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.current().pair.not_after
    }

    /// Checks whether the certificate is valid at a time.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if it has expired or is not valid yet.
    pub fn check_validity(&self, at: Timestamp) -> Result<(), TlsError> {
        self.current().pair.check_validity(&self.options, at)
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Performs the handshake of a connection.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = self.current().acceptor.clone();
        acceptor.accept(stream).await
    }

    /// Whether a client's certificates are valid now, by the authorities and CRLs that are
    /// loaded now. None is as valid as it was at the handshake.
    pub(super) fn verifies(&self, certificates: &[CertificateDer<'_>]) -> bool {
        let Some((own, intermediates)) = certificates.split_first() else {
            return true;
        };
        self.current().clients.as_ref().is_some_and(|clients| {
            let verified = clients
                .verifier
                .verify_client_cert(own, intermediates, UnixTime::now());
            verified.is_ok()
        })
    }

    /// Loads the files that have changed. Those that are loaded stay if there is any problem with
    /// the new ones, and a certificate that is valid now is replaced only by another one.
    fn reload(&self, now: Timestamp) -> Reload {
        let current = self.current();
        let mut loaded = Loaded::clone(&current);
        let mut reload = Reload::default();
        match self.changed_pair(&current.pair, now) {
            Ok(Some(pair)) => {
                loaded.pair = pair;
                reload.has_changed = true;
            }
            Ok(None) => {}
            Err(problem) => reload.problems.push(problem),
        }
        match self.changed_clients(current.clients.as_ref()) {
            Ok(Some(clients)) => {
                loaded.clients = Some(clients);
                reload.has_changed = true;
            }
            Ok(None) => {}
            Err(problem) => reload.problems.push(problem),
        }
        if reload.has_changed {
            let http1 = self.options.http1;
            let loaded = Arc::new(Loaded::new(loaded.pair, loaded.clients, http1));
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        }
        metrics::TLS_FILES_REFUSED.store(reload.problems.len() as u64, Ordering::Relaxed);
        reload
    }

    fn changed_pair(&self, current: &Pair, now: Timestamp) -> Result<Option<Pair>, TlsError> {
        let files = PairFiles::read(&self.options)?;
        if files.digest() == current.digest {
            current.check_validity(&self.options, now)?;
            return Ok(None);
        }
        let pair = Pair::load(&files, &self.options)?;
        if current.check_validity(&self.options, now).is_ok() {
            pair.check_validity(&self.options, now)?;
        }
        Ok(Some(pair))
    }

    fn changed_clients(&self, current: Option<&Clients>) -> Result<Option<Clients>, TlsError> {
        let Some(path) = &self.options.client_ca else {
            return Ok(None);
        };
        let pem = read(CLIENT_CA, path)?;
        if current.is_some_and(|current| current.digest == digest_of(&[&pem])) {
            return Ok(None);
        }
        Clients::load(&pem, path, &self.options).map(Some)
    }
}

impl Loaded {
    fn new(pair: Pair, clients: Option<Clients>, http1: bool) -> Self {
        metrics::CERTIFICATE_NOT_AFTER.store(pair.not_after, Ordering::Relaxed);
        // The provider supports the protocol versions that rustls considers safe.
        #[expect(clippy::expect_used, reason = "see the comment")]
        let builder = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3");
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(&clients.verifier)),
            None => builder.with_no_client_auth(),
        };
        let certified: Arc<dyn ResolvesServerCert> = Arc::clone(&pair.certified) as _;
        let mut config = builder.with_cert_resolver(certified);
        config.alpn_protocols = vec![b"h2".to_vec()];
        if http1 {
            config.alpn_protocols.push(b"http/1.1".to_vec());
        }
        // A session that is resumed would bring back a certificate of an authority that was
        // removed. Connections live long, so that resumption saves nothing.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Self {
            pair,
            clients,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }
}

/// Content of the files of certificate and key.
struct PairFiles {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

impl PairFiles {
    fn read(options: &TlsOptions) -> Result<Self, TlsError> {
        let key = secret_file::read(&options.key);
        Ok(Self {
            cert: read(CERT, &options.cert)?,
            key: key.map_err(|error: SecretFileError| TlsError {
                setting: KEY,
                problem: error.to_string(),
            })?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        digest_of(&[&self.cert, &self.key])
    }
}

impl Pair {
    fn load(files: &PairFiles, options: &TlsOptions) -> Result<Self, TlsError> {
        let wrong_cert = wrong(CERT, &options.cert);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&files.cert).collect();
        let chain = chain.map_err(|error| wrong_cert(&format!("is not PEM: {error}")))?;
        let Some(own) = chain.first() else {
            return Err(wrong_cert(
                "has no certificate in PEM; give one, with its intermediates",
            ));
        };
        let (not_before, not_after) =
            validity(own).ok_or_else(|| wrong_cert("does not begin with an X.509 certificate"))?;
        let wrong_key = wrong(KEY, &options.key);
        // The error of the parser may repeat a part of the key.
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|_| wrong_key("has no private key in PEM; give one without a passphrase"))?;
        let certified = CertifiedKey::from_der(chain, key, &provider::default_provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong_key(&format!(
                "is not the key of the certificate in {}; replace both",
                options.cert.display()
            )),
            error => wrong_key(&format!("or its certificate cannot be used: {error}")),
        })?;
        Ok(Self {
            digest: files.digest(),
            certified: Arc::new(SingleCertAndKey::from(certified)),
            not_before,
            not_after,
        })
    }

    fn check_validity(&self, options: &TlsOptions, now: Timestamp) -> Result<(), TlsError> {
        let now = now.as_second();
        let problem = match () {
            () if self.not_after < now => "has expired",
            () if self.not_before > now => "is not valid yet",
            () => return Ok(()),
        };
        Err(TlsError {
            setting: CERT,
            problem: format!(
                "the certificate in {} {problem}; replace it, and its key with it",
                options.cert.display()
            ),
        })
    }
}

impl Clients {
    fn load(pem: &[u8], path: &Path, options: &TlsOptions) -> Result<Self, TlsError> {
        let verifier = client_verifier(pem, options.require_client_cert, wrong(CLIENT_CA, path))?;
        Ok(Self {
            digest: digest_of(&[pem]),
            verifier,
        })
    }
}

fn digest_of(files: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for file in files {
        context.update(&file.len().to_be_bytes());
        context.update(file);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// Returns a function that makes errors of one file.
fn wrong(setting: &'static str, path: &Path) -> impl Fn(&str) -> TlsError + use<> {
    let path = path.display().to_string();
    move |problem: &str| TlsError {
        setting,
        problem: format!("{path} {problem}"),
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |problem: String| TlsError { setting, problem };
    let describe = |error: io::Error| failed(format!("cannot read {}: {error}", path.display()));
    let metadata = fs::metadata(path).map_err(describe)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(failed(format!(
            "{} is not a file of at most 4 MiB; give a file of certificates in PEM",
            path.display()
        )));
    }
    fs::read(path).map_err(describe)
}

/// Verifier by the authorities in `pem`. CRLs there are honoured for each certificate of a chain;
/// a certificate whose authority has no CRL there counts as not revoked.
fn client_verifier(
    pem: &[u8],
    require: bool,
    wrong: impl Fn(&str) -> TlsError,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let (mut roots, mut crls) = (RootCertStore::empty(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        match section.map_err(|error| wrong(&format!("is not PEM: {error}")))? {
            (SectionKind::Certificate, der) => {
                let added = roots.add(CertificateDer::from(der));
                added.map_err(|error| wrong(&format!("has a bad certificate: {error}")))?;
            }
            (SectionKind::Crl, der) => crls.push(CertificateRevocationListDer::from(der)),
            (kind, _) => {
                return Err(wrong(&format!(
                    "has a section of kind {kind:?}; give certificates of authorities and CRLs only"
                )));
            }
        }
    }
    if roots.is_empty() {
        return Err(wrong(
            "has no certificate in PEM; give those of the authorities of clients",
        ));
    }
    let provider = Arc::new(provider::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(crls)
        .allow_unknown_revocation_status();
    if !require {
        builder = builder.allow_unauthenticated();
    }
    let built = builder.build();
    built.map_err(|error| wrong(&format!("has a CRL that cannot be used: {error}")))
}

/// Validity of a certificate, in seconds since 1970.
fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    Some((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// End of the validity of a client's own certificate, in seconds since 1970.
pub(super) fn expires(certificates: &[CertificateDer<'_>]) -> Option<i64> {
    certificates.first().and_then(validity).map(|(_, end)| end)
}

/// Loads the files when they change, and then cuts the connections of clients whose certificates
/// are not valid any more. Ends with the server.
pub(super) async fn keep_current(tls: Arc<Tls>, table: Arc<Table>) {
    let mut checks = interval(RELOAD_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut alarms: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = table.stop.cancelled() => return,
            _ = checks.tick() => {}
        }
        let reloading = Arc::clone(&tls);
        let reload = tokio::task::spawn_blocking(move || reloading.reload(Timestamp::now()));
        // A task that panicked is a defect; the next check shows it again.
        let Ok(reload) = reload.await else { continue };
        if reload.has_changed {
            tracing::info!("TLS certificate, key or authorities were loaded again");
            cut_unverified(&tls, &table);
        }
        alarms.retain(|known, at| {
            let mut problems = reload.problems.iter();
            problems.any(|error| error.problem == *known) && at.elapsed() < ALARM_INTERVAL
        });
        for TlsError { setting, problem } in reload.problems {
            if let Entry::Vacant(alarm) = alarms.entry(problem) {
                tracing::error!(
                    setting,
                    problem = alarm.key(),
                    "the TLS files cannot be used; those loaded before stay in use"
                );
                alarm.insert(Instant::now());
            }
        }
    }
}

fn cut_unverified(tls: &Tls, table: &Table) {
    let connections: Vec<_> = lock(&table.open).connections.values().cloned().collect();
    for connection in connections {
        let identity = connection.identity.get();
        if identity.is_some_and(|identity| !tls.verifies(&identity.peer.certificates)) {
            connection.cut.cancel();
            table.report(Reason::Unverified, connection.address);
        }
    }
}
