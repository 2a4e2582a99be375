//! Guarantees of [`EventLog`](crate::store::ports::EventLog).

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Checked, Content, Damage, Engine, Harness, Ports, call, case, check_content, ensure, ids,
    ids_of, interrupt, read,
};
use crate::{
    domain::integration::IntegrationId,
    store::{
        error::StoreError,
        memory::Fault,
        ports::{Availability, Entry, EntryId, NewEntry, Partition, Position},
    },
};

pub(super) async fn suite(harness: &dyn Harness, rounds: u64) -> Checked {
    case("log: order and content", order(harness)).await?;
    case("log: partitions", partitions(harness)).await?;
    case("log: waiting readers", waiting(harness)).await?;
    case("log: outcomes", outcomes(harness)).await?;
    case("log: damage", damage(harness)).await?;
    case("log: close", close(harness)).await?;
    case("log: positions are not reused", reuse(harness)).await?;
    case("log: removal", removal(harness)).await?;
    for seed in 0..rounds {
        case(
            format!("log: concurrent appends, seed {seed}"),
            concurrent(harness, seed),
        )
        .await?;
        case(
            format!("log: visible is durable, seed {seed}"),
            visible_is_durable(harness, seed),
        )
        .await?;
        case(format!("log: trim, seed {seed}"), trim(harness, seed)).await?;
    }
    Ok(())
}

/// Integrations of partition 0.
async fn start(harness: &dyn Harness) -> Checked<(Box<dyn Engine>, Vec<IntegrationId>)> {
    let engine = harness.create().await?;
    let ids = ids(3);
    for id in &ids {
        engine.add_integration(*id, 0).await?;
    }
    Ok((engine, ids))
}

async fn append(ports: &Ports, partition: Partition, entries: &[NewEntry]) -> Checked {
    call("append", ports.log.append(partition, entries.to_vec())).await?;
    let known = ports.log.known_end(partition);
    let bounds = call("bounds", ports.log.bounds(partition)).await?;
    ensure!(
        bounds.start <= bounds.end && bounds.end <= ports.log.known_end(partition),
        "the bounds are {bounds:?}, and the known end was {known:?}"
    );
    ensure!(
        bounds.end >= known,
        "the end {:?} is below the known end {known:?}",
        bounds.end
    );
    Ok(())
}

/// Reads from a position on until an entry is found, and checks the order.
async fn read_to(
    ports: &Ports,
    partition: Partition,
    from: Position,
    last: EntryId,
) -> Checked<Vec<Arc<Entry>>> {
    let mut reader = call("reader", ports.log.reader(partition, from)).await?;
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    loop {
        let entry = read(&mut reader).await?;
        let at_least = entries.last().map_or(from, |last| last.position.next());
        ensure!(
            entry.position >= at_least && entry.position >= Position(1),
            "a reader from {} returns entry {} where at least {} is due",
            from.0,
            entry.position.0,
            at_least.0
        );
        let known = ports.log.known_end(partition);
        ensure!(
            entry.position < known,
            "entry {} is at or above the known end {}",
            entry.position.0,
            known.0
        );
        let found = entry.id == last;
        entries.push(entry);
        if found {
            return Ok(entries);
        }
    }
}

/// Appends one entry, and reads from a position up to it.
async fn read_all(
    ports: &Ports,
    partition: Partition,
    from: Position,
    content: &mut Content,
    ids: &[IntegrationId],
) -> Checked<(NewEntry, Vec<Arc<Entry>>)> {
    let last = content.entry(ids);
    append(ports, partition, std::slice::from_ref(&last)).await?;
    let mut entries = read_to(ports, partition, from, last.id).await?;
    let found = entries.pop().ok_or("nothing was read")?;
    check_content(&found, &last)?;
    Ok((last, entries))
}

fn check_all(read: &[Arc<Entry>], appended: &[NewEntry]) -> Checked {
    for (at, new) in appended.iter().enumerate() {
        let entry = read.get(at);
        let entry = entry.ok_or(format!("{} of {} entries", read.len(), appended.len()))?;
        check_content(entry, new)?;
    }
    ensure!(
        read.len() == appended.len(),
        "{} instead of {} entries",
        read.len(),
        appended.len()
    );
    Ok(())
}

fn check_same(one: &[Arc<Entry>], other: &[Arc<Entry>]) -> Checked {
    let identity =
        |entry: &Arc<Entry>| (entry.position, entry.id, entry.accepted_at, entry.revision);
    ensure!(
        one.iter().map(identity).eq(other.iter().map(identity)),
        "readers disagree on position, identity, time or revision of entries"
    );
    Ok(())
}

async fn order(harness: &dyn Harness) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut content = Content::new(1);
    let ports = engine.ports();
    ensure!(
        *ports.log.availability().borrow() == Availability::Open,
        "an empty log takes no entries"
    );
    let bounds = call("bounds", ports.log.bounds(0)).await?;
    ensure!(
        bounds.start == bounds.end,
        "an empty log has bounds {bounds:?}"
    );
    let mut appended = Vec::new();
    for _ in 0..12 {
        let entries = content.entries(&ids, 4);
        append(&ports, 0, &entries).await?;
        appended.extend(entries);
        // Readable at once by a new reader.
        let last = appended[appended.len() - 1].id;
        check_all(&read_to(&ports, 0, Position(0), last).await?, &appended)?;
    }
    let last = appended[appended.len() - 1].id;
    let all = read_to(&ports, 0, Position(0), last).await?;
    let bounds = call("bounds", ports.log.bounds(0)).await?;
    ensure!(
        bounds.start <= all[0].position,
        "the start {} is above the first entry {}",
        bounds.start.0,
        all[0].position.0
    );
    for _ in 0..2 {
        let ports = engine.ports();
        for (at, entry) in all.iter().enumerate() {
            let suffix = read_to(&ports, 0, entry.position, last).await?;
            check_all(&suffix, &appended[at..])?;
            check_same(&suffix, &all[at..])?;
        }
        drop(ports);
        engine.crash().await?;
    }
    // A reader from beyond the end passes over what is below.
    let ports = engine.ports();
    let end = call("bounds", ports.log.bounds(0)).await?.end;
    let beyond = Position(end.0 + 2);
    let mut reader = call("reader", ports.log.reader(0, beyond)).await?;
    let more: Vec<NewEntry> = (0..5).map(|_| content.entry(&ids)).collect();
    append(&ports, 0, &more).await?;
    let rest = read_to(&ports, 0, end, more[4].id).await?;
    check_all(&rest, &more)?;
    let due = rest.iter().find(|entry| entry.position >= beyond);
    let due = due.ok_or("five entries have less than three positions")?;
    let first = read(&mut reader).await?;
    ensure!(
        first.position == due.position,
        "a reader from {} begins at {}",
        beyond.0,
        first.position.0
    );
    Ok(())
}

async fn partitions(harness: &dyn Harness) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut content = Content::new(2);
    let ports = engine.ports();
    let count = ports.log.partitions();
    ensure!(count > 0, "there is no partition");
    let mut appended = vec![Vec::new(); count as usize];
    for round in 0..4 * count {
        let partition = round % count;
        let entries = content.entries(&ids, 2);
        append(&ports, partition, &entries).await?;
        appended[partition as usize].extend(entries);
    }
    drop(ports);
    engine.crash().await?;
    let ports = engine.ports();
    for partition in 0..count {
        let from = Position(0);
        let (_, entries) = read_all(&ports, partition, from, &mut content, &ids).await?;
        check_all(&entries, &appended[partition as usize])?;
    }
    Ok(())
}

async fn waiting(harness: &dyn Harness) -> Checked {
    let (engine, ids) = start(harness).await?;
    let mut content = Content::new(3);
    let ports = engine.ports();
    let mut readers = Vec::new();
    for from in [0, 1, 0] {
        readers.push(call("reader", ports.log.reader(0, Position(from))).await?);
    }
    for round in 0..10 {
        let entry = content.entry(&ids);
        for reader in &mut readers {
            // A call that was cancelled loses nothing.
            let early = interrupt(round, reader.next()).await;
            ensure!(early.is_none(), "an entry that was not appended: {early:?}");
        }
        let entries = [entry];
        let reading = join_all(readers.iter_mut().map(read));
        let (appended, reads) = tokio::join!(append(&ports, 0, &entries), reading);
        appended?;
        for read in reads {
            check_content(&*read?, &entries[0])?;
        }
    }
    // Nor does one that was cancelled while there is an entry.
    let entries: Vec<_> = (0..20).map(|_| content.entry(&ids)).collect();
    append(&ports, 0, &entries).await?;
    for (reader, polls) in readers.iter_mut().zip(1..) {
        for entry in &entries {
            let read = match interrupt(polls, reader.next()).await {
                Some(read) => read.map_err(|error| format!("next failed: {error:?}"))?,
                None => read(reader).await?,
            };
            check_content(&read, entry)?;
        }
    }
    Ok(())
}

async fn concurrent(harness: &dyn Harness, seed: u64) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut content = Content::new(seed);
    let ports = engine.ports();
    let tasks: Vec<Vec<(Vec<NewEntry>, u32)>> = (0..4)
        .map(|_| {
            let appends = (0..6).map(|_| {
                let polls = match random.random_range(0..3) {
                    0 => random.random_range(0..6),
                    _ => u32::MAX,
                };
                (content.entries(&ids, 3), polls)
            });
            appends.collect()
        })
        .collect();
    let appending = join_all(tasks.iter().map(async |appends| {
        let mut acked = Vec::new();
        for (entries, polls) in appends {
            let append = ports.log.append(0, entries.clone());
            if *polls == u32::MAX {
                call("append", append).await?;
            } else if !matches!(interrupt(*polls, append).await, Some(Ok(()))) {
                // Each of them may be kept or not.
                continue;
            }
            acked.extend(entries.iter());
        }
        Ok::<_, String>(acked)
    }));
    let acked: Vec<Vec<&NewEntry>> = appending.await.into_iter().collect::<Checked<_>>()?;
    let mut before: Option<Vec<Arc<Entry>>> = None;
    for _ in 0..2 {
        let ports = engine.ports();
        let (_, entries) = read_all(&ports, 0, Position(0), &mut content, &ids).await?;
        let all: Vec<&NewEntry> = tasks.iter().flatten().flat_map(|(some, _)| some).collect();
        let mut seen = BTreeSet::new();
        for entry in &entries {
            ensure!(
                seen.insert(entry.id),
                "entry {} is there twice",
                entry.position.0
            );
            if let Some(new) = all.iter().find(|new| new.id == entry.id) {
                check_content(entry, new)?;
            }
        }
        for acked in &acked {
            let mut rest = entries.iter();
            for new in acked {
                ensure!(
                    rest.any(|entry| entry.id == new.id),
                    "an acked entry is missing, or not in the order of the appends"
                );
            }
        }
        // Those of one call are in its order, whatever became of it.
        for (call, _) in tasks.iter().flatten() {
            let kept: Vec<EntryId> = entries
                .iter()
                .map(|entry| entry.id)
                .filter(|id| ids_of(call).any(|one| one == *id))
                .collect();
            let mut ordered = ids_of(call);
            ensure!(
                kept.iter().all(|id| ordered.any(|one| one == *id)),
                "entries of one append are not in its order"
            );
        }
        if let Some(before) = &before {
            check_same(before, &entries[..before.len().min(entries.len())])?;
        }
        before = Some(entries);
        drop(ports);
        engine.crash().await?;
    }
    Ok(())
}

async fn visible_is_durable(harness: &dyn Harness, seed: u64) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut content = Content::new(seed);
    let mut due: Vec<Arc<Entry>> = Vec::new();
    let mut acked: Vec<NewEntry> = Vec::new();
    for _ in 0..4 {
        let ports = engine.ports();
        let from = due
            .last()
            .map_or(Position(0), |entry| entry.position.next());
        let mut reader = call("reader", ports.log.reader(0, from)).await?;
        let appends: Vec<_> = (0..6).map(|_| content.entries(&ids, 3)).collect();
        let mut reads = random.random_range(1..6);
        {
            let appending = async {
                for entries in &appends {
                    append(&ports, 0, entries).await?;
                    acked.extend(entries.iter().cloned());
                }
                std::future::pending::<Checked>().await
            };
            let reading = async {
                while reads > 0 {
                    due.push(read(&mut reader).await?);
                    reads -= 1;
                }
                Checked::Ok(())
            };
            tokio::select! {
                biased;
                read = reading => read?,
                appended = appending => appended?,
            }
        }
        // Nothing runs between the last read and the crash.
        drop((reader, ports));
        engine.crash().await?;
        let ports = engine.ports();
        let (last, entries) = read_all(&ports, 0, Position(0), &mut content, &ids).await?;
        for entry in &due {
            let same = entries.iter().any(|one| {
                (one.id, one.position, one.accepted_at)
                    == (entry.id, entry.position, entry.accepted_at)
            });
            ensure!(
                same,
                "entry {} was read, and is lost or changed by a crash",
                entry.position.0
            );
        }
        let mut rest = entries.iter();
        for new in &acked {
            let entry = rest.find(|entry| entry.id == new.id);
            check_content(entry.ok_or("an acked entry is lost by a crash")?, new)?;
        }
        due = entries;
        acked.push(last.clone());
        due.extend(read_to(&ports, 0, Position(0), last.id).await?.pop());
    }
    Ok(())
}

async fn trim(harness: &dyn Harness, seed: u64) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut content = Content::new(seed);
    let mut appended: Vec<NewEntry> = Vec::new();
    let mut below = Position(0);
    let mut all: Vec<Arc<Entry>> = Vec::new();
    for _ in 0..4 {
        let ports = engine.ports();
        let entries: Vec<_> = (0..6).map(|_| content.entry(&ids)).collect();
        append(&ports, 0, &entries).await?;
        appended.extend(entries);
        let last = appended[appended.len() - 1].id;
        let from = all.last().map_or(Position(0), |last| last.position.next());
        all.extend(read_to(&ports, 0, from, last).await?);
        check_all(&all, &appended)?;
        // Open while the log is trimmed.
        let opened_at = all[random.random_range(0..all.len())].position.max(below);
        let mut open = call("reader", ports.log.reader(0, opened_at)).await?;
        let started = random.random_bool(0.5);
        let next = match started {
            true => read(&mut open).await?.position.next(),
            false => opened_at,
        };
        let cut = random.random_range(0..all.len());
        below = below.max(all[cut].position);
        let end = call("bounds", ports.log.bounds(0)).await?.end;
        call("trim", ports.log.trim(0, below)).await?;
        let earlier = Position(below.0.saturating_sub(2));
        call("trim", ports.log.trim(0, earlier)).await?;
        let bounds = call("bounds", ports.log.bounds(0)).await?;
        ensure!(
            bounds.start <= below && bounds.end == end,
            "trimmed below {}, the bounds are {bounds:?} and the end was {}",
            below.0,
            end.0
        );
        for entry in all.iter().filter(|one| one.position >= next.max(below)) {
            loop {
                let read = read(&mut open).await?;
                if read.position >= below {
                    check_same(&[read], std::slice::from_ref(entry))?;
                    break;
                }
            }
        }
        drop((open, ports));
        if random.random_bool(0.5) {
            engine.crash().await?;
        }
        let ports = engine.ports();
        let bounds = call("bounds", ports.log.bounds(0)).await?;
        ensure!(
            bounds.start <= below,
            "trimmed below {}, and the start is {}",
            below.0,
            bounds.start.0
        );
        let read = read_to(&ports, 0, Position(0), last).await?;
        let kept: Vec<_> = all
            .iter()
            .filter(|one| one.position >= below)
            .cloned()
            .collect();
        let first = read.iter().position(|one| one.position >= below);
        check_same(&read[first.ok_or("all is trimmed")?..], &kept)?;
    }
    Ok(())
}

async fn reuse(harness: &dyn Harness) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut content = Content::new(4);
    let mut end = Position(0);
    for round in 0..5 {
        let ports = engine.ports();
        let entries = content.entries(&ids, 3);
        append(&ports, 0, &entries).await?;
        let last = entries[entries.len() - 1].id;
        let read = read_to(&ports, 0, end, last).await?;
        check_all(&read, &entries)?;
        end = call("bounds", ports.log.bounds(0)).await?.end;
        ensure!(
            read[read.len() - 1].position < end,
            "the end {} is not after the last entry",
            end.0
        );
        call("trim", ports.log.trim(0, end)).await?;
        let bounds = call("bounds", ports.log.bounds(0)).await?;
        ensure!(
            bounds.start <= end && bounds.end == end,
            "after a trim of everything below {} the bounds are {bounds:?}",
            end.0
        );
        drop(ports);
        if round % 2 == 0 {
            engine.crash().await?;
            let bounds = call("bounds", engine.ports().log.bounds(0)).await?;
            ensure!(
                bounds.start <= bounds.end && bounds.end == end,
                "after everything below {} was trimmed, a crash changed the bounds to {bounds:?}",
                end.0
            );
        }
    }
    Ok(())
}

async fn removal(harness: &dyn Harness) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut content = Content::new(8);
    let mut kept: Vec<NewEntry> = Vec::new();
    // All entries, all but the last, and none.
    for left in [0, 1, 2] {
        let ports = engine.ports();
        let entries: Vec<_> = (0..3).map(|_| content.entry(&ids)).collect();
        append(&ports, 0, &entries).await?;
        kept.extend(entries);
        let last = kept[kept.len() - 1].id;
        let read = read_to(&ports, 0, Position(0), last).await?;
        let end = call("bounds", ports.log.bounds(0)).await?.end;
        let below = match left {
            0 => end,
            left => read[read.len() - left].position,
        };
        call("remove", ports.log.remove(0, below)).await?;
        kept.drain(..kept.len() - left);
        for crashes in [false, true] {
            if crashes {
                engine.crash().await?;
            }
            let bounds = call("bounds", engine.ports().log.bounds(0)).await?;
            ensure!(
                bounds.start >= below && bounds.end >= end,
                "everything below {} was removed, the end was {}, and the bounds are {bounds:?}",
                below.0,
                end.0
            );
        }
        let from = Position(0);
        let ports = engine.ports();
        let (next, mut entries) = read_all(&ports, 0, from, &mut content, &ids).await?;
        entries.retain(|entry| !entry.chunks.is_empty());
        check_all(&entries, &kept)?;
        kept.push(next);
    }
    Ok(())
}

async fn outcomes(harness: &dyn Harness) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut content = Content::new(5);
    let mut expected = Vec::new();
    let faults = [
        (Fault::Full, 0),
        (Fault::Failed, 0),
        (Fault::Unavailable { kept: 2, late: 0 }, 2),
        (Fault::Unavailable { kept: 1, late: 2 }, 3),
        (Fault::Unavailable { kept: 0, late: 1 }, 1),
    ];
    for (fault, most) in faults {
        let ports = engine.ports();
        if !engine.inject(fault) {
            return Ok(());
        }
        let entries: Vec<_> = (0..4).map(|_| content.entry(&ids)).collect();
        let answer = ports.log.append(0, entries.clone()).await;
        let as_expected = match fault {
            Fault::Full => matches!(answer, Err(StoreError::Full)),
            Fault::Failed => matches!(answer, Err(StoreError::Failed(_))),
            Fault::Unavailable { .. } => matches!(answer, Err(StoreError::Unavailable(_))),
        };
        ensure!(as_expected, "{fault:?} is answered by {answer:?}");
        // In the order of the call, before the next one.
        expected.extend(entries.into_iter().take(most));
        let (last, entries) = read_all(&ports, 0, Position(0), &mut content, &ids).await?;
        check_all(&entries, &expected)?;
        expected.push(last);
    }
    engine.crash().await?;
    let (_, entries) = read_all(&engine.ports(), 0, Position(0), &mut content, &ids).await?;
    check_all(&entries, &expected)
}

async fn damage(harness: &dyn Harness) -> Checked {
    for damage in [Damage::Payload, Damage::Header, Damage::Lost] {
        let (mut engine, ids) = start(harness).await?;
        let mut content = Content::new(6);
        let entries: Vec<_> = (0..5).map(|_| content.entry(&ids)).collect();
        append(&engine.ports(), 0, &entries).await?;
        let all = read_to(&engine.ports(), 0, Position(0), entries[4].id).await?;
        let damage = damage(0, all[2].position);
        if !engine.damage(damage).await? {
            continue;
        }
        engine.crash().await?;
        let ports = engine.ports();
        let mut reader = call("reader", ports.log.reader(0, all[0].position)).await?;
        check_content(&*read(&mut reader).await?, &entries[0])?;
        check_content(&*read(&mut reader).await?, &entries[1])?;
        let third = super::timeout(super::HANGING, reader.next()).await;
        match (damage, third) {
            (Damage::Payload(..), Ok(Ok(entry))) => {
                check_same(std::slice::from_ref(&entry), &all[2..3])?;
                let chunks = entry
                    .chunks
                    .iter()
                    .map(|one| (one.integration_id, one.count));
                let due = entries[2].chunks.iter();
                let due = due.map(|one| (one.integration_id, one.count));
                ensure!(
                    chunks.eq(due) && entry.chunks.iter().any(|one| one.segment.is_err()),
                    "a damaged payload is returned as {entry:?}"
                );
                check_content(&*read(&mut reader).await?, &entries[3])?;
            }
            (Damage::Header(..) | Damage::Lost(..), Ok(Err(StoreError::Corrupt(_)))) => {}
            (damage, answer) => return Err(format!("{damage:?} is read as {answer:?}")),
        }
    }
    Ok(())
}

async fn close(harness: &dyn Harness) -> Checked {
    let (mut engine, ids) = start(harness).await?;
    let mut content = Content::new(7);
    let entry = content.entry(&ids);
    let ports = engine.ports();
    append(&ports, 0, std::slice::from_ref(&entry)).await?;
    let mut ended = std::pin::pin!(ports.log.ended());
    ensure!(
        interrupt(5, &mut ended).await.is_none(),
        "an open log has ended"
    );
    call("close", async {
        ports.log.close().await;
        Ok::<_, StoreError>(())
    })
    .await?;
    let ended = call("ended", async { Ok::<_, StoreError>(ended.await) }).await?;
    ensure!(ended.is_none(), "a closed log ended by {ended:?}");
    let refused = vec![content.entry(&ids)];
    let answer = super::timeout(super::HANGING, ports.log.append(0, refused)).await;
    ensure!(
        matches!(answer, Ok(Err(StoreError::Closed))),
        "a closed log answers an append by {answer:?}"
    );
    engine.crash().await?;
    let (_, entries) = read_all(&engine.ports(), 0, Position(0), &mut content, &ids).await?;
    check_all(&entries, &[entry])
}
