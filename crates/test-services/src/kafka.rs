//! Kafka brokers, each also a controller (KRaft).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    Missing, Proxy,
    processes::{Processes, directory, free_port, program, run},
};

const MISSING: Missing = Missing {
    name: "Kafka (and Java 17)",
};

/// Words in the log of a broker that the controllers have admitted.
const READY: &str = "Kafka Server started";

/// Identity of every cluster.
const CLUSTER: &str = "c2llbS1yZWxheS10ZXN0cw";

/// Options of [`Kafka::start_with`].
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// Number of brokers.
    pub brokers: u16,
    /// Whether clients reach each broker through a [`Proxy`].
    pub proxied: bool,
    /// Further settings of each broker.
    pub settings: Vec<(String, String)>,
}

impl Default for KafkaOptions {
    /// One broker without a proxy.
    fn default() -> Self {
        Self {
            brokers: 1,
            proxied: false,
            settings: Vec::new(),
        }
    }
}

/// A Kafka cluster. Topics have as many replicas as it has brokers, of which all but one must be in
/// sync, and are never created by use. Brokers are named by their node id, from 1.
pub struct Kafka {
    java: PathBuf,
    libraries: PathBuf,
    brokers: Vec<Broker>,
}

struct Broker {
    processes: Processes,
    proxy: Option<Proxy>,
    /// Port for clients, behind the proxy if there is one.
    port: u16,
}

impl Kafka {
    /// Starts a cluster of this number of brokers.
    pub async fn start(brokers: u16) -> Result<Self, Missing> {
        Self::start_with(KafkaOptions {
            brokers,
            ..KafkaOptions::default()
        })
        .await
    }

    /// Starts a cluster, and waits until its brokers take requests.
    pub async fn start_with(options: KafkaOptions) -> Result<Self, Missing> {
        let (java, libraries) = find().ok_or(MISSING)?;
        let template = template(&java, &libraries).await;
        let controllers: Vec<u16> = (0..options.brokers).map(|_| free_port()).collect();
        let voters = controllers.iter().zip(1..);
        let voters: Vec<String> = voters
            .map(|(port, node)| format!("{node}@127.0.0.1:{port}"))
            .collect();
        let mut brokers = Vec::new();
        for (controller, node) in controllers.iter().zip(1..) {
            let dir = directory("kafka", None);
            let port = free_port();
            let proxy = options.proxied.then(|| Proxy::start(port));
            let advertised = proxy.as_ref().map_or(port, Proxy::port);
            let internal = free_port();
            let mut settings = settings(dir.path(), node, options.brokers);
            settings.extend([
                ("controller.quorum.voters", voters.join(",")),
                (
                    "listeners",
                    format!(
                        "CLIENT://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal},\
                         CONTROLLER://127.0.0.1:{controller}"
                    ),
                ),
                (
                    "advertised.listeners",
                    format!("CLIENT://127.0.0.1:{advertised},INTERNAL://127.0.0.1:{internal}"),
                ),
            ]);
            let given = options.settings.iter();
            let given = given.map(|(name, value)| (name.as_str(), value.clone()));
            let lines = settings.into_iter().chain(given);
            let lines: Vec<String> = lines
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            fs::write(dir.path().join("broker.properties"), lines.join("\n")).unwrap();
            copy_log(
                &template.path().join("data"),
                &dir.path().join("data"),
                node,
            );
            brokers.push(Broker {
                processes: Processes::new(dir),
                proxy,
                port,
            });
        }
        let kafka = Self {
            java,
            libraries,
            brokers,
        };
        let nodes: Vec<u16> = (1..=options.brokers).collect();
        kafka.start_all(&nodes).await;
        Ok(kafka)
    }

    /// Starts brokers at the same time: none becomes ready without a majority of controllers.
    async fn start_all(&self, nodes: &[u16]) {
        for node in nodes {
            self.broker(*node).processes.spawn(self.command());
        }
        for node in nodes {
            if let Err(log) = self.broker(*node).processes.until_logged(READY).await {
                panic!("broker {node} did not start: {log}");
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = java(&self.java, &self.libraries);
        let heap = if self.brokers.len() == 1 {
            "-Xmx256m"
        } else {
            "-Xmx512m"
        };
        command.args([heap, "kafka.Kafka", "broker.properties"]);
        command
    }

    fn broker(&self, node: u16) -> &Broker {
        &self.brokers[usize::from(node) - 1]
    }

    /// Node ids of the brokers.
    pub fn nodes(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.brokers.len() as u16
    }

    /// Addresses for clients, separated by commas.
    pub fn bootstrap(&self) -> String {
        let addresses = self.brokers.iter().map(|broker| {
            let port = broker.proxy.as_ref().map_or(broker.port, Proxy::port);
            format!("127.0.0.1:{port}")
        });
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Proxy in front of a broker.
    ///
    /// # Panics
    ///
    /// If the cluster has no proxies.
    pub fn proxy(&self, node: u16) -> &Proxy {
        self.broker(node).proxy.as_ref().expect("it has proxies")
    }

    /// Log of a broker since its last start.
    pub fn log(&self, node: u16) -> String {
        self.broker(node).processes.log()
    }

    /// Sends SIGKILL to a broker.
    pub async fn kill(&self, node: u16) {
        self.broker(node).processes.kill().await;
    }

    /// Shuts a broker down in order: it hands its partitions over before it ends.
    pub async fn stop(&self, node: u16) {
        self.broker(node).processes.stop(Signal::TERM).await;
    }

    /// Starts a stopped or killed broker again on its ports, and waits until it takes requests.
    /// A majority of the brokers must run.
    pub async fn start_again(&self, node: u16) {
        self.start_all(&[node]).await;
    }

    /// Starts all brokers again, after all were stopped or killed.
    pub async fn start_all_again(&self) {
        let nodes: Vec<u16> = self.nodes().collect();
        self.start_all(&nodes).await;
    }

    /// Stops a broker by SIGSTOP: connections remain, and nothing is answered.
    pub fn pause(&self, node: u16) {
        self.broker(node).processes.pause();
    }

    /// Lets a paused broker continue.
    pub fn resume(&self, node: u16) {
        self.broker(node).processes.resume();
    }

    /// Limits the bytes per second that each broker takes from all clients together, or lifts the
    /// limit. A broker takes what is above it, and delays the answer and the connection.
    pub async fn limit_producers(&self, bytes_per_second: Option<u32>) {
        let mut config = java(&self.java, &self.libraries);
        config.args(["kafka.admin.ConfigCommand", "--bootstrap-server"]);
        config.args([&self.bootstrap(), "--alter", "--entity-type", "clients"]);
        config.arg("--entity-default");
        match bytes_per_second {
            Some(rate) => config.args(["--add-config", &format!("producer_byte_rate={rate}")]),
            None => config.args(["--delete-config", "producer_byte_rate"]),
        };
        run("ConfigCommand", config).await;
    }

    /// Changes access rights, by arguments of `kafka-acls.sh`. The brokers need the setting
    /// `authorizer.class.name`.
    pub async fn change_rights(&self, arguments: &[&str]) {
        let mut acls = java(&self.java, &self.libraries);
        acls.args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server"]);
        acls.arg(self.bootstrap()).args(arguments);
        run("AclCommand", acls).await;
    }
}

/// Settings of a broker, besides those of its addresses.
fn settings(dir: &Path, node: u16, brokers: u16) -> Vec<(&'static str, String)> {
    let replicas = brokers.to_string();
    let in_sync = brokers.saturating_sub(1).max(1).to_string();
    let protocols = "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT";
    vec![
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", node.to_string()),
        ("listener.security.protocol.map", protocols.to_owned()),
        ("inter.broker.listener.name", "INTERNAL".to_owned()),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("log.dirs", dir.join("data").display().to_string()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("default.replication.factor", replicas.clone()),
        ("min.insync.replicas", in_sync.clone()),
        ("offsets.topic.replication.factor", replicas.clone()),
        ("offsets.topic.num.partitions", "1".to_owned()),
        ("transaction.state.log.replication.factor", replicas),
        ("transaction.state.log.min.isr", in_sync),
        ("transaction.state.log.num.partitions", "1".to_owned()),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        // The defaults are for machines of many cores.
        ("num.network.threads", "2".to_owned()),
        ("num.io.threads", "4".to_owned()),
        ("num.recovery.threads.per.data.dir", "1".to_owned()),
    ]
}

/// Java, and the directory of Kafka's libraries.
fn find() -> Option<(PathBuf, PathBuf)> {
    let home = env::var_os("SIEM_RELAY_TEST_KAFKA_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        root.join("target/test-services/kafka")
    });
    let libraries = home.join("libs").canonicalize().ok()?;
    let java_home = env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let java_home: Vec<PathBuf> = java_home.into_iter().collect();
    Some((program("java", &java_home)?, libraries))
}

/// A Java command with Kafka's libraries, for little memory and a fast start.
fn java(java: &Path, libraries: &Path) -> Command {
    let mut command = Command::new(java);
    command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args([
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    ]);
    command.arg("-cp").arg(libraries.join("*"));
    command
}

/// Directory with a formatted log, which is made once in this process: Java takes seconds.
async fn template(java_program: &Path, libraries: &Path) -> &'static TempDir {
    static TEMPLATE: OnceCell<TempDir> = OnceCell::const_new();
    let make = || async {
        let dir = directory("kafka-template", None);
        let properties = [
            "process.roles=controller",
            "node.id=1",
            "controller.quorum.voters=1@127.0.0.1:1",
            "listeners=CONTROLLER://127.0.0.1:1",
            "controller.listener.names=CONTROLLER",
            "log.dirs=data",
        ];
        let file = dir.path().join("format.properties");
        fs::write(&file, properties.join("\n")).unwrap();
        let mut format = java(java_program, libraries);
        format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"]);
        format.arg(&file).current_dir(dir.path());
        run("StorageTool", format).await;
        dir
    };
    TEMPLATE.get_or_init(make).await
}

/// Copies the formatted log for a broker, which gives it an identity of its own at the first start.
fn copy_log(template: &Path, to: &Path, node: u16) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(template).unwrap() {
        let entry = entry.unwrap();
        let copy = to.join(entry.file_name());
        if entry.file_name() != "meta.properties" {
            fs::copy(entry.path(), copy).unwrap();
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("directory.id="));
        let lines: Vec<String> = lines
            .map(|line| match line.starts_with("node.id=") {
                true => format!("node.id={node}"),
                false => line.to_owned(),
            })
            .collect();
        fs::write(copy, lines.join("\n")).unwrap();
    }
}
