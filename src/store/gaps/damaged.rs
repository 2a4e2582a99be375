//! A chunk that cannot be read back is set aside, for whoever wants to look at it, and a
//! gap takes the place of its events.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};

use super::{COLUMNS, GiveUp, GivenUp, row, save};
use crate::{
    domain::{event::GapReason, gap::give_up, integration::Integration},
    store::{
        chunk,
        rows::{micros, now, statement},
        statements::run,
    },
};

/// Also tells how many bytes the events had. A chunk that is sound after all stays.
pub(super) async fn set_aside(
    tx: &DatabaseTransaction,
    ask: &GiveUp,
    chunk_id: i64,
    integration: &Integration,
) -> Result<(GivenUp, u64), DbErr> {
    let sql = format!(
        "SELECT {COLUMNS}, payload FROM chunk WHERE chunk_id = $1 AND integration_key = $2"
    );
    let values: [Value; 2] = [chunk_id.into(), ask.key.0.into()];
    let Some(found) = tx.query_one_raw(statement(tx, &sql, values)).await? else {
        return Ok((GivenUp::default(), 0));
    };
    let payload: Vec<u8> = found.try_get("", "payload")?;
    let mut row = row(&found)?;
    if !chunk::is_damaged(&payload, &row.state) {
        return Ok((GivenUp::default(), 0));
    }
    copy(tx, chunk_id, integration).await?;
    let flying = ask.in_flight.iter().find(|one| one.chunk_id == chunk_id);
    let chunks = std::slice::from_mut(&mut row.state);
    let expired = give_up(chunks, |_, index| {
        let flies = flying.is_some_and(|one| one.has(index));
        (!flies).then_some(GapReason::LogDamaged)
    });
    let kept = flying.map_or(0, |one| one.bytes.min(row.pending_bytes));
    let freed = row.pending_bytes - kept;
    row.pending_bytes = kept;
    save(tx, &row).await?;
    let given_up = GivenUp {
        chunks: vec![row.state],
        expired,
        reason: Some(GapReason::LogDamaged),
        next: None,
    };
    Ok((given_up, freed))
}

async fn copy(
    tx: &DatabaseTransaction,
    chunk_id: i64,
    integration: &Integration,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO damaged_chunk (chunk_id, organization_id, integration_id, \
        first_sequence, event_count, accepted_at, set_aside_at, accepted, payload) \
        SELECT chunk_id, $1, $2, first_sequence, event_count, accepted_at, $3, accepted, payload \
        FROM chunk WHERE chunk_id = $4 ON CONFLICT (chunk_id) DO NOTHING";
    let values: [Value; 4] = [
        integration.organization_id.as_str().into(),
        integration.integration_id.to_string().into(),
        micros(now()).into(),
        chunk_id.into(),
    ];
    run(tx, sql, values).await.map(drop)
}
