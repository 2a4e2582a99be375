//! What is written by one script, and the pages it is written to.

use sea_orm::Database;

use super::*;
use crate::store::rows::statement;

async fn ask(store: &Store, sql: &str, column: &str) -> i64 {
    let asked = statement(&store.reader, sql, []);
    let row = store.reader.query_one_raw(asked).await.unwrap();
    row.unwrap().try_get("", column).unwrap()
}

/// A settlement rides along with an append, and takes it along where it fails.
#[tokio::test]
async fn what_is_written_together_is_kept_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 0);
    // An append does not wait for what is due within half of that.
    options.settle_linger = Duration::from_secs(600);
    let key = MasterKey::from_hex(KEY).unwrap();
    let store = Store::open(options, key).await.unwrap();
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    assert!(append(&store, "acme", 5).await);
    let forbid = "CREATE TRIGGER kept BEFORE DELETE ON chunk BEGIN SELECT RAISE(ABORT, ''); END";
    store.reader.execute_unprepared(forbid).await.unwrap();

    let mut delivery = Delivery::default();
    for chunk in store.read_log(key, 1, 1 << 20).await.unwrap() {
        assert_eq!(delivery.load(chunk), None);
    }
    let batch = delivery.next_batch(LIMITS).unwrap();
    let settlement = delivery.settle(batch, &[Outcome::Accepted; 5]);
    let (done, mut settled) = oneshot::channel();
    let settle = Settle {
        key,
        settlement,
        observed: None,
        tells: Tells::Waiting(done),
    };
    store.settle(settle).await;
    // What changes an integration settles first; after a failure it is soon due again.
    assert!(store.configure(configuration("globex")).await.is_err());
    let together = store.append(segments([(key, 6)]), None).await.unwrap();
    assert!(together.await.is_err());
    assert!(settled.try_recv().is_err());
    assert_eq!(store.find("acme").unwrap().progress.delivered, 0);
    assert_eq!(pending(&store, key).await, [1, 2, 3, 4, 5]);

    store
        .reader
        .execute_unprepared("DROP TRIGGER kept")
        .await
        .unwrap();
    assert!(append(&store, "acme", 7).await);
    settled.await.unwrap();
    store.close().await;
    store.ended().await;
    let store = open(folder.path(), 0).await;
    let progress = store.find("acme").unwrap().progress;
    assert_eq!((progress.accepted(), progress.delivered), (12, 5));
    assert_eq!(pending(&store, key).await, (6..=12).collect::<Vec<_>>());
    store.close().await;
}

/// A Configure answers with what it stored, whatever follows in the same transaction.
#[tokio::test]
async fn a_configure_is_answered_whatever_is_written_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    let acme = || OrganizationId::new("acme").unwrap();
    // The writer runs only once all of them are handed in.
    let (configured, deleted) = tokio::join!(
        biased;
        store.configure(configuration("acme")),
        store.delete(acme(), "test".into()),
    );
    let (configured, deleted) = (configured.unwrap(), deleted.unwrap().unwrap());
    assert_eq!(
        configured.integration.integration_id,
        deleted.integration_id
    );
    assert!(store.find("acme").is_none());

    let (first, deleted, second, third) = tokio::join!(
        biased;
        store.configure(configuration("acme")),
        store.delete(acme(), "test".into()),
        store.configure(configuration("acme")),
        store.configure(configuration("acme")),
    );
    let [first, second, third] = [first, second, third].map(|one| {
        let integration = one.unwrap().integration;
        (integration.integration_id, integration.version)
    });
    assert_eq!(first, (deleted.unwrap().unwrap().integration_id, 1));
    // Each is told its own etag, not that of who came behind it.
    assert_eq!((second.1, third), (1, (second.0, 2)));
    let found = store.find("acme").unwrap().integration;
    assert_eq!((found.integration_id, found.version), third);
    let appended = append(&store, "acme", 3);
    let (appended, configured) =
        tokio::join!(biased; appended, store.configure(configuration("acme")));
    assert!(appended);
    assert_eq!(
        configured.unwrap().progress.accepted(),
        3,
        "as it is by then"
    );
    store.close().await;
}

/// What was made with other pages keeps them, and its write-ahead log becomes no longer.
#[tokio::test]
async fn a_database_keeps_its_pages() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    assert!(append(&store, "acme", 5).await);
    let wal_bytes = async |store: &Store| {
        let pages = ask(store, "PRAGMA wal_autocheckpoint", "wal_autocheckpoint").await;
        let page = ask(store, "PRAGMA page_size", "page_size").await;
        (page, pages * page)
    };
    let (page, most) = wal_bytes(&store).await;
    assert_eq!(page, 4096);
    store.close().await;
    store.ended().await;
    let file = folder.path().join("siem-relay.sqlite");
    let db = Database::connect(format!("sqlite://{}", file.display()));
    let db = db.await.unwrap();
    let sql = "PRAGMA journal_mode = DELETE; PRAGMA page_size = 16384; VACUUM";
    db.execute_unprepared(sql).await.unwrap();
    db.close().await.unwrap();
    let store = open(folder.path(), 0).await;
    assert_eq!(wal_bytes(&store).await, (16384, most));
    let key = store.key_of("acme").unwrap();
    assert_eq!(pending(&store, key).await, [1, 2, 3, 4, 5]);
    store.close().await;
}
