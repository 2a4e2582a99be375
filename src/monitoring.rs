//! HTTP listener for Prometheus (`/metrics`) and for probes (`/livez`, `/readyz`).
//!
//! Every connection serves one request and ends within 30 seconds. If there are 32, the oldest is
//! closed in favour of a new one, so that a client that is slow keeps no other from its answer. Nothing of a request but method and path is looked at.

use std::{
    collections::VecDeque, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{sleep, timeout},
};

/// Most connections.
const MAX_CONNECTIONS: usize = 32;
/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of the head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
/// Type of Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The service that is monitored.
#[async_trait]
pub trait Monitored: Send + Sync + 'static {
    /// Metrics in Prometheus' text format.
    async fn metrics(&self) -> String;

    /// Conditions for requests to succeed: name and, if it does not hold, the problem.
    async fn conditions(&self) -> Vec<(&'static str, Option<&'static str>)>;
}

/// Listens, before it answers.
pub struct Listener {
    listener: TcpListener,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    ///
    /// The error of the system.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener })
    }

    /// The bound address.
    ///
    /// # Errors
    ///
    /// The error of the system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped.
    pub async fn serve(self, monitored: Arc<dyn Monitored>) {
        let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics and probes");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MAX_CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            let connection = tokio::spawn(serve_connection(stream, Arc::clone(&monitored)));
            open.push_back(connection.abort_handle());
        }
    }
}

async fn serve_connection(stream: TcpStream, monitored: Arc<dyn Monitored>) {
    let answer = service_fn(|request| {
        let monitored = Arc::clone(&monitored);
        async move { Ok::<_, Infallible>(answer(&request, &*monitored).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answer);
    // Errors are the client's.
    let _ended = timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn answer(request: &Request<Incoming>, monitored: &dyn Monitored) -> Response<Full<Bytes>> {
    let (status, content_type, text) = match request.uri().path() {
        "/metrics" | "/livez" | "/readyz"
            if ![Method::GET, Method::HEAD].contains(request.method()) =>
        {
            let text = "use GET or HEAD\n".to_owned();
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, text)
        }
        "/metrics" => (StatusCode::OK, METRICS, monitored.metrics().await),
        "/livez" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => readiness(&monitored.conditions().await),
        _ => {
            let text = "there are /metrics, /livez and /readyz\n".to_owned();
            (StatusCode::NOT_FOUND, TEXT, text)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn readiness(
    conditions: &[(&'static str, Option<&'static str>)],
) -> (StatusCode, &'static str, String) {
    let line = |(name, problem): &(&str, Option<&str>)| match problem {
        None => format!("{name}: ok\n"),
        Some(problem) => format!("{name}: {problem}\n"),
    };
    let is_ready = conditions.iter().all(|(_, problem)| problem.is_none());
    let status = match is_ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, TEXT, conditions.iter().map(line).collect())
}
