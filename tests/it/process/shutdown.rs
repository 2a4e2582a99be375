//! A termination while the log cannot be written.

use sea_orm::{ConnectionTrait, DatabaseConnection};

use super::Ground;
use crate::harness::{Load, Process, Syncs, arrive, database};

const UNWRITTEN: &str = "cannot write to the log";
const FORBID: &str = "CREATE TRIGGER unwritten BEFORE UPDATE ON progress \
    BEGIN SELECT RAISE(ABORT, 'not now'); END";
const RECORDED: usize = 100;
const UNRECORDED: usize = 50;
const ALL: usize = RECORDED + UNRECORDED;
const ALLOW: &str = "DROP TRIGGER unwritten";

/// Events that were delivered, of which the last [`UNRECORDED`] cannot be recorded until that
/// is allowed by the database that is returned.
async fn deliver_unrecorded(ground: &Ground, process: &Process) -> DatabaseConnection {
    process.api.configure(&ground.customer).await;
    let mut load = Load::new("acme", 5, 91);
    process.api.publish(&load.events(RECORDED)).await;
    process.api.until_delivered("acme").await;
    let db = database(ground.dir.path()).await;
    db.execute_unprepared(FORBID).await.unwrap();
    process.api.publish(&load.events(UNRECORDED)).await;
    arrive(&ground.aws, &ground.customer.stream_arn, ALL).await;
    process.until_logged(UNWRITTEN, 0).await;
    db
}

async fn allow(db: DatabaseConnection) {
    db.execute_unprepared(ALLOW).await.unwrap();
    db.close().await.unwrap();
}

/// What was delivered and cannot be recorded is tried again for as long as the shutdown
/// may take; so nothing is sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_recorded_once_that_can_be_written() {
    let ground = Ground::new().await;
    let process = ground.start().await;
    let db = deliver_unrecorded(&ground, &process).await;
    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    let before = process.log().matches(UNWRITTEN).count();
    process.until_logged(UNWRITTEN, before).await;
    allow(db).await;
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    let all = ALL as u64;
    assert_eq!((counts.accepted, counts.delivered), (all, all));
    assert_eq!(ground.stored(), all);
}

/// What cannot be synced at the end is not taken for recorded: the process says so, and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_at_the_end_is_told_of() {
    let ground = Ground::new().await;
    let syncs = Syncs::new().await;
    let url = ground.stand_in.url();
    let process = Process::try_start_within(&syncs.entrance(), ground.dir.path(), &url, &[]).await;
    let process = process.unwrap();
    let db = deliver_unrecorded(&ground, &process).await;
    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    syncs.fail();
    allow(db).await;
    let (status, log) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    let words = "the disk does not keep what is written";
    assert!(log.contains(words), "{log}");
}
