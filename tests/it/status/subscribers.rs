//! Thousands of subscribers to StreamStatus, with a stalled one and resumed ones among them.

use futures_util::future::join_all;
use siem_client::v1::{Status, StatusReason};
use tokio::task::JoinSet;

use crate::harness::{
    Api, Customer, FeedEvent, Load, Process, ProcessEnv, StatusFeed, with_timeout,
};

const SUBSCRIBERS: usize = 2000;
const CONNECTIONS: usize = 4;
/// Rounds of changes, four in each.
const ROUNDS: usize = 10;
/// Less than 400 bytes for each subscriber and change.
const MAX_GROWTH: u64 = 32 << 20;

async fn start(env: &ProcessEnv) -> Process {
    let arguments = [
        "--status-tombstones=1",
        "--max-streams-per-connection=1000",
        "--streams-per-caller=10000",
        // One subscriber reads nothing for a while.
        "--stall-timeout-seconds=600",
    ];
    env.start_with(&arguments).await
}

/// Two resume tokens, issued before a restart: one that is valid after it, and one that is older
/// than the tombstones.
async fn tokens(env: &ProcessEnv) -> (String, String) {
    let process = start(env).await;
    process.api.configure(&env.customer).await;
    for name in ["one", "two"] {
        process.api.configure(&Customer::new(name)).await;
    }
    let mut feed = process.api.watch(&[], "").await;
    feed.until_synced().await;
    let too_old = feed.token.clone();
    for name in ["one", "two"] {
        process.api.delete(name, false).await.unwrap();
        assert_eq!(feed.next().await, FeedEvent::Deleted(name.to_owned()));
    }
    process.stop().await;
    (feed.token, too_old)
}

/// Changes the status repeatedly, and leaves it ACTIVE.
async fn change(env: &ProcessEnv, api: &Api) {
    let wrong = env.customer.with_external_id("not-the-one-that-is-trusted");
    for _ in 0..ROUNDS {
        api.configure(&wrong).await;
        assert!(!api.send_test("acme").await.delivered);
        api.configure(&env.customer).await;
        assert!(api.send_test("acme").await.delivered);
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
            let unknown = FeedEvent::current("acme", Status::Unknown);
            assert_eq!(feed.until_synced().await, [unknown]);
            feed
        }
    });
    join_all(feeds).await
}

/// Lets each subscriber read to this message in a task of its own.
fn until(feeds: Vec<StatusFeed>, wanted: &FeedEvent) -> JoinSet<StatusFeed> {
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
async fn thousands_of_subscribers_get_the_last_state_in_bounded_memory() {
    let env = ProcessEnv::new().await;
    let (before_restart, too_old) = tokens(&env).await;
    let process = start(&env).await;
    let api = &process.api;
    let mut feeds = subscribe(&process).await;
    // This subscriber reads nothing until the last change.
    let mut stalled = Api::with_small_window(api.address())
        .watch(&["acme"], "")
        .await;
    stalled.until_synced().await;

    assert!(api.send_test("acme").await.delivered);
    let active = FeedEvent::current("acme", Status::Active);
    let changes = join_all(feeds.iter_mut().map(StatusFeed::next)).await;
    assert!(
        changes.iter().all(|change| *change == active),
        "every subscriber gets the change"
    );

    let memory = process.resident_bytes();
    let missing = FeedEvent::with_reason("acme", Status::Failing, StatusReason::StreamNotFound);
    let reading = until(feeds, &missing);
    change(&env, api).await;
    env.aws.delete_stream(&env.customer.stream_arn);
    api.publish(&Load::new("acme", 1, 1).events(1)).await;
    let feeds = with_timeout("all subscribers", reading.join_all()).await;
    assert_eq!(feeds.len(), SUBSCRIBERS);
    let growth = process.resident_bytes().saturating_sub(memory);
    assert!(growth < MAX_GROWTH, "{memory} bytes grew by {growth}");

    stalled.until(&missing).await;
    let mut resumed = api.watch(&["acme"], &before_restart).await;
    assert_eq!(resumed.until_synced().await, std::slice::from_ref(&missing));
    let mut resumed = api.watch(&["acme"], &too_old).await;
    assert_eq!(resumed.until_synced().await, [FeedEvent::Reset, missing]);
}
