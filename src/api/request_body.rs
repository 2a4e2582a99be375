//! Bodies of requests, between the transport and the decoder: their gRPC framing is checked,
//! gzip is decompressed, and the memory of publishes is bounded. A message is read from its
//! connection only once the budget has permits for all of its bytes; until then HTTP/2 flow
//! control holds the client back.
//!
//! Formats: [framing], [compression], gzip ([RFC 1952]). Each compressed message is a gzip
//! file with one or more members.
//!
//! [framing]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
//! [compression]: https://github.com/grpc/grpc/blob/master/doc/compression.md
//! [RFC 1952]: https://www.rfc-editor.org/rfc/rfc1952

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
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::Status;
use tower::{Layer, Service};

use super::errors::{ApiError, echo};
use crate::proto::v1::event_service_server::SERVICE_NAME as EVENT_SERVICE;

/// Wait of a unary request for memory, after which it is refused as OVERLOADED. A stream
/// waits without a limit: flow control holds its client back meanwhile.
const MAX_MEMORY_WAIT: Duration = Duration::from_secs(10);
/// Time without bytes from a client that holds memory for a message. A client that begins a
/// message and stops must not keep the memory from others.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes before each message: a flag and its length, big endian.
const PREFIX_BYTES: usize = 5;
/// Budget for compressed messages, until they are decompressed. It is apart from the budget for
/// decompressed messages: a message that holds permits of that one never waits for this one,
/// so the two cannot deadlock.
const COMPRESSED_BUDGET_BYTES: usize = 8 << 20;
/// Bytes that are decompressed at once.
const DECOMPRESSED_PIECE_BYTES: usize = 64 << 10;

/// Permit for the bytes of one decompressed message.
pub(super) type MemoryPermit = OwnedSemaphorePermit;

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

#[derive(Clone)]
struct MemoryBudget {
    /// Bytes of messages until they are durable.
    messages: Arc<Semaphore>,
    /// Bytes of compressed messages until they are decompressed.
    compressed: Arc<Semaphore>,
}

/// Layer that wraps the body of each request into a [`CheckedBody`].
#[derive(Clone)]
pub(super) struct RequestBodyLayer {
    event_service: Limits,
    other_services: Limits,
}

impl RequestBodyLayer {
    /// `budget_bytes` bounds the messages of EventService in memory. It is raised to
    /// `max_event_message`, so that the longest message fits.
    pub(super) fn new(
        budget_bytes: usize,
        max_event_message: usize,
        max_other_message: usize,
    ) -> Self {
        let permits = budget_bytes
            .max(max_event_message)
            .min(Semaphore::MAX_PERMITS);
        let compressed_permits = COMPRESSED_BUDGET_BYTES.max(max_event_message);
        Self {
            event_service: Limits {
                max_message: max_event_message,
                budget: Some(MemoryBudget {
                    messages: Arc::new(Semaphore::new(permits)),
                    compressed: Arc::new(Semaphore::new(compressed_permits)),
                }),
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
        let checked = CheckedBody {
            body,
            limits: self.layer.limits(path).clone(),
            is_stream: is_stream(path),
            is_gzip,
            permits,
            received: Bytes::new(),
            pending_prefix: Bytes::new(),
            prefix: Prefix::default(),
            rest: 0,
            compressed: None,
            decompression: None,
            messages: 0,
            ended: false,
            state: State::Reading,
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

/// Compressed message that is being received.
#[derive(Default)]
struct Compressed {
    bytes: BytesMut,
    permit: Option<MemoryPermit>,
}

/// Decompression of a message that was received completely.
struct Decompression {
    decoder: MultiGzDecoder<Reader<Bytes>>,
    /// Decompressed bytes that were not returned yet.
    left: usize,
    _permit: Option<MemoryPermit>,
}

impl Decompression {
    /// `length` is the message's [`decompressed_length`].
    fn new(message: Compressed, length: usize) -> Self {
        Self {
            decoder: MultiGzDecoder::new(message.bytes.freeze().reader()),
            left: length,
            _permit: message.permit,
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

type AcquirePermit = Pin<Box<dyn Future<Output = Result<MemoryPermit, AcquireError>> + Send>>;

/// Purpose of a permit.
#[derive(Clone, Copy)]
enum Purpose {
    /// Receive an uncompressed message.
    Message,
    /// Receive a compressed message.
    Compressed,
    /// Decompress a received message; holds its decompressed length.
    Decompressed(usize),
}

enum State {
    /// Bytes are passed on as they are received.
    Reading,
    /// The budget has no permits yet for a message; its prefix is held back.
    Waiting {
        purpose: Purpose,
        permit: AcquirePermit,
        deadline: Option<Pin<Box<Sleep>>>,
    },
    /// The rest of a message is due, or the end of a unary request.
    Receiving { deadline: Pin<Box<Sleep>> },
}

/// Body of uncompressed messages, each of which is read once there is memory for it.
struct CheckedBody {
    body: tonic::body::Body,
    limits: Limits,
    is_stream: bool,
    is_gzip: bool,
    permits: MemoryPermits,
    /// Bytes that were received and not passed on.
    received: Bytes,
    /// Prefix that is passed on once there are permits: tonic reserves memory for the length
    /// in it.
    pending_prefix: Bytes,
    prefix: Prefix,
    /// Bytes of the current message that were not passed on.
    rest: usize,
    compressed: Option<Compressed>,
    decompression: Option<Decompression>,
    /// Number of messages that have begun.
    messages: u64,
    ended: bool,
    state: State,
}

impl CheckedBody {
    /// Returns the next bytes to pass on, of one message at most, so that no message waits
    /// for permits while tonic lacks the end of the one before it. None if more must be
    /// received, or if [`State::Waiting`] has begun.
    fn next_piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        if !self.pending_prefix.is_empty() {
            return Ok(Some(std::mem::take(&mut self.pending_prefix)));
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
            let piece = self.received.split_to(self.received.len().min(self.rest));
            self.rest -= piece.len();
            if self.rest == 0 && self.is_stream {
                self.state = State::Reading;
            }
            let Some(compressed) = &mut self.compressed else {
                return Ok(Some(piece));
            };
            compressed.bytes.extend_from_slice(&piece);
            if self.rest == 0 {
                let length = decompressed_length(&compressed.bytes, self.limits.max_message)?;
                self.pending_prefix = Prefix::uncompressed(length);
                self.reserve(Purpose::Decompressed(length), length);
            }
            return Ok(None);
        }
        match self.prefix.take(&mut self.received) {
            Some((flag, length)) => self.begin_message(flag, length).map(|()| None),
            None => Ok(None),
        }
    }

    fn begin_message(&mut self, flag: u8, length: usize) -> Result<(), ApiError> {
        let malformed = |problem: &str| Err(ApiError::Malformed(problem.to_owned()));
        let limit = self.limits.max_message;
        self.messages += 1;
        match flag {
            _ if self.messages > 1 && !self.is_stream => {
                return malformed("there is more than one message");
            }
            _ if length > limit => return Err(ApiError::MessageTooLarge { limit }),
            0 => {}
            1 if !self.is_gzip => return Err(ApiError::CompressionNotDeclared),
            1 if length == 0 => return malformed("a message is not gzip, or cut off"),
            1 => {
                self.rest = length;
                self.compressed = Some(Compressed::default());
                self.reserve(Purpose::Compressed, length);
                return Ok(());
            }
            _ => return malformed("the flag of a message is neither 0 nor 1"),
        }
        self.rest = length;
        self.pending_prefix = Prefix::uncompressed(length);
        self.reserve(Purpose::Message, length);
        Ok(())
    }

    /// Acquires permits for `bytes`, or begins to wait for them.
    fn reserve(&mut self, purpose: Purpose, bytes: usize) {
        let Some(budget) = &self.limits.budget else {
            return self.admit(purpose, None);
        };
        let semaphore = match purpose {
            Purpose::Compressed => &budget.compressed,
            Purpose::Message | Purpose::Decompressed(_) => &budget.messages,
        };
        let semaphore = Arc::clone(semaphore);
        let bytes = bytes as u32;
        match semaphore.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => self.admit(purpose, Some(permit)),
            Err(_exhausted) => {
                self.state = State::Waiting {
                    purpose,
                    permit: Box::pin(semaphore.acquire_many_owned(bytes)),
                    deadline: (!self.is_stream).then(|| Box::pin(sleep(MAX_MEMORY_WAIT))),
                };
            }
        }
    }

    fn admit(&mut self, purpose: Purpose, permit: Option<MemoryPermit>) {
        match (purpose, &mut self.compressed) {
            (Purpose::Compressed, Some(compressed)) => compressed.permit = permit,
            (Purpose::Decompressed(length), compressed) => {
                self.permits.push(permit);
                let message = compressed.take();
                self.decompression = message.map(|message| Decompression::new(message, length));
            }
            (Purpose::Message | Purpose::Compressed, _) => self.permits.push(permit),
        }
        // A unary request holds its permit until its end is received, because only then is
        // it answered.
        self.state = match self.received.len() < self.rest || !self.is_stream {
            true if self.limits.budget.is_some() => State::Receiving {
                deadline: Box::pin(sleep(RECEIVE_TIMEOUT)),
            },
            _ => State::Reading,
        };
    }

    fn extend_receive_deadline(&mut self) {
        if let State::Receiving { deadline } = &mut self.state {
            deadline.as_mut().reset(Instant::now() + RECEIVE_TIMEOUT);
        }
    }

    /// Whether there is work before more is received.
    fn is_busy(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
            || !self.pending_prefix.is_empty()
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

    /// Waits for permits, and fails when a deadline has passed.
    fn poll_state(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        match &mut self.state {
            State::Reading => Poll::Ready(Ok(())),
            State::Waiting {
                purpose,
                permit,
                deadline,
            } => {
                if let Poll::Ready(permit) = permit.as_mut().poll(cx) {
                    let purpose = *purpose;
                    match permit {
                        Ok(permit) => self.admit(purpose, Some(permit)),
                        Err(_closed) => return Poll::Ready(Err(ApiError::ShuttingDown)),
                    }
                    return self.poll_state(cx);
                }
                match deadline {
                    Some(deadline) => {
                        ready!(deadline.as_mut().poll(cx));
                        Poll::Ready(Err(ApiError::Overloaded))
                    }
                    None => Poll::Pending,
                }
            }
            State::Receiving { deadline } => match deadline.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(ApiError::MessageTimeout)),
                Poll::Pending => Poll::Ready(Ok(())),
            },
        }
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
            let ready = ready!(this.poll_state(cx));
            match ready.and_then(|()| this.next_piece()) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Ok(None) if this.is_busy() => continue,
                Ok(None) => {}
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?;
            this.extend_receive_deadline();
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => this.received = data,
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
