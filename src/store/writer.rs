//! The one task that writes. What arrives together shares a transaction and a sync.

mod closing;
mod committed;
mod room;
mod slow;

use std::{
    fs::File,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sea_orm::{DatabaseConnection, DbErr, TransactionTrait};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use self::{committed::Committed, slow::Slow};
use super::{
    answers::{Answers, AppendAnswer},
    batch::Batch,
    catalog::{Catalog, Slot},
    changes,
    command::{Command, Unsettled},
    connect,
    draft::{Draft, Finished},
    express::{Express, Parcel},
    failure::{self, Failure},
    packs::{NewPack, PackChanges, PackDraft, Packs, unpack_up_to},
    rows,
    secret::Sealer,
    settlements::Fetch,
    settling::{FEW, settle},
    space::Space,
    statements::{self, NewChunk},
    tail::Tail,
    work::WorkFeed,
};
use crate::domain::integration::IntegrationKey;

/// Unsettled attempts beyond which they are written before anything else is taken.
const MOST_UNSETTLED: usize = 4096;
/// Commits that were shared one after the other, after which it is worth waiting for who
/// shares the next: one or two are so by chance.
const COMPANY: usize = 3;
/// Between attempts to write after a failure.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    pub(super) db: DatabaseConnection,
    pub(super) express: Express,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) settlements: Fetch,
    pub(super) catalog: Arc<Catalog>,
    pub(super) tail: Arc<Tail>,
    pub(super) work: Arc<WorkFeed>,
    pub(super) sealer: Arc<Sealer>,
    pub(super) commit_linger: Duration,
    /// Commits up to the last that were shared, one after the other.
    pub(super) shared: usize,
    pub(super) settle_linger: Duration,
    pub(super) failing_after: Duration,
    pub(super) revision: u64,
    pub(super) next_chunk_id: i64,
    pub(super) packs: Packs,
    /// What packs may have held at the most, as they were appended, in bytes.
    pub(super) most_packed: u64,
    /// Deleted integrations whose chunks are still there.
    pub(super) garbage: Vec<IntegrationKey>,
    pub(super) space: Space,
    /// Why it ended, where it cannot go on.
    pub(super) failure: Arc<OnceLock<Failure>>,
    /// Keeps other processes away from the directory.
    pub(super) lock: File,
}

impl Writer {
    pub(super) async fn run(mut self) {
        let mut unsettled = Unsettled::default();
        let mut due: Option<Instant> = None;
        let mut slow = Slow::default();
        loop {
            let mut batch = Batch::new(self.batch_bytes());
            self.fill(&mut batch, &mut unsettled, due).await;
            if !batch.commands.is_empty() {
                self.shared = match batch.commands.len() {
                    1 => 0,
                    _ => self.shared + 1,
                };
            }
            self.space.owe(self.owed_bytes());
            self.space.look_if_due(&self.db).await;
            self.space.admit(&self.db, &mut batch.commands).await;
            let settles = self.settles(&batch, &mut unsettled, due);
            if !batch.commands.is_empty() || settles {
                let mut nothing = Unsettled::default();
                let settled = if settles {
                    &mut unsettled
                } else {
                    &mut nothing
                };
                let commands = std::mem::take(&mut batch.commands);
                let written = slow.watch(async {
                    match self.write(commands, settled).await {
                        Ok(()) => self.unpack_what_must().await,
                        failed => failed,
                    }
                });
                let written = written.await;
                due = match written {
                    Ok(()) if !settles => due,
                    Ok(()) if self.garbage.is_empty() => None,
                    Ok(()) => Some(Instant::now() + self.settle_linger),
                    Err(error) => match self.failed(&error).await {
                        Some(failure) => {
                            self.failure.get_or_init(|| failure);
                            return;
                        }
                        None => Some(Instant::now() + RETRY),
                    },
                };
            }
            if !unsettled.is_empty() && due.is_none() {
                due = Some(Instant::now() + self.settle_linger);
            }
            if let Some(mut close) = batch.close {
                if let Some(failure) = self
                    .settle_at_last(&mut unsettled, &mut close, &mut slow)
                    .await
                {
                    self.failure.get_or_init(|| failure);
                    return;
                }
                self.close(close).await;
                return;
            }
        }
    }

    /// What a failed transaction means; nothing of it was kept.
    async fn failed(&mut self, error: &DbErr) -> Option<Failure> {
        tracing::error!(%error, "cannot write to the log");
        // It may still hold the lock on the database.
        self.close_express().await;
        connect::renew(&self.db).await;
        if failure::is_full(error) {
            self.space.ran_out();
        }
        failure::of(error)
    }

    async fn close_express(&mut self) {
        if let Err(error) = self.express.close().await {
            tracing::warn!(%error, "the connection to the database did not close cleanly");
        }
    }

    /// Waits for a command, for a settlement that cannot wait or for the time to settle; then
    /// for what comes with it.
    async fn fill(&mut self, batch: &mut Batch, unsettled: &mut Unsettled, due: Option<Instant>) {
        let look = self.space.next_look();
        let wake = due.map_or(look, |due| due.min(look));
        if due.is_some() && unsettled.count >= MOST_UNSETTLED {
            sleep_until(wake).await;
            return;
        }
        self.fetch(unsettled, due.is_some());
        let has_work = unsettled.is_news || (due.is_none() && !unsettled.is_empty());
        if !has_work {
            tokio::select! {
                biased;
                first = self.commands.recv() => batch.add(first),
                () = self.settlements.called() => {}
                () = sleep_until(wake) => {}
            }
        }
        // However often a status changes, commands are taken along.
        self.take_what_waits(batch);
        let lingers = self.shared >= COMPANY && !self.commit_linger.is_zero();
        if lingers && !batch.commands.is_empty() && batch.has_room() && !unsettled.is_news {
            // Who comes meanwhile wakes nobody.
            sleep(self.commit_linger).await;
            self.take_what_waits(batch);
        }
        // What was attempted before a change is handed in before it.
        self.fetch(unsettled, true);
    }

    fn take_what_waits(&mut self, batch: &mut Batch) {
        while batch.has_room() {
            match self.commands.try_recv() {
                Ok(command) => batch.add(Some(command)),
                Err(mpsc::error::TryRecvError::Disconnected) => batch.add(None),
                Err(mpsc::error::TryRecvError::Empty) => return,
            }
        }
    }

    /// Whether what is not settled is to be written with this batch.
    fn settles(&self, batch: &Batch, unsettled: &mut Unsettled, due: Option<Instant>) -> bool {
        let now = Instant::now();
        let is_news = std::mem::take(&mut unsettled.is_news);
        // What is little rides along with appends rather than wait for a sync of its own.
        let rides =
            !batch.commands.is_empty() && !unsettled.is_empty() && unsettled.by_key.len() <= FEW;
        let early = if rides {
            self.settle_linger / 2
        } else {
            Duration::ZERO
        };
        due.is_some_and(|due| due <= now + early)
            || batch.close.is_some()
            || unsettled.count >= MOST_UNSETTLED
            // What was attempted before a change was attempted under what was before it.
            || batch.commands.iter().any(Command::is_change)
            || is_news
    }

    /// Fetches what attempts achieved, and looks whether that changes a status, so that it is
    /// told at once.
    fn fetch(&mut self, unsettled: &mut Unsettled, looks_soon: bool) {
        self.settlements.fetch(unsettled, looks_soon);
        let unseen = std::mem::take(&mut unsettled.unseen);
        unsettled.is_news |= unseen.into_iter().any(|key| {
            let of_key = unsettled.by_key.get(&key);
            let last = of_key.and_then(|one| one.observed.last());
            last.is_some_and(|last| {
                let changes = |slot: &Slot| slot.would_change(self.failing_after, last);
                self.catalog.look(key, changes) == Some(true)
            })
        });
    }

    async fn write(
        &mut self,
        commands: Vec<Command>,
        unsettled: &mut Unsettled,
    ) -> Result<(), DbErr> {
        let catalog = Arc::clone(&self.catalog);
        let packs = std::mem::take(&mut self.packs);
        let mut draft = Draft::new(&catalog, &packs, self.revision, self.failing_after);
        draft.expect(commands.len());
        let mut answers = Answers::default();
        let committed = self
            .transact(&mut draft, &mut answers, commands, unsettled)
            .await;
        let finished = draft.finish();
        self.packs = packs;
        match committed {
            Ok(committed) => {
                let published = self.publish(finished, committed, answers).await;
                // Whoever waited for it finds it in the catalog.
                self.work.tell_settled(unsettled.settled());
                published
            }
            Err(error) => {
                answers.fail(&error);
                Err(error)
            }
        }
    }

    async fn transact(
        &mut self,
        draft: &mut Draft<'_>,
        answers: &mut Answers,
        commands: Vec<Command>,
        unsettled: &Unsettled,
    ) -> Result<Committed, DbErr> {
        let now = rows::now();
        let mut committed = Committed {
            chunks: Vec::new(),
            packs: Vec::new(),
            garbage: self.garbage.clone(),
            next_chunk_id: self.next_chunk_id,
        };
        // Answers are registered before anything can fail, so that each is given.
        let (cold, hot): (Vec<_>, Vec<_>) = commands
            .into_iter()
            .partition(|command| !matches!(command, Command::Append { .. }));
        for command in hot {
            if let Command::Append {
                segments,
                held,
                reply,
            } = command
            {
                answers.appends.push(AppendAnswer {
                    accepted: draft.append(segments),
                    reply,
                    _held: held,
                });
            }
        }
        let settled = settle(draft, unsettled);
        if cold.is_empty() && committed.garbage.is_empty() {
            committed.number(draft, now);
            let parcel = Parcel {
                chunks: &committed.chunks,
                packs: &committed.packs,
                settled: &settled,
                settled_packs: &draft.packs,
            };
            if parcel.is_little() {
                self.express.write(&self.db, &parcel, now).await?;
                return Ok(committed);
            }
        }
        let tx = match self.db.begin().await {
            Ok(tx) => tx,
            Err(error) => {
                answers.refuse(cold, &error);
                return Err(error);
            }
        };
        if let Err(error) = settled.save(&tx, draft).await {
            answers.refuse(cold, &error);
            return Err(error);
        }
        let mut cold = cold.into_iter();
        while let Some(command) = cold.next() {
            let with = (&*self.sealer, &*self.tail);
            if let Err(error) = changes::make(&tx, draft, answers, with, command, now).await {
                answers.refuse(cold.collect(), &error);
                return Err(error);
            }
        }
        committed.garbage.extend(answers.deleted());
        committed.number(draft, now);
        committed.insert(&tx, now).await?;
        draft.packs.save(&tx).await?;
        statements::collect_garbage(&tx, &mut committed.garbage).await?;
        tx.commit().await?;
        Ok(committed)
    }

    /// Tells the world what has become durable.
    async fn publish(
        &mut self,
        finished: Finished,
        committed: Committed,
        answers: Answers,
    ) -> Result<(), DbErr> {
        self.revision = finished.revision;
        self.next_chunk_id = committed.next_chunk_id;
        self.garbage = committed.garbage;
        let mut appended = Vec::with_capacity(committed.chunks.len());
        // The tail comes first: who has seen in the catalog how far the log goes must
        // find it there, or would take a tail that lacks the end for one without work.
        for pack in &committed.packs {
            let pack = NewPack::of(&committed.chunks[pack.clone()]);
            self.packs.add(pack.id(), pack.members());
        }
        let mut packs = committed.packs.iter().peekable();
        for (at, NewChunk { key, chunk }) in committed.chunks.into_iter().enumerate() {
            appended.push((key, chunk.first_sequence));
            packs.next_if(|pack| pack.end <= at);
            let packed = packs.peek().is_some_and(|pack| pack.contains(&at));
            self.tail.push(key, chunk, packed);
        }
        finished.packs.tell(&self.tail);
        self.packs.apply(finished.packs);
        self.make_room_in_the_tail();
        let forgotten = self.catalog.apply(finished.diff, finished.revision);
        self.work.tell(&appended, &finished.configured);
        answers.give(&self.catalog, &self.tail);
        match forgotten {
            Some(revision) => statements::forget_tombstones(&self.db, revision).await,
            None => Ok(()),
        }
    }
}
