//! Keeps the tail of the log within its memory. What lies in packs and has to leave it gets
//! rows of its own, many chunks at a time.

use sea_orm::{DbErr, TransactionTrait};

use super::{PackChanges, PackDraft, Packs, Writer, unpack_up_to};
use crate::store::statements::SMALL_CHUNK;

/// Of the tail's memory, in eighths, what it may take, what it may where it is pressed, and
/// what stays where chunks need rows to leave it: the more go at once, the more of them
/// become one.
const FULL: usize = 8;
const PRESSED: usize = 6;
const HALF: usize = 4;
/// Bytes of packs that get rows in one transaction.
const STEP_BYTES: u64 = 16 << 20;

impl Writer {
    /// Bytes of events after which a commit takes no further request. What is committed is in
    /// memory twice meanwhile; a larger commit pays where it would else make small chunks.
    pub(super) fn batch_bytes(&self) -> usize {
        let most = self.space.batch_bytes();
        let enough = self.tail.sharers().saturating_mul(SMALL_CHUNK);
        enough.clamp(most / 2, most)
    }

    /// What of its memory the tail may take, in eighths, before the oldest have to go.
    fn tail_limit(&self) -> usize {
        match self.tail.is_pressed() {
            true => PRESSED,
            false => FULL,
        }
    }

    /// Lets the oldest chunks leave the tail, where they have rows.
    pub(super) fn make_room_in_the_tail(&self) {
        let too_much = self.tail.overflow(self.tail_limit());
        let goes = match self.tail.is_pressed() {
            true => too_much.and_then(|_| self.tail.overflow(HALF)),
            false => too_much,
        };
        if let Some(up_to) = goes {
            if self.packs.has_up_to(up_to) {
                return;
            }
            self.tail.evict(up_to);
        }
        self.tail.press(false);
    }

    /// Gives rows to what has to leave the tail, and to what is left of packs that have come
    /// to too much.
    pub(super) async fn unpack_what_must(&mut self) -> Result<(), DbErr> {
        let too_much = self.tail.overflow(self.tail_limit());
        let by_memory = too_much.and_then(|_| self.tail.overflow(HALF));
        let too_much = self.packs.beyond(self.most_packed);
        let by_disk = too_much.and_then(|_| self.packs.beyond(self.most_packed / 4 * 3));
        match by_memory.max(by_disk) {
            Some(up_to) => self.unpack(up_to).await,
            None => Ok(()),
        }
    }

    /// Gives rows to the chunks of every pack that begins up to a number, and lets them
    /// leave the tail.
    pub(super) async fn unpack(&mut self, up_to: i64) -> Result<(), DbErr> {
        loop {
            let end = self.packs.step(up_to, STEP_BYTES);
            self.unpack_step(end).await?;
            if end >= up_to {
                self.tail.press(false);
                return Ok(());
            }
        }
    }

    async fn unpack_step(&mut self, up_to: i64) -> Result<(), DbErr> {
        let packs = std::mem::take(&mut self.packs);
        let changes = self.write_rows(&packs, up_to).await;
        self.packs = packs;
        match changes {
            Ok(changes) => {
                self.packs.apply(changes);
                self.packs.emptied(up_to);
                self.tail.evict(up_to);
                Ok(())
            }
            Err(error) => {
                self.tail.keep();
                Err(error)
            }
        }
    }

    async fn write_rows(&self, packs: &Packs, up_to: i64) -> Result<PackChanges, DbErr> {
        let tx = self.db.begin().await?;
        let mut draft = PackDraft::new(packs);
        unpack_up_to(&tx, &mut draft, &self.tail, up_to).await?;
        draft.save(&tx).await?;
        tx.commit().await?;
        Ok(draft.into_changes())
    }

    /// What the disk will need beyond what it has, as far as is known: everything, where so
    /// much lies in packs that giving rows to it must have failed.
    pub(super) fn owed_bytes(&self) -> usize {
        let packed = self.tail.packed_bytes();
        let usual = self.tail.most_bytes().saturating_mul(2);
        match packed > usual.saturating_add(2 * self.space.batch_bytes()) {
            true => usize::MAX,
            false => packed,
        }
    }
}
