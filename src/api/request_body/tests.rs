use std::{future::poll_fn, io::Write as _};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tokio::sync::mpsc;
use tonic::Code;

use super::*;

/// Body whose chunks are received from a channel.
struct Chunks(mpsc::UnboundedReceiver<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let chunk = ready!(self.0.poll_recv(cx));
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// Request as its handler receives it.
struct Incoming {
    body: tonic::body::Body,
    permits: MemoryPermits,
}

impl Incoming {
    fn new(layer: &RequestBodyLayer, path: &str) -> (mpsc::UnboundedSender<Bytes>, Self) {
        Self::of(layer, path, CallerKey::Unknown)
    }

    fn of(
        layer: &RequestBodyLayer,
        path: &str,
        caller: CallerKey,
    ) -> (mpsc::UnboundedSender<Bytes>, Self) {
        let (chunks, received) = mpsc::unbounded_channel();
        let mut request = None;
        let keep = tower::service_fn(|incoming: Request<tonic::body::Body>| {
            request = Some(incoming);
            std::future::ready(Ok::<_, ()>(Answer::default()))
        });
        let mut service = layer.layer(keep);
        let body = tonic::body::Body::new(Chunks(received));
        let sent = Request::builder().uri(path).header("grpc-encoding", "gzip");
        let mut sent = sent.body(body).unwrap();
        sent.extensions_mut().insert(caller);
        let _called = service.call(sent);
        drop(service);
        let request = request.unwrap();
        let permits = request.extensions().get::<MemoryPermits>().unwrap().clone();
        let body = request.into_body();
        (chunks, Self { body, permits })
    }

    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    async fn all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        all
    }

    async fn fails(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await.expect("an error before the end") {
                return status;
            }
        }
    }
}

const UNARY: &str = "/siem.v1.EventService/Publish";
const STREAM: &str = "/siem.v1.EventService/PublishStream";

/// Layer with a budget for EventService, and the limit of one message.
fn layer(budget_bytes: usize, max_message: usize) -> RequestBodyLayer {
    RequestBodyLayer::new(budget_bytes, max_message, 1)
}

/// Compressed message of `length` bytes before compression.
fn compressed(length: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&message(length)[PREFIX_BYTES..]).unwrap();
    let bytes = encoder.finish().unwrap();
    let mut message = vec![1];
    message.extend((bytes.len() as u32).to_be_bytes());
    message.extend(bytes);
    message
}

fn message(length: usize) -> Vec<u8> {
    let mut message = vec![0];
    message.extend((length as u32).to_be_bytes());
    message.resize(PREFIX_BYTES + length, 7);
    message
}

proptest! {
    #[test]
    fn passes_on_every_byte_whatever_the_frames(
        messages in prop::collection::vec((0_usize..300, any::<bool>()), 0..20),
        cuts in prop::collection::vec(1_usize..40, 1..200),
    ) {
        let lengths: Vec<usize> = messages.iter().map(|(length, _)| *length).collect();
        let wanted: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
        let sent: Vec<u8> = messages
            .into_iter()
            .flat_map(|(length, is_compressed)| match is_compressed {
                true => compressed(length),
                false => message(length),
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (received, permits) = runtime.block_on(async {
            let (chunks, mut incoming) = Incoming::new(&layer(1 << 20, 300), STREAM);
            let mut rest = &sent[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, others) = rest.split_at(rest.len().min(*cut));
                chunks.send(Bytes::copy_from_slice(chunk)).unwrap();
                rest = others;
            }
            drop(chunks);
            let received = incoming.all().await;
            let permits: Vec<usize> = std::iter::from_fn(|| incoming.permits.next())
                .map(|permit| permit.bytes())
                .collect();
            (received, permits)
        });
        prop_assert_eq!(received, wanted);
        prop_assert_eq!(permits, lengths);
    }
}

#[tokio::test(start_paused = true)]
async fn waits_for_permits_before_it_passes_a_message_on() {
    let layer = layer(100, 100);
    let (first_chunks, mut first) = Incoming::new(&layer, STREAM);
    first_chunks.send(message(60).into()).unwrap();
    drop(first_chunks);
    assert_eq!(first.all().await, message(60));
    let (chunks, mut second) = Incoming::new(&layer, STREAM);
    chunks.send(message(50).into()).unwrap();
    let waits = tokio::time::timeout(Duration::from_secs(3600), second.next()).await;
    assert!(waits.is_err(), "not even the prefix is passed on");
    drop(first.permits.next().unwrap());
    assert_eq!(second.next().await.unwrap().unwrap(), message(50)[..5]);
    assert_eq!(second.next().await.unwrap().unwrap(), message(50)[5..]);
}

#[tokio::test(start_paused = true)]
async fn a_compressed_message_waits_for_permits_of_its_decompressed_length() {
    let layer = layer(100_000, 100_000);
    let (first_chunks, mut first) = Incoming::new(&layer, STREAM);
    first_chunks.send(compressed(60_000).into()).unwrap();
    drop(first_chunks);
    assert_eq!(first.all().await, message(60_000));
    let (chunks, mut second) = Incoming::new(&layer, STREAM);
    assert!(
        compressed(50_000).len() < 40_000,
        "it fits while it is compressed"
    );
    chunks.send(compressed(50_000).into()).unwrap();
    drop(chunks);
    let waits = tokio::time::timeout(Duration::from_secs(3600), second.next()).await;
    assert!(waits.is_err(), "not even the prefix is passed on");
    let permit = first.permits.next().unwrap();
    assert_eq!(permit.bytes(), 60_000);
    drop(permit);
    assert_eq!(second.all().await, message(50_000));
    drop(second.body);
    let budget = layer.event_service.budget.as_ref().unwrap();
    assert_eq!(budget.available(), (100_000, 50_000));
}

#[tokio::test(start_paused = true)]
async fn waiting_compressed_messages_do_not_block_one_another() {
    let layer = layer(100, 100);
    // Each was received completely, and waits for the whole budget.
    let (chunks, mut holder) = Incoming::new(&layer, STREAM);
    chunks.send(message(100).into()).unwrap();
    holder.next().await.unwrap().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (chunks, mut incoming) = Incoming::new(&layer, STREAM);
            chunks.send(compressed(100).into()).unwrap();
            drop(chunks);
            tokio::spawn(async move {
                let all = incoming.all().await;
                drop(incoming.permits.next());
                all
            })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(holder.permits.next());
    for one in waiting {
        assert_eq!(one.await.unwrap(), message(100));
    }
}

#[tokio::test(start_paused = true)]
async fn a_unary_request_is_refused_when_it_has_waited_too_long() {
    let layer = layer(100, 100);
    let (chunks, mut first) = Incoming::new(&layer, UNARY);
    chunks.send(message(60).into()).unwrap();
    drop(chunks);
    first.all().await;
    let (chunks, mut second) = Incoming::new(&layer, UNARY);
    chunks.send(message(50).into()).unwrap();
    let status = second.fails().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_within_a_message_releases_its_permits() {
    let layer = layer(100, 100);
    let (stalled, mut first) = Incoming::new(&layer, STREAM);
    stalled.send(message(100)[..50].to_vec().into()).unwrap();
    let status = first.fails().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    drop(first);
    let (chunks, mut second) = Incoming::new(&layer, UNARY);
    chunks.send(message(100).into()).unwrap();
    drop(chunks);
    assert_eq!(second.all().await, message(100));
}

/// Sends a message in pieces, one each 2 s.
async fn send_slowly(chunks: mpsc::UnboundedSender<Bytes>, message: Vec<u8>, piece: usize) {
    for piece in message.chunks(piece) {
        let _refused = chunks.send(Bytes::copy_from_slice(piece));
        sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_must_send_at_a_minimum_rate() {
    const LENGTH: usize = 1 << 20;
    let layer = layer(LENGTH, LENGTH);
    for path in [UNARY, STREAM] {
        let (chunks, mut fast) = Incoming::new(&layer, path);
        let sent = send_slowly(chunks, message(LENGTH), 17 << 10);
        let ((), received) = tokio::join!(sent, fast.all());
        assert_eq!(received, message(LENGTH));
        let (chunks, mut slow) = Incoming::new(&layer, path);
        let start = Instant::now();
        let sent = send_slowly(chunks, message(LENGTH), 10 << 10);
        let (_, status) = tokio::join!(sent, slow.fails());
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(start.elapsed() >= RECEIVE_PERIOD);
        drop((fast, slow));
        let budget = layer.event_service.budget.as_ref().unwrap();
        assert_eq!(budget.available(), (LENGTH, LENGTH));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_message_yields_to_those_that_wait() {
    const LENGTH: usize = 1 << 20;
    let layer = layer(LENGTH, LENGTH);
    // It fills its caller's share, and is favoured for the rest.
    let (chunks, mut slow) = Incoming::new(&layer, STREAM);
    let slowly = send_slowly(chunks, message(LENGTH), 60 << 10);
    let next = async {
        sleep(Duration::from_secs(25)).await;
        let (chunks, mut next) = Incoming::new(&layer, STREAM);
        for frame in message(LENGTH / 2).chunks(1000) {
            chunks.send(Bytes::copy_from_slice(frame)).unwrap();
        }
        let start = Instant::now();
        drop(chunks);
        assert_eq!(next.all().await, message(LENGTH / 2));
        assert!(start.elapsed() <= RECEIVE_PERIOD);
    };
    let failing = async {
        let status = slow.fails().await;
        drop(slow);
        status
    };
    let (_, status, ()) = tokio::join!(slowly, failing, next);
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn announced_bytes_that_are_not_sent_take_no_memory_from_others() {
    let layer = layer(1000, 1000);
    let mut idle = Vec::new();
    for _ in 0..100 {
        let (chunks, mut incoming) = Incoming::new(&layer, STREAM);
        chunks.send(message(1000)[..6].to_vec().into()).unwrap();
        let mut failing = Box::pin(async move { incoming.fails().await });
        assert!(futures_util::poll!(&mut failing).is_pending());
        idle.push((chunks, failing));
    }
    let (chunks, mut whole) = Incoming::new(&layer, UNARY);
    chunks.send(message(1000)[..500].to_vec().into()).unwrap();
    chunks.send(message(1000)[500..].to_vec().into()).unwrap();
    drop(chunks);
    assert_eq!(whole.all().await, message(1000));
    for (_chunks, failing) in idle {
        assert_eq!(failing.await.code(), Code::DeadlineExceeded);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_leaves_memory_to_others() {
    let layer = layer(1000, 100);
    let mut held = Vec::new();
    let of = |index: u8| CallerKey::Address([10, 0, 0, index].into());
    for _ in 0..7 {
        let (chunks, mut incoming) = Incoming::of(&layer, STREAM, of(1));
        chunks.send(message(100).into()).unwrap();
        drop(chunks);
        incoming.all().await;
        held.push(incoming);
    }
    let (chunks, mut refused) = Incoming::of(&layer, UNARY, of(1));
    chunks.send(message(100).into()).unwrap();
    assert_eq!(refused.fails().await.code(), Code::ResourceExhausted);
    let (chunks, mut other) = Incoming::of(&layer, UNARY, of(2));
    chunks.send(message(100).into()).unwrap();
    drop(chunks);
    assert_eq!(other.all().await, message(100));
}

/// A message of the property below: length, whether it is compressed, bytes of a frame, caller,
/// and the time until it is durable in ms.
type Sent = (usize, bool, usize, u8, u64);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Messages that are received at the same time, with far less memory than all of them need,
    /// are all received, and the memory is released.
    #[test]
    fn messages_never_wait_for_each_other(
        messages in prop::collection::vec(
            (0_usize..300, any::<bool>(), 1_usize..200, 0_u8..3, 0_u64..5_000),
            1..40,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let available = runtime.block_on(async {
            let layer = layer(400, 300);
            let all = messages.into_iter().map(|sent| receive(&layer, sent));
            let all = futures_util::future::join_all(all);
            let hour = Duration::from_secs(3600);
            tokio::time::timeout(hour, all).await.expect("all are received");
            layer.event_service.budget.as_ref().unwrap().available()
        });
        prop_assert_eq!(available, (300, 400));
    }
}

/// Sends a message and receives it, whatever the others do.
async fn receive(layer: &RequestBodyLayer, (length, is_gzip, frame, caller, durable): Sent) {
    let key = CallerKey::Address([10, 0, 0, caller].into());
    let (chunks, mut incoming) = Incoming::of(layer, STREAM, key);
    let sent = match is_gzip {
        true => compressed(length),
        false => message(length),
    };
    let client = async {
        for frame in sent.chunks(frame) {
            chunks.send(Bytes::copy_from_slice(frame)).unwrap();
            tokio::task::yield_now().await;
        }
        drop(chunks);
    };
    let ((), received) = tokio::join!(client, incoming.all());
    assert_eq!(received, message(length));
    let permit = incoming.permits.next().unwrap();
    assert_eq!(permit.bytes(), length);
    sleep(Duration::from_millis(durable)).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_without_its_end_releases_its_permits() {
    let layer = layer(100, 100);
    let (open, mut whole) = Incoming::new(&layer, UNARY);
    open.send(message(100).into()).unwrap();
    let status = whole.fails().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
}
