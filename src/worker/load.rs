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
    store::{NextRetry, Observed, Settle, StoreError, Tells},
};

/// How long to wait after the log could not be read.
const READ_RETRY: Duration = Duration::from_secs(10);
/// What a lane that has nothing may read, however crowded it is.
const LEAST_BYTES: usize = 1 << 20;
/// What an event has in memory beside what is stored of it.
const ENTRY_BYTES: usize = 32;

/// What is to be read.
#[derive(Debug)]
#[must_use = "a lane that waits for it reads nothing else"]
pub(super) struct Reading {
    from: u64,
    log_end: u64,
    /// Bytes that are counted as loaded meanwhile.
    room: usize,
}

impl Reading {
    pub(super) async fn read<S>(
        &self,
        shared: &Shared<S>,
        key: IntegrationKey,
    ) -> Result<Vec<LoadedChunk>, StoreError> {
        shared.store.read_log(key, self.from, self.room).await
    }
}

/// What to read where too little is at hand for a full request, within the memory that
/// lanes may take. None where there is enough, or no room. The lane waits for it until
/// [`take`].
pub(super) fn begin<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
) -> Option<Reading> {
    let options = &shared.options;
    let progress = shared.store.progress(key)?;
    let crowded = is_crowded(shared, lanes);
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
    Some(Reading {
        from,
        log_end: progress.next_sequence,
        room,
    })
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

/// Hands what was read to the lane. Where that failed, it backs off.
pub(super) fn take(
    lanes: &mut Lanes,
    key: IntegrationKey,
    reading: Reading,
    chunks: Result<Vec<LoadedChunk>, StoreError>,
) -> Result<(), StoreError> {
    lanes.loaded_bytes -= reading.room;
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
        None => reading.log_end,
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
pub(super) async fn tell<S>(
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
        tells: Tells::Nobody,
    };
    if let Some(permit) = shared.store.reserve_settle().await {
        permit.settle(settle);
    }
}
