//! What few statements write, as most is while little comes: one script, on a connection
//! that stays with the writer. To begin a transaction, to end it, and to hand a connection
//! back to its pool would each take a turn of the thread behind the connection.

use std::ops::Range;

use jiff::Timestamp;
use sea_orm::{
    DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{Sqlite, pool::PoolConnection},
};

use super::{
    packs::{NewPack, PackDraft},
    script::Script,
    settling::Settled,
    statements::{NewChunk, add_chunks},
};

/// Chunks of one statement: with each number of them a script is another, and is kept
/// prepared.
const MOST_CHUNKS: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Express {
    connection: Option<PoolConnection<Sqlite>>,
}

/// What is written at once.
pub(super) struct Parcel<'a> {
    pub(super) chunks: &'a [NewChunk],
    /// Which of them lie in packs.
    pub(super) packs: &'a [Range<usize>],
    pub(super) settled: &'a Settled,
    pub(super) settled_packs: &'a PackDraft<'a>,
}

impl Parcel<'_> {
    /// Whether a script writes it, with little in memory at once.
    pub(super) fn is_little(&self) -> bool {
        let appends_little = match (self.packs, self.chunks) {
            ([], []) => !self.settled.is_empty(),
            ([pack], chunks) => pack.len() == chunks.len(),
            ([], [_]) => true,
            ([], chunks) => chunks.len() <= MOST_CHUNKS && chunks.iter().all(NewChunk::is_small),
            _ => false,
        };
        appends_little && self.settled.is_little() && self.settled_packs.is_little()
    }

    fn script(&self, now: Timestamp) -> Script {
        let mut script = Script::default();
        match (self.packs, self.chunks) {
            (_, []) => {}
            ([], chunks) => add_chunks(&mut script, chunks),
            (_, chunks) => NewPack::of(chunks).add_to(&mut script, now),
        }
        self.settled.add_to(&mut script);
        self.settled_packs.add_to(&mut script);
        script
    }
}

impl Express {
    /// Writes it, synced to disk, or nothing of it once the connection is closed.
    pub(super) async fn write(
        &mut self,
        db: &DatabaseConnection,
        parcel: &Parcel<'_>,
        now: Timestamp,
    ) -> Result<(), DbErr> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let connection = db.get_sqlite_connection_pool().acquire().await;
                none.insert(connection.map_err(failed)?)
            }
        };
        parcel.script(now).run(connection).await
    }

    /// Closes the connection, and with it a transaction that has failed; the next write
    /// opens another.
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
