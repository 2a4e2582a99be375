//! Settling of an answer: the accepted records, the time of the next attempt, and the
//! observation for the status.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Shared,
    lanes::{Lane, Lanes},
    permits::{Class, Permit},
};
use crate::{
    domain::{
        delivery::{Batch, RecordOutcome},
        integration::{Integration, IntegrationId},
        shard_rates::ShardRates,
        status::{Fault, Meaning, Observation},
    },
    metrics,
    store::{NextRetry, Observed},
};

/// A request and its answer.
pub(super) struct Attempt {
    /// Configuration that was used.
    pub(super) integration: Arc<Integration>,
    pub(super) began_at: Timestamp,
    pub(super) batch: Batch,
    /// None if the call was cancelled because the integration was deleted or the worker ends.
    pub(super) answer: Option<Result<Vec<RecordOutcome>, Fault>>,
}

/// Settles an attempt in its lane and in the store. Returns the number of events that are
/// refused while others are accepted; None if nothing is known or the integration was deleted.
pub(super) fn settle<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    id: IntegrationId,
    permit: &Permit,
    attempt: Attempt,
) -> Option<usize> {
    let now = Timestamp::now();
    let Attempt {
        integration,
        began_at,
        batch,
        answer,
    } = attempt;
    let cancelled = answer.is_none();
    let per_record = matches!(answer, Some(Ok(_)));
    let outcomes = match answer {
        None => Vec::new(),
        Some(Ok(outcomes)) => outcomes,
        Some(Err(fault)) => vec![RecordOutcome::Failed(fault); batch.records.len()],
    };
    metrics::THROTTLED_RECORDS.add(throttled(&outcomes));
    let version = shared.store.version(id);
    let lane = lanes.get(id)?;
    if per_record {
        learn_rates(
            lane,
            shared.options.limits.overhead_bytes,
            &batch,
            &outcomes,
        );
    }
    // A failure from before a change of the configuration says nothing of the next attempt.
    let is_current = version == Some(integration.version) && !lane.is_outdated(permit);
    let bytes_before = lane.delivery.bytes();
    let settlement = lane.delivery.settle(batch, &outcomes, is_current);
    for chunk in &settlement.chunks {
        let latency = Duration::try_from(now.duration_since(chunk.accepted_at));
        // Another clock may have set the time of acceptance.
        metrics::DELIVERY_LATENCY.record(latency.unwrap_or_default());
    }
    let freed = bytes_before - lane.delivery.bytes();
    lanes.loaded_bytes -= freed;
    version?;
    if cancelled {
        return None;
    }
    let any_accepted = settlement.accepted_records() > 0;
    let failure = failure(outcomes, any_accepted, is_current);
    let accepted = failure.is_none() || any_accepted;
    if accepted || is_current {
        lanes.expect(id, Class::after(accepted, permit.overdue));
    }
    let mut next_retry = NextRetry::None;
    match &failure {
        Some(_) if !is_current || settlement.narrowing => {}
        Some(fault) => {
            lanes.adapt_window(id, false);
            if any_accepted {
                lanes.end_backoff(id);
            } else {
                let delay = back_off(shared, lanes, id, per_record, fault)?;
                next_retry = NextRetry::At(now + delay);
            }
        }
        None => {
            lanes.adapt_window(id, true);
            lanes.end_backoff(id);
        }
    }
    let lane = lanes.get(id)?;
    if accepted {
        lane.undelivered_since = Instant::now();
        lane.last_obstacle = None;
    } else if is_current {
        lane.last_obstacle = failure.as_ref().and_then(Fault::obstacle);
    }
    let observed = (!settlement.narrowing && (accepted || is_current)).then(|| Observed {
        integration_id: id,
        version: integration.version,
        began_at,
        at: now,
        observation: match failure {
            Some(fault) if !any_accepted => Observation::Failed(fault),
            _ => Observation::Accepted,
        },
        next_retry,
    });
    let refused = settlement.refused;
    let settlement = any_accepted.then_some(settlement);
    if settlement.is_some() || observed.is_some() {
        shared.store.settle(id, settlement, observed);
    }
    Some(refused)
}

fn throttled(outcomes: &[RecordOutcome]) -> u64 {
    let is_throttled = |outcome: &&RecordOutcome| match outcome {
        RecordOutcome::Failed(fault) => fault.meaning() == Meaning::Throttled,
        RecordOutcome::Accepted { .. } => false,
    };
    outcomes.iter().filter(is_throttled).count() as u64
}

/// Reason that a request did not succeed as a whole. A record that is refused while others are
/// accepted is no such reason, and delays nothing.
fn failure(outcomes: Vec<RecordOutcome>, any_accepted: bool, is_current: bool) -> Option<Fault> {
    let mut faults = outcomes.into_iter().filter_map(|outcome| match outcome {
        RecordOutcome::Failed(fault) => Some(fault),
        RecordOutcome::Accepted { .. } => None,
    });
    faults.find(|fault| !any_accepted || !is_current || !fault.refuses_values())
}

/// Learns the rates of the stream's shards, once a record has failed.
fn learn_rates(lane: &mut Lane, overhead: usize, batch: &Batch, outcomes: &[RecordOutcome]) {
    let failed = |outcome: &RecordOutcome| matches!(outcome, RecordOutcome::Failed(_));
    if lane.rates.is_none() && !outcomes.iter().any(failed) {
        return;
    }
    let records = batch.records.iter().zip(outcomes);
    let records =
        records.map(|(record, outcome)| (record.key, record.body_bytes + overhead, outcome));
    let rates: &mut ShardRates = lane.rates.get_or_insert_default();
    rates.record_answer(Instant::now().into_std(), records);
}

/// Starts a backoff after a request of which nothing was accepted, and returns its duration. If
/// only some shards of the stream fail, there is none, because the others continue.
fn back_off<S>(
    shared: &Shared<S>,
    lanes: &mut Lanes,
    id: IntegrationId,
    per_record: bool,
    fault: &Fault,
) -> Option<Duration> {
    let lane = lanes.get(id)?;
    if let Some(at) = lane.retry_at {
        // A request that was in flight at the same time has failed already.
        return Some(at.saturating_duration_since(Instant::now()));
    }
    let temporary = matches!(fault.meaning(), Meaning::Throttled | Meaning::Unreachable);
    let rates = lane.rates.as_ref().filter(|_| per_record && temporary);
    let stalled_for = match rates.map(|rates| rates.stalled_for()) {
        Some(None) => return Some(Duration::ZERO),
        stalled_for => stalled_for.flatten(),
    };
    let now = Instant::now().into_std();
    let policy = &shared.options.backoff;
    let delay = lane.backoff.fail(policy, now, fault, rand::random());
    let delay = stalled_for.unwrap_or(delay);
    lanes.back_off(id, Instant::now() + delay);
    Some(delay)
}
