//! The client that publishes. Its requests are encoded beforehand, so that it costs
//! little beyond what the connection takes.

mod calls;
mod codec;
mod pace;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use siem_client::channel;
use siem_client::v1;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use self::calls::Sending;
use super::{
    Failure,
    frames::{Frame, frames, greetings},
    process::Orders,
    stats::{Latency, Samples, now_nanos},
    workload::{Rpc, Workload},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub address: SocketAddr,
    pub workload: Workload,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One event to each organization.
    Greet,
    /// So many events, as fast as they are answered.
    Saturate { events: u64 },
    /// At a rate, whatever the answers do.
    Pace {
        events_per_second: f64,
        seconds: f64,
    },
}

/// What became of an order's events.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sent {
    pub accepted: u64,
    pub unconfigured: u64,
    pub rejected: u64,
    pub first_nanos: u64,
    pub last_nanos: u64,
    /// From when a request was due to its answer.
    pub ack: Latency,
}

/// What a loader has ready.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Bytes of an event as published, on average.
    pub event_bytes: f64,
}

/// What the answers of one order add up to.
#[derive(Default)]
pub struct Answers {
    sent: Sent,
    samples: Samples,
}

impl Answers {
    fn add(&mut self, due: u64, response: &v1::PublishResponse) {
        let now = now_nanos();
        self.sent.accepted += u64::from(response.accepted);
        self.sent.unconfigured += u64::from(response.unconfigured);
        self.sent.rejected += response.rejections.len() as u64;
        self.sent.last_nanos = now;
        self.samples.add(due, now);
    }
}

/// Frames in turn, for all connections.
pub struct Supply {
    frames: Vec<Frame>,
    next: AtomicUsize,
}

impl Supply {
    fn new(frames: Vec<Frame>) -> Self {
        Self {
            frames,
            next: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> &Frame {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        &self.frames[at % self.frames.len()]
    }
}

struct Loader {
    workload: Workload,
    channels: Vec<Channel>,
    full: Arc<Supply>,
    paced: Arc<Supply>,
}

pub fn run(plan: Plan) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let loader = Loader::new(plan)?;
        let mut orders = Orders::new();
        orders.answer(&loader.ready()).await?;
        while let Some(order) = orders.next().await? {
            let sent = loader.obey(order).await?;
            orders.answer(&sent).await?;
        }
        Ok(())
    })
}

impl Loader {
    fn new(plan: Plan) -> Result<Self, Failure> {
        let workload = plan.workload;
        let channels = (0..workload.connections).map(|_| channel(&plan.address.to_string()));
        let full = Arc::new(Supply::new(frames(&workload, workload.batch)?));
        let paced = match workload.rate_batch == workload.batch {
            true => Arc::clone(&full),
            false => Arc::new(Supply::new(frames(&workload, workload.rate_batch)?)),
        };
        Ok(Self {
            channels: channels.collect::<Result<_, _>>()?,
            full,
            paced,
            workload,
        })
    }

    fn ready(&self) -> Ready {
        let sum = |of: fn(&Frame) -> u64| self.full.frames.iter().map(of).sum::<u64>() as f64;
        Ready {
            event_bytes: sum(Frame::bytes) / sum(Frame::events),
        }
    }

    async fn obey(&self, order: Order) -> Result<Sent, Failure> {
        let answers = Arc::new(Mutex::new(Answers::default()));
        let first_nanos = now_nanos();
        let mut senders = JoinSet::new();
        let sendings = match order {
            Order::Greet => {
                let supply = Arc::new(Supply::new(greetings(&self.workload)?));
                let events = self.workload.organizations as u64;
                Sending::closed(&self.workload, &supply, events)
            }
            Order::Saturate { events } => Sending::closed(&self.workload, &self.full, events),
            Order::Pace {
                events_per_second,
                seconds,
            } => {
                let gap = self.workload.rate_batch as f64 / events_per_second;
                let ticks = pace::ticks(gap, seconds);
                Sending::paced(&self.workload, &self.paced, &ticks)
            }
        };
        for (channel, sending) in self.channels.iter().zip(sendings) {
            let (channel, answers) = (channel.clone(), Arc::clone(&answers));
            match self.workload.rpc {
                Rpc::Publish => senders.spawn(calls::publish(channel, sending, answers)),
                Rpc::PublishStream => senders.spawn(calls::stream(channel, sending, answers)),
            };
        }
        while let Some(ended) = senders.join_next().await {
            ended??;
        }
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Sent {
            first_nanos,
            ack: answers.samples.take(),
            ..answers.sent
        })
    }
}
