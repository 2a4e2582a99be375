//! The built binary, serving.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use super::{
    Failure,
    usage::{self, Usage},
};

/// How long its start may take, with a large database.
const START: Duration = Duration::from_secs(120);
const END: Duration = Duration::from_secs(60);

pub struct Service {
    process: Child,
    pub address: SocketAddr,
    /// From the start of the process until it listened.
    pub started_in: Duration,
}

impl Service {
    /// Starts it with the sink in the place of AWS, and waits until it listens.
    pub async fn start(data_dir: &Path, sink: SocketAddr) -> Result<Self, Failure> {
        let begun = Instant::now();
        let mut process = command(data_dir, sink).spawn()?;
        let stderr = process.stderr.take().ok_or("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = timeout(START, address(&mut lines)).await??;
        let started_in = begun.elapsed();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            process,
            address,
            started_in,
        })
    }

    fn pid(&self) -> Result<u32, Failure> {
        Ok(self.process.id().ok_or("the service has ended")?)
    }

    pub fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.pid()?)
    }

    pub fn reset_peak(&self) -> Result<(), Failure> {
        usage::reset_peak(self.pid()?)
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(mut self) -> Result<(), Failure> {
        let pid = self.pid()?.to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await?;
        let ended = timeout(END, self.process.wait()).await??;
        match sent.success() && ended.success() {
            true => Ok(()),
            false => Err(format!("the service ended badly: {ended}").into()),
        }
    }
}

fn command(data_dir: &Path, sink: SocketAddr) -> Command {
    let url = format!("http://{sink}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-relay"));
    command
        .env_clear()
        .env("AWS_ENDPOINT_URL_STS", &url)
        .env("AWS_ENDPOINT_URL_KINESIS", &url)
        .env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE00")
        .env(
            "AWS_SECRET_ACCESS_KEY",
            "exampleexampleexampleexampleexampleexamp",
        )
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .arg("--data-dir")
        .arg(data_dir)
        // Only backlogs are made of refusals, and they are to end soon.
        .args(["--retry-first-ms", "100", "--retry-most-ms", "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What it logs once it listens; its last words where it ends instead.
async fn address(lines: &mut Lines<BufReader<ChildStderr>>) -> Result<SocketAddr, Failure> {
    let mut last = String::new();
    while let Some(line) = lines.next_line().await? {
        let logged: Value = serde_json::from_str(&line).unwrap_or_default();
        let fields = logged.get("fields").unwrap_or(&logged);
        if fields["message"] == "listening" {
            let address = fields["address"].as_str().unwrap_or_default();
            return Ok(address.parse()?);
        }
        last = line;
    }
    Err(format!("the service did not start: {last}").into())
}
