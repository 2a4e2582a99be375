//! Connections to the database, and how SQLite is set on them.

use std::{fs::File, io::Read, path::Path, time::Duration};

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};

use super::space::{Allotment, PAGE_BYTES};

/// How a database is opened.
pub(super) struct Connections {
    most: u32,
    /// Where SQLite keeps what is for a moment.
    temp_store: &'static str,
    /// As the pragma has it, for each connection: what is negative are KiB.
    page_cache: &'static str,
}

/// To sort the whole log for a new index takes more than there may be of memory.
pub(super) const PREPARES: Connections = Connections {
    most: 1,
    temp_store: "FILE",
    page_cache: "-4096",
};
/// One for transactions, one for appends that need none around them. Never both at a time.
/// What a statement of many rows would undo is soon forgotten.
pub(super) const WRITES: Connections = Connections {
    most: 2,
    temp_store: "MEMORY",
    page_cache: "-4096",
};
/// They read beside those. What is read back is mostly read once.
pub(super) const READS: Connections = Connections {
    most: 2,
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
        .max_connections(connections.most)
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
    Database::connect(options).await
}

/// Bytes of a page of the database, which keeps those that it was made with. Where that is
/// none, the start says what is wrong with it.
pub(super) fn page_bytes(path: &Path) -> u64 {
    let mut head = [0; 18];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    // As <https://www.sqlite.org/fileformat2.html> has it: 1 stands for 65536.
    let told = match u64::from(u16::from_be_bytes([head[16], head[17]])) {
        1 => 1 << 16,
        told => told,
    };
    match read.is_ok() && told >= 512 && told.is_power_of_two() {
        true => told,
        false => PAGE_BYTES,
    }
}

/// Writes the write-ahead log back. After a failed sync it may be there to be read, but
/// not on disk; what is appended to it would be lost with it.
pub(super) async fn write_back(db: &DatabaseConnection) {
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    if let Err(error) = db.execute_unprepared(sql).await {
        tracing::warn!(%error, "the write-ahead log cannot be written back");
    }
}

/// Closes the writer's connections, of which it is to hold none; the next transaction opens
/// another. A commit that fails has ended the transaction in the database, but not for the
/// driver, whose next one would be nested in one that is not there.
pub(super) async fn renew(db: &DatabaseConnection) {
    let pool = db.get_sqlite_connection_pool();
    let mut all = Vec::new();
    // The one that failed takes a while to come back: only who has all of them has it.
    for _ in 0..WRITES.most {
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
