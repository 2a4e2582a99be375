//! Whether a database is sound, asked at start.

use std::{fs, path::Path};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Value};

use super::{failure, rows::statement};

/// A database up to this size is looked through whole, which takes about a second; of a
/// larger one everything but the log, whose chunks are checked as they are read.
const WHOLE_BYTES: u64 = 256 << 20;
const LOG_TABLES: [&str; 2] = ["chunk", "pack"];

/// What is wrong with the database, where something is.
pub(super) async fn damage(db: &DatabaseConnection, file: &Path) -> Result<Option<String>, DbErr> {
    let found = match fs::metadata(file) {
        Ok(metadata) if metadata.len() > WHOLE_BYTES => beside_the_log(db).await,
        _ => first_problem(db, "PRAGMA quick_check(1)").await,
    };
    match found {
        Err(error) if failure::is_damage(&error) => Ok(Some(error.to_string())),
        found => found,
    }
}

async fn beside_the_log(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ($1, $2)";
    let tables = db
        .query_all_raw(statement(db, sql, LOG_TABLES.map(Value::from)))
        .await?;
    for table in tables {
        let name: String = table.try_get("", "name")?;
        // The names are the schema's own; quotes in them are not.
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
