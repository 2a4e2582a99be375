//! Room on the disk. Events are refused before the database fails, so that what is
//! delivered can still be recorded, and that makes room again: the database file never
//! shrinks, but its free pages are used anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use tokio::{sync::watch, time::Instant};

use super::{StoreError, command::Command, rows::statement};
use crate::domain::{integration::IntegrationKey, map::Map, segment::Segments};

/// Bytes of a page of a new database: each that a commit touches is written as a whole.
pub(super) const PAGE_BYTES: u64 = 4096;
/// What a chunk's row takes beyond its payload, at the most, but for a last page that
/// is not full.
const ROW_BYTES: u64 = 128;
/// The largest request, which must fit on the smallest disk.
const REQUEST_BYTES: u64 = 5 << 20;
const MIB: u64 = 1 << 20;
/// How often to look while there is room.
const LOOK: Duration = Duration::from_secs(5);
/// How often to look while there is none.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What of the disk is for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allotment {
    /// Kept free of events, for everything else that is written.
    reserve: u64,
    /// The write-ahead log is written back when it is this long.
    wal: u64,
    /// Bytes of events that one transaction may take.
    batch: u64,
    /// Bytes of a page of the database.
    page: u64,
}

impl Allotment {
    /// Of a file system of so many bytes: a small one must have room for events, too. `page`
    /// are the bytes of a page of the database.
    pub(super) fn of(disk_bytes: u64, reserve: u64, page: u64) -> Self {
        let share = disk_bytes / 8;
        Self {
            reserve: reserve.min(share),
            wal: share.clamp(MIB, 32 * MIB),
            batch: share.clamp(REQUEST_BYTES + MIB, 13 * MIB),
            page,
        }
    }

    /// Pages after which the write-ahead log is written back.
    pub(super) fn checkpoint_pages(&self) -> u64 {
        self.wal / self.page
    }

    /// How long the write-ahead log's file becomes, and stays.
    pub(super) fn wal_file_bytes(&self) -> u64 {
        self.wal + self.batch
    }

    /// Bytes of events after which a batch takes no further request.
    pub(super) fn batch_bytes(&self) -> usize {
        usize::try_from(self.batch.saturating_sub(REQUEST_BYTES)).unwrap_or(usize::MAX)
    }

    /// Bytes that events may still take.
    fn room(&self, disk: &Disk) -> u64 {
        let growing = disk.pages.saturating_mul(self.page);
        let growing = growing.saturating_sub(disk.database_file_bytes);
        let wal_growing = self.wal_file_bytes().saturating_sub(disk.wal_file_bytes);
        let left = disk.free_bytes.saturating_sub(growing + wal_growing);
        // Free pages hold events as well as free disk does; but a half of the reserve
        // must be free disk, for what others write to it.
        if left < self.reserve / 2 {
            return 0;
        }
        let reusable = disk.free_pages.saturating_mul(self.page);
        (left + reusable).saturating_sub(self.reserve)
    }
}

/// What was found on the disk.
#[derive(Clone, Copy, Debug)]
struct Disk {
    /// Free on the file system.
    free_bytes: u64,
    /// Of the database, with those that only the write-ahead log has.
    pages: u64,
    /// Of those, free to be used anew.
    free_pages: u64,
    database_file_bytes: u64,
    wal_file_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the database failed: {0}")]
    Database(#[from] DbErr),
    #[error("the data directory's file system does not answer: {0}")]
    Disk(#[from] io::Error),
}

/// The size of the file system that holds a directory, in bytes.
pub(super) fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    Ok(disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Keeps account of the room between looks at the disk.
pub(super) struct Space {
    directory: PathBuf,
    database_file: PathBuf,
    wal_file: PathBuf,
    allotment: Allotment,
    /// What may still be taken before the next look.
    room: u64,
    /// What is in the log will take so much more.
    owed: u64,
    next_look: Instant,
    has_room: watch::Sender<bool>,
}

impl Space {
    pub(super) fn new(database_file: &Path, allotment: Allotment) -> Self {
        let mut wal_file = database_file.as_os_str().to_owned();
        wal_file.push("-wal");
        Self {
            directory: database_file.parent().unwrap_or(Path::new(".")).to_owned(),
            database_file: database_file.to_owned(),
            wal_file: wal_file.into(),
            allotment,
            room: 0,
            owed: 0,
            next_look: Instant::now(),
            has_room: watch::Sender::new(true),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.has_room.subscribe()
    }

    pub(super) fn batch_bytes(&self) -> usize {
        self.allotment.batch_bytes()
    }

    /// Notes how many bytes of events lie compressed, and may not stay so.
    pub(super) fn owe(&mut self, bytes: usize) {
        self.owed = bytes as u64;
        self.room = self.room.min(u64::MAX - self.owed);
    }

    /// When to look at the disk, whatever happens.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Looks at the disk where that is due.
    pub(super) async fn look_if_due(&mut self, db: &DatabaseConnection) {
        if self.next_look <= Instant::now() {
            self.look(db).await;
        }
    }

    /// Refuses the appends that the disk has no room for.
    pub(super) async fn admit(&mut self, db: &DatabaseConnection, commands: &mut Vec<Command>) {
        let page = self.allotment.page;
        let each = commands.iter().map(|command| bytes_of(command, page));
        let each: Vec<u64> = each.collect();
        let wanted: u64 = each.iter().sum();
        if wanted == 0 {
            return;
        }
        if wanted > self.room {
            self.look(db).await;
        }
        let (mut kept, mut refused) = (Vec::with_capacity(commands.len()), false);
        for (command, bytes) in commands.drain(..).zip(each) {
            match command {
                Command::Append { reply, .. } if bytes > self.room => {
                    refused = true;
                    let _gone = reply.send(Err(StoreError::NoRoom));
                }
                command => {
                    self.room -= bytes;
                    kept.push(command);
                }
            }
        }
        *commands = kept;
        if refused {
            self.shut();
        }
    }

    /// The database found the disk full.
    pub(super) fn ran_out(&mut self) {
        self.room = 0;
        self.shut();
    }

    fn shut(&mut self) {
        self.next_look = Instant::now() + LOOK_AGAIN;
        let told = self
            .has_room
            .send_if_modified(|has_room| std::mem::replace(has_room, false));
        if told {
            tracing::error!(
                data_dir = %self.directory.display(),
                reserve_bytes = self.allotment.reserve,
                "the disk is nearly full: events are refused until deliveries or the operator free space"
            );
        }
    }

    async fn look(&mut self, db: &DatabaseConnection) {
        self.room = match self.disk(db).await {
            Ok(disk) => self.allotment.room(&disk).saturating_sub(self.owed),
            Err(error) => {
                tracing::warn!(%error, "cannot determine the free space of the disk");
                // The database itself will say when it is full.
                u64::MAX
            }
        };
        // It opens with some room at once, so that it does not close with the next request.
        let enough = self.allotment.reserve / 2;
        if self.room == 0 {
            self.shut();
        } else if *self.has_room.borrow() {
            self.next_look = Instant::now() + LOOK;
        } else if self.room >= enough {
            self.next_look = Instant::now() + LOOK;
            self.has_room.send_replace(true);
            tracing::info!(room_bytes = self.room, "the disk has free space again");
        } else {
            self.next_look = Instant::now() + LOOK_AGAIN;
        }
    }

    async fn disk(&self, db: &DatabaseConnection) -> Result<Disk, LookError> {
        let sql = "SELECT page_count, freelist_count \
            FROM pragma_page_count(), pragma_freelist_count()";
        let row = db.query_one_raw(statement(db, sql, [])).await?;
        let row = row.ok_or_else(|| DbErr::Custom("the database tells no size".to_owned()))?;
        let count = |column: &str| row.try_get::<i64>("", column).map(i64::unsigned_abs);
        let disk = rustix::fs::statvfs(&self.directory).map_err(io::Error::from)?;
        Ok(Disk {
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            pages: count("page_count")?,
            free_pages: count("freelist_count")?,
            database_file_bytes: length(&self.database_file)?,
            wal_file_bytes: length(&self.wal_file)?,
        })
    }
}

fn length(file: &Path) -> io::Result<u64> {
    match fs::metadata(file) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// What a command takes of the room, at the most: events are compressed later.
fn bytes_of(command: &Command, page: u64) -> u64 {
    match command {
        Command::Append { segments, .. } => appended_bytes(segments, page),
        _ => 0,
    }
}

fn appended_bytes(segments: &Segments, page: u64) -> u64 {
    let mut chunks: Map<IntegrationKey, u64> = Map::default();
    for part in segments.parts() {
        *chunks.entry(part.key).or_default() += u64::from(part.bytes);
    }
    let rows = chunks.into_values().map(|bytes| row_bytes(bytes, page));
    rows.sum()
}

fn row_bytes(bytes: u64, page: u64) -> u64 {
    // A payload of its own pages leaves the last of them partly empty; where only two or
    // three rows have a page together, a third of it may be.
    let rounding = match bytes + ROW_BYTES > page / 2 {
        true => page,
        false => bytes / 2,
    };
    bytes + ROW_BYTES + rounding
}

#[cfg(test)]
mod tests;
