//! Delivery lag of healthy integrations beside stuck and flooding ones, as a measurement:
//!
//! ```sh
//! cargo test --release --test it lag -- --ignored --nocapture
//! ```
//!
//! It prints the lag of the healthy ones, from the call of Publish and from its ack to the record in
//! the stream, without the others, beside them, and without them again. A record that arrives before
//! its ack has no lag.
//!
//! `SIEM_RELAY_TEST_SECONDS` is the length of each part, `…_EVENTS_A_MINUTE` the rate of each
//! integration, `…_INTEGRATIONS` their number.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_stand_in::{Control, Effect, Operation, RecordStream};
use siem_client::v1;
use tokio::{task::JoinSet, time};
use uuid::Uuid;

use crate::harness::{
    Api, Customer, Load, ProcessEnv, fault, parameter, print, throttled_records, with_timeout,
};

const REFUSED: usize = 49;
const THROTTLED: usize = 49;
/// Time between two publishes.
const TICK: Duration = Duration::from_millis(20);

/// Time of each event's arrival in the stream.
type Arrivals = Arc<Mutex<HashMap<Uuid, Instant>>>;
/// Times of each event's Publish: its call and its answer.
type Published = Arc<Mutex<HashMap<Uuid, [Instant; 2]>>>;

/// Integrations that get events in turn, at the same rate.
struct Group {
    customers: Vec<Customer>,
    loads: Vec<Load>,
    /// Events a second of the whole group.
    rate: f64,
    due: f64,
    next: usize,
}

impl Group {
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
    let times = [called, Instant::now()];
    assert_eq!(answer.accepted as usize, events.len());
    let mut acked = acked.lock().unwrap();
    for event in events {
        acked.insert(event.event_id.unwrap().parse().unwrap(), times);
    }
}

async fn record_arrivals(mut records: RecordStream, seen: Arrivals) {
    while let Some(record) = records.next().await {
        let event: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
        let id = event["id"].as_str().unwrap().parse().unwrap();
        seen.lock().unwrap().entry(id).or_insert_with(Instant::now);
    }
}

/// Publishes for a while, and prints the lag of the healthy group.
async fn measure(
    name: &str,
    api: &Api,
    seen: &Arrivals,
    healthy: &mut Group,
    others: &mut [Group],
) {
    let acked = Published::default();
    let mut publishes = JoinSet::new();
    let mut ticks = time::interval(TICK);
    let seconds = parameter("SECONDS", 20);
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
        let lag = |(id, times): (&Uuid, &[Instant; 2])| {
            let seen: Instant = seen[id];
            seen.saturating_duration_since(times[at])
        };
        let mut lags: Vec<Duration> = acked.iter().map(lag).collect();
        lags.sort();
        let quantile = |of: f64| lags[((lags.len() - 1) as f64 * of) as usize];
        print(&format!(
            "{name}: {} events, since {since} p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
            lags.len(),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            quantile(1.0),
        ));
    }
}

async fn until_seen(seen: &Arrivals, ids: impl Iterator<Item = &Uuid>) {
    for id in ids {
        with_timeout("an event in the stream", async {
            while !seen.lock().unwrap().contains_key(id) {
                time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// A group that is refused, one that is throttled, one that hangs and one that floods.
async fn faulty_groups(api: &Api, aws: &Control, rate: f64) -> Vec<Group> {
    let each = |kind: &'static str, count: usize| {
        (0..count).map(move |number| Customer::sharing(kind, &format!("{kind}-{number}")))
    };
    let hangs = Effect::Delay {
        milliseconds: 30_000,
    };
    let refused: Vec<_> = each("refused", REFUSED).collect();
    refused[0].make_stream(aws, 1);
    let mut groups = vec![Group::new(api, refused, rate).await];
    let working = [
        ("throttled", THROTTLED, rate, Some(throttled_records())),
        ("hangs", 1, rate, Some(hangs)),
        ("floods", 1, 100.0 * rate, None),
    ];
    for (kind, count, rate, effect) in working {
        let customers: Vec<_> = each(kind, count).collect();
        customers[0].make_shared_role(aws);
        customers[0].make_stream(aws, 4);
        if let Some(effect) = effect {
            let stream_arn = Some(&*customers[0].stream_arn);
            let fault = fault(Operation::PutRecords, stream_arn, effect);
            aws.add_fault(fault).unwrap();
        }
        groups.push(Group::new(api, customers, rate).await);
    }
    groups
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn delivery_lag_of_healthy_integrations_beside_faulty_ones() {
    let rate = parameter("EVENTS_A_MINUTE", 30) as f64 / 60.0;
    let healthy = parameter("INTEGRATIONS", 1000) as usize - REFUSED - THROTTLED - 2;
    let env = ProcessEnv::new().await;
    let aws = &env.aws;
    // The default, instead of the tests' short retry.
    let process = env.start_with(&["--retry-first-ms", "5000"]).await;
    let api = &process.api;
    let customers: Vec<_> = (0..healthy)
        .map(|number| Customer::sharing("healthy", &format!("healthy-{number}")))
        .collect();
    customers[0].make_shared_role(aws);
    customers[0].make_stream(aws, 16);
    let records = aws.subscribe(&customers[0].stream_arn).unwrap();
    let seen = Arrivals::default();
    tokio::spawn(record_arrivals(records, Arc::clone(&seen)));
    let mut healthy = Group::new(api, customers, rate).await;
    let mut faulty = faulty_groups(api, aws, rate).await;

    let first = healthy.take(healthy.loads.len());
    let acked = Published::default();
    publish(api.clone(), first, Arc::clone(&acked)).await;
    let acked = std::mem::take(&mut *acked.lock().unwrap());
    until_seen(&seen, acked.keys()).await;

    for round in ["first", "second"] {
        measure(
            &format!("{round}, without the others"),
            api,
            &seen,
            &mut healthy,
            &mut [],
        )
        .await;
        measure(
            &format!("{round}, beside the others"),
            api,
            &seen,
            &mut healthy,
            &mut faulty,
        )
        .await;
    }
    for customer in faulty.iter().flat_map(|group| &group.customers) {
        api.delete(&customer.organization_id, false).await.unwrap();
    }
    measure(
        "at last, without the others",
        api,
        &seen,
        &mut healthy,
        &mut [],
    )
    .await;
}
