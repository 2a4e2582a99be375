//! The log: appends, with settlements and trims in the same transactions, and readers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, StreamTrait, Value};
use tokio::{
    sync::{oneshot, watch},
    time::{sleep, sleep_until, timeout},
};

use super::{
    Engine, PARTITION, Shared, check_partition, database::Database, ledger::Settlement,
    script::Script, space::Space,
};
use crate::store::{
    codec::{Header, StoredEntry},
    error::{Failure, StoreError},
    ports::{
        Availability, Bounds, Entry, EntryChunk, EntryId, EventLog, LogReader, NewEntry, Partition,
        Position,
    },
    sql::{
        rows::{time, unreadable},
        statement,
    },
};

/// Position of the first entry of a new log.
const FIRST: Position = Position(1);
/// Bytes of segments of the newest entries that are kept for readers.
const RECENT_BYTES: usize = 32 << 20;
/// Bytes of segments after which a read of rows ends.
const READ_BYTES: usize = 1 << 20;
/// Most rows of one read.
const READ_ROWS: i64 = 256;
/// Longest time that a trim waits for another write.
const TRIM_LINGER: Duration = Duration::from_secs(1);
/// Bytes of a settlement beyond which it does not wait for an append, which it would delay.
const LIGHT_BYTES: usize = 64 << 10;
/// Entries and settlements up to which the text of a script is frequent enough to be kept
/// prepared.
const FREQUENT_PARTS: usize = 2;

/// State of the log.
pub(super) struct Log {
    writer: tokio::sync::Mutex<Writer>,
    waiting: Mutex<Waiting>,
    recent: Mutex<Recent>,
    /// Readers, of which one alone needs an entry only once.
    readers: AtomicUsize,
    /// Position from which on entries are kept.
    start: AtomicU64,
    end: watch::Sender<Position>,
    /// Epoch of the newest lease.
    epoch: AtomicU64,
    availability: watch::Sender<Availability>,
    settle_linger: Duration,
    batch_bytes: usize,
}

/// State of the writes. Its lock is taken before the database's write lock.
struct Writer {
    /// Position of the next entry; None if a failed write may have used it.
    next: Option<Position>,
    /// None in memory.
    space: Option<Space>,
}

/// Writes that wait for an append to share its transaction.
#[derive(Default)]
struct Waiting {
    settlements: Vec<Rider>,
    /// Position below which entries are to be removed.
    trim: Option<Position>,
}

/// A settlement that waits.
struct Rider {
    settlement: Settlement,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

/// The newest entries, which have consecutive positions.
#[derive(Default)]
struct Recent {
    entries: VecDeque<(Arc<Entry>, usize)>,
    bytes: usize,
}

/// An entry that is to be appended.
#[derive(Clone)]
struct Appended {
    stored: StoredEntry,
    revision: u64,
    chunks: Vec<EntryChunk>,
    bytes: usize,
}

impl Appended {
    fn of(entry: NewEntry) -> Self {
        let stored = StoredEntry::encode(&entry);
        let bytes = entry.chunks.iter().map(|chunk| chunk.segment.len()).sum();
        let chunks = entry.chunks.into_iter().map(|chunk| EntryChunk {
            integration_id: chunk.integration_id,
            count: chunk.count,
            segment: Ok(chunk.segment),
            traces: chunk.traces,
        });
        Self {
            stored,
            revision: entry.revision,
            chunks: chunks.collect(),
            bytes,
        }
    }

    /// Bytes of its row, and those of the backlog if all of its chunks are moved there.
    fn disk_bytes(&self, space: &Space) -> (u64, u64) {
        let payload = self.stored.payload.len() as u64;
        let segments = self
            .chunks
            .iter()
            .filter_map(|chunk| chunk.segment.as_ref().ok());
        let lengths = segments.map(|segment: &Bytes| segment.len() as u64);
        let moved = moved_bytes(lengths, payload, space);
        (
            space.row_bytes(self.stored.header.len() as u64 + payload),
            moved,
        )
    }
}

/// Bytes of the backlog if segments of these lengths are moved there, which are compressed about
/// as well as the payload of their entry.
fn moved_bytes(lengths: impl Iterator<Item = u64> + Clone, payload: u64, space: &Space) -> u64 {
    let total = lengths.clone().sum::<u64>().max(1);
    lengths
        .map(|bytes| space.row_bytes(bytes * payload.min(total) / total))
        .sum()
}

impl Recent {
    fn push(&mut self, entry: Arc<Entry>, bytes: usize) {
        let last = self.entries.back().map(|(last, _)| last.position.next());
        if last.is_some_and(|next| next != entry.position) {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
        while self.bytes > RECENT_BYTES {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, bytes)) = self.entries.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn trim(&mut self, below: Position) {
        while self.first().is_some_and(|first| first < below) {
            self.pop();
        }
    }

    fn first(&self) -> Option<Position> {
        self.entries.front().map(|(entry, _)| entry.position)
    }

    /// Returns an entry, and forgets all up to it if nobody else reads.
    fn take(&mut self, position: Position, is_only: bool) -> Option<Arc<Entry>> {
        let index = position.0.checked_sub(self.first()?.0)?;
        let (entry, _) = self.entries.get(usize::try_from(index).ok()?)?;
        let entry = Arc::clone(entry);
        if is_only {
            self.trim(position.next());
        }
        Some(entry)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    pub(super) async fn open(
        database: &Database,
        mut space: Option<Space>,
        availability: watch::Sender<Availability>,
        settle_linger: Duration,
        batch_bytes: usize,
    ) -> Result<Self, StoreError> {
        let sql = "SELECT position, header, length(payload) AS payload_bytes FROM entry ORDER BY position";
        let db = database.reader();
        let failed = |error: DbErr| database.map(error);
        let mut rows = db
            .stream_raw(statement(db, sql, []))
            .await
            .map_err(failed)?;
        let (mut start, mut end) = (None, FIRST);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            let position = position(&row).map_err(failed)?;
            let header: Vec<u8> = row.try_get("", "header").map_err(failed)?;
            start.get_or_insert(position);
            end = position.next();
            // A damaged header is reported to the reader, at its position.
            if let (Some(space), Ok(header)) = (&mut space, Header::decode(&header, position)) {
                let payload: i64 = row.try_get("", "payload_bytes").map_err(failed)?;
                let lengths = header.members.iter().map(|member| u64::from(member.bytes));
                let bytes = moved_bytes(lengths, payload.unsigned_abs(), space);
                space.owe(position, bytes);
            }
        }
        drop(rows);
        Ok(Self {
            writer: tokio::sync::Mutex::new(Writer {
                next: Some(end),
                space,
            }),
            waiting: Mutex::default(),
            recent: Mutex::default(),
            readers: AtomicUsize::new(0),
            start: AtomicU64::new(start.unwrap_or(end).0),
            end: watch::Sender::new(end),
            epoch: AtomicU64::new(0),
            availability,
            settle_linger,
            batch_bytes,
        })
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn set_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    fn start(&self) -> Position {
        Position(self.start.load(Ordering::Acquire))
    }

    fn end(&self) -> Position {
        *self.end.borrow()
    }
}

fn position(row: &QueryResult) -> Result<Position, DbErr> {
    let position: i64 = row.try_get("", "position")?;
    let position = u64::try_from(position).map_err(|_| unreadable("a position"))?;
    Ok(Position(position))
}

/// Looks at the free space of the disk from time to time, so that capacity is noticed without an
/// append.
pub(super) async fn watch_space(shared: Weak<Shared>) {
    loop {
        let Some(engine) = shared.upgrade() else {
            return;
        };
        let mut writer = engine.log.writer.lock().await;
        let Some(space) = &mut writer.space else {
            return;
        };
        if engine.database.check().is_ok() {
            space.look_if_due(engine.database.reader()).await;
        }
        let next_look = space.next_look();
        drop(writer);
        let database = engine.database.clone();
        drop(engine);
        if timeout_until(next_look, database.ended()).await {
            if let Some(engine) = shared.upgrade() {
                let availability = &engine.log.availability;
                availability.send_replace(Availability::Unavailable);
            }
            return;
        }
    }
}

/// Returns whether something ended before a time.
async fn timeout_until(time: tokio::time::Instant, ended: impl Future) -> bool {
    tokio::select! {
        _ = ended => true,
        () = sleep_until(time) => false,
    }
}

impl Engine {
    /// Writes a settlement: with the next append, or alone.
    pub(super) async fn write_settlement(&self, settlement: Settlement) -> Result<(), StoreError> {
        let log = &self.shared.log;
        let waits = settlement.bytes() <= LIGHT_BYTES;
        let (reply, mut answer) = oneshot::channel();
        let rider = Rider { settlement, reply };
        lock(&log.waiting).settlements.push(rider);
        if waits && let Ok(answer) = timeout(log.settle_linger / 2, &mut answer).await {
            return answer.unwrap_or(Err(StoreError::Closed));
        }
        // An append may have taken it along meanwhile: then its answer counts.
        let committed = self.commit(Vec::new()).await;
        match answer.await {
            Ok(answer) => answer,
            Err(_dropped) => committed.and(Err(StoreError::Closed)),
        }
    }

    /// Writes entries, and everything that waits. Goes on if the caller is dropped, so that the
    /// positions in memory stay those of the database.
    async fn commit(&self, entries: Vec<Appended>) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let mut writer = shared.log.writer.lock().await;
            shared.commit(&mut writer, entries).await
        });
        task.await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }
}

impl Shared {
    async fn commit(&self, writer: &mut Writer, entries: Vec<Appended>) -> Result<(), StoreError> {
        if let Err(ended) = self.database.check() {
            for rider in std::mem::take(&mut *lock(&self.log.waiting)).settlements {
                let _dropped = rider.reply.send(Err(ended.clone()));
            }
            return Err(ended);
        }
        if let Some(space) = &mut writer.space
            && !entries.is_empty()
        {
            let each = entries.iter().map(|entry| entry.disk_bytes(space));
            let bytes = each.map(|(row, moved)| row + moved).sum();
            if !space.admit(self.database.reader(), bytes).await {
                return Err(StoreError::Full);
            }
        }
        let waiting = std::mem::take(&mut *lock(&self.log.waiting));
        let (riders, fenced): (Vec<_>, Vec<_>) = waiting
            .settlements
            .into_iter()
            .partition(|rider| rider.settlement.epoch == self.log.epoch());
        for rider in fenced {
            let _dropped = rider.reply.send(Err(StoreError::Fenced));
        }
        // Entries below an anchor are not needed once the anchor is durable.
        let anchors = riders.iter().filter_map(|rider| rider.settlement.anchor());
        let trim = waiting.trim.max(anchors.max());
        let both = !entries.is_empty() && (!riders.is_empty() || trim.is_some());
        let kept = if both { entries.clone() } else { Vec::new() };
        let mut written = self.write(writer, entries, &riders, trim).await;
        let mut settled = written.clone();
        if written.is_err() && both && self.database.check().is_ok() {
            // Settlements and trims are written alone, because on a full disk they free space;
            // then the entries, which may not have been the cause.
            settled = self.write(writer, Vec::new(), &riders, trim).await;
            // Entries that may be kept would be kept twice.
            if matches!(written, Err(StoreError::Failed(_))) {
                written = self.write(writer, kept, &[], None).await;
            }
        }
        if settled.is_err()
            && let Some(trim) = trim
        {
            let mut waiting = lock(&self.log.waiting);
            waiting.trim = waiting.trim.max(Some(trim));
        }
        for rider in riders {
            let _dropped = rider.reply.send(settled.clone());
        }
        written
    }

    /// Writes entries and settlements in one transaction, or nothing.
    async fn write(
        &self,
        writer: &mut Writer,
        entries: Vec<Appended>,
        riders: &[Rider],
        trim: Option<Position>,
    ) -> Result<(), StoreError> {
        if entries.is_empty() && riders.is_empty() && trim.is_none() {
            return Ok(());
        }
        let next = match writer.next {
            Some(next) => next,
            None => self.find_end().await?,
        };
        writer.next = None;
        let accepted_at = now();
        let mut script = Script::default();
        let mut new = Vec::with_capacity(entries.len());
        let mut position = next;
        for entry in entries {
            let owed = writer.space.as_ref().map(|space| entry.disk_bytes(space).1);
            let Appended {
                stored,
                revision,
                chunks,
                bytes,
            } = entry;
            script.add(
                "INSERT INTO entry (position, entry_id, accepted_at, header, payload) \
                VALUES (?, ?, ?, ?, ?)",
            );
            script.bind(position.0 as i64).bind(stored.id.to_vec());
            script.bind(accepted_at.as_microsecond());
            script.bind(stored.header).bind(stored.payload);
            let entry = Entry {
                position,
                id: stored.id,
                accepted_at,
                revision,
                chunks,
            };
            new.push((Arc::new(entry), bytes, owed.unwrap_or(0)));
            position = position.next();
        }
        if new.len() > FREQUENT_PARTS || riders.len() > FREQUENT_PARTS {
            script.set_rare();
        }
        for rider in riders {
            rider.settlement.add_to(&mut script);
        }
        if let Some(below) = trim {
            // The last entry stays, so that its position is not used again.
            let below = below.0.min(position.0.saturating_sub(1));
            script.add("DELETE FROM entry WHERE position < ?");
            script.bind(below as i64);
        }
        if let Err(error) = self.database.run(script).await {
            if let (StoreError::Full, Some(space)) = (&error, &mut writer.space) {
                space.ran_out();
            }
            return Err(error);
        }
        writer.next = Some(position);
        if let Some(space) = &mut writer.space {
            for (entry, _, owed) in &new {
                space.owe(entry.position, *owed);
            }
            if let Some(below) = trim {
                space.trimmed(below);
            }
        }
        if let Some(below) = trim {
            self.log.start.fetch_max(below.0, Ordering::AcqRel);
            lock(&self.log.recent).trim(below);
        }
        if !new.is_empty() {
            let mut recent = lock(&self.log.recent);
            for (entry, bytes, _) in new {
                recent.push(entry, bytes);
            }
            drop(recent);
            self.log.end.send_replace(position);
        }
        Ok(())
    }

    /// Position after the last entry of the database, among them those of a write that failed
    /// but was kept.
    async fn find_end(&self) -> Result<Position, StoreError> {
        let failed = |error: DbErr| self.database.map(error);
        let db = self.database.reader();
        let sql = "SELECT COALESCE(MAX(position), 0) AS position FROM entry";
        let row = db.query_one_raw(statement(db, sql, [])).await;
        let last = match row.map_err(failed)? {
            Some(row) => position(&row).map_err(failed)?,
            None => Position::default(),
        };
        let end = last.next().max(self.log.end());
        self.log.end.send_replace(end);
        Ok(end)
    }

    /// Reads entries from a position on. Empty if they were trimmed meanwhile.
    async fn read_rows(&self, from: Position) -> Result<VecDeque<Arc<Entry>>, StoreError> {
        let failed = |error: DbErr| self.database.map(error);
        let db = self.database.reader();
        let sql = format!(
            "SELECT position, entry_id, accepted_at, header, payload FROM entry \
            WHERE position >= $1 ORDER BY position LIMIT {READ_ROWS}"
        );
        let values: [Value; 1] = [(from.0 as i64).into()];
        let rows = db.stream_raw(statement(db, &sql, values)).await;
        let mut rows = rows.map_err(failed)?;
        let (mut entries, mut bytes, mut expected) = (VecDeque::new(), 0, from);
        while bytes < READ_BYTES
            && let Some(row) = rows.try_next().await.map_err(failed)?
        {
            let (position, stored, accepted_at) = stored_entry(&row).map_err(failed)?;
            if position != expected {
                break;
            }
            let entry = stored.decode(position, accepted_at);
            let entry = match entry {
                Ok(entry) => entry,
                // The entries before it can be read.
                Err(_) if !entries.is_empty() => break,
                Err(error) => return Err(error),
            };
            let segments = entry
                .chunks
                .iter()
                .filter_map(|chunk| chunk.segment.as_ref().ok());
            bytes += segments.map(Bytes::len).sum::<usize>();
            entries.push_back(Arc::new(entry));
            expected = expected.next();
        }
        if entries.is_empty() && self.log.start() <= from {
            let from = from.0;
            let what = format!("the log has no entry at position {from}");
            return Err(StoreError::Corrupt(what));
        }
        Ok(entries)
    }
}

fn stored_entry(row: &QueryResult) -> Result<(Position, StoredEntry, Timestamp), DbErr> {
    let id: Vec<u8> = row.try_get("", "entry_id")?;
    let stored = StoredEntry {
        id: EntryId::try_from(id).map_err(|_| unreadable("an entry's id"))?,
        header: row.try_get("", "header")?,
        payload: row.try_get("", "payload")?,
    };
    let accepted_at = time(row.try_get("", "accepted_at")?)?;
    Ok((position(row)?, stored, accepted_at))
}

/// The present time with the precision of the database.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

#[async_trait]
impl EventLog for Engine {
    fn partitions(&self) -> u32 {
        1
    }

    fn max_append_bytes(&self) -> usize {
        self.shared.log.batch_bytes
    }

    async fn append(&self, partition: Partition, entries: Vec<NewEntry>) -> Result<(), StoreError> {
        check_partition(partition)?;
        let entries: Vec<Appended> = entries.into_iter().map(Appended::of).collect();
        self.commit(entries).await
    }

    async fn reader(
        &self,
        partition: Partition,
        from: Position,
    ) -> Result<Box<dyn LogReader>, StoreError> {
        check_partition(partition)?;
        self.shared.log.readers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Reader {
            shared: Arc::clone(&self.shared),
            next: from,
            rows: VecDeque::new(),
        }))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        check_partition(partition)?;
        self.shared.database.check()?;
        Ok(Bounds {
            start: self.shared.log.start(),
            end: self.shared.log.end(),
        })
    }

    fn known_end(&self, partition: Partition) -> Position {
        match partition {
            PARTITION => self.shared.log.end(),
            _ => FIRST,
        }
    }

    async fn trim(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        check_partition(partition)?;
        self.shared.database.check()?;
        let log = &self.shared.log;
        let below = below.min(log.end());
        if log.start.fetch_max(below.0, Ordering::AcqRel) >= below.0 {
            return Ok(());
        }
        lock(&log.recent).trim(below);
        let mut waiting = lock(&log.waiting);
        let is_first = waiting.trim.is_none();
        waiting.trim = waiting.trim.max(Some(below));
        drop(waiting);
        if is_first {
            let shared = Arc::downgrade(&self.shared);
            tokio::spawn(async move {
                sleep(TRIM_LINGER).await;
                if let Some(shared) = shared.upgrade() {
                    // A failure is logged, and the trim waits for the next write.
                    let _failed = Self { shared }.commit(Vec::new()).await;
                }
            });
        }
        Ok(())
    }

    async fn remove(&self, partition: Partition, below: Position) -> Result<(), StoreError> {
        check_partition(partition)?;
        let log = &self.shared.log;
        let below = below.min(log.end());
        if below == log.end() && log.start() < below {
            // The last entry keeps the position from which others go on.
            let empty = Appended::of(NewEntry {
                id: rand::random(),
                revision: 0,
                chunks: Vec::new(),
            });
            self.commit(vec![empty]).await?;
        }
        log.start.fetch_max(below.0, Ordering::AcqRel);
        lock(&log.recent).trim(below);
        {
            let mut waiting = lock(&log.waiting);
            waiting.trim = waiting.trim.max(Some(below));
        }
        self.commit(Vec::new()).await
    }

    fn availability(&self) -> watch::Receiver<Availability> {
        self.shared.log.availability.subscribe()
    }

    async fn ended(&self) -> Option<Failure> {
        self.shared.database.ended().await
    }

    async fn close(&self) {
        let _failed = self.commit(Vec::new()).await;
        self.shared.database.close().await;
        let availability = &self.shared.log.availability;
        availability.send_replace(Availability::Unavailable);
        drop(lock(&self.shared.lock).take());
    }
}

/// Reader of the log.
struct Reader {
    shared: Arc<Shared>,
    next: Position,
    /// Entries that were read from the database, from `next` on.
    rows: VecDeque<Arc<Entry>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.log.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl LogReader for Reader {
    async fn next(&mut self) -> Result<Arc<Entry>, StoreError> {
        let Self { shared, next, rows } = self;
        let log = &shared.log;
        loop {
            shared.database.check()?;
            if let Some(entry) = rows.pop_front() {
                *next = entry.position.next();
                return Ok(entry);
            }
            *next = log.start().max(*next);
            if *next >= log.end() {
                let mut end = log.end.subscribe();
                tokio::select! {
                    _ = end.wait_for(|end| *next < *end) => {}
                    _ = shared.database.ended() => {}
                }
                continue;
            }
            let is_only = log.readers.load(Ordering::Relaxed) == 1;
            let recent = lock(&log.recent).take(*next, is_only);
            if let Some(entry) = recent {
                *next = entry.position.next();
                return Ok(entry);
            }
            *rows = shared.read_rows(*next).await?;
        }
    }
}
