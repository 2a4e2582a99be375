//! Requests on one connection, by either RPC.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use siem_client::v1::{PublishResponse, PublishStreamResponse, publish_stream_response::Outcome};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};

use super::{Answers, Supply, codec::Ready, now_nanos, pace::Ticks};
use crate::{Failure, workload::Workload};

/// More requests than this are never unanswered, at whatever rate they are due.
const PACED_WINDOW: usize = 4096;

/// What one connection has to send.
pub struct Sending {
    supply: Arc<Supply>,
    window: usize,
    rest: Rest,
}

#[derive(Clone)]
enum Rest {
    /// Events that are left, for all connections.
    Events(Arc<AtomicU64>),
    Ticks(Arc<Ticks>),
}

impl Sending {
    /// As fast as answers come.
    pub fn closed(workload: &Workload, supply: &Arc<Supply>, events: u64) -> Vec<Self> {
        let rest = Rest::Events(Arc::new(AtomicU64::new(events)));
        Self::many(workload, supply, workload.window, &rest)
    }

    /// When the time has come.
    pub fn paced(workload: &Workload, supply: &Arc<Supply>, ticks: &Arc<Ticks>) -> Vec<Self> {
        let rest = Rest::Ticks(Arc::clone(ticks));
        Self::many(workload, supply, PACED_WINDOW, &rest)
    }

    fn many(workload: &Workload, supply: &Arc<Supply>, window: usize, rest: &Rest) -> Vec<Self> {
        let one = |_| Self {
            supply: Arc::clone(supply),
            window,
            rest: rest.clone(),
        };
        (0..workload.connections).map(one).collect()
    }

    /// The next request and when it was due. None at the end.
    async fn next(&self) -> Option<(u64, Bytes)> {
        match &self.rest {
            Rest::Events(left) => {
                let frame = self.supply.next();
                let take = |left: u64| (left > 0).then(|| left.saturating_sub(frame.events()));
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .ok()?;
                let now = now_nanos();
                Some((now, frame.sent_at(now)))
            }
            Rest::Ticks(ticks) => {
                let due = ticks.lock().await.recv().await?;
                Some((due, self.supply.next().sent_at(due)))
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Many calls at once.
pub async fn publish(
    channel: Channel,
    sending: Sending,
    answers: Arc<Mutex<Answers>>,
) -> Result<(), Failure> {
    let room = Arc::new(Semaphore::new(sending.window));
    let mut calls = JoinSet::new();
    loop {
        let permit = Arc::clone(&room).acquire_owned().await?;
        while let Some(ended) = calls.try_join_next() {
            ended??;
        }
        let Some((due, frame)) = sending.next().await else {
            break;
        };
        let call = call(channel.clone(), due, frame, Arc::clone(&answers), permit);
        calls.spawn(call);
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}

async fn call(
    channel: Channel,
    due: u64,
    frame: Bytes,
    answers: Arc<Mutex<Answers>>,
    _permit: OwnedSemaphorePermit,
) -> Result<(), Failure> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/siem.v1.EventService/Publish");
    let codec = Ready::<PublishResponse>::default();
    let response = grpc.unary(Request::new(frame), path, codec).await?;
    locked(&answers).add(due, response.get_ref());
    Ok(())
}

/// One stream with many requests in flight.
pub async fn stream(
    channel: Channel,
    sending: Sending,
    answers: Arc<Mutex<Answers>>,
) -> Result<(), Failure> {
    let unanswered = Arc::new(Mutex::new(VecDeque::new()));
    let room = Arc::new(Semaphore::new(sending.window));
    let requests = stream::unfold(
        (sending, Arc::clone(&room), Arc::clone(&unanswered)),
        async |(sending, room, unanswered)| {
            room.acquire().await.ok()?.forget();
            let (due, frame) = sending.next().await?;
            locked(&unanswered).push_back(due);
            Some((frame, (sending, room, unanswered)))
        },
    );
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/siem.v1.EventService/PublishStream");
    let codec = Ready::<PublishStreamResponse>::default();
    let request = Request::new(Box::pin(requests));
    let mut responses = grpc.streaming(request, path, codec).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let due = locked(&unanswered).pop_front();
        let due = due.ok_or("an answer to nothing")?;
        room.add_permits(1);
        match response.outcome {
            Some(Outcome::Result(result)) => locked(&answers).add(due, &result),
            Some(Outcome::Error(error)) => return Err(error.message.into()),
            None => return Err("an answer without outcome".into()),
        }
    }
    Ok(())
}
