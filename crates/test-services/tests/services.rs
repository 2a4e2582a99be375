//! Starts the services and applies each fault.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "an unexpected value fails the test"
)]

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use test_services::{Kafka, KafkaOptions, Postgres, PostgresOptions, Proxy, require};
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn a_killed_server_keeps_its_commits() {
    let Some(postgres) = require(Postgres::start().await) else {
        return;
    };
    let url = postgres.create_database("one").await;
    assert!(url.ends_with("/one"));
    postgres.sql("one", "CREATE TABLE t (n int)").await;
    for (number, planned) in [(1, true), (2, false)] {
        let insert = format!("INSERT INTO t VALUES ({number})");
        postgres.sql("one", &insert).await;
        match planned {
            true => postgres.stop().await,
            false => postgres.kill().await,
        }
        postgres.try_sql("one", "SELECT 1").await.unwrap_err();
        postgres.start_again().await;
        let last = postgres.sql("one", "SELECT max(n) FROM t").await;
        assert_eq!(last, number.to_string());
    }
}

#[tokio::test]
async fn a_standby_has_every_commit_and_takes_over() {
    let options = PostgresOptions {
        fast: true,
        settings: vec![("synchronous_commit".to_owned(), "remote_apply".to_owned())],
    };
    let Some(primary) = require(Postgres::start_with(options).await) else {
        return;
    };
    primary.sql("postgres", "CREATE TABLE t (n int)").await;
    let standby = primary.add_standby().await;
    primary.sql("postgres", "INSERT INTO t VALUES (1)").await;
    assert_eq!(standby.sql("postgres", "SELECT * FROM t").await, "1");
    let refused = standby.try_sql("postgres", "INSERT INTO t VALUES (0)");
    assert!(refused.await.unwrap_err().contains("read-only"));

    standby.pause();
    let insert = primary.sql("postgres", "INSERT INTO t VALUES (2)");
    let hang_then_resume = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        primary.until(waiting).await;
        standby.resume();
    };
    tokio::join!(insert, hang_then_resume);

    primary.kill().await;
    standby.promote().await;
    standby.sql("postgres", "INSERT INTO t VALUES (3)").await;
    primary.follow(&standby).await;
    standby.sql("postgres", "INSERT INTO t VALUES (4)").await;
    assert_eq!(primary.sql("postgres", "SELECT sum(n) FROM t").await, "10");
}

/// Ids and ports of a cluster's brokers, by Kafka's Metadata request, version 1
/// (<https://kafka.apache.org/protocol#The_Messages_Metadata>).
async fn brokers(port: u16) -> io::Result<Vec<(u16, u16)>> {
    let mut broker = TcpStream::connect(("127.0.0.1", port)).await?;
    // Length, API 3, version 1, correlation 0, no client id, no topics.
    let request = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    broker.write_all(&request).await?;
    let _length = broker.read_i32().await?;
    let _correlation = broker.read_i32().await?;
    let count = broker.read_i32().await?;
    let mut brokers = Vec::new();
    for _ in 0..count {
        let node = broker.read_i32().await?;
        let mut host = vec![0; broker.read_i16().await? as usize];
        broker.read_exact(&mut host).await?;
        assert_eq!(host, b"127.0.0.1");
        let port = broker.read_i32().await?;
        assert_eq!(broker.read_i16().await?, -1, "no rack");
        brokers.push((node as u16, port as u16));
    }
    brokers.sort_unstable();
    Ok(brokers)
}

async fn until_brokers(port: u16, expected: &[(u16, u16)]) {
    while brokers(port).await.unwrap() != expected {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn brokers_come_and_go_behind_their_proxies() {
    let options = KafkaOptions {
        brokers: 3,
        proxied: true,
        // A broker that was killed is admitted again only when its session has ended.
        settings: vec![("broker.session.timeout.ms".to_owned(), "2000".to_owned())],
    };
    let Some(kafka) = require(Kafka::start_with(options).await) else {
        return;
    };
    let ports: Vec<(u16, u16)> = kafka
        .nodes()
        .map(|node| (node, kafka.proxy(node).port()))
        .collect();
    let addresses: Vec<String> = ports
        .iter()
        .map(|(_, port)| format!("127.0.0.1:{port}"))
        .collect();
    assert_eq!(kafka.bootstrap(), addresses.join(","));
    for (_node, port) in &ports {
        until_brokers(*port, &ports).await;
    }

    kafka.kill(2).await;
    until_brokers(ports[0].1, &[ports[0], ports[2]]).await;
    // Its proxy accepts and finds nobody.
    brokers(ports[1].1).await.unwrap_err();
    kafka.start_again(2).await;
    until_brokers(ports[1].1, &ports).await;

    kafka.stop(3).await;
    until_brokers(ports[0].1, &ports[..2]).await;
    kafka.start_again(3).await;

    kafka.pause(1);
    until_brokers(ports[1].1, &ports[1..]).await;
    kafka.resume(1);
    until_brokers(ports[0].1, &ports).await;
}

#[tokio::test]
async fn a_proxy_cuts_and_silences_connections() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target_port = target.local_addr().unwrap().port();
    let proxy = Proxy::start(target_port);
    let connect = || TcpStream::connect(("127.0.0.1", proxy.port()));
    let mut client = connect().await.unwrap();
    let (mut server, _) = target.accept().await.unwrap();
    client.write_all(b"a").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'a');

    proxy.hang().await;
    client.write_all(b"b").await.unwrap();
    let mut second = connect().await.unwrap();
    second.write_all(b"c").await.unwrap();
    // Enough round trips on the direct way for anything that the proxy lets through to arrive.
    let mut direct = TcpStream::connect(("127.0.0.1", target_port))
        .await
        .unwrap();
    let (mut direct_server, direct_address) = target.accept().await.unwrap();
    assert_eq!(direct_address, direct.local_addr().unwrap());
    for _ in 0..1000 {
        direct.write_u8(b'd').await.unwrap();
        direct_server.read_u8().await.unwrap();
    }
    let empty = server.try_read(&mut [0]).unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::WouldBlock);

    proxy.resume().await;
    assert_eq!(server.read_u8().await.unwrap(), b'b');
    let (mut second_server, _) = target.accept().await.unwrap();
    assert_eq!(second_server.read_u8().await.unwrap(), b'c');
    server.write_all(b"e").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'e');

    proxy.cut().await;
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    assert!(matches!(server.read(&mut [0]).await, Ok(0) | Err(_)));
    let refused = connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    proxy.resume().await;
    let mut client = connect().await.unwrap();
    let (mut server, _) = target.accept().await.unwrap();
    client.write_all(b"f").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'f');
}

/// Not a test by itself: a process that ends without dropping anything.
#[tokio::test]
#[ignore = "another test runs it as a process"]
async fn aborts_with_a_paused_server() {
    let Some(postgres) = require(Postgres::start().await) else {
        return;
    };
    postgres.pause();
    fs::write(
        std::env::var("REPORT").unwrap(),
        postgres.data().to_str().unwrap(),
    )
    .unwrap();
    std::process::abort();
}

#[test]
fn nothing_outlives_an_aborted_process() {
    let dir = tempfile::TempDir::new().unwrap();
    let report = dir.path().join("report");
    let mut aborted = Command::new(std::env::current_exe().unwrap());
    aborted.args([
        "--exact",
        "aborts_with_a_paused_server",
        "--ignored",
        "--nocapture",
    ]);
    aborted.env("REPORT", &report).stdout(Stdio::null());
    // The shell that cleans up holds the pipe of the errors until it is done.
    let aborted = aborted.output().unwrap();
    if aborted.status.success() {
        // PostgreSQL is missing.
        assert!(!report.exists());
        return;
    }
    let data = fs::read_to_string(report).unwrap();
    let root = Path::new(&data).ancestors().nth(2).unwrap();
    assert!(!root.exists(), "{} remains", root.display());
    for process in fs::read_dir("/proc").unwrap() {
        let works_in = fs::read_link(process.unwrap().path().join("cwd"));
        assert!(!works_in.is_ok_and(|dir| dir.starts_with(root)));
    }
}
