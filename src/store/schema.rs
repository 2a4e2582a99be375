//! The schema and its migrations, for SQLite and PostgreSQL alike. Times are
//! microseconds since the Unix epoch.

mod stored_events;

use sea_orm_migration::{prelude::*, schema::*};

use stored_events::StoredEvents;

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

    /// A kill in the middle leaves nothing behind.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Events that are given up, and gaps in their place.
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

/// All that a start asks of every chunk is in the index: what is pending is counted
/// without a look at the log itself.
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

/// What every settlement changes is in rows of its own, of which hundreds share a page:
/// those of `integration` fill a page by the dozen.
struct Progress;

/// What was in `integration` before.
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

/// Small chunks that came together, in one row.
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

/// Chunks of several integrations. `outline` says whose they are.
fn pack() -> TableCreateStatement {
    Table::create()
        .table("pack")
        .col(big_integer("pack_id").primary_key())
        .col(big_integer("accepted_at"))
        .col(binary("outline"))
        .col(binary("payload"))
        .to_owned()
}

/// Which events of a pack are done with: a narrow row, since a pack's own would be written
/// anew with all that is in it.
fn pack_done() -> TableCreateStatement {
    Table::create()
        .table("pack_done")
        .col(big_integer("pack_id").primary_key())
        .col(binary("done"))
        .to_owned()
}

/// A pack that cannot be read back, set aside.
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

/// How far an integration's log has come: one row for each of `integration`.
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

/// What was in the log and cannot be read back, set aside.
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

/// Which instance delivers for which integrations, and its fencing epoch.
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

/// A row of the log. `first_sequence` is fixed before the first send; `accepted`
/// is a bitmap of the events that the stream has, or that were given up.
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

/// An external ID that was issued to an organization; no other may use it.
fn issued_external_id() -> TableCreateStatement {
    Table::create()
        .table("issued_external_id")
        .col(binary("external_id_hmac").primary_key())
        .col(string("organization_id"))
        .col(big_integer("issued_at"))
        .to_owned()
}

/// A deletion, for status streams that resume from before it.
fn tombstone() -> TableCreateStatement {
    Table::create()
        .table("tombstone")
        .col(big_integer("revision").primary_key())
        .col(string("organization_id"))
        .col(string("integration_id"))
        .col(big_integer("deleted_at"))
        .to_owned()
}

/// Every change of an integration.
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
