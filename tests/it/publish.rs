//! Publish, PublishStream and `siem-relay publish`.

mod eve;
mod follow;
mod stream;

use prost::Message as _;
use siem_client::v1::{self, ErrorReason, event::Payload};
use tonic::Code;

use crate::harness::{Load, TestEnv, detection, event, framed, read_events, reason};

/// Device and network of published EVE files.
const DEVICE: &str = "7d444840-9dc0-41d1-b245-5ffdce74fad2";
const NETWORK: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

/// An event with a record of about this size.
fn sized(bytes: usize) -> v1::Event {
    let filler = "x".repeat(bytes - 1_000);
    let detection = v1::IdsDetection {
        context_json: format!(r#"{{"filler":"{filler}"}}"#),
        ..detection(1)
    };
    v1::Event {
        payload: Some(Payload::IdsDetection(detection)),
        ..event("acme")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_at_most_1000_events() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut load = Load::new("acme", 5, 30);
    let status = env.api.try_publish(load.events(1001)).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status), "TOO_MANY_EVENTS");
    let mut load = Load::new("acme", 5, 31);
    env.api.publish(&load.events(1000)).await;
    read_events(&env.aws, &customer.stream_arn, 1000).await;
    let counts = env.api.until_delivered("acme").await;
    assert_eq!(counts.accepted, 1000, "the refused request added nothing");
    let none = env.api.try_publish(Vec::new()).await.unwrap();
    assert_eq!(none, v1::PublishResponse::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_at_most_4_mib() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let five: Vec<v1::Event> = (0..5).map(|_| sized(1 << 20)).collect();
    let status = env.api.try_publish(five.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status), "REQUEST_TOO_LARGE");
    let four: Vec<v1::Event> = (0..4).map(|_| sized(1_000_000)).collect();
    let answer = env.api.try_publish(four.clone()).await.unwrap();
    assert_eq!((answer.accepted, answer.rejections.len()), (4, 0));
    let arrived = read_events(&env.aws, &customer.stream_arn, 4).await;
    assert!(
        arrived
            .iter()
            .all(|event| event.record.data.len() > 990_000)
    );
    // A request over the transport's limit is refused, and the server continues.
    let ten: Vec<v1::Event> = (0..10).map(|_| sized(1 << 20)).collect();
    assert!(env.api.try_publish(ten.clone()).await.is_err());
    env.api.until_delivered("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_for_a_record_is_rejected_alone() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut events = Load::new("acme", 1, 32).events(2);
    events.insert(1, sized(1_153_434));
    let answer = env.api.try_publish(events.clone()).await.unwrap();
    assert_eq!(answer.accepted, 2);
    assert_eq!(answer.rejections.len(), 1);
    let rejection = &answer.rejections[0];
    assert_eq!(rejection.index, 1);
    assert_eq!(rejection.reason(), ErrorReason::RecordTooLarge);
    assert!(!rejection.message.is_empty());
    let arrived = read_events(&env.aws, &customer.stream_arn, 2).await;
    assert_eq!(arrived[1].sequence, 2, "a rejected event leaves no hole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_at_most_1_mib_with_its_key() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    // Finds the limit by bisection.
    let (mut fits, mut too_large) = (1 << 19, 1 << 21);
    while fits + 1 < too_large {
        let size = (fits + too_large) / 2;
        let answer = env.api.try_publish(vec![sized(size)]).await.unwrap();
        match answer.accepted {
            1 => fits = size,
            _ => too_large = size,
        }
    }
    let counts = env.api.until_delivered("acme").await;
    let all = read_events(&env.aws, &customer.stream_arn, counts.accepted as usize).await;
    let largest = all.iter().map(|event| event.record.data.len() + 36).max();
    assert_eq!(
        largest,
        Some(1 << 20),
        "the limit is AWS' own, key included"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_an_integration_are_counted_and_not_kept() {
    let env = TestEnv::start().await;
    env.customer("acme").await;
    let mut events = Load::new("ghost", 1, 33).events(3);
    events.extend(Load::new("acme", 1, 34).events(2));
    events.push(event("also-nobody"));
    let answer = env.api.try_publish(events.clone()).await.unwrap();
    assert_eq!((answer.accepted, answer.unconfigured), (2, 4));
    assert_eq!(answer.rejections, []);
    // A malformed event is rejected even without an integration.
    let bad = v1::Event {
        device_id: "no".to_owned(),
        ..event("ghost")
    };
    let answer = env.api.try_publish(vec![bad]).await.unwrap();
    assert_eq!((answer.unconfigured, answer.rejections.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rejection_names_index_and_field() {
    let env = TestEnv::start().await;
    env.customer("acme").await;
    let good = || event("acme");
    let with = |change: fn(&mut v1::IdsDetection)| {
        let mut detection = detection(1);
        change(&mut detection);
        v1::Event {
            payload: Some(Payload::IdsDetection(detection)),
            ..good()
        }
    };
    let bad = [
        (
            "organization_id",
            v1::Event {
                organization_id: String::new(),
                ..good()
            },
        ),
        (
            "network_id",
            v1::Event {
                network_id: "7".to_owned(),
                ..good()
            },
        ),
        (
            "device_id",
            v1::Event {
                device_id: String::new(),
                ..good()
            },
        ),
        (
            "observed_time",
            v1::Event {
                observed_time: None,
                ..good()
            },
        ),
        (
            "event_id",
            v1::Event {
                event_id: Some("x".to_owned()),
                ..good()
            },
        ),
        (
            "payload",
            v1::Event {
                payload: None,
                ..good()
            },
        ),
        (
            "ids_detection.src_ip",
            with(|detection| detection.src_ip = "300.1.1.1".to_owned()),
        ),
        (
            "ids_detection.dest_port",
            with(|detection| detection.dest_port = Some(65_536)),
        ),
        (
            "ids_detection.context_json",
            with(|detection| detection.context_json = "[1]".to_owned()),
        ),
    ];
    let mut events = Vec::new();
    for (_, bad) in &bad {
        events.push(good());
        events.push(bad.clone());
    }
    let mut request = v1::PublishRequest { events }.encode_to_vec();
    let malformed = b"\xff\xff not protobuf";
    // Field 1 of PublishRequest, with its length.
    request.extend([0x0a, malformed.len() as u8]);
    request.extend(malformed);
    let answer = env
        .api
        .raw("siem.v1.EventService/Publish", None, framed(0, &request))
        .await;
    let answer: v1::PublishResponse = answer.message();
    assert_eq!(answer.accepted as usize, bad.len());
    let rejected: Vec<(u32, &str)> = answer
        .rejections
        .iter()
        .map(|rejection| (rejection.index, rejection.field.as_str()))
        .collect();
    let mut expected: Vec<(u32, &str)> = bad
        .iter()
        .zip(0..)
        .map(|((field, _), n)| (2 * n + 1, *field))
        .collect();
    expected.push((2 * bad.len() as u32, ""));
    assert_eq!(rejected, expected);
    let (malformed, rest) = answer.rejections.split_last().unwrap();
    assert_eq!(malformed.reason(), ErrorReason::MalformedEvent);
    assert!(
        rest.iter()
            .all(|rejection| rejection.reason() == ErrorReason::InvalidField)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_keeps_one_value_per_key_and_rejects_lone_surrogates() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let with = |context: &str| v1::Event {
        payload: Some(Payload::IdsDetection(v1::IdsDetection {
            context_json: context.to_owned(),
            ..detection(1)
        })),
        ..event("acme")
    };
    let events = [
        with(r#"{"a":1,"n":{"k":1.0,"l":[{"x":1,"x":2}],"k":2.0},"a":3}"#),
        with(r#"{"url":"/\ud83d"}"#),
    ];
    let answer = env.api.try_publish(events.to_vec()).await.unwrap();
    assert_eq!(answer.accepted, 1);
    let message = &answer.rejections[0].message;
    assert!(
        message.contains("lone surrogate") && message.contains("at byte 9"),
        "{message}"
    );
    let arrived = read_events(&env.aws, &customer.stream_arn, 1).await;
    let text = str::from_utf8(&arrived[0].record.data).unwrap();
    let expected = r#""context":{"n":{"l":[{"x":2}],"k":2.0},"a":3}"#;
    assert!(text.contains(expected), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_detection_has_the_same_id() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    env.api.publish(&[event("acme"), event("acme")]).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 2).await;
    assert_eq!(arrived[0].id, arrived[1].id);
    assert_eq!(arrived[0].id.get_version_num(), 5);
    assert_ne!(arrived[0].sequence, arrived[1].sequence);
}
