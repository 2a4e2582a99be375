//! What an answer means: what is accepted, what comes next, what it says of the status.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Shared,
    lane::Lanes,
    places::{Class, Turn},
};
use crate::{
    domain::{
        delivery::{Batch, Settlement},
        flow::Fate,
        integration::{Integration, IntegrationKey},
        status::{Fault, Meaning, Observation},
    },
    sink::RecordOutcome,
    store::{NextRetry, Observed, Settle},
};

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
    turn: &Turn,
    batch: Batch,
    answer: Answer,
) -> Option<Settle> {
    let now = Timestamp::now();
    let cancelled = matches!(answer, Answer::Cancelled);
    let of_records = matches!(answer, Answer::Outcomes(_));
    pace(shared, lanes, key, &batch, &answer);
    let (settlement, failure) = settle(lanes, key, batch, answer)?;
    let version = shared.store.get(key)?.integration.version;
    if cancelled {
        return None;
    }
    let accepted = failure.is_none() || settlement.accepted > 0;
    let outdated = version != integration.version || lanes.get(key)?.is_outdated(turn);
    if accepted || !outdated {
        lanes.expect(key, Class::after(accepted, turn.overdue));
    }
    let next_retry = match &failure {
        // What was met before something was mended says nothing of what comes.
        Some(_) if outdated => NextRetry::Never,
        Some(fault) => {
            lanes.widen(key, false);
            match settlement.accepted {
                0 => NextRetry::At(now + next_wait(shared, lanes, key, of_records, fault, now)?),
                _ => {
                    lanes.get(key)?.backoff.reset();
                    NextRetry::Never
                }
            }
        }
        None => {
            lanes.widen(key, true);
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

/// Learns from what became of each record how fast the stream may be written to.
fn pace<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    batch: &Batch,
    answer: &Answer,
) {
    let Answer::Outcomes(outcomes) = answer else {
        return;
    };
    let Some(lane) = lanes.get(key) else { return };
    let failed = |outcome: &RecordOutcome| matches!(outcome, RecordOutcome::Failed(_));
    if lane.flow.is_none() && !outcomes.iter().any(failed) {
        return;
    }
    let overhead = shared.options.limits.overhead_bytes;
    let records = batch.items.iter().zip(outcomes).map(|(item, outcome)| {
        let fate = match outcome {
            RecordOutcome::Accepted { shard_id, .. } => Fate::Accepted(shard_id),
            RecordOutcome::Failed(fault) if fault.meaning() == Meaning::Throttled => {
                Fate::Throttled
            }
            RecordOutcome::Failed(_) => Fate::Failed,
        };
        (item.key, item.body.len() + overhead, fate)
    });
    let flow = lane.flow.get_or_insert_default();
    flow.answered(Instant::now().into_std(), records);
}

/// Backs off after a request of which nothing was accepted, and says for how long.
/// Where only some shards of the stream refuse, the others go on.
fn next_wait<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    of_records: bool,
    fault: &Fault,
    now: Timestamp,
) -> Option<Duration> {
    let lane = lanes.get(key)?;
    if let Some(at) = lane.retry_at {
        // Another request of the same moment has failed already.
        return Some(at.saturating_duration_since(Instant::now()));
    }
    let passing = matches!(fault.meaning(), Meaning::Throttled | Meaning::Unreachable);
    let flow = lane.flow.as_ref().filter(|_| of_records && passing);
    let policy = &shared.options.backoff;
    let wait = match flow.map(|flow| flow.stalled()) {
        Some(None) => return Some(Duration::ZERO),
        stalled => {
            let wait = lane.backoff.fail(policy, now, fault, rand::random());
            stalled.flatten().unwrap_or(wait)
        }
    };
    lanes.back_off(key, Instant::now() + wait);
    Some(wait)
}
