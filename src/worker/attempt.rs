//! One attempt: loads events, selects the records of one request, sends it and settles it.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::RwLock,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    Shared, give_up,
    lanes::{Dispatch, Lane, Lanes},
    load::{self, Reading},
    permits::Permit,
    settle::{self, Attempt},
};
use crate::{
    domain::{
        delivery::{Batch, BatchLimits, BatchRecord, RecordOutcome},
        event::{Format, render_gap},
        integration::{Integration, IntegrationId},
        status::{Cause, Fault, Stage},
        trace::TraceContext,
    },
    gate::Pass,
    sink::{Content, Record, Sink},
    store::StoreError,
};

/// Duration after which a call is overdue.
const OVERDUE: Duration = Duration::from_secs(1);
/// Most reads of one attempt.
const MAX_READS: usize = 2;

/// Next step of an attempt.
enum Step {
    Send(Batch),
    Read(Reading),
    /// Nothing may be sent now.
    End,
}

/// An attempt, which starts others when it selects records and when it ends. Boxed, because
/// spawning moves the future, which is large.
pub(super) fn boxed<S: Sink>(
    shared: Arc<Shared<S>>,
    dispatch: Dispatch,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(run(shared, dispatch))
}

async fn run<S: Sink>(shared: Arc<Shared<S>>, dispatch: Dispatch) {
    let Dispatch {
        id,
        mut permit,
        give_up_lock,
    } = dispatch;
    let attempt = match shared.store.may_deliver(id) {
        true => send(&shared, id, &mut permit, &give_up_lock).await,
        false => None,
    };
    let Some((attempt, pass)) = attempt else {
        return end(&shared, shared.lanes(), id, permit, false);
    };
    let permit = {
        let _shared = give_up_lock.read().await;
        let mut lanes = shared.lanes();
        let settled = settle::settle(&shared, &mut lanes, id, &permit, attempt);
        // Whoever waits for the end of the calls may count on their answers.
        drop(pass);
        match settled {
            Some(refused) if refused > 0 => permit,
            settled => return end(&shared, lanes, id, permit, settled.is_some()),
        }
    };
    give_up::refused(&shared, id).await;
    end(&shared, shared.lanes(), id, permit, true);
}

/// Sends a request, if records may be sent.
async fn send<S: Sink>(
    shared: &Arc<Shared<S>>,
    id: IntegrationId,
    permit: &mut Permit,
    give_up_lock: &RwLock<()>,
) -> Option<(Attempt, Option<Pass>)> {
    let integration = shared.store.integration(id)?;
    let batch = match next_batch(shared, id, &integration, give_up_lock).await {
        Ok(batch) => batch?,
        Err(first_sequence) => {
            give_up::damaged(shared, id, first_sequence).await;
            return None;
        }
    };
    let records = records(&integration, &shared.options.format, &batch);
    let began_at = Timestamp::now();
    // Not earlier: whoever ends the calls does not wait for reads. And at the last moment, since
    // a lease may have lapsed meanwhile.
    let pass = shared.gate.enter(id, || shared.store.may_deliver(id));
    let answer = match &pass {
        None => None,
        Some(pass) => tokio::select! {
            biased;
            () = pass.cancelled() => None,
            answer = call(shared, id, &integration, records, &batch.traces, permit) => Some(answer),
        },
    };
    let attempt = Attempt {
        integration,
        began_at,
        batch,
        answer,
    };
    Some((attempt, pass))
}

/// Calls AWS. An overdue call is cancelled if another lane needs its permit.
async fn call<S: Sink>(
    shared: &Shared<S>,
    id: IntegrationId,
    integration: &Arc<Integration>,
    records: Vec<Record>,
    traces: &[TraceContext],
    permit: &mut Permit,
) -> Result<Vec<RecordOutcome>, Fault> {
    let mut call = pin!(shared.sink.put_records(integration, records, traces));
    if let Ok(answer) = timeout(OVERDUE, &mut call).await {
        return answer;
    }
    let cancelled = shared.lanes().set_overdue(id, permit);
    shared.wake.notify_one();
    tokio::select! {
        biased;
        answer = call => answer,
        Ok(()) = cancelled => Err(Fault::unanswered(Stage::Write, Cause::Timeout)),
    }
}

/// Loads events as needed, and selects the records of the next request. The error is the first
/// sequence of a damaged chunk.
async fn next_batch<S: Sink>(
    shared: &Arc<Shared<S>>,
    id: IntegrationId,
    integration: &Integration,
    give_up_lock: &RwLock<()>,
) -> Result<Option<Batch>, u64> {
    let _shared = give_up_lock.read().await;
    let mut reads = 0;
    let mut step = next_step(shared, shared.lanes(), id, reads);
    loop {
        let reading = match step {
            Step::Send(batch) => return Ok(Some(batch)),
            Step::End => return Ok(None),
            Step::Read(reading) => reading,
        };
        reads += 1;
        let began_at = Timestamp::now();
        let chunks = shared.store.read(id, reading.from, reading.bytes).await;
        let mut lanes = shared.lanes();
        match load::end(&mut lanes, id, reading, chunks) {
            Ok(()) => {}
            Err(StoreError::DamagedChunk { first_sequence }) => return Err(first_sequence),
            // The store has ended, or another instance delivers for the integration.
            Err(StoreError::Closed | StoreError::Fenced) => return Ok(None),
            Err(error) => load::report(shared, integration, began_at, &error),
        }
        step = next_step(shared, lanes, id, reads);
    }
}

/// Decides the next step after a number of reads.
fn next_step<S: Sink>(
    shared: &Arc<Shared<S>>,
    mut lanes: MutexGuard<'_, Lanes>,
    id: IntegrationId,
    reads: usize,
) -> Step {
    if lanes.get(id).is_none_or(|lane| lane.expiry.suspends) {
        return Step::End;
    }
    if reads == 0
        && let Some(reading) = load::begin(shared, &mut lanes, id)
    {
        return Step::Read(reading);
    }
    if let Some(batch) = select(shared, &mut lanes, id) {
        shared.dispatch(lanes);
        return Step::Send(batch);
    }
    if reads == MAX_READS {
        return Step::End;
    }
    // The loaded records wait for requests in flight; later ones may have other keys.
    let reading = load::begin(shared, &mut lanes, id);
    // The lane may be due before the read ends.
    shared.dispatch(lanes);
    reading.map_or(Step::End, Step::Read)
}

fn select<S>(shared: &Shared<S>, lanes: &mut Lanes, id: IntegrationId) -> Option<Batch> {
    let limits = shared.options.limits;
    let now = Instant::now();
    let end_sequence = shared.end_sequence(id);
    let lane = lanes.get(id)?;
    let lingers_until = lane.lingers_until(shared.options.send_linger, now);
    let batch = if let Some(until) = lingers_until {
        let batch = lane.delivery.next_full_batch(limits);
        if batch.is_none() {
            lane.lacks_keys = lane.delivery.waiting() > 0;
            lane.full_only_until = Some(until);
            return None;
        }
        batch
    } else {
        select_admitted(lane, limits, now)
    };
    lane.full_only_until = None;
    lane.selected_at = Some(now);
    let records = batch.as_ref().map_or(0, |batch| batch.records.len());
    let is_full = records >= limits.records;
    let next_admission = lane.rates.as_ref().and_then(|rates| rates.next_admission());
    let next_admission = next_admission.filter(|_| !is_full);
    lane.throttled = next_admission.is_some();
    // Later events are of other shards only if several are known.
    let rates = lane.rates.as_ref();
    let reads_on = !lane.throttled || rates.is_some_and(|rates| rates.has_several_shards());
    lane.lacks_keys = lane.delivery.waiting() > 0 && !is_full && reads_on;
    if let Some(at) = next_admission {
        lanes.queue_at(id, at.into());
    }
    let batch = batch?;
    lanes.queue_pending(id, end_sequence, false, now);
    Some(batch)
}

/// Selects records that the rates of the stream's shards admit now.
fn select_admitted(lane: &mut Lane, limits: BatchLimits, now: Instant) -> Option<Batch> {
    let Some(rates) = &mut lane.rates else {
        return lane.delivery.next_batch(limits);
    };
    rates.start_round(now.into_std());
    let admit = |key, bytes| rates.admit(key, bytes);
    lane.delivery.next_admitted_batch(limits, admit)
}

fn records(integration: &Integration, format: &Format, batch: &Batch) -> Vec<Record> {
    let record = |record| rendered(integration.integration_id, format, record);
    batch.records.iter().map(record).collect()
}

fn rendered(id: IntegrationId, format: &Format, record: &BatchRecord) -> Record {
    let content = match &record.gap {
        Some(gap) => {
            let mut data = Vec::new();
            let _event_id = render_gap(id.0, format, gap, &mut data);
            Content::Whole(data.into())
        }
        None => Content::Event {
            sequence: record.sequence,
            stored: record.stored.clone(),
        },
    };
    Record {
        partition_key: Uuid::from_u128(record.key),
        content,
    }
}

/// Releases the permit, and queues the lane again if it has more. `settled` is whether an
/// answer was settled.
fn end<S: Sink>(
    shared: &Arc<Shared<S>>,
    mut lanes: MutexGuard<'_, Lanes>,
    id: IntegrationId,
    permit: Permit,
    settled: bool,
) {
    let end_sequence = shared.end_sequence(id);
    if lanes.release(id, permit)
        && let Some(lane) = lanes.get(id)
    {
        if settled {
            lane.full_only_until = None;
        }
        let full_only_until = lane.full_only_until;
        let exists = end_sequence > 0;
        let more = exists && (lane.delivery.waiting() > 0 || lane.cursor < end_sequence);
        // An attempt that had nothing to send waits for those in flight.
        if more && (settled || (lane.delivery.in_flight() == 0 && !lane.loading)) {
            lanes.queue_pending(id, end_sequence, false, Instant::now());
        } else if let Some(until) = full_only_until {
            lanes.queue_at(id, until);
        }
        free(shared, &mut lanes, id, end_sequence);
    }
    shared.dispatch(lanes);
}

/// Frees the memory that a lane does not need: all of it if it has no work or this instance does
/// not deliver for it, its chunks if it backs off or memory is short.
fn free<S>(shared: &Shared<S>, lanes: &mut Lanes, id: IntegrationId, end_sequence: u64) {
    let memory_short = load::is_memory_short(shared, lanes);
    let Some(lane) = lanes.get(id) else { return };
    if lane.permits == 0 && (lane.abandoned || !shared.store.delivers(id)) {
        return shared.remove_lost(lanes, id);
    }
    if memory_short || lane.backoff.is_failing() {
        lanes.unload(id);
    }
    lanes.close_if_done(id, end_sequence);
}
