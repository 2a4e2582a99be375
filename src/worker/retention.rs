//! Retention: pending events that are too old, or exceed the limit on bytes, expire.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Shared, give_up,
    lanes::{Lanes, NextCheck},
};
use crate::{
    domain::{event::GapReason, integration::IntegrationId},
    store::{Keep, StoreError, Which},
};

/// Most chunks of one step. Nothing else of the integration goes on during a step.
const STEP_CHUNKS: usize = 128;
/// Delay after the storage has failed.
const RETRY: Duration = Duration::from_secs(1);
/// Delay if the limit on bytes is exceeded by events in flight alone.
const ALL_IN_FLIGHT: Duration = Duration::from_secs(1);
/// Delay if the limit on bytes is exceeded again already. Requests are dispatched meanwhile.
const EXCEEDED_AGAIN: Duration = Duration::from_millis(20);
/// Time between two log lines on expired events of one integration.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Plans the check of a lane with pending events that were accepted from `since` on. If they are
/// too old already, none of them is sent before the check.
pub(super) fn plan<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    id: IntegrationId,
    since: Timestamp,
    pending_bytes: u64,
) {
    let retention = &shared.options.retention;
    if retention.is_exceeded(pending_bytes) {
        lanes.expire_at(id, Instant::now());
    } else if lanes.has_expiry(id) {
        return;
    }
    let left = retention.until_too_old(since, Timestamp::now());
    lanes.expire_at(id, Instant::now() + left);
    if left.is_zero() {
        lanes.suspend(id);
    }
}

/// Checks a lane, expires its events if that is due, and plans the next check.
pub(super) async fn check<S>(shared: Arc<Shared<S>>, id: IntegrationId, stop: CancellationToken) {
    let next = expire_if_due(&shared, id, &stop).await;
    // A failure to read must show when events are read to be sent, so it suspends nothing.
    let suspends = matches!(next, Err(StoreError::Full));
    let (mut delay, mut not_before) = next.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot let expire what waits too long");
        (RETRY, true)
    });
    if let Some(unlogged) = log_expired(&shared, id) {
        delay = delay.min(unlogged);
    }
    let mut lanes = shared.lanes();
    // Events appended during the check planned none.
    if !not_before
        && shared
            .options
            .retention
            .is_exceeded(pending_bytes(&shared, id))
    {
        (delay, not_before) = (EXCEEDED_AGAIN, true);
    }
    let end_sequence = shared.end_sequence(id);
    let next = NextCheck {
        at: Instant::now() + delay,
        not_before,
        suspends,
    };
    lanes.end_expiry(id, next);
    match lanes.get(id) {
        Some(lane) if lane.abandoned && lane.permits == 0 => shared.remove_lost(&mut lanes, id),
        _ => lanes.close_if_done(id, end_sequence),
    }
    drop(lanes);
    shared.wake.notify_one();
}

/// Returns the delay until the next check, and whether it must not be made earlier.
async fn expire_if_due<S>(
    shared: &Shared<S>,
    id: IntegrationId,
    stop: &CancellationToken,
) -> Result<(Duration, bool), StoreError> {
    let retention = &shared.options.retention;
    let mut expired = 0;
    if is_due(shared, id).await? {
        expired = expire(shared, id, stop).await?;
    }
    if retention.is_exceeded(pending_bytes(shared, id)) {
        let delay = match expired {
            0 => ALL_IN_FLIGHT,
            _ => EXCEEDED_AGAIN,
        };
        return Ok((delay, true));
    }
    let now = Timestamp::now();
    let delay = match oldest(shared, id).await? {
        Some(oldest) if oldest > now => retention.pause(),
        Some(oldest) => retention.until_too_old(oldest, now),
        None => retention.age,
    };
    Ok((delay.max(retention.pause()), false))
}

async fn is_due<S>(shared: &Shared<S>, id: IntegrationId) -> Result<bool, StoreError> {
    let retention = &shared.options.retention;
    if retention.is_exceeded(pending_bytes(shared, id)) {
        return Ok(true);
    }
    let now = Timestamp::now();
    let too_old = retention.accepted_before(now);
    let oldest = oldest(shared, id).await?;
    // A time in the future means that the clock was wrong: later events may be too old.
    Ok(oldest.is_some_and(|oldest| oldest <= too_old || oldest > now))
}

fn pending_bytes<S>(shared: &Shared<S>, id: IntegrationId) -> u64 {
    let progress = shared.store.progress(id);
    progress.map_or(0, |progress| progress.pending_bytes)
}

async fn oldest<S>(shared: &Shared<S>, id: IntegrationId) -> Result<Option<Timestamp>, StoreError> {
    let _permit = shared.expiring.acquire().await;
    let oldest = shared.store.oldest_pending(&[id]).await?;
    Ok(oldest.get(&id).copied())
}

/// Expires what is due, step by step, and returns the number of events. No request is
/// dispatched meanwhile, so that one gap covers all of them.
async fn expire<S>(
    shared: &Shared<S>,
    id: IntegrationId,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let retention = &shared.options.retention;
    let mut keep = Keep {
        from: 1,
        accepted_before: retention.accepted_before(Timestamp::now()),
        max_bytes: retention.bytes,
        bytes: retention.keep_bytes(pending_bytes(shared, id)),
        chunks: STEP_CHUNKS,
    };
    let mut expired = 0;
    while !stop.is_cancelled() {
        let _permit = shared.expiring.acquire().await;
        shared.lanes().suspend(id);
        let which = |_: &_| Some(Which::Expired(keep));
        let Some(given_up) = give_up::give_up(shared, id, which).await else {
            break;
        };
        let given_up = given_up?;
        expired += given_up.expired;
        if given_up.reason != Some(GapReason::RetentionAge) {
            // The next step continues below the limit.
            keep.max_bytes = keep.bytes;
        }
        note(shared, id, given_up.expired, given_up.reason);
        match given_up.next {
            Some(next) => keep.from = next,
            None => break,
        }
    }
    Ok(expired)
}

/// Notes expired events for the log.
fn note<S>(shared: &Shared<S>, id: IntegrationId, count: u64, reason: Option<GapReason>) {
    let mut lanes = shared.lanes();
    if let (Some(lane), Some(reason), true) = (lanes.get(id), reason, count > 0) {
        let unlogged = &mut lane.expiry.unlogged;
        *unlogged = Some(match *unlogged {
            Some((before, of)) if of == reason => (before + count, reason),
            Some((before, _)) => (before + count, GapReason::Several),
            None => (count, reason),
        });
    }
}

/// Logs expired events, unless a line on the integration was logged lately. Then it returns the
/// delay until the next line.
fn log_expired<S>(shared: &Shared<S>, id: IntegrationId) -> Option<Duration> {
    let mut lanes = shared.lanes();
    let (lane, snapshot) = (lanes.get(id)?, shared.store.get(id)?);
    let now = Instant::now();
    let expiry = &mut lane.expiry;
    let (expired, reason) = expiry.unlogged?;
    if let Some(logged_at) = expiry.logged_at
        && now < logged_at + LOG_INTERVAL
    {
        return Some(logged_at + LOG_INTERVAL - now);
    }
    expiry.unlogged = None;
    expiry.logged_at = Some(now);
    drop(lanes);
    tracing::warn!(
        organization_id = snapshot.integration.organization_id.as_str(),
        integration_id = %id,
        expired,
        expired_in_all = snapshot.progress.expired,
        reason = reason.as_str(),
        "events expired before they could be delivered: a gap event takes their place"
    );
    None
}
