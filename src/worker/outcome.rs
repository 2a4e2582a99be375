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
        delivery::{Batch, Outcome, Settlement},
        integration::{Integration, IntegrationKey},
        shard_rates::RecordResult,
        status::{Fault, Meaning, Observation},
    },
    sink::RecordOutcome,
    store::{NextRetry, Observed, Settle, Tells},
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
    let current = shared.store.version(key);
    // What was met before something was mended says nothing of what comes.
    let outdated = current != Some(integration.version) || lanes.get(key)?.is_outdated(turn);
    let (settlement, failure) = settle(lanes, key, batch, answer, outdated)?;
    current?;
    if cancelled {
        return None;
    }
    let accepted = failure.is_none() || settlement.passed() > 0;
    if accepted || !outdated {
        lanes.expect(key, Class::after(accepted, turn.overdue));
    }
    let next_retry = match &failure {
        Some(_) if outdated || settlement.narrowing => NextRetry::Never,
        Some(fault) => {
            lanes.widen(key, false);
            match settlement.passed() {
                0 => NextRetry::At(now + next_wait(shared, lanes, key, of_records, fault)?),
                _ => {
                    lanes.end_back_off(key);
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
    let lane = lanes.get(key)?;
    match &failure {
        Some(fault) if settlement.passed() == 0 => {
            if !outdated {
                lane.last_obstacle = fault.obstacle();
            }
        }
        _ => {
            lane.undelivered_since = Instant::now();
            lane.last_obstacle = None;
        }
    }
    lane.unsettled += 1;
    lane.unsaved += usize::from(settlement.changes_the_log());
    let observation = match failure {
        Some(fault) if settlement.passed() == 0 => Observation::Failed(fault),
        _ => Observation::Accepted,
    };
    let observed = Observed {
        version: integration.version,
        at: now,
        observation,
        next_retry,
    };
    Some(Settle {
        key,
        // What an old configuration met, or a call from before a passed test, tells nothing.
        observed: (!settlement.narrowing && (accepted || !outdated)).then_some(observed),
        settlement,
        tells: Tells::Worker,
    })
}

/// Gives the batch back to its lane; this comes before all else. Of an outdated
/// configuration nothing is taken to be refused.
fn settle(
    lanes: &mut Lanes,
    key: IntegrationKey,
    batch: Batch,
    answer: Answer,
    outdated: bool,
) -> Option<(Settlement, Option<Fault>)> {
    let lane = lanes.get(key)?;
    let bytes_before = lane.delivery.bytes();
    let failed = |fault: &Fault| match fault.refuses_values() && !outdated {
        true => Outcome::Refused,
        false => Outcome::Failed,
    };
    let settled = match answer {
        Answer::Outcomes(outcomes) => {
            let (told, failure) = outcomes_of(outcomes, failed);
            (lane.delivery.settle(batch, &told), failure)
        }
        Answer::Fault(fault) => {
            let told = vec![failed(&fault); batch.items.len()];
            (lane.delivery.settle(batch, &told), Some(fault))
        }
        Answer::Cancelled => (lane.delivery.settle(batch, &[]), None),
    };
    let freed = bytes_before - lane.delivery.bytes();
    lanes.loaded_bytes -= freed;
    Some(settled)
}

/// The outcomes of an answered request, and why it did not get through as a whole. A
/// record that is refused while others pass is its own fault, and slows nothing down.
fn outcomes_of(
    answered: Vec<RecordOutcome>,
    failed: impl Fn(&Fault) -> Outcome,
) -> (Vec<Outcome>, Option<Fault>) {
    let told: Vec<Outcome> = answered
        .iter()
        .map(|outcome| match outcome {
            RecordOutcome::Accepted { .. } => Outcome::Accepted,
            RecordOutcome::Failed(fault) => failed(fault),
        })
        .collect();
    let passed = told.contains(&Outcome::Accepted);
    let mut failures = answered.into_iter().filter_map(|outcome| match outcome {
        RecordOutcome::Failed(fault) => Some(fault),
        RecordOutcome::Accepted { .. } => None,
    });
    let failure = failures.find(|fault| !passed || failed(fault) == Outcome::Failed);
    (told, failure)
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
        let result = match outcome {
            RecordOutcome::Accepted { shard_id, .. } => RecordResult::Accepted(shard_id),
            RecordOutcome::Failed(fault) if fault.meaning() == Meaning::Throttled => {
                RecordResult::Throttled
            }
            RecordOutcome::Failed(_) => RecordResult::Failed,
        };
        (item.key, item.weight + overhead, result)
    });
    let flow = lane.flow.get_or_insert_default();
    flow.record_answer(Instant::now().into_std(), records);
}

/// Backs off after a request of which nothing was accepted, and says for how long.
/// Where only some shards of the stream refuse, the others go on.
fn next_wait<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    of_records: bool,
    fault: &Fault,
) -> Option<Duration> {
    let lane = lanes.get(key)?;
    if let Some(at) = lane.retry_at {
        // Another request of the same moment has failed already.
        return Some(at.saturating_duration_since(Instant::now()));
    }
    let passing = matches!(fault.meaning(), Meaning::Throttled | Meaning::Unreachable);
    let flow = lane.flow.as_ref().filter(|_| of_records && passing);
    let policy = &shared.options.backoff;
    let wait = match flow.map(|flow| flow.stalled_for()) {
        Some(None) => return Some(Duration::ZERO),
        stalled => {
            let now = Instant::now().into_std();
            let wait = lane.backoff.fail(policy, now, fault, rand::random());
            stalled.flatten().unwrap_or(wait)
        }
    };
    lanes.back_off(key, Instant::now() + wait);
    Some(wait)
}
