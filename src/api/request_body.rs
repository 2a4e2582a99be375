//! Requests as they come in: their framing is checked and gzip decompressed before anything
//! else sees them, and the memory of publishes is bounded from the first byte on: a message
//! is read off its connection only once there is room for all of it.

mod gzip;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, MapOk, Ready, TryFutureExt as _, ready as at_once};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::Status;
use tower::{Layer, Service};

use self::gzip::{Arriving, Inflating, inflated_length};
use super::errors::{ApiError, echo};

/// How long a request that is no stream waits for others to leave memory. A stream
/// waits as long as it takes; meanwhile its client is held back.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may send nothing while there is room for its message. Who begins
/// one and stops must not keep that room from others.
const SILENCE: Duration = Duration::from_secs(10);
/// gRPC's prefix of a message: a flag and its length, [big endian].
///
/// [big endian]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
const PREFIX_BYTES: usize = 5;
/// Bytes of compressed messages that may be in memory while they come, beside what they
/// become. They have a bound of their own: a message that is whole waits for room for what
/// it becomes, and what already has that room never waits for this.
const COMPRESSED_BYTES: usize = 8 << 20;

/// Room in memory for one message.
pub(super) type Room = OwnedSemaphorePermit;

/// The rooms of a request's messages, in their order. An extension of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Rooms(Arc<Mutex<VecDeque<Room>>>);

impl Rooms {
    /// The room of the message that was read last. None where there is no bound.
    pub(super) fn next(&self) -> Option<Room> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    fn push(&self, room: Option<Room>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(room);
    }
}

/// The layer.
#[derive(Clone)]
pub(super) struct Intake {
    /// None where messages are so small that their memory is not bounded in all.
    memory: Option<Memory>,
    most_message: usize,
}

#[derive(Clone)]
struct Memory {
    /// Until messages are durable.
    messages: Arc<Semaphore>,
    /// Until messages are decompressed.
    compressed: Arc<Semaphore>,
}

impl Intake {
    /// Room for `most_bytes`, which is at least `most_message`, the longest message.
    pub(super) fn new(most_bytes: usize, most_message: usize) -> Self {
        let permits = most_bytes.max(most_message).min(Semaphore::MAX_PERMITS);
        Self {
            memory: Some(Memory {
                messages: Arc::new(Semaphore::new(permits)),
                compressed: Arc::new(Semaphore::new(COMPRESSED_BYTES.max(most_message))),
            }),
            most_message,
        }
    }

    /// Room for messages of up to `most_message`, however many there are.
    pub(super) fn of_small(most_message: usize) -> Self {
        Self {
            memory: None,
            most_message,
        }
    }
}

impl<S> Layer<S> for Intake {
    type Service = IntakeService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IntakeService {
            intake: self.clone(),
            inner,
        }
    }
}

/// See [`Intake`].
#[derive(Clone)]
pub(super) struct IntakeService<S> {
    intake: Intake,
    inner: S,
}

type Answer = Response<tonic::body::Body>;

impl<S> Service<Request<tonic::body::Body>> for IntakeService<S>
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
        let is_gzip = match is_gzip(&mut parts.headers) {
            Ok(is_gzip) => is_gzip,
            Err(error) => return Either::Left(at_once(Ok(Status::from(error).into_http()))),
        };
        let rooms = Rooms::default();
        // Of the methods of others none takes a stream of requests but reflection's.
        let path = parts.uri.path();
        let is_stream = path.ends_with("/PublishStream") || path.ends_with("ReflectionInfo");
        parts.extensions.insert(rooms.clone());
        let metered = Metered {
            body,
            intake: self.intake.clone(),
            patience: (!is_stream).then_some(PATIENCE),
            is_gzip,
            rooms,
            buffered: Bytes::new(),
            held: Bytes::new(),
            prefix: Prefix::default(),
            rest: 0,
            arriving: None,
            inflating: None,
            messages: 0,
            ended: false,
            state: State::Reading,
        };
        let body = tonic::body::Body::new(metered);
        let answer = self.inner.call(Request::from_parts(parts, body));
        Either::Right(answer.map_ok(with_reason))
    }
}

/// Takes away the name of the compression, which what comes behind does not see. Returns
/// whether it is gzip.
fn is_gzip(headers: &mut HeaderMap) -> Result<bool, ApiError> {
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

/// An answer with our own refusal, where bytes could not be decoded.
fn with_reason(answer: Answer) -> Answer {
    let status = answer.extensions().get::<Status>();
    match status.and_then(ApiError::of_undecodable) {
        Some(error) => Status::from(error).into_http(),
        None => answer,
    }
}

/// The prefix of a message, as far as it has come.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    have: usize,
}

impl Prefix {
    /// Takes what of `data` belongs to it. Returns its flag and the length of the message
    /// once they are known.
    fn take(&mut self, data: &mut Bytes) -> Option<(u8, usize)> {
        let taken = data.split_to(data.len().min(PREFIX_BYTES - self.have));
        self.bytes[self.have..self.have + taken.len()].copy_from_slice(&taken);
        self.have += taken.len();
        if self.have < PREFIX_BYTES {
            return None;
        }
        self.have = 0;
        let [flag, length @ ..] = self.bytes;
        Some((flag, u32::from_be_bytes(length) as usize))
    }

    /// The prefix of a message that is not compressed.
    fn plain(length: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(PREFIX_BYTES);
        bytes.extend_from_slice(&[0]);
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.freeze()
    }
}

type Acquire = Pin<Box<dyn Future<Output = Result<Room, AcquireError>> + Send>>;

/// Size that needs room.
#[derive(Clone, Copy)]
enum Wanted {
    /// A message as it comes.
    Message,
    /// A message as it comes, compressed.
    Compressed,
    /// So many bytes that a message becomes, which has come.
    Inflated(usize),
}

enum State {
    /// Bytes pass as they come.
    Reading,
    /// There is no room yet for a message; its prefix waits in hand.
    Waiting {
        wanted: Wanted,
        room: Acquire,
        until: Option<Pin<Box<Sleep>>>,
    },
    /// The rest of a message is due, or the end of a request that is no stream.
    Receiving { until: Pin<Box<Sleep>> },
}

/// A body that is read as there is room for its messages.
struct Metered {
    body: tonic::body::Body,
    intake: Intake,
    patience: Option<Duration>,
    is_gzip: bool,
    rooms: Rooms,
    /// Read, but not handed on.
    buffered: Bytes,
    /// A prefix, which the transport would take as leave to reserve memory.
    held: Bytes,
    prefix: Prefix,
    /// Bytes of the present message that are still to come.
    rest: usize,
    arriving: Option<Arriving>,
    inflating: Option<Inflating>,
    /// Messages that have begun.
    messages: u64,
    ended: bool,
    state: State,
}

impl Metered {
    /// The next bytes to hand on, of one message at the most, so that nobody waits
    /// for room while a message before is kept from leaving. None where more must be
    /// read, or [`State::Waiting`] has begun.
    fn next_piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        if !self.held.is_empty() {
            return Ok(Some(std::mem::take(&mut self.held)));
        }
        if let Some(inflating) = &mut self.inflating {
            match inflating.next()? {
                Some(piece) => return Ok(Some(piece)),
                None => self.inflating = None,
            }
        }
        if self.buffered.is_empty() {
            return Ok(None);
        }
        if self.rest > 0 {
            let piece = self.buffered.split_to(self.buffered.len().min(self.rest));
            self.rest -= piece.len();
            if self.rest == 0 && self.is_stream() {
                self.state = State::Reading;
            }
            let Some(arriving) = &mut self.arriving else {
                return Ok(Some(piece));
            };
            arriving.bytes.extend_from_slice(&piece);
            if self.rest == 0 {
                let length = inflated_length(&arriving.bytes, self.intake.most_message)?;
                self.held = Prefix::plain(length);
                self.reserve(Wanted::Inflated(length), length);
            }
            return Ok(None);
        }
        match self.prefix.take(&mut self.buffered) {
            Some((flag, length)) => self.begin(flag, length).map(|()| None),
            None => Ok(None),
        }
    }

    /// A message begins.
    fn begin(&mut self, flag: u8, length: usize) -> Result<(), ApiError> {
        let malformed = |problem: &str| Err(ApiError::Malformed(problem.to_owned()));
        let most = self.intake.most_message;
        self.messages += 1;
        match flag {
            _ if self.messages > 1 && !self.is_stream() => {
                return malformed("there is more than one message");
            }
            _ if length > most => return Err(ApiError::MessageTooLarge { most }),
            0 => {}
            1 if !self.is_gzip => return Err(ApiError::NotCompressed),
            1 if length == 0 => return malformed("a message is not gzip, or cut off"),
            1 => {
                self.rest = length;
                self.arriving = Some(Arriving::default());
                self.reserve(Wanted::Compressed, length);
                return Ok(());
            }
            _ => return malformed("a message's flags are neither 0 nor 1"),
        }
        self.rest = length;
        self.held = Prefix::plain(length);
        self.reserve(Wanted::Message, length);
        Ok(())
    }

    /// Goes on where there is room, or waits for it.
    fn reserve(&mut self, wanted: Wanted, bytes: usize) {
        let Some(memory) = &self.intake.memory else {
            return self.admit(wanted, None);
        };
        let memory = match wanted {
            Wanted::Compressed => &memory.compressed,
            Wanted::Message | Wanted::Inflated(_) => &memory.messages,
        };
        let memory = Arc::clone(memory);
        let bytes = bytes as u32;
        match memory.clone().try_acquire_many_owned(bytes) {
            Ok(room) => self.admit(wanted, Some(room)),
            Err(_full) => {
                self.state = State::Waiting {
                    wanted,
                    room: Box::pin(memory.acquire_many_owned(bytes)),
                    until: self.patience.map(|patience| Box::pin(sleep(patience))),
                };
            }
        }
    }

    fn admit(&mut self, wanted: Wanted, room: Option<Room>) {
        match (wanted, &mut self.arriving) {
            (Wanted::Compressed, Some(arriving)) => arriving.room = room,
            (Wanted::Inflated(length), arriving) => {
                self.rooms.push(room);
                let arrived = arriving.take();
                self.inflating = arrived.map(|arrived| Inflating::new(arrived, length));
            }
            (Wanted::Message | Wanted::Compressed, _) => self.rooms.push(room),
        }
        // A request that is no stream is answered only once its end has come.
        self.state = match self.buffered.len() < self.rest || !self.is_stream() {
            true if self.intake.memory.is_some() => State::Receiving {
                until: Box::pin(sleep(SILENCE)),
            },
            _ => State::Reading,
        };
    }

    fn is_stream(&self) -> bool {
        self.patience.is_none()
    }

    fn heard(&mut self) {
        if let State::Receiving { until } = &mut self.state {
            until.as_mut().reset(Instant::now() + SILENCE);
        }
    }

    /// Whether something can be done before more is read.
    fn is_busy(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
            || !self.held.is_empty()
            || self.inflating.is_some()
            || !self.buffered.is_empty()
    }

    /// Checks what has come once nothing more will.
    fn end(&mut self) -> Result<(), ApiError> {
        self.ended = true;
        let problem = match (self.prefix.have, self.rest, self.messages) {
            (0, 0, 0) if !self.is_stream() => "there is no message",
            (0, 0, _) => return Ok(()),
            _ => "it ends in the middle of a message",
        };
        Err(ApiError::Malformed(problem.to_owned()))
    }

    /// Waits for what the state waits for.
    fn poll_state(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        match &mut self.state {
            State::Reading => Poll::Ready(Ok(())),
            State::Waiting {
                wanted,
                room,
                until,
            } => {
                if let Poll::Ready(room) = room.as_mut().poll(cx) {
                    let wanted = *wanted;
                    match room {
                        Ok(room) => self.admit(wanted, Some(room)),
                        Err(_closed) => return Poll::Ready(Err(ApiError::ShuttingDown)),
                    }
                    return self.poll_state(cx);
                }
                match until {
                    Some(until) => {
                        ready!(until.as_mut().poll(cx));
                        Poll::Ready(Err(ApiError::Overloaded))
                    }
                    None => Poll::Pending,
                }
            }
            State::Receiving { until } => match until.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(ApiError::MessageTimeout)),
                Poll::Pending => Poll::Ready(Ok(())),
            },
        }
    }
}

impl Body for Metered {
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
            this.heard();
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => this.buffered = data,
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
