//! The SQLite engine in the suites. A crash goes on with a copy of the files, as they are at that
//! moment: what the engine before it writes later does not count.

use std::{fs, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, QueryResult, Value};
use tempfile::TempDir;

use super::{Acquire, Checked, Damage, Harness, Ports, call, ledger, log, owner};
use crate::{
    domain::{
        audit::Actor,
        integration::{Integration, IntegrationId, testing::integration},
        organization::OrganizationId,
    },
    store::{
        error::StoreError,
        ports::{Claim, Keys, Lease, Partition, Planned, Registry},
        sql::{Database, RegistryOptions, SqlRegistry, statement},
        sqlite::{Engine, testing},
    },
};

/// Makes engines in temporary directories.
pub(super) struct Sqlite;

struct SqliteEngine {
    engine: Engine,
    data_dir: TempDir,
}

#[async_trait]
impl Harness for Sqlite {
    async fn create(&self) -> Checked<Box<dyn super::Engine>> {
        let data_dir = directory()?;
        Ok(Box::new(SqliteEngine {
            engine: testing::open(data_dir.path()).await,
            data_dir,
        }))
    }
}

fn directory() -> Checked<TempDir> {
    tempfile::tempdir().map_err(|error| error.to_string())
}

fn organization(id: IntegrationId) -> Checked<OrganizationId> {
    let name = format!("customer-{}", id.0.simple());
    OrganizationId::new(&name).map_err(|error| error.to_string())
}

async fn registry(database: Database) -> Checked<SqlRegistry> {
    let options = RegistryOptions {
        partitions: 1,
        tombstones: 1_000,
        failing_after: Duration::from_secs(60),
    };
    call("registry", SqlRegistry::open(database, options)).await
}

/// Adds an integration to the registry in a database.
pub(super) async fn add_integration(database: Database, id: IntegrationId) -> Checked {
    let organization_id = organization(id)?;
    let plan = |_: Option<&_>, _: &Keys| {
        Ok(Planned {
            integration: Integration {
                organization_id: organization_id.clone(),
                integration_id: id,
                ..integration(1, 1)
            },
            claim: Claim {
                fingerprint: id.0.as_bytes().to_vec(),
                others: Vec::new(),
                sealed: integration(1, 1).external_id,
            },
            previous_claim: None,
            changed: None,
            issued_only: false,
            actor: Actor::named("test"),
        })
    };
    let registry = registry(database).await?;
    call("configure", registry.configure(&organization_id, &plan)).await?;
    Ok(())
}

/// Removes an integration from the registry in a database.
pub(super) async fn delete_integration(database: Database, id: IntegrationId) -> Checked {
    let registry = registry(database).await?;
    let organization_id = organization(id)?;
    let deleted = call(
        "delete",
        registry.delete(&organization_id, None, &Actor::named("test")),
    )
    .await?;
    deleted
        .map(drop)
        .ok_or_else(|| format!("{id} does not exist"))
}

impl SqliteEngine {
    fn database(&self) -> Database {
        Database::Sqlite(self.engine.database().clone())
    }

    async fn execute(&self, sql: &str, values: Vec<Value>) -> Checked {
        let tx = call("begin", self.engine.database().begin()).await?;
        call(sql, tx.execute_raw(statement(&*tx, sql, values))).await?;
        call("commit", tx.commit()).await
    }

    /// Changes a byte in the middle of a column of bytes.
    async fn flip(&self, column: &str, table: &str, condition: &str) -> Checked {
        let db = self.engine.database().reader();
        let sql = format!("SELECT {column} AS bytes FROM {table} WHERE {condition}");
        let row: Option<QueryResult> =
            call(&sql, db.query_one_raw(statement(db, &sql, []))).await?;
        let row = row.ok_or("nothing to damage")?;
        let bytes = row.try_get::<Vec<u8>>("", "bytes");
        let mut bytes = bytes.map_err(|error| error.to_string())?;
        let middle = bytes.len() / 2;
        let byte = bytes.get_mut(middle).ok_or("no bytes to damage")?;
        *byte = !*byte;
        let sql = format!("UPDATE {table} SET {column} = $1 WHERE {condition}");
        self.execute(&sql, vec![bytes.into()]).await
    }
}

#[async_trait]
impl Acquire for Engine {
    async fn acquire(&self) -> Result<Vec<Lease>, StoreError> {
        Ok(vec![Engine::acquire(self).await?])
    }
}

#[async_trait]
impl super::Engine for SqliteEngine {
    fn ports(&self) -> Ports {
        let engine = Arc::new(self.engine.clone());
        Ports {
            log: engine.clone(),
            ledger: engine.clone(),
            acquire: engine,
        }
    }

    async fn crash(&mut self) -> Checked {
        let to = directory()?;
        // The database before its log, so that a page is in one of them.
        for suffix in ["", "-wal"] {
            let name = format!("siem-relay.sqlite{suffix}");
            copy(self.data_dir.path(), to.path(), &name)?;
        }
        self.engine = testing::open(to.path()).await;
        self.data_dir = to;
        Ok(())
    }

    async fn add_integration(&self, id: IntegrationId, _: Partition) -> Checked {
        add_integration(self.database(), id).await
    }

    async fn delete_integration(&self, id: IntegrationId) -> Checked {
        delete_integration(self.database(), id).await
    }

    async fn damage(&mut self, damage: Damage) -> Checked<bool> {
        match damage {
            Damage::Payload(_, at) => {
                let condition = format!("position = {}", at.0);
                self.flip("payload", "entry", &condition).await?;
            }
            Damage::Header(_, at) => {
                let condition = format!("position = {}", at.0);
                self.flip("header", "entry", &condition).await?;
            }
            Damage::Lost(_, at) => {
                let values = vec![(at.0 as i64).into()];
                self.execute("DELETE FROM entry WHERE position = $1", values)
                    .await?;
            }
            Damage::Recreated(_) => {
                let sql = "UPDATE entry SET entry_id = randomblob(16)";
                self.execute(sql, Vec::new()).await?;
            }
            Damage::Backlog(id, first_sequence) => {
                let condition = format!(
                    "first_sequence = {first_sequence} AND integration_key = \
                    (SELECT integration_key FROM integration WHERE integration_id = '{id}')"
                );
                self.flip("payload", "backlog", &condition).await?;
            }
            Damage::PositionsForgotten => return Ok(false),
        }
        Ok(true)
    }
}

fn copy(from: &Path, to: &Path, name: &str) -> Checked {
    match fs::copy(from.join(name), to.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn the_log_conforms() {
    assert_eq!(log::suite(&Sqlite, 12).await, Ok(()));
}

#[tokio::test]
async fn the_ledger_conforms() {
    assert_eq!(ledger::suite(&Sqlite, 12).await, Ok(()));
}

#[tokio::test]
async fn an_owner_loses_nothing() {
    assert_eq!(owner::suite(&Sqlite, 12).await, Ok(()));
}
