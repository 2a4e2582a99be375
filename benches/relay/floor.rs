//! The least that writing to Kinesis takes with the AWS SDK: ready-made requests, of 500
//! records or as few as the service's had, and nothing else.

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
    child::Orders,
    events::record,
    samples::{Latency, Samples, now_nanos},
    workload::Workload,
};

/// Records of a full request.
pub const RECORDS: usize = 500;
const REQUEST_BYTES: usize = 5 << 20;
const IN_FLIGHT: usize = 4;
const SEED: u64 = 7;
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
}

impl Order {
    /// Of a request by its number: the whole numbers around the average take turns.
    fn records_of(&self, number: usize) -> usize {
        let before = |number: usize| (number as f64 * self.records_per_request) as usize;
        before(number + 1) - before(number)
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
        while let Some(order) = orders.next::<Order>().await? {
            let done = send(&client, &requests, order).await?;
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

async fn send(client: &Client, requests: &Requests, order: Order) -> Result<Done, Failure> {
    let start = Instant::now();
    let first_nanos = now_nanos();
    let state = Arc::new(Mutex::new((0, 0, Samples::default())));
    let mut senders = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (client, requests, state) = (client.clone(), Arc::clone(requests), Arc::clone(&state));
        senders.spawn(async move {
            loop {
                let entries = {
                    let mut state = state.lock().await;
                    if state.0 >= order.records {
                        return Ok::<(), Failure>(());
                    }
                    if let Some(rate) = order.records_per_second {
                        let due = Duration::from_secs_f64(state.0 as f64 / rate);
                        sleep_until(start + due).await;
                    }
                    let entries = &requests[state.1 % requests.len()];
                    let entries = &entries[..entries.len().min(order.records_of(state.1))];
                    state.0 += entries.len() as u64;
                    state.1 += 1;
                    entries.to_vec()
                };
                let start = now_nanos();
                let request = client
                    .put_records()
                    .stream_arn("arn:aws:kinesis:us-east-1:222222222222:stream/detections")
                    .set_records(Some(entries));
                request.send().await?;
                let end = now_nanos();
                state.lock().await.2.add(start, end);
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    let mut state = state.lock().await;
    Ok(Done {
        records: state.0,
        first_nanos,
        request: state.2.take(),
    })
}
