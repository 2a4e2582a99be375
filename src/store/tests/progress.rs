//! How far each log has come, in rows of its own.

use sea_orm::{Database, DatabaseConnection};
use sea_orm_migration::MigratorTrait;
use tokio::time::timeout;

use super::{
    super::{rows::statement, schema::Migrator, secret::Sealer},
    *,
};

const DEADLINE: Duration = Duration::from_secs(30);
/// Migrations before there was a table of its own.
const BEFORE: u32 = 3;

async fn execute(db: &DatabaseConnection, sql: &str) {
    db.execute_unprepared(sql).await.unwrap();
}

/// A database as it was: two integrations, the second with events in its log.
async fn earlier_database(folder: &Path) {
    let file = folder.join("siem-relay.sqlite");
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let db = Database::connect(url).await.unwrap();
    Migrator::up(&db, Some(BEFORE)).await.unwrap();
    let sealer = Sealer::new(&MasterKey::from_hex(KEY).unwrap()).unwrap();
    let sql = "INSERT INTO integration (integration_key, organization_id, integration_id, \
        partition, stream_arn, role_arn, external_id_sealed, external_id_key_id, \
        external_id_hmac, external_id_hint, external_id_set_at, version, created_at, \
        updated_at, revision, status, status_since, last_attempt_at, last_delivery_at, \
        next_sequence, delivered, expired, discarded) VALUES ($1, $2, $3, 0, \
        'arn:aws:kinesis:us-east-1:222222222222:stream/events', \
        'arn:aws:iam::222222222222:role/relay', X'00', $4, $5, '1234', 1, 1, 1, 1, $1, \
        'ACTIVE', 1, $6, $7, $8, $9, $10, 0)";
    type Earlier = (i64, &'static str, [Option<i64>; 2], [i64; 3]);
    let earlier: [Earlier; 2] = [
        (3, "acme", [None, None], [1, 0, 0]),
        (7, "globex", [Some(5_000_000), Some(4_000_000)], [31, 20, 4]),
    ];
    for (key, organization, [attempt, delivery], [next, delivered, expired]) in earlier {
        let values: [sea_orm::Value; 10] = [
            key.into(),
            organization.into(),
            Uuid::from_u128(key as u128).to_string().into(),
            sealer.key_id().into(),
            vec![key as u8].into(),
            attempt.into(),
            delivery.into(),
            next.into(),
            delivered.into(),
            expired.into(),
        ];
        let insert = statement(&db, sql, values);
        db.execute_raw(insert).await.unwrap();
    }
    // Six that the row knows of, and nine appended since.
    execute(
        &db,
        "INSERT INTO chunk (chunk_id, integration_key, first_sequence, event_count, \
        pending_bytes, accepted_at, payload) VALUES (1, 7, 25, 6, 60, 1, X''), \
        (2, 7, 31, 9, 90, 2, X'')",
    )
    .await;
    db.close().await.unwrap();
}

#[tokio::test]
async fn what_an_earlier_version_stored_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    earlier_database(folder.path()).await;
    for _start in 0..2 {
        let store = open(folder.path(), 0).await;
        let acme = store.find("acme").unwrap();
        assert_eq!(acme.progress, Progress::NEW);
        assert_eq!(acme.status.last_attempt, None);
        let globex = store.find("globex").unwrap();
        let progress = globex.progress;
        assert_eq!((progress.accepted(), progress.delivered), (39, 20));
        assert_eq!((progress.expired, progress.pending()), (4, 15));
        assert_eq!(progress.pending_bytes, 150);
        let seconds = |time: Option<Timestamp>| time.map(Timestamp::as_second);
        assert_eq!(seconds(globex.status.last_attempt), Some(5));
        assert_eq!(seconds(globex.status.last_delivery), Some(4));
        assert_eq!(globex.revision, 7);
        store.close().await;
        store.ended().await;
    }
}

/// Fails whatever writes a row of a table.
async fn forbid(store: &Store, table: &str) {
    for change in ["INSERT", "UPDATE", "DELETE"] {
        let sql = format!(
            "CREATE TRIGGER no_{change}_{table} BEFORE {change} ON {table} \
            BEGIN SELECT RAISE(ABORT, 'written'); END"
        );
        execute(&store.reader, &sql).await;
    }
}

async fn rows_of_progress(store: &Store) -> i64 {
    let sql = "SELECT COUNT(*) AS count FROM progress";
    let row = store
        .reader
        .query_one_raw(statement(&store.reader, sql, []));
    row.await.unwrap().unwrap().try_get("", "count").unwrap()
}

#[tokio::test]
async fn appends_and_settlements_leave_the_configuration_unwritten() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20).await;
    store.configure(configuration("acme")).await.unwrap();
    // The first one makes it Active.
    observe(&store, "acme", 1, Observation::Accepted).await;
    forbid(&store, "integration").await;
    assert!(append(&store, "acme", 5).await);
    // What cannot be written is tried again for ever.
    let settling = async {
        observe(&store, "acme", 1, Observation::Accepted).await;
        deliver(&store, "acme", 0b111).await
    };
    assert_eq!(timeout(DEADLINE, settling).await, Ok(3));
    let settled = store.find("acme").unwrap();
    store.close().await;
    store.ended().await;
    let store = open(folder.path(), 1 << 20).await;
    let again = store.find("acme").unwrap();
    assert_eq!(again.progress, settled.progress);
    assert_eq!(again.progress.delivered, 3);
    assert_eq!(again.status.last_delivery, settled.status.last_delivery);
    store.close().await;
}

#[tokio::test]
async fn appends_write_no_progress() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    forbid(&store, "progress").await;
    assert!(append(&store, "acme", 5).await);
    assert!(append(&store, "acme", 6).await);
    store.close().await;
    store.ended().await;
    let store = open(folder.path(), 0).await;
    assert_eq!(store.find("acme").unwrap().progress.accepted(), 11);
    store.close().await;
}

#[tokio::test]
async fn goes_with_its_integration() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    for organization in ["acme", "globex"] {
        store.configure(configuration(organization)).await.unwrap();
    }
    assert_eq!(rows_of_progress(&store).await, 2);
    let id = OrganizationId::new("acme").unwrap();
    store.delete(id, "test".into()).await.unwrap().unwrap();
    assert_eq!(rows_of_progress(&store).await, 1);
    store.close().await;
}

#[tokio::test]
async fn an_integration_without_its_progress_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    execute(&store.reader, "DELETE FROM progress").await;
    store.close().await;
    store.ended().await;
    let again = Store::open(options(folder.path(), 0), MasterKey::from_hex(KEY).unwrap()).await;
    let error = again.err().unwrap().to_string();
    assert!(error.contains("without its progress"), "{error}");
}
