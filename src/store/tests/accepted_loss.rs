//! Acceptance of a loss in the log.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use tokio::time::sleep;

use super::{
    super::{
        accept_loss::{WINDOW, with_lease},
        memory::{Image, MemoryLog},
        ports::{InstanceKeys, Lease, Membership, Ownership, Partition, Position},
        shared::accept,
    },
    *,
};

/// A database that outlives the stores on it, and the log.
struct Storage {
    database: Arc<sqlite::Engine>,
    image: Image,
    folder: TempDir,
}

impl Storage {
    async fn new() -> Self {
        Self {
            database: Arc::new(sqlite::testing::open_in_memory().await),
            image: Image::new(1, 1),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    async fn engines(&self) -> Engines {
        let options = RegistryOptions {
            partitions: 1,
            tombstones: 2,
            failing_after: Duration::from_secs(60),
        };
        let database = sql::Database::Sqlite(self.database.database().clone());
        Engines {
            log: Arc::new(MemoryLog::open(self.image.clone())),
            registry: Arc::new(SqlRegistry::open(database, options).await.unwrap()),
            ledger: Arc::clone(&self.database) as Arc<dyn Ledger>,
            ownership: Arc::clone(&self.database) as Arc<dyn Ownership>,
        }
    }

    async fn open(&self) -> Store {
        let options = options(self.folder.path(), 1 << 20);
        let sealer = Sealer::new(&key()).unwrap();
        let engines = self.engines().await;
        check_keys(&engines, &sealer).await.unwrap();
        Store::start(engines, &options, sealer, Gate::default())
            .await
            .unwrap()
    }

    async fn accept(&self, window: Option<u64>) -> Option<AcceptedLoss> {
        accept(self.engines().await, 0, window).await.unwrap()
    }

    /// Bounds of the log.
    async fn bounds(&self) -> (u64, u64) {
        let log = MemoryLog::open(self.image.clone());
        let bounds = log.bounds(0).await.unwrap();
        (bounds.start.0, bounds.end.0)
    }
}

#[tokio::test]
async fn a_loss_is_accepted_once_and_only_if_there_is_one() {
    let storage = Storage::new().await;
    assert_eq!(storage.accept(None).await, None);
    let store = storage.open().await;
    let id = configure(&store, "acme").await;
    for _ in 0..4 {
        append(&store, id, 2).await;
    }
    assert_eq!(deliver(&store, id, 1, 1, u64::MAX).await, [1, 2]);
    store.close().await;
    assert_eq!(storage.accept(None).await, None);

    storage.image.damage_header(0, Position(3));
    let accepted = storage.accept(None).await.unwrap();
    assert_eq!(
        (accepted.from, accepted.integrations, accepted.window),
        (4, 1, WINDOW)
    );
    // Nothing is left that cannot be read.
    assert_eq!(storage.bounds().await, (4, 5));
    assert_eq!(storage.accept(None).await, None);
    let store = storage.open().await;
    let end = WINDOW + 2;
    assert_eq!(store.next_sequence(id), Some(end + 3));
    assert_eq!(store.progress(id).unwrap().expired, WINDOW);
    assert_eq!(read(&store, id).await, [end + 1, end + 2]);
    store.close().await;

    let again = storage.accept(Some(0)).await.unwrap();
    assert_eq!((again.from, again.window), (4, WINDOW));
}

#[tokio::test]
async fn a_log_that_contradicts_the_ledger_is_not_whole() {
    let storage = Storage::new().await;
    let store = storage.open().await;
    let id = configure(&store, "acme").await;
    for _ in 0..3 {
        append(&store, id, 1).await;
    }
    deliver(&store, id, 1, 1, u64::MAX).await;
    store.close().await;
    // Other entries at the same positions.
    storage.image.recreate(0);
    assert_eq!(storage.accept(None).await.unwrap().integrations, 1);
    assert_eq!(storage.accept(None).await, None);
}

/// The last entry is kept by a trim, and must not come back with its damage.
#[tokio::test]
async fn a_damaged_last_entry_is_removed_from_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 1 << 20);
    let store = open(folder.path(), 1 << 20).await;
    let id = configure(&store, "acme").await;
    append(&store, id, 1).await;
    append(&store, id, 1).await;
    store.close().await;
    execute(folder.path(), "UPDATE entry SET header = x'ff'").await;
    let accepted = Store::accept_loss(&options, None).await.unwrap();
    assert_eq!(accepted.unwrap().integrations, 1);
    assert_eq!(Store::accept_loss(&options, None).await.unwrap(), None);
    let store = open(folder.path(), 1 << 20).await;
    append(&store, id, 1).await;
    assert_eq!(read(&store, id).await, [WINDOW + 1]);
    store.close().await;
}

/// Counts polls.
#[derive(Default)]
struct Polls(AtomicU32);

#[async_trait]
impl Ownership for Polls {
    async fn poll(&self, _confirmed: u64) -> Result<Membership, StoreError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(StoreError::Failed("the database does not answer".into()))
    }

    async fn seize(&self, _partition: Partition) -> Result<Lease, StoreError> {
        Err(StoreError::Closed)
    }

    async fn release(&self, _leases: &[Lease]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn leave(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn instances(&self) -> Result<Vec<InstanceKeys>, StoreError> {
        Ok(Vec::new())
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_only_while_work_takes_long() {
    for (seconds, least) in [(1, 0), (11, 5), (61, 30)] {
        let polls = Polls::default();
        with_lease(&polls, sleep(Duration::from_secs(seconds))).await;
        assert_eq!(polls.0.into_inner(), least);
    }
}
