//! Retention: what waits too long, or is too much, expires.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Shared, give_up,
    lane::{Lanes, NextLook},
};
use crate::{
    domain::{event::GapReason, integration::IntegrationKey},
    store::{GiveUp, Keep, StoreError, What},
};

/// Chunks that one step expires at the most: the store does nothing else meanwhile.
const STEP_CHUNKS: usize = 128;
/// How long to wait after the log could not be read or written.
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait where too much waits, and all of it is in flight.
const ALL_IN_FLIGHT: Duration = Duration::from_secs(1);
/// How long to wait where more comes than may wait: meanwhile requests may begin.
const OVERFLOWING: Duration = Duration::from_millis(20);
/// Between two lines of the log on one integration's events that expire.
const TELL: Duration = Duration::from_secs(60);

/// Looks at a lane when the events that wait since a moment are too old. Where they are
/// already, none of them goes out before.
pub(super) fn begin<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    since: Timestamp,
    pending_bytes: u64,
) {
    let retention = &shared.options.retention;
    if retention.is_exceeded(pending_bytes) {
        lanes.expire_at(key, Instant::now());
    } else if lanes.knows_expiry(key) {
        return;
    }
    let left = retention.until_too_old(since, Timestamp::now());
    lanes.expire_at(key, Instant::now() + left);
    if left.is_zero() {
        lanes.hold(key);
    }
}

/// Lets expire what has to of a lane where that may be due.
pub(super) fn start<S: Send + Sync + 'static>(
    shared: &Arc<Shared<S>>,
    key: IntegrationKey,
    stop: &CancellationToken,
) {
    let (looking, stop) = (Arc::clone(shared), stop.clone());
    shared.spawn(async move { look(&looking, key, &stop).await });
}

async fn look<S>(shared: &Shared<S>, key: IntegrationKey, stop: &CancellationToken) {
    let looked = match is_due(shared, key).await {
        Ok(false) => Ok(0),
        Ok(true) => expire(shared, key, stop).await,
        Err(error) => Err(error),
    };
    let next = match looked {
        Ok(expired) => next_look(shared, key, expired).await,
        Err(error) => Err(error),
    };
    // What cannot be read has to show where it is read to be sent.
    let holds = next.as_ref().is_err_and(StoreError::is_full);
    let (wait, mut rests) = next.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot let expire what waits too long");
        (RETRY, true)
    });
    let untold = tell(shared, key);
    let mut wait = untold.map_or(wait, |untold| wait.min(untold));
    let mut lanes = shared.lanes();
    // What came meanwhile found it being looked at.
    let retention = &shared.options.retention;
    if !rests && retention.is_exceeded(pending_bytes(shared, key)) {
        (wait, rests) = (OVERFLOWING, true);
    }
    let log_end = shared.log_end(key);
    let at = Instant::now() + wait;
    lanes.end_expiry(key, NextLook { at, rests, holds });
    lanes.close_if_done(key, log_end);
    drop(lanes);
    shared.wake.notify_one();
}

async fn is_due<S>(shared: &Shared<S>, key: IntegrationKey) -> Result<bool, StoreError> {
    let retention = &shared.options.retention;
    if retention.is_exceeded(pending_bytes(shared, key)) {
        return Ok(true);
    }
    let now = Timestamp::now();
    let too_old = retention.accepted_before(now);
    let oldest = oldest(shared, key).await?;
    // The clock was ahead: what is behind it may be too old.
    Ok(oldest.is_some_and(|oldest| oldest <= too_old || oldest > now))
}

fn pending_bytes<S>(shared: &Shared<S>, key: IntegrationKey) -> u64 {
    let snapshot = shared.store.get(key);
    snapshot.map_or(0, |snapshot| snapshot.progress.pending_bytes)
}

async fn oldest<S>(
    shared: &Shared<S>,
    key: IntegrationKey,
) -> Result<Option<Timestamp>, StoreError> {
    let _turn = shared.expiring.acquire().await;
    let oldest = shared.store.oldest_pending(&[key]).await?;
    Ok(oldest.get(&key).copied())
}

/// Lets expire what has to, step by step, and returns how many events that were. No
/// request begins meanwhile, so that one gap stands for all.
async fn expire<S>(
    shared: &Shared<S>,
    key: IntegrationKey,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let retention = &shared.options.retention;
    let mut keep = Keep {
        from: 1,
        accepted_before: retention.accepted_before(Timestamp::now()),
        most_bytes: retention.bytes,
        bytes: retention.keep_bytes(pending_bytes(shared, key)),
        chunks: STEP_CHUNKS,
    };
    let mut expired = 0;
    while !stop.is_cancelled() {
        let Some(still) = shared.lanes().get(key).map(|lane| lane.still.clone()) else {
            break;
        };
        let _turn = shared.expiring.acquire().await;
        shared.lanes().hold(key);
        let _still = still.write_owned().await;
        let Some(ask) = ask(shared, key, keep) else {
            break;
        };
        let given_up = shared.store.give_up(ask).await?;
        expired += given_up.expired;
        if given_up.reason != Some(GapReason::RetentionAge) {
            // The next step goes on with it.
            keep.most_bytes = keep.bytes;
        }
        note(shared, key, given_up.expired, given_up.reason);
        give_up::apply(&mut shared.lanes(), key, &given_up);
        match given_up.next {
            Some(next) => keep.from = next,
            None => break,
        }
    }
    Ok(expired)
}

fn ask<S>(shared: &Shared<S>, key: IntegrationKey, keep: Keep) -> Option<GiveUp> {
    let mut lanes = shared.lanes();
    let lane = lanes.get(key)?;
    Some(GiveUp {
        key,
        what: What::Expired(keep),
        in_flight: lane.delivery.events_in_flight(),
    })
}

/// When to look again, and whether not before.
async fn next_look<S>(
    shared: &Shared<S>,
    key: IntegrationKey,
    expired: u64,
) -> Result<(Duration, bool), StoreError> {
    let retention = &shared.options.retention;
    if retention.is_exceeded(pending_bytes(shared, key)) {
        return Ok(match expired {
            0 => (ALL_IN_FLIGHT, true),
            _ => (OVERFLOWING, true),
        });
    }
    let now = Timestamp::now();
    let wait = match oldest(shared, key).await? {
        Some(oldest) if oldest > now => retention.pause(),
        Some(oldest) => retention.until_too_old(oldest, now),
        None => retention.age,
    };
    Ok((wait.max(retention.pause()), false))
}

fn note<S>(shared: &Shared<S>, key: IntegrationKey, count: u64, reason: Option<GapReason>) {
    let mut lanes = shared.lanes();
    if let (Some(lane), Some(reason), true) = (lanes.get(key), reason, count > 0) {
        let untold = &mut lane.expiry.untold;
        *untold = Some(match *untold {
            Some((before, of)) if of == reason => (before + count, reason),
            Some((before, _)) => (before + count, GapReason::Several),
            None => (count, reason),
        });
    }
}

/// Tells of what expired, now and then. Returns how long to wait with what is not told.
fn tell<S>(shared: &Shared<S>, key: IntegrationKey) -> Option<Duration> {
    let mut lanes = shared.lanes();
    let (lane, snapshot) = (lanes.get(key)?, shared.store.get(key)?);
    let now = Instant::now();
    let expiry = &mut lane.expiry;
    let (expired, reason) = expiry.untold?;
    if let Some(told_at) = expiry.told_at
        && now < told_at + TELL
    {
        return Some(told_at + TELL - now);
    }
    expiry.untold = None;
    expiry.told_at = Some(now);
    drop(lanes);
    tracing::warn!(
        organization_id = snapshot.integration.organization_id.as_str(),
        integration_id = %snapshot.integration.integration_id,
        expired,
        expired_in_all = snapshot.progress.expired,
        reason = reason.as_str(),
        "events expired before they could be delivered: a gap event takes their place"
    );
    None
}
