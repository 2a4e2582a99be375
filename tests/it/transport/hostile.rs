//! Memory that peers hold without end: unread answers, half-sent requests, reflection.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all, stream};
use prost::Message as _;
use siem_client::v1;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::Code;

use super::{
    CONFIGURE, GET, LIST, PUBLISH, REFLECTION, STREAM_STATUS, get, rejected_events, subscription,
};
use crate::harness::{
    Customer, Http2, OpenCall, Process, ProcessEnv, framed, print, status, with_timeout,
};

const MIB: u64 = 1 << 20;
/// Streams of one connection, by default.
const STREAMS: usize = 100;

async fn answers_soon(process: &Process) {
    let begun = Instant::now();
    let status = process.api.try_get("nobody").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// A process that has served each of these calls before, and its memory.
async fn start(env: &ProcessEnv, arguments: &[&str]) -> (Process, u64) {
    let process = env.start_with(arguments).await;
    let mut client = Http2::connect(process.address, 1 << 20).await;
    for (method, body) in [(PUBLISH, rejected_events()), (GET, get())] {
        assert!(client.call(method, body).await.is_some());
    }
    let memory = process.peak_bytes();
    (process, memory)
}

fn check_growth(process: &Process, before: u64, bound: u64, what: &str) {
    let growth = process.peak_bytes().saturating_sub(before);
    print(&format!("{what}: {before} bytes grew by {growth}"));
    assert!(growth < bound, "{what}: {before} bytes grew by {growth}");
}

/// Integrations, so that a List has a few hundred KiB.
const LISTED: usize = 1000;

async fn configure_many(process: &Process) {
    let customers = (0..LISTED).map(|number| {
        let customer = Customer::sharing("many", &format!("organization-{number}"));
        async move { process.api.configure(&customer).await }
    });
    let configured = stream::iter(customers).buffer_unordered(64);
    assert_eq!(configured.count().await, LISTED);
}

fn list() -> Vec<u8> {
    let request = v1::ListRequest {
        page_size: LISTED as u32,
        ..v1::ListRequest::default()
    };
    framed(0, &request.encode_to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_are_bounded_and_end_their_connection() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--stall-timeout-seconds", "5"]).await;
    configure_many(&process).await;
    // It reads, and has a subscription without changes, which is not stalled.
    let mut good = Http2::connect(process.address, 65_535).await;
    let feed = good.open(STREAM_STATUS, subscription(1), true).await;
    let mut feed = feed.answer.await.unwrap().into_body();
    assert_eq!(good.call(LIST, list()).await.unwrap().code(), Code::Ok);
    let before = process.peak_bytes();
    let mut calls: Vec<OpenCall> = Vec::new();
    let mut peers = Vec::new();
    // A window of one byte makes HTTP/2 take the first piece of each answer.
    for window in [0, 1, 0, 1, 0, 1, 0, 1, 0, 1] {
        let mut peer = Http2::connect(process.address, window).await;
        for _ in 0..STREAMS {
            calls.push(peer.open(LIST, list(), true).await);
        }
        peers.push(peer);
        answers_soon(&process).await;
    }
    for peer in peers {
        peer.ended().await;
    }
    // All answers together have more than 200 MiB.
    check_growth(&process, before, 128 * MIB, "1,000 unread answers");
    process.until_logged("an answer was not read", 0).await;
    assert!(
        with_timeout("a message", feed.data())
            .await
            .unwrap()
            .is_ok()
    );
    assert_eq!(good.call(LIST, list()).await.unwrap().code(), Code::Ok);
    assert!(!good.has_ended());

    // A peer that gives a large window, and then reads nothing from its socket.
    let (socket, paused) = Pausing::connect(process.address).await;
    let mut peer = Http2::over(socket, 16 << 20).await;
    assert_eq!(peer.call(GET, get()).await.unwrap().code(), Code::NotFound);
    let mut calls = Vec::new();
    paused.store(true, Ordering::Relaxed);
    for _ in 0..STREAMS {
        calls.push(peer.open(LIST, list(), true).await);
    }
    answers_soon(&process).await;
    process.until_logged("the peer took no bytes", 0).await;
}

/// A socket from which nothing is read while it is paused.
struct Pausing {
    stream: TcpStream,
    paused: Arc<AtomicBool>,
}

impl Pausing {
    async fn connect(address: SocketAddr) -> (Self, Arc<AtomicBool>) {
        let paused = Arc::new(AtomicBool::new(false));
        let pausing = Self {
            stream: TcpStream::connect(address).await.unwrap(),
            paused: Arc::clone(&paused),
        };
        (pausing, paused)
    }
}

impl AsyncRead for Pausing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.paused.load(Ordering::Relaxed) {
            true => Poll::Pending,
            false => Pin::new(&mut self.stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Pausing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_subscriptions_hold_little_and_end_their_connection() {
    let env = ProcessEnv::new().await;
    let (process, before) = start(&env, &["--stall-timeout-seconds", "5"]).await;
    let mut peers = Vec::new();
    let mut calls: Vec<OpenCall> = Vec::new();
    for _ in 0..5 {
        let mut peer = Http2::connect(process.address, 0).await;
        for _ in 0..STREAMS {
            calls.push(peer.open(STREAM_STATUS, subscription(1000), true).await);
        }
        peers.push(peer);
        answers_soon(&process).await;
    }
    for peer in peers {
        peer.ended().await;
    }
    // Each holds its 1,000 names of 64 characters, and one batch of messages.
    check_growth(&process, before, 500 * 220 * 1024, "500 subscriptions");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_are_bounded_and_end() {
    let env = ProcessEnv::new().await;
    let (process, before) = start(&env, &[]).await;
    let half: Vec<u8> = [&[0, 0, 3, 255, 255][..], &vec![10; 200 << 10]].concat();
    let mut peers = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..5 {
        let mut peer = Http2::connect(process.address, 65_535).await;
        for _ in 0..STREAMS {
            calls.push(peer.open(CONFIGURE, half.clone(), false).await);
        }
        peers.push(peer);
        answers_soon(&process).await;
    }
    let (answers, _requests): (Vec<_>, Vec<_>) = calls
        .into_iter()
        .map(|call| (call.answer, call.request))
        .unzip();
    let ends = with_timeout("the answers", join_all(answers.into_iter().map(status))).await;
    for end in ends {
        let end = end.unwrap();
        let refused = [Code::DeadlineExceeded, Code::ResourceExhausted];
        assert!(refused.contains(&end.code()), "{end:?}");
    }
    check_growth(&process, before, 128 * MIB, "500 half-sent requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_streams_are_few_and_end_when_idle() {
    let env = ProcessEnv::new().await;
    let (process, before) = start(&env, &[]).await;
    let mut peer = Http2::connect(process.address, 65_535).await;
    let half: Vec<u8> = [&[0, 0, 3, 255, 255][..], &vec![10; 200 << 10]].concat();
    let mut calls = Vec::new();
    for _ in 0..STREAMS {
        calls.push(peer.open(REFLECTION, half.clone(), false).await);
    }
    let (answers, _requests): (Vec<_>, Vec<_>) = calls
        .into_iter()
        .map(|call| (call.answer, call.request))
        .unzip();
    let ends = with_timeout("the answers", join_all(answers.into_iter().map(status))).await;
    let refused =
        |end: &Option<tonic::Status>| end.as_ref().unwrap().code() == Code::ResourceExhausted;
    let refused = ends.iter().filter(|end| refused(end)).count();
    assert!((STREAMS - 32..STREAMS).contains(&refused), "{refused}");
    check_growth(&process, before, 64 * MIB, "100 reflection streams");
    answers_soon(&process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_100_streams() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let mut client = Http2::connect(process.address, 65_535).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let call = client.open(STREAM_STATUS, subscription(1), true).await;
        open.push(call.answer.await.unwrap());
    }
    let mut more = client.open(STREAM_STATUS, subscription(1), true).await;
    answers_soon(&process).await;
    // It waits at the client until another one ends.
    let none = futures_util::poll!(&mut more.answer);
    assert!(none.is_pending());
    open.pop();
    assert!(with_timeout("the next stream", more.answer).await.is_ok());
}
