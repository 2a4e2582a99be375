//! The store: integrations, their status and the log, on disk and in memory.
//!
//! One task writes (`writer`); everyone else asks it, and reads what it has made
//! durable from the catalog, the tail of the log, or the database.

mod answers;
mod batch;
mod catalog;
mod changes;
mod check;
mod chunk;
mod command;
mod connect;
mod draft;
mod express;
mod external_ids;
mod failure;
mod gaps;
mod gathered;
mod integrations;
mod many;
mod open;
mod packs;
mod plan;
mod precedence;
mod read;
mod reader;
mod rows;
mod schema;
mod script;
mod secret;
mod settlements;
mod settling;
mod space;
mod statements;
mod tail;
mod work;
mod writer;

use std::{
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
};

use jiff::Timestamp;
use sea_orm::DatabaseConnection;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use self::{
    catalog::{Catalog, Slot},
    command::{Command, Held, Reply},
    precedence::Precedence,
    secret::Sealer,
    settlements::Settlements,
    tail::{Coming, Tail},
    work::WorkFeed,
};
pub use self::{
    catalog::{Change, Changes, Tombstone},
    command::{Configure, ConfigureError, Deleted, Settle, Tells},
    draft::{NextRetry, Observed},
    failure::{Failure, StoreError},
    gaps::{GiveUp, GivenUp, Keep, What},
    open::{OpenError, StoreOptions},
    precedence::Load,
    secret::{KeyError, MasterKey},
    settlements::SettlePermit,
    work::Attention,
};
use crate::domain::{
    external_id::ExternalId,
    integration::{Integration, IntegrationKey, Progress, Snapshot},
    map::Map,
    organization::OrganizationId,
    segment::Segments,
    status::StatusDetail,
};

/// The store, cheap to clone.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    settlements: Settlements,
    catalog: Arc<Catalog>,
    tail: Arc<Tail>,
    work: Arc<WorkFeed>,
    precedence: Arc<Precedence>,
    backlog: Arc<[(IntegrationKey, Timestamp)]>,
    sealer: Arc<Sealer>,
    reader: DatabaseConnection,
    database_id: Arc<str>,
    has_room: watch::Receiver<bool>,
    failure: Arc<OnceLock<Failure>>,
}

impl Store {
    /// The integration of an organization.
    pub fn find(&self, organization_id: &str) -> Option<Snapshot> {
        self.catalog.find(organization_id)
    }

    /// The store's number of an organization's integration.
    pub fn key_of(&self, organization_id: &str) -> Option<IntegrationKey> {
        self.catalog.key_of(organization_id)
    }

    /// An integration by the store's number.
    pub fn get(&self, key: IntegrationKey) -> Option<Snapshot> {
        self.catalog.slot(key).map(|slot| slot.snapshot)
    }

    /// An integration's configuration.
    pub fn integration(&self, key: IntegrationKey) -> Option<Arc<Integration>> {
        let integration = |slot: &Slot| Arc::clone(&slot.snapshot.integration);
        self.catalog.look(key, integration)
    }

    /// How far an integration's log has come.
    pub fn progress(&self, key: IntegrationKey) -> Option<Progress> {
        self.catalog.look(key, |slot| slot.snapshot.progress)
    }

    /// Whether an integration exists.
    pub fn exists(&self, key: IntegrationKey) -> bool {
        self.catalog.contains(key)
    }

    /// The version of an integration's configuration. None where it is gone.
    pub fn version(&self, key: IntegrationKey) -> Option<u64> {
        let version = |slot: &Slot| slot.snapshot.integration.version;
        self.catalog.look(key, version)
    }

    /// The sequence that an integration's next event will get. None where it is gone.
    pub fn next_sequence(&self, key: IntegrationKey) -> Option<u64> {
        let next = |slot: &Slot| slot.snapshot.progress.next_sequence;
        self.catalog.look(key, next)
    }

    /// At most `limit` integrations that `keep` keeps, in the order of their
    /// organizations, after `after`.
    pub fn page(
        &self,
        after: &str,
        limit: usize,
        keep: impl Fn(&Snapshot) -> bool,
    ) -> Vec<Snapshot> {
        self.catalog.page(after, limit, keep)
    }

    /// The last `most` integrations that are Active and were delivered to, and when; the
    /// newest last.
    pub fn delivered_last(&self, most: usize) -> Vec<(Arc<Integration>, Timestamp)> {
        self.catalog.delivered_last(most)
    }

    /// Integrations of which something was in the log when the store was opened, and
    /// since when.
    pub fn backlog(&self) -> &[(IntegrationKey, Timestamp)] {
        &self.backlog
    }

    /// Waits until integrations want attention, and takes them. For one worker.
    pub async fn attention(&self) -> Map<IntegrationKey, Attention> {
        self.work.take().await
    }

    /// The newest revision, as it changes.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.catalog.revision()
    }

    /// Looks at `limit` changes after a revision, in commit order, the newest of each
    /// integration, and takes those of the organizations that `keep` keeps.
    pub fn changes_after(
        &self,
        revision: u64,
        limit: usize,
        keep: impl Fn(&OrganizationId) -> bool,
    ) -> Changes {
        self.catalog.changes_after(revision, limit, keep)
    }

    /// Of the named organizations, at most `limit` integrations whose last change came in
    /// `revisions`, in commit order.
    pub fn current_of<'a>(
        &self,
        organizations: impl IntoIterator<Item = &'a OrganizationId>,
        revisions: RangeInclusive<u64>,
        limit: usize,
    ) -> Vec<Snapshot> {
        self.catalog.current_of(organizations, revisions, limit)
    }

    /// Names this database, so that revisions of another one are told apart.
    pub fn database_id(&self) -> &str {
        &self.database_id
    }

    /// The external ID in clear, for AssumeRole.
    pub fn open_external_id(&self, integration: &Integration) -> Result<ExternalId, StoreError> {
        self.sealer
            .open(&integration.external_id, integration.integration_id)
            .map_err(|_| StoreError::Sealing)
    }

    /// Whether the disk has room for events, as it changes.
    pub fn has_room(&self) -> watch::Receiver<bool> {
        self.has_room.clone()
    }

    /// An error while the disk has no room for events, before anything is done for them.
    pub fn check_room(&self) -> Result<(), StoreError> {
        match *self.has_room.borrow() {
            true => Ok(()),
            false => Err(StoreError::NoRoom),
        }
    }

    /// Says what keeps deliveries from being made.
    pub fn tell_load(&self, load: Load) {
        self.precedence.set(load);
    }

    /// Waits, at most a second, where those who deliver have no time for that and for what
    /// comes, which would have to be read back for them, and much of what waits is of the same
    /// integrations. Whoever has events waits here first.
    pub async fn give_way(&self, segments: &Segments) {
        let keys = segments.parts().iter().map(|part| part.key);
        self.precedence.give_way(&self.tail, keys).await;
    }

    /// Appends events, in the order of the calls. The answer comes once they are
    /// synced to disk: of how many the integration exists. On an error nothing was kept.
    /// `memory` is held until then, whoever still waits for it.
    pub async fn append(
        &self,
        segments: Segments,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Result<impl Future<Output = Result<u32, StoreError>> + Send + use<>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let held = Held {
            _memory: memory,
            _coming: Coming::new(&self.tail, segments.bytes()),
        };
        self.commands
            .send(Command::Append {
                segments,
                held,
                reply,
            })
            .await
            .map_err(|_| StoreError::Closed)?;
        Ok(async { answer.await.map_err(|_| StoreError::Closed)? })
    }

    /// Creates or replaces an integration.
    pub async fn configure(&self, configure: Configure) -> Result<Snapshot, ConfigureError> {
        let configure = Box::new(configure);
        self.ask(|reply| Command::Configure { configure, reply })
            .await
    }

    /// The integration that a Configure would make, stored nowhere.
    pub async fn validate_only(&self, configure: Configure) -> Result<Snapshot, ConfigureError> {
        let existing = self.find(configure.organization_id.as_str());
        let now = rows::now();
        let plan = plan::plan(existing.as_ref(), configure, &self.sealer, now)?;
        plan.check_external_id(&self.reader, &self.sealer).await?;
        Ok(match existing {
            Some(existing) => Snapshot {
                integration: Arc::new(plan.integration),
                ..existing
            },
            None => Snapshot {
                integration: Arc::new(plan.integration),
                status: Arc::new(StatusDetail::unknown(now)),
                progress: Progress::NEW,
                revision: 0,
            },
        })
    }

    /// Issues a fresh external ID to an organization; no other may use it.
    pub async fn issue_external_id(
        &self,
        organization_id: OrganizationId,
    ) -> Result<ExternalId, StoreError> {
        let external_id = secret::random_external_id()?;
        let issued = external_id.clone();
        let answer: Result<(), StoreError> = self
            .ask(|reply| Command::Issue {
                organization_id,
                external_id,
                reply,
            })
            .await;
        answer.map(|()| issued)
    }

    /// Says that an AssumeRole with the external ID of this version has worked, so that
    /// the one before is no longer needed.
    pub async fn retire_previous_external_id(&self, key: IntegrationKey, version: u64) {
        let retire = Command::RetirePrevious { key, version };
        // It is said again at the next AssumeRole.
        let _closed = self.commands.send(retire).await;
    }

    /// The external ID before, in clear, while it still serves.
    pub fn open_previous_external_id(
        &self,
        integration: &Integration,
    ) -> Option<Result<ExternalId, StoreError>> {
        let previous = integration.previous_at(Timestamp::now())?;
        let opened = self
            .sealer
            .open(&previous.external_id, integration.integration_id);
        Some(opened.map_err(|_| StoreError::Sealing))
    }

    /// Deletes an organization's integration. None where there is none.
    pub async fn delete(
        &self,
        organization_id: OrganizationId,
        caller: Box<str>,
    ) -> Result<Option<Deleted>, StoreError> {
        self.ask(|reply| Command::Delete {
            organization_id,
            caller,
            reply,
        })
        .await
    }

    async fn ask<T, E: From<StoreError>>(
        &self,
        command: impl FnOnce(Reply<T, E>) -> Command,
    ) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Records what an attempt achieved. It is durable within the settle linger, or
    /// at once where it changes the status.
    pub async fn settle(&self, settle: Settle) {
        // A closed store has settled what it could; the rest is sent again.
        if let Some(permit) = self.reserve_settle().await {
            permit.settle(settle);
        }
    }

    /// Waits for room to settle. None where the store is closed.
    pub async fn reserve_settle(&self) -> Option<SettlePermit> {
        self.settlements.reserve().await
    }

    /// Gives events up: they count as expired, and gaps stand in their place in the log.
    /// While it is under way nothing of the integration may be settled or read that was
    /// not before.
    pub async fn give_up(&self, ask: GiveUp) -> Result<GivenUp, StoreError> {
        self.ask(|reply| Command::GiveUp { ask, reply }).await
    }

    /// Returns when the store has ended: after [`Store::close`], by a failure, or by a
    /// defect.
    pub async fn ended(&self) -> Option<Failure> {
        self.commands.closed().await;
        self.failure.get().cloned()
    }

    /// Writes what is left and closes the database. While attempts cannot be settled, that is
    /// tried again until this future is dropped.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            let _gone = closed.await;
        }
        if let Err(error) = self.reader.clone().close().await {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }
}

#[cfg(test)]
mod tests;
