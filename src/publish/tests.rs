//! Runs against a gRPC server with planned faults.

use std::{fmt::Write as _, fs, io::Write as _};

use tempfile::NamedTempFile;
use tokio::{sync::mpsc, time::timeout};

use super::*;
use siem_client::{
    Ack, Update,
    testing::{Fault, FaultyServer, Running, TEST_TIMEOUT, Verdict},
    v1,
};

fn alert(number: u64) -> String {
    format!(
        r#"{{"timestamp":"2026-03-29T11:01:38.{number:06}+0000","event_type":"alert","src_ip":"192.0.2.1","flow_id":{number},"alert":{{"signature_id":9000001}}}}"#
    )
}

fn alerts(numbers: std::ops::Range<u64>) -> String {
    numbers.map(|number| alert(number) + "\n").collect()
}

fn file(text: impl AsRef<[u8]>) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_ref()).unwrap();
    file
}

fn options(running: &Running, path: impl Into<PathBuf>) -> PublishOptions {
    PublishOptions {
        input: Input::File(path.into()),
        organization_id: "acme".into(),
        network_id: Uuid::from_u128(1),
        device_id: Uuid::from_u128(2),
        service: ChannelOptions::new(running.address.to_string()),
        from_line: 1,
        shutdown_grace: Duration::from_secs(30),
        publisher: PublisherOptions {
            max_batch_events: 7,
            min_retry_wait: Duration::from_millis(1),
            max_retry_wait: Duration::from_millis(5),
            ..PublisherOptions::default()
        },
    }
}

fn detection(event: &v1::Event) -> &v1::IdsDetection {
    let Some(v1::event::Payload::IdsDetection(detection)) = &event.payload else {
        panic!("no detection");
    };
    detection
}

/// Returns the flow ids of the accepted events; tests use them to number their lines.
fn flow_ids(server: &FaultyServer) -> Vec<u64> {
    let events = server.events();
    let id = |event| detection(event).flow_id.unwrap();
    events.iter().map(id).collect()
}

struct Finished {
    summary: Summary,
    /// Output of the reporter.
    text: String,
}

async fn publish(options: PublishOptions) -> Finished {
    let mut reporter = ConsoleReporter::new(Vec::new());
    let run = run(options, &mut reporter, CancellationToken::new());
    let summary = timeout(TEST_TIMEOUT, run).await.expect("it hangs").unwrap();
    let text = String::from_utf8(reporter.finish()).unwrap();
    Finished { summary, text }
}

#[tokio::test]
async fn every_alert_of_a_file_arrives_in_order() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let file = file(alerts(0..5_000));
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(flow_ids(&server), (0..5_000).collect::<Vec<_>>());
    assert!(finished.summary.is_success());
    assert_eq!(finished.summary.exit_code(), 0);
    assert_eq!(finished.text, "");
    let expect = "read          5000\npublished     5000\naccepted      5000\nrejected      0\n\
        unconfigured  0\nskipped       0\nbroken        0\n";
    assert_eq!(finished.summary.to_string(), expect);
}

#[tokio::test]
async fn broken_lines_are_reported_and_the_rest_is_published() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let mut text = b"\xef\xbb\xbf".to_vec();
    text.extend_from_slice(format!("{}\r\n\r\n  \n", alert(0)).as_bytes());
    text.extend_from_slice(b"{\"event_type\":\"dns\"}\n{\"event_type\":\"flow\"}\nnonsense\n");
    text.extend_from_slice(b"{\"event_type\":\"dns\"}\n{\"event_type\":\"flow\xff\n");
    text.extend_from_slice(alert(1).as_bytes());
    let file = file(text);
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(flow_ids(&server), [0, 1]);
    assert_eq!(finished.summary.exit_code(), 1);
    assert_eq!(
        finished.text,
        "line 6: broken: not valid JSON at column 2\nline 8: broken: the JSON ends early, after 22 bytes; was the line cut?\n"
    );
    let expect = "read          7\npublished     2\naccepted      2\nrejected      0\n\
        unconfigured  0\nskipped       3 (dns 2, flow 1)\nbroken        2\n";
    assert_eq!(finished.summary.to_string(), expect);
}

#[tokio::test]
async fn rejections_name_their_lines() {
    let server = FaultyServer {
        judge: Some(|event| match detection(event).flow_id {
            Some(3) => Verdict::Reject,
            Some(11) => Verdict::Unconfigured,
            _ => Verdict::Accept,
        }),
        ..FaultyServer::default()
    };
    let running = Running::start_on_free_port(server).unwrap();
    let file = file(format!("{{\"event_type\":\"dns\"}}\n{}", alerts(0..20)));
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(
        finished.text,
        "line 5: rejected: ids_detection.src_ip: not an IP address (INVALID_FIELD)\n"
    );
    assert_eq!(finished.summary.exit_code(), 1);
    let counts = finished.summary.counts;
    assert_eq!(
        (counts.accepted, counts.rejected, counts.unconfigured),
        (18, 1, 1)
    );
    assert!(
        finished
            .summary
            .to_string()
            .contains("organization acme has no integration")
    );
}

#[tokio::test]
async fn a_refused_request_counts_all_its_alerts() {
    let plan = vec![
        Fault::Accept,
        Fault::Answer(siem_client::Code::PermissionDenied),
    ];
    let server = FaultyServer::with_plan(plan);
    let running = Running::start_on_free_port(server).unwrap();
    let file = file(alerts(0..21));
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(
        finished.text,
        "lines 8 to 14: 7 alerts rejected: planned (PermissionDenied)\n"
    );
    let counts = finished.summary.counts;
    assert_eq!((counts.accepted, counts.rejected), (14, 7));
}

#[tokio::test]
async fn the_number_of_reported_broken_lines_is_limited() {
    let running = Running::start_on_free_port(FaultyServer::default()).unwrap();
    let file = file("x\n".repeat(50));
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(finished.text.lines().count(), 21);
    assert!(finished.text.ends_with("and 30 more broken\n"));
    assert_eq!(finished.summary.counts.broken, 50);
}

#[tokio::test]
async fn the_number_of_counted_event_types_is_limited() {
    let running = Running::start_on_free_port(FaultyServer::default()).unwrap();
    let mut text = String::new();
    for number in 0..150 {
        writeln!(text, r#"{{"event_type":"{number:03}{}"}}"#, "é".repeat(200)).unwrap();
    }
    let file = file(text);
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(finished.summary.skipped.len(), 101);
    assert_eq!(finished.summary.skipped["(others)"], 50);
    assert!(
        finished
            .summary
            .skipped
            .keys()
            .all(|name| name.chars().count() <= 64)
    );
}

#[tokio::test]
async fn a_line_that_is_too_long_is_broken() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let long = "x".repeat(MAX_LINE_BYTES + 1);
    let file = file(format!("{}{long}\n{}", alerts(0..2), alerts(2..4)));
    let finished = publish(options(&running, file.path())).await;
    assert_eq!(finished.text, "line 3: broken: longer than 16 MiB\n");
    assert_eq!(flow_ids(&server), [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_run_can_start_at_a_line() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let file = file(format!("broken\n{}", alerts(0..10)));
    let mut options = options(&running, file.path());
    options.from_line = 9;
    let finished = publish(options).await;
    assert!(finished.summary.is_success());
    assert_eq!(flow_ids(&server), [7, 8, 9]);
}

#[tokio::test]
async fn a_lost_connection_is_reported_and_restored() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let file = file(alerts(0..2_000));
    let options = options(&running, file.path());
    let address = running.kill().await;
    let (retrying, mut retried) = mpsc::unbounded_channel();
    let mut console = ConsoleReporter::new(Vec::new());
    let mut reporter = |notice: Notice<'_>| {
        if matches!(notice, Notice::Retrying(_)) {
            let _ = retrying.send(());
        }
        console.report(notice);
    };
    let shutdown = CancellationToken::new();
    let started = async {
        retried.recv().await.unwrap();
        Running::start(server.clone(), address).unwrap()
    };
    let all = async { tokio::join!(run(options, &mut reporter, shutdown), started) };
    let (summary, _running) = timeout(TEST_TIMEOUT, all).await.expect("it hangs");
    assert!(summary.unwrap().is_success());
    assert_eq!(flow_ids(&server), (0..2_000).collect::<Vec<_>>());
    let text = String::from_utf8(console.finish()).unwrap();
    assert!(
        text.starts_with("retrying: ") && text.ends_with("the service answers again\n"),
        "{text}"
    );
}

#[tokio::test]
async fn giving_up_names_the_line_to_resume_from() {
    let plan = vec![Fault::Accept, Fault::Accept, Fault::End];
    let server = FaultyServer::with_plan(plan);
    let running = Running::start_on_free_port(server).unwrap();
    let file = file(alerts(0..100));
    let mut options = options(&running, file.path());
    options.publisher.give_up_after = Duration::ZERO;
    let finished = publish(options).await;
    assert!(matches!(finished.summary.end, End::Stopped(_)));
    assert_eq!(finished.summary.exit_code(), 1);
    assert_eq!(finished.summary.resume_line, 15);
    assert!(
        finished
            .summary
            .to_string()
            .ends_with("resume with --from-line 15\n")
    );
}

/// Interrupts the run after more than `accepted` alerts were accepted.
fn interrupter(shutdown: CancellationToken, accepted: u64) -> impl Reporter + Send {
    move |notice: Notice<'_>| {
        if let Notice::Progress(progress) = notice
            && progress.accepted > accepted
        {
            shutdown.cancel();
        }
    }
}

#[tokio::test]
async fn an_interrupt_waits_for_answers_and_names_the_line_to_resume_from() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let file = file(alerts(0..20_000));
    let shutdown = CancellationToken::new();
    let mut reporter = interrupter(shutdown.clone(), 100);
    let summary = run(options(&running, file.path()), &mut reporter, shutdown);
    let summary = timeout(TEST_TIMEOUT, summary)
        .await
        .expect("it hangs")
        .unwrap();
    assert!(matches!(summary.end, End::Interrupted));
    assert_eq!(summary.counts.unanswered(), 0);
    assert_eq!(summary.exit_code(), 1);

    let mut rest = options(&running, file.path());
    rest.from_line = summary.resume_line;
    assert!(publish(rest).await.summary.is_success());
    assert_eq!(flow_ids(&server), (0..20_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_interrupt_does_not_wait_forever() {
    let mut plan = vec![Fault::Silence; 1_000];
    plan[0] = Fault::Accept;
    let running = Running::start_on_free_port(FaultyServer::with_plan(plan)).unwrap();
    let file = file(alerts(0..5_000));
    let mut options = options(&running, file.path());
    options.shutdown_grace = Duration::ZERO;
    let shutdown = CancellationToken::new();
    let mut reporter = interrupter(shutdown.clone(), 0);
    let summary = timeout(TEST_TIMEOUT, run(options, &mut reporter, shutdown));
    let summary = summary.await.expect("it hangs").unwrap();
    assert!(matches!(summary.end, End::Interrupted));
    assert!(summary.counts.unanswered() > 0);
    assert_eq!((summary.exit_code(), summary.resume_line), (1, 8));
}

/// Sends the alerts of three lines, of which the second has two, and answers them in this order.
/// Returns the line to resume from after each answer.
fn resume_lines(options: PublishOptions, tags: &[u64]) -> Vec<u64> {
    let mut lines = vec![];
    for count in 1..=tags.len() {
        let mut reporter = ();
        let mut session = Session::new(&mut reporter, Summary::new(options.clone()), None);
        for (line, is_last) in [(1, true), (2, false), (2, true), (3, true)] {
            let tag = session::tag(0, line, is_last);
            session.sending(tag, line * 10);
            if is_last {
                session.handled(tag, line * 10);
            }
        }
        session.sending(session::tag(0, 4, true), 40);
        session.not_sent();
        for tag in &tags[..count] {
            let outcome = Ok(v1::PublishResponse {
                accepted: 1,
                ..v1::PublishResponse::default()
            });
            let tags = vec![*tag];
            session.update(Update::Ack(Ack { tags, outcome }));
        }
        lines.push(session.finish(End::Interrupted).resume_line);
    }
    lines
}

#[tokio::test]
async fn the_line_to_resume_from_is_that_of_the_first_unanswered_alert() {
    let running = Running::start_on_free_port(FaultyServer::default()).unwrap();
    let options = options(&running, "eve.json");
    let tag = |line, is_last| session::tag(0, line, is_last);
    let (first, begun, second, third) = (tag(1, true), tag(2, false), tag(2, true), tag(3, true));
    for (order, expect) in [
        ([first, begun, second, third], [2, 2, 3, 4]),
        ([third, second, begun, first], [1, 1, 1, 4]),
        ([second, first, begun, third], [1, 2, 3, 4]),
    ] {
        assert_eq!(resume_lines(options.clone(), &order), expect);
    }
}

#[tokio::test]
async fn temporarily_rejected_alerts_are_published_again() {
    let server = FaultyServer {
        overload: Some(|event| match detection(event).flow_id {
            Some(3 | 11) => 2,
            _ => 0,
        }),
        ..FaultyServer::default()
    };
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let file = file(alerts(0..20));
    let finished = publish(options(&running, file.path())).await;
    assert!(finished.summary.is_success(), "{}", finished.summary);
    let counts = finished.summary.counts;
    assert_eq!(
        (counts.published, counts.accepted, counts.rejected),
        (20, 20, 0)
    );
    let mut accepted = flow_ids(&server);
    accepted.sort_unstable();
    assert_eq!(accepted, (0..20).collect::<Vec<_>>());
    let notice = "rejected temporarily, to be sent again: too many events are waiting (alerts: ";
    let lines = finished.text.lines();
    assert!(finished.text.contains(notice), "{}", finished.text);
    assert_eq!(lines.filter(|line| !line.starts_with(notice)).count(), 0);
}

#[tokio::test]
async fn a_run_that_ends_before_a_temporarily_rejected_alert_is_accepted_resumes_from_it() {
    let server = FaultyServer {
        overload: Some(|event| match detection(event).flow_id {
            Some(3) => u32::MAX,
            _ => 0,
        }),
        ..FaultyServer::default()
    };
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("eve.json");
    fs::write(&path, alerts(0..20)).unwrap();
    let state_file = directory.path().join("state");
    let follow = |running: &Running| {
        let mut options = options(running, &path);
        options.publisher.max_batch_events = 1;
        options.shutdown_grace = Duration::ZERO;
        options.input = Input::Follow {
            path: path.clone(),
            state_file: state_file.clone(),
        };
        options
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut deferred = 0;
    let mut reporter = |notice: Notice<'_>| {
        deferred += u32::from(matches!(notice, Notice::Deferred(_)));
        if deferred == 3 {
            stop.cancel();
        }
    };
    let run_once = run(follow(&running), &mut reporter, shutdown);
    let summary = timeout(TEST_TIMEOUT, run_once).await.expect("it hangs");
    let counts = summary.unwrap().counts;
    assert!(
        counts.unanswered() > 0 && counts.rejected == 0,
        "{counts:?}"
    );
    let first = flow_ids(&server);
    assert_eq!(first[..3], [0, 1, 2]);

    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let shutdown = CancellationToken::new();
    let mut reporter = interrupter(shutdown.clone(), 16);
    let run_again = run(follow(&running), &mut reporter, shutdown);
    let summary = timeout(TEST_TIMEOUT, run_again).await.expect("it hangs");
    assert!(summary.unwrap().is_success());
    assert_eq!(flow_ids(&server), (3..20).collect::<Vec<_>>());
}

/// Each alert is accepted before the next one is written.
#[cfg(unix)]
#[tokio::test]
async fn a_live_pipe_is_published_without_delay() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let made = tokio::process::Command::new("mkfifo")
        .arg(&path)
        .status()
        .await;
    assert!(made.unwrap().success());
    let (accepted, mut acks) = mpsc::unbounded_channel();
    let mut reporter = |notice: Notice<'_>| {
        if let Notice::Progress(progress) = notice {
            let _ = accepted.send(progress.accepted);
        }
    };
    let shutdown = CancellationToken::new();
    let publish = run(options(&running, &path), &mut reporter, shutdown);
    let write = async {
        let open = move || fs::OpenOptions::new().write(true).open(path).unwrap();
        let mut pipe = tokio::task::spawn_blocking(open).await.unwrap();
        for number in 0..5 {
            writeln!(pipe, "{}", alert(number)).unwrap();
            while acks.recv().await.unwrap() <= number {}
        }
    };
    let all = async { tokio::join!(publish, write) };
    let (summary, ()) = timeout(TEST_TIMEOUT, all).await.expect("it hangs");
    assert!(summary.unwrap().is_success());
    assert_eq!(flow_ids(&server), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn wrong_options_are_refused() {
    let running = Running::start_on_free_port(FaultyServer::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let check = async |change: &dyn Fn(&mut PublishOptions), usage: bool, expect: &str| {
        let mut options = options(&running, directory.path().join("absent.json"));
        change(&mut options);
        let error = run(options, &mut (), CancellationToken::new())
            .await
            .unwrap_err();
        assert_eq!(error.is_usage(), usage);
        assert!(error.to_string().contains(expect), "{error}");
    };
    check(&|_| {}, false, "absent.json").await;
    let path = directory.path().to_owned();
    check(
        &|options| options.input = Input::File(path.clone()),
        false,
        "is a directory",
    )
    .await;
    check(
        &|options| options.organization_id = "a b".into(),
        true,
        "organization",
    )
    .await;
    check(
        &|options| options.organization_id = "x".repeat(65),
        true,
        "organization",
    )
    .await;
    check(
        &|options| options.service = ChannelOptions::new("ftp://x:1"),
        true,
        "scheme",
    )
    .await;
}
