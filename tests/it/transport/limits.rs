//! Limits on connections, descriptors and time.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use super::{
    CONFIGURE, GET, PUBLISH, REFLECTION, STREAM_STATUS, get, rejected_events, subscription,
};
use crate::harness::{Api, Http2, Process, ProcessEnv, print, with_timeout};

/// First bytes of each HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn silent(process: &Process, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(TcpStream::connect(process.address).await.unwrap());
    }
    connections
}

/// Waits until the server has closed a connection.
async fn until_closed(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    let closed = async { while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {} };
    with_timeout("the end of a connection", closed).await;
}

/// A call of a new client, which must be answered soon.
async fn answers_soon(process: &Process) {
    let begun = Instant::now();
    let status = Api::new(process.address)
        .try_get("nobody")
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_lock_nobody_out() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let _silent = silent(&process, 1100).await;
    answers_soon(&process).await;
    let mut with_preface = silent(&process, 1100).await;
    for stream in &mut with_preface {
        // The server may have closed it already.
        let _written = stream.write_all(PREFACE).await;
    }
    answers_soon(&process).await;
    let log = process.stop().await;
    assert!(log.contains("connections were closed"), "{log}");
    // A line a minute for each reason, whatever the number of connections.
    assert!(log.matches("connections were closed").count() < 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_with_requests_are_not_displaced() {
    let env = ProcessEnv::new().await;
    let process = env
        .start_with(&[
            "--max-connections-per-peer",
            "16",
            "--max-connections",
            "16",
        ])
        .await;
    let mut busy = Vec::new();
    for _ in 0..16 {
        let mut client = Http2::connect(process.address, 65_535).await;
        let call = client.open(STREAM_STATUS, subscription(1), true).await;
        assert!(call.answer.await.is_ok());
        busy.push((client, call.request));
    }
    for stream in silent(&process, 20).await {
        until_closed(stream).await;
    }
    for (client, _stream) in &mut busy {
        let status = client.call(GET, get()).await.unwrap();
        assert_eq!(status.code(), Code::NotFound);
    }
    busy.truncate(15);
    // The service refuses new clients until it has seen the end of that connection.
    with_timeout("a call of a new client", async {
        loop {
            let answer = Api::new(process.address).try_get("nobody").await;
            if answer.unwrap_err().code() == Code::NotFound {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_ten_seconds() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let silent = TcpStream::connect(process.address).await.unwrap();
    let mut half = TcpStream::connect(process.address).await.unwrap();
    half.write_all(&PREFACE[..20]).await.unwrap();
    let begun = Instant::now();
    until_closed(silent).await;
    until_closed(half).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    process.until_logged("the handshake took too long", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_old_connections_are_closed_in_order() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--connection-idle-seconds", "1"]).await;
    let mut client = Http2::connect(process.address, 65_535).await;
    assert_eq!(
        client.call(GET, get()).await.unwrap().code(),
        Code::NotFound
    );
    client.ended().await;
    process.stop().await;

    let process = env.start_with(&["--connection-age-seconds", "1"]).await;
    let mut client = Http2::connect(process.address, 65_535).await;
    let stream = client.open(STREAM_STATUS, subscription(1), true).await;
    let mut answer = stream.answer.await.unwrap().into_body();
    // A request that is open at the end of the age goes on, and new ones are refused.
    let refused = async { while client.call(GET, get()).await.is_some() {} };
    with_timeout("GOAWAY", refused).await;
    assert!(answer.data().await.unwrap().is_ok());
    assert!(!client.has_ended());
    drop((answer, stream.request));
    client.ended().await;
}

fn set_descriptors(process: &Process, limit: u64) {
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    let old = prlimit(
        Some(pid),
        Resource::Nofile,
        Rlimit {
            current: Some(limit),
            maximum: None,
        },
    );
    if old.is_err() {
        // The highest limit of this system is not unlimited.
        let highest = rustix::process::getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            current: Some(limit),
            maximum: highest,
        };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_it_backs_off_and_recovers() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    set_descriptors(&process, 10);
    let waiting = silent(&process, 50).await;
    process
        .until_logged("the process has no file descriptor left", 0)
        .await;
    let logged = process.log().matches("no file descriptor left").count();
    assert!(logged < 5, "{logged} lines");
    set_descriptors(&process, 4096);
    answers_soon(&process).await;
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserve_of_descriptors_stays_for_aws() {
    let env = ProcessEnv::new().await;
    let limit = "ulimit -Sn 128; ulimit -Hn 256; exec \"$@\"";
    let launcher = ["/bin/sh", "-c", limit, "sh"].map(str::to_owned);
    let process = env.start_under(&launcher).await;
    let log = process.log();
    assert!(
        log.contains("the limit on open files permits fewer connections"),
        "{log}"
    );
    // The soft limit was raised to the hard one.
    assert!(log.contains("\"connections\":128"), "{log}");
    let _silent = silent(&process, 300).await;
    process.api.configure(&env.customer).await;
    assert!(process.api.send_test("acme").await.delivered);
    assert!(!process.log().contains("no file descriptor left"));
}

/// Peers that never end what they have begun.
async fn silent_peers(process: &Process) -> Vec<Box<dyn Send>> {
    let mut peers: Vec<Box<dyn Send>> = Vec::new();
    peers.push(Box::new(silent(process, 5).await));
    let mut half = silent(process, 1).await.remove(0);
    half.write_all(&PREFACE[..10]).await.unwrap();
    peers.push(Box::new(half));
    // It answers neither pings nor GOAWAY.
    let mut mute = silent(process, 1).await.remove(0);
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    mute.write_all(&[PREFACE, &settings].concat())
        .await
        .unwrap();
    peers.push(Box::new(mute));
    let mut unread = Http2::connect(process.address, 0).await;
    let calls = [
        unread.open(PUBLISH, rejected_events(), true).await,
        unread.open(STREAM_STATUS, subscription(3), true).await,
        unread.open(CONFIGURE, vec![0, 0, 0, 1, 0, 7], false).await,
        unread.open(PUBLISH, vec![0, 0, 0, 1, 0, 7], false).await,
        unread.open(REFLECTION, Vec::new(), false).await,
    ];
    // The server has read all of them once it has answered the last.
    let status = unread.call(GET, get()).await.unwrap();
    assert_eq!(status.code(), Code::NotFound);
    peers.push(Box::new((unread, calls)));
    peers
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_silent_peers() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let _peers = silent_peers(&process).await;
    let begun = Instant::now();
    let log = process.stop().await;
    let took = begun.elapsed();
    print(&format!("stopped after {took:?}"));
    // The deadline of a shutdown is 30 s.
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(!log.contains("the shutdown deadline passed"), "{log}");
}
