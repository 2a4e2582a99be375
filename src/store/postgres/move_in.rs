//! The mark of a database into which an embedded service is being moved. While it is there, no
//! instance starts on the database, so everything else in it came from the move.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbErr};

use super::{
    ownership::{MARGIN, NOW},
    pool::{Database, WriteTransaction},
};
use crate::store::{
    error::StoreError,
    sql::{
        copy::{Revisions, save_revisions},
        load_meta, save_meta, statement,
    },
};

/// Name of the mark in the table `meta`. Its value is the state and the id of the database that is
/// moved.
const MARK: &str = "move";
const COPYING: &str = "copying";
const COPIED: &str = "copied";

/// Tables that a move fills.
const TABLES: [&str; 7] = [
    "integration",
    "issued_external_id",
    "tombstone",
    "audit",
    "progress",
    "backlog",
    "damaged_chunk",
];

/// Reason that nothing can be moved into a database. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MoveInError {
    /// Instances run on it.
    #[error(
        "an instance runs on the database, or has ended without giving back its lease in the last {} s: stop every instance, and try again",
        .0.as_secs()
    )]
    Alive(Duration),
    /// It holds something that no interrupted move has left.
    #[error(
        "the database is not empty (there are rows in the table {0}): everything is moved into a database that no instance has used"
    )]
    NotEmpty(String),
    /// The move of another directory was interrupted.
    #[error(
        "the move of another directory into the database was interrupted: complete it first, or use another database"
    )]
    OtherMove,
    /// A request to the database failed.
    #[error("cannot use the database: {0}")]
    Storage(#[from] StoreError),
}

/// Whether a move into the database has begun and is not complete.
pub(in crate::store) async fn is_incomplete(database: &Database) -> Result<bool, StoreError> {
    let mark = load_meta(database.reader(), MARK).await;
    Ok(mark.map_err(|error| database.map(error))?.is_some())
}

/// Sets the mark, and removes what an interrupted move of the same source has left. `lease` is the
/// time for which instances hold their leases.
pub(in crate::store) async fn begin(
    database: &Database,
    source_id: &str,
    lease: Duration,
) -> Result<(), MoveInError> {
    let failed = |error: DbErr| database.map(error);
    let tx = database.begin().await?;
    let refusal = refusal(&tx, source_id, lease + MARGIN).await;
    if let Some(refusal) = refusal.map_err(failed)? {
        return Err(refusal);
    }
    let begun = async {
        let truncate = format!("TRUNCATE {} RESTART IDENTITY", TABLES.join(", "));
        tx.execute_unprepared(&truncate).await?;
        tx.execute_unprepared("DELETE FROM instance").await?;
        let sql = "UPDATE partition SET epoch = epoch + 1, owner = NULL, backlog_bytes = 0";
        tx.execute_unprepared(sql).await?;
        save_meta(&*tx, MARK, &format!("{COPYING} {source_id}")).await
    };
    begun.await.map_err(failed)?;
    Ok(tx.commit().await?)
}

async fn refusal(
    tx: &WriteTransaction,
    source_id: &str,
    lapse: Duration,
) -> Result<Option<MoveInError>, DbErr> {
    // An instance registers its lease and then looks for the mark. So either its lease is found
    // here, or it finds the mark.
    tx.execute_unprepared("LOCK TABLE instance IN EXCLUSIVE MODE")
        .await?;
    let sql = format!("SELECT FROM instance WHERE renewed_at > {NOW} - $1 LIMIT 1");
    let lapse_micros = i64::try_from(lapse.as_micros()).unwrap_or(i64::MAX);
    let alive = statement(&**tx, &sql, [lapse_micros.into()]);
    if tx.query_one_raw(alive).await?.is_some() {
        return Ok(Some(MoveInError::Alive(lapse)));
    }
    if let Some(mark) = load_meta(&**tx, MARK).await? {
        let is_other = mark.split_once(' ').is_none_or(|(_, id)| id != source_id);
        return Ok(is_other.then_some(MoveInError::OtherMove));
    }
    let tables =
        TABLES.map(|name| format!("SELECT '{name}' AS name WHERE EXISTS (SELECT FROM {name})"));
    let sql = format!(
        "{} UNION ALL SELECT 'partition' WHERE EXISTS \
        (SELECT FROM partition WHERE anchor_position IS NOT NULL) LIMIT 1",
        tables.join(" UNION ALL ")
    );
    let filled = tx.query_one_raw(statement(&**tx, &sql, [])).await?;
    let filled = filled.map(|row| row.try_get("", "name")).transpose()?;
    Ok(filled.map(MoveInError::NotEmpty))
}

/// Notes that everything is copied. Partitions are free from now on, and nothing that was read
/// before is valid for them.
pub(in crate::store) async fn set_copied(
    database: &Database,
    source_id: &str,
    revisions: Revisions,
) -> Result<(), StoreError> {
    let tx = database.begin().await?;
    let copied = async {
        save_revisions(&*tx, revisions).await?;
        // The copied rows have the ids of the source.
        let sql = "SELECT setval(pg_get_serial_sequence('audit', 'audit_id'), \
            GREATEST((SELECT MAX(audit_id) FROM audit), 1))";
        tx.execute_unprepared(sql).await?;
        let sql = "UPDATE partition SET epoch = epoch + 1, owner = NULL";
        tx.execute_unprepared(sql).await?;
        save_meta(&*tx, MARK, &format!("{COPIED} {source_id}")).await
    };
    copied.await.map_err(|error: DbErr| database.map(error))?;
    tx.commit().await
}

/// Removes the mark of a move that has copied everything. Returns false if there is another one.
pub(in crate::store) async fn finish(
    database: &Database,
    source_id: &str,
) -> Result<bool, StoreError> {
    let failed = |error: DbErr| database.map(error);
    let tx = database.begin().await?;
    let copied = format!("{COPIED} {source_id}");
    let mark = load_meta(&*tx, MARK).await.map_err(failed)?;
    if mark.is_some_and(|mark| mark != copied) {
        return Ok(false);
    }
    let sql = "DELETE FROM meta WHERE name = $1";
    let removed = tx.execute_raw(statement(&*tx, sql, [MARK.into()])).await;
    removed.map_err(failed)?;
    tx.commit().await?;
    Ok(true)
}
