//! `siem.v1.EventService`.

use std::{pin::Pin, time::Duration};

use futures_util::stream::{Stream, StreamExt};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    errors::ApiError,
    publishing::Publishing,
    request_body::{Room, Rooms},
};
use crate::proto::v1::{
    PublishRequest, PublishResponse, PublishStreamRequest, PublishStreamResponse,
    event_service_server::EventService, publish_stream_response::Outcome,
};

/// Requests of one PublishStream that are under way at the most.
const MOST_IN_FLIGHT: usize = 64;
/// The longest request_id, in bytes.
const MOST_REQUEST_ID: usize = 128;
/// How long a client may take to end its side of a stream that the server has ended.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) struct Events {
    pub(super) publishing: Publishing,
    pub(super) stop: CancellationToken,
}

type Durable = Pin<Box<dyn Future<Output = Result<PublishResponse, ApiError>> + Send>>;

/// An answer in the making, in the order of the requests.
enum Ack {
    Request {
        request_id: String,
        durable: Durable,
    },
    End(Status),
}

impl Ack {
    async fn wait(self) -> Result<PublishStreamResponse, Status> {
        match self {
            Self::End(status) => Err(status),
            Self::Request {
                request_id,
                durable,
            } => Ok(PublishStreamResponse {
                request_id,
                outcome: Some(match durable.await {
                    Ok(response) => Outcome::Result(response),
                    Err(error) => Outcome::Error(error.into_message()),
                }),
            }),
        }
    }
}

#[tonic::async_trait]
impl EventService for Events {
    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        if self.stop.is_cancelled() {
            return Err(ApiError::ShuttingDown.into());
        }
        let room = rooms(&request).next();
        let events = request.into_inner().events;
        let durable = self.publishing.begin(events, room).await?;
        Ok(Response::new(durable.await?))
    }

    type PublishStreamStream =
        Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (acks, waiting) = mpsc::channel(MOST_IN_FLIGHT);
        let rooms = rooms(&request);
        tokio::spawn(read(
            request.into_inner(),
            rooms,
            self.publishing.clone(),
            acks,
            self.stop.clone(),
        ));
        let answers = ReceiverStream::new(waiting).then(Ack::wait);
        Ok(Response::new(Box::pin(answers)))
    }
}

fn rooms<T>(request: &Request<T>) -> Rooms {
    let rooms = request.extensions().get::<Rooms>();
    rooms.cloned().unwrap_or_default()
}

/// Takes requests until the client ends, breaks off, or the server stops. What was
/// taken is answered in any case.
async fn read(
    mut requests: Streaming<PublishStreamRequest>,
    rooms: Rooms,
    publishing: Publishing,
    acks: mpsc::Sender<Ack>,
    stop: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => {
                let end = Ack::End(ApiError::ShuttingDown.into());
                let _gone = acks.send(end).await;
                return let_end(requests, rooms).await;
            }
            message = requests.message() => message,
        };
        let request = match message {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(status) => {
                let refusal = ApiError::of_undecodable(&status).map(Status::from);
                let _gone = acks.send(Ack::End(refusal.unwrap_or(status))).await;
                return;
            }
        };
        let ack = begin(&publishing, request, rooms.next()).await;
        // A client that no longer reads answers does not get the rest taken.
        if acks.send(ack).await.is_err() {
            return;
        }
    }
}

/// Reads away what the client sends until it has seen the end. A connection that is
/// closed with bytes unread is reset, and that takes answers with it that the client
/// has not read yet.
async fn let_end(mut requests: Streaming<PublishStreamRequest>, rooms: Rooms) {
    let ended = async {
        while let Ok(Some(_)) = requests.message().await {
            drop(rooms.next());
        }
    };
    let _elapsed = timeout(FAREWELL, ended).await;
}

async fn begin(publishing: &Publishing, request: PublishStreamRequest, room: Option<Room>) -> Ack {
    let durable: Durable = if request.request_id.len() > MOST_REQUEST_ID {
        let error = ApiError::invalid("request_id", "may have at most 128 bytes");
        Box::pin(async { Err(error) })
    } else {
        match publishing.begin(request.events, room).await {
            Ok(durable) => Box::pin(durable),
            Err(error) => Box::pin(async { Err(error) }),
        }
    };
    let request_id = match request.request_id {
        long if long.len() > MOST_REQUEST_ID => String::new(),
        request_id => request_id,
    };
    Ack::Request {
        request_id,
        durable,
    }
}
