//! A [`PublishLoop`] against a real gRPC server that misbehaves on demand.

use std::{collections::HashSet, net::SocketAddr};

use futures_util::FutureExt as _;
use proptest::prelude::*;
use tokio::{
    runtime,
    time::{Duration, timeout},
};
use tonic::Code;

use super::{
    publish_loop::EVENT_OVERHEAD_BYTES,
    testing::{Fault, FaultyServer, Running, TEST_TIMEOUT, Verdict},
    *,
};

mod overloaded;

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn options() -> PublisherOptions {
    PublisherOptions {
        max_requests_in_flight: 4,
        max_batch_events: 1,
        linger: Duration::ZERO,
        min_retry_wait: Duration::from_millis(1),
        max_retry_wait: Duration::from_millis(2),
        give_up_after: Duration::from_secs(30),
        ..Default::default()
    }
}

fn event(number: u64) -> v1::Event {
    v1::Event {
        network_id: number.to_string(),
        ..Default::default()
    }
}

/// Numbers of the accepted events, in the order in which they were accepted.
fn numbers(server: &FaultyServer) -> Vec<u64> {
    let events = server.events();
    events
        .iter()
        .map(|event| event.network_id.parse().unwrap())
        .collect()
}

/// Tags with their answers, in the order in which they were received. A rejection counts as
/// INVALID_ARGUMENT.
type Acked = Vec<(u64, Result<(), Code>)>;

async fn collect(mut updates: Updates) -> (Acked, Vec<Retrying>) {
    let (mut acked, mut retries) = (vec![], vec![]);
    while let Some(update) = updates.recv().await {
        match update {
            Update::Ack(ack) => {
                let (outcome, rejected) = match ack.outcome {
                    Ok(response) => {
                        let rejected = response.rejections;
                        let answered = response.accepted as usize + rejected.len();
                        assert_eq!(answered, ack.tags.len());
                        (Ok(()), rejected)
                    }
                    Err(status) => (Err(status.code()), vec![]),
                };
                for (index, tag) in (0..).zip(ack.tags) {
                    let is_rejected = rejected.iter().any(|each| each.index == index);
                    let rejection = Err(Code::InvalidArgument);
                    acked.push((tag, if is_rejected { rejection } else { outcome }));
                }
            }
            Update::Deferred(_) => {}
            Update::Retrying(retrying) => retries.push(retrying),
        }
    }
    (acked, retries)
}

struct Published {
    acked: Acked,
    retries: Vec<Retrying>,
    result: Result<(), PublisherError>,
}

async fn publish(address: SocketAddr, options: PublisherOptions, count: u64) -> Published {
    publish_events(address, options, (0..count).map(event)).await
}

/// Publishes events with the tags 0, 1, and so on.
async fn publish_events(
    address: SocketAddr,
    options: PublisherOptions,
    events: impl Iterator<Item = v1::Event>,
) -> Published {
    let channel = channel(&address.to_string()).unwrap();
    let (sender, updates, publisher) = PublishLoop::new(channel, options);
    let feed = async move {
        for (number, event) in (0..).zip(events) {
            if sender.send(&event, number).await.is_err() {
                return;
            }
        }
    };
    let all = async { tokio::join!(feed, collect(updates), publisher.run()) };
    let ((), (acked, retries), result) = timeout(TEST_TIMEOUT, all).await.expect("it hangs");
    Published {
        acked,
        retries,
        result,
    }
}

/// Publishes events 0..count to a server with this plan. Each must be answered once, in order.
async fn check(plan: Vec<Fault>, count: u64) -> (FaultyServer, Published) {
    let server = FaultyServer::with_plan(plan);
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let published = publish(running.address, options(), count).await;
    running.kill().await;
    published.result.as_ref().unwrap();
    let tags: Vec<u64> = published.acked.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, (0..count).collect::<Vec<_>>(), "each once, in order");
    (server, published)
}

fn first_of_each(numbers: &[u64]) -> Vec<u64> {
    let mut seen = HashSet::new();
    numbers
        .iter()
        .copied()
        .filter(|n| seen.insert(*n))
        .collect()
}

fn last_of_each(numbers: &[u64]) -> Vec<u64> {
    let reversed: Vec<u64> = numbers.iter().rev().copied().collect();
    first_of_each(&reversed).into_iter().rev().collect()
}

#[tokio::test]
async fn a_sound_server_gets_each_event_once() {
    let (server, published) = check(vec![], 100).await;
    assert_eq!(numbers(&server), (0..100).collect::<Vec<_>>());
    assert!(published.retries.is_empty());
}

#[tokio::test]
async fn broken_streams_are_resumed() {
    use Fault::{Accept, AcceptAndBreak, Break, End, WrongId};
    for fault in [
        AcceptAndBreak,
        Break(Code::Unavailable),
        Break(Code::Internal),
        End,
        WrongId,
    ] {
        let (server, published) = check(vec![Accept, fault, Accept, fault, fault], 20).await;
        let accepted = numbers(&server);
        assert_eq!(
            first_of_each(&accepted),
            (0..20).collect::<Vec<_>>(),
            "{fault:?}"
        );
        assert!(published.acked.iter().all(|(_, outcome)| outcome.is_ok()));
        assert!(!published.retries.is_empty(), "{fault:?}");
    }
}

#[tokio::test]
async fn a_request_whose_answer_asks_for_it_is_sent_again_with_those_after_it() {
    use Fault::{Accept, Answer, AnswerRetryInfo};
    for fault in [
        Answer(Code::Unavailable),
        Answer(Code::Aborted),
        AnswerRetryInfo(Code::ResourceExhausted),
    ] {
        let (server, published) = check(vec![Accept, fault], 20).await;
        let accepted = numbers(&server);
        assert_eq!(
            last_of_each(&accepted),
            (0..20).collect::<Vec<_>>(),
            "{fault:?}"
        );
        assert!(published.acked.iter().all(|(_, outcome)| outcome.is_ok()));
        assert_eq!(published.retries.len(), 1);
    }
}

#[tokio::test]
async fn a_refused_request_is_reported_and_the_others_are_accepted() {
    let plan = vec![Fault::Accept, Fault::Answer(Code::InvalidArgument)];
    let (server, published) = check(plan, 5).await;
    assert_eq!(numbers(&server), [0, 2, 3, 4]);
    assert_eq!(published.acked[1].1, Err(Code::InvalidArgument));
    assert!(published.retries.is_empty());
}

/// A server ends the stream at a request that it cannot decode, and does not say at which.
#[tokio::test]
async fn a_request_that_breaks_streams_is_found_and_reported_as_refused() {
    let server = FaultyServer {
        poison: Some(|event| event.network_id == "7"),
        ..Default::default()
    };
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let published = publish(running.address, options(), 20).await;
    published.result.unwrap();
    let expect: Acked = (0..20)
        .map(|tag| {
            (
                tag,
                if tag == 7 {
                    Err(Code::OutOfRange)
                } else {
                    Ok(())
                },
            )
        })
        .collect();
    assert_eq!(published.acked, expect);
    let accepted = numbers(&server);
    let expect: Vec<u64> = (0..20).filter(|n| *n != 7).collect();
    assert_eq!(first_of_each(&accepted), expect);
}

#[tokio::test]
async fn an_event_that_cannot_be_decoded_is_refused_alone() {
    let server = FaultyServer::default();
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let channel = channel(&running.address.to_string()).unwrap();
    let options = PublisherOptions {
        max_bytes_in_flight: 1 << 20,
        max_batch_events: 100,
        ..options()
    };
    let (sender, updates, publisher) = PublishLoop::new(channel, options);
    let feed = async move {
        for number in 0..3 {
            let mut event = event(number);
            if number == 1 {
                event.device_id = "x".repeat(5 << 20);
            }
            sender.send(&event, number).await.unwrap();
        }
    };
    let ((), (acked, _), result) = tokio::join!(feed, collect(updates), publisher.run());
    result.unwrap();
    assert_eq!(
        acked,
        [(0, Ok(())), (1, Err(Code::OutOfRange)), (2, Ok(()))]
    );
}

#[tokio::test]
async fn a_stream_without_answers_is_opened_again() {
    let server = FaultyServer::with_plan(vec![Fault::Accept, Fault::Silence]);
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let options = PublisherOptions {
        answer_timeout: Duration::from_millis(200),
        max_requests_in_flight: 1,
        ..options()
    };
    let published = publish(running.address, options, 5).await;
    published.result.unwrap();
    assert_eq!(numbers(&server), [0, 1, 2, 3, 4]);
    assert_eq!(published.retries[0].cause.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn an_unimplemented_call_ends_the_publisher_at_once() {
    let server = FaultyServer::with_plan(vec![Fault::Break(Code::Unimplemented)]);
    let running = Running::start_on_free_port(server).unwrap();
    let published = publish(running.address, options(), 5).await;
    assert!(matches!(published.result, Err(PublisherError::Refused(_))));
}

#[tokio::test]
async fn the_publisher_gives_up_if_nothing_listens() {
    let address = Running::start_on_free_port(FaultyServer::default())
        .unwrap()
        .kill()
        .await;
    let options = PublisherOptions {
        give_up_after: Duration::from_millis(100),
        ..options()
    };
    let published = publish(address, options, 5).await;
    let Err(PublisherError::GaveUp { last, .. }) = published.result else {
        panic!("it did not give up: {:?}", published.result);
    };
    assert_eq!(last.code(), Code::Unavailable);
    assert!(published.acked.is_empty() && !published.retries.is_empty());
}

/// The server is killed under load, and another one starts on its port.
#[tokio::test]
async fn a_restart_of_the_server_loses_nothing() {
    let server = FaultyServer::default();
    let first = Running::start_on_free_port(server.clone()).unwrap();
    let address = first.address;
    let channel = channel(&address.to_string()).unwrap();
    let (sender, updates, publisher) = PublishLoop::new(channel, options());
    let updates = tokio::spawn(collect(updates));
    let publisher = tokio::spawn(publisher.run());
    for number in 0..50 {
        sender.send(&event(number), number).await.unwrap();
    }
    first.kill().await;
    let feed = tokio::spawn(async move {
        for number in 50..100 {
            sender.send(&event(number), number).await.unwrap();
        }
    });
    let _second = Running::start(server.clone(), address).unwrap();
    timeout(TEST_TIMEOUT, async {
        feed.await.unwrap();
        publisher.await.unwrap().unwrap();
        let (acked, _) = updates.await.unwrap();
        assert_eq!(acked, (0..100).map(|tag| (tag, Ok(()))).collect::<Acked>());
    })
    .await
    .expect("it hangs");
    let accepted = numbers(&server);
    assert_eq!(first_of_each(&accepted), (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_sender_waits_while_too_many_bytes_are_unanswered() {
    let server = FaultyServer::with_plan(vec![Fault::Silence; 100]);
    let running = Running::start_on_free_port(server).unwrap();
    let channel = channel(&running.address.to_string()).unwrap();
    let event = event(7);
    let one = (prost::Message::encoded_len(&event) + EVENT_OVERHEAD_BYTES) as u32;
    let options = PublisherOptions {
        max_bytes_in_flight: one * 10,
        ..options()
    };
    let (sender, _updates, publisher) = PublishLoop::new(channel, options);
    let publisher = tokio::spawn(publisher.run());
    for tag in 0..10 {
        sender.send(&event, tag).await.unwrap();
    }
    let mut eleventh = std::pin::pin!(sender.send(&event, 10));
    assert!(eleventh.as_mut().now_or_never().is_none());
    publisher.abort();
    assert!(publisher.await.unwrap_err().is_cancelled());
    assert!(
        eleventh.await.is_err(),
        "a waiting sender learns that the publisher ended"
    );
}

#[test]
fn addresses() {
    let runtime = runtime();
    let _context = runtime.enter();
    for good in [
        "http://127.0.0.1:50051",
        "127.0.0.1:50051",
        "localhost:1",
        "http://[::1]:9/",
    ] {
        assert!(channel(good).is_ok(), "{good}");
    }
    for bad in ["", "http://", "unix:///x", "http://a b", "a b:1"] {
        assert!(channel(bad).is_err(), "{bad}");
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::Accept),
        1 => Just(Fault::AcceptAndBreak),
        1 => Just(Fault::Break(Code::Unavailable)),
        1 => Just(Fault::Break(Code::Unknown)),
        1 => Just(Fault::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn disconnects_at_any_point_lose_and_reorder_nothing(
        plan in prop::collection::vec(any_fault(), 0..30),
        count in 1u64..40,
    ) {
        let runtime = runtime();
        let (server, published) = runtime.block_on(check(plan, count));
        let accepted = numbers(&server);
        prop_assert_eq!(first_of_each(&accepted), (0..count).collect::<Vec<_>>());
        prop_assert!(published.acked.iter().all(|(_, outcome)| outcome.is_ok()));
    }

    #[test]
    fn the_last_copy_of_each_event_is_in_order_whatever_answers_fail(
        plan in prop::collection::vec(prop_oneof![
            4 => any_fault(),
            1 => Just(Fault::AnswerRetryInfo(Code::ResourceExhausted)),
            1 => Just(Fault::AnswerRetryInfo(Code::Unavailable)),
        ], 0..30),
        count in 1u64..40,
    ) {
        let runtime = runtime();
        let (server, _) = runtime.block_on(check(plan, count));
        let accepted = numbers(&server);
        prop_assert_eq!(last_of_each(&accepted), (0..count).collect::<Vec<_>>());
    }
}
