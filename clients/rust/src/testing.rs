//! A gRPC server that misbehaves on demand, for tests of callers (feature `testing`).

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

use crate::v1::{
    self, ErrorReason, PublishRequest, PublishResponse, PublishStreamRequest,
    PublishStreamResponse, Rejection,
    event_service_server::{EventService, EventServiceServer},
    publish_stream_response::Outcome,
};

/// Limit after which a hanging test fails.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Treatment of one PublishStream request. Once the plan is used up, requests are accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Accepts the events and answers.
    Accept,
    /// Accepts the events and breaks the stream without an answer.
    AcceptAndBreak,
    /// Ends the stream with this status.
    Break(Code),
    /// Ends the stream with OK.
    End,
    /// Answers with an error.
    Answer(Code),
    /// Answers with an error that carries a RetryInfo of 1 ms.
    AnswerRetryInfo(Code),
    /// Accepts the events and answers under another request id.
    WrongId,
    /// Never answers.
    Silence,
}

/// Outcome of one event of an accepted request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Counted as accepted.
    Accept,
    /// Returned as a rejection of `ids_detection.src_ip`.
    Reject,
    /// Counted as unconfigured.
    Unconfigured,
}

/// An EventService that keeps what it accepts, and to which the plan applies in PublishStream.
/// Clones share the plan and the events.
#[derive(Debug, Clone, Default)]
pub struct FaultyServer {
    /// Faults of the next requests; the last entry is taken first.
    pub plan: Arc<Mutex<Vec<Fault>>>,
    /// Accepted events, oldest first.
    pub accepted: Arc<Mutex<Vec<v1::Event>>>,
    /// Selects events whose request always breaks the stream, with OUT_OF_RANGE.
    pub poison: Option<fn(&v1::Event) -> bool>,
    /// Decides the outcome of each event; without it, all are accepted.
    pub judge: Option<fn(&v1::Event) -> Verdict>,
    /// Number of times that each event is rejected, with OVERLOADED and RATE_LIMITED alternately,
    /// before it is judged; `u32::MAX` for always.
    pub overload: Option<fn(&v1::Event) -> u32>,
    /// Temporary rejections so far, by encoded event.
    pub overloaded: Arc<Mutex<HashMap<Vec<u8>, u32>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyServer {
    /// A server that treats its first requests as planned.
    pub fn with_plan(mut plan: Vec<Fault>) -> Self {
        plan.reverse();
        Self {
            plan: Arc::new(Mutex::new(plan)),
            ..Self::default()
        }
    }

    /// Returns the events accepted so far, oldest first.
    pub fn events(&self) -> Vec<v1::Event> {
        lock(&self.accepted).clone()
    }

    fn accept(&self, request: &PublishStreamRequest) -> PublishResponse {
        let mut response = PublishResponse::default();
        for (index, event) in (0..).zip(&request.events) {
            if let Some(reason) = self.temporary_rejection(event) {
                response.rejections.push(Rejection {
                    index,
                    reason: reason.into(),
                    field: String::new(),
                    message: "too many events are waiting".into(),
                });
                continue;
            }
            match self.judge.map_or(Verdict::Accept, |judge| judge(event)) {
                Verdict::Accept => {
                    response.accepted += 1;
                    lock(&self.accepted).push(event.clone());
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

    /// Counts a temporary rejection, if it is the event's due. Returns its reason.
    fn temporary_rejection(&self, event: &v1::Event) -> Option<ErrorReason> {
        let limit = self.overload?(event);
        let mut overloaded = lock(&self.overloaded);
        let count = overloaded.entry(event.encode_to_vec()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(match *count % 2 {
            0 => ErrorReason::RateLimited,
            _ => ErrorReason::Overloaded,
        })
    }

    fn fault(&self, request: &PublishStreamRequest) -> Fault {
        if let Some(poison) = self.poison
            && request.events.iter().any(poison)
        {
            return Fault::Break(Code::OutOfRange);
        }
        lock(&self.plan).pop().unwrap_or(Fault::Accept)
    }

    async fn serve(
        &self,
        requests: &mut Streaming<PublishStreamRequest>,
        answers: &mpsc::Sender<Result<PublishStreamResponse, Status>>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.message().await? {
            let wrong_id = lock(&self.plan).last() == Some(&Fault::WrongId);
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
                let details = tonic_types::Status::decode(status.details());
                Ok(Some(Outcome::Error(details.unwrap_or_default())))
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
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let PublishRequest { events } = request.into_inner();
        let request = PublishStreamRequest {
            events,
            ..PublishStreamRequest::default()
        };
        Ok(Response::new(self.accept(&request)))
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

/// A server on its own runtime: stopping it cuts every connection, as the end of a process does.
pub struct Running {
    /// Address on loopback.
    pub address: SocketAddr,
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
    /// Serves at an address.
    ///
    /// # Errors
    ///
    /// The address is taken, or the runtime does not start.
    pub fn start(server: FaultyServer, address: SocketAddr) -> io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let context = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(64)?;
        let address = listener.local_addr()?;
        runtime.spawn(Server::builder().serve_with_incoming(
            EventServiceServer::new(server),
            TcpListenerStream::new(listener),
        ));
        drop(context);
        Ok(Self {
            address,
            runtime: Some(runtime),
        })
    }

    /// Serves at a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// No port is free, or the runtime does not start.
    pub fn start_on_free_port(server: FaultyServer) -> io::Result<Self> {
        Self::start(server, ([127, 0, 0, 1], 0).into())
    }

    /// Stops the server. Returns its address once every connection is closed.
    pub async fn kill(mut self) -> SocketAddr {
        if let Some(runtime) = self.runtime.take() {
            let stop = move || runtime.shutdown_timeout(TEST_TIMEOUT);
            // Only a panic of the shutdown itself would be an error.
            let _ = tokio::task::spawn_blocking(stop).await;
        }
        self.address
    }
}
