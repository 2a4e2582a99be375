//! Bodies of requests, between the transport and the decoder: their gRPC framing is checked,
//! gzip is decompressed, and the memory of publishes is bounded by [`budget`]. Bytes are read from
//! a connection only while there is memory for them; until then HTTP/2 flow control holds the
//! client back.
//!
//! Formats: [framing], [compression], gzip ([RFC 1952]). Each compressed message is a gzip
//! file with one or more members.
//!
//! [framing]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
//! [compression]: https://github.com/grpc/grpc/blob/master/doc/compression.md
//! [RFC 1952]: https://www.rfc-editor.org/rfc/rfc1952

mod budget;

use std::{
    collections::VecDeque,
    io::{self, Read as _},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut, buf::Reader};
use flate2::bufread::MultiGzDecoder;
use futures_util::future::{Either, MapOk, Ready, TryFutureExt as _, ready as ready_future};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tower::{Layer, Service};

pub(super) use self::budget::MemoryPermit;
use self::budget::{CallerBudget, Grant, Granted, MemoryBudget, Receiving};
use super::{
    errors::{ApiError, echo},
    limits::CallerKey,
};
use crate::proto::v1::event_service_server::SERVICE_NAME as EVENT_SERVICE;

/// Wait of a unary request for memory, after which it is refused as OVERLOADED. A stream
/// waits without a limit: flow control holds its client back meanwhile.
const MAX_MEMORY_WAIT: Duration = Duration::from_secs(10);
/// Interval in which a client must send [`MIN_PERIOD_BYTES`] of a message, or its end. A client
/// that begins a message and stops must not keep memory from others.
const RECEIVE_PERIOD: Duration = Duration::from_secs(10);
/// The least progress of a message: a link of 64 kbit/s sends more.
const MIN_PERIOD_BYTES: usize = 64 << 10;
/// Bytes before each message: a flag and its length, big endian.
const PREFIX_BYTES: usize = 5;
/// Bytes that are decompressed at once.
const DECOMPRESSED_PIECE_BYTES: usize = 64 << 10;

/// Permits of a request's messages, in their order. An extension of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryPermits(Arc<Mutex<VecDeque<MemoryPermit>>>);

impl MemoryPermits {
    /// Permit of the message that was decoded last; None for a service without a budget.
    pub(super) fn next(&self) -> Option<MemoryPermit> {
        self.lock().pop_front()
    }

    fn push(&self, permit: Option<MemoryPermit>) {
        self.lock().extend(permit);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<MemoryPermit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Limits of the messages of a service.
#[derive(Clone)]
struct Limits {
    max_message: usize,
    /// None if messages are so small that their sum needs no limit.
    budget: Option<MemoryBudget>,
}

/// Layer that wraps the body of each request into a [`CheckedBody`].
#[derive(Clone)]
pub(super) struct RequestBodyLayer {
    event_service: Limits,
    other_services: Limits,
}

impl RequestBodyLayer {
    /// `budget_bytes` bounds the complete messages of EventService in memory. It is raised to
    /// `max_event_message`, so that the longest message fits.
    pub(super) fn new(
        budget_bytes: usize,
        max_event_message: usize,
        max_other_message: usize,
    ) -> Self {
        Self {
            event_service: Limits {
                max_message: max_event_message,
                budget: Some(MemoryBudget::new(budget_bytes, max_event_message)),
            },
            other_services: Limits {
                max_message: max_other_message,
                budget: None,
            },
        }
    }

    fn limits(&self, path: &str) -> &Limits {
        let service = path.trim_start_matches('/').split('/').next();
        match service == Some(EVENT_SERVICE) {
            true => &self.event_service,
            false => &self.other_services,
        }
    }
}

impl<S> Layer<S> for RequestBodyLayer {
    type Service = RequestBodyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestBodyService {
            layer: self.clone(),
            inner,
        }
    }
}

/// Service of [`RequestBodyLayer`].
#[derive(Clone)]
pub(super) struct RequestBodyService<S> {
    layer: RequestBodyLayer,
    inner: S,
}

type Answer = Response<tonic::body::Body>;

impl<S> Service<Request<tonic::body::Body>> for RequestBodyService<S>
where
    S: Service<Request<tonic::body::Body>, Response = Answer>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Either<Ready<Result<Answer, S::Error>>, MapOk<S::Future, fn(Answer) -> Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let is_gzip = match take_encoding(&mut parts.headers) {
            Ok(is_gzip) => is_gzip,
            Err(error) => return Either::Left(ready_future(Ok(Status::from(error).into_http()))),
        };
        let permits = MemoryPermits::default();
        parts.extensions.insert(permits.clone());
        let path = parts.uri.path();
        let Limits {
            max_message,
            budget,
        } = self.layer.limits(path);
        let caller = parts.extensions.get::<CallerKey>().cloned();
        let budget = budget
            .as_ref()
            .map(|budget| budget.of(caller.unwrap_or_default()));
        let checked = CheckedBody {
            body,
            max_message: *max_message,
            budget,
            is_stream: is_stream(path),
            is_gzip,
            permits,
            received: Bytes::new(),
            pending_prefix: Bytes::new(),
            pending_end: Bytes::new(),
            prefix: Prefix::default(),
            length: 0,
            rest: 0,
            charge: Charge::None,
            compressed: None,
            decompression: None,
            messages: 0,
            ended: false,
            waiting: None,
            reception: None,
        };
        let body = tonic::body::Body::new(checked);
        let answer = self.inner.call(Request::from_parts(parts, body));
        Either::Right(answer.map_ok(with_decode_error))
    }
}

/// Whether an RPC's request is a stream: PublishStream, and reflection's only method.
fn is_stream(path: &str) -> bool {
    path.ends_with("/PublishStream") || path.ends_with("ReflectionInfo")
}

/// Removes `grpc-encoding`, because the inner services receive uncompressed messages.
/// Returns whether it is gzip.
fn take_encoding(headers: &mut HeaderMap) -> Result<bool, ApiError> {
    let Some(encoding) = headers.remove("grpc-encoding") else {
        return Ok(false);
    };
    match encoding.as_bytes() {
        b"gzip" => Ok(true),
        b"identity" => Ok(false),
        other => {
            let name = echo(&String::from_utf8_lossy(other));
            Err(ApiError::UnsupportedEncoding(name))
        }
    }
}

/// Replaces tonic's INTERNAL for bytes that cannot be decoded by MALFORMED_REQUEST.
fn with_decode_error(answer: Answer) -> Answer {
    let status = answer.extensions().get::<Status>();
    match status.and_then(ApiError::from_decode_failure) {
        Some(error) => Status::from(error).into_http(),
        None => answer,
    }
}

/// Prefix of a message, as far as it was received.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    received: usize,
}

impl Prefix {
    /// Moves the prefix's bytes out of `data`. Returns flag and length of the message once
    /// the prefix is complete.
    fn take(&mut self, data: &mut Bytes) -> Option<(u8, usize)> {
        let taken = data.split_to(data.len().min(PREFIX_BYTES - self.received));
        self.bytes[self.received..self.received + taken.len()].copy_from_slice(&taken);
        self.received += taken.len();
        if self.received < PREFIX_BYTES {
            return None;
        }
        self.received = 0;
        let [flag, length @ ..] = self.bytes;
        Some((flag, u32::from_be_bytes(length) as usize))
    }

    /// Prefix of an uncompressed message.
    fn uncompressed(length: usize) -> Bytes {
        let [a, b, c, d] = (length as u32).to_be_bytes();
        Bytes::copy_from_slice(&[0, a, b, c, d])
    }
}

/// Decompression of a message that was received completely.
struct Decompression {
    decoder: MultiGzDecoder<Reader<Bytes>>,
    /// Decompressed bytes that were not returned yet.
    left: usize,
    /// Memory of the compressed bytes.
    _compressed: Charge,
}

impl Decompression {
    /// `length` is the message's [`decompressed_length`].
    fn new(message: BytesMut, length: usize, compressed: Charge) -> Self {
        Self {
            decoder: MultiGzDecoder::new(message.freeze().reader()),
            left: length,
            _compressed: compressed,
        }
    }

    /// Returns the next bytes; None at the end.
    fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; self.left.min(DECOMPRESSED_PIECE_BYTES)];
        self.decoder.read_exact(&mut piece).map_err(gzip_error)?;
        self.left -= piece.len();
        Ok(Some(piece.into()))
    }
}

/// Returns the decompressed length of a gzip file, and checks all of it.
///
/// A message is decompressed twice, so that no decompressed bytes are kept before there are
/// permits for them. The length in gzip's trailer is no substitute: it covers the last
/// member only, and the sender may write anything there.
fn decompressed_length(bytes: &[u8], limit: usize) -> Result<usize, ApiError> {
    let mut decoder = MultiGzDecoder::new(bytes).take(limit as u64 + 1);
    let length = io::copy(&mut decoder, &mut io::sink()).map_err(gzip_error)? as usize;
    match length <= limit {
        true => Ok(length),
        false => Err(ApiError::MessageTooLarge { limit }),
    }
}

fn gzip_error(error: io::Error) -> ApiError {
    ApiError::Malformed(match error.kind() {
        io::ErrorKind::UnexpectedEof => "a message is not gzip, or cut off".to_owned(),
        _ => "a message is not gzip, or damaged".to_owned(),
    })
}

/// Memory of the message that is received.
enum Charge {
    /// It needs none, or has a [`MemoryPermit`] for all of it.
    None,
    /// It is charged as it is received.
    Receiving(Receiving),
}

/// A wait for memory.
enum Waiting {
    /// For this number of received bytes of a message that is not complete.
    Part(usize, Granted<Grant>),
    /// For the whole message, decompressed.
    Message(Granted<MemoryPermit>),
}

/// Progress of the client within a message; or the end of a unary request is due.
struct Reception {
    period: Pin<Box<Sleep>>,
    /// Bytes in this period.
    bytes: usize,
}

impl Reception {
    fn new(bytes: usize) -> Self {
        Self {
            period: Box::pin(sleep(RECEIVE_PERIOD)),
            bytes,
        }
    }

    fn restart(&mut self) {
        self.period.as_mut().reset(Instant::now() + RECEIVE_PERIOD);
        self.bytes = 0;
    }
}

/// Body of uncompressed messages, each of which is passed on as there is memory for it.
struct CheckedBody {
    body: tonic::body::Body,
    max_message: usize,
    budget: Option<CallerBudget>,
    is_stream: bool,
    is_gzip: bool,
    permits: MemoryPermits,
    /// Bytes that were received and not passed on.
    received: Bytes,
    /// Prefix that is passed on next. tonic reserves address space for the length in it.
    pending_prefix: Bytes,
    /// End of a message, which is passed on once the message has its permit.
    pending_end: Bytes,
    prefix: Prefix,
    /// Length of the current message; decompressed, once all of it was received.
    length: usize,
    /// Bytes of the current message that were not taken from `received`.
    rest: usize,
    charge: Charge,
    /// Bytes of a compressed message.
    compressed: Option<BytesMut>,
    decompression: Option<Decompression>,
    /// Number of messages that have begun.
    messages: u64,
    ended: bool,
    waiting: Option<(Waiting, Option<Pin<Box<Sleep>>>)>,
    reception: Option<Reception>,
}

impl CheckedBody {
    /// Returns the next bytes to pass on, of one message at most, so that no message waits
    /// for permits while tonic lacks the end of the one before it. None if more must be
    /// received, or if a wait has begun.
    fn next_piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        if !self.pending_prefix.is_empty() {
            return Ok(Some(std::mem::take(&mut self.pending_prefix)));
        }
        if !self.pending_end.is_empty() {
            return Ok(Some(std::mem::take(&mut self.pending_end)));
        }
        if let Some(decompression) = &mut self.decompression {
            match decompression.next()? {
                Some(piece) => return Ok(Some(piece)),
                None => self.decompression = None,
            }
        }
        if self.received.is_empty() {
            return Ok(None);
        }
        if self.rest > 0 {
            return self.next_of_message();
        }
        match self.prefix.take(&mut self.received) {
            Some((flag, length)) => self.begin_message(flag, length).map(|()| None),
            None => {
                // A prefix that is not complete is the beginning of a message.
                self.reception.get_or_insert_with(|| Reception::new(0));
                Ok(None)
            }
        }
    }

    /// The next bytes of a message that has begun, as far as there is memory for them.
    fn next_of_message(&mut self) -> Result<Option<Bytes>, ApiError> {
        let bytes = self.received.len().min(self.rest);
        if let (Charge::Receiving(receiving), Some(budget)) = (&mut self.charge, &self.budget)
            && !receiving.is_favoured()
        {
            match budget.try_charge(bytes) {
                Some(grant) => receiving.add(grant),
                None => {
                    let wait = Waiting::Part(bytes, budget.charge(bytes));
                    self.wait(wait);
                    return Ok(None);
                }
            }
        }
        self.take_charged(bytes)
    }

    /// Takes received bytes for which there is memory.
    fn take_charged(&mut self, bytes: usize) -> Result<Option<Bytes>, ApiError> {
        let piece = self.received.split_to(bytes);
        self.rest -= bytes;
        let is_whole = self.rest == 0;
        if is_whole && self.is_stream {
            self.reception = None;
        }
        if let Some(compressed) = &mut self.compressed {
            compressed.extend_from_slice(&piece);
            if is_whole {
                let length = decompressed_length(compressed, self.max_message)?;
                self.length = length;
                self.pending_prefix = Prefix::uncompressed(length);
                self.reserve(length);
            }
            return Ok(None);
        }
        if is_whole && let Charge::Receiving(_) = self.charge {
            self.pending_end = piece;
            self.reserve(self.length);
            return Ok(None);
        }
        Ok(Some(piece))
    }

    fn begin_message(&mut self, flag: u8, length: usize) -> Result<(), ApiError> {
        let malformed = |problem: &str| Err(ApiError::Malformed(problem.to_owned()));
        let limit = self.max_message;
        self.messages += 1;
        match flag {
            _ if self.messages > 1 && !self.is_stream => {
                return malformed("there is more than one message");
            }
            _ if length > limit => return Err(ApiError::MessageTooLarge { limit }),
            0 => {}
            1 if !self.is_gzip => return Err(ApiError::CompressionNotDeclared),
            1 if length == 0 => return malformed("a message is not gzip, or cut off"),
            1 => self.compressed = Some(BytesMut::new()),
            _ => return malformed("the flag of a message is neither 0 nor 1"),
        }
        (self.length, self.rest) = (length, length);
        let is_whole = self.received.len() >= length;
        // A unary request is answered only after its end.
        self.reception = match is_whole && (self.is_stream || self.body.is_end_stream()) {
            true => None,
            false => {
                let received = self.received.len();
                let begun = self.reception.take();
                Some(begun.unwrap_or_else(|| Reception::new(received)))
            }
        };
        self.charge = match &self.budget {
            Some(_) if self.compressed.is_some() || !is_whole => {
                Charge::Receiving(Receiving::default())
            }
            _ => Charge::None,
        };
        if self.compressed.is_none() {
            self.pending_prefix = Prefix::uncompressed(length);
            if is_whole {
                self.reserve(length);
            }
        }
        Ok(())
    }

    /// Takes the permit for a complete message, or begins to wait for it.
    fn reserve(&mut self, bytes: usize) {
        let Some(budget) = &self.budget else {
            return self.admit(None);
        };
        match budget.try_message(bytes) {
            Some(permit) => self.admit(Some(permit)),
            None => {
                let wait = Waiting::Message(budget.message(bytes));
                self.wait(wait);
            }
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        let deadline = (!self.is_stream).then(|| Box::pin(sleep(MAX_MEMORY_WAIT)));
        self.waiting = Some((waiting, deadline));
    }

    /// Passes a complete message on, with its permit.
    fn admit(&mut self, permit: Option<MemoryPermit>) {
        self.permits.push(permit);
        let charge = std::mem::replace(&mut self.charge, Charge::None);
        if let Some(message) = self.compressed.take() {
            self.decompression = Some(Decompression::new(message, self.length, charge));
        }
    }

    /// Whether there is work before more is received.
    fn is_busy(&self) -> bool {
        self.waiting.is_some()
            || !self.pending_prefix.is_empty()
            || !self.pending_end.is_empty()
            || self.decompression.is_some()
            || !self.received.is_empty()
    }

    /// Checks that the body ends between messages, and a unary one after its message.
    fn end(&mut self) -> Result<(), ApiError> {
        self.ended = true;
        let problem = match (self.prefix.received, self.rest, self.messages) {
            (0, 0, 0) if !self.is_stream => "there is no message",
            (0, 0, _) => return Ok(()),
            _ => "it ends in the middle of a message",
        };
        Err(ApiError::Malformed(problem.to_owned()))
    }

    /// Waits for memory. Returns bytes of an incomplete message for which there is memory now.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ApiError>> {
        let Some((waiting, deadline)) = &mut self.waiting else {
            return Poll::Ready(Ok(0));
        };
        let granted = match waiting {
            Waiting::Part(bytes, granted) => match granted.as_mut().poll(cx) {
                Poll::Ready(Ok(grant)) => {
                    if let Charge::Receiving(receiving) = &mut self.charge {
                        receiving.add(grant);
                    }
                    Poll::Ready(Ok((*bytes, None)))
                }
                Poll::Ready(Err(closed)) => Poll::Ready(Err(closed)),
                Poll::Pending => Poll::Pending,
            },
            Waiting::Message(granted) => {
                granted.as_mut().poll(cx).map_ok(|permit| (0, Some(permit)))
            }
        };
        match granted {
            Poll::Ready(Ok((bytes, permit))) => {
                self.waiting = None;
                // The client could not send meanwhile.
                if let Some(reception) = &mut self.reception {
                    reception.restart();
                }
                if permit.is_some() {
                    self.admit(permit);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(_closed)) => Poll::Ready(Err(ApiError::ShuttingDown)),
            Poll::Pending => match deadline {
                Some(deadline) => {
                    ready!(deadline.as_mut().poll(cx));
                    Poll::Ready(Err(ApiError::Overloaded))
                }
                None => Poll::Pending,
            },
        }
    }

    /// Fails if the client is too slow within a message.
    fn check_reception(&mut self, cx: &mut Context<'_>) -> Result<(), ApiError> {
        let Some(reception) = &mut self.reception else {
            return Ok(());
        };
        while reception.period.as_mut().poll(cx).is_ready() {
            // A message that takes longer than a period yields its memory to those that wait.
            let is_contended = self.budget.as_ref().is_some_and(CallerBudget::is_contended);
            if reception.bytes < MIN_PERIOD_BYTES || is_contended {
                return Err(ApiError::MessageTimeout);
            }
            reception.restart();
        }
        Ok(())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ApiError>> {
        let granted = ready!(self.poll_waiting(cx))?;
        self.check_reception(cx)?;
        Poll::Ready(match granted {
            0 => self.next_piece(),
            bytes => self.take_charged(bytes),
        })
    }
}

impl Body for CheckedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            match ready!(this.poll_next(cx)) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Ok(None) if this.is_busy() => continue,
                Ok(None) => {}
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose() {
                Ok(frame) => frame,
                Err(broken) => {
                    this.ended = true;
                    // Whatever code the client's reset has, it is no fault of this service. The
                    // layer of connections refuses with details.
                    let status = match broken.details().is_empty() {
                        true => Status::cancelled("the client ended the request"),
                        false => broken,
                    };
                    return Poll::Ready(Some(Err(status)));
                }
            };
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => {
                    if let Some(reception) = &mut this.reception {
                        reception.bytes += data.len();
                    }
                    this.received = data;
                }
                end => {
                    let trailers = end.and_then(Result::err).map(Ok);
                    let ended = this.end().map_err(|error| Err(error.into()));
                    return Poll::Ready(ended.err().or(trailers));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests;
