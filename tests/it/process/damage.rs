//! Damaged databases.

use std::{fs, path::Path, time::Duration};

use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement};
use siem_client::v1;

use crate::harness::{
    Customer, Gap, Load, ProcessEnv, backdate_log, check_with_gaps, database, read_events,
    with_timeout,
};

/// Bytes of a database page.
const PAGE: usize = 4096;
/// Moves events that cannot be delivered to the backlog at once.
const NO_TAIL: [&str; 2] = ["--log-tail-bytes", "0"];

/// Checks that a start on a changed database is refused with a helpful message, and that the file is
/// not written to.
async fn assert_refused(env: &ProcessEnv, damage: impl FnOnce(&mut Vec<u8>)) {
    let path = env.dir.path().join("siem-relay.sqlite");
    let sound = fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    damage(&mut damaged);
    fs::write(&path, &damaged).unwrap();
    let refused = env.start_refused().await;
    assert_eq!(refused.code, Some(1));
    for words in ["siem-relay.sqlite is damaged", "docs/operations.md"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert!(fs::read(&path).unwrap() == damaged, "it was written to");
    fs::write(&path, &sound).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_refused_by_name() {
    let env = ProcessEnv::new().await;
    env.customer.make_role_that_may(&env.aws, "s3:GetObject");
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let mut load = Load::new("acme", 3, 80);
    for _ in 0..5 {
        process.api.publish(&load.events(100)).await;
    }
    process.stop().await;

    assert_refused(&env, |bytes| bytes[..100].fill(0x5a)).await;
    assert_refused(&env, |bytes| bytes.truncate(3 * PAGE)).await;
    for page in 1..4 {
        assert_refused(&env, |bytes| bytes[page * PAGE..][..16].fill(0xff)).await;
    }
    env.customer.make_role(&env.aws);
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, 500);
}

/// A bit of one chunk flips, and another chunk is emptied. Only their events are lost, and gaps
/// report them.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_chunks_are_set_aside_and_become_gaps() {
    let env = ProcessEnv::new().await;
    env.customer.make_role_that_may(&env.aws, "s3:GetObject");
    let process = env.start_with(&NO_TAIL).await;
    let integration_id = process.api.configure(&env.customer).await.integration_id;
    let mut load = Load::new("acme", 3, 81);
    for chunk in 1..=5 {
        process.api.publish(&load.events(100)).await;
        until_in_backlog(env.dir.path(), chunk * 100).await;
    }
    process.stop().await;

    flip_a_bit(env.dir.path(), 201).await;
    empty(env.dir.path(), 401).await;
    env.customer.make_role(&env.aws);
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (300, 200));
    assert_eq!(counts.accepted, 500);
    assert!(process.log().contains("a chunk of the log is damaged"));
    let stream_arn = &env.customer.stream_arn;
    let arrived = read_events(&env.aws, stream_arn, 500).await;
    let gaps = check_with_gaps(&arrived, &integration_id, &load.made);
    let gap = |first| Gap {
        first,
        last: first + 99,
        count: 100,
        reason: "LOG_DAMAGED".to_owned(),
    };
    assert_eq!(gaps, [gap(201), gap(401)]);
    process.stop().await;
    let set_aside = set_aside(env.dir.path()).await;
    assert_eq!(set_aside, [(201, 100), (401, 100)]);
}

/// A row of one customer cannot be read, and its events are due to expire. The status of that customer
/// reports it, and another customer is not affected.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_row_fails_only_its_own_integration() {
    let env = ProcessEnv::new().await;
    env.customer.make_role_that_may(&env.aws, "s3:GetObject");
    let process = env.start_with(&NO_TAIL).await;
    process.api.configure(&env.customer).await;
    process
        .api
        .publish(&Load::new("acme", 3, 82).events(100))
        .await;
    until_in_backlog(env.dir.path(), 100).await;
    process.stop().await;

    let db = database(env.dir.path()).await;
    let spoil = "UPDATE backlog SET gaps = 'not JSON'";
    db.execute_unprepared(spoil).await.unwrap();
    db.close().await.unwrap();
    backdate_log(env.dir.path(), Duration::from_secs(25 * 3600)).await;
    env.customer.make_role(&env.aws);
    let process = env.start_with(&["--retention-seconds", "86400"]).await;
    let unreadable = |status: &v1::IntegrationStatus| status.status() == v1::Status::Failing;
    let status = process.api.until_status("acme", unreadable).await;
    assert_eq!(status.reason(), v1::StatusReason::LogUnreadable);
    let other = Customer::new("other");
    other.make_role(&env.aws);
    other.make_stream(&env.aws, 1);
    process.api.configure(&other).await;
    let mut load = Load::new("other", 3, 83);
    for _ in 0..20 {
        process.api.publish(&load.events(10)).await;
    }
    let counts = process.api.until_delivered("other").await;
    assert_eq!(counts.delivered, 200);
    let counts = process.api.get("acme").await.counts.unwrap();
    assert_eq!((counts.pending, counts.expired), (100, 0));
}

/// Waits until this number of events is in the backlog.
async fn until_in_backlog(data_dir: &Path, events: i64) {
    let db = database(data_dir).await;
    let sql = "SELECT COALESCE(SUM(event_count), 0) AS events FROM backlog";
    with_timeout("events in the backlog", async {
        loop {
            let query = Statement::from_string(DbBackend::Sqlite, sql);
            let row = db.query_one_raw(query).await.unwrap().unwrap();
            if row.try_get::<i64>("", "events").unwrap() == events {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    db.close().await.unwrap();
}

async fn flip_a_bit(data_dir: &Path, first_sequence: i64) {
    let db = database(data_dir).await;
    let sql = "SELECT payload FROM backlog WHERE first_sequence = $1";
    let values = [first_sequence.into()];
    let query = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    let row = db.query_one_raw(query).await.unwrap().unwrap();
    let mut payload: Vec<u8> = row.try_get("", "payload").unwrap();
    let middle = payload.len() / 2;
    payload[middle] ^= 1;
    let sql = "UPDATE backlog SET payload = $1 WHERE first_sequence = $2";
    let values = [payload.into(), first_sequence.into()];
    let update = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    db.execute_raw(update).await.unwrap();
    db.close().await.unwrap();
}

async fn empty(data_dir: &Path, first_sequence: i64) {
    let db = database(data_dir).await;
    let sql = "UPDATE backlog SET payload = x'' WHERE first_sequence = $1";
    let values = [first_sequence.into()];
    let update = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    db.execute_raw(update).await.unwrap();
    db.close().await.unwrap();
}

/// First sequence and number of events of each chunk that was set aside.
async fn set_aside(data_dir: &Path) -> Vec<(i64, i32)> {
    let db = database(data_dir).await;
    let sql = "SELECT first_sequence, event_count FROM damaged_chunk";
    let query = Statement::from_string(DbBackend::Sqlite, sql);
    let rows = db.query_all_raw(query).await.unwrap();
    let chunk = |row: &QueryResult| {
        let first_sequence = row.try_get("", "first_sequence").unwrap();
        (first_sequence, row.try_get("", "event_count").unwrap())
    };
    rows.iter().map(chunk).collect()
}
