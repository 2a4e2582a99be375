//! A termination while the log cannot be written.

use sea_orm::ConnectionTrait;

use super::Ground;
use crate::harness::{Load, arrive, database};

const UNWRITTEN: &str = "cannot write to the log";

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
    let forbid = "CREATE TRIGGER unwritten BEFORE UPDATE ON progress \
        BEGIN SELECT RAISE(ABORT, 'not now'); END";
    db.execute_unprepared(forbid).await.unwrap();
    process.api.publish(&load.events(50)).await;
    arrive(&ground.aws, &ground.customer.stream_arn, 150).await;
    process.until_logged(UNWRITTEN, 0).await;

    process.terminate().await;
    process.until_logged("shutting down", 0).await;
    let before = process.log().matches(UNWRITTEN).count();
    process.until_logged(UNWRITTEN, before).await;
    let allow = "DROP TRIGGER unwritten";
    db.execute_unprepared(allow).await.unwrap();
    db.close().await.unwrap();
    let (status, log) = process.ended().await;
    assert!(status.success(), "{status}: {log}");
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!((counts.accepted, counts.delivered), (150, 150));
    assert_eq!(ground.stored(), 150);
}
