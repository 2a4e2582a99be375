//! From here on the log holds events by their fields (`domain::event`), which versions
//! before this would take for damage.

use sea_orm_migration::prelude::*;

/// Changes nothing in the schema: a version that does not know it refuses the database.
pub(super) struct StoredEvents;

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
