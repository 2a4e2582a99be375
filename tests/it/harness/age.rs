//! Time that passes while the service is down.

use std::{path::Path, time::Duration};

use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};

/// Lets all that waits in the log of a service that has ended be older.
pub async fn age_log(data_dir: &Path, by: Duration) {
    let file = data_dir.join("siem-relay.sqlite");
    let url = format!("sqlite://{}?mode=rw", file.display());
    let db = Database::connect(url).await.unwrap();
    let sql = "UPDATE chunk SET accepted_at = accepted_at - $1";
    let values = [i64::try_from(by.as_micros()).unwrap().into()];
    let update = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    db.execute_raw(update).await.unwrap();
    db.close().await.unwrap();
}
