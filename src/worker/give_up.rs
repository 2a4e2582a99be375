//! Gives up records that AWS refuses while it takes others, and what cannot be read back.

use tokio::time::{Duration, Instant};

use super::{Shared, lane::Lanes};
use crate::{
    domain::{gap::Marked, integration::IntegrationKey},
    store::{GiveUp, GivenUp, StoreError, What},
};

/// How long to wait after the log could not be written.
const WRITE_RETRY: Duration = Duration::from_secs(1);

/// Lets gaps take the place of what was refused. Until that is durable the integration
/// stands still, but for its requests in flight.
pub(super) async fn refused<S>(shared: &Shared<S>, key: IntegrationKey) {
    let Some(still) = shared.lanes().get(key).map(|lane| lane.still.clone()) else {
        return;
    };
    let _still = still.write_owned().await;
    let Some(ask) = ask(shared, key) else { return };
    let given_up = shared.store.give_up(ask).await;
    take_in(shared, key, given_up);
    shared.wake.notify_one();
}

/// Lets a gap take the place of a chunk that cannot be read back. Until that is durable the
/// integration stands still, but for its requests in flight.
pub(super) async fn damaged<S>(shared: &Shared<S>, key: IntegrationKey, chunk_id: i64) {
    let Some(still) = shared.lanes().get(key).map(|lane| lane.still.clone()) else {
        return;
    };
    let _still = still.write_owned().await;
    let Some(in_flight) = in_flight(shared, key) else {
        return;
    };
    let what = What::Damaged(chunk_id);
    let ask = GiveUp {
        key,
        what,
        in_flight,
    };
    match shared.store.give_up(ask).await {
        Ok(given_up) if given_up.expired > 0 => {
            let mut lanes = shared.lanes();
            apply(&mut lanes, key, &given_up);
            lanes.end_back_off(key);
            drop(lanes);
            tracing::error!(
                integration_key = key.0,
                chunk_id,
                events = given_up.expired,
                "a chunk of the log is damaged: its events are lost, and a gap event takes their place; what is left of it is in the table damaged_chunk (docs/operations.md)"
            );
        }
        // It could be read after all, or what is left of it is in flight.
        Ok(_) => tracing::warn!(chunk_id, "a chunk of the log could not be read at first"),
        Err(error) => tracing::error!(%error, chunk_id, "cannot set a damaged chunk aside"),
    }
    shared.wake.notify_one();
}

fn in_flight<S>(shared: &Shared<S>, key: IntegrationKey) -> Option<Vec<Marked>> {
    let mut lanes = shared.lanes();
    lanes.get(key).map(|lane| lane.delivery.events_in_flight())
}

fn ask<S>(shared: &Shared<S>, key: IntegrationKey) -> Option<GiveUp> {
    let mut lanes = shared.lanes();
    let lane = lanes.get(key)?;
    let events = lane.delivery.refused();
    if events.is_empty() {
        return None;
    }
    Some(GiveUp {
        key,
        what: What::Refused(events),
        in_flight: lane.delivery.events_in_flight(),
    })
}

fn take_in<S>(shared: &Shared<S>, key: IntegrationKey, given_up: Result<GivenUp, StoreError>) {
    let mut lanes = shared.lanes();
    let Some(lane) = lanes.get(key) else { return };
    match given_up {
        Ok(given_up) => apply(&mut lanes, key, &given_up),
        Err(error) => {
            tracing::error!(%error, "cannot give up what was refused");
            lane.delivery.keep_refused();
            lanes.back_off(key, Instant::now() + WRITE_RETRY);
        }
    }
    lanes.queue(key);
}

/// Takes in what the store has given up. The integration stands still.
pub(super) fn apply(lanes: &mut Lanes, key: IntegrationKey, given_up: &GivenUp) {
    let Some(lane) = lanes.get(key) else { return };
    let before = lane.delivery.bytes();
    let gap_key = lane.integration_id.as_u128();
    lane.delivery.apply(&given_up.chunks, gap_key);
    let freed = before - lane.delivery.bytes();
    lanes.loaded_bytes -= freed;
}
