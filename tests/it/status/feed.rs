//! StreamStatus: what is, then what changes, over disconnects and restarts.

use siem_client::v1::{Status, StatusReason};
use tonic::Code;

use super::{active, publish_one, unknown, watched};
use crate::harness::{Api, Customer, Told, World, violated, within};

fn current(organization_id: &str) -> Told {
    Told::current(organization_id, Status::Unknown)
}

fn deleted(organization_id: &str) -> Told {
    Told::Deleted(organization_id.to_owned())
}

fn absent(organization_id: &str) -> Told {
    Told::Absent(organization_id.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_what_is_and_then_what_changes() {
    let world = World::start().await;
    for name in ["one", "two"] {
        world.customer(name).await;
    }
    let mut all = world.api.watch(&[], "").await;
    assert_eq!(all.until_synced().await, [current("one"), current("two")]);
    let mut named = world.api.watch(&["two", "three", "four"], "").await;
    let mut before = named.until_synced().await;
    before.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(before, [absent("four"), absent("three"), current("two")]);

    world.customer("three").await;
    assert_eq!(named.next().await, current("three"));
    assert_eq!(all.next().await, current("three"));
    world.api.delete("one", false).await.unwrap();
    world.api.delete("two", false).await.unwrap();
    assert_eq!(named.next().await, deleted("two"), "not told of others");
    assert_eq!(all.next().await, deleted("one"));
    assert_eq!(all.next().await, deleted("two"));
    world.customer("five").await;
    assert_eq!(all.next().await, current("five"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_are_named_are_each_told_once_in_the_order_of_their_changes() {
    let world = World::start().await;
    let names: Vec<String> = (0..130).map(|number| format!("org-{number}")).collect();
    for name in &names {
        world.api.configure(&Customer::new(name)).await;
        world
            .api
            .configure(&Customer::new(&format!("not-{name}")))
            .await;
    }
    let mut named: Vec<&str> = names.iter().map(String::as_str).collect();
    let told: Vec<Told> = named.iter().map(|name| current(name)).collect();
    named.reverse();
    let mut statuses = world.api.watch(&named, "").await;
    assert_eq!(statuses.until_synced().await, told);
    world.api.delete("not-org-7", false).await.unwrap();
    world.api.delete("org-7", false).await.unwrap();
    assert_eq!(statuses.next().await, deleted("org-7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_service_is_synced_at_once() {
    let world = World::start().await;
    let mut statuses = world.api.watch(&[], "").await;
    assert_eq!(statuses.until_synced().await, []);
    let token = statuses.token.clone();
    let mut resumed = world.api.watch(&[], &token).await;
    assert_eq!(resumed.until_synced().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_tells_that_it_is_alive() {
    let world = World::with(&[("heartbeat-seconds", "1")]).await;
    world.customer("acme").await;
    let mut statuses = world.api.watch(&["acme"], "").await;
    assert_eq!(statuses.any().await, current("acme"));
    assert_eq!(statuses.any().await, Told::Synced);
    assert_eq!(statuses.any().await, Told::Heartbeat);
    // Its token covers what happened to others.
    world.customer("other").await;
    assert_eq!(statuses.any().await, Told::Heartbeat);
    let mut resumed = world.api.watch(&[], &statuses.token).await;
    assert_eq!(resumed.until_synced().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_on_where_it_was() {
    let (world, customer, mut statuses) = watched().await;
    let snapshot = statuses.token.clone();
    publish_one(&world).await;
    assert_eq!(statuses.next().await, active());
    let after_active = statuses.token.clone();
    world.customer("other").await;
    drop(statuses);

    let mut resumed = world.api.watch(&[], &snapshot).await;
    assert_eq!(resumed.until_synced().await, [active(), current("other")]);
    let mut resumed = world.api.watch(&["acme"], &after_active).await;
    assert_eq!(resumed.until_synced().await, []);

    world.api.delete("acme", false).await.unwrap();
    world.api.configure(&customer).await;
    let mut resumed = world.api.watch(&["acme"], &snapshot).await;
    let told = resumed.until_synced().await;
    assert_eq!(told, [deleted("acme"), unknown()]);

    let world = world.restart().await;
    let mut resumed = world.api.watch(&["acme"], &snapshot).await;
    let told = resumed.until_synced().await;
    assert_eq!(told, [deleted("acme"), unknown()], "over a restart");
    publish_one(&world).await;
    assert_eq!(resumed.next().await, active());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_broke_off_is_told_to_its_end() {
    let world = World::start().await;
    for name in ["one", "two", "three"] {
        world.customer(name).await;
    }
    let names = ["one", "two", "three", "gone", "never"];
    for read in 1..=5 {
        let mut statuses = world.api.watch(&names, "").await;
        let mut told = Vec::new();
        for _ in 0..read {
            told.push(statuses.next().await);
        }
        let mut resumed = world.api.watch(&names, &statuses.token).await;
        told.extend(resumed.until_synced().await);
        let mut missing = vec![absent("gone"), absent("never")];
        missing.extend(["one", "two", "three"].map(current));
        missing.retain(|wanted| !told.contains(wanted));
        assert_eq!(missing, [], "after {read} messages");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_token_of_this_database_starts_over() {
    let elsewhere = World::start().await;
    elsewhere.customer("acme").await;
    let mut statuses = elsewhere.api.watch(&[], "").await;
    statuses.until_synced().await;
    let foreign = statuses.token.clone();

    let (world, _, statuses) = watched().await;
    let own = statuses.token.clone();
    let (database, _) = own.split_once('.').unwrap();
    let future = format!("{database}.{}", u64::MAX);
    for token in [foreign.as_str(), &future, "nonsense", "7", ".", "é.1"] {
        let mut resumed = world.api.watch(&["acme", "ghost"], token).await;
        let told = resumed.until_synced().await;
        assert_eq!(told, [Told::Reset, absent("ghost"), unknown()], "{token:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_forgotten_deletions_starts_over() {
    let world = World::with(&[("status-tombstones", "2")]).await;
    for name in ["a", "b", "c", "d"] {
        world.customer(name).await;
    }
    let mut statuses = world.api.watch(&[], "").await;
    statuses.until_synced().await;
    let (old, mut tokens) = (statuses.token.clone(), Vec::new());
    for name in ["a", "b", "c"] {
        world.api.delete(name, false).await.unwrap();
        assert_eq!(statuses.next().await, deleted(name));
        tokens.push(statuses.token.clone());
    }
    let mut world = world;
    for round in ["before", "after"] {
        let mut resumed = world.api.watch(&[], &old).await;
        let told = resumed.until_synced().await;
        assert_eq!(told, [Told::Reset, current("d")], "{round} a restart");
        let mut resumed = world.api.watch(&[], &tokens[0]).await;
        let told = resumed.until_synced().await;
        assert_eq!(told, [deleted("b"), deleted("c")], "{round} a restart");
        world = world.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_gets_the_last_state() {
    let (world, customer, mut prompt) = watched().await;
    let mut slow = Api::with_small_window(world.relay.address)
        .watch(&["acme"], "")
        .await;
    slow.until_synced().await;
    let other = Customer {
        external_id: "another-external-id".to_owned(),
        ..customer.clone()
    };
    // Each round changes the status four times; the slow one reads nothing meanwhile.
    for _ in 0..25 {
        world.api.configure(&other).await;
        assert!(!world.api.send_test("acme").await.delivered);
        world.api.configure(&customer).await;
        assert!(world.api.send_test("acme").await.delivered);
    }
    world.api.delete("acme", false).await.unwrap();
    let gone = deleted("acme");
    prompt.until(&gone).await;
    let told = slow.until(&gone).await;
    assert!(told < 50, "of 100 changes it was told {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_subscribers_are_told_the_same() {
    let (world, customer, _) = watched().await;
    let mut feeds = Vec::new();
    for _ in 0..50 {
        let mut feed = world.api.watch(&["acme"], "").await;
        feed.until_synced().await;
        feeds.push(feed);
    }
    world.aws.delete_stream(&customer.stream_arn);
    publish_one(&world).await;
    let missing = Told::because("acme", Status::Failing, StatusReason::StreamNotFound);
    for feed in &mut feeds {
        assert_eq!(feed.next().await, missing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_tells_subscribers_to_connect_again() {
    let (world, _, mut statuses) = watched().await;
    world.relay.begin_stop();
    assert_eq!(statuses.end().await, Code::Unavailable);
    drop(statuses);
    world.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_names_what_is_wrong() {
    let world = World::start().await;
    let watch = |organization_ids: Vec<String>, resume_token: &str| {
        let mut client = world.api.integrations();
        let request = siem_client::v1::StreamStatusRequest {
            organization_ids,
            resume_token: resume_token.to_owned(),
        };
        async move { within("a refusal", client.stream_status(request)).await }
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
