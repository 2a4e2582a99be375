//! What an answer means: what is accepted, what comes next, what it says of the status.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Shared, lane::Lanes};
use crate::{
    domain::{
        delivery::{Batch, Outcome, Settlement},
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
    let current = shared.store.get(key).map(|one| one.integration.version);
    // What an old configuration met says nothing of the new one.
    let outdated = current != Some(integration.version);
    let (settlement, failure) = settle(lanes, key, batch, answer, outdated)?;
    current?;
    if cancelled {
        return None;
    }
    let next_retry = match &failure {
        Some(_) if outdated || settlement.narrowing => NextRetry::Never,
        Some(fault) => {
            let share = (settlement.passed(), sent);
            let wait = next_wait(shared, lanes, key, share, fault, now)?;
            match settlement.passed() {
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
        observed: (!settlement.narrowing).then_some(observed),
        settlement,
        done: None,
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

/// Backs off after a failure, and says for how long. Some records may have been accepted.
fn next_wait<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    key: IntegrationKey,
    (accepted, sent): (u64, u64),
    fault: &Fault,
    now: Timestamp,
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
    let wait = match accepted {
        0 => lane.backoff.fail(policy, now, fault, chance),
        _ => lane.pace.fail(policy, now, fault, chance).min(PACE_MOST),
    };
    lanes.back_off(key, Instant::now() + wait);
    Some(wait)
}
