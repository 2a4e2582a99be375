//! Settlements on their way to the writer. It fetches them whenever it writes, and soon at the
//! latest; only what cannot wait so long wakes it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};

use super::{
    catalog::{Catalog, Slot},
    command::{Settle, Unsettled},
    draft::Observed,
    precedence::Precedence,
    tail::Tail,
};
use crate::domain::integration::IntegrationKey;

/// Settlements that wait to be fetched at the most; the writer is woken where half as many do.
const MOST: usize = 1024;

/// How the writer is reached.
#[derive(Debug, Default)]
struct Bell {
    /// The writer looks again before long, whether or not it is woken.
    looks_soon: AtomicBool,
    wake: Notify,
}

/// Where settlements are handed in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Settlements {
    shared: Arc<Shared>,
}

struct Shared {
    queue: mpsc::Sender<Settle>,
    bell: Arc<Bell>,
    catalog: Arc<Catalog>,
    tail: Arc<Tail>,
    precedence: Arc<Precedence>,
    failing_after: Duration,
}

/// Where the writer fetches them.
pub(super) struct Fetch {
    queue: mpsc::Receiver<Settle>,
    bell: Arc<Bell>,
}

impl Settlements {
    pub(super) fn new(
        catalog: Arc<Catalog>,
        tail: Arc<Tail>,
        precedence: Arc<Precedence>,
        failing_after: Duration,
    ) -> (Self, Fetch) {
        let (queue, fetched) = mpsc::channel(MOST);
        let bell = Arc::<Bell>::default();
        let fetch = Fetch {
            queue: fetched,
            bell: Arc::clone(&bell),
        };
        let shared = Shared {
            queue,
            bell,
            catalog,
            tail,
            precedence,
            failing_after,
        };
        let settlements = Self {
            shared: Arc::new(shared),
        };
        (settlements, fetch)
    }

    /// Waits for room. None where the writer has ended.
    pub(super) async fn reserve(&self) -> Option<SettlePermit> {
        let room = self.shared.queue.clone().reserve_owned().await.ok()?;
        Some(SettlePermit {
            room,
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Shared {
    /// Whether what an attempt showed changes a status, so that it is told at once.
    fn is_news(&self, key: IntegrationKey, observed: &Observed) -> bool {
        let changes = |slot: &Slot| slot.would_change(self.failing_after, observed);
        self.catalog.look(key, changes) == Some(true)
    }
}

/// Room for one settlement: with it, settling waits for nothing, so that settlements
/// can be queued in order under a lock.
pub struct SettlePermit {
    room: mpsc::OwnedPermit<Settle>,
    shared: Arc<Shared>,
}

impl SettlePermit {
    /// As [`Store::settle`](super::Store::settle).
    pub fn settle(self, settle: Settle) {
        let Self { room, shared } = self;
        let (key, settlement) = (settle.key, &settle.settlement);
        shared.precedence.delivered(settlement.accepted_bytes);
        for (chunk_id, settled, _) in &settlement.partial {
            shared.tail.settle(key, *chunk_id, settled);
        }
        for chunk_id in &settlement.finished {
            shared.tail.finish(key, *chunk_id);
        }
        let observed = settle.observed.clone();
        let queue = room.send(settle);
        // Either the writer finds it as it looks, or it is seen here that the writer rests, and
        // which statuses it had written before.
        fence(Ordering::SeqCst);
        let bell = &shared.bell;
        if !bell.looks_soon.load(Ordering::Relaxed)
            || queue.capacity() <= MOST / 2
            || observed.is_some_and(|observed| shared.is_news(key, &observed))
        {
            bell.wake.notify_one();
        }
    }
}

impl Fetch {
    /// Fetches all that was handed in before. `looks_soon` says that the writer will look
    /// again soon; else each settlement wakes it.
    pub(super) fn fetch(&mut self, unsettled: &mut Unsettled, looks_soon: bool) {
        self.bell.looks_soon.store(looks_soon, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // More of them may come for as long as it looks.
        for _ in 0..MOST {
            match self.queue.try_recv() {
                Ok(settle) => unsettled.add(settle),
                Err(_none) => return,
            }
        }
    }

    /// Waits for one that cannot wait.
    pub(super) async fn called(&self) {
        self.bell.wake.notified().await;
    }
}

#[cfg(test)]
mod tests;
