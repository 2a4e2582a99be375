//! Guarantees of [`Ledger`](crate::store::ports::Ledger) and
//! the epochs of leases, by comparison with a model.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Checked, Content, Damage, Engine, Harness, Ports, call, case, ensure, ids, interrupt,
    oracle::{Model, Row},
    some_polls,
};
use crate::{
    domain::{
        chunk::{self, Chunk},
        event::GapReason,
        integration::IntegrationId,
        segment,
        sequences::Sequences,
    },
    store::{
        error::StoreError,
        ports::{
            Anchor, BacklogChange, Checkpoint, Counts, Lease, LedgerRow, LedgerUpdate, Position,
        },
    },
};

pub(super) async fn suite(harness: &dyn Harness, rounds: u64) -> Checked {
    case("ledger: fencing", fencing(harness)).await?;
    case("ledger: limits of reads", limits(harness)).await?;
    case("ledger: damaged chunk", damaged(harness)).await?;
    case("ledger: deleted integrations", deleted(harness)).await?;
    for polls in 0..20 {
        case(
            format!("ledger: settle interrupted after {polls} polls"),
            interrupted(harness, polls),
        )
        .await?;
    }
    for seed in 0..rounds {
        case(
            format!("ledger: random operations, seed {seed}"),
            random(harness, seed, 40),
        )
        .await?;
    }
    Ok(())
}

/// A ledger beside its model.
struct Pair {
    engine: Box<dyn Engine>,
    model: Model,
    ids: Vec<IntegrationId>,
    leases: Vec<Lease>,
    lapsed: Vec<Lease>,
    random: StdRng,
    content: Content,
    /// Microseconds since the epoch; every chunk has a later time than the ones before.
    now: i64,
}

impl Pair {
    async fn new(harness: &dyn Harness, seed: u64) -> Checked<Self> {
        let mut pair = Self {
            engine: harness.create().await?,
            model: Model::default(),
            ids: ids(4),
            leases: Vec::new(),
            lapsed: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            content: Content::new(seed),
            now: 1_800_000_000_000_000,
        };
        let partitions = pair.ports().log.partitions();
        for (number, id) in (0..).zip(&pair.ids) {
            let partition = number % partitions;
            pair.engine.add_integration(*id, partition).await?;
            pair.model.integrations.insert(*id, partition);
        }
        pair.acquire().await?;
        Ok(pair)
    }

    fn ports(&self) -> Ports {
        self.engine.ports()
    }

    async fn acquire(&mut self) -> Checked {
        let leases = call("acquire", self.ports().acquire.acquire()).await?;
        let partitions = self.ports().log.partitions();
        ensure!(
            leases.len() == partitions as usize,
            "a sole owner got {} of {partitions} partitions",
            leases.len()
        );
        for lease in &leases {
            let before = self.model.epochs.insert(lease.partition, lease.epoch);
            ensure!(
                before.is_none_or(|before| before < lease.epoch),
                "epoch {} follows {before:?}",
                lease.epoch
            );
        }
        self.lapsed.append(&mut self.leases);
        self.leases = leases;
        Ok(())
    }

    fn lease(&self, id: IntegrationId) -> Lease {
        let partition = self.model.integrations.get(&id).copied().unwrap_or(0);
        let lease = self
            .leases
            .iter()
            .find(|lease| lease.partition == partition);
        *lease.unwrap_or(&self.leases[0])
    }

    async fn crash(&mut self) -> Checked {
        self.engine.crash().await?;
        self.acquire().await
    }

    fn time(&mut self) -> Timestamp {
        self.now += self.random.random_range(1..5_000_000);
        Timestamp::from_microsecond(self.now).unwrap_or_default()
    }

    fn row(&self, id: IntegrationId) -> Row {
        self.model.rows.get(&id).cloned().unwrap_or_default()
    }

    fn checkpoint(&mut self, id: IntegrationId, events: u64) -> Checkpoint {
        let before = self.row(id).checkpoint;
        let next_sequence = before.next_sequence.max(1) + events;
        let mut settled = Sequences::default();
        for _ in 0..self.random.random_range(0..4) {
            let first = next_sequence + self.random.random_range(0..300);
            settled.insert(first, first + self.random.random_range(0..40));
        }
        let accepted = next_sequence - 1
            + settled
                .iter()
                .last()
                .map_or(0, |last| last + 1 - next_sequence);
        let expired = self.random.random_range(0..=accepted / 2);
        Checkpoint {
            next_sequence,
            position: Position(before.position.0 + self.random.random_range(0..9)),
            settled,
            counts: Counts {
                accepted,
                delivered: self.random.random_range(0..=accepted - expired),
                expired,
                pending_bytes: self.random.random_range(0..1 << 40),
            },
            last_attempt: self.random.random_bool(0.7).then(|| self.time()),
            last_delivery: self.random.random_bool(0.7).then(|| self.time()),
        }
    }

    /// Chunk of which some events may be settled or given up, but not all are settled.
    fn chunk(&mut self, first_sequence: u64) -> Chunk {
        let count = match self.random.random_range(0..8) {
            0 => 500,
            1 => 1,
            _ => self.random.random_range(1..20),
        };
        let mut chunk = Chunk {
            first_sequence,
            count,
            accepted_at: self.time(),
            segment: self.content.segment(count),
            settled: Sequences::default(),
            gaps: Vec::new(),
            pending_bytes: 0,
            traces: Vec::new(),
        };
        let segment = chunk.segment.clone();
        if self.random.random_bool(0.5) {
            self.advance(&mut chunk, &segment);
        }
        if chunk.is_finished() {
            chunk.settled = Sequences::default();
        }
        finish(&mut chunk, &segment);
        if chunk.pending_events() == 0 {
            chunk.segment = Bytes::new();
        }
        chunk
    }

    /// Settles some events or gaps of a chunk, or gives some up.
    fn advance(&mut self, chunk: &mut Chunk, segment: &Bytes) {
        let (first, last) = (chunk.first_sequence, chunk.last_sequence());
        let random = &mut self.random;
        let some = Sequences::range(
            random.random_range(first..=last),
            random.random_range(first..=last),
        );
        match random.random_range(0..5) {
            0 => chunk.settle(&Sequences::range(first, last)),
            1 => drop(chunk::give_up(std::slice::from_mut(chunk), |_, _| {
                Some(GapReason::RetentionAge)
            })),
            2 => drop(chunk::give_up(
                std::slice::from_mut(chunk),
                |_, sequence| some.contains(sequence).then_some(GapReason::RecordRefused),
            )),
            _ => {
                let bits = random.random::<u64>();
                let settled = (first..=last).filter(|one| bits >> (one % 64) & 1 == 1);
                chunk.settle(&settled.collect());
            }
        }
        finish(chunk, segment);
    }

    fn update(&mut self, id: IntegrationId) -> LedgerUpdate {
        let row = self.row(id);
        let mut next = row.checkpoint.next_sequence.max(1);
        let mut backlog = Vec::new();
        for chunk in row.backlog.values() {
            if !self.random.random_bool(0.4) {
                continue;
            }
            let mut new = chunk.clone();
            if self.model.damaged.contains(&(id, chunk.first_sequence)) {
                give_up_all(&mut new);
                backlog.push(BacklogChange::SetAside(new));
                continue;
            }
            self.advance(&mut new, &chunk.segment);
            new.segment = self.content.segment(1);
            backlog.push(match self.random.random_range(0..8) {
                0 => BacklogChange::SetAside(new),
                _ => BacklogChange::Update(new),
            });
        }
        let events_before = next;
        for _ in 0..self.random.random_range(0..3) {
            let chunk = self.chunk(next);
            next = chunk.end_sequence() + self.random.random_range(0..2) * 7;
            backlog.push(BacklogChange::Add(chunk));
        }
        LedgerUpdate {
            integration_id: id,
            checkpoint: self.checkpoint(id, next - events_before),
            backlog,
        }
    }

    /// Updates of some integrations of the partition of one of them.
    fn updates(&mut self) -> (Lease, Vec<LedgerUpdate>, Option<Anchor>) {
        let exist: Vec<IntegrationId> = self.model.integrations.keys().copied().collect();
        let of = exist[self.random.random_range(0..exist.len())];
        let lease = self.lease(of);
        let mut updates = Vec::new();
        for id in self.ids.clone() {
            let partition = self.model.integrations.get(&id);
            if partition == Some(&lease.partition) && (id == of || self.random.random_bool(0.5)) {
                updates.push(self.update(id));
            }
        }
        if self.random.random_bool(0.2) {
            let unknown = ids(50)[self.random.random_range(20..50)];
            let at = self.random.random_range(0..=updates.len());
            let update = self.update(unknown);
            updates.insert(at, update);
        }
        if self.random.random_bool(0.2) {
            // A repetition of an earlier settlement, beside changes of others.
            let at = self.random.random_range(0..updates.len());
            let update = &mut updates[at];
            let stored = self.row(update.integration_id).checkpoint.next_sequence;
            if stored > 1 {
                update.checkpoint.next_sequence = self.random.random_range(1..stored);
            }
        }
        let anchor = self.random.random_bool(0.6).then(|| Anchor {
            position: Position(self.random.random_range(0..1 << 50)),
            entry_id: self.random.random(),
        });
        (lease, updates, anchor)
    }

    async fn settle(
        &mut self,
        lease: Lease,
        updates: &[LedgerUpdate],
        anchor: Option<Anchor>,
    ) -> Checked {
        let settle = self.ports().ledger;
        call("settle", settle.settle(lease, updates.to_vec(), anchor)).await?;
        let settled = self.model.settle(lease, updates, anchor);
        settled.map_err(|error| format!("the model refuses a settle: {error}"))
    }

    /// Compares the whole ledger with a model.
    async fn compare(&mut self, model: &Model) -> Checked {
        let ledger = self.ports().ledger;
        for lease in &self.leases {
            let due = model.load(lease.partition);
            let loaded = call("load", ledger.load(*lease)).await?;
            ensure!(
                loaded.anchor == due.anchor,
                "the anchor is {:?} instead of {:?}",
                loaded.anchor,
                due.anchor
            );
            let normal = |rows: Vec<LedgerRow>| {
                let mut all = BTreeMap::new();
                for row in rows {
                    let mut checkpoint = row.checkpoint;
                    checkpoint.next_sequence = checkpoint.next_sequence.max(1);
                    let is_new = checkpoint.next_sequence == 1
                        && checkpoint.position == Position(0)
                        && row.backlog_since.is_none();
                    let value = (checkpoint, row.backlog_since, row.backlog_bytes);
                    let id = row.integration_id;
                    if !is_new && all.insert(id, value).is_some() {
                        return Err(format!("{id} is loaded twice"));
                    }
                }
                Ok(all)
            };
            let ids: Vec<IntegrationId> = model.integrations.keys().copied().collect();
            let mut of_ids = call("rows_of", ledger.rows_of(&ids)).await?;
            let partition_of = |row: &LedgerRow| model.integrations.get(&row.integration_id);
            of_ids.retain(|row| partition_of(row) == Some(&lease.partition));
            let (of_ids, loaded) = (normal(of_ids)?, normal(loaded.integrations)?);
            ensure!(
                of_ids == loaded,
                "rows_of returns {of_ids:?}\ninstead of {loaded:?}"
            );
            let due = normal(due.integrations)?;
            ensure!(
                loaded == due,
                "partition {} loads {loaded:?}\ninstead of {due:?}",
                lease.partition
            );
        }
        for id in self.ids.clone() {
            if model.integrations.contains_key(&id) {
                self.compare_backlog(model, id).await?;
            }
        }
        let exist: Vec<IntegrationId> = model.integrations.keys().copied().collect();
        let oldest = call("oldest_pending", ledger.oldest_pending(&exist)).await?;
        for id in &exist {
            let (found, due) = (oldest.get(id), model.oldest_pending(*id));
            ensure!(
                found.copied() == due,
                "the oldest pending event is of {found:?} instead of {due:?}"
            );
        }
        Ok(())
    }

    async fn compare_backlog(&mut self, model: &Model, id: IntegrationId) -> Checked {
        let ledger = self.ports().ledger;
        let row = model.rows.get(&id).cloned().unwrap_or_default();
        let end = row.backlog.values().last().map_or(1, Chunk::end_sequence);
        for round in 0..3 {
            let (from, limit, bytes) = match round {
                0 => (0, 10_000, 1 << 30),
                _ => (
                    self.random.random_range(0..=end + 1),
                    self.random.random_range(1..5),
                    self.random.random_range(1..60_000),
                ),
            };
            let states = call("backlog_states", ledger.backlog_states(id, from, limit)).await?;
            let due: Vec<Chunk> = row.from(from).take(limit).map(Chunk::state).collect();
            ensure!(
                states == due,
                "the states from {from}, at most {limit}, are {states:?}\ninstead of {due:?}"
            );
            let mut due: Vec<&Chunk> = row.from(from).collect();
            let damaged = due
                .iter()
                .position(|chunk| model.damaged.contains(&(id, chunk.first_sequence)));
            if damaged == Some(0) {
                continue;
            }
            due.truncate(damaged.unwrap_or(due.len()));
            let read = call("read_backlog", ledger.read_backlog(id, from, bytes)).await?;
            check_read(&read, &due, bytes)
                .map_err(|violation| format!("a read from {from} of {bytes} bytes: {violation}"))?;
        }
        Ok(())
    }
}

fn check_read(read: &[Chunk], due: &[&Chunk], max_bytes: usize) -> Checked {
    ensure!(
        read.is_empty() == due.is_empty() && read.len() <= due.len(),
        "{} chunks of {}",
        read.len(),
        due.len()
    );
    for (chunk, due) in read.iter().zip(due) {
        ensure!(
            chunk == *due,
            "chunk {:?} instead of {:?}, segments equal: {}",
            chunk.state(),
            due.state(),
            chunk.segment == due.segment
        );
    }
    let bytes = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.pending_bytes).sum::<u64>();
    if let Some((_, before)) = read.split_last() {
        ensure!(
            bytes(before) <= 2 * max_bytes as u64,
            "{} bytes and another chunk",
            bytes(before)
        );
    }
    ensure!(
        read.len() == due.len() || read.len() > 1 || max_bytes < 1 << 20,
        "one chunk only"
    );
    Ok(())
}

fn finish(chunk: &mut Chunk, segment: &Bytes) {
    let mut not_pending = chunk.settled.clone();
    for gap in &chunk.gaps {
        not_pending.add(gap.last_sequence);
    }
    chunk.pending_bytes = match segment.is_empty() {
        true => 0,
        false => segment::pending_bytes(segment, chunk.first_sequence, &not_pending),
    };
}

fn give_up_all(chunk: &mut Chunk) {
    chunk::give_up(std::slice::from_mut(chunk), |_, _| {
        Some(GapReason::LogDamaged)
    });
    chunk.pending_bytes = 0;
    chunk.segment = Bytes::new();
}

/// Applies `steps` random operations, and compares after each.
pub(super) async fn random(harness: &dyn Harness, seed: u64, steps: usize) -> Checked {
    let mut pair = Pair::new(harness, seed).await?;
    for step in 0..steps {
        let done = operation(&mut pair).await;
        done.map_err(|violation| format!("step {step}: {violation}"))?;
        let model = pair.model.clone();
        let compared = pair.compare(&model).await;
        compared.map_err(|violation| format!("after step {step}: {violation}"))?;
    }
    Ok(())
}

async fn operation(pair: &mut Pair) -> Checked {
    let (lease, updates, anchor) = pair.updates();
    match pair.random.random_range(0..20) {
        0 => pair.crash().await,
        1 => pair.acquire().await,
        2 if pair.model.integrations.len() > 2 => {
            let exists = |id: &IntegrationId| pair.model.integrations.contains_key(id);
            let mut ids = updates.iter().map(|update| update.integration_id);
            let Some(id) = ids.find(exists) else {
                return Ok(());
            };
            pair.engine.delete_integration(id).await?;
            pair.model.integrations.remove(&id);
            // The others are settled, this one is ignored.
            pair.settle(lease, &updates, anchor).await?;
            remove_deleted(pair).await
        }
        3 => {
            let Some(lapsed) = pair.lapsed.last().copied() else {
                return Ok(());
            };
            let answer = pair.ports().ledger.settle(lapsed, updates, anchor).await;
            ensure!(
                matches!(answer, Err(StoreError::Fenced)),
                "a settle under an earlier epoch is answered by {answer:?}"
            );
            Ok(())
        }
        4..=6 => interrupt_settle(pair, None).await,
        7 => {
            pair.settle(lease, &updates, anchor).await?;
            pair.settle(lease, &updates, anchor).await
        }
        8 => {
            pair.settle(lease, &updates, anchor).await?;
            pair.crash().await
        }
        9 => {
            // At the same time as an append, and a read.
            let id = updates[0].integration_id;
            let entry = pair.content.entry(&pair.ids);
            let ports = pair.ports();
            let (settled, appended, read) = tokio::join!(
                pair.settle(lease, &updates, anchor),
                call("append", ports.log.append(lease.partition, vec![entry])),
                call("backlog_states", ports.ledger.backlog_states(id, 0, 5)),
            );
            settled.and(appended).and(read.map(drop))
        }
        10 => {
            let Some((id, first)) = pair.row_with_backlog() else {
                return Ok(());
            };
            if pair.engine.damage(Damage::Backlog(id, first)).await? {
                pair.model.damaged.insert((id, first));
                pair.crash().await?;
            }
            Ok(())
        }
        _ => pair.settle(lease, &updates, anchor).await,
    }
}

impl Pair {
    /// A chunk with pending events that is not damaged yet.
    fn row_with_backlog(&mut self) -> Option<(IntegrationId, u64)> {
        let rows = self.model.rows.iter();
        let chunks = rows.flat_map(|(id, row)| row.backlog.values().map(move |one| (*id, one)));
        let chunks = chunks.filter(|(id, chunk)| {
            let is_damaged = self.model.damaged.contains(&(*id, chunk.first_sequence));
            chunk.pending_events() > 0 && !is_damaged
        });
        let chunks: Vec<_> = chunks
            .map(|(id, chunk)| (id, chunk.first_sequence))
            .collect();
        let at = self.random.random_range(0..chunks.len().max(1));
        chunks.get(at).copied()
    }
}

/// A settle that is cut off by a crash has happened as a whole, or not at all.
async fn interrupt_settle(pair: &mut Pair, polls: Option<u32>) -> Checked {
    let (lease, updates, anchor) = pair.updates();
    let polls = polls.unwrap_or_else(|| some_polls(&mut pair.random));
    let ports = pair.ports();
    let settle = ports.ledger.settle(lease, updates.clone(), anchor);
    let answer = interrupt(polls, settle).await;
    drop(ports);
    let mut after = pair.model.clone();
    let settled = after.settle(lease, &updates, anchor);
    settled.map_err(|error| format!("the model refuses a settle: {error}"))?;
    let before = std::mem::replace(&mut pair.model, after.clone());
    pair.crash().await?;
    after.epochs = pair.model.epochs.clone();
    match (answer, pair.compare(&after).await) {
        (_, Ok(())) => Ok(()),
        (Some(Ok(())), Err(violation)) => Err(format!("an answered settle: {violation}")),
        (None, Err(violation)) => {
            pair.model = Model {
                epochs: after.epochs,
                ..before
            };
            let before = pair.model.clone();
            let compared = pair.compare(&before).await;
            compared.map_err(|other| {
                format!("neither as before nor as after a settle: {other}\nand {violation}")
            })
        }
        (Some(answer), _) => Err(format!("settle: {answer:?}")),
    }
}

async fn interrupted(harness: &dyn Harness, polls: u32) -> Checked {
    let mut pair = Pair::new(harness, u64::from(polls) + 1_000).await?;
    for _ in 0..4 {
        let (lease, updates, anchor) = pair.updates();
        pair.settle(lease, &updates, anchor).await?;
        interrupt_settle(&mut pair, Some(polls)).await?;
    }
    Ok(())
}

async fn fencing(harness: &dyn Harness) -> Checked {
    let mut pair = Pair::new(harness, 1).await?;
    for _ in 0..6 {
        let (lease, updates, anchor) = pair.updates();
        pair.settle(lease, &updates, anchor).await?;
        pair.acquire().await?;
        let (lease_now, updates, _) = pair.updates();
        let anchor = Some(Anchor {
            position: Position(77),
            entry_id: [7; 16],
        });
        let lapsed = pair.lapsed.iter();
        let lapsed: Vec<Lease> = lapsed
            .filter(|one| one.partition == lease_now.partition)
            .copied()
            .collect();
        for lease in lapsed {
            let ledger = pair.ports().ledger;
            let answer = ledger.settle(lease, updates.clone(), anchor).await;
            ensure!(
                matches!(answer, Err(StoreError::Fenced)),
                "a settle under an earlier epoch is answered by {answer:?}"
            );
            let answer = ledger.settle(lease, Vec::new(), anchor).await;
            ensure!(
                matches!(answer, Err(StoreError::Fenced)),
                "an anchor under an earlier epoch is answered by {answer:?}"
            );
            let model = pair.model.clone();
            pair.compare(&model).await?;
        }
        // The new owner is not hindered.
        let (lease, updates, anchor) = pair.updates();
        pair.settle(lease, &updates, anchor).await?;
        let model = pair.model.clone();
        pair.compare(&model).await?;
    }
    Ok(())
}

async fn backlog(pair: &mut Pair, id: IntegrationId, chunks: usize) -> Checked {
    let mut next = pair.row(id).checkpoint.next_sequence.max(1);
    let mut changes = Vec::new();
    let before = next;
    for _ in 0..chunks {
        let count = pair.random.random_range(1..30);
        let segment = pair.content.segment(count);
        let mut chunk = Chunk {
            first_sequence: next,
            count,
            accepted_at: pair.time(),
            segment: segment.clone(),
            settled: Sequences::default(),
            gaps: Vec::new(),
            pending_bytes: 0,
            traces: Vec::new(),
        };
        finish(&mut chunk, &segment);
        next = chunk.end_sequence();
        changes.push(BacklogChange::Add(chunk));
    }
    let update = LedgerUpdate {
        integration_id: id,
        checkpoint: pair.checkpoint(id, next - before),
        backlog: changes,
    };
    pair.settle(pair.lease(id), &[update], None).await
}

async fn limits(harness: &dyn Harness) -> Checked {
    let mut pair = Pair::new(harness, 2).await?;
    let id = pair.ids[0];
    backlog(&mut pair, id, 150).await?;
    let row = pair.row(id);
    for max_bytes in [0, 1, 5_000, 100_000, 1 << 30] {
        let (mut from, mut read) = (1, Vec::new());
        loop {
            let ledger = pair.ports().ledger;
            let chunks = call("read_backlog", ledger.read_backlog(id, from, max_bytes)).await?;
            let due: Vec<&Chunk> = row.from(from).collect();
            check_read(&chunks, &due, max_bytes)?;
            let Some(last) = chunks.last() else { break };
            // The last event of a chunk is enough to have the chunk returned.
            let again = ledger.read_backlog(id, last.last_sequence(), 1);
            let again = call("read_backlog", again).await?;
            ensure!(
                again.first() == Some(last),
                "a read from its last sequence does not return chunk {:?}",
                last.state()
            );
            from = last.end_sequence();
            read.extend(chunks);
        }
        ensure!(
            read.iter().eq(row.backlog.values()),
            "reads of {max_bytes} bytes return {} of {} chunks",
            read.len(),
            row.backlog.len()
        );
    }
    let model = pair.model.clone();
    pair.compare(&model).await
}

async fn damaged(harness: &dyn Harness) -> Checked {
    let mut pair = Pair::new(harness, 3).await?;
    let id = pair.ids[1];
    backlog(&mut pair, id, 5).await?;
    let chunks: Vec<Chunk> = pair.row(id).backlog.into_values().collect();
    if !pair
        .engine
        .damage(Damage::Backlog(id, chunks[2].first_sequence))
        .await?
    {
        return Ok(());
    }
    pair.model.damaged.insert((id, chunks[2].first_sequence));
    pair.crash().await?;
    let ledger = pair.ports().ledger;
    let before = call("read_backlog", ledger.read_backlog(id, 0, 1 << 30)).await?;
    ensure!(
        before == chunks[..2],
        "before a damaged chunk {} chunks are read instead of 2",
        before.len()
    );
    let answer = ledger
        .read_backlog(id, chunks[2].first_sequence, 1 << 30)
        .await;
    ensure!(
        matches!(answer, Err(StoreError::DamagedChunk { first_sequence })
            if first_sequence == chunks[2].first_sequence),
        "a damaged chunk is read as {answer:?}"
    );
    let after = ledger.read_backlog(id, chunks[3].first_sequence, 1 << 30);
    ensure!(
        call("read_backlog", after).await? == chunks[3..],
        "the chunks after a damaged one are not read"
    );
    let mut aside = chunks[2].clone();
    give_up_all(&mut aside);
    let update = LedgerUpdate {
        integration_id: id,
        checkpoint: pair.checkpoint(id, 0),
        backlog: vec![BacklogChange::SetAside(aside)],
    };
    for _ in 0..2 {
        let update = update.clone();
        pair.settle(pair.lease(id), &[update], None).await?;
        let model = pair.model.clone();
        pair.compare(&model).await?;
        pair.crash().await?;
        pair.compare(&model).await?;
    }
    Ok(())
}

async fn remove_deleted(pair: &mut Pair) -> Checked {
    for _ in 0..1_000 {
        if call("remove_deleted", pair.ports().ledger.remove_deleted()).await? {
            let Model {
                integrations, rows, ..
            } = &mut pair.model;
            rows.retain(|id, _| integrations.contains_key(id));
            for id in &pair.ids {
                if !integrations.contains_key(id) {
                    let states = pair.engine.ports().ledger;
                    let states = call("backlog_states", states.backlog_states(*id, 0, 5)).await?;
                    ensure!(
                        states.is_empty(),
                        "chunks of a deleted integration are left"
                    );
                }
            }
            return Ok(());
        }
    }
    Err("remove_deleted does not end".into())
}

async fn deleted(harness: &dyn Harness) -> Checked {
    let mut pair = Pair::new(harness, 4).await?;
    ensure!(
        call("remove_deleted", pair.ports().ledger.remove_deleted()).await?,
        "something is left to remove where nothing was deleted"
    );
    let (gone, kept) = (pair.ids[0], pair.ids[1]);
    backlog(&mut pair, gone, 200).await?;
    backlog(&mut pair, kept, 3).await?;
    pair.engine.delete_integration(gone).await?;
    pair.model.integrations.remove(&gone);
    let update = |pair: &mut Pair, id| LedgerUpdate {
        integration_id: id,
        checkpoint: pair.checkpoint(id, 9),
        backlog: vec![BacklogChange::Add(pair.chunk(9_000))],
    };
    let updates = [update(&mut pair, gone), update(&mut pair, kept)];
    pair.settle(pair.lease(kept), &updates[1..], None).await?;
    pair.settle(pair.lease(gone), &updates[..1], None).await?;
    remove_deleted(&mut pair).await?;
    pair.crash().await?;
    remove_deleted(&mut pair).await?;
    let model = pair.model.clone();
    pair.compare(&model).await
}
