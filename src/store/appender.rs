//! The one task that appends to the log. Requests that wait at the same time share an append, and
//! so a sync of the disk or a round of replication.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::sleep,
};

use super::{
    StoreError,
    backpressure::Incoming,
    catalog::Catalog,
    group::Group,
    partition::Partitions,
    ports::{EventLog, Partition},
};
use crate::domain::{map::Map, segment::Segments};

/// Requests that wait to be appended.
const QUEUE: usize = 1024;
/// Bytes of events from which an append takes no further request.
const MAX_BYTES: usize = 8 << 20;
/// Consecutive shared appends after which it is worth waiting for more requests; one or two are
/// shared by chance.
const SHARED_BEFORE_LINGER: usize = 3;

/// Request to append events.
struct Append {
    segments: Segments,
    held: Held,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

/// Memory that the events of a request count against until they are durable.
struct Held {
    _memory: Option<OwnedSemaphorePermit>,
    _incoming: Incoming,
}

/// Handle of the task. Cheap to clone.
#[derive(Clone)]
pub(super) struct Appender {
    requests: mpsc::Sender<Append>,
}

impl Appender {
    /// Starts the task on the current runtime. It ends when every handle is dropped.
    /// `linger` is the time that an append waits for further requests, if appends were shared
    /// lately.
    pub(super) fn start(
        log: Arc<dyn EventLog>,
        catalog: Arc<Catalog>,
        partitions: Arc<Partitions>,
        linger: Duration,
    ) -> Self {
        let (requests, received) = mpsc::channel(QUEUE);
        let task = Task {
            log,
            catalog,
            partitions,
            linger,
            requests: received,
        };
        let catalog = Arc::clone(&task.catalog);
        catalog.spawn(task.run());
        Self { requests }
    }

    /// Queues events, in the order of the calls. The returned future ends once they are durable.
    pub(super) async fn append(
        &self,
        segments: Segments,
        memory: Option<OwnedSemaphorePermit>,
        incoming: Incoming,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + Send + use<>, StoreError> {
        let (reply, result) = oneshot::channel();
        let append = Append {
            segments,
            held: Held {
                _memory: memory,
                _incoming: incoming,
            },
            reply,
        };
        let queued = self.requests.send(append).await;
        queued.map_err(|_| StoreError::Closed)?;
        Ok(async { result.await.map_err(|_| StoreError::Closed)? })
    }
}

struct Task {
    log: Arc<dyn EventLog>,
    catalog: Arc<Catalog>,
    partitions: Arc<Partitions>,
    linger: Duration,
    requests: mpsc::Receiver<Append>,
}

impl Task {
    async fn run(mut self) {
        let mut shared = 0;
        let max_bytes = MAX_BYTES.min(self.log.max_append_bytes());
        while let Some(first) = self.requests.recv().await {
            let mut bytes = first.segments.bytes();
            let mut requests = vec![first];
            self.take_waiting(&mut requests, &mut bytes, max_bytes);
            if shared >= SHARED_BEFORE_LINGER && !self.linger.is_zero() && bytes < max_bytes {
                sleep(self.linger).await;
                self.take_waiting(&mut requests, &mut bytes, max_bytes);
            }
            shared = if requests.len() > 1 { shared + 1 } else { 0 };
            self.append(requests).await;
        }
    }

    fn take_waiting(&mut self, requests: &mut Vec<Append>, bytes: &mut usize, max_bytes: usize) {
        while *bytes < max_bytes
            && let Ok(request) = self.requests.try_recv()
        {
            *bytes += request.segments.bytes();
            requests.push(request);
        }
    }

    async fn append(&self, requests: Vec<Append>) {
        let revision = self.catalog.replica().applied();
        let mut groups: Map<Partition, Group> = Map::default();
        let mut waiting = Vec::with_capacity(requests.len());
        for request in requests {
            let split = self.split(request.segments);
            let partitions: Vec<Partition> =
                split.iter().map(|(partition, _)| *partition).collect();
            for (partition, segments) in split {
                groups.entry(partition).or_default().add(segments);
            }
            waiting.push((partitions, request.held, request.reply));
        }
        let appends = groups.into_iter().map(async |(partition, group)| {
            let entries = group.into_entries(revision, rand::random);
            let result = self.log.append(partition, entries).await;
            if result.is_ok() {
                // Counts that are read after the answer include the events.
                let end = self.log.known_end(partition);
                self.partitions.wait_for(partition, end).await;
            }
            (partition, result)
        });
        let results: Map<Partition, Result<(), StoreError>> =
            join_all(appends).await.into_iter().collect();
        for (partitions, held, reply) in waiting {
            drop(held);
            let results = partitions.iter().filter_map(|one| results.get(one));
            // A caller that is gone does not need the answer.
            let _gone = reply.send(combine(results));
        }
    }

    /// Segments of a request by partition.
    fn split(&self, segments: Segments) -> Vec<(Partition, Segments)> {
        if self.log.partitions() == 1 {
            return vec![(0, segments)];
        }
        let (bytes, parts) = segments.into_parts();
        let mut split: Vec<(Partition, Segments)> = Vec::new();
        let mut start = 0;
        for part in parts {
            let end = start + part.bytes as usize;
            // An integration that is deleted meanwhile has no reader that would keep its events.
            let partition = self
                .catalog
                .replica()
                .partition_of(part.integration_id)
                .unwrap_or(0);
            let at = split.iter().position(|(known, _)| *known == partition);
            let at = at.unwrap_or_else(|| {
                split.push((partition, Segments::default()));
                split.len() - 1
            });
            split[at].1.push_part(part, &bytes[start..end]);
            start = end;
        }
        split
    }
}

/// Result of a request whose events went to several partitions.
fn combine<'a>(
    results: impl Iterator<Item = &'a Result<(), StoreError>>,
) -> Result<(), StoreError> {
    let (mut kept, mut failed) = (false, None);
    for result in results {
        match result {
            Ok(()) => kept = true,
            Err(error) => failed = Some(error),
        }
    }
    match (failed, kept) {
        (None, _) => Ok(()),
        (Some(error), false) => Err(error.clone()),
        (Some(error), true) => Err(StoreError::Unavailable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_kept_in_part_is_in_doubt() {
        let (ok, full) = (Ok(()), Err(StoreError::Full));
        assert!(combine([&ok, &ok].into_iter()).is_ok());
        assert!(matches!(
            combine([&full, &full].into_iter()),
            Err(StoreError::Full)
        ));
        for mixed in [[&ok, &full], [&full, &ok]] {
            let result = combine(mixed.into_iter());
            assert!(matches!(result, Err(StoreError::Unavailable(_))));
        }
    }
}
