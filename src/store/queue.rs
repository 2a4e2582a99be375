//! Events of one integration in the memory of the owner of its partition: numbering, settling,
//! and the checkpoint. Pure.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use jiff::Timestamp;

use super::ports::{Checkpoint, Counts, LedgerRow, Position};
use crate::domain::{
    chunk::{Chunk, give_up},
    delivery::Settlement,
    event::GapReason,
    integration::Progress,
    segment::{self, Damaged},
    sequences::Sequences,
    trace::{TraceContext, add_traces},
};

/// Largest time between the acceptance of the first and the last event of chunks that are joined,
/// so that no event expires much earlier or later than by its own time.
const MAX_JOINED_MICROS: i64 = 1_000_000;

/// Events of one integration. The part for pending events exists only while there are some.
#[derive(Debug)]
pub(super) struct Queue {
    /// Sequence of the first event in `tail`; all before are settled or in the backlog.
    next_sequence: u64,
    /// Position up to which the log is not needed for this integration any more.
    position: Position,
    counts: Counts,
    /// Part of `counts` that is not durable.
    unwritten: Delivered,
    pub(super) times: Times,
    tail: Option<Box<Tail>>,
}

/// Times of attempts to deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// Version of the configuration of the last attempt; 0 if it is not known.
    pub(super) version: u64,
    /// Time at which the last successful attempt of this version began.
    pub(super) accepted_began_at: Option<Timestamp>,
    pub(super) last_attempt: Option<Timestamp>,
    pub(super) last_delivery: Option<Timestamp>,
}

/// Delivered events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    events: u64,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Tail {
    /// Chunks in the order of their positions.
    chunks: VecDeque<TailChunk>,
    /// Bytes of their segments.
    bytes: usize,
    /// Settled sequences of these chunks.
    settled: Sequences,
    /// States of changed chunks of the backlog that are not durable yet, by first sequence.
    backlog: BTreeMap<u64, Chunk>,
}

#[derive(Debug)]
struct TailChunk {
    position: Position,
    first_sequence: u64,
    count: u32,
    accepted_at: Timestamp,
    /// Empty once all events are settled.
    segment: Result<Bytes, Damaged>,
    traces: Vec<TraceContext>,
    /// The worker knows it by its first sequence, so it is not joined with others.
    was_read: bool,
    /// It is being moved, perhaps joined with others.
    moving: bool,
}

/// Memory and log entries that a change released.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    /// Bytes of segments.
    pub(super) bytes: usize,
    /// Position of each chunk that the log is not needed for any more.
    pub(super) positions: Vec<Position>,
}

/// Chunks that leave the tail for the backlog.
#[derive(Debug)]
pub(super) struct Move {
    /// Chunks to add to the backlog.
    pub(super) chunks: Vec<Chunk>,
    /// Events of damaged chunks, which become gaps.
    pub(super) expired: u64,
    next_sequence: u64,
    position: Position,
}

/// Result of reading the tail.
#[derive(Debug)]
pub(super) enum Read {
    /// The chunks from the sequence on.
    Chunks(Vec<Chunk>),
    /// The sequence is before the tail, which begins at this one.
    Before(u64),
    /// The next chunk is being moved to the backlog.
    Moving,
}

impl Move {
    /// Sequence of the first event that does not move.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }
}

impl TailChunk {
    fn end_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.count)
    }

    fn is_settled(&self, settled: &Sequences) -> bool {
        settled.covers(self.first_sequence, self.end_sequence() - 1)
    }

    fn bytes(&self) -> usize {
        self.segment.as_ref().map_or(0, Bytes::len)
    }

    fn chunk(&self, settled: &Sequences) -> Chunk {
        let segment = self.segment.clone().unwrap_or_default();
        let settled = settled.within(self.first_sequence, self.end_sequence() - 1);
        Chunk {
            first_sequence: self.first_sequence,
            count: self.count,
            accepted_at: self.accepted_at,
            pending_bytes: segment::pending_bytes(&segment, self.first_sequence, &settled),
            segment,
            settled,
            gaps: Vec::new(),
            traces: self.traces.clone(),
        }
    }
}

impl Queue {
    /// Queue of a new integration.
    pub(super) fn new() -> Self {
        Self {
            next_sequence: 1,
            position: Position(0),
            counts: Counts::default(),
            unwritten: Delivered::default(),
            times: Times::default(),
            tail: None,
        }
    }

    /// Queue as the ledger has it, before the log is read.
    pub(super) fn load(row: LedgerRow) -> Self {
        let LedgerRow {
            checkpoint,
            backlog_bytes,
            ..
        } = row;
        let next_sequence = checkpoint.next_sequence.max(1);
        let tail = (!checkpoint.settled.is_empty()).then(|| {
            Box::new(Tail {
                settled: checkpoint.settled,
                ..Tail::default()
            })
        });
        Self {
            next_sequence,
            position: checkpoint.position,
            counts: Counts {
                // Events after the checkpoint are counted as the log is read.
                accepted: next_sequence - 1,
                pending_bytes: backlog_bytes,
                ..checkpoint.counts
            },
            unwritten: Delivered::default(),
            times: Times {
                version: 0,
                accepted_began_at: None,
                last_attempt: checkpoint.last_attempt,
                last_delivery: checkpoint.last_delivery,
            },
            tail,
        }
    }

    /// Counts of all events that have a sequence.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            next_sequence: self.end_sequence(),
            delivered: self.counts.delivered,
            expired: self.counts.expired,
            discarded: 0,
            pending_bytes: self.counts.pending_bytes,
        }
    }

    /// Counts to show: deliveries count once they are durable, so that the counts are not ahead of
    /// the status.
    pub(super) fn shown(&self) -> Progress {
        let progress = self.progress();
        Progress {
            delivered: progress.delivered.saturating_sub(self.unwritten.events),
            pending_bytes: progress.pending_bytes + self.unwritten.bytes,
            ..progress
        }
    }

    /// Whether sequences are settled that no event has.
    pub(super) fn has_settled_beyond_end(&self) -> bool {
        let settled = self.tail.iter().flat_map(|tail| tail.settled.ranges());
        settled
            .last()
            .is_some_and(|(_, last)| last >= self.end_sequence())
    }

    /// Adds to a chunk of a planned move what was settled since it was planned. A chunk with gaps
    /// is planned while nothing is settled.
    pub(super) fn refresh(&self, chunk: &mut Chunk) {
        let Some(tail) = self.tail.as_ref().filter(|_| chunk.gaps.is_empty()) else {
            return;
        };
        let before = chunk.settled.count();
        chunk.settle(&tail.settled);
        if chunk.settled.count() > before {
            chunk.pending_bytes =
                segment::pending_bytes(&chunk.segment, chunk.first_sequence, &chunk.settled);
        }
    }

    /// Deliveries that the next write makes durable.
    pub(super) fn unwritten(&self) -> Delivered {
        self.unwritten
    }

    /// Number of sequences from the checkpoint to the last event.
    pub(super) fn span(&self) -> u64 {
        self.end_sequence().saturating_sub(self.next_sequence)
    }

    /// Position up to which the log is not needed for this integration.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Sequence that the next event gets.
    pub(super) fn end_sequence(&self) -> u64 {
        self.counts.accepted + 1
    }

    /// Sequence of the first event that is neither settled nor in the backlog.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Bytes of the segments in memory.
    pub(super) fn bytes(&self) -> usize {
        self.tail.as_ref().map_or(0, |tail| tail.bytes)
    }

    /// Number of ranges of settled sequences that a checkpoint contains.
    pub(super) fn settled_ranges(&self) -> usize {
        self.tail
            .as_ref()
            .map_or(0, |tail| tail.settled.range_count())
    }

    /// Position of the newest chunk in memory.
    pub(super) fn last_position(&self) -> Option<Position> {
        Some(self.tail.as_ref()?.chunks.back()?.position)
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            next_sequence: self.next_sequence,
            position: self.position,
            settled: self
                .tail
                .as_ref()
                .map(|tail| tail.settled.clone())
                .unwrap_or_default(),
            counts: self.counts,
            last_attempt: self.times.last_attempt,
            last_delivery: self.times.last_delivery,
        }
    }

    /// Checkpoint as it is after a move.
    pub(super) fn checkpoint_after(&self, moved: &Move) -> Checkpoint {
        let mut checkpoint = self.checkpoint();
        checkpoint.next_sequence = moved.next_sequence;
        checkpoint.position = moved.position;
        checkpoint.settled.remove_below(moved.next_sequence);
        checkpoint.counts.expired += moved.expired;
        checkpoint
    }

    /// Numbers the events of a chunk of the log. Returns the first sequence; None if the
    /// checkpoint is after the position already.
    pub(super) fn push(
        &mut self,
        position: Position,
        accepted_at: Timestamp,
        count: u32,
        segment: Result<Bytes, Damaged>,
        traces: Vec<TraceContext>,
    ) -> Option<u64> {
        if position <= self.position {
            return None;
        }
        let first_sequence = self.end_sequence();
        self.counts.accepted += u64::from(count);
        let tail = self.tail.get_or_insert_default();
        let mut chunk = TailChunk {
            position,
            first_sequence,
            count,
            accepted_at,
            segment,
            traces,
            was_read: false,
            moving: false,
        };
        if chunk.is_settled(&tail.settled) {
            chunk.segment = Ok(Bytes::new());
        } else if let Ok(segment) = &chunk.segment {
            self.counts.pending_bytes +=
                segment::pending_bytes(segment, first_sequence, &tail.settled);
        }
        tail.bytes += chunk.bytes();
        tail.chunks.push_back(chunk);
        Some(first_sequence)
    }

    /// Records what an answer settled.
    pub(super) fn settle(&mut self, settlement: &Settlement, released: &mut Released) {
        self.counts.delivered += settlement.accepted;
        self.unwritten.events += settlement.accepted;
        self.unwritten.bytes += settlement.accepted_bytes;
        self.counts.pending_bytes = self
            .counts
            .pending_bytes
            .saturating_sub(settlement.accepted_bytes);
        let tail = self.tail.get_or_insert_default();
        for chunk in &settlement.chunks {
            if chunk.first_sequence < self.next_sequence {
                tail.backlog.insert(chunk.first_sequence, chunk.clone());
                continue;
            }
            tail.settled.extend(&chunk.settled);
            if chunk.is_finished() {
                let at = tail
                    .chunks
                    .binary_search_by_key(&chunk.first_sequence, |one| one.first_sequence);
                if let Some(finished) = at.ok().and_then(|at| tail.chunks.get_mut(at)) {
                    let bytes = finished.bytes();
                    finished.segment = Ok(Bytes::new());
                    tail.bytes -= bytes;
                    released.bytes += bytes;
                }
            }
        }
        self.advance(released);
    }

    /// Advances the checkpoint over settled chunks. It stops at entries, not within them, because
    /// the log is read by entries.
    pub(super) fn advance(&mut self, released: &mut Released) {
        let Some(tail) = &mut self.tail else { return };
        while let Some(front) = tail.chunks.front() {
            let position = front.position;
            let group = tail
                .chunks
                .iter()
                .take_while(|chunk| chunk.position == position);
            let mut count = 0;
            for chunk in group {
                // A chunk that is being moved leaves with its move.
                if chunk.moving || !chunk.is_settled(&tail.settled) {
                    return;
                }
                count += 1;
            }
            for chunk in tail.chunks.drain(..count) {
                self.next_sequence = chunk.end_sequence();
                tail.bytes -= chunk.bytes();
                released.bytes += chunk.bytes();
                released.positions.push(position);
            }
            self.position = position;
            tail.settled.remove_below(self.next_sequence);
        }
        self.drop_empty_tail();
    }

    fn drop_empty_tail(&mut self) {
        let is_empty = self.tail.as_ref().is_some_and(|tail| {
            tail.chunks.is_empty() && tail.backlog.is_empty() && tail.settled.is_empty()
        });
        if is_empty {
            self.tail = None;
        }
    }

    /// Reads chunks from a sequence on: about `max_bytes`, at least one if there is one.
    ///
    /// # Errors
    ///
    /// The first sequence of a damaged chunk, if that is the first one.
    pub(super) fn read(&mut self, from: u64, max_bytes: usize) -> Result<Read, u64> {
        if from < self.next_sequence {
            return Ok(Read::Before(self.next_sequence));
        }
        let Some(tail) = &mut self.tail else {
            return Ok(Read::Chunks(Vec::new()));
        };
        let begin = tail
            .chunks
            .partition_point(|chunk| chunk.end_sequence() <= from);
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        for chunk in tail.chunks.iter_mut().skip(begin) {
            if chunk.is_settled(&tail.settled) {
                continue;
            }
            bytes += chunk.bytes();
            let is_first = chunks.is_empty();
            if !is_first && (bytes > max_bytes || chunk.moving || chunk.segment.is_err()) {
                break;
            }
            if chunk.moving {
                return Ok(Read::Moving);
            }
            chunk.was_read = true;
            if chunk.segment.is_err() {
                return Err(chunk.first_sequence);
            }
            chunks.push(chunk.chunk(&tail.settled));
        }
        Ok(Read::Chunks(chunks))
    }

    /// States of at most `limit` chunks of the tail from a sequence on, with their positions.
    pub(super) fn states(&self, from: u64, limit: usize) -> Vec<(Position, Chunk)> {
        let Some(tail) = &self.tail else {
            return Vec::new();
        };
        let chunks = tail.chunks.iter();
        chunks
            .filter(|chunk| chunk.end_sequence() > from && !chunk.is_settled(&tail.settled))
            .take(limit)
            .map(|chunk| (chunk.position, chunk.chunk(&tail.settled).state()))
            .collect()
    }

    /// Pending events of the backlog.
    pub(super) fn backlog_events(&self) -> u64 {
        let settled = self.tail.as_ref().map_or(0, |tail| tail.settled.count());
        let finished = self.counts.delivered + self.counts.expired;
        (self.next_sequence - 1).saturating_sub(finished.saturating_sub(settled))
    }

    /// Acceptance time of the oldest pending event in memory.
    pub(super) fn oldest_pending(&self) -> Option<Timestamp> {
        let tail = self.tail.as_ref()?;
        let mut chunks = tail.chunks.iter();
        let pending = chunks.find(|chunk| !chunk.is_settled(&tail.settled))?;
        Some(pending.accepted_at)
    }

    /// Prepares to move every chunk up to a position to the backlog. Until
    /// [`Queue::finish_move`] or [`Queue::cancel_move`], the checkpoint does not advance over
    /// them. `join` allows chunks that nobody has read to become one. None if there is none.
    pub(super) fn plan_move(&mut self, up_to: Position, join: bool) -> Option<Move> {
        let tail = self.tail.as_mut()?;
        let count = tail.chunks.partition_point(|chunk| chunk.position <= up_to);
        let last = tail.chunks.get(count.checked_sub(1)?)?;
        let mut planned = Move {
            chunks: Vec::new(),
            expired: 0,
            next_sequence: last.end_sequence(),
            position: last.position,
        };
        let mut run: Vec<Chunk> = Vec::new();
        for chunk in tail.chunks.iter_mut().take(count) {
            chunk.moving = true;
            if chunk.is_settled(&tail.settled) {
                continue;
            }
            let mut next = chunk.chunk(&tail.settled);
            if chunk.segment.is_err() {
                let chunks = std::slice::from_mut(&mut next);
                planned.expired += give_up(chunks, |_, _| Some(GapReason::LogDamaged));
            }
            let joins = join && !chunk.was_read && next.settled.is_empty() && next.gaps.is_empty();
            if !joins || !may_join(&run, &next) {
                planned.chunks.extend(joined(&mut run));
            }
            run.push(next);
            if !joins {
                planned.chunks.extend(joined(&mut run));
            }
        }
        planned.chunks.extend(joined(&mut run));
        Some(planned)
    }

    /// Ends a move whose chunks were not stored.
    pub(super) fn cancel_move(&mut self, released: &mut Released) {
        let chunks = self.tail.iter_mut().flat_map(|tail| &mut tail.chunks);
        chunks.for_each(|chunk| chunk.moving = false);
        self.advance(released);
    }

    /// Ends a move whose chunks are stored as `moved.chunks`. What was settled meanwhile becomes
    /// a change of the backlog.
    pub(super) fn finish_move(&mut self, moved: Move, released: &mut Released) {
        self.counts.expired += moved.expired;
        self.next_sequence = moved.next_sequence;
        self.position = moved.position;
        let Some(tail) = &mut self.tail else { return };
        for mut chunk in moved.chunks {
            let settled = tail
                .settled
                .within(chunk.first_sequence, chunk.last_sequence());
            let before = chunk.settled.count();
            chunk.settle(&settled);
            if chunk.settled.count() > before {
                chunk.pending_bytes =
                    segment::pending_bytes(&chunk.segment, chunk.first_sequence, &chunk.settled);
                tail.backlog.insert(chunk.first_sequence, chunk.state());
            }
        }
        let count = tail
            .chunks
            .partition_point(|chunk| chunk.position <= moved.position);
        for chunk in tail.chunks.drain(..count) {
            tail.bytes -= chunk.bytes();
            released.bytes += chunk.bytes();
            released.positions.push(chunk.position);
        }
        tail.settled.remove_below(moved.next_sequence);
        self.advance(released);
    }

    /// Counts events that are given up.
    ///
    /// The checkpoint that is written with the gaps includes them, so this comes before the
    /// write.
    pub(super) fn expire(&mut self, events: u64, bytes: u64) {
        self.counts.expired += events;
        self.counts.pending_bytes = self.counts.pending_bytes.saturating_sub(bytes);
    }

    /// Undoes [`Queue::expire`], because it could not be made durable.
    pub(super) fn unexpire(&mut self, events: u64, bytes: u64) {
        self.counts.expired -= events;
        self.counts.pending_bytes += bytes;
    }

    /// Changed chunks of the backlog that are not durable yet.
    pub(super) fn backlog_changes(&self) -> impl Iterator<Item = &Chunk> {
        self.tail.iter().flat_map(|tail| tail.backlog.values())
    }

    /// Applies changes that are not durable yet to a chunk that was read from the backlog.
    pub(super) fn overlay(changes: &BTreeMap<u64, Chunk>, chunk: &mut Chunk) {
        if let Some(changed) = changes.get(&chunk.first_sequence) {
            chunk.settle(&changed.settled);
            chunk.pending_bytes = changed.pending_bytes;
        }
    }

    /// Copy of the changes of [`Queue::backlog_changes`], by first sequence.
    pub(super) fn backlog_overlay(&self) -> BTreeMap<u64, Chunk> {
        self.tail
            .as_ref()
            .map(|tail| tail.backlog.clone())
            .unwrap_or_default()
    }

    /// Records that deliveries and changes of the backlog are durable.
    pub(super) fn confirm(&mut self, delivered: Delivered, durable: &[Chunk]) {
        self.unwritten.events -= delivered.events;
        self.unwritten.bytes -= delivered.bytes;
        if let Some(tail) = &mut self.tail {
            for chunk in durable {
                if tail.backlog.get(&chunk.first_sequence) == Some(chunk) {
                    tail.backlog.remove(&chunk.first_sequence);
                }
            }
        }
        self.drop_empty_tail();
    }

    /// Releases everything, for an integration that was deleted. Returns the final counts.
    pub(super) fn discard(mut self, released: &mut Released) -> Progress {
        let progress = self.progress().after_delete();
        if let Some(tail) = self.tail.take() {
            released.bytes += tail.bytes;
            let positions = tail.chunks.iter().map(|chunk| chunk.position);
            released.positions.extend(positions);
        }
        progress
    }
}

/// Whether a chunk may continue a run of chunks that become one.
fn may_join(run: &[Chunk], next: &Chunk) -> bool {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return true;
    };
    let count: u32 = run.iter().map(|chunk| chunk.count).sum();
    let bytes: usize = run.iter().map(|chunk| chunk.segment.len()).sum();
    let micros = |chunk: &Chunk| chunk.accepted_at.as_microsecond();
    last.end_sequence() == next.first_sequence
        && (micros(next) - micros(first)).abs() < MAX_JOINED_MICROS
        && segment::fits(count + next.count, bytes + next.segment.len())
}

/// One chunk of a run; None if the run is empty, which it is afterwards.
fn joined(run: &mut Vec<Chunk>) -> Option<Chunk> {
    let mut rest = std::mem::take(run).into_iter();
    let mut first = rest.next()?;
    if rest.len() == 0 {
        return Some(first);
    }
    let mut segment = first.segment.to_vec();
    for chunk in rest {
        segment.extend_from_slice(&chunk.segment);
        first.count += chunk.count;
        first.pending_bytes += chunk.pending_bytes;
        add_traces(&mut first.traces, chunk.traces);
    }
    first.segment = segment.into();
    Some(first)
}

#[cfg(test)]
mod tests;
