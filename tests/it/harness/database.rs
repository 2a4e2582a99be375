//! The database file, read and changed from outside of the service.

use std::{path::Path, time::Duration};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use serde_json::Value;

/// Opens the database beside a running service, or after its end.
pub async fn database(data_dir: &Path) -> DatabaseConnection {
    let file = data_dir.join("siem-relay.sqlite");
    let url = format!("sqlite://{}?mode=rw", file.display());
    Database::connect(url).await.unwrap()
}

/// Makes all events of a stopped service older, in the log and in the backlogs.
pub async fn backdate_log(data_dir: &Path, by: Duration) {
    for table in ["entry", "backlog"] {
        let sql = format!("UPDATE {table} SET accepted_at = accepted_at - $1");
        backdate(data_dir, &sql, by).await;
    }
}

/// Makes the last deliveries of a stopped service older.
pub async fn backdate_deliveries(data_dir: &Path, by: Duration) {
    let sql = "UPDATE progress SET last_delivery_at = last_delivery_at - $1";
    backdate(data_dir, sql, by).await;
}

async fn backdate(data_dir: &Path, sql: &str, by: Duration) {
    if by.is_zero() {
        return;
    }
    let db = database(data_dir).await;
    let values = [i64::try_from(by.as_micros()).unwrap().into()];
    let update = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    db.execute_raw(update).await.unwrap();
    db.close().await.unwrap();
}

/// A row of the audit table.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditRow {
    pub organization_id: String,
    pub caller: String,
    pub action: String,
    pub detail: Value,
}

/// Reads the audit table of a stopped service: changes, oldest first, and then refusals.
pub async fn audit_rows(data_dir: &Path) -> Vec<AuditRow> {
    let db = database(data_dir).await;
    let sql = "SELECT organization_id, caller, action, detail FROM audit \
        ORDER BY audit_id < 0, audit_id";
    let query = Statement::from_string(DbBackend::Sqlite, sql);
    let rows = db.query_all_raw(query).await.unwrap();
    let audit_rows = rows.iter().map(|row| {
        let text = |column: &str| row.try_get::<String>("", column).unwrap();
        AuditRow {
            organization_id: text("organization_id"),
            caller: text("caller"),
            action: text("action"),
            detail: serde_json::from_str(&text("detail")).unwrap(),
        }
    });
    audit_rows.collect()
}
