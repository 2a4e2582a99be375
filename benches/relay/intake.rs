//! The least that taking events takes with tonic: a server that counts the events of a
//! request, appends its bytes to a file, and answers once that is synced. It reads,
//! checks, and delivers nothing.

mod log;
mod opaque;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use siem_client::v1::{PublishResponse, PublishStreamResponse, publish_stream_response::Outcome};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService},
    transport::{Server, server::TcpIncoming},
};
use tower::service_fn;

use self::{log::Log, opaque::Opaque};
use super::{Failure, process::Orders};

/// Requests of one stream that wait for a sync.
const UNANSWERED: usize = 256;
const MOST_MESSAGE_BYTES: usize = 8 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where the file is: on the disk to be measured.
    pub folder: PathBuf,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    pub address: SocketAddr,
}

/// Says first where it listens, and serves until the process that measures is gone.
pub fn run(plan: Plan) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let intake = Intake {
            log: Log::create(&plan.folder)?,
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = Server::builder()
            .add_service(intake)
            .serve_with_incoming(incoming);
        let mut orders = Orders::new();
        orders.answer(&Ready { address }).await?;
        tokio::select! {
            ended = serving => Ok(ended?),
            gone = orders.next::<()>() => gone.map(|_| ()),
        }
    })
}

/// In the place of the service's EventService.
#[derive(Clone)]
struct Intake {
    log: Log,
}

impl NamedService for Intake {
    const NAME: &'static str = "siem.v1.EventService";
}

impl Service<http::Request<Body>> for Intake {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let log = self.log.clone();
        Box::pin(async move {
            Ok(match request.uri().path().ends_with("/PublishStream") {
                true => stream(log, request).await,
                false => publish(log, request).await,
            })
        })
    }
}

async fn publish(log: Log, request: http::Request<Body>) -> http::Response<Body> {
    let take = service_fn(move |request: Request<Bytes>| {
        let log = log.clone();
        async move { Ok(Response::new(take(&log, request.into_inner()).await?)) }
    });
    let mut grpc = Grpc::new(Opaque::default()).max_decoding_message_size(MOST_MESSAGE_BYTES);
    grpc.unary(take, request).await
}

type Answers = Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

async fn stream(log: Log, request: http::Request<Body>) -> http::Response<Body> {
    let take_all = service_fn(move |requests: Request<Streaming<Bytes>>| {
        let log = log.clone();
        let answers = requests.into_inner().map(move |request| {
            let log = log.clone();
            async move {
                Ok(PublishStreamResponse {
                    outcome: Some(Outcome::Result(take(&log, request?).await?)),
                    ..PublishStreamResponse::default()
                })
            }
        });
        let answers: Answers = Box::pin(answers.buffered(UNANSWERED));
        std::future::ready(Ok::<_, Status>(Response::new(answers)))
    });
    let mut grpc = Grpc::new(Opaque::default()).max_decoding_message_size(MOST_MESSAGE_BYTES);
    grpc.streaming(take_all, request).await
}

async fn take(log: &Log, request: Bytes) -> Result<PublishResponse, Status> {
    let accepted = events(request.clone())?;
    log.append(request).await?;
    Ok(PublishResponse {
        accepted,
        ..PublishResponse::default()
    })
}

/// How many there are: each is a tag of one byte, a length, and so many bytes.
fn events(mut request: Bytes) -> Result<u32, Status> {
    let mut events = 0;
    while request.has_remaining() {
        request.advance(1);
        let length = prost::decode_length_delimiter(&mut request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if length > request.remaining() {
            return Err(Status::invalid_argument("an event is cut off"));
        }
        request.advance(length);
        events += 1;
    }
    Ok(events)
}
