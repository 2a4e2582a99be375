//! Connections and transactions.
//!
//! The pool is an own one. That of sqlx 0.9 gives a connection on whose BEGIN was cancelled with
//! its transaction open, and waits without a bound, and with the permit, for a connection that is
//! dead in silence.
//!
//! - Every wait has a bound: for a permit and a connection together [`ACQUIRE`], for a statement
//!   [`STATEMENT`], for a commit [`COMMIT`].
//! - A connection is out of the pool while it is used. It comes back only after its transaction
//!   has ended: one whose call was cancelled, timed out or failed in an unclear way is closed.
//! - Every statement runs in a transaction that sets its limits itself, so that it works behind a
//!   pooler that gives each transaction another session, and ends even if this instance hangs.
//! - BEGIN asks in the same message whether the session takes writes, and for its timeline. One
//!   that does not, or that a promotion has replaced, is closed, so that after a failover no part
//!   of the pool stays on a former server. If BEGIN fails, nothing was done, and it is tried anew
//!   on a new connection.
//! - COMMIT waits for the synchronous standbys, and no time-out of the server ends that. One that
//!   takes longer than its bound is in doubt; it is awaited in the background, and until a commit
//!   has succeeded only one transaction at a time may try, all others fail at once. Transactions
//!   with [`Mode::WriteLocal`] and reads go on.

use std::{
    ops::Deref,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    connect::{Hosts, PostgresOptions, SERVER},
    failure,
};
use crate::store::{
    error::StoreError,
    sql::{of_statement, statement},
};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, Values,
    sqlx::{
        self, AssertSqlSafe, Connection as _, Either, Executor, Row,
        postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow},
    },
};
use sea_query_sqlx::SqlxValues;
use tokio::{
    runtime::Handle,
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout},
};

/// Bound on a permit, a connection and BEGIN together.
const ACQUIRE: Duration = Duration::from_secs(2);
/// Bound on BEGIN on a connection that was idle, which may be dead in silence.
const BEGIN: Duration = Duration::from_millis(700);
/// Bound on the answer to a statement. The server ends it earlier.
const STATEMENT: Duration = Duration::from_secs(5);
/// Bound on the answer to COMMIT.
const COMMIT: Duration = Duration::from_secs(5);
/// Time for which a commit in doubt is awaited before its session is ended.
const DOUBT: Duration = Duration::from_secs(30);
/// Bound on a rollback, and on closing a connection.
const RETURN: Duration = Duration::from_secs(1);
/// Bound on statements of a migration.
const MIGRATION: Duration = Duration::from_secs(600);
/// Age from which a connection is not used again: passwords and certificates change.
const LIFETIME: Duration = Duration::from_secs(1800);
/// Time after which an idle connection is not used again: load balancers forget it.
const IDLE: Duration = Duration::from_secs(240);

/// Kind of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reads only.
    Read,
    /// Reads only, and all statements see the same state.
    Snapshot,
    /// Its commit waits for the synchronous standbys.
    Write,
    /// Its commit is synced to the disk of the primary only: a promotion may take it back.
    WriteLocal,
    /// As `Write`, without limits for its statements.
    Migration,
}

impl Mode {
    /// Statements that begin the transaction. The last one returns whether the session takes
    /// writes, and its process.
    fn begin(self) -> String {
        let access = match self {
            Self::Read => "READ COMMITTED, READ ONLY",
            Self::Snapshot => "REPEATABLE READ, READ ONLY",
            _ => "READ COMMITTED, READ WRITE",
        };
        // Below the bounds of this side, so that the connection is used again.
        let (statement, lock, idle) = match self {
            Self::Migration => (0, 0, 60_000),
            _ => (4_500, 3_000, 10_000),
        };
        let commit = match self {
            Self::WriteLocal => "local",
            _ => "on",
        };
        format!(
            "BEGIN ISOLATION LEVEL {access}; \
            SET LOCAL statement_timeout = {statement}; \
            SET LOCAL lock_timeout = {lock}; \
            SET LOCAL idle_in_transaction_session_timeout = {idle}; \
            SET LOCAL synchronous_commit = {commit}; \
            SELECT {SERVER}, pg_backend_pid() AS process"
        )
    }

    /// Whether its commit waits for the synchronous standbys.
    fn is_replicated(self) -> bool {
        matches!(self, Self::Write | Self::Migration)
    }
}

/// The pool. Cheap to clone: clones are the same pool.
#[derive(Clone)]
pub(in crate::store) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    hosts: Arc<Hosts>,
    permits: Arc<Semaphore>,
    /// Connections outside of transactions, the one that was used last at the end.
    idle: Mutex<Vec<Connection>>,
    is_closed: AtomicBool,
    /// The last commits were not confirmed in time.
    is_in_doubt: AtomicBool,
    /// Right to commit while others are in doubt.
    probe: Arc<Semaphore>,
}

struct Connection {
    raw: PgConnection,
    connected_at: Instant,
    used_at: Instant,
    /// Process of the server that runs the present transaction.
    process: i32,
}

impl Connection {
    async fn begin(&mut self, hosts: &Hosts, mode: Mode) -> Result<(), String> {
        let sql = sqlx::raw_sql(AssertSqlSafe(mode.begin()));
        let row = self.raw.fetch_one(sql).await;
        let row = row.map_err(|error| error.to_string())?;
        self.process = row.try_get("process").map_err(|error| error.to_string())?;
        hosts.admit(&row)
    }

    async fn connect(hosts: &Hosts, options: PgConnectOptions, mode: Mode) -> Result<Self, String> {
        let raw = PgConnection::connect_with(&options).await;
        let mut connection = Self {
            raw: raw.map_err(|error| error.to_string())?,
            connected_at: Instant::now(),
            used_at: Instant::now(),
            process: 0,
        };
        connection.begin(hosts, mode).await?;
        Ok(connection)
    }

    fn is_stale(&self) -> bool {
        self.connected_at.elapsed() > LIFETIME || self.used_at.elapsed() > IDLE
    }
}

impl Pool {
    pub(super) fn new(options: PostgresOptions) -> Self {
        let permits = options.max_connections as usize;
        let shared = Shared {
            hosts: Hosts::new(options),
            permits: Arc::new(Semaphore::new(permits)),
            idle: Mutex::default(),
            is_closed: AtomicBool::new(false),
            is_in_doubt: AtomicBool::new(false),
            probe: Arc::new(Semaphore::new(1)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        let idle = self.shared.idle.lock();
        idle.unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self, mode: Mode) -> Result<Session, DbErr> {
        let probe = match self.shared.is_in_doubt.load(Ordering::Relaxed) {
            true if mode == Mode::Write => {
                let probe = Arc::clone(&self.shared.probe).try_acquire_owned();
                let refused = "earlier commits are not confirmed: the database, or a synchronous standby that it waits for, does not answer";
                Some(probe.map_err(|_| refusal(refused))?)
            }
            _ => None,
        };
        let begun = match timeout(ACQUIRE, self.acquire(mode)).await {
            Ok(begun) => begun,
            Err(_) if self.shared.permits.available_permits() == 0 => {
                Err("every connection is used".to_owned())
            }
            Err(_) => Err("the database does not answer".to_owned()),
        };
        let (connection, permit) = begun.map_err(|error| refusal(&error))?;
        Ok(Session {
            pool: self.clone(),
            mode,
            slot: AsyncMutex::new(Some(connection)),
            permits: Some(Permits {
                _permit: permit,
                _probe: probe,
            }),
        })
    }

    async fn acquire(&self, mode: Mode) -> Result<(Connection, OwnedSemaphorePermit), String> {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
        let permit = permit.map_err(|_| "the pool is closed".to_owned())?;
        if self.shared.is_closed.load(Ordering::Relaxed) {
            return Err("the pool is closed".to_owned());
        }
        let hosts = &*self.shared.hosts;
        loop {
            let idle = self.idle().pop();
            let Some(mut connection) = idle else {
                break;
            };
            if connection.is_stale() {
                continue;
            }
            match timeout(BEGIN, connection.begin(hosts, mode)).await {
                Ok(Ok(())) => return Ok((connection, permit)),
                Ok(Err(error)) => tracing::info!(error, "a connection to the database is closed"),
                Err(_) => tracing::info!("a connection to the database does not answer"),
            }
            // Most probably the others lead to the same server.
            self.idle().clear();
        }
        let connect = |options| Connection::connect(hosts, options, mode);
        let connection = hosts.first(connect).await?;
        Ok((connection, permit))
    }

    /// Takes a connection back, outside of a transaction.
    fn put(&self, mut connection: Connection) {
        connection.used_at = Instant::now();
        let mut idle = self.idle();
        if !self.shared.is_closed.load(Ordering::Relaxed) {
            idle.push(connection);
        }
        idle.retain(|connection| !connection.is_stale());
    }

    /// Ends a transaction in the background, within a bound.
    fn roll_back(&self, mut connection: Connection, permits: Option<Permits>) {
        // Without a runtime the connection is closed, which ends the transaction as well.
        if let Ok(runtime) = Handle::try_current() {
            let pool = self.clone();
            runtime.spawn(async move {
                let ended = timeout(RETURN, connection.raw.execute("ROLLBACK")).await;
                if let Ok(Ok(_)) = ended {
                    pool.put(connection);
                }
                drop(permits);
            });
        }
    }

    fn end_commit(
        &self,
        mode: Mode,
        committed: Result<(), sqlx::Error>,
        connection: Connection,
    ) -> Result<(), StoreError> {
        let Err(error) = committed else {
            self.put(connection);
            if mode.is_replicated() {
                self.shared.is_in_doubt.store(false, Ordering::Relaxed);
            }
            return Ok(());
        };
        if failure::is_rolled_back(&error) {
            self.put(connection);
            return Err(failure::translate(&of_statement(error)));
        }
        Err(StoreError::Unavailable(error.to_string()))
    }

    /// Returns an error if the pool is closed.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.shared.is_closed.load(Ordering::Relaxed) {
            true => Err(StoreError::Closed),
            false => Ok(()),
        }
    }

    /// Closes the connections, after the transactions that are under way, for a bounded time.
    pub(super) async fn close(&self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        let all = self.shared.hosts.options().max_connections;
        let _used = timeout(COMMIT, self.shared.permits.acquire_many(all)).await;
        self.shared.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            let _closed = timeout(RETURN, connection.raw.close()).await;
        }
    }

    /// Ends the session of a commit in doubt, which would keep its place on the server until the
    /// standby is back. It must not be cancelled instead: that would look like a success.
    async fn terminate(&self, process: i32) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 \
            AND wait_event = 'SyncRep' AND usename = current_user AND datname = current_database()";
        let ended = self
            .query_all_raw(statement(self, sql, [process.into()]))
            .await;
        match ended {
            Ok(ended) if ended.is_empty() => {}
            Ok(_) => tracing::warn!("ended a session that waits for a synchronous standby"),
            Err(error) => {
                tracing::warn!(%error, "a session that may wait for a synchronous standby cannot be ended")
            }
        }
    }
}

/// Error of a transaction that was not begun.
fn refusal(reason: &str) -> DbErr {
    DbErr::Conn(RuntimeErr::Internal(reason.to_owned()))
}

struct Permits {
    _permit: OwnedSemaphorePermit,
    /// Right to commit while others are in doubt.
    _probe: Option<OwnedSemaphorePermit>,
}

/// A transaction on a connection. Rolled back if it is dropped.
pub(in crate::store) struct Session {
    pool: Pool,
    mode: Mode,
    /// None while a statement runs, and after one that failed.
    slot: AsyncMutex<Option<Connection>>,
    permits: Option<Permits>,
}

impl Session {
    async fn call(
        &self,
        sql: String,
        values: Option<SqlxValues>,
    ) -> Result<(PgQueryResult, Vec<PgRow>), DbErr> {
        let mut slot = self.slot.lock().await;
        // If the caller is dropped, the connection is dropped with it.
        let Some(mut connection) = slot.take() else {
            return Err(refusal("an earlier statement of the transaction failed"));
        };
        let sql = AssertSqlSafe(sql);
        let called = async {
            let mut results = match values {
                None => connection.raw.fetch_many(sqlx::raw_sql(sql)),
                Some(values) => connection.raw.fetch_many(sqlx::query_with(sql, values)),
            };
            let (mut done, mut rows) = (PgQueryResult::default(), Vec::new());
            while let Some(result) = results.try_next().await? {
                match result {
                    Either::Left(result) => done.extend([result]),
                    Either::Right(row) => rows.push(row),
                }
            }
            Ok((done, rows))
        };
        let bound = match self.mode {
            Mode::Migration => MIGRATION,
            _ => STATEMENT,
        };
        let failed = match timeout(bound, called).await {
            Ok(Ok(results)) => {
                *slot = Some(connection);
                return Ok(results);
            }
            Ok(Err(error)) => error,
            Err(_) => {
                let text = "the database does not answer";
                std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
            }
        };
        // The transaction is over for the server: it would answer a COMMIT with a rollback that
        // looks like a success.
        if failure::is_of_the_statement(&failed) {
            self.pool.roll_back(connection, None);
        }
        Err(of_statement(failed))
    }

    /// Commits, and goes on with it if the caller is dropped.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        let Some(connection) = self.slot.get_mut().take() else {
            return Err(StoreError::Failed(
                "a statement of the transaction failed".into(),
            ));
        };
        let (reply, answer) = oneshot::channel();
        tokio::spawn(commit(self, connection, reply));
        match answer.await {
            Ok(answer) => answer,
            Err(_dropped) => Err(StoreError::Unavailable("the commit was given up".into())),
        }
    }
}

/// Commits the transaction of a session on its connection.
async fn commit(
    session: Session,
    mut connection: Connection,
    reply: oneshot::Sender<Result<(), StoreError>>,
) {
    let (pool, mode) = (session.pool.clone(), session.mode);
    let process = connection.process;
    let mut committing = pin!(async move {
        let committed = connection.raw.execute("COMMIT").await;
        (committed.map(drop), connection)
    });
    if let Ok((committed, connection)) = timeout(COMMIT, &mut committing).await {
        let committed = pool.end_commit(mode, committed, connection);
        drop(session);
        let _dropped = reply.send(committed);
        return;
    }
    if mode.is_replicated() && !pool.shared.is_in_doubt.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "a commit is not confirmed: the database, or a synchronous standby that it waits for, does not answer"
        );
    }
    // Others use its permits meanwhile.
    drop(session);
    let text = format!("no answer to COMMIT within {} s", COMMIT.as_secs());
    let _dropped = reply.send(Err(StoreError::Unavailable(text)));
    match timeout(DOUBT, &mut committing).await {
        Ok((committed, connection)) => {
            let late = pool.end_commit(mode, committed, connection);
            tracing::info!(?late, "a commit that was in doubt has ended");
        }
        Err(_) => pool.terminate(process).await,
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.slot.get_mut().take() {
            self.pool.roll_back(connection, self.permits.take());
        }
    }
}

#[async_trait]
impl ConnectionTrait for Session {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let values = values(statement.values);
        let (done, _rows) = self.call(statement.sql, Some(values)).await?;
        Ok(done.into())
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let (done, _rows) = self.call(sql.to_owned(), None).await?;
        Ok(done.into())
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let rows = self.query_all_raw(statement).await?;
        Ok(rows.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let values = values(statement.values);
        let (_done, rows) = self.call(statement.sql, Some(values)).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}

fn values(values: Option<Values>) -> SqlxValues {
    SqlxValues(values.unwrap_or(Values(Vec::new())))
}

/// Runs each statement in a transaction of its own that only reads.
#[async_trait]
impl ConnectionTrait for Pool {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.begin(Mode::Read).await?.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.begin(Mode::Read).await?.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.begin(Mode::Read).await?.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.begin(Mode::Read).await?.query_all_raw(statement).await
    }
}

/// The database. Cheap to clone: clones are the same database.
#[derive(Clone)]
pub(in crate::store) struct Database {
    pool: Pool,
    database_id: Arc<str>,
}

/// Transaction that writes. Rolled back if it is dropped.
pub(in crate::store) struct WriteTransaction(Session);

impl Deref for WriteTransaction {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl WriteTransaction {
    /// Commits. The commit goes on if the caller is dropped.
    ///
    /// # Errors
    ///
    /// `Unavailable` if it was sent and not confirmed: it may be kept, also if it is not visible
    /// yet, and lost although it was visible.
    pub(in crate::store) async fn commit(self) -> Result<(), StoreError> {
        self.0.commit().await
    }
}

impl Database {
    /// The database of a pool, whose tables exist.
    pub(super) fn new(pool: Pool, database_id: &str) -> Self {
        Self {
            pool,
            database_id: database_id.into(),
        }
    }

    /// Begins a transaction of which the commit waits for the synchronous standbys.
    pub(in crate::store) async fn begin(&self) -> Result<WriteTransaction, StoreError> {
        self.begin_as(Mode::Write).await
    }

    /// Begins a transaction of which the commit waits for the disk of the primary only: a
    /// promotion may take it back.
    pub(in crate::store) async fn begin_local(&self) -> Result<WriteTransaction, StoreError> {
        self.begin_as(Mode::WriteLocal).await
    }

    /// Begins a transaction in which every statement sees the same state.
    pub(in crate::store) async fn begin_snapshot(&self) -> Result<WriteTransaction, StoreError> {
        self.begin_as(Mode::Snapshot).await
    }

    async fn begin_as(&self, mode: Mode) -> Result<WriteTransaction, StoreError> {
        let begun = self.pool.begin(mode).await;
        begun.map(WriteTransaction).map_err(|error| self.map(error))
    }

    /// Whether the last commits that wait for the synchronous standbys were not confirmed in time.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.pool.shared.is_in_doubt.load(Ordering::Relaxed)
    }

    /// Connections for reads: each statement is a transaction of its own.
    pub(in crate::store) fn reader(&self) -> &Pool {
        &self.pool
    }

    /// Hosts of the database.
    pub(super) fn hosts(&self) -> &Hosts {
        &self.pool.shared.hosts
    }

    /// Identity of the database, made with it.
    pub(in crate::store) fn database_id(&self) -> &str {
        &self.database_id
    }

    /// Translates an error of a statement, of which nothing is kept.
    pub(in crate::store) fn map(&self, error: DbErr) -> StoreError {
        self.check()
            .err()
            .unwrap_or_else(|| failure::translate(&error))
    }

    /// Returns an error if the database is closed.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        self.pool.check()
    }

    /// Closes the connections, after the transactions that are under way, for a bounded time.
    #[cfg(test)]
    pub(in crate::store) async fn close(&self) {
        self.pool.close().await;
    }
}
