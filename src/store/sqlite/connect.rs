//! Connections to the database, and SQLite's settings on them.

use std::{fs::File, io::Read, path::Path, time::Duration};

use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DbErr,
    sqlx::{
        SqlitePool,
        sqlite::{SqliteJournalMode, SqliteSynchronous},
    },
};

use super::space::{Allotment, PAGE_BYTES};

/// Settings of a pool of connections.
pub(super) struct Connections {
    max: u32,
    /// Location of SQLite's temporary data.
    temp_store: &'static str,
    /// Value of the pragma, for each connection: negative numbers are KiB.
    page_cache: &'static str,
}

/// For migrations. Sorting a whole backlog for a new index may need more than the memory.
pub(super) const MIGRATION: Connections = Connections {
    max: 1,
    temp_store: "FILE",
    page_cache: "-4096",
};
/// For writes: one for transactions, one for scripts. They are never used at the same time.
pub(super) const WRITES: Connections = Connections {
    max: 2,
    temp_store: "MEMORY",
    page_cache: "-4096",
};
/// For reads beside the writes. Most pages are read once.
pub(super) const READS: Connections = Connections {
    max: 2,
    temp_store: "MEMORY",
    page_cache: "-1024",
};
/// A busy disk may take long over the first sync of a new database.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn connect(
    path: &Path,
    connections: Connections,
    allotment: &Allotment,
) -> Result<DatabaseConnection, DbErr> {
    let checkpoint_pages = allotment.checkpoint_pages().to_string();
    let wal_file_bytes = allotment.wal_file_bytes().to_string();
    let mut options = ConnectOptions::new("sqlite:");
    let file = path.to_owned();
    options
        .max_connections(connections.max)
        .min_connections(1)
        .sqlx_logging(false)
        .test_before_acquire(false)
        .acquire_timeout(CONNECT_TIMEOUT)
        .map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .filename(&file)
                .create_if_missing(true)
                .page_size(PAGE_BYTES as u32)
                .journal_mode(SqliteJournalMode::Wal)
                // NORMAL does not sync commits in WAL mode.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(10))
                .pragma("wal_autocheckpoint", checkpoint_pages.clone())
                .pragma("journal_size_limit", wal_file_bytes.clone())
                .pragma("cache_size", connections.page_cache)
                .pragma("temp_store", connections.temp_store)
        });
    sea_orm::Database::connect(options).await
}

/// Opens a database in memory, which lives as long as its only connection.
#[cfg(test)]
pub(super) async fn connect_to_memory() -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new("sqlite::memory:");
    options
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .sqlx_logging(false);
    sea_orm::Database::connect(options).await
}

/// Bytes of a page of the database, which keeps those that it was made with. If it is no
/// database, the check at the start says so.
pub(super) fn page_bytes(path: &Path) -> u64 {
    let mut head = [0; 18];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    // <https://www.sqlite.org/fileformat2.html>: 1 stands for 65536.
    let bytes = match u64::from(u16::from_be_bytes([head[16], head[17]])) {
        1 => 1 << 16,
        bytes => bytes,
    };
    match read.is_ok() && bytes >= 512 && bytes.is_power_of_two() {
        true => bytes,
        false => PAGE_BYTES,
    }
}

/// Writes the write-ahead log back. After a failed sync its content may be readable without
/// being on disk, and what is appended to it would be lost with it.
pub(super) async fn write_back(db: &DatabaseConnection) {
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    if let Err(error) = db.execute_unprepared(sql).await {
        tracing::warn!(%error, "the write-ahead log cannot be written back");
    }
}

/// Closes the connections of a pool, of which the caller holds none; the next use opens others.
/// A commit that fails has ended the transaction in the database, but not for the driver, whose
/// next one would be nested in one that does not exist.
pub(super) async fn renew(pool: &SqlitePool) {
    let mut all = Vec::new();
    // The connection that failed takes a while to come back: only who has all of them has it.
    for _ in 0..pool.options().get_max_connections() {
        match pool.acquire().await {
            Ok(connection) => all.push(connection),
            Err(error) => {
                tracing::warn!(%error, "a connection to the database does not come back");
            }
        }
    }
    for connection in all {
        if let Err(error) = connection.close().await {
            tracing::warn!(%error, "the connection to the database did not close cleanly");
        }
    }
}
