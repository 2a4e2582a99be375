//! TLS: certificates of both sides, and their replacement.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::harness::{Http2, Process, ProcessEnv, TlsClient, print, with_timeout};

const MISMATCH: &str = "is not the key of the certificate";

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Certificate and key in PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, serial: u64) -> Pair {
        self.issue_until(serial, 2200)
    }

    fn issue_until(&self, serial: u64, year: i32) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn revoke(&self, serial: u64) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2200, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Pair {
    fn client(&self, server: &Authority) -> TlsClient {
        TlsClient::new(&server.pem, Some((&self.certificate, &self.key)))
    }

    fn write_certificate(&self, directory: &Path) {
        fs::write(directory.join("tls.crt"), &self.certificate).unwrap();
    }

    fn write_key(&self, directory: &Path) {
        let path = directory.join("tls.key");
        fs::write(&path, &self.key).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn write(&self, directory: &Path) {
        self.write_certificate(directory);
        self.write_key(directory);
    }
}

fn write_clients(directory: &Path, pem: &[&str]) {
    fs::write(directory.join("clients.pem"), pem.concat()).unwrap();
}

/// Arguments of a process with the files in a directory.
fn arguments(directory: &Path, with_clients: bool) -> Vec<String> {
    let mut files = vec![("tls-cert", "tls.crt"), ("tls-key", "tls.key")];
    if with_clients {
        files.push(("tls-client-ca", "clients.pem"));
    }
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    files
        .into_iter()
        .map(|(flag, name)| format!("--{flag}={}", path(name)))
        .collect()
}

async fn start(env: &ProcessEnv, directory: &Path, with_clients: bool) -> Process {
    let arguments = arguments(directory, with_clients);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    env.start_with(&arguments).await
}

const RELOADED: &str = "TLS certificate, key or authorities were loaded again";

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_of_the_authority_connect() {
    let (env, files) = (ProcessEnv::new().await, tempfile::tempdir().unwrap());
    let (servers, clients, others) = (
        Authority::new("servers"),
        Authority::new("clients"),
        Authority::new("others"),
    );
    servers.issue(1).write(files.path());
    write_clients(files.path(), &[&clients.pem]);
    // Beyond loopback nothing else is needed.
    let arguments = arguments(files.path(), true);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let arguments = [&arguments[..], &["--listen", "0.0.0.0:0"]].concat();
    let process = env.start_with(&arguments).await;
    let address = ([127, 0, 0, 1], process.address.port()).into();
    assert!(
        clients
            .issue(1)
            .client(&servers)
            .connect(address)
            .await
            .is_some()
    );
    for refused in [
        others.issue(1).client(&servers),
        clients.issue_until(2, 2021).client(&servers),
        TlsClient::new(&servers.pem, None),
    ] {
        assert!(refused.connect(address).await.is_none());
    }
    // In clear text there is no HTTP/2.
    let clear = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(clear).await.unwrap();
    let ended = with_timeout("the end of the connection", connection).await;
    assert!(
        ended.is_err()
            || futures_util::poll!(std::future::poll_fn(|cx| send.poll_ready(cx))).is_ready()
    );
    assert!(!process.log().contains("insecure"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_silent_in_its_handshake_delays_nobody() {
    let (env, files) = (ProcessEnv::new().await, tempfile::tempdir().unwrap());
    let servers = Authority::new("servers");
    servers.issue(1).write(files.path());
    let process = start(&env, files.path(), false).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        // The beginning of a ClientHello.
        stream.write_all(&[22, 3, 1, 1, 0, 1]).await.unwrap();
        silent.push(stream);
    }
    let client = TlsClient::new(&servers.pem, None);
    let begun = Instant::now();
    assert!(client.connect(process.address).await.is_some());
    assert!(begun.elapsed() < Duration::from_secs(5));
    let stalled = client.handshake(process.address).await.unwrap();
    let begun = Instant::now();
    process.stop().await;
    print(&format!("stopped after {:?}", begun.elapsed()));
    assert!(begun.elapsed() < Duration::from_secs(8));
    drop((stalled, silent));
}

/// Whether a new connection is served with a certificate of this authority.
async fn is_served(process: &Process, authority: &Authority) -> bool {
    let client = TlsClient::new(&authority.pem, None);
    client.connect(process.address).await.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_and_key_are_replaced_together() {
    let (env, files) = (ProcessEnv::new().await, tempfile::tempdir().unwrap());
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    old.issue(1).write(files.path());
    let process = start(&env, files.path(), false).await;
    let mut open = TlsClient::new(&old.pem, None)
        .connect(process.address)
        .await
        .unwrap();

    let pair = new.issue(2);
    pair.write_certificate(files.path());
    process.until_logged(MISMATCH, 0).await;
    assert!(is_served(&process, &old).await);
    pair.write_key(files.path());
    process.until_logged(RELOADED, 0).await;
    assert!(is_served(&process, &new).await);
    assert!(!is_served(&process, &old).await);
    let call = open.call(super::GET, super::get());
    assert!(call.await.is_some(), "the connection goes on");

    new.issue_until(3, 2021).write(files.path());
    process.until_logged("has expired", 0).await;
    assert!(is_served(&process, &new).await);
    let log = process.stop().await;
    assert_eq!(log.matches(RELOADED).count(), 1);
    // One alarm for each problem, although the files are read every few seconds.
    for problem in [MISMATCH, "has expired"] {
        assert_eq!(log.matches(problem).count(), 1, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_removed_authority_and_revoked_clients_are_cut() {
    let (env, files) = (ProcessEnv::new().await, tempfile::tempdir().unwrap());
    let (servers, kept, removed) = (
        Authority::new("servers"),
        Authority::new("kept"),
        Authority::new("removed"),
    );
    // As Kubernetes does it: the files are links into a directory that a link names.
    let mount = |name: &str, clients: &[&str]| {
        let directory = files.path().join(name);
        fs::create_dir(&directory).unwrap();
        write_clients(&directory, clients);
        let link = files.path().join("..new");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        fs::rename(link, files.path().join("..data")).unwrap();
    };
    servers.issue(1).write(files.path());
    mount("1", &[&kept.pem, &removed.pem]);
    let link = files.path().join("clients.pem");
    std::os::unix::fs::symlink("..data/clients.pem", link).unwrap();
    let process = start(&env, files.path(), true).await;
    let connect = async |authority: &Authority, serial| {
        let client = authority.issue(serial).client(&servers);
        (client.connect(process.address).await, client)
    };
    let (good, _) = connect(&kept, 1).await;
    let (of_removed, client_of_removed) = connect(&removed, 2).await;
    let (revoked, client_revoked) = connect(&kept, 3).await;
    let mut good: Http2 = good.unwrap();
    let begun = Instant::now();
    mount("2", &[&kept.pem, &kept.revoke(3)]);
    of_removed.unwrap().ended().await;
    revoked.unwrap().ended().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    for client in [client_of_removed, client_revoked] {
        assert!(client.connect(process.address).await.is_none());
    }
    assert!(good.call(super::GET, super::get()).await.is_some());
    assert!(
        process
            .log()
            .contains("the client certificate is not valid any more")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_are_refused_at_the_start() {
    let env = ProcessEnv::new().await;
    let servers = Authority::new("servers");
    let pair = servers.issue(1);
    let key = "tls.key";
    type Change = fn(&Path);
    let cases: [(&str, &str, Change); 8] = [
        ("tls-key", "has mode 0644", |directory| {
            let open = fs::Permissions::from_mode(0o644);
            fs::set_permissions(directory.join("tls.key"), open).unwrap();
        }),
        ("tls-key", "cannot read", |directory| {
            fs::remove_file(directory.join("tls.key")).unwrap();
        }),
        ("tls-key", MISMATCH, |directory| {
            Authority::new("other").issue(1).write_key(directory);
        }),
        ("tls-key", "has no private key in PEM", |directory| {
            fs::write(directory.join("tls.key"), "secret").unwrap();
        }),
        ("tls-cert", "has no certificate in PEM", |directory| {
            fs::write(directory.join("tls.crt"), "text").unwrap();
        }),
        ("tls-client-ca", "has no certificate in PEM", |directory| {
            write_clients(directory, &[]);
        }),
        (
            "tls-client-ca",
            "has a CRL that cannot be used",
            |directory| {
                let crl = "-----BEGIN X509 CRL-----\nMAMCAQE=\n-----END X509 CRL-----\n";
                write_clients(directory, &[&Authority::new("a").pem, crl]);
            },
        ),
        ("tls-client-ca", "has a section of kind", |directory| {
            let authority = Authority::new("a");
            write_clients(directory, &[&authority.pem, &authority.issue(1).key]);
        }),
    ];
    for (setting, problem, damage) in cases {
        let files = tempfile::tempdir().unwrap();
        pair.write(files.path());
        write_clients(files.path(), &[&servers.pem]);
        damage(files.path());
        let arguments = arguments(files.path(), true);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = env.start_refused_with(&arguments).await;
        assert_eq!(refused.code, Some(64), "{refused:?}");
        let says =
            refused.stderr.contains(&format!("{setting}: ")) && refused.stderr.contains(problem);
        assert!(says, "{problem}: {refused:?}");
        // No part of a key is in a message.
        assert!(
            !refused.stderr.contains(pair.key.lines().nth(1).unwrap()),
            "{key}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_insecure_is_a_warning_at_the_start() {
    let env = ProcessEnv::new().await;
    let allowed = ["--insecure", "--insecure-no-authentication"];
    for (lifted, words) in [
        (&allowed[..1], "callers are not authenticated"),
        (&allowed[1..], "there is no TLS"),
    ] {
        let arguments = [&["--listen", "0.0.0.0:0"], lifted].concat();
        let refused = env.start_refused_with(&arguments).await;
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    let arguments = [&["--listen", "0.0.0.0:0"], &allowed[..]].concat();
    let process = env.start_with(&arguments).await;
    let log = process.log();
    for flag in ["insecure: ", "insecure-no-authentication: "] {
        assert_eq!(log.matches(flag).count(), 1, "{log}");
    }
}
