//! What a transaction leads to, beside what its draft holds.

use std::ops::Range;

use jiff::Timestamp;
use sea_orm::{DatabaseTransaction, DbErr};

use crate::{
    domain::integration::IntegrationKey,
    store::{
        chunk,
        draft::Draft,
        gathered::Joined,
        packs::NewPack,
        statements::{self, NewChunk, SMALL_CHUNK},
        tail::TailChunk,
    },
};

/// Told once it is durable.
pub(super) struct Committed {
    pub(super) chunks: Vec<NewChunk>,
    /// Which of them lie in packs.
    pub(super) packs: Vec<Range<usize>>,
    pub(super) garbage: Vec<IntegrationKey>,
    pub(super) next_chunk_id: i64,
}

impl Committed {
    /// Numbers the events that wait: they become chunks.
    pub(super) fn number(&mut self, draft: &mut Draft<'_>, now: Timestamp) {
        for Joined { key, count, bytes } in std::mem::take(&mut draft.gathered).join(SMALL_CHUNK) {
            let Some(slot) = draft.slot_mut(key) else {
                continue;
            };
            let progress = &mut slot.snapshot.progress;
            let chunk = TailChunk {
                id: self.next_chunk_id,
                first_sequence: progress.next_sequence,
                count,
                accepted_at: now,
                settled: Vec::new(),
                gaps: Vec::new(),
                bytes: bytes.into(),
            };
            progress.pending_bytes += chunk::event_bytes(&chunk);
            progress.next_sequence += u64::from(count);
            self.next_chunk_id += 1;
            self.chunks.push(NewChunk { key, chunk });
        }
        self.packs = NewPack::among(&self.chunks);
    }

    pub(super) async fn insert(
        &self,
        tx: &DatabaseTransaction,
        now: Timestamp,
    ) -> Result<(), DbErr> {
        let mut alone: Vec<&NewChunk> = Vec::new();
        let mut at = 0;
        for pack in &self.packs {
            alone.extend(&self.chunks[at..pack.start]);
            NewPack::of(&self.chunks[pack.clone()])
                .insert(tx, now)
                .await?;
            at = pack.end;
        }
        alone.extend(&self.chunks[at..]);
        statements::insert_chunks(tx, &alone).await
    }
}
