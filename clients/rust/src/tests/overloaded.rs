//! Events that the server rejects temporarily.

use super::*;
use crate::v1::Event;

const DEVICES: u64 = 3;

/// An event of one of [`DEVICES`] devices. Its network is the same for all, so that the number is
/// kept elsewhere.
fn event_of_device(number: u64) -> Event {
    Event {
        device_id: (number % DEVICES).to_string(),
        event_id: Some(number.to_string()),
        ..Event::default()
    }
}

fn number(event: &Event) -> u64 {
    event.event_id().parse().unwrap()
}

fn accepted(server: &FaultyServer) -> Vec<u64> {
    server.events().iter().map(number).collect()
}

fn of_device(numbers: &[u64], device: u64) -> Vec<u64> {
    let all = numbers.iter().copied();
    all.filter(|number| number % DEVICES == device).collect()
}

/// Rejects two of seven events, once and twice.
fn sometimes(event: &Event) -> u32 {
    (number(event) % 7).saturating_sub(4) as u32
}

fn overloaded(overload: fn(&Event) -> u32) -> (FaultyServer, Running) {
    let server = FaultyServer {
        overload: Some(overload),
        ..FaultyServer::default()
    };
    let running = Running::start_on_free_port(server.clone()).unwrap();
    (server, running)
}

fn one_at_a_time() -> PublisherOptions {
    PublisherOptions {
        max_requests_in_flight: 1,
        ..options()
    }
}

#[tokio::test]
async fn temporarily_rejected_events_are_sent_again_until_they_are_accepted() {
    let (server, running) = overloaded(sometimes);
    let options = PublisherOptions {
        max_batch_events: 5,
        ..options()
    };
    let published = publish_events(running.address, options, (0..200).map(event_of_device)).await;
    published.result.unwrap();
    let mut accepted = accepted(&server);
    accepted.sort_unstable();
    assert_eq!(accepted, (0..200).collect::<Vec<_>>(), "each once");
    let mut acked = published.acked;
    acked.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(acked, (0..200).map(|tag| (tag, Ok(()))).collect::<Acked>());
    assert!(published.retries.is_empty(), "the stream remains open");
    let counts = server.overloaded.lock().unwrap();
    for number in 0..200 {
        let event = event_of_device(number);
        let count = counts[&prost::Message::encode_to_vec(&event)];
        assert_eq!(count, sometimes(&event), "unchanged, as often as rejected");
    }
}

#[tokio::test]
async fn the_events_of_a_device_remain_in_order() {
    let (server, running) = overloaded(sometimes);
    let events = (0..100).map(event_of_device);
    let published = publish_events(running.address, one_at_a_time(), events).await;
    published.result.unwrap();
    let accepted = accepted(&server);
    assert_ne!(
        accepted,
        (0..100).collect::<Vec<_>>(),
        "other devices go on"
    );
    for device in 0..DEVICES {
        let expect: Vec<_> = (device..100).step_by(DEVICES as usize).collect();
        assert_eq!(of_device(&accepted, device), expect);
    }
}

/// Of one device, only requests that were in flight at a rejection can be accepted before the
/// rejected event.
#[tokio::test]
async fn no_later_event_of_a_device_is_sent_before_one_that_waits() {
    let (server, running) = overloaded(|event| u32::from(number(event) == 10) * 20);
    let events = (0..100).map(|number| Event {
        device_id: "7".into(),
        ..event_of_device(number)
    });
    let published = publish_events(running.address, options(), events).await;
    published.result.unwrap();
    let accepted = accepted(&server);
    let at = accepted.iter().position(|number| *number == 10).unwrap();
    let in_flight = options().max_requests_in_flight;
    assert!(at < 10 + in_flight, "{accepted:?}");
    assert!(accepted[at + 1..].is_sorted(), "{accepted:?}");
}

#[tokio::test]
async fn other_devices_go_on_while_one_is_rejected() {
    let (server, running) = overloaded(|event| if number(event) == 0 { u32::MAX } else { 0 });
    let channel = channel(&running.address.to_string()).unwrap();
    let (sender, mut updates, publisher) = PublishLoop::new(channel, one_at_a_time());
    let publisher = tokio::spawn(publisher.run());
    for tag in 0..60 {
        sender.send(&event_of_device(tag), tag).await.unwrap();
    }
    let mut acked = vec![];
    let others = async {
        while acked.len() < 40 {
            if let Some(Update::Ack(ack)) = updates.recv().await {
                acked.extend(ack.tags);
            }
        }
    };
    timeout(TEST_TIMEOUT, others).await.expect("it hangs");
    let expect: Vec<_> = (0..60).filter(|tag| tag % DEVICES != 0).collect();
    assert_eq!(acked, expect);
    assert_eq!(accepted(&server), expect);
    publisher.abort();
}

#[tokio::test]
async fn a_final_rejection_beside_a_temporary_one_is_reported_at_once() {
    let server = FaultyServer {
        overload: Some(|event| u32::from(number(event) < 4)),
        judge: Some(|event| match number(event) {
            3 | 8 => Verdict::Reject,
            _ => Verdict::Accept,
        }),
        ..FaultyServer::default()
    };
    let running = Running::start_on_free_port(server.clone()).unwrap();
    let options = PublisherOptions {
        max_batch_events: 10,
        linger: Duration::from_secs(60),
        ..options()
    };
    let events = (0..10).map(event_of_device);
    let published = publish_events(running.address, options, events).await;
    published.result.unwrap();
    let outcome = |tag| match tag {
        3 | 8 => Err(Code::InvalidArgument),
        _ => Ok(()),
    };
    let first: Acked = (4..10).map(|tag| (tag, outcome(tag))).collect();
    assert_eq!(published.acked[..6], first);
    let mut later = published.acked[6..].to_vec();
    later.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(
        later,
        (0..4).map(|tag| (tag, outcome(tag))).collect::<Acked>()
    );
    assert_eq!(
        server.overloaded.lock().unwrap().len(),
        10,
        "each was judged"
    );
}

#[tokio::test]
async fn the_publisher_gives_up_if_only_temporary_rejections_are_left() {
    let (server, running) = overloaded(|event| if number(event) == 2 { u32::MAX } else { 0 });
    let options = PublisherOptions {
        give_up_after: Duration::from_millis(100),
        ..one_at_a_time()
    };
    let events = (0..9).map(event_of_device);
    let published = publish_events(running.address, options, events).await;
    let Err(PublisherError::GaveUp { last, .. }) = published.result else {
        panic!("it did not give up: {:?}", published.result);
    };
    assert_eq!(last.code(), Code::ResourceExhausted);
    assert_eq!(last.message(), "too many events are waiting");
    let expect = [0, 1, 3, 4, 6, 7];
    assert_eq!(accepted(&server), expect);
    assert_eq!(published.acked, expect.map(|tag| (tag, Ok(()))));
}

#[tokio::test]
async fn deferred_events_count_as_unanswered_bytes() {
    let (server, running) = overloaded(|_| u32::MAX);
    let channel = channel(&running.address.to_string()).unwrap();
    let one = prost::Message::encoded_len(&event_of_device(0)) + EVENT_OVERHEAD_BYTES;
    let options = PublisherOptions {
        max_bytes_in_flight: one as u32 * 10,
        ..options()
    };
    let (sender, mut updates, publisher) = PublishLoop::new(channel, options);
    let publisher = tokio::spawn(publisher.run());
    for tag in 0..10 {
        sender.send(&event_of_device(tag % 10), tag).await.unwrap();
    }
    let next = event_of_device(9);
    let mut eleventh = std::pin::pin!(sender.send(&next, 10));
    for _ in 0..50 {
        let update = timeout(TEST_TIMEOUT, updates.recv()).await.unwrap();
        assert!(matches!(update, Some(Update::Deferred(_))), "{update:?}");
        assert!(eleventh.as_mut().now_or_never().is_none());
    }
    let rejections: u32 = server.overloaded.lock().unwrap().values().sum();
    assert!(rejections >= 50, "they are sent again: {rejections}");
    publisher.abort();
    assert!(eleventh.await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn disconnects_between_temporary_rejections_lose_and_reorder_nothing(
        plan in prop::collection::vec(any_fault(), 0..40),
        count in 1u64..60,
    ) {
        let server = FaultyServer {
            overload: Some(sometimes),
            ..FaultyServer::with_plan(plan)
        };
        let published = runtime().block_on(async {
            let running = Running::start_on_free_port(server.clone()).unwrap();
            let events = (0..count).map(event_of_device);
            publish_events(running.address, one_at_a_time(), events).await
        });
        published.result.unwrap();
        let first = first_of_each(&accepted(&server));
        for device in 0..DEVICES {
            let expect: Vec<_> = (device..count).step_by(DEVICES as usize).collect();
            prop_assert_eq!(of_device(&first, device), expect);
        }
        prop_assert_eq!(published.acked.len() as u64, count);
    }

    #[test]
    fn requests_in_flight_at_a_disconnect_are_accepted_with_those_deferred(
        plan in prop::collection::vec(any_fault(), 0..40),
        count in 1u64..60,
        max_batch_events in 1usize..8,
    ) {
        let server = FaultyServer {
            overload: Some(sometimes),
            ..FaultyServer::with_plan(plan)
        };
        let options = PublisherOptions { max_batch_events, ..options() };
        let published = runtime().block_on(async {
            let running = Running::start_on_free_port(server.clone()).unwrap();
            let events = (0..count).map(event_of_device);
            publish_events(running.address, options, events).await
        });
        published.result.unwrap();
        let mut first = first_of_each(&accepted(&server));
        first.sort_unstable();
        prop_assert_eq!(first, (0..count).collect::<Vec<_>>());
        let mut tags: Vec<_> = published.acked.iter().map(|(tag, _)| *tag).collect();
        tags.sort_unstable();
        prop_assert_eq!(tags, (0..count).collect::<Vec<_>>(), "each is answered once");
    }
}
