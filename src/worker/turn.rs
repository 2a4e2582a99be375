//! One turn of one integration: one request.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::RwLock,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    Shared, give_up,
    lane::{Begun, Lane, Lanes},
    load::{self, Reading, is_crowded},
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
    store::{Attention, SettlePermit, StoreError},
};

/// A call that takes longer gives its place to another's where that is needed.
const LONG: Duration = Duration::from_secs(1);
/// How often a turn reads the log at the most.
const MOST_READS: usize = 2;

/// A chunk that cannot be read back is in the way.
struct DamagedChunk(i64);

/// A request, and what came of it.
struct Answered {
    integration: Arc<Integration>,
    batch: Batch,
    answer: Answer,
}

/// What a turn does next.
enum Next {
    Send(Batch),
    Read(Reading),
    Nothing,
}

/// A turn, which begins others as it ends. It is large, and a task moves what it is made of.
pub(super) fn boxed<S: Sink>(
    shared: Arc<Shared<S>>,
    begun: Begun,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(take(shared, begun))
}

/// Takes a turn, settles it, and queues the integration again where it has more.
async fn take<S: Sink>(shared: Arc<Shared<S>>, begun: Begun) {
    let Begun {
        key,
        mut turn,
        still,
    } = begun;
    let exists = || shared.store.exists(key);
    let answered = match shared.gate.enter(key, exists) {
        Some(pass) => send(&shared, key, pass, &mut turn, &still).await,
        None => None,
    };
    match answered {
        Some(answered) => settle(&shared, key, turn, &still, answered).await,
        None => end_turn(&shared, shared.lanes(), key, turn, false),
    }
}

/// Sends one request, where there is one.
async fn send<S: Sink>(
    shared: &Arc<Shared<S>>,
    key: IntegrationKey,
    pass: Pass,
    turn: &mut Turn,
    still: &RwLock<()>,
) -> Option<Answered> {
    let integration = shared.store.integration(key)?;
    let batch = match request(shared, key, &integration, still).await {
        Ok(batch) => batch?,
        Err(DamagedChunk(chunk_id)) => {
            drop(pass);
            give_up::damaged(shared, key, chunk_id).await;
            return None;
        }
    };
    let records = records(&integration, &shared.options.format, &batch);
    let answer = tokio::select! {
        biased;
        () = pass.cancelled() => Answer::Cancelled,
        answer = call(shared, key, &integration, records, turn) => answer,
    };
    // The call is over; a delete need not wait for the settlement.
    drop(pass);
    Some(Answered {
        integration,
        batch,
        answer,
    })
}

/// Settles what was answered, and ends the turn.
async fn settle<S: Sink>(
    shared: &Arc<Shared<S>>,
    key: IntegrationKey,
    turn: Turn,
    still: &RwLock<()>,
    answered: Answered,
) {
    let refusing = {
        let _shares = still.read().await;
        // Room in the queue comes first, so that settlements are queued in the order in
        // which the lane takes in the answers.
        let permit = shared.store.reserve_settle().await;
        queue_settlement(shared, key, turn, permit, answered)
    };
    if let Some(turn) = refusing {
        give_up::refused(shared, key).await;
        end_turn(shared, shared.lanes(), key, turn, true);
    }
}

/// Ends the turn too, unless it hands it back: then something was refused, and is to be given
/// up first.
fn queue_settlement<S: Sink>(
    shared: &Arc<Shared<S>>,
    key: IntegrationKey,
    turn: Turn,
    permit: Option<SettlePermit>,
    answered: Answered,
) -> Option<Turn> {
    let Answered {
        integration,
        batch,
        answer,
    } = answered;
    let mut lanes = shared.lanes();
    let settle = take_in(shared, &mut lanes, key, &integration, &turn, batch, answer);
    // Without room the store has closed.
    let settle = settle.zip(permit);
    let settles = settle.is_some();
    if let Some((settle, permit)) = settle {
        let refused = settle.settlement.refused;
        permit.settle(settle);
        if refused > 0 {
            return Some(turn);
        }
    }
    end_turn(shared, lanes, key, turn, settles);
    None
}

/// Reads what is needed of the log, and makes the next request of it.
async fn request<S: Sink>(
    shared: &Arc<Shared<S>>,
    key: IntegrationKey,
    integration: &Integration,
    still: &RwLock<()>,
) -> Result<Option<Batch>, DamagedChunk> {
    let _shares = still.read().await;
    let mut reads = 0;
    let mut next_one = next(shared, shared.lanes(), key, reads);
    loop {
        let reading = match next_one {
            Next::Send(batch) => return Ok(Some(batch)),
            Next::Nothing => return Ok(None),
            Next::Read(reading) => reading,
        };
        reads += 1;
        let chunks = reading.read(shared, key).await;
        let taken = load::take(&mut shared.lanes(), key, reading, chunks);
        next_one = match taken {
            Ok(()) => next(shared, shared.lanes(), key, reads),
            Err(StoreError::Damaged { chunk_id }) => return Err(DamagedChunk(chunk_id)),
            Err(error) => {
                load::tell(shared, key, integration, &error).await;
                next(shared, shared.lanes(), key, reads)
            }
        };
    }
}

/// The next request, or what to read for it. `reads` is how often that has been done.
fn next<S: Sink>(
    shared: &Arc<Shared<S>>,
    mut lanes: MutexGuard<'_, Lanes>,
    key: IntegrationKey,
    reads: usize,
) -> Next {
    if lanes.get(key).is_none_or(|lane| lane.expiry.holds()) {
        return Next::Nothing;
    }
    if reads == 0
        && let Some(reading) = load::begin(shared, &mut lanes, key)
    {
        return Next::Read(reading);
    }
    if let Some(batch) = next_batch(shared, &mut lanes, key) {
        shared.release(lanes);
        return Next::Send(batch);
    }
    if reads == MOST_READS {
        return Next::Nothing;
    }
    // What is at hand waits for requests under way; further on may be more.
    match load::begin(shared, &mut lanes, key) {
        Some(reading) => Next::Read(reading),
        None => Next::Nothing,
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

fn next_batch<S>(shared: &Shared<S>, lanes: &mut Lanes, key: IntegrationKey) -> Option<Batch> {
    let limits = shared.options.limits;
    let now = Instant::now();
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
    if let Some(at) = next_admission.filter(|_| !is_full) {
        lanes.nap(key, at.into());
    }
    let batch = batch?;
    lanes.queue_what_waits(key, log_end, false, now);
    Some(batch)
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

fn records(integration: &Integration, format: &Format, batch: &Batch) -> Vec<Record> {
    let record = |item| record(integration.integration_id, format, item);
    batch.items.iter().map(record).collect()
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

fn end_turn<S: Sink>(
    shared: &Arc<Shared<S>>,
    mut lanes: MutexGuard<'_, Lanes>,
    key: IntegrationKey,
    turn: Turn,
    settling: bool,
) {
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
    shared.release(lanes);
}

/// Settlements of a lane became durable.
pub(super) fn settled<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    attention: Attention,
) {
    if let Some(lane) = lanes.get(key) {
        lane.unsettled -= attention.settled;
        lane.unsaved -= attention.saved;
        let log_end = shared.log_end(key);
        rest(shared, lanes, key, log_end);
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
