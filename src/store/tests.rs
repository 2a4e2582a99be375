//! The store against a model: random appends, settlements, configurations and
//! deletions, with restarts between them.

mod give_way;
mod newer;
mod packs;
mod progress;
mod read;
mod retention;
mod status;
mod together;

use std::{collections::BTreeMap, path::Path, time::Duration};

use proptest::prelude::*;
use sea_orm::ConnectionTrait;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::domain::{
    arn::{RoleArn, StreamArn},
    delivery::{BatchLimits, Delivery, Outcome, Settlement},
    event::testing::{self, STORED_LENGTH},
    segment::Segments,
    status::{Cause, Fault, Observation, Reason, Stage, Status},
};

const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Of one event of [`segments`] in the log.
const EVENT_BYTES: u64 = STORED_LENGTH as u64;
/// The same with the length that is before it.
const SEGMENT_BYTES: usize = STORED_LENGTH + 4;
const LIMITS: BatchLimits = BatchLimits {
    records: 7,
    bytes: 1 << 20,
    overhead_bytes: 0,
};

fn options(folder: &Path, log_tail_bytes: usize) -> StoreOptions {
    StoreOptions {
        data_dir: folder.to_owned(),
        disk_reserve_bytes: 64 << 20,
        log_tail_bytes,
        commit_linger: Duration::ZERO,
        settle_linger: Duration::from_millis(1),
        failing_after: Duration::from_secs(60),
        tombstones: 2,
    }
}

async fn open(folder: &Path, log_tail_bytes: usize) -> Store {
    let key = MasterKey::from_hex(KEY).unwrap();
    let store = Store::open(options(folder, log_tail_bytes), key).await;
    store.unwrap()
}

fn configuration(organization: &str) -> Configure {
    Configure {
        organization_id: OrganizationId::new(organization).unwrap(),
        stream_arn: StreamArn::parse("arn:aws:kinesis:us-east-1:222222222222:stream/events")
            .unwrap(),
        role_arn: RoleArn::parse("arn:aws:iam::222222222222:role/relay").unwrap(),
        external_id: Some(ExternalId::parse(format!("external-id-of-{organization}")).unwrap()),
        keep_previous: false,
        issued_only: false,
        etag: None,
        caller: "test".into(),
    }
}

/// Events of integrations, so many of each.
fn segments(of: impl IntoIterator<Item = (IntegrationKey, u32)>) -> Segments {
    let mut segments = Segments::default();
    for (key, count) in of {
        for index in 0..count {
            let device = Uuid::from_u128(u128::from(index % 3));
            let pushed: Result<(), ()> = segments.push(key, |out| {
                testing::store(device, index, out);
                Ok(())
            });
            pushed.unwrap();
        }
    }
    segments
}

async fn append(store: &Store, organization: &str, count: u32) -> bool {
    let Some(key) = store.key_of(organization) else {
        return false;
    };
    let durable = store.append(segments([(key, count)]), None).await;
    durable.unwrap().await.unwrap() == count
}

async fn settle(store: &Store, key: IntegrationKey, settlement: Settlement) {
    let (done, settled) = oneshot::channel();
    let settle = Settle {
        key,
        settlement,
        observed: None,
        tells: Tells::Waiting(done),
    };
    store.settle(settle).await;
    settled.await.unwrap();
}

/// Reads the log from its start and settles one batch of it by the bits.
async fn deliver(store: &Store, organization: &str, bits: u64) -> u64 {
    let Some(key) = store.key_of(organization) else {
        return 0;
    };
    let mut delivery = Delivery::default();
    for chunk in store.read_log(key, 1, 1 << 20).await.unwrap() {
        assert_eq!(
            delivery.load(chunk),
            None,
            "a finished chunk is still there"
        );
    }
    let Some(batch) = delivery.next_batch(LIMITS) else {
        return 0;
    };
    let outcomes: Vec<Outcome> = (0..batch.items.len())
        .map(|at| match bits >> at & 1 {
            1 => Outcome::Accepted,
            _ => Outcome::Failed,
        })
        .collect();
    let settlement = delivery.settle(batch, &outcomes);
    let count = settlement.accepted;
    settle(store, key, settlement).await;
    count
}

/// Reads all that is pending: sequences in order.
async fn pending(store: &Store, key: IntegrationKey) -> Vec<u64> {
    let (mut from, mut sequences) = (1, Vec::new());
    loop {
        let chunks = store.read_log(key, from, 1).await.unwrap();
        let Some(last) = chunks.last() else {
            return sequences;
        };
        from = last.first_sequence + last.entries.len() as u64;
        for chunk in chunks {
            let mut delivery = Delivery::default();
            delivery.load(chunk);
            let all = BatchLimits {
                records: usize::MAX,
                ..LIMITS
            };
            let batch = delivery.next_batch(all).unwrap();
            sequences.extend(batch.items.iter().map(|item| item.sequence));
            let _settled = delivery.settle(batch, &[]);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize, u32),
    Deliver(usize, u64),
    Configure(usize),
    Delete(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, 1..20u32).prop_map(|(which, count)| Step::Append(which, count)),
        4 => (0..2usize, any::<u64>()).prop_map(|(which, bits)| Step::Deliver(which, bits)),
        1 => (0..2usize).prop_map(Step::Configure),
        1 => (0..2usize).prop_map(Step::Delete),
        1 => Just(Step::Restart),
    ]
}

#[derive(Clone, Copy, Default)]
struct Expected {
    accepted: u64,
    delivered: u64,
}

async fn check(store: &Store, model: &BTreeMap<usize, Expected>, organizations: [&str; 2]) {
    assert!(store.tail.is_sound());
    for (which, organization) in organizations.iter().enumerate() {
        let snapshot = store.find(organization);
        let Some(expected) = model.get(&which) else {
            assert!(snapshot.is_none());
            continue;
        };
        let snapshot = snapshot.unwrap();
        let progress = snapshot.progress;
        assert_eq!(
            (progress.accepted(), progress.delivered, progress.pending()),
            (
                expected.accepted,
                expected.delivered,
                expected.accepted - expected.delivered
            )
        );
        let sequences = pending(store, snapshot.integration.key).await;
        assert_eq!(sequences.len() as u64, progress.pending());
        assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(progress.pending_bytes, sequences.len() as u64 * EVENT_BYTES);
        let key = snapshot.integration.key;
        let oldest = store.oldest_pending(&[key]).await.unwrap();
        assert_eq!(oldest.contains_key(&key), progress.pending() > 0);
    }
}

async fn run(steps: Vec<Step>, log_tail_bytes: usize) {
    let organizations = ["acme", "globex"];
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), log_tail_bytes).await;
    let mut model: BTreeMap<usize, Expected> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Append(which, count) => {
                let accepted = append(&store, organizations[which], count).await;
                assert_eq!(accepted, model.contains_key(&which));
                if let Some(expected) = model.get_mut(&which) {
                    expected.accepted += u64::from(count);
                }
            }
            Step::Deliver(which, bits) => {
                let delivered = deliver(&store, organizations[which], bits).await;
                if let Some(expected) = model.get_mut(&which) {
                    expected.delivered += delivered;
                }
            }
            Step::Configure(which) => {
                store
                    .configure(configuration(organizations[which]))
                    .await
                    .unwrap();
                model.entry(which).or_default();
            }
            Step::Delete(which) => {
                let id = OrganizationId::new(organizations[which]).unwrap();
                let deleted = store.delete(id, "test".into()).await.unwrap();
                let expected = model.remove(&which);
                assert_eq!(deleted.is_some(), expected.is_some());
                if let (Some(deleted), Some(expected)) = (deleted, expected) {
                    assert_eq!(deleted.progress.pending(), 0);
                    assert_eq!(
                        deleted.progress.discarded,
                        expected.accepted - expected.delivered
                    );
                }
            }
            Step::Restart => {
                store.close().await;
                store.ended().await;
                store = open(folder.path(), log_tail_bytes).await;
            }
        }
        check(&store, &model, organizations).await;
    }
    store.close().await;
}

fn block_on(run: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(run);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn does_what_the_model_does(
        steps in prop::collection::vec(step(), 1..40),
        log_tail_bytes in prop_oneof![Just(0usize), Just(600), Just(1 << 20)],
    ) {
        block_on(run(steps, log_tail_bytes));
    }
}

fn denied() -> Observation {
    Observation::Failed(Fault {
        stage: Stage::AssumeRole,
        cause: Cause::Service {
            code: "AccessDenied".into(),
            http_status: 403,
        },
        request_id: Some("request-1".into()),
    })
}

async fn observe(store: &Store, organization: &str, version: u64, observation: Observation) {
    let (done, settled) = oneshot::channel();
    let settle = Settle {
        key: store.key_of(organization).unwrap(),
        settlement: Settlement::default(),
        observed: Some(Observed {
            version,
            at: Timestamp::now(),
            observation,
            next_retry: NextRetry::Never,
        }),
        tells: Tells::Waiting(done),
    };
    store.settle(settle).await;
    settled.await.unwrap();
}

async fn audited(store: &Store, action: &str) -> i64 {
    let sql = "SELECT COUNT(*) AS count FROM audit WHERE action = $1";
    let statement = rows::statement(&store.reader, sql, [action.into()]);
    let row = store.reader.query_one_raw(statement).await.unwrap();
    row.unwrap().try_get("", "count").unwrap()
}

#[tokio::test]
async fn a_status_change_is_one_revision_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20).await;
    let created = store.configure(configuration("acme")).await.unwrap();
    observe(&store, "acme", 1, denied()).await;
    let refused = store.find("acme").unwrap();
    assert_eq!(refused.status.status, Status::Unauthorized);
    assert!(refused.revision > created.revision);
    observe(&store, "acme", 1, denied()).await;
    assert_eq!(store.find("acme").unwrap().revision, refused.revision);
    assert_eq!(audited(&store, "status").await, 1);
    assert_eq!(audited(&store, "create").await, 1);
    store.close().await;
    store.ended().await;
    let store = open(folder.path(), 1 << 20).await;
    let again = store.find("acme").unwrap();
    assert_eq!(again.revision, refused.revision);
    assert_eq!(again.status.reason, Some(Reason::AssumeRoleDenied));
    assert_eq!(again.status.aws_request_id.as_deref(), Some("request-1"));
    assert_eq!(*store.revision().borrow(), refused.revision);
    store.close().await;
}

#[tokio::test]
async fn what_an_old_configuration_met_is_void() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    let replaced = store.configure(configuration("acme")).await.unwrap();
    assert_eq!(replaced.integration.version, 2);
    observe(&store, "acme", 1, denied()).await;
    assert_eq!(store.find("acme").unwrap().status.status, Status::Unknown);
    observe(&store, "acme", 2, denied()).await;
    let status = store.find("acme").unwrap().status;
    assert_eq!(status.status, Status::Unauthorized);
    store.close().await;
}

#[tokio::test]
async fn forgets_old_deletions_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    for organization in ["one", "two", "three"] {
        store.configure(configuration(organization)).await.unwrap();
        let id = OrganizationId::new(organization).unwrap();
        store.delete(id, "test".into()).await.unwrap().unwrap();
    }
    let seen = store.changes_after(0, 100, |_| true);
    assert_eq!(seen.changes.len(), 2, "two deletions are remembered");
    assert_eq!(seen.forgotten_to, 2);
    store.close().await;
    store.ended().await;
    let store = open(folder.path(), 0).await;
    assert_eq!(store.changes_after(0, 100, |_| true).forgotten_to, 2);
    store.close().await;
}

#[tokio::test]
async fn a_directory_is_used_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    let second = Store::open(options(folder.path(), 0), MasterKey::from_hex(KEY).unwrap()).await;
    assert!(matches!(second.err(), Some(OpenError::InUse(_))));
    store.close().await;
}

#[tokio::test]
async fn events_of_what_was_deleted_meanwhile_are_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20).await;
    let mut of = Vec::new();
    for organization in ["gone", "here"] {
        store.configure(configuration(organization)).await.unwrap();
        of.push((store.key_of(organization).unwrap(), 3));
    }
    let gone = OrganizationId::new("gone").unwrap();
    store.delete(gone, "test".into()).await.unwrap().unwrap();
    let durable = store.append(segments(of), None).await.unwrap();
    assert_eq!(durable.await.unwrap(), 3);
    assert_eq!(store.find("here").unwrap().progress.pending(), 3);
    assert!(store.find("gone").is_none());
    store.close().await;
}
