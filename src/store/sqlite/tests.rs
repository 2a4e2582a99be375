//! Tests at the engine's boundary.

use std::collections::HashMap;

use bytes::Bytes;
use jiff::Timestamp;
use sea_orm::{ConnectionTrait, Value};
use tokio::time::timeout;

use super::{
    testing::{self, open},
    *,
};
use crate::{
    domain::{
        chunk::Chunk,
        event::{Gap, GapReason, Time},
        integration::testing::testing_id,
        sequences::Sequences,
    },
    store::ports::{
        Anchor, BacklogChange, Checkpoint, Counts, EventLog, Ledger, LedgerUpdate, LogReader,
        NewChunk, NewEntry, Position,
    },
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A segment of events of `length` bytes.
fn segment(count: u32, length: usize) -> Bytes {
    let mut bytes = Vec::new();
    for event in 0..count {
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.resize(bytes.len() + length, event as u8);
    }
    bytes.into()
}

fn entry(number: u8, integration: i64) -> NewEntry {
    NewEntry {
        id: [number; 16],
        revision: u64::from(number),
        chunks: vec![NewChunk {
            integration_id: testing_id(integration),
            count: 2,
            segment: segment(2, 10 + usize::from(number)),
            traces: Vec::new(),
        }],
    }
}

async fn append(engine: &Engine, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        engine.append(0, vec![entry(number, 1)]).await.unwrap();
    }
}

async fn reader(engine: &Engine, from: u64) -> Box<dyn LogReader> {
    engine.reader(0, Position(from)).await.unwrap()
}

/// Reads the next entries: position and first byte of the id of each.
async fn read(reader: &mut Box<dyn LogReader>, count: usize) -> Vec<(u64, u8)> {
    let mut entries = Vec::new();
    for _ in 0..count {
        let entry = timeout(DEADLINE, reader.next()).await.unwrap().unwrap();
        assert_eq!(entry.revision, u64::from(entry.id[0]));
        let chunk = &entry.chunks[0];
        let wanted = segment(2, 10 + usize::from(entry.id[0]));
        assert_eq!(chunk.segment.as_ref(), Ok(&wanted));
        entries.push((entry.position.0, entry.id[0]));
    }
    entries
}

async fn execute(engine: &Engine, sql: &str, values: impl IntoIterator<Item = Value>) -> u64 {
    let tx = engine.database().begin().await.unwrap();
    let result = tx.execute_raw(statement(&*tx, sql, values)).await.unwrap();
    tx.commit().await.unwrap();
    result.rows_affected()
}

async fn count(engine: &Engine, table: &str) -> i64 {
    let db = engine.database().reader();
    let sql = format!("SELECT COUNT(*) AS count FROM {table}");
    let row = db.query_one_raw(statement(db, &sql, [])).await.unwrap();
    row.unwrap().try_get("", "count").unwrap()
}

/// Stores integrations with these numbers.
pub(super) async fn insert_integrations(db: &impl ConnectionTrait, numbers: &[i64]) {
    for number in numbers {
        let sql = "INSERT INTO integration (integration_key, organization_id, integration_id, \
            partition, stream_arn, role_arn, external_id_sealed, external_id_key_id, \
            external_id_hmac, external_id_hint, external_id_set_at, version, created_at, \
            updated_at, revision, status, status_since) VALUES ($1, $2, $3, 0, \
            'arn:aws:kinesis:us-east-1:222222222222:stream/events', \
            'arn:aws:iam::222222222222:role/relay', X'00', 'key', $4, '1234', 1, 1, 1, 1, $1, \
            'ACTIVE', 1)";
        let values: [Value; 4] = [
            (number * 10).into(),
            format!("organization-{number}").into(),
            testing_id(*number).to_string().into(),
            number.to_le_bytes().to_vec().into(),
        ];
        db.execute_raw(statement(db, sql, values)).await.unwrap();
    }
}

async fn with_integrations(engine: &Engine, numbers: &[i64]) {
    let tx = engine.database().begin().await.unwrap();
    insert_integrations(&*tx, numbers).await;
    tx.commit().await.unwrap();
}

async fn acquire(engine: &Engine) -> Lease {
    engine.acquire().await.unwrap()
}

fn checkpoint(next_sequence: u64, position: u64) -> Checkpoint {
    Checkpoint {
        next_sequence,
        position: Position(position),
        settled: Sequences::range(next_sequence + 3, next_sequence + 700),
        counts: Counts {
            accepted: next_sequence,
            delivered: 2,
            expired: 1,
            pending_bytes: 77,
        },
        last_attempt: Some(Timestamp::from_second(5).unwrap()),
        last_delivery: None,
    }
}

fn update(number: i64, next_sequence: u64, backlog: Vec<BacklogChange>) -> LedgerUpdate {
    LedgerUpdate {
        integration_id: testing_id(number),
        checkpoint: checkpoint(next_sequence, next_sequence),
        backlog,
    }
}

fn chunk(first_sequence: u64, count: u32) -> Chunk {
    Chunk {
        first_sequence,
        count,
        accepted_at: Timestamp::from_second(first_sequence as i64).unwrap(),
        segment: segment(count, 100),
        settled: Sequences::default(),
        gaps: Vec::new(),
        pending_bytes: u64::from(count) * 100,
        traces: Vec::new(),
    }
}

fn gap(first_sequence: u64, last_sequence: u64) -> Gap {
    Gap {
        first_sequence,
        last_sequence,
        count: last_sequence - first_sequence + 1,
        first_time: Time::from_micros(1),
        last_time: Time::from_micros(2),
        reason: GapReason::RetentionAge,
    }
}

async fn settle(engine: &Engine, lease: Lease, updates: Vec<LedgerUpdate>) {
    engine.settle(lease, updates, None).await.unwrap();
}

async fn backlog(engine: &Engine, number: i64) -> Vec<Chunk> {
    let read = engine.read_backlog(testing_id(number), 1, usize::MAX);
    read.await.unwrap()
}

#[tokio::test]
async fn readers_return_entries_from_memory_and_from_rows() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    let mut live = reader(&engine, 0).await;
    append(&engine, 1..=3).await;
    let all = [(1, 1), (2, 2), (3, 3)];
    assert_eq!(read(&mut live, 3).await, all);
    engine.close().await;
    assert!(matches!(live.next().await, Err(StoreError::Closed)));

    let engine = open(folder.path()).await;
    let bounds = engine.bounds(0).await.unwrap();
    assert_eq!((bounds.start, bounds.end), (Position(1), Position(4)));
    assert_eq!(engine.known_end(0), Position(4));
    let mut late = reader(&engine, 1).await;
    assert_eq!(read(&mut late, 3).await, all);
    // Waits for the next entry.
    let (next, ()) = tokio::join!(read(&mut late, 1), append(&engine, [4]));
    assert_eq!(next, [(4, 4)]);
    engine.close().await;
}

#[tokio::test]
async fn positions_are_not_used_again_after_a_trim_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    append(&engine, 1..=3).await;
    engine.trim(0, Position(4)).await.unwrap();
    let bounds = engine.bounds(0).await.unwrap();
    assert_eq!((bounds.start, bounds.end), (Position(4), Position(4)));
    engine.close().await;

    let engine = open(folder.path()).await;
    assert_eq!(count(&engine, "entry").await, 1);
    append(&engine, [4]).await;
    assert_eq!(read(&mut reader(&engine, 4).await, 1).await, [(4, 4)]);
    engine.close().await;
}

#[tokio::test]
async fn a_trim_is_written_with_the_next_append() {
    let engine = testing::open_in_memory().await;
    append(&engine, 1..=3).await;
    engine.trim(0, Position(3)).await.unwrap();
    assert_eq!(count(&engine, "entry").await, 3);
    assert_eq!(read(&mut reader(&engine, 1).await, 1).await, [(3, 3)]);
    append(&engine, [4]).await;
    assert_eq!(count(&engine, "entry").await, 2);
}

#[tokio::test]
async fn a_missing_entry_is_corruption() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    append(&engine, 1..=3).await;
    execute(&engine, "DELETE FROM entry WHERE position = 2", []).await;
    engine.close().await;
    let engine = open(folder.path()).await;
    let mut reader = reader(&engine, 1).await;
    assert_eq!(read(&mut reader, 1).await, [(1, 1)]);
    assert!(matches!(reader.next().await, Err(StoreError::Corrupt(_))));
}

#[tokio::test]
async fn damage_of_an_entry_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    append(&engine, 1..=2).await;
    execute(
        &engine,
        "UPDATE entry SET payload = X'02' WHERE position = 1",
        [],
    )
    .await;
    execute(
        &engine,
        "UPDATE entry SET header = X'01' WHERE position = 2",
        [],
    )
    .await;
    engine.close().await;
    let engine = open(folder.path()).await;
    let mut reader = reader(&engine, 1).await;
    let entry = reader.next().await.unwrap();
    assert_eq!(entry.chunks[0].count, 2);
    assert!(entry.chunks[0].segment.is_err());
    assert!(matches!(reader.next().await, Err(StoreError::Corrupt(_))));
}

#[tokio::test]
async fn a_ledger_is_loaded_as_it_was_settled() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    with_integrations(&engine, &[1, 2, 3]).await;
    let lease = acquire(&engine).await;
    let mut gapped = chunk(12, 6);
    gapped.settled = Sequences::range(12, 13);
    gapped.gaps = vec![gap(14, 15)];
    gapped.settled.add(14);
    gapped.pending_bytes = 200;
    let mut given_up = chunk(18, 2);
    given_up.gaps = vec![gap(18, 18), gap(19, 19)];
    given_up.segment = Bytes::new();
    given_up.pending_bytes = 0;
    let chunks = vec![chunk(10, 2), gapped, given_up];
    let added = chunks.iter().cloned().map(BacklogChange::Add).collect();
    let anchor = Anchor {
        position: Position(8),
        entry_id: [9; 16],
    };
    // An unknown integration is ignored.
    let updates = vec![
        update(1, 20, added),
        update(2, 5, Vec::new()),
        update(9, 5, vec![BacklogChange::Add(chunk(1, 1))]),
    ];
    engine.settle(lease, updates, Some(anchor)).await.unwrap();
    assert_eq!(backlog(&engine, 1).await, chunks);
    engine.close().await;

    let engine = open(folder.path()).await;
    let lease = acquire(&engine).await;
    let mut snapshot = engine.load(lease).await.unwrap();
    assert_eq!(snapshot.anchor, Some(anchor));
    snapshot.integrations.sort_by_key(|row| row.integration_id);
    let [one, two] = &snapshot.integrations[..] else {
        panic!("{snapshot:?}");
    };
    assert_eq!(one.integration_id, testing_id(1));
    assert_eq!(one.checkpoint, checkpoint(20, 20));
    assert_eq!(one.backlog_since, Some(chunk(10, 2).accepted_at));
    assert_eq!(one.backlog_bytes, 400);
    assert_eq!(two.checkpoint, checkpoint(5, 5));
    assert_eq!((two.backlog_since, two.backlog_bytes), (None, 0));
    assert_eq!(backlog(&engine, 1).await, chunks);
    let states = engine.backlog_states(testing_id(1), 12, 1).await.unwrap();
    assert_eq!(states, [chunks[1].state()]);
    let ids = [1, 2, 7].map(testing_id);
    let oldest = engine.oldest_pending(&ids).await.unwrap();
    assert_eq!(oldest, HashMap::from([(ids[0], chunks[0].accepted_at)]));
}

#[tokio::test]
async fn chunks_of_a_backlog_are_changed() {
    let engine = testing::open_in_memory().await;
    with_integrations(&engine, &[1, 2]).await;
    let lease = acquire(&engine).await;
    let all = [chunk(1, 3), chunk(4, 3), chunk(7, 3), chunk(10, 3)];
    for number in [1, 2] {
        let added = all.iter().cloned().map(BacklogChange::Add).collect();
        settle(&engine, lease, vec![update(number, 13, added)]).await;
    }
    let mut finished = all[0].clone();
    finished.settled = Sequences::range(1, 3);
    let mut partial = all[1].clone();
    partial.settled = Sequences::range(5, 5);
    partial.pending_bytes = 200;
    let mut damaged = all[2].state();
    damaged.settled = Sequences::range(7, 8);
    damaged.gaps = vec![gap(7, 9)];
    damaged.pending_bytes = 0;
    let mut replaced = chunk(10, 3);
    replaced.segment = segment(3, 50);
    replaced.pending_bytes = 150;
    let changes = vec![
        BacklogChange::Update(finished.state()),
        BacklogChange::Update(partial.state()),
        BacklogChange::SetAside(damaged.clone()),
        BacklogChange::Add(replaced.clone()),
    ];
    let wanted = [partial, damaged, replaced];
    // Repetitions change nothing.
    for _ in 0..2 {
        settle(&engine, lease, vec![update(1, 13, changes.clone())]).await;
        assert_eq!(backlog(&engine, 1).await, wanted);
        assert_eq!(count(&engine, "damaged_chunk").await, 1);
        assert_eq!(backlog(&engine, 2).await, all);
    }
}

#[tokio::test]
async fn a_lower_next_sequence_changes_nothing() {
    let engine = testing::open_in_memory().await;
    with_integrations(&engine, &[1, 2]).await;
    let lease = acquire(&engine).await;
    settle(
        &engine,
        lease,
        vec![update(1, 10, vec![BacklogChange::Add(chunk(5, 5))])],
    )
    .await;
    let mut finished = chunk(5, 5);
    finished.settled = Sequences::range(5, 9);
    let changes = vec![
        BacklogChange::Add(chunk(3, 2)),
        BacklogChange::Update(finished),
    ];
    let updates = vec![update(1, 9, changes), update(2, 9, Vec::new())];
    settle(&engine, lease, updates).await;
    assert_eq!(backlog(&engine, 1).await, [chunk(5, 5)]);
    let snapshot = engine.load(lease).await.unwrap();
    let mut next: Vec<u64> = snapshot
        .integrations
        .iter()
        .map(|row| row.checkpoint.next_sequence)
        .collect();
    next.sort_unstable();
    assert_eq!(next, [9, 10]);
}

#[tokio::test]
async fn an_earlier_lease_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    let first = acquire(&engine).await;
    let second = acquire(&engine).await;
    assert!(second.epoch > first.epoch);
    let fenced = engine
        .settle(first, vec![update(1, 1, Vec::new())], None)
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
    assert!(matches!(engine.load(first).await, Err(StoreError::Fenced)));
    engine.close().await;
    let engine = open(folder.path()).await;
    assert!(matches!(engine.load(second).await, Err(StoreError::Fenced)));
    assert!(acquire(&engine).await.epoch > second.epoch);
}

#[tokio::test]
async fn a_backlog_is_read_in_parts() {
    let engine = testing::open_in_memory().await;
    with_integrations(&engine, &[1]).await;
    let lease = acquire(&engine).await;
    let chunks: Vec<Chunk> = (0..5).map(|at| chunk(1 + at * 10, 10)).collect();
    let added = chunks.iter().cloned().map(BacklogChange::Add).collect();
    settle(&engine, lease, vec![update(1, 51, added)]).await;
    for (from, max_bytes, wanted) in [
        (1, 2000, 0..2),
        (1, 0, 0..1),
        (10, 1000, 0..1),
        (11, usize::MAX, 1..5),
        (51, usize::MAX, 5..5),
    ] {
        let read = engine.read_backlog(testing_id(1), from, max_bytes).await;
        assert_eq!(
            read.unwrap(),
            chunks[wanted],
            "from {from}, {max_bytes} bytes"
        );
    }
    let damage = "UPDATE backlog SET payload = X'00' WHERE first_sequence = 11";
    execute(&engine, damage, []).await;
    let read = engine.read_backlog(testing_id(1), 1, usize::MAX).await;
    assert_eq!(read.unwrap(), chunks[..1]);
    let read = engine.read_backlog(testing_id(1), 11, usize::MAX).await;
    assert!(matches!(
        read,
        Err(StoreError::DamagedChunk { first_sequence: 11 })
    ));
}

#[tokio::test]
async fn backlogs_of_deleted_integrations_are_removed_in_steps() {
    let engine = testing::open_in_memory().await;
    with_integrations(&engine, &[1, 2, 3]).await;
    let lease = acquire(&engine).await;
    for number in [1, 2, 3] {
        let added = (0..50)
            .map(|at| BacklogChange::Add(chunk(1 + at, 1)))
            .collect();
        settle(&engine, lease, vec![update(number, 51, added)]).await;
    }
    assert!(engine.remove_deleted().await.unwrap());
    execute(
        &engine,
        "DELETE FROM integration WHERE integration_key < 30",
        [],
    )
    .await;
    assert!(!engine.remove_deleted().await.unwrap());
    assert_eq!(count(&engine, "backlog").await, 150 - 64);
    assert!(engine.remove_deleted().await.unwrap());
    assert_eq!(count(&engine, "backlog").await, 50);
    assert_eq!(count(&engine, "progress").await, 1);
}

/// A statement of the settlement cannot fail the append that it shares a transaction with.
#[tokio::test]
async fn an_append_is_kept_if_a_settlement_fails() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        settle_linger: DEADLINE,
        ..testing::options(folder.path())
    };
    let engine = super::open(&options).await.unwrap();
    with_integrations(&engine, &[1]).await;
    let lease = acquire(&engine).await;
    let forbid = "CREATE TRIGGER forbidden BEFORE INSERT ON progress \
        BEGIN SELECT RAISE(FAIL, 'forbidden'); END";
    execute(&engine, forbid, []).await;
    let mut settled = Box::pin(engine.settle(lease, vec![update(1, 2, Vec::new())], None));
    // Polled once, it waits for an append.
    assert!(futures_util::poll!(&mut settled).is_pending());
    append(&engine, [1]).await;
    let settled = timeout(DEADLINE, settled).await.unwrap();
    assert!(matches!(settled, Err(StoreError::Failed(_))));
    execute(&engine, "DROP TRIGGER forbidden", []).await;
    let mut settled = Box::pin(engine.settle(lease, vec![update(1, 2, Vec::new())], None));
    assert!(futures_util::poll!(&mut settled).is_pending());
    append(&engine, [2]).await;
    timeout(DEADLINE, settled).await.unwrap().unwrap();
    let all = read(&mut reader(&engine, 1).await, 2).await;
    assert_eq!(all, [(1, 1), (2, 2)]);
    engine.close().await;
}

#[tokio::test]
async fn appends_go_on_after_one_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    append(&engine, [1]).await;
    let refuse = "CREATE TRIGGER refused BEFORE INSERT ON entry \
        BEGIN SELECT RAISE(FAIL, 'refused'); END";
    execute(&engine, refuse, []).await;
    let failed = engine.append(0, vec![entry(2, 1)]).await;
    assert!(matches!(failed, Err(StoreError::Failed(_))));
    execute(&engine, "DROP TRIGGER refused", []).await;
    append(&engine, [3]).await;
    let all = read(&mut reader(&engine, 1).await, 2).await;
    assert_eq!(all, [(1, 1), (2, 3)]);
}

#[tokio::test]
async fn a_dropped_transaction_leaves_the_lock_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    let tx = engine.database().begin().await.unwrap();
    insert_integrations(&*tx, &[1]).await;
    drop(tx);
    append(&engine, [1]).await;
    assert_eq!(count(&engine, "integration").await, 0);
    engine.close().await;
    let closed = engine.append(0, vec![entry(1, 1)]).await;
    assert!(matches!(closed, Err(StoreError::Closed)));
    assert!(engine.ended().await.is_none());
    assert_eq!(*engine.availability().borrow(), Availability::Unavailable);
}

#[tokio::test]
async fn a_directory_is_used_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    let second = super::open(&testing::options(folder.path())).await.err();
    assert!(matches!(second, Some(OpenError::InUse(_))));
    engine.close().await;
    open(folder.path()).await.close().await;
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    let later = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_later', 1)";
    execute(&engine, later, []).await;
    engine.close().await;
    let error = super::open(&testing::options(folder.path())).await.err();
    assert!(
        matches!(&error, Some(OpenError::Newer { migration, .. }) if migration == "m9999_later")
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(DATABASE_FILE), [7; 8192]).unwrap();
    let error = super::open(&testing::options(folder.path())).await.err();
    assert!(
        matches!(error, Some(OpenError::Damaged { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn statements_find_rows_by_their_indexes() {
    let engine = testing::open_in_memory().await;
    let db = engine.database().reader();
    let sql = format!("EXPLAIN QUERY PLAN SELECT b.rowid FROM {}", ledger::NAMED);
    let rows = db
        .query_all_raw(statement(db, &sql, ["[]".into()]))
        .await
        .unwrap();
    let plan: Vec<String> = rows
        .iter()
        .map(|row| row.try_get("", "detail").unwrap())
        .collect();
    let scans = plan.iter().filter(|line| line.starts_with("SCAN"));
    assert_eq!(scans.count(), 1, "{plan:?}");
}
