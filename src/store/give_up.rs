//! Giving events up: they count as expired, and gap events take their place, in one write of the
//! ledger. Events that are still in the tail move to the backlog with it.

use std::collections::BTreeMap;

use super::{
    GiveUp, GivenUp, Keep, StoreError, Which,
    partition::{Owner, Replaced},
    ports::Position,
};
use crate::domain::{
    chunk::{Chunk, give_up},
    event::GapReason,
    integration::IntegrationId,
    segment,
};

/// Bytes of events from which a step expires no further chunk. The engine reads everything that
/// it deletes, and other writes wait meanwhile.
const STEP_BYTES: u64 = 16 << 20;

/// Chunks before and after, in order.
#[derive(Default)]
struct Step {
    before: Vec<(Option<Position>, Chunk)>,
    after: Vec<Chunk>,
    expired: u64,
    reason: Option<GapReason>,
    next: Option<u64>,
}

impl Owner {
    /// Gives events up, durably.
    pub(super) async fn give_up(&self, request: GiveUp) -> Result<GivenUp, StoreError> {
        let GiveUp {
            integration_id: id,
            which,
            in_flight,
        } = request;
        let _writes = self.lock_writes().await;
        let (step, set_aside) = match which {
            Which::Refused(refused) => (self.refused(id, &refused, &in_flight).await?, None),
            Which::Expired(keep) => (self.expired(id, &keep, &in_flight).await?, None),
            Which::Damaged(first) => (self.damaged(id, first, &in_flight).await?, Some(first)),
        };
        let mut given_up = GivenUp {
            chunks: Vec::new(),
            expired: step.expired,
            reason: step.reason,
            next: step.next,
        };
        let mut replaced = Replaced {
            set_aside,
            expired: step.expired,
            ..Replaced::default()
        };
        for ((position, before), after) in step.before.into_iter().zip(step.after) {
            if before == after {
                continue;
            }
            replaced.freed_bytes += before.pending_bytes.saturating_sub(after.pending_bytes);
            replaced.move_to = replaced.move_to.max(position);
            replaced.chunks.insert(after.first_sequence, after.clone());
            given_up.chunks.push(after);
        }
        if !given_up.chunks.is_empty() {
            self.replace(id, replaced).await?;
        }
        Ok(given_up)
    }

    async fn refused(
        &self,
        id: IntegrationId,
        refused: &BTreeMap<u64, u32>,
        in_flight: &BTreeMap<u64, u32>,
    ) -> Result<Step, StoreError> {
        let mut step = Step::default();
        let mut from = refused.keys().next().copied();
        while let Some(first) = from {
            let found = self.states(id, first, 1).await?;
            let Some((position, before)) = found.into_iter().next() else {
                break;
            };
            let mut after = before.clone();
            let range = after.first_sequence..after.end_sequence();
            let bytes = refused.range(range).map(|(_, bytes)| u64::from(*bytes));
            after.pending_bytes = after.pending_bytes.saturating_sub(bytes.sum());
            let chunks = std::slice::from_mut(&mut after);
            step.expired += give_up(chunks, |chunk, sequence| {
                let goes = !in_flight.contains_key(&sequence)
                    && (chunk.is_gap(sequence) || refused.contains_key(&sequence));
                goes.then_some(GapReason::RecordRefused)
            });
            from = refused
                .range(after.end_sequence()..)
                .next()
                .map(|(sequence, _)| *sequence);
            step.before.push((position, before));
            step.after.push(after);
        }
        Ok(step)
    }

    async fn damaged(
        &self,
        id: IntegrationId,
        first_sequence: u64,
        in_flight: &BTreeMap<u64, u32>,
    ) -> Result<Step, StoreError> {
        let found = self.states(id, first_sequence, 1).await?;
        let found = found
            .into_iter()
            .filter(|(_, chunk)| chunk.first_sequence == first_sequence);
        let mut step = Step {
            reason: Some(GapReason::LogDamaged),
            ..Step::default()
        };
        for (position, before) in found {
            if position.is_none() && self.is_readable(id, &before).await? {
                continue;
            }
            let mut after = before.clone();
            after.pending_bytes = kept_bytes(&after, in_flight);
            let chunks = std::slice::from_mut(&mut after);
            step.expired += give_up(chunks, |_, sequence| {
                (!in_flight.contains_key(&sequence)).then_some(GapReason::LogDamaged)
            });
            step.before.push((position, before));
            step.after.push(after);
        }
        Ok(step)
    }

    /// Whether a chunk of the backlog can be read after all.
    async fn is_readable(&self, id: IntegrationId, chunk: &Chunk) -> Result<bool, StoreError> {
        let read = self
            .shared
            .ledger
            .read_backlog(id, chunk.first_sequence, 1)
            .await;
        let read = match read {
            Err(StoreError::DamagedChunk { .. }) => return Ok(false),
            read => read?,
        };
        Ok(read.first().is_none_or(|read| {
            let events = segment::events(&read.segment, read.count);
            read.pending_events() == 0 || events.is_ok_and(|all| all.len() == read.count as usize)
        }))
    }

    /// One step of retention. The next one begins with the last chunk of this one, so that it
    /// finds the gap which this one leaves there.
    async fn expired(
        &self,
        id: IntegrationId,
        keep: &Keep,
        in_flight: &BTreeMap<u64, u32>,
    ) -> Result<Step, StoreError> {
        let Some(progress) = self.progress(id) else {
            return Ok(Step::default());
        };
        // One more than may go, for a pending gap right after those that go.
        let limit = keep.chunks.max(2) + 1;
        let before = self.states(id, keep.from, limit).await?;
        Ok(expire(before, keep, in_flight, progress.pending_bytes))
    }
}

fn expire(
    mut before: Vec<(Option<Position>, Chunk)>,
    keep: &Keep,
    in_flight: &BTreeMap<u64, u32>,
    pending_bytes: u64,
) -> Step {
    let within_a_step = {
        let mut bytes = 0;
        let fits = before.iter().take_while(|(_, chunk)| {
            let fits = bytes < STEP_BYTES;
            bytes += chunk.pending_bytes;
            fits
        });
        fits.count()
    };
    let most = keep.chunks.max(2).min(within_a_step.max(2));
    before.truncate(most + 1);
    let mut after: Vec<Chunk> = before.iter().map(|(_, chunk)| chunk.clone()).collect();
    // Chunks before an old one are older, whatever the clock said then.
    let old = |chunk: &Chunk| chunk.accepted_at <= keep.accepted_before;
    let aged = after
        .iter()
        .take(most)
        .rposition(old)
        .map_or(0, |last| last + 1);
    let is_too_large = pending_bytes > keep.max_bytes;
    let (mut going, mut freed) = (0, 0);
    while going < after.len().min(most)
        && (going < aged || (is_too_large && pending_bytes.saturating_sub(freed) > keep.bytes))
    {
        let chunk = &mut after[going];
        let kept = kept_bytes(chunk, in_flight).min(chunk.pending_bytes);
        freed += chunk.pending_bytes - kept;
        chunk.pending_bytes = kept;
        going += 1;
    }
    if going == 0 {
        return Step::default();
    }
    let first_of = |at: usize| {
        before
            .get(at)
            .map_or(u64::MAX, |(_, chunk)| chunk.first_sequence)
    };
    let (young, stays) = (first_of(aged), first_of(going));
    let next = (going == most && before.len() > most).then(|| first_of(most - 1));
    let expired = give_up(&mut after, |chunk, sequence| {
        if in_flight.contains_key(&sequence) {
            return None;
        }
        match chunk.first_sequence {
            first if first < young => Some(GapReason::RetentionAge),
            first if first < stays || chunk.is_gap(sequence) => Some(GapReason::RetentionSize),
            _ => None,
        }
    });
    let reason = match (aged, going - aged) {
        (_, 0) => GapReason::RetentionAge,
        (0, _) => GapReason::RetentionSize,
        _ => GapReason::Several,
    };
    Step {
        before,
        after,
        expired,
        reason: Some(reason),
        next,
    }
}

/// Bytes of a chunk's events that are in flight.
fn kept_bytes(chunk: &Chunk, in_flight: &BTreeMap<u64, u32>) -> u64 {
    let in_chunk = in_flight.range(chunk.first_sequence..chunk.end_sequence());
    in_chunk.map(|(_, bytes)| u64::from(*bytes)).sum()
}
