//! The schema and its migrations. Times are microseconds since the Unix epoch.

use sea_orm_migration::{prelude::*, schema::*};

use crate::store::sql::{rows::unreadable, statement};

/// Brings a database to the newest schema.
pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(Initial),
            Box::new(Gaps),
            Box::new(LogOutline),
            Box::new(Progress),
            Box::new(Packs),
            Box::new(StoredEvents),
            Box::new(EventLog),
            Box::new(Audit),
            Box::new(IssuedKeys),
        ]
    }
}

struct Initial;

impl MigrationName for Initial {
    fn name(&self) -> &str {
        "m0001_initial"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Initial {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [
            meta(),
            partition(),
            integration(),
            chunk(),
            issued_external_id(),
            tombstone(),
            audit(),
        ] {
            manager.create_table(table).await?;
        }
        manager.create_index(chunk_order()).await?;
        manager.create_index(previous_external_ids()).await?;
        manager.create_index(issued_order()).await?;
        manager.create_index(audit_order()).await
    }

    /// A kill in the middle changes nothing.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Gaps in place of events that are given up.
struct Gaps;

impl MigrationName for Gaps {
    fn name(&self) -> &str {
        "m0002_gaps"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Gaps {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let gaps = Table::alter()
            .table("chunk")
            .add_column(text_null("gaps"))
            .to_owned();
        manager.alter_table(gaps).await?;
        manager.create_table(damaged_chunk()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// An index with everything that a start needs of every chunk, so that pending events are counted
/// without reading the rows.
struct LogOutline;

impl MigrationName for LogOutline {
    fn name(&self) -> &str {
        "m0003_log_outline"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for LogOutline {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let before = Index::drop().name("chunk_order").table("chunk").to_owned();
        manager.drop_index(before).await?;
        let outline = Index::create()
            .name("chunk_outline")
            .table("chunk")
            .col("integration_key")
            .col("first_sequence")
            .col("event_count")
            .col("pending_bytes")
            .col("accepted_at")
            .to_owned();
        manager.create_index(outline).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Narrow rows for what every settlement changes: hundreds of them share a page, but only a dozen
/// of those of `integration`.
struct Progress;

/// Columns that were in `integration` before.
const PROGRESS: [&str; 6] = [
    "next_sequence",
    "delivered",
    "expired",
    "discarded",
    "last_attempt_at",
    "last_delivery_at",
];

impl MigrationName for Progress {
    fn name(&self) -> &str {
        "m0004_progress"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Progress {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(progress()).await?;
        let columns = PROGRESS.join(", ");
        let copy = format!(
            "INSERT INTO progress (integration_key, {columns}) \
            SELECT integration_key, {columns} FROM integration ORDER BY integration_key"
        );
        manager.get_connection().execute_unprepared(&copy).await?;
        for column in PROGRESS {
            let moved = Table::alter()
                .table("integration")
                .drop_column(column)
                .to_owned();
            manager.alter_table(moved).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Issued external IDs themselves, encrypted, so that they can be moved to another key.
struct IssuedKeys;

impl MigrationName for IssuedKeys {
    fn name(&self) -> &str {
        "m0009_issued_keys"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for IssuedKeys {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [
            binary_null("external_id_sealed"),
            string_null("external_id_key_id"),
        ] {
            let added = Table::alter()
                .table("issued_external_id")
                .add_column(column)
                .to_owned();
            manager.alter_table(added).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Packs: rows with small chunks of several integrations.
struct Packs;

impl MigrationName for Packs {
    fn name(&self) -> &str {
        "m0005_packs"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Packs {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [pack(), pack_done(), damaged_pack()] {
            manager.create_table(table).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Chunks of several integrations, which `outline` names.
fn pack() -> TableCreateStatement {
    Table::create()
        .table("pack")
        .col(big_integer("pack_id").primary_key())
        .col(big_integer("accepted_at"))
        .col(binary("outline"))
        .col(binary("payload"))
        .to_owned()
}

/// Settled events of a pack, apart from its row, which an update would rewrite as a whole.
fn pack_done() -> TableCreateStatement {
    Table::create()
        .table("pack_done")
        .col(big_integer("pack_id").primary_key())
        .col(binary("done"))
        .to_owned()
}

/// Packs that could not be read, set aside.
fn damaged_pack() -> TableCreateStatement {
    Table::create()
        .table("damaged_pack")
        .col(big_integer("pack_id").primary_key())
        .col(big_integer("accepted_at"))
        .col(big_integer("set_aside_at"))
        .col(binary("outline"))
        .col(binary("payload"))
        .to_owned()
}

/// Event counts: one row for each of `integration`.
fn progress() -> TableCreateStatement {
    Table::create()
        .table("progress")
        .col(big_integer("integration_key").primary_key())
        .col(big_integer("next_sequence"))
        .col(big_integer("delivered"))
        .col(big_integer("expired"))
        .col(big_integer("discarded"))
        .col(big_integer_null("last_attempt_at"))
        .col(big_integer_null("last_delivery_at"))
        .to_owned()
}

/// Chunks that could not be read, set aside.
fn damaged_chunk() -> TableCreateStatement {
    Table::create()
        .table("damaged_chunk")
        .col(big_integer("chunk_id").primary_key())
        .col(string("organization_id"))
        .col(string("integration_id"))
        .col(big_integer("first_sequence"))
        .col(integer("event_count"))
        .col(big_integer("accepted_at"))
        .col(big_integer("set_aside_at"))
        .col(binary_null("accepted"))
        .col(binary("payload"))
        .to_owned()
}

/// Facts about the database itself, such as its id.
fn meta() -> TableCreateStatement {
    Table::create()
        .table("meta")
        .col(string("name").primary_key())
        .col(string("value"))
        .to_owned()
}

/// Partitions of the log with their fencing epochs.
fn partition() -> TableCreateStatement {
    Table::create()
        .table("partition")
        .col(integer("partition").primary_key())
        .col(string_null("owner"))
        .col(big_integer("epoch").default(0))
        .col(big_integer_null("lease_until"))
        .to_owned()
}

fn integration() -> TableCreateStatement {
    Table::create()
        .table("integration")
        .col(big_pk_auto("integration_key"))
        .col(string_uniq("organization_id"))
        .col(string_uniq("integration_id"))
        .col(integer("partition"))
        .col(string("stream_arn"))
        .col(string("role_arn"))
        .col(binary("external_id_sealed"))
        .col(string("external_id_key_id"))
        .col(binary("external_id_hmac").unique_key())
        .col(string("external_id_hint"))
        .col(big_integer("external_id_set_at"))
        .col(binary_null("previous_external_id_sealed"))
        .col(binary_null("previous_external_id_hmac"))
        .col(string_null("previous_external_id_hint"))
        .col(big_integer_null("previous_external_id_until"))
        .col(big_integer("version"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .col(big_integer("revision"))
        .col(string("status"))
        .col(string_null("reason"))
        .col(big_integer("status_since"))
        .col(big_integer_null("last_attempt_at"))
        .col(big_integer_null("last_delivery_at"))
        .col(big_integer_null("next_retry_at"))
        .col(string_null("aws_error_code"))
        .col(string_null("aws_request_id"))
        .col(big_integer("next_sequence"))
        .col(big_integer("delivered"))
        .col(big_integer("expired"))
        .col(big_integer("discarded"))
        .to_owned()
}

/// Chunks, now the table `backlog`. `accepted` is a bitmap of the settled events.
fn chunk() -> TableCreateStatement {
    Table::create()
        .table("chunk")
        .col(big_integer("chunk_id").primary_key())
        .col(big_integer("integration_key"))
        .col(big_integer_null("first_sequence"))
        .col(integer("event_count"))
        .col(big_integer("pending_bytes"))
        .col(big_integer("accepted_at"))
        .col(big_integer("epoch").default(0))
        .col(binary_null("accepted"))
        .col(binary("payload"))
        .to_owned()
}

fn chunk_order() -> IndexCreateStatement {
    Index::create()
        .name("chunk_order")
        .table("chunk")
        .col("integration_key")
        .col("first_sequence")
        .unique()
        .to_owned()
}

fn previous_external_ids() -> IndexCreateStatement {
    Index::create()
        .name("previous_external_ids")
        .table("integration")
        .col("previous_external_id_hmac")
        .to_owned()
}

fn issued_order() -> IndexCreateStatement {
    Index::create()
        .name("issued_order")
        .table("issued_external_id")
        .col("organization_id")
        .col("issued_at")
        .to_owned()
}

/// External IDs that were issued to organizations.
fn issued_external_id() -> TableCreateStatement {
    Table::create()
        .table("issued_external_id")
        .col(binary("external_id_hmac").primary_key())
        .col(string("organization_id"))
        .col(big_integer("issued_at"))
        .to_owned()
}

/// Deletions, for status streams that resume.
fn tombstone() -> TableCreateStatement {
    Table::create()
        .table("tombstone")
        .col(big_integer("revision").primary_key())
        .col(string("organization_id"))
        .col(string("integration_id"))
        .col(big_integer("deleted_at"))
        .to_owned()
}

/// Changes of integrations.
fn audit() -> TableCreateStatement {
    Table::create()
        .table("audit")
        .col(big_pk_auto("audit_id"))
        .col(string("organization_id"))
        .col(string("integration_id"))
        .col(big_integer("at"))
        .col(string("caller"))
        .col(string("action"))
        .col(text("detail"))
        .to_owned()
}

fn audit_order() -> IndexCreateStatement {
    Index::create()
        .name("audit_order")
        .table("audit")
        .col("organization_id")
        .col("audit_id")
        .to_owned()
}

/// Events are stored by their fields, which earlier versions take for damage. Changes nothing in
/// the schema: a version that does not know it refuses the database.
struct StoredEvents;

impl MigrationName for StoredEvents {
    fn name(&self) -> &str {
        "m0006_stored_events"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for StoredEvents {
    async fn up(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// A log of entries beside the backlog, and a checkpoint for each integration. The packs become
/// rows of the backlog afterwards, in steps (`migrate_packs`).
struct EventLog;

impl MigrationName for EventLog {
    fn name(&self) -> &str {
        "m0007_event_log"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for EventLog {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        // Without its row, sequences would be used twice.
        let sql = "SELECT 1 FROM integration WHERE integration_key NOT IN \
            (SELECT integration_key FROM progress) LIMIT 1";
        if db.query_one_raw(statement(db, sql, [])).await?.is_some() {
            return Err(unreadable("an integration without its progress"));
        }
        let rename = Table::rename().table("chunk", "backlog").to_owned();
        manager.rename_table(rename).await?;
        manager.create_table(entry()).await?;
        for (table, column) in [
            ("progress", big_integer("position").default(0).to_owned()),
            ("progress", binary_null("settled")),
            ("progress", big_integer("accepted").default(0).to_owned()),
            (
                "progress",
                big_integer("pending_bytes").default(0).to_owned(),
            ),
            ("partition", big_integer_null("anchor_position")),
            ("partition", binary_null("anchor_entry_id")),
            (
                "integration",
                big_integer("status_revision").default(0).to_owned(),
            ),
            ("integration", big_integer_null("stall_since")),
            ("integration", big_integer_null("stall_until")),
            ("integration", big_integer_null("observed_began_at")),
        ] {
            let add = Table::alter().table(table).add_column(column).to_owned();
            manager.alter_table(add).await?;
        }
        let discarded = Table::alter()
            .table("progress")
            .drop_column("discarded")
            .to_owned();
        manager.alter_table(discarded).await?;
        // An append did not write `next_sequence`: the end of the log stood for it.
        for sql in [
            "UPDATE progress SET next_sequence = MAX(progress.next_sequence, ends.log_end), \
            pending_bytes = ends.bytes FROM (SELECT integration_key, \
            MAX(first_sequence + event_count) AS log_end, SUM(pending_bytes) AS bytes \
            FROM backlog GROUP BY integration_key) ends \
            WHERE ends.integration_key = progress.integration_key",
            "UPDATE progress SET accepted = next_sequence - 1",
            // The partition was a hash of the id, over more than the one that this log has.
            "UPDATE integration SET status_revision = revision, partition = 0",
        ] {
            db.execute_unprepared(sql).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Entries of the log.
fn entry() -> TableCreateStatement {
    Table::create()
        .table("entry")
        // `INTEGER PRIMARY KEY` is SQLite's row id: entries are stored in this order.
        .col(integer("position").primary_key())
        .col(binary("entry_id"))
        .col(big_integer("accepted_at"))
        .col(binary("header"))
        .col(binary("payload"))
        .to_owned()
}

/// Callers, outcomes and counts in the audit, and an order by time.
struct Audit;

impl MigrationName for Audit {
    fn name(&self) -> &str {
        "m0008_audit"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Audit {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [
            text_null("issuer"),
            text_null("peer"),
            text_null("request_id"),
            text_null("client_request_id"),
            text_null("method"),
            text("code").default("OK").to_owned(),
            text_null("reason"),
            big_integer("occurrences").default(1).to_owned(),
            big_integer_null("last_at"),
        ] {
            let add = Table::alter().table("audit").add_column(column).to_owned();
            manager.alter_table(add).await?;
        }
        let before = Index::drop().name("audit_order").table("audit").to_owned();
        manager.drop_index(before).await?;
        let index = |name: &'static str| Index::create().name(name).table("audit").to_owned();
        let of_organization = index("audit_of_organization")
            .col("organization_id")
            .col("at")
            .col("audit_id")
            .to_owned();
        manager.create_index(of_organization).await?;
        let times = index("audit_times").col("at").col("audit_id").to_owned();
        manager.create_index(times).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
