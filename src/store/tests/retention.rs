//! Retention against a model: random appends, deliveries, failures, expiry, refused records,
//! damage and restarts, with requests in flight over all of them but the last.

use super::*;
use crate::domain::event::Gap;

#[derive(Clone, Debug)]
enum Step {
    Append(u32),
    Send,
    Answer(usize, u64),
    /// Number of the oldest chunks that are too old, events to keep, chunks of one step, and most
    /// steps.
    Expire(usize, u64, usize, usize),
    /// Gives up pending events by the bits.
    Refuse(u64),
    /// Damages a chunk of the backlog.
    Damage(usize),
    /// Restarts; the events in flight arrived by the bits, without an answer.
    Restart(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let steps = prop_oneof![3 => Just(usize::MAX), 1 => 1..4usize];
    let kept = prop_oneof![1 => Just(1000), 1 => 0..60u64];
    prop_oneof![
        6 => (1..12u32).prop_map(Step::Append),
        5 => Just(Step::Send),
        4 => (any::<usize>(), any::<u64>()).prop_map(|(which, bits)| Step::Answer(which, bits)),
        3 => (0..6usize, kept, 2..5usize, steps)
            .prop_map(|(old, kept, chunks, steps)| Step::Expire(old, kept, chunks, steps)),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(one, other)| Step::Refuse(one & other)),
        1 => any::<usize>().prop_map(Step::Damage),
        1 => any::<u64>().prop_map(Step::Restart),
    ]
}

/// An integration, its delivery, its stream, and what should be.
struct Run {
    folder: TempDir,
    store: Store,
    log_tail_bytes: usize,
    id: IntegrationId,
    delivery: Delivery,
    cursor: u64,
    in_flight: Vec<Batch>,
    accepted: u64,
    pending: BTreeSet<u64>,
    expired: BTreeSet<u64>,
    /// Events that arrived.
    arrived: BTreeSet<u64>,
    /// Gaps whose arrival is known.
    gaps: Vec<Gap>,
}

impl Run {
    async fn append(&mut self, count: u32) {
        append(&self.store, self.id, count).await;
        let first = self.accepted + 1;
        self.accepted += u64::from(count);
        self.pending.extend(first..=self.accepted);
        // Chunks that are joined later would expire together.
        owner(&self.store, self.id).move_what_must().await;
    }

    async fn load(&mut self) {
        let chunks = loop {
            match self.store.read(self.id, self.cursor, 500).await {
                Err(StoreError::DamagedChunk { first_sequence }) => {
                    self.give_up_damaged(first_sequence).await;
                }
                read => break read.unwrap(),
            }
        };
        for chunk in chunks {
            assert!(!chunk.is_finished(), "a finished chunk was read");
            self.cursor = chunk.end_sequence();
            self.delivery.load(chunk).unwrap();
        }
    }

    async fn send(&mut self) -> bool {
        self.load().await;
        let Some(batch) = self.delivery.next_batch(LIMITS) else {
            return false;
        };
        for record in &batch.records {
            let gap = record.gap.as_ref().map(|gap| gap.last_sequence);
            assert_eq!(gap.unwrap_or(record.sequence), record.sequence);
            let is_pending = self.pending.contains(&record.sequence);
            assert_ne!(record.gap.is_some(), is_pending);
        }
        self.in_flight.push(batch);
        true
    }

    fn answer(&mut self, which: usize, bits: u64) {
        if self.in_flight.is_empty() {
            return;
        }
        let batch = self.in_flight.remove(which % self.in_flight.len());
        let outcomes = outcomes(&batch, bits);
        for (record, outcome) in batch.records.iter().zip(&outcomes) {
            match (outcome, &record.gap) {
                (RecordOutcome::Failed(_), _) => {}
                (RecordOutcome::Accepted { .. }, Some(gap)) => self.gaps.push(**gap),
                (RecordOutcome::Accepted { .. }, None) => {
                    self.arrived.insert(record.sequence);
                    assert!(self.pending.remove(&record.sequence), "delivered twice");
                }
            }
        }
        let settlement = self.delivery.settle(batch, &outcomes, true);
        self.store.settle(self.id, Some(settlement), None);
    }

    fn flying(&self) -> BTreeSet<u64> {
        let records = self.in_flight.iter().flat_map(|batch| &batch.records);
        records.map(|record| record.sequence).collect()
    }

    async fn chunks(&self) -> Vec<Chunk> {
        let states = states(&self.store, self.id).await.into_iter();
        states.map(|(_, chunk)| chunk).collect()
    }

    async fn give_up(&mut self, which: Which) -> GivenUp {
        let give_up = GiveUp {
            integration_id: self.id,
            which,
            in_flight: self.delivery.in_flight_records(),
        };
        let given_up = self.store.give_up(give_up).await.unwrap();
        self.delivery.apply(&given_up.chunks);
        given_up
    }

    fn expect_expired(&mut self, sequences: &[u64]) {
        for sequence in sequences {
            assert!(self.pending.remove(sequence));
            assert!(self.expired.insert(*sequence));
        }
    }

    async fn give_up_damaged(&mut self, first: u64) {
        let chunks = self.chunks().await;
        let damaged = chunks.iter().find(|chunk| chunk.first_sequence == first);
        let mut due = pending_of(damaged);
        let flying = self.flying();
        due.retain(|sequence| !flying.contains(sequence));
        let given_up = self.give_up(Which::Damaged(first)).await;
        assert!(given_up.expired > 0, "damaged for ever");
        assert_eq!(given_up.expired, due.len() as u64);
        self.expect_expired(&due);
    }

    async fn refuse(&mut self, bits: u64) {
        let flying = self.flying();
        let pending = self.pending.iter().copied();
        let due: Vec<u64> = pending
            .filter(|one| bits >> (one % 64) & 1 == 1 && !flying.contains(one))
            .collect();
        let refused = due.iter().map(|one| (*one, EVENT_BYTES as u32)).collect();
        let given_up = self.give_up(Which::Refused(refused)).await;
        assert_eq!(given_up.expired, due.len() as u64);
        self.expect_expired(&due);
    }

    async fn damage(&self, which: usize) {
        let mut states = states(&self.store, self.id).await;
        states.retain(|(position, chunk)| position.is_none() && chunk.pending_events() > 0);
        if !states.is_empty() {
            let first = states[which % states.len()].1.first_sequence;
            let sql = format!("UPDATE backlog SET payload = x'00' WHERE first_sequence = {first}");
            execute(self.folder.path(), &sql).await;
        }
    }

    /// Events that should expire, oldest first.
    fn due(&self, chunks: &[Chunk], accepted_before: Timestamp, keep_bytes: u64) -> Vec<u64> {
        let flying = self.flying();
        let mut bytes = self.pending.len() as u64 * EVENT_BYTES;
        let mut due = Vec::new();
        let mut too_old = true;
        for chunk in chunks {
            let of_chunk = pending_of([chunk]);
            too_old &= of_chunk.is_empty() || chunk.accepted_at <= accepted_before;
            if !too_old && bytes <= keep_bytes {
                break;
            }
            for sequence in of_chunk.into_iter().filter(|one| !flying.contains(one)) {
                due.push(sequence);
                bytes -= EVENT_BYTES;
            }
        }
        due
    }

    async fn expire(&mut self, old: usize, kept: u64, chunks: usize, max_steps: usize) {
        let before = self.chunks().await;
        let waiting = before.iter().filter(|chunk| chunk.pending_events() > 0);
        let oldest = waiting.take(old).last().map(|chunk| chunk.accepted_at);
        let mut keep = Keep {
            from: 1,
            accepted_before: oldest.unwrap_or(Timestamp::UNIX_EPOCH),
            max_bytes: kept * EVENT_BYTES,
            bytes: kept * EVENT_BYTES,
            chunks,
        };
        let due = self.due(&before, keep.accepted_before, keep.bytes);
        let mut expired = 0;
        let mut whole = false;
        for _ in 0..max_steps {
            let given_up = self.give_up(Which::Expired(keep)).await;
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
        self.expect_expired(&due[..expired]);
        if let Some(last) = due[..expired].last() {
            self.check_gaps_are_apart(*last).await;
        }
    }

    /// Checks that something else is pending between two pending gaps.
    async fn check_gaps_are_apart(&self, last: u64) {
        let flying = self.flying();
        let mut waits: BTreeMap<u64, bool> = self.pending.iter().map(|one| (*one, false)).collect();
        for chunk in self.chunks().await {
            let gaps = chunk.gaps.iter().map(|gap| gap.last_sequence);
            waits.extend(gaps.map(|sequence| (sequence, !flying.contains(&sequence))));
        }
        let waits: Vec<(u64, bool)> = waits.range(..=last).map(|one| (*one.0, *one.1)).collect();
        let beside = waits.windows(2).find(|pair| pair[0].1 && pair[1].1);
        assert_eq!(beside, None, "gaps side by side");
    }

    async fn check(&self) {
        let progress = self.store.progress(self.id).unwrap();
        let pending = self.pending.len() as u64;
        assert_eq!(progress.accepted(), self.accepted);
        assert_eq!(progress.expired, self.expired.len() as u64);
        assert_eq!(progress.pending(), pending);
        assert_eq!(progress.pending_bytes, pending * EVENT_BYTES);
        let chunks = self.chunks().await;
        assert!(pending_of(&chunks).iter().eq(&self.pending));
        let bytes: u64 = chunks.iter().map(|chunk| chunk.pending_bytes).sum();
        assert_eq!(bytes, progress.pending_bytes);
    }

    async fn drain(&mut self) {
        while !self.in_flight.is_empty() || self.send().await {
            self.answer(0, u64::MAX);
        }
        self.restart(0).await;
        self.check().await;
        assert!(self.pending.is_empty() && self.chunks().await.is_empty());
        // Each event that expired is in one gap. A gap may lie within another one, which took in
        // gaps on both of its sides.
        self.gaps.sort_unstable_by_key(|gap| gap.first_sequence);
        let mut merged: Vec<Gap> = Vec::new();
        for gap in &self.gaps {
            match merged.last_mut() {
                Some(before) if gap.first_sequence <= before.last_sequence => {
                    *before = before.merge(gap);
                }
                _ => merged.push(*gap),
            }
        }
        for gap in &merged {
            let range = self.expired.range(gap.first_sequence..=gap.last_sequence);
            assert_eq!(gap.count, range.count() as u64, "{:?}", self.gaps);
        }
        let announced: u64 = merged.iter().map(|gap| gap.count).sum();
        assert_eq!(announced, self.expired.len() as u64, "{:?}", self.gaps);
        for one in 1..=self.accepted {
            let covers = |gap: &Gap| (gap.first_sequence..=gap.last_sequence).contains(&one);
            assert!(
                self.arrived.contains(&one) || self.gaps.iter().any(covers),
                "{one} is lost"
            );
        }
    }

    async fn restart(&mut self, bits: u64) {
        self.store.close().await;
        self.store = open(self.folder.path(), self.log_tail_bytes).await;
        owner(&self.store, self.id).move_what_must().await;
        let records = self.in_flight.drain(..).flat_map(|batch| batch.records);
        for (at, record) in records.enumerate() {
            if bits >> (at % 64) & 1 == 1 && record.gap.is_none() {
                self.arrived.insert(record.sequence);
            }
        }
        self.delivery = Delivery::new(self.id);
        self.cursor = 1;
    }
}

async fn run(steps: Vec<Step>, log_tail_bytes: usize) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), log_tail_bytes).await;
    let id = configure(&store, "acme").await;
    let mut run = Run {
        folder,
        store,
        log_tail_bytes,
        id,
        delivery: Delivery::new(id),
        cursor: 1,
        in_flight: Vec::new(),
        accepted: 0,
        pending: BTreeSet::new(),
        expired: BTreeSet::new(),
        arrived: BTreeSet::new(),
        gaps: Vec::new(),
    };
    for step in steps {
        match step {
            Step::Append(count) => run.append(count).await,
            Step::Send => drop(run.send().await),
            Step::Answer(which, bits) => run.answer(which, bits),
            Step::Expire(old, kept, chunks, steps) => run.expire(old, kept, chunks, steps).await,
            Step::Refuse(bits) => run.refuse(bits).await,
            Step::Damage(which) => run.damage(which).await,
            Step::Restart(bits) => run.restart(bits).await,
        }
        run.check().await;
    }
    run.drain().await;
    run.store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn nothing_is_lost_and_gaps_cover_what_expired(
        steps in prop::collection::vec(step(), 1..60),
        log_tail_bytes in tail_bytes(),
    ) {
        block_on(run(steps, log_tail_bytes));
    }
}
