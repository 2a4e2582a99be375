//! `siem.v1.EventService`: decodes and validates events, and appends them to the log.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    errors::ApiError,
    event_decoder::decode_event,
    request_body::{MemoryPermit, MemoryPermits},
};
use crate::{
    domain::{
        event::{Format, Rejection},
        integration::IntegrationKey,
        map::Map,
        segment::Segments,
    },
    proto::v1::{
        self, PublishRequest, PublishResponse, PublishStreamRequest, PublishStreamResponse,
        event_service_server::EventService, publish_stream_response::Outcome,
    },
    store::Store,
};

/// Events in one request.
const MAX_EVENTS: usize = 1000;
/// Bytes of the events in one request.
const MAX_BYTES: usize = 4 << 20;
/// Requests of one PublishStream that are in flight.
const MAX_IN_FLIGHT: usize = 64;
/// Bytes of a request_id.
const MAX_REQUEST_ID: usize = 128;
/// Time for a client to end its side of a stream that the server has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Handler of EventService. Cheap to clone.
#[derive(Clone)]
pub(super) struct Events {
    store: Store,
    format: Arc<Format>,
    size_ratio: Arc<SizeRatio>,
    stop: CancellationToken,
}

type Durable = Pin<Box<dyn Future<Output = Result<PublishResponse, ApiError>> + Send>>;

/// Answer of a PublishStream that may not be durable yet.
enum PendingAnswer {
    Request {
        request_id: String,
        durable: Durable,
    },
    End(Status),
}

impl PendingAnswer {
    async fn wait(self) -> Result<PublishStreamResponse, Status> {
        match self {
            Self::End(status) => Err(status),
            Self::Request {
                request_id,
                durable,
            } => Ok(PublishStreamResponse {
                request_id,
                outcome: Some(match durable.await {
                    Ok(response) => Outcome::Result(response),
                    Err(error) => Outcome::Error(error.into_message()),
                }),
            }),
        }
    }
}

#[tonic::async_trait]
impl EventService for Events {
    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        if self.stop.is_cancelled() {
            return Err(ApiError::ShuttingDown.into());
        }
        let permit = memory_permits(&request).next();
        let events = request.into_inner().events;
        let durable = self.append(events, permit).await?;
        Ok(Response::new(durable.await?))
    }

    type PublishStreamStream =
        Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (answers, pending) = mpsc::channel(MAX_IN_FLIGHT);
        let permits = memory_permits(&request);
        tokio::spawn(
            self.clone()
                .read_stream(request.into_inner(), permits, answers),
        );
        let answers = ReceiverStream::new(pending).then(PendingAnswer::wait);
        Ok(Response::new(Box::pin(answers)))
    }
}

fn memory_permits<T>(request: &Request<T>) -> MemoryPermits {
    let permits = request.extensions().get::<MemoryPermits>();
    permits.cloned().unwrap_or_default()
}

/// Reads and drops the rest of a stream until the client has seen its end. A connection
/// that is closed with unread bytes is reset, and the reset discards answers that the client
/// has not read yet.
async fn drain(mut requests: Streaming<PublishStreamRequest>, permits: MemoryPermits) {
    let drained = async {
        while let Ok(Some(_)) = requests.message().await {
            drop(permits.next());
        }
    };
    let _elapsed = timeout(DRAIN_TIMEOUT, drained).await;
}

impl Events {
    pub(super) fn new(store: Store, format: Arc<Format>, stop: CancellationToken) -> Self {
        Self {
            store,
            format,
            size_ratio: Arc::default(),
            stop,
        }
    }

    /// Reads requests until the client ends or cancels the stream, or the server stops.
    /// Every request that was appended is answered.
    async fn read_stream(
        self,
        mut requests: Streaming<PublishStreamRequest>,
        permits: MemoryPermits,
        answers: mpsc::Sender<PendingAnswer>,
    ) {
        loop {
            let message = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    let end = PendingAnswer::End(ApiError::ShuttingDown.into());
                    let _client_is_gone = answers.send(end).await;
                    return drain(requests, permits).await;
                }
                message = requests.message() => message,
            };
            let request = match message {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(status) => {
                    let error = ApiError::from_decode_failure(&status).map(Status::from);
                    let end = PendingAnswer::End(error.unwrap_or(status));
                    let _client_is_gone = answers.send(end).await;
                    return;
                }
            };
            let answer = self.append_of_stream(request, permits.next()).await;
            // Backpressure: without free capacity in the channel no further request is read.
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    }

    async fn append_of_stream(
        &self,
        request: PublishStreamRequest,
        permit: Option<MemoryPermit>,
    ) -> PendingAnswer {
        let PublishStreamRequest { request_id, events } = request;
        if request_id.len() > MAX_REQUEST_ID {
            let error = ApiError::invalid(
                "request_id",
                format_args!("may have at most {MAX_REQUEST_ID} bytes"),
            );
            return PendingAnswer::Request {
                request_id: String::new(),
                durable: Box::pin(async { Err(error) }),
            };
        }
        PendingAnswer::Request {
            request_id,
            durable: match self.append(events, permit).await {
                Ok(durable) => Box::pin(durable),
                Err(error) => Box::pin(async { Err(error) }),
            },
        }
    }

    /// Validates events and appends the valid ones to the log, in the order of the calls.
    /// The returned future ends once they are durable. `permit` covers the memory of
    /// `events`.
    async fn append(
        &self,
        events: Vec<Bytes>,
        permit: Option<MemoryPermit>,
    ) -> Result<impl Future<Output = Result<PublishResponse, ApiError>> + Send + use<>, ApiError>
    {
        check_size(&events)?;
        self.store.check_room()?;
        let Validated {
            segments,
            unconfigured,
            rejections,
        } = self.validate(&events);
        drop(events);
        self.store.give_way(&segments).await;
        let valid = segments.events();
        let durable = match segments.is_empty() {
            true => None,
            // The store holds the permit until the events are durable, even if the caller
            // does not wait for the answer.
            false => Some(self.store.append(segments, permit).await?),
        };
        Ok(async move {
            let accepted = match durable {
                Some(durable) => durable.await?,
                None => 0,
            };
            Ok(PublishResponse {
                accepted,
                // The integrations of the others were deleted in the meantime.
                unconfigured: unconfigured + (valid - accepted),
                rejections,
            })
        })
    }

    fn validate(&self, events: &[Bytes]) -> Validated {
        let (mut read, mut left) = (0, events.iter().map(Bytes::len).sum());
        let mut validated = Validated {
            segments: Segments::with_room(self.size_ratio.estimate(left)),
            ..Validated::default()
        };
        let mut keys = KeyLookup::new(&self.store);
        for (index, bytes) in events.iter().enumerate() {
            validated.segments.expect(read, left);
            match push_event(bytes, &self.format, &mut keys, &mut validated.segments) {
                Ok(true) => {}
                Ok(false) => validated.unconfigured += 1,
                Err(rejection) => {
                    let rejection = convert::rejection(index, rejection);
                    validated.rejections.push(rejection);
                }
            }
            read += bytes.len();
            left -= bytes.len();
        }
        self.size_ratio.update(read, validated.segments.bytes());
        validated
    }
}

/// Events of a request after validation.
#[derive(Default)]
struct Validated {
    segments: Segments,
    unconfigured: u32,
    rejections: Vec<v1::Rejection>,
}

/// Ratio of stored to received bytes in the last request, to allocate the buffer of the next
/// one in one step.
struct SizeRatio(AtomicU32);

impl SizeRatio {
    /// Fixed-point representation of a ratio of 1.
    const ONE: u32 = 1 << 10;

    /// Returns the expected number of stored bytes, plus a sixteenth.
    fn estimate(&self, received: usize) -> usize {
        let ratio = self.0.load(Ordering::Relaxed) as usize;
        received.saturating_mul(ratio + ratio / 16) / Self::ONE as usize
    }

    fn update(&self, received: usize, stored: usize) {
        if stored > 0 {
            let ratio = stored.saturating_mul(Self::ONE as usize) / received;
            let ratio = u32::try_from(ratio).unwrap_or(u32::MAX);
            self.0.store(ratio.min(4 * Self::ONE), Ordering::Relaxed);
        }
    }
}

impl Default for SizeRatio {
    fn default() -> Self {
        Self(AtomicU32::new(Self::ONE))
    }
}

fn check_size(events: &[Bytes]) -> Result<(), ApiError> {
    if events.len() > MAX_EVENTS {
        return Err(ApiError::TooManyEvents {
            count: events.len(),
            limit: MAX_EVENTS,
        });
    }
    let bytes: usize = events.iter().map(Bytes::len).sum();
    if bytes > MAX_BYTES {
        return Err(ApiError::RequestTooLarge {
            bytes,
            limit: MAX_BYTES,
        });
    }
    Ok(())
}

/// Adds one event to the segment of its integration. Returns false if its organization has no
/// integration.
fn push_event<'a>(
    bytes: &'a [u8],
    format: &Format,
    keys: &mut KeyLookup<'a>,
    segments: &mut Segments,
) -> Result<bool, Rejection> {
    let event = decode_event(bytes)?;
    let valid = event.validate()?;
    let Some(key) = keys.get(event.organization_id) else {
        return Ok(false);
    };
    segments.push(key, |out| valid.store(format, out))?;
    Ok(true)
}

/// Cached lookup of integrations, so that all events of an organization in one request get
/// the same answer.
struct KeyLookup<'a> {
    store: &'a Store,
    by_organization: Map<&'a str, Option<IntegrationKey>>,
    /// Consecutive events mostly belong to one organization.
    last: Option<(&'a str, Option<IntegrationKey>)>,
}

impl<'a> KeyLookup<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            by_organization: Map::default(),
            last: None,
        }
    }

    fn get(&mut self, organization_id: &'a str) -> Option<IntegrationKey> {
        let find = || self.store.key_of(organization_id);
        let key = match self.last {
            Some((last, key)) if last == organization_id => return key,
            // The map stays empty until there is a second organization.
            None => find(),
            Some((last, key)) => {
                if self.by_organization.is_empty() {
                    self.by_organization.insert(last, key);
                }
                *self
                    .by_organization
                    .entry(organization_id)
                    .or_insert_with(find)
            }
        };
        self.last = Some((organization_id, key));
        key
    }
}
