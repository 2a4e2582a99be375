//! Deletions in progress: those of one organization follow one another, and wait for no other's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::domain::organization::OrganizationId;

type Locks = HashMap<OrganizationId, Arc<AsyncMutex<()>>>;

/// See the module. Cheap to clone; clones are the same deletions.
#[derive(Clone, Default)]
pub(super) struct Deletions(Arc<Mutex<Locks>>);

/// A deletion that is in progress until it is dropped.
pub(super) struct Deletion {
    deletions: Deletions,
    organization_id: OrganizationId,
    /// None only while it is dropped.
    lock: Option<OwnedMutexGuard<()>>,
}

impl Deletions {
    fn locks(&self) -> MutexGuard<'_, Locks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a deletion once those of the same organization have ended that began before.
    pub(super) async fn begin(&self, organization_id: &OrganizationId) -> Deletion {
        let lock = Arc::clone(self.locks().entry(organization_id.clone()).or_default());
        Deletion {
            deletions: self.clone(),
            organization_id: organization_id.clone(),
            lock: Some(lock.lock_owned().await),
        }
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        let mut locks = self.deletions.locks();
        self.lock = None;
        // A deletion that waits has a reference as well.
        let waits = |lock: &Arc<AsyncMutex<()>>| Arc::strong_count(lock) > 1;
        if !locks.get(&self.organization_id).is_some_and(waits) {
            locks.remove(&self.organization_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn deletions_of_one_organization_wait_for_each_other_alone() {
        let [acme, absent] = ["acme", "absent"].map(|name| OrganizationId::new(name).unwrap());
        let deletions = Deletions::default();
        let first = deletions.begin(&acme).await;
        let mut second = deletions.begin(&acme).boxed();
        assert!(poll!(&mut second).is_pending());
        drop(deletions.begin(&absent).await);
        assert_eq!(deletions.locks().len(), 1);
        drop(first);
        drop(second.await);
        assert_eq!(deletions.locks().len(), 0);
    }
}
