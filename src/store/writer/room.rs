//! Keeps the tail of the log within its memory. What lies in packs and has to leave it gets
//! rows of its own, many chunks at a time.

use sea_orm::{DbErr, TransactionTrait};

use super::{PackChanges, PackDraft, Packs, Writer, unpack_up_to};

/// Of the tail's memory, in eighths, what it may take, and what stays where chunks need rows
/// to leave it: the more go at once, the more of them become one.
const FULL: usize = 8;
const HALF: usize = 4;

impl Writer {
    /// Lets the oldest chunks leave the tail, where they have rows.
    pub(super) fn make_room_in_the_tail(&self) {
        if let Some(up_to) = self.tail.overflow(FULL)
            && !self.packs.has_up_to(up_to)
        {
            self.tail.evict(up_to);
        }
    }

    /// Gives rows to what has to leave the tail, and to what is left of packs that have come
    /// to too much.
    pub(super) async fn unpack_what_must(&mut self) -> Result<(), DbErr> {
        let full = self.tail.overflow(FULL);
        let by_memory = full.and_then(|_| self.tail.overflow(HALF));
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
        let up_to = self.packs.end_of(up_to);
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
        let known = (&*self.tail, &*self.catalog);
        unpack_up_to(&tx, &mut draft, known, up_to).await?;
        draft.save(&tx).await?;
        tx.commit().await?;
        Ok(draft.into_changes())
    }
}
