//! What an answer means: what is accepted, what comes next, what it says of the status.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Shared, lane::Lanes};
use crate::{
    domain::{
        delivery::{Batch, Settlement},
        integration::{Integration, IntegrationKey},
        status::{Fault, Observation},
    },
    sink::RecordOutcome,
    store::{NextRetry, Observed, Settle},
};

/// The longest wait while some records get through: the limits of shards are a second's.
const PACE_MOST: Duration = Duration::from_secs(1);

/// What became of a request.
pub(super) enum Answer {
    Outcomes(Vec<RecordOutcome>),
    Fault(Fault),
    /// The integration was deleted, or the worker is told to end.
    Cancelled,
}

/// Takes in an answer. None where there is nothing to settle.
pub(super) fn take_in<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    integration: &Integration,
    batch: Batch,
    answer: Answer,
) -> Option<Settle> {
    let now = Timestamp::now();
    let sent = batch.items.len() as u64;
    let cancelled = matches!(answer, Answer::Cancelled);
    let (settlement, failure) = settle(lanes, key, batch, answer)?;
    let version = shared.store.get(key)?.integration.version;
    if cancelled {
        return None;
    }
    let next_retry = match &failure {
        // What an old configuration met says nothing of the new one.
        Some(_) if version != integration.version => NextRetry::Never,
        Some(fault) => {
            let share = (settlement.accepted, sent);
            let wait = next_wait(shared, lanes, key, share, fault)?;
            match settlement.accepted {
                0 => NextRetry::At(now + wait),
                _ => NextRetry::Never,
            }
        }
        None => {
            lanes.get(key)?.pace.reset();
            lanes.end_back_off(key);
            NextRetry::Never
        }
    };
    lanes.get(key)?.unsettled += 1;
    let observation = match failure {
        Some(fault) if settlement.accepted == 0 => Observation::Failed(fault),
        _ => Observation::Accepted,
    };
    Some(Settle {
        key,
        settlement,
        observed: Some(Observed {
            version: integration.version,
            at: now,
            observation,
            next_retry,
        }),
        done: None,
    })
}

/// Gives the batch back to its lane; this comes before all else.
fn settle(
    lanes: &mut Lanes,
    key: IntegrationKey,
    batch: Batch,
    answer: Answer,
) -> Option<(Settlement, Option<Fault>)> {
    let lane = lanes.get(key)?;
    let bytes_before = lane.delivery.bytes();
    let settled = match answer {
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
        Answer::Cancelled => (lane.delivery.settle(batch, &[]), None),
    };
    let freed = bytes_before - lane.delivery.bytes();
    lanes.loaded_bytes -= freed;
    Some(settled)
}

/// Backs off after a failure, and says for how long. Some records may have been accepted.
fn next_wait<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    (accepted, sent): (u64, u64),
    fault: &Fault,
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
    let now = Instant::now().into_std();
    let wait = match accepted {
        0 => lane.backoff.fail(policy, now, fault, chance),
        _ => lane.pace.fail(policy, now, fault, chance).min(PACE_MOST),
    };
    lanes.back_off(key, Instant::now() + wait);
    Some(wait)
}
