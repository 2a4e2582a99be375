//! Passwords of the database and of the brokers.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use test_services::{Kafka, KafkaOptions, Postgres, require};
use tokio::process::Command;

use crate::harness::{Customer, Load, Process, run, serve, stand_in, tool};

const DATABASE_PASSWORD: &str = "marker-of-the-database-password";
const LOG_PASSWORD: &str = "marker-of-the-log-password";
const USER: &str = "relay";
const NAME: &str = "secrets";

/// Writes the certificate of an authority to `ca.pem`, and a broker's certificate and key to
/// `broker.pem`.
fn make_certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    let authority = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "broker");
    let broker = params.signed_by(&key, &authority).unwrap();
    let pem = format!("{}{}", key.serialize_pem(), broker.pem());
    fs::write(dir.join("broker.pem"), pem).unwrap();
}

/// Options of a broker that asks clients for a password, over TLS.
fn with_password(dir: &Path) -> KafkaOptions {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let jaas = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_{USER}=\"{LOG_PASSWORD}\";"
    );
    let protocols = "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT";
    let settings = [
        ("listener.security.protocol.map", protocols.to_owned()),
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.location", path("broker.pem")),
        ("sasl.enabled.mechanisms", "PLAIN".to_owned()),
        ("listener.name.client.plain.sasl.jaas.config", jaas),
    ];
    KafkaOptions {
        settings: settings
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        ..KafkaOptions::default()
    }
}

/// Makes the database, whose owner needs a password.
async fn make_database(postgres: &Postgres) {
    postgres.create_database(NAME).await;
    let role = format!(
        "CREATE ROLE {USER} LOGIN PASSWORD '{DATABASE_PASSWORD}'; ALTER DATABASE {NAME} OWNER TO {USER}"
    );
    postgres.sql("postgres", &role).await;
    let rules = postgres.data().join("pg_hba.conf");
    let owner = fs::metadata(&rules).unwrap();
    fs::write(
        &rules,
        format!("host all {USER} all scram-sha-256\nhost all postgres all trust\n"),
    )
    .unwrap();
    fs::set_permissions(&rules, Permissions::from_mode(0o600)).unwrap();
    chown(&rules, Some(owner.uid()), Some(owner.gid())).unwrap();
    // The server reads both files again.
    postgres.set("log_statement", "none").await;
}

/// The service, and the command that makes the topic, with passwords that are right and wrong, and
/// logs at their finest level: neither password is in an output.
#[tokio::test(flavor = "multi_thread")]
async fn passwords_of_the_storage_are_in_no_log() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path());
    let Some(kafka) = require(Kafka::start_with(with_password(dir.path())).await) else {
        return;
    };
    let Some(postgres) = require(Postgres::start().await) else {
        return;
    };
    make_database(&postgres).await;
    let stand_in = stand_in().await;
    let customer = Customer::new("acme");
    customer.make_role(&stand_in.control());
    customer.make_stream(&stand_in.control(), 1);

    let use_storage = |command: &mut Command, log: &str, database: &str| {
        let brokers = kafka.bootstrap();
        let ca = dir.path().join("ca.pem");
        let log_url = format!(
            "kafka://{brokers}/{NAME}?mechanism=plain&user={USER}&ca={}",
            ca.display()
        );
        let database_url = format!("postgres://{USER}@127.0.0.1:{}/{NAME}", postgres.port());
        command
            .env("SIEM_RELAY_EXTERNAL_ID_KEY", "ab".repeat(32))
            .env("SIEM_RELAY_LOG_PASSWORD", log)
            .env("SIEM_RELAY_DATABASE_PASSWORD", database)
            .args(["--log-url", &log_url, "--database-url", &database_url])
            .arg("--log-allow-single-replica");
    };
    let start = async |log: &str, database: &str| {
        let mut command = serve(&[], &stand_in.url());
        command.args(["--listen", "127.0.0.1:0", "--log-level", "trace"]);
        use_storage(&mut command, log, database);
        Process::run(command).await
    };
    let mut create = tool(&["log", "create-topic", "--partitions", "1"]);
    create.args(["--replication", "1"]);
    use_storage(&mut create, LOG_PASSWORD, DATABASE_PASSWORD);
    let created = run(create).await;
    assert_eq!(created.code, Some(0), "{created:?}");

    let mut outputs = vec![format!("{created:?}")];
    let wrong = format!("{LOG_PASSWORD}-but-wrong");
    let refused = start(&wrong, DATABASE_PASSWORD).await;
    outputs.push(refused.err().expect("the start must fail").stderr);
    let wrong = format!("{DATABASE_PASSWORD}-but-wrong");
    let refused = start(LOG_PASSWORD, &wrong).await;
    outputs.push(refused.err().expect("the start must fail").stderr);
    let started = start(LOG_PASSWORD, DATABASE_PASSWORD).await;
    let instance = started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"));
    instance.api.configure(&customer).await;
    instance
        .api
        .publish(&Load::new("acme", 1, 1).events(3))
        .await;
    instance.api.until_delivered("acme").await;
    let log = instance.stop().await;
    assert!(log.contains("DEBUG"), "{log}");
    outputs.push(log);
    let secrets = [
        DATABASE_PASSWORD.to_owned(),
        LOG_PASSWORD.to_owned(),
        // As SASL's PLAIN sends it (RFC 4616), in base64.
        STANDARD.encode(format!("\0{USER}\0{LOG_PASSWORD}")),
    ];
    for output in &outputs {
        for secret in &secrets {
            assert!(!output.contains(secret), "{secret} is in {output}");
        }
    }
}
