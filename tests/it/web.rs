//! gRPC-Web and HTTP/1.1, of the built binary.

use std::{fs, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use siem_client::{Code, v1};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic_types::StatusExt as _;

use crate::harness::{
    BINARY, Callers, Load, Process, ProcessEnv, TEXT, TlsClient, WebAnswer, WebClient, first_frame,
    framed, gzip, parse_trailers, reason, request, run, tool, violated, with_timeout,
};

const CONFIGURE: &str = "siem.v1.SiemIntegrationService/Configure";
const GET: &str = "siem.v1.SiemIntegrationService/Get";
const LIST: &str = "siem.v1.SiemIntegrationService/List";
const AUDIT: &str = "siem.v1.SiemIntegrationService/ListAuditEntries";
const STREAM_STATUS: &str = "siem.v1.SiemIntegrationService/StreamStatus";
const PUBLISH: &str = "siem.v1.EventService/Publish";
const PUBLISH_STREAM: &str = "siem.v1.EventService/PublishStream";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

fn get(organization_id: &str) -> v1::GetRequest {
    v1::GetRequest {
        organization_id: organization_id.to_owned(),
    }
}

/// Sends bytes by TCP, and returns all that the server answers until it closes the connection.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    ended(stream).await
}

async fn ended(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends it as well.
    let _closed = with_timeout("the end", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_errors_are_those_of_grpc() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--grpc-web"]).await;
    let mut client = WebClient::connect(process.address).await;
    for content_type in [BINARY, TEXT] {
        let made = client
            .call(CONFIGURE, content_type, &[], &env.customer.request())
            .await;
        assert_eq!(made.code, StatusCode::OK);
        assert_eq!(made.header("content-type"), content_type);
        let made: v1::ConfigureResponse = made.message();
        let got = client.call(GET, content_type, &[], &get("acme")).await;
        let got: v1::GetResponse = got.message();
        let integration = got.integration.unwrap();
        assert_eq!(
            integration.integration_id,
            made.integration.unwrap().integration_id
        );
        // gRPC over HTTP/2 has the same address.
        assert_eq!(process.api.get("acme").await.etag, integration.etag);

        // An error without a message is in the headers, with all its details.
        let absent = client.call(GET, content_type, &[], &get("nobody")).await;
        assert_eq!(absent.code, StatusCode::OK);
        assert_eq!(absent.header("content-type"), content_type);
        assert_eq!(absent.status().code(), Code::NotFound);
        assert_eq!(reason(&absent.status()), "INTEGRATION_NOT_FOUND");
        let bad = v1::ConfigureRequest::default();
        let bad = client.call(CONFIGURE, content_type, &[], &bad).await;
        assert_eq!(bad.status().code(), Code::InvalidArgument);
        assert_eq!(violated(&bad.status()).len(), 4);
        let unknown = client.call("a.B/C", content_type, &[], &get("acme")).await;
        assert_eq!(unknown.status().code(), Code::Unimplemented);
    }
    // The answer has the form that the client asks for.
    let headers = [("accept", "application/grpc-web-text")];
    let text = client.call(GET, BINARY, &headers, &get("acme")).await;
    assert_eq!(text.header("content-type"), TEXT);
    text.message::<v1::GetResponse>();

    // Compressed messages are decompressed, and their size counts after it.
    let large = get(&"x".repeat(300 << 10));
    for (content_type, message, code) in [
        (BINARY, get("acme"), Code::Ok),
        (TEXT, get("acme"), Code::Ok),
        (BINARY, large, Code::InvalidArgument),
    ] {
        let body = framed(1, &gzip(&message.encode_to_vec()));
        let headers = [("grpc-encoding", "gzip")];
        let sent = request(GET, content_type, &headers, &body);
        let answer = WebAnswer::read(client.send(sent).await.unwrap()).await;
        assert_eq!(answer.status().code(), code, "{answer:?}");
    }

    // Publishing, and a stream of requests whose answers follow its end.
    let mut load = Load::new("acme", 2, 1);
    let publish = v1::PublishRequest {
        events: load.events(3),
    };
    let answer = client.call(PUBLISH, BINARY, &[], &publish).await;
    assert_eq!(answer.message::<v1::PublishResponse>().accepted, 3);
    let messages = [load.events(2), load.events(4)].map(|events| {
        let message = v1::PublishStreamRequest {
            events,
            ..v1::PublishStreamRequest::default()
        };
        framed(0, &message.encode_to_vec())
    });
    let sent = request(PUBLISH_STREAM, TEXT, &[], &messages.concat());
    let answer = WebAnswer::read(client.send(sent).await.unwrap()).await;
    assert_eq!(answer.status().code(), Code::Ok);
    assert_eq!(answer.messages.len(), 2);
    assert_eq!(process.api.until_delivered("acme").await.accepted, 9);
    let log = process.stop().await;
    assert!(!log.contains("panicked"), "{log}");
}

/// Frames of a stream that arrive while it is open.
struct OpenStream {
    body: hyper::body::Incoming,
    received: Vec<u8>,
}

impl OpenStream {
    async fn open(client: &mut WebClient, organization_id: &str) -> Self {
        let message = v1::StreamStatusRequest {
            organization_ids: vec![organization_id.to_owned()],
            ..v1::StreamStatusRequest::default()
        };
        let body = framed(0, &message.encode_to_vec());
        let answer = client
            .send(request(STREAM_STATUS, BINARY, &[], &body))
            .await;
        Self {
            body: answer.unwrap().into_body(),
            received: Vec::new(),
        }
    }

    /// The next frame: flag and content. None at the end of the body.
    async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, hyper::Error> {
        loop {
            if let Some((flag, content, rest)) = first_frame(&self.received) {
                let (content, rest) = (content.to_vec(), rest.to_vec());
                self.received = rest;
                return Ok(Some((flag, content)));
            }
            match with_timeout("a frame", self.body.frame()).await {
                Some(frame) => self.received.extend(frame?.into_data().unwrap()),
                None => return Ok(None),
            }
        }
    }

    async fn event(&mut self) -> v1::stream_status_response::Event {
        let (flag, content) = self.next().await.unwrap().expect("a message");
        assert_eq!(flag, 0);
        let message = v1::StreamStatusResponse::decode(&content[..]).unwrap();
        message.event.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_stream_is_not_buffered_and_its_end_is_visible() {
    use v1::stream_status_response::Event;

    let env = ProcessEnv::new().await;
    let process = env
        .start_with(&[
            "--grpc-web",
            "--stall-timeout-seconds=1",
            "--connection-idle-seconds=1",
            "--heartbeat-seconds=3",
        ])
        .await;
    let mut client = WebClient::connect(process.address).await;
    let mut stream = OpenStream::open(&mut client, "acme").await;
    assert!(matches!(stream.event().await, Event::Absent(_)));
    assert!(matches!(stream.event().await, Event::Synced(_)));
    // A stream without changes is neither idle nor stalled.
    assert!(matches!(stream.event().await, Event::Heartbeat(_)));
    process.api.configure(&env.customer).await;
    // It arrives while the stream is open.
    let Event::Current(current) = stream.event().await else {
        panic!("no status");
    };
    assert_eq!(current.status.unwrap().status(), v1::Status::Unknown);
    process.terminate().await;
    let (flag, trailers) = stream.next().await.unwrap().expect("trailers");
    assert_eq!(flag, 0x80);
    let status = tonic::Status::from_header_map(&parse_trailers(&trailers)).unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), "SHUTTING_DOWN");
    assert!(stream.next().await.unwrap().is_none());
    let (code, log) = process.ended().await;
    assert!(code.success(), "{code}: {log}");

    // A stream that is cut is an error of the transport, and has no trailers.
    let process = env.start_with(&["--grpc-web"]).await;
    let mut client = WebClient::connect(process.address).await;
    let mut stream = OpenStream::open(&mut client, "acme").await;
    assert!(matches!(stream.event().await, Event::Current(_)));
    assert!(matches!(stream.event().await, Event::Synced(_)));
    process.kill().await;
    assert!(stream.next().await.is_err());
}

/// A preflight for a page of an origin.
fn preflight(host: &str, origin: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::OPTIONS)
        .uri(format!("http://{host}/{GET}"))
        .header("host", host)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-grpc-web",
        )
        .body(Full::default())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_allowed_origins_call() {
    const ALLOWED: &str = "https://soc.example.com";
    let env = ProcessEnv::new().await;
    let callers = Callers::new(&[Callers::caller("one", "read", &["acme"])]);
    let path = callers.path();
    let flags = ["--grpc-web", "--grpc-web-origins"];
    let origins = "https://SOC.example.com:443, http://localhost:3000";
    let flags = [&flags[..], &[origins, "--callers", path.to_str().unwrap()]].concat();
    let process = env.start_with(&flags).await;
    let own = format!("http://{}", process.address);
    let host = process.address.to_string();
    let mut client = WebClient::connect(process.address).await;
    // Preflights carry no token.
    for (origin, allowed) in [
        (ALLOWED, true),
        ("http://localhost:3000", true),
        (own.as_str(), true),
        ("https://evil.example.com", false),
        ("https://soc.example.com.evil.example", false),
        ("http://soc.example.com", false),
        ("http://localhost:3001", false),
        ("null", false),
    ] {
        let answer = client.send(preflight(&host, origin)).await.unwrap();
        let answer = WebAnswer::read(answer).await;
        let granted = answer.header("access-control-allow-origin");
        assert_eq!(granted, if allowed { origin } else { "" });
        assert!(answer.header("vary").to_lowercase().contains("origin"));
        assert_eq!(answer.header("access-control-allow-credentials"), "");
        let headers = answer.header("access-control-allow-headers");
        assert!(headers.contains("authorization") && !headers.contains('*'));
        assert_eq!(answer.header("access-control-allow-methods"), "POST");

        // A request of a foreign page is refused, also with a token.
        let token = format!("Bearer {}", callers.token("one"));
        let headers = [("origin", origin), ("authorization", &token)];
        let mut sent = request(
            GET,
            BINARY,
            &headers,
            &framed(0, &get("acme").encode_to_vec()),
        );
        sent.headers_mut().insert("host", host.parse().unwrap());
        let answer = WebAnswer::read(client.send(sent).await.unwrap()).await;
        if !allowed {
            assert_eq!(answer.code, StatusCode::FORBIDDEN, "{origin}");
            assert!(answer.text.contains("grpc-web-origins"), "{answer:?}");
            assert_eq!(answer.header("access-control-allow-origin"), "");
            continue;
        }
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert_eq!(answer.status().code(), Code::NotFound);
        let exposed = answer.header("access-control-expose-headers");
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
            assert!(exposed.contains(name), "{exposed}");
        }
        // The same page without a token.
        let answer = client
            .call(GET, TEXT, &[("origin", ALLOWED)], &get("acme"))
            .await;
        assert_eq!(answer.status().code(), Code::Unauthenticated);
        assert_eq!(answer.header("access-control-allow-origin"), ALLOWED);
    }
    for (origins, words) in [
        ("*", "the pages of anyone"),
        ("soc.example.com", "does not begin with"),
        ("https://soc.example.com/console", "no path"),
        ("https://*.example.com", "wildcard"),
        ("https://soc.example.com:", "is not an origin"),
        ("https://a.example,", "does not begin with"),
    ] {
        let refused = env
            .start_refused_with(&["--grpc-web", "--grpc-web-origins", origins])
            .await;
        assert_eq!(refused.code, Some(64), "{origins}");
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    let refused = env
        .start_refused_with(&["--grpc-web-origins", ALLOWED])
        .await;
    assert!(refused.stderr.contains("set both"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_here_is_no_own_origin_without_authentication() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--grpc-web"]).await;
    let port = process.address.port();
    let mut client = WebClient::connect(process.address).await;
    for (host, code) in [
        ("localhost", StatusCode::OK),
        ("127.0.0.1", StatusCode::OK),
        ("rebound.example", StatusCode::FORBIDDEN),
    ] {
        let origin = format!("http://{host}:{port}");
        let mut sent = request(LIST, BINARY, &[("origin", &origin)], &framed(0, &[]));
        let host = format!("{host}:{port}").parse().unwrap();
        sent.headers_mut().insert("host", host);
        let answer = client.send(sent).await.unwrap();
        assert_eq!(answer.status(), code, "{origin}");
        WebAnswer::read(answer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_the_same_rights_limits_and_audit() {
    let env = ProcessEnv::new().await;
    let callers = Callers::new(&[
        Callers::caller("one", "read write", &["acme"]),
        Callers::caller("auditor", "audit read", &["*"]),
    ]);
    let path = callers.path();
    let process = env
        .start_with(&[
            "--grpc-web",
            "--callers",
            path.to_str().unwrap(),
            "--requests-per-second-per-caller=2",
        ])
        .await;
    let mut client = WebClient::connect(process.address).await;
    let bearer = |subject: &str| format!("Bearer {}", callers.token(subject));
    let (one, auditor) = (bearer("one"), bearer("auditor"));
    let made = env.customer.request();
    let made = client
        .call(CONFIGURE, BINARY, &[("authorization", &one)], &made)
        .await;
    made.message::<v1::ConfigureResponse>();
    let mut foreign = env.customer.request();
    foreign.organization_id = "other".to_owned();
    let refused = client
        .call(CONFIGURE, TEXT, &[("authorization", &one)], &foreign)
        .await;
    assert_eq!(refused.status().code(), Code::PermissionDenied);
    assert_eq!(reason(&refused.status()), "PERMISSION_DENIED");
    let anonymous = client
        .call(LIST, BINARY, &[], &v1::ListRequest::default())
        .await;
    assert_eq!(anonymous.status().code(), Code::Unauthenticated);
    // A limit is refused with the time after which it has passed.
    let limited = async {
        loop {
            let headers = [("authorization", one.as_str())];
            let answer = client.call(GET, TEXT, &headers, &get("acme")).await;
            if answer.status().code() != Code::Ok {
                return answer.status();
            }
        }
    };
    let limited = with_timeout("a refusal", limited).await;
    assert_eq!(reason(&limited), "RATE_LIMITED");
    let retry = limited.get_details_retry_info().unwrap().retry_delay;
    assert!(retry.unwrap() <= Duration::from_secs(1));
    // Refusals are written within 10 s.
    let audited = async {
        loop {
            let all = v1::ListAuditEntriesRequest::default();
            let headers = [("authorization", auditor.as_str())];
            let page = client.call(AUDIT, BINARY, &headers, &all).await;
            if page.status().code() == Code::Ok {
                let page: v1::ListAuditEntriesResponse = page.message();
                let mut codes: Vec<_> = page.entries.into_iter().map(|entry| entry.code).collect();
                codes.sort();
                codes.dedup();
                if codes.len() > 2 {
                    return codes;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let codes = with_timeout("the audit", audited).await;
    assert_eq!(codes, ["OK", "PERMISSION_DENIED", "UNAUTHENTICATED"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_is_off_by_default() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let stream = TcpStream::connect(process.address).await.unwrap();
    let mut client = WebClient::http2(stream).await;
    for (content_type, code) in [
        (BINARY, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (TEXT, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/json", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/grpc+proto", StatusCode::OK),
    ] {
        let sent = request(LIST, content_type, &[], &framed(0, &[]));
        let answer = client.send(sent).await.unwrap();
        assert_eq!(answer.status(), code, "{content_type}");
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }
    let answer = client.send(preflight("x", "http://x")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    // No HTTP/1.1 either.
    let answer = raw(process.address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    process.api.configure(&env.customer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_have_clear_answers() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--grpc-web"]).await;
    let mut client = WebClient::connect(process.address).await;
    let message = get("acme").encode_to_vec();
    let whole = framed(0, &message);
    let text = |body: &[u8]| request(GET, BINARY, &[], body).into_body();
    let sent = |content_type: &str, body: &[u8]| {
        let mut sent = request(GET, content_type, &[], &[]);
        *sent.body_mut() = text(body);
        sent
    };
    for (content_type, body) in [
        (TEXT, &b"not base64!"[..]),
        (TEXT, b"AAAAA"),
        (TEXT, b""),
        (BINARY, b""),
        (BINARY, b"\x80\0\0\0\x0fgrpc-status:0\r\n"),
        (BINARY, &[&whole[..], &whole].concat()),
        (BINARY, &whole[..whole.len() - 1]),
        (BINARY, b"\0\xff\xff\xff\xff"),
        (BINARY, b"\0\0\0\0\x03abc"),
        (BINARY, &framed(1, &gzip(&message))),
    ] {
        let answer = client.send(sent(content_type, body)).await.unwrap();
        let answer = WebAnswer::read(answer).await;
        let status = answer.status();
        assert!(
            ["MALFORMED_REQUEST", "REQUEST_TOO_LARGE"].contains(&reason(&status).as_str()),
            "{body:?}: {status:?}"
        );
    }
    for (http_method, content_type, code) in [
        (Method::GET, "text/html", StatusCode::METHOD_NOT_ALLOWED),
        (Method::PUT, BINARY, StatusCode::METHOD_NOT_ALLOWED),
        (
            Method::POST,
            "application/json",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        (
            Method::POST,
            "application/grpc",
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        ),
    ] {
        let mut sent = request(GET, content_type, &[], &whole);
        *sent.method_mut() = http_method;
        let answer = client.send(sent).await.unwrap();
        let answer = WebAnswer::read(answer).await;
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(answer.header("content-type").starts_with("text/plain"));
    }
    let old =
        format!("POST /{GET} HTTP/1.0\r\ncontent-type: {BINARY}\r\ncontent-length: 0\r\n\r\n");
    let answer = raw(process.address, old.as_bytes()).await;
    assert!(answer.contains(" 505 "), "{answer}");
    let large = format!(
        "POST /{GET} HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n",
        "x".repeat(40 << 10)
    );
    let answer = raw(process.address, large.as_bytes()).await;
    assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
    // A length that differs from what is sent, both lengths, and bytes of no protocol.
    for bytes in [
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "\0\u{1}\u{2}\r\n\r\n",
        "PRI * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ] {
        let answer = raw(process.address, bytes.as_bytes()).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    let answer = client.call(GET, BINARY, &[], &get("nobody")).await;
    assert_eq!(answer.status().code(), Code::NotFound);
    let log = process.stop().await;
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}

/// Head of a request whose body is not sent.
fn head(method: &str, length: usize, further: &str) -> String {
    format!(
        "POST /{method} HTTP/1.1\r\nhost: x\r\ncontent-type: {BINARY}\r\n\
         content-length: {length}\r\n{further}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_of_http1_are_cut() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--grpc-web"]).await;
    let address = process.address;
    let begun = std::time::Instant::now();
    let first_head = raw(address, b"POST / HTTP/1.1\r\nhost: ");
    let preface = raw(address, b"PRI * HTTP/2.0\r\n\r\n");
    let later_head = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        ended(stream).await
    };
    let body = async {
        let bytes = head(GET, 100, "") + "\0";
        let mut client = WebClient::connect(address).await;
        drop(client.send(request(GET, BINARY, &[], b"")).await);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        answer_of(stream).await
    };
    let publish = async {
        let bytes = head(PUBLISH, 100, "") + "\0\0\0\0\x5f";
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        answer_of(stream).await
    };
    let deadline = async {
        let bytes = head(PUBLISH, 100, "grpc-timeout: 50m\r\n") + "\0";
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        answer_of(stream).await
    };
    let (first, preface, later, body, publish, deadline) =
        tokio::join!(first_head, preface, later_head, body, publish, deadline);
    assert!(first.is_empty() && preface.is_empty(), "{first}{preface}");
    assert!(!later.contains(" 200 "), "{later}");
    for answer in [&body, &publish] {
        // The reason is in the details, of which base64 has this part.
        assert!(answer.contains("grpc-status: 4\r\n"), "{answer}");
        assert!(answer.contains("send%20the%20whole%20request"), "{answer}");
    }
    assert!(deadline.contains("grpc-status: 4\r\n"), "{deadline}");
    assert!(deadline.contains("deadline"), "{deadline}");
    // Far below the limits of idle connections and of calls.
    assert!(begun.elapsed() < Duration::from_secs(50));
    process.stop().await;
}

/// Reads the head of an answer.
async fn answer_of(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = with_timeout("an answer", stream.read_buf(&mut answer)).await;
        if read.unwrap_or(0) == 0 {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_http1_have_limits() {
    let env = ProcessEnv::new().await;
    let process = env
        .start_with(&[
            "--grpc-web",
            "--connection-idle-seconds=1",
            "--stall-timeout-seconds=1",
            "--max-connections-per-peer=4",
        ])
        .await;
    let address = process.address;
    // Idle.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let call = head(LIST, 5, "") + "\0\0\0\0\0";
    stream.write_all(call.as_bytes()).await.unwrap();
    let answer = ended(stream).await;
    assert!(answer.contains("grpc-status:0"), "{answer}");
    // Answers that nobody reads: the server stops reading further requests, and cuts the
    // connection.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let calls = call.repeat(1000);
    let cut = async { while stream.write_all(calls.as_bytes()).await.is_ok() {} };
    with_timeout("the cut", cut).await;
    // Too many connections of one peer: those without a request yield.
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut client = WebClient::connect(address).await;
    let answer = client.call(GET, BINARY, &[], &get("nobody")).await;
    assert_eq!(answer.status().code(), Code::NotFound);
    let mut cut = 0;
    for mut stream in silent {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte)).await;
        cut += usize::from(read.is_ok());
    }
    assert!(cut >= 3, "{cut}");
    // A connection that is idle does not delay the end.
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_reflection_streams_are_answers_of_grpc_web() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--grpc-web"]).await;
    let mut open = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        let bytes = head(REFLECTION, 100, "");
        stream.write_all(bytes.as_bytes()).await.unwrap();
        open.push(stream);
    }
    let refused = async {
        loop {
            let mut client = WebClient::connect(process.address).await;
            let sent = request(REFLECTION, TEXT, &[], &[]);
            let answer = WebAnswer::read(client.send(sent).await.unwrap()).await;
            if answer.status().code() != Code::Ok {
                return answer;
            }
        }
    };
    let refused = with_timeout("a refusal", refused).await;
    assert_eq!(reason(&refused.status()), "RATE_LIMITED");
    assert_eq!(refused.header("content-type"), TEXT);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_offers_both_protocols() {
    let env = ProcessEnv::new().await;
    let directory = env.dir.path().join("credentials");
    let made = run(tool(&["dev-credentials", directory.to_str().unwrap()])).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let files = ["server.pem", "server.key", "ca.pem", "callers.toml"].map(file);
    let secure = [
        "--tls-cert",
        &files[0],
        "--tls-key",
        &files[1],
        "--tls-client-ca",
        &files[2],
        "--callers",
        &files[3],
    ];
    let read = |name| fs::read_to_string(file(name)).unwrap();
    let (authority, token) = (read("ca.pem"), read("read.token"));
    let token = format!("Bearer {}", token.trim());
    let connect = async |process: &Process, protocols: &[&str]| {
        let client = TlsClient::with_protocols(&authority, None, protocols);
        let stream = client.handshake(process.address).await.ok()?;
        let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let client = match protocol.as_deref() {
            Some(b"h2") => WebClient::http2(stream).await,
            _ => WebClient::http1(stream).await,
        };
        Some((protocol.unwrap_or_default(), client))
    };
    let process = env
        .start_with(&[&secure[..], &["--grpc-web"]].concat())
        .await;
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], "h2"),
        (&["http/1.1"], "http/1.1"),
        (&[], ""),
    ] {
        let (protocol, mut client) = connect(&process, offered).await.unwrap();
        assert_eq!(protocol, chosen.as_bytes());
        let origin = "https://localhost";
        let headers = [("origin", origin), ("authorization", &token)];
        let listed = client
            .call(LIST, TEXT, &headers, &v1::ListRequest::default())
            .await;
        assert_eq!(listed.header("access-control-allow-origin"), origin);
        listed.message::<v1::ListResponse>();
        let anonymous = client
            .call(LIST, BINARY, &[], &v1::ListRequest::default())
            .await;
        assert_eq!(anonymous.status().code(), Code::Unauthenticated);
        let clear = client
            .call(
                LIST,
                BINARY,
                &[("origin", "http://localhost")],
                &v1::ListRequest::default(),
            )
            .await;
        assert_eq!(clear.code, StatusCode::FORBIDDEN);
    }
    process.stop().await;
    // Without gRPC-Web there is HTTP/2 only.
    let process = env.start_with(&secure).await;
    assert!(connect(&process, &["http/1.1"]).await.is_none());
    assert!(connect(&process, &["h2", "http/1.1"]).await.is_some());
}
