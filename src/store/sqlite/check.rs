//! Check for damage at the start.

use std::{fs, path::Path};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Value};

use super::failure;
use crate::store::sql::statement;

/// Bytes up to which a database is checked whole, which takes about a second. Of a larger one
/// the events are left out, which have checksums of their own.
const WHOLE_BYTES: u64 = 256 << 20;
/// Tables with events, of this and of earlier versions.
const EVENT_TABLES: [&str; 4] = ["entry", "backlog", "chunk", "pack"];

/// First damage that is found.
pub(super) async fn damage(db: &DatabaseConnection, file: &Path) -> Result<Option<String>, DbErr> {
    let found = match fs::metadata(file) {
        Ok(metadata) if metadata.len() > WHOLE_BYTES => without_events(db).await,
        _ => first_problem(db, "PRAGMA quick_check(1)").await,
    };
    match found {
        Err(error) if failure::is_damage(&error) => Ok(Some(error.to_string())),
        found => found,
    }
}

async fn without_events(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let sql =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ($1, $2, $3, $4)";
    let tables = db
        .query_all_raw(statement(db, sql, EVENT_TABLES.map(Value::from)))
        .await?;
    for table in tables {
        let name: String = table.try_get("", "name")?;
        // A name of the schema, which has no quotes.
        let sql = format!("PRAGMA quick_check('{name}')");
        if let Some(problem) = first_problem(db, &sql).await? {
            return Ok(Some(problem));
        }
    }
    Ok(None)
}

async fn first_problem(db: &DatabaseConnection, sql: &str) -> Result<Option<String>, DbErr> {
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    let first = rows
        .first()
        .map(|row| row.try_get::<String>("", "quick_check"));
    Ok(first.transpose()?.filter(|verdict| verdict != "ok"))
}
