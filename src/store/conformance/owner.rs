//! A small owner of one partition over a log and a ledger, under crashes: numbers events, sends
//! them to a stream, moves chunks to the backlog, settles and trims.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Checked, Content, Damage, Engine, Harness, Ports, call, case, check_content, ensure, ids,
    interrupt, read, some_polls,
};
use crate::{
    domain::{
        chunk::{self, Chunk},
        event::{Gap, GapReason},
        integration::IntegrationId,
        segment,
        sequences::Sequences,
    },
    store::{
        memory::Fault,
        ports::{
            Anchor, BacklogChange, Checkpoint, Entry, EntryId, Lease, LedgerUpdate, LogReader,
            NewEntry, Position,
        },
    },
};

pub(super) async fn suite(harness: &dyn Harness, rounds: u64) -> Checked {
    for seed in 0..rounds {
        case(
            format!("owner: crashes, seed {seed}"),
            crashes(harness, seed),
        )
        .await?;
    }
    case("owner: lost log", lost_log(harness)).await
}

/// Events of one chunk, as the first owner that read them numbered them.
struct Numbered {
    count: u32,
    accepted_at: Timestamp,
    segment: Bytes,
}

/// Records that a stream received.
#[derive(Default)]
struct Stream {
    events: Sequences,
    /// Gaps by their last sequence.
    gaps: BTreeMap<u64, Gap>,
}

/// Engine and expected content, which outlive an owner.
struct World {
    engine: Box<dyn Engine>,
    random: StdRng,
    content: Content,
    ids: Vec<IntegrationId>,
    acked: BTreeMap<EntryId, NewEntry>,
    /// Not acknowledged: may be kept.
    doubtful: BTreeMap<EntryId, NewEntry>,
    /// Entries whose events are unreadable.
    damaged: BTreeSet<EntryId>,
    /// First sequence of each chunk of each entry that was ever read.
    sequences: BTreeMap<(EntryId, usize), u64>,
    /// Position of each entry that was ever read.
    positions: BTreeMap<EntryId, Position>,
    numbered: BTreeMap<(IntegrationId, u64), Numbered>,
    streams: BTreeMap<IntegrationId, Stream>,
}

struct TailEntry {
    anchor: Anchor,
    chunks: Vec<(IntegrationId, Chunk)>,
}

#[derive(Default)]
struct Queue {
    /// Sequence of the next event that is read.
    next_sequence: u64,
    /// In memory; durable with the next flush.
    checkpoint: Checkpoint,
    changes: Vec<BacklogChange>,
}

struct Owner {
    lease: Lease,
    anchor: Option<Anchor>,
    reader: Box<dyn LogReader>,
    last_read: Position,
    tail: VecDeque<TailEntry>,
    queues: BTreeMap<IntegrationId, Queue>,
}

impl World {
    async fn new(harness: &dyn Harness, seed: u64) -> Checked<Self> {
        let engine = harness.create().await?;
        let ids = ids(3);
        for id in &ids {
            engine.add_integration(*id, 0).await?;
        }
        Ok(Self {
            engine,
            random: StdRng::seed_from_u64(seed),
            content: Content::new(seed),
            ids,
            acked: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            damaged: BTreeSet::new(),
            sequences: BTreeMap::new(),
            positions: BTreeMap::new(),
            numbered: BTreeMap::new(),
            streams: BTreeMap::new(),
        })
    }

    fn ports(&self) -> Ports {
        self.engine.ports()
    }

    /// Appends entries. Returns whether they were acknowledged.
    async fn append(&mut self, polls: u32) -> Checked {
        let entries = self.content.entries(&self.ids, 3);
        let ports = self.ports();
        let append = ports.log.append(0, entries.clone());
        let acked = match polls {
            u32::MAX => call("append", append).await.map(|()| true)?,
            polls => matches!(interrupt(polls, append).await, Some(Ok(()))),
        };
        let of = if acked {
            &mut self.acked
        } else {
            &mut self.doubtful
        };
        of.extend(entries.into_iter().map(|entry| (entry.id, entry)));
        Ok(())
    }

    async fn append_with(&mut self, fault: Fault) -> Checked {
        if !self.engine.inject(fault) {
            return Ok(());
        }
        let entries = self.content.entries(&self.ids, 3);
        let ports = self.ports();
        let answer = ports.log.append(0, entries.clone()).await;
        ensure!(answer.is_err(), "{fault:?} is answered as done");
        if let Fault::Unavailable { .. } = fault {
            self.doubtful
                .extend(entries.into_iter().map(|entry| (entry.id, entry)));
        }
        Ok(())
    }

    /// Checks an entry that was read, and that its chunk has the sequence that it had before.
    fn number(&mut self, entry: &Entry, at: usize, first_sequence: u64) -> Checked {
        let chunk = &entry.chunks[at];
        let before = self.sequences.insert((entry.id, at), first_sequence);
        if before == Some(first_sequence) {
            return Ok(());
        }
        ensure!(
            before.is_none(),
            "chunk {at} of entry {} gets sequence {first_sequence}, and had {before:?} before",
            entry.position.0
        );
        let numbered = Numbered {
            count: chunk.count,
            accepted_at: entry.accepted_at,
            segment: chunk.segment.clone().unwrap_or_default(),
        };
        let taken = self
            .numbered
            .insert((chunk.integration_id, first_sequence), numbered);
        ensure!(
            taken.is_none(),
            "sequence {first_sequence} of {} is used for two chunks",
            chunk.integration_id
        );
        Ok(())
    }

    fn check_entry(&mut self, entry: &Entry) -> Checked {
        let appended = self.acked.get(&entry.id).or(self.doubtful.get(&entry.id));
        let appended = appended.ok_or(format!(
            "entry {} was refused, or never appended",
            entry.position.0
        ))?;
        if !self.damaged.contains(&entry.id) {
            check_content(entry, appended)?;
        }
        let before = self.positions.insert(entry.id, entry.position);
        ensure!(
            before.is_none_or(|before| before == entry.position),
            "entry {} was at {before:?} before",
            entry.position.0
        );
        Ok(())
    }

    fn send(&mut self, id: IntegrationId, sequences: &Sequences) {
        self.streams.entry(id).or_default().events.extend(sequences);
    }

    async fn crash(&mut self) -> Checked<Owner> {
        self.engine.crash().await?;
        Owner::start(self).await
    }

    /// At the end, with nothing pending.
    fn audit(&self, owner: &Owner) -> Checked {
        for (id, entry) in &self.acked {
            ensure!(
                (0..entry.chunks.len()).all(|at| self.sequences.contains_key(&(*id, at))),
                "an acked entry was never read"
            );
        }
        for (id, queue) in &owner.queues {
            let mut next = 1;
            for ((_, first), numbered) in self.numbered.range((*id, 0)..=(*id, u64::MAX)) {
                ensure!(
                    *first == next,
                    "the chunk with sequence {first} of {id} follows {}",
                    next - 1
                );
                next += u64::from(numbered.count);
            }
            let (counts, empty) = (queue.checkpoint.counts, Stream::default());
            let stream = self.streams.get(id).unwrap_or(&empty);
            ensure!(
                counts.accepted == next - 1 && counts.delivered + counts.expired == counts.accepted,
                "{} events of {id} were accepted, and the counts are {counts:?}",
                next - 1
            );
            let announced: u64 = stream.gaps.values().map(|gap| gap.count).sum();
            ensure!(
                announced == counts.expired,
                "{} events of {id} expired, and gaps announced {announced}",
                counts.expired
            );
            let mut all = stream.events.clone();
            for gap in stream.gaps.values() {
                all.insert(gap.first_sequence, gap.last_sequence);
            }
            ensure!(
                next == 1 || all == Sequences::range(1, next - 1),
                "{} events of {id} were accepted, and the stream has {all:?}",
                next - 1
            );
        }
        Ok(())
    }
}

impl Owner {
    /// Takes over the partition, and verifies that the log continues where the ledger ends.
    async fn start(world: &mut World) -> Checked<Self> {
        let ports = world.ports();
        let leases = call("acquire", ports.acquire.acquire()).await?;
        let lease = leases.into_iter().find(|lease| lease.partition == 0);
        let lease = lease.ok_or("partition 0 has no owner")?;
        let snapshot = call("load", ports.ledger.load(lease)).await?;
        let bounds = call("bounds", ports.log.bounds(0)).await?;
        let from = snapshot
            .anchor
            .map_or(Position(0), |anchor| anchor.position);
        let mut reader = call("reader", ports.log.reader(0, from)).await?;
        if let Some(anchor) = snapshot.anchor {
            ensure!(
                anchor.position < bounds.end,
                "the log ends before its anchor {}",
                from.0
            );
            let entry = read(&mut reader).await?;
            ensure!(
                (entry.position, entry.id) == (anchor.position, anchor.entry_id),
                "the anchor {} is missing, or is another entry",
                from.0
            );
        }
        let mut queues: BTreeMap<_, Queue> = BTreeMap::new();
        for row in snapshot.integrations {
            let id = row.integration_id;
            let states = ports.ledger.backlog_states(id, 0, usize::MAX >> 1);
            let states = call("backlog_states", states).await?;
            check_counts(&row.checkpoint, &states)
                .map_err(|violation| format!("loaded for {id}: {violation}"))?;
            let bytes: u64 = states.iter().map(|chunk| chunk.pending_bytes).sum();
            ensure!(
                bytes == row.backlog_bytes
                    && states.first().map(|one| one.accepted_at) == row.backlog_since,
                "the backlog of {id} has {bytes} bytes, and {} are loaded",
                row.backlog_bytes
            );
            let queue = Queue {
                next_sequence: row.checkpoint.next_sequence.max(1),
                checkpoint: row.checkpoint,
                changes: Vec::new(),
            };
            queues.insert(id, queue);
        }
        for id in &world.ids {
            queues.entry(*id).or_insert_with(|| Queue {
                next_sequence: 1,
                ..Queue::default()
            });
        }
        Ok(Self {
            lease,
            anchor: snapshot.anchor,
            reader,
            last_read: from,
            tail: VecDeque::new(),
            queues,
        })
    }

    async fn read_one(&mut self, world: &mut World) -> Checked {
        let polls = some_polls(&mut world.random);
        let entry: Arc<Entry> = match interrupt(polls, self.reader.next()).await {
            Some(entry) => entry.map_err(|error| format!("next failed: {error:?}"))?,
            None => read(&mut self.reader).await?,
        };
        self.take(world, &entry)
    }

    /// Numbers the events of an entry that was read.
    fn take(&mut self, world: &mut World, entry: &Entry) -> Checked {
        ensure!(
            entry.position > self.last_read,
            "entry {} follows {}",
            entry.position.0,
            self.last_read.0
        );
        self.last_read = entry.position;
        world.check_entry(entry)?;
        let mut chunks = Vec::new();
        for (at, new) in entry.chunks.iter().enumerate() {
            let id = new.integration_id;
            let queue = self.queues.entry(id).or_default();
            if entry.position <= queue.checkpoint.position {
                ensure!(
                    world.sequences.contains_key(&(entry.id, at)),
                    "the checkpoint of {id} covers entry {}, which was never read",
                    entry.position.0
                );
                continue;
            }
            let first_sequence = queue.next_sequence;
            world.number(entry, at, first_sequence)?;
            queue.next_sequence += u64::from(new.count);
            queue.checkpoint.counts.accepted = queue.next_sequence - 1;
            let mut chunk = Chunk {
                first_sequence,
                count: new.count,
                accepted_at: entry.accepted_at,
                segment: new.segment.clone().unwrap_or_default(),
                settled: Sequences::default(),
                gaps: Vec::new(),
                pending_bytes: 0,
                traces: Vec::new(),
            };
            chunk.settle(&queue.checkpoint.settled);
            if new.segment.is_err() && !chunk.is_finished() {
                // It moves to the backlog as a gap.
                give_up(&mut chunk, GapReason::LogDamaged, |_| true);
            }
            chunks.push((id, chunk));
        }
        let anchor = Anchor {
            position: entry.position,
            entry_id: entry.id,
        };
        self.tail.push_back(TailEntry { anchor, chunks });
        self.advance();
        Ok(())
    }

    async fn read_available(&mut self, world: &mut World, most: usize) -> Checked {
        let end = call("bounds", world.ports().log.bounds(0)).await?.end;
        for _ in 0..most {
            if self.last_read.next() >= end {
                break;
            }
            self.read_one(world).await?;
        }
        Ok(())
    }

    /// Sends some events of the tail.
    fn deliver(&mut self, world: &mut World, all: bool) {
        for entry in &mut self.tail {
            for (id, chunk) in &mut entry.chunks {
                if !all && world.random.random_bool(0.5) {
                    continue;
                }
                let bits = world.random.random::<u64>();
                let sent: Sequences = (chunk.first_sequence..chunk.end_sequence())
                    .filter(|one| all || bits >> (one % 64) & 1 == 1)
                    .filter(|one| !chunk.settled.contains(*one) && !chunk.is_gap(*one))
                    .collect();
                world.send(*id, &sent);
                chunk.settle(&sent);
                if let Some(queue) = self.queues.get_mut(id) {
                    queue.checkpoint.counts.delivered += sent.count();
                    queue.checkpoint.settled.extend(&sent);
                }
            }
        }
        self.advance();
    }

    /// Moves the checkpoints past what is settled.
    fn advance(&mut self) {
        for id in self.queues.keys().copied().collect::<Vec<_>>() {
            while self.advance_one(id, false) {}
        }
        while let Some(entry) = self.tail.pop_front_if(|entry| entry.chunks.is_empty()) {
            self.anchor = Some(entry.anchor);
        }
    }

    /// Moves a checkpoint past the first entry of the integration in the tail, if that is settled
    /// or its chunks are to move to the backlog. Returns whether it did.
    fn advance_one(&mut self, id: IntegrationId, to_backlog: bool) -> bool {
        let mut entries = self.tail.iter_mut();
        let entry = entries.find(|entry| entry.chunks.iter().any(|(of, _)| *of == id));
        let (Some(entry), Some(queue)) = (entry, self.queues.get_mut(&id)) else {
            return false;
        };
        let mut chunks = entry.chunks.iter().filter(|(of, _)| *of == id);
        if !to_backlog && !chunks.all(|(_, chunk)| chunk.is_finished()) {
            return false;
        }
        for (_, mut chunk) in entry.chunks.extract_if(.., |(of, _)| *of == id) {
            queue.checkpoint.next_sequence = chunk.end_sequence();
            if chunk.is_finished() {
                continue;
            }
            queue.checkpoint.counts.expired += chunk.gaps.iter().map(|gap| gap.count).sum::<u64>();
            measure(&mut chunk);
            queue.changes.push(BacklogChange::Add(chunk));
        }
        let checkpoint = &mut queue.checkpoint;
        checkpoint.position = entry.anchor.position;
        checkpoint.settled.remove_below(checkpoint.next_sequence);
        true
    }

    /// Sends or gives up some events of the backlog. Gaps are sent only as they were read.
    async fn deliver_backlog(
        &mut self,
        world: &mut World,
        id: IntegrationId,
        from: u64,
        all: bool,
    ) -> Checked<bool> {
        let ledger = world.ports().ledger;
        let max_bytes = world.random.random_range(1..100_000);
        let chunks = call("read_backlog", ledger.read_backlog(id, from, max_bytes)).await?;
        let is_empty = chunks.is_empty();
        for chunk in chunks {
            let numbered = world.numbered.get(&(id, chunk.first_sequence));
            let numbered =
                numbered.ok_or(format!("no chunk begins at {}", chunk.first_sequence))?;
            ensure!(
                numbered.count == chunk.count && numbered.accepted_at == chunk.accepted_at,
                "the backlog has {:?}",
                chunk.state()
            );
            ensure!(
                chunk.pending_events() == 0 || numbered.segment == chunk.segment,
                "the events from sequence {} changed in the backlog",
                chunk.first_sequence
            );
            let stream = world.streams.entry(id).or_default();
            let mut new = chunk.clone();
            let bits = world.random.random::<u64>();
            let chosen = |one: u64| all || bits >> (one % 64) & 1 == 1;
            let mut settled = Sequences::default();
            for gap in chunk.gaps.iter().filter(|gap| chosen(gap.last_sequence)) {
                if let Some(other) = stream.gaps.insert(gap.last_sequence, *gap) {
                    ensure!(other == *gap, "{gap:?} was sent before as {other:?}");
                }
                settled.add(gap.last_sequence);
            }
            let given_up = match world.random.random_bool(0.3) {
                true => give_up(&mut new, GapReason::RecordRefused, |one| {
                    chosen(one) && !chunk.is_gap(one)
                }),
                false => 0,
            };
            let sent: Sequences = (chunk.first_sequence..chunk.end_sequence())
                .filter(|one| chosen(*one))
                .filter(|one| !new.settled.contains(*one) && !new.is_gap(*one))
                .collect();
            stream.events.extend(&sent);
            settled.extend(&sent);
            new.settle(&settled);
            measure(&mut new);
            let queue = self.queues.entry(id).or_default();
            queue.checkpoint.counts.expired += given_up;
            queue.checkpoint.counts.delivered += sent.count();
            queue.changes.push(BacklogChange::Update(new));
        }
        Ok(!is_empty)
    }

    fn updates(&self) -> Vec<LedgerUpdate> {
        let queues = self.queues.iter();
        let updates = queues.map(|(id, queue)| {
            let mut checkpoint = queue.checkpoint.clone();
            checkpoint.next_sequence = checkpoint.next_sequence.max(1);
            LedgerUpdate {
                integration_id: *id,
                checkpoint,
                backlog: queue.changes.clone(),
            }
        });
        updates.collect()
    }

    async fn flush(&mut self, world: &mut World) -> Checked {
        let ports = world.ports();
        let settle = ports.ledger.settle(self.lease, self.updates(), self.anchor);
        call("settle", settle).await?;
        if world.random.random_bool(0.2) {
            // A repetition changes nothing.
            let settle = ports.ledger.settle(self.lease, self.updates(), self.anchor);
            call("settle", settle).await?;
        }
        for queue in self.queues.values_mut() {
            queue.changes.clear();
        }
        if let Some(anchor) = self.anchor
            && world.random.random_bool(0.7)
        {
            call("trim", ports.log.trim(0, anchor.position)).await?;
        }
        Ok(())
    }

    async fn step(mut self, world: &mut World) -> Checked<Self> {
        match world.random.random_range(0..16) {
            0..=3 => world.append(u32::MAX).await?,
            4 => {
                let polls = some_polls(&mut world.random);
                world.append(polls).await?;
            }
            5 => {
                let fault = match world.random.random_range(0..4) {
                    0 => Fault::Full,
                    1 => Fault::Failed,
                    kept => Fault::Unavailable {
                        kept: kept - 2,
                        late: 1,
                    },
                };
                world.append_with(fault).await?;
            }
            6..=8 => self.read_available(world, 5).await?,
            9 => self.deliver(world, false),
            10 => {
                let id = world.ids[world.random.random_range(0..world.ids.len())];
                self.advance_one(id, true);
                self.advance();
            }
            11 => {
                let id = world.ids[world.random.random_range(0..world.ids.len())];
                self.flush(world).await?;
                let next = self.queues.get(&id).map_or(1, |queue| queue.next_sequence);
                let from = world.random.random_range(0..=next);
                self.deliver_backlog(world, id, from, false).await?;
                self.flush(world).await?;
            }
            12 => self.flush(world).await?,
            13 => {
                // A crash in the middle of an append and a flush, after what was read meanwhile
                // got its sequences.
                let polls = some_polls(&mut world.random);
                let entries = world.content.entries(&world.ids, 3);
                let (ports, updates) = (world.ports(), self.updates());
                let mut taken = Vec::new();
                let reading = async {
                    while let Ok(entry) = self.reader.next().await {
                        taken.push(entry);
                    }
                };
                let writing = async {
                    tokio::join!(
                        ports.ledger.settle(self.lease, updates, self.anchor),
                        ports.log.append(0, entries.clone()),
                    )
                };
                let both = async {
                    tokio::select! {
                        biased;
                        (_, appended) = writing => appended.is_ok(),
                        () = reading => false,
                    }
                };
                let acked = interrupt(polls, both).await == Some(true);
                let of = match acked {
                    true => &mut world.acked,
                    false => &mut world.doubtful,
                };
                of.extend(entries.into_iter().map(|entry| (entry.id, entry)));
                for entry in taken {
                    self.take(world, &entry)?;
                }
                drop((ports, self));
                return world.crash().await;
            }
            14 => {
                if let Some(entry) = self.tail.back() {
                    let Anchor { position, entry_id } = entry.anchor;
                    if world.random.random_bool(0.3)
                        && world.engine.damage(Damage::Payload(0, position)).await?
                    {
                        world.damaged.insert(entry_id);
                    }
                }
                drop(self);
                return world.crash().await;
            }
            _ => {
                drop(self);
                return world.crash().await;
            }
        }
        Ok(self)
    }

    /// Reads all that is in the log, and leaves nothing pending.
    async fn drain(&mut self, world: &mut World) -> Checked {
        world.append(u32::MAX).await?;
        self.read_available(world, usize::MAX).await?;
        self.deliver(world, true);
        for id in world.ids.clone() {
            while self.advance_one(id, true) {}
        }
        self.advance();
        self.flush(world).await?;
        for id in world.ids.clone() {
            while self.deliver_backlog(world, id, 0, true).await? {
                self.flush(world).await?;
            }
        }
        Ok(())
    }
}

/// Each accepted event up to the checkpoint is delivered, expired or pending, and each settled
/// one above it is delivered.
fn check_counts(checkpoint: &Checkpoint, backlog: &[Chunk]) -> Checked {
    let counts = checkpoint.counts;
    let pending: u64 = backlog.iter().map(Chunk::pending_events).sum();
    let known = checkpoint.next_sequence.max(1) - 1 + checkpoint.settled.count();
    ensure!(
        counts.delivered + counts.expired + pending == known,
        "{counts:?} and {pending} pending events in the backlog do not add up to {known}"
    );
    let mut end = 0;
    for chunk in backlog {
        ensure!(
            chunk.first_sequence >= end && chunk.end_sequence() <= checkpoint.next_sequence,
            "the backlog up to sequence {} has chunk {chunk:?}",
            checkpoint.next_sequence
        );
        end = chunk.end_sequence();
    }
    Ok(())
}

fn give_up(chunk: &mut Chunk, reason: GapReason, which: impl Fn(u64) -> bool) -> u64 {
    chunk::give_up(std::slice::from_mut(chunk), |_, one| {
        which(one).then_some(reason)
    })
}

/// Computes the pending bytes, and drops the segment if nothing is pending.
fn measure(chunk: &mut Chunk) {
    let mut not_pending = chunk.settled.clone();
    for gap in &chunk.gaps {
        not_pending.add(gap.last_sequence);
    }
    chunk.pending_bytes =
        segment::pending_bytes(&chunk.segment, chunk.first_sequence, &not_pending);
    if chunk.pending_events() == 0 {
        chunk.segment = Bytes::new();
    }
}

async fn crashes(harness: &dyn Harness, seed: u64) -> Checked {
    let mut world = World::new(harness, seed).await?;
    let mut owner = Owner::start(&mut world).await?;
    for step in 0..60 {
        let done = owner.step(&mut world).await;
        owner = done.map_err(|violation| format!("step {step}: {violation}"))?;
    }
    owner.drain(&mut world).await?;
    world.audit(&owner)?;
    drop(owner);
    let mut owner = world.crash().await?;
    owner.drain(&mut world).await?;
    world.audit(&owner)
}

/// A log that was made anew, or lost its end, must not be taken for the same log.
async fn lost_log(harness: &dyn Harness) -> Checked {
    for lost in [false, true] {
        let mut world = World::new(harness, 7).await?;
        let mut owner = Owner::start(&mut world).await?;
        for _ in 0..4 {
            owner.drain(&mut world).await?;
        }
        let Some(anchor) = owner.anchor else {
            return Err("there is no anchor after everything was settled".into());
        };
        drop(owner);
        let damage = match lost {
            true => Damage::Lost(0, anchor.position),
            false => Damage::Recreated(0),
        };
        if !world.engine.damage(damage).await? {
            continue;
        }
        // An owner would otherwise number other events as those that were lost.
        ensure!(
            world.crash().await.is_err(),
            "{damage:?} is not noticed by an owner"
        );
    }
    Ok(())
}
