//! The database, as who has the data directory may change it.

use std::path::Path;

use sea_orm::{Database, DatabaseConnection};

/// Opens it beside a service that runs, or in place of one that has ended.
pub async fn database(data_dir: &Path) -> DatabaseConnection {
    let file = data_dir.join("siem-relay.sqlite");
    let url = format!("sqlite://{}?mode=rw", file.display());
    Database::connect(url).await.unwrap()
}
