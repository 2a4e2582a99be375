//! Baseline of receiving (`intake`): a tonic server that counts the events of a request,
//! appends its bytes to a file, and answers once the file is synced. It neither validates
//! nor delivers events.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    thread,
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use siem_client::v1::{PublishResponse, PublishStreamResponse, publish_stream_response::Outcome};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService},
    transport::{Server, server::TcpIncoming},
};
use tower::service_fn;

use super::{
    Failure,
    codec::UndecodedRequests,
    loader,
    measure::Scope,
    process::{Child, Controller, Role},
    report::IntakeRun,
    workload::Workload,
};

/// Limit of requests of one stream that wait for a sync.
const STREAM_WINDOW: usize = 256;
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Length beyond which the file is written from its start again, as a write-ahead log is.
const FILE_BYTES: usize = 64 << 20;
/// Limit of requests that wait for the file's thread.
const APPEND_QUEUE: usize = 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Directory of the file, on the disk to be measured.
    pub folder: PathBuf,
}

/// Answer at the start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    pub address: SocketAddr,
}

/// Intake and a loader, as seen from the measuring process.
pub struct Intake {
    process: Child,
    loader: Child,
    _folder: tempfile::TempDir,
}

impl Intake {
    pub async fn start(workload: &Workload, scope: &Scope) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in(&scope.data_dir)?;
        let role = Role::Intake(Config {
            folder: folder.path().to_owned(),
        });
        let (process, Ready { address }) = Child::start(role).await?;
        let workload = workload.clone();
        let role = Role::Loader(loader::Config {
            addresses: vec![address],
            workload,
        });
        let (loader, loader::Ready { .. }) = Child::start(role).await?;
        Ok(Self {
            process,
            loader,
            _folder: folder,
        })
    }

    pub async fn run(&mut self, command: loader::Command) -> Result<IntakeRun, Failure> {
        let before = self.process.usage()?;
        let published: loader::Published = self.loader.call(&command).await?;
        let after = self.process.usage()?;
        if published.accepted == 0 || published.rejected + published.unconfigured > 0 {
            return Err(format!("the intake did not accept every event: {published:?}").into());
        }
        let events = published.accepted as f64;
        let nanos = published.last_nanos.saturating_sub(published.first_nanos);
        Ok(IntakeRun {
            events_per_second: events / (nanos as f64 / 1e9),
            cpu_per_million: (after.cpu_seconds - before.cpu_seconds) / (events / 1e6),
            ack: published.ack,
        })
    }
}

/// Serves until the measuring process has ended.
pub async fn run(config: Config) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = EventService {
        log: Log::create(&config.folder)?,
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    let mut controller = Controller::new();
    controller.answer(&Ready { address }).await?;
    tokio::select! {
        ended = serving => Ok(ended?),
        gone = controller.next::<()>() => gone.map(|_| ()),
    }
}

/// Replacement of the service's EventService.
#[derive(Clone)]
struct EventService {
    log: Log,
}

impl NamedService for EventService {
    const NAME: &'static str = "siem.v1.EventService";
}

impl Service<http::Request<Body>> for EventService {
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
                true => publish_stream(log, request).await,
                false => publish(log, request).await,
            })
        })
    }
}

async fn publish(log: Log, request: http::Request<Body>) -> http::Response<Body> {
    let handler = service_fn(move |request: Request<Bytes>| {
        let log = log.clone();
        async move { Ok(Response::new(accept(&log, request.into_inner()).await?)) }
    });
    let codec = UndecodedRequests::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE_BYTES);
    grpc.unary(handler, request).await
}

type Answers = Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

async fn publish_stream(log: Log, request: http::Request<Body>) -> http::Response<Body> {
    let handler = service_fn(move |requests: Request<Streaming<Bytes>>| {
        let log = log.clone();
        let answers = requests.into_inner().map(move |request| {
            let log = log.clone();
            async move {
                Ok(PublishStreamResponse {
                    outcome: Some(Outcome::Result(accept(&log, request?).await?)),
                    ..PublishStreamResponse::default()
                })
            }
        });
        let answers: Answers = Box::pin(answers.buffered(STREAM_WINDOW));
        std::future::ready(Ok::<_, Status>(Response::new(answers)))
    });
    let codec = UndecodedRequests::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE_BYTES);
    grpc.streaming(handler, request).await
}

async fn accept(log: &Log, request: Bytes) -> Result<PublishResponse, Status> {
    let accepted = count_events(request.clone())?;
    log.append(request).await?;
    Ok(PublishResponse {
        accepted,
        ..PublishResponse::default()
    })
}

/// Counts the events of a request: each is a tag of one byte, a length, and the event.
fn count_events(mut request: Bytes) -> Result<u32, Status> {
    let mut events = 0;
    while request.has_remaining() {
        request.advance(1);
        let length = prost::decode_length_delimiter(&mut request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if length > request.remaining() {
            return Err(Status::invalid_argument("the last event is truncated"));
        }
        request.advance(length);
        events += 1;
    }
    Ok(events)
}

struct Append {
    bytes: Bytes,
    synced: oneshot::Sender<Result<(), io::ErrorKind>>,
}

/// File with a thread that appends and syncs. One sync serves all requests that arrived
/// during the one before.
#[derive(Clone)]
struct Log {
    appends: mpsc::Sender<Append>,
}

impl Log {
    fn create(folder: &Path) -> io::Result<Self> {
        let file = File::create(folder.join("intake"))?;
        let (appends, queue) = mpsc::channel(APPEND_QUEUE);
        thread::spawn(move || write_appends(file, queue));
        Ok(Self { appends })
    }

    /// Returns once the bytes are on the disk.
    async fn append(&self, bytes: Bytes) -> Result<(), Status> {
        let (synced, done) = oneshot::channel();
        let gone = || Status::internal("the file's thread has ended");
        let sent = self.appends.send(Append { bytes, synced }).await;
        sent.map_err(|_| gone())?;
        let written = done.await.map_err(|_| gone())?;
        written.map_err(|error| Status::internal(error.to_string()))
    }
}

fn write_appends(mut file: File, mut queue: mpsc::Receiver<Append>) {
    let mut at = 0;
    while let Some(first) = queue.blocking_recv() {
        let mut appends = vec![first];
        while let Ok(append) = queue.try_recv() {
            appends.push(append);
        }
        let written = commit(&mut file, &mut at, &appends);
        for Append { synced, .. } in appends {
            let result = written.as_ref().map_err(io::Error::kind).copied();
            let _cancelled = synced.send(result);
        }
    }
}

fn commit(file: &mut File, at: &mut usize, appends: &[Append]) -> io::Result<()> {
    for Append { bytes, .. } in appends {
        file.write_all(bytes)?;
        *at += bytes.len();
    }
    file.sync_data()?;
    if *at >= FILE_BYTES {
        *at = 0;
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(())
}
