//! One turn of one integration: one request.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{
    Shared,
    lane::{Allowance, Lanes},
    load::load,
    outcome::{Answer, take_in},
};
use crate::{
    domain::{
        delivery::Batch,
        event::{Head, finish},
        integration::{Integration, IntegrationKey},
    },
    sink::{Pass, Record, Sink},
};

/// A call that takes longer gives its place to another's.
const SLOW: Duration = Duration::from_secs(1);

/// Takes a turn, settles it, and queues the integration again where it has more.
pub(super) async fn take<S: Sink>(
    shared: Arc<Shared<S>>,
    key: IntegrationKey,
    mut allowance: Allowance,
) {
    let exists = || shared.store.get(key).is_some();
    let settled = match shared.gate.enter(key, exists) {
        Some(pass) => send(&shared, key, pass, &mut allowance).await,
        None => None,
    };
    end_turn(&shared, key, allowance, settled.is_some());
    if let Some(settled) = settled {
        // An error means that the store closed; then nobody waits for this.
        let _closed = settled.await;
        end_settlement(&shared, key);
    }
}

/// Sends one request. Returns what tells when its settlement is durable.
async fn send<S: Sink>(
    shared: &Shared<S>,
    key: IntegrationKey,
    pass: Pass,
    allowance: &mut Allowance,
) -> Option<oneshot::Receiver<()>> {
    let integration = shared.store.get(key)?.integration;
    load(shared, key, &integration).await;
    let request = match next_request(shared, key) {
        None => {
            // What is at hand waits for requests under way; further on may be more.
            load(shared, key, &integration).await;
            next_request(shared, key)
        }
        request => request,
    };
    let (batch, records) = request?;
    let answer = tokio::select! {
        biased;
        () = pass.cancelled() => Answer::Cancelled,
        answer = call(shared, key, &integration, records, allowance) => answer,
    };
    // The call is over; a delete need not wait for the settlement.
    drop(pass);
    // Room in the queue comes first, so that settlements are queued in the order in
    // which the lane takes in the answers.
    let permit = shared.store.reserve_settle().await;
    let mut lanes = shared.lanes();
    let mut settle = take_in(shared, &mut lanes, key, &integration, batch, answer)?;
    let (done, settled) = oneshot::channel();
    settle.done = Some(done);
    permit?.settle(settle);
    Some(settled)
}

/// Calls AWS. A call that takes long no longer counts among the quick ones.
async fn call<S: Sink>(
    shared: &Shared<S>,
    key: IntegrationKey,
    integration: &Arc<Integration>,
    records: Vec<Record>,
    allowance: &mut Allowance,
) -> Answer {
    let mut call = pin!(shared.sink.put_records(integration, records));
    let answer = match timeout(SLOW, &mut call).await {
        Ok(answer) => {
            if let Some(lane) = shared.lanes().get(key) {
                lane.slow = false;
            }
            answer
        }
        Err(_elapsed) => {
            shared.lanes().slow_down(key, allowance);
            shared.wake.notify_one();
            call.await
        }
    };
    match answer {
        Ok(outcomes) => Answer::Outcomes(outcomes),
        Err(fault) => Answer::Fault(fault),
    }
}

fn next_request<S>(shared: &Shared<S>, key: IntegrationKey) -> Option<(Batch, Vec<Record>)> {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    let lane = lanes.get(key)?;
    let batch = lane.delivery.next_batch(shared.options.limits);
    let waiting = lane.delivery.waiting() > 0;
    let is_full = |batch: &Batch| batch.items.len() >= shared.options.limits.records;
    lane.starved = waiting && !batch.as_ref().is_some_and(is_full);
    let batch = batch?;
    let head = lane.head.clone();
    if waiting || lane.cursor < log_end {
        lanes.queue(key);
        shared.wake.notify_one();
    }
    drop(lanes);
    let records = records(&head, &batch);
    Some((batch, records))
}

fn records(head: &Head, batch: &Batch) -> Vec<Record> {
    batch
        .items
        .iter()
        .map(|item| {
            let mut data = Vec::new();
            finish(head, item.sequence, &item.body, &mut data);
            Record {
                partition_key: Uuid::from_u128(item.key).to_string(),
                data,
            }
        })
        .collect()
}

fn end_turn<S>(shared: &Shared<S>, key: IntegrationKey, allowance: Allowance, settling: bool) {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    if lanes.end_turn(key, allowance)
        && let Some(lane) = lanes.get(key)
    {
        let exists = log_end > 0;
        let more = exists && (lane.delivery.waiting() > 0 || lane.cursor < log_end);
        // A turn that found nothing to send waits for those that are under way.
        if more && (settling || (lane.delivery.in_flight() == 0 && !lane.loading)) {
            lanes.queue(key);
        }
        if !settling {
            rest(shared, &mut lanes, key, log_end);
        }
    }
    drop(lanes);
    shared.wake.notify_one();
}

fn end_settlement<S>(shared: &Shared<S>, key: IntegrationKey) {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    if let Some(lane) = lanes.get(key) {
        lane.unsettled -= 1;
        rest(shared, &mut lanes, key, log_end);
    }
}

/// Frees what a lane does not need: all of it where it is done or its integration is
/// gone, its chunks where it backs off for long or memory is short.
fn rest<S>(shared: &Shared<S>, lanes: &mut Lanes, key: IntegrationKey, log_end: u64) {
    let crowded = lanes.loaded_bytes > shared.options.windows_bytes;
    let Some(lane) = lanes.get(key) else { return };
    let idle = lane.turns == 0 && lane.unsettled == 0;
    if idle && shared.store.get(key).is_none() {
        lanes.remove(key);
        return;
    }
    if crowded || lane.backoff.is_failing() {
        lanes.unload(key);
    }
    lanes.close_if_done(key, log_end);
}
