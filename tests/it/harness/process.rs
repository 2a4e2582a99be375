//! The built binary as a process of its own.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use aws_stand_in::vendor_credentials;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{Api, within};

/// `siem-relay serve`. It is killed with this handle.
pub struct Process {
    pub api: Api,
    pub address: SocketAddr,
    child: Child,
    log: watch::Receiver<String>,
    reader: JoinHandle<()>,
}

/// How a process ended that did not start to serve.
#[derive(Debug)]
pub struct Refused {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Process {
    /// Starts it on a free port and waits until it listens.
    pub async fn start(data_dir: &Path, aws_url: &str, arguments: &[&str]) -> Self {
        let started = Self::try_start(data_dir, aws_url, arguments).await;
        started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"))
    }

    /// Starts it; an error where it ends instead of listening.
    pub async fn try_start(
        data_dir: &Path,
        aws_url: &str,
        arguments: &[&str],
    ) -> Result<Self, Refused> {
        Self::try_start_within(&[], data_dir, aws_url, arguments).await
    }

    /// Starts it by another program, which becomes it.
    pub async fn try_start_within(
        program: &[String],
        data_dir: &Path,
        aws_url: &str,
        arguments: &[&str],
    ) -> Result<Self, Refused> {
        let mut command = command(program, data_dir, aws_url);
        command.args(["--log-format", "json"]);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command.args(arguments).spawn().unwrap();
        let (logs, log) = watch::channel(String::new());
        let (listening, listens) = oneshot::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader = tokio::spawn(read(stderr, logs, listening));
        match within("the start of the process", listens).await {
            Ok(address) => Ok(Self {
                api: Api::new(address),
                address,
                child,
                log,
                reader,
            }),
            Err(_ended) => {
                let status = within("the end of the process", child.wait()).await;
                within("its last words", reader).await.unwrap();
                let stderr = log.borrow().clone();
                Err(Refused {
                    code: status.unwrap().code(),
                    stderr,
                })
            }
        }
    }

    /// Starts it, and kills it after so long, whatever it does then.
    pub async fn start_and_kill(data_dir: &Path, aws_url: &str, moment: Duration) {
        let mut command = command(&[], data_dir, aws_url);
        let mut child = command.args(["--listen", "127.0.0.1:0"]).spawn().unwrap();
        let ended = tokio::time::timeout(moment, child.wait()).await;
        assert!(ended.is_err(), "it ended by itself: {ended:?}");
        within("the end of the process", child.kill())
            .await
            .unwrap();
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until it has logged some words more often than so many times.
    pub async fn until_logged(&self, words: &str, before: usize) {
        let mut log = self.log.clone();
        let logged = log.wait_for(|log| log.matches(words).count() > before);
        within(words, logged).await.unwrap();
    }

    /// SIGKILL: nothing is finished or settled.
    pub async fn kill(mut self) {
        within("the end of the process", self.child.kill())
            .await
            .unwrap();
    }

    /// Its number among all processes.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Bytes of its memory that are in use now.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most bytes of its memory that were ever in use.
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

    /// SIGTERM.
    pub async fn terminate(&self) {
        let id = self.id().to_string();
        let mut kill = Command::new("kill");
        let sent = within("kill", kill.args(["-TERM", &id]).status()).await;
        assert!(sent.unwrap().success());
    }

    /// Waits for its end; tells how it ended and all that it logged.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let status = within("the end of the process", self.child.wait()).await;
        within("its last words", self.reader).await.unwrap();
        let log = self.log.borrow().clone();
        (status.unwrap(), log)
    }
}

/// `serve` with AWS and its credentials in the environment, and nothing else there.
fn command(program: &[String], data_dir: &Path, aws_url: &str) -> Command {
    let own = vendor_credentials();
    let relay = env!("CARGO_BIN_EXE_siem-relay");
    let mut command = match program {
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
        // A flag wins over it.
        .env("SIEM_RELAY_RETRY_FIRST_MS", "20")
        .args(["serve", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Keeps what the process logs, and tells once where it listens.
async fn read(
    stderr: BufReader<tokio::process::ChildStderr>,
    log: watch::Sender<String>,
    listening: oneshot::Sender<SocketAddr>,
) {
    let mut listening = Some(listening);
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = address(&line)
            && let Some(listening) = listening.take()
        {
            let _gone = listening.send(address);
        }
        log.send_modify(|log| {
            log.push_str(&line);
            log.push('\n');
        });
    }
}

fn address(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields["message"] != "listening" {
        return None;
    }
    fields["address"].as_str()?.parse().ok()
}
