//! A termination while the log cannot be written.

use sea_orm::ConnectionTrait;

use super::Ground;
use crate::harness::{Load, Process, Syncs, arrive, database};

const UNWRITTEN: &str = "cannot write to the log";
const FORBID: &str = "CREATE TRIGGER unwritten BEFORE UPDATE ON progress \
    BEGIN SELECT RAISE(ABORT, 'not now'); END";
const ALLOW: &str = "DROP TRIGGER unwritten";

/// What was delivered and cannot be recorded is tried again for as long as the shutdown
/// may take; so nothing is sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_recorded_once_that_can_be_written() {
    let ground = Ground::new().await;
    let process = ground.start().await;
    process.api.configure(&ground.customer).await;
    let mut load = Load::new("acme", 5, 91);
    process.api.publish(&load.events(100)).await;
    process.api.until_delivered("acme").await;
    let db = database(ground.dir.path()).await;
    db.execute_unprepared(FORBID).await.unwrap();
    process.api.publish(&load.events(50)).await;
    arrive(&ground.aws, &ground.customer.stream_arn, 150).await;
    process.until_logged(UNWRITTEN, 0).await;

    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    let before = process.log().matches(UNWRITTEN).count();
    process.until_logged(UNWRITTEN, before).await;
    db.execute_unprepared(ALLOW).await.unwrap();
    db.close().await.unwrap();
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!((counts.accepted, counts.delivered), (150, 150));
    assert_eq!(ground.stored(), 150);
}

/// What cannot be synced at the end is not taken for recorded: the process says so, and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_at_the_end_is_told_of() {
    let ground = Ground::new().await;
    let syncs = Syncs::new().await;
    let url = ground.stand_in.url();
    let process = Process::try_start_within(&syncs.entrance(), ground.dir.path(), &url, &[]).await;
    let process = process.unwrap();
    process.api.configure(&ground.customer).await;
    let mut load = Load::new("acme", 5, 92);
    process.api.publish(&load.events(100)).await;
    process.api.until_delivered("acme").await;
    let db = database(ground.dir.path()).await;
    db.execute_unprepared(FORBID).await.unwrap();
    process.api.publish(&load.events(50)).await;
    arrive(&ground.aws, &ground.customer.stream_arn, 150).await;
    process.until_logged(UNWRITTEN, 0).await;
    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    syncs.fail();
    db.execute_unprepared(ALLOW).await.unwrap();
    db.close().await.unwrap();
    let (status, log) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("the disk does not keep what is written"),
        "{log}"
    );
}
