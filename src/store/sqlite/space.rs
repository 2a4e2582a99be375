//! Accounting of disk space. Events are refused before the database fails, so that settlements
//! can be recorded, which free space again: the database file never shrinks, but its free pages
//! are reused.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use tokio::{sync::watch, time::Instant};

use crate::store::{
    ports::{Availability, Position},
    sql::statement,
};

/// Bytes of a page of a new database. A commit writes each page that it changes as a whole.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Most bytes that a row takes beyond its payload, apart from the rest of its last page.
const ROW_BYTES: u64 = 128;
/// Bytes of the largest request, which must fit on the smallest disk.
const REQUEST_BYTES: u64 = 5 << 20;
const MIB: u64 = 1 << 20;
/// Time between two looks at the disk while there is capacity.
const LOOK: Duration = Duration::from_secs(5);
/// Time between two looks at the disk while there is none.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Uses of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allotment {
    /// Bytes that are kept free of events, for everything else that is written.
    reserve: u64,
    /// Bytes of the write-ahead log at which it is written back.
    wal: u64,
    /// Bytes of events that one transaction may take.
    batch: u64,
    /// Bytes of a page of the database.
    page: u64,
}

impl Allotment {
    /// Uses of a file system of `disk_bytes`: also a small one must have capacity for events.
    /// `page` is the number of bytes of a page of the database.
    pub(super) fn of(disk_bytes: u64, reserve: u64, page: u64) -> Self {
        let share = disk_bytes / 8;
        Self {
            reserve: reserve.min(share),
            wal: share.clamp(MIB, 32 * MIB),
            batch: share.clamp(REQUEST_BYTES + MIB, 13 * MIB),
            page,
        }
    }

    /// Bytes that are kept free of events.
    pub(super) fn reserve_bytes(&self) -> u64 {
        self.reserve
    }

    /// Pages after which the write-ahead log is written back.
    pub(super) fn checkpoint_pages(&self) -> u64 {
        self.wal / self.page
    }

    /// Bytes to which the file of the write-ahead log grows.
    pub(super) fn wal_file_bytes(&self) -> u64 {
        self.wal + self.batch
    }

    /// Bytes of events from which a commit takes no further request.
    pub(super) fn batch_bytes(&self) -> usize {
        usize::try_from(self.batch.saturating_sub(REQUEST_BYTES)).unwrap_or(usize::MAX)
    }

    /// Bytes that events may take in addition.
    fn capacity(&self, disk: &Disk) -> u64 {
        let growing = disk.pages.saturating_mul(self.page);
        let growing = growing.saturating_sub(disk.database_file_bytes);
        let wal_growing = self.wal_file_bytes().saturating_sub(disk.wal_file_bytes);
        let left = disk.free_bytes.saturating_sub(growing + wal_growing);
        // Free pages hold events as well as free disk does; but half of the reserve must be
        // free disk, for what others write to it.
        if left < self.reserve / 2 {
            return 0;
        }
        let reusable = disk.free_pages.saturating_mul(self.page);
        (left + reusable).saturating_sub(self.reserve)
    }
}

/// State of the disk.
#[derive(Clone, Copy, Debug)]
struct Disk {
    /// Free bytes of the file system.
    free_bytes: u64,
    /// Pages of the database, with those that only the write-ahead log has.
    pages: u64,
    /// Free pages among them.
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

/// Size of the file system that holds a directory, in bytes.
pub(super) fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    Ok(disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Free bytes of the file system that holds a directory.
pub(super) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Account of the capacity between looks at the disk.
pub(super) struct Space {
    directory: PathBuf,
    database_file: PathBuf,
    wal_file: PathBuf,
    allotment: Allotment,
    /// Bytes that may be taken before the next look.
    left: u64,
    /// Bytes that each entry of the log will take in the backlog if its events are not delivered
    /// soon.
    owed: VecDeque<(Position, u64)>,
    owed_bytes: u64,
    next_look: Instant,
    availability: watch::Sender<Availability>,
}

impl Space {
    pub(super) fn new(
        database_file: &Path,
        allotment: Allotment,
        availability: watch::Sender<Availability>,
    ) -> Self {
        let mut wal_file = database_file.as_os_str().to_owned();
        wal_file.push("-wal");
        Self {
            directory: database_file.parent().unwrap_or(Path::new(".")).to_owned(),
            database_file: database_file.to_owned(),
            wal_file: wal_file.into(),
            allotment,
            left: 0,
            owed: VecDeque::new(),
            owed_bytes: 0,
            next_look: Instant::now(),
            availability,
        }
    }

    /// Bytes that a row with a payload of `bytes` takes.
    pub(super) fn row_bytes(&self, bytes: u64) -> u64 {
        row_bytes(bytes, self.allotment.page)
    }

    /// Notes the bytes that an entry will take in the backlog.
    pub(super) fn owe(&mut self, position: Position, bytes: u64) {
        self.owed.push_back((position, bytes));
        self.owed_bytes += bytes;
    }

    /// Notes that the entries below a position are removed.
    pub(super) fn trimmed(&mut self, below: Position) {
        while let Some((_, bytes)) = self.owed.pop_front_if(|(position, _)| *position < below) {
            self.owed_bytes -= bytes;
        }
    }

    /// Time of the next look at the disk.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Takes capacity for an append of `bytes`. Returns whether there is as much.
    pub(super) async fn admit(&mut self, db: &DatabaseConnection, bytes: u64) -> bool {
        if bytes > self.left || self.next_look <= Instant::now() {
            self.look(db).await;
        }
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
        } else {
            self.close();
        }
        fits
    }

    /// Notes that the database found the disk full.
    pub(super) fn ran_out(&mut self) {
        self.left = 0;
        self.close();
    }

    fn close(&mut self) {
        self.next_look = Instant::now() + LOOK_AGAIN;
        if self.set(Availability::Full) {
            tracing::error!(
                data_dir = %self.directory.display(),
                reserve_bytes = self.allotment.reserve,
                "the disk is nearly full: events are refused until deliveries or the operator free space"
            );
        }
    }

    fn set(&self, now: Availability) -> bool {
        self.availability
            .send_if_modified(|before| std::mem::replace(before, now) != now)
    }

    /// Looks at the disk if it is time.
    pub(super) async fn look_if_due(&mut self, db: &DatabaseConnection) {
        if self.next_look <= Instant::now() {
            self.look(db).await;
        }
    }

    async fn look(&mut self, db: &DatabaseConnection) {
        self.left = match self.disk(db).await {
            Ok(disk) => self
                .allotment
                .capacity(&disk)
                .saturating_sub(self.owed_bytes),
            Err(error) => {
                tracing::warn!(%error, "cannot determine the free space of the disk");
                // The database itself will say when it is full.
                u64::MAX
            }
        };
        // Opens with some capacity, so that it does not close with the next request.
        let enough = self.allotment.reserve / 2;
        let is_open = *self.availability.borrow() == Availability::Open;
        if self.left == 0 {
            self.close();
        } else if is_open {
            self.next_look = Instant::now() + LOOK;
        } else if self.left >= enough {
            self.next_look = Instant::now() + LOOK;
            self.set(Availability::Open);
            tracing::info!(capacity_bytes = self.left, "the disk has free space again");
        } else {
            self.next_look = Instant::now() + LOOK_AGAIN;
        }
    }

    async fn disk(&self, db: &DatabaseConnection) -> Result<Disk, LookError> {
        let sql = "SELECT page_count, freelist_count \
            FROM pragma_page_count(), pragma_freelist_count()";
        let row = db.query_one_raw(statement(db, sql, [])).await?;
        let row = row.ok_or_else(|| DbErr::Custom("the database has no size".to_owned()))?;
        let count = |column: &str| row.try_get::<i64>("", column).map(i64::unsigned_abs);
        Ok(Disk {
            free_bytes: free_bytes(&self.directory)?,
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

fn row_bytes(bytes: u64, page: u64) -> u64 {
    // A payload with pages of its own leaves the last of them partly empty. If only two or three
    // rows share a page, a third of it may be empty.
    let rounding = match bytes + ROW_BYTES > page / 2 {
        true => page,
        false => bytes / 2,
    };
    bytes + ROW_BYTES + rounding
}

#[cfg(test)]
mod tests;
