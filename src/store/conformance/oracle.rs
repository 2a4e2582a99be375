//! Model of a ledger and its ownership: each call is one step on a map.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::yield_now;

use super::Acquire;
use crate::{
    domain::{chunk::Chunk, integration::IntegrationId},
    store::{
        error::StoreError,
        ports::{
            Anchor, BacklogChange, Checkpoint, Lease, Ledger, LedgerRow, LedgerSnapshot,
            LedgerUpdate, Partition,
        },
    },
};

/// Content of a ledger.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// Partition of each integration that exists.
    pub(crate) integrations: BTreeMap<IntegrationId, Partition>,
    /// Current epoch of each partition.
    pub(crate) epochs: BTreeMap<Partition, u64>,
    pub(crate) anchors: BTreeMap<Partition, Anchor>,
    pub(crate) rows: BTreeMap<IntegrationId, Row>,
    /// Chunks whose stored events are unreadable.
    pub(crate) damaged: BTreeSet<(IntegrationId, u64)>,
}

/// Ledger of one integration.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) checkpoint: Checkpoint,
    /// The backlog, by first sequence.
    pub(crate) backlog: BTreeMap<u64, Chunk>,
}

impl Row {
    /// Chunks that end after a sequence.
    pub(crate) fn from(&self, from: u64) -> impl Iterator<Item = &Chunk> {
        self.backlog
            .values()
            .filter(move |chunk| chunk.end_sequence() > from)
    }

    fn to_ledger(&self, integration_id: IntegrationId) -> LedgerRow {
        LedgerRow {
            integration_id,
            checkpoint: self.checkpoint.clone(),
            backlog_since: self.backlog.values().next().map(|chunk| chunk.accepted_at),
            backlog_bytes: self.backlog.values().map(|chunk| chunk.pending_bytes).sum(),
        }
    }
}

impl Model {
    pub(crate) fn settle(
        &mut self,
        lease: Lease,
        updates: &[LedgerUpdate],
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError> {
        if self.epochs.get(&lease.partition) != Some(&lease.epoch) {
            return Err(StoreError::Fenced);
        }
        for update in updates {
            let id = update.integration_id;
            if !self.integrations.contains_key(&id) {
                continue;
            }
            let row = self.rows.entry(id).or_default();
            if update.checkpoint.next_sequence < row.checkpoint.next_sequence {
                continue;
            }
            row.checkpoint = update.checkpoint.clone();
            for change in &update.backlog {
                match change {
                    BacklogChange::Add(chunk) => {
                        self.damaged.remove(&(id, chunk.first_sequence));
                        row.backlog.insert(chunk.first_sequence, chunk.clone());
                    }
                    BacklogChange::Update(new) | BacklogChange::SetAside(new) => {
                        let Some(chunk) = row.backlog.get_mut(&new.first_sequence) else {
                            continue;
                        };
                        chunk.settled = new.settled.clone();
                        chunk.gaps = new.gaps.clone();
                        chunk.pending_bytes = new.pending_bytes;
                        if chunk.pending_events() == 0 {
                            chunk.segment = Bytes::new();
                            self.damaged.remove(&(id, new.first_sequence));
                        }
                        if chunk.is_finished() {
                            row.backlog.remove(&new.first_sequence);
                        }
                    }
                }
            }
        }
        if let Some(anchor) = anchor {
            self.anchors.insert(lease.partition, anchor);
        }
        Ok(())
    }

    pub(crate) fn load(&self, partition: Partition) -> LedgerSnapshot {
        let rows = self
            .rows
            .iter()
            .filter(|(id, _)| self.integrations.get(id) == Some(&partition));
        LedgerSnapshot {
            anchor: self.anchors.get(&partition).copied(),
            integrations: rows.map(|(id, row)| row.to_ledger(*id)).collect(),
        }
    }

    pub(crate) fn oldest_pending(&self, id: IntegrationId) -> Option<Timestamp> {
        let backlog = self.rows.get(&id)?.backlog.values();
        let mut pending = backlog.filter(|chunk| chunk.pending_events() > 0);
        pending.next().map(|chunk| chunk.accepted_at)
    }
}

/// Ledger and ownership on a [`Model`], which outlives it.
#[derive(Clone, Debug)]
pub(crate) struct Oracle {
    model: Arc<Mutex<Model>>,
    partitions: Partition,
}

impl Oracle {
    /// Opens a model.
    pub(crate) fn open(model: Arc<Mutex<Model>>, partitions: Partition) -> Self {
        Self { model, partitions }
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Acquire for Oracle {
    async fn acquire(&self) -> Result<Vec<Lease>, StoreError> {
        let mut model = self.lock();
        let leases = (0..self.partitions).map(|partition| {
            let epoch = model.epochs.entry(partition).or_default();
            *epoch += 1;
            Lease {
                partition,
                epoch: *epoch,
            }
        });
        Ok(leases.collect())
    }
}

#[async_trait]
impl Ledger for Oracle {
    async fn load(&self, lease: Lease) -> Result<LedgerSnapshot, StoreError> {
        Ok(self.lock().load(lease.partition))
    }

    async fn settle(
        &self,
        lease: Lease,
        updates: Vec<LedgerUpdate>,
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError> {
        yield_now().await;
        let result = self.lock().settle(lease, &updates, anchor);
        yield_now().await;
        result
    }

    async fn read_backlog(
        &self,
        integration_id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        let model = self.lock();
        let Some(row) = model.rows.get(&integration_id) else {
            return Ok(Vec::new());
        };
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        for chunk in row.from(from) {
            let first_sequence = chunk.first_sequence;
            let is_damaged = model.damaged.contains(&(integration_id, first_sequence));
            if is_damaged && chunks.is_empty() {
                return Err(StoreError::DamagedChunk { first_sequence });
            }
            if is_damaged || !chunks.is_empty() && bytes >= max_bytes {
                break;
            }
            bytes += chunk.segment.len();
            chunks.push(chunk.clone());
        }
        Ok(chunks)
    }

    async fn backlog_states(
        &self,
        integration_id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        let model = self.lock();
        let row = model.rows.get(&integration_id);
        let chunks = row.into_iter().flat_map(|row| row.from(from));
        Ok(chunks.take(limit).map(Chunk::state).collect())
    }

    async fn oldest_pending(
        &self,
        integration_ids: &[IntegrationId],
    ) -> Result<HashMap<IntegrationId, Timestamp>, StoreError> {
        let model = self.lock();
        let ids = integration_ids.iter();
        Ok(ids
            .filter_map(|id| Some((*id, model.oldest_pending(*id)?)))
            .collect())
    }

    async fn rows_of(&self, ids: &[IntegrationId]) -> Result<Vec<LedgerRow>, StoreError> {
        let model = self.lock();
        let rows = ids.iter().filter_map(|id| {
            let exists = model.integrations.contains_key(id);
            Some(model.rows.get(id).filter(|_| exists)?.to_ledger(*id))
        });
        Ok(rows.collect())
    }

    async fn forget_anchor(&self, lease: Lease) -> Result<(), StoreError> {
        let mut model = self.lock();
        if model.epochs.get(&lease.partition) != Some(&lease.epoch) {
            return Err(StoreError::Fenced);
        }
        model.anchors.remove(&lease.partition);
        Ok(())
    }

    async fn remove_deleted(&self) -> Result<bool, StoreError> {
        let model = &mut *self.lock();
        let exists = |id: &IntegrationId| model.integrations.contains_key(id);
        model.rows.retain(|id, _| exists(id));
        model.damaged.retain(|(id, _)| exists(id));
        Ok(true)
    }
}
