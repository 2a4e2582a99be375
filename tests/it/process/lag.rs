//! What stuck and flooding integrations cost the healthy ones, measured by hand:
//!
//! ```sh
//! cargo test --release --test it lag -- --ignored --nocapture
//! ```
//!
//! It tells the healthy ones' lag, from the ack of Publish and from its call to the record
//! in the stream, without the others, beside them, and without them again. A record that
//! is there before its ack has no lag.
//!
//! `SIEM_RELAY_TEST_SECONDS` is the length of each part, `…_EVENTS_A_MINUTE` what each
//! integration gets, `…_INTEGRATIONS` how many there are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_stand_in::{Control, Effect, Fault, Operation, RecordStream, When};
use siem_client::v1;
use tempfile::TempDir;
use tokio::{task::JoinSet, time};
use uuid::Uuid;

use crate::harness::{Api, Customer, Load, Process, knob, say, stand_in, within};

const REFUSED: usize = 49;
const THROTTLED: usize = 49;
/// Between two publishes.
const TICK: Duration = Duration::from_millis(20);

/// When something happened to an event.
type Moments = Arc<Mutex<HashMap<Uuid, Instant>>>;
/// When Publish was called and when it had answered, of each event.
type Published = Arc<Mutex<HashMap<Uuid, [Instant; 2]>>>;

/// Integrations that get events at the same rate, one after the other.
struct Crowd {
    customers: Vec<Customer>,
    loads: Vec<Load>,
    /// Of all together, a second.
    rate: f64,
    due: f64,
    next: usize,
}

impl Crowd {
    async fn new(api: &Api, customers: Vec<Customer>, rate_of_each: f64) -> Self {
        let mut loads = Vec::new();
        for (number, customer) in customers.iter().enumerate() {
            api.configure(customer).await;
            loads.push(Load::new(&customer.organization_id, 3, number as u64));
        }
        Self {
            rate: rate_of_each * customers.len() as f64,
            customers,
            loads,
            due: 0.0,
            next: 0,
        }
    }

    /// The events of a tick.
    fn tick(&mut self) -> Vec<v1::Event> {
        self.due += self.rate * TICK.as_secs_f64();
        let count = self.due as usize;
        self.due -= count as f64;
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Vec<v1::Event> {
        let mut events = Vec::new();
        for _ in 0..count {
            self.next = (self.next + 1) % self.loads.len();
            events.extend(self.loads[self.next].events(1));
        }
        events
    }
}

async fn publish(api: Api, events: Vec<v1::Event>, acked: Published) {
    if events.is_empty() {
        return;
    }
    let called = Instant::now();
    let answer = api.try_publish(events.clone()).await.unwrap();
    let moments = [called, Instant::now()];
    assert_eq!(answer.accepted as usize, events.len());
    let mut acked = acked.lock().unwrap();
    for event in events {
        acked.insert(event.event_id.unwrap().parse().unwrap(), moments);
    }
}

async fn note(mut records: RecordStream, seen: Moments) {
    while let Some(record) = records.next().await {
        let event: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
        let id = event["id"].as_str().unwrap().parse().unwrap();
        seen.lock().unwrap().entry(id).or_insert_with(Instant::now);
    }
}

/// Publishes for a while, and tells the lag of the healthy ones.
async fn phase(name: &str, api: &Api, seen: &Moments, healthy: &mut Crowd, others: &mut [Crowd]) {
    let acked = Published::default();
    let mut publishes = JoinSet::new();
    let mut ticks = time::interval(TICK);
    let seconds = knob("SECONDS", 20);
    for _ in 0..seconds * 50 {
        ticks.tick().await;
        publishes.spawn(publish(api.clone(), healthy.tick(), Arc::clone(&acked)));
        for other in &mut *others {
            publishes.spawn(publish(api.clone(), other.tick(), Published::default()));
        }
    }
    publishes.join_all().await;
    let acked = std::mem::take(&mut *acked.lock().unwrap());
    until_seen(seen, acked.keys()).await;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    for (at, since) in ["the call", "the ack"].into_iter().enumerate() {
        let lag = |(id, moments): (&Uuid, &[Instant; 2])| {
            let seen: Instant = seen[id];
            seen.saturating_duration_since(moments[at])
        };
        let mut lags: Vec<Duration> = acked.iter().map(lag).collect();
        lags.sort();
        let quantile = |of: f64| lags[((lags.len() - 1) as f64 * of) as usize];
        say(&format!(
            "{name}: {} events, since {since} p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
            lags.len(),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            quantile(1.0),
        ));
    }
}

async fn until_seen(seen: &Moments, ids: impl Iterator<Item = &Uuid>) {
    for id in ids {
        within("an event in the stream", async {
            while !seen.lock().unwrap().contains_key(id) {
                time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn fault(stream: &Customer, effect: Effect) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: Some(stream.stream_arn.clone()),
        calls: None,
        when: When::Before,
        effect,
    }
}

/// Refused, throttled to nothing, hanging, and flooding.
async fn bad_ones(api: &Api, aws: &Control, rate: f64) -> Vec<Crowd> {
    let each = |kind: &'static str, count: usize| {
        (0..count).map(move |number| Customer::sharing(kind, &format!("{kind}-{number}")))
    };
    let throttled = Effect::FailRecords {
        probability: 1.0,
        seed: 1,
        code: "ProvisionedThroughputExceededException".to_owned(),
    };
    let hangs = Effect::Delay {
        milliseconds: 30_000,
    };
    let refused: Vec<_> = each("refused", REFUSED).collect();
    refused[0].make_stream(aws, 1);
    let mut crowds = vec![Crowd::new(api, refused, rate).await];
    let working = [
        ("throttled", THROTTLED, rate, Some(throttled)),
        ("hangs", 1, rate, Some(hangs)),
        ("floods", 1, 100.0 * rate, None),
    ];
    for (kind, count, rate, effect) in working {
        let customers: Vec<_> = each(kind, count).collect();
        customers[0].make_shared_role(aws);
        customers[0].make_stream(aws, 4);
        if let Some(effect) = effect {
            aws.add_fault(fault(&customers[0], effect)).unwrap();
        }
        crowds.push(Crowd::new(api, customers, rate).await);
    }
    crowds
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn the_lag_of_the_healthy_beside_the_others() {
    let rate = knob("EVENTS_A_MINUTE", 30) as f64 / 60.0;
    let healthy = knob("INTEGRATIONS", 1000) as usize - REFUSED - THROTTLED - 2;
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    let folder = TempDir::new().unwrap();
    let usual = ["--retry-first-ms", "5000"];
    let process = Process::start(folder.path(), &stand_in.url(), &usual).await;
    let api = &process.api;
    let customers: Vec<_> = (0..healthy)
        .map(|number| Customer::sharing("healthy", &format!("healthy-{number}")))
        .collect();
    customers[0].make_shared_role(&aws);
    customers[0].make_stream(&aws, 16);
    let records = aws.subscribe(&customers[0].stream_arn).unwrap();
    let seen = Moments::default();
    tokio::spawn(note(records, Arc::clone(&seen)));
    let mut healthy = Crowd::new(api, customers, rate).await;
    let mut bad = bad_ones(api, &aws, rate).await;

    let first = healthy.take(healthy.loads.len());
    let acked = Published::default();
    publish(api.clone(), first, Arc::clone(&acked)).await;
    let acked = std::mem::take(&mut *acked.lock().unwrap());
    until_seen(&seen, acked.keys()).await;

    for round in ["first", "second"] {
        phase(
            &format!("{round}, without the others"),
            api,
            &seen,
            &mut healthy,
            &mut [],
        )
        .await;
        phase(
            &format!("{round}, beside the others"),
            api,
            &seen,
            &mut healthy,
            &mut bad,
        )
        .await;
    }
    for customer in bad.iter().flat_map(|crowd| &crowd.customers) {
        api.delete(&customer.organization_id, false).await.unwrap();
    }
    phase(
        "at last, without the others",
        api,
        &seen,
        &mut healthy,
        &mut [],
    )
    .await;
}
