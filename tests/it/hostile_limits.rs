//! Callers that ask for more than their share, and what others notice of it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use aws_stand_in::Operation;
use futures_util::future::join_all;
use siem_client::v1::{self, ErrorReason, event::Payload};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::harness::{
    Api, Callers, Customer, Load, ProcessEnv, TestEnv, TokenKey, bearer, framed, print,
    read_events, reason, violated, with_timeout,
};

const MIB: usize = 1 << 20;
/// Longest latency of a well-behaved caller: an order of magnitude above that of a slow disk.
const LATENCY: Duration = Duration::from_secs(20);

const GET: &str = "siem.v1.SiemIntegrationService/Get";
const PUBLISH: &str = "siem.v1.EventService/Publish";
const PUBLISH_STREAM: &str = "siem.v1.EventService/PublishStream";

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[track_caller]
fn assert_rate_limited(status: &Status) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(reason(status), "RATE_LIMITED");
    retry_delay(status).expect("a delay")
}

/// Events of 3 MiB in all.
fn large_events(load: &mut Load) -> Vec<v1::Event> {
    let mut events = load.events(6);
    for event in &mut events {
        if let Some(Payload::IdsDetection(detection)) = &mut event.payload {
            detection.context_json = format!(r#"{{"x":"{}"}}"#, "x".repeat(MIB / 2));
        }
    }
    events
}

/// Sends nothing but the prefix and one byte of messages of 8 MiB, on many streams.
#[tokio::test(flavor = "multi_thread")]
async fn announced_messages_that_are_not_sent_stop_nobody() {
    const STREAMS: usize = 200;
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let mut load = Load::new("acme", 3, 1);
    process.api.publish(&large_events(&mut load)).await;
    let before = process.peak_bytes();
    let mut beginning = framed(0, &[]);
    beginning[1..].copy_from_slice(&(8 * MIB as u32).to_be_bytes());
    beginning.push(0x0a);
    let hostile: Vec<_> = (0..STREAMS)
        .map(|index| {
            let api = Api::new(process.address);
            let method = [PUBLISH, PUBLISH_STREAM][index % 2];
            tokio::spawn(api.half_sent(method, beginning.clone()))
        })
        .collect();
    let mut slowest = Duration::ZERO;
    while !hostile.iter().all(tokio::task::JoinHandle::is_finished) {
        let start = Instant::now();
        process.api.publish(&large_events(&mut load)).await;
        slowest = slowest.max(start.elapsed());
    }
    for answer in hostile {
        let status = answer.await.unwrap().status();
        assert_eq!(reason(&status), "MESSAGE_TIMEOUT");
    }
    let growth = process.peak_bytes() - before;
    print(&format!("slowest publish {slowest:?}, {growth} bytes more"));
    assert!(slowest < LATENCY, "{slowest:?}");
    assert!(growth < 128 * MIB as u64, "{growth} bytes");
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_of_a_slow_sts_are_few_at_a_time() {
    const TESTS: usize = 300;
    let env = TestEnv::with(&[("max-streams-per-connection", "1000")]).await;
    let (customer, _) = env.customer("good").await;
    let mut load = Load::new("good", 3, 1);
    env.api.publish(&load.events(1)).await;
    read_events(&env.aws, &customer.stream_arn, 1).await;
    env.customer("slow").await;
    let hanging = env.hang(Operation::AssumeRole, None);
    let tests: Vec<_> = (0..TESTS)
        .map(|_| {
            let api = env.api.clone();
            tokio::spawn(async move { api.try_send_test("slow").await })
        })
        .collect();
    // One caller has half of the permits, and half of the queue.
    env.until_hanging(&hanging, 16).await;
    let start = Instant::now();
    env.api.publish(&load.events(10)).await;
    read_events(&env.aws, &customer.stream_arn, 11).await;
    assert!(start.elapsed() < LATENCY);
    // Those beyond the queue are refused while the first ones hang.
    let refused = |tests: &[tokio::task::JoinHandle<_>]| {
        tests.iter().filter(|test| test.is_finished()).count()
    };
    with_timeout("refusals", async {
        while refused(&tests) < TESTS - 64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let hung = env
        .aws
        .faults()
        .into_iter()
        .find(|(id, _)| *id == hanging.id);
    let left = hung.and_then(|(_, fault)| fault.calls).unwrap();
    assert_eq!(1_000_000 - left, 16, "calls at the same time");
    env.aws.clear_fault(hanging.id);
    for test in tests {
        if test.is_finished() {
            assert_rate_limited(&test.await.unwrap().unwrap_err());
        } else {
            test.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_of_one_caller_leave_a_share_to_another() {
    let entries = ["one", "other"].map(|name| Callers::caller(name, "read write", &["*"]));
    let callers = Callers::new(&entries);
    let path = callers.path().to_str().unwrap().to_owned();
    let settings = [
        ("callers", path.as_str()),
        ("max-streams-per-connection", "1000"),
    ];
    let env = TestEnv::with(&settings).await;
    let customer = Customer::new("slow");
    let request = callers.by("one", customer.request());
    env.api.integrations().configure(request).await.unwrap();
    let hanging = env.hang(Operation::AssumeRole, None);
    let test = |subject: &str| {
        let organization_id = "slow".to_owned();
        let request = callers.by(subject, v1::SendTestRequest { organization_id });
        let mut client = env.api.integrations();
        AbortOnDropHandle::new(tokio::spawn(async move { client.send_test(request).await }))
    };
    let _hog: Vec<_> = (0..200).map(|_| test("one")).collect();
    env.until_hanging(&hanging, 16).await;
    let _other = test("other");
    env.until_hanging(&hanging, 17).await;
    env.aws.clear_fault(hanging.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_authentications_are_limited_and_known_callers_are_not() {
    const FORGED: usize = 200;
    let callers = Callers::new(&[Callers::caller("good", "read", &["*"])]);
    let path = callers.path().to_str().unwrap().to_owned();
    let settings = [
        ("callers", path.as_str()),
        ("failed-authentications-per-second-per-address", "4"),
    ];
    let env = TestEnv::with(&settings).await;
    let list = async |token: &str| {
        let request = bearer(token, v1::ListRequest::default());
        env.api.integrations().list(request).await.map(drop)
    };
    let known = callers.token("good");
    list(&known).await.unwrap();
    let forged = TokenKey::new("first").sign(&Callers::claims("good"));
    let answers = join_all((0..FORGED).map(|_| list(&forged))).await;
    let refused = answers.into_iter().map(Result::unwrap_err);
    let (checked, limited): (Vec<_>, Vec<_>) =
        refused.partition(|status| status.code() == Code::Unauthenticated);
    assert!(
        (40..FORGED / 2).contains(&checked.len()),
        "{} were checked",
        checked.len()
    );
    assert_eq!(checked.len() + limited.len(), FORGED);
    for status in &limited {
        assert_rate_limited(status);
    }
    list(&known).await.unwrap();
    // Probes have no identity.
    let mut health = HealthClient::new(env.api.channel());
    health.check(HealthCheckRequest::default()).await.unwrap();
    // Only a check could distinguish a new token from a forged one.
    let mut claims = Callers::claims("good");
    claims["exp"] = (claims["exp"].as_u64().unwrap() - 1).into();
    let new = callers.key.sign(&claims);
    with_timeout("a new token", async {
        while let Err(status) = list(&new).await {
            tokio::time::sleep(assert_rate_limited(&status)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_generates_so_many_external_ids() {
    let env = TestEnv::with(&[("test-interval-seconds", "10")]).await;
    let generate = async |number: usize| {
        let request = v1::GenerateExternalIdRequest {
            organization_id: format!("invented-{number}"),
        };
        let mut client = env.api.integrations();
        client.generate_external_id(request).await.map(drop)
    };
    let start = Instant::now();
    let answers = join_all((0..400).map(generate)).await;
    let admitted = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
    let most = 100 + 5 * (start.elapsed().as_secs() + 1);
    assert!((100..=most).contains(&admitted), "{admitted} of {most}");
    for answer in answers {
        if let Err(status) = answer {
            assert_rate_limited(&status);
        }
    }
}

/// Uses up the descriptors of a process by silent connections.
fn fill_descriptors(id: u32, address: SocketAddr) -> Vec<TcpStream> {
    let open = || fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    let mut connections = Vec::new();
    let (mut before, mut unchanged) = (open(), 0);
    while unchanged < 20 {
        let timeout = Duration::from_millis(100);
        connections.extend(TcpStream::connect_timeout(&address, timeout));
        std::thread::yield_now();
        unchanged = if open() > before { 0 } else { unchanged + 1 };
        before = open();
    }
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_descriptors_is_not_blamed_on_aws() {
    let env = ProcessEnv::new().await;
    let launcher = ["sh", "-c", "ulimit -n 96; exec \"$@\"", "sh"].map(str::to_owned);
    let process = env.start_under(&launcher).await;
    process.api.configure(&env.customer).await;
    let (id, address) = (process.id(), process.address);
    let silent = tokio::task::spawn_blocking(move || fill_descriptors(id, address));
    let silent = silent.await.unwrap();
    assert!(silent.len() > 20, "{} connections", silent.len());
    let test = process.api.send_test("acme").await;
    let status = test.status.unwrap().status();
    match test.delivered {
        // Descriptors were kept for AWS.
        true => assert_eq!(status, v1::Status::Active),
        false => {
            let message = test.message;
            assert!(message.starts_with("Not tested"), "{message}");
            assert_eq!(test.checks[0].aws_error_code, "TooManyOpenFiles");
            assert_eq!(status, v1::Status::Unknown);
        }
    }
    drop(silent);
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_send_so_many_requests_a_second() {
    let env = TestEnv::with(&[("requests-per-second-per-caller", "5")]).await;
    let gets = join_all((0..20).map(|_| env.api.try_get("ghost"))).await;
    let refused: Vec<Status> = gets
        .into_iter()
        .map(Result::unwrap_err)
        .filter(|status| status.code() != Code::NotFound)
        .collect();
    let delays: Vec<Duration> = refused.iter().map(assert_rate_limited).collect();
    // A slow machine may take longer than a second for all.
    let delay = *delays.last().expect("some are refused");
    assert!(delay <= Duration::from_millis(200));
    // The delay is exact: after it, a request is admitted.
    tokio::time::sleep(delay).await;
    let status = env.api.try_get("ghost").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_open_so_many_streams() {
    let env = TestEnv::with(&[("streams-per-caller", "2")]).await;
    let open = async || {
        let request = v1::StreamStatusRequest::default();
        let mut client = env.api.integrations();
        client.stream_status(request).await
    };
    let first = open().await.unwrap();
    let _second = open().await.unwrap();
    assert_rate_limited(&open().await.unwrap_err());
    let answer = env.api.raw(PUBLISH_STREAM, None, Vec::new()).await;
    assert_rate_limited(&answer.status());
    drop(first);
    with_timeout("a free stream", async {
        while open().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_beyond_the_rate_of_an_organization_are_rejected_one_by_one() {
    let env = TestEnv::with(&[("events-per-second-per-organization", "10")]).await;
    let (customer, _) = env.customer("busy").await;
    env.customer("calm").await;
    let (mut busy, mut calm) = (Load::new("busy", 1, 1), Load::new("calm", 1, 1));
    let mut events = busy.events(25);
    events.extend(calm.events(5));
    let request = v1::PublishRequest { events };
    let answer = env
        .api
        .events()
        .publish(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.accepted, 15, "ten of one, and all of the other");
    let rejected: Vec<_> = answer.rejections.iter().map(|each| each.index).collect();
    assert_eq!(rejected, (10..25).collect::<Vec<_>>());
    for rejection in &answer.rejections {
        assert_eq!(rejection.reason(), ErrorReason::RateLimited);
        assert!(rejection.message.contains("send it again later"));
    }
    // Clients send them again.
    let again = busy.events(12);
    env.api.publish(&again).await;
    read_events(&env.aws, &customer.stream_arn, 22).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_may_test_seldom() {
    let env = TestEnv::with(&[("test-interval-seconds", "3600")]).await;
    let (acme, _) = env.customer("acme").await;
    env.customer("globex").await;
    let validate = async |organization_id: &str| {
        let request = v1::ConfigureRequest {
            organization_id: organization_id.to_owned(),
            external_id: String::new(),
            validate_only: true,
            ..acme.request()
        };
        env.api.try_configure(request).await.map(drop)
    };
    let generate = async |organization_id: &str| {
        let request = v1::GenerateExternalIdRequest {
            organization_id: organization_id.to_owned(),
        };
        let mut client = env.api.integrations();
        client.generate_external_id(request).await.map(drop)
    };
    for _ in 0..5 {
        assert!(env.api.send_test("acme").await.delivered);
        validate("acme").await.unwrap();
        generate("acme").await.unwrap();
    }
    let hour = Duration::from_secs(3600);
    for status in [
        env.api.try_send_test("acme").await.unwrap_err(),
        validate("acme").await.unwrap_err(),
        generate("acme").await.unwrap_err(),
    ] {
        let delay = assert_rate_limited(&status);
        assert!(delay > hour / 2 && delay <= hour, "{delay:?}");
    }
    assert!(env.api.send_test("globex").await.delivered);
    validate("globex").await.unwrap();
    generate("globex").await.unwrap();
    for _ in 0..10 {
        let status = env.api.try_send_test("ghost").await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_external_ids_show_nothing_and_are_limited() {
    let env = TestEnv::with(&[("test-interval-seconds", "3600")]).await;
    let (victim, _) = env.customer("victim").await;
    let issued = env.api.generate_external_id("victim").await;
    let rotated = victim.with_external_id("the-new-external-id-0123456789abcdef");
    let rotation = v1::ConfigureRequest {
        keep_previous_external_id: true,
        ..rotated.request()
    };
    env.api.try_configure(rotation).await.unwrap();
    let guess = async |organization_id: &str, external_id: &str, validate_only| {
        let request = v1::ConfigureRequest {
            organization_id: organization_id.to_owned(),
            external_id: external_id.to_owned(),
            validate_only,
            ..victim.request()
        };
        env.api.try_configure(request).await
    };
    let current = rotated.external_id.as_str();
    let mut answers = Vec::new();
    for (external_id, validate_only) in [
        (current, true),
        (current, false),
        (victim.external_id.as_str(), true),
        (issued.as_str(), true),
        (issued.as_str(), false),
    ] {
        let status = guess("thief", external_id, validate_only)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(violated(&status), ["external_id"]);
        answers.push((status.message().to_owned(), status.details().to_vec()));
    }
    answers.dedup();
    let [(message, _)] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert!(
        message.contains("cannot be used; use a fresh one"),
        "{message}"
    );
    // Also one that nobody uses, so that the answer shows nothing.
    for external_id in [current, "nobody-uses-this-external-id-0123456789"] {
        let status = guess("thief", external_id, false).await.unwrap_err();
        assert_rate_limited(&status);
    }
    let other = Customer::new("globex");
    env.api.configure(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_eleventh_unused_external_id_is_refused() {
    let env = TestEnv::with(&[("external-id-policy", "issued")]).await;
    let generate = async || {
        let request = v1::GenerateExternalIdRequest {
            organization_id: "acme".to_owned(),
        };
        let mut client = env.api.integrations();
        let answer = client.generate_external_id(request).await?;
        Ok::<_, Status>(answer.into_inner().external_id)
    };
    let first = generate().await.unwrap();
    for _ in 1..10 {
        generate().await.unwrap();
    }
    let status = generate().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(retry_delay(&status), None);
    assert!(status.message().contains("configure one of them"));
    // The first one was not displaced.
    let customer = Customer::new("acme").with_external_id(&first);
    env.api.configure(&customer).await;
    generate().await.unwrap();
    assert!(generate().await.is_err());
    env.api.delete("acme", false).await.unwrap();
    for _ in 0..10 {
        generate().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weak_external_id_is_a_warning() {
    let env = TestEnv::start().await;
    let mut client = env.api.integrations();
    for (external_id, words) in [
        ("acme-2026", "fewer than 32 characters"),
        (&*"ab".repeat(20), "repeats few characters"),
    ] {
        for validate_only in [true, false] {
            let customer = Customer::new("acme").with_external_id(external_id);
            let request = v1::ConfigureRequest {
                validate_only,
                ..customer.request()
            };
            let answer = client.configure(request).await.unwrap().into_inner();
            let [warning] = &answer.warnings[..] else {
                panic!("{:?}", answer.warnings);
            };
            assert!(warning.contains(words), "{warning}");
            assert!(!warning.contains(external_id));
        }
    }
    let strong = Customer::new("acme").with_external_id("6f9619ff8b864d01b42d00cf4fc964ff");
    let answer = client.configure(strong.request()).await.unwrap();
    assert_eq!(answer.into_inner().warnings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_do_not_fill_the_log() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--log-level=info,siem_relay=debug"]).await;
    for round in 0..50 {
        for (method, encoding, body) in [
            (GET, None, framed(0, b"\x0a\x02\xc3\x28")),
            (GET, None, framed(1, b"")),
            (GET, Some("snappy"), framed(0, b"")),
            (PUBLISH, Some("gzip"), framed(1, b"\x1b[31m")),
            (PUBLISH_STREAM, None, framed(7, b"")),
            (&*format!("no.Service/Method{round}"), None, Vec::new()),
        ] {
            let answer = process.api.raw(method, encoding, body).await;
            assert_ne!(answer.status().code(), Code::Ok);
        }
    }
    let log = process.stop().await;
    assert!(log.contains("request refused"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    assert!(!log.contains("no.Service"), "{log}");
}
