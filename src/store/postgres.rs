//! The engine on PostgreSQL: registry, ledger and ownership for any number of instances.

mod connect;
mod failure;
mod ledger;
mod ledger_schema;
pub(super) mod move_in;
mod ownership;
mod pool;
mod schema;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use sea_orm::{DbErr, QueryResult};

pub use self::{connect::PostgresOptions, move_in::MoveInError};
pub(super) use self::{
    ledger::{PostgresLedger, SETTLE_PAUSE},
    ownership::{InstanceId, OwnershipOptions, PostgresOwnership},
    pool::{Database, Pool, WriteTransaction},
};
use super::{error::StoreError, sql::rows::unreadable};

/// Column with the history of the database: a promotion begins another.
const TIMELINE: &str = "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS timeline";

/// The column [`TIMELINE`].
fn timeline(row: &QueryResult) -> Result<u32, DbErr> {
    parse_timeline(&row.try_get::<String>("", "timeline")?)
}

fn parse_timeline(text: &str) -> Result<u32, DbErr> {
    u32::from_str_radix(text, 16).map_err(|_| unreadable("timeline"))
}

/// Reason that the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer version migrated it, and earlier ones must not write to it.
    #[error(
        "the database {database} was migrated by a newer version of siem-relay (it needs schema {minimum}, this version has {known}): nothing in it was changed; start that version, or a newer one"
    )]
    Newer {
        /// Name of the database.
        database: String,
        /// Oldest schema that may write to it.
        minimum: u32,
        /// Schema of this version.
        known: u32,
    },
    /// It cannot be reached, or refused a statement.
    #[error("cannot open the database {database} at {hosts}: {source}")]
    Database {
        /// Name of the database.
        database: String,
        /// The hosts that were tried.
        hosts: String,
        /// The error.
        source: StoreError,
    },
}

/// Connects to the database and migrates it.
pub(super) async fn open(options: PostgresOptions) -> Result<Database, OpenError> {
    let (name, hosts) = (options.database.clone(), options.hosts_text());
    let failed = |source| OpenError::Database {
        database: name.clone(),
        hosts: hosts.clone(),
        source,
    };
    let pool = Pool::new(options);
    if let Some(minimum) = schema::migrate(&pool).await.map_err(failed)? {
        let known = schema::VERSION;
        pool.close().await;
        return Err(OpenError::Newer {
            database: name,
            minimum,
            known,
        });
    }
    let id = schema::database_id(&pool).await.map_err(failed)?;
    Ok(Database::new(pool, &id))
}
