//! Reads more of an integration's log where little is at hand.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Shared, WorkerOptions, lane::Lanes};
use crate::{
    domain::{
        delivery::{LoadedChunk, Settlement},
        integration::{Integration, IntegrationKey, Progress},
        status::{Cause, Fault, Observation, Stage},
    },
    store::{NextRetry, Observed, Settle, StoreError},
};

/// How long to wait after the log could not be read.
const READ_RETRY: Duration = Duration::from_secs(10);
/// What a lane that has nothing may read, however crowded it is.
const LEAST_BYTES: usize = 1 << 20;
/// What an event has in memory beside what is stored of it.
const ENTRY_BYTES: usize = 32;

/// A chunk that cannot be read back is in the way.
#[derive(Debug)]
pub(super) struct DamagedChunk(pub(super) i64);

/// Reads on where too little is at hand for a full request, within the memory that
/// lanes may take.
pub(super) async fn load<S>(
    shared: &Shared<S>,
    key: IntegrationKey,
    integration: &Integration,
) -> Result<(), DamagedChunk> {
    let Some((from, log_end, room)) = begin(shared, key) else {
        return Ok(());
    };
    let chunks = shared.store.read_log(key, from, room).await;
    match take(shared, key, log_end, room, chunks) {
        Ok(()) => Ok(()),
        Err(StoreError::Damaged { chunk_id }) => Err(DamagedChunk(chunk_id)),
        Err(error) => {
            tell(shared, key, integration, &error).await;
            Ok(())
        }
    }
}

/// Where to read from and how much; None where there is enough, or no room.
fn begin<S>(shared: &Shared<S>, key: IntegrationKey) -> Option<(u64, u64, usize)> {
    let options = &shared.options;
    let mut lanes = shared.lanes();
    let progress = shared.store.get(key)?.progress;
    let crowded = is_crowded(shared, &lanes);
    let left = options.window_bytes.saturating_sub(lanes.loaded_bytes);
    let lane = lanes.get(key)?;
    let own = options
        .window_bytes_per_integration
        .saturating_sub(lane.delivery.bytes());
    let narrows = lane.delivery.is_narrowing();
    // Where it is crowded, what lacks other keys waits for the requests under way.
    let starved = lane.starved && !(crowded && lane.delivery.in_flight() > 0);
    let enough = lane.delivery.waiting() >= options.limits.records && !narrows && !starved;
    if lane.loading || enough || lane.cursor >= progress.next_sequence || own == 0 {
        return None;
    }
    // However crowded it is, each may have something to work on.
    let left = match lane.delivery.is_empty() {
        true => left.max(LEAST_BYTES),
        false => left,
    };
    if left == 0 {
        return None;
    }
    let wanted = match (narrows || starved, crowded) {
        (true, false) => own,
        (false, false) => bytes_of(lane.window, options, &progress),
        (_, true) => bytes_of(1, options, &progress),
    };
    let room = wanted.min(own).min(left).max(1);
    lane.loading = true;
    let from = lane.cursor;
    lanes.loaded_bytes += room;
    Some((from, progress.next_sequence, room))
}

/// What so many full requests take, as far as there is something for them, by the usual
/// size of what waits.
fn bytes_of(requests: usize, options: &WorkerOptions, progress: &Progress) -> usize {
    let pending = progress.pending() as usize;
    let each = progress.pending_bytes as usize / pending.max(1) + ENTRY_BYTES;
    let events = pending.min(requests * options.limits.records);
    (events * each).min(requests * options.limits.bytes)
}

/// Whether lanes may keep nothing between their turns, so that those whose turn it is
/// find room for full requests.
pub(super) fn is_crowded<S>(shared: &Shared<S>, lanes: &Lanes) -> bool {
    lanes.loaded_bytes > shared.options.window_bytes / 2
}

fn take<S>(
    shared: &Shared<S>,
    key: IntegrationKey,
    log_end: u64,
    reserved: usize,
    chunks: Result<Vec<LoadedChunk>, StoreError>,
) -> Result<(), StoreError> {
    let mut lanes = shared.lanes();
    lanes.loaded_bytes -= reserved;
    let Some(lane) = lanes.get(key) else {
        return Ok(());
    };
    lane.loading = false;
    let chunks = match chunks {
        Ok(chunks) => chunks,
        Err(error) => {
            lanes.back_off(key, Instant::now() + READ_RETRY);
            return Err(error);
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
    let loaded = lane.delivery.bytes() - before;
    lanes.loaded_bytes += loaded;
    Ok(())
}

/// A log that cannot be read must not look like an integration that works.
async fn tell<S>(
    shared: &Shared<S>,
    key: IntegrationKey,
    integration: &Integration,
    error: &StoreError,
) {
    tracing::error!(
        %error,
        organization_id = integration.organization_id.as_str(),
        "cannot read the log"
    );
    let now = Timestamp::now();
    let settle = Settle {
        key,
        settlement: Settlement::default(),
        observed: Some(Observed {
            version: integration.version,
            at: now,
            observation: Observation::Failed(Fault {
                stage: Stage::Write,
                cause: Cause::LogUnreadable,
                request_id: None,
            }),
            next_retry: NextRetry::At(now + READ_RETRY),
        }),
        done: None,
    };
    if let Some(permit) = shared.store.reserve_settle().await {
        permit.settle(settle);
    }
}
