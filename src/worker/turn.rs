//! One turn of one integration: one request.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use super::{Shared, gate::Pass, lane::Lanes};
use crate::{
    domain::{
        delivery::Batch,
        event::{Head, finish},
        integration::{Integration, IntegrationKey},
        status::{Fault, Observation},
    },
    sink::{Record, RecordOutcome, Sink},
    store::{Observed, Settle},
};

/// How long to wait after the log could not be read.
const READ_RETRY: Duration = Duration::from_secs(1);
/// The longest wait while some records get through: the limits of shards are a second's.
const PACE_MOST: Duration = Duration::from_secs(1);

/// What became of a request.
enum Answer {
    Outcomes(Vec<RecordOutcome>),
    Fault(Fault),
    /// The integration was deleted, or the worker is told to end.
    Cancelled,
}

/// Takes a turn, settles it, and queues the integration again where it has more.
pub(super) async fn take<S: Sink>(shared: Arc<Shared<S>>, key: IntegrationKey) {
    let exists = || shared.store.get(key).is_some();
    let settled = match shared.gate.enter(key, exists) {
        Some(pass) => send(&shared, key, pass).await,
        None => None,
    };
    end_turn(&shared, key, settled.is_some());
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
) -> Option<oneshot::Receiver<()>> {
    load(shared, key).await;
    let integration = shared.store.get(key)?.integration;
    let (batch, records) = next_request(shared, key)?;
    let answer = tokio::select! {
        biased;
        () = pass.cancelled() => Answer::Cancelled,
        answer = shared.sink.put_records(&integration, records) => match answer {
            Ok(outcomes) => Answer::Outcomes(outcomes),
            Err(fault) => Answer::Fault(fault),
        },
    };
    // The call is over; a delete need not wait for the settlement.
    drop(pass);
    let mut settle = take_in(shared, key, &integration, batch, answer)?;
    let (done, settled) = oneshot::channel();
    settle.done = Some(done);
    shared.store.settle(settle).await;
    Some(settled)
}

/// Reads more of the log where little is at hand.
async fn load<S: Sink>(shared: &Shared<S>, key: IntegrationKey) {
    let options = &shared.options;
    let log_end = shared.log_end(key);
    let (from, room) = {
        let mut lanes = shared.lanes();
        let Some(lane) = lanes.get(key) else { return };
        let room = options.window_bytes.saturating_sub(lane.delivery.bytes());
        let enough = lane.delivery.waiting() >= options.limits.records;
        if lane.loading || enough || lane.cursor >= log_end || room == 0 {
            return;
        }
        lane.loading = true;
        (lane.cursor, room)
    };
    let chunks = shared.store.read_log(key, from, room).await;
    let mut lanes = shared.lanes();
    let Some(lane) = lanes.get(key) else { return };
    lane.loading = false;
    let chunks = match chunks {
        Ok(chunks) => chunks,
        Err(error) => {
            tracing::error!(%error, integration_key = key.0, "cannot read the log");
            lanes.back_off(key, Instant::now() + READ_RETRY);
            return;
        }
    };
    let before = lane.delivery.bytes();
    lane.cursor = match chunks.last() {
        Some(chunk) => chunk.first_sequence + chunk.entries.len() as u64,
        None => log_end,
    };
    for chunk in chunks {
        // A chunk that is finished is being deleted already.
        let _finished = lane.delivery.load(chunk);
    }
    let after = lane.delivery.bytes();
    lanes.loaded_bytes += after - before;
}

fn next_request<S: Sink>(shared: &Shared<S>, key: IntegrationKey) -> Option<(Batch, Vec<Record>)> {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    let lane = lanes.get(key)?;
    let batch = lane.delivery.next_batch(shared.options.limits)?;
    let head = lane.head.clone();
    if lane.delivery.waiting() > 0 || lane.cursor < log_end {
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

/// Takes in an answer: what is accepted, what comes next, what it says of the status.
fn take_in<S: Sink>(
    shared: &Shared<S>,
    key: IntegrationKey,
    integration: &Integration,
    batch: Batch,
    answer: Answer,
) -> Option<Settle> {
    let now = Timestamp::now();
    let sent = batch.items.len() as u64;
    let current = shared.store.get(key)?.integration.version == integration.version;
    let mut lanes = shared.lanes();
    let lane = lanes.get(key)?;
    let bytes_before = lane.delivery.bytes();
    let (settlement, failure) = match answer {
        Answer::Outcomes(outcomes) => {
            let accepted: Vec<bool> = outcomes
                .iter()
                .map(|outcome| matches!(outcome, RecordOutcome::Accepted { .. }))
                .collect();
            let failure = outcomes.into_iter().find_map(|outcome| match outcome {
                RecordOutcome::Failed(fault) => Some(fault),
                RecordOutcome::Accepted { .. } => None,
            });
            (lane.delivery.settle(batch, &accepted), failure)
        }
        Answer::Fault(fault) => (lane.delivery.settle(batch, &[]), Some(fault)),
        Answer::Cancelled => {
            let _nothing = lane.delivery.settle(batch, &[]);
            return None;
        }
    };
    let bytes_after = lane.delivery.bytes();
    lanes.loaded_bytes -= bytes_before - bytes_after;
    // What an old configuration met says nothing of the new one.
    let wait = match (&failure, current) {
        (Some(fault), true) => next_wait(
            shared,
            &mut lanes,
            key,
            (settlement.accepted, sent),
            fault,
            now,
        ),
        (Some(_), false) => None,
        (None, _) => {
            let lane = lanes.get(key)?;
            lane.pace.reset();
            lanes.end_back_off(key);
            None
        }
    };
    let lane = lanes.get(key)?;
    lane.unsettled += 1;
    let observation = match failure {
        Some(fault) if settlement.accepted == 0 => Observation::Failed(fault),
        _ => Observation::Accepted,
    };
    let accepted = observation == Observation::Accepted;
    Some(Settle {
        key,
        settlement,
        observed: Some(Observed {
            version: integration.version,
            at: now,
            observation,
            next_retry: wait.filter(|_| !accepted).map(|wait| now + wait),
        }),
        done: None,
    })
}

/// Backs off after a failure, and says for how long. Some records may have been accepted.
fn next_wait<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    (accepted, sent): (u64, u64),
    fault: &Fault,
    now: Timestamp,
) -> Option<Duration> {
    let policy = &shared.options.backoff;
    let chance = rand::random::<f64>();
    let lane = lanes.get(key)?;
    if accepted > 0 {
        lane.backoff.reset();
        // The wait grows only while most of what is sent is sent in vain.
        if accepted * 2 >= sent {
            lane.pace.reset();
        }
    }
    if let Some(at) = lane.retry_at {
        // Another request of the same moment has failed already.
        return Some(at.saturating_duration_since(Instant::now()));
    }
    let wait = match accepted {
        0 => lane.backoff.fail(policy, now, fault, chance),
        _ => lane.pace.fail(policy, now, fault, chance).min(PACE_MOST),
    };
    lanes.back_off(key, Instant::now() + wait);
    Some(wait)
}

fn end_turn<S>(shared: &Shared<S>, key: IntegrationKey, settling: bool) {
    let mut lanes = shared.lanes();
    let log_end = shared.log_end(key);
    lanes.turns -= 1;
    if let Some(lane) = lanes.get(key) {
        lane.turns -= 1;
        let more = lane.delivery.waiting() > 0 || lane.cursor < log_end;
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

/// Frees what a lane does not need: all of it where it is done, its chunks where it
/// backs off for long or memory is short.
fn rest<S>(shared: &Shared<S>, lanes: &mut Lanes, key: IntegrationKey, log_end: u64) {
    let crowded = lanes.loaded_bytes > shared.options.windows_bytes;
    let Some(lane) = lanes.get(key) else { return };
    if crowded || lane.backoff.is_failing() {
        lanes.unload(key);
    }
    lanes.close_if_done(key, log_end);
}
