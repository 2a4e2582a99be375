//! The least that writing to Kinesis takes with the AWS SDK: ready-made requests, of 500
//! records or as few as the service's had, and nothing else. And what remains of that
//! without the SDK.

mod bare;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aws_sdk_kinesis::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig, retry::RetryConfig,
    },
    primitives::Blob,
    types::PutRecordsRequestEntry,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Failure,
    events::record,
    process::Orders,
    stats::{Latency, Samples, now_nanos},
    workload::Workload,
};

/// Records of a full request.
pub const RECORDS: usize = 500;
const REQUEST_BYTES: usize = 5 << 20;
const IN_FLIGHT: usize = 4;
const SEED: u64 = 7;
const STREAM_ARN: &str = "arn:aws:kinesis:us-east-1:222222222222:stream/detections";
/// Requests that differ.
const DISTINCT: usize = 32;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub sink: SocketAddr,
    pub workload: Workload,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    pub records: u64,
    /// On average, as far as the requests that are ready have so many.
    pub records_per_request: f64,
    /// None sends as fast as that goes.
    pub records_per_second: Option<f64>,
    pub means: Means,
}

/// What sends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    Sdk,
    /// A socket alone: nothing is made, signed or understood.
    Bare,
}

impl Order {
    /// Of a request by its number: the whole numbers around the average take turns.
    fn records_of(&self, number: usize) -> usize {
        let before = |number: usize| (number as f64 * self.records_per_request) as usize;
        before(number + 1) - before(number)
    }

    /// All that [`Order::records_of`] may say.
    fn counts(&self) -> [usize; 2] {
        let fewest = self.records_per_request as usize;
        [fewest, fewest + 1]
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Bytes of a record, on average.
    pub record_bytes: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    pub records: u64,
    pub first_nanos: u64,
    pub request: Latency,
}

type Requests = Arc<Vec<Vec<PutRecordsRequestEntry>>>;

/// Says first what it has ready.
pub fn run(plan: Plan) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let requests = Arc::new(requests(&plan.workload)?);
        let client = client(plan.sink);
        let mut orders = Orders::new();
        let ready = ready(&requests);
        orders.answer(&ready).await?;
        let mut made = Arc::new(bare::Made::default());
        while let Some(order) = orders.next::<Order>().await? {
            if let (Means::Bare, Some(made)) = (order.means, Arc::get_mut(&mut made)) {
                made.make(&requests, order.counts())?;
            }
            let done = send(&plan, &client, &requests, &made, order).await?;
            orders.answer(&done).await?;
        }
        Ok(())
    })
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
    let source = workload.source()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut all = Vec::new();
    for _ in 0..DISTINCT {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < RECORDS && bytes < REQUEST_BYTES - (64 << 10) {
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

/// One of those that send at the same time.
enum Sender {
    Sdk(Client),
    Bare(bare::Connection, Arc<bare::Made>),
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
            Self::Bare(connection, made) => connection.put(made, number, count).await,
        }
    }
}

/// How far they are together.
#[derive(Default)]
struct Progress {
    records: u64,
    requests: usize,
    samples: Samples,
}

async fn send(
    plan: &Plan,
    client: &Client,
    requests: &Requests,
    made: &Arc<bare::Made>,
    order: Order,
) -> Result<Done, Failure> {
    let progress = Arc::new(Mutex::new(Progress::default()));
    let senders = senders(plan, client, made, order).await?;
    let start = Instant::now();
    let first_nanos = now_nanos();
    let mut sending = JoinSet::new();
    for sender in senders {
        sending.spawn(work(
            sender,
            Arc::clone(requests),
            order,
            Arc::clone(&progress),
            start,
        ));
    }
    while let Some(ended) = sending.join_next().await {
        ended??;
    }
    let mut progress = progress.lock().await;
    Ok(Done {
        records: progress.records,
        first_nanos,
        request: progress.samples.take(),
    })
}

async fn senders(
    plan: &Plan,
    client: &Client,
    made: &Arc<bare::Made>,
    order: Order,
) -> Result<Vec<Sender>, Failure> {
    if let Means::Sdk = order.means {
        let senders = std::iter::repeat_with(|| Sender::Sdk(client.clone()));
        return Ok(senders.take(IN_FLIGHT).collect());
    }
    let mut senders = Vec::new();
    for _ in 0..IN_FLIGHT {
        let connection = bare::Connection::open(plan.sink).await?;
        senders.push(Sender::Bare(connection, Arc::clone(made)));
    }
    Ok(senders)
}

async fn work(
    mut sender: Sender,
    requests: Requests,
    order: Order,
    progress: Arc<Mutex<Progress>>,
    start: Instant,
) -> Result<(), Failure> {
    loop {
        let (number, count) = {
            let mut progress = progress.lock().await;
            if progress.records >= order.records {
                return Ok(());
            }
            if let Some(rate) = order.records_per_second {
                let due = Duration::from_secs_f64(progress.records as f64 / rate);
                sleep_until(start + due).await;
            }
            let number = progress.requests % requests.len();
            let count = order.records_of(progress.requests);
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
