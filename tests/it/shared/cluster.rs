//! Instances of the service on one topic and one database.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use aws_stand_in::{Control, StandIn};
use test_services::{Kafka, Postgres};
use tokio::process::Command;

use crate::harness::{Customer, Process, StartError, run, serve, stand_in, tool};

/// Partitions of the topic, fewer than the default for a start without delay.
const PARTITIONS: &str = "4";

/// Key that encrypts external IDs in the database.
pub const KEY: &str = "abababababababababababababababababababababababababababababababab";

/// A topic and a database of their own, and the stand-in for AWS, on which instances start.
pub struct Cluster {
    pub aws: Control,
    /// Organization `acme`, whose role and stream exist.
    pub customer: Customer,
    stand_in: StandIn,
    log_url: String,
    database_url: String,
    replicas: usize,
}

impl Cluster {
    /// Creates the topic, with a replica on each broker, and the database, on the first of these
    /// servers. Instances reach the database on `port`, or on those of the other servers.
    pub async fn new(kafka: &Kafka, servers: &[&Postgres], port: u16) -> Self {
        static CLUSTERS: AtomicU32 = AtomicU32::new(1);
        let name = format!("siem{}", CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let (primary, standbys) = servers.split_first().unwrap();
        primary.create_database(&name).await;
        let mut hosts = format!("127.0.0.1:{port}");
        for standby in standbys {
            hosts.push_str(&format!(",127.0.0.1:{}", standby.port()));
        }
        let stand_in = stand_in().await;
        let aws = stand_in.control();
        let customer = Customer::new("acme");
        customer.make_role(&aws);
        customer.make_stream(&aws, 4);
        let cluster = Self {
            aws,
            customer,
            stand_in,
            log_url: format!("kafka://{}/{name}", kafka.bootstrap()),
            database_url: format!("postgres://postgres@{hosts}/{name}"),
            replicas: kafka.nodes().count(),
        };
        cluster.create_topic().await;
        cluster
    }

    async fn create_topic(&self) {
        let replication = self.replicas.to_string();
        let mut create = tool(&["log", "create-topic"]);
        create.args(["--partitions", PARTITIONS, "--replication", &replication]);
        self.use_storage(&mut create, KEY);
        let created = run(create).await;
        assert_eq!(created.code, Some(0), "{created:?}");
    }

    /// URL of the stand-in for AWS.
    pub fn aws_url(&self) -> String {
        self.stand_in.url()
    }

    /// Starts an instance on a free port.
    pub async fn start(&self) -> Process {
        let started = self.try_start(KEY).await;
        started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"))
    }

    /// Starts an instance with this key for external IDs.
    pub async fn try_start(&self, key: &str) -> Result<Process, StartError> {
        let mut command = serve(&[], &self.stand_in.url());
        command.args(["--listen", "127.0.0.1:0"]);
        self.use_storage(&mut command, key);
        Process::run(command).await
    }

    /// Runs an instance, which must not start. Returns its log.
    pub async fn refused(&self) -> String {
        let started = self.try_start(KEY).await;
        started.err().expect("the start must fail").stderr
    }

    /// Starts the embedded service on a directory.
    pub async fn start_embedded(&self, data_dir: &Path, arguments: &[&str]) -> Process {
        Process::start(data_dir, &self.stand_in.url(), arguments).await
    }

    /// Runs the embedded service on a directory, where it must not start. Returns its log.
    pub async fn refused_embedded(&self, data_dir: &Path) -> String {
        let url = self.stand_in.url();
        let started = Process::try_start_under(&[], data_dir, &url, &[]).await;
        started.err().expect("the start must fail").stderr
    }

    /// `siem-relay move` of a directory to this storage, under this key for external IDs.
    pub fn move_under(&self, key: &str, data_dir: &Path) -> Command {
        let mut command = tool(&["move", "--data-dir", data_dir.to_str().unwrap()]);
        self.use_storage(&mut command, key);
        command
    }

    /// As [`Cluster::move_under`], under the key of [`Cluster::start`].
    pub fn move_from(&self, data_dir: &Path) -> Command {
        self.move_under(KEY, data_dir)
    }

    /// URL of the database.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    fn use_storage(&self, command: &mut Command, key: &str) {
        command.env("SIEM_RELAY_EXTERNAL_ID_KEY", key);
        command.args(["--log-url", &self.log_url]);
        command.args(["--database-url", &self.database_url]);
        if self.replicas == 1 {
            command.arg("--log-allow-single-replica");
        }
    }
}
