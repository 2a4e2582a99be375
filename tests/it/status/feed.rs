//! StreamStatus: current statuses, then changes, resumed after disconnects and restarts.

use siem_client::v1::{Status, StatusReason};
use tonic::Code;

use super::{active, publish_one, unknown, watched};
use crate::harness::{Api, Customer, FeedEvent, TestEnv, violated, with_timeout};

fn current(organization_id: &str) -> FeedEvent {
    FeedEvent::current(organization_id, Status::Unknown)
}

fn deleted(organization_id: &str) -> FeedEvent {
    FeedEvent::Deleted(organization_id.to_owned())
}

fn absent(organization_id: &str) -> FeedEvent {
    FeedEvent::Absent(organization_id.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_gets_current_statuses_then_changes() {
    let env = TestEnv::start().await;
    for name in ["one", "two"] {
        env.customer(name).await;
    }
    let mut all = env.api.watch(&[], "").await;
    assert_eq!(all.until_synced().await, [current("one"), current("two")]);
    let mut named = env.api.watch(&["two", "three", "four"], "").await;
    let mut before = named.until_synced().await;
    before.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(before, [absent("four"), absent("three"), current("two")]);

    env.customer("three").await;
    assert_eq!(named.next().await, current("three"));
    assert_eq!(all.next().await, current("three"));
    env.api.delete("one", false).await.unwrap();
    env.api.delete("two", false).await.unwrap();
    assert_eq!(named.next().await, deleted("two"), "others are not sent");
    assert_eq!(all.next().await, deleted("one"));
    assert_eq!(all.next().await, deleted("two"));
    env.customer("five").await;
    assert_eq!(all.next().await, current("five"));
}

#[tokio::test(flavor = "multi_thread")]
async fn named_organizations_are_sent_once_in_revision_order() {
    let env = TestEnv::start().await;
    let names: Vec<String> = (0..130).map(|number| format!("org-{number}")).collect();
    for name in &names {
        env.api.configure(&Customer::new(name)).await;
        env.api
            .configure(&Customer::new(&format!("not-{name}")))
            .await;
    }
    let mut named: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected: Vec<FeedEvent> = named.iter().map(|name| current(name)).collect();
    named.reverse();
    let mut statuses = env.api.watch(&named, "").await;
    assert_eq!(statuses.until_synced().await, expected);
    env.api.delete("not-org-7", false).await.unwrap();
    env.api.delete("org-7", false).await.unwrap();
    assert_eq!(statuses.next().await, deleted("org-7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_service_is_synced_at_once() {
    let env = TestEnv::start().await;
    let mut statuses = env.api.watch(&[], "").await;
    assert_eq!(statuses.until_synced().await, []);
    let token = statuses.token.clone();
    let mut resumed = env.api.watch(&[], &token).await;
    assert_eq!(resumed.until_synced().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_carry_a_current_token() {
    let env = TestEnv::with(&[("heartbeat-seconds", "1")]).await;
    env.customer("acme").await;
    let mut statuses = env.api.watch(&["acme"], "").await;
    assert_eq!(statuses.next_or_heartbeat().await, current("acme"));
    assert_eq!(statuses.next_or_heartbeat().await, FeedEvent::Synced);
    assert_eq!(statuses.next_or_heartbeat().await, FeedEvent::Heartbeat);
    // Its token covers changes of other organizations.
    env.customer("other").await;
    assert_eq!(statuses.next_or_heartbeat().await, FeedEvent::Heartbeat);
    let mut resumed = env.api.watch(&[], &statuses.token).await;
    assert_eq!(resumed.until_synced().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_resumes_where_the_stream_ended() {
    let (env, customer, mut statuses) = watched().await;
    let snapshot = statuses.token.clone();
    publish_one(&env).await;
    assert_eq!(statuses.next().await, active());
    let after_active = statuses.token.clone();
    env.customer("other").await;
    drop(statuses);

    let mut resumed = env.api.watch(&[], &snapshot).await;
    assert_eq!(resumed.until_synced().await, [active(), current("other")]);
    let mut resumed = env.api.watch(&["acme"], &after_active).await;
    assert_eq!(resumed.until_synced().await, []);

    env.api.delete("acme", false).await.unwrap();
    env.api.configure(&customer).await;
    let mut resumed = env.api.watch(&["acme"], &snapshot).await;
    let changes = resumed.until_synced().await;
    assert_eq!(changes, [deleted("acme"), unknown()]);

    let env = env.restart().await;
    let mut resumed = env.api.watch(&["acme"], &snapshot).await;
    let changes = resumed.until_synced().await;
    assert_eq!(changes, [deleted("acme"), unknown()], "after a restart");
    publish_one(&env).await;
    assert_eq!(resumed.next().await, active());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_snapshot_resumes_without_loss() {
    let env = TestEnv::start().await;
    for name in ["one", "two", "three"] {
        env.customer(name).await;
    }
    let names = ["one", "two", "three", "gone", "never"];
    for read in 1..=5 {
        let mut statuses = env.api.watch(&names, "").await;
        let mut events = Vec::new();
        for _ in 0..read {
            events.push(statuses.next().await);
        }
        let mut resumed = env.api.watch(&names, &statuses.token).await;
        events.extend(resumed.until_synced().await);
        let mut missing = vec![absent("gone"), absent("never")];
        missing.extend(["one", "two", "three"].map(current));
        missing.retain(|wanted| !events.contains(wanted));
        assert_eq!(missing, [], "after {read} messages");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_database_resets_the_stream() {
    let elsewhere = TestEnv::start().await;
    elsewhere.customer("acme").await;
    let mut statuses = elsewhere.api.watch(&[], "").await;
    statuses.until_synced().await;
    let foreign = statuses.token.clone();

    let (env, _, statuses) = watched().await;
    let own = statuses.token.clone();
    let (database, _) = own.split_once('.').unwrap();
    let future = format!("{database}.{}", u64::MAX);
    for token in [foreign.as_str(), &future, "nonsense", "7", ".", "é.1"] {
        let mut resumed = env.api.watch(&["acme", "ghost"], token).await;
        let snapshot = resumed.until_synced().await;
        assert_eq!(
            snapshot,
            [FeedEvent::Reset, absent("ghost"), unknown()],
            "{token:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_older_than_the_tombstones_resets_the_stream() {
    let env = TestEnv::with(&[("status-tombstones", "2")]).await;
    for name in ["a", "b", "c", "d"] {
        env.customer(name).await;
    }
    let mut statuses = env.api.watch(&[], "").await;
    statuses.until_synced().await;
    let (old, mut tokens) = (statuses.token.clone(), Vec::new());
    for name in ["a", "b", "c"] {
        env.api.delete(name, false).await.unwrap();
        assert_eq!(statuses.next().await, deleted(name));
        tokens.push(statuses.token.clone());
    }
    let mut env = env;
    for round in ["before", "after"] {
        let mut resumed = env.api.watch(&[], &old).await;
        let snapshot = resumed.until_synced().await;
        assert_eq!(
            snapshot,
            [FeedEvent::Reset, current("d")],
            "{round} a restart"
        );
        let mut resumed = env.api.watch(&[], &tokens[0]).await;
        let changes = resumed.until_synced().await;
        assert_eq!(changes, [deleted("b"), deleted("c")], "{round} a restart");
        env = env.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_gets_the_last_state() {
    let (env, customer, mut prompt) = watched().await;
    let mut slow = Api::with_small_window(env.relay.address)
        .watch(&["acme"], "")
        .await;
    slow.until_synced().await;
    let other = customer.with_external_id("another-external-id");
    // Each round changes the status four times, while the slow subscriber reads nothing.
    for _ in 0..25 {
        env.api.configure(&other).await;
        assert!(!env.api.send_test("acme").await.delivered);
        env.api.configure(&customer).await;
        assert!(env.api.send_test("acme").await.delivered);
    }
    env.api.delete("acme", false).await.unwrap();
    let gone = deleted("acme");
    prompt.until(&gone).await;
    let changes = slow.until(&gone).await;
    assert!(changes < 50, "it got {changes} of 100 changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subscriber_gets_a_change() {
    let (env, customer, _) = watched().await;
    let mut feeds = Vec::new();
    for _ in 0..50 {
        feeds.push(env.api.watch_changes("acme").await);
    }
    env.aws.delete_stream(&customer.stream_arn);
    publish_one(&env).await;
    let missing = FeedEvent::with_reason("acme", Status::Failing, StatusReason::StreamNotFound);
    for feed in &mut feeds {
        assert_eq!(feed.next().await, missing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_streams_with_unavailable() {
    let (env, _, mut statuses) = watched().await;
    env.relay.begin_stop();
    assert_eq!(statuses.end().await, Code::Unavailable);
    drop(statuses);
    env.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_stream_status_request_names_each_field() {
    let env = TestEnv::start().await;
    let watch = |organization_ids: Vec<String>, resume_token: &str| {
        let mut client = env.api.integrations();
        let request = siem_client::v1::StreamStatusRequest {
            organization_ids,
            resume_token: resume_token.to_owned(),
        };
        async move { with_timeout("a refusal", client.stream_status(request)).await }
    };
    let bad = vec!["ok".to_owned(), String::new(), "no spaces".to_owned()];
    let status = watch(bad, "").await.unwrap_err();
    assert_eq!(
        violated(&status),
        ["organization_ids[1]", "organization_ids[2]"]
    );
    let many = (0..1001).map(|n| format!("o{n}")).collect();
    let status = watch(many, "").await.unwrap_err();
    assert_eq!(violated(&status), ["organization_ids"]);
    let status = watch(Vec::new(), &"x".repeat(1000)).await.unwrap_err();
    assert_eq!(violated(&status), ["resume_token"]);
    assert_eq!(status.code(), Code::InvalidArgument);
}
