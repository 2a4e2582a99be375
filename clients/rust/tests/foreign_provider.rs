//! A program whose other libraries use another provider of cryptography: rustls has then either
//! theirs as the process's default, or none because its features name two. A default that cannot
//! do anything stands for both.

use std::{fs, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::PrivateKeyDer,
};
use siem_client::{
    ChannelOptions,
    v1::{ListRequest, siem_integration_service_client::SiemIntegrationServiceClient},
};
use tokio::{io::AsyncReadExt as _, net::TcpListener, time::timeout};
use tokio_rustls::TlsAcceptor;

/// First bytes of a client of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn a_channel_does_not_use_the_provider_of_the_process() {
    let unusable = CryptoProvider {
        cipher_suites: Vec::new(),
        kx_groups: Vec::new(),
        ..aws_lc_rs::default_provider()
    };
    unusable.install_default().unwrap();

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    fs::write(&ca, made.cert.pem()).unwrap();

    let options = ChannelOptions::new(format!("https://localhost:{port}")).ca_file(ca);
    let channel = options.connect().unwrap();
    let calling = tokio::spawn(async move {
        let mut client = SiemIntegrationServiceClient::new(channel);
        client.list(ListRequest::default()).await
    });
    let mut preface = vec![0; PREFACE.len()];
    let accepted = async {
        let (connection, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut connection = acceptor.accept(connection).await.unwrap();
        connection.read_exact(&mut preface).await.unwrap();
    };
    timeout(Duration::from_secs(60), accepted).await.unwrap();
    assert_eq!(preface, PREFACE);
    calling.abort();
}
