//! What can go wrong, and what the database's errors mean.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, sqlx};

/// Why the store ended by itself. What was not acked before may or may not be on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// After a failed sync the operating system may show what never reached the disk, so
    /// that no later success would prove anything: only a new start reads what is there.
    #[error(
        "the disk does not keep what is written ({0}): see that it is sound, and start again; what was acked before is kept"
    )]
    NotSynced(DbErr),
    /// The database contradicts itself.
    #[error("the database is damaged ({0}): docs/operations.md says how to restore or recover it")]
    Damaged(DbErr),
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused. Nothing of the request was kept.
    #[error("the database failed: {0}")]
    Database(#[from] DbErr),
    /// The disk nears full. Nothing of the request was kept; deliveries make room.
    #[error("the disk is nearly full")]
    NoRoom,
    /// The store is shut down.
    #[error("the store is closed")]
    Closed,
    /// A chunk cannot be read back.
    #[error("chunk {chunk_id} of the log is damaged")]
    Damaged {
        /// Which.
        chunk_id: i64,
    },
    /// An external ID cannot be encrypted, or the stored one not decrypted.
    #[error("the external ID cannot be encrypted or decrypted with this service's key")]
    Sealing,
}

impl StoreError {
    /// Whether the disk is full, or so nearly that no events are taken.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoom => true,
            Self::Database(error) => is_full(error),
            Self::Closed | Self::Damaged { .. } | Self::Sealing => false,
        }
    }
}

/// SQLite's extended result codes, <https://www.sqlite.org/rescode.html>.
const FULL: i32 = 13;
const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;
const IO_ERROR_SYNC: i32 = 10 | 4 << 8;
const IO_ERROR_DIRECTORY_SYNC: i32 = 10 | 5 << 8;

/// The code that the database gave.
fn code(error: &DbErr) -> Option<i32> {
    let (DbErr::Exec(error) | DbErr::Query(error) | DbErr::Conn(error)) = error else {
        return None;
    };
    let RuntimeErr::SqlxError(error) = error else {
        return None;
    };
    let database = error.as_database_error()?;
    database.code()?.parse().ok()
}

/// Whether the disk is full. Nothing of the transaction was kept, and it may be tried
/// again.
pub(super) fn is_full(error: &DbErr) -> bool {
    code(error) == Some(FULL)
}

/// Whether the database contradicts itself.
pub(super) fn is_damage(error: &DbErr) -> bool {
    // The lowest byte is the primary code.
    code(error).is_some_and(|code| matches!(code & 0xff, CORRUPT | NOT_A_DATABASE))
}

/// Whether a row holds what this version cannot read.
pub(super) fn is_unreadable(error: &DbErr) -> bool {
    matches!(error, DbErr::Custom(_) | DbErr::Type(_))
}

/// A statement's error, as SeaORM tells of it.
pub(super) fn of_statement(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

/// Why the store cannot go on after an error, where it cannot.
pub(super) fn of(error: &DbErr) -> Option<Failure> {
    match code(error) {
        Some(IO_ERROR_SYNC | IO_ERROR_DIRECTORY_SYNC) => Some(Failure::NotSynced(error.clone())),
        _ if is_damage(error) => Some(Failure::Damaged(error.clone())),
        _ => None,
    }
}
