//! A publisher that runs in the background.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use prost::Message;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Duration, timeout},
};
use tonic::Status;

use crate::{
    Ack, Channel, EventSender, PublishLoop, PublishStopped, PublisherError, PublisherOptions,
    SiemError, Update, Updates,
    v1::{self, Rejection},
};

/// Events that the text of an error names.
const NAMED_EVENTS: usize = 5;

/// Final answer to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is durable.
    Accepted,
    /// Its organization has no integration; it is not stored.
    Unconfigured,
    /// A filter of its integration left it out; it is not stored.
    Filtered,
    /// One of these three: the answer only counts, and differs between the events of the request.
    Undetermined,
    /// It is invalid; see the rejection.
    Rejected,
}

/// Final answer to one event.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PublishResult {
    /// The answer.
    pub outcome: Outcome,
    /// Reason, field and message of a rejected event. Its index is 0.
    pub rejection: Option<Rejection>,
}

/// Counts since a publisher was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStats {
    /// Events that are durable.
    pub accepted: u64,
    /// Events of organizations without an integration.
    pub unconfigured: u64,
    /// Events that a filter left out.
    pub filtered: u64,
    /// Events that were rejected for good.
    pub rejected: u64,
    /// Temporary rejections; each event counts as often as it was rejected.
    pub deferred: u64,
    /// Streams that broke while events were unanswered.
    pub reconnects: u64,
    /// Events without a final answer.
    pub pending: u64,
}

/// A publisher has events without a final answer; the server may have accepted them.
#[derive(Debug)]
pub struct UnacknowledgedError {
    problem: String,
    /// The events, in the order of sending. Publish them again, unchanged: consumers drop
    /// duplicates.
    pub unacknowledged: Vec<v1::Event>,
}

impl fmt::Display for UnacknowledgedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.unacknowledged.len();
        write!(f, "{}; {count} unacknowledged events: ", self.problem)?;
        for (index, event) in self.unacknowledged.iter().take(NAMED_EVENTS).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(
                f,
                "{separator}{}/{}/",
                event.organization_id, event.device_id
            )?;
            match (&event.event_id, &event.observed_time) {
                (Some(id), _) => f.write_str(id)?,
                (None, Some(time)) => write!(f, "{time}")?,
                (None, None) => {}
            }
        }
        match count.saturating_sub(NAMED_EVENTS) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl std::error::Error for UnacknowledgedError {}

/// Final answer to an event, once it is awaited. It may be dropped.
#[derive(Debug)]
pub struct PublishReceipt(oneshot::Receiver<PublishResult>);

impl Future for PublishReceipt {
    /// The answer; [`PublishStopped`] if the publisher ended without one.
    type Output = Result<PublishResult, PublishStopped>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map_err(|_| PublishStopped)
    }
}

/// Publishes events over PublishStream in the background, and opens the stream again whenever it
/// breaks. [`Client::publisher`](crate::Client::publisher) makes it.
///
/// Unanswered events are kept and sent again, unchanged and so under the same CloudEvents ids: none is
/// lost, and consumers drop those that were accepted twice. Events of a device keep their order. A
/// temporary rejection (OVERLOADED, RATE_LIMITED) defers the event and later ones of its device;
/// other devices go on. A request that is refused as a whole costs only the event at fault.
///
/// [`close`](Self::close) it: a publisher that is dropped goes on in the background only while its
/// runtime runs. For answers as one sequence of updates, use [`PublishLoop`].
///
/// ```no_run
/// # async fn example(client: siem_client::Client, events: Vec<siem_client::v1::Event>)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let publisher = client.publisher(Default::default());
/// for event in &events {
///     publisher.send(event).await?;
/// }
/// publisher.close(Duration::from_secs(30)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Publisher {
    sender: EventSender,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Tag of the oldest event without an answer, `u64::MAX` if there is none; or the end.
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    oldest: u64,
    has_ended: bool,
}

#[derive(Debug, Default)]
struct State {
    next_tag: u64,
    /// Events without an answer, by tag.
    pending: BTreeMap<u64, Pending>,
    stats: PublisherStats,
    failure: Option<PublisherError>,
}

#[derive(Debug)]
struct Pending {
    /// Shares its memory with the request.
    event: Bytes,
    answer: oneshot::Sender<PublishResult>,
}

impl Publisher {
    /// Returns a publisher whose task runs on the current tokio runtime.
    pub(super) fn new(channel: Channel, options: PublisherOptions) -> Self {
        let (sender, updates, publish_loop) = PublishLoop::new(channel, options);
        let progress = Progress {
            oldest: u64::MAX,
            has_ended: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            progress: watch::Sender::new(progress),
        });
        let state = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let (result, ()) = tokio::join!(publish_loop.run(), state.follow(updates));
            state.end(result.err());
        });
        Self {
            sender,
            shared,
            task,
        }
    }

    /// Queues an event. Waits while more than
    /// [`max_bytes_in_flight`](PublisherOptions::max_bytes_in_flight) are unanswered. If the future
    /// is dropped, the event is not queued.
    ///
    /// # Errors
    ///
    /// [`PublishStopped`] if the publisher has ended; [`flush`](Self::flush) has the reason.
    pub async fn send(&self, event: &v1::Event) -> Result<PublishReceipt, PublishStopped> {
        let reserved = self.sender.reserve(event).await?;
        let (answer, receipt) = oneshot::channel();
        let mut state = self.shared.lock();
        let tag = state.next_tag;
        state.next_tag += 1;
        let event = reserved.event().clone();
        state.pending.insert(tag, Pending { event, answer });
        state.stats.pending += 1;
        // Under the lock: the order of tags is that of the queue.
        reserved.send(tag);
        drop(state);
        Ok(PublishReceipt(receipt))
    }

    /// Counts so far.
    pub fn stats(&self) -> PublisherStats {
        self.shared.lock().stats
    }

    /// Waits until every event that was sent before has its final answer.
    ///
    /// # Errors
    ///
    /// Some have none in time. The publisher continues, unless it has ended.
    pub async fn flush(&self, limit: Duration) -> Result<(), UnacknowledgedError> {
        let end = self.shared.lock().next_tag;
        let mut progress = self.shared.update(|_| {}).subscribe();
        let flushed = timeout(limit, async {
            // A publisher that has ended has its reason in the state.
            let _ended = self.sender.flush().await;
            // The sender is not dropped before `self`.
            let _changed = progress
                .wait_for(|progress| progress.oldest >= end || progress.has_ended)
                .await;
        });
        let is_late = flushed.await.is_err();
        let state = self.shared.lock();
        match state.pending.range(..end).next() {
            None => Ok(()),
            Some(_) => {
                Err(state.unacknowledged(is_late.then(|| format!("not flushed within {limit:?}"))))
            }
        }
    }

    /// Flushes and ends the publisher.
    ///
    /// # Errors
    ///
    /// Some events have no final answer in time. They are not sent any more.
    pub async fn close(self, limit: Duration) -> Result<(), UnacknowledgedError> {
        let Self {
            sender,
            shared,
            mut task,
        } = self;
        drop(sender);
        let is_late = timeout(limit, &mut task).await.is_err();
        task.abort();
        let mut state = shared.lock();
        let problem = is_late.then(|| format!("not closed within {limit:?}"));
        let result = match state.pending.is_empty() {
            true => Ok(()),
            false => Err(state.unacknowledged(problem)),
        };
        state.pending.clear();
        result
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and reports the progress.
    fn update(&self, change: impl FnOnce(&mut State)) -> &watch::Sender<Progress> {
        let mut state = self.lock();
        change(&mut state);
        let oldest = state.pending.keys().next().copied().unwrap_or(u64::MAX);
        self.progress
            .send_modify(|progress| progress.oldest = oldest);
        &self.progress
    }

    async fn follow(&self, mut updates: Updates) {
        while let Some(update) = updates.recv().await {
            self.update(|state| match update {
                Update::Ack(ack) => state.settle(ack),
                Update::Deferred(deferral) => state.stats.deferred += deferral.events as u64,
                Update::Retrying(_) => state.stats.reconnects += 1,
            });
        }
    }

    fn end(&self, failure: Option<PublisherError>) {
        let progress = self.update(|state| {
            state.failure = failure;
            // Nothing answers any more: receipts end. The events remain for the error.
            for pending in state.pending.values_mut() {
                pending.answer = oneshot::channel().0;
            }
        });
        progress.send_modify(|progress| progress.has_ended = true);
    }
}

impl State {
    fn settle(&mut self, ack: Ack) {
        let mut rejections = BTreeMap::new();
        let mut outcome = Outcome::Accepted;
        let stats = &mut self.stats;
        match ack.outcome {
            Ok(response) => {
                stats.accepted += u64::from(response.accepted);
                stats.unconfigured += u64::from(response.unconfigured);
                stats.filtered += u64::from(response.filtered);
                if response.unconfigured > 0 || response.filtered > 0 {
                    let valid = ack.tags.len() - response.rejections.len().min(ack.tags.len());
                    outcome = match (response.unconfigured as usize, response.filtered as usize) {
                        (unconfigured, _) if unconfigured >= valid => Outcome::Unconfigured,
                        (_, filtered) if filtered >= valid => Outcome::Filtered,
                        _ => Outcome::Undetermined,
                    };
                }
                let given = response.rejections.into_iter();
                rejections.extend(given.map(|rejection| (rejection.index, rejection)));
            }
            Err(status) => {
                let rejection = refused(status);
                let each = (0..).zip(&ack.tags);
                rejections.extend(each.map(|(index, _)| (index, rejection.clone())));
            }
        }
        for (index, tag) in (0..).zip(ack.tags) {
            let Some(pending) = self.pending.remove(&tag) else {
                continue;
            };
            self.stats.pending -= 1;
            let rejection = rejections.remove(&index);
            let result = match rejection {
                None => PublishResult {
                    outcome,
                    rejection: None,
                },
                Some(rejection) => {
                    self.stats.rejected += 1;
                    PublishResult {
                        outcome: Outcome::Rejected,
                        rejection: Some(Rejection {
                            index: 0,
                            ..rejection
                        }),
                    }
                }
            };
            // The receipt may be dropped.
            let _unread = pending.answer.send(result);
        }
    }

    /// Error that names the events without an answer. `problem` is that of a time-out.
    fn unacknowledged(&self, problem: Option<String>) -> UnacknowledgedError {
        let ended = || match &self.failure {
            Some(failure) => failure.to_string(),
            None => "the publisher has ended".to_owned(),
        };
        UnacknowledgedError {
            problem: problem.unwrap_or_else(ended),
            unacknowledged: self
                .pending
                .values()
                .filter_map(|pending| v1::Event::decode(pending.event.clone()).ok())
                .collect(),
        }
    }
}

/// Rejection of an event whose request was refused.
fn refused(status: Status) -> Rejection {
    let error = SiemError::from(status);
    let violation = error.violations.first();
    Rejection {
        index: 0,
        reason: error.reason.into(),
        field: violation.map_or_else(String::new, |violation| violation.field.clone()),
        message: violation.map_or_else(
            || error.to_string(),
            |violation| violation.description.clone(),
        ),
    }
}
