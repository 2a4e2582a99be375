//! Connections to the database, and how SQLite is set on them.

use std::{path::Path, time::Duration};

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};

use super::{
    rows::statement,
    space::{Allotment, PAGE_BYTES},
};

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

/// Bytes of a page of the database.
pub(super) async fn page_bytes(db: &DatabaseConnection) -> Result<u64, DbErr> {
    let row = db
        .query_one_raw(statement(db, "PRAGMA page_size", []))
        .await?;
    let found = row
        .map(|row| row.try_get::<i64>("", "page_size"))
        .transpose()?;
    Ok(found
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0)
        .unwrap_or(PAGE_BYTES))
}

/// Writes the write-ahead log back. After a failed sync it may be there to be read, but
/// not on disk; what is appended to it would be lost with it.
pub(super) async fn write_back(db: &DatabaseConnection) {
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    if let Err(error) = db.execute_unprepared(sql).await {
        tracing::warn!(%error, "the write-ahead log cannot be written back");
    }
}

/// Closes the writer's connection for transactions; the next one opens another. A commit
/// that fails has ended the transaction in the database, but not for the driver, whose
/// next one would be nested in one that is not there.
pub(super) async fn renew(db: &DatabaseConnection) {
    let closed = match db.get_sqlite_connection_pool().acquire().await {
        Ok(connection) => connection.close().await,
        Err(error) => Err(error),
    };
    if let Err(error) = closed {
        tracing::warn!(%error, "the connection to the database did not close cleanly");
    }
}
