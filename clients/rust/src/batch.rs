//! Batches events into requests.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Duration, Instant, timeout_at},
};

/// One encoded event.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) event: Bytes,
    pub(super) tag: u64,
    /// Hash of organization, network and device. Devices with the same hash count as one.
    pub(super) device: u64,
    /// Hash of the organization.
    pub(super) organization: u64,
    /// Number in the order of sending, counted over all devices; set by [`Batches`].
    pub(super) order: u64,
    /// Its share of the limit on unanswered bytes, returned when it is answered.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Item {
    /// Sorts by device, and by order within one.
    pub(super) fn key(&self) -> (u64, u64) {
        (self.device, self.order)
    }
}

/// Up to this many organizations at a time, each request carries events of one, since an answer only
/// counts the events of organizations without an integration.
const SEPARATE_ORGANIZATIONS: usize = 8;

/// An entry of the queue between senders and batches.
#[derive(Debug)]
pub(super) enum Queued {
    Event(Item),
    /// Earlier events must not linger.
    Flush,
}

/// The events of one request.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    bytes: usize,
}

impl Batch {
    pub(super) fn add(&mut self, item: Item) {
        self.bytes += wire_len(&item.event);
        self.items.push(item);
    }

    /// Returns one batch for each organization, or all in one if there are many organizations.
    pub(super) fn by_organization(self) -> Vec<Self> {
        let mut batches: Vec<Self> = Vec::new();
        let organizations: BTreeSet<u64> =
            self.items.iter().map(|item| item.organization).collect();
        if organizations.is_empty() {
            return batches;
        }
        if organizations.len() == 1 || organizations.len() > SEPARATE_ORGANIZATIONS {
            return vec![self];
        }
        for item in self.items {
            let known = batches
                .iter_mut()
                .find(|batch| batch.items[0].organization == item.organization);
            match known {
                Some(batch) => batch.add(item),
                None => {
                    let mut batch = Self::default();
                    batch.add(item);
                    batches.push(batch);
                }
            }
        }
        batches
    }

    /// Removes and returns the second half of the events; none if there is one event.
    pub(super) fn split(&mut self) -> Option<Self> {
        let half = self.items.len() / 2;
        if half == 0 {
            return None;
        }
        let mut second = Self::default();
        for item in self.items.split_off(self.items.len() - half) {
            self.bytes -= wire_len(&item.event);
            second.add(item);
        }
        Some(second)
    }

    /// Returns whether the request can carry the event too. An empty one can carry any.
    pub(super) fn has_capacity(&self, item: &Item, limits: BatchLimits) -> bool {
        self.items.is_empty()
            || self.items.len() < limits.max_events
                && self.bytes + wire_len(&item.event) <= limits.max_bytes
    }

    /// Removes and returns the events for which `remove` holds.
    pub(super) fn extract(&mut self, mut remove: impl FnMut(&Item) -> bool) -> Vec<Item> {
        let removed: Vec<_> = self.items.extract_if(.., |item| remove(item)).collect();
        self.bytes -= removed
            .iter()
            .map(|item| wire_len(&item.event))
            .sum::<usize>();
        removed
    }
}

/// Bytes of an event within a request: tag and length of the field take at most six.
fn wire_len(event: &Bytes) -> usize {
    event.len() + 6
}

/// The limits of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) max_events: usize,
    /// An event that is larger is sent in a request of its own.
    pub(super) max_bytes: usize,
    /// Longest time that the first event of a request waits for further events.
    pub(super) linger: Duration,
}

/// Receives events from a channel and returns them request by request.
#[derive(Debug)]
pub(super) struct Batches {
    queue: mpsc::Receiver<Queued>,
    limits: BatchLimits,
    pending: Batch,
    flush_at: Instant,
    /// Number of events received.
    received: u64,
    /// An event that did not fit into `pending` and starts the next request.
    held: Option<Item>,
}

impl Batches {
    pub(super) fn new(queue: mpsc::Receiver<Queued>, limits: BatchLimits) -> Self {
        Self {
            queue,
            limits,
            pending: Batch::default(),
            flush_at: Instant::now(),
            received: 0,
            held: None,
        }
    }

    /// Returns the events of the next request; `None` once all senders are dropped and nothing is
    /// left. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Batch> {
        while !self.is_full() {
            let item = if let Ok(item) = self.queue.try_recv() {
                Some(item)
            } else if self.pending.items.is_empty() {
                self.queue.recv().await
            } else {
                match timeout_at(self.flush_at, self.queue.recv()).await {
                    Ok(item) => item,
                    Err(_) => break,
                }
            };
            let mut item = match item {
                Some(Queued::Event(item)) => item,
                Some(Queued::Flush) if self.pending.items.is_empty() => continue,
                Some(Queued::Flush) | None => break,
            };
            self.received += 1;
            item.order = self.received;
            self.add(item);
        }
        let batch = std::mem::take(&mut self.pending);
        if let Some(item) = self.held.take() {
            self.add(item);
        }
        (!batch.items.is_empty()).then_some(batch)
    }

    fn is_full(&self) -> bool {
        self.held.is_some()
            || self.pending.items.len() >= self.limits.max_events
            || self.pending.bytes >= self.limits.max_bytes
    }

    fn add(&mut self, item: Item) {
        if self.pending.items.is_empty() {
            self.flush_at = Instant::now() + self.limits.linger;
        } else if !self.pending.has_capacity(&item, self.limits) {
            self.held = Some(item);
            return;
        }
        self.pending.add(item);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn item(tag: u64, len: usize) -> Item {
        Item {
            event: vec![0; len].into(),
            tag,
            device: 0,
            organization: 0,
            order: 0,
            _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        }
    }

    fn batches(max_events: usize, max_bytes: usize) -> (mpsc::Sender<Queued>, Batches) {
        let (sender, queue) = mpsc::channel(100);
        let limits = BatchLimits {
            max_events,
            max_bytes,
            linger: Duration::from_millis(10),
        };
        (sender, Batches::new(queue, limits))
    }

    async fn tags(batches: &mut Batches) -> Option<Vec<u64>> {
        let batch = batches.next().await?;
        Some(batch.items.iter().map(|item| item.tag).collect())
    }

    async fn send(sender: &mpsc::Sender<Queued>, budget: &Arc<Semaphore>, tag: u64, len: usize) {
        let item = Item {
            _permit: budget.clone().try_acquire_owned().unwrap(),
            ..item(tag, len)
        };
        sender.send(Queued::Event(item)).await.unwrap();
    }

    fn batch(items: impl IntoIterator<Item = Item>) -> Batch {
        let mut batch = Batch::default();
        for item in items {
            batch.add(item);
        }
        batch
    }

    #[test]
    fn a_few_organizations_get_requests_of_their_own() {
        let of = |organizations: u64| {
            let items = (0..20).map(|tag| Item {
                organization: tag % organizations,
                ..item(tag, 10)
            });
            let batches = batch(items).by_organization();
            let all = batches.iter().flat_map(|batch| &batch.items);
            assert_eq!(all.count(), 20);
            assert!(
                batches
                    .iter()
                    .all(|batch| batch.bytes == 16 * batch.items.len())
            );
            batches
        };
        assert_eq!(of(1).len(), 1);
        let three = of(3);
        let tags: Vec<u64> = three[1].items.iter().map(|item| item.tag).collect();
        assert_eq!((three.len(), tags), (3, vec![1, 4, 7, 10, 13, 16, 19]));
        assert_eq!(of(9).len(), 1);
        assert!(Batch::default().by_organization().is_empty());
    }

    #[test]
    fn a_request_is_split_until_it_has_one_event() {
        let mut first = batch((0..3).map(|tag| item(tag, 10)));
        let second = first.split().unwrap();
        assert_eq!((first.items.len(), first.bytes), (2, 32));
        assert_eq!((second.items[0].tag, second.bytes), (2, 16));
        assert!(first.split().is_some());
        assert!(first.split().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_the_linger() {
        let budget = Arc::new(Semaphore::new(100));
        let (sender, mut batches) = batches(3, 100);
        sender.send(Queued::Flush).await.unwrap();
        send(&sender, &budget, 1, 1).await;
        sender.send(Queued::Flush).await.unwrap();
        send(&sender, &budget, 2, 1).await;
        let start = Instant::now();
        assert_eq!(tags(&mut batches).await, Some(vec![1]));
        assert_eq!(start.elapsed(), Duration::ZERO);
        drop(sender);
        assert_eq!(tags(&mut batches).await, Some(vec![2]));
        assert_eq!(tags(&mut batches).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_at_its_count_its_bytes_or_the_end_of_input() {
        let budget = Arc::new(Semaphore::new(100));
        let (sender, mut batches) = batches(3, 100);
        for (tag, len) in [
            (1, 1),
            (2, 1),
            (3, 1),
            (4, 60),
            (5, 60),
            (6, 500),
            (7, 1),
            (8, 1),
        ] {
            send(&sender, &budget, tag, len).await;
        }
        drop(sender);
        for expect in [vec![1, 2, 3], vec![4], vec![5], vec![6], vec![7, 8]] {
            assert_eq!(tags(&mut batches).await, Some(expect));
        }
        assert_eq!(tags(&mut batches).await, None);
        assert_eq!(tags(&mut batches).await, None);
        assert_eq!(budget.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_sent_when_the_linger_ends() {
        let budget = Arc::new(Semaphore::new(100));
        let (sender, mut batches) = batches(3, 100);
        send(&sender, &budget, 1, 1).await;
        let start = Instant::now();
        assert_eq!(tags(&mut batches).await, Some(vec![1]));
        assert_eq!(start.elapsed(), Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_linger_counts_from_the_first_event() {
        let budget = Arc::new(Semaphore::new(100));
        let (sender, mut batches) = batches(100, 1000);
        let trickle = async {
            for tag in 1.. {
                send(&sender, &budget, tag, 1).await;
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        };
        let start = Instant::now();
        tokio::select! {
            () = trickle => unreachable!(),
            batch = tags(&mut batches) => assert_eq!(batch, Some(vec![1, 2, 3])),
        }
        assert_eq!(start.elapsed(), Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_future_loses_nothing() {
        let budget = Arc::new(Semaphore::new(100));
        let (sender, mut batches) = batches(3, 100);
        send(&sender, &budget, 1, 1).await;
        for _ in 0..3 {
            let short = Duration::from_millis(1);
            assert!(tokio::time::timeout(short, batches.next()).await.is_err());
        }
        drop(sender);
        assert_eq!(tags(&mut batches).await, Some(vec![1]));
    }
}
