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
        event::{Format, Rejection, RejectionReason},
        integration::IntegrationId,
        map::{Map, Set},
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
        self.store.check_capacity()?;
        let received = events.iter().map(Bytes::len).sum();
        let mut validated = self.validate(&events, &Set::default());
        if validated.unconfigured > 0 && self.store.is_shared() {
            // Another instance may have answered a Configure.
            self.store.catch_up().await?;
            validated = self.validate(&events, &Set::default());
        }
        self.size_ratio.update(received, validated.segments.bytes());
        let refused = self.store.admit(&validated.segments).await;
        if !refused.is_empty() {
            // Rare, so that segments need not keep the index of each event.
            validated = self.validate(&events, &refused);
        }
        drop(events);
        let Validated {
            segments,
            unconfigured,
            rejections,
        } = validated;
        let accepted = segments.events();
        let durable = match segments.is_empty() {
            true => None,
            // The store holds the permit until the events are durable, even if the caller
            // does not wait for the answer.
            false => Some(self.store.append(segments, permit).await?),
        };
        Ok(async move {
            if let Some(durable) = durable {
                durable.await?;
            }
            Ok(PublishResponse {
                accepted,
                unconfigured,
                rejections,
            })
        })
    }

    fn validate(&self, events: &[Bytes], refused: &Set<IntegrationId>) -> Validated {
        let find = |organization_id: &str| self.store.id_of(organization_id);
        let received = events.iter().map(Bytes::len).sum();
        let capacity = self.size_ratio.estimate(received);
        Validated::new(events, &self.format, find, refused, capacity)
    }
}

/// Events of a request after validation.
#[derive(Default)]
struct Validated {
    segments: Segments,
    unconfigured: u32,
    rejections: Vec<v1::Rejection>,
}

impl Validated {
    /// Validates events. `find` returns the integration of an organization, `refused` has the
    /// integrations whose events are rejected as overloaded, and `capacity` is the expected
    /// number of stored bytes.
    fn new(
        events: &[Bytes],
        format: &Format,
        find: impl Fn(&str) -> Option<IntegrationId>,
        refused: &Set<IntegrationId>,
        capacity: usize,
    ) -> Self {
        let (mut read, mut left) = (0, events.iter().map(Bytes::len).sum());
        let mut validated = Self {
            segments: Segments::with_capacity(capacity),
            ..Self::default()
        };
        let mut integrations = IntegrationLookup::new(find);
        for (index, bytes) in events.iter().enumerate() {
            let segments = &mut validated.segments;
            segments.expect(read, left);
            match push_event(bytes, format, &mut integrations, refused, segments) {
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
        validated
    }
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
    integrations: &mut IntegrationLookup<'a, impl Fn(&str) -> Option<IntegrationId>>,
    refused: &Set<IntegrationId>,
    segments: &mut Segments,
) -> Result<bool, Rejection> {
    let event = decode_event(bytes)?;
    let valid = event.validate()?;
    let Some(id) = integrations.get(event.organization_id) else {
        return Ok(false);
    };
    segments.push(id, |out| {
        // Before the check below, so that an event with a final rejection is not sent again.
        valid.store(format, out)?;
        match refused.contains(&id) {
            true => Err(overloaded()),
            false => Ok(()),
        }
    })?;
    Ok(true)
}

#[cold]
fn overloaded() -> Rejection {
    Rejection::new(
        RejectionReason::Overloaded,
        "",
        "was not accepted, because its integration has too many events waiting for delivery; send it again later under the same event_id",
    )
}

/// Cached lookup of integrations, so that all events of an organization in one request get
/// the same answer.
struct IntegrationLookup<'a, F> {
    find: F,
    by_organization: Map<&'a str, Option<IntegrationId>>,
    /// Consecutive events mostly belong to one organization.
    last: Option<(&'a str, Option<IntegrationId>)>,
}

impl<'a, F: Fn(&str) -> Option<IntegrationId>> IntegrationLookup<'a, F> {
    fn new(find: F) -> Self {
        Self {
            find,
            by_organization: Map::default(),
            last: None,
        }
    }

    fn get(&mut self, organization_id: &'a str) -> Option<IntegrationId> {
        let find = || (self.find)(organization_id);
        let id = match self.last {
            Some((last, id)) if last == organization_id => return id,
            // The map stays empty until there is a second organization.
            None => find(),
            Some((last, id)) => {
                if self.by_organization.is_empty() {
                    self.by_organization.insert(last, id);
                }
                *self
                    .by_organization
                    .entry(organization_id)
                    .or_insert_with(find)
            }
        };
        self.last = Some((organization_id, id));
        id
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::v1::ErrorReason;

    /// A valid event of an organization, whose signature has `length` bytes.
    fn event(organization_id: &str, length: usize) -> Bytes {
        let detection = v1::IdsDetection {
            src_ip: "192.0.2.1".into(),
            dest_ip: "192.0.2.2".into(),
            proto: "TCP".into(),
            signature: Some("x".repeat(length)),
            signature_id: Some(1),
            severity: Some(1),
            gid: Some(1),
            rev: Some(1),
            category: Some("misc".into()),
            action: "allowed".into(),
            direction: "to_server".into(),
            src_port: Some(1),
            dest_port: Some(2),
            ..v1::IdsDetection::default()
        };
        let event = v1::Event {
            organization_id: organization_id.into(),
            network_id: "018f4f0a-2b6c-7d3e-9a51-0c2f4b8e7d11".into(),
            device_id: "018f4f0a-2b6c-7d3e-9a51-0c2f4b8e7d10".into(),
            observed_time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            payload: Some(v1::event::Payload::IdsDetection(detection)),
            ..v1::Event::default()
        };
        event.encode_to_vec().into()
    }

    #[test]
    fn only_events_of_refused_integrations_are_rejected_as_overloaded() {
        let id = |number| IntegrationId(uuid::Uuid::from_u128(number));
        let events = [
            event("busy", 10),
            event("calm", 10),
            event("none", 10),
            event("busy", 10),
            // It would be rejected again, so its reason is the final one.
            event("busy", 2 << 20),
            event("calm", 10),
        ];
        let find = |organization: &str| match organization {
            "busy" => Some(id(1)),
            "calm" => Some(id(2)),
            _ => None,
        };
        let format = Format::new("https://meter.com", "com.meter").unwrap();
        let refused = Set::from_iter([id(1)]);
        let validated = Validated::new(&events, &format, find, &refused, 0);

        let parts = validated.segments.parts().iter();
        let parts: Vec<_> = parts
            .map(|part| (part.integration_id, part.count))
            .collect();
        assert_eq!(parts, [(id(2), 2)]);
        assert_eq!(validated.unconfigured, 1);
        let rejections = validated.rejections.iter();
        let rejections: Vec<_> = rejections
            .map(|rejection| (rejection.index, rejection.reason()))
            .collect();
        assert_eq!(
            rejections,
            [
                (0, ErrorReason::Overloaded),
                (3, ErrorReason::Overloaded),
                (4, ErrorReason::RecordTooLarge),
            ]
        );
        let message = &validated.rejections[0].message;
        assert!(message.contains("send it again later under the same event_id"));

        let all = Validated::new(&events, &format, find, &Set::default(), 0);
        assert_eq!((all.segments.events(), all.rejections.len()), (4, 1));
    }
}
