//! Engines for tests.

use std::{path::Path, time::Duration};

use super::{Engine, SqliteOptions};

/// Settings for a directory.
pub(in crate::store) fn options(data_dir: &Path) -> SqliteOptions {
    SqliteOptions {
        data_dir: data_dir.to_owned(),
        disk_reserve_bytes: 1 << 20,
        settle_linger: Duration::from_millis(10),
    }
}

/// Opens the database in a directory.
pub(in crate::store) async fn open(data_dir: &Path) -> Engine {
    super::open(&options(data_dir)).await.unwrap()
}

/// Opens an empty database in memory.
pub(in crate::store) async fn open_in_memory() -> Engine {
    super::open_in_memory(options(Path::new("")).settle_linger)
        .await
        .unwrap()
}
