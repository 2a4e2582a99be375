//! Sequences of steps that once failed, or that chance seldom makes.

use std::{
    future::ready,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    super::ports::{Anchor, Lease, LedgerRow, LedgerSnapshot, LedgerUpdate},
    *,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Gives up one event of a record that is refused. Everything up to its entry moves to the
/// backlog.
async fn give_up_refused(store: &Store, id: IntegrationId, sequence: u64) {
    let given_up = store.give_up(GiveUp {
        integration_id: id,
        which: Which::Refused(BTreeMap::from([(sequence, EVENT_BYTES as u32)])),
        in_flight: BTreeMap::new(),
    });
    assert_eq!(given_up.await.unwrap().expired, 1);
}

/// The first entry of an integration moves while its second one is delivered already.
async fn a_move_before_delivered_events(by_give_up: bool, crashes: bool) {
    let folder = tempfile::tempdir().unwrap();
    let tail_bytes = 8 * SEGMENT_BYTES;
    let store = open_lazy(folder.path(), tail_bytes, |ledger| ledger).await;
    let id = configure(&store, "acme").await;
    append(&store, id, 6).await;
    append(&store, id, 2).await;
    assert_eq!(deliver(&store, id, 7, 1, u64::MAX).await, [7, 8]);
    let mut expected = vec![1, 2, 3, 4, 5, 6];
    if by_give_up {
        give_up_refused(&store, id, 2).await;
        expected.remove(1);
    } else {
        // More than half of the tail is to be freed then, which is less than the first entry.
        let other = configure(&store, "globex").await;
        append(&store, other, 3).await;
        owner(&store, id).move_what_must().await;
    }
    let in_backlog: Vec<bool> = states(&store, id)
        .await
        .iter()
        .map(|one| one.0.is_none())
        .collect();
    assert_eq!(in_backlog, [true]);
    let copy = crash(folder.path()).await;
    store.close().await;
    let folder = if crashes { copy } else { folder };

    for count in [2, 3] {
        let store = open_lazy(folder.path(), tail_bytes, |ledger| ledger).await;
        assert_eq!(read(&store, id).await, expected);
        let next = store.next_sequence(id).unwrap();
        append(&store, id, count).await;
        expected.extend(next..next + u64::from(count));
        assert_eq!(read(&store, id).await, expected);
        let progress = store.progress(id).unwrap();
        assert_eq!(progress.delivered, 2);
        assert_eq!(progress.expired, u64::from(by_give_up));
        assert_eq!(progress.pending(), expected.len() as u64);
        store.close().await;
    }
    assert_eq!(expected.last(), Some(&13));
}

#[tokio::test]
async fn events_after_a_move_before_delivered_ones_get_the_next_sequences() {
    for by_give_up in [false, true] {
        for crashes in [false, true] {
            a_move_before_delivered_events(by_give_up, crashes).await;
        }
    }
}

/// Holds calls while it is closed.
#[derive(Default)]
struct Gate {
    is_closed: AtomicBool,
    arrived: Notify,
    opened: Notify,
}

impl Gate {
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
        self.opened.notify_one();
    }

    async fn pass(&self) {
        if self.is_closed.load(Ordering::SeqCst) {
            self.arrived.notify_one();
            self.opened.notified().await;
        }
    }

    async fn arrival(&self) {
        timeout(DEADLINE, self.arrived.notified()).await.unwrap();
    }
}

/// A ledger whose reads and writes can be held.
struct Gated {
    ledger: Arc<dyn Ledger>,
    reads: Arc<Gate>,
    writes: Arc<Gate>,
}

#[async_trait]
impl Ledger for Gated {
    async fn load(&self, lease: Lease) -> Result<LedgerSnapshot, StoreError> {
        self.ledger.load(lease).await
    }

    async fn settle(
        &self,
        lease: Lease,
        updates: Vec<LedgerUpdate>,
        anchor: Option<Anchor>,
    ) -> Result<(), StoreError> {
        self.writes.pass().await;
        self.ledger.settle(lease, updates, anchor).await
    }

    async fn read_backlog(
        &self,
        id: IntegrationId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        self.reads.pass().await;
        self.ledger.read_backlog(id, from, max_bytes).await
    }

    async fn backlog_states(
        &self,
        id: IntegrationId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Chunk>, StoreError> {
        self.ledger.backlog_states(id, from, limit).await
    }

    async fn oldest_pending(
        &self,
        ids: &[IntegrationId],
    ) -> Result<HashMap<IntegrationId, Timestamp>, StoreError> {
        self.ledger.oldest_pending(ids).await
    }

    async fn rows_of(&self, ids: &[IntegrationId]) -> Result<Vec<LedgerRow>, StoreError> {
        self.ledger.rows_of(ids).await
    }

    async fn forget_anchor(&self, lease: Lease) -> Result<(), StoreError> {
        self.ledger.forget_anchor(lease).await
    }

    async fn remove_deleted(&self) -> Result<bool, StoreError> {
        self.ledger.remove_deleted().await
    }
}

#[tokio::test]
async fn a_read_during_a_move_returns_every_event_once() {
    let folder = tempfile::tempdir().unwrap();
    let (reads, writes) = (Arc::<Gate>::default(), Arc::<Gate>::default());
    let gates = (Arc::clone(&reads), Arc::clone(&writes));
    let store = open_lazy(folder.path(), 8 * SEGMENT_BYTES, |ledger| {
        let (reads, writes) = gates;
        Arc::new(Gated {
            ledger,
            reads,
            writes,
        })
    });
    let store = store.await;
    let id = configure(&store, "acme").await;
    let other = configure(&store, "globex").await;
    append(&store, id, 3).await;
    append(&store, id, 3).await;
    append(&store, other, 4).await;
    owner(&store, id).move_what_must().await;
    append(&store, id, 3).await;
    assert_eq!(deliver(&store, id, 7, 1, 1).await, [7]);
    let in_backlog = async || -> Vec<bool> {
        let states = states(&store, id).await;
        states.iter().map(|one| one.0.is_none()).collect()
    };
    assert_eq!(in_backlog().await, [true, false]);

    // Events move after the read has looked at the memory, and before it reads the backlog.
    reads.close();
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.read(id, 1, 1 << 20).await }
    });
    reads.arrival().await;
    append(&store, other, 4).await;
    owner(&store, id).move_what_must().await;
    assert_eq!(in_backlog().await, [true, true]);
    reads.open();
    let chunks = timeout(DEADLINE, reading).await.unwrap().unwrap().unwrap();
    assert_eq!(pending_of(&chunks), [1, 2, 3, 4, 5, 6]);
    let rest = store.read(id, 7, 1 << 20).await.unwrap();
    assert_eq!(pending_of(&rest), [8, 9]);

    // Events are settled and read while they move.
    append(&store, id, 3).await;
    let mut delivery = Delivery::new(id);
    for chunk in store.read(id, 10, 1 << 20).await.unwrap() {
        delivery.load(chunk).unwrap();
    }
    let batch = delivery.next_batch(LIMITS).unwrap();
    writes.close();
    append(&store, other, 4).await;
    writes.arrival().await;
    let settled = outcomes(&batch, 1);
    let settled = delivery.settle(batch, &settled, true);
    store.settle(id, Some(settled), None);
    let chunks = store.read(id, 1, 1 << 20).await.unwrap();
    assert_eq!(pending_of(&chunks), [1, 2, 3, 4, 5, 6, 8, 9]);
    let mut reading = pin!(store.read(id, 10, 1 << 20));
    tokio::select! {
        biased;
        _read = &mut reading => panic!("events that move were read"),
        () = ready(()) => {}
    }
    writes.open();
    let chunks = timeout(DEADLINE, reading).await.unwrap().unwrap();
    assert_eq!(pending_of(&chunks), [11, 12]);
    assert_eq!(in_backlog().await, [true, true, true]);
    store.close().await;

    let store = open(folder.path(), 0).await;
    assert_eq!(read(&store, id).await, [1, 2, 3, 4, 5, 6, 8, 9, 11, 12]);
    store.close().await;
}

#[tokio::test]
async fn retention_in_steps_expires_the_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_lazy(folder.path(), 1 << 20, |ledger| ledger).await;
    let id = configure(&store, "acme").await;
    for _ in 0..6 {
        append(&store, id, 3).await;
    }
    give_up_refused(&store, id, 18).await;
    append(&store, id, 3).await;
    append(&store, id, 3).await;
    let in_backlog = states(&store, id).await;
    assert_eq!(in_backlog.iter().filter(|one| one.0.is_none()).count(), 6);
    // As far as the ledger knows, these chunks are pending.
    assert_eq!(deliver(&store, id, 4, 1, u64::MAX).await, [4, 5, 6]);
    assert_eq!(deliver(&store, id, 7, 1, u64::MAX).await, [7, 8, 9]);

    let mut keep = Keep {
        from: 1,
        accepted_before: Timestamp::UNIX_EPOCH,
        max_bytes: 5 * EVENT_BYTES,
        bytes: 5 * EVENT_BYTES,
        chunks: 2,
    };
    let mut left = Vec::new();
    loop {
        let given_up = store.give_up(GiveUp {
            integration_id: id,
            which: Which::Expired(keep),
            in_flight: BTreeMap::new(),
        });
        let next = given_up.await.unwrap().next;
        left.push(read(&store, id).await.first().copied());
        match next {
            Some(next) => keep.from = next,
            None => break,
        }
    }
    // Every further step has one new chunk, since it begins with the last of the one before. The
    // last one finds nothing to expire.
    assert_eq!(left, [13, 16, 19, 22, 22].map(Some));
    assert_eq!(read(&store, id).await, [22, 23, 24]);
    assert_eq!(store.progress(id).unwrap().expired, 1 + 14);
    store.close().await;
}

#[tokio::test]
async fn a_gap_alone_is_announced_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), SEGMENT_BYTES).await;
    let id = configure(&store, "acme").await;
    append(&store, id, 3).await;
    let keep = Keep {
        from: 1,
        accepted_before: Timestamp::now() + Duration::from_secs(60),
        max_bytes: u64::MAX,
        bytes: u64::MAX,
        chunks: 10,
    };
    let given_up = GiveUp {
        integration_id: id,
        which: Which::Expired(keep),
        in_flight: BTreeMap::new(),
    };
    assert_eq!(store.give_up(given_up).await.unwrap().expired, 3);
    store.close().await;
    drop(store);

    let store = open(folder.path(), SEGMENT_BYTES).await;
    let progress = store.progress(id).unwrap();
    assert_eq!((progress.pending(), progress.expired), (0, 3));
    let announced = timeout(DEADLINE, store.attention()).await.unwrap();
    assert_eq!(announced[&id].appended.map(|(from, _)| from), Some(1));
    let chunks = store.read(id, 1, usize::MAX).await.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].gaps.len(), 1);
}

#[tokio::test]
async fn an_accepted_loss_becomes_a_gap_and_sequences_continue_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 8 * SEGMENT_BYTES).await;
    let id = configure(&store, "acme").await;
    append(&store, id, 3).await;
    append(&store, id, 2).await;
    store.close().await;
    drop(store);
    execute(
        folder.path(),
        "UPDATE entry SET header = zeroblob(4) WHERE position = (SELECT MIN(position) FROM entry)",
    )
    .await;
    let options = options(folder.path(), 8 * SEGMENT_BYTES);
    let refused = Store::open(options.clone(), &key(), crate::gate::Gate::default()).await;
    let error = refused.err().expect("a damaged log is refused");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");

    let accepted = Store::accept_loss(&options, None).await.unwrap().unwrap();
    assert_eq!(accepted.integrations, 1);
    let store = open(folder.path(), 8 * SEGMENT_BYTES).await;
    let chunks = store.read(id, 1, usize::MAX).await.unwrap();
    let gap = chunks[0].gaps[0];
    assert_eq!(
        (gap.first_sequence, gap.last_sequence),
        (1, accepted.window)
    );
    assert_eq!(gap.reason, GapReason::LogLost);
    append(&store, id, 1).await;
    let progress = store.progress(id).unwrap();
    // The entry after the damaged one is kept.
    assert_eq!(progress.accepted(), accepted.window + 3);
    assert_eq!(progress.expired, accepted.window);
}
