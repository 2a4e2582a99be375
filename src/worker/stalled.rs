//! Integrations whose events wait while nothing is accepted: none of them may look active,
//! also where no attempt shows it, such as when thousands time out and wait for their turn.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Shared, lane::Lane};
use crate::{
    domain::{
        delivery::Settlement,
        status::{Observation, Reason, Status},
    },
    store::{NextRetry, Observed, Settle, Tells},
};

/// Records it for each whose status does not show it.
pub(super) async fn report<S>(shared: Arc<Shared<S>>) {
    let Some(before) = Instant::now().checked_sub(shared.options.stalled_after) else {
        return;
    };
    // One at a time: where the database is stuck, they would pile up.
    let Ok(_one) = shared.reporting.try_lock() else {
        return;
    };
    let stalled = shared.lanes().stalled_since(before);
    for (key, obstacle) in stalled {
        let Some(snapshot) = shared.store.get(key) else {
            continue;
        };
        let tells = matches!(snapshot.status.status, Status::Active | Status::Unknown);
        if !tells || snapshot.progress.pending() == 0 {
            continue;
        }
        let reason = obstacle.unwrap_or(Reason::ServiceUnavailable);
        let settle = Settle {
            key,
            settlement: Settlement::default(),
            observed: Some(Observed {
                version: snapshot.integration.version,
                at: Timestamp::now(),
                observation: Observation::Stalled(reason),
                next_retry: NextRetry::Kept,
            }),
            tells: Tells::Nobody,
        };
        let permit = shared.store.reserve_settle().await;
        // Meanwhile something may have been delivered, and is queued before this.
        let mut lanes = shared.lanes();
        let is_stalled = |lane: &mut Lane| lane.undelivered_since <= before;
        if let (Some(permit), true) = (permit, lanes.get(key).is_some_and(is_stalled)) {
            permit.settle(settle);
        }
    }
}
