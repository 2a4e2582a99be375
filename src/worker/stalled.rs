//! Integrations of which events wait while nothing is accepted. None of them may look active,
//! even if no attempt shows it, as when thousands of calls time out and lanes wait for permits.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Shared;
use crate::{
    domain::{
        integration::IntegrationId,
        status::{Observation, Reason, Status},
    },
    store::{NextRetry, Observed},
};

/// Records it for each integration whose status does not show it.
pub(super) async fn report<S>(shared: Arc<Shared<S>>) {
    let Some(before) = Instant::now().checked_sub(shared.options.stalled_after) else {
        return;
    };
    let stalled = shared.lanes().stalled_since(before);
    for (id, obstacle) in stalled {
        report_one(&shared, id, before, obstacle);
        // One of thousands, each of which locks the lanes.
        tokio::task::consume_budget().await;
    }
}

fn report_one<S>(shared: &Shared<S>, id: IntegrationId, before: Instant, obstacle: Option<Reason>) {
    let Some(snapshot) = shared.store.get(id) else {
        return;
    };
    let looks_well = matches!(snapshot.status.status, Status::Active | Status::Unknown);
    if !looks_well || snapshot.progress.pending() == 0 {
        return;
    }
    let began_at = Timestamp::now();
    let observed = Observed {
        integration_id: id,
        version: snapshot.integration.version,
        began_at,
        at: began_at,
        observation: Observation::Stalled(obstacle.unwrap_or(Reason::ServiceUnavailable)),
        next_retry: NextRetry::Unchanged,
    };
    // Answers are settled under this lock: an acceptance since then is seen.
    let mut lanes = shared.lanes();
    let lane = lanes.get(id);
    if lane.is_some_and(|lane| lane.undelivered_since <= before) {
        shared.store.settle(id, None, Some(observed));
    }
}
