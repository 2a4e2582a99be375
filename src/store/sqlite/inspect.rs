//! A look at the database that changes nothing, beside a process that uses it or without one.

use std::{io, path::Path, time::Duration};

use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection, DbErr};
use sea_orm_migration::MigratorTrait;

use super::{
    DATABASE_FILE, MOVED, MOVED_TO, OpenError, check,
    connect::page_bytes,
    database_id, exists,
    schema::Migrator,
    space::{Allotment, disk_bytes, free_bytes},
};
use crate::store::{
    ports::Keys,
    sql::{keys, load_meta, statement},
};

/// Time for a connection, and for a lock of another process.
const TIMEOUT: Duration = Duration::from_secs(5);

/// State of a database that this version can open.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Migrations that the next start performs, because an earlier version made the database.
    pub pending_migrations: usize,
    /// Keys that the stored external IDs need.
    pub keys: Keys,
    /// Free bytes of the disk.
    pub free_bytes: u64,
    /// Bytes of the disk that events leave free.
    pub reserve_bytes: u64,
}

/// Looks at the database in a directory; None if there is none.
pub(in crate::store) async fn inspect(
    data_dir: &Path,
    reserve: u64,
) -> Result<Option<Inspection>, OpenError> {
    let failed = |source: io::Error| OpenError::Directory {
        path: data_dir.to_owned(),
        source,
    };
    match data_dir.metadata() {
        Ok(_) if exists(data_dir) => {}
        Ok(_) => return Ok(None),
        // The start makes the directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let path = data_dir.join(DATABASE_FILE);
    let disk = disk_bytes(data_dir).map_err(failed)?;
    let reserve_bytes = Allotment::of(disk, reserve, page_bytes(&path)).reserve_bytes();
    let free_bytes = free_bytes(data_dir).map_err(failed)?;
    let failed = |error: DbErr| OpenError::of(&path, &error);
    let db = connect(&path).await.map_err(failed)?;
    let looked = look(&db, &path).await;
    db.close_by_ref().await.map_err(failed)?;
    let (pending_migrations, keys) = looked?;
    Ok(Some(Inspection {
        pending_migrations,
        keys,
        free_bytes,
        reserve_bytes,
    }))
}

async fn connect(path: &Path) -> Result<DatabaseConnection, DbErr> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    // A process that uses the database has a write-ahead log. Without one, a connection that only
    // reads would make it, and leave it: <https://www.sqlite.org/wal.html#read_only_databases>.
    let is_unused = !Path::new(&wal).exists();
    let path = path.to_owned();
    let mut options = ConnectOptions::new("sqlite:");
    options
        .max_connections(1)
        .min_connections(1)
        .sqlx_logging(false)
        .acquire_timeout(TIMEOUT)
        .map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .filename(&path)
                .read_only(true)
                .immutable(is_unused)
                .busy_timeout(TIMEOUT)
        });
    sea_orm::Database::connect(options).await
}

async fn look(db: &DatabaseConnection, path: &Path) -> Result<(usize, Keys), OpenError> {
    let failed = |error: DbErr| OpenError::of(path, &error);
    if let Some(what) = check::damage(db, path).await.map_err(failed)? {
        let path = path.to_owned();
        return Err(OpenError::Damaged { path, what });
    }
    // The migrator's own query would make its table.
    let sql = "SELECT version FROM seaql_migrations";
    let rows = db.query_all_raw(statement(db, sql, [])).await;
    let rows = rows.map_err(failed)?;
    let applied = rows.iter().map(|row| row.try_get::<String>("", "version"));
    let applied = applied.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if applied.iter().any(|version| version == MOVED)
        && let Some(to) = load_meta(db, MOVED_TO).await.map_err(failed)?
    {
        let data_dir = path.parent().unwrap_or(path).to_owned();
        let from = database_id(db).await.map_err(failed)?;
        return Err(OpenError::Moved { data_dir, from, to });
    }
    let known = Migrator::migrations();
    let is_known = |version: &String| known.iter().any(|known| known.name() == version);
    if let Some(migration) = applied.iter().find(|version| !is_known(version)) {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            migration: migration.clone(),
        });
    }
    let is_pending = |name: &str| applied.iter().all(|version| version != name);
    let pending = known.iter().filter(|known| is_pending(known.name()));
    // An earlier version may lack the table, and its key is known once it was migrated.
    let keys = match pending.clone().count() {
        0 => keys::load(db).await.map_err(failed)?,
        _ => Keys::default(),
    };
    Ok((pending.count(), keys))
}
