//! Time that passes while the service is down.

use std::{path::Path, time::Duration};

use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::database;

/// Lets all that waits in the log of a service that has ended be older.
pub async fn age_log(data_dir: &Path, by: Duration) {
    let sql = "UPDATE chunk SET accepted_at = accepted_at - $1";
    age(data_dir, sql, by).await;
}

/// Lets the last deliveries of a service that has ended be longer ago.
pub async fn age_deliveries(data_dir: &Path, by: Duration) {
    let sql = "UPDATE progress SET last_delivery_at = last_delivery_at - $1";
    age(data_dir, sql, by).await;
}

async fn age(data_dir: &Path, sql: &str, by: Duration) {
    let db = database(data_dir).await;
    let values = [i64::try_from(by.as_micros()).unwrap().into()];
    let update = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    db.execute_raw(update).await.unwrap();
    db.close().await.unwrap();
}
