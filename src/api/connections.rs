//! Connections of clients: accepting, limits, and an end for each that serves nobody.
//!
//! Each connection is a task of its own from the first byte on, so that no peer delays another.
//! The task ends the connection if the peer
//!
//! - does not finish the TLS handshake and the HTTP/2 preface, or the head of its first request of
//!   HTTP/1.1, within [`HANDSHAKE`], or the head of a later request within the same time,
//! - takes no bytes from its socket, or no bytes of an answer, for `stall-timeout-seconds`,
//! - has no request open for `connection-idle-seconds`, or reaches `connection-age-seconds`; both
//!   announce the end with GOAWAY, and requests in progress are finished,
//! - has a client certificate that is expired, or that the current authorities do not verify,
//! - stands in the way of others: it made no request yet, and the table of connections is full or
//!   the system has no descriptor left; or its unread answers are the oldest where those of all
//!   peers together are too large.

mod calls;
mod io;
mod tls;

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io as std_io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::net::sockopt;
use slab::Slab;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

pub(super) use self::calls::DeadlineLayer;
pub use self::tls::{Tls, TlsError, TlsOptions};

use self::{
    calls::{Call, Calls},
    io::{Io, Transport},
};
use super::peer::Peer;

/// Time for the TLS handshake and the HTTP/2 preface, or the head of a request of HTTP/1.1,
/// together.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a peer to close its connection after GOAWAY, once it has no request open.
const CLOSE: Duration = Duration::from_secs(10);
/// Time at a shutdown, after the last handler has ended, for answers to reach their clients.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Most time between two checks of a connection.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Pauses after an accept that failed for lack of resources, doubled from the first.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Least time between two log lines about connections closed for one reason.
const LOG_INTERVAL_MS: u64 = 60_000;

/// Bytes of one request that HTTP/2 buffers before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// Most requests of one connection that HTTP/2 buffers in full before they are read. Up to this
/// number, requests that wait for memory fill their own windows only, never that of the connection,
/// so that the rest of other messages is received.
const BUFFERED_STREAMS: usize = 100;
/// Most connections that were cut and are not closed yet while others are accepted.
const MAX_CLOSING: usize = 16;
/// Interval of HTTP/2 pings, and of probes of TCP, which detect a dead client of HTTP/1.1.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Time for the answer to a ping, after which the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Probes of TCP without an answer, after which the connection counts as dead.
const PROBES: u32 = 2;
/// Bytes of the head of a request of HTTP/1.1, and about the bytes of its answer that are made
/// ahead of the client's reading. HTTP/2 has the same limit on heads.
const HTTP1_BUFFER: usize = 16 << 10;

/// Bytes of unread answers of one connection, above which its further requests wait.
const MAX_UNREAD_PER_CONNECTION: usize = 4 << 20;
/// Bytes of unread answers of all connections. Beyond it those with the oldest are closed.
const MAX_UNREAD: usize = 64 << 20;
/// Bytes of requests other than publishes that are being received, over all connections. Beyond
/// it large ones are refused; publishes have a budget of their own.
const MAX_RECEIVED: usize = 32 << 20;
/// Reflection streams, over all connections.
const MAX_REFLECTION_STREAMS: usize = 32;

/// Descriptors that are not for clients: files, the database, calls to AWS.
const RESERVED_DESCRIPTORS: usize = 256;

/// Limits of connections.
#[derive(Clone, Debug)]
pub struct ConnectionOptions {
    /// Connections in all.
    pub max: usize,
    /// Connections from one address, or from one /64 network of IPv6.
    pub max_per_peer: usize,
    /// Concurrent requests and streams of one connection.
    pub max_streams: usize,
    /// Time without an open request, after which a connection is closed.
    pub idle: Duration,
    /// Age at which a connection is closed after its requests, give or take a tenth.
    pub age: Duration,
    /// Time without progress, after which a connection is cut.
    pub stall: Duration,
    /// Whether clients may use HTTP/1.1, as browsers do without TLS.
    pub http1: bool,
}

/// Number of connections that the limit on open descriptors permits once it is raised as
/// [`max_connections`] does, with `reserved` for calls to AWS. Changes nothing.
pub fn connections_within_limit(reserved: usize) -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).maximum;
    permitted_connections(limit.map_or(usize::MAX, |limit| limit as usize), reserved)
}

/// Raises the limit on open descriptors to the highest that the system allows, and returns the
/// number of connections that it permits, at most `max`. `reserved` descriptors stay for calls to
/// AWS. Logs a warning if there are fewer than `max`.
pub fn max_connections(max: usize, reserved: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let highest = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let raised = limit.current == limit.maximum || setrlimit(Resource::Nofile, highest).is_ok();
    let descriptors = match raised {
        true => limit.maximum,
        false => limit.current,
    };
    let descriptors = descriptors.map_or(usize::MAX, |limit| limit as usize);
    let permitted = permitted_connections(descriptors, reserved);
    if permitted < max {
        tracing::warn!(
            nofile = descriptors,
            connections = permitted,
            "the limit on open files permits fewer connections than max-connections; raise it \
             (`ulimit -n`, or LimitNOFILE of systemd)"
        );
    }
    permitted.min(max)
}

fn permitted_connections(descriptors: usize, reserved: usize) -> usize {
    let reserved = (RESERVED_DESCRIPTORS + reserved).min(descriptors / 2);
    (descriptors - reserved).max(1)
}

/// Reason for the end of a connection that the server decides, as logs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// No TLS handshake, no HTTP/2 preface or no head of a request in time.
    HandshakeTimeout,
    /// A TLS handshake that failed.
    HandshakeFailed,
    /// Bytes that the peer's socket does not take.
    WriteStalled,
    /// An answer that the peer does not read.
    AnswerStalled,
    /// Unread answers of all peers are too large, and this one's are the oldest.
    UnreadAnswers,
    /// It made no request, and another peer needed its place.
    Displaced,
    /// The table is full of connections with requests.
    TooMany,
    /// The system refused another descriptor.
    NoDescriptors,
    /// The client certificate is expired or no longer verified.
    Unverified,
}

impl Reason {
    const COUNT: usize = 9;

    fn describe(self) -> &'static str {
        match self {
            Self::HandshakeTimeout => "the handshake took too long",
            Self::HandshakeFailed => "the TLS handshake failed",
            Self::WriteStalled => "the peer took no bytes",
            Self::AnswerStalled => "an answer was not read",
            Self::UnreadAnswers => "too many bytes of answers were not read",
            Self::Displaced => "there was no request, and the limit was reached",
            Self::TooMany => "the limit was reached",
            Self::NoDescriptors => "the process has no file descriptor left",
            Self::Unverified => "the client certificate is not valid any more",
        }
    }
}

/// Connections that were closed for one reason.
#[derive(Debug, Default)]
struct Closed {
    /// All since the start.
    total: AtomicU64,
    /// Those that the log has counted.
    logged: AtomicU64,
    /// Time from which the next line may be logged.
    next_log_ms: AtomicU64,
}

/// State shared by all connections.
#[derive(Debug)]
struct Table {
    options: ConnectionOptions,
    started: Instant,
    open: Mutex<Open>,
    /// Bytes of answers that were made and not read.
    unread: AtomicUsize,
    /// Bytes of requests in [`MAX_RECEIVED`].
    received: AtomicUsize,
    reflection: Arc<Semaphore>,
    /// Calls that the server owes work, rather than waiting for their client.
    working: AtomicUsize,
    /// Notified when `working` reaches 0.
    rested: Notify,
    closed: [Closed; Reason::COUNT],
    stop: CancellationToken,
    /// Cuts every connection.
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// Open connections.
#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    per_peer: HashMap<IpAddr, usize>,
    /// Ids in the order of accepting. Ids of closed connections, and of those that made a
    /// request, are removed late.
    unproven: VecDeque<u64>,
    next_id: u64,
}

/// State of one connection.
#[derive(Debug)]
struct Connection {
    id: u64,
    address: SocketAddr,
    /// Key of [`Open::per_peer`].
    network: IpAddr,
    accepted_ms: u64,
    age_ms: u64,
    identity: OnceLock<Identity>,
    /// The preface of HTTP/2, or the head of a request of HTTP/1.1, was received.
    has_preface: AtomicBool,
    has_requested: AtomicBool,
    /// Time at which the head of a further request of HTTP/1.1 began; 0 outside of one.
    head_since_ms: AtomicU64,
    /// End of the last call.
    last_call_ms: AtomicU64,
    /// Time since which the socket takes no bytes; 0 while it does.
    blocked_since_ms: AtomicU64,
    /// Bytes of answers that were made and not read.
    unread: AtomicUsize,
    /// Notified when `unread` falls to [`MAX_UNREAD_PER_CONNECTION`].
    drained: Notify,
    calls: Mutex<Slab<Arc<Call>>>,
    cut: CancellationToken,
}

/// Peer of a connection after the handshake.
#[derive(Debug)]
struct Identity {
    peer: Peer,
    /// End of the client certificate's validity, in seconds since 1970.
    expires: Option<i64>,
}

/// Result of a check.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// Send GOAWAY, and end after the requests in progress.
    Close,
    Cut(Option<Reason>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Address that a peer's connections are counted by: one host of IPv6 has a whole /64 network.
fn network(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            Ipv6Addr::from(network).into()
        }
    }
}

impl Open {
    /// Takes out the oldest connection that made no request, of one peer or of all. If there is
    /// none, the one that has been idle for the longest time.
    fn displace(&mut self, network: Option<IpAddr>) -> Option<Arc<Connection>> {
        let of_network =
            |connection: &Connection| network.is_none_or(|network| connection.network == network);
        let unproven = self.unproven.iter().position(|id| {
            let connection = self.connections.get(id);
            connection.is_some_and(|one| of_network(one) && !one.has_requested())
        });
        let id = match unproven.and_then(|index| self.unproven.remove(index)) {
            Some(id) => id,
            None => {
                let all = self.connections.values().filter(|one| of_network(one));
                let idle = all.filter(|one| one.has_requested() && lock(&one.calls).is_empty());
                idle.min_by_key(|one| one.last_call_ms.load(Ordering::Relaxed))?
                    .id
            }
        };
        self.remove(id)
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Connection>> {
        let connection = self.connections.remove(&id)?;
        if let Some(count) = self.per_peer.get_mut(&connection.network) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&connection.network);
            }
        }
        Some(connection)
    }

    /// Removes what has left the list of connections without a request.
    fn sweep(&mut self) {
        if self.unproven.len() > 2 * self.connections.len() + 64 {
            let connections = &self.connections;
            self.unproven.retain(|id| {
                let connection = connections.get(id);
                connection.is_some_and(|connection| !connection.has_requested())
            });
        }
    }
}

impl Connection {
    fn has_requested(&self) -> bool {
        self.has_requested.load(Ordering::Relaxed)
    }

    /// Records that the head of a request is complete.
    fn note_request(&self) {
        self.has_preface.store(true, Ordering::Relaxed);
        self.has_requested.store(true, Ordering::Relaxed);
        self.head_since_ms.store(0, Ordering::Relaxed);
    }

    /// Records that bytes of HTTP/1.1 were received. Outside of a call they begin the head of a
    /// request; that of the first one has the time of the handshake.
    fn note_head(&self, table: &Table) {
        if self.has_requested() && lock(&self.calls).is_empty() {
            let now = table.now_ms();
            // The time of the first byte counts.
            let _begun =
                self.head_since_ms
                    .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Decides about the connection. `closing_since` is the time of its GOAWAY.
    fn check(
        &self,
        now_ms: u64,
        unix_seconds: i64,
        closing_since: Option<u64>,
        options: &ConnectionOptions,
    ) -> Verdict {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let stalled_at =
            |since: u64| since > 0 && now_ms.saturating_sub(since) >= millis(options.stall);
        if stalled_at(self.blocked_since_ms.load(Ordering::Relaxed)) {
            return Verdict::Cut(Some(Reason::WriteStalled));
        }
        let head_since = self.head_since_ms.load(Ordering::Relaxed);
        if head_since > 0 && now_ms.saturating_sub(head_since) >= millis(HANDSHAKE) {
            return Verdict::Cut(Some(Reason::HandshakeTimeout));
        }
        let identity = self.identity.get();
        let expires = identity.and_then(|identity| identity.expires);
        if expires.is_some_and(|expires| expires < unix_seconds) {
            return Verdict::Cut(Some(Reason::Unverified));
        }
        let calls = lock(&self.calls);
        if calls
            .iter()
            .any(|(_, call)| stalled_at(call.waiting_since()))
        {
            return Verdict::Cut(Some(Reason::AnswerStalled));
        }
        let idle_ms = now_ms.saturating_sub(self.last_call_ms.load(Ordering::Relaxed));
        let is_idle = calls.is_empty();
        match closing_since {
            Some(since) if is_idle && now_ms.saturating_sub(since) >= millis(CLOSE) => {
                Verdict::Cut(None)
            }
            Some(_) => Verdict::Keep,
            None if is_idle && idle_ms >= millis(options.idle) => Verdict::Close,
            None if now_ms.saturating_sub(self.accepted_ms) >= self.age_ms => Verdict::Close,
            None => Verdict::Keep,
        }
    }
}

impl Table {
    /// Milliseconds since the start, never 0.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    /// Enters a connection into the table, in the place of another if the table is full. None if
    /// all others have requests open.
    fn admit(&self, address: SocketAddr) -> Option<Arc<Connection>> {
        let network = network(address);
        let now_ms = self.now_ms();
        let mut open = lock(&self.open);
        let of_peer = open.per_peer.get(&network).copied().unwrap_or_default();
        let full = if of_peer >= self.options.max_per_peer {
            Some(Some(network))
        } else if open.connections.len() >= self.options.max {
            Some(None)
        } else {
            None
        };
        if let Some(network) = full {
            let Some(displaced) = open.displace(network) else {
                drop(open);
                self.report(Reason::TooMany, address);
                return None;
            };
            displaced.cut.cancel();
            self.report(Reason::Displaced, displaced.address);
        }
        let id = open.next_id;
        open.next_id += 1;
        let age = self.options.age.mul_f64(rand::random_range(0.9..1.1));
        let connection = Arc::new(Connection {
            id,
            address,
            network,
            accepted_ms: now_ms,
            age_ms: age.as_millis() as u64,
            identity: OnceLock::new(),
            has_preface: AtomicBool::new(false),
            has_requested: AtomicBool::new(false),
            head_since_ms: AtomicU64::new(0),
            last_call_ms: AtomicU64::new(now_ms),
            blocked_since_ms: AtomicU64::new(0),
            unread: AtomicUsize::new(0),
            drained: Notify::new(),
            calls: Mutex::default(),
            cut: self.cut.child_token(),
        });
        open.connections.insert(id, Arc::clone(&connection));
        *open.per_peer.entry(network).or_default() += 1;
        open.unproven.push_back(id);
        open.sweep();
        Some(connection)
    }

    /// Frees the descriptor of a connection that serves nobody.
    fn displace_one(&self) {
        let displaced = lock(&self.open).displace(None);
        if let Some(displaced) = displaced {
            displaced.cut.cancel();
            self.report(Reason::Displaced, displaced.address);
        }
    }

    /// Cuts the connections with the oldest unread answers, until those of the others are within
    /// [`MAX_UNREAD`].
    fn shed_unread(&self) {
        let mut shed = Vec::new();
        {
            let open = lock(&self.open);
            let live = open.connections.values();
            let mut unread: Vec<_> = live
                .filter(|one| !one.cut.is_cancelled())
                .map(|one| (one.unread.load(Ordering::Relaxed), one))
                .filter(|(bytes, _)| *bytes > 0)
                .collect();
            let mut total: usize = unread.iter().map(|(bytes, _)| bytes).sum();
            if total > MAX_UNREAD {
                let oldest = |connection: &Connection| {
                    let calls = lock(&connection.calls);
                    let waiting = calls.iter().map(|(_, call)| call.waiting_since());
                    waiting.filter(|since| *since > 0).min().unwrap_or(u64::MAX)
                };
                unread.sort_by_cached_key(|(_, connection)| oldest(connection));
                for (bytes, connection) in unread {
                    if total <= MAX_UNREAD {
                        break;
                    }
                    connection.cut.cancel();
                    shed.push(connection.address);
                    total -= bytes;
                }
            }
        }
        for address in shed {
            self.report(Reason::UnreadAnswers, address);
        }
    }

    /// Counts a connection that is closed, and logs the count at most once a minute.
    fn report(&self, reason: Reason, peer: impl Into<Option<SocketAddr>>) {
        let closed = &self.closed[reason as usize];
        let total = closed.total.fetch_add(1, Ordering::Relaxed) + 1;
        let now = self.now_ms();
        let next = closed.next_log_ms.load(Ordering::Relaxed);
        let takes = now >= next
            && closed
                .next_log_ms
                .compare_exchange(
                    next,
                    now + LOG_INTERVAL_MS,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if takes {
            let logged = closed.logged.swap(total, Ordering::Relaxed);
            tracing::warn!(
                reason = reason.describe(),
                count = total - logged,
                total,
                last_peer = peer.into().map(tracing::field::display),
                "connections were closed"
            );
        }
    }

    fn check_interval(&self) -> Duration {
        let shortest = self.options.stall.min(self.options.idle);
        (shortest / 4).min(MAX_CHECK_INTERVAL)
    }

    /// Waits until no handler works.
    async fn rest(&self) {
        loop {
            let rested = self.rested.notified();
            if self.working.load(Ordering::SeqCst) == 0 {
                return;
            }
            rested.await;
        }
    }
}

/// Removes a connection from the table at its end.
struct Registered {
    table: Arc<Table>,
    connection: Arc<Connection>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.table.open).remove(self.connection.id);
    }
}

/// Accepts connections and serves them until `stop`. Then it accepts nothing more, lets every
/// handler end, gives the last answers a second to reach their clients, and cuts the rest.
pub(super) async fn serve<S, B>(
    listener: TcpListener,
    tls: Option<Tls>,
    service: S,
    options: ConnectionOptions,
    stop: CancellationToken,
) where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    let cut = CancellationToken::new();
    // Also if this future is dropped.
    let cut_at_end = cut.clone().drop_guard();
    let table = Arc::new(Table {
        options,
        started: Instant::now(),
        open: Mutex::default(),
        unread: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        reflection: Arc::new(Semaphore::new(MAX_REFLECTION_STREAMS)),
        working: AtomicUsize::new(0),
        rested: Notify::new(),
        closed: Default::default(),
        stop,
        cut,
        tasks: TaskTracker::new(),
    });
    let tls = tls.map(Arc::new);
    if let Some(tls) = &tls {
        tokio::spawn(tls::keep_current(Arc::clone(tls), Arc::clone(&table)));
    }
    accept(listener, &table, tls, service).await;
    table.rest().await;
    table.tasks.close();
    let _cut_below = timeout(LAST_ANSWERS, table.tasks.wait()).await;
    drop(cut_at_end);
    table.tasks.wait().await;
}

async fn accept<S, B>(listener: TcpListener, table: &Arc<Table>, tls: Option<Arc<Tls>>, service: S)
where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        // Connections that were cut keep their descriptors until their tasks have run.
        while table.tasks.len() > table.options.max + MAX_CLOSING {
            sleep(FIRST_PAUSE).await;
        }
        let accepted = tokio::select! {
            biased;
            () = table.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                pause = FIRST_PAUSE;
                if let Some(connection) = table.admit(address) {
                    let registered = Registered {
                        table: Arc::clone(table),
                        connection,
                    };
                    let connection = run(registered, stream, tls.clone(), service.clone());
                    table.tasks.spawn(connection);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::debug!(%error, "no connection could be accepted");
                table.report(Reason::NoDescriptors, None);
                table.displace_one();
                tokio::select! {
                    () = table.stop.cancelled() => return,
                    () = sleep(pause) => {}
                }
                pause = (2 * pause).min(MAX_PAUSE);
            }
        }
    }
}

/// Whether an error of accept(2) concerns the connection that was to be accepted, and not the
/// process.
fn is_of_one_connection(error: &std_io::Error) -> bool {
    matches!(
        error.kind(),
        std_io::ErrorKind::ConnectionAborted
            | std_io::ErrorKind::ConnectionReset
            | std_io::ErrorKind::Interrupted
    )
}

/// Serves one connection until its end.
async fn run<S, B>(registered: Registered, stream: TcpStream, tls: Option<Arc<Tls>>, service: S)
where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    let Registered { table, connection } = &registered;
    let deadline = Instant::now() + HANDSHAKE;
    if table.options.http1 {
        // An error is one of the connection, which its first read reports.
        let _closed = probe(&stream, table.options.stall);
    }
    let transport = tokio::select! {
        biased;
        () = connection.cut.cancelled() => return,
        () = table.stop.cancelled() => return,
        transport = timeout_at(deadline, transport(stream, tls, connection)) => transport,
    };
    match transport {
        Ok(Ok(transport)) => http(table, connection, transport, deadline, service).await,
        Ok(Err(error)) => {
            tracing::debug!(peer = %connection.address, %error, "TLS handshake failed");
            // Probes and scanners connect and say nothing.
            if error.kind() != std_io::ErrorKind::UnexpectedEof {
                table.report(Reason::HandshakeFailed, connection.address);
            }
        }
        Err(_elapsed) => table.report(Reason::HandshakeTimeout, connection.address),
    }
}

/// Lets the system find out that a peer is gone: HTTP/1.1 has no pings.
fn probe(stream: &TcpStream, stall: Duration) -> Result<(), rustix::io::Errno> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_TIMEOUT / PROBES)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    // The limit also holds for a peer that is slow to read, for which `stall` is the limit.
    let limit = (KEEPALIVE + KEEPALIVE_TIMEOUT).max(stall);
    sockopt::set_tcp_user_timeout(stream, u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))
}

/// Performs the TLS handshake, if there is TLS, and notes the peer.
async fn transport(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    connection: &Connection,
) -> std_io::Result<Transport> {
    // Answers are small, and none waits for another. An error is one of the connection, which
    // its first read reports.
    let _closed = stream.set_nodelay(true);
    let mut identity = Identity {
        peer: Peer {
            address: Some(connection.address),
            ..Peer::default()
        },
        expires: None,
    };
    let Some(tls) = tls else {
        // Nothing else sets it.
        let _set = connection.identity.set(identity);
        return Ok(Transport::Plain(stream));
    };
    let stream = tls.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    identity.expires = tls::expires(certificates);
    identity.peer.certificates = certificates
        .iter()
        .cloned()
        .map(|one| one.into_owned())
        .collect();
    let identity = connection.identity.get_or_init(|| identity);
    // The authorities may have changed during the handshake, before a reload could see the
    // connection's certificate.
    if !tls.verifies(&identity.peer.certificates) {
        return Err(std_io::Error::other(
            "the client certificate is not valid any more",
        ));
    }
    Ok(Transport::Tls(Box::new(stream)))
}

async fn http<S, B>(
    table: &Arc<Table>,
    connection: &Arc<Connection>,
    transport: Transport,
    preface_deadline: Instant,
    service: S,
) where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    let io = Io::new(transport, Arc::clone(table), Arc::clone(connection));
    let calls = Calls::new(service, Arc::clone(table), Arc::clone(connection));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if !table.options.http1 {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Connection::check` has the limits, since this one would also end idle connections.
        .header_read_timeout(None)
        .max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(
            STREAM_WINDOW * table.options.max_streams.min(BUFFERED_STREAMS) as u32,
        )
        .max_concurrent_streams(table.options.max_streams as u32)
        // Detects clients that are gone without having closed their connection.
        .keep_alive_interval(Some(KEEPALIVE))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let mut http = pin!(builder.serve_connection(TokioIo::new(io), calls));
    let has_preface = || connection.has_preface.load(Ordering::Relaxed);
    let mut closing_since = None;
    let mut checks = interval(table.check_interval());
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut preface_timeout = pin!(sleep_until(preface_deadline));
    loop {
        let verdict = tokio::select! {
            biased;
            ended = &mut http => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %connection.address, %error, "connection failed");
                }
                return;
            }
            () = connection.cut.cancelled() => Verdict::Cut(None),
            () = table.stop.cancelled(), if closing_since.is_none() => match has_preface() {
                true => Verdict::Close,
                false => Verdict::Cut(None),
            },
            () = &mut preface_timeout, if !has_preface() => {
                Verdict::Cut(Some(Reason::HandshakeTimeout))
            }
            _ = checks.tick() => {
                let unix_seconds = jiff::Timestamp::now().as_second();
                connection.check(table.now_ms(), unix_seconds, closing_since, &table.options)
            }
        };
        match verdict {
            Verdict::Keep => {}
            Verdict::Close => {
                closing_since = Some(table.now_ms());
                http.as_mut().graceful_shutdown();
            }
            Verdict::Cut(reason) => {
                if let Some(reason) = reason {
                    table.report(reason, connection.address);
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
