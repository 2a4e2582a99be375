//! The audit above the registry: refusals are counted in memory and written in the background, and
//! entries beyond the limits are removed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::hmac;
use jiff::Timestamp;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::sleep,
};

use super::{
    Store, StoreError,
    catalog::Catalog,
    now,
    ports::{AuditLimits, AuditPosition, AuditQuery},
    run,
};
use crate::domain::audit::{AuditEntry, Refusal, Refusals};

/// Time between two writes of refusals.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two looks at the limits.
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two steps of the removal, which others' writes use.
const PRUNE_PAUSE: Duration = Duration::from_millis(100);
/// Page of the audit.
#[derive(Clone, Debug, Default)]
pub struct AuditPage {
    /// Entries, newest first.
    pub entries: Vec<AuditEntry>,
    /// End of the page, if there may be more after it.
    pub next: Option<AuditPosition>,
}

/// See the module.
pub(super) struct Audit {
    catalog: Arc<Catalog>,
    refusals: Mutex<Refusals>,
    /// Notified when there are refusals.
    refused: Notify,
    /// Entries that are being written. They stay after a failure, and are written next.
    writing: AsyncMutex<Vec<AuditEntry>>,
}

impl Audit {
    /// Starts to write refusals.
    pub(super) fn start(catalog: &Arc<Catalog>) -> Arc<Self> {
        let audit = Arc::new(Self {
            catalog: Arc::clone(catalog),
            refusals: Mutex::default(),
            refused: Notify::new(),
            writing: AsyncMutex::default(),
        });
        catalog.spawn(Arc::clone(&audit).flush_refusals());
        audit
    }

    fn refuse(&self, refusal: Refusal, now: Timestamp) {
        let refusals = self.refusals.lock();
        let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
        refusals.add(refusal, now);
        drop(refusals);
        self.refused.notify_one();
    }

    /// Writes the first refusal at once, and those of each interval together.
    async fn flush_refusals(self: Arc<Self>) {
        loop {
            self.refused.notified().await;
            if !self.flush().await {
                return;
            }
            sleep(FLUSH_INTERVAL).await;
        }
    }

    /// Writes the refusals so far. Returns false if the storage is closed.
    pub(super) async fn flush(&self) -> bool {
        let mut writing = self.writing.lock().await;
        if writing.is_empty() {
            let refusals = self.refusals.lock();
            *writing = refusals.unwrap_or_else(PoisonError::into_inner).take();
        }
        if writing.is_empty() {
            return true;
        }
        match self.catalog.registry().record(&writing).await {
            // In doubt, since twice is worse than not at all.
            Ok(()) | Err(StoreError::Unavailable(_)) => writing.clear(),
            Err(StoreError::Closed) => return false,
            Err(error) => {
                tracing::warn!(%error, "refused calls cannot be written to the audit");
                self.refused.notify_one();
            }
        }
        true
    }
}

/// Removes entries beyond the limits, until the storage is closed.
async fn prune(catalog: Arc<Catalog>, limits: AuditLimits) {
    loop {
        let pruned = catalog.registry().prune_audit(now(), limits).await;
        let pause = match pruned {
            Ok(false) => PRUNE_PAUSE,
            Ok(true) => PRUNE_INTERVAL,
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "old entries of the audit cannot be removed");
                PRUNE_INTERVAL
            }
        };
        sleep(pause).await;
    }
}

impl Store {
    /// Starts to remove entries beyond the limits. Not part of the start, because nothing may be
    /// removed during a move.
    pub(super) fn prune_audit(&self, limits: AuditLimits) {
        let catalog = &self.shared.catalog;
        catalog.spawn(prune(Arc::clone(catalog), limits));
    }

    /// Returns audit entries, newest first.
    pub async fn audit(&self, mut query: AuditQuery) -> Result<AuditPage, StoreError> {
        self.check_lease()?;
        let registry = self.shared.catalog.registry();
        let wanted = query.limit;
        // One more than a page, to see whether there is a next page.
        query.limit = wanted + 1;
        let mut entries = registry.audit(&query).await?;
        let more = entries.len() > wanted;
        entries.truncate(wanted);
        let next = entries.last().filter(|_| more);
        Ok(AuditPage {
            next: next.map(AuditPosition::from),
            entries,
        })
    }

    /// Unique id of an entry for callers: a keyed hash of its number, which would show them how
    /// much others do. It is the same for all callers and instances; the key is the identity of the
    /// database, which callers with limited rights never get.
    pub fn audit_entry_id(&self, id: i64) -> String {
        let database_id = self.shared.catalog.registry().database_id();
        let key = hmac::Key::new(hmac::HMAC_SHA256, database_id.as_bytes());
        let hash = hmac::sign(&key, &id.to_be_bytes());
        hex::encode(&hash.as_ref()[..16])
    }

    /// Stores an audit entry that belongs to no change, even if the caller does not wait for it.
    pub async fn record_audit(&self, entry: AuditEntry) {
        let store = self.clone();
        let recorded = run(async move { store.shared.catalog.registry().record(&[entry]).await });
        if let Err(error) = recorded.await {
            tracing::error!(%error, "the audit lacks a test event");
        }
    }

    /// Counts a refused call, which appears in the audit some seconds later.
    pub fn audit_refusal(&self, refusal: Refusal) {
        self.shared.audit.refuse(refusal, now());
    }
}
