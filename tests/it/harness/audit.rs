//! The audit table, as an operator reads it.

use std::path::Path;

use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
use serde_json::Value;

/// One row of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Audited {
    pub organization_id: String,
    pub caller: String,
    pub action: String,
    pub detail: Value,
}

/// Reads the audit of a service that has ended, in the order of what happened.
pub async fn audit(data_dir: &Path) -> Vec<Audited> {
    let file = data_dir.join("siem-relay.sqlite");
    let url = format!("sqlite://{}?mode=ro", file.display());
    let db = Database::connect(url).await.unwrap();
    let sql = "SELECT organization_id, caller, action, detail FROM audit ORDER BY audit_id";
    let query = Statement::from_string(DbBackend::Sqlite, sql);
    let rows = db.query_all_raw(query).await.unwrap();
    let audited = rows.iter().map(|row| {
        let text = |column: &str| row.try_get::<String>("", column).unwrap();
        Audited {
            organization_id: text("organization_id"),
            caller: text("caller"),
            action: text("action"),
            detail: serde_json::from_str(&text("detail")).unwrap(),
        }
    });
    audited.collect()
}
