//! The tasks that append to the log, one for each partition. Requests that wait at the same time
//! share an append, and so a sync of the disk or a round of replication.
//!
//! A request that touches several partitions is split before it waits, and answered once all of its
//! parts are. So a partition that does not answer holds up only the requests that have events for
//! it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{
        mpsc::{self, Permit, error::TrySendError},
        oneshot,
    },
    time::{Instant, sleep, timeout},
};

use super::{
    StoreError,
    backpressure::Incoming,
    catalog::Catalog,
    group::Group,
    partition::Partitions,
    ports::{EventLog, Partition},
};
use crate::{domain::segment::Segments, metrics};

/// Requests that wait to be appended to one partition.
const QUEUE: usize = 1024;
/// Bytes of events from which an append takes no further request.
const MAX_BYTES: usize = 8 << 20;
/// Consecutive shared appends after which it is worth waiting for more requests; one or two are
/// shared by chance.
const SHARED_BEFORE_LINGER: usize = 3;
/// Time in one append after which a partition is stalled. One of several is then refused further
/// requests beyond [`STALLED_BYTES`].
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Bytes that may wait for a stalled partition. They hold memory that the requests of all
/// partitions share, until the log gives the append up.
const STALLED_BYTES: usize = 1 << 20;

/// Events to append to one partition.
struct Append {
    segments: Segments,
    answer: Answer,
}

/// Answer that an append owes.
enum Answer {
    /// The events are the whole request.
    Whole(Request),
    /// They are a part of it.
    Part(Arc<Mutex<Parts>>),
}

/// Reservation of the memory of a request, until it is dropped.
pub type MemoryHold = Box<dyn Send + Sync>;

/// A request that was not answered.
struct Request {
    held: Held,
    began_at: Instant,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

/// Memory that the events of a request count against until they are durable.
struct Held {
    _memory: Option<MemoryHold>,
    _incoming: Incoming,
}

/// A request that was split.
struct Parts {
    /// Parts that are not answered.
    left: usize,
    results: Vec<Result<(), StoreError>>,
    /// None once it was answered.
    request: Option<Request>,
}

impl Answer {
    fn give(self, result: Result<(), StoreError>) {
        match self {
            Self::Whole(request) => request.answer(result),
            Self::Part(parts) => lock(&parts).add(result),
        }
    }
}

impl Request {
    fn answer(self, result: Result<(), StoreError>) {
        drop(self.held);
        if result.is_ok() {
            metrics::ACK_DURATION.record(self.began_at.elapsed());
        }
        // A caller that is gone does not need the answer.
        let _gone = self.reply.send(result);
    }
}

impl Parts {
    fn add(&mut self, result: Result<(), StoreError>) {
        self.left -= 1;
        self.results.push(result);
        if self.left == 0
            && let Some(request) = self.request.take()
        {
            request.answer(combine(&self.results));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handle of the tasks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Appender {
    catalog: Arc<Catalog>,
    /// Of each partition.
    lanes: Arc<[Lane]>,
}

/// Queue of a partition.
struct Lane {
    requests: mpsc::Sender<Append>,
    load: Arc<Load>,
}

/// Load of a partition.
#[derive(Default)]
struct Load {
    /// Bytes that wait.
    bytes: AtomicUsize,
    /// Begin of the append in progress.
    appending_since: Mutex<Option<Instant>>,
}

/// Obstacle to a request.
enum Blocked<'a> {
    /// A queue is full.
    Full(&'a Lane),
    /// The request is not to wait.
    Refused(StoreError),
}

impl Load {
    fn is_large(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= STALLED_BYTES
    }

    fn is_stalled(&self) -> bool {
        lock(&self.appending_since).is_some_and(|since| since.elapsed() >= STALLED_AFTER)
    }

    fn set_appending(&self, is_appending: bool) {
        *lock(&self.appending_since) = is_appending.then(Instant::now);
    }
}

impl Appender {
    /// Starts the tasks on the current runtime. They end when every handle is dropped.
    /// `linger` is the time that an append waits for further requests, if appends were shared
    /// lately.
    pub(super) fn start(
        log: Arc<dyn EventLog>,
        catalog: Arc<Catalog>,
        partitions: Option<Arc<Partitions>>,
        linger: Duration,
    ) -> Self {
        let lane = |partition| {
            let (requests, received) = mpsc::channel(QUEUE);
            let load = Arc::<Load>::default();
            let task = Task {
                partition,
                log: Arc::clone(&log),
                catalog: Arc::clone(&catalog),
                partitions: partitions.clone(),
                linger,
                requests: received,
                load: Arc::clone(&load),
            };
            catalog.spawn(task.run());
            Lane { requests, load }
        };
        let lanes = (0..log.partitions()).map(lane).collect();
        Self { catalog, lanes }
    }

    /// Queues events, in the order of the calls of one caller. The returned future ends once they
    /// are durable.
    ///
    /// # Errors
    ///
    /// `Failed` if too much waits for one of several partitions, which does not answer.
    pub(super) async fn append(
        &self,
        segments: Segments,
        memory: Option<MemoryHold>,
        incoming: Incoming,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + Send + use<>, StoreError> {
        let (reply, result) = oneshot::channel();
        let request = Request {
            held: Held {
                _memory: memory,
                _incoming: incoming,
            },
            began_at: Instant::now(),
            reply,
        };
        match &*self.lanes {
            [lane] => {
                let permit = lane.requests.reserve().await;
                let permit = permit.map_err(|_| StoreError::Closed)?;
                lane.send(permit, segments, Answer::Whole(request));
            }
            _ => self.append_parts(self.split(segments), request).await?,
        }
        Ok(async { result.await.map_err(|_| StoreError::Closed)? })
    }

    /// Queues the parts of a request, all of them or none.
    async fn append_parts(
        &self,
        split: Vec<(Partition, Segments)>,
        request: Request,
    ) -> Result<(), StoreError> {
        let permits = loop {
            match self.reserve(&split) {
                Ok(permits) => break permits,
                Err(Blocked::Refused(error)) => return Err(error),
                // Nothing is held meanwhile that requests to other partitions need.
                Err(Blocked::Full(lane)) => {
                    let _capacity = timeout(STALLED_AFTER, lane.requests.reserve()).await;
                }
            }
        };
        let mut parts = permits.into_iter().zip(split);
        if parts.len() <= 1 {
            match parts.next() {
                Some(((lane, permit), (_, segments))) => {
                    lane.send(permit, segments, Answer::Whole(request));
                }
                None => request.answer(Ok(())),
            }
            return Ok(());
        }
        let left = parts.len();
        let request = Arc::new(Mutex::new(Parts {
            left,
            results: Vec::with_capacity(left),
            request: Some(request),
        }));
        for ((lane, permit), (_, segments)) in parts {
            lane.send(permit, segments, Answer::Part(Arc::clone(&request)));
        }
        Ok(())
    }

    /// Reserves capacity in the queues of all parts.
    fn reserve(
        &self,
        split: &[(Partition, Segments)],
    ) -> Result<Vec<(&Lane, Permit<'_, Append>)>, Blocked<'_>> {
        let refused = |reason: &str, partition: Partition| {
            let reason = format!("partition {partition} of the event log {reason}");
            Blocked::Refused(StoreError::Failed(reason))
        };
        let reserve = |(partition, _): &(Partition, Segments)| {
            let lane = self.lanes.get(*partition as usize);
            let lane = lane.ok_or_else(|| refused("does not exist", *partition))?;
            let permit = lane.requests.try_reserve();
            let is_full = matches!(permit, Err(TrySendError::Full(())));
            if (is_full || lane.load.is_large()) && lane.load.is_stalled() {
                return Err(refused("is behind", *partition));
            }
            match permit {
                Ok(permit) => Ok((lane, permit)),
                Err(TrySendError::Full(())) => Err(Blocked::Full(lane)),
                Err(TrySendError::Closed(())) => Err(Blocked::Refused(StoreError::Closed)),
            }
        };
        split.iter().map(reserve).collect()
    }

    /// Segments of a request by partition.
    fn split(&self, segments: Segments) -> Vec<(Partition, Segments)> {
        // An integration that is deleted meanwhile has no reader that would keep its events.
        let replica = self.catalog.replica();
        let partition_of = |id| replica.partition_of(id).unwrap_or(0);
        let parts = segments.parts().iter();
        let mut partitions = parts.map(|part| partition_of(part.integration_id));
        let Some(first) = partitions.next() else {
            return Vec::new();
        };
        if partitions.all(|partition| partition == first) {
            return vec![(first, segments)];
        }
        let trace = segments.trace();
        let (bytes, parts) = segments.into_parts();
        let mut split: Vec<(Partition, Segments)> = Vec::new();
        let mut start = 0;
        for part in parts {
            let end = start + part.bytes as usize;
            let partition = partition_of(part.integration_id);
            let at = split.iter().position(|(known, _)| *known == partition);
            let at = at.unwrap_or_else(|| {
                split.push((partition, Segments::default().with_trace(trace)));
                split.len() - 1
            });
            split[at].1.push_part(part, &bytes[start..end]);
            start = end;
        }
        split
    }
}

impl Lane {
    fn send(&self, permit: Permit<'_, Append>, segments: Segments, answer: Answer) {
        let bytes = segments.bytes();
        self.load.bytes.fetch_add(bytes, Ordering::Relaxed);
        permit.send(Append { segments, answer });
    }
}

struct Task {
    partition: Partition,
    log: Arc<dyn EventLog>,
    catalog: Arc<Catalog>,
    /// Partitions whose owners are waited for, so that counts include what was acknowledged.
    partitions: Option<Arc<Partitions>>,
    linger: Duration,
    requests: mpsc::Receiver<Append>,
    load: Arc<Load>,
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
            self.load.bytes.fetch_sub(bytes, Ordering::Relaxed);
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
        let mut group = Group::default();
        let mut answers = Vec::with_capacity(requests.len());
        let mut events = 0;
        for Append { segments, answer } in requests {
            events += u64::from(segments.events());
            group.add(segments);
            answers.push(answer);
        }
        let entries = group.into_entries(revision, rand::random);
        self.load.set_appending(true);
        let began_at = Instant::now();
        let result = self.log.append(self.partition, entries).await;
        self.load.set_appending(false);
        if result.is_ok() {
            metrics::LOG_COMMIT_DURATION.record(began_at.elapsed());
            metrics::EVENTS_ACCEPTED.add(events);
        }
        if result.is_ok()
            && let Some(partitions) = &self.partitions
        {
            let end = self.log.known_end(self.partition);
            partitions.wait_for(self.partition, end).await;
        }
        for answer in answers {
            answer.give(result.clone());
        }
    }
}

/// Result of a request whose events went to several partitions.
fn combine(results: &[Result<(), StoreError>]) -> Result<(), StoreError> {
    let may_be_kept = |result: &Result<(), StoreError>| {
        matches!(
            result,
            Ok(()) | Err(StoreError::Unavailable(_) | StoreError::Corrupt(_))
        )
    };
    let errors = || results.iter().filter_map(|result| result.as_ref().err());
    let Some(last) = errors().next_back() else {
        return Ok(());
    };
    if !results.iter().any(may_be_kept) {
        return Err(last.clone());
    }
    let in_doubt = errors().find(|error| matches!(error, StoreError::Unavailable(_)));
    Err(match in_doubt {
        Some(error) => error.clone(),
        None => StoreError::Unavailable(last.to_string()),
    })
}

#[cfg(test)]
mod tests;
