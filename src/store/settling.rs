//! Records what attempts achieved, within the writer's transaction.

use std::sync::Arc;

use sea_orm::{DatabaseTransaction, DbErr};

use super::{
    command::{Unsettled, UnsettledOne},
    draft::Draft,
    integrations,
    statements::{self, ProgressRow},
};
use crate::domain::integration::{IntegrationKey, Progress};

/// Settles everything: counts, statuses, and what is left of the log.
pub(super) async fn settle(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    unsettled: &Unsettled,
) -> Result<(), DbErr> {
    let (mut finished, mut advanced) = (Vec::new(), Vec::new());
    for (key, one) in &unsettled.by_key {
        let Some(slot) = draft.slot_mut(*key) else {
            continue;
        };
        count(*key, &mut slot.snapshot.progress, one);
        let before = Arc::clone(&slot.snapshot.status);
        let changed = draft.observe(*key, &one.observed);
        let packs = &mut draft.packs;
        let in_rows = one.finished.iter().filter(|id| !packs.settle(**id, None));
        finished.extend(in_rows);
        for (id, (bitmap, pending_bytes)) in &one.partial {
            if !packs.settle(*id, Some(bitmap)) {
                statements::accept_part(tx, *id, bitmap, *pending_bytes).await?;
            }
        }
        let Some(slot) = draft.slot_mut(*key) else {
            continue;
        };
        let status = &slot.snapshot.status;
        if changed {
            integrations::audit_status(tx, &slot.snapshot).await?;
        }
        if !before.says_the_same(status) {
            statements::save_status(tx, *key, slot).await?;
        }
        advanced.push(ProgressRow::of(*key, slot));
    }
    // In the order in which they lie, so that each statement writes few pages.
    advanced.sort_unstable_by_key(ProgressRow::key);
    statements::save_progress(tx, &advanced).await?;
    statements::delete_chunks(tx, &finished).await
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
