//! Settings by environment variables, in child processes with an environment of their own.

use std::process::Stdio;

use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;

const CHILD: &str = "sink::tests::environment::writes_as_the_environment_says";
/// Makes the child use the SDK for PutRecords requests.
const SDK: &str = "SIEM_RELAY_TEST_SDK";

/// Child process of the other tests.
#[tokio::test]
#[ignore = "run by the tests beside it"]
async fn writes_as_the_environment_says() {
    let options = AwsOptions {
        put_records_client: match std::env::var_os(SDK) {
            Some(_) => PutRecordsClient::Sdk,
            None => PutRecordsClient::Direct,
        },
        ..AwsOptions::default()
    };
    let sink = AwsSink::new(options, Arc::new(OneExternalId), Gate::default()).await;
    let outcomes = sink.put_records(&integration(), records(1), &[]).await;
    assert_eq!(outcomes, Ok(vec![accepted(0)]));
}

async fn writes_with(environment: &[(&str, &str)]) -> bool {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", CHILD, "--ignored"])
        .env_clear()
        .env("AWS_ACCESS_KEY_ID", "AKIAOWN")
        .env("AWS_SECRET_ACCESS_KEY", "own-secret")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if client() == PutRecordsClient::Sdk {
        child.env(SDK, "1");
    }
    child.status().await.unwrap().success()
}

async fn endpoints_and_region_come_from_the_environment() {
    // Each service at its own server, although the stream's ARN implies another host.
    let sts = Server::start(assumed).await;
    let kinesis = Server::start(written).await;
    let own = [
        ("AWS_ENDPOINT_URL_STS", &*sts.url()),
        ("AWS_ENDPOINT_URL_KINESIS", &*kinesis.url()),
        ("AWS_REGION", "us-west-2"),
    ];
    assert!(writes_with(&own).await);
    assert_eq!(sts.calls().len(), 1);
    assert_eq!(sts.calls()[0].credential(), ("AKIAOWN", "us-west-2", "sts"));
    assert_eq!(kinesis.calls().len(), 1);
    let credential = kinesis.calls()[0].clone();
    assert_eq!(credential.credential(), ("ASIA1", "eu-west-1", "kinesis"));

    // One server for both, and no region but the stream's.
    let both = Server::start(Call::granted).await;
    assert!(writes_with(&[("AWS_ENDPOINT_URL", &both.url())]).await);
    assert_eq!(both.calls().len(), 2);
    assert_eq!(
        both.calls()[0].credential(),
        ("AKIAOWN", "eu-west-1", "sts")
    );
}

async fn a_server_is_trusted_where_its_root_is() {
    let trusted = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let sts = Server::start(assumed).await;
    let kinesis = Server::start_with(Some(tls(&trusted)), written).await;
    let port = kinesis.address().port();
    let folder = tempfile::tempdir().unwrap();
    for (root, host, is_trusted) in [
        (&trusted, "localhost", true),
        (&other, "localhost", false),
        (&trusted, "127.0.0.1", false),
    ] {
        let file = folder.path().join("root.pem");
        std::fs::write(&file, root.cert.pem()).unwrap();
        let environment = [
            ("AWS_ENDPOINT_URL_STS", &*sts.url()),
            (
                "AWS_ENDPOINT_URL_KINESIS",
                &format!("https://{host}:{port}"),
            ),
            ("AWS_REGION", "us-west-2"),
            ("SSL_CERT_FILE", file.to_str().unwrap()),
        ];
        assert_eq!(writes_with(&environment).await, is_trusted);
    }
    assert_eq!((sts.calls().len(), kinesis.calls().len()), (3, 1));
}

fn tls(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn it_goes_through_the_proxy_of_the_environment() {
    let proxy = Server::start(Call::granted).await;
    let environment = [
        ("AWS_ENDPOINT_URL", "http://aws.invalid"),
        ("HTTP_PROXY", &*proxy.url()),
    ];
    assert!(writes_with(&environment).await);
    assert_eq!(proxy.calls().len(), 2);
    assert!(
        proxy
            .calls()
            .iter()
            .all(|call| call.header("host") == "aws.invalid")
    );
}

with_either_client!(
    endpoints_and_region_come_from_the_environment,
    a_server_is_trusted_where_its_root_is,
    it_goes_through_the_proxy_of_the_environment,
);
