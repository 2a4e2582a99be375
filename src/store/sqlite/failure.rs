//! Meaning of the database's errors.

use sea_orm::{DbErr, sqlx};

use crate::store::{
    error::{Failure, StoreError},
    sql::driver_error,
};

// SQLite's extended result codes, <https://www.sqlite.org/rescode.html>.
const FULL: i32 = 13;
const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;
const IO_ERROR_SYNC: i32 = 10 | 4 << 8;
const IO_ERROR_DIRECTORY_SYNC: i32 = 10 | 5 << 8;

fn code(error: &DbErr) -> Option<i32> {
    let database = driver_error(error)?.as_database_error()?;
    database.code()?.parse().ok()
}

/// Whether the disk is full. Nothing of the transaction was kept, and it may be tried again.
pub(super) fn is_full(error: &DbErr) -> bool {
    code(error) == Some(FULL)
}

/// Whether the database contradicts itself.
pub(super) fn is_damage(error: &DbErr) -> bool {
    // The lowest byte is the primary code.
    code(error).is_some_and(|code| matches!(code & 0xff, CORRUPT | NOT_A_DATABASE))
}

/// Whether a connection may be in another state than the driver believes.
pub(super) fn is_of_the_driver(error: &DbErr) -> bool {
    driver_error(error).is_some()
}

/// Failure after which the store cannot go on.
pub(super) fn failure(error: &DbErr) -> Option<Failure> {
    match code(error) {
        Some(IO_ERROR_SYNC | IO_ERROR_DIRECTORY_SYNC) => {
            Some(Failure::NotSynced(error.to_string()))
        }
        _ if is_damage(error) => Some(Failure::Damaged(error.to_string())),
        _ => None,
    }
}

/// The contract's error for an error of the database.
pub(super) fn translate(error: &DbErr) -> StoreError {
    let text = || error.to_string();
    match code(error) {
        Some(FULL) => StoreError::Full,
        // The next start may find the transaction, or not.
        Some(IO_ERROR_SYNC | IO_ERROR_DIRECTORY_SYNC) => StoreError::Unavailable(text()),
        _ if is_damage(error) => StoreError::Corrupt(text()),
        _ if matches!(driver_error(error), Some(sqlx::Error::WorkerCrashed)) => {
            StoreError::Unavailable(text())
        }
        _ if matches!(
            error,
            DbErr::Custom(_) | DbErr::Type(_) | DbErr::TryIntoErr { .. }
        ) =>
        {
            StoreError::Corrupt(text())
        }
        _ => StoreError::Failed(text()),
    }
}
