//! A real gRPC server for tests, which misbehaves on demand.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use prost::Message;
use tokio::{
    net::TcpSocket,
    runtime::{self, Runtime},
    sync::mpsc,
    time::Duration,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

use crate::proto::v1::{
    self, ErrorReason, PublishRequest, PublishResponse, PublishStreamRequest,
    PublishStreamResponse, Rejection,
    event_service_server::{EventService, EventServiceServer},
    publish_stream_response::Outcome,
};

/// Fails a test that would hang.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What the server does with one request. When the plan is used up, it accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    Accept,
    /// The answer is lost with the stream.
    AcceptAndBreak,
    Break(Code),
    End,
    Answer(Code),
    AnswerRetryInfo(Code),
    WrongId,
    Silence,
}

/// What becomes of one event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    Accept,
    Reject,
    Unconfigured,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyServer {
    /// The next fault is the last one.
    pub(crate) plan: Arc<Mutex<Vec<Fault>>>,
    pub(crate) accepted: Arc<Mutex<Vec<Bytes>>>,
    /// Requests with such an event break the stream whenever they come.
    pub(crate) poison: Option<fn(&v1::Event) -> bool>,
    /// What becomes of each event; without it, all are accepted.
    pub(crate) judge: Option<fn(&v1::Event) -> Verdict>,
}

impl FaultyServer {
    pub(crate) fn with_plan(mut plan: Vec<Fault>) -> Self {
        plan.reverse();
        Self {
            plan: Arc::new(Mutex::new(plan)),
            ..Self::default()
        }
    }

    /// What was accepted so far.
    pub(crate) fn events(&self) -> Vec<v1::Event> {
        let accepted = self.accepted.lock().unwrap();
        let decode = |event: &Bytes| v1::Event::decode(&**event).unwrap();
        accepted.iter().map(decode).collect()
    }

    fn accept(&self, request: &PublishStreamRequest) -> PublishResponse {
        let mut response = PublishResponse::default();
        for (index, bytes) in (0..).zip(&request.events) {
            let event = v1::Event::decode(&**bytes).unwrap();
            match self.judge.map_or(Verdict::Accept, |judge| judge(&event)) {
                Verdict::Accept => {
                    response.accepted += 1;
                    self.accepted.lock().unwrap().push(bytes.clone());
                }
                Verdict::Unconfigured => response.unconfigured += 1,
                Verdict::Reject => response.rejections.push(Rejection {
                    index,
                    reason: ErrorReason::InvalidField.into(),
                    field: "ids_detection.src_ip".into(),
                    message: "not an IP address".into(),
                }),
            }
        }
        response
    }

    fn fault(&self, request: &PublishStreamRequest) -> Fault {
        let decode = |event: &Bytes| v1::Event::decode(&**event).unwrap();
        if let Some(poison) = self.poison
            && request
                .events
                .iter()
                .map(decode)
                .any(|event| poison(&event))
        {
            return Fault::Break(Code::OutOfRange);
        }
        self.plan.lock().unwrap().pop().unwrap_or(Fault::Accept)
    }

    async fn serve(
        &self,
        requests: &mut Streaming<PublishStreamRequest>,
        answers: &mpsc::Sender<Result<PublishStreamResponse, Status>>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.message().await? {
            let wrong_id = self.plan.lock().unwrap().last() == Some(&Fault::WrongId);
            let outcome = match self.answer(&request) {
                Ok(None) => continue,
                Ok(outcome) => outcome,
                Err(None) => return Ok(()),
                Err(Some(status)) => return Err(status),
            };
            let answer = PublishStreamResponse {
                request_id: if wrong_id {
                    "wrong".into()
                } else {
                    request.request_id
                },
                outcome,
            };
            if answers.send(Ok(answer)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The answer; `Err` ends the stream, with a status or without.
    fn answer(&self, request: &PublishStreamRequest) -> Result<Option<Outcome>, Option<Status>> {
        let broken = || Status::unavailable("planned");
        match self.fault(request) {
            Fault::Accept | Fault::WrongId => Ok(Some(Outcome::Result(self.accept(request)))),
            Fault::AcceptAndBreak => {
                self.accept(request);
                Err(Some(broken()))
            }
            Fault::Break(code) => Err(Some(Status::new(code, "planned"))),
            Fault::End => Err(None),
            Fault::Answer(code) => Ok(Some(Outcome::Error(tonic_types::Status {
                code: code.into(),
                message: "planned".into(),
                details: vec![],
            }))),
            Fault::AnswerRetryInfo(code) => {
                let wait = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
                let status = Status::with_error_details(code, "planned", wait);
                let status = Message::decode(status.details()).unwrap();
                Ok(Some(Outcome::Error(status)))
            }
            Fault::Silence => Ok(None),
        }
    }
}

#[tonic::async_trait]
impl EventService for FaultyServer {
    type PublishStreamStream = ReceiverStream<Result<PublishStreamResponse, Status>>;

    async fn publish(
        &self,
        _: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        Err(Status::unimplemented("not tested here"))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let server = self.clone();
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            if let Err(status) = server.serve(&mut requests, &answers).await {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A server on a runtime of its own: stopping it cuts every connection, as the
/// end of a process does.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Running {
    pub(crate) fn start(server: FaultyServer, address: SocketAddr) -> Self {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let context = runtime.enter();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(Server::builder().serve_with_incoming(
            EventServiceServer::new(server),
            TcpListenerStream::new(listener),
        ));
        drop(context);
        Self {
            address,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn port_0(server: FaultyServer) -> Self {
        Self::start(server, ([127, 0, 0, 1], 0).into())
    }

    /// Answers once every connection is closed.
    pub(crate) async fn kill(mut self) -> SocketAddr {
        let runtime = self.runtime.take().unwrap();
        let stop = move || runtime.shutdown_timeout(TEST_TIMEOUT);
        tokio::task::spawn_blocking(stop).await.unwrap();
        self.address
    }
}
