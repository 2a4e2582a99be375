//! Acceptance of a loss in the log by an operator. Every integration of the partition gets a gap
//! over all sequences that events of the lost part may have had, and continues after it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::{
    StoreError, now,
    ports::{
        BacklogChange, Bounds, Checkpoint, EventLog, Lease, Ledger, LedgerRow, LedgerSnapshot,
        LedgerUpdate, Ownership, Partition, Position, Registry, RegistryChange,
    },
};
use crate::domain::{
    chunk::Chunk,
    event::{Gap, GapReason, Time},
    integration::IntegrationId,
    map::Map,
    sequences::Sequences,
};

/// Sequences above a checkpoint that events of an integration can have: an owner sends none
/// beyond them.
pub(super) const WINDOW: u64 = 1 << 20;
/// Integrations of one transaction.
const PAGE: usize = 500;
/// Time between two renewals of the lease. The shortest lease has 5 s.
const RENEWAL: Duration = Duration::from_secs(2);
/// Revision that is confirmed, above any other: no calls are made.
const NO_CALLS: u64 = i64::MAX as u64;

/// Loss that was accepted. Each integration of the partition got a gap with the reason LOG_LOST
/// over all sequences that events of the lost part may have had, and its count is an upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// The partition.
    pub partition: Partition,
    /// Position from which the log is delivered.
    pub from: u64,
    /// Integrations that got a gap.
    pub integrations: usize,
    /// Sequences of each gap.
    pub window: u64,
}

/// Accepts that the entries of a partition below `from`, the result of [`readable_from`], are
/// lost, or returns None if nothing is: an owner can start. A `window` larger than [`WINDOW`] is
/// needed after a restore of the database, when the log may be whole: it must cover what was
/// accepted since the backup.
///
/// A crash on the way leaves integrations with a gap that another call repeats.
pub(super) async fn accept_loss(
    log: &dyn EventLog,
    registry: &dyn Registry,
    ledger: &dyn Ledger,
    lease: Lease,
    from: Position,
    window: Option<u64>,
) -> Result<Option<AcceptedLoss>, StoreError> {
    let partition = lease.partition;
    let snapshot = ledger.load(lease).await?;
    if window.is_none() && is_whole(log, partition, &snapshot).await? {
        return Ok(None);
    }
    let window = window.unwrap_or(WINDOW).max(WINDOW);
    let rows = snapshot.integrations.into_iter();
    let mut checkpoints: Map<IntegrationId, Checkpoint> = rows
        .map(|row| (row.integration_id, row.checkpoint))
        .collect();
    let (mut after, mut integrations) = (0, 0);
    let now = now();
    loop {
        let page = registry.changes_after(after, PAGE).await?;
        let of_partition = page.changes.iter().filter_map(|change| match change {
            RegistryChange::Current(registered) if registered.partition == partition => {
                Some(registered.integration.integration_id)
            }
            _ => None,
        });
        let updates: Vec<LedgerUpdate> = of_partition
            .map(|id| {
                skip(
                    id,
                    checkpoints.remove(&id).unwrap_or_default(),
                    from,
                    window,
                    now,
                )
            })
            .collect();
        integrations += updates.len();
        if !updates.is_empty() {
            ledger.settle(lease, updates, None).await?;
        }
        after = page.up_to;
        if !page.more {
            break;
        }
    }
    ledger.forget_anchor(lease).await?;
    log.remove(partition, from).await?;
    Ok(Some(AcceptedLoss {
        partition,
        from: from.0,
        integrations,
        window,
    }))
}

/// Runs work that needs a lease, and renews the lease meanwhile: other instances would take over
/// the partition of one that shows no sign of life. Short work shows none, because each living
/// instance gets its share of the partitions, and this one delivers nothing.
pub(super) async fn with_lease<T>(ownership: &dyn Ownership, work: impl Future<Output = T>) -> T {
    let renewing = async {
        loop {
            sleep(RENEWAL).await;
            // Without a lease, writes of the ledger fail as soon as the partition is taken over.
            if let Err(error) = ownership.poll(NO_CALLS).await {
                tracing::warn!(%error, "the lease of the partition cannot be renewed");
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = renewing => never,
    }
}

/// Whether an owner of a partition can start: the log has the anchor and everything after it, and
/// ends after what is settled.
async fn is_whole(
    log: &dyn EventLog,
    partition: Partition,
    snapshot: &LedgerSnapshot,
) -> Result<bool, StoreError> {
    match replay(log, partition, snapshot).await {
        Err(StoreError::Corrupt(_)) => Ok(false),
        is_whole => is_whole,
    }
}

/// Reads the log as an owner does that starts. Returns whether it contradicts the ledger.
async fn replay(
    log: &dyn EventLog,
    partition: Partition,
    snapshot: &LedgerSnapshot,
) -> Result<bool, StoreError> {
    let Bounds { start, end } = log.bounds(partition).await?;
    let rows = &snapshot.integrations;
    let checkpoints = || rows.iter().map(|row| &row.checkpoint);
    let settled_to = checkpoints().map(|one| one.position);
    let needed = settled_to.chain(snapshot.anchor.map(|anchor| anchor.position));
    if needed.max().is_some_and(|needed| needed >= end) {
        return Ok(false);
    }
    let mut next_sequences: Map<IntegrationId, (Position, u64)> = rows
        .iter()
        .map(|row| {
            let Checkpoint {
                position,
                next_sequence,
                ..
            } = row.checkpoint;
            (row.integration_id, (position, next_sequence.max(1)))
        })
        .collect();
    let mut anchor = snapshot.anchor;
    let mut next = anchor.map_or(start, |anchor| anchor.position);
    let mut reader = log.reader(partition, next).await?;
    while next < end {
        let entry = reader.next().await?;
        next = entry.position.next();
        if let Some(anchor) = anchor.take()
            && (entry.position, entry.id) != (anchor.position, anchor.entry_id)
        {
            return Ok(false);
        }
        for chunk in &entry.chunks {
            if let Some((position, sequence)) = next_sequences.get_mut(&chunk.integration_id)
                && entry.position > *position
            {
                *sequence += u64::from(chunk.count);
            }
        }
    }
    let is_read = |row: &LedgerRow| {
        let (_, next) = next_sequences[&row.integration_id];
        let last = row.checkpoint.settled.ranges().last();
        last.is_none_or(|(_, last)| last < next)
    };
    Ok(rows.iter().all(is_read))
}

/// Position from which every entry of a partition can be read.
pub(super) async fn readable_from(
    log: &dyn EventLog,
    partition: Partition,
) -> Result<Position, StoreError> {
    let Bounds { start, end } = log.bounds(partition).await?;
    let mut from = start;
    while from < end {
        let mut reader = log.reader(partition, from).await?;
        let mut next = from;
        let damaged = loop {
            if next >= end {
                break false;
            }
            match reader.next().await {
                Ok(entry) => next = entry.position.next(),
                Err(StoreError::Corrupt(_)) => break true,
                Err(error) => return Err(error),
            }
        };
        if !damaged {
            break;
        }
        // Or it was trimmed meanwhile.
        let start = log.bounds(partition).await?.start;
        from = if start > next { start } else { next.next() };
    }
    Ok(from.min(end))
}

/// Lets an integration continue after a gap over `window` sequences.
fn skip(
    integration_id: IntegrationId,
    checkpoint: Checkpoint,
    from: Position,
    window: u64,
    now: Timestamp,
) -> LedgerUpdate {
    let first = checkpoint.next_sequence.max(1);
    let last = first + window - 1;
    let lost = window - checkpoint.settled.count().min(window);
    let time = Time::from_micros(now.as_microsecond());
    let mut counts = checkpoint.counts;
    counts.accepted = last;
    counts.expired += lost;
    let gap = Gap {
        first_sequence: first,
        last_sequence: last,
        count: lost,
        first_time: time,
        last_time: time,
        reason: GapReason::LogLost,
    };
    let chunk = Chunk {
        first_sequence: last,
        count: 1,
        accepted_at: now,
        segment: bytes::Bytes::new(),
        settled: Sequences::default(),
        gaps: vec![gap],
        pending_bytes: 0,
        traces: Vec::new(),
    };
    LedgerUpdate {
        integration_id,
        checkpoint: Checkpoint {
            next_sequence: last + 1,
            position: Position(from.0 - 1),
            settled: Sequences::default(),
            counts,
            ..checkpoint
        },
        backlog: vec![BacklogChange::Add(chunk)],
    }
}
