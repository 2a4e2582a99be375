//! What attempts achieved, and how it is recorded: within the writer's transaction, or
//! where it is little together with what is appended at the time.

use std::sync::Arc;

use sea_orm::{DatabaseTransaction, DbErr};

use super::{
    command::{Unsettled, UnsettledOne},
    draft::Draft,
    integrations,
    script::Script,
    statements::{self, ProgressRow},
};
use crate::domain::integration::{IntegrationKey, Progress};

/// Integrations whose settlement is little.
pub(super) const FEW: usize = if cfg!(test) { 3 } else { 16 };

/// What a settlement writes, beside what is done with of packs.
#[derive(Default)]
pub(super) struct Settled {
    /// In the order in which they lie, so that each statement writes few pages.
    advanced: Vec<ProgressRow>,
    /// Chunks that are done with.
    finished: Vec<i64>,
    /// Chunks of which some events are, and the bytes of the others.
    partial: Vec<(i64, Vec<u8>, u64)>,
    /// Whose status is another.
    changed: Vec<IntegrationKey>,
    /// Whose status is told otherwise, in the least of its details.
    restated: Vec<IntegrationKey>,
}

/// Settles everything: counts, statuses, and what is left of the log.
pub(super) fn settle(draft: &mut Draft<'_>, unsettled: &Unsettled) -> Settled {
    let mut settled = Settled::default();
    for (key, one) in &unsettled.by_key {
        let Some(slot) = draft.slot_mut(*key) else {
            continue;
        };
        count(*key, &mut slot.snapshot.progress, one);
        let before = Arc::clone(&slot.snapshot.status);
        if draft.observe(*key, &one.observed) {
            settled.changed.push(*key);
        }
        let packs = &mut draft.packs;
        let in_rows = one.finished.iter().filter(|id| !packs.settle(**id, None));
        settled.finished.extend(in_rows);
        for (id, (bitmap, pending_bytes)) in &one.partial {
            if !packs.settle(*id, Some(bitmap)) {
                let part = (*id, bitmap.clone(), *pending_bytes);
                settled.partial.push(part);
            }
        }
        let Some(slot) = draft.slot_mut(*key) else {
            continue;
        };
        if !before.is_same_except_last_times(&slot.snapshot.status) {
            settled.restated.push(*key);
        }
        settled.advanced.push(ProgressRow::of(*key, slot));
    }
    settled.advanced.sort_unstable_by_key(ProgressRow::key);
    settled
}

fn count(key: IntegrationKey, progress: &mut Progress, one: &UnsettledOne) {
    if one.delivered > progress.pending() || one.delivered_bytes > progress.pending_bytes {
        tracing::error!(
            integration_key = key.0,
            "more was delivered than was pending: this is a defect"
        );
    }
    progress.delivered += one.delivered.min(progress.pending());
    progress.pending_bytes = progress.pending_bytes.saturating_sub(one.delivered_bytes);
}

impl Settled {
    pub(super) fn is_empty(&self) -> bool {
        self.advanced.is_empty()
    }

    /// Whether it is of few integrations, and of counts alone.
    pub(super) fn is_little(&self) -> bool {
        self.advanced.len() <= FEW && self.partial.is_empty() && self.restated.is_empty()
    }

    /// Records it within a transaction, before anything else changes a status.
    pub(super) async fn save(
        &self,
        tx: &DatabaseTransaction,
        draft: &mut Draft<'_>,
    ) -> Result<(), DbErr> {
        for (id, bitmap, pending_bytes) in &self.partial {
            statements::accept_part(tx, *id, bitmap, *pending_bytes).await?;
        }
        for key in &self.changed {
            if let Some(slot) = draft.slot_mut(*key) {
                integrations::audit_status(tx, &slot.snapshot).await?;
            }
        }
        for key in &self.restated {
            if let Some(slot) = draft.slot_mut(*key) {
                statements::save_status(tx, *key, slot).await?;
            }
        }
        statements::save_progress(tx, &self.advanced).await?;
        statements::delete_chunks(tx, &self.finished).await
    }

    /// Records it by a script, where it [is little](Self::is_little).
    pub(super) fn add_to(&self, script: &mut Script) {
        if !self.advanced.is_empty() {
            statements::add_progress(script, &self.advanced);
        }
        if !self.finished.is_empty() {
            statements::add_deletion(script, "chunk", "chunk_id", &self.finished);
        }
    }
}
