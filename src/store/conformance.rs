//! Conformance of engines to the storage contract. A suite runs over any engine and returns the
//! first violation, so that planted defects can show that it finds them.

#[cfg(feature = "kafka")]
mod kafka;
mod ledger;
mod log;
mod memory;
mod oracle;
mod owner;
mod ownership;
mod planted;
mod postgres;
mod postgres_ledger;
mod registry;
mod sqlite;

use std::{fmt, future::Future, pin::pin, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{task::yield_now, time::timeout};
use uuid::Uuid;

use super::{
    error::StoreError,
    memory::Fault,
    ports::{
        Entry, EntryId, EventLog, Lease, Ledger, LogReader, NewChunk, NewEntry, Partition, Position,
    },
};
use crate::domain::integration::IntegrationId;

/// Result of a check. The error describes the violation.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Time after which a call counts as hanging.
const HANGING: Duration = Duration::from_secs(30);

/// Returns an error from the function unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
use ensure;

/// The ports of an open engine.
#[derive(Clone)]
pub(crate) struct Ports {
    /// The log.
    pub(crate) log: Arc<dyn EventLog>,
    /// The ledger.
    pub(crate) ledger: Arc<dyn Ledger>,
    /// Acquisition of all partitions.
    pub(crate) acquire: Arc<dyn Acquire>,
}

/// Takes over partitions at once, as an instance does after the lease of the one before has
/// lapsed.
#[async_trait]
pub(crate) trait Acquire: Send + Sync {
    /// Takes over every partition, each under a new epoch.
    async fn acquire(&self) -> Result<Vec<Lease>, StoreError>;
}

/// Damage to what is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    /// The events of an entry are unreadable.
    Payload(Partition, Position),
    /// The header of an entry is unreadable.
    Header(Partition, Position),
    /// An entry is gone.
    Lost(Partition, Position),
    /// The partition has other entries at the same positions.
    Recreated(Partition),
    /// The events of a chunk of a backlog, given by its first sequence, are unreadable.
    Backlog(IntegrationId, u64),
    /// Partitions without entries do not know which positions were used.
    PositionsForgotten,
}

/// An engine on durable storage. It is open after its creation.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// The ports of the open engine.
    fn ports(&self) -> Ports;

    /// Ends the engine as a kill would, and opens it again. The caller has dropped every future
    /// of it.
    async fn crash(&mut self) -> Checked;

    /// Adds an integration to the registry, with its partition.
    async fn add_integration(&self, id: IntegrationId, partition: Partition) -> Checked;

    /// Removes an integration from the registry.
    async fn delete_integration(&self, id: IntegrationId) -> Checked;

    /// Damages what is durable; to be followed by a crash. Returns whether the engine offers
    /// this and notices such damage.
    async fn damage(&mut self, _damage: Damage) -> Checked<bool> {
        Ok(false)
    }

    /// Determines the outcome of the next append. Returns whether the engine offers this.
    fn inject(&self, _fault: Fault) -> bool {
        false
    }
}

/// Makes empty engines.
#[async_trait]
pub(crate) trait Harness: Sync {
    /// Makes an empty engine.
    async fn create(&self) -> Checked<Box<dyn Engine>>;
}

/// Runs every suite over an engine. `rounds` scales the suites that choose at random.
pub(crate) async fn conforms(harness: &dyn Harness, rounds: u64) -> Checked {
    log::suite(harness, rounds).await?;
    ledger::suite(harness, rounds).await?;
    owner::suite(harness, rounds).await
}

/// Names the case in the violation.
async fn case(name: impl fmt::Display, check: impl Future<Output = Checked>) -> Checked {
    match timeout(10 * HANGING, check).await {
        Ok(result) => result.map_err(|violation| format!("{name}: {violation}")),
        Err(_) => Err(format!("{name}: hangs")),
    }
}

/// Result of a call that must succeed in a reasonable time.
async fn call<T, E: fmt::Debug>(
    name: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Checked<T> {
    match timeout(HANGING, future).await {
        Ok(result) => result.map_err(|error| format!("{name} failed: {error:?}")),
        Err(_) => Err(format!("{name} hangs")),
    }
}

async fn read(reader: &mut Box<dyn LogReader>) -> Checked<Arc<Entry>> {
    call("next", reader.next()).await
}

/// Polls a future at most `polls` times, and drops it if it has not ended by then.
pub(crate) async fn interrupt<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|context| {
            Poll::Ready(match future.as_mut().poll(context) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            })
        });
        if let Some(value) = polled.await {
            return Some(value);
        }
        yield_now().await;
    }
    None
}

/// Number of polls after which a future is interrupted: mostly few, sometimes enough to end.
fn some_polls(random: &mut StdRng) -> u32 {
    match random.random_range(0..4) {
        0 => random.random_range(0..3),
        1 => random.random_range(0..2_000),
        _ => random.random_range(0..12),
    }
}

/// Content for appends. Every event and entry is unique, also among values with other seeds.
struct Content {
    random: StdRng,
    made: u64,
}

impl Content {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed ^ 0x636f_6e74),
            made: 0,
        }
    }

    /// Segment of events that differ from all others.
    fn segment(&mut self, count: u32) -> Bytes {
        let mut bytes = Vec::new();
        for _ in 0..count {
            self.made += 1;
            let filler = match self.random.random_range(0..40) {
                0 => 20_000,
                _ => self.random.random_range(0..60),
            };
            let mut event = self.random.random::<u64>().to_le_bytes().to_vec();
            event.extend(self.made.to_le_bytes());
            event.resize(event.len() + filler, self.made as u8);
            bytes.extend((event.len() as u32).to_le_bytes());
            bytes.extend(event);
        }
        bytes.into()
    }

    fn entry(&mut self, ids: &[IntegrationId]) -> NewEntry {
        let chunks = self.random.random_range(1..4);
        let chunks = (0..chunks).map(|_| {
            let integration_id = ids[self.random.random_range(0..ids.len())];
            let count = match self.random.random_range(0..10) {
                0 => self.random.random_range(1..60),
                _ => self.random.random_range(1..5),
            };
            let segment = self.segment(count);
            NewChunk {
                integration_id,
                count,
                segment,
                traces: Vec::new(),
            }
        });
        let chunks = chunks.collect();
        NewEntry {
            id: self.random.random(),
            revision: self.random.random_range(0..1 << 40),
            chunks,
        }
    }

    fn entries(&mut self, ids: &[IntegrationId], most: usize) -> Vec<NewEntry> {
        let count = self.random.random_range(1..=most);
        (0..count).map(|_| self.entry(ids)).collect()
    }
}

/// The entry as it was appended.
fn check_content(read: &Entry, appended: &NewEntry) -> Checked {
    ensure!(
        read.id == appended.id && read.revision == appended.revision,
        "entry {} has another id or revision than what was appended",
        read.position.0
    );
    ensure!(
        read.chunks.len() == appended.chunks.len(),
        "entry {} has {} chunks instead of {}",
        read.position.0,
        read.chunks.len(),
        appended.chunks.len()
    );
    for (at, (read_chunk, chunk)) in read.chunks.iter().zip(&appended.chunks).enumerate() {
        ensure!(
            read_chunk.integration_id == chunk.integration_id
                && read_chunk.count == chunk.count
                && read_chunk.segment.as_ref() == Ok(&chunk.segment),
            "chunk {at} of entry {} differs from what was appended",
            read.position.0
        );
    }
    Ok(())
}

fn ids(count: u128) -> Vec<IntegrationId> {
    // As UUIDv7 they are unique, and those made later are not always greater.
    (1..=count)
        .map(|number| IntegrationId(Uuid::from_u128(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
        .collect()
}

fn ids_of(entries: &[NewEntry]) -> impl Iterator<Item = EntryId> {
    entries.iter().map(|entry| entry.id)
}
