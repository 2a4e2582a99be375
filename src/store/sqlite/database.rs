//! The database file, its write lock, and the end of its use.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait,
    sqlx::{self, Sqlite, pool::PoolConnection},
};
use tokio::sync::{Mutex, MutexGuard, watch};

use super::{connect::renew, failure, script::Script, slow::Slow};
use crate::store::{
    error::{Failure, StoreError},
    sql::of_statement,
};

/// An SQLite database. Cheap to clone: clones are the same database.
#[derive(Clone)]
pub(in crate::store) struct Database {
    shared: Arc<Shared>,
}

struct Shared {
    writes: DatabaseConnection,
    reads: DatabaseConnection,
    /// The write lock. Fair: whoever waits longest gets it next.
    lock: Mutex<Writing>,
    /// A database in memory, of which the only connection serves all.
    in_memory: bool,
    database_id: String,
    /// A connection for writes failed, and must not be used again.
    is_suspect: AtomicBool,
    ended: watch::Sender<Option<End>>,
}

/// State that the holder of the write lock uses.
#[derive(Default)]
struct Writing {
    /// Connection for scripts. Taking it from its pool and handing it back would each switch to
    /// the thread behind the connection.
    connection: Option<PoolConnection<Sqlite>>,
    slow: Slow,
}

/// End of a database's use.
#[derive(Clone, Debug)]
enum End {
    Closed,
    Failed(Failure),
}

/// Transaction that holds the write lock. Rolled back if it is dropped.
pub(in crate::store) struct WriteTransaction<'a> {
    // Dropped before the lock is released.
    tx: DatabaseTransaction,
    database: &'a Database,
    _lock: MutexGuard<'a, Writing>,
}

impl Deref for WriteTransaction<'_> {
    type Target = DatabaseTransaction;

    fn deref(&self) -> &DatabaseTransaction {
        &self.tx
    }
}

impl WriteTransaction<'_> {
    /// Commits, synced to disk.
    pub(in crate::store) async fn commit(self) -> Result<(), StoreError> {
        let committed = self.tx.commit().await;
        committed.map_err(|error| self.database.map(error))
    }
}

impl Database {
    /// A database with separate pools for writes and reads.
    pub(in crate::store) fn new(
        writes: DatabaseConnection,
        reads: DatabaseConnection,
        database_id: String,
    ) -> Self {
        Self::of(writes, reads, database_id, false)
    }

    /// A database in memory with its only connection.
    #[cfg(test)]
    pub(in crate::store) fn in_memory(only: DatabaseConnection, database_id: String) -> Self {
        Self::of(only.clone(), only, database_id, true)
    }

    fn of(
        writes: DatabaseConnection,
        reads: DatabaseConnection,
        database_id: String,
        in_memory: bool,
    ) -> Self {
        let shared = Shared {
            writes,
            reads,
            lock: Mutex::default(),
            in_memory,
            database_id,
            is_suspect: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Takes the write lock and begins a transaction.
    pub(in crate::store) async fn begin(&self) -> Result<WriteTransaction<'_>, StoreError> {
        let lock = self.lock().await?;
        let tx = self.shared.writes.begin().await;
        Ok(WriteTransaction {
            tx: tx.map_err(|error| self.map(error))?,
            database: self,
            _lock: lock,
        })
    }

    /// Begins a transaction in which every statement sees the same state.
    pub(in crate::store) async fn begin_snapshot(
        &self,
    ) -> Result<Box<DatabaseTransaction>, StoreError> {
        let tx = self.shared.reads.begin().await;
        tx.map(Box::new).map_err(|error| self.map(error))
    }

    /// Connections for reads, which do not wait for writes. In memory, a read waits for the end
    /// of a transaction: it must not be awaited within one.
    pub(in crate::store) fn reader(&self) -> &DatabaseConnection {
        &self.shared.reads
    }

    /// Identity of the database, made with it.
    pub(in crate::store) fn database_id(&self) -> &str {
        &self.shared.database_id
    }

    /// Translates an error, and notes if the database cannot be used any more.
    pub(in crate::store) fn map(&self, error: DbErr) -> StoreError {
        if let Err(ended) = self.check() {
            return ended;
        }
        if failure::is_of_the_driver(&error) {
            self.shared.is_suspect.store(true, Ordering::Relaxed);
        }
        if let Some(failure) = failure::failure(&error) {
            tracing::error!(%error, "the database cannot be used any more");
            self.end(End::Failed(failure));
        }
        failure::translate(&error)
    }

    /// Returns an error if the use of the database has ended.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        match &*self.shared.ended.borrow() {
            None => Ok(()),
            Some(End::Closed) => Err(StoreError::Closed),
            Some(End::Failed(failure)) => Err(StoreError::Failed(failure.to_string())),
        }
    }

    /// Returns when the use of the database has ended, with the failure that ended it.
    pub(in crate::store) async fn ended(&self) -> Option<Failure> {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(End::Failed(failure))) => Some(failure.clone()),
            _ => None,
        }
    }

    fn end(&self, end: End) {
        self.shared.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(end);
            is_first
        });
    }

    /// Closes the connections, after the transaction that is under way.
    pub(in crate::store) async fn close(&self) {
        let mut lock = self.shared.lock.lock().await;
        self.end(End::Closed);
        close_connection(lock.connection.take()).await;
        let pools = [&self.shared.writes, &self.shared.reads];
        for pool in pools {
            pool.get_sqlite_connection_pool().close().await;
        }
    }

    /// Runs a script as one transaction, under the write lock.
    pub(in crate::store::sqlite) async fn run(&self, script: Script) -> Result<(), StoreError> {
        let mut lock = self.lock().await?;
        let Writing { connection, slow } = &mut *lock;
        let pool = self.shared.writes.get_sqlite_connection_pool();
        let written = slow.watch(async {
            if connection.is_none() {
                let acquired = pool.acquire().await;
                *connection = Some(acquired.map_err(of_statement)?);
            }
            match connection {
                Some(connection) => script.run(connection).await,
                None => Ok(()),
            }
        });
        let written = written.await;
        if self.shared.in_memory
            && let Some(mut connection) = connection.take()
            && written.is_err()
        {
            // Fails if the transaction has ended already.
            let _ended = sqlx::query("ROLLBACK").execute(&mut *connection).await;
        }
        let Err(error) = written else {
            return Ok(());
        };
        tracing::error!(%error, "cannot write to the log");
        let error = self.map(error);
        // Releases the lock on the database that a failed transaction may keep.
        close_connection(connection.take()).await;
        Err(error)
    }

    async fn lock(&self) -> Result<MutexGuard<'_, Writing>, StoreError> {
        let mut lock = self.shared.lock.lock().await;
        self.check()?;
        let is_suspect = self.shared.is_suspect.swap(false, Ordering::Relaxed);
        if is_suspect && !self.shared.in_memory {
            close_connection(lock.connection.take()).await;
            renew(self.shared.writes.get_sqlite_connection_pool()).await;
        }
        Ok(lock)
    }
}

async fn close_connection(connection: Option<PoolConnection<Sqlite>>) {
    if let Some(connection) = connection
        && let Err(error) = connection.close().await
    {
        tracing::warn!(%error, "the connection to the database did not close cleanly");
    }
}
