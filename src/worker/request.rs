//! The next request of one integration: what is read of its log, and what goes out of it.

use std::sync::{Arc, MutexGuard};

use tokio::{sync::RwLock, time::Instant};
use uuid::Uuid;

use super::{
    Shared,
    lane::{Lane, Lanes},
    load::{self, Reading},
};
use crate::{
    domain::{
        delivery::{Batch, BatchLimits, Item, LoadedChunk},
        event::{Format, render_gap},
        integration::{Integration, IntegrationKey},
    },
    sink::{Content, Record, Sink},
    store::StoreError,
};

/// How often a turn reads the log at the most.
const MOST_READS: usize = 2;

/// A chunk that cannot be read back is in the way.
pub(super) struct DamagedChunk(pub(super) i64);

/// What a turn does next.
enum Next {
    Send(Batch),
    Read(Reading),
    Nothing,
}

/// Reads what is needed of the log, and makes the next request of it.
pub(super) async fn request<S: Sink>(
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
        next_one = match take_in_chunks(shared, key, reading, chunks, reads) {
            Ok(next_one) => next_one,
            Err(StoreError::Damaged { chunk_id }) => return Err(DamagedChunk(chunk_id)),
            Err(error) => {
                load::tell(shared, key, integration, &error).await;
                next(shared, shared.lanes(), key, reads)
            }
        };
    }
}

/// Hands what was read to the lane, and looks what comes next.
fn take_in_chunks<S: Sink>(
    shared: &Arc<Shared<S>>,
    key: IntegrationKey,
    reading: Reading,
    chunks: Result<Vec<LoadedChunk>, StoreError>,
    reads: usize,
) -> Result<Next, StoreError> {
    let mut lanes = shared.lanes();
    load::take(&mut lanes, key, reading, chunks)?;
    Ok(next(shared, lanes, key, reads))
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
    let reading = load::begin(shared, &mut lanes, key);
    // It may be looked at again before the log is read.
    shared.release(lanes);
    reading.map_or(Next::Nothing, Next::Read)
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
    lane.looked_at = Some(now);
    let waiting = lane.delivery.waiting() > 0;
    let is_full = found >= limits.records;
    let next_admission = lane.flow.as_ref().and_then(|flow| flow.next_admission());
    lane.limited = next_admission.is_some() && !is_full;
    // Where only one shard is known, more of the log would wait for it as well.
    let reads_on = !lane.limited
        || lane
            .flow
            .as_ref()
            .is_some_and(|flow| flow.has_several_shards());
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
            flow.start_round(now.into_std());
            lane.delivery
                .next_batch_of(limits, |key, weight| flow.admit(key, weight))
        }
    }
}

pub(super) fn records(integration: &Integration, format: &Format, batch: &Batch) -> Vec<Record> {
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
