//! The store against a model: random appends, deliveries, configurations, deletions, restarts and
//! crashes.

mod accepted_loss;
mod audit;
mod keys;
mod regressions;
mod retention;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proptest::prelude::*;
use sea_orm::ConnectionTrait;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::domain::{
    delivery::{Batch, BatchLimits, Delivery, RecordOutcome},
    event::testing::{self, STORED_LENGTH},
    status::Fault,
};

const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Bytes of one event of [`segments`].
const EVENT_BYTES: u64 = STORED_LENGTH as u64;
/// The same with the length before it.
const SEGMENT_BYTES: usize = STORED_LENGTH + 4;
const LIMITS: BatchLimits = BatchLimits {
    records: 7,
    bytes: 1 << 20,
    overhead_bytes: 0,
};
/// More chunks than a test has.
const ALL_CHUNKS: usize = 10_000;

fn options(folder: &Path, log_tail_bytes: usize) -> StoreOptions {
    StoreOptions {
        data_dir: folder.to_owned(),
        disk_reserve_bytes: 1 << 20,
        log_tail_bytes,
        commit_linger: Duration::ZERO,
        settle_linger: Duration::from_millis(1),
        failing_after: Duration::from_secs(60),
        backlog_bytes: u64::MAX,
        tombstones: 2,
        audit: AuditLimits {
            max_age: Duration::MAX,
            max_entries: u64::MAX,
        },
    }
}

fn key() -> Keyring {
    Keyring::parse(KEY).unwrap()
}

/// Opens a store that writes settlements soon.
async fn open(folder: &Path, log_tail_bytes: usize) -> Store {
    let store = Store::open(options(folder, log_tail_bytes), &key(), Gate::default()).await;
    store.unwrap()
}

/// Opens a store that writes settlements only with a move, a give-up or at the end. `wrap` may
/// replace its ledger.
async fn open_lazy(
    folder: &Path,
    log_tail_bytes: usize,
    wrap: impl FnOnce(Arc<dyn Ledger>) -> Arc<dyn Ledger>,
) -> Store {
    let options = StoreOptions {
        settle_linger: Duration::from_secs(3600),
        ..options(folder, log_tail_bytes)
    };
    let settings = SqliteOptions {
        data_dir: folder.to_owned(),
        disk_reserve_bytes: options.disk_reserve_bytes,
        settle_linger: Duration::ZERO,
    };
    let engine = Arc::new(sqlite::open(&settings).await.unwrap());
    let registry = RegistryOptions {
        partitions: 1,
        tombstones: options.tombstones,
        failing_after: options.failing_after,
    };
    let registry =
        SqlRegistry::open(sql::Database::Sqlite(engine.database().clone()), registry).await;
    let engines = Engines {
        log: Arc::clone(&engine) as Arc<dyn EventLog>,
        registry: Arc::new(registry.unwrap()),
        ledger: wrap(Arc::clone(&engine) as Arc<dyn Ledger>),
        ownership: engine,
    };
    let sealer = Sealer::new(&key()).unwrap();
    check_keys(&engines, &sealer).await.unwrap();
    Store::start(engines, &options, sealer, Gate::default())
        .await
        .unwrap()
}

async fn execute(folder: &Path, sql: &str) {
    let url = format!("sqlite://{}/siem-relay.sqlite?mode=rw", folder.display());
    let db = sea_orm::Database::connect(url).await.unwrap();
    db.execute_unprepared(sql).await.unwrap();
    db.close().await.unwrap();
}

/// Directory with what is durable at this moment, as a crash leaves it.
async fn crash(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let file = copy.path().join("siem-relay.sqlite");
    execute(folder, &format!("VACUUM INTO '{}'", file.display())).await;
    copy
}

fn organization(name: &str) -> OrganizationId {
    OrganizationId::new(name).unwrap()
}

fn configuration(name: &str) -> Configure {
    let external_id = format!("external-id-of-{name}");
    Configure {
        organization_id: organization(name),
        stream_arn: StreamArn::parse("arn:aws:kinesis:us-east-1:222222222222:stream/events")
            .unwrap(),
        role_arn: RoleArn::parse("arn:aws:iam::222222222222:role/relay").unwrap(),
        external_id: Some(ExternalId::parse(external_id).unwrap()),
        keep_previous: false,
        issued_only: false,
        etag: None,
        actor: Actor::named("test"),
    }
}

/// Decides that an organization has an integration.
pub(super) fn planned(
    organization_id: &OrganizationId,
) -> impl Fn(Option<&Registered>, &Keys) -> Result<ports::Planned, ConfigureError> + use<> {
    let configure = configuration(organization_id.as_str());
    move |existing, _: &Keys| {
        plan(
            existing,
            &configure,
            Sealer::new(&key())?.with_first(),
            now(),
        )
    }
}

async fn configure(store: &Store, name: &str) -> IntegrationId {
    let stored = store.configure(configuration(name)).await.unwrap();
    stored.integration.integration_id
}

async fn append(store: &Store, id: IntegrationId, count: u32) {
    let mut segments = Segments::default();
    for index in 0..count {
        let device = Uuid::from_u128(u128::from(index % 3));
        let pushed: Result<(), ()> = segments.push(id, |out| {
            testing::store(device, index, out);
            Ok(())
        });
        pushed.unwrap();
    }
    let durable = store.append(segments, None).await.unwrap();
    durable.await.unwrap();
}

fn owner(store: &Store, id: IntegrationId) -> Arc<partition::Owner> {
    store.shared.partitions.owner(id).unwrap()
}

/// Pending chunks without their segments. Unlike a read, it does not keep chunks from being
/// joined.
async fn states(store: &Store, id: IntegrationId) -> Vec<(Option<ports::Position>, Chunk)> {
    let owner = owner(store, id);
    let _no_moves = owner.lock_writes().await;
    owner.states(id, 1, ALL_CHUNKS).await.unwrap()
}

/// Sequences of the pending events of chunks, in order.
fn pending_of<'a>(chunks: impl IntoIterator<Item = &'a Chunk>) -> Vec<u64> {
    let chunks = chunks.into_iter();
    chunks
        .flat_map(|chunk| {
            let all = chunk.first_sequence..chunk.end_sequence();
            all.filter(|one| !chunk.settled.contains(*one) && !chunk.is_gap(*one))
        })
        .collect()
}

/// Sequences of the pending events, read chunk by chunk.
async fn read(store: &Store, id: IntegrationId) -> Vec<u64> {
    let (mut from, mut sequences) = (1, Vec::new());
    loop {
        let chunks = store.read(id, from, 1).await.unwrap();
        let Some(last) = chunks.last() else {
            return sequences;
        };
        from = last.end_sequence();
        sequences.extend(pending_of(&chunks));
    }
}

/// Outcomes of a batch by the bits.
fn outcomes(batch: &Batch, bits: u64) -> Vec<RecordOutcome> {
    let outcome = |at: usize| match bits >> (at % 64) & 1 {
        1 => RecordOutcome::Accepted {
            shard_id: "shardId-000000000000".into(),
            sequence_number: "1".into(),
        },
        _ => RecordOutcome::Failed(Fault::of_record("InternalFailure", None)),
    };
    (0..batch.records.len()).map(outcome).collect()
}

/// Reads about `max_bytes` from a sequence on and settles one batch of it by the bits. Returns the
/// delivered sequences.
async fn deliver(
    store: &Store,
    id: IntegrationId,
    from: u64,
    max_bytes: usize,
    bits: u64,
) -> Vec<u64> {
    let mut delivery = Delivery::new(id);
    for chunk in store.read(id, from, max_bytes).await.unwrap() {
        assert!(!chunk.is_finished(), "a finished chunk was read");
        delivery.load(chunk).unwrap();
    }
    let Some(batch) = delivery.next_batch(LIMITS) else {
        return Vec::new();
    };
    let sequences = batch.records.iter().map(|record| record.sequence);
    let accepted = sequences.enumerate().filter(|(at, _)| bits >> at & 1 == 1);
    let accepted = accepted.map(|(_, sequence)| sequence).collect();
    let outcomes = outcomes(&batch, bits);
    let settlement = delivery.settle(batch, &outcomes, true);
    store.settle(id, Some(settlement), None);
    accepted
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize, u32),
    Deliver(usize, usize, u64),
    Read(usize),
    Configure(usize),
    Delete(usize),
    Restart,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![Just(1usize), Just(1000), Just(1 << 20)];
    prop_oneof![
        6 => (0..2usize, 1..20u32).prop_map(|(which, count)| Step::Append(which, count)),
        6 => (0..2usize, bytes, any::<u64>())
            .prop_map(|(which, bytes, bits)| Step::Deliver(which, bytes, bits)),
        1 => (0..2usize).prop_map(Step::Read),
        2 => (0..2usize).prop_map(Step::Configure),
        1 => (0..2usize).prop_map(Step::Delete),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// Integration of the model. What is accepted and not pending is delivered.
struct Expected {
    id: IntegrationId,
    accepted: u64,
    pending: BTreeSet<u64>,
}

impl Expected {
    async fn check(&self, store: &Store) {
        let pending = self.pending.len() as u64;
        let progress = store.progress(self.id).unwrap();
        assert_eq!(progress.accepted(), self.accepted);
        assert_eq!(progress.delivered, self.accepted - pending);
        assert_eq!(progress.pending(), pending);
        assert_eq!(progress.pending_bytes, pending * EVENT_BYTES);
        let shown = store.get(self.id).unwrap().progress;
        assert!(shown.delivered <= progress.delivered);
        let states = states(store, self.id).await;
        assert!(
            states
                .iter()
                .map(|one| &one.1)
                .is_sorted_by_key(|one| one.first_sequence)
        );
        let found = pending_of(states.iter().map(|one| &one.1));
        assert!(found.iter().eq(&self.pending), "{found:?}");
        let bytes: u64 = states.iter().map(|one| one.1.pending_bytes).sum();
        assert_eq!(bytes, progress.pending_bytes);
        let oldest = store.oldest_pending(&[self.id]).await.unwrap();
        assert!(oldest.contains_key(&self.id) || pending == 0);
    }
}

/// The model, and the store that is tested.
struct Run {
    folder: TempDir,
    store: Store,
    log_tail_bytes: usize,
    lazy: bool,
    model: BTreeMap<usize, Expected>,
}

impl Run {
    async fn open(folder: &Path, log_tail_bytes: usize, lazy: bool) -> Store {
        match lazy {
            true => open_lazy(folder, log_tail_bytes, |ledger| ledger).await,
            false => open(folder, log_tail_bytes).await,
        }
    }

    async fn step(&mut self, step: Step) {
        let names = ["acme", "globex"];
        let store = self.store.clone();
        match step {
            Step::Append(which, count) => {
                if let Some(expected) = self.model.get_mut(&which) {
                    append(&store, expected.id, count).await;
                    let first = expected.accepted + 1;
                    expected.accepted += u64::from(count);
                    expected.pending.extend(first..=expected.accepted);
                }
            }
            Step::Deliver(which, bytes, bits) => {
                if let Some(expected) = self.model.get_mut(&which) {
                    for sequence in deliver(&store, expected.id, 1, bytes, bits).await {
                        assert!(expected.pending.remove(&sequence), "delivered twice");
                    }
                }
            }
            Step::Read(which) => {
                if let Some(expected) = self.model.get(&which) {
                    assert!(read(&store, expected.id).await.iter().eq(&expected.pending));
                }
            }
            Step::Configure(which) => {
                let id = configure(&store, names[which]).await;
                let expected = self.model.entry(which).or_insert(Expected {
                    id,
                    accepted: 0,
                    pending: BTreeSet::new(),
                });
                assert_eq!(id, expected.id);
            }
            Step::Delete(which) => {
                let deleted = store.delete(organization(names[which]), None, Actor::named("test"));
                let deleted = deleted.await.unwrap();
                let expected = self.model.remove(&which);
                assert_eq!(deleted, expected.as_ref().map(|one| one.id));
                if let Some(expected) = expected {
                    let progress = store.discard(expected.id).progress;
                    assert_eq!(progress.accepted(), expected.accepted);
                    assert_eq!(progress.discarded, expected.pending.len() as u64);
                    assert_eq!((progress.pending(), progress.pending_bytes), (0, 0));
                    // Events of what was deleted meanwhile are not kept.
                    append(&store, expected.id, 3).await;
                    assert!(store.get(expected.id).is_none());
                }
            }
            Step::Restart => {
                store.close().await;
                self.store = Self::open(self.folder.path(), self.log_tail_bytes, self.lazy).await;
            }
            Step::Crash => self.crash().await,
        }
    }

    /// Deliveries that are not durable are lost, but nothing else.
    async fn crash(&mut self) {
        let snapshot = |store: &Store, id| store.get(id).unwrap().progress;
        let ids = self.model.values().map(|expected| expected.id);
        let shown: Vec<Progress> = ids.map(|id| snapshot(&self.store, id)).collect();
        let copy = crash(self.folder.path()).await;
        self.store.close().await;
        self.store = Self::open(copy.path(), self.log_tail_bytes, self.lazy).await;
        self.folder = copy;
        for (expected, shown) in self.model.values_mut().zip(shown) {
            let progress = snapshot(&self.store, expected.id);
            assert!(progress.delivered >= shown.delivered);
            let states = states(&self.store, expected.id).await;
            let pending: BTreeSet<u64> = pending_of(states.iter().map(|one| &one.1))
                .into_iter()
                .collect();
            assert!(pending.is_superset(&expected.pending), "lost");
            assert!(pending.iter().all(|one| *one <= expected.accepted));
            expected.pending = pending;
        }
    }

    async fn check(&self) {
        for (which, name) in ["acme", "globex"].into_iter().enumerate() {
            let expected = self.model.get(&which);
            assert_eq!(self.store.id_of(name), expected.map(|one| one.id));
            if let Some(expected) = expected {
                expected.check(&self.store).await;
            }
        }
    }
}

async fn run(steps: Vec<Step>, log_tail_bytes: usize, lazy: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run {
        store: Run::open(folder.path(), log_tail_bytes, lazy).await,
        folder,
        log_tail_bytes,
        lazy,
        model: BTreeMap::new(),
    };
    run.step(Step::Configure(0)).await;
    for step in steps {
        run.step(step).await;
        run.check().await;
    }
    // Everything is delivered once, and the memory is accounted for.
    for expected in run.model.values_mut() {
        while !expected.pending.is_empty() {
            for sequence in deliver(&run.store, expected.id, 1, 1 << 20, u64::MAX).await {
                assert!(expected.pending.remove(&sequence), "delivered twice");
            }
        }
        assert_eq!(owner(&run.store, expected.id).bytes_of(expected.id), 0);
    }
    run.check().await;
    assert_eq!(run.store.shared.backpressure.excess(usize::MAX), None);
    run.step(Step::Restart).await;
    run.check().await;
    run.store.close().await;
}

fn block_on(run: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(run);
}

/// Budgets of the tail: moves always, sometimes or never.
fn tail_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(7 * SEGMENT_BYTES), Just(1 << 20)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn does_what_the_model_does(
        steps in prop::collection::vec(step(), 1..40),
        log_tail_bytes in tail_bytes(),
        lazy in any::<bool>(),
    ) {
        block_on(run(steps, log_tail_bytes, lazy));
    }
}
