//! Calls of a connection: deadlines of requests, bytes of unread answers, and whether a call waits
//! for its client or for this service.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;
use hyper::body::Incoming;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep, timeout},
};
use tonic::{Status, codegen::StdError};
use tower::{Layer, Service, ServiceExt as _};

use super::{Connection, MAX_RECEIVED, MAX_UNREAD, MAX_UNREAD_PER_CONNECTION, Table, lock};
use crate::{
    api::errors::ApiError, proto::v1::event_service_server::SERVICE_NAME as EVENT_SERVICE,
};

/// Time for a unary answer, or for a stream to begin.
const DEADLINE: Duration = Duration::from_secs(60);
/// Time for a request to arrive, other than of EventService, which has its own limits.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without a request, after which a reflection stream ends.
const REFLECTION_IDLE: Duration = Duration::from_secs(30);
/// Bytes of a request that is received whatever others hold.
const SMALL_REQUEST: usize = 16 << 10;
/// Most bytes that are handed to HTTP/2 at once. It takes a piece whole as soon as the client has
/// given window for one byte of it.
const PIECE: usize = 16 << 10;
/// Most bytes of the last piece: so many of an answer may be unread without being counted.
const LAST_PIECE: usize = 1 << 10;

/// Kind of an RPC, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Publish,
    PublishStream,
    Reflection,
    /// A single request.
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        let (service, method) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or_default();
        match (service, method) {
            (EVENT_SERVICE, "PublishStream") => Self::PublishStream,
            (EVENT_SERVICE, _) => Self::Publish,
            (_, "ServerReflectionInfo") => Self::Reflection,
            _ => Self::Other,
        }
    }
}

/// State of one call.
#[derive(Debug)]
pub(super) struct Call {
    kind: Kind,
    table: Arc<Table>,
    connection: Arc<Connection>,
    /// Time since which bytes of the answer wait for the client; 0 while none do.
    waiting_since_ms: AtomicU64,
    /// Whether it counts in [`Table::working`].
    is_working: AtomicBool,
    /// Bytes in [`Table::unread`] and [`Connection::unread`].
    unread: AtomicUsize,
    /// Permit of a reflection stream.
    permit: OnceLock<OwnedSemaphorePermit>,
}

impl Call {
    pub(super) fn waiting_since(&self) -> u64 {
        self.waiting_since_ms.load(Ordering::Relaxed)
    }

    /// Records whether the call owes work to its client, rather than waiting for it. A reflection
    /// stream is never waited for.
    fn set_working(&self, works: bool) {
        if self.kind == Kind::Reflection || self.is_working.swap(works, Ordering::SeqCst) == works {
            return;
        }
        match works {
            true => {
                self.table.working.fetch_add(1, Ordering::SeqCst);
            }
            false => {
                if self.table.working.fetch_sub(1, Ordering::SeqCst) == 1 {
                    self.table.rested.notify_waiters();
                }
            }
        }
    }

    /// Counts bytes of an answer.
    fn charge(&self, bytes: usize) {
        self.unread.fetch_add(bytes, Ordering::Relaxed);
        self.connection.unread.fetch_add(bytes, Ordering::Relaxed);
        if self.table.unread.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_UNREAD {
            self.table.shed_unread();
        }
    }

    fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
        self.table.unread.fetch_sub(bytes, Ordering::Relaxed);
        let before = self.connection.unread.fetch_sub(bytes, Ordering::Relaxed);
        if before > MAX_UNREAD_PER_CONNECTION && before - bytes <= MAX_UNREAD_PER_CONNECTION {
            self.connection.drained.notify_waiters();
        }
    }
}

/// A call from its request to the end of its answer. Listed in its connection until it is
/// dropped.
struct OpenCall {
    call: Arc<Call>,
    key: usize,
}

impl OpenCall {
    fn new(kind: Kind, table: &Arc<Table>, connection: &Arc<Connection>) -> Self {
        let call = Arc::new(Call {
            kind,
            table: Arc::clone(table),
            connection: Arc::clone(connection),
            waiting_since_ms: AtomicU64::new(0),
            is_working: AtomicBool::new(false),
            unread: AtomicUsize::new(0),
            permit: OnceLock::new(),
        });
        call.set_working(true);
        let key = lock(&connection.calls).insert(Arc::clone(&call));
        Self { call, key }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let Self { call, key } = self;
        let connection = &call.connection;
        connection
            .last_call_ms
            .store(call.table.now_ms(), Ordering::Relaxed);
        lock(&connection.calls).remove(*key);
        call.set_working(false);
        call.release(call.unread.load(Ordering::Relaxed));
    }
}

/// Service of one connection.
pub(super) struct Calls<S> {
    inner: S,
    table: Arc<Table>,
    connection: Arc<Connection>,
}

impl<S> Calls<S> {
    pub(super) fn new(inner: S, table: Arc<Table>, connection: Arc<Connection>) -> Self {
        Self {
            inner,
            table,
            connection,
        }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Calls<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<AnswerBody<B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.connection.note_request();
        let kind = Kind::of(request.uri().path());
        let open = OpenCall::new(kind, &self.table, &self.connection);
        let (mut parts, incoming) = request.into_parts();
        if let Some(identity) = self.connection.identity.get() {
            parts.extensions.insert(identity.peer.clone());
        }
        parts.extensions.insert(Arc::clone(&open.call));
        let body = RequestBody {
            incoming,
            call: Arc::clone(&open.call),
            received: 0,
            timeout: None,
        };
        let request = Request::from_parts(parts, tonic::body::Body::new(body));
        let inner = self.inner.clone();
        Box::pin(async move {
            let answer = inner.oneshot(request).await?;
            open.call.set_working(true);
            Ok(answer.map(|body| AnswerBody::new(body, open)))
        })
    }
}

/// Layer that ends a call at its deadline, and refuses reflection streams beyond their limit.
#[derive(Clone)]
pub(in crate::api) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService { inner }
    }
}

/// Service of [`DeadlineLayer`].
#[derive(Clone)]
pub(in crate::api) struct DeadlineService<S> {
    inner: S,
}

impl<S, B> Service<Request<tonic::body::Body>> for DeadlineService<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Either<B, tonic::body::Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // `call` waits for the clone that it uses.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        let call = request.extensions_mut().remove::<Arc<Call>>();
        let inner = self.inner.clone();
        Box::pin(async move { Ok(answer(inner, request, call).await) })
    }
}

async fn answer<S, B>(
    inner: S,
    request: Request<tonic::body::Body>,
    call: Option<Arc<Call>>,
) -> Response<Either<B, tonic::body::Body>>
where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>,
{
    if let Some(call) = &call
        && call.kind == Kind::Reflection
    {
        match Arc::clone(&call.table.reflection).try_acquire_owned() {
            Ok(permit) => {
                // Nothing else sets it.
                let _set = call.permit.set(permit);
            }
            Err(_exhausted) => {
                let error = ApiError::RateLimited {
                    limit: "too many reflection streams are open",
                    retry_after: REFLECTION_IDLE,
                };
                return refusal(error.into());
            }
        }
    }
    let deadline = client_deadline(request.headers()).map_or(DEADLINE, |given| given.min(DEADLINE));
    let answer = timeout(deadline, async {
        if let Some(call) = &call {
            until_read(call).await;
        }
        match inner.oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    });
    match answer.await {
        Ok(answer) => answer.map(Either::Left),
        Err(_elapsed) => refusal(Status::deadline_exceeded(
            "the deadline of the call has passed",
        )),
    }
}

/// Waits while the connection's client leaves too many bytes of answers unread.
async fn until_read(call: &Call) {
    let connection = &call.connection;
    while connection.unread.load(Ordering::Relaxed) > MAX_UNREAD_PER_CONNECTION {
        let drained = connection.drained.notified();
        if connection.unread.load(Ordering::Relaxed) > MAX_UNREAD_PER_CONNECTION {
            call.set_working(false);
            drained.await;
            call.set_working(true);
        }
    }
}

fn refusal<B>(status: Status) -> Response<Either<B, tonic::body::Body>> {
    status.into_http::<tonic::body::Body>().map(Either::Right)
}

/// Deadline that the client sent, in the form of
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. One that cannot be read counts
/// as none.
fn client_deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(3600 * count),
        "M" => Duration::from_secs(60 * count),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Body of a request. It fails if the client does not send the rest of a request in time.
struct RequestBody {
    incoming: Incoming,
    call: Arc<Call>,
    /// Bytes in [`Table::received`].
    received: usize,
    /// Time limit, once the client was waited for.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// Counts bytes of a request. Returns false if they are too many.
    fn charge(&mut self, bytes: usize) -> bool {
        self.received += bytes;
        let total = self.call.table.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.received <= SMALL_REQUEST || total <= MAX_RECEIVED
    }

    fn release(&mut self) {
        let received = std::mem::take(&mut self.received);
        self.call
            .table
            .received
            .fetch_sub(received, Ordering::Relaxed);
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.release();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let kind = this.call.kind;
        let is_unary = matches!(kind, Kind::Publish | Kind::Other);
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) {
            if is_unary {
                this.call.set_working(true);
            }
            let Some(frame) = frame.transpose().map_err(receive_error)? else {
                return Poll::Ready(None);
            };
            if matches!(kind, Kind::Reflection | Kind::Other) {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if kind == Kind::Reflection {
                    // A stream holds one message at a time.
                    this.release();
                }
                if !this.charge(bytes) {
                    return Poll::Ready(Some(Err(ApiError::Overloaded.into())));
                }
                if kind == Kind::Reflection {
                    this.timeout = None;
                }
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let limit = match kind {
            Kind::Publish => {
                this.call.set_working(false);
                return Poll::Pending;
            }
            Kind::PublishStream => return Poll::Pending,
            Kind::Reflection => REFLECTION_IDLE,
            Kind::Other => {
                this.call.set_working(false);
                RECEIVE_TIMEOUT
            }
        };
        let timeout = this.timeout.get_or_insert_with(|| Box::pin(sleep(limit)));
        match (timeout.as_mut().poll(cx), kind) {
            (Poll::Pending, _) => Poll::Pending,
            (Poll::Ready(()), Kind::Reflection) => Poll::Ready(None),
            (Poll::Ready(()), _) => {
                // A task that is polled again must not find an elapsed timer.
                timeout.as_mut().reset(Instant::now() + limit);
                Poll::Ready(Some(Err(ApiError::MessageTimeout.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Status for a request that cannot be received any more, because its client has cancelled it or
/// is gone.
fn receive_error(error: hyper::Error) -> Status {
    let error: StdError = Box::new(error);
    Status::from_error(error)
}

/// Body of an answer, handed to HTTP/2 in pieces. HTTP/2 asks for a piece when the client has
/// given window for the one before it.
pub(super) struct AnswerBody<B> {
    inner: B,
    open: OpenCall,
    /// Bytes that were made and not handed over.
    rest: Bytes,
    /// Bytes of the piece that was handed over last.
    handed: usize,
}

impl<B> AnswerBody<B> {
    fn new(inner: B, open: OpenCall) -> Self {
        Self {
            inner,
            open,
            rest: Bytes::new(),
            handed: 0,
        }
    }

    fn hand_over(&mut self) -> Frame<Bytes> {
        let piece = next_piece(&mut self.rest);
        self.handed = piece.len();
        let call = &self.open.call;
        call.waiting_since_ms
            .store(call.table.now_ms(), Ordering::Relaxed);
        call.set_working(false);
        Frame::data(piece)
    }
}

/// Splits off up to [`PIECE`] bytes, so that the last piece has at most [`LAST_PIECE`].
fn next_piece(rest: &mut Bytes) -> Bytes {
    let length = match rest.len() {
        length if length <= LAST_PIECE => length,
        length => (length - LAST_PIECE).min(PIECE),
    };
    rest.split_to(length)
}

impl<B> Body for AnswerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        let call = &this.open.call;
        call.release(std::mem::take(&mut this.handed));
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.hand_over())));
        }
        call.waiting_since_ms.store(0, Ordering::Relaxed);
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            call.set_working(true);
            return Poll::Pending;
        };
        let Some(frame) = frame.transpose().map_err(Into::into)? else {
            return Poll::Ready(None);
        };
        match frame.into_data() {
            Ok(data) => {
                call.charge(data.len());
                this.rest = data;
                Poll::Ready(Some(Ok(this.hand_over())))
            }
            Err(trailers) => Poll::Ready(Some(Ok(trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest.is_empty() {
            true => self.inner.size_hint(),
            false => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deadline(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        client_deadline(&headers)
    }

    #[test]
    fn reads_the_deadline_of_a_client() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("30S", Some(Duration::from_secs(30))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("+1S", None),
            ("1s", None),
        ] {
            assert_eq!(deadline(text), expected, "{text}");
        }
    }

    #[test]
    fn kinds_follow_from_the_path() {
        for (path, kind) in [
            ("/siem.v1.EventService/Publish", Kind::Publish),
            ("/siem.v1.EventService/PublishStream", Kind::PublishStream),
            ("/siem.v1.SiemIntegrationService/List", Kind::Other),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                Kind::Reflection,
            ),
            ("/grpc.health.v1.Health/Watch", Kind::Other),
            ("/PublishStream", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(Kind::of(path), kind, "{path}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole_and_the_last_is_small(length in 0_usize..100_000) {
            let whole = Bytes::from(vec![7_u8; length]);
            let mut rest = whole.clone();
            let mut joined = Vec::new();
            while !rest.is_empty() {
                let piece = next_piece(&mut rest);
                prop_assert!(!piece.is_empty() && piece.len() <= PIECE);
                prop_assert!(!rest.is_empty() || piece.len() <= LAST_PIECE);
                joined.extend_from_slice(&piece);
            }
            prop_assert_eq!(joined, whole);
        }
    }
}
