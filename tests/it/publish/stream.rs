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
use crate::harness::{Api, Load, TestEnv, check_complete, event, read_events, with_timeout};

/// An open PublishStream.
struct Publishing {
    requests: mpsc::Sender<PublishStreamRequest>,
    answers: Streaming<PublishStreamResponse>,
}

impl Publishing {
    async fn start(api: &Api) -> Self {
        let (requests, waiting) = mpsc::channel(4);
        let mut client = api.events();
        let stream = client.publish_stream(ReceiverStream::new(waiting));
        let answers = with_timeout("PublishStream", stream)
            .await
            .unwrap()
            .into_inner();
        Self { requests, answers }
    }

    async fn send(&self, request_id: &str, events: Vec<v1::Event>) {
        let request = PublishStreamRequest {
            request_id: request_id.to_owned(),
            events,
        };
        with_timeout("capacity", self.requests.send(request))
            .await
            .unwrap();
    }

    async fn answer(&mut self) -> Result<(String, Outcome), Status> {
        let answer = with_timeout("an answer", self.answers.message()).await?;
        let answer = answer.expect("the stream continues");
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
async fn answers_arrive_in_request_order() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    let mut load = Load::new("acme", 10, 40);
    let mut stream = Publishing::start(&env.api).await;
    for n in 0..300 {
        let events = load.events(n % 7);
        stream.send(&format!("request-{n}"), events).await;
    }
    for n in 0..300 {
        let answer = stream.answer().await.unwrap();
        assert_eq!(answer, (format!("request-{n}"), accepted(n % 7)));
    }
    drop(stream.requests);
    let end = with_timeout("the end", stream.answers.message())
        .await
        .unwrap();
    assert!(end.is_none(), "the server ends after the client has");
    let all = load.made.len();
    let arrived = read_events(&env.aws, &customer.stream_arn, all).await;
    assert_eq!(arrived.len(), all);
    let ordered = check_complete(&arrived, &integration.integration_id, &load.made);
    // Requests of one stream are accepted in order.
    let numbers: Vec<u32> = ordered.iter().map(|event| event.number).collect();
    assert!(numbers.is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_request_is_answered_and_the_stream_continues() {
    let env = TestEnv::start().await;
    env.customer("acme").await;
    let mut stream = Publishing::start(&env.api).await;
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
    let counts = env.api.until_delivered("acme").await;
    assert_eq!(counts.accepted, 4);
}

fn code(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Error(status) => {
            assert!(!status.details.is_empty(), "{status:?}");
            Code::from_i32(status.code)
        }
        Outcome::Result(result) => panic!("{result:?}"),
    }
}

/// A client that does not read its answers may block itself, but no other client.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_answers_blocks_nobody() {
    let env = TestEnv::with(&[("publish-bytes-in-flight", "16777216")]).await;
    env.customer("acme").await;
    let Publishing { requests, answers } = Publishing::start(&env.api).await;
    // Rejections make answers large, so that the flow-control window is soon full.
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
    let mut unchanged = 0;
    let mut before = 0;
    while unchanged < 200 {
        env.api.publish(&[event("acme")]).await;
        let now = sent.load(Ordering::Relaxed);
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
    }
    assert!(before > 0);
    drop(answers);
    sender.abort();
}
