//! What a process that ended in the middle left in packs gets rows of its own at a start.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait, Value,
};

use super::{
    Member, delete, outline,
    unpack::{Row, insert},
};
use crate::{
    domain::{bitmap, integration::IntegrationKey, segment::Damaged},
    store::{
        chunk,
        rows::{micros, now, statement, time},
        statements::{NewChunk, run},
        tail::TailChunk,
    },
};

/// Bytes of segments beyond which a transaction takes no further pack.
const STEP_BYTES: usize = 8 << 20;
/// The payload of a chunk of a pack that cannot be read: no coding has this name.
const UNREADABLE: [u8; 1] = [0];

/// Gives a row to every chunk that lies in a pack and is not done with. Returns what is
/// damaged where it cannot be told whose chunks a pack has; then nothing has changed.
pub(in crate::store) async fn recover(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let Ok(outlines) = outlines(db).await? else {
        return Ok(Some("the outline of a pack of the log".to_owned()));
    };
    if outlines.is_empty() {
        return Ok(None);
    }
    let integrations = integrations(db).await?;
    let mut rest = outlines.into_iter().peekable();
    while rest.peek().is_some() {
        let tx = db.begin().await?;
        let (mut bytes, mut ids) = (0, Vec::new());
        while bytes < STEP_BYTES
            && let Some((id, members)) = rest.next()
        {
            bytes += members.iter().map(|one| one.bytes as usize).sum::<usize>();
            unpack(&tx, id, &members, &integrations).await?;
            ids.push(id);
        }
        delete(&tx, &ids).await?;
        tx.commit().await?;
    }
    Ok(None)
}

type Outlines = BTreeMap<i64, Vec<Member>>;

async fn outlines(db: &DatabaseConnection) -> Result<Result<Outlines, Damaged>, DbErr> {
    let sql = "SELECT pack_id, outline FROM pack ORDER BY pack_id";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    let mut outlines = BTreeMap::new();
    for row in rows {
        let outline: Vec<u8> = row.try_get("", "outline")?;
        match outline::decode(&outline) {
            Ok(members) => outlines.insert(row.try_get("", "pack_id")?, members),
            Err(damaged) => return Ok(Err(damaged)),
        };
    }
    Ok(Ok(outlines))
}

async fn integrations(db: &DatabaseConnection) -> Result<HashSet<IntegrationKey>, DbErr> {
    let sql = "SELECT integration_key FROM integration";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    rows.iter()
        .map(|row| Ok(IntegrationKey(row.try_get("", "integration_key")?)))
        .collect()
}

async fn unpack(
    tx: &DatabaseTransaction,
    id: i64,
    members: &[Member],
    integrations: &HashSet<IntegrationKey>,
) -> Result<(), DbErr> {
    let sql = "SELECT accepted_at, payload, done FROM pack \
        LEFT JOIN pack_done ON pack_done.pack_id = pack.pack_id WHERE pack.pack_id = $1";
    let Some(row) = tx.query_one_raw(statement(tx, sql, [id.into()])).await? else {
        return Ok(());
    };
    let accepted_at = time(row.try_get("", "accepted_at")?)?;
    let done: Option<Vec<u8>> = row.try_get("", "done")?;
    let done = done.unwrap_or_default();
    let payload: Vec<u8> = row.try_get("", "payload")?;
    let length: usize = members.iter().map(|member| member.bytes as usize).sum();
    let segments = chunk::decompress(&payload).ok().map(Bytes::from);
    let segments = segments.filter(|segments| segments.len() == length);
    let (mut rows, mut begin, mut is_damaged) = (Vec::new(), 0, false);
    for (member, chunk_id) in members.iter().zip(id..) {
        let end = begin + member.bytes as usize;
        let accepted = member.accepted(&done);
        let lives = !bitmap::is_full(&accepted, member.count);
        match &segments {
            _ if !lives || !integrations.contains(&member.key) => {}
            None => {
                is_damaged = true;
                insert_unreadable(tx, (chunk_id, member), &accepted, micros(accepted_at)).await?;
            }
            Some(segments) => rows.push(Row {
                may_join: false,
                accepted,
                new: NewChunk {
                    key: member.key,
                    chunk: TailChunk {
                        id: chunk_id,
                        first_sequence: member.first_sequence,
                        count: member.count,
                        accepted_at,
                        bytes: segments.slice(begin..end),
                        settled: Vec::new(),
                        gaps: Vec::new(),
                    },
                },
            }),
        }
        begin = end;
    }
    if is_damaged {
        keep_damaged(tx, id).await?;
    }
    insert(tx, &rows).await
}

/// A pack that cannot be read back is kept for whoever wants to look at it.
async fn keep_damaged(tx: &DatabaseTransaction, id: i64) -> Result<(), DbErr> {
    tracing::error!(
        pack_id = id,
        "a pack of the log is damaged: what is left of it is in the table damaged_pack (docs/operations.md)"
    );
    let sql = "INSERT INTO damaged_pack (pack_id, accepted_at, set_aside_at, outline, payload) \
        SELECT pack_id, accepted_at, $1, outline, payload FROM pack WHERE pack_id = $2 \
        ON CONFLICT (pack_id) DO NOTHING";
    let values: [Value; 2] = [micros(now()).into(), id.into()];
    run(tx, sql, values).await.map(drop)
}

/// A row for a chunk of which nothing is left: it is found damaged when its turn comes, and
/// a gap takes the place of its events.
async fn insert_unreadable(
    tx: &DatabaseTransaction,
    (chunk_id, member): (i64, &Member),
    accepted: &[u8],
    accepted_at: i64,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO chunk (chunk_id, integration_key, first_sequence, event_count, \
        pending_bytes, accepted_at, accepted, payload) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let pending_bytes = member.bytes.saturating_sub(member.count * 4);
    let values: [Value; 8] = [
        chunk_id.into(),
        member.key.0.into(),
        (member.first_sequence as i64).into(),
        (member.count as i32).into(),
        i64::from(pending_bytes).into(),
        accepted_at.into(),
        accepted.to_vec().into(),
        UNREADABLE.to_vec().into(),
    ];
    run(tx, sql, values).await.map(drop)
}
