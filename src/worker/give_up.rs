//! Giving events up: records that AWS refuses while it accepts others, and chunks that cannot
//! be read. A lane's lock is held exclusively meanwhile, so that nothing but its requests in
//! flight goes on.

use std::time::Duration;

use tokio::time::Instant;

use super::{Shared, lanes::Lanes};
use crate::{
    domain::{delivery::Delivery, integration::IntegrationId},
    store::{GiveUp, GivenUp, StoreError, Which},
};

/// Backoff after events could not be given up.
const WRITE_RETRY: Duration = Duration::from_secs(1);

/// Gives up the refused events of a lane, durably.
pub(super) async fn refused<S>(shared: &Shared<S>, id: IntegrationId) {
    let refused = |delivery: &Delivery| {
        let refused = delivery.refused();
        (!refused.is_empty()).then_some(Which::Refused(refused))
    };
    let given_up = give_up(shared, id, refused).await;
    let mut lanes = shared.lanes();
    if let Some(Err(error)) = given_up {
        tracing::error!(%error, "cannot give up what was refused");
        if let Some(lane) = lanes.get(id) {
            lane.delivery.keep_refused();
        }
        lanes.back_off(id, Instant::now() + WRITE_RETRY);
    }
    lanes.queue(id);
    drop(lanes);
    shared.wake.notify_one();
}

/// Gives up the events of a chunk that cannot be read, durably.
pub(super) async fn damaged<S>(shared: &Shared<S>, id: IntegrationId, first_sequence: u64) {
    let which = |_: &Delivery| Some(Which::Damaged(first_sequence));
    match give_up(shared, id, which).await {
        None => {}
        Some(Ok(given_up)) if given_up.expired > 0 => {
            shared.lanes().end_backoff(id);
            tracing::error!(
                integration_id = %id,
                first_sequence,
                events = given_up.expired,
                "a chunk of the log is damaged: its events are lost, and a gap event takes their place (docs/operations.md)"
            );
        }
        // It could be read after all, or its events are in flight.
        Some(Ok(_)) => {
            tracing::warn!(integration_id = %id, first_sequence, "a chunk of the log could not be read at first");
        }
        Some(Err(error)) => {
            tracing::error!(%error, integration_id = %id, first_sequence, "cannot set a damaged chunk aside");
        }
    }
    shared.wake.notify_one();
}

/// Gives events up that `which` chooses under the lane's exclusive lock, and applies that to the
/// lane. None if there is no lane, or nothing is chosen.
pub(super) async fn give_up<S>(
    shared: &Shared<S>,
    id: IntegrationId,
    which: impl FnOnce(&Delivery) -> Option<Which>,
) -> Option<Result<GivenUp, StoreError>> {
    let lock = shared.lanes().get(id)?.give_up_lock.clone();
    let _exclusive = lock.write_owned().await;
    let request = {
        let mut lanes = shared.lanes();
        let delivery = &lanes.get(id)?.delivery;
        GiveUp {
            integration_id: id,
            which: which(delivery)?,
            in_flight: delivery.in_flight_records(),
        }
    };
    let given_up = shared.store.give_up(request).await;
    if let Ok(given_up) = &given_up {
        apply(&mut shared.lanes(), id, given_up);
    }
    Some(given_up)
}

fn apply(lanes: &mut Lanes, id: IntegrationId, given_up: &GivenUp) {
    let Some(lane) = lanes.get(id) else { return };
    let before = lane.delivery.bytes();
    lane.delivery.apply(&given_up.chunks);
    let freed = before - lane.delivery.bytes();
    lanes.loaded_bytes -= freed;
}
