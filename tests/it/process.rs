//! The built binary, as the operating system sees it.

mod backlog;
mod crash;
mod damage;
mod disk;
mod expiry;
mod identity;
mod kills;
mod lag;
mod mixed_requests;
mod resources;
mod shutdown;
mod threads;
mod traces;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    process::Stdio,
    time::Duration,
};

use aws_stand_in::{Control, StandIn};
use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::{StatusEvent, StatusWatch};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{Customer, Load, Process, arrive, stand_in, within};

/// Longer than any silence of a service that runs.
const TEST_SILENCE: Duration = Duration::from_secs(60);

/// A customer in an AWS of its own, and a data directory for processes.
struct Ground {
    stand_in: StandIn,
    aws: Control,
    dir: TempDir,
    customer: Customer,
}

impl Ground {
    async fn new() -> Self {
        let stand_in = stand_in().await;
        let aws = stand_in.control();
        let customer = Customer::new("acme");
        customer.make_role(&aws);
        customer.make_stream(&aws, 4);
        Self {
            aws,
            stand_in,
            dir: TempDir::new().unwrap(),
            customer,
        }
    }

    async fn start(&self) -> Process {
        self.start_with(&[]).await
    }

    async fn start_with(&self, arguments: &[&str]) -> Process {
        Process::start(self.dir.path(), &self.stand_in.url(), arguments).await
    }

    /// Records that the customer's stream has.
    fn stored(&self) -> u64 {
        self.aws.stream(&self.customer.stream_arn).unwrap().accepted
    }
}

/// Publishes until the process is gone; what was acked is lost at no price. Kills it at
/// a moment that falls while requests are under way.
async fn publish_and_kill(process: Process, load: &mut Load, chance: &mut StdRng) -> Vec<Uuid> {
    let api = process.api.clone();
    let mut acked = Vec::new();
    for _ in 0..chance.random_range(1..12) {
        let before = load.made.len();
        let events = load.events(chance.random_range(1..60));
        let answer = api.try_publish(events.clone()).await.unwrap();
        assert_eq!(answer.accepted as usize, events.len());
        acked.extend(load.made[before..].iter().map(|made| made.event_id));
    }
    let before = load.made.len();
    let events = load.events(300);
    let (answer, ()) = tokio::join!(api.try_publish(events), process.kill());
    if answer.is_ok_and(|answer| answer.accepted == 300) {
        acked.extend(load.made[before..].iter().map(|made| made.event_id));
    }
    acked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_event_that_was_acked() {
    let ground = Ground::new().await;
    let mut chance = StdRng::seed_from_u64(20_261_124);
    let mut load = Load::new("acme", 5, 1);
    let process = ground.start().await;
    process.api.configure(&ground.customer).await;
    let mut acked = publish_and_kill(process, &mut load, &mut chance).await;
    for _ in 0..9 {
        let process = ground.start().await;
        acked.extend(publish_and_kill(process, &mut load, &mut chance).await);
    }
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, counts.accepted);
    assert!(counts.accepted as usize >= acked.len());

    let stream_arn = &ground.customer.stream_arn;
    let arrived = arrive(&ground.aws, stream_arn, counts.accepted as usize).await;
    let mut by_sequence = BTreeMap::new();
    for one in &arrived {
        let first = by_sequence.entry(one.sequence).or_insert(&one.record.data);
        assert_eq!(*first, &one.record.data, "a sequence is one event");
    }
    let sequences: Vec<u64> = by_sequence.keys().copied().collect();
    let whole: Vec<u64> = (1..=counts.accepted).collect();
    assert_eq!(sequences, whole);
    let ids: HashSet<Uuid> = arrived
        .iter()
        .map(|one| one.json["id"].as_str().unwrap().parse().unwrap())
        .collect();
    let lost = acked.iter().filter(|id| !ids.contains(id)).count();
    assert_eq!(lost, 0, "of {} acked events", acked.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_answers_settles_and_ends_the_streams() {
    let ground = Ground::new().await;
    let process = ground.start().await;
    process.api.configure(&ground.customer).await;
    let mut statuses = process.api.watch(&["acme"], "").await;
    statuses.until_synced().await;
    let mut load = Load::new("acme", 5, 2);
    for _ in 0..5 {
        process.api.publish(&load.events(100)).await;
    }
    process.terminate().await;
    assert_eq!(statuses.end().await, Code::Unavailable);
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.accepted, 500);
    // In order, and so without a duplicate.
    assert_eq!(ground.stored(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_directory_is_refused() {
    let ground = Ground::new().await;
    let first = ground.start().await;
    let second = Process::try_start(ground.dir.path(), &ground.stand_in.url(), &[]).await;
    let refused = second.err().expect("the directory is in use");
    assert_ne!(refused.code, Some(0));
    let words = "another siem-relay uses the data directory";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    first.api.configure(&ground.customer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_beyond_loopback_must_be_meant() {
    let dir = TempDir::new().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_siem-relay"));
    serve.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]);
    let serve = serve.arg(dir.path()).stdin(Stdio::null()).output();
    let refused = within("the end of the process", serve).await.unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("insecure"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_refused_and_the_right_one_opens_again() {
    let ground = Ground::new().await;
    let process = ground.start().await;
    process.api.configure(&ground.customer).await;
    process.terminate().await;
    process.ended().await;
    let key_file = ground.dir.path().join("external-id.key");
    let key = fs::read_to_string(&key_file).unwrap();
    fs::write(&key_file, "ab".repeat(32)).unwrap();
    let url = ground.stand_in.url();
    let refused = Process::try_start(ground.dir.path(), &url, &[]).await;
    let refused = refused.err().expect("the key is another");
    assert!(refused.stderr.contains("another key"), "{}", refused.stderr);
    fs::write(&key_file, key).unwrap();
    let process = ground.start().await;
    assert!(process.api.send_test("acme").await.delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_watch_continues_over_a_kill_of_the_service() {
    let ground = Ground::new().await;
    let process = ground.start().await;
    let listen = process.address.to_string();
    process.api.configure(&ground.customer).await;
    let channel = siem_client::channel(&listen).unwrap();
    let mut watch = StatusWatch::new(channel, vec!["acme".to_owned()], TEST_SILENCE);
    let current = within("the first status", watch.next()).await.unwrap();
    assert!(matches!(current, StatusEvent::Current(_)), "{current:?}");
    let synced = within("the marker", watch.next()).await.unwrap();
    assert!(matches!(synced, StatusEvent::Synced(_)), "{synced:?}");
    process.kill().await;

    let process = ground.start_with(&["--listen", &listen]).await;
    // The token is still valid: nothing is reset, and nothing is sent twice.
    let synced = within("the marker again", watch.next()).await.unwrap();
    assert!(matches!(synced, StatusEvent::Synced(_)), "{synced:?}");
    process.api.delete("acme", false).await.unwrap();
    let deleted = within("the deletion", watch.next()).await.unwrap();
    assert!(matches!(deleted, StatusEvent::Deleted(_)), "{deleted:?}");

    let channel = siem_client::channel(&listen).unwrap();
    let mut refused = StatusWatch::new(channel, vec!["no such id!".to_owned()], TEST_SILENCE);
    let status = within("the refusal", refused.next()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}
