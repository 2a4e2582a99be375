//! Databases for tests.

use std::sync::atomic::{AtomicU32, Ordering};

use test_services::{Postgres, require, shared_postgres};
use tokio::sync::OnceCell;

use super::{Database, PostgresOptions};

/// Settings for the database at a URL.
pub(in crate::store) fn options(url: &str) -> PostgresOptions {
    PostgresOptions::parse(url, None, None).unwrap()
}

/// Opens the database at a URL.
pub(in crate::store) async fn open(url: &str) -> Database {
    super::open(options(url)).await.unwrap()
}

/// Returns the URL of an empty, migrated database in the server that the tests of this process
/// share. None, with a message, if there is no PostgreSQL.
pub(in crate::store) async fn migrated() -> Option<String> {
    static TEMPLATE: OnceCell<()> = OnceCell::const_new();
    let server = require(shared_postgres().await)?;
    let make = || async {
        open(&server.create_database("template_migrated").await)
            .await
            .close()
            .await;
    };
    TEMPLATE.get_or_init(make).await;
    let name = unused_name();
    // A copy of the files, which is quicker than the log of a copy.
    let create = format!("CREATE DATABASE {name} TEMPLATE template_migrated STRATEGY file_copy");
    server.sql("postgres", &create).await;
    Some(server.database_url(&name))
}

/// Returns the URL of an empty database of the server.
pub(in crate::store) async fn empty(server: &Postgres) -> String {
    server.create_database(&unused_name()).await
}

fn unused_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test_{}_{number}", std::process::id())
}
