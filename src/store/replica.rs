//! Copy of the registry in memory, fed only with [`Registry::changes_after`]. It is complete up to
//! the revision that it has applied, and knows nothing of later ones.
//!
//! [`Registry::changes_after`]: super::ports::Registry::changes_after

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, RangeInclusive},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::watch;

use super::ports::{Partition, Registered, RegistryChange, RegistryChanges, Tombstone};
use crate::domain::{
    integration::IntegrationId,
    map::Map,
    organization::OrganizationId,
    rights::{Rights, Seek},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Replica {
    states: RwLock<States>,
    applied: watch::Sender<u64>,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct States {
    current: State,
    /// Replaces `current` once it is complete. It is built if `current` may have missed a
    /// deletion.
    next: Option<Box<State>>,
}

#[derive(Debug, Default)]
struct State {
    by_id: Map<IntegrationId, Registered>,
    by_organization: BTreeMap<OrganizationId, IntegrationId>,
    /// The newest creation, change of status or deletion of each integration.
    by_status_revision: BTreeMap<u64, Entry>,
    /// Revisions of the tombstones, oldest first.
    tombstones: VecDeque<u64>,
    /// Revision of the newest tombstone of each organization.
    buried: Map<OrganizationId, u64>,
    /// Revision up to which deletions are forgotten.
    floor: u64,
    applied: u64,
}

#[derive(Debug)]
enum Entry {
    Current(IntegrationId),
    Deleted(Box<Tombstone>),
}

/// Effect of changes that were applied.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// There was nothing more to read.
    pub(super) is_complete: bool,
    /// Integrations that existed before and do not any more, with the revision that shows it.
    pub(super) deleted: Vec<(IntegrationId, u64)>,
}

impl Replica {
    fn read(&self) -> RwLockReadGuard<'_, States> {
        self.states.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, States> {
        self.states.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Revision after which the next changes are to be read from the registry. Lower than
    /// [`Replica::applied`] while the replica is rebuilt.
    pub(super) fn cursor(&self) -> u64 {
        let states = self.read();
        let next = states.next.as_deref();
        next.unwrap_or(&states.current).applied
    }

    /// Applies the changes after [`Replica::cursor`]. Calls must not overlap.
    pub(super) fn apply(&self, changes: RegistryChanges) -> Applied {
        let mut states = self.write();
        let is_rebuilt = states.next.is_some();
        let applied = states.apply(changes);
        let (newest, revision) = (states.current.applied, states.current.revision());
        drop(states);
        raise(&self.applied, newest);
        match is_rebuilt && applied.is_complete {
            // Subscribers look again, also if the history that they know went further.
            true => self.revision.send_modify(|current| *current = revision),
            false => raise(&self.revision, revision),
        }
        applied
    }

    /// Reads everything again with the next changes.
    pub(super) fn rebuild(&self) {
        self.write().next = Some(Box::default());
    }

    /// Revision up to which the replica is complete.
    pub(super) fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Revision of the newest creation, change of status or deletion, as it changes.
    pub(super) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Calls `look` with an integration, without a copy of it.
    pub(super) fn look<T>(
        &self,
        id: IntegrationId,
        look: impl FnOnce(&Registered) -> T,
    ) -> Option<T> {
        self.read().current.by_id.get(&id).map(look)
    }

    /// Whether an integration exists.
    pub(super) fn contains(&self, id: IntegrationId) -> bool {
        self.read().current.by_id.contains_key(&id)
    }

    /// Returns the version of an integration's configuration.
    pub(super) fn version(&self, id: IntegrationId) -> Option<u64> {
        self.look(id, |registered| registered.integration.version)
    }

    /// Returns the partition of an integration's events.
    pub(super) fn partition_of(&self, id: IntegrationId) -> Option<Partition> {
        self.look(id, |registered| registered.partition)
    }

    /// Returns the integrations of a partition, with the versions of their configurations.
    pub(super) fn of_partition(&self, partition: Partition) -> Vec<(IntegrationId, u64)> {
        let states = self.read();
        let all = states.current.by_id.iter();
        all.filter(|(_, registered)| registered.partition == partition)
            .map(|(id, registered)| (*id, registered.integration.version))
            .collect()
    }

    /// Calls `look` with each integration.
    pub(super) fn for_each(&self, look: impl FnMut(&Registered)) {
        self.read().current.by_id.values().for_each(look);
    }

    /// Returns the id of an organization's integration.
    pub(super) fn id_of(&self, organization_id: &str) -> Option<IntegrationId> {
        let states = self.read();
        states.current.by_organization.get(organization_id).copied()
    }

    /// Revision of the last deletion of an organization's integration, or of the last deletion that
    /// is forgotten, which may be that one.
    pub(super) fn last_deletion(&self, organization_id: &OrganizationId) -> u64 {
        let states = self.read();
        let state = &states.current;
        let buried = state.buried.get(organization_id);
        buried.copied().unwrap_or(state.floor)
    }

    /// Returns the next `limit` integrations after an organization, in the order of their
    /// organizations, that `rights` cover and for which `keep` returns true. It skips what is
    /// not covered.
    pub(super) fn page(
        &self,
        after: &str,
        limit: usize,
        rights: &Rights,
        keep: impl Fn(&Registered) -> bool,
    ) -> Vec<Registered> {
        let states = self.read();
        let state = &states.current;
        let mut page = Vec::new();
        let mut from = Bound::Excluded(after);
        'pattern: loop {
            let rest = state
                .by_organization
                .range::<str, _>((from, Bound::Unbounded));
            for (organization_id, id) in rest {
                match rights.seek(organization_id.as_str()) {
                    Seek::Member => {}
                    Seek::From(next) => {
                        from = Bound::Included(next);
                        continue 'pattern;
                    }
                    Seek::End => return page,
                }
                if page.len() == limit {
                    return page;
                }
                let registered = state.by_id.get(id).filter(|registered| keep(registered));
                page.extend(registered.cloned());
            }
            return page;
        }
    }

    /// Looks at the first `limit` creations, changes of status and deletions after a revision, in
    /// commit order, and returns those for whose organizations `keep` returns true. `up_to` is
    /// the last revision that was looked at: if it is `revision`, nothing is left.
    pub(super) fn changes_after(
        &self,
        revision: u64,
        limit: usize,
        keep: impl Fn(&OrganizationId) -> bool,
    ) -> RegistryChanges {
        let states = self.read();
        let state = &states.current;
        let after = (Bound::Excluded(revision), Bound::Unbounded);
        let mut entries = state.by_status_revision.range(after);
        let mut found = RegistryChanges {
            up_to: revision,
            forgotten_to: state.floor,
            ..RegistryChanges::default()
        };
        for (revision, entry) in entries.by_ref().take(limit) {
            found.up_to = *revision;
            let change = match entry {
                Entry::Current(id) => match state.by_id.get(id) {
                    Some(registered) if keep(&registered.integration.organization_id) => {
                        RegistryChange::Current(registered.clone())
                    }
                    _ => continue,
                },
                Entry::Deleted(tombstone) if keep(&tombstone.organization_id) => {
                    RegistryChange::Deleted(Tombstone::clone(tombstone))
                }
                Entry::Deleted(_) => continue,
            };
            found.changes.push(change);
        }
        found.more = entries.next().is_some();
        found
    }

    /// Returns at most `limit` integrations of the named organizations whose last creation or
    /// change of status is in `revisions`, in commit order.
    pub(super) fn current_of<'a>(
        &self,
        organizations: impl IntoIterator<Item = &'a OrganizationId>,
        revisions: RangeInclusive<u64>,
        limit: usize,
    ) -> Vec<Registered> {
        let states = self.read();
        let mut found: Vec<&Registered> = organizations
            .into_iter()
            .filter_map(|organization_id| states.current.find(organization_id.as_str()))
            .filter(|registered| revisions.contains(&registered.status_revision))
            .collect();
        found.sort_unstable_by_key(|registered| registered.status_revision);
        found.into_iter().take(limit).cloned().collect()
    }
}

fn raise(sender: &watch::Sender<u64>, to: u64) {
    sender.send_if_modified(|current| {
        let rises = to > *current;
        *current = to.max(*current);
        rises
    });
}

impl States {
    fn apply(&mut self, changes: RegistryChanges) -> Applied {
        let state = self.next.as_deref_mut().unwrap_or(&mut self.current);
        // Its integrations may have been deleted by deletions that were forgotten before they
        // were read. Those that were forgotten before it read anything are not in it.
        let forgotten_to = changes.forgotten_to;
        if !state.by_id.is_empty() && forgotten_to > state.floor.max(state.applied) {
            self.next = Some(Box::default());
            return Applied::default();
        }
        let more = changes.more;
        let mut deleted = state.apply(changes);
        if self.next.is_some() {
            deleted.clear();
        }
        if !more && let Some(next) = self.next.take() {
            let before = std::mem::replace(&mut self.current, *next);
            let is_gone = |id: &IntegrationId| !self.current.by_id.contains_key(id);
            let gone = before.by_id.into_keys().filter(is_gone);
            deleted.extend(gone.map(|id| (id, self.current.applied)));
        }
        Applied {
            is_complete: !more,
            deleted,
        }
    }
}

impl State {
    fn find(&self, organization_id: &str) -> Option<&Registered> {
        let id = self.by_organization.get(organization_id)?;
        self.by_id.get(id)
    }

    fn revision(&self) -> u64 {
        let newest = self.by_status_revision.last_key_value();
        newest.map_or(0, |(revision, _)| *revision).max(self.floor)
    }

    /// Returns the integrations that existed and were deleted.
    fn apply(&mut self, changes: RegistryChanges) -> Vec<(IntegrationId, u64)> {
        let mut deleted = Vec::new();
        for change in changes.changes {
            // Read before.
            if change.revision() <= self.applied {
                continue;
            }
            match change {
                RegistryChange::Current(registered) => self.put(registered),
                RegistryChange::Deleted(tombstone) => {
                    let id = tombstone.integration_id;
                    if self.by_id.contains_key(&id) {
                        deleted.push((id, tombstone.revision));
                    }
                    self.bury(tombstone);
                }
            }
        }
        self.applied = self.applied.max(changes.up_to);
        self.floor = self.floor.max(changes.forgotten_to);
        while let Some(oldest) = self.tombstones.pop_front_if(|oldest| *oldest <= self.floor) {
            let entry = self.by_status_revision.remove(&oldest);
            if let Some(Entry::Deleted(tombstone)) = entry {
                let organization_id = &tombstone.organization_id;
                if self.buried.get(organization_id) == Some(&oldest) {
                    self.buried.remove(organization_id);
                }
            }
        }
        deleted
    }

    fn put(&mut self, registered: Registered) {
        let id = registered.integration.integration_id;
        let revision = registered.status_revision;
        let organization_id = registered.integration.organization_id.clone();
        let before = self.by_id.insert(id, registered);
        let revision_before = before.map(|before| before.status_revision);
        if revision_before.is_none() {
            self.by_organization.insert(organization_id, id);
        }
        if revision_before != Some(revision) {
            revision_before.map(|before| self.by_status_revision.remove(&before));
            self.by_status_revision.insert(revision, Entry::Current(id));
        }
    }

    fn bury(&mut self, tombstone: Tombstone) {
        let id = tombstone.integration_id;
        if let Some(before) = self.by_id.remove(&id) {
            self.by_status_revision.remove(&before.status_revision);
            let organization_id = &before.integration.organization_id;
            if self.by_organization.get(organization_id) == Some(&id) {
                self.by_organization.remove(organization_id);
            }
        }
        let revision = tombstone.revision;
        self.tombstones.push_back(revision);
        self.buried
            .insert(tombstone.organization_id.clone(), revision);
        self.by_status_revision
            .insert(revision, Entry::Deleted(Box::new(tombstone)));
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_organization_waits_for_its_own_last_deletion() {
        let [acme, other, absent] =
            ["acme", "other", "absent"].map(|name| OrganizationId::new(name).unwrap());
        let buried = |organization_id: &OrganizationId, revision| {
            RegistryChange::Deleted(Tombstone {
                revision,
                organization_id: organization_id.clone(),
                integration_id: IntegrationId(Uuid::from_u128(revision.into())),
                deleted_at: Timestamp::UNIX_EPOCH,
            })
        };
        let replica = Replica::default();
        let apply = |changes: Vec<RegistryChange>, up_to, forgotten_to| {
            replica.apply(RegistryChanges {
                changes,
                up_to,
                more: false,
                forgotten_to,
            });
        };
        let changes = [(&acme, 3), (&other, 5), (&acme, 7), (&other, 9)];
        let changes = changes.map(|(name, revision)| buried(name, revision));
        apply(changes.to_vec(), 9, 2);
        let last = || [&acme, &other, &absent].map(|name| replica.last_deletion(name));
        assert_eq!(last(), [7, 9, 2]);
        // A forgotten one may be any organization's.
        apply(Vec::new(), 9, 7);
        assert_eq!(last(), [7, 9, 7]);
        apply(Vec::new(), 9, 8);
        assert_eq!(last(), [8, 9, 8]);
    }
}
