//! Packs: small chunks that came together lie in one row, so that a commit of many
//! integrations writes no more rows than one of a single integration. While it lies in a
//! pack, a chunk is read from the tail alone; what has to leave the tail gets a row of its
//! own first, and so does everything at a start and at the end.
//!
//! A pack's chunks have numbers one after the other, of which the first is the pack's.
//! What is done with is a bitmap over the events of all of them.

mod outline;
mod recover;
mod unpack;

use std::collections::BTreeMap;

use sea_orm::{DatabaseTransaction, DbErr, Value};
use serde_json::json;

pub(super) use self::{
    outline::{Member, NewPack},
    recover::recover,
    unpack::{unpack_for, unpack_up_to},
};
use super::{
    many::run_many,
    script::Script,
    settling::FEW,
    statements::{add_deletion, run},
    tail::Tail,
};
use crate::domain::{bitmap, integration::IntegrationKey, map::Map};

/// A pack as the writer knows it.
#[derive(Debug)]
struct Pack {
    members: Vec<Member>,
    /// Bytes of the segments of all its chunks, done with or not; 0 once those that are left
    /// have rows.
    bytes: u64,
    /// Events that are done with: accepted, or moved to a row. Empty where none is.
    done: Vec<u8>,
}

impl Pack {
    fn count(&self) -> u32 {
        self.members.last().map_or(0, Member::end)
    }
}

/// The packs that are not done with.
#[derive(Debug, Default)]
pub(super) struct Packs {
    by_id: BTreeMap<i64, Pack>,
    bytes: u64,
}

impl Packs {
    /// Adds a pack that has become durable.
    pub(super) fn add(&mut self, id: i64, members: Vec<Member>) {
        let bytes = members.iter().map(|member| u64::from(member.bytes)).sum();
        self.bytes += bytes;
        let pack = Pack {
            members,
            bytes,
            done: Vec::new(),
        };
        self.by_id.insert(id, pack);
    }

    /// Whether there is a pack of a number up to this whose chunks may lack rows.
    pub(super) fn has_up_to(&self, id: i64) -> bool {
        self.by_id.range(..=id).any(|(_, pack)| pack.bytes > 0)
    }

    /// Notes that what is left of the packs up to a number waits for its settlement alone.
    pub(super) fn emptied(&mut self, up_to: i64) {
        for (_, pack) in self.by_id.range_mut(..=up_to) {
            self.bytes -= std::mem::take(&mut pack.bytes);
        }
    }

    /// The number of the last chunk of so many packs that begin up to a number, from the
    /// oldest on, as have about `most_bytes` together.
    pub(super) fn step(&self, up_to: i64, most_bytes: u64) -> i64 {
        let mut bytes = 0;
        for (id, pack) in self.by_id.range(..=up_to) {
            bytes += pack.bytes;
            let end = id + pack.members.len() as i64 - 1;
            if bytes >= most_bytes || end >= up_to {
                return end;
            }
        }
        up_to
    }

    /// The number up to which the oldest packs would have to go for the others to be no more
    /// than so many bytes. None where they are not.
    pub(super) fn beyond(&self, most_bytes: u64) -> Option<i64> {
        let mut excess = self
            .bytes
            .checked_sub(most_bytes)
            .filter(|excess| *excess > 0)?;
        for (id, pack) in &self.by_id {
            excess = excess.saturating_sub(pack.bytes);
            if excess == 0 {
                return Some(*id);
            }
        }
        None
    }

    /// The pack of a chunk, and which of its chunks that is.
    fn locate(&self, chunk_id: i64) -> Option<(i64, &Pack, &Member)> {
        let (id, pack) = self.by_id.range(..=chunk_id).next_back()?;
        let member = pack.members.get(usize::try_from(chunk_id - id).ok()?)?;
        Some((*id, pack, member))
    }

    /// Takes in what a transaction changed, now that it is durable.
    pub(super) fn apply(&mut self, changes: PackChanges) {
        for (id, done) in changes.done {
            let Some(pack) = self.by_id.get_mut(&id) else {
                continue;
            };
            if bitmap::is_full(&done, pack.count()) {
                self.bytes -= pack.bytes;
                self.by_id.remove(&id);
            } else {
                pack.done = done;
            }
        }
    }
}

/// What a transaction does to packs.
#[derive(Debug, Default)]
pub(super) struct PackChanges {
    /// What is done with of each, from now on.
    done: Map<i64, Vec<u8>>,
    /// Chunks that have rows, and stay in the tail.
    unpacked: Vec<(IntegrationKey, i64)>,
}

impl PackChanges {
    /// Lets the tail know what has rows now.
    pub(super) fn tell(&self, tail: &Tail) {
        for (key, chunk_id) in &self.unpacked {
            tail.unpacked(*key, *chunk_id);
        }
    }
}

/// The packs as a transaction sees them.
pub(super) struct PackDraft<'a> {
    packs: &'a Packs,
    changes: PackChanges,
}

impl<'a> PackDraft<'a> {
    pub(super) fn new(packs: &'a Packs) -> Self {
        Self {
            packs,
            changes: PackChanges::default(),
        }
    }

    pub(super) fn into_changes(self) -> PackChanges {
        self.changes
    }

    /// Which events of a chunk are done with; None where it does not lie in a pack.
    fn accepted(&self, chunk_id: i64) -> Option<Vec<u8>> {
        let (id, pack, member) = self.packs.locate(chunk_id)?;
        let done = self.changes.done.get(&id).unwrap_or(&pack.done);
        (!member.is_done(done)).then(|| member.accepted(done))
    }

    /// Notes that events of a chunk are done with; all of them without a bitmap. False where
    /// it does not lie in a pack.
    pub(super) fn settle(&mut self, chunk_id: i64, settled: Option<&[u8]>) -> bool {
        let Some((id, pack, member)) = self.packs.locate(chunk_id) else {
            return false;
        };
        if member.is_done(self.changes.done.get(&id).unwrap_or(&pack.done)) {
            return false;
        }
        let done = self.changes.done.entry(id);
        let done = done.or_insert_with(|| pack.done.clone());
        for index in 0..member.count {
            if settled.is_none_or(|settled| bitmap::get(settled, index as usize)) {
                bitmap::set(done, (member.start + index) as usize);
            }
        }
        true
    }

    /// Notes that a chunk has a row from now on, and stays in the tail.
    fn unpack(&mut self, key: IntegrationKey, chunk_id: i64) {
        self.settle(chunk_id, None);
        self.changes.unpacked.push((key, chunk_id));
    }

    /// Notes that what is of an integration which is deleted is done with.
    pub(super) fn drop_all_of(&mut self, key: IntegrationKey) {
        let packs = self.packs;
        for (id, pack) in &packs.by_id {
            for (member, chunk_id) in pack.members.iter().zip(*id..) {
                if member.key == key {
                    self.settle(chunk_id, None);
                }
            }
        }
    }

    /// Whether a script may write it.
    pub(super) fn is_little(&self) -> bool {
        self.changes.done.len() <= FEW
    }

    /// The packs that are done with, and of the others what is.
    fn finished_and_partial(&self) -> (Vec<i64>, Vec<(i64, &Vec<u8>)>) {
        let (mut finished, mut partial) = (Vec::new(), Vec::new());
        for (id, done) in &self.changes.done {
            match self.packs.by_id.get(id) {
                Some(pack) if bitmap::is_full(done, pack.count()) => finished.push(*id),
                _ => partial.push((*id, done)),
            }
        }
        (finished, partial)
    }

    /// Writes what has changed.
    pub(super) async fn save(&self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        let (finished, partial) = self.finished_and_partial();
        let sql = |rows: &str| save_done_sql(&format!("VALUES {rows}"));
        let values = |(id, done): &(i64, &Vec<u8>), values: &mut Vec<Value>| {
            values.extend([(*id).into(), done.to_vec().into()] as [Value; 2]);
        };
        run_many(tx, &partial, 2, sql, values).await?;
        delete(tx, &finished).await
    }

    /// [`PackDraft::save`], by a script.
    pub(super) fn add_to(&self, script: &mut Script) {
        let (finished, partial) = self.finished_and_partial();
        if !partial.is_empty() {
            let row = |(id, done): &(i64, &Vec<u8>)| json!([id, hex::encode(done)]);
            let rows: Vec<_> = partial.iter().map(row).collect();
            // An upsert's SELECT needs a WHERE: <https://www.sqlite.org/lang_upsert.html>.
            let sql =
                save_done_sql("SELECT value->>0, unhex(value->>1) FROM json_each(?) WHERE true");
            script.add(&sql).bind(json!(rows).to_string());
        }
        if !finished.is_empty() {
            for table in TABLES {
                add_deletion(script, table, "pack_id", &finished);
            }
        }
    }
}

/// What holds a pack, and what is done with of it.
const TABLES: [&str; 2] = ["pack", "pack_done"];

fn save_done_sql(rows: &str) -> String {
    format!(
        "INSERT INTO pack_done (pack_id, done) {rows} \
        ON CONFLICT (pack_id) DO UPDATE SET done = excluded.done"
    )
}

/// Deletes packs that are done with.
async fn delete(tx: &DatabaseTransaction, ids: &[i64]) -> Result<(), DbErr> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids = json!(ids).to_string();
    for table in TABLES {
        let sql = format!("DELETE FROM {table} WHERE pack_id IN (SELECT value FROM json_each($1))");
        run(tx, &sql, [ids.clone().into()]).await?;
    }
    Ok(())
}
