//! One turn of one integration: one request.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{RwLock, oneshot},
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    Shared, give_up,
    lane::{Lane, Lanes},
    load::{DamagedChunk, is_crowded, load},
    outcome::{Answer, take_in},
    places::Turn,
};
use crate::{
    domain::{
        delivery::{Batch, BatchLimits, Item},
        event::{Format, render_gap},
        integration::{Integration, IntegrationKey},
        status::{Cause, Fault, Stage},
    },
    sink::{Content, Pass, Record, Sink},
};

/// A call that takes longer gives its place to another's where that is needed.
const LONG: Duration = Duration::from_secs(1);

/// Takes a turn, settles it, and queues the integration again where it has more.
pub(super) async fn take<S: Sink>(shared: Arc<Shared<S>>, key: IntegrationKey, mut turn: Turn) {
    let exists = || shared.store.exists(key);
    let settled = match shared.gate.enter(key, exists) {
        Some(pass) => send(&shared, key, pass, &mut turn).await,
        None => None,
    };
    end_turn(&shared, key, turn, settled.is_some());
    if let Some(Settling { done, changes }) = settled {
        // An error means that the store closed; then nobody waits for this.
        let _closed = done.await;
        end_settlement(&shared, key, changes);
    }
}

/// A settlement that is not durable yet.
struct Settling {
    done: oneshot::Receiver<()>,
    /// Whether it changes what the log says of its events.
    changes: bool,
}

/// Sends one request. Returns what is settled by it.
async fn send<S: Sink>(
    shared: &Shared<S>,
    key: IntegrationKey,
    pass: Pass,
    turn: &mut Turn,
) -> Option<Settling> {
    let integration = shared.store.get(key)?.integration;
    let still = shared.lanes().get(key)?.still.clone();
    let (batch, records) = match request(shared, key, &integration, &still).await {
        Ok(request) => request?,
        Err(DamagedChunk(chunk_id)) => {
            drop(pass);
            give_up::damaged(shared, key, chunk_id).await;
            return None;
        }
    };
    let answer = tokio::select! {
        biased;
        () = pass.cancelled() => Answer::Cancelled,
        answer = call(shared, key, &integration, records, turn) => answer,
    };
    // The call is over; a delete need not wait for the settlement.
    drop(pass);
    let (settled, refused) = {
        let _shared = still.read().await;
        // Room in the queue comes first, so that settlements are queued in the order in
        // which the lane takes in the answers.
        let permit = shared.store.reserve_settle().await;
        let mut lanes = shared.lanes();
        let mut settle = take_in(shared, &mut lanes, key, &integration, turn, batch, answer)?;
        let (done, settled) = oneshot::channel();
        settle.done = Some(done);
        let refused = settle.settlement.refused;
        let changes = settle.settlement.changes_the_log();
        permit?.settle(settle);
        let done = settled;
        (Settling { done, changes }, refused)
    };
    if refused > 0 {
        give_up::refused(shared, key).await;
    }
    Some(settled)
}

/// Reads what is needed of the log, and makes the next request of it.
async fn request<S: Sink>(
    shared: &Shared<S>,
    key: IntegrationKey,
    integration: &Integration,
    still: &RwLock<()>,
) -> Result<Option<(Batch, Vec<Record>)>, DamagedChunk> {
    let _shared = still.read().await;
    if shared
        .lanes()
        .get(key)
        .is_none_or(|lane| lane.expiry.holds())
    {
        return Ok(None);
    }
    load(shared, key, integration).await?;
    match next_request(shared, key) {
        None => {
            // What is at hand waits for requests under way; further on may be more.
            load(shared, key, integration).await?;
            Ok(next_request(shared, key))
        }
        request => Ok(request),
    }
}

/// Calls AWS. A call that takes long ends where another needs its place.
async fn call<S: Sink>(
    shared: &Shared<S>,
    key: IntegrationKey,
    integration: &Arc<Integration>,
    records: Vec<Record>,
    turn: &mut Turn,
) -> Answer {
    let mut call = pin!(shared.sink.put_records(integration, records));
    let answer = match timeout(LONG, &mut call).await {
        Ok(answer) => answer,
        Err(_elapsed) => {
            let cut = shared.lanes().overdue(key, turn);
            shared.wake.notify_one();
            tokio::select! {
                biased;
                answer = call => answer,
                Ok(()) = cut => Err(no_answer()),
            }
        }
    };
    match answer {
        Ok(outcomes) => Answer::Outcomes(outcomes),
        Err(fault) => Answer::Fault(fault),
    }
}

fn no_answer() -> Fault {
    Fault {
        stage: Stage::Write,
        cause: Cause::Timeout,
        request_id: None,
    }
}

fn next_request<S>(shared: &Shared<S>, key: IntegrationKey) -> Option<(Batch, Vec<Record>)> {
    let limits = shared.options.limits;
    let now = Instant::now();
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    let lane = lanes.get(key)?;
    let held_until = lane.may_hold_until(shared.options.send_linger, now);
    let batch = match held_until {
        Some(until) => match lane.delivery.next_full_batch(limits) {
            // Those under way free its keys: then there is more for one request.
            None => {
                lane.starved = lane.delivery.waiting() > 0;
                lane.held_until = Some(until);
                return None;
            }
            batch => batch,
        },
        None => look(lane, limits, now),
    };
    lane.held_until = None;
    let found = batch.as_ref().map_or(0, |batch| batch.items.len());
    lane.linger.looked(now, found, shared.options.send_linger);
    let waiting = lane.delivery.waiting() > 0;
    let is_full = found >= limits.records;
    let next_admission = lane.flow.as_ref().and_then(|flow| flow.next_admission());
    lane.limited = next_admission.is_some() && !is_full;
    // Where only one shard is known, more of the log would wait for it as well.
    let reads_on = !lane.limited || lane.flow.as_ref().is_some_and(|flow| flow.is_divided());
    lane.starved = waiting && !is_full && reads_on;
    let integration_id = lane.integration_id;
    if let Some(at) = next_admission.filter(|_| !is_full) {
        lanes.nap(key, at.into());
        shared.wake.notify_one();
    }
    let batch = batch?;
    lanes.queue_what_waits(key, log_end, false, now);
    shared.wake.notify_one();
    drop(lanes);
    let format = &shared.options.format;
    let records = batch
        .items
        .iter()
        .map(|item| record(integration_id, format, item))
        .collect();
    Some((batch, records))
}

/// Looks for events that may go now.
fn look(lane: &mut Lane, limits: BatchLimits, now: Instant) -> Option<Batch> {
    match &mut lane.flow {
        None => lane.delivery.next_batch(limits),
        Some(flow) => {
            flow.begin(now.into_std());
            lane.delivery
                .next_batch_of(limits, |key, weight| flow.admit(key, weight))
        }
    }
}

fn record(integration_id: Uuid, format: &Format, item: &Item) -> Record {
    let content = match &item.gap {
        Some(gap) => {
            let mut data = Vec::new();
            let _id = render_gap(integration_id, format, gap, &mut data);
            Content::Whole(data.into())
        }
        None => Content::Event {
            sequence: item.sequence,
            stored: item.stored.clone(),
        },
    };
    Record {
        partition_key: Uuid::from_u128(item.key),
        content,
    }
}

fn end_turn<S>(shared: &Shared<S>, key: IntegrationKey, turn: Turn, settling: bool) {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    if lanes.end_turn(key, turn)
        && let Some(lane) = lanes.get(key)
    {
        if settling {
            lane.held_until = None;
        }
        let held_until = lane.held_until;
        let exists = log_end > 0;
        let more = exists && (lane.delivery.waiting() > 0 || lane.cursor < log_end);
        // A turn that found nothing to send waits for those that are under way.
        if more && (settling || (lane.delivery.in_flight() == 0 && !lane.loading)) {
            lanes.queue_what_waits(key, log_end, false, Instant::now());
        } else if let Some(until) = held_until {
            // Its turn is over: from now on it can be queued then.
            lanes.nap(key, until);
        }
        rest(shared, &mut lanes, key, log_end);
    }
    drop(lanes);
    shared.wake.notify_one();
}

fn end_settlement<S>(shared: &Shared<S>, key: IntegrationKey, changes: bool) {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    if let Some(lane) = lanes.get(key) {
        lane.unsettled -= 1;
        lane.unsaved -= usize::from(changes);
        rest(shared, &mut lanes, key, log_end);
    }
}

/// Frees what a lane does not need: all of it where it is done or its integration is
/// gone, its chunks where it backs off for long or memory is short.
fn rest<S>(shared: &Shared<S>, lanes: &mut Lanes, key: IntegrationKey, log_end: u64) {
    let crowded = is_crowded(shared, lanes);
    let Some(lane) = lanes.get(key) else { return };
    let idle = lane.turns == 0 && lane.unsettled == 0;
    if idle && !shared.store.exists(key) {
        lanes.remove(key);
        return;
    }
    if crowded || lane.backoff.is_failing() {
        lanes.unload(key);
    }
    lanes.close_if_done(key, log_end);
}
