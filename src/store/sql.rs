//! Common part of the engines on SQLite and on PostgreSQL: the registry, and facts about the
//! database.

mod audit;
pub(in crate::store) mod copy;
mod entities;
mod external_ids;
pub(in crate::store) mod keys;
mod registry;
pub(in crate::store) mod rows;

use std::{ops::Deref, sync::Arc};

use async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, RuntimeErr, Statement, Value, sqlx,
};

pub(in crate::store) use self::registry::{RegistryOptions, SqlRegistry};
use super::{error::StoreError, postgres, sqlite};

/// Either of SQLite or of PostgreSQL.
#[derive(Clone)]
pub(in crate::store) enum Either<S, P> {
    Sqlite(S),
    Postgres(P),
}

/// An SQL database. Cheap to clone: clones are the same database.
pub(in crate::store) type Database = Either<sqlite::Database, postgres::Database>;

/// Transaction that writes. Rolled back if it is dropped.
type WriteTransaction<'a> = Either<sqlite::WriteTransaction<'a>, postgres::WriteTransaction>;

/// Connections for single statements that read.
type Reader<'a> = Either<&'a DatabaseConnection, &'a postgres::Pool>;

/// Transaction that reads one state of the database.
type Snapshot = Either<Box<DatabaseTransaction>, postgres::WriteTransaction>;

impl Database {
    /// Begins a transaction in which every statement sees the same state.
    async fn begin_snapshot(&self) -> Result<Snapshot, StoreError> {
        Ok(match self {
            Self::Sqlite(database) => Either::Sqlite(database.begin_snapshot().await?),
            Self::Postgres(database) => Either::Postgres(database.begin_snapshot().await?),
        })
    }

    /// Begins a transaction that writes.
    async fn begin(&self) -> Result<WriteTransaction<'_>, StoreError> {
        Ok(match self {
            Self::Sqlite(database) => Either::Sqlite(database.begin().await?),
            Self::Postgres(database) => Either::Postgres(database.begin().await?),
        })
    }

    /// Connections for reads, which do not wait for writes. In SQLite's memory, a read waits for
    /// the end of a transaction: it must not be awaited within one.
    fn reader(&self) -> Reader<'_> {
        match self {
            Self::Sqlite(database) => Either::Sqlite(database.reader()),
            Self::Postgres(database) => Either::Postgres(database.reader()),
        }
    }

    /// Identity of the database, made with it.
    fn database_id(&self) -> &str {
        match self {
            Self::Sqlite(database) => database.database_id(),
            Self::Postgres(database) => database.database_id(),
        }
    }

    /// Translates an error of a statement.
    fn map(&self, error: DbErr) -> StoreError {
        match self {
            Self::Sqlite(database) => database.map(error),
            Self::Postgres(database) => database.map(error),
        }
    }
}

impl WriteTransaction<'_> {
    /// Commits: synced to disk, and by PostgreSQL's synchronous standbys.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the commit was not confirmed: it may be kept.
    async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
    }
}

#[async_trait]
impl<S, P> ConnectionTrait for Either<S, P>
where
    S: Deref<Target: ConnectionTrait> + Send + Sync,
    P: Deref<Target: ConnectionTrait> + Send + Sync,
{
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Sqlite(db) => db.get_database_backend(),
            Self::Postgres(db) => db.get_database_backend(),
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Sqlite(db) => db.execute_raw(statement).await,
            Self::Postgres(db) => db.execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self {
            Self::Sqlite(db) => db.execute_unprepared(sql).await,
            Self::Postgres(db) => db.execute_unprepared(sql).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Sqlite(db) => db.query_one_raw(statement).await,
            Self::Postgres(db) => db.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Sqlite(db) => db.query_all_raw(statement).await,
            Self::Postgres(db) => db.query_all_raw(statement).await,
        }
    }
}

/// Makes a statement for the kind of database behind a connection.
pub(in crate::store) fn statement(
    db: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// Returns a fact about the database from the table `meta`.
pub(in crate::store) async fn load_meta(
    db: &impl ConnectionTrait,
    name: &str,
) -> Result<Option<String>, DbErr> {
    let sql = "SELECT value FROM meta WHERE name = $1";
    let row = db.query_one_raw(statement(db, sql, [name.into()])).await?;
    row.map(|row| row.try_get("", "value")).transpose()
}

/// Sets a fact about the database in the table `meta`.
pub(in crate::store) async fn save_meta(
    db: &impl ConnectionTrait,
    name: &str,
    value: &str,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) \
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    let values = [name.into(), value.into()];
    db.execute_raw(statement(db, sql, values)).await.map(drop)
}

/// The driver's part of an error.
pub(in crate::store) fn driver_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))
        | DbErr::Conn(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// An error of a statement, in the form of SeaORM.
pub(in crate::store) fn of_statement(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

#[cfg(test)]
pub(in crate::store) mod testing {
    use super::*;

    /// An empty SQLite database in memory.
    pub(in crate::store) async fn database() -> Database {
        let engine = sqlite::testing::open_in_memory().await;
        Either::Sqlite(engine.database().clone())
    }
}
