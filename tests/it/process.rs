//! The built binary as a process: kills, shutdown, damaged disks and databases, memory.

mod backlog;
mod crash;
mod damage;
mod disk;
mod expiry;
mod identity;
mod kills;
mod lag;
mod metrics;
mod migration;
mod mixed_requests;
mod resources;
mod shutdown;
mod traces;

use std::{collections::HashSet, fs, process::Stdio, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::{StatusEvent, StatusWatch};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{Load, Process, ProcessEnv, check_acked, read_events, with_timeout};

/// Longer than a running service is ever silent.
const TEST_SILENCE: Duration = Duration::from_secs(60);

/// Publishes, and kills the process while the last request is in flight. Returns the ids of acked
/// events.
async fn publish_and_kill(process: Process, load: &mut Load, random: &mut StdRng) -> Vec<Uuid> {
    let api = process.api.clone();
    let mut acked = Vec::new();
    for _ in 0..random.random_range(1..12) {
        let before = load.made.len();
        let events = load.events(random.random_range(1..60));
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
async fn a_kill_loses_no_acked_event() {
    let env = ProcessEnv::new().await;
    let mut random = StdRng::seed_from_u64(20_261_124);
    let mut load = Load::new("acme", 5, 1);
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let mut acked = HashSet::new();
    acked.extend(publish_and_kill(process, &mut load, &mut random).await);
    for _ in 0..9 {
        let process = env.start().await;
        acked.extend(publish_and_kill(process, &mut load, &mut random).await);
    }
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, counts.accepted);

    let stream_arn = &env.customer.stream_arn;
    let arrived = read_events(&env.aws, stream_arn, counts.accepted as usize).await;
    check_acked(&arrived, counts.accepted, &acked);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_settles_deliveries_and_ends_streams() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let mut statuses = process.api.watch_changes("acme").await;
    let mut load = Load::new("acme", 5, 2);
    for _ in 0..5 {
        process.api.publish(&load.events(100)).await;
    }
    process.terminate().await;
    assert_eq!(statuses.end().await, Code::Unavailable);
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.accepted, 500);
    // An orderly end settles every delivery, so that nothing is sent twice.
    assert_eq!(env.stored(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_directory_is_refused() {
    let env = ProcessEnv::new().await;
    let first = env.start().await;
    let refused = env.start_refused().await;
    assert_ne!(refused.code, Some(0));
    let words = "another siem-relay uses the data directory";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    first.api.configure(&env.customer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_beyond_loopback_requires_insecure() {
    let dir = TempDir::new().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_siem-relay"));
    serve.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]);
    let serve = serve.arg(dir.path()).stdin(Stdio::null()).output();
    let refused = with_timeout("the end of the process", serve).await.unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("insecure"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_encryption_key_is_refused() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    process.stop().await;
    let key_file = env.dir.path().join("external-id.key");
    let key = fs::read_to_string(&key_file).unwrap();
    fs::write(&key_file, "ab".repeat(32)).unwrap();
    let refused = env.start_refused().await;
    assert!(refused.stderr.contains("another key"), "{}", refused.stderr);
    fs::write(&key_file, key).unwrap();
    let process = env.start().await;
    assert!(process.api.send_test("acme").await.delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_watch_resumes_after_a_kill_of_the_service() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let listen = process.address.to_string();
    process.api.configure(&env.customer).await;
    let channel = siem_client::channel(&listen).unwrap();
    let mut watch =
        StatusWatch::new(channel, vec!["acme".to_owned()]).with_silence_limit(TEST_SILENCE);
    let snapshot = with_timeout("the snapshot", watch.next()).await.unwrap();
    let StatusEvent::Snapshot(snapshot) = snapshot else {
        panic!("{snapshot:?}");
    };
    assert!(snapshot.statuses.contains_key("acme"), "{snapshot:?}");
    process.kill().await;

    let process = env.start_with(&["--listen", &listen]).await;
    // The token remains valid: there is no new snapshot, and nothing is sent twice.
    process.api.delete("acme", false).await.unwrap();
    let deleted = with_timeout("the deletion", watch.next()).await.unwrap();
    assert!(matches!(deleted, StatusEvent::Deleted(_)), "{deleted:?}");

    let channel = siem_client::channel(&listen).unwrap();
    let mut refused = StatusWatch::new(channel, vec!["no such id!".to_owned()]);
    let error = with_timeout("the refusal", refused.next())
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
}
