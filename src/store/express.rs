//! Appends that one statement makes, as most are while little comes: on a connection that
//! stays with the writer. To begin a transaction, to end it, and to hand a connection back
//! to its pool each take a turn of the thread behind the connection.

use std::ops::Range;

use jiff::Timestamp;
use sea_orm::{
    DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{Sqlite, pool::PoolConnection},
};

use super::{
    packs::NewPack,
    statements::{NewChunk, insert_at_once},
};

/// Chunks of one statement: each number of them is a statement that is kept prepared.
const MOST_CHUNKS: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Express {
    connection: Option<PoolConnection<Sqlite>>,
}

impl Express {
    /// Whether one statement appends these, with little in memory at once.
    pub(super) fn takes(chunks: &[NewChunk], packs: &[Range<usize>]) -> bool {
        match (packs, chunks) {
            (_, []) => false,
            ([pack], chunks) => pack.len() == chunks.len(),
            ([], [_]) => true,
            ([], chunks) => chunks.len() <= MOST_CHUNKS && chunks.iter().all(NewChunk::is_small),
            _ => false,
        }
    }

    /// Appends chunks, synced to disk, or none of them.
    pub(super) async fn append(
        &mut self,
        db: &DatabaseConnection,
        chunks: &[NewChunk],
        packs: &[Range<usize>],
        now: Timestamp,
    ) -> Result<(), DbErr> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let connection = db.get_sqlite_connection_pool().acquire().await;
                none.insert(connection.map_err(failed)?)
            }
        };
        match packs {
            [] => insert_at_once(connection, chunks).await,
            _ => NewPack::of(chunks).insert_at_once(connection, now).await,
        }
    }

    /// Closes the connection; the next append opens another.
    pub(super) async fn close(&mut self) -> Result<(), DbErr> {
        match self.connection.take() {
            Some(connection) => connection.close().await.map_err(failed),
            None => Ok(()),
        }
    }
}

fn failed(error: sea_orm::sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}
