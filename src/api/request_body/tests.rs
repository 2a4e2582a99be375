use std::{future::poll_fn, io::Write as _};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tokio::sync::mpsc;
use tonic::Code;

use super::*;

/// A body whose chunks come from a channel.
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

/// A request as its handler sees it.
struct Incoming {
    body: tonic::body::Body,
    rooms: Rooms,
}

impl Incoming {
    fn new(intake: &Intake, path: &str) -> (mpsc::UnboundedSender<Bytes>, Self) {
        let (chunks, received) = mpsc::unbounded_channel();
        let mut request = None;
        let keep = tower::service_fn(|incoming: Request<tonic::body::Body>| {
            request = Some(incoming);
            std::future::ready(Ok::<_, ()>(Answer::default()))
        });
        let mut service = intake.layer(keep);
        let body = tonic::body::Body::new(Chunks(received));
        let sent = Request::builder().uri(path).header("grpc-encoding", "gzip");
        let sent = sent.body(body).unwrap();
        let _called = service.call(sent);
        drop(service);
        let request = request.unwrap();
        let rooms = request.extensions().get::<Rooms>().unwrap().clone();
        let body = request.into_body();
        (chunks, Self { body, rooms })
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

/// A message that takes as many bytes, and what they are compressed to.
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
    fn passes_every_byte_however_it_is_cut(
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
        let (received, rooms) = runtime.block_on(async {
            let (chunks, mut incoming) = Incoming::new(&Intake::new(1 << 20, 300), STREAM);
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
            let rooms: Vec<usize> = std::iter::from_fn(|| incoming.rooms.next())
                .map(|room| room.num_permits())
                .collect();
            (received, rooms)
        });
        prop_assert_eq!(received, wanted);
        prop_assert_eq!(rooms, lengths);
    }
}

#[tokio::test(start_paused = true)]
async fn reads_on_only_once_there_is_room() {
    let intake = Intake::new(100, 100);
    let (first_chunks, mut first) = Incoming::new(&intake, STREAM);
    first_chunks.send(message(60).into()).unwrap();
    drop(first_chunks);
    assert_eq!(first.all().await, message(60));
    let (chunks, mut second) = Incoming::new(&intake, STREAM);
    chunks.send(message(50).into()).unwrap();
    let waits = tokio::time::timeout(Duration::from_secs(3600), second.next()).await;
    assert!(waits.is_err(), "not even the prefix is handed on");
    drop(first.rooms.next().unwrap());
    assert_eq!(second.next().await.unwrap().unwrap(), message(50)[..5]);
    assert_eq!(second.next().await.unwrap().unwrap(), message(50)[5..]);
}

#[tokio::test(start_paused = true)]
async fn a_compressed_message_waits_for_room_for_what_it_becomes() {
    let intake = Intake::new(100_000, 100_000);
    let (first_chunks, mut first) = Incoming::new(&intake, STREAM);
    first_chunks.send(compressed(60_000).into()).unwrap();
    drop(first_chunks);
    assert_eq!(first.all().await, message(60_000));
    let (chunks, mut second) = Incoming::new(&intake, STREAM);
    assert!(compressed(50_000).len() < 40_000, "it has room as it comes");
    chunks.send(compressed(50_000).into()).unwrap();
    drop(chunks);
    let waits = tokio::time::timeout(Duration::from_secs(3600), second.next()).await;
    assert!(waits.is_err(), "not even the prefix is handed on");
    let room = first.rooms.next().unwrap();
    assert_eq!(room.num_permits(), 60_000);
    drop(room);
    assert_eq!(second.all().await, message(50_000));
    let memory = intake.memory.as_ref().unwrap();
    assert_eq!(memory.messages.available_permits(), 50_000);
    assert_eq!(memory.compressed.available_permits(), COMPRESSED_BYTES);
}

#[tokio::test(start_paused = true)]
async fn compressed_messages_that_wait_let_others_by() {
    let intake = Intake::new(100, 100);
    // Each has come whole, and waits for all there is.
    let (chunks, mut holder) = Incoming::new(&intake, STREAM);
    chunks.send(message(100).into()).unwrap();
    holder.next().await.unwrap().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (chunks, mut incoming) = Incoming::new(&intake, STREAM);
            chunks.send(compressed(100).into()).unwrap();
            drop(chunks);
            tokio::spawn(async move {
                let all = incoming.all().await;
                drop(incoming.rooms.next());
                all
            })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(holder.rooms.next());
    for one in waiting {
        assert_eq!(one.await.unwrap(), message(100));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_no_stream_is_refused_after_a_while() {
    let intake = Intake::new(100, 100);
    let (chunks, mut first) = Incoming::new(&intake, UNARY);
    chunks.send(message(60).into()).unwrap();
    drop(chunks);
    first.all().await;
    let (chunks, mut second) = Incoming::new(&intake, UNARY);
    chunks.send(message(50).into()).unwrap();
    let status = second.fails().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn who_begins_a_message_and_stops_gives_the_room_back() {
    let intake = Intake::new(100, 100);
    let (stalled, mut first) = Incoming::new(&intake, STREAM);
    stalled.send(message(100)[..50].to_vec().into()).unwrap();
    let status = first.fails().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    drop(first);
    let (chunks, mut second) = Incoming::new(&intake, UNARY);
    chunks.send(message(100).into()).unwrap();
    drop(chunks);
    assert_eq!(second.all().await, message(100));
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_heard_to_the_end() {
    let intake = Intake::new(100, 100);
    let (chunks, mut slow) = Incoming::new(&intake, STREAM);
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
async fn a_request_whose_end_does_not_come_gives_the_room_back() {
    let intake = Intake::new(100, 100);
    let (open, mut whole) = Incoming::new(&intake, UNARY);
    open.send(message(100).into()).unwrap();
    let status = whole.fails().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
}
