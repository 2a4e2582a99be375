//! `siem.v1.EventService`: decodes and validates events, and appends them to the log.

use std::{
    collections::hash_map::Entry,
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
    audit::{Attempt, Foreign},
    caller::Caller,
    convert,
    errors::ApiError,
    event_decoder::decode_event,
    limits::{CallerKey, Limits},
    request_body::{MemoryPermit, MemoryPermits},
};
use crate::{
    domain::{
        event::{Format, Rejection, RejectionReason},
        integration::IntegrationId,
        map::Map,
        rights::Rights,
        segment::Segments,
    },
    metrics,
    proto::v1::{
        self, PublishRequest, PublishResponse, PublishStreamRequest, PublishStreamResponse,
        event_service_server::EventService, publish_stream_response::Outcome,
    },
    store::{MemoryHold, Store},
    telemetry::current_trace,
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
    limits: Limits,
    stop: CancellationToken,
}

/// Events of an integration that are rejected temporarily.
#[derive(Clone, Copy)]
enum Refused {
    /// All: it has too many that wait for delivery.
    Overloaded,
    /// All after the first ones.
    RateLimited { admitted: u32 },
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
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let events = request.into_inner().events;
        let durable = self
            .append(events, permit, &attempt, caller.rights())
            .await?;
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
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let requests = request.into_inner();
        let reading = self
            .clone()
            .read_stream(requests, attempt, caller, permits, answers);
        tokio::spawn(reading);
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
    pub(super) fn new(
        store: Store,
        format: Arc<Format>,
        limits: Limits,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            format,
            size_ratio: Arc::default(),
            limits,
            stop,
        }
    }

    /// Reads requests until the client ends or cancels the stream, or the server stops.
    /// Every request that was appended is answered.
    async fn read_stream(
        self,
        mut requests: Streaming<PublishStreamRequest>,
        attempt: Attempt,
        caller: Caller,
        permits: MemoryPermits,
        answers: mpsc::Sender<PendingAnswer>,
    ) {
        // The request that opened the stream was counted; it admits the first message.
        let mut is_counted = true;
        let key = CallerKey::of(&caller);
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
            let rights = match caller.rights_now() {
                Ok(rights) => rights,
                Err(error) => {
                    let _client_is_gone = answers.send(PendingAnswer::End(error.into())).await;
                    return drain(requests, permits).await;
                }
            };
            let admitted = match std::mem::take(&mut is_counted) {
                true => Ok(()),
                false => self.limits.admit_request(&key),
            };
            let answer = self
                .append_of_stream(request, admitted, permits.next(), &attempt, &rights)
                .await;
            // Backpressure: without free capacity in the channel no further request is read.
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    }

    async fn append_of_stream(
        &self,
        request: PublishStreamRequest,
        admitted: Result<(), ApiError>,
        permit: Option<MemoryPermit>,
        attempt: &Attempt,
        rights: &Rights,
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
            durable: match admitted {
                Ok(()) => match self.append(events, permit, attempt, rights).await {
                    Ok(durable) => Box::pin(durable),
                    Err(error) => Box::pin(async { Err(error) }),
                },
                Err(error) => Box::pin(async { Err(error) }),
            },
        }
    }

    /// Validates events and appends the valid ones to the log, in the order of the calls.
    /// The returned future ends once they are durable. `permit` covers the memory of
    /// `events`. Those of organizations to which the caller has no right are rejected, which
    /// `attempt` records.
    async fn append(
        &self,
        events: Vec<Bytes>,
        permit: Option<MemoryPermit>,
        attempt: &Attempt,
        rights: &Rights,
    ) -> Result<impl Future<Output = Result<PublishResponse, ApiError>> + Send + use<>, ApiError>
    {
        check_size(&events)?;
        self.store.check_capacity().map_err(ApiError::of_log)?;
        let received = events.iter().map(Bytes::len).sum();
        let mut validated = self.validate(&events, rights, &Map::default());
        if validated.unconfigured > 0 && self.store.is_shared() {
            // Another instance may have answered a Configure.
            self.store.catch_up().await?;
            validated = self.validate(&events, rights, &Map::default());
        }
        attempt.refuse_foreign(std::mem::take(&mut validated.foreign));
        self.size_ratio.update(received, validated.segments.bytes());
        let refused = self.store.admit(&validated.segments).await.into_iter();
        let mut refused: Map<_, _> = refused.map(|id| (id, Refused::Overloaded)).collect();
        self.limit_rates(&validated.segments, &mut refused);
        if !refused.is_empty() {
            // Rare, so that segments need not keep the index of each event.
            validated = self.validate(&events, rights, &refused);
        }
        drop(events);
        let Validated {
            segments,
            unconfigured,
            rejections,
            rejected,
            foreign: _,
        } = validated;
        let accepted = segments.events();
        let durable = match segments.is_empty() {
            true => None,
            // The store holds the permit until the events are durable, even if the caller
            // does not wait for the answer.
            false => {
                let memory = permit.map(|permit| Box::new(permit) as MemoryHold);
                let segments = segments.with_trace(current_trace());
                let appended = self.store.append(segments, memory).await;
                Some(appended.map_err(ApiError::of_log)?)
            }
        };
        Ok(async move {
            if let Some(durable) = durable {
                durable.await.map_err(ApiError::of_log)?;
            }
            metrics::EVENTS_UNCONFIGURED.add(u64::from(unconfigured));
            for (reason, count) in rejected {
                metrics::EVENTS_REJECTED[reason as usize].add(count);
            }
            Ok(PublishResponse {
                accepted,
                unconfigured,
                rejections,
                filtered: 0,
            })
        })
    }

    /// Adds the integrations with more events than their organization may publish now.
    fn limit_rates(&self, segments: &Segments, refused: &mut Map<IntegrationId, Refused>) {
        for part in segments.parts() {
            let (id, count) = (part.integration_id, part.count);
            if let Entry::Vacant(entry) = refused.entry(id) {
                let admitted = self.limits.admit_events(id, count);
                if admitted < count {
                    entry.insert(Refused::RateLimited { admitted });
                }
            }
        }
    }

    fn validate(
        &self,
        events: &[Bytes],
        rights: &Rights,
        refused: &Map<IntegrationId, Refused>,
    ) -> Validated {
        let find = |organization_id: &str| match rights.cover(organization_id) {
            true => match self.store.id_of(organization_id) {
                Some(id) => Target::Integration(id),
                None => Target::Unconfigured,
            },
            false => Target::Foreign,
        };
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
    /// Number of rejections with each reason.
    rejected: Map<RejectionReason, u64>,
    /// Organizations to which the caller has no right.
    foreign: Foreign,
}

impl Validated {
    /// Validates events. `find` returns the target of an organization, `refused` has the
    /// integrations of which events are rejected temporarily, and `capacity` is the expected
    /// number of stored bytes.
    fn new(
        events: &[Bytes],
        format: &Format,
        find: impl Fn(&str) -> Target,
        refused: &Map<IntegrationId, Refused>,
        capacity: usize,
    ) -> Self {
        let mut refused = refused.clone();
        let (mut read, mut left) = (0, events.iter().map(Bytes::len).sum());
        let mut validated = Self {
            segments: Segments::with_capacity(capacity),
            ..Self::default()
        };
        let mut integrations = IntegrationLookup::new(find);
        for (index, bytes) in events.iter().enumerate() {
            let segments = &mut validated.segments;
            segments.expect(read, left);
            match push_event(bytes, format, &mut integrations, &mut refused, segments) {
                Ok(true) => {}
                Ok(false) => validated.unconfigured += 1,
                Err(rejection) => {
                    if rejection.reason == RejectionReason::PermissionDenied
                        && let Some((foreign, _)) = integrations.last
                    {
                        validated.foreign.add(foreign);
                    }
                    *validated.rejected.entry(rejection.reason).or_default() += 1;
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
    integrations: &mut IntegrationLookup<'a, impl Fn(&str) -> Target>,
    refused: &mut Map<IntegrationId, Refused>,
    segments: &mut Segments,
) -> Result<bool, Rejection> {
    let event = decode_event(bytes)?;
    let valid = event.validate()?;
    let id = match integrations.get(event.organization_id) {
        Target::Integration(id) => id,
        Target::Unconfigured => return Ok(false),
        Target::Foreign => return Err(foreign()),
    };
    segments.push(id, |out| {
        // Before the check below, so that an event with a final rejection is not sent again.
        valid.store(format, out)?;
        match refused.get_mut(&id) {
            None => Ok(()),
            Some(Refused::Overloaded) => Err(overloaded()),
            Some(Refused::RateLimited { admitted: 0 }) => Err(rate_limited()),
            Some(Refused::RateLimited { admitted }) => {
                *admitted -= 1;
                Ok(())
            }
        }
    })?;
    Ok(true)
}

/// Target of an organization's events.
#[derive(Clone, Copy)]
enum Target {
    Integration(IntegrationId),
    /// The organization has no integration.
    Unconfigured,
    /// The caller has no right to the organization, whether it has an integration or not.
    Foreign,
}

#[cold]
fn foreign() -> Rejection {
    Rejection::new(
        RejectionReason::PermissionDenied,
        "organization_id",
        "the caller has no right to publish events of this organization",
    )
}

#[cold]
fn overloaded() -> Rejection {
    Rejection::new(
        RejectionReason::Overloaded,
        "",
        "was not accepted, because its integration has too many events waiting for delivery; send it again later under the same event_id",
    )
}

#[cold]
fn rate_limited() -> Rejection {
    Rejection::new(
        RejectionReason::RateLimited,
        "",
        "was not accepted, because its organization publishes more events per second than it may; send it again later under the same event_id",
    )
}

/// Cached lookup of integrations, so that all events of an organization in one request get
/// the same answer.
struct IntegrationLookup<'a, F> {
    find: F,
    by_organization: Map<&'a str, Target>,
    /// Consecutive events mostly belong to one organization.
    last: Option<(&'a str, Target)>,
}

impl<'a, F: Fn(&str) -> Target> IntegrationLookup<'a, F> {
    fn new(find: F) -> Self {
        Self {
            find,
            by_organization: Map::default(),
            last: None,
        }
    }

    fn get(&mut self, organization_id: &'a str) -> Target {
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
            event("foreign", 10),
        ];
        let find = |organization: &str| match organization {
            "busy" => Target::Integration(id(1)),
            "calm" => Target::Integration(id(2)),
            "foreign" => Target::Foreign,
            _ => Target::Unconfigured,
        };
        let format = Format::new("https://meter.com", "com.meter").unwrap();
        let refused = Map::from_iter([(id(1), Refused::Overloaded)]);
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
                (6, ErrorReason::PermissionDenied),
            ]
        );
        let message = &validated.rejections[0].message;
        assert!(message.contains("send it again later under the same event_id"));

        let limited = Refused::RateLimited { admitted: 1 };
        let refused = Map::from_iter([(id(1), limited)]);
        let limited = Validated::new(&events, &format, find, &refused, 0);
        assert_eq!(limited.segments.events(), 3);
        let rejections = limited.rejections.iter();
        let rejections: Vec<_> = rejections
            .map(|rejection| (rejection.index, rejection.reason()))
            .collect();
        assert_eq!(
            rejections,
            [
                (3, ErrorReason::RateLimited),
                (4, ErrorReason::RecordTooLarge),
                (6, ErrorReason::PermissionDenied),
            ]
        );

        let all = Validated::new(&events, &format, find, &Map::default(), 0);
        assert_eq!((all.segments.events(), all.rejections.len()), (4, 2));
        let mut foreign = Foreign::default();
        foreign.add("foreign");
        assert_eq!(all.foreign, foreign);
    }
}
