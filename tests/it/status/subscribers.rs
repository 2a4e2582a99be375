//! Many subscribers of the built binary, and odd ones among them.

use aws_stand_in::StandIn;
use futures_util::future::join_all;
use siem_client::v1::{Status, StatusReason};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::harness::{Api, Customer, Load, Process, StatusFeed, Told, stand_in, within};

const SUBSCRIBERS: usize = 2000;
const CONNECTIONS: usize = 4;
/// Each changes the status four times.
const ROUNDS: usize = 10;
/// Less than 400 bytes for each subscriber and change.
const MOST_GROWTH: u64 = 32 << 20;

struct Ground {
    stand_in: StandIn,
    dir: TempDir,
    customer: Customer,
}

impl Ground {
    async fn new() -> Self {
        let stand_in = stand_in().await;
        let customer = Customer::new("acme");
        customer.make_role(&stand_in.control());
        customer.make_stream(&stand_in.control(), 1);
        Self {
            stand_in,
            dir: TempDir::new().unwrap(),
            customer,
        }
    }

    async fn start(&self) -> Process {
        let settings = ["--status-tombstones", "1"];
        Process::start(self.dir.path(), &self.stand_in.url(), &settings).await
    }

    /// Tokens of before a restart: one whose successors are known, and one that is older
    /// than the deletions that are remembered.
    async fn tokens(&self) -> (String, String) {
        let process = self.start().await;
        process.api.configure(&self.customer).await;
        for name in ["one", "two"] {
            process.api.configure(&Customer::new(name)).await;
        }
        let mut feed = process.api.watch(&[], "").await;
        feed.until_synced().await;
        let too_old = feed.token.clone();
        for name in ["one", "two"] {
            process.api.delete(name, false).await.unwrap();
            assert_eq!(feed.next().await, Told::Deleted(name.to_owned()));
        }
        process.terminate().await;
        let (status, log) = process.ended().await;
        assert!(status.success(), "{log}");
        (feed.token, too_old)
    }

    /// Changes the status, over and over, and leaves it ACTIVE.
    async fn change(&self, api: &Api) {
        let wrong = Customer {
            external_id: "not-the-one-that-is-trusted".to_owned(),
            ..self.customer.clone()
        };
        for _ in 0..ROUNDS {
            api.configure(&wrong).await;
            assert!(!api.send_test("acme").await.delivered);
            api.configure(&self.customer).await;
            assert!(api.send_test("acme").await.delivered);
        }
    }

    /// Makes the last change.
    async fn lose_the_stream(&self, api: &Api) -> Told {
        let aws = self.stand_in.control();
        aws.delete_stream(&self.customer.stream_arn);
        api.publish(&Load::new("acme", 1, 1).events(1)).await;
        Told::because("acme", Status::Failing, StatusReason::StreamNotFound)
    }
}

async fn subscribe(process: &Process) -> Vec<StatusFeed> {
    let apis: Vec<Api> = (0..CONNECTIONS)
        .map(|_| Api::new(process.api.address()))
        .collect();
    let feeds = (0..SUBSCRIBERS).map(|number| {
        let api = &apis[number % CONNECTIONS];
        async {
            let mut feed = api.watch(&["acme"], "").await;
            let unknown = Told::current("acme", Status::Unknown);
            assert_eq!(feed.until_synced().await, [unknown]);
            feed
        }
    });
    join_all(feeds).await
}

/// Lets each read on by itself until it is told this.
fn until(feeds: Vec<StatusFeed>, wanted: &Told) -> JoinSet<StatusFeed> {
    let reading = feeds.into_iter().map(|mut feed| {
        let wanted = wanted.clone();
        async move {
            feed.until(&wanted).await;
            feed
        }
    });
    reading.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_end_with_the_true_last_state_at_bounded_memory() {
    let ground = Ground::new().await;
    let (before_restart, too_old) = ground.tokens().await;
    let process = ground.start().await;
    let api = &process.api;
    let mut feeds = subscribe(&process).await;
    // It never reads until all is over.
    let mut stalled = Api::with_small_window(api.address())
        .watch(&["acme"], "")
        .await;
    stalled.until_synced().await;

    assert!(api.send_test("acme").await.delivered);
    let active = Told::current("acme", Status::Active);
    let told = join_all(feeds.iter_mut().map(StatusFeed::next)).await;
    assert!(
        told.iter().all(|told| *told == active),
        "one change, told to all"
    );

    let memory = process.resident_bytes();
    let missing = Told::because("acme", Status::Failing, StatusReason::StreamNotFound);
    let reading = until(feeds, &missing);
    ground.change(api).await;
    assert_eq!(ground.lose_the_stream(api).await, missing);
    let feeds = within("all subscribers", reading.join_all()).await;
    assert_eq!(feeds.len(), SUBSCRIBERS);
    let growth = process.resident_bytes().saturating_sub(memory);
    assert!(growth < MOST_GROWTH, "{memory} bytes grew by {growth}");

    stalled.until(&missing).await;
    let mut resumed = api.watch(&["acme"], &before_restart).await;
    assert_eq!(resumed.until_synced().await, std::slice::from_ref(&missing));
    let mut resumed = api.watch(&["acme"], &too_old).await;
    assert_eq!(resumed.until_synced().await, [Told::Reset, missing]);
}
