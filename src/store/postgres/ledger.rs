//! The ledger: one row of `progress` for each integration, and the chunks of its backlog.
//!
//! - A write locks the rows of its partitions first. That fences it (the row has the epoch and the
//!   owner), and keeps writes of one partition apart: one in doubt, whose commit may be under way,
//!   ends before the next begins. Nobody waits for that lock; a write that does not get it is
//!   tried again.
//! - Writes of all partitions of this instance share transactions, so that their number does not
//!   depend on the number of partitions. Those that change backlogs wait for the synchronous
//!   standbys. The others do not, and go apart: to lose one costs duplicates.
//! - A write in doubt is repeated until it is confirmed: it is idempotent, and the lock orders a
//!   repetition after the one in doubt. So a standby that is lost delays moves and ends nothing.
//! - Every statement takes any number of rows, as arrays. Rows of partitions, and then of
//!   integrations, are locked in the order of their keys.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use tokio::{
    sync::{Mutex as AsyncMutex, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    InstanceId, TIMELINE,
    pool::{Database, WriteTransaction},
    timeline,
};
use crate::{
    domain::{chunk::Chunk, integration::IntegrationId},
    store::{
        codec,
        error::StoreError,
        ports::{
            Anchor, BacklogChange, Lease, Ledger, LedgerRow, LedgerSnapshot, LedgerUpdate,
            Partition,
        },
        sql::{
            rows::{
                self, CHUNK_COLUMNS, ChunkRead, ChunkReader, READ_CHUNKS, chunk_state, encode_gaps,
                integration_id, ledger_row, optional_time,
            },
            statement,
        },
    },
};

/// Shortest time between the end of a write of settlements and the begin of the next one.
pub(in crate::store) const SETTLE_PAUSE: Duration = Duration::from_millis(250);
/// Multiple of the duration of a write until the next one, so that an instance takes at most a
/// twentieth of a session of the database.
const PAUSE_FACTOR: u32 = 20;
/// Longest time between them: a handover waits for it.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Time after which a write is tried again whose partition was locked.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);
/// Time for which it is tried again.
const LOCKED_FOR: Duration = Duration::from_secs(3);
/// Time after which a write in doubt is repeated first, and longest time between repetitions.
const REPEAT: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(2)];
/// Shortest time between transactions that secure anchors.
const SECURE_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of chunks from which a transaction takes no further write.
const BATCH_BYTES: usize = 32 << 20;
/// Chunks of deleted integrations that one call removes.
const REMOVED_CHUNKS: i64 = 1_000;
/// Deleted integrations of which one call removes chunks.
const REMOVED_INTEGRATIONS: i64 = 64;
/// About the bytes that a chunk takes beside its payload.
const CHUNK_BYTES: i64 = 128;
/// Time that stands for none.
const NO_TIME: i64 = i64::MIN;

const LEDGER_COLUMNS: &str = "p.integration_id::text AS integration_id, p.next_sequence, \
    p.position, p.settled, p.accepted, p.delivered, p.expired, p.pending_bytes, \
    p.last_attempt_at, p.last_delivery_at, b.since AS backlog_since, \
    COALESCE(b.bytes, 0)::bigint AS backlog_bytes";
/// Summary of the backlog of the integration of a row `p`.
const BACKLOG: &str = "LEFT JOIN LATERAL (SELECT MIN(accepted_at) AS since, \
    SUM(pending_bytes) AS bytes FROM backlog b WHERE b.integration_id = p.integration_id) b ON true";

#[cfg(test)]
mod tests;

/// The ledger. Cheap to clone: clones are the same ledger.
#[derive(Clone)]
pub(in crate::store) struct PostgresLedger {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    instance_id: InstanceId,
    /// Epoch, and timeline of the database, under which each partition was loaded.
    loaded: Mutex<HashMap<Partition, (u64, u32)>>,
    settlements: Lane,
    moves: Lane,
    /// Locked while anchors are secured.
    secured: AsyncMutex<Option<Secured>>,
    /// Shortest time between transactions that secure anchors.
    secure_pause: Duration,
}

/// Replicated transaction before which all settlements are on a standby as well.
struct Secured {
    begun_at: Instant,
    /// Timeline of the database; None if it was not confirmed.
    timeline: Option<u32>,
}

/// Writes that share transactions, one at a time.
struct Lane {
    /// Whether the commits wait for the synchronous standbys.
    is_replicated: bool,
    /// Shortest pause between two writes.
    min_pause: Duration,
    /// Writes do not wait any more.
    hurry: CancellationToken,
    waiting: Mutex<Waiting>,
    /// Number of transactions that were in doubt, and are repeated.
    repeated: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    writes: VecDeque<Write>,
    is_running: bool,
    /// Earliest begin of the next transaction.
    not_before: Option<Instant>,
}

/// A write of one partition.
struct Write {
    lease: Lease,
    /// Timeline under which the partition was loaded.
    timeline: Option<u32>,
    updates: Vec<LedgerUpdate>,
    anchor: Option<Anchor>,
    asked_at: Instant,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Write {
    fn chunk_bytes(&self) -> usize {
        let changes = self.updates.iter().flat_map(|update| &update.backlog);
        let bytes = changes.map(|change| match change {
            BacklogChange::Add(chunk) => chunk.segment.len() + CHUNK_BYTES as usize,
            BacklogChange::Update(_) | BacklogChange::SetAside(_) => CHUNK_BYTES as usize,
        });
        bytes.sum()
    }
}

/// State of the partition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    /// It is this instance's, and locked.
    Locked,
    /// Another transaction has locked it.
    Busy,
    /// It is not this instance's any more.
    Lost,
}

impl Lane {
    fn new(is_replicated: bool, min_pause: Duration) -> Self {
        Self {
            is_replicated,
            min_pause,
            hurry: CancellationToken::new(),
            waiting: Mutex::default(),
            repeated: AtomicUsize::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the writes of the next transaction: at most one of each partition.
    fn take(&self) -> Vec<Write> {
        let mut waiting = self.waiting();
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        let (mut partitions, mut bytes) = (HashSet::new(), 0);
        for write in waiting.writes.drain(..) {
            if write.reply.is_closed() {
                continue;
            }
            if bytes < BATCH_BYTES && partitions.insert(write.lease.partition) {
                bytes += write.chunk_bytes();
                taken.push(write);
            } else {
                left.push_back(write);
            }
        }
        waiting.writes = left;
        waiting.is_running = !taken.is_empty();
        taken.sort_by_key(|write| write.lease.partition);
        taken
    }

    fn pause(&self, duration: Duration) -> Duration {
        match self.min_pause.is_zero() || self.hurry.is_cancelled() {
            true => Duration::ZERO,
            false => (PAUSE_FACTOR * duration).min(MAX_PAUSE).max(self.min_pause),
        }
    }
}

/// Ends a lane whose task panics: those that wait would wait for ever.
struct Running<'a>(&'a Lane);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let writes = {
            let mut waiting = self.0.waiting();
            waiting.is_running = false;
            std::mem::take(&mut waiting.writes)
        };
        tracing::error!("a task that writes the ledger panicked");
        for write in writes {
            let text = "the task that writes the ledger panicked";
            let _dropped = write.reply.send(Err(StoreError::Failed(text.to_owned())));
        }
    }
}

/// Counts a transaction of a lane that is repeated.
struct Repeated<'a>(&'a Lane);

impl Drop for Repeated<'_> {
    fn drop(&mut self) {
        self.0.repeated.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PostgresLedger {
    /// The ledger of an instance. `settle_pause` is the shortest time between two writes of
    /// settlements; zero writes each at once.
    pub(in crate::store) fn new(
        database: Database,
        instance_id: InstanceId,
        settle_pause: Duration,
    ) -> Self {
        let shared = Shared {
            database,
            instance_id,
            loaded: Mutex::default(),
            settlements: Lane::new(false, settle_pause),
            moves: Lane::new(true, Duration::ZERO),
            secured: AsyncMutex::default(),
            secure_pause: SECURE_PAUSE,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<Partition, (u64, u32)>> {
        let loaded = self.shared.loaded.lock();
        loaded.unwrap_or_else(PoisonError::into_inner)
    }

    /// Timeline under which the partition of a lease was loaded.
    fn timeline(&self, lease: Lease) -> Option<u32> {
        let loaded = self.loaded().get(&lease.partition).copied();
        let (epoch, timeline) = loaded?;
        (epoch == lease.epoch).then_some(timeline)
    }

    async fn rows<T>(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
        read: impl Fn(&QueryResult) -> Result<T, DbErr>,
    ) -> Result<Vec<T>, StoreError> {
        self.rows_on(self.shared.database.reader(), sql, values, read)
            .await
    }

    async fn rows_on<T>(
        &self,
        db: &impl ConnectionTrait,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
        read: impl Fn(&QueryResult) -> Result<T, DbErr>,
    ) -> Result<Vec<T>, StoreError> {
        let database = &self.shared.database;
        let rows = db.query_all_raw(statement(db, sql, values)).await;
        let rows = rows.and_then(|rows| rows.iter().map(read).collect());
        rows.map_err(|error| database.map(error))
    }

    /// Writes what waits in a lane until nothing does.
    async fn run(self, lane_of: fn(&Shared) -> &Lane) {
        let lane = lane_of(&self.shared);
        let _running = Running(lane);
        loop {
            let not_before = lane.waiting().not_before;
            if let Some(not_before) = not_before {
                tokio::select! {
                    () = sleep_until(not_before) => {}
                    () = lane.hurry.cancelled() => {}
                }
            }
            let writes = lane.take();
            if writes.is_empty() {
                return;
            }
            let begun_at = Instant::now();
            let written = match self.is_held_up(lane) {
                false => self.write(lane.is_replicated, &writes).await,
                // Another commit in doubt would only lock further partitions.
                true => Err(StoreError::Failed(
                    "earlier writes are not confirmed: the database, or a synchronous standby that it waits for, does not answer"
                        .to_owned(),
                )),
            };
            let ended_at = Instant::now();
            let mut is_busy = false;
            match written {
                Ok(fences) => {
                    for (write, fence) in writes.into_iter().zip(fences) {
                        let answer = match fence.answer() {
                            Some(answer) => answer,
                            None if begun_at - write.asked_at < LOCKED_FOR => {
                                is_busy = true;
                                lane.waiting().writes.push_front(write);
                                continue;
                            }
                            None => {
                                let text =
                                    "another session of the database has locked the partition";
                                Err(StoreError::Failed(text.to_owned()))
                            }
                        };
                        let _dropped = write.reply.send(answer);
                    }
                }
                Err(StoreError::Unavailable(problem)) => {
                    tracing::warn!(
                        problem,
                        partitions = writes.len(),
                        "a write of the ledger is in doubt, and is repeated until it is confirmed"
                    );
                    lane.repeated.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(self.clone().repeat(lane_of, writes));
                }
                Err(error) => {
                    for write in writes {
                        let _dropped = write.reply.send(Err(error.clone()));
                    }
                }
            }
            lane.waiting().not_before = Some(ended_at + lane.pause(ended_at - begun_at));
            if is_busy {
                sleep(LOCKED_PAUSE).await;
            }
        }
    }

    /// Whether commits are not confirmed at the moment, which those that are repeated will notice.
    fn is_held_up(&self, lane: &Lane) -> bool {
        lane.is_replicated
            && lane.repeated.load(Ordering::Relaxed) > 0
            && self.shared.database.is_in_doubt()
    }

    /// Repeats writes in doubt until each is confirmed or fenced, or its caller is gone. They
    /// stay in doubt if a repetition fails.
    async fn repeat(self, lane_of: fn(&Shared) -> &Lane, mut writes: Vec<Write>) {
        let lane = lane_of(&self.shared);
        let _repeated = Repeated(lane);
        let begun_at = Instant::now();
        let [mut pause, max_pause] = REPEAT;
        loop {
            sleep(pause).await;
            pause = (2 * pause).min(max_pause);
            writes.retain(|write| !write.reply.is_closed());
            if writes.is_empty() {
                break;
            }
            match self.write(lane.is_replicated, &writes).await {
                Ok(fences) => {
                    let repeated = std::mem::take(&mut writes);
                    for (write, fence) in repeated.into_iter().zip(fences) {
                        match fence.answer() {
                            Some(answer) => {
                                let _dropped = write.reply.send(answer);
                            }
                            None => writes.push(write),
                        }
                    }
                }
                Err(error @ (StoreError::Corrupt(_) | StoreError::Closed)) => {
                    for write in writes.drain(..) {
                        let _dropped = write.reply.send(Err(error.clone()));
                    }
                }
                Err(error) => tracing::debug!(%error, "a write of the ledger is in doubt"),
            }
        }
        tracing::info!(
            after = ?begun_at.elapsed(),
            "a write of the ledger is not in doubt any more"
        );
    }

    /// Writes in one transaction those writes of which the partition could be locked. On an
    /// error none was written, or all are in doubt.
    async fn write(&self, is_replicated: bool, writes: &[Write]) -> Result<Vec<Fence>, StoreError> {
        let database = &self.shared.database;
        let tx = match is_replicated {
            true => database.begin().await?,
            false => database.begin_local().await?,
        };
        let failed = |error: DbErr| database.map(error);
        let fences = self.lock(&tx, writes).await.map_err(failed)?;
        let with_fence = |fence| {
            let writes = writes.iter().zip(&fences);
            writes.filter(move |(_, of_write)| **of_write == fence)
        };
        let locked: Vec<&Write> = with_fence(Fence::Locked).map(|(write, _)| write).collect();
        if !locked.is_empty() {
            let settlement = Settlement::of(&locked);
            settlement.write(&tx).await.map_err(failed)?;
            tx.commit().await?;
        }
        Ok(fences)
    }

    /// Locks the partitions that are this instance's, in the order of their numbers.
    async fn lock(&self, tx: &WriteTransaction, writes: &[Write]) -> Result<Vec<Fence>, DbErr> {
        // The settings are for the statements that follow: tables may have grown since they were
        // analyzed last, and only their indexes are right for any number of rows.
        let sql = format!(
            "WITH wanted AS MATERIALIZED (SELECT w.partition, w.epoch \
                FROM unnest($1::int[], $2::bigint[]) AS w (partition, epoch)), \
            locked AS MATERIALIZED (SELECT p.partition FROM partition p \
                JOIN wanted w ON w.partition = p.partition AND w.epoch = p.epoch \
                WHERE p.owner = $3 ORDER BY p.partition FOR NO KEY UPDATE OF p SKIP LOCKED) \
            SELECT w.partition, l.partition IS NOT NULL AS is_locked, \
            COALESCE(p.epoch = w.epoch AND p.owner = $3, false) AS is_owned, {TIMELINE}, \
            set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), \
            set_config('enable_mergejoin', 'off', true) \
            FROM wanted w LEFT JOIN partition p ON p.partition = w.partition \
            LEFT JOIN locked l ON l.partition = w.partition"
        );
        let column = |value: fn(&Write) -> i64| writes.iter().map(value).collect::<Vec<i64>>();
        let values = [
            column(|write| i64::from(write.lease.partition)).into(),
            column(|write| write.lease.epoch as i64).into(),
            self.shared.instance_id.to_string().into(),
        ];
        let rows = tx.query_all_raw(statement(&**tx, &sql, values)).await?;
        let mut found = HashMap::new();
        for row in &rows {
            let partition: i32 = row.try_get("", "partition")?;
            let is_locked: bool = row.try_get("", "is_locked")?;
            let is_owned: bool = row.try_get("", "is_owned")?;
            found.insert(partition, (is_locked, is_owned, timeline(row)?));
        }
        let fence = |write: &Write| {
            let found = found.get(&(write.lease.partition as i32));
            match found {
                Some((_, _, timeline)) if write.timeline.is_some_and(|of| of != *timeline) => {
                    Fence::Lost
                }
                Some((true, _, _)) => Fence::Locked,
                Some((false, true, _)) => Fence::Busy,
                _ => Fence::Lost,
            }
        };
        Ok(writes.iter().map(fence).collect())
    }
}

impl Fence {
    /// Answer to a write; None if it is to be tried again.
    fn answer(&self) -> Option<Result<(), StoreError>> {
        match self {
            Self::Locked => Some(Ok(())),
            Self::Lost => Some(Err(StoreError::Fenced)),
            Self::Busy => None,
        }
    }
}

/// Content of a transaction, whose partitions are locked.
struct Settlement<'a> {
    writes: &'a [&'a Write],
    /// In the order of partitions, then integrations.
    updates: Vec<(Partition, &'a LedgerUpdate)>,
}

/// Change of a chunk.
struct Change<'a> {
    partition: Partition,
    integration_id: IntegrationId,
    chunk: &'a Chunk,
    payload: Vec<u8>,
}

/// An array of one value of each row.
fn column<R, T>(rows: &[R], value: impl Fn(&R) -> T) -> Value
where
    Vec<T>: Into<Value>,
{
    rows.iter().map(value).collect::<Vec<T>>().into()
}

/// Columns that name chunks: partition, integration and first sequence.
fn named(changes: &[&Change<'_>]) -> [Value; 3] {
    [
        column(changes, |change| change.partition as i32),
        column(changes, |change| change.integration_id.to_string()),
        column(changes, |change| change.chunk.first_sequence as i64),
    ]
}

/// Columns of what settlements change in chunks: bitmap of the settled events, gaps and pending
/// bytes. The first two are empty if there are none.
fn state(changes: &[&Change<'_>]) -> [Value; 3] {
    [
        column(changes, |change| {
            change.chunk.settled.to_bitmap(change.chunk.first_sequence)
        }),
        column(changes, |change| {
            encode_gaps(change.chunk).unwrap_or_default()
        }),
        column(changes, |change| change.chunk.pending_bytes as i64),
    ]
}

impl<'a> Settlement<'a> {
    fn of(writes: &'a [&'a Write]) -> Self {
        let of_write = |write: &&'a Write| {
            let partition = write.lease.partition;
            write.updates.iter().map(move |update| (partition, update))
        };
        let mut updates: Vec<_> = writes.iter().flat_map(of_write).collect();
        updates.sort_unstable_by_key(|(partition, update)| (*partition, update.integration_id));
        Self { writes, updates }
    }

    async fn write(mut self, tx: &WriteTransaction) -> Result<(), DbErr> {
        let mut grown = HashMap::new();
        if self
            .updates
            .iter()
            .any(|(_, update)| !update.backlog.is_empty())
        {
            let overtaken = self.overtaken(tx).await?;
            self.updates
                .retain(|(_, update)| !overtaken.contains(&update.integration_id));
            self.change_backlogs(tx, &mut grown).await?;
        }
        self.write_partitions(tx, &grown).await?;
        self.write_progress(tx).await
    }

    /// Integrations whose backlogs are not to be changed: those that were deleted, and those of
    /// which a later checkpoint is stored.
    async fn overtaken(&self, tx: &WriteTransaction) -> Result<HashSet<IntegrationId>, DbErr> {
        let moved: Vec<_> = self
            .updates
            .iter()
            .filter(|(_, update)| !update.backlog.is_empty())
            .collect();
        let sql = "SELECT u.id AS integration_id \
            FROM unnest($1::int[], $2::text[], $3::bigint[]) AS u (partition, id, next_sequence) \
            LEFT JOIN progress p ON p.partition = u.partition AND p.integration_id = u.id::uuid \
            LEFT JOIN integration i ON i.integration_id = u.id \
            WHERE i.integration_id IS NULL \
            OR GREATEST(p.next_sequence, 1) > GREATEST(u.next_sequence, 1)";
        let values = [
            column(&moved, |(partition, _)| *partition as i32),
            column(&moved, |(_, update)| update.integration_id.to_string()),
            column(&moved, |(_, update)| update.checkpoint.next_sequence as i64),
        ];
        let rows = tx.query_all_raw(statement(&**tx, sql, values)).await?;
        rows.iter().map(integration_id).collect()
    }

    /// Changes chunks, and adds to `grown` the bytes that the backlogs of each partition grow by.
    async fn change_backlogs(
        &self,
        tx: &WriteTransaction,
        grown: &mut HashMap<Partition, i64>,
    ) -> Result<(), DbErr> {
        let mut changes = Vec::new();
        for (partition, update) in &self.updates {
            for change in &update.backlog {
                let (BacklogChange::Add(chunk)
                | BacklogChange::Update(chunk)
                | BacklogChange::SetAside(chunk)) = change;
                let payload = match change {
                    BacklogChange::Add(chunk) if chunk.pending_events() > 0 => {
                        codec::compress(std::iter::once(&chunk.segment[..]))
                    }
                    _ => Vec::new(),
                };
                let content = Change {
                    partition: *partition,
                    integration_id: update.integration_id,
                    chunk,
                    payload,
                };
                changes.push((change, content));
            }
        }
        changes.sort_by_key(|(_, change)| (change.integration_id, change.chunk.first_sequence));
        let some = |wanted: fn(&BacklogChange, &Chunk) -> bool| -> Vec<&Change<'_>> {
            let changes = changes.iter();
            changes
                .filter(|(kind, change)| wanted(kind, change.chunk))
                .map(|(_, change)| change)
                .collect()
        };
        let set_aside = some(|kind, _| matches!(kind, BacklogChange::SetAside(_)));
        let removed =
            some(|kind, chunk| matches!(kind, BacklogChange::Add(_)) || chunk.is_finished());
        let added =
            some(|kind, chunk| matches!(kind, BacklogChange::Add(_)) && !chunk.is_finished());
        let updated =
            some(|kind, chunk| !matches!(kind, BacklogChange::Add(_)) && !chunk.is_finished());
        if !set_aside.is_empty() {
            let sql = "INSERT INTO damaged_chunk (integration_id, first_sequence, \
                organization_id, event_count, accepted_at, set_aside_at, accepted, payload) \
                SELECT b.integration_id, b.first_sequence, i.organization_id, b.event_count, \
                b.accepted_at, (EXTRACT(EPOCH FROM now()) * 1000000)::bigint, b.accepted, b.payload \
                FROM unnest($1::int[], $2::text[], $3::bigint[]) AS u (partition, id, first) \
                JOIN backlog b ON b.integration_id = u.id::uuid AND b.first_sequence = u.first \
                JOIN integration i ON i.integration_id = u.id \
                ON CONFLICT (integration_id, first_sequence) DO NOTHING";
            let values = named(&set_aside);
            tx.execute_raw(statement(&**tx, sql, values)).await?;
        }
        if !removed.is_empty() {
            let sql = format!(
                "WITH gone AS (DELETE FROM backlog b \
                USING unnest($1::int[], $2::text[], $3::bigint[]) AS u (partition, id, first) \
                WHERE b.integration_id = u.id::uuid AND b.first_sequence = u.first \
                RETURNING u.partition, octet_length(b.payload) + {CHUNK_BYTES} AS bytes) \
                SELECT partition, -SUM(bytes)::bigint AS bytes FROM gone GROUP BY partition"
            );
            add_bytes(tx, &sql, named(&removed), grown).await?;
        }
        if !added.is_empty() {
            let sql = "INSERT INTO backlog (integration_id, first_sequence, event_count, \
                accepted_at, accepted, gaps, pending_bytes, payload) \
                SELECT u.id::uuid, u.first, u.count, u.accepted_at, \
                NULLIF(u.accepted, ''::bytea), NULLIF(u.gaps, ''), u.pending_bytes, u.payload \
                FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bytea[], $5::text[], \
                $6::bigint[], $7::int[], $8::bigint[], $9::bytea[]) \
                AS u (partition, id, first, accepted, gaps, pending_bytes, count, accepted_at, \
                payload)";
            let content = [
                column(&added, |change| change.chunk.count as i32),
                column(&added, |change| change.chunk.accepted_at.as_microsecond()),
                column(&added, |change| change.payload.clone()),
            ];
            let values = named(&added)
                .into_iter()
                .chain(state(&added))
                .chain(content);
            tx.execute_raw(statement(&**tx, sql, values)).await?;
            for change in &added {
                *grown.entry(change.partition).or_default() +=
                    change.payload.len() as i64 + CHUNK_BYTES;
            }
        }
        if !updated.is_empty() {
            // The part `emptied` reads the rows as they were before.
            let sql = "WITH u AS MATERIALIZED (SELECT * FROM unnest($1::int[], $2::text[], \
                    $3::bigint[], $4::bytea[], $5::text[], $6::bigint[], $7::bool[]) \
                    AS u (partition, id, first, accepted, gaps, pending_bytes, has_events)), \
                changed AS (UPDATE backlog b SET accepted = NULLIF(u.accepted, ''::bytea), \
                    gaps = NULLIF(u.gaps, ''), pending_bytes = u.pending_bytes, \
                    payload = CASE WHEN u.has_events THEN b.payload ELSE ''::bytea END \
                    FROM u WHERE b.integration_id = u.id::uuid AND b.first_sequence = u.first), \
                emptied AS (SELECT u.partition, octet_length(b.payload) AS bytes FROM u \
                    JOIN backlog b ON b.integration_id = u.id::uuid AND b.first_sequence = u.first \
                    WHERE NOT u.has_events) \
                SELECT partition, -SUM(bytes)::bigint AS bytes FROM emptied GROUP BY partition";
            let has_events = column(&updated, |change| change.chunk.pending_events() > 0);
            let values = named(&updated).into_iter().chain(state(&updated));
            add_bytes(tx, sql, values.chain([has_events]), grown).await?;
        }
        Ok(())
    }

    /// Writes anchors, and the size of the backlogs.
    async fn write_partitions(
        &self,
        tx: &WriteTransaction,
        grown: &HashMap<Partition, i64>,
    ) -> Result<(), DbErr> {
        let grown_by = |write: &&Write| grown.get(&write.lease.partition).copied().unwrap_or(0);
        let changed = self.writes.iter().copied();
        let changed: Vec<&Write> = changed
            .filter(|write| write.anchor.is_some() || grown_by(write) != 0)
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let sql = "UPDATE partition p SET \
            anchor_position = CASE WHEN u.has_anchor THEN u.position ELSE p.anchor_position END, \
            anchor_entry_id = CASE WHEN u.has_anchor THEN u.entry_id ELSE p.anchor_entry_id END, \
            backlog_bytes = GREATEST(p.backlog_bytes + u.bytes, 0) \
            FROM unnest($1::int[], $2::bool[], $3::bigint[], $4::bytea[], $5::bigint[]) \
            AS u (partition, has_anchor, position, entry_id, bytes) \
            WHERE p.partition = u.partition";
        let values = [
            column(&changed, |write| write.lease.partition as i32),
            column(&changed, |write| write.anchor.is_some()),
            column(&changed, |write| {
                write.anchor.map_or(0, |anchor| anchor.position.0 as i64)
            }),
            column(&changed, |write| {
                let id = write.anchor.map(|anchor| anchor.entry_id.to_vec());
                id.unwrap_or_default()
            }),
            column(&changed, grown_by),
        ];
        tx.execute_raw(statement(&**tx, sql, values)).await?;
        Ok(())
    }

    /// Writes checkpoints. Integrations that do not exist any more get rows as well: to look for
    /// each would take as long as to write them. Nobody reads those rows, and
    /// [`Ledger::remove_deleted`] removes them.
    async fn write_progress(&self, tx: &WriteTransaction) -> Result<(), DbErr> {
        let updates = &self.updates;
        if updates.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "INSERT INTO progress (partition, integration_id, next_sequence, position, settled, \
            accepted, delivered, expired, pending_bytes, last_attempt_at, last_delivery_at) \
            SELECT u.partition, u.id::uuid, u.next_sequence, u.position, u.settled, u.accepted, \
            u.delivered, u.expired, u.pending_bytes, NULLIF(u.last_attempt_at, {NO_TIME}), \
            NULLIF(u.last_delivery_at, {NO_TIME}) \
            FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[], \
            $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) \
            AS u (partition, id, next_sequence, position, settled, accepted, delivered, expired, \
            pending_bytes, last_attempt_at, last_delivery_at) \
            ON CONFLICT (partition, integration_id) DO UPDATE SET \
            next_sequence = excluded.next_sequence, position = excluded.position, \
            settled = excluded.settled, accepted = excluded.accepted, \
            delivered = excluded.delivered, expired = excluded.expired, \
            pending_bytes = excluded.pending_bytes, \
            last_attempt_at = excluded.last_attempt_at, \
            last_delivery_at = excluded.last_delivery_at \
            WHERE GREATEST(progress.next_sequence, 1) <= GREATEST(excluded.next_sequence, 1)"
        );
        let number = |value: fn(&LedgerUpdate) -> i64| column(updates, |(_, one)| value(one));
        let values = [
            column(updates, |(partition, _)| *partition as i32),
            column(updates, |(_, update)| update.integration_id.to_string()),
            number(|one| one.checkpoint.next_sequence as i64),
            number(|one| one.checkpoint.position.0 as i64),
            column(updates, |(_, update)| update.checkpoint.settled.encode()),
            number(|one| one.checkpoint.counts.accepted as i64),
            number(|one| one.checkpoint.counts.delivered as i64),
            number(|one| one.checkpoint.counts.expired as i64),
            number(|one| one.checkpoint.counts.pending_bytes as i64),
            number(|one| micros(one.checkpoint.last_attempt)),
            number(|one| micros(one.checkpoint.last_delivery)),
        ];
        tx.execute_raw(statement(&**tx, &sql, values)).await?;
        Ok(())
    }
}

fn micros(time: Option<Timestamp>) -> i64 {
    time.map_or(NO_TIME, Timestamp::as_microsecond)
}

/// Runs a statement that returns bytes of partitions, and adds them up.
async fn add_bytes(
    tx: &WriteTransaction,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
    grown: &mut HashMap<Partition, i64>,
) -> Result<(), DbErr> {
    for row in tx.query_all_raw(statement(&**tx, sql, values)).await? {
        let partition: i32 = row.try_get("", "partition")?;
        *grown.entry(partition as Partition).or_default() += row.try_get::<i64>("", "bytes")?;
    }
    Ok(())
}

#[async_trait]
impl Ledger for PostgresLedger {
    /// Waits for a write in doubt, which would be missing otherwise: its commit is not visible
    /// yet, and no repetition of it follows.
    async fn load(&self, lease: Lease) -> Result<LedgerSnapshot, StoreError> {
        let tx = self.shared.database.begin_local().await?;
        let sql = format!(
            "SELECT anchor_position, anchor_entry_id, {TIMELINE} FROM partition \
            WHERE partition = $1 AND epoch = $2 AND owner = $3 FOR NO KEY UPDATE"
        );
        let values = [
            (lease.partition as i32).into(),
            (lease.epoch as i64).into(),
            self.shared.instance_id.to_string().into(),
        ];
        let read = |row: &QueryResult| Ok((timeline(row)?, rows::anchor(row)?));
        let partitions = self.rows_on(&*tx, &sql, values, read).await?;
        let Some((timeline, anchor)) = partitions.into_iter().next() else {
            return Err(StoreError::Fenced);
        };
        let sql = format!(
            "SELECT {LEDGER_COLUMNS} FROM progress p \
            JOIN integration i ON i.integration_id = p.integration_id::text {BACKLOG} \
            WHERE p.partition = $1"
        );
        let values = [(lease.partition as i32).into()];
        let integrations = self.rows_on(&*tx, &sql, values, ledger_row).await?;
        // Releases the lock. Nothing was changed, so nothing can be in doubt.
        if let Err(error) = tx.commit().await {
            return Err(StoreError::Failed(error.to_string()));
        }
        self.loaded()
            .insert(lease.partition, (lease.epoch, timeline));
        Ok(LedgerSnapshot {
            anchor,
            integrations,
        })
    }

    async fn settle(
        &self,
        lease: Lease,
        updates: Vec<LedgerUpdate>,
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError> {
        self.shared.database.check()?;
        if updates.is_empty() && anchor.is_none() {
            return Ok(());
        }
        let lane: fn(&Shared) -> &Lane = match updates.iter().any(|one| !one.backlog.is_empty()) {
            true => |shared| &shared.moves,
            false => |shared| &shared.settlements,
        };
        let timeline = self.timeline(lease);
        let (reply, answer) = oneshot::channel();
        let is_running = {
            let mut waiting = lane(&self.shared).waiting();
            waiting.writes.push_back(Write {
                lease,
                timeline,
                updates,
                anchor,
                asked_at: Instant::now(),
                reply,
            });
            std::mem::replace(&mut waiting.is_running, true)
        };
        if !is_running {
            // Goes on if this call is cancelled, so that its connection can be used again.
            tokio::spawn(self.clone().run(lane));
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_ended) => {
                self.shared.database.check()?;
                let text = "the task that writes the ledger ended";
                Err(StoreError::Unavailable(text.to_owned()))
            }
        }
    }

    /// Commits a replicated transaction, after which the standby has all that was committed on
    /// this timeline before, also without waiting. It locks nothing: to write the anchors again
    /// would keep settlements waiting for a standby that is lost. One transaction is for all
    /// partitions that wait.
    async fn secure_anchor(&self, lease: Lease, _anchor: Anchor) -> Result<bool, StoreError> {
        let asked_at = Instant::now();
        let mut secured = self.shared.secured.lock().await;
        let earlier = secured.as_ref().map(|secured| secured.begun_at);
        if earlier.is_none_or(|begun_at| begun_at < asked_at) {
            if let Some(begun_at) = earlier {
                sleep_until(begun_at + self.shared.secure_pause).await;
            }
            let current = secured.insert(Secured {
                begun_at: Instant::now(),
                timeline: None,
            });
            current.timeline = Some(self.secure().await?);
        }
        let timeline = secured.as_ref().and_then(|secured| secured.timeline);
        Ok(timeline.is_some() && timeline == self.timeline(lease))
    }

    async fn read_backlog(
        &self,
        integration_id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        // The bytes are summed up in the database, which fetches the payloads of those chunks
        // only that it returns.
        let sql = format!(
            "SELECT {CHUNK_COLUMNS}, payload FROM (SELECT {CHUNK_COLUMNS}, payload, \
            SUM(pending_bytes) OVER following AS total, ROW_NUMBER() OVER following AS number \
            FROM (SELECT {CHUNK_COLUMNS}, payload FROM backlog WHERE integration_id = $1::uuid \
            AND first_sequence > $2 AND first_sequence + event_count > $3 \
            ORDER BY first_sequence LIMIT {READ_CHUNKS}) AS next \
            WINDOW following AS (ORDER BY first_sequence ROWS UNBOUNDED PRECEDING)) AS summed \
            WHERE total <= $4 OR number = 1 ORDER BY first_sequence"
        );
        let [id, after, from] = span(integration_id, from);
        let most = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let database = &self.shared.database;
        let failed = |error: DbErr| database.map(error);
        let db = database.reader();
        let values = [id, after, from, most.into()];
        let rows = db.query_all_raw(statement(db, &sql, values)).await;
        let mut reader = ChunkReader::new(max_bytes);
        for row in rows.map_err(failed)? {
            match reader.read(&row).map_err(failed)? {
                ChunkRead::Taken => {}
                ChunkRead::Enough => break,
                ChunkRead::Damaged(first_sequence) => {
                    return Err(StoreError::DamagedChunk { first_sequence });
                }
            }
        }
        Ok(reader.chunks)
    }

    async fn backlog_states(
        &self,
        integration_id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = format!(
            "SELECT {CHUNK_COLUMNS} FROM backlog WHERE integration_id = $1::uuid \
            AND first_sequence > $2 AND first_sequence + event_count > $3 \
            ORDER BY first_sequence LIMIT $4"
        );
        let [id, after, from] = span(integration_id, from);
        let values = [id, after, from, limit.into()];
        self.rows(&sql, values, chunk_state).await
    }

    async fn oldest_pending(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<HashMap<IntegrationId, Timestamp>, StoreError> {
        if integration_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = "SELECT u.id AS integration_id, b.accepted_at AS oldest \
            FROM unnest($1::text[]) AS u (id) CROSS JOIN LATERAL (SELECT accepted_at FROM backlog \
            WHERE integration_id = u.id::uuid AND pending_bytes > 0 \
            ORDER BY first_sequence LIMIT 1) b";
        let ids = column(integration_ids, IntegrationId::to_string);
        let read = |row: &QueryResult| Ok((integration_id(row)?, optional_time(row, "oldest")?));
        let oldest = self.rows(sql, [ids], read).await?.into_iter();
        Ok(oldest.filter_map(|(id, at)| Some((id, at?))).collect())
    }

    async fn rows_of(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<Vec<LedgerRow>, StoreError> {
        if integration_ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {LEDGER_COLUMNS} FROM unnest($1::text[]) AS u (id) \
            JOIN integration i ON i.integration_id = u.id \
            JOIN progress p ON p.partition = i.partition AND p.integration_id = u.id::uuid \
            {BACKLOG}"
        );
        let ids = column(integration_ids, IntegrationId::to_string);
        self.rows(&sql, [ids], ledger_row).await
    }

    async fn forget_anchor(&self, lease: Lease) -> Result<(), StoreError> {
        let database = &self.shared.database;
        let failed = |error: DbErr| database.map(error);
        let tx = database.begin().await?;
        let sql = "UPDATE partition SET anchor_position = NULL, anchor_entry_id = NULL \
            WHERE partition = $1 AND epoch = $2 AND owner = $3";
        let values = [
            Value::from(lease.partition as i32),
            (lease.epoch as i64).into(),
            self.shared.instance_id.to_string().into(),
        ];
        let updated = tx.execute_raw(statement(&*tx, sql, values)).await;
        if updated.map_err(failed)?.rows_affected() == 0 {
            return Err(StoreError::Fenced);
        }
        tx.commit().await
    }

    async fn backlog_bytes(&self) -> Result<u64, StoreError> {
        let sql = "SELECT COALESCE(SUM(backlog_bytes), 0)::bigint AS bytes FROM partition";
        let bytes = self.rows(sql, [], |row| rows::number(row, "bytes")).await?;
        Ok(bytes.first().copied().unwrap_or(0))
    }

    fn hurry(&self) {
        self.shared.settlements.hurry.cancel();
    }

    async fn remove_deleted(&self) -> Result<bool, StoreError> {
        let sql = format!(
            "SELECT p.partition, p.integration_id::text AS integration_id FROM progress p \
            WHERE NOT EXISTS (SELECT FROM integration i \
            WHERE i.integration_id = p.integration_id::text) LIMIT {REMOVED_INTEGRATIONS}"
        );
        let read =
            |row: &QueryResult| Ok((row.try_get::<i32>("", "partition")?, integration_id(row)?));
        let deleted = self.rows(&sql, [], read).await?;
        let is_last = (deleted.len() as i64) < REMOVED_INTEGRATIONS;
        let mut budget = REMOVED_CHUNKS;
        for (partition, id) in deleted {
            budget -= self.remove(partition, id, budget).await?;
            if budget <= 0 {
                return Ok(false);
            }
        }
        Ok(is_last)
    }
}

impl PostgresLedger {
    /// Commits a transaction that waits for the synchronous standbys. Returns the timeline.
    async fn secure(&self) -> Result<u32, StoreError> {
        let tx = self.shared.database.begin().await?;
        // A transaction that writes nothing would not wait.
        let sql = format!(
            "SELECT {TIMELINE} FROM pg_logical_emit_message(true, 'siem-relay', 'anchors')"
        );
        let timelines = self.rows_on(&*tx, &sql, [], timeline).await?;
        tx.commit().await?;
        let none = || StoreError::Failed("the database names no timeline".to_owned());
        timelines.first().copied().ok_or_else(none)
    }

    /// Removes chunks of a deleted integration, at most `budget`, and its checkpoint if no chunk
    /// is left. Returns the number of chunks that were removed.
    async fn remove(
        &self,
        partition: i32,
        id: IntegrationId,
        budget: i64,
    ) -> Result<i64, StoreError> {
        let database = &self.shared.database;
        let tx = database.begin_local().await?;
        let removed = async {
            // As a write does, before it locks anything else.
            let sql = "SELECT FROM partition WHERE partition = $1 FOR NO KEY UPDATE";
            tx.query_all_raw(statement(&*tx, sql, [partition.into()]))
                .await?;
            let sql = format!(
                "WITH gone AS (DELETE FROM backlog WHERE (integration_id, first_sequence) IN \
                    (SELECT integration_id, first_sequence FROM backlog \
                    WHERE integration_id = $1::uuid ORDER BY first_sequence LIMIT $2) \
                    RETURNING octet_length(payload) + {CHUNK_BYTES} AS bytes), \
                sums AS (SELECT COUNT(*) AS chunks, COALESCE(SUM(bytes), 0)::bigint AS bytes \
                    FROM gone), \
                shrunk AS (UPDATE partition p \
                    SET backlog_bytes = GREATEST(p.backlog_bytes - s.bytes, 0) \
                    FROM sums s WHERE p.partition = $3) \
                SELECT chunks FROM sums"
            );
            let values: [Value; 3] = [id.to_string().into(), budget.into(), partition.into()];
            let row = tx.query_one_raw(statement(&*tx, &sql, values)).await?;
            let removed: i64 = row.map_or(Ok(0), |row| row.try_get("", "chunks"))?;
            if removed < budget {
                let sql = "DELETE FROM progress WHERE partition = $1 AND integration_id = $2::uuid";
                let values: [Value; 2] = [partition.into(), id.to_string().into()];
                tx.execute_raw(statement(&*tx, sql, values)).await?;
            }
            Ok(removed)
        };
        let removed = removed.await.map_err(|error: DbErr| database.map(error))?;
        tx.commit().await?;
        Ok(removed)
    }
}

/// Parameters for the chunks of an integration that end after a sequence, as of [`rows::span`].
fn span(integration_id: IntegrationId, from: u64) -> [Value; 3] {
    let (after, from) = rows::span(from);
    [integration_id.to_string().into(), after.into(), from.into()]
}
