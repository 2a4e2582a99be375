//! Retention against a model: random appends, deliveries, failures, expiries and
//! restarts, with requests in flight over all of them but the last.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::domain::{
    delivery::Batch,
    event::{Gap, GapReason},
};

#[derive(Clone, Debug)]
enum Step {
    Append(u32),
    Send,
    Answer(usize, u64),
    /// So many of the oldest chunks are too old, so many events are kept, in steps of so
    /// many chunks, and so many steps at the most.
    Expire(usize, u64, usize, usize),
    /// What was in flight has arrived by the bits, and nobody knows.
    Restart(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let many = prop_oneof![3 => Just(usize::MAX), 1 => 1..4usize];
    let kept = prop_oneof![1 => Just(1000), 1 => 0..60u64];
    prop_oneof![
        6 => (1..12u32).prop_map(Step::Append),
        5 => Just(Step::Send),
        4 => (any::<usize>(), any::<u64>()).prop_map(|(which, bits)| Step::Answer(which, bits)),
        3 => (0..6usize, kept, 2..5usize, many)
            .prop_map(|(old, kept, chunks, steps)| Step::Expire(old, kept, chunks, steps)),
        1 => any::<u64>().prop_map(Step::Restart),
    ]
}

/// An integration, its lane, its stream, and what should be.
struct Run {
    store: Store,
    key: IntegrationKey,
    delivery: Delivery,
    cursor: u64,
    in_flight: Vec<Batch>,
    /// First sequence and count of each append, and when it was.
    chunks: BTreeMap<u64, (u32, Timestamp)>,
    pending: BTreeSet<u64>,
    expired: BTreeSet<u64>,
    /// Events that arrived.
    arrived: BTreeSet<u64>,
    /// Gaps that arrived, and that is known.
    told: Vec<Gap>,
}

impl Run {
    async fn append(&mut self, count: u32) {
        let first = self.pending_end();
        assert!(append(&self.store, "acme", count).await);
        let sql = "SELECT accepted_at FROM chunk WHERE first_sequence = $1";
        let statement = rows::statement(&self.store.reader, sql, [(first as i64).into()]);
        let row = self.store.reader.query_one_raw(statement).await.unwrap();
        let at = rows::time(row.unwrap().try_get("", "accepted_at").unwrap()).unwrap();
        self.chunks.insert(first, (count, at));
        self.pending.extend(first..first + u64::from(count));
    }

    fn pending_end(&self) -> u64 {
        let last = self.chunks.iter().next_back();
        last.map_or(1, |(first, (count, _))| first + u64::from(*count))
    }

    async fn load(&mut self) {
        let chunks = self.store.read_log(self.key, self.cursor, 500).await;
        for chunk in chunks.unwrap() {
            self.cursor = chunk.first_sequence + chunk.entries.len() as u64;
            assert_eq!(self.delivery.load(chunk), None, "finished and still there");
        }
    }

    async fn send(&mut self) -> bool {
        self.load().await;
        let Some(batch) = self.delivery.next_batch(LIMITS) else {
            return false;
        };
        for item in &batch.items {
            let told = item.gap.as_ref().map(|gap| gap.last_sequence);
            assert_eq!(told.unwrap_or(item.sequence), item.sequence);
            let is_pending = self.pending.contains(&item.sequence);
            assert_ne!(item.gap.is_some(), is_pending, "a gap stands for an event");
        }
        self.in_flight.push(batch);
        true
    }

    async fn answer(&mut self, which: usize, bits: u64) {
        if self.in_flight.is_empty() {
            return;
        }
        let batch = self.in_flight.remove(which % self.in_flight.len());
        let mut outcomes = Vec::new();
        for (at, item) in batch.items.iter().enumerate() {
            if bits >> (at % 64) & 1 == 0 {
                outcomes.push(Outcome::Failed);
                continue;
            }
            outcomes.push(Outcome::Accepted);
            match &item.gap {
                Some(gap) => self.told.push(**gap),
                None => {
                    self.arrived.insert(item.sequence);
                    assert!(self.pending.remove(&item.sequence), "delivered twice");
                }
            }
        }
        let settlement = self.delivery.settle(batch, &outcomes);
        settle(&self.store, self.key, settlement).await;
    }

    /// Events that should expire, oldest first.
    fn due(&self, accepted_before: Timestamp, keep_bytes: u64) -> Vec<u64> {
        let items = self.in_flight.iter().flat_map(|batch| &batch.items);
        let flying: BTreeSet<u64> = items.map(|item| item.sequence).collect();
        let mut bytes = self.pending.len() as u64 * EVENT_BYTES;
        let mut due = Vec::new();
        let mut too_old = true;
        for (first, (count, at)) in &self.chunks {
            let of_chunk = self.pending.range(*first..first + u64::from(*count));
            let of_chunk: Vec<u64> = of_chunk.copied().collect();
            too_old &= of_chunk.is_empty() || *at <= accepted_before;
            if !too_old && bytes <= keep_bytes {
                break;
            }
            for sequence in of_chunk.iter().filter(|one| !flying.contains(one)) {
                due.push(*sequence);
                bytes -= EVENT_BYTES;
            }
        }
        due
    }

    async fn expire(&mut self, old: usize, kept: u64, chunks: usize, most: usize) {
        let waiting = self.chunks.iter().filter(|(first, (count, _))| {
            let mut range = self.pending.range(*first..&(*first + u64::from(*count)));
            range.next().is_some()
        });
        let oldest = waiting.take(old).last().map(|(_, (_, at))| *at);
        let mut keep = Keep {
            from: 1,
            accepted_before: oldest.unwrap_or(Timestamp::UNIX_EPOCH),
            most_bytes: kept * EVENT_BYTES,
            bytes: kept * EVENT_BYTES,
            chunks,
        };
        let due = self.due(keep.accepted_before, keep.bytes);
        let mut expired = 0;
        let mut whole = false;
        for _ in 0..most {
            let ask = GiveUp {
                key: self.key,
                what: What::Expired(keep),
                in_flight: self.delivery.events_in_flight(),
            };
            let given_up = self.store.give_up(ask).await.unwrap();
            self.delivery
                .apply(&given_up.chunks, self.gap_key().as_u128());
            expired += given_up.expired as usize;
            match given_up.next {
                Some(next) => keep.from = next,
                None => {
                    whole = true;
                    break;
                }
            }
        }
        assert!(!whole || expired == due.len(), "{expired} of {due:?}");
        for sequence in &due[..expired] {
            assert!(self.pending.remove(sequence));
            assert!(self.expired.insert(*sequence));
        }
        if let Some(last) = due[..expired].last() {
            self.check_gaps_are_apart(*last).await;
        }
    }

    fn gap_key(&self) -> Uuid {
        self.store.get(self.key).unwrap().integration.integration_id
    }

    /// Between two gaps that wait something waits that is none.
    async fn check_gaps_are_apart(&self, last: u64) {
        let items = self.in_flight.iter().flat_map(|batch| &batch.items);
        let flying: BTreeSet<u64> = items.map(|item| item.sequence).collect();
        let mut waits: BTreeMap<u64, bool> = self.pending.iter().map(|one| (*one, false)).collect();
        let mut from = 1;
        loop {
            let chunks = self.store.read_log(self.key, from, 1).await.unwrap();
            let Some(chunk) = chunks.first() else { break };
            from = chunk.first_sequence + chunk.entries.len() as u64;
            for placed in &chunk.gaps {
                let place = chunk.first_sequence + u64::from(placed.index);
                assert_eq!(place, placed.gap.last_sequence);
                waits.insert(place, !flying.contains(&place));
            }
        }
        let waits: Vec<(u64, bool)> = waits.range(..=last).map(|one| (*one.0, *one.1)).collect();
        let beside = waits.windows(2).find(|pair| pair[0].1 && pair[1].1);
        assert_eq!(beside, None, "gaps side by side");
    }

    fn check(&self) {
        assert!(self.store.tail.is_sound());
        let progress = self.store.get(self.key).unwrap().progress;
        let pending = self.pending.len() as u64;
        assert_eq!(progress.accepted(), self.pending_end() - 1);
        assert_eq!(progress.expired, self.expired.len() as u64);
        assert_eq!(progress.pending(), pending);
        assert_eq!(progress.pending_bytes, pending * EVENT_BYTES);
    }

    async fn drain(&mut self) {
        while !self.in_flight.is_empty() || self.send().await {
            self.answer(0, u64::MAX).await;
        }
        self.check();
        assert!(self.pending.is_empty() && self.delivery.is_empty());
        // Each event that expired is told of once. A gap may lie within another one, which
        // took in gaps on both of its sides.
        self.told.sort_unstable_by_key(|gap| gap.first_sequence);
        let mut together: Vec<Gap> = Vec::new();
        for gap in &self.told {
            assert_ne!(gap.reason, GapReason::RecordRefused);
            match together.last_mut() {
                Some(before) if gap.first_sequence <= before.last_sequence => {
                    *before = before.merge(gap);
                }
                _ => together.push(*gap),
            }
        }
        for gap in &together {
            let range = self.expired.range(gap.first_sequence..=gap.last_sequence);
            assert_eq!(gap.count, range.count() as u64, "{:?}", self.told);
        }
        let told: u64 = together.iter().map(|gap| gap.count).sum();
        assert_eq!(told, self.expired.len() as u64, "{:?}", self.told);
        let covers = |gap: &Gap, one: u64| (gap.first_sequence..=gap.last_sequence).contains(&one);
        for one in 1..self.pending_end() {
            let told = self.told.iter().any(|gap| covers(gap, one));
            assert!(self.arrived.contains(&one) || told, "{one} is lost");
        }
    }
}

async fn run(steps: Vec<Step>, log_tail_bytes: usize) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), log_tail_bytes).await;
    store.configure(configuration("acme")).await.unwrap();
    let mut run = Run {
        key: store.key_of("acme").unwrap(),
        store,
        delivery: Delivery::default(),
        cursor: 1,
        in_flight: Vec::new(),
        chunks: BTreeMap::new(),
        pending: BTreeSet::new(),
        expired: BTreeSet::new(),
        arrived: BTreeSet::new(),
        told: Vec::new(),
    };
    for step in steps {
        match step {
            Step::Append(count) => run.append(count).await,
            Step::Send => drop(run.send().await),
            Step::Answer(which, bits) => run.answer(which, bits).await,
            Step::Expire(old, kept, chunks, most) => run.expire(old, kept, chunks, most).await,
            Step::Restart(bits) => {
                run.store.close().await;
                run.store.ended().await;
                run.store = open(folder.path(), log_tail_bytes).await;
                let items = run.in_flight.drain(..).flat_map(|batch| batch.items);
                for (at, item) in items.enumerate() {
                    if bits >> (at % 64) & 1 == 1 && item.gap.is_none() {
                        run.arrived.insert(item.sequence);
                    }
                }
                run.delivery = Delivery::default();
                run.cursor = 1;
            }
        }
        run.check();
    }
    run.drain().await;
    run.store.close().await;
}

/// A chunk was accepted while the clock was ahead; what is behind it expires all the same,
/// and it with it, since it is older.
#[tokio::test]
async fn a_clock_that_was_ahead_stops_no_expiry() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    for _ in 0..3 {
        assert!(append(&store, "acme", 4).await);
    }
    store.close().await;
    store.ended().await;
    let url = format!(
        "sqlite://{}/siem-relay.sqlite?mode=rw",
        folder.path().display()
    );
    let db = sea_orm::Database::connect(url).await.unwrap();
    let ahead = "UPDATE chunk SET accepted_at = accepted_at + 31536000000000 \
        WHERE first_sequence = 1";
    db.execute_unprepared(ahead).await.unwrap();
    db.close().await.unwrap();

    let store = open(folder.path(), 0).await;
    let ask = GiveUp {
        key,
        what: What::Expired(Keep {
            from: 1,
            accepted_before: rows::now(),
            most_bytes: u64::MAX,
            bytes: u64::MAX,
            chunks: 128,
        }),
        in_flight: Vec::new(),
    };
    let given_up = store.give_up(ask).await.unwrap();
    assert_eq!(given_up.expired, 12);
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_is_lost_and_each_gap_says_what_is(
        steps in prop::collection::vec(step(), 1..60),
        log_tail_bytes in prop_oneof![Just(0usize), Just(600), Just(1 << 20)],
    ) {
        block_on(run(steps, log_tail_bytes));
    }
}
