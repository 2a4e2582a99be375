//! The built binary as a process.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use aws_stand_in::{Control, StandIn, vendor_credentials};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{Api, Customer, stand_in, with_timeout};

/// A stand-in for AWS with one customer, and a data directory, on which processes are started.
pub struct ProcessEnv {
    pub stand_in: StandIn,
    pub aws: Control,
    pub dir: TempDir,
    /// Organization `acme`, whose role and stream exist.
    pub customer: Customer,
}

impl ProcessEnv {
    pub async fn new() -> Self {
        let stand_in = stand_in().await;
        let aws = stand_in.control();
        let customer = Customer::new("acme");
        customer.make_role(&aws);
        customer.make_stream(&aws, 4);
        Self {
            aws,
            stand_in,
            dir: TempDir::new().unwrap(),
            customer,
        }
    }

    pub async fn start(&self) -> Process {
        self.start_with(&[]).await
    }

    pub async fn start_with(&self, arguments: &[&str]) -> Process {
        Process::start(self.dir.path(), &self.stand_in.url(), arguments).await
    }

    /// Starts a process through a launcher.
    pub async fn start_under(&self, launcher: &[String]) -> Process {
        self.start_under_with(launcher, &[]).await
    }

    pub async fn start_under_with(&self, launcher: &[String], arguments: &[&str]) -> Process {
        let url = self.stand_in.url();
        let started = Process::try_start_under(launcher, self.dir.path(), &url, arguments).await;
        started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"))
    }

    /// Starts a process that must end instead of listening.
    pub async fn start_refused(&self) -> StartError {
        self.start_refused_with(&[]).await
    }

    pub async fn start_refused_with(&self, arguments: &[&str]) -> StartError {
        let url = self.stand_in.url();
        let started = Process::try_start_under(&[], self.dir.path(), &url, arguments).await;
        started.err().expect("the start must fail")
    }

    /// Number of records in the customer's stream.
    pub fn stored(&self) -> u64 {
        self.aws.stream(&self.customer.stream_arn).unwrap().accepted
    }
}

/// `siem-relay serve`. It is killed when this handle is dropped.
pub struct Process {
    pub api: Api,
    pub address: SocketAddr,
    child: Child,
    log: watch::Receiver<String>,
    reader: JoinHandle<()>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.borrow();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            super::print(&format!("log of {}:\n{}", self.address, last.join("\n")));
        }
    }
}

/// Exit code and log of a process that ended instead of listening.
#[derive(Debug)]
pub struct StartError {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Process {
    /// Starts on a free port, and waits until the process listens.
    pub async fn start(data_dir: &Path, aws_url: &str, arguments: &[&str]) -> Self {
        let started = Self::try_start_under(&[], data_dir, aws_url, arguments).await;
        started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"))
    }

    /// Starts through a launcher: a command line that executes the program behind it.
    pub async fn try_start_under(
        launcher: &[String],
        data_dir: &Path,
        aws_url: &str,
        arguments: &[&str],
    ) -> Result<Self, StartError> {
        let mut command = command(launcher, data_dir, aws_url);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(arguments);
        Self::run(command).await
    }

    /// Starts [`serve`] with further arguments, and waits until the process listens.
    pub async fn run(mut command: Command) -> Result<Self, StartError> {
        let mut child = command.args(["--log-format", "json"]).spawn().unwrap();
        let (logs, log) = watch::channel(String::new());
        let (listening, listens) = oneshot::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader = tokio::spawn(collect_log(stderr, logs, listening));
        match with_timeout("the start of the process", listens).await {
            Ok(address) => Ok(Self {
                api: Api::new(address),
                address,
                child,
                log,
                reader,
            }),
            Err(_ended) => {
                let status = with_timeout("the end of the process", child.wait()).await;
                with_timeout("the end of its log", reader).await.unwrap();
                let stderr = log.borrow().clone();
                Err(StartError {
                    code: status.unwrap().code(),
                    stderr,
                })
            }
        }
    }

    /// Starts a process and kills it after this time, at any point of its start.
    pub async fn start_and_kill(data_dir: &Path, aws_url: &str, after: Duration) {
        let mut command = command(&[], data_dir, aws_url);
        let mut child = command.args(["--listen", "127.0.0.1:0"]).spawn().unwrap();
        let ended = tokio::time::timeout(after, child.wait()).await;
        assert!(ended.is_err(), "it ended by itself: {ended:?}");
        with_timeout("the end of the process", child.kill())
            .await
            .unwrap();
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until the log has these words more than `before` times.
    pub async fn until_logged(&self, words: &str, before: usize) {
        let mut log = self.log.clone();
        let logged = log.wait_for(|log| log.matches(words).count() > before);
        with_timeout(words, logged).await.unwrap();
    }

    /// Sends SIGKILL and waits for the end: nothing is finished or settled.
    pub async fn kill(mut self) {
        with_timeout("the end of the process", self.child.kill())
            .await
            .unwrap();
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Highest resident memory so far, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let id = self.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix(name));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() * 1024
    }

    /// Sends SIGTERM, without waiting for the end.
    pub async fn terminate(&self) {
        self.signal("TERM").await;
    }

    /// Sends a signal.
    pub async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let mut kill = Command::new("kill");
        let sent = with_timeout("kill", kill.args(["-s", name, &id]).status()).await;
        assert!(sent.unwrap().success());
    }

    /// Shuts down in order, which must succeed. Returns the log.
    pub async fn stop(self) -> String {
        self.terminate().await;
        let (status, log) = self.ended().await;
        assert!(status.success(), "{status}: {log}");
        log
    }

    /// Waits for the end. Returns the exit status and the log.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let status = with_timeout("the end of the process", self.child.wait()).await;
        with_timeout("the end of its log", &mut self.reader)
            .await
            .unwrap();
        let log = self.log.borrow().clone();
        (status.unwrap(), log)
    }
}

/// `serve` on a data directory.
fn command(launcher: &[String], data_dir: &Path, aws_url: &str) -> Command {
    let mut command = serve(launcher, aws_url);
    command.arg("--data-dir").arg(data_dir);
    command
}

/// `serve` with only the endpoints and credentials of AWS in the environment.
pub fn serve(launcher: &[String], aws_url: &str) -> Command {
    let own = vendor_credentials();
    let relay = env!("CARGO_BIN_EXE_siem-relay");
    let mut command = match launcher {
        [] => Command::new(relay),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(relay);
            command
        }
    };
    command
        .env_clear()
        .env("AWS_ENDPOINT_URL_STS", aws_url)
        .env("AWS_ENDPOINT_URL_KINESIS", aws_url)
        .env("AWS_ACCESS_KEY_ID", own.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", own.secret_access_key)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        // A retry that does not keep a test waiting, and tests without a limit; flags override them.
        .env("SIEM_RELAY_RETRY_FIRST_MS", "20")
        .env("SIEM_RELAY_TEST_INTERVAL_SECONDS", "0")
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Collects the log, and sends the address once the process listens.
async fn collect_log(
    stderr: BufReader<tokio::process::ChildStderr>,
    log: watch::Sender<String>,
    listening: oneshot::Sender<SocketAddr>,
) {
    let mut listening = Some(listening);
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = listening_address(&line)
            && let Some(listening) = listening.take()
        {
            let _dropped = listening.send(address);
        }
        log.send_modify(|log| {
            log.push_str(&line);
            log.push('\n');
        });
    }
}

fn listening_address(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields["message"] != "listening" {
        return None;
    }
    fields["address"].as_str()?.parse().ok()
}
