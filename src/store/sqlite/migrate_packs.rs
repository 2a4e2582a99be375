//! Moves the packs of an earlier version into the backlog. A pack held small chunks of several
//! integrations in one row: an outline that names them, and their segments one after another.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait, Value,
};

use crate::{
    domain::{bitmap, segment, segment::Damaged, sequences::Sequences},
    store::{
        codec,
        sql::{rows::unreadable, statement},
    },
};

/// Uncompressed bytes from which a transaction takes no further pack.
const STEP_BYTES: usize = 8 << 20;
/// Payload of a chunk of a damaged pack. No coding has this name, so that the chunk is found
/// damaged when it is read, and becomes a gap.
const UNREADABLE: [u8; 1] = [0];
/// First byte of an outline.
const VERSION: u8 = 1;
const MEMBER_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 4;
/// Most bytes of the segments of a pack.
const MAX_PACK_BYTES: usize = 16 << 20;

/// Moves what is left of all packs, then removes their tables. Returns the damage if an outline
/// cannot be read.
pub(super) async fn migrate_packs(db: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE name = 'pack'";
    if db.query_one_raw(statement(db, sql, [])).await?.is_none() {
        return Ok(None);
    }
    // All outlines are read before anything changes.
    let sql = "SELECT pack_id, outline FROM pack ORDER BY pack_id";
    let mut packs = Vec::new();
    for row in db.query_all_raw(statement(db, sql, [])).await? {
        let outline: Vec<u8> = row.try_get("", "outline")?;
        let Ok(members) = decode(&outline) else {
            return Ok(Some("the outline of a pack of the log".to_owned()));
        };
        packs.push((row.try_get::<i64>("", "pack_id")?, members));
    }
    let mut packs = packs.into_iter().peekable();
    while packs.peek().is_some() {
        migrate_step(db, &mut packs).await?;
    }
    let tx = db.begin().await?;
    tx.execute_unprepared("DROP TABLE pack; DROP TABLE pack_done")
        .await?;
    tx.commit().await?;
    Ok(None)
}

/// Moves some packs in one transaction.
async fn migrate_step(
    db: &DatabaseConnection,
    packs: &mut impl Iterator<Item = (i64, Vec<Member>)>,
) -> Result<(), DbErr> {
    let tx = db.begin().await?;
    let mut bytes = 0;
    while bytes < STEP_BYTES
        && let Some((id, members)) = packs.next()
    {
        bytes += length(&members);
        migrate(&tx, id, &members).await?;
        for table in ["pack", "pack_done"] {
            let sql = format!("DELETE FROM {table} WHERE pack_id = $1");
            tx.execute_raw(statement(&tx, &sql, [id.into()])).await?;
        }
    }
    tx.commit().await
}

async fn migrate(tx: &DatabaseTransaction, id: i64, members: &[Member]) -> Result<(), DbErr> {
    let sql = "SELECT accepted_at, payload, done FROM pack \
        LEFT JOIN pack_done ON pack_done.pack_id = pack.pack_id WHERE pack.pack_id = $1";
    let row = tx.query_one_raw(statement(tx, sql, [id.into()])).await?;
    let row = row.ok_or_else(|| unreadable("a pack"))?;
    let accepted_at: i64 = row.try_get("", "accepted_at")?;
    let done: Vec<u8> = row.try_get::<Option<_>>("", "done")?.unwrap_or_default();
    let payload: Vec<u8> = row.try_get("", "payload")?;
    let length = length(members);
    let segments = codec::decompress_up_to(&payload, MAX_PACK_BYTES).ok();
    let segments = segments.filter(|segments| segments.len() == length);
    let is_settled = |member: &Member| bitmap::is_full(&member.settled(&done), member.count);
    if segments.is_none() && !members.iter().all(is_settled) {
        set_aside(tx, id).await?;
    }
    let mut at = 0;
    for (member, chunk_id) in members.iter().zip(id..) {
        let range = at..at + member.bytes as usize;
        at = range.end;
        raise_next_sequence(tx, member).await?;
        let settled = member.settled(&done);
        if bitmap::is_full(&settled, member.count) {
            continue;
        }
        let (payload, pending_bytes) = match &segments {
            Some(segments) => {
                let segment = &segments[range];
                let settled = Sequences::from_bitmap(member.first_sequence, &settled);
                let pending = segment::pending_bytes(segment, member.first_sequence, &settled);
                (codec::compress(std::iter::once(segment)), pending)
            }
            None => {
                let bytes = member.bytes.saturating_sub(member.count * 4);
                (UNREADABLE.to_vec(), u64::from(bytes))
            }
        };
        insert(
            tx,
            member,
            [
                chunk_id.into(),
                (member.first_sequence as i64).into(),
                (member.count as i32).into(),
                (pending_bytes as i64).into(),
                accepted_at.into(),
                (!settled.is_empty()).then_some(settled).into(),
                payload.into(),
                member.integration_key.into(),
            ],
            pending_bytes,
        )
        .await?;
    }
    Ok(())
}

/// Sequences follow all events of the packs, settled ones too.
async fn raise_next_sequence(tx: &DatabaseTransaction, member: &Member) -> Result<(), DbErr> {
    let sql = "UPDATE progress SET next_sequence = MAX(next_sequence, $1), \
        accepted = MAX(next_sequence, $1) - 1 WHERE integration_key = $2";
    let end = member.first_sequence + u64::from(member.count);
    let values: [Value; 2] = [(end as i64).into(), member.integration_key.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(drop)
}

/// Inserts a chunk, unless its integration was deleted.
async fn insert(
    tx: &DatabaseTransaction,
    member: &Member,
    row: [Value; 8],
    pending_bytes: u64,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO backlog (chunk_id, integration_key, first_sequence, event_count, \
        pending_bytes, accepted_at, accepted, payload) \
        SELECT $1, integration_key, $2, $3, $4, $5, $6, $7 FROM integration \
        WHERE integration_key = $8";
    let inserted = tx.execute_raw(statement(tx, sql, row)).await?;
    if inserted.rows_affected() == 0 {
        return Ok(());
    }
    let sql = "UPDATE progress SET pending_bytes = pending_bytes + $1 WHERE integration_key = $2";
    let values: [Value; 2] = [(pending_bytes as i64).into(), member.integration_key.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(drop)
}

/// Copies a damaged pack for an operator.
async fn set_aside(tx: &DatabaseTransaction, id: i64) -> Result<(), DbErr> {
    tracing::error!(
        pack_id = id,
        "a pack of the log is damaged: what is left of it is in the table damaged_pack (docs/operations.md)"
    );
    let sql = "INSERT INTO damaged_pack (pack_id, accepted_at, set_aside_at, outline, payload) \
        SELECT pack_id, accepted_at, $1, outline, payload FROM pack WHERE pack_id = $2 \
        ON CONFLICT (pack_id) DO NOTHING";
    let now = jiff::Timestamp::now().as_microsecond();
    let values: [Value; 2] = [now.into(), id.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(drop)
}

/// Chunk of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    integration_key: i64,
    first_sequence: u64,
    count: u32,
    /// Bytes of its segment.
    bytes: u32,
    /// Events of the pack before its own.
    start: u32,
}

impl Member {
    /// Bitmap of its settled events, from that of the pack.
    fn settled(&self, done: &[u8]) -> Vec<u8> {
        let mut settled = Vec::new();
        for index in 0..self.count {
            if bitmap::get(done, (self.start + index) as usize) {
                bitmap::set(&mut settled, index as usize);
            }
        }
        settled
    }
}

fn length(members: &[Member]) -> usize {
    members.iter().map(|member| member.bytes as usize).sum()
}

/// Decodes an outline: a version, the CRC-32 of the rest, and the members.
fn decode(outline: &[u8]) -> Result<Vec<Member>, Damaged> {
    let (version, rest) = outline.split_first().ok_or(Damaged)?;
    let (sum, listed) = rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(Damaged)?;
    let is_sound = *version == VERSION
        && crc32fast::hash(listed).to_le_bytes() == *sum
        && listed.len().is_multiple_of(MEMBER_BYTES);
    if !is_sound {
        return Err(Damaged);
    }
    let mut start: u32 = 0;
    let member = |listed: &[u8]| {
        let (key, rest) = listed.split_first_chunk().ok_or(Damaged)?;
        let (first_sequence, rest) = rest.split_first_chunk().ok_or(Damaged)?;
        let (count, rest) = rest.split_first_chunk().ok_or(Damaged)?;
        let (bytes, _) = rest.split_first_chunk().ok_or(Damaged)?;
        let member = Member {
            integration_key: i64::from_le_bytes(*key),
            first_sequence: u64::from_le_bytes(*first_sequence),
            count: u32::from_le_bytes(*count),
            bytes: u32::from_le_bytes(*bytes),
            start,
        };
        start = start.checked_add(member.count).ok_or(Damaged)?;
        Ok(member)
    };
    listed.chunks(MEMBER_BYTES).map(member).collect()
}

#[cfg(test)]
mod tests;
