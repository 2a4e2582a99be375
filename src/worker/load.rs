//! Loading of an integration's events when few are loaded, within the limits on memory.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Shared, WorkerOptions, lanes::Lanes};
use crate::{
    domain::{
        chunk::Chunk,
        integration::{Integration, IntegrationId, Progress},
        status::{Cause, Fault, Observation, Reason, Stage},
    },
    store::{NextRetry, Observed, StoreError},
};

/// Backoff after the events could not be read.
const READ_RETRY: Duration = Duration::from_secs(10);
/// Bytes that a lane without loaded chunks may read, however short memory is.
const MIN_READ: usize = 1 << 20;
/// Bytes of memory per event besides the stored ones.
const EVENT_OVERHEAD: usize = 32;

/// A read in progress. To be given to [`end`].
#[derive(Debug)]
#[must_use = "a lane reads nothing else until the read ends"]
pub(super) struct Reading {
    pub(super) from: u64,
    /// Sequence after the last event when the read began.
    end_sequence: u64,
    /// Bytes to read, which count as loaded meanwhile.
    pub(super) bytes: usize,
}

/// Begins a read if too few records for a full request are loaded. None if there are enough, or
/// no memory is left.
pub(super) fn begin<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    id: IntegrationId,
) -> Option<Reading> {
    let options = &shared.options;
    let progress = shared.store.progress(id)?;
    let memory_short = is_memory_short(shared, lanes);
    let left = options.window_bytes.saturating_sub(lanes.loaded_bytes);
    let lane = lanes.get(id)?;
    let lane_left = options
        .window_bytes_per_integration
        .saturating_sub(lane.delivery.bytes());
    let narrowing = lane.delivery.is_narrowing();
    // If memory is short, a lane that lacks keys waits for its requests in flight instead.
    let lacks_keys = lane.lacks_keys && !(memory_short && lane.delivery.in_flight() > 0);
    let enough = lane.delivery.waiting() >= options.limits.records && !narrowing && !lacks_keys;
    if lane.loading || enough || lane.cursor >= progress.next_sequence || lane_left == 0 {
        return None;
    }
    let left = match lane.delivery.is_empty() {
        true => left.max(MIN_READ),
        false => left,
    };
    if left == 0 {
        return None;
    }
    let wanted = match (narrowing || lacks_keys, memory_short) {
        (true, false) => lane_left,
        (false, false) => bytes_of(lane.window, options, &progress),
        (_, true) => bytes_of(1, options, &progress),
    };
    let bytes = wanted.min(lane_left).min(left).max(1);
    lane.loading = true;
    let from = lane.cursor;
    lanes.loaded_bytes += bytes;
    Some(Reading {
        from,
        end_sequence: progress.next_sequence,
        bytes,
    })
}

/// Estimates the bytes of a number of full requests from the mean size of pending events.
fn bytes_of(requests: usize, options: &WorkerOptions, progress: &Progress) -> usize {
    let pending = progress.pending() as usize;
    let each = progress.pending_bytes as usize / pending.max(1) + EVENT_OVERHEAD;
    let events = pending.min(requests * options.limits.records);
    (events * each).min(requests * options.limits.bytes)
}

/// Whether lanes must unload their chunks between attempts, so that the memory suffices for full
/// requests of those that are dispatched.
pub(super) fn is_memory_short<S>(shared: &Shared<S>, lanes: &Lanes) -> bool {
    lanes.loaded_bytes > shared.options.window_bytes / 2
}

/// Ends a read: loads the chunks into the lane, or starts a backoff.
///
/// # Errors
///
/// The error of the read, or `DamagedChunk` if a chunk does not contain its events.
pub(super) fn end(
    lanes: &mut Lanes,
    id: IntegrationId,
    reading: Reading,
    chunks: Result<Vec<Chunk>, StoreError>,
) -> Result<(), StoreError> {
    lanes.loaded_bytes -= reading.bytes;
    let Some(lane) = lanes.get(id) else {
        return Ok(());
    };
    lane.loading = false;
    let before = lane.delivery.bytes();
    let loaded = chunks.and_then(|chunks| {
        if chunks.is_empty() {
            lane.cursor = reading.end_sequence;
        }
        for chunk in chunks {
            let (first_sequence, end_sequence) = (chunk.first_sequence, chunk.end_sequence());
            let loaded = lane.delivery.load(chunk);
            loaded.map_err(|_| StoreError::DamagedChunk { first_sequence })?;
            lane.cursor = end_sequence;
        }
        Ok(())
    });
    lanes.loaded_bytes += lane.delivery.bytes() - before;
    if loaded.is_err() {
        lanes.back_off(id, Instant::now() + READ_RETRY);
    }
    loaded
}

/// Reports that the events of an integration cannot be read, so that it does not look healthy.
pub(super) fn report<S>(
    shared: &Shared<S>,
    integration: &Integration,
    began_at: Timestamp,
    error: &StoreError,
) {
    let id = integration.integration_id;
    let before = shared.store.get(id);
    let is_known = before.is_some_and(|one| one.status.reason == Some(Reason::LogUnreadable));
    // Once while it lasts: it is tried again every few seconds.
    if !is_known {
        tracing::error!(
            %error,
            organization_id = integration.organization_id.as_str(),
            "cannot read the log"
        );
    }
    let now = Timestamp::now();
    let observed = Observed {
        integration_id: id,
        version: integration.version,
        began_at,
        at: now,
        observation: Observation::Failed(Fault::unanswered(Stage::Write, Cause::LogUnreadable)),
        next_retry: NextRetry::At(now + READ_RETRY),
    };
    shared.store.settle(id, None, Some(observed));
}
