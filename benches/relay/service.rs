//! The service under test: its process and a client of its API.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::{TryStreamExt, stream};
use serde_json::Value;
use siem_client::v1::{
    ConfigureRequest, DeleteRequest, EventCounts, GetRequest, ListRequest,
    siem_integration_service_client::SiemIntegrationServiceClient,
};
use siem_client::{Channel, channel};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::{sleep, timeout},
};
use tonic::Code;

use super::{
    Failure,
    instances::Storage,
    process::{self, Usage},
    workload::Workload,
};

/// Limit of the start with a large database.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Configure calls in flight; they share syncs to disk.
const CONFIGURE_CONCURRENCY: usize = 200;
/// Time until a Configure that is refused temporarily is made again, and the limit of all.
const CONFIGURE_AGAIN: Duration = Duration::from_millis(200);
const CONFIGURE_TIMEOUT: Duration = Duration::from_secs(120);
const PAGE_SIZE: u32 = 1000;

pub struct Service {
    process: Child,
    pub address: SocketAddr,
    /// Time from the start of the process until it listened.
    pub started_in: Duration,
}

impl Service {
    /// Starts the service with the sink as its AWS endpoint, and waits until it listens.
    pub async fn start(data_dir: &Path, sink: SocketAddr) -> Result<Self, Failure> {
        Self::run(command(data_dir, sink)).await
    }

    /// Starts an instance on shared storage.
    pub async fn start_shared(
        storage: &Storage,
        data_dir: &Path,
        sink: SocketAddr,
    ) -> Result<Self, Failure> {
        let mut command = command(data_dir, sink);
        storage.configure(&mut command);
        Self::run(command).await
    }

    async fn run(mut command: Command) -> Result<Self, Failure> {
        let start = Instant::now();
        let mut process = command.spawn()?;
        let stderr = process.stderr.take().ok_or("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = timeout(START_TIMEOUT, listen_address(&mut lines)).await??;
        let started_in = start.elapsed();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            process,
            address,
            started_in,
        })
    }

    pub fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(&self.process)
    }

    pub fn reset_peak(&self) -> Result<(), Failure> {
        process::reset_peak(&self.process)
    }

    /// Sends a signal, such as `TERM`.
    pub async fn signal(&self, name: &str) -> Result<(), Failure> {
        let pid = process::pid(&self.process)?.to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        match sent.await?.success() {
            true => Ok(()),
            false => Err("cannot send a signal to the service".into()),
        }
    }

    /// Sends SIGTERM and waits for the process to end.
    pub async fn stop(mut self) -> Result<(), Failure> {
        self.signal("TERM").await?;
        let ended = timeout(STOP_TIMEOUT, self.process.wait()).await??;
        match ended.success() {
            true => Ok(()),
            false => Err(format!("the service did not stop cleanly: {ended}").into()),
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
        // Only the backlog measurement makes AWS fail; delivery is to resume soon after it.
        .args(["--retry-first-ms", "100", "--retry-most-ms", "1000"])
        // Thousands of subscribers share a connection.
        .args(["--max-streams-per-connection", "20000"])
        .args(["--requests-per-second-per-caller", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Reads the log until it names the address. The error has the last line of the log.
async fn listen_address(lines: &mut Lines<BufReader<ChildStderr>>) -> Result<SocketAddr, Failure> {
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

/// Client of SiemIntegrationService.
#[derive(Clone)]
pub struct Admin(SiemIntegrationServiceClient<Channel>);

impl Admin {
    pub fn new(address: SocketAddr) -> Result<Self, Failure> {
        let channel = channel(&address.to_string())?;
        Ok(Self(SiemIntegrationServiceClient::new(channel)))
    }

    /// Configures the first organizations.
    pub async fn configure(&self, organizations: usize) -> Result<(), Failure> {
        stream::iter((0..organizations).map(Ok))
            .try_for_each_concurrent(CONFIGURE_CONCURRENCY, |number| self.configure_one(number))
            .await
    }

    pub async fn configure_one(&self, number: usize) -> Result<(), Failure> {
        let request = ConfigureRequest {
            organization_id: Workload::organization(number),
            kinesis_stream_arn: format!(
                "arn:aws:kinesis:us-east-1:222222222222:stream/detections-{number}"
            ),
            role_arn: "arn:aws:iam::222222222222:role/siem-relay".to_owned(),
            external_id: format!("external-{number:08}-0123456789abcdef"),
            ..Default::default()
        };
        let deadline = Instant::now() + CONFIGURE_TIMEOUT;
        loop {
            match self.0.clone().configure(request.clone()).await {
                Ok(_) => return Ok(()),
                // A database takes fewer at a time than the embedded store.
                Err(error) if error.code() == Code::Unavailable && Instant::now() < deadline => {
                    sleep(CONFIGURE_AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub async fn delete(&self, number: usize) -> Result<(), Failure> {
        let request = DeleteRequest {
            organization_id: Workload::organization(number),
            ..Default::default()
        };
        self.0.clone().delete(request).await?;
        Ok(())
    }

    /// Returns whether Get answers for the first organization.
    pub async fn answers(&self) -> bool {
        let request = GetRequest {
            organization_id: Workload::organization(0),
        };
        self.0.clone().get(request).await.is_ok()
    }

    /// Returns the sum of the counts of all integrations.
    pub async fn counts(&self) -> Result<EventCounts, Failure> {
        let mut sum = EventCounts::default();
        let mut page_token = String::new();
        loop {
            let request = ListRequest {
                page_size: PAGE_SIZE,
                page_token,
                ..Default::default()
            };
            let page = self.0.clone().list(request).await?.into_inner();
            for counts in page.integrations.iter().filter_map(|it| it.counts) {
                sum.accepted += counts.accepted;
                sum.delivered += counts.delivered;
                sum.expired += counts.expired;
                sum.discarded += counts.discarded;
                sum.pending += counts.pending;
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(sum);
            }
        }
    }
}
