//! The storage contract. Everything above it works with every engine; everything that is special
//! to SQLite, PostgreSQL or Kafka is below it.
//!
//! | port | content | promise that rests on it |
//! | --- | --- | --- |
//! | [`EventLog`] | accepted events, in order, for a short time | an acked event is durable |
//! | [`Registry`] | integrations, external IDs, status, audit | read your writes; a status is committed before it is pushed |
//! | [`Ledger`] | for each integration: checkpoint, settled events, counts, backlog | no event is lost in silence; counts add up |
//! | [`Ownership`] | the partitions that this instance delivers for | one instance delivers for an integration |
//!
//! No promise needs atomicity across ports: a crash between calls to two ports costs duplicates
//! only.
//!
//! # Sequences
//!
//! The log gives an entry a position, not a sequence. The owner of a partition numbers the events
//! of each integration in position order, as a [`LogReader`] returns them. So a sequence is a
//! function of the log alone: whoever reads the log again from a checkpoint `(S, P)`, which says
//! that `S` is the next sequence after position `P`, assigns the same numbers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::error::{ConfigureError, IssueError, StoreError};
use crate::{
    boot_time::BootTime,
    domain::{
        audit::{Actor, AuditEntry},
        chunk::Chunk,
        integration::{Integration, IntegrationId, SealedExternalId},
        organization::OrganizationId,
        rights::Pattern,
        segment::Damaged,
        sequences::Sequences,
        status::{Observation, Stall, StatusDetail},
        trace::TraceContext,
    },
};

/// Number of a partition of the log.
pub type Partition = u32;

/// Position of an entry in its partition, at least 1. Positions rise and need not be dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// The next possible position.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Random bytes that identify an entry, so that another entry at the same position is noticed.
pub type EntryId = [u8; 16];

/// Content of one append to one partition: chunks of any integrations.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Identity of the entry.
    pub id: EntryId,
    /// Registry revision that the instance had applied when it accepted the events. A reader
    /// judges an unknown integration only after it has applied this revision.
    pub revision: u64,
    /// The chunks, at least one. Those of one integration are in the order of their events.
    pub chunks: Vec<NewChunk>,
}

/// Consecutive events of one integration that have no sequences yet.
#[derive(Clone, Debug)]
pub struct NewChunk {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Number of events, 1 to [`SEGMENT_EVENTS`](crate::domain::segment::SEGMENT_EVENTS).
    pub count: u32,
    /// The events, as [`segment`](crate::domain::segment) describes.
    pub segment: Bytes,
    /// Spans in which they were published, at most
    /// [`MAX_TRACES`](crate::domain::trace::MAX_TRACES).
    pub traces: Vec<TraceContext>,
}

/// Entry as a reader returns it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Position in the partition.
    pub position: Position,
    /// Identity of the entry.
    pub id: EntryId,
    /// Time at which the log accepted the entry, by the log's clock.
    pub accepted_at: Timestamp,
    /// As in [`NewEntry::revision`].
    pub revision: u64,
    /// The chunks, in the order in which they were appended.
    pub chunks: Vec<EntryChunk>,
}

/// Chunk of an entry.
#[derive(Clone, Debug)]
pub struct EntryChunk {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Number of events.
    pub count: u32,
    /// The events. The header of a damaged entry is readable, so the number of events and their
    /// integration are known.
    pub segment: Result<Bytes, Damaged>,
    /// As in [`NewChunk::traces`].
    pub traces: Vec<TraceContext>,
}

/// Positions that a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Position from which on entries are kept.
    pub start: Position,
    /// Position after the last entry.
    pub end: Position,
}

/// Whether the log takes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It takes entries.
    Open,
    /// No capacity is left for events.
    Full,
    /// Appends fail for another reason.
    Unavailable,
}

/// Durable, ordered, partitioned log of accepted events.
///
/// Guarantees of every engine:
///
/// - An append is atomic: after `Ok`, all of its entries are durable and every reader returns
///   them; after `Full`, `Failed`, `Fenced` or `Closed`, none of them is ever returned; after
///   `Unavailable`, each may or may not be, also later.
/// - Readers return entries in ascending position. Entries of consecutive acknowledged appends of
///   one instance have ascending positions.
/// - No reader returns an entry before it is durable.
/// - No position is used for two entries, also not after trimming or a restart.
/// - An entry that is missing between the start and the end of a partition is `Corrupt`, where
///   the engine can notice it.
///
/// It has no transactions with other tables, no access by integration, and cannot delete single
/// entries.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Number of partitions.
    fn partitions(&self) -> u32;

    /// Bytes of segments that one append, or one move to backlogs, may have at most; one chunk is
    /// always allowed.
    fn max_append_bytes(&self) -> usize;

    /// Appends entries to a partition, in order.
    async fn append(&self, partition: Partition, entries: Vec<NewEntry>) -> Result<(), StoreError>;

    /// Returns a reader of the entries from `from` on; entries that are trimmed already are
    /// passed over.
    async fn reader(
        &self,
        partition: Partition,
        from: Position,
    ) -> Result<Box<dyn LogReader>, StoreError>;

    /// Positions that a partition holds.
    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError>;

    /// Position after the last entry of a partition that this instance knows of, without a call
    /// to the storage. Not below that of any append which this instance has acknowledged.
    fn known_end(&self, partition: Partition) -> Position;

    /// Allows the log to remove the entries below a position. They may stay for a time.
    async fn trim(&self, partition: Partition, below: Position) -> Result<(), StoreError>;

    /// Removes the entries below a position, and returns once the start of the partition is not
    /// below it, durably. An engine may put an entry without chunks after the last one.
    async fn remove(&self, partition: Partition, below: Position) -> Result<(), StoreError>;

    /// Whether the log takes entries, as it changes.
    fn availability(&self) -> watch::Receiver<Availability>;

    /// Reason that the log has ended by itself; returns when it has, or was closed.
    async fn ended(&self) -> Option<super::error::Failure>;

    /// Writes what is pending, and releases the log.
    async fn close(&self);
}

/// Reader of one partition, forward only.
#[async_trait]
pub trait LogReader: Send {
    /// Waits for the next entry. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// `Corrupt` if an entry is missing, or its header is damaged or of an unknown format.
    async fn next(&mut self) -> Result<Arc<Entry>, StoreError>;
}

/// Right to write the ledger of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The partition.
    pub partition: Partition,
    /// Fencing epoch: rises with every new owner of the partition.
    pub epoch: u64,
}

/// Membership of this instance, as a poll finds it.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Partitions that this instance owns. One that an earlier poll returned and this one does
    /// not is lost.
    pub leases: Vec<Lease>,
    /// Partitions among `leases` that another living instance is to own. They are to be released
    /// soon.
    pub to_release: Vec<Partition>,
    /// Time until which this instance may make calls for its partitions; None without a limit.
    pub until: Option<BootTime>,
    /// Newest revision of the registry.
    pub revision: u64,
    /// Revision that every living instance has confirmed: none of them makes calls for what was
    /// deleted up to it.
    pub confirmed: u64,
    /// Number of living instances, this one included.
    pub instances: u32,
    /// History of the database. If it changes, what was read before may have been taken back.
    pub timeline: u32,
}

/// Decides which partitions this instance owns, and until when.
///
/// Guarantees of every engine:
///
/// - At most one lease of a partition is valid in the ledger: writes under an earlier epoch are
///   `Fenced`.
/// - While an instance polls, it keeps its leases, also if the storage stops for a time.
/// - The partitions of an instance that ended are taken over after its lease has lapsed, and at
///   once after [`Ownership::leave`].
#[async_trait]
pub trait Ownership: Send + Sync + 'static {
    /// Renews the lease of this instance if it is due, takes over partitions that are free and
    /// that this instance is to own, each under a new epoch, and returns what it owns.
    ///
    /// `confirmed` is the revision up to which this instance makes no calls for deleted
    /// integrations any more.
    async fn poll(&self, confirmed: u64) -> Result<Membership, StoreError>;

    /// Takes over one partition under a new epoch, whoever owns it. The caller delivers nothing.
    async fn seize(&self, partition: Partition) -> Result<Lease, StoreError>;

    /// Gives partitions back. The caller has ended its calls for them and written their ledger.
    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError>;

    /// Ends the membership of this instance: others take over without waiting for its lease to
    /// lapse. The caller makes no calls any more.
    async fn leave(&self) -> Result<(), StoreError>;

    /// Instances that may be alive, this one included, with the keys that they have registered.
    async fn instances(&self) -> Result<Vec<InstanceKeys>, StoreError>;
}

/// Keys of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceKeys {
    /// Id of the instance, new at each start.
    pub id: String,
    /// Name of its host, for operators.
    pub host: String,
    /// Ids of the keys that it can read.
    pub keys: Vec<Box<str>>,
}

/// Event counts of an integration. `accepted = delivered + expired + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that have a sequence.
    pub accepted: u64,
    /// Events that the stream accepted.
    pub delivered: u64,
    /// Events that will not be delivered, announced by gap events.
    pub expired: u64,
    /// Bytes of the pending events, before compression.
    pub pending_bytes: u64,
}

/// State of an integration's events, apart from the chunks of its backlog.
///
/// Invariants: every event below `next_sequence` that is not settled is in the backlog; every
/// chunk of the integration up to `position` has sequences below `next_sequence`; `settled` has
/// no sequence below `next_sequence`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Sequence of the integration's first event after `position`; 0 stands for 1.
    pub next_sequence: u64,
    /// Position up to which the log is not needed for this integration any more.
    pub position: Position,
    /// Sequences from `next_sequence` on that are settled.
    pub settled: Sequences,
    /// Event counts at the time of the write.
    pub counts: Counts,
    /// Time of the last attempt to deliver.
    pub last_attempt: Option<Timestamp>,
    /// Time of the last delivery.
    pub last_delivery: Option<Timestamp>,
}

/// Change of one chunk of a backlog.
#[derive(Clone, Debug)]
pub enum BacklogChange {
    /// Adds a chunk, with its segment, or without it if no event of it is pending. A chunk of the
    /// same first sequence is replaced.
    Add(Chunk),
    /// Updates settled sequences, gaps and pending bytes of a chunk. The segment of the given
    /// chunk is ignored; the stored segment is removed if no event is pending. The chunk itself
    /// is removed if it is finished.
    Update(Chunk),
    /// As `Update`, of a chunk whose stored events cannot be read: a copy of the stored bytes is
    /// set aside for an operator first.
    SetAside(Chunk),
}

impl BacklogChange {
    /// First sequence of the chunk.
    pub fn first_sequence(&self) -> u64 {
        let (Self::Add(chunk) | Self::Update(chunk) | Self::SetAside(chunk)) = self;
        chunk.first_sequence
    }
}

/// Update of the ledger of one integration.
#[derive(Clone, Debug)]
pub struct LedgerUpdate {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Its new checkpoint.
    pub checkpoint: Checkpoint,
    /// Changes of its backlog, at most one for each chunk, which are durable together with the
    /// checkpoint.
    pub backlog: Vec<BacklogChange>,
}

/// Identity of the last entry of a partition of which every event is settled or in the backlog.
/// The log keeps that entry, so that an owner can verify that it reads the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Position of the entry.
    pub position: Position,
    /// Its identity.
    pub entry_id: EntryId,
}

/// Ledger of a partition, as a new owner loads it.
#[derive(Clone, Debug, Default)]
pub struct LedgerSnapshot {
    /// The last anchor that was written.
    pub anchor: Option<Anchor>,
    /// Every integration of the partition that has a checkpoint or a backlog.
    pub integrations: Vec<LedgerRow>,
}

/// Ledger of one integration.
#[derive(Clone, Debug)]
pub struct LedgerRow {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Its checkpoint.
    pub checkpoint: Checkpoint,
    /// Acceptance time of the oldest chunk of the backlog; None if there is none.
    pub backlog_since: Option<Timestamp>,
    /// Bytes of the backlog's pending events.
    pub backlog_bytes: u64,
}

/// Checkpoints, counts and backlogs of integrations.
///
/// Writes are idempotent and fenced by the lease. A write whose checkpoint has a lower
/// `next_sequence` than the stored one is a repetition and changes nothing for that integration.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Loads the ledger of a partition.
    async fn load(&self, lease: Lease) -> Result<LedgerSnapshot, StoreError>;

    /// Records settlements, moves to the backlog and gaps, all in one transaction, or nothing.
    /// Integrations that do not exist any more are ignored. The engine may wait a short time to
    /// share the transaction of an append. An engine that holds the log as well may remove the
    /// entries below the anchor in the same transaction. One that replicates repeats a write in
    /// doubt until it is confirmed or fenced, so this may take as long as a replica is lost.
    async fn settle(
        &self,
        lease: Lease,
        updates: Vec<LedgerUpdate>,
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError>;

    /// Makes sure that no failover takes back an anchor that was recorded. Returns whether that is
    /// so, and the log may be trimmed up to it. Engines that replicate do this for all partitions
    /// at once, at most once a minute, so it takes minutes; others answer at once.
    async fn secure_anchor(&self, _lease: Lease, _anchor: Anchor) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Chunks of an integration's backlog that end after the sequence `from`, in order: about
    /// `max_bytes`, but at least one if there is one.
    ///
    /// # Errors
    ///
    /// `DamagedChunk` if the first of them cannot be read.
    async fn read_backlog(
        &self,
        integration_id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError>;

    /// The first `limit` chunks of an integration's backlog that end after the sequence `from`,
    /// without their segments.
    async fn backlog_states(
        &self,
        integration_id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Chunk>, StoreError>;

    /// Acceptance time of the oldest pending event of each backlog.
    async fn oldest_pending(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<HashMap<IntegrationId, Timestamp>, StoreError>;

    /// Ledgers of integrations of any partition, for instances that do not own it.
    async fn rows_of(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<Vec<LedgerRow>, StoreError>;

    /// Removes the anchor of a partition, so that the next owner reads whatever the log has.
    async fn forget_anchor(&self, lease: Lease) -> Result<(), StoreError>;

    /// Writes settlements without waiting for others from now on, because this instance ends.
    fn hurry(&self) {}

    /// Bytes that all backlogs take, if the engine has no bound of its own that keeps the storage
    /// from filling; else 0.
    async fn backlog_bytes(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// Removes everything of integrations that were deleted. May take several calls; returns
    /// whether nothing is left to remove.
    async fn remove_deleted(&self) -> Result<bool, StoreError>;
}

/// Integration as the registry stores it.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Its configuration.
    pub integration: Arc<Integration>,
    /// Its status. `last_attempt` and `last_delivery` are those of the last observation.
    pub status: Arc<StatusDetail>,
    /// Period without a delivery, as [`observe`](crate::domain::status::observe) keeps it.
    pub stall: Stall,
    /// Partition of its events.
    pub partition: Partition,
    /// Revision of the last change of any kind.
    pub revision: u64,
    /// Revision of the last creation or change of status.
    pub status_revision: u64,
}

/// A deleted integration, remembered for status streams that resume.
#[derive(Clone, Debug)]
pub struct Tombstone {
    /// Revision of the deletion.
    pub revision: u64,
    /// Organization that it belonged to.
    pub organization_id: OrganizationId,
    /// The integration.
    pub integration_id: IntegrationId,
    /// Time of the deletion.
    pub deleted_at: Timestamp,
}

/// Change of the registry. Only the newest of each integration is kept.
#[derive(Clone, Debug)]
pub enum RegistryChange {
    /// The integration was created, configured, or its status changed.
    Current(Registered),
    /// The integration was deleted.
    Deleted(Tombstone),
}

impl RegistryChange {
    /// Revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Current(registered) => registered.revision,
            Self::Deleted(tombstone) => tombstone.revision,
        }
    }
}

/// Changes of the registry in commit order.
#[derive(Clone, Debug, Default)]
pub struct RegistryChanges {
    /// The changes.
    pub changes: Vec<RegistryChange>,
    /// Revision up to which this list is complete.
    pub up_to: u64,
    /// Whether there are more changes after `up_to`.
    pub more: bool,
    /// Revision up to which deletions may be forgotten.
    pub forgotten_to: u64,
}

/// Content that a Configure stores, decided by [`Plan`].
#[derive(Clone, Debug)]
pub struct Planned {
    /// The new configuration.
    pub integration: Integration,
    /// Claim on its external ID.
    pub claim: Claim,
    /// Claim on the previous external ID, if it may still be used.
    pub previous_claim: Option<Claim>,
    /// Fields that differ from before; None at creation.
    pub changed: Option<Vec<&'static str>>,
    /// Only an external ID that was issued to the organization is allowed.
    pub issued_only: bool,
    /// Author, for the audit.
    pub actor: Actor,
}

/// Selection of audit entries.
#[derive(Clone, Debug)]
pub struct AuditQuery {
    /// Disjoint patterns; None for all, and for entries without an organization.
    pub organizations: Option<Vec<Pattern>>,
    /// Time of the oldest entry.
    pub start: Option<Timestamp>,
    /// Time before which all entries are.
    pub end: Option<Timestamp>,
    /// Entry after which the answer begins, in its order.
    pub before: Option<AuditPosition>,
    /// Most entries of the answer.
    pub limit: usize,
}

/// Place of an entry in the order of the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditPosition {
    /// Its time.
    pub at: Timestamp,
    /// Its id.
    pub id: i64,
}

impl From<&AuditEntry> for AuditPosition {
    fn from(entry: &AuditEntry) -> Self {
        Self {
            at: entry.at,
            id: entry.id,
        }
    }
}

/// Bounds of the audit.
#[derive(Clone, Copy, Debug)]
pub struct AuditLimits {
    /// Age beyond which entries are removed.
    pub max_age: Duration,
    /// Most entries. A tenth of them may be refusals, which never displace others.
    pub max_entries: u64,
}

/// Decides what a Configure stores, given the integration that exists and the keys. It runs while
/// both are locked, possibly several times.
pub type Plan<'a> =
    dyn Fn(Option<&Registered>, &Keys) -> Result<Planned, ConfigureError> + Send + Sync + 'a;

/// Ids of the keys that the external IDs in a database need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Key under which everything is stored that changes.
    pub active: Box<str>,
    /// Earlier keys, under which external IDs are stored until a rotation has re-sealed them.
    pub retiring: Vec<Box<str>>,
    /// Key that becomes the active one once every living instance can read it.
    pub pending: Option<Box<str>>,
}

impl Keys {
    /// Keys under which external IDs are stored.
    pub fn stored(&self) -> impl Iterator<Item = &str> {
        [&self.active]
            .into_iter()
            .chain(&self.retiring)
            .map(|id| &**id)
    }

    /// Keys that an instance must be able to read.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.stored().chain(self.pending.as_deref())
    }
}

/// Claim of an organization on an external ID, under the active key.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Keyed hash of the external ID.
    pub fingerprint: Vec<u8>,
    /// Its hashes under all other keys that this instance can read.
    pub others: Vec<Vec<u8>>,
    /// The external ID, encrypted for the organization.
    pub sealed: SealedExternalId,
}

impl Claim {
    /// Every hash under which the external ID may be stored.
    pub fn fingerprints(&self) -> Vec<Vec<u8>> {
        let first = std::iter::once(&self.fingerprint);
        first.chain(&self.others).cloned().collect()
    }
}

/// Decides how an external ID that is issued is stored. It runs while the keys are locked.
pub type Issue<'a> = dyn Fn(&Keys) -> Result<Claim, StoreError> + Send + Sync + 'a;

/// Whether every living instance can read a key that is about to become the active one.
pub type Ready<'a> = dyn Fn() -> BoxFuture<'a, Result<bool, StoreError>> + Send + Sync + 'a;

/// Encrypts stored external IDs anew, with the active key.
pub trait Reseal: Send + Sync {
    /// Key under which it encrypts.
    fn target(&self) -> &str;

    /// Re-seals the external ID of an integration.
    fn of_integration(
        &self,
        organization_id: &OrganizationId,
        integration_id: IntegrationId,
        sealed: &SealedExternalId,
    ) -> Result<(SealedExternalId, Claim), StoreError>;

    /// Re-seals an external ID that was issued.
    fn issued(
        &self,
        organization_id: &OrganizationId,
        sealed: &SealedExternalId,
    ) -> Result<Claim, StoreError>;
}

/// Pass over all external IDs, which re-seals them in steps.
#[derive(Clone, Debug, Default)]
pub struct ResealPass {
    /// Integration up to which it has come.
    pub integration: String,
    /// Hash of the issued external ID up to which it has come; None before the first one.
    pub issued: Option<Vec<u8>>,
    /// Number of rows that were re-sealed.
    pub resealed: u64,
    /// Rows that cannot be decrypted.
    pub unreadable: Unreadable,
    /// Whether nothing is left, or the pass is outdated.
    pub is_complete: bool,
    /// Whether another key is active by now, so that the rest is left to another pass.
    pub is_outdated: bool,
}

/// Rows of external IDs that cannot be decrypted. They keep their key, and a pass goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Number of them.
    pub rows: u64,
    /// Organizations of the first ones, at most [`Unreadable::NAMED`].
    pub organizations: BTreeSet<Box<str>>,
}

impl Unreadable {
    /// Organizations that are named.
    pub const NAMED: usize = 20;

    /// Adds a row of an organization.
    pub fn add(&mut self, organization_id: &str) {
        self.rows += 1;
        if self.organizations.len() < Self::NAMED {
            self.organizations.insert(organization_id.into());
        }
    }
}

/// Result of one attempt for the status of an integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The integration.
    pub integration_id: IntegrationId,
    /// Version of the configuration that was used. An observation of another version is
    /// dropped.
    pub version: u64,
    /// Time at which the attempt began. An observation that began before the last one that was
    /// recorded is dropped.
    pub began_at: Timestamp,
    /// Time at which it ended.
    pub at: Timestamp,
    /// The result.
    pub observation: Observation,
    /// Next attempt.
    pub next_retry: NextRetry,
}

/// Time of the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRetry {
    /// As recorded before.
    Unchanged,
    /// There is no backoff.
    None,
    /// End of the backoff.
    At(Timestamp),
}

/// Issued external IDs that an organization may have and not use.
pub const MAX_ISSUED: u64 = 10;
/// Time after which an issued external ID lapses that is not configured.
pub const ISSUED_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// Integrations, external IDs, statuses and the audit log.
///
/// Every change gets a revision. Revisions become visible in the order of their numbers.
///
/// Every change and its audit entry are committed together. Configures that change nothing are
/// counted in one entry for each caller, integration and hour.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Identity of the database, which resume tokens name.
    fn database_id(&self) -> &str;

    /// Creates or replaces the integration of an organization. Returns what was stored.
    async fn configure(
        &self,
        organization_id: &OrganizationId,
        plan: &Plan<'_>,
    ) -> Result<Registered, ConfigureError>;

    /// Checks whether an organization may use an external ID, changing nothing.
    async fn check_external_id(
        &self,
        organization_id: &OrganizationId,
        claim: &Claim,
        issued_only: bool,
        now: Timestamp,
    ) -> Result<(), ConfigureError>;

    /// Reserves an external ID for an organization: no other may use it until it lapses, after
    /// [`ISSUED_VALID`]. Once it is configured, it belongs to the integration.
    async fn issue_external_id(
        &self,
        organization_id: &OrganizationId,
        issue: &Issue<'_>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), IssueError>;

    /// Forgets the previous external ID, after the current one of this version has worked.
    async fn retire_previous_external_id(
        &self,
        integration_id: IntegrationId,
        version: u64,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Deletes the integration of an organization, if it has the `etag` that is given, and all
    /// reservations of external IDs. None if there is no integration.
    async fn delete(
        &self,
        organization_id: &OrganizationId,
        etag: Option<&str>,
        actor: &Actor,
    ) -> Result<Option<Tombstone>, ConfigureError>;

    /// Folds observations into the stored statuses, in the given order, each under the lock of
    /// its row.
    async fn observe(&self, observed: &[Observed]) -> Result<(), StoreError>;

    /// Stores audit entries that belong to no change.
    async fn record(&self, entries: &[AuditEntry]) -> Result<(), StoreError>;

    /// Audit entries, newest first.
    async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>, StoreError>;

    /// Removes some of the audit entries that exceed the limits, oldest first, so few that other
    /// writes do not wait. Returns whether none is left.
    async fn prune_audit(&self, now: Timestamp, limits: AuditLimits) -> Result<bool, StoreError>;

    /// Changes after a revision, in commit order: at most `limit`, the newest of each
    /// integration.
    async fn changes_after(
        &self,
        revision: u64,
        limit: usize,
    ) -> Result<RegistryChanges, StoreError>;

    /// Returns the keys, after making sure that they name every key of a stored external ID, except
    /// of those that have lapsed. In a database that has none, `first` becomes the active one.
    async fn start_keys(&self, first: &str, now: Timestamp) -> Result<Keys, StoreError>;

    /// Returns the keys.
    async fn keys(&self) -> Result<Keys, StoreError>;

    /// Number of external IDs that are stored under each key.
    async fn key_usage(&self) -> Result<BTreeMap<Box<str>, u64>, StoreError>;

    /// Makes a key the pending one. If it is the active one, none is pending any more.
    async fn propose_key(&self, key: &str) -> Result<Keys, StoreError>;

    /// Makes `key` no longer the pending one. Another one stays.
    async fn withdraw_key(&self, key: &str) -> Result<Keys, StoreError>;

    /// Makes the pending key the active one, if it is `key` and every living instance is `ready`
    /// for it. That is asked while nothing else can change the keys: an answer from before may be
    /// that of an earlier proposal, since which instances have started that lack the key.
    async fn activate_key(&self, key: &str, ready: &Ready<'_>) -> Result<Keys, StoreError>;

    /// Does one step of a pass, in one transaction that is short. Nothing is stored under a key that
    /// is not the active one any more.
    async fn reseal(&self, pass: &mut ResealPass, reseal: &dyn Reseal) -> Result<(), StoreError>;

    /// Forgets earlier keys under which nothing is stored any more that has not lapsed.
    async fn retire_keys(&self, now: Timestamp) -> Result<Keys, StoreError>;

    /// Returns what [`Registry::set_notified_to`] stored last.
    async fn notified_to(&self) -> Result<Option<String>, StoreError>;

    /// Stores the resume token up to which the receiver of notifications has every status.
    async fn set_notified_to(&self, token: &str) -> Result<(), StoreError>;
}
