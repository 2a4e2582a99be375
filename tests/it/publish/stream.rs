//! PublishStream.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use siem_client::v1::{
    self, PublishResponse, PublishStreamRequest, PublishStreamResponse,
    publish_stream_response::Outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::sized;
use crate::harness::{Api, Load, World, arrive, check_whole, event, within};

/// A stream: what is sent goes to the server as it is sent.
struct Publishing {
    requests: mpsc::Sender<PublishStreamRequest>,
    answers: Streaming<PublishStreamResponse>,
}

impl Publishing {
    async fn start(api: &Api) -> Self {
        let (requests, waiting) = mpsc::channel(4);
        let mut client = api.events();
        let stream = client.publish_stream(ReceiverStream::new(waiting));
        let answers = within("PublishStream", stream).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn send(&self, request_id: &str, events: Vec<v1::Event>) {
        let request = PublishStreamRequest {
            request_id: request_id.to_owned(),
            events,
        };
        within("room", self.requests.send(request)).await.unwrap();
    }

    async fn answer(&mut self) -> Result<(String, Outcome), Status> {
        let answer = within("an answer", self.answers.message()).await?;
        let answer = answer.expect("the stream goes on");
        Ok((answer.request_id, answer.outcome.unwrap()))
    }
}

fn accepted(count: u32) -> Outcome {
    Outcome::Result(PublishResponse {
        accepted: count,
        ..PublishResponse::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_in_order_with_many_in_flight() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    let mut load = Load::new("acme", 10, 40);
    let mut stream = Publishing::start(&world.api).await;
    for n in 0..300 {
        let events = load.events(n % 7);
        stream.send(&format!("request-{n}"), events).await;
    }
    for n in 0..300 {
        let answer = stream.answer().await.unwrap();
        assert_eq!(answer, (format!("request-{n}"), accepted(n % 7)));
    }
    drop(stream.requests);
    let end = within("the end", stream.answers.message()).await.unwrap();
    assert!(end.is_none(), "the server ends after the client has");
    let all = load.made.len();
    let arrived = arrive(&world.aws, &customer.stream_arn, all).await;
    assert_eq!(arrived.len(), all);
    let ordered = check_whole(&arrived, &integration.integration_id, &load.made);
    // Requests of one stream are taken in their order.
    let numbers: Vec<u32> = ordered.iter().map(|one| one.number).collect();
    assert!(numbers.is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_is_told_and_the_stream_goes_on() {
    let world = World::start().await;
    world.customer("acme").await;
    let mut stream = Publishing::start(&world.api).await;
    let many = vec![event("acme"); 1001];
    let large = (0..5).map(|_| sized(1 << 20)).collect();
    let one = || vec![event("acme")];
    stream.send("first", one()).await;
    stream.send("many", many).await;
    stream.send("between", one()).await;
    stream.send("large", large).await;
    stream.send(&"x".repeat(129), one()).await;
    stream.send(&"y".repeat(128), one()).await;
    stream
        .send("mixed", vec![event("acme"), event("ghost"), event("")])
        .await;

    assert_eq!(
        stream.answer().await.unwrap(),
        ("first".to_owned(), accepted(1))
    );
    let (id, outcome) = stream.answer().await.unwrap();
    assert_eq!(
        (id.as_str(), code(outcome)),
        ("many", Code::InvalidArgument)
    );
    assert_eq!(
        stream.answer().await.unwrap(),
        ("between".to_owned(), accepted(1))
    );
    let (id, outcome) = stream.answer().await.unwrap();
    assert_eq!(
        (id.as_str(), code(outcome)),
        ("large", Code::InvalidArgument)
    );
    let (_, outcome) = stream.answer().await.unwrap();
    assert_eq!(code(outcome), Code::InvalidArgument);
    assert_eq!(
        stream.answer().await.unwrap(),
        ("y".repeat(128), accepted(1))
    );
    let (id, outcome) = stream.answer().await.unwrap();
    assert_eq!(id, "mixed");
    let Outcome::Result(mixed) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!((mixed.accepted, mixed.unconfigured), (1, 1));
    assert_eq!(mixed.rejections[0].index, 2);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!(counts.accepted, 4);
}

fn code(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Error(status) => {
            assert!(!status.details.is_empty(), "it says why");
            Code::from_i32(status.code)
        }
        Outcome::Result(result) => panic!("{result:?}"),
    }
}

/// A client that sends and does not read its answers may stop itself, but nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_answers_blocks_nobody() {
    let world = World::with(&[("publish-bytes-in-flight", "16777216")]).await;
    world.customer("acme").await;
    let Publishing { requests, answers } = Publishing::start(&world.api).await;
    // Rejections make answers large, so that soon no further one can be sent.
    let mut events = vec![event(""); 900];
    events.extend(vec![sized(1_000_000), sized(1_000_000), sized(1_000_000)]);
    let request = PublishStreamRequest {
        request_id: "never read".to_owned(),
        events,
    };
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let sender = tokio::spawn(async move {
        while requests.send(request.clone()).await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut standing_still = 0;
    let mut before = 0;
    while standing_still < 200 {
        world.api.publish(&[event("acme")]).await;
        let now = sent.load(Ordering::Relaxed);
        standing_still = if now == before { standing_still + 1 } else { 0 };
        before = now;
    }
    assert!(before > 0);
    drop(answers);
    sender.abort();
}
