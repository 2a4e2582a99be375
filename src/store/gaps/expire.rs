//! Retention: the oldest chunks of a log expire, by what their rows say of them.

use std::collections::HashMap;

use jiff::Timestamp;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};

use super::{COLUMNS, GiveUp, GivenUp, Row, row, save};
use crate::{
    domain::{
        event::{GapReason, Time},
        gap::{ChunkState, Marked, give_up},
    },
    store::{
        rows::{micros, statement},
        statements::delete_chunks,
    },
};

/// Bytes of events beyond which a step takes no further chunk: others wait for the
/// transaction, which has to read all that it deletes.
const STEP_BYTES: u64 = 16 << 20;

/// What is kept of a log.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Where to begin; what is before has been looked at.
    pub from: u64,
    /// Chunks that were accepted up to this moment are not kept.
    pub accepted_before: Timestamp,
    /// Nothing goes by size where the log has no more than this.
    pub most_bytes: u64,
    /// Otherwise the newest chunks of so many bytes are kept.
    pub bytes: u64,
    /// Chunks to look at, at the most; at least 2.
    pub chunks: usize,
}

impl Keep {
    /// Chunks that a step reads at the most: one more, for a gap that waits right after what
    /// goes.
    pub(in crate::store) fn most_looked_at(&self) -> usize {
        self.chunks.max(2) + 1
    }
}

/// One step of it. Also tells how many bytes the events had. The next step begins with
/// the last chunk of this one, so that it finds the gap which this one leaves there.
pub(super) async fn expire(
    tx: &DatabaseTransaction,
    ask: &GiveUp,
    keep: &Keep,
    pending_bytes: u64,
) -> Result<(GivenUp, u64), DbErr> {
    let mut rows = select(tx, ask, keep, keep.most_looked_at()).await?;
    let most = keep.most_looked_at() - 1;
    let most = most.min(within_a_step(&rows).max(2));
    rows.truncate(most + 1);
    let in_flight: HashMap<i64, &Marked> = ask
        .in_flight
        .iter()
        .map(|marked| (marked.chunk_id, marked))
        .collect();
    let kept_of = |row: &Row| match in_flight.get(&row.state.id) {
        Some(marked) => marked.bytes.min(row.pending_bytes),
        None => 0,
    };
    let old = Time::from_micros(micros(keep.accepted_before));
    // What is before an old one is older, whatever the clock said then.
    let mut aged = rows.iter().take(most);
    let aged = aged.rposition(|row| row.state.accepted_at <= old);
    let aged = aged.map_or(0, |last| last + 1);
    let is_too_much = pending_bytes > keep.most_bytes;
    let mut going = 0;
    let mut freed = 0;
    while going < rows.len().min(most)
        && (going < aged || (is_too_much && pending_bytes.saturating_sub(freed) > keep.bytes))
    {
        let row = &mut rows[going];
        let kept = kept_of(row);
        freed += row.pending_bytes - kept;
        row.pending_bytes = kept;
        going += 1;
    }
    let begin = |at: usize| {
        rows.get(at)
            .map_or(u64::MAX, |row| row.state.first_sequence)
    };
    let (young, stays) = (begin(aged), begin(going));
    let next = (going == most && rows.len() > most).then(|| begin(most - 1));
    if going == 0 {
        return Ok((GivenUp::default(), 0));
    }
    let mut states: Vec<ChunkState> = rows.iter().map(|row| row.state.clone()).collect();
    let expired = give_up(&mut states, |chunk, index| {
        let flying = in_flight.get(&chunk.id);
        if flying.is_some_and(|marked| marked.has(index)) {
            return None;
        }
        match chunk.first_sequence {
            first if first < young => Some(GapReason::RetentionAge),
            first if first < stays || chunk.is_gap(index) => Some(GapReason::RetentionSize),
            _ => None,
        }
    });
    let reason = match (aged, going - aged) {
        (_, 0) => GapReason::RetentionAge,
        (0, _) => GapReason::RetentionSize,
        _ => GapReason::Several,
    };
    let given_up = GivenUp {
        chunks: write(tx, rows, states).await?,
        expired,
        reason: Some(reason),
        next,
    };
    Ok((given_up, freed))
}

/// Of how many chunks the events are not too many bytes for one transaction.
fn within_a_step(rows: &[Row]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take_while(|row| {
        let fits = bytes < STEP_BYTES;
        bytes += row.pending_bytes;
        fits
    });
    fits.count()
}

async fn select(
    tx: &DatabaseTransaction,
    ask: &GiveUp,
    keep: &Keep,
    limit: usize,
) -> Result<Vec<Row>, DbErr> {
    let sql = format!(
        "SELECT {COLUMNS} FROM chunk WHERE integration_key = $1 AND first_sequence >= $2 \
        ORDER BY first_sequence LIMIT $3"
    );
    let values: [Value; 3] = [
        ask.key.0.into(),
        (keep.from as i64).into(),
        (limit as i64).into(),
    ];
    let found = tx.query_all_raw(statement(tx, &sql, values)).await?;
    found.iter().map(row).collect()
}

/// Writes the chunks that are not as they were, and returns them.
async fn write(
    tx: &DatabaseTransaction,
    rows: Vec<Row>,
    states: Vec<ChunkState>,
) -> Result<Vec<ChunkState>, DbErr> {
    let (mut changed, mut finished) = (Vec::new(), Vec::new());
    for (row, state) in rows.into_iter().zip(states) {
        if row.state == state {
            continue;
        }
        match state.is_finished() {
            true => finished.push(state.id),
            false => {
                let row = Row {
                    state: state.clone(),
                    ..row
                };
                save(tx, &row).await?;
            }
        }
        changed.push(state);
    }
    delete_chunks(tx, &finished).await?;
    Ok(changed)
}
