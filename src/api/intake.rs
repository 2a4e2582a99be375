//! Memory of publishes, bounded from the first byte on: a message is read off its
//! connection only once there is room for all of it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::Status;
use tower::{Layer, Service};

use super::errors::ApiError;

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

/// Room in memory for one message.
pub(super) type Room = OwnedSemaphorePermit;

/// The rooms of a request's messages, in their order. An extension of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Rooms(Arc<Mutex<VecDeque<Room>>>);

impl Rooms {
    /// The room of the message that was read last. None only where the request came
    /// around the [`Intake`].
    pub(super) fn next(&self) -> Option<Room> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    fn push(&self, room: Room) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(room);
    }
}

/// The layer. `most_message` is the size that the transport refuses to exceed.
#[derive(Clone)]
pub(super) struct Intake {
    memory: Arc<Semaphore>,
    most_message: usize,
}

impl Intake {
    /// Room for `most_bytes`, which is at least `most_message`.
    pub(super) fn new(most_bytes: usize, most_message: usize) -> Self {
        let permits = most_bytes.max(most_message).min(Semaphore::MAX_PERMITS);
        Self {
            memory: Arc::new(Semaphore::new(permits)),
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

impl<S> Service<Request<tonic::body::Body>> for IntakeService<S>
where
    S: Service<Request<tonic::body::Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> S::Future {
        let rooms = Rooms::default();
        let is_stream = request.uri().path().ends_with("/PublishStream");
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(rooms.clone());
        let metered = Metered {
            body,
            intake: self.intake.clone(),
            patience: (!is_stream).then_some(PATIENCE),
            rooms,
            buffered: Bytes::new(),
            held: Bytes::new(),
            prefix: Prefix::default(),
            rest: 0,
            state: State::Reading,
        };
        let body = tonic::body::Body::new(metered);
        self.inner.call(Request::from_parts(parts, body))
    }
}

/// The prefix of a message, as far as it has come.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    have: usize,
}

impl Prefix {
    /// Takes what of `data`, from `at` on, belongs to it. Returns where it ends, and
    /// the length of the message once that is known.
    fn take(&mut self, data: &[u8]) -> (usize, Option<usize>) {
        let taken = data.len().min(PREFIX_BYTES - self.have);
        self.bytes[self.have..self.have + taken].copy_from_slice(&data[..taken]);
        self.have += taken;
        if self.have < PREFIX_BYTES {
            return (taken, None);
        }
        self.have = 0;
        let [_flag, length @ ..] = self.bytes;
        (taken, Some(u32::from_be_bytes(length) as usize))
    }
}

type Acquire = Pin<Box<dyn Future<Output = Result<Room, AcquireError>> + Send>>;

enum State {
    /// Bytes pass as they come.
    Reading,
    /// A message begins for which there is no room yet; its prefix waits in hand.
    Waiting {
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
    rooms: Rooms,
    /// Read, but not handed on.
    buffered: Bytes,
    /// The end of a prefix, which the transport would take as leave to reserve memory.
    held: Bytes,
    prefix: Prefix,
    /// Bytes of the present message that are still to come.
    rest: usize,
    state: State,
}

impl Metered {
    /// The next bytes to hand on, of one message at the most, so that nobody waits
    /// for room while a message before is kept from leaving. None where more must be
    /// read, or [`State::Waiting`] has begun.
    fn next_piece(&mut self) -> Option<Bytes> {
        if !self.held.is_empty() {
            return Some(std::mem::take(&mut self.held));
        }
        if self.buffered.is_empty() {
            return None;
        }
        if self.rest > 0 {
            let piece = self.buffered.len().min(self.rest);
            self.rest -= piece;
            if self.rest == 0 && self.is_stream() {
                self.state = State::Reading;
            }
            return Some(self.buffered.split_to(piece));
        }
        let (taken, length) = self.prefix.take(&self.buffered);
        let piece = self.buffered.split_to(taken);
        match length {
            // The transport refuses a longer one by its prefix.
            Some(length) if length <= self.intake.most_message => self.begin(length, piece),
            _ => Some(piece),
        }
    }

    /// A message begins.
    fn begin(&mut self, length: usize, prefix: Bytes) -> Option<Bytes> {
        self.rest = length;
        let memory = Arc::clone(&self.intake.memory);
        let length = length as u32;
        match memory.clone().try_acquire_many_owned(length) {
            Ok(room) => {
                self.admit(room);
                Some(prefix)
            }
            Err(_full) => {
                self.held = prefix;
                self.state = State::Waiting {
                    room: Box::pin(memory.acquire_many_owned(length)),
                    until: self.patience.map(|patience| Box::pin(sleep(patience))),
                };
                None
            }
        }
    }

    fn admit(&mut self, room: Room) {
        self.rooms.push(room);
        // A request that is no stream is answered only once its end has come.
        self.state = match self.buffered.len() < self.rest || !self.is_stream() {
            true => State::Receiving {
                until: Box::pin(sleep(SILENCE)),
            },
            false => State::Reading,
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

    /// Waits for what the state waits for.
    fn poll_state(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        match &mut self.state {
            State::Reading => Poll::Ready(Ok(())),
            State::Waiting { room, until } => {
                if let Poll::Ready(room) = room.as_mut().poll(cx) {
                    match room {
                        Ok(room) => self.admit(room),
                        Err(_closed) => return Poll::Ready(Err(ApiError::ShuttingDown.into())),
                    }
                    return self.poll_state(cx);
                }
                match until {
                    Some(until) => {
                        ready!(until.as_mut().poll(cx));
                        Poll::Ready(Err(ApiError::Overloaded.into()))
                    }
                    None => Poll::Pending,
                }
            }
            State::Receiving { until } => match until.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(ApiError::MessageTimeout.into())),
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
        loop {
            if let Err(status) = ready!(this.poll_state(cx)) {
                return Poll::Ready(Some(Err(status)));
            }
            if let Some(piece) = this.next_piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if matches!(this.state, State::Waiting { .. }) {
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    this.heard();
                    match frame.into_data() {
                        Ok(data) => this.buffered = data,
                        Err(other) => return Poll::Ready(Some(Ok(other))),
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.buffered.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.body.size_hint();
        let buffered = (self.held.len() + self.buffered.len()) as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + buffered);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + buffered);
        }
        hint
    }
}

#[cfg(test)]
mod tests;
