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
        let (chunks, received) = mpsc::unbounded_channel();
        let mut request = None;
        let keep = tower::service_fn(|incoming: Request<tonic::body::Body>| {
            request = Some(incoming);
            std::future::ready(Ok::<_, ()>(Answer::default()))
        });
        let mut service = layer.layer(keep);
        let body = tonic::body::Body::new(Chunks(received));
        let sent = Request::builder().uri(path).header("grpc-encoding", "gzip");
        let sent = sent.body(body).unwrap();
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
                .map(|permit| permit.num_permits())
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
    assert_eq!(permit.num_permits(), 60_000);
    drop(permit);
    assert_eq!(second.all().await, message(50_000));
    let budget = layer.event_service.budget.as_ref().unwrap();
    assert_eq!(budget.messages.available_permits(), 50_000);
    assert_eq!(
        budget.compressed.available_permits(),
        COMPRESSED_BUDGET_BYTES
    );
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

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_not_cut_off() {
    let layer = layer(100, 100);
    let (chunks, mut slow) = Incoming::new(&layer, STREAM);
    let client = async {
        for byte in message(20) {
            sleep(Duration::from_secs(9)).await;
            chunks.send(Bytes::copy_from_slice(&[byte])).unwrap();
        }
        drop(chunks);
    };
    let ((), received) = tokio::join!(client, slow.all());
    assert_eq!(received, message(20));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_its_end_releases_its_permits() {
    let layer = layer(100, 100);
    let (open, mut whole) = Incoming::new(&layer, UNARY);
    open.send(message(100).into()).unwrap();
    let status = whole.fails().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
}
