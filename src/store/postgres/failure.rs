//! Meaning of PostgreSQL's errors.

use sea_orm::{
    DbErr,
    sqlx::{
        self,
        postgres::{PgDatabaseError, PgSeverity},
    },
};

use crate::store::{error::StoreError, sql::driver_error};

// Error codes, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
const DISK_FULL: &str = "53100";
/// A connection prepared a statement before the schema was changed.
const FEATURE_NOT_SUPPORTED: &str = "0A000";
const READ_ONLY: &str = "25006";
const DAMAGE: [&str; 2] = ["XX001", "XX002"];

fn of_database(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// Whether a connection that answered with this error can be used again.
pub(super) fn is_of_the_statement(error: &sqlx::Error) -> bool {
    let Some(error) = of_database(error) else {
        return matches!(error, sqlx::Error::RowNotFound | sqlx::Error::Encode(_));
    };
    let code = error.code();
    error.severity() == PgSeverity::Error
        && code != FEATURE_NOT_SUPPORTED
        && code != READ_ONLY
        && !code.starts_with("08")
        && !code.starts_with("57P")
}

/// Whether an answer to COMMIT says that the transaction was rolled back. A session that is ended
/// while it waits for a standby has committed.
pub(super) fn is_rolled_back(error: &sqlx::Error) -> bool {
    is_of_the_statement(error) && of_database(error).is_some()
}

/// The contract's error for an error of a statement, of which nothing is kept.
pub(super) fn translate(error: &DbErr) -> StoreError {
    let text = error.to_string();
    let driver = driver_error(error);
    match driver.and_then(of_database).map(PgDatabaseError::code) {
        Some(DISK_FULL) => StoreError::Full,
        Some(code) if DAMAGE.contains(&code) => StoreError::Corrupt(text),
        _ if matches!(
            error,
            DbErr::Custom(_) | DbErr::Type(_) | DbErr::TryIntoErr { .. }
        ) =>
        {
            StoreError::Corrupt(text)
        }
        _ => StoreError::Failed(text),
    }
}
