//! Baseline of sending (`floor`): ready-made PutRecords requests, sent to the sink by the AWS
//! SDK or by a bare socket. Requests are full, or have as many records as the service's.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use aws_sdk_kinesis::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig, retry::RetryConfig,
    },
    primitives::Blob,
    types::PutRecordsRequestEntry,
};
use minicbor::{Encoder, encode};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Failure,
    events::record,
    http,
    process::Controller,
    stats::{Latency, Samples, now_nanos},
    workload::Workload,
};

/// Records of a full request.
pub const FULL_REQUEST: usize = 500;
const MAX_REQUEST_BYTES: usize = 5 << 20;
const REQUESTS_IN_FLIGHT: usize = 4;
/// Number of requests that differ.
const DISTINCT_REQUESTS: usize = 32;
const SEED: u64 = 7;
const STREAM_ARN: &str = "arn:aws:kinesis:us-east-1:222222222222:stream/detections";
/// Head of a request by the bare socket, as long as that of a signed one.
const BARE_HEAD: &str = "POST / HTTP/1.1\r\nhost: kinesis.us-east-1.amazonaws.com\r\n\
    content-type: application/x-amz-cbor-1.1\r\nx-amz-target: Kinesis_20131202.PutRecords\r\n";
const SIGNATURE_BYTES: usize = 360 + 64 + 200;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub sink: SocketAddr,
    pub workload: Workload,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Command {
    pub records: u64,
    /// Average, limited by the size of the ready-made requests.
    pub records_per_request: f64,
    /// None sends as fast as possible.
    pub records_per_second: Option<f64>,
    pub method: Method,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// AWS SDK, which serializes, signs and parses.
    Sdk,
    /// TCP socket, which writes encoded requests and reads responses without parsing them.
    Bare,
}

impl Command {
    /// Returns the records of a request by its number: one of the two integers around the
    /// average, so that the average holds over all requests.
    fn records_of(&self, number: usize) -> usize {
        let before = |number: usize| (number as f64 * self.records_per_request) as usize;
        before(number + 1) - before(number)
    }

    /// Returns all values of [`Command::records_of`].
    fn record_counts(&self) -> [usize; 2] {
        let lower = self.records_per_request as usize;
        [lower, lower + 1]
    }
}

/// Answer at the start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Average size of a record.
    pub record_bytes: f64,
}

/// Answer to a command.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub records: u64,
    pub first_nanos: u64,
    pub request: Latency,
}

type Requests = Arc<Vec<Vec<PutRecordsRequestEntry>>>;

pub async fn run(config: Config) -> Result<(), Failure> {
    let requests = Arc::new(requests(&config.workload)?);
    let client = client(config.sink);
    let mut controller = Controller::new();
    let ready = ready(&requests);
    controller.answer(&ready).await?;
    let mut encoded = Arc::new(EncodedRequests::default());
    while let Some(command) = controller.next::<Command>().await? {
        if let (Method::Bare, Some(encoded)) = (command.method, Arc::get_mut(&mut encoded)) {
            encoded.prepare(&requests, command.record_counts())?;
        }
        let sent = send(&config, &client, &requests, &encoded, command).await?;
        controller.answer(&sent).await?;
    }
    Ok(())
}

fn client(sink: SocketAddr) -> Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(format!("http://{sink}"))
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(
            "ASIAEXAMPLEEXAMPLE00",
            "exampleexampleexampleexampleexampleexamp",
            Some("t".repeat(360)),
            None,
            "bench",
        ))
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build();
    Client::from_conf(config)
}

fn requests(workload: &Workload) -> Result<Vec<Vec<PutRecordsRequestEntry>>, Failure> {
    let source = workload.event_source()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut all = Vec::new();
    for _ in 0..DISTINCT_REQUESTS {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < FULL_REQUEST && bytes < MAX_REQUEST_BYTES - (64 << 10) {
            let device = rng.random_range(0..workload.devices);
            let event = source.event(&mut rng, "org-000000", device);
            let data = record(&event, entries.len() as u64 + 1)?;
            bytes += data.len() + 36;
            let entry = PutRecordsRequestEntry::builder()
                .data(Blob::new(data))
                .partition_key(uuid::Uuid::from_u128(device).to_string());
            entries.push(entry.build()?);
        }
        all.push(entries);
    }
    Ok(all)
}

fn ready(requests: &Requests) -> Ready {
    let entries = requests.iter().flatten();
    let bytes: usize = entries.map(|entry| entry.data().as_ref().len()).sum();
    let count = requests.iter().map(Vec::len).sum::<usize>();
    Ready {
        record_bytes: bytes as f64 / count as f64,
    }
}

/// One of the tasks' means of sending.
enum Sender {
    Sdk(Client),
    Bare(BareConnection, Arc<EncodedRequests>),
}

impl Sender {
    /// Sends the first entries of a request.
    async fn put(
        &mut self,
        requests: &Requests,
        number: usize,
        count: usize,
    ) -> Result<(), Failure> {
        match self {
            Self::Sdk(client) => {
                let entries = requests[number][..count].to_vec();
                let request = client.put_records().stream_arn(STREAM_ARN);
                request.set_records(Some(entries)).send().await?;
                Ok(())
            }
            Self::Bare(connection, encoded) => connection.put(encoded.get(number, count)?).await,
        }
    }
}

/// Progress of all senders together.
#[derive(Default)]
struct Progress {
    records: u64,
    requests: usize,
    samples: Samples,
}

async fn send(
    config: &Config,
    client: &Client,
    requests: &Requests,
    encoded: &Arc<EncodedRequests>,
    command: Command,
) -> Result<Sent, Failure> {
    let mut senders = Vec::new();
    for _ in 0..REQUESTS_IN_FLIGHT {
        senders.push(match command.method {
            Method::Sdk => Sender::Sdk(client.clone()),
            Method::Bare => {
                let connection = BareConnection::open(config.sink).await?;
                Sender::Bare(connection, Arc::clone(encoded))
            }
        });
    }
    let progress = Arc::new(Mutex::new(Progress::default()));
    let start = Instant::now();
    let first_nanos = now_nanos();
    let mut sending = JoinSet::new();
    for sender in senders {
        sending.spawn(send_share(
            sender,
            Arc::clone(requests),
            command,
            Arc::clone(&progress),
            start,
        ));
    }
    while let Some(ended) = sending.join_next().await {
        ended??;
    }
    let mut progress = progress.lock().await;
    Ok(Sent {
        records: progress.records,
        first_nanos,
        request: progress.samples.take(),
    })
}

/// Sends requests one after another, until all senders together have sent all records.
async fn send_share(
    mut sender: Sender,
    requests: Requests,
    command: Command,
    progress: Arc<Mutex<Progress>>,
    start: Instant,
) -> Result<(), Failure> {
    loop {
        let (number, count) = {
            let mut progress = progress.lock().await;
            if progress.records >= command.records {
                return Ok(());
            }
            if let Some(rate) = command.records_per_second {
                let due = Duration::from_secs_f64(progress.records as f64 / rate);
                sleep_until(start + due).await;
            }
            let number = progress.requests % requests.len();
            let count = command.records_of(progress.requests);
            let count = count.min(requests[number].len());
            progress.records += count as u64;
            progress.requests += 1;
            (number, count)
        };
        let start = now_nanos();
        sender.put(&requests, number, count).await?;
        let end = now_nanos();
        progress.lock().await.samples.add(start, end);
    }
}

/// Requests as bytes, for the bare socket.
#[derive(Default)]
struct EncodedRequests {
    record_counts: [usize; 2],
    /// By the number of the request and the number of its records.
    requests: HashMap<(usize, usize), Vec<u8>>,
}

impl EncodedRequests {
    /// Encodes each request with each number of records, if that is not done yet.
    fn prepare(
        &mut self,
        requests: &[Vec<PutRecordsRequestEntry>],
        record_counts: [usize; 2],
    ) -> Result<(), Failure> {
        if self.record_counts == record_counts {
            return Ok(());
        }
        self.record_counts = record_counts;
        self.requests.clear();
        for (number, entries) in requests.iter().enumerate() {
            for count in record_counts.map(|count| count.min(entries.len())) {
                if let Entry::Vacant(vacant) = self.requests.entry((number, count)) {
                    vacant.insert(encode_request(&entries[..count])?);
                }
            }
        }
        Ok(())
    }

    fn get(&self, number: usize, count: usize) -> Result<&[u8], Failure> {
        let request = self.requests.get(&(number, count));
        Ok(request.ok_or("the request was not encoded")?)
    }
}

fn encode_request(entries: &[PutRecordsRequestEntry]) -> Result<Vec<u8>, Failure> {
    let body = encode_body(entries)?;
    let signature = "a".repeat(SIGNATURE_BYTES);
    let length = body.len();
    let head = format!("{BARE_HEAD}authorization: {signature}\r\ncontent-length: {length}\r\n\r\n");
    Ok([head.as_bytes(), &body].concat())
}

fn encode_body(entries: &[PutRecordsRequestEntry]) -> Result<Vec<u8>, Failure> {
    let mut to = Encoder::new(Vec::new());
    let mut write = || {
        to.begin_map()?.str("StreamARN")?.str(STREAM_ARN)?;
        to.str("Records")?.begin_array()?;
        for entry in entries {
            to.begin_map()?.str("Data")?.bytes(entry.data().as_ref())?;
            let key = entry.partition_key().unwrap_or_default();
            to.str("PartitionKey")?.str(key)?.end()?;
        }
        to.end()?.end()?.ok()
    };
    let written: Result<(), encode::Error<_>> = write();
    written?;
    Ok(to.into_writer())
}

/// Connection of the bare socket, which is kept alive.
struct BareConnection {
    stream: TcpStream,
    response: Vec<u8>,
}

impl BareConnection {
    async fn open(sink: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(sink).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            response: Vec::with_capacity(64 << 10),
        })
    }

    async fn put(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(request).await?;
        self.response.clear();
        let response = http::read(&mut self.stream, &mut self.response).await?;
        response
            .map(drop)
            .ok_or("the sink closed the connection".into())
    }
}
