//! Disks that fill, fail or hang.

use std::{fs, io::Write, path::Path};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1::{self, event::Payload};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::harness::{
    Api, Customer, Disk, Load, Process, ProcessEnv, Published, SyncFaults, check_acked,
    check_complete, read_events, reason, with_timeout,
};

/// Starts a process with its data on a disk.
async fn start(env: &ProcessEnv, disk: &Disk) -> Process {
    let url = env.stand_in.url();
    let started = Process::try_start_under(&disk.launcher(), disk.data(), &url, &[]).await;
    started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"))
}

/// Publishes events that cannot be compressed.
struct Bulk {
    load: Load,
    random: StdRng,
    acked: Vec<Published>,
}

impl Bulk {
    fn new(seed: u64) -> Self {
        Self {
            load: Load::new("acme", 5, seed),
            random: StdRng::seed_from_u64(seed),
            acked: Vec::new(),
        }
    }

    fn events(&mut self, count: usize) -> Vec<v1::Event> {
        let mut events = self.load.events(count);
        for event in &mut events {
            let text = (&mut self.random).sample_iter(rand::distr::Alphanumeric);
            let text: String = text.take(4000).map(char::from).collect();
            if let Some(Payload::IdsDetection(detection)) = &mut event.payload {
                detection.context_json = format!(r#"{{"x":"{text}"}}"#);
            }
        }
        events
    }

    async fn publish(&mut self, api: &Api, count: usize) -> Result<(), Status> {
        let before = self.load.made.len();
        let events = self.events(count);
        match api.try_publish(events).await {
            Ok(answer) => {
                assert_eq!(answer.accepted as usize, count);
                self.acked.extend_from_slice(&self.load.made[before..]);
                Ok(())
            }
            Err(status) => Err(status),
        }
    }

    /// Publishes until it is refused.
    async fn until_refused(&mut self, api: &Api) -> Status {
        loop {
            if let Err(status) = self.publish(api, 100).await {
                return status;
            }
        }
    }

    /// Publishes until it is accepted.
    async fn until_accepted(&mut self, api: &Api) {
        with_timeout("free space on the disk", async {
            while self.publish(api, 100).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Writes a file until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
}

fn assert_full(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(reason(status), "DISK_FULL");
    let details = status.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_events_until_deliveries_free_space() {
    let Some(disk) = Disk::of(24).await else {
        return;
    };
    let env = ProcessEnv::new().await;
    let mut bulk = Bulk::new(70);
    let mut process = start(&env, &disk).await;
    let customer = &env.customer;
    let integration_id = process.api.configure(customer).await.integration_id;
    // In the second round the database file has its largest size already.
    for round in 0..2 {
        customer.make_role_that_may(&env.aws, "s3:GetObject");
        assert_full(&bulk.until_refused(&process.api).await);
        let mut publish_health = process.api.health("publish").await;
        publish_health.until(ServingStatus::NotServing).await;
        let mut delivery_health = process.api.health("delivery").await;
        delivery_health.until(ServingStatus::Serving).await;
        let other = Customer::new(&format!("other-{round}"));
        process.api.configure(&other).await;
        assert!(!process.log().contains("cannot write to the log"));
        process.kill().await;

        process = start(&env, &disk).await;
        assert_full(&bulk.until_refused(&process.api).await);
        let counts = process.api.get("acme").await.counts.unwrap();
        assert_eq!(counts.accepted as usize, bulk.acked.len());
        customer.make_role(&env.aws);
        process.api.configure(customer).await;
        process.api.until_delivered("acme").await;
        bulk.until_accepted(&process.api).await;
        let mut publish_health = process.api.health("publish").await;
        publish_health.until(ServingStatus::Serving).await;
        process.api.until_delivered("acme").await;
        assert!(!process.log().contains("cannot write to the log"));
    }
    assert!(bulk.acked.len() > 3000, "{} events fit", bulk.acked.len());
    let arrived = read_events(&env.aws, &customer.stream_arn, bulk.acked.len()).await;
    check_complete(&arrived, &integration_id, &bulk.acked);
}

/// Another file fills the disk to the last byte. Either the database or the periodic check of free
/// space notices first, by chance, so the test repeats until it was the database.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_not_acked_on_a_full_disk_and_the_service_recovers() {
    for seed in 710..760 {
        match fill_under_load(seed).await {
            Some(true) | None => return,
            Some(false) => {}
        }
    }
    panic!("the check of free space was always first");
}

/// Returns whether the database noticed the full disk; None if no disk can be mounted.
async fn fill_under_load(seed: u64) -> Option<bool> {
    let disk = Disk::of(24).await?;
    let env = ProcessEnv::new().await;
    let mut bulk = Bulk::new(seed);
    let process = start(&env, &disk).await;
    let integration_id = process.api.configure(&env.customer).await.integration_id;
    bulk.publish(&process.api, 10).await.unwrap();
    process.api.until_delivered("acme").await;
    let ballast = disk.outside("data/ballast");
    fill(&ballast);
    assert_full(&bulk.until_refused(&process.api).await);
    let met = process.log().contains("cannot write to the log");
    fs::remove_file(&ballast).unwrap();
    bulk.until_accepted(&process.api).await;
    process.api.until_delivered("acme").await;
    let arrived = read_events(&env.aws, &env.customer.stream_arn, bulk.acked.len()).await;
    check_complete(&arrived, &integration_id, &bulk.acked);
    Some(met)
}

/// A limit on the size of files stands in for a disk that refuses writes.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_not_acked_if_writes_fail_and_a_restart_resumes() {
    let env = ProcessEnv::new().await;
    env.customer.make_role_that_may(&env.aws, "s3:GetObject");
    let mut bulk = Bulk::new(72);
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\"";
    let limited = ["sh", "-c", script].map(str::to_owned);
    let process = env.start_under(&limited).await;
    let integration_id = process.api.configure(&env.customer).await.integration_id;
    let refused = bulk.until_refused(&process.api).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(reason(&refused), "STORAGE_FAILED");
    assert!(!bulk.acked.is_empty());
    process.kill().await;
    let process = env.start().await;
    env.customer.make_role(&env.aws);
    process.api.configure(&env.customer).await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.accepted as usize, bulk.acked.len());
    let arrived = read_events(&env.aws, &env.customer.stream_arn, bulk.acked.len()).await;
    check_complete(&arrived, &integration_id, &bulk.acked);
}

/// Syncs fail, as on a disk that could not keep what the operating system had accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_process_and_loses_no_acked_event() {
    let env = ProcessEnv::new().await;
    let syncs = SyncFaults::new().await;
    let mut bulk = Bulk::new(73);
    let process = env.start_under(&syncs.launcher()).await;
    process.api.configure(&env.customer).await;
    for _ in 0..10 {
        bulk.publish(&process.api, 100).await.unwrap();
    }
    // Nothing else needs a sync.
    process.api.until_delivered("acme").await;
    syncs.fail();
    let refused = bulk.until_refused(&process.api).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(reason(&refused), "OUTCOME_UNKNOWN");
    assert_eq!(bulk.acked.len(), 1000, "acked without a sync");
    let (status, log) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    let words = "the disk does not keep what is written";
    assert!(log.contains(words), "{log}");

    let process = env.start().await;
    bulk.publish(&process.api, 100).await.unwrap();
    let counts = process.api.until_delivered("acme").await;
    // Events that were not acked may have been kept.
    let enough = counts.accepted as usize;
    let arrived = read_events(&env.aws, &env.customer.stream_arn, enough).await;
    let acked = bulk.acked.iter().map(|event| event.event_id).collect();
    check_acked(&arrived, counts.accepted, &acked);
}

/// A hanging disk is logged while it hangs. Otherwise nothing would explain why no event is acked.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_disk_is_logged_and_waiting_events_are_acked_later() {
    let env = ProcessEnv::new().await;
    let syncs = SyncFaults::new().await;
    let mut bulk = Bulk::new(74);
    let process = env.start_under(&syncs.launcher()).await;
    let integration_id = process.api.configure(&env.customer).await.integration_id;
    bulk.publish(&process.api, 10).await.unwrap();
    process.api.until_delivered("acme").await;
    let times = |words: &str| process.log().matches(words).count();
    // The disk of the test may be slow as well.
    let before = ["takes long", "took long"].map(times);
    syncs.hang();
    let hangs = async {
        process.until_logged("takes long", before[0]).await;
        assert_eq!(process.api.get("acme").await.counts.unwrap().accepted, 10);
        syncs.release();
    };
    let (published, ()) = tokio::join!(bulk.publish(&process.api, 100), hangs);
    published.unwrap();
    process.until_logged("took long", before[1]).await;
    process.api.until_delivered("acme").await;
    let arrived = read_events(&env.aws, &env.customer.stream_arn, bulk.acked.len()).await;
    check_complete(&arrived, &integration_id, &bulk.acked);
}
