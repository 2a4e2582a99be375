//! Several statements that SQLite runs at one call. Each call switches to the thread behind the
//! connection, so that a transaction of single statements costs a switch for each of them.

use futures_util::TryStreamExt;
use sea_orm::{
    DbErr,
    sqlx::{
        self, Arguments, AssertSqlSafe, Either, Encode, Executor, Sqlite, SqliteConnection, Type,
        error::BoxDynError, sqlite::SqliteArguments,
    },
};

use tokio::time::Instant;

use crate::{metrics, store::sql::of_statement};

/// Statements, and the values of their parameters, which are plain `?`.
#[derive(Default)]
pub(super) struct Script {
    sql: String,
    values: SqliteArguments,
    statements: usize,
    is_rare: bool,
    failed: Option<BoxDynError>,
}

impl Script {
    /// Adds a statement that consists of names and placeholders only. Its values follow.
    pub(super) fn add(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self.sql.push(';');
        self.statements += 1;
        self
    }

    /// Adds the value of the next parameter.
    pub(super) fn bind<'q, T>(&mut self, value: T) -> &mut Self
    where
        T: Encode<'q, Sqlite> + Type<Sqlite>,
    {
        if let Err(error) = self.values.add(value) {
            self.failed.get_or_insert(error);
        }
        self
    }

    /// Excludes the script from the cache of prepared statements, because its text is rare.
    pub(super) fn set_rare(&mut self) {
        self.is_rare = true;
    }

    /// Runs them as one transaction, synced to disk.
    ///
    /// # Errors
    ///
    /// The transaction may be open until the caller has closed the connection.
    pub(super) async fn run(self, connection: &mut SqliteConnection) -> Result<(), DbErr> {
        if let Some(error) = self.failed {
            return Err(of_statement(sqlx::Error::Encode(error)));
        }
        debug_assert_eq!(self.sql.matches('?').count(), self.values.len());
        let (sql, statements) = match self.statements {
            // A transaction of its own.
            1 => (self.sql, 1),
            more => (format!("BEGIN IMMEDIATE;{}COMMIT", self.sql), more + 2),
        };
        let query = sqlx::query_with(AssertSqlSafe(sql), self.values).persistent(!self.is_rare);
        let mut results = connection.fetch_many(query);
        let (mut done, mut committing) = (0, None);
        while let Some(result) = results.try_next().await.map_err(of_statement)? {
            done += usize::from(matches!(result, Either::Left(_)));
            if done + 1 == statements && statements > 1 {
                committing = Some(Instant::now());
            }
        }
        if let Some(since) = committing.filter(|_| done == statements) {
            metrics::LOG_SYNC_DURATION.record(since.elapsed());
        }
        match done == statements {
            true => Ok(()),
            // The thread behind the connection has ended, which looks like the end of the results.
            false => Err(of_statement(sqlx::Error::WorkerCrashed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::sqlx::{Connection, Row};

    use super::*;

    const INSERT: &str = "INSERT INTO number (value, name) VALUES (?, ?)";

    async fn open(path: &str) -> SqliteConnection {
        SqliteConnection::connect(path).await.unwrap()
    }

    async fn names(connection: &mut SqliteConnection) -> Vec<(i64, String)> {
        let rows = sqlx::query("SELECT value, name FROM number ORDER BY value");
        let rows = rows.fetch_all(connection).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    #[tokio::test]
    async fn everything_is_kept_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("sqlite:{}?mode=rwc", folder.path().join("db").display());
        let mut connection = open(&path).await;
        let mut script = Script::default();
        script.add("CREATE TABLE number (value BIGINT PRIMARY KEY, name TEXT NOT NULL)");
        script.run(&mut connection).await.unwrap();

        let mut script = Script::default();
        script.add(INSERT).bind(1_i64).bind("one".to_owned());
        script.add(INSERT).bind(2_i64).bind("two".to_owned());
        script.run(&mut connection).await.unwrap();
        let kept = [(1, "one".to_owned()), (2, "two".to_owned())];
        assert_eq!(names(&mut connection).await, kept);

        let mut script = Script::default();
        script.add(INSERT).bind(3_i64).bind("three".to_owned());
        script.add(INSERT).bind(1_i64).bind("one again".to_owned());
        assert!(script.run(&mut connection).await.is_err());
        connection.close().await.unwrap();
        let mut connection = open(&path).await;
        assert_eq!(names(&mut connection).await, kept);
        let mut script = Script::default();
        script.add(INSERT).bind(3_i64).bind("three".to_owned());
        script.run(&mut connection).await.unwrap();
        assert_eq!(names(&mut connection).await.len(), 3);
    }
}
