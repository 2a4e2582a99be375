//! Load generator: publishes the events of a workload over gRPC. Its requests are encoded
//! beforehand, so that it uses little CPU beyond that of its connections. Events that are
//! rejected temporarily are sent again; later events of their device do not wait for them.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use siem_client::v1::{
    ErrorReason, PublishResponse, PublishStreamResponse, publish_stream_response::Outcome,
};
use siem_client::{Channel, channel};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};

use super::{
    Failure,
    codec::EncodedRequests,
    events::{EncodedRequest, requests, select_events, warmup_requests},
    process::Controller,
    stats::{Latency, Samples, now_nanos},
    workload::{Rpc, Workload},
};

/// Limit of unanswered requests on a connection at a fixed rate.
const PACED_WINDOW: usize = 4096;
/// Limit of requests that are due and not sent; beyond it, the rate cannot be kept.
const MAX_DUE: usize = 1 << 20;
/// Waits before events are sent again. The first is doubled with each further one of a request.
const MIN_RESEND_WAIT: Duration = Duration::from_millis(100);
const MAX_RESEND_WAIT: Duration = Duration::from_secs(5);
/// Seed of the intervals between requests.
const PACE_SEED: u64 = 11;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Connections are spread over these.
    pub addresses: Vec<SocketAddr>,
    pub workload: Workload,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Publishes one event of each organization.
    Warmup,
    /// Publishes this number of events as fast as they are answered.
    Saturate { events: u64 },
    /// Publishes at a fixed average rate, independent of the answers.
    Pace {
        events_per_second: f64,
        seconds: f64,
    },
}

/// Answer at the start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Average size of an event as published.
    pub event_bytes: f64,
}

/// Answer to a command.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Published {
    pub accepted: u64,
    pub unconfigured: u64,
    /// Events with a final rejection.
    pub rejected: u64,
    pub first_nanos: u64,
    pub last_nanos: u64,
    /// Time from when a request was due until its answer.
    pub ack: Latency,
}

/// Responses to the requests of one command.
#[derive(Default)]
struct Responses {
    published: Published,
    samples: Samples,
}

impl Responses {
    /// Adds the response to a request. Returns the request with the events that were rejected
    /// temporarily, if there are any.
    fn add(&mut self, sent: Sent, response: &PublishResponse) -> Result<Option<Sent>, Failure> {
        let now = now_nanos();
        let rejections = response.rejections.iter();
        let temporary = rejections.filter(|each| {
            let reason = each.reason();
            matches!(reason, ErrorReason::Overloaded | ErrorReason::RateLimited)
        });
        let again: Vec<u32> = temporary.map(|each| each.index).collect();
        self.published.accepted += u64::from(response.accepted);
        self.published.unconfigured += u64::from(response.unconfigured);
        self.published.rejected += (response.rejections.len() - again.len()) as u64;
        self.published.last_nanos = now;
        if again.is_empty() {
            self.samples.add(sent.due, now);
            return Ok(None);
        }
        Ok(Some(Sent {
            request: select_events(&sent.request, &again)?,
            attempts: sent.attempts + 1,
            ..sent
        }))
    }
}

/// A request, or the part of it that is sent again.
#[derive(Clone)]
struct Sent {
    /// Time in nanoseconds since 1970 at which the whole request was due.
    due: u64,
    request: Bytes,
    attempts: u32,
}

impl Sent {
    fn new((due, request): (u64, Bytes)) -> Self {
        Self {
            due,
            request,
            attempts: 0,
        }
    }

    /// Waits before it is sent again.
    async fn wait(&self) {
        let doubled = 2_u32.saturating_pow(self.attempts.saturating_sub(1));
        let wait = MIN_RESEND_WAIT.saturating_mul(doubled).min(MAX_RESEND_WAIT);
        let jitter = rand::rng().random_range(0.5..1.0);
        sleep(wait.mul_f64(jitter)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Loader {
    workload: Workload,
    channels: Vec<Channel>,
    saturated: Arc<RequestCycle>,
    paced: Arc<RequestCycle>,
}

pub async fn run(config: Config) -> Result<(), Failure> {
    let loader = Loader::new(config)?;
    let mut controller = Controller::new();
    controller.answer(&loader.ready()).await?;
    while let Some(command) = controller.next().await? {
        let published = loader.execute(command).await?;
        controller.answer(&published).await?;
    }
    Ok(())
}

impl Loader {
    fn new(config: Config) -> Result<Self, Failure> {
        let Config {
            addresses,
            workload,
        } = config;
        let connections = workload.connections.max(addresses.len());
        let channels = addresses.iter().cycle().take(connections);
        let channels = channels.map(|address| channel(&address.to_string()));
        let cycle = |batch| requests(&workload, batch).map(|all| Arc::new(RequestCycle::new(all)));
        let saturated = cycle(workload.batch)?;
        let paced = match workload.rate_batch == workload.batch {
            true => Arc::clone(&saturated),
            false => cycle(workload.rate_batch)?,
        };
        Ok(Self {
            channels: channels.collect::<Result<_, _>>()?,
            saturated,
            paced,
            workload,
        })
    }

    fn ready(&self) -> Ready {
        let requests = &self.saturated.requests;
        let sum = |of: fn(&EncodedRequest) -> u64| requests.iter().map(of).sum::<u64>() as f64;
        Ready {
            event_bytes: sum(EncodedRequest::bytes) / sum(EncodedRequest::events),
        }
    }

    async fn execute(&self, command: Command) -> Result<Published, Failure> {
        let responses = Arc::new(Mutex::new(Responses::default()));
        let first_nanos = now_nanos();
        let schedule = self.schedule(command)?;
        let mut connections = JoinSet::new();
        for channel in &self.channels {
            let (channel, schedule) = (channel.clone(), schedule.clone());
            let responses = Arc::clone(&responses);
            match self.workload.rpc {
                Rpc::Publish => connections.spawn(publish(channel, schedule, responses)),
                Rpc::PublishStream => {
                    connections.spawn(publish_stream(channel, schedule, responses))
                }
            };
        }
        while let Some(ended) = connections.join_next().await {
            ended??;
        }
        let mut responses = lock(&responses);
        Ok(Published {
            first_nanos,
            ack: responses.samples.take(),
            ..responses.published
        })
    }

    fn schedule(&self, command: Command) -> Result<Schedule, Failure> {
        let unpaced = |requests: &Arc<RequestCycle>, events| Schedule {
            requests: Arc::clone(requests),
            window: self.workload.window,
            remaining: Remaining::Events(Arc::new(AtomicU64::new(events))),
        };
        Ok(match command {
            Command::Warmup => {
                let requests = RequestCycle::new(warmup_requests(&self.workload)?);
                unpaced(&Arc::new(requests), self.workload.organizations as u64)
            }
            Command::Saturate { events } => unpaced(&self.saturated, events),
            Command::Pace {
                events_per_second,
                seconds,
            } => {
                let interval = self.workload.rate_batch as f64 / events_per_second;
                Schedule {
                    requests: Arc::clone(&self.paced),
                    window: PACED_WINDOW,
                    remaining: Remaining::DueTimes(Arc::new(due_times(interval, seconds))),
                }
            }
        })
    }
}

/// Encoded requests in an endless cycle, which all connections share.
struct RequestCycle {
    requests: Vec<EncodedRequest>,
    next: AtomicUsize,
}

impl RequestCycle {
    fn new(requests: Vec<EncodedRequest>) -> Self {
        Self {
            requests,
            next: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> &EncodedRequest {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        &self.requests[at % self.requests.len()]
    }
}

/// Requests of one command, which all connections share, and the times to send them.
#[derive(Clone)]
struct Schedule {
    requests: Arc<RequestCycle>,
    /// Limit of unanswered requests on each connection.
    window: usize,
    remaining: Remaining,
}

#[derive(Clone)]
enum Remaining {
    /// Number of events to send.
    Events(Arc<AtomicU64>),
    DueTimes(Arc<DueTimes>),
}

impl Schedule {
    /// Returns the next request and the time at which it was due, or None at the end.
    async fn next(&self) -> Option<(u64, Bytes)> {
        match &self.remaining {
            Remaining::Events(left) => {
                let request = self.requests.next();
                let take = |left: u64| (left > 0).then(|| left.saturating_sub(request.events()));
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .ok()?;
                let now = now_nanos();
                Some((now, request.sent_at(now)))
            }
            Remaining::DueTimes(due_times) => {
                let due = due_times.lock().await.recv().await?;
                Some((due, self.requests.next().sent_at(due)))
            }
        }
    }
}

/// Due times of requests in nanoseconds since 1970; each arrives when it is due.
type DueTimes = AsyncMutex<mpsc::Receiver<u64>>;

/// Starts a Poisson process with an average interval in seconds, as from many independent
/// sensors. It has a thread, since the runtime's timers have a resolution of milliseconds.
fn due_times(interval: f64, seconds: f64) -> DueTimes {
    let (due, receiver) = mpsc::channel(MAX_DUE);
    thread::spawn(move || {
        let (start, start_nanos) = (Instant::now(), now_nanos());
        let mut rng = StdRng::seed_from_u64(PACE_SEED);
        let mut at = 0.0;
        loop {
            at -= interval * (1.0 - rng.random::<f64>()).ln();
            if at >= seconds {
                return;
            }
            let after = Duration::from_secs_f64(at);
            while let Some(early) = after.checked_sub(start.elapsed()) {
                thread::park_timeout(early);
            }
            let nanos = start_nanos + after.as_nanos() as u64;
            if due.blocking_send(nanos).is_err() {
                return;
            }
        }
    });
    AsyncMutex::new(receiver)
}

/// Makes concurrent calls of Publish on one connection.
async fn publish(
    channel: Channel,
    schedule: Schedule,
    responses: Arc<Mutex<Responses>>,
) -> Result<(), Failure> {
    let window = Arc::new(Semaphore::new(schedule.window));
    let mut calls = JoinSet::new();
    loop {
        let permit = Arc::clone(&window).acquire_owned().await?;
        while let Some(ended) = calls.try_join_next() {
            ended??;
        }
        let Some(next) = schedule.next().await else {
            break;
        };
        let responses = Arc::clone(&responses);
        calls.spawn(call(channel.clone(), Sent::new(next), responses, permit));
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}

/// Publishes one request until every event has its final answer.
async fn call(
    channel: Channel,
    mut sent: Sent,
    responses: Arc<Mutex<Responses>>,
    _permit: OwnedSemaphorePermit,
) -> Result<(), Failure> {
    let mut grpc = Grpc::new(channel);
    loop {
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/siem.v1.EventService/Publish");
        let codec = EncodedRequests::<PublishResponse>::default();
        let request = Request::new(sent.request.clone());
        let response = grpc.unary(request, path, codec).await?;
        let again = lock(&responses).add(sent, response.get_ref())?;
        match again {
            None => return Ok(()),
            Some(again) => sent = again,
        }
        sent.wait().await;
    }
}

/// Requests of one PublishStream: those of a schedule, and those that are sent again. Each has a
/// permit of `window` until all of its events have their final answers.
struct StreamRequests {
    schedule: Option<Schedule>,
    window: Arc<Semaphore>,
    max_unanswered: u32,
    again: mpsc::UnboundedReceiver<Sent>,
    unanswered: Arc<Mutex<VecDeque<Sent>>>,
}

impl StreamRequests {
    /// Returns the next request; None once the schedule has ended and every event is answered.
    async fn next(&mut self) -> Option<Bytes> {
        let sent = loop {
            tokio::select! {
                biased;
                again = self.again.recv() => break again?,
                scheduled = scheduled(&self.schedule, &self.window), if self.schedule.is_some() => {
                    match scheduled {
                        Some(next) => break Sent::new(next),
                        None => self.schedule = None,
                    }
                }
                _all = self.window.acquire_many(self.max_unanswered), if self.schedule.is_none() => {
                    return None;
                }
            }
        };
        lock(&self.unanswered).push_back(sent.clone());
        Some(sent.request)
    }
}

/// Takes a permit and returns the next request. Dropping the future loses neither.
async fn scheduled(schedule: &Option<Schedule>, window: &Semaphore) -> Option<(u64, Bytes)> {
    let permit = window.acquire().await.ok()?;
    let next = schedule.as_ref()?.next().await?;
    permit.forget();
    Some(next)
}

/// Sends the requests of one connection on one PublishStream.
async fn publish_stream(
    channel: Channel,
    schedule: Schedule,
    responses: Arc<Mutex<Responses>>,
) -> Result<(), Failure> {
    let unanswered = Arc::new(Mutex::new(VecDeque::new()));
    let window = Arc::new(Semaphore::new(schedule.window));
    let (resend, again) = mpsc::unbounded_channel();
    let requests = StreamRequests {
        max_unanswered: u32::try_from(schedule.window)?,
        schedule: Some(schedule),
        window: Arc::clone(&window),
        again,
        unanswered: Arc::clone(&unanswered),
    };
    let requests = stream::unfold(requests, async |mut requests| {
        Some((requests.next().await?, requests))
    });
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/siem.v1.EventService/PublishStream");
    let codec = EncodedRequests::<PublishStreamResponse>::default();
    let request = Request::new(Box::pin(requests));
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        let sent = lock(&unanswered).pop_front();
        let sent = sent.ok_or("more answers than requests")?;
        let result = match answer.outcome {
            Some(Outcome::Result(result)) => result,
            Some(Outcome::Error(error)) => return Err(error.message.into()),
            None => return Err("an answer has no outcome".into()),
        };
        match lock(&responses).add(sent, &result)? {
            None => window.add_permits(1),
            Some(again) => {
                let resend = resend.clone();
                tokio::spawn(async move {
                    again.wait().await;
                    // The receiver exists until every event is answered.
                    let _ = resend.send(again);
                });
            }
        }
    }
    Ok(())
}
