//! Keys of external IDs in a store that several instances share.

use futures_util::FutureExt as _;

use super::{
    super::{
        memory::{Image, MemoryLog},
        postgres::{InstanceId, OwnershipOptions, PostgresLedger, PostgresOwnership, testing},
    },
    *,
};
use crate::boot_time::BootTime;

const PARTITIONS: u32 = 2;

/// Instances on one database and one log.
struct Cluster {
    url: String,
    image: Image,
    folder: TempDir,
}

impl Cluster {
    async fn engines(&self, sealer: &Sealer) -> Engines {
        let database = testing::open(&self.url).await;
        let registry = RegistryOptions {
            partitions: PARTITIONS,
            tombstones: 10,
            failing_after: Duration::from_secs(60),
        };
        let of_registry = sql::Database::Postgres(database.clone());
        let id = InstanceId::random();
        let ownership = OwnershipOptions {
            partitions: PARTITIONS,
            lease: Duration::from_secs(10),
            clock: Arc::new(BootTime::now),
            keys: sealer.key_ids().map(str::to_owned).collect(),
        };
        let ownership = PostgresOwnership::open(database.clone(), id, ownership).await;
        Engines {
            log: Arc::new(MemoryLog::open(self.image.clone())),
            registry: Arc::new(SqlRegistry::open(of_registry, registry).await.unwrap()),
            ledger: Arc::new(PostgresLedger::new(database, id, Duration::ZERO)),
            ownership: Arc::new(ownership.unwrap()),
        }
    }

    /// Starts an instance with keys of these bytes. `Err` has the ids of the keys that it lacks.
    async fn start(&self, keys: &[u8]) -> Result<Store, Vec<Box<str>>> {
        let keys: Vec<String> = keys.iter().map(|key| hex::encode([*key; 32])).collect();
        let sealer = Sealer::new(&Keyring::parse(&keys.join(" ")).unwrap()).unwrap();
        let engines = self.engines(&sealer).await;
        for is_registered in [false, true] {
            if is_registered {
                engines.ownership.poll(0).await.unwrap();
            }
            let missing = check_keys(&engines, &sealer).await.unwrap();
            if !missing.is_empty() {
                return Err(missing);
            }
        }
        let options = options(self.folder.path(), 1 << 20);
        let store = Store::start(engines, &options, sealer, Gate::default()).await;
        Ok(store.unwrap())
    }
}

fn states(report: &KeysReport) -> Vec<KeyState> {
    report.keys.iter().map(|key| key.state).collect()
}

async fn until_settled(store: &Store) -> KeysReport {
    let settled = async {
        loop {
            let report = store.keys().await.unwrap();
            if report.is_settled() {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_becomes_active_once_every_instance_can_read_it() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let cluster = Cluster {
        url,
        image: Image::new(PARTITIONS, 1),
        folder: tempfile::tempdir().unwrap(),
    };
    let old = cluster.start(&[1]).await.unwrap();
    let id = configure(&old, "acme").await;
    let both = cluster.start(&[2, 1]).await.unwrap();

    let waiting = both.rotate_keys().await.unwrap();
    assert_eq!(states(&waiting), [KeyState::Active, KeyState::Pending]);
    assert_eq!(waiting.instances.len(), 2);
    let [lacking] = &waiting.waiting_for[..] else {
        panic!("{waiting:?}");
    };
    assert_eq!(lacking.keys, [waiting.keys[0].id.clone()]);
    let pending = waiting.first.clone();
    assert_eq!(pending, waiting.keys[1].id);
    // A proposed key must be known to instances that start, before and after they can be found.
    assert_eq!(cluster.start(&[1]).await.err(), Some(vec![pending.clone()]));
    let again = both.rotate_keys().await.unwrap();
    assert_eq!(states(&again), [KeyState::Active, KeyState::Pending]);
    // It can be taken back by an instance whose first key is active.
    let back = old.rotate_keys().await.unwrap();
    assert!(back.is_settled(), "{back:?}");
    cluster.start(&[1]).await.unwrap().close().await;
    both.rotate_keys().await.unwrap();

    old.close().await;
    let third = cluster.start(&[1, 2]).await.unwrap();
    both.rotate_keys().await.unwrap();
    let settled = until_settled(&third).await;
    let active: Vec<_> = settled.keys.iter().map(|key| (&key.id, key.rows)).collect();
    assert_eq!(active[0], (&pending, 1));
    let retired = settled.keys.iter().find(|key| key.id != pending);
    assert_eq!(
        retired.map(|key| (key.state, key.rows)),
        Some((KeyState::Unused, 0))
    );
    third.catch_up().await.unwrap();
    let integration = third.integration(id).unwrap();
    third.open_external_id(&integration).unwrap();
    assert_eq!(cluster.start(&[1]).await.err(), Some(vec![pending]));
    let new = cluster.start(&[2]).await.unwrap();
    let integration = new.integration(id).unwrap();
    new.open_external_id(&integration).unwrap();
    for store in [both, third, new] {
        store.close().await;
    }
}

/// An instance that the others did not wait for ends, instead of storing what they do not find.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_lacks_a_stored_key_ends() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let cluster = Cluster {
        url,
        image: Image::new(PARTITIONS, 1),
        folder: tempfile::tempdir().unwrap(),
    };
    let old = cluster.start(&[1]).await.unwrap();
    let both = cluster.start(&[2, 1]).await.unwrap();
    let registry = both.shared.catalog.registry();
    let new = both.shared.sealer.first();
    registry.propose_key(new).await.unwrap();
    let alone = || std::future::ready(Ok(true)).boxed();
    registry.activate_key(new, &alone).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), old.ended()).await;
    let failure = ended.unwrap().unwrap().to_string();
    assert!(failure.contains(new), "{failure}");
    both.close().await;
}
