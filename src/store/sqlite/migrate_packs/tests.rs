//! Databases of the versions that had packs.

use std::path::Path;

use proptest::prelude::*;
use sea_orm_migration::MigratorTrait;

use super::*;
use crate::{
    domain::integration::testing::testing_id,
    store::{
        ports::Ledger,
        sqlite::{DATABASE_FILE, Engine, schema::Migrator, testing, tests::insert_integrations},
    },
};

/// Migrations of the last version with packs.
const BEFORE: u32 = 6;

fn encode(members: &[Member]) -> Vec<u8> {
    let mut listed = Vec::new();
    for member in members {
        listed.extend_from_slice(&member.integration_key.to_le_bytes());
        listed.extend_from_slice(&member.first_sequence.to_le_bytes());
        listed.extend_from_slice(&member.count.to_le_bytes());
        listed.extend_from_slice(&member.bytes.to_le_bytes());
    }
    let sum = crc32fast::hash(&listed).to_le_bytes();
    [&[VERSION], &sum[..], &listed].concat()
}

fn members(all: &[(i64, u64, u32, u32)]) -> Vec<Member> {
    let mut start = 0;
    let member = |(integration_key, first_sequence, count, bytes): &(i64, u64, u32, u32)| {
        let member = Member {
            integration_key: *integration_key,
            first_sequence: *first_sequence,
            count: *count,
            bytes: *bytes,
            start,
        };
        start += count;
        member
    };
    all.iter().map(member).collect()
}

/// A segment of events of 6 bytes.
fn segment(count: u32) -> Vec<u8> {
    [6, 0, 0, 0, 1, 2, 3, 4, 5, 6].repeat(count as usize)
}

async fn execute(db: &DatabaseConnection, sql: &str, values: impl IntoIterator<Item = Value>) {
    db.execute_raw(statement(db, sql, values)).await.unwrap();
}

async fn connect(folder: &Path) -> DatabaseConnection {
    let file = folder.join(DATABASE_FILE);
    let url = format!("sqlite://{}?mode=rwc", file.display());
    sea_orm::Database::connect(url).await.unwrap()
}

async fn insert_pack(db: &DatabaseConnection, id: i64, all: &[(i64, u64, u32)], done: &[u8]) {
    let sized: Vec<_> = all
        .iter()
        .map(|(key, first, count)| (*key, *first, *count, count * 10))
        .collect();
    let segments: Vec<Vec<u8>> = all.iter().map(|(_, _, count)| segment(*count)).collect();
    let payload = codec::compress(segments.iter().map(|segment| &segment[..]));
    let sql = "INSERT INTO pack (pack_id, accepted_at, outline, payload) VALUES ($1, $2, $3, $4)";
    let values: [Value; 4] = [
        id.into(),
        (id * 1000).into(),
        encode(&members(&sized)).into(),
        payload.into(),
    ];
    execute(db, sql, values).await;
    if !done.is_empty() {
        let sql = "INSERT INTO pack_done (pack_id, done) VALUES ($1, $2)";
        execute(db, sql, [id.into(), done.to_vec().into()]).await;
    }
}

/// Integration 1 (key 10) has chunks with a hole and events in packs; 2 (key 20) has events in
/// packs only, the last of them delivered; 3 (key 30) has none.
async fn earlier_database(folder: &Path) {
    let db = connect(folder).await;
    Migrator::up(&db, Some(BEFORE)).await.unwrap();
    insert_integrations(&db, &[1, 2, 3]).await;
    let sql = "INSERT INTO progress (integration_key, next_sequence, delivered, expired, \
        discarded, last_attempt_at, last_delivery_at) VALUES \
        (10, 5, 3, 1, 0, 9, 8), (20, 1, 3, 0, 0, NULL, NULL), (30, 1, 0, 0, 0, NULL, NULL)";
    execute(&db, sql, []).await;
    // Of events 4 to 6 the second is delivered, and a gap waits in place of the third.
    let gaps = r#"[{"index":2,"first_sequence":6,"count":1,"first_time":1,"last_time":2,"reason":"RETENTION_AGE"}]"#;
    let payload = codec::compress(std::iter::once(&segment(3)[..]));
    let sql = "INSERT INTO chunk (chunk_id, integration_key, first_sequence, event_count, \
        pending_bytes, accepted_at, accepted, gaps, payload) \
        VALUES (1, 10, 4, 3, 6, 1000, X'02', $1, $2)";
    execute(&db, sql, [gaps.into(), payload.into()]).await;
    // Key 90 was deleted.
    insert_pack(&db, 2, &[(10, 7, 2), (20, 1, 3), (90, 1, 1)], &[0b00101]).await;
    insert_pack(&db, 5, &[(20, 4, 2)], &[0b11]).await;
    insert_pack(&db, 6, &[(10, 9, 1)], &[]).await;
    db.close().await.unwrap();
}

async fn check(engine: &Engine) {
    let lease = engine.acquire().await.unwrap();
    let mut rows = engine.load(lease).await.unwrap().integrations;
    rows.sort_by_key(|row| row.integration_id);
    let seen: Vec<_> = rows
        .iter()
        .map(|row| {
            let checkpoint = &row.checkpoint;
            assert!(checkpoint.settled.is_empty());
            assert_eq!(checkpoint.position.0, 0);
            let counts = checkpoint.counts;
            assert_eq!(counts.pending_bytes, row.backlog_bytes);
            (
                checkpoint.next_sequence,
                [counts.accepted, counts.delivered, counts.expired],
                row.backlog_bytes,
                row.backlog_since.map(|since| since.as_microsecond()),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (10, [9, 3, 1], 18, Some(1000)),
            (6, [5, 3, 0], 12, Some(2000)),
            (1, [0, 0, 0], 0, None),
        ]
    );
    let one = engine.read_backlog(testing_id(1), 1, usize::MAX).await;
    let one: Vec<_> = one
        .unwrap()
        .into_iter()
        .map(|chunk| {
            assert_eq!(chunk.segment, segment(chunk.count));
            let settled = chunk.settled.iter().collect::<Vec<_>>();
            (chunk.first_sequence, chunk.count, settled, chunk.gaps.len())
        })
        .collect();
    assert_eq!(
        one,
        [(4, 3, vec![5], 1), (7, 2, vec![7], 0), (9, 1, vec![], 0)]
    );
    let two = engine.read_backlog(testing_id(2), 1, usize::MAX).await;
    let two: Vec<_> = two
        .unwrap()
        .into_iter()
        .map(|chunk| {
            (
                chunk.first_sequence,
                chunk.settled.iter().collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(two, [(1, vec![1])]);
}

#[tokio::test]
async fn an_earlier_database_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    earlier_database(folder.path()).await;
    for _ in 0..2 {
        let engine = testing::open(folder.path()).await;
        check(&engine).await;
        crate::store::ports::EventLog::close(&engine).await;
    }
}

#[tokio::test]
async fn a_migration_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    earlier_database(folder.path()).await;
    let db = connect(folder.path()).await;
    Migrator::up(&db, None).await.unwrap();
    // One step, of the first pack.
    let sized = [(10, 7, 2, 20), (20, 1, 3, 30), (90, 1, 1, 10)];
    let mut first = std::iter::once((2, members(&sized)));
    migrate_step(&db, &mut first).await.unwrap();
    db.close().await.unwrap();
    check(&testing::open(folder.path()).await).await;
}

#[tokio::test]
async fn a_damaged_pack_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    earlier_database(folder.path()).await;
    let db = connect(folder.path()).await;
    let sql = "UPDATE pack SET payload = X'02' WHERE pack_id = 2";
    execute(&db, sql, []).await;
    db.close().await.unwrap();
    let engine = testing::open(folder.path()).await;
    let read = engine.read_backlog(testing_id(1), 7, usize::MAX).await;
    assert!(matches!(
        read,
        Err(crate::store::error::StoreError::DamagedChunk { first_sequence: 7 })
    ));
    let db = engine.database().reader();
    let sql = "SELECT pack_id FROM damaged_pack";
    let row = db.query_one_raw(statement(db, sql, [])).await.unwrap();
    assert_eq!(row.unwrap().try_get::<i64>("", "pack_id").unwrap(), 2);
}

#[tokio::test]
async fn an_unreadable_outline_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    earlier_database(folder.path()).await;
    let db = connect(folder.path()).await;
    let sql = "UPDATE pack SET outline = X'01' WHERE pack_id = 6";
    execute(&db, sql, []).await;
    let options = testing::options(folder.path());
    let error = crate::store::sqlite::open(&options).await.err();
    assert!(matches!(
        error,
        Some(crate::store::sqlite::OpenError::Damaged { .. })
    ));
    let sql = "SELECT COUNT(*) AS count FROM pack";
    let row = db.query_one_raw(statement(&db, sql, [])).await.unwrap();
    assert_eq!(row.unwrap().try_get::<i64>("", "count").unwrap(), 3);
}

proptest! {
    #[test]
    fn an_outline_is_read_as_it_was_written(
        all in prop::collection::vec((any::<i64>(), any::<u64>(), 1..500u32, any::<u32>()), 0..20),
    ) {
        let members = members(&all);
        prop_assert_eq!(decode(&encode(&members)), Ok(members));
    }

    #[test]
    fn a_damaged_outline_is_noticed(at: prop::sample::Index, bit in 0..8u8, garbage: Vec<u8>) {
        let mut outline = encode(&members(&[(1, 1, 2, 30), (2, 7, 1, 20)]));
        let at = at.index(outline.len());
        outline[at] ^= 1 << bit;
        prop_assert_eq!(decode(&outline), Err(Damaged));
        prop_assert_eq!(decode(&garbage), Err(Damaged));
    }
}
