//! A disk that fills, one that fails, and one that hangs.

use std::{collections::BTreeSet, fs, io::Write, path::Path};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1::{self, event::Payload};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;
use uuid::Uuid;

use super::Ground;
use crate::harness::{
    Api, Customer, Disk, Load, Process, Published, Syncs, arrive, check_whole, reason, within,
};

/// Without the disk: a customer in an AWS of its own, as [`Ground`] has it.
async fn start(ground: &Ground, disk: &Disk) -> Process {
    let url = ground.stand_in.url();
    let started = Process::try_start_within(&disk.entrance(), disk.data(), &url, &[]).await;
    started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"))
}

/// Events that do not become smaller by compression.
struct Bulk {
    load: Load,
    chance: StdRng,
    acked: Vec<Published>,
}

impl Bulk {
    fn new(seed: u64) -> Self {
        Self {
            load: Load::new("acme", 5, seed),
            chance: StdRng::seed_from_u64(seed),
            acked: Vec::new(),
        }
    }

    fn events(&mut self, count: usize) -> Vec<v1::Event> {
        let mut events = self.load.events(count);
        for event in &mut events {
            let text = (&mut self.chance).sample_iter(rand::distr::Alphanumeric);
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
        within("room on the disk", async {
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
async fn a_full_disk_refuses_events_until_deliveries_have_made_room() {
    let Some(disk) = Disk::of(24).await else {
        return;
    };
    let ground = Ground::new().await;
    let mut bulk = Bulk::new(70);
    let mut process = start(&ground, &disk).await;
    let customer = &ground.customer;
    let integration_id = process.api.configure(customer).await.integration_id;
    // A second round finds a file that is as large as it may become.
    for round in 0..2 {
        customer.make_role_that_may(&ground.aws, "s3:GetObject");
        assert_full(&bulk.until_refused(&process.api).await);
        process
            .api
            .health("publish")
            .await
            .until(ServingStatus::NotServing)
            .await;
        process
            .api
            .health("delivery")
            .await
            .until(ServingStatus::Serving)
            .await;
        let other = Customer::new(&format!("other-{round}"));
        process.api.configure(&other).await;
        assert!(!process.log().contains("cannot write to the log"));
        process.kill().await;

        process = start(&ground, &disk).await;
        assert_full(&bulk.until_refused(&process.api).await);
        let counts = process.api.get("acme").await.counts.unwrap();
        assert_eq!(counts.accepted as usize, bulk.acked.len());
        customer.make_role(&ground.aws);
        process.api.configure(customer).await;
        process.api.until_delivered("acme").await;
        bulk.until_accepted(&process.api).await;
        process
            .api
            .health("publish")
            .await
            .until(ServingStatus::Serving)
            .await;
        process.api.until_delivered("acme").await;
        assert!(!process.log().contains("cannot write to the log"));
    }
    assert!(bulk.acked.len() > 3000, "{} events fit", bulk.acked.len());
    let arrived = arrive(&ground.aws, &customer.stream_arn, bulk.acked.len()).await;
    check_whole(&arrived, &integration_id, &bulk.acked);
}

/// Others fill the disk to the last byte. Whether the database meets that first or a look
/// at the disk does is chance, so it is done until the database has.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_cannot_write_is_not_acked_and_the_service_recovers() {
    for seed in 710..760 {
        match fill_under_load(seed).await {
            Some(true) | None => return,
            Some(false) => {}
        }
    }
    panic!("a look at the disk was always first");
}

/// Returns whether the database met the full disk; None where there is no such disk.
async fn fill_under_load(seed: u64) -> Option<bool> {
    let disk = Disk::of(24).await?;
    let ground = Ground::new().await;
    let mut bulk = Bulk::new(seed);
    let process = start(&ground, &disk).await;
    let integration_id = process.api.configure(&ground.customer).await.integration_id;
    bulk.publish(&process.api, 10).await.unwrap();
    process.api.until_delivered("acme").await;
    let ballast = disk.outside("data/ballast");
    fill(&ballast);
    assert_full(&bulk.until_refused(&process.api).await);
    let met = process.log().contains("cannot write to the log");
    fs::remove_file(&ballast).unwrap();
    bulk.until_accepted(&process.api).await;
    process.api.until_delivered("acme").await;
    let arrived = arrive(&ground.aws, &ground.customer.stream_arn, bulk.acked.len()).await;
    check_whole(&arrived, &integration_id, &bulk.acked);
    Some(met)
}

/// A limit on the size of files stands for a disk that refuses to be written.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_to_be_written_is_not_acked_and_a_new_start_resumes() {
    let ground = Ground::new().await;
    ground
        .customer
        .make_role_that_may(&ground.aws, "s3:GetObject");
    let mut bulk = Bulk::new(72);
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\"";
    let limited = ["sh", "-c", script].map(str::to_owned);
    let url = ground.stand_in.url();
    let process = Process::try_start_within(&limited, ground.dir.path(), &url, &[]).await;
    let process = process.unwrap();
    let integration_id = process.api.configure(&ground.customer).await.integration_id;
    let refused = bulk.until_refused(&process.api).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(reason(&refused), "STORAGE_FAILED");
    assert!(!bulk.acked.is_empty());
    process.kill().await;
    let process = ground.start().await;
    ground.customer.make_role(&ground.aws);
    process.api.configure(&ground.customer).await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.accepted as usize, bulk.acked.len());
    let arrived = arrive(&ground.aws, &ground.customer.stream_arn, bulk.acked.len()).await;
    check_whole(&arrived, &integration_id, &bulk.acked);
}

/// Syncs fail, as where the disk could not keep what the operating system took.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_process_and_a_new_start_has_all_that_was_acked() {
    let ground = Ground::new().await;
    let syncs = Syncs::new().await;
    let mut bulk = Bulk::new(73);
    let url = ground.stand_in.url();
    let process = Process::try_start_within(&syncs.entrance(), ground.dir.path(), &url, &[]).await;
    let process = process.unwrap();
    process.api.configure(&ground.customer).await;
    for _ in 0..10 {
        bulk.publish(&process.api, 100).await.unwrap();
    }
    // Nothing else is left to be synced.
    process.api.until_delivered("acme").await;
    syncs.fail();
    let refused = bulk.until_refused(&process.api).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(reason(&refused), "STORAGE_FAILED");
    assert_eq!(bulk.acked.len(), 1000, "acked without a sync");
    let (status, log) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    let words = "the disk does not keep what is written";
    assert!(log.contains(words), "{log}");

    let process = ground.start().await;
    bulk.publish(&process.api, 100).await.unwrap();
    let counts = process.api.until_delivered("acme").await;
    // What was not acked may have been kept all the same.
    let enough = counts.accepted as usize;
    let arrived = arrive(&ground.aws, &ground.customer.stream_arn, enough).await;
    let sequences: BTreeSet<u64> = arrived.iter().map(|one| one.sequence).collect();
    assert!(sequences.into_iter().eq(1..=counts.accepted), "a hole");
    let ids: BTreeSet<Uuid> = arrived.iter().map(|one| one.id).collect();
    let lost = bulk.acked.iter().filter(|one| !ids.contains(&one.event_id));
    assert_eq!(lost.count(), 0, "of {} acked events", bulk.acked.len());
}

/// A disk that hangs is told of while it does: otherwise nothing would say why nothing is
/// acked.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_is_told_of_and_what_waited_for_it_is_acked() {
    let ground = Ground::new().await;
    let syncs = Syncs::new().await;
    let mut bulk = Bulk::new(74);
    let url = ground.stand_in.url();
    let process = Process::try_start_within(&syncs.entrance(), ground.dir.path(), &url, &[]).await;
    let process = process.unwrap();
    let integration_id = process.api.configure(&ground.customer).await.integration_id;
    bulk.publish(&process.api, 10).await.unwrap();
    process.api.until_delivered("acme").await;
    let times = |words: &str| process.log().matches(words).count();
    // A disk may be slow by itself.
    let before = ["takes long", "took long"].map(times);
    syncs.hang();
    let hangs = async {
        process.until_logged("takes long", before[0]).await;
        assert_eq!(process.api.get("acme").await.counts.unwrap().accepted, 10);
        syncs.go_on();
    };
    let (published, ()) = tokio::join!(bulk.publish(&process.api, 100), hangs);
    published.unwrap();
    process.until_logged("took long", before[1]).await;
    process.api.until_delivered("acme").await;
    let arrived = arrive(&ground.aws, &ground.customer.stream_arn, bulk.acked.len()).await;
    check_whole(&arrived, &integration_id, &bulk.acked);
}
