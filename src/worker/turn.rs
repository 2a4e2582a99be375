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

use super::{
    Shared, give_up,
    lane::{Begun, Lanes},
    load::is_crowded,
    outcome::{Answer, take_in},
    places::Turn,
    request::{DamagedChunk, records, request},
};
use crate::{
    domain::{
        delivery::Batch,
        integration::{Integration, IntegrationKey},
        status::{Cause, Fault, Stage},
    },
    gate::Pass,
    sink::{Record, Sink},
    store::{Attention, SettlePermit},
};

/// A call that takes longer gives its place to another's where that is needed.
const LONG: Duration = Duration::from_secs(1);
/// A request, and what came of it.
struct Answered {
    integration: Arc<Integration>,
    batch: Batch,
    answer: Answer,
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
