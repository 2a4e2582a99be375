//! One transaction in the making: what it will change, applied to the catalog only
//! once it is committed.

use std::{collections::hash_map, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    catalog::{Catalog, CatalogDiff, Slot, Tombstone},
    gathered::Gathered,
    packs::{PackChanges, PackDraft, Packs},
    rows::whole_micros,
};
use crate::domain::{
    integration::IntegrationKey,
    map::Map,
    organization::OrganizationId,
    segment::Segments,
    status::{Observation, Status, observe},
};

/// What one attempt showed, and when.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The configuration that was in use; a newer one makes it void.
    pub version: u64,
    /// When the attempt ended.
    pub at: Timestamp,
    /// What it showed.
    pub observation: Observation,
    /// What it says of the next attempt.
    pub next_retry: NextRetry,
}

impl Observed {
    /// Whether both tell no more than that all is well.
    fn is_well_as(&self, other: &Self) -> bool {
        let well = |one: &Self| {
            one.observation == Observation::Accepted && one.next_retry == NextRetry::Never
        };
        self.version == other.version && well(self) && well(other)
    }

    /// Puts it behind others. What lies between two that tell the same tells nothing.
    pub(super) fn put_behind(self, others: &mut Vec<Self>) {
        match &mut others[..] {
            [.., before, last] if before.is_well_as(last) && last.is_well_as(&self) => *last = self,
            _ => others.push(self),
        }
    }
}

impl Slot {
    /// Whether what an attempt showed is another status, or another reason for it.
    pub(super) fn would_change(&self, failing_after: Duration, observed: &Observed) -> bool {
        let status = &self.snapshot.status;
        if observed.observation == Observation::Accepted && status.status == Status::Active {
            return false;
        }
        let mut stall = self.stall;
        let observation = &observed.observation;
        status.is_change(&observe(
            status,
            &mut stall,
            failing_after,
            observed.at,
            observation,
        ))
    }
}

/// When the next attempt is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRetry {
    /// As was told before.
    Kept,
    /// There is no back-off.
    Never,
    /// While backing off.
    At(Timestamp),
}

/// What a committed transaction has changed.
pub(super) struct Finished {
    pub(super) diff: CatalogDiff,
    pub(super) packs: PackChanges,
    pub(super) configured: Vec<IntegrationKey>,
    pub(super) revision: u64,
}

/// Integrations for which room is made ahead, at the most.
const MOST_EXPECTED: usize = 128;

pub(super) struct Draft<'a> {
    catalog: &'a Catalog,
    pub(super) packs: PackDraft<'a>,
    diff: CatalogDiff,
    organizations: Map<OrganizationId, Option<IntegrationKey>>,
    /// Events that wait to become chunks.
    pub(super) gathered: Gathered,
    configured: Vec<IntegrationKey>,
    revision: u64,
    failing_after: Duration,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        catalog: &'a Catalog,
        packs: &'a Packs,
        revision: u64,
        failing_after: Duration,
    ) -> Self {
        Self {
            catalog,
            packs: PackDraft::new(packs),
            diff: CatalogDiff::default(),
            organizations: Map::default(),
            gathered: Gathered::default(),
            configured: Vec::new(),
            revision,
            failing_after,
        }
    }

    /// Makes room for as many integrations as commands may be of, which is cheaper than to
    /// grow by and by.
    pub(super) fn expect(&mut self, commands: usize) {
        let room = commands.min(MOST_EXPECTED);
        self.diff.slots.reserve(room);
        self.gathered.expect(room);
    }

    /// What it changes, to be taken in once it is committed.
    pub(super) fn finish(self) -> Finished {
        Finished {
            diff: self.diff,
            packs: self.packs.into_changes(),
            configured: self.configured,
            revision: self.revision,
        }
    }

    pub(super) fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// The integration as the transaction sees it, to be changed.
    pub(super) fn slot_mut(&mut self, key: IntegrationKey) -> Option<&mut Slot> {
        let slot = match self.diff.slots.entry(key) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(Some(self.catalog.slot(key)?)),
        };
        slot.as_mut()
    }

    pub(super) fn find(&mut self, organization_id: &OrganizationId) -> Option<&mut Slot> {
        let key = match self.organizations.get(organization_id) {
            Some(key) => (*key)?,
            None => self.catalog.key_of(organization_id.as_str())?,
        };
        self.slot_mut(key)
    }

    pub(super) fn insert(&mut self, key: IntegrationKey, slot: Slot) {
        let organization = slot.snapshot.integration.organization_id.clone();
        self.organizations.insert(organization, Some(key));
        self.diff.slots.insert(key, Some(slot));
        self.configured.push(key);
    }

    /// Returns how many events of this very transaction go with it.
    pub(super) fn remove(&mut self, key: IntegrationKey, tombstone: Tombstone) -> u64 {
        self.organizations
            .insert(tombstone.organization_id.clone(), None);
        self.diff.slots.insert(key, None);
        self.diff.tombstones.push(tombstone);
        self.gathered.forget(key)
    }

    /// Takes events of integrations that exist. Returns how many those are.
    pub(super) fn append(&mut self, segments: Segments) -> u32 {
        let (slots, catalog) = (&self.diff.slots, self.catalog);
        self.gathered.take(segments, |key| match slots.get(&key) {
            Some(slot) => slot.is_some(),
            None => catalog.contains(key),
        })
    }

    /// Applies what attempts showed to the status. Returns whether it changed.
    pub(super) fn observe(&mut self, key: IntegrationKey, observed: &[Observed]) -> bool {
        let failing_after = self.failing_after;
        let Some(slot) = self.slot_mut(key) else {
            return false;
        };
        let before = Arc::clone(&slot.snapshot.status);
        let version = slot.snapshot.integration.version;
        for observed in observed.iter().filter(|one| one.version == version) {
            let mut status = observe(
                &slot.snapshot.status,
                &mut slot.stall,
                failing_after,
                whole_micros(observed.at),
                &observed.observation,
            );
            status.next_retry = match observed.next_retry {
                NextRetry::Kept => slot.snapshot.status.next_retry,
                NextRetry::Never => None,
                NextRetry::At(at) => Some(whole_micros(at)),
            };
            slot.snapshot.status = Arc::new(status);
        }
        let changed = before.is_change(&slot.snapshot.status);
        if !changed && before.since != slot.snapshot.status.since {
            // It went and came back within this transaction, which nobody is told.
            let mut status = (*slot.snapshot.status).clone();
            status.since = before.since;
            slot.snapshot.status = Arc::new(status);
        }
        if changed {
            let revision = self.next_revision();
            if let Some(slot) = self.slot_mut(key) {
                slot.snapshot.revision = revision;
            }
        }
        changed
    }
}
