//! What the store knows of every integration, in memory: written by the writer
//! after each commit, read by everyone.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, RangeInclusive},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::{
    integration::{Integration, IntegrationKey, Snapshot},
    map::Map,
    organization::OrganizationId,
    status::{Stall, Status},
};

/// A change of an integration or its status. Only the newest of each integration
/// is kept.
#[derive(Clone, Debug)]
pub enum Change {
    /// It was created, configured anew, or its status changed.
    Current(Snapshot),
    /// It was deleted.
    Deleted(Tombstone),
}

/// Changes in commit order.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Deletions up to this revision may be missing.
    pub forgotten_to: u64,
    /// The revision that was looked at last; where it is the one that was asked for,
    /// nothing is left.
    pub seen_to: u64,
    /// With their revisions.
    pub changes: Vec<(u64, Change)>,
}

/// What remains of a deleted integration.
#[derive(Clone, Debug)]
pub struct Tombstone {
    /// The revision of the deletion.
    pub revision: u64,
    /// Whose it was.
    pub organization_id: OrganizationId,
    /// Which it was.
    pub integration_id: Uuid,
    /// When it was deleted.
    pub deleted_at: Timestamp,
}

/// An integration as the writer sees it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) snapshot: Snapshot,
    pub(super) stall: Stall,
}

#[derive(Debug, Default)]
struct State {
    by_key: Map<IntegrationKey, Slot>,
    by_organization: BTreeMap<OrganizationId, IntegrationKey>,
    by_revision: BTreeMap<u64, Entry>,
    /// Revisions of the tombstones, oldest first.
    tombstones: VecDeque<u64>,
    /// Tokens below it may have missed a deletion.
    floor: u64,
}

#[derive(Debug)]
enum Entry {
    Live(IntegrationKey),
    Dead(Box<Tombstone>),
}

/// The integrations, and the order of their changes.
#[derive(Debug)]
pub(super) struct Catalog {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    most_tombstones: usize,
}

/// What one commit changed.
#[derive(Debug, Default)]
pub(super) struct CatalogDiff {
    /// None where the integration was deleted.
    pub(super) slots: Map<IntegrationKey, Option<Slot>>,
    pub(super) tombstones: Vec<Tombstone>,
}

impl Catalog {
    pub(super) fn new(most_tombstones: usize) -> Self {
        Self {
            state: RwLock::default(),
            revision: watch::Sender::new(0),
            most_tombstones,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slot(&self, key: IntegrationKey) -> Option<Slot> {
        self.read().by_key.get(&key).cloned()
    }

    /// Looks at an integration without taking a copy.
    pub(super) fn look<T>(&self, key: IntegrationKey, look: impl FnOnce(&Slot) -> T) -> Option<T> {
        self.read().by_key.get(&key).map(look)
    }

    pub(super) fn contains(&self, key: IntegrationKey) -> bool {
        self.read().by_key.contains_key(&key)
    }

    pub(super) fn key_of(&self, organization_id: &str) -> Option<IntegrationKey> {
        self.read().by_organization.get(organization_id).copied()
    }

    pub(super) fn find(&self, organization_id: &str) -> Option<Snapshot> {
        let state = self.read();
        let key = state.by_organization.get(organization_id)?;
        Some(state.by_key.get(key)?.snapshot.clone())
    }

    /// The next `limit` integrations after an organization, in its order, that `keep` keeps.
    pub(super) fn page(
        &self,
        after: &str,
        limit: usize,
        keep: impl Fn(&Snapshot) -> bool,
    ) -> Vec<Snapshot> {
        let state = self.read();
        state
            .by_organization
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
            .filter_map(|(_, key)| state.by_key.get(key))
            .map(|slot| &slot.snapshot)
            .filter(|snapshot| keep(snapshot))
            .take(limit)
            .cloned()
            .collect()
    }

    /// The last `most` that are Active and were delivered to, the newest last.
    pub(super) fn delivered_last(&self, most: usize) -> Vec<(Arc<Integration>, Timestamp)> {
        let state = self.read();
        let delivered = |slot: &Slot| {
            let status = &slot.snapshot.status;
            let active = status.status == Status::Active;
            let at = status.last_delivery.filter(|_| active)?;
            Some((at, slot.snapshot.integration.key))
        };
        let mut all: Vec<_> = state.by_key.values().filter_map(delivered).collect();
        all.sort_unstable_by(|one, other| other.cmp(one));
        let newest = all.into_iter().take(most).rev();
        newest
            .filter_map(|(at, key)| Some((state.by_key.get(&key)?, at)))
            .map(|(slot, at)| (Arc::clone(&slot.snapshot.integration), at))
            .collect()
    }

    pub(super) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Looks at `limit` changes after a revision, in commit order, and takes those of
    /// the organizations that `keep` keeps.
    pub(super) fn changes_after(
        &self,
        revision: u64,
        limit: usize,
        keep: impl Fn(&OrganizationId) -> bool,
    ) -> Changes {
        let state = self.read();
        let mut seen = Changes {
            forgotten_to: state.floor,
            seen_to: revision,
            changes: Vec::new(),
        };
        let after = (Bound::Excluded(revision), Bound::Unbounded);
        for (revision, entry) in state.by_revision.range(after).take(limit) {
            seen.seen_to = *revision;
            match entry {
                Entry::Live(key) => {
                    let Some(slot) = state.by_key.get(key) else {
                        continue;
                    };
                    if keep(&slot.snapshot.integration.organization_id) {
                        let change = Change::Current(slot.snapshot.clone());
                        seen.changes.push((*revision, change));
                    }
                }
                Entry::Dead(tombstone) => {
                    if keep(&tombstone.organization_id) {
                        let change = Change::Deleted((**tombstone).clone());
                        seen.changes.push((*revision, change));
                    }
                }
            }
        }
        seen
    }

    /// Of the named organizations, at most `limit` integrations whose last change came in
    /// `revisions`, in commit order.
    pub(super) fn current_of<'a>(
        &self,
        organizations: impl IntoIterator<Item = &'a OrganizationId>,
        revisions: RangeInclusive<u64>,
        limit: usize,
    ) -> Vec<Snapshot> {
        let state = self.read();
        let mut found: Vec<&Snapshot> = organizations
            .into_iter()
            .filter_map(|organization| state.by_organization.get(organization))
            .filter_map(|key| state.by_key.get(key))
            .map(|slot| &slot.snapshot)
            .filter(|snapshot| revisions.contains(&snapshot.revision))
            .collect();
        found.sort_unstable_by_key(|snapshot| snapshot.revision);
        found.into_iter().take(limit).cloned().collect()
    }

    /// Takes in a commit, and then tells that there is a new revision. Returns the
    /// revision up to which deletions are forgotten, where that moved.
    pub(super) fn apply(&self, diff: CatalogDiff, revision: u64) -> Option<u64> {
        let mut state = self.write();
        let floor_before = state.floor;
        for (key, slot) in diff.slots {
            state.replace(key, slot);
        }
        for tombstone in diff.tombstones {
            state.bury(tombstone, self.most_tombstones);
        }
        let floor = state.floor;
        drop(state);
        self.revision.send_if_modified(|current| {
            let newer = revision > *current;
            *current = revision.max(*current);
            newer
        });
        (floor > floor_before).then_some(floor)
    }

    /// Sets what was known before a restart.
    pub(super) fn restore(&self, floor: u64) {
        let mut state = self.write();
        state.floor = state.floor.max(floor);
    }
}

impl State {
    fn replace(&mut self, key: IntegrationKey, slot: Option<Slot>) {
        let slot = match (self.by_key.get_mut(&key), slot) {
            (Some(known), Some(slot)) if known.snapshot.revision == slot.snapshot.revision => {
                *known = slot;
                return;
            }
            (_, slot) => slot,
        };
        let before = self.by_key.remove(&key);
        let revision_before = before.as_ref().map(|slot| slot.snapshot.revision);
        match slot {
            Some(slot) => {
                let revision = slot.snapshot.revision;
                if revision_before != Some(revision) {
                    revision_before.map(|before| self.by_revision.remove(&before));
                    self.by_revision.insert(revision, Entry::Live(key));
                }
                if before.is_none() {
                    let organization = slot.snapshot.integration.organization_id.clone();
                    self.by_organization.insert(organization, key);
                }
                self.by_key.insert(key, slot);
            }
            None => {
                revision_before.map(|before| self.by_revision.remove(&before));
                let Some(before) = before else { return };
                let organization = &before.snapshot.integration.organization_id;
                // It may have been created anew in the same commit.
                if self.by_organization.get(organization) == Some(&key) {
                    self.by_organization.remove(organization);
                }
            }
        }
    }

    fn bury(&mut self, tombstone: Tombstone, most: usize) {
        self.tombstones.push_back(tombstone.revision);
        self.by_revision
            .insert(tombstone.revision, Entry::Dead(Box::new(tombstone)));
        while self.tombstones.len() > most {
            let Some(oldest) = self.tombstones.pop_front() else {
                return;
            };
            self.by_revision.remove(&oldest);
            self.floor = oldest;
        }
    }
}
