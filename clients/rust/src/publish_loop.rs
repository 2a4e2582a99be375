//! Publishes events over PublishStream, and opens the stream again whenever it breaks.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Duration, Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use tonic_types::RpcStatusExt;

use super::{
    Channel,
    batch::{Batch, BatchLimits, Batches, Item, Queued},
    deferred::{Answer, Deferred},
    retry::{self, Backoff, Remedy},
    window::Window,
};
use crate::v1::{self, PublishStreamResponse, publish_stream_response::Outcome};

/// Memory that one event takes beside its encoded bytes, also if it is the only deferred one of
/// its device.
pub(super) const EVENT_OVERHEAD_BYTES: usize = 256;
/// Events queued between senders and batches.
const QUEUED_EVENTS: usize = 1_024;
/// Updates queued for the receiver.
const QUEUED_UPDATES: usize = 64;
/// Time that the server has to end a stream whose requests are all answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits and waits of a [`Publisher`](crate::Publisher) or a [`PublishLoop`].
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    /// Unanswered requests, at least 1.
    pub max_requests_in_flight: usize,
    /// Bytes of unanswered events, whether sent or not, or to be sent again. One event alone may
    /// exceed it.
    pub max_bytes_in_flight: u32,
    /// Events of one request, 1 to 1,000.
    pub max_batch_events: usize,
    /// Bytes of one request, below 4 MiB. A larger event is sent alone.
    pub max_batch_bytes: usize,
    /// Longest time that the first event of a request waits for further events.
    pub linger: Duration,
    /// Wait after the first failure, or the first temporary rejection of a device's event; it
    /// doubles with each further one in a row.
    pub min_retry_wait: Duration,
    /// Longest wait, unless the server asks for a longer one.
    pub max_retry_wait: Duration,
    /// Time after which the publisher gives up if no request is answered, or with temporary
    /// rejections only.
    pub give_up_after: Duration,
    /// Time without an answer after which the stream is opened again.
    pub answer_timeout: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            max_requests_in_flight: 16,
            max_bytes_in_flight: 16 << 20,
            max_batch_events: 500,
            max_batch_bytes: 1 << 20,
            linger: Duration::from_millis(10),
            min_retry_wait: Duration::from_millis(100),
            max_retry_wait: Duration::from_secs(5),
            give_up_after: Duration::from_secs(300),
            answer_timeout: Duration::from_secs(60),
        }
    }
}

/// A report of a [`PublishLoop`] about its progress.
#[derive(Debug)]
pub enum Update {
    /// Events were answered.
    Ack(Ack),
    /// Events were rejected temporarily and will be sent again.
    Deferred(Deferral),
    /// The stream broke and will be opened again.
    Retrying(Retrying),
}

/// The final answer to events of one request. Answers come in the order of the events, except
/// that an event that was rejected temporarily is answered later.
#[derive(Debug)]
pub struct Ack {
    /// Tags of the answered events, in order; the index of a rejection is an index of it.
    pub tags: Vec<u64>,
    /// The server's answer without temporary rejections, or the status with which it refused the
    /// whole request.
    pub outcome: Result<v1::PublishResponse, Status>,
}

/// Temporary rejections in one answer. Each of the events is sent again after the earlier ones of
/// its device, and later ones of its device wait for it.
#[derive(Debug)]
pub struct Deferral {
    /// Number of events, at least 1.
    pub events: usize,
    /// Message of the first rejection.
    pub message: String,
}

/// A failure after which the unanswered requests are sent again.
#[derive(Debug)]
pub struct Retrying {
    /// The failure.
    pub cause: Status,
    /// Time until the next attempt.
    pub wait: Duration,
}

/// Receiver of a [`PublishLoop`]'s updates. The publisher waits while 64 of them are not received;
/// drop the receiver if they are of no interest.
pub type Updates = mpsc::Receiver<Update>;

/// Reason for which a [`PublishLoop`] ended before everything was answered.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// No event got a final answer for [`PublisherOptions::give_up_after`].
    #[error("gave up: no progress for {} s; last error: {} ({:?})", stalled.as_secs(), last.message(), last.code())]
    GaveUp {
        /// Time since the last final answer, or since there was something to send.
        stalled: Duration,
        /// The last failure.
        last: Status,
    },
    /// The server refuses the call itself, whatever it carries.
    #[error("the server refuses PublishStream: {} ({:?})", .0.message(), .0.code())]
    Refused(Status),
}

/// Error of a sender whose [`PublishLoop`] has ended; the result of its `run` has the reason.
#[derive(Debug, thiserror::Error)]
#[error("the publisher has ended")]
pub struct PublishStopped;

/// Sending end of a [`PublishLoop`], which ends once every sender is dropped and every event is
/// answered.
#[derive(Debug, Clone)]
pub struct EventSender {
    queue: mpsc::Sender<Queued>,
    budget: Arc<Semaphore>,
    max_bytes: u32,
}

impl EventSender {
    /// Queues one event; its answer carries the same `tag`. Waits while more than
    /// [`PublisherOptions::max_bytes_in_flight`] are unanswered.
    ///
    /// # Errors
    ///
    /// [`PublishStopped`] if the publisher has ended.
    pub async fn send(&self, event: &v1::Event, tag: u64) -> Result<(), PublishStopped> {
        self.reserve(event).await?.send(tag);
        Ok(())
    }

    /// Waits for the capacity that an event takes.
    pub(super) async fn reserve(&self, event: &v1::Event) -> Result<Reserved<'_>, PublishStopped> {
        let device = hash((&event.organization_id, &event.network_id, &event.device_id));
        let organization = hash(&event.organization_id);
        let event = Bytes::from(event.encode_to_vec());
        let weight = u32::try_from(event.len() + EVENT_OVERHEAD_BYTES)
            .unwrap_or(u32::MAX)
            .min(self.max_bytes);
        let permit = match Arc::clone(&self.budget).try_acquire_many_owned(weight) {
            Ok(permit) => permit,
            Err(_) => {
                // Events that linger would be waited for in vain.
                self.flush().await?;
                let permit = Arc::clone(&self.budget).acquire_many_owned(weight).await;
                permit.map_err(|_| PublishStopped)?
            }
        };
        let slot = self.queue.reserve().await.map_err(|_| PublishStopped)?;
        let item = Item {
            event,
            tag: 0,
            device,
            organization,
            order: 0,
            _permit: permit,
        };
        Ok(Reserved { item, slot })
    }

    /// Ends the linger of the events that were queued before.
    pub(super) async fn flush(&self) -> Result<(), PublishStopped> {
        let queued = self.queue.send(Queued::Flush).await;
        queued.map_err(|_| PublishStopped)
    }

    /// Waits until the publisher has ended.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

/// An event with the capacity that it takes.
pub(super) struct Reserved<'a> {
    item: Item,
    slot: mpsc::Permit<'a, Queued>,
}

impl Reserved<'_> {
    /// The encoded event.
    pub(super) fn event(&self) -> &Bytes {
        &self.item.event
    }

    pub(super) fn send(mut self, tag: u64) {
        self.item.tag = tag;
        self.slot.send(Queued::Event(self.item));
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Sends events over PublishStream until each is answered.
///
/// Unanswered requests are kept and sent again, in order, on the next stream. No event is lost,
/// but the server may have accepted some of them already. Such an event is delivered twice with
/// the same CloudEvents id, by which consumers drop duplicates. The same holds for requests that
/// were accepted behind one for which the server asked to send again: they are delivered once
/// before and once after it.
///
/// An event that is rejected temporarily (OVERLOADED, RATE_LIMITED) is sent again, unchanged, until its answer is
/// final. No later event of its device is sent in the meantime; other devices go on. Later events
/// of its device that were in flight already may be accepted before it; with
/// [`PublisherOptions::max_requests_in_flight`] and [`PublisherOptions::max_batch_events`] of 1
/// there are none.
#[derive(Debug)]
pub struct PublishLoop {
    channel: Channel,
    options: PublisherOptions,
    limits: BatchLimits,
    batches: Batches,
    window: Window<Batch>,
    deferred: Deferred,
    backoff: Backoff,
    /// An open stream was ended as UNAUTHENTICATED, and nothing was answered since.
    was_unauthenticated: bool,
    updates: mpsc::Sender<Update>,
}

/// Reason for which a stream ended before every request was answered.
struct Broken {
    status: Status,
    remedy: Remedy,
    retry_after: Option<Duration>,
}

impl PublishLoop {
    /// Returns the sending end, the receiver of updates, and the publisher, which works while
    /// [`run`](Self::run) is polled.
    pub fn new(channel: Channel, options: PublisherOptions) -> (EventSender, Updates, Self) {
        let (queue, queued) = mpsc::channel(QUEUED_EVENTS);
        let (updates, updates_receiver) = mpsc::channel(QUEUED_UPDATES);
        let max_bytes = options.max_bytes_in_flight.max(1);
        let sender = EventSender {
            queue,
            budget: Arc::new(Semaphore::new(max_bytes as usize)),
            max_bytes,
        };
        let limits = BatchLimits {
            max_events: options.max_batch_events.clamp(1, 1_000),
            max_bytes: options.max_batch_bytes,
            linger: options.linger,
        };
        let publisher = Self {
            channel,
            limits,
            batches: Batches::new(queued, limits),
            window: Window::new(options.max_requests_in_flight.max(1)),
            deferred: Deferred::default(),
            backoff: Backoff::new(
                options.min_retry_wait,
                options.max_retry_wait,
                options.give_up_after,
            ),
            was_unauthenticated: false,
            updates,
            options,
        };
        (sender, updates_receiver, publisher)
    }

    /// Runs until every sender is dropped and all is answered.
    ///
    /// # Errors
    ///
    /// [`PublisherError`] if it gave up. Unanswered events may have been accepted or not.
    pub async fn run(mut self) -> Result<(), PublisherError> {
        // No stream is opened before there is something to send.
        while self.has_work().await {
            match self.stream().await {
                Ok(()) => return Ok(()),
                Err(broken) => self.recover(broken).await?,
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.window.is_empty() && self.deferred.is_empty()
    }

    async fn has_work(&mut self) -> bool {
        if self.is_done()
            && let Some(batch) = self.batches.next().await
        {
            self.push(batch);
        }
        !self.is_done()
    }

    fn push(&mut self, mut batch: Batch) {
        if self.is_done() {
            self.backoff.work_began();
        }
        self.deferred.divert(&mut batch);
        for batch in batch.by_organization() {
            self.window.push(batch);
        }
    }

    /// Runs one stream until every event is answered.
    async fn stream(&mut self) -> Result<(), Broken> {
        // One slot per request that can be in flight, so that sending never waits.
        let (requests, outgoing) = mpsc::channel(self.options.max_requests_in_flight.max(1));
        self.window.rewind();
        self.deferred
            .reclaim(&mut self.window, Instant::now(), |failures| {
                self.backoff.wait(failures)
            });
        self.send_unsent(&requests);
        let call = open(self.channel.clone(), ReceiverStream::new(outgoing));
        let mut answers = timeout(self.options.answer_timeout, call)
            .await
            .map_err(|_| Broken::timed_out())?
            .map_err(Broken::stream)?;
        let mut input_open = true;
        let mut answer_due = Instant::now() + self.options.answer_timeout;
        while input_open || !self.is_done() {
            let idle = self.window.in_flight() == 0;
            let has_capacity = self.window.has_capacity();
            let deferred_due = self.deferred.next_due().filter(|_| has_capacity);
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer.map_err(|status| self.ended(status))?;
                    let answer = answer.ok_or_else(Broken::ended)?;
                    self.settle(answer).await?;
                    answer_due = Instant::now() + self.options.answer_timeout;
                }
                batch = self.batches.next(), if input_open && has_capacity => match batch {
                    Some(batch) => self.push(batch),
                    None => input_open = false,
                },
                () = sleep_until(deferred_due.unwrap_or(answer_due)), if deferred_due.is_some() => {
                    if let Some(batch) = self.deferred.take_due(Instant::now(), self.limits) {
                        self.window.push(batch);
                    }
                }
                () = sleep_until(answer_due), if !idle => return Err(Broken::timed_out()),
            }
            self.send_unsent(&requests);
            if idle {
                answer_due = Instant::now() + self.options.answer_timeout;
            }
        }
        drop(requests);
        close(answers).await;
        Ok(())
    }

    fn send_unsent(&mut self, requests: &mpsc::Sender<EncodedRequest>) {
        while let Some((id, batch)) = self.window.send_next() {
            let request = EncodedRequest {
                request_id: id.to_string(),
                events: batch.items.iter().map(|item| item.event.clone()).collect(),
            };
            // There is a slot for it. If the stream is gone, reading the answers fails.
            let _ = requests.try_send(request);
        }
    }

    async fn settle(&mut self, answer: PublishStreamResponse) -> Result<(), Broken> {
        if !self.window.awaits(&answer.request_id) {
            return Err(Broken::unexpected("an answer to another request"));
        }
        match answer.outcome {
            Some(Outcome::Result(response)) => {
                if let Some(message) = self.answered(Ok(response)).await
                    && self.backoff.left().is_zero()
                {
                    return Err(Broken::stream(Status::resource_exhausted(message)));
                }
            }
            Some(Outcome::Error(error)) => {
                let retry_info = error.get_details_retry_info();
                let details = error.encode_to_vec().into();
                let code = Code::from_i32(error.code);
                let status = Status::with_details(code, error.message, details);
                if retry::needs_new_token(status.code()) {
                    return Err(self.ended(status));
                }
                let remedy = retry::of_answer(status.code(), retry_info.is_some());
                if remedy != Remedy::Refuse {
                    let retry_after = retry_info.and_then(|info| info.retry_delay);
                    return Err(Broken {
                        status,
                        remedy,
                        retry_after,
                    });
                }
                if self.split(status.code()) {
                    let problem = format!("a request was refused as a whole: {}", status.message());
                    return Err(Broken::stream(Status::unavailable(problem)));
                }
                self.answered(Err(status)).await;
            }
            None => return Err(Broken::unexpected("an answer without an outcome")),
        }
        Ok(())
    }

    /// The end of a stream that was open.
    fn ended(&mut self, status: Status) -> Broken {
        let mut broken = Broken::stream(status);
        if retry::needs_new_token(broken.status.code()) && !self.was_unauthenticated {
            self.was_unauthenticated = true;
            broken.remedy = Remedy::Retry;
        }
        broken
    }

    /// Settles the oldest request. Returns the message of a temporary rejection, if there is one.
    async fn answered(&mut self, outcome: Result<v1::PublishResponse, Status>) -> Option<String> {
        self.backoff.answered();
        self.was_unauthenticated = false;
        let batch = self.window.pop()?;
        let (now, backoff) = (Instant::now(), &self.backoff);
        let wait = |failures| backoff.wait(failures);
        let answer = self
            .deferred
            .settle(batch, outcome, &mut self.window, now, wait);
        let Answer { tags, outcome, .. } = answer;
        if !tags.is_empty() {
            self.backoff.progress();
            self.report(Update::Ack(Ack { tags, outcome })).await;
        }
        let deferral = answer.deferral?;
        let message = deferral.message.clone();
        self.report(Update::Deferred(deferral)).await;
        Some(message)
    }

    /// Halves the oldest request if one of its events alone may be the reason of a refusal, so that
    /// only that one is refused in the end. Returns whether it did.
    fn split(&mut self, code: Code) -> bool {
        let is_at_fault = matches!(
            code,
            Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted
        );
        is_at_fault && self.window.split_front(Batch::split)
    }

    async fn report(&self, update: Update) {
        // A dropped receiver means that updates are of no interest.
        let _ = self.updates.send(update).await;
    }

    async fn recover(&mut self, broken: Broken) -> Result<(), PublisherError> {
        match broken.remedy {
            Remedy::Stop => return Err(PublisherError::Refused(broken.status)),
            Remedy::Refuse if self.window.in_flight() == 1 => {
                if !self.split(broken.status.code()) {
                    self.answered(Err(broken.status)).await;
                    return Ok(());
                }
            }
            Remedy::Refuse => self.window.suspect_in_flight(),
            Remedy::Retry => {}
        }
        if self.is_done() {
            return Ok(());
        }
        let Some(wait) = self.backoff.failed(broken.retry_after) else {
            return Err(PublisherError::GaveUp {
                stalled: self.backoff.stalled(),
                last: broken.status,
            });
        };
        let cause = broken.status;
        self.report(Update::Retrying(Retrying { cause, wait }))
            .await;
        sleep(wait).await;
        Ok(())
    }
}

/// A [`v1::PublishStreamRequest`] whose events are encoded already. Both are the same bytes on
/// the wire; events that are sent again are then neither copied nor encoded again.
#[derive(Clone, PartialEq, Message)]
struct EncodedRequest {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    events: Vec<Bytes>,
}

/// Opens a PublishStream. Returns once the server has answered with headers.
async fn open(
    channel: Channel,
    requests: ReceiverStream<EncodedRequest>,
) -> Result<Streaming<PublishStreamResponse>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(Status::from_error)?;
    let path = PathAndQuery::from_static("/siem.v1.EventService/PublishStream");
    let codec = ProstCodec::<EncodedRequest, PublishStreamResponse>::default();
    let answer = grpc.streaming(Request::new(requests), path, codec).await?;
    Ok(answer.into_inner())
}

/// Waits for the server to end the stream, so that it does not count as broken there.
async fn close(mut answers: Streaming<PublishStreamResponse>) {
    let _ = timeout(CLOSE_TIMEOUT, async {
        while let Ok(Some(_)) = answers.message().await {}
    })
    .await;
}

impl Broken {
    fn stream(status: Status) -> Self {
        let status = retry::lost_connection(status);
        let retry_after = retry::retry_after(&status);
        Self {
            remedy: retry::of_stream(status.code(), retry_after.is_some()),
            retry_after,
            status,
        }
    }

    fn timed_out() -> Self {
        Self::stream(Status::deadline_exceeded("the server does not answer"))
    }

    fn ended() -> Self {
        Self::stream(Status::unavailable("the server ended the stream"))
    }

    fn unexpected(what: &str) -> Self {
        Self::stream(Status::internal(format!("the server sent {what}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_request_is_the_documented_message() {
        let event = v1::Event {
            organization_id: "acme".into(),
            ..Default::default()
        };
        let encoded = EncodedRequest {
            request_id: "7".into(),
            events: vec![event.encode_to_vec().into(); 2],
        };
        let documented = v1::PublishStreamRequest {
            request_id: "7".into(),
            events: vec![event; 2],
        };
        assert_eq!(encoded.encode_to_vec(), documented.encode_to_vec());
    }
}
