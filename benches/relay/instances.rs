//! Several instances on shared storage (`--instances`): the log on Kafka, the rest on PostgreSQL.
//! Servers are given by URL, or started for the run: one broker and one database, which is not
//! how they are used.
//!
//! Beside each run is the floor: rdkafka alone produces and reads once the entries that the
//! service wrote in the run, with the same bytes in each message.

use std::{
    env,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use serde::Serialize;
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use test_services::{Kafka, KafkaOptions, Postgres, PostgresOptions};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use super::{
    Failure,
    idle::IDLE_AFTER,
    loader,
    log_floor::LogFloor,
    measure::{Bench, Scope},
    process::{Child, ForeignProcesses, Role},
    report::Run,
    service::{Admin, Service},
    sink::{self, Inspect},
    table::progress,
    workload::Workload,
};

/// Rate of the runs at a fixed rate, in events per second.
pub const RATE: f64 = 5000.0;
/// Partitions of a topic that this benchmark makes.
const PARTITIONS: &str = "64";
/// Key that encrypts external IDs in a database without another one.
const KEY: &str = "abababababababababababababababababababababababababababababababab";
const KEY_VARIABLE: &str = "SIEM_RELAY_EXTERNAL_ID_KEY";
/// Time for which the owners of partitions do not change before a run.
const BALANCED_FOR: Duration = Duration::from_secs(3);
const BALANCE_TIMEOUT: Duration = Duration::from_secs(60);
const STATEMENTS: &str = "SELECT sum(calls)::bigint FROM pg_stat_statements AS statement \
    JOIN pg_database AS database ON database.oid = statement.dbid \
    WHERE database.datname = current_database() AND query NOT LIKE '%pg_stat_statements%'";
const OWNERS: &str = "SELECT coalesce(string_agg(partition || ' ' || owner, ',' ORDER BY partition), ''), \
    count(DISTINCT owner) FROM partition";

/// Options of shared storage.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "shared_storage")]
pub struct Options {
    /// Measures these numbers of instances on shared storage, such as 1,2,3, and one process on
    /// its own storage beside them.
    #[arg(long, value_delimiter = ',')]
    pub instances: Vec<usize>,
    /// Measures instead, for each number of instances, the time until others deliver for an
    /// instance that is killed, and for one that is stopped.
    #[arg(long, requires = "instances")]
    pub takeover: bool,
    /// Measures instead the workload `even` at the fixed rate without and with this number of
    /// organizations whose streams deny access.
    #[arg(long, requires = "instances")]
    pub denied: Option<usize>,
    /// Topic, as kafka://HOST:PORT/TOPIC. It is made if it does not exist, and TOPIC-floor
    /// beside it.
    #[arg(long, requires = "database_url")]
    log_url: Option<String>,
    /// Database. Statements are counted by its extension pg_stat_statements.
    #[arg(long, requires = "log_url")]
    database_url: Option<String>,
    /// Processes of the brokers; those that listen at the addresses of --log-url unless given.
    #[arg(long, value_delimiter = ',')]
    broker_pids: Vec<u32>,
    /// Processes of the database; those that listen at the addresses of --database-url unless
    /// given.
    #[arg(long, value_delimiter = ',')]
    database_pids: Vec<u32>,
}

/// Shared storage.
pub struct Storage {
    log_url: String,
    database_url: String,
    single_replica: bool,
    brokers: Option<ForeignProcesses>,
    database: Option<ForeignProcesses>,
    connection: PgConnection,
    /// Whether statements can be counted.
    has_statements: bool,
    floor: LogFloor,
    _started: Option<(Kafka, Postgres)>,
}

/// Counters of the storage at one time.
#[derive(Clone, Copy)]
struct Counters {
    brokers_cpu: Option<f64>,
    database_cpu: Option<f64>,
    statements: Option<f64>,
}

impl Counters {
    /// Differences to earlier counters, divided.
    fn since(self, before: Self, cpu_divisor: f64, statements_divisor: f64) -> Self {
        let per = |now: Option<f64>, before: Option<f64>, divisor| Some((now? - before?) / divisor);
        Self {
            brokers_cpu: per(self.brokers_cpu, before.brokers_cpu, cpu_divisor),
            database_cpu: per(self.database_cpu, before.database_cpu, cpu_divisor),
            statements: per(self.statements, before.statements, statements_divisor),
        }
    }
}

/// Host and port of each server in a URL.
fn addresses(url: &str, default_port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let (_, rest) = url.split_once("://").ok_or("a URL has no ://")?;
    let hosts = rest.split(['/', '?']).next().unwrap_or_default();
    let hosts = hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts);
    let mut all = Vec::new();
    for host in hosts.split(',') {
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = match has_port {
            true => host.to_owned(),
            false => format!("{host}:{default_port}"),
        };
        all.extend(host.to_socket_addrs()?);
    }
    Ok(all)
}

impl Storage {
    /// Opens the storage that the options name, or starts servers for it.
    pub async fn open(options: &Options) -> Result<Self, Failure> {
        let (log_url, database_url, started) = match (&options.log_url, &options.database_url) {
            (Some(log), Some(database)) => (log.clone(), database.clone(), None),
            _ => {
                progress("one broker and one database are started for the run");
                let statements = ("shared_preload_libraries", "pg_stat_statements");
                let kafka = Kafka::start_with(KafkaOptions::default()).await?;
                let postgres = Postgres::start_with(PostgresOptions {
                    settings: vec![(statements.0.to_owned(), statements.1.to_owned())],
                    ..PostgresOptions::default()
                });
                let postgres = postgres.await?;
                let log = format!("kafka://{}/siem-bench", kafka.bootstrap());
                (log, postgres.url(), Some((kafka, postgres)))
            }
        };
        let brokers = addresses(&log_url, 9092)?;
        let databases = addresses(&database_url, 5432)?;
        let floor_url = floor_url(&log_url)?;
        let single_replica = brokers.len() < 3;
        for url in [&log_url, &floor_url] {
            create_topic(url, &database_url, single_replica).await?;
        }
        let mut connection = connect(&database_url).await?;
        Ok(Self {
            brokers: ForeignProcesses::find(&options.broker_pids, &brokers)?,
            database: ForeignProcesses::find(&options.database_pids, &databases)?,
            has_statements: has_statements(&mut connection).await,
            connection,
            floor: LogFloor::start(&log_url, &floor_url).await?,
            log_url,
            database_url,
            single_replica,
            _started: started,
        })
    }

    /// Sets the storage of an instance.
    pub fn configure(&self, command: &mut Command) {
        configure(command, &self.log_url, &self.database_url);
        if self.single_replica {
            command.arg("--log-allow-single-replica");
        }
    }

    /// Starts instances, and waits until each owns partitions and no partition changes its owner
    /// any more.
    pub async fn start(
        &mut self,
        instances: usize,
        data_dir: &Path,
        sink: SocketAddr,
    ) -> Result<Vec<Service>, Failure> {
        let mut services = Vec::new();
        for _ in 0..instances {
            services.push(Service::start_shared(self, data_dir, sink).await?);
        }
        let deadline = Instant::now() + BALANCE_TIMEOUT;
        let (mut last, mut since) = (String::new(), Instant::now());
        loop {
            let query = sqlx::query_as(OWNERS);
            let (owners, number): (String, i64) = query.fetch_one(&mut self.connection).await?;
            if owners != last {
                (last, since) = (owners, Instant::now());
            }
            if number == instances as i64 && since.elapsed() >= BALANCED_FOR {
                return Ok(services);
            }
            if Instant::now() > deadline {
                return Err(format!("{number} of {instances} instances own partitions").into());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the number that a query returns.
    pub async fn number(&mut self, query: &'static str) -> Result<i64, Failure> {
        let query = sqlx::query_scalar(query);
        Ok(query.fetch_one(&mut self.connection).await?)
    }

    async fn counters(&mut self) -> Result<Counters, Failure> {
        let cpu = |processes: &Option<ForeignProcesses>| {
            let processes = processes.as_ref();
            processes.map(ForeignProcesses::cpu_seconds).transpose()
        };
        let statements = match self.has_statements {
            true => {
                let query = sqlx::query_scalar(STATEMENTS);
                let calls: Option<i64> = query.fetch_one(&mut self.connection).await?;
                Some(calls.unwrap_or_default() as f64)
            }
            false => None,
        };
        Ok(Counters {
            brokers_cpu: cpu(&self.brokers)?,
            database_cpu: cpu(&self.database)?,
            statements,
        })
    }
}

/// Variables of `.ci/run` and of the tests.
const TEST_VARIABLES: [&str; 2] = ["SIEM_RELAY_TEST_REQUIRED", "SIEM_RELAY_TEST_EVE"];

fn configure(command: &mut Command, log_url: &str, database_url: &str) {
    command.env(KEY_VARIABLE, KEY);
    // Passwords, and another key; not the variables of the tests, which are no settings.
    command.envs(env::vars().filter(|(name, _)| {
        name.starts_with("SIEM_RELAY_") && !TEST_VARIABLES.contains(&name.as_str())
    }));
    command.args(["--log-url", log_url, "--database-url", database_url]);
}

async fn create_topic(
    log_url: &str,
    database_url: &str,
    single_replica: bool,
) -> Result<(), Failure> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-relay"));
    command.env_clear();
    command.args(["log", "create-topic", "--partitions", PARTITIONS]);
    command.args(["--replication", if single_replica { "1" } else { "3" }]);
    configure(&mut command, log_url, database_url);
    let output = command.output().await?;
    let error = String::from_utf8_lossy(&output.stderr);
    match output.status.success() || error.contains("exists already") {
        true => Ok(()),
        false => Err(format!("cannot make the topic: {error}").into()),
    }
}

/// URL of the floor's topic.
fn floor_url(log_url: &str) -> Result<String, Failure> {
    match log_url.split_once('?') {
        None => Ok(format!("{log_url}-floor")),
        Some(_) => Err("the floor connects without TLS only: give --log-url without `?`".into()),
    }
}

/// Connects to the first host of a URL.
async fn connect(url: &str) -> Result<PgConnection, Failure> {
    let (before, after) = match url.split_once(',') {
        Some((before, after)) => (before, after.find('/').map_or("", |at| &after[at..])),
        None => (url, ""),
    };
    let mut options: PgConnectOptions = format!("{before}{after}").parse()?;
    if let Ok(password) = env::var("SIEM_RELAY_DATABASE_PASSWORD") {
        options = options.password(&password);
    }
    Ok(options.connect().await?)
}

/// Returns whether the extension counts statements.
async fn has_statements(connection: &mut PgConnection) -> bool {
    let create = sqlx::query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements");
    let created = create.execute(&mut *connection).await;
    let counted = sqlx::query(STATEMENTS).execute(&mut *connection).await;
    let has_statements = created.is_ok() && counted.is_ok();
    if !has_statements {
        progress(
            "statements are not counted: the database lacks the extension pg_stat_statements, \
             which shared_preload_libraries must name",
        );
    }
    has_statements
}

/// Measurement of one number of instances.
#[derive(Clone, Debug, Serialize)]
pub struct Instances {
    pub workload: Workload,
    /// 0 for one process on its own storage.
    pub instances: usize,
    pub saturated: Vec<SharedRun>,
    pub paced: Vec<SharedRun>,
}

/// Run of all instances together, and of the floor with the same entries. Figures of the storage
/// are None for one process on its own storage, and where they cannot be measured.
#[derive(Clone, Debug, Serialize)]
pub struct SharedRun {
    pub run: Run,
    pub brokers_cpu_per_million: Option<f64>,
    pub database_cpu_per_million: Option<f64>,
    pub statements_per_thousand: Option<f64>,
    pub floor: Option<LogFloorRun>,
}

/// Run of the floor. Figures per million are those of the run's events.
#[derive(Clone, Debug, Serialize)]
pub struct LogFloorRun {
    pub events_per_message: f64,
    /// Bytes of an event in the log.
    pub bytes_per_event: f64,
    pub events_per_second: f64,
    pub cpu_per_million: f64,
    pub brokers_cpu_per_million: Option<f64>,
    /// From sending until it was read.
    pub to_reader: super::stats::Latency,
}

/// Measures a workload on a number of instances, or for 0 on one process with its own storage.
pub async fn measure(
    workload: &Workload,
    instances: usize,
    storage: &mut Storage,
    scope: &Scope,
) -> Result<Instances, Failure> {
    progress(&format!("{}, {instances} instance(s)", workload.name));
    let shared = (instances > 0).then_some((&mut *storage, instances));
    let mut bench = Bench::start_instances(workload, scope, shared).await?;
    let saturate = loader::Command::Saturate {
        events: (scope.events * workload.tenths / 10).max(1),
    };
    let pace = loader::Command::Pace {
        events_per_second: RATE,
        seconds: scope.rate_seconds,
    };
    let mut measured = Instances {
        workload: workload.clone(),
        instances,
        saturated: Vec::new(),
        paced: Vec::new(),
    };
    for _ in 0..scope.runs {
        let shared = (instances > 0).then_some(&mut *storage);
        let run = run(&mut bench, shared, saturate, Inspect::Nothing).await?;
        measured.saturated.push(run);
    }
    if !scope.rates.is_empty() {
        for _ in 0..scope.runs {
            let shared = (instances > 0).then_some(&mut *storage);
            let run = run(&mut bench, shared, pace, Inspect::Times).await?;
            measured.paced.push(run);
        }
    }
    bench.wait_until_settled().await?;
    bench.check_counts().await?;
    bench.stop().await?;
    Ok(measured)
}

/// Runs the service, and then the floor.
pub async fn run(
    bench: &mut Bench,
    storage: Option<&mut Storage>,
    command: loader::Command,
    inspect: Inspect,
) -> Result<SharedRun, Failure> {
    let Some(storage) = storage else {
        let run = bench.run(command, inspect).await?;
        show(&run, None);
        return Ok(SharedRun {
            run,
            brokers_cpu_per_million: None,
            database_cpu_per_million: None,
            statements_per_thousand: None,
            floor: None,
        });
    };
    storage.floor.mark().await?;
    let before = storage.counters().await?;
    let run = bench.run(command, inspect).await?;
    let (millions, thousands) = (run.events as f64 / 1e6, run.events as f64 / 1e3);
    let used = storage.counters().await?.since(before, millions, thousands);
    let loaded = storage.floor.load().await?;
    let before = storage.counters().await?;
    let paced = matches!(command, loader::Command::Pace { .. });
    let (sent, floor_cpu) = storage.floor.send(paced).await?;
    let floor_used = storage.counters().await?.since(before, millions, thousands);
    let events = run.events as f64;
    let floor = LogFloorRun {
        events_per_message: events / loaded.messages as f64,
        bytes_per_event: loaded.bytes as f64 / events,
        events_per_second: events / sent.seconds,
        cpu_per_million: floor_cpu / millions,
        brokers_cpu_per_million: floor_used.brokers_cpu,
        to_reader: sent.latency,
    };
    show(&run, used.statements);
    Ok(SharedRun {
        run,
        brokers_cpu_per_million: used.brokers_cpu,
        database_cpu_per_million: used.database_cpu,
        statements_per_thousand: used.statements,
        floor: Some(floor),
    })
}

fn show(run: &Run, statements: Option<f64>) {
    progress(&format!(
        "  {:.0} events/s, {:.2} CPU-s per million, ack p50 {:.1} p99 {:.1} ms, to stream p50 {:.1} p99 {:.1} ms{}",
        run.events_per_second,
        run.cpu_per_million,
        run.ack.p50_ms,
        run.ack.p99_ms,
        run.to_stream.p50_ms,
        run.to_stream.p99_ms,
        statements.map_or_else(String::new, |number| format!(
            ", {number:.2} statements per 1,000 events"
        )),
    ));
}

/// Cost of idle integrations on several instances.
#[derive(Clone, Debug, Serialize)]
pub struct IdleInstances {
    pub instances: usize,
    pub integrations: usize,
    /// CPU seconds per second of the busiest instance.
    pub idle_cpu: f64,
    pub database_cpu: Option<f64>,
    /// Of each instance, on average.
    pub statements_per_second: Option<f64>,
    pub megabytes: f64,
}

/// Configures integrations through the first instance, and measures what all instances do then.
pub async fn idle(
    integrations: usize,
    instances: usize,
    storage: &mut Storage,
    scope: &Scope,
) -> Result<IdleInstances, Failure> {
    progress(&format!(
        "{integrations} idle integrations, {instances} instances"
    ));
    let data_dir = tempfile::tempdir_in(&scope.data_dir)?;
    let role = Role::Sink(sink::Config { delay_ms: 0 });
    let (_sink, sink): (Child, SocketAddr) = Child::start(role).await?;
    let services = storage.start(instances, data_dir.path(), sink).await?;
    let admin = Admin::new(services[0].address)?;
    admin.configure(integrations).await?;
    sleep(IDLE_AFTER + BALANCED_FOR).await;
    let usages = || -> Result<Vec<f64>, Failure> {
        let usages = services.iter().map(Service::usage);
        usages.map(|usage| Ok(usage?.cpu_seconds)).collect()
    };
    let (before, counters) = (usages()?, storage.counters().await?);
    sleep(Duration::from_secs_f64(scope.rate_seconds)).await;
    let (after, used) = (usages()?, storage.counters().await?);
    let used = used.since(
        counters,
        scope.rate_seconds,
        scope.rate_seconds * instances as f64,
    );
    let each = before
        .iter()
        .zip(&after)
        .map(|(before, after)| after - before);
    let busiest = each.fold(0.0, f64::max);
    let megabytes = services[0].usage()?.resident_bytes as f64 / 1e6;
    for service in services {
        service.stop().await?;
    }
    Ok(IdleInstances {
        instances,
        integrations,
        idle_cpu: busiest / scope.rate_seconds,
        database_cpu: used.database_cpu,
        statements_per_second: used.statements,
        megabytes,
    })
}
