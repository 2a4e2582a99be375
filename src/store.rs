//! Storage: the log of accepted events, the integrations with their status, and the ledger of
//! what became of every event. [`ports`] is the contract of the engines, [`Store`] what the rest
//! of the service uses.

mod accept_loss;
mod appender;
mod audit;
mod backpressure;
mod catalog;
mod codec;
#[cfg(test)]
mod conformance;
mod error;
mod give_up;
mod group;
#[cfg(feature = "kafka")]
mod kafka;
mod membership;
#[cfg(test)]
mod memory;
mod move_out;
mod partition;
mod plan;
pub mod ports;
mod postgres;
mod queue;
mod replica;
mod rotation;
mod secret;
mod shared;
mod sql;
mod sqlite;
#[cfg(test)]
mod tests;
mod work;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::join_all};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, mpsc, watch};

#[cfg(feature = "kafka")]
pub use self::kafka::{
    Certificate, KafkaError, KafkaOptions, KafkaSecurity, LogCredentials, Mechanism, Password, Tls,
    Token, TokenIssuer, Tokens, create_topic,
};
pub use self::{
    accept_loss::AcceptedLoss,
    appender::MemoryHold,
    audit::AuditPage,
    error::{ConfigureError, Failure, IssueError, StoreError},
    membership::Health,
    move_out::{MoveError, Moved},
    ports::{AuditLimits, AuditPosition, AuditQuery, InstanceKeys, NextRetry, Observed, Tombstone},
    postgres::{MoveInError, OpenError as DatabaseError, PostgresOptions},
    rotation::{KeyReport, KeyState, KeysReport},
    secret::{KeyError, Keyring, KeyringError},
    shared::{LogOptions, SharedError, SharedOptions},
    sqlite::{Inspection, OpenError},
    work::Attention,
};
use self::{
    appender::Appender,
    audit::Audit,
    backpressure::Backpressure,
    catalog::Catalog,
    membership::Membership,
    partition::{Levels, Partitions, Pending},
    plan::plan,
    ports::{
        Availability, EventLog, Keys, Ledger, LedgerRow, Ownership, Registered, Registry,
        RegistryChange,
    },
    rotation::Rotation,
    secret::{Sealer, random_external_id},
    sql::{RegistryOptions, SqlRegistry},
    sqlite::SqliteOptions,
    work::WorkFeed,
};
use crate::domain::{
    arn::{RoleArn, StreamArn},
    audit::Actor,
    chunk::Chunk,
    delivery::Settlement,
    event::GapReason,
    external_id::ExternalId,
    integration::{Integration, IntegrationId, Progress, Snapshot},
    map::{Map, Set},
    organization::OrganizationId,
    rights::Rights,
    segment::Segments,
    status::{Status, StatusDetail},
};
use crate::{
    gate::Gate,
    metrics::{Check, Organization, Sample},
};

/// Time between attempts to write what is pending at the end.
const CLOSE_RETRY: Duration = Duration::from_millis(500);
/// Time between steps of the removal of deleted integrations, which others' writes use.
const REMOVE_PAUSE: Duration = Duration::from_millis(100);
/// Time after a failed removal.
const REMOVE_RETRY: Duration = Duration::from_secs(10);
/// Deleted integrations whose final counts are kept.
const MAX_DISCARDED: usize = 1000;
/// Longest wait of a Delete for other instances: the longest lease of one that does not answer
/// lapses earlier.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(45);

/// Longest wait of a sample for the storage.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Configuration to store.
#[derive(Clone, Debug)]
pub struct Configure {
    /// Organization that the integration belongs to.
    pub organization_id: OrganizationId,
    /// Stream that the events are written to.
    pub stream_arn: StreamArn,
    /// Role to assume.
    pub role_arn: RoleArn,
    /// None keeps the stored one.
    pub external_id: Option<ExternalId>,
    /// The stored external ID may be used until an AssumeRole with the new one works.
    pub keep_previous: bool,
    /// Only an external ID that was issued to the organization is allowed.
    pub issued_only: bool,
    /// If set, the etag that the stored configuration must have.
    pub etag: Option<String>,
    /// Author, for the audit.
    pub actor: Actor,
}

/// A deleted integration with its final counts.
#[derive(Clone, Copy, Debug)]
pub struct Deleted {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Final counts; nothing is pending.
    pub progress: Progress,
}

/// A change of an integration or its status. Only the newest of each integration is kept.
#[derive(Clone, Debug)]
pub enum Change {
    /// It was created, or its status changed.
    Current(Snapshot),
    /// It was deleted.
    Deleted(Tombstone),
}

/// Changes in commit order.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Deletions up to this revision may be missing.
    pub forgotten_to: u64,
    /// Last revision that was looked at. If it is the one that was asked for, nothing is left.
    pub seen_to: u64,
    /// The changes with their revisions.
    pub changes: Vec<(u64, Change)>,
}

/// Events to give up: they count as expired, and gap events replace them.
#[derive(Clone, Debug)]
pub struct GiveUp {
    /// The integration.
    pub integration_id: IntegrationId,
    /// The events.
    pub which: Which,
    /// Sequences of records that are in flight, which are not given up, with the stored bytes of
    /// each.
    pub in_flight: BTreeMap<u64, u32>,
}

/// Choice of events to give up.
#[derive(Clone, Debug)]
pub enum Which {
    /// Events that AWS refuses, with the stored bytes of each.
    Refused(BTreeMap<u64, u32>),
    /// The oldest events that retention does not keep.
    Expired(Keep),
    /// The events of a chunk that cannot be read, given by its first sequence.
    Damaged(u64),
}

/// Part of an integration's pending events that retention keeps.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Sequence to begin with; what is before it was looked at already.
    pub from: u64,
    /// Chunks that were accepted up to this time are not kept.
    pub accepted_before: Timestamp,
    /// Pending bytes up to which nothing is removed because of size.
    pub max_bytes: u64,
    /// Bytes that are kept if there are more than `max_bytes`.
    pub bytes: u64,
    /// Most chunks of one step; at least 2.
    pub chunks: usize,
}

/// Events that were given up.
#[derive(Clone, Debug, Default)]
pub struct GivenUp {
    /// Changed chunks, without their segments.
    pub chunks: Vec<Chunk>,
    /// Number of events that were given up.
    pub expired: u64,
    /// Reason, if events expired or were damaged.
    pub reason: Option<GapReason>,
    /// Sequence from which there may be more to expire.
    pub next: Option<u64>,
}

/// Settings of the store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Directory of the database. Created if it is missing.
    pub data_dir: PathBuf,
    /// Bytes of the disk that events leave free; at most an eighth of the disk.
    pub disk_reserve_bytes: u64,
    /// Budget of the tail: memory for accepted events that are not delivered, in bytes.
    pub log_tail_bytes: usize,
    /// Time that an append waits for further requests.
    pub commit_linger: Duration,
    /// Longest time until a settlement is written.
    pub settle_linger: Duration,
    /// Time without a delivery after which throttling or an outage becomes the status.
    pub failing_after: Duration,
    /// Limit on the bytes of all backlogs, in shared storage.
    pub backlog_bytes: u64,
    /// Deletions that are remembered for status streams that resume.
    pub tombstones: usize,
    /// Bounds of the audit.
    pub audit: AuditLimits,
}

/// Engines of a store.
struct Engines {
    log: Arc<dyn EventLog>,
    registry: Arc<dyn Registry>,
    ledger: Arc<dyn Ledger>,
    ownership: Arc<dyn Ownership>,
}

/// The store. Cheap to clone: clones are the same store.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    appender: Appender,
}

struct Shared {
    log: Arc<dyn EventLog>,
    ledger: Arc<dyn Ledger>,
    catalog: Arc<Catalog>,
    partitions: Arc<Partitions>,
    work: Arc<WorkFeed>,
    backpressure: Arc<Backpressure>,
    sealer: Arc<Sealer>,
    rotation: Arc<Rotation>,
    has_capacity: watch::Receiver<bool>,
    membership: Arc<Membership>,
    /// Final counts of the last deleted integrations.
    discarded: Mutex<Discarded>,
    /// Notified when an integration was deleted.
    deleted: Arc<Notify>,
    audit: Arc<Audit>,
    /// Acceptance times of the oldest events of backlogs, as a sample read them last.
    backlog_ages: Mutex<HashMap<IntegrationId, Timestamp>>,
}

/// Final counts of the last deleted integrations, for a Delete that is answered later.
#[derive(Default)]
struct Discarded {
    counts: Map<IntegrationId, Progress>,
    order: VecDeque<IntegrationId>,
}

impl Discarded {
    /// Keeps counts. The first that are known are final.
    fn put(&mut self, id: IntegrationId, progress: Progress) {
        if self.counts.contains_key(&id) {
            return;
        }
        self.counts.insert(id, progress);
        self.order.push_back(id);
        if self.order.len() > MAX_DISCARDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
    }
}

impl Store {
    /// Opens the embedded store in a directory, and starts its tasks on the current runtime.
    /// `gate` admits the calls for integrations, which end when this instance may not deliver.
    pub async fn open(
        options: StoreOptions,
        keyring: &Keyring,
        gate: Gate,
    ) -> Result<Self, OpenError> {
        let failed = |source| open_error(&options, source);
        let sealer = Sealer::new(keyring).map_err(failed)?;
        let (_, engines) = Self::embedded(&options).await?;
        let missing = async {
            let missing = check_keys(&engines, &sealer).await?;
            let registry = &engines.registry;
            if missing.is_empty() || !registry.key_usage().await?.is_empty() {
                return Ok(missing);
            }
            // Nothing is stored under the keys that are missing.
            registry.propose_key(sealer.first()).await?;
            let alone = || std::future::ready(Ok(true)).boxed();
            registry.activate_key(sealer.first(), &alone).await?;
            registry.retire_keys(now()).await?;
            Ok(Vec::new())
        };
        let opened = match missing.await {
            Ok(missing) if missing.is_empty() => {
                let store = Self::start(engines, &options, sealer, gate).await;
                let store = store.map_err(failed)?;
                store.prune_audit(options.audit);
                return Ok(store);
            }
            Ok(missing) => OpenError::MissingKeys {
                path: options.data_dir.clone(),
                missing,
            },
            Err(error) => failed(error),
        };
        engines.log.close().await;
        Err(opened)
    }

    /// Looks at the embedded database without changing it, also while another process uses it.
    /// None if there is none.
    ///
    /// # Errors
    ///
    /// As [`Store::open`], for what can be seen without writing.
    pub async fn inspect(options: &StoreOptions) -> Result<Option<Inspection>, OpenError> {
        sqlite::inspect(&options.data_dir, options.disk_reserve_bytes).await
    }

    /// Ids of the keys that the external IDs of a database need and a keyring lacks.
    ///
    /// # Errors
    ///
    /// If the keyring cannot be used.
    pub fn missing_keys(
        keyring: &Keyring,
        inspection: &Inspection,
    ) -> Result<Vec<Box<str>>, StoreError> {
        Ok(Sealer::new(keyring)?.missing(&inspection.keys))
    }

    /// Accepts that entries of the embedded log are lost, see [`AcceptedLoss`]. None without a
    /// `window` if none are. No other process may use the directory.
    pub async fn accept_loss(
        options: &StoreOptions,
        window: Option<u64>,
    ) -> Result<Option<AcceptedLoss>, OpenError> {
        let (_, engines) = Self::embedded(options).await?;
        let accepted = shared::accept(engines, 0, window).await;
        accepted.map_err(|source| open_error(options, source))
    }

    /// Opens the embedded engines.
    async fn embedded(options: &StoreOptions) -> Result<(Arc<sqlite::Engine>, Engines), OpenError> {
        let failed = |source| open_error(options, source);
        let engine = sqlite::open(&SqliteOptions {
            data_dir: options.data_dir.clone(),
            disk_reserve_bytes: options.disk_reserve_bytes,
            settle_linger: options.settle_linger,
        })
        .await?;
        let registry = RegistryOptions {
            partitions: 1,
            tombstones: options.tombstones,
            failing_after: options.failing_after,
        };
        let registry =
            SqlRegistry::open(sql::Database::Sqlite(engine.database().clone()), registry).await;
        let engine = Arc::new(engine);
        let engines = Engines {
            log: Arc::clone(&engine) as Arc<dyn EventLog>,
            registry: Arc::new(registry.map_err(failed)?),
            ledger: Arc::clone(&engine) as Arc<dyn Ledger>,
            ownership: Arc::clone(&engine) as Arc<dyn Ownership>,
        };
        Ok((engine, engines))
    }

    /// Starts a store on engines.
    async fn start(
        engines: Engines,
        options: &StoreOptions,
        sealer: Sealer,
        gate: Gate,
    ) -> Result<Self, StoreError> {
        let Engines {
            log,
            registry,
            ledger,
            ownership,
        } = engines;
        // An instance counts for the confirmation of deletions before it reads the registry.
        ownership.poll(0).await?;
        let work = Arc::new(WorkFeed::default());
        let catalog = Catalog::load(registry, Arc::clone(&work), options.failing_after).await?;
        let catalog = Arc::new(catalog);
        let backpressure = Arc::new(Backpressure::new(options.log_tail_bytes));
        let (failures, failed_owners) = mpsc::unbounded_channel();
        let of_owners = partition::Shared {
            log: Arc::clone(&log),
            ledger: Arc::clone(&ledger),
            catalog: Arc::clone(&catalog),
            work: Arc::clone(&work),
            backpressure: Arc::clone(&backpressure),
            tail_bytes: options.log_tail_bytes,
            // The engine may wait as long again, to share the transaction of an append.
            linger: options.settle_linger / 2,
            failures,
        };
        let partitions = Arc::new(Partitions::new(Arc::clone(&catalog)));
        let sealer = Arc::new(sealer);
        let membership = Membership::start(
            Arc::clone(&ownership),
            of_owners,
            failed_owners,
            Arc::clone(&partitions),
            gate,
            options,
        );
        let membership = membership.await?;
        let rotation = Rotation::start(
            Arc::clone(&sealer),
            Arc::clone(&catalog),
            ownership,
            membership.is_shared(),
        );
        let deleted = Arc::<Notify>::default();
        catalog.spawn(remove_deleted(Arc::clone(&ledger), Arc::clone(&deleted)));
        let audit = Audit::start(&catalog);
        let appender = Appender::start(
            Arc::clone(&log),
            Arc::clone(&catalog),
            // With other instances, counts lag anyway, and an ack needs no reader.
            (!membership.is_shared()).then(|| Arc::clone(&partitions)),
            options.commit_linger,
        );
        let shared = Shared {
            has_capacity: capacity(log.availability()),
            log,
            ledger,
            catalog,
            partitions,
            work,
            backpressure,
            sealer,
            rotation,
            membership,
            discarded: Mutex::default(),
            deleted,
            audit,
            backlog_ages: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            appender,
        })
    }

    /// Completes what the registry has with the counts and times of the owner.
    fn snapshot(&self, registered: Registered) -> Snapshot {
        let id = registered.integration.integration_id;
        let owner = self.shared.partitions.owner(id);
        let mut status = registered.status;
        let progress = owner.and_then(|owner| {
            let (times, progress) = owner.shown(id)?;
            // A new configuration that was not attempted has no times.
            let is_new =
                status.status == Status::Unknown && times.version != registered.integration.version;
            if times.last_attempt.is_some() && !is_new {
                status = Arc::new(StatusDetail {
                    last_attempt: times.last_attempt,
                    last_delivery: times.last_delivery,
                    ..(*status).clone()
                });
            }
            Some(progress)
        });
        Snapshot {
            integration: registered.integration,
            status,
            progress: progress.unwrap_or(Progress::NEW),
            revision: registered.status_revision,
        }
    }

    fn look<T>(&self, id: IntegrationId, look: impl FnOnce(&Registered) -> T) -> Option<T> {
        self.shared.catalog.replica().look(id, look)
    }

    /// Returns the integration of an organization.
    pub fn find(&self, organization_id: &str) -> Option<Snapshot> {
        self.get(self.id_of(organization_id)?)
    }

    /// Returns the id of an organization's integration.
    pub fn id_of(&self, organization_id: &str) -> Option<IntegrationId> {
        self.shared.catalog.replica().id_of(organization_id)
    }

    /// Returns an integration with its status and counts.
    pub fn get(&self, id: IntegrationId) -> Option<Snapshot> {
        let registered = self.look(id, Registered::clone)?;
        Some(self.snapshot(registered))
    }

    /// Returns the configuration of an integration.
    pub fn integration(&self, id: IntegrationId) -> Option<Arc<Integration>> {
        self.look(id, |registered| Arc::clone(&registered.integration))
    }

    /// Returns the event counts of an integration, if this instance delivers for it.
    pub fn progress(&self, id: IntegrationId) -> Option<Progress> {
        let owner = self.shared.partitions.owner(id)?;
        let delivers = owner.delivers();
        delivers.then(|| owner.progress(id).unwrap_or(Progress::NEW))
    }

    /// Whether this instance delivers for an integration, and its lease leaves time for a call.
    pub fn may_deliver(&self, id: IntegrationId) -> bool {
        let owner = self.shared.partitions.owner(id);
        owner.is_some_and(|owner| owner.delivers()) && !self.shared.membership.has_lapsed()
    }

    /// Whether a call may be made for an integration that exists, by any instance.
    pub fn may_call(&self, id: IntegrationId) -> bool {
        self.exists(id) && !self.shared.membership.has_lapsed()
    }

    /// Whether this instance delivers for an integration.
    pub fn delivers(&self, id: IntegrationId) -> bool {
        let owner = self.shared.partitions.owner(id);
        owner.is_some_and(|owner| owner.delivers())
    }

    /// Announces all events of an integration to the worker again.
    pub fn announce(&self, id: IntegrationId) {
        let all = std::iter::once((id, Timestamp::UNIX_EPOCH));
        self.shared.work.all_pending(all);
    }

    /// Returns an error if this instance has lost contact with the database, so that another may
    /// own its partitions and nothing that it knows is certain.
    pub fn check_lease(&self) -> Result<(), StoreError> {
        match self.shared.membership.has_lapsed() {
            true => Err(StoreError::Failed(
                "this instance has lost contact with the database".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// Samples what this instance holds. `slow_after` is the age from which a pending event makes
    /// its organization one of the `worst`, of which the sample has at most so many. Reads the
    /// oldest events of backlogs and the ends of partitions from the storage, for at most
    /// two seconds; without an answer it has what was read before.
    pub async fn sample(&self, worst: usize, slow_after: Duration) -> Sample {
        let shared = &self.shared;
        let membership = &shared.membership;
        let health = *membership.health().borrow();
        let owners = shared.partitions.all();
        let levels: Vec<_> = owners.iter().map(|owner| owner.levels()).collect();
        let owned: Set<u32> = owners.iter().map(|owner| owner.lease.partition).collect();
        let (tail_bytes, tail_limit_bytes) = shared.backpressure.levels();
        let all = || levels.iter().flat_map(|levels| &levels.pending);
        let mut integrations: Map<_, u64> = Map::default();
        shared.catalog.replica().for_each(|registered| {
            if owned.contains(&registered.partition) {
                let status = &registered.status;
                *integrations
                    .entry((status.status, status.reason))
                    .or_default() += 1;
            }
        });
        let (ages, lag) = tokio::join!(
            self.ages(all().filter(|one| one.backlog_events > 0)),
            self.lag(&owners, &levels)
        );
        let now = Timestamp::now();
        let age = |one: &Pending| {
            let stored = ages.get(&one.integration_id).copied();
            let oldest = [stored, one.oldest].into_iter().flatten().min()?;
            // Another clock may have set the time of acceptance.
            Some(Duration::try_from(now.duration_since(oldest)).unwrap_or_default())
        };
        let mut waiting: Vec<_> = all().filter_map(|one| Some((age(one)?, one))).collect();
        waiting.sort_unstable_by_key(|(age, one)| (std::cmp::Reverse(*age), one.integration_id));
        let oldest_pending = waiting.first().map_or(Duration::ZERO, |(age, _)| *age);
        let organizations = waiting.into_iter().filter_map(|(oldest, one)| {
            self.look(one.integration_id, |registered| {
                let status = &registered.status;
                let is_bad = matches!(status.status, Status::Unauthorized | Status::Failing);
                (is_bad || oldest >= slow_after).then(|| Organization {
                    organization_id: registered.integration.organization_id.as_str().into(),
                    status: status.status,
                    reason: status.reason,
                    since: status.since,
                    pending_events: one.events,
                    pending_bytes: one.bytes,
                    oldest,
                })
            })?
        });
        let counted = integrations.into_iter();
        let counted = counted.map(|((status, reason), count)| (status, reason, count));
        Sample {
            pending_events: all().map(|one| one.events).sum(),
            pending_bytes: all().map(|one| one.bytes).sum(),
            oldest_pending,
            backlog_events: all().map(|one| one.backlog_events).sum(),
            backlog_bytes: all().map(|one| one.backlog_bytes).sum(),
            tail_bytes: tail_bytes as u64,
            tail_limit_bytes: tail_limit_bytes as u64,
            stored_backlogs: membership.stored_backlogs(),
            integrations: counted.collect(),
            worst: organizations.take(worst).collect(),
            log_bytes: levels.iter().map(|one| one.entry_bytes as u64).sum(),
            partition_lag: lag,
            flush_age: levels
                .iter()
                .filter_map(|one| one.unwritten_for)
                .max()
                .unwrap_or_default(),
            partitions: shared.log.partitions().into(),
            partitions_owned: owners.iter().filter(|owner| owner.delivers()).count() as u64,
            partitions_given_up: health.given_up as u64,
            lease_left: membership.lease_left(),
            checks: self.checks().into(),
            ..Sample::default()
        }
    }

    /// Whether this instance has what every request needs.
    pub fn checks(&self) -> [Check; 3] {
        let membership = &self.shared.membership;
        let availability = *self.shared.log.availability().borrow();
        [
            ("lease", !membership.has_lapsed()),
            // A full log has its own answer to publishes, and everything else works.
            ("log", availability != Availability::Unavailable),
            ("database", !membership.health().borrow().is_silent),
        ]
        .map(|(name, holds)| Check { name, holds })
    }

    /// Acceptance times of the oldest events of backlogs.
    async fn ages<'a>(
        &self,
        pending: impl Iterator<Item = &'a Pending>,
    ) -> HashMap<IntegrationId, Timestamp> {
        let ids: Vec<IntegrationId> = pending.map(|one| one.integration_id).collect();
        let stored = self.shared.ledger.oldest_pending(&ids);
        let stored = tokio::time::timeout(SAMPLE_TIMEOUT, stored).await;
        let known = self.shared.backlog_ages.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        if let Ok(Ok(ages)) = stored {
            *known = ages;
        }
        known.clone()
    }

    /// Entries of each partition that its owner has not read.
    async fn lag(&self, owners: &[Arc<partition::Owner>], levels: &[Levels]) -> Vec<(u32, u64)> {
        let log = &self.shared.log;
        let of_partition = owners.iter().zip(levels).map(|(owner, levels)| async {
            let partition = owner.lease.partition;
            let end = match tokio::time::timeout(SAMPLE_TIMEOUT, log.bounds(partition)).await {
                Ok(Ok(bounds)) => bounds.end,
                Ok(Err(_)) | Err(_) => log.known_end(partition),
            };
            (partition, end.0.saturating_sub(levels.read_to.0))
        });
        join_all(of_partition).await
    }

    /// Trouble of this instance with shared storage, as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.membership.health()
    }

    /// Returns once this instance has had no contact with the database for a time.
    pub async fn lapsed_for(&self, time: Duration) {
        self.shared.membership.lapsed_for(time).await;
    }

    /// Whether other instances may use the same storage.
    pub fn is_shared(&self) -> bool {
        self.shared.membership.is_shared()
    }

    /// Applies what other instances have committed before this call. Does nothing if there are
    /// none.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        self.check_lease()?;
        match self.is_shared() {
            true => self.shared.catalog.refresh().await,
            false => Ok(()),
        }
    }

    /// Completes snapshots of integrations that other instances deliver for with what those have
    /// written of counts and times.
    pub async fn complete(&self, snapshots: &mut [Snapshot]) -> Result<(), StoreError> {
        let partitions = &self.shared.partitions;
        let id_of = |snapshot: &Snapshot| snapshot.integration.integration_id;
        let missing = snapshots.iter().map(id_of);
        let missing: Vec<IntegrationId> = missing
            .filter(|id| partitions.owner(*id).is_none())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let rows = self.shared.ledger.rows_of(&missing).await?.into_iter();
        let rows: Map<IntegrationId, LedgerRow> =
            rows.map(|row| (row.integration_id, row)).collect();
        for snapshot in snapshots {
            let Some(row) = rows.get(&id_of(snapshot)) else {
                continue;
            };
            let checkpoint = &row.checkpoint;
            snapshot.progress = Progress {
                next_sequence: checkpoint.counts.accepted + 1,
                delivered: checkpoint.counts.delivered,
                expired: checkpoint.counts.expired,
                discarded: 0,
                pending_bytes: checkpoint.counts.pending_bytes,
            };
            let is_new = snapshot.status.status == Status::Unknown;
            if checkpoint.last_attempt.is_some() && !is_new {
                snapshot.status = Arc::new(StatusDetail {
                    last_attempt: checkpoint.last_attempt,
                    last_delivery: checkpoint.last_delivery,
                    ..(*snapshot.status).clone()
                });
            }
        }
        Ok(())
    }

    /// Whether this instance delivers for an integration, and so knows its counts of this moment.
    pub fn delivers_for(&self, id: IntegrationId) -> bool {
        self.shared.partitions.owner(id).is_some()
    }

    /// Returns the sequence that the integration's next event will get. None if it does not
    /// exist.
    pub fn next_sequence(&self, id: IntegrationId) -> Option<u64> {
        Some(self.progress(id)?.next_sequence)
    }

    /// Whether an integration exists.
    pub fn exists(&self, id: IntegrationId) -> bool {
        self.shared.catalog.replica().contains(id)
    }

    /// Returns the version of an integration's configuration.
    pub fn version(&self, id: IntegrationId) -> Option<u64> {
        self.shared.catalog.replica().version(id)
    }

    /// Returns the next `limit` integrations after an organization, in the order of their
    /// organizations, that `rights` cover and for whose status `keep` returns true.
    pub fn page(
        &self,
        after: &str,
        limit: usize,
        rights: &Rights,
        keep: impl Fn(&StatusDetail) -> bool,
    ) -> Vec<Snapshot> {
        let replica = self.shared.catalog.replica();
        let page = replica.page(after, limit, rights, |registered| keep(&registered.status));
        page.into_iter().map(|one| self.snapshot(one)).collect()
    }

    /// Returns the last `max` active integrations with a delivery and its time, oldest first.
    pub fn delivered_last(&self, max: usize) -> Vec<(Arc<Integration>, Timestamp)> {
        let owners = self.shared.partitions.all();
        let mut delivered: Vec<_> = owners.iter().flat_map(|owner| owner.delivered()).collect();
        delivered.sort_unstable_by(|one, other| other.cmp(one));
        let is_active = |registered: &Registered| registered.status.status == Status::Active;
        let mut last: Vec<(Arc<Integration>, Timestamp)> = delivered
            .into_iter()
            .filter_map(|(at, id)| {
                let integration = self.look(id, |registered| {
                    is_active(registered).then(|| Arc::clone(&registered.integration))
                });
                Some((integration??, at))
            })
            .take(max)
            .collect();
        last.reverse();
        last
    }

    /// Waits until integrations need the worker's attention, and returns them. For one caller.
    /// Integrations with pending events at the start are among the first.
    pub async fn attention(&self) -> Map<IntegrationId, Attention> {
        self.shared.work.take().await
    }

    /// Newest revision, as it changes.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.shared.catalog.replica().revision()
    }

    /// Returns creations, changes of status and deletions after a revision: of the first `limit`
    /// that are found, those for whose organizations `keep` returns true.
    pub fn changes_after(
        &self,
        revision: u64,
        limit: usize,
        keep: impl Fn(&OrganizationId) -> bool,
    ) -> Changes {
        let found = self
            .shared
            .catalog
            .replica()
            .changes_after(revision, limit, keep);
        let changes = found.changes.into_iter().map(|change| match change {
            RegistryChange::Current(registered) => {
                let revision = registered.status_revision;
                (revision, Change::Current(self.snapshot(registered)))
            }
            RegistryChange::Deleted(tombstone) => (tombstone.revision, Change::Deleted(tombstone)),
        });
        Changes {
            forgotten_to: found.forgotten_to,
            seen_to: found.up_to,
            changes: changes.collect(),
        }
    }

    /// Returns at most `limit` integrations of the named organizations whose last change is in
    /// `revisions`, in commit order.
    pub fn current_of<'a>(
        &self,
        organizations: impl IntoIterator<Item = &'a OrganizationId>,
        revisions: RangeInclusive<u64>,
        limit: usize,
    ) -> Vec<Snapshot> {
        let replica = self.shared.catalog.replica();
        let found = replica.current_of(organizations, revisions, limit);
        found.into_iter().map(|one| self.snapshot(one)).collect()
    }

    /// Identity of the database and its history, to tell revisions of different ones apart.
    pub fn history(&self) -> String {
        let database_id = self.shared.catalog.registry().database_id();
        match self.shared.membership.timeline() {
            0 => database_id.to_owned(),
            timeline => format!("{database_id}-{timeline}"),
        }
    }

    /// Whether this instance sends the notifications of all integrations: it owns partition 0, and
    /// its lease leaves time for a call.
    pub fn sends_notifications(&self) -> bool {
        let mut owners = self.shared.partitions.all().into_iter();
        owners.any(|owner| owner.partition() == 0 && owner.delivers()) && self.check_lease().is_ok()
    }

    /// Resume token up to which the receiver of notifications has every status.
    pub async fn notified_to(&self) -> Result<Option<String>, StoreError> {
        self.shared.catalog.registry().notified_to().await
    }

    /// Stores what [`Store::notified_to`] returns.
    pub async fn set_notified_to(&self, token: &str) -> Result<(), StoreError> {
        self.shared.catalog.registry().set_notified_to(token).await
    }

    /// Key for the tokens of callers, derived from the key of the external IDs.
    pub fn token_key(&self) -> [u8; 32] {
        self.shared.sealer.token_key()
    }

    /// Decrypts the external ID of an integration.
    pub fn open_external_id(&self, integration: &Integration) -> Result<ExternalId, StoreError> {
        self.shared
            .sealer
            .open(&integration.external_id, integration.integration_id)
    }

    /// Decrypts the previous external ID, if it may still be used.
    pub fn open_previous_external_id(
        &self,
        integration: &Integration,
    ) -> Option<Result<ExternalId, StoreError>> {
        let previous = integration.previous_at(Timestamp::now())?;
        let sealer = &self.shared.sealer;
        Some(sealer.open(&previous.external_id, integration.integration_id))
    }

    /// Returns the keys of external IDs.
    pub async fn keys(&self) -> Result<KeysReport, StoreError> {
        self.shared.rotation.report().await
    }

    /// Makes the first key of the keyring the active one, once every instance can read it, and
    /// begins to re-seal what is stored. Repetitions change nothing.
    pub async fn rotate_keys(&self) -> Result<KeysReport, StoreError> {
        self.check_lease()?;
        let store = self.clone();
        run(async move { store.shared.rotation.rotate().await }).await
    }

    /// Whether the storage has capacity for events, as it changes.
    pub fn has_capacity(&self) -> watch::Receiver<bool> {
        self.shared.has_capacity.clone()
    }

    /// Returns an error while the storage has no capacity for events.
    pub fn check_capacity(&self) -> Result<(), StoreError> {
        if self.shared.membership.health().borrow().is_full {
            return Err(StoreError::Full);
        }
        match *self.shared.log.availability().borrow() {
            Availability::Open => Ok(()),
            Availability::Full => Err(StoreError::Full),
            Availability::Unavailable => Err(StoreError::Failed("the log is unavailable".into())),
        }
    }

    /// Applies backpressure before events are appended: waits, at most a second, while delivery
    /// is behind and the events' integrations have their share of the memory. Returns the
    /// integrations whose events must be refused as overloaded.
    pub async fn admit(&self, segments: &Segments) -> Set<IntegrationId> {
        let partitions = &self.shared.partitions;
        let bytes_of = |id| partitions.owner(id).map_or(0, |owner| owner.bytes_of(id));
        let press = || partitions.all().iter().for_each(|owner| owner.press());
        let backpressure = &self.shared.backpressure;
        let mut refused = backpressure.admit(segments, bytes_of, press).await;
        if self.shared.membership.health().borrow().is_over {
            // Events of healthy integrations leave the backlog; the others would fill the database.
            let ids = segments.parts().iter().map(|part| part.integration_id);
            refused.extend(ids.filter(|id| {
                let status = self.look(*id, |registered| registered.status.status);
                matches!(status, Some(Status::Unauthorized | Status::Failing))
            }));
        }
        refused
    }

    /// Appends events, in the order of the calls. The returned future ends once they are
    /// durable. `memory` is held until then, even if nobody waits.
    pub async fn append(
        &self,
        segments: Segments,
        memory: Option<MemoryHold>,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + Send + use<>, StoreError> {
        self.check_lease()?;
        self.shared.membership.touch();
        let incoming = self.shared.backpressure.incoming(segments.bytes());
        self.appender.append(segments, memory, incoming).await
    }

    /// Creates or replaces an integration.
    pub async fn configure(&self, configure: Configure) -> Result<Snapshot, ConfigureError> {
        self.check_lease()?;
        self.shared.membership.touch();
        let store = self.clone();
        run(async move {
            let organization_id = configure.organization_id.clone();
            let (sealer, now) = (&store.shared.sealer, now());
            let plan = |existing: Option<&Registered>, keys: &Keys| {
                plan(existing, &configure, sealer.under(keys)?, now)
            };
            let catalog = &store.shared.catalog;
            let stored = catalog.configure(&organization_id, &plan).await?;
            // The newest status is shown, but another version is not this caller's.
            let integration = &stored.integration;
            let (id, version) = (integration.integration_id, integration.version);
            let current = store.look(id, Registered::clone);
            let current = current.filter(|current| current.integration.version == version);
            Ok(store.snapshot(current.unwrap_or(stored)))
        })
        .await
    }

    /// Returns the integration that a Configure would store, storing nothing.
    pub async fn validate_only(&self, configure: Configure) -> Result<Snapshot, ConfigureError> {
        let existing = self.id_of(configure.organization_id.as_str());
        let existing = existing.and_then(|id| self.look(id, Registered::clone));
        let now = now();
        let sealer = self.shared.sealer.with_first();
        let planned = plan(existing.as_ref(), &configure, sealer, now)?;
        self.shared
            .catalog
            .registry()
            .check_external_id(
                &configure.organization_id,
                &planned.claim,
                planned.issued_only,
                now,
            )
            .await?;
        let integration = Arc::new(planned.integration);
        Ok(match existing {
            Some(existing) => self.snapshot(Registered {
                integration,
                ..existing
            }),
            None => Snapshot {
                integration,
                status: Arc::new(StatusDetail::unknown(now)),
                progress: Progress::NEW,
                revision: 0,
            },
        })
    }

    /// Issues a new external ID to an organization. No other may use it until it lapses.
    pub async fn issue_external_id(
        &self,
        organization_id: OrganizationId,
        actor: Actor,
    ) -> Result<ExternalId, IssueError> {
        let store = self.clone();
        run(async move {
            let external_id = random_external_id()?;
            let issue = |keys: &Keys| {
                let sealer = store.shared.sealer.under(keys)?;
                sealer.claim(&external_id, &organization_id)
            };
            let registry = store.shared.catalog.registry();
            registry
                .issue_external_id(&organization_id, &issue, &actor, now())
                .await?;
            Ok(external_id)
        })
        .await
    }

    /// Forgets the previous external ID, after an AssumeRole with the current one of this version
    /// has worked.
    pub async fn retire_previous_external_id(&self, id: IntegrationId, version: u64) {
        let catalog = &self.shared.catalog;
        if let Err(error) = catalog
            .retire_previous_external_id(id, version, now())
            .await
        {
            // It is asked for again at the next AssumeRole.
            tracing::warn!(%error, "cannot forget the previous external ID");
        }
    }

    /// Deletes an organization's integration, if it has the `etag` that is given. None if there is
    /// none. The final counts follow with [`Store::discard`].
    pub async fn delete(
        &self,
        organization_id: OrganizationId,
        etag: Option<String>,
        actor: Actor,
    ) -> Result<Option<IntegrationId>, ConfigureError> {
        self.check_lease()?;
        self.shared.membership.touch();
        let store = self.clone();
        run(async move {
            store.catch_up().await?;
            if let Some(snapshot) = store.find(organization_id.as_str()) {
                let id = snapshot.integration.integration_id;
                if store.shared.partitions.owner(id).is_none() {
                    // The ledger is removed with the integration.
                    let mut known = [snapshot];
                    store.complete(&mut known).await?;
                    let progress = known[0].progress.after_delete();
                    store.discarded().put(id, progress);
                }
            }
            let deleted = store
                .shared
                .catalog
                .delete(&organization_id, etag.as_deref(), &actor)
                .await?;
            Ok(deleted.map(|tombstone| tombstone.integration_id))
        })
        .await
    }

    /// Discards the pending events of a deleted integration, after its last AWS call has ended.
    ///
    /// Repetitions return the same counts for a time.
    pub fn discard(&self, id: IntegrationId) -> Deleted {
        let mut owners = self.shared.partitions.all().into_iter();
        let progress = owners.find_map(|owner| owner.discard(id));
        let mut discarded = self.discarded();
        progress
            .into_iter()
            .for_each(|progress| discarded.put(id, progress));
        let known = discarded.counts.get(&id).copied();
        drop(discarded);
        self.shared.catalog.ended(id);
        self.shared.membership.poll_now();
        self.shared.deleted.notify_one();
        Deleted {
            integration_id: id,
            progress: known.unwrap_or(Progress::NEW),
        }
    }

    fn discarded(&self) -> MutexGuard<'_, Discarded> {
        let discarded = self.shared.discarded.lock();
        discarded.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an integration was created so recently that other instances may not have applied
    /// the deletion of the one before.
    pub fn is_new(&self, integration: &Integration) -> bool {
        let age = now().duration_since(integration.created_at);
        self.is_shared() && age < SignedDuration::from_secs(2 * CONFIRM_TIMEOUT.as_secs() as i64)
    }

    /// Waits until no instance makes calls for an integration of the organization whose deletion
    /// this instance has applied. Deletions of other organizations are not waited for, unless they
    /// are older.
    pub async fn wait_for_deletion(
        &self,
        organization_id: &OrganizationId,
    ) -> Result<(), StoreError> {
        let replica = self.shared.catalog.replica();
        let revision = replica.last_deletion(organization_id);
        let confirmed = self.shared.membership.wait_for_confirmation(revision);
        let confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, confirmed).await;
        confirmed.map_err(|_elapsed| {
            StoreError::Unavailable("other instances have not confirmed the deletion".to_owned())
        })
    }

    /// Records what an attempt achieved: in memory at once, durably within the setting
    /// `settle-linger`, or as soon as possible if it changes the status.
    pub fn settle(
        &self,
        id: IntegrationId,
        settlement: Option<Settlement>,
        observed: Option<Observed>,
    ) {
        if let Some(owner) = self.shared.partitions.owner(id) {
            owner.settle(id, settlement.as_ref(), observed);
        }
    }

    /// Records what an attempt showed of the status, and returns once it is durable.
    pub async fn observe(&self, observed: Observed) -> Result<(), StoreError> {
        let store = self.clone();
        run(async move {
            let id = observed.integration_id;
            match store.shared.partitions.owner(id) {
                // In order with what deliveries show.
                Some(owner) => {
                    owner.settle(id, None, Some(observed));
                    owner.write().await
                }
                None => store.shared.catalog.observe(&[observed]).await,
            }
        })
        .await
    }

    /// Reads the pending events of an integration from a sequence on, in order: chunks of about
    /// `max_bytes`, at least one if there is one. What was settled before is settled in them.
    pub async fn read(
        &self,
        id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        match self.shared.partitions.owner(id) {
            Some(owner) => owner.read(id, from, max_bytes).await,
            None => Ok(Vec::new()),
        }
    }

    /// Acceptance time of the oldest pending event of each integration that has one.
    pub async fn oldest_pending(
        &self,
        ids: &[IntegrationId],
    ) -> Result<HashMap<IntegrationId, Timestamp>, StoreError> {
        // In this order, because events leave memory for the ledger.
        let mut oldest = HashMap::new();
        for owner in self.shared.partitions.all() {
            oldest.extend(owner.oldest_pending(ids));
        }
        for (id, at) in self.shared.ledger.oldest_pending(ids).await? {
            let known = oldest.entry(id).or_insert(at);
            *known = at.min(*known);
        }
        Ok(oldest)
    }

    /// Gives events up, durably. Meanwhile nothing of the integration may be settled or read that
    /// was not in flight before.
    pub async fn give_up(&self, give_up: GiveUp) -> Result<GivenUp, StoreError> {
        match self.shared.partitions.owner(give_up.integration_id) {
            Some(owner) => owner.give_up(give_up).await,
            None => Ok(GivenUp::default()),
        }
    }

    /// Returns when the store has ended: after [`Store::close`], or by a failure.
    pub async fn ended(&self) -> Option<Failure> {
        tokio::select! {
            failure = self.shared.log.ended() => failure,
            failure = self.shared.catalog.failed() => failure,
        }
    }

    /// Writes what is pending and closes the storage. Retries until this future is dropped.
    pub async fn close(&self) {
        self.shared.ledger.hurry();
        let writing = async {
            self.shared.audit.flush().await;
            for owner in self.shared.partitions.all() {
                // The first write also waits for one that is in progress.
                while owner.write().await.is_err() || !owner.is_clean() {
                    tokio::time::sleep(CLOSE_RETRY).await;
                }
                owner.stop();
            }
            self.shared.membership.leave().await;
        };
        tokio::select! {
            () = writing => self.shared.log.close().await,
            // After a failure nothing can be written.
            _failure = self.ended() => {}
        }
    }
}

/// Runs work that must not end half-way because its caller is gone.
async fn run<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_panicked| Err(StoreError::Closed.into()))
}

/// Returns the keys of external IDs that the database needs, and the sealer does not have. A key
/// that is only proposed, and that no instance has, is given up.
async fn check_keys(engines: &Engines, sealer: &Sealer) -> Result<Vec<Box<str>>, StoreError> {
    let registry = &engines.registry;
    let keys = registry.start_keys(sealer.first(), now()).await?;
    let missing = sealer.missing(&keys);
    if let [only] = &missing[..]
        && keys.pending.as_ref() == Some(only)
    {
        let mut instances = engines.ownership.instances().await?.into_iter();
        if !instances.any(|one| one.keys.contains(only)) {
            // It may have become the active one meanwhile.
            let keys = registry.withdraw_key(only).await?;
            return Ok(sealer.missing(&keys));
        }
    }
    Ok(missing)
}

/// Error of the embedded store for an error of its engines.
fn open_error(options: &StoreOptions, source: StoreError) -> OpenError {
    let path = options.data_dir.clone();
    match source {
        StoreError::Corrupt(what) => OpenError::Damaged { path, what },
        StoreError::Full => OpenError::Full(path),
        source => OpenError::Database { path, source },
    }
}

/// The time, with the precision of the storage, so that it is the same after a restart.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Whether the log takes entries, as it changes.
fn capacity(mut availability: watch::Receiver<Availability>) -> watch::Receiver<bool> {
    let is_open = |availability: Availability| availability == Availability::Open;
    let (sender, receiver) = watch::channel(is_open(*availability.borrow()));
    tokio::spawn(async move {
        while availability.changed().await.is_ok() {
            let open = is_open(*availability.borrow_and_update());
            sender.send_if_modified(|known| std::mem::replace(known, open) != open);
        }
    });
    receiver
}

/// Removes what is left of deleted integrations, at the start and after each deletion.
async fn remove_deleted(ledger: Arc<dyn Ledger>, deleted: Arc<Notify>) {
    loop {
        let pause = match ledger.remove_deleted().await {
            Ok(true) => {
                deleted.notified().await;
                continue;
            }
            Ok(false) => REMOVE_PAUSE,
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot remove the events of deleted integrations");
                REMOVE_RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}
