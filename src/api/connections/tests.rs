use super::*;

const OPTIONS: ConnectionOptions = ConnectionOptions {
    max: 4,
    max_per_peer: 2,
    max_streams: 100,
    idle: Duration::from_secs(300),
    age: Duration::from_secs(1800),
    stall: Duration::from_secs(30),
    http1: true,
};

fn table() -> Table {
    let cut = CancellationToken::new();
    Table {
        options: OPTIONS,
        started: Instant::now(),
        open: Mutex::default(),
        unread: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        reflection: Arc::new(Semaphore::new(1)),
        working: AtomicUsize::new(0),
        rested: Notify::new(),
        closed: Default::default(),
        stop: CancellationToken::new(),
        cut,
        tasks: TaskTracker::new(),
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn peers_are_counted_by_address_and_by_network_of_ipv6() {
    for (one, other, same) in [
        ("192.0.2.1:1", "192.0.2.1:2", true),
        ("192.0.2.1:1", "192.0.2.2:1", false),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1:2", true),
        ("[2001:db8::1]:1", "[2001:db8::ffff:1]:1", true),
        ("[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false),
    ] {
        assert_eq!(network(address(one)) == network(address(other)), same);
    }
}

#[test]
fn descriptors_stay_for_others() {
    for (descriptors, reserved, expected) in [
        (1_048_576, 64, 1_048_576 - 320),
        (1024, 64, 704),
        (256, 64, 128),
        (1, 64, 1),
        (0, 0, 1),
    ] {
        assert_eq!(permitted_connections(descriptors, reserved), expected);
    }
}

#[test]
fn the_oldest_connection_without_a_request_is_displaced() {
    let table = table();
    let admit = |text| table.admit(address(text));
    let first = admit("192.0.2.1:1").unwrap();
    let second = admit("192.0.2.1:2").unwrap();
    first.has_requested.store(true, Ordering::Relaxed);
    // The limit of the peer, not that of the table.
    let third = admit("192.0.2.1:3").unwrap();
    assert!(second.cut.is_cancelled() && !first.cut.is_cancelled());

    let other = admit("192.0.2.2:1").unwrap();
    let another = admit("192.0.2.3:1").unwrap();
    let last = admit("192.0.2.4:1").unwrap();
    assert!(third.cut.is_cancelled(), "the oldest of all");
    assert_eq!(lock(&table.open).connections.len(), OPTIONS.max);

    // Idle ones go if all have made requests, and none that has a request open.
    for (connection, ended) in [(&first, 9), (&other, 7), (&another, 8), (&last, 9)] {
        connection.has_requested.store(true, Ordering::Relaxed);
        connection.last_call_ms.store(ended, Ordering::Relaxed);
    }
    assert!(admit("192.0.2.5:1").is_some());
    assert!(other.cut.is_cancelled() && !another.cut.is_cancelled());
    assert_eq!(lock(&table.open).per_peer.values().sum::<usize>(), 4);
}

#[test]
fn a_check_decides_by_time() {
    let table = table();
    let connection = table.admit(address("192.0.2.1:1")).unwrap();
    connection.last_call_ms.store(1_000_000, Ordering::Relaxed);
    let check = |now_ms, closing| connection.check(now_ms, 0, closing, &OPTIONS);
    assert_eq!(check(1_000_000, None), Verdict::Keep);
    assert_eq!(check(1_299_999, None), Verdict::Keep);
    assert_eq!(check(1_300_000, None), Verdict::Close);
    assert_eq!(check(1_309_999, Some(1_300_000)), Verdict::Keep);
    assert_eq!(check(1_310_000, Some(1_300_000)), Verdict::Cut(None));

    connection.last_call_ms.store(1_979_000, Ordering::Relaxed);
    assert_eq!(check(1_600_000, None), Verdict::Keep);
    assert_eq!(check(1_980_100, None), Verdict::Close, "by age");

    connection.blocked_since_ms.store(1_000, Ordering::Relaxed);
    assert_eq!(check(30_999, None), Verdict::Keep);
    let stalled = Verdict::Cut(Some(Reason::WriteStalled));
    assert_eq!(check(31_000, None), stalled);
    assert_eq!(check(31_000, Some(30_000)), stalled);
}

#[tokio::test]
async fn the_system_probes_peers_of_http1() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (stream, _) = accepted.unwrap();
    probe(&stream, Duration::from_secs(30)).unwrap();
    assert!(sockopt::socket_keepalive(&stream).unwrap());
    let idle = sockopt::tcp_keepidle(&stream).unwrap();
    let interval = sockopt::tcp_keepintvl(&stream).unwrap();
    let count = sockopt::tcp_keepcnt(&stream).unwrap();
    assert_eq!(idle + interval * count, KEEPALIVE + KEEPALIVE_TIMEOUT);
    assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 50_000);
    probe(&stream, Duration::from_secs(600)).unwrap();
    assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 600_000);
}

#[test]
fn a_further_head_of_http1_has_a_time_limit() {
    let table = table();
    let connection = table.admit(address("192.0.2.1:1")).unwrap();
    connection.note_head(&table);
    let head_since = || connection.head_since_ms.load(Ordering::Relaxed);
    assert_eq!(
        head_since(),
        0,
        "the first one has the time of the handshake"
    );
    connection.note_request();
    connection.note_head(&table);
    let begun = head_since();
    assert!(begun > 0);
    connection.note_head(&table);
    assert_eq!(head_since(), begun);
    let check = |now_ms| connection.check(now_ms, 0, None, &OPTIONS);
    assert_eq!(check(begun + 9_999), Verdict::Keep);
    let late = Verdict::Cut(Some(Reason::HandshakeTimeout));
    assert_eq!(check(begun + 10_000), late);
    connection.note_request();
    assert_eq!(check(begun + 10_000), Verdict::Keep);
}

#[test]
fn a_certificate_ends_a_connection_with_its_validity() {
    let table = table();
    let connection = table.admit(address("192.0.2.1:1")).unwrap();
    let identity = Identity {
        peer: Peer::default(),
        expires: Some(1_000),
    };
    connection.identity.set(identity).unwrap();
    let check = |seconds| connection.check(1, seconds, None, &OPTIONS);
    assert_eq!(check(1_000), Verdict::Keep);
    assert_eq!(check(1_001), Verdict::Cut(Some(Reason::Unverified)));
}
