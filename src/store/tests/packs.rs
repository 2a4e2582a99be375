//! Chunks that come together against a model: integrations whose lanes send, settle and
//! expire while packs come and go, with ends of every kind between.

mod cases;

use std::{collections::BTreeSet, fs};

use super::*;
use crate::domain::delivery::Batch;

/// More than share the least tail, which so grows and shrinks.
const ORGANIZATIONS: [&str; 7] = ["one", "two", "three", "four", "five", "six", "seven"];
const FEW: BatchLimits = BatchLimits {
    records: 5,
    ..LIMITS
};

#[derive(Clone, Debug)]
enum Step {
    /// Events of several integrations in one request.
    Append(Vec<(usize, u32)>),
    Send(usize),
    /// Which request is answered, what of it is accepted, and whether the next step waits
    /// until that is durable.
    Answer(usize, usize, u64, bool),
    /// So many events are kept.
    Expire(usize, u64),
    DeleteAndCreate(usize),
    /// A new start, of what was closed or of what a kill would leave; some of what was in
    /// flight had arrived.
    Restart(bool, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..ORGANIZATIONS.len();
    let one = (which.clone(), 1..6u32);
    // What comes alone has a row at once.
    let alone = prop::collection::vec(one.clone(), 1);
    let some = prop::collection::vec(one, 2..8);
    prop_oneof![
        4 => alone.prop_map(Step::Append),
        4 => some.prop_map(Step::Append),
        6 => which.clone().prop_map(Step::Send),
        6 => (which.clone(), 0..4usize, any::<u64>(), any::<bool>())
            .prop_map(|(which, batch, bits, waits)| Step::Answer(which, batch, bits, waits)),
        1 => (which.clone(), 0..20u64).prop_map(|(which, kept)| Step::Expire(which, kept)),
        1 => which.prop_map(Step::DeleteAndCreate),
        2 => (any::<bool>(), any::<u64>()).prop_map(|(killed, bits)| Step::Restart(killed, bits)),
    ]
}

/// One integration: its lane, and what became of its events.
#[derive(Default)]
struct One {
    delivery: Delivery,
    cursor: u64,
    in_flight: Vec<Batch>,
    accepted: u64,
    /// Neither arrived nor expired.
    pending: BTreeSet<u64>,
    arrived: BTreeSet<u64>,
    /// Arrived, and that may not be durable.
    unsure: BTreeSet<u64>,
    expired: BTreeSet<u64>,
    told: BTreeSet<u64>,
}

struct Run {
    folder: tempfile::TempDir,
    store: Store,
    log_tail_bytes: usize,
    all: Vec<One>,
}

impl Run {
    async fn new(log_tail_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), log_tail_bytes).await;
        for organization in ORGANIZATIONS {
            store.configure(configuration(organization)).await.unwrap();
        }
        Self {
            folder,
            store,
            log_tail_bytes,
            all: ORGANIZATIONS.iter().map(|_| One::default()).collect(),
        }
    }

    fn key(&self, which: usize) -> IntegrationKey {
        self.store.key_of(ORGANIZATIONS[which]).unwrap()
    }

    async fn append(&mut self, events: Vec<(usize, u32)>) {
        let of = events
            .iter()
            .map(|(which, count)| (self.key(*which), *count));
        let durable = self.store.append(segments(of), None).await.unwrap();
        let all: u32 = events.iter().map(|(_, count)| count).sum();
        assert_eq!(durable.await.unwrap(), all);
        for (which, count) in events {
            let one = &mut self.all[which];
            let first = one.accepted + 1;
            one.accepted += u64::from(count);
            one.pending.extend(first..=one.accepted);
        }
    }

    async fn send(&mut self, which: usize) -> bool {
        let key = self.key(which);
        let one = &mut self.all[which];
        let chunks = self.store.read_log(key, one.cursor.max(1), 300).await;
        for chunk in chunks.unwrap() {
            one.cursor = chunk.first_sequence + chunk.entries.len() as u64;
            assert_eq!(one.delivery.load(chunk), None, "finished and still there");
        }
        let Some(batch) = one.delivery.next_batch(FEW) else {
            return false;
        };
        for item in batch.items.iter().filter(|item| item.gap.is_none()) {
            assert!(one.pending.contains(&item.sequence), "{}", item.sequence);
        }
        one.in_flight.push(batch);
        true
    }

    async fn answer(&mut self, which: usize, batch: usize, bits: u64, waits: bool) {
        let key = self.key(which);
        let one = &mut self.all[which];
        if one.in_flight.is_empty() {
            return;
        }
        let batch = one.in_flight.remove(batch % one.in_flight.len());
        let mut outcomes = Vec::new();
        for (at, item) in batch.items.iter().enumerate() {
            if bits >> at & 1 == 0 {
                outcomes.push(Outcome::Failed);
                continue;
            }
            outcomes.push(Outcome::Accepted);
            match &item.gap {
                Some(gap) => one.told.extend(gap.first_sequence..=gap.last_sequence),
                None => {
                    assert!(one.pending.remove(&item.sequence), "delivered twice");
                    one.arrived.insert(item.sequence);
                    one.unsure.insert(item.sequence);
                }
            }
        }
        let settlement = one.delivery.settle(batch, &outcomes);
        let settle = Settle {
            key,
            settlement,
            observed: None,
            tells: Tells::Nobody,
        };
        self.store.settle(settle).await;
        if waits {
            self.settled(which).await;
        }
    }

    /// Waits until all that was settled is durable.
    async fn settled(&mut self, which: usize) {
        settle(&self.store, self.key(which), Settlement::default()).await;
        self.all.iter_mut().for_each(|one| one.unsure.clear());
    }

    async fn expire(&mut self, which: usize, kept: u64) {
        self.settled(which).await;
        let key = self.key(which);
        let one = &mut self.all[which];
        let ask = GiveUp {
            key,
            what: What::Expired(Keep {
                from: 1,
                accepted_before: Timestamp::UNIX_EPOCH,
                most_bytes: kept * EVENT_BYTES,
                bytes: kept * EVENT_BYTES,
                chunks: 3,
            }),
            in_flight: one.delivery.events_in_flight(),
        };
        let given_up = self.store.give_up(ask).await.unwrap();
        one.delivery.apply(&given_up.chunks, 77);
        let flying: BTreeSet<u64> = one
            .in_flight
            .iter()
            .flat_map(|batch| batch.items.iter().map(|item| item.sequence))
            .collect();
        let mut left = given_up.expired;
        // The oldest go, but for what is in flight.
        let going: Vec<u64> = one.pending.difference(&flying).copied().collect();
        for sequence in going {
            if left == 0 {
                break;
            }
            one.pending.remove(&sequence);
            one.expired.insert(sequence);
            left -= 1;
        }
        assert_eq!(left, 0, "more expired than there was");
    }

    async fn delete_and_create(&mut self, which: usize) {
        self.settled(which).await;
        let organization = ORGANIZATIONS[which];
        let id = OrganizationId::new(organization).unwrap();
        let deleted = self.store.delete(id, "test".into()).await.unwrap().unwrap();
        let one = std::mem::take(&mut self.all[which]);
        assert_eq!(deleted.progress.discarded, one.pending.len() as u64);
        let configuration = configuration(organization);
        self.store.configure(configuration).await.unwrap();
    }

    /// What a kill at this moment would leave.
    fn left_behind(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in ["siem-relay.sqlite", "siem-relay.sqlite-wal"] {
            let from = self.folder.path().join(file);
            fs::copy(from, folder.path().join(file)).unwrap();
        }
        folder
    }

    async fn restart(&mut self, killed: bool, bits: u64) {
        let left_behind = self.left_behind();
        self.store.close().await;
        self.store.ended().await;
        match killed {
            true => self.folder = left_behind,
            false => self.all.iter_mut().for_each(|one| one.unsure.clear()),
        }
        self.store = open(self.folder.path(), self.log_tail_bytes).await;
        for which in 0..self.all.len() {
            let found: BTreeSet<u64> = self.pending(which).await.into_iter().collect();
            let one = &mut self.all[which];
            let again: Vec<u64> = found.difference(&one.pending).copied().collect();
            for sequence in again {
                assert!(one.unsure.contains(&sequence), "{sequence} came back");
                one.pending.insert(sequence);
            }
            assert_eq!(one.pending, found, "lost");
            one.unsure.clear();
            let batches = std::mem::take(&mut one.in_flight);
            let items = batches.into_iter().flat_map(|batch| batch.items);
            for (at, item) in items.enumerate() {
                if bits >> (at % 64) & 1 == 1 && item.gap.is_none() {
                    one.arrived.insert(item.sequence);
                }
            }
            one.delivery = Delivery::default();
            one.cursor = 1;
        }
        self.check().await;
    }

    /// Sequences of events that wait.
    async fn pending(&self, which: usize) -> Vec<u64> {
        let (mut from, mut found) = (1, Vec::new());
        loop {
            let chunks = self.store.read_log(self.key(which), from, 100).await;
            let chunks = chunks.unwrap();
            let Some(last) = chunks.last() else {
                return found;
            };
            from = last.first_sequence + last.entries.len() as u64;
            for chunk in chunks {
                let mut events = chunk.first_sequence..;
                for index in 0..chunk.entries.len() {
                    let sequence = events.next().unwrap();
                    let gap = chunk.gaps.iter().any(|gap| gap.index as usize == index);
                    if !gap && !crate::domain::bitmap::get(&chunk.settled, index) {
                        found.push(sequence);
                    }
                }
            }
        }
    }

    async fn check(&mut self) {
        self.settled(0).await;
        for (which, one) in self.all.iter().enumerate() {
            let progress = self.store.get(self.key(which)).unwrap().progress;
            let pending = one.pending.len() as u64;
            assert_eq!(progress.accepted(), one.accepted);
            assert_eq!(progress.pending(), pending);
            assert_eq!(progress.pending_bytes, pending * EVENT_BYTES);
            assert_eq!(progress.expired, one.expired.len() as u64);
            let key = self.key(which);
            let oldest = self.store.oldest_pending(&[key]).await.unwrap();
            assert_eq!(oldest.contains_key(&key), pending > 0);
        }
    }

    async fn drain(&mut self) {
        for which in 0..self.all.len() {
            while !self.all[which].in_flight.is_empty() || self.send(which).await {
                self.answer(which, 0, u64::MAX, true).await;
            }
            let one = &self.all[which];
            assert!(one.pending.is_empty() && one.delivery.is_empty());
            let lost = one.expired.difference(&one.told).next();
            assert_eq!(lost, None, "no gap tells of it");
        }
        self.check().await;
    }
}

async fn rows_of(store: &Store, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) AS count FROM {table}");
    let statement = rows::statement(&store.reader, &sql, []);
    let row = store.reader.query_one_raw(statement).await.unwrap();
    row.unwrap().try_get("", "count").unwrap()
}

async fn run_steps(steps: Vec<Step>, log_tail_bytes: usize) {
    let mut run = Run::new(log_tail_bytes).await;
    for step in steps {
        match step {
            Step::Append(events) => run.append(events).await,
            Step::Send(which) => drop(run.send(which).await),
            Step::Answer(which, batch, bits, waits) => run.answer(which, batch, bits, waits).await,
            Step::Expire(which, kept) => run.expire(which, kept).await,
            Step::DeleteAndCreate(which) => run.delete_and_create(which).await,
            Step::Restart(killed, bits) => run.restart(killed, bits).await,
        }
        assert!(run.store.tail.is_sound());
    }
    run.check().await;
    run.drain().await;
    run.store.close().await;
    run.store.ended().await;
    let store = open(run.folder.path(), log_tail_bytes).await;
    for table in ["chunk", "pack", "pack_done"] {
        assert_eq!(rows_of(&store, table).await, 0, "{table}");
    }
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn nothing_is_lost_wherever_it_lies(
        steps in prop::collection::vec(step(), 1..80),
        log_tail_bytes in prop_oneof![Just(0usize), Just(600), Just(2_000), Just(1 << 20)],
    ) {
        block_on(run_steps(steps, log_tail_bytes));
    }
}
