//! Cost of subscribers of StreamStatus (`--subscribers`), which share a few connections.

use std::net::SocketAddr;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use siem_client::v1::{
    StreamStatusRequest, StreamStatusResponse,
    siem_integration_service_client::SiemIntegrationServiceClient, stream_status_response::Event,
};
use siem_client::{Channel, channel};
use tokio::{sync::mpsc, time::sleep};
use tonic::Streaming;

use super::{
    Failure, idle,
    measure::Scope,
    process::{Child, Controller, Role},
    service::{Admin, Service},
    sink,
    stats::{Latency, Samples, Spread, now_nanos},
    table::progress,
    workload::Workload,
};

/// Calls of StreamStatus that are opened concurrently.
const SUBSCRIBE_CONCURRENCY: usize = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    address: SocketAddr,
    subscribers: usize,
    connections: usize,
}

/// Waits for one message to each subscriber, and answers with their [`Latency`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Time of the call that caused the messages.
    since_nanos: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Subscribers {
    pub subscribers: usize,
    pub connections: usize,
    pub bytes_per_subscriber: f64,
    /// Time from before the call that changes a status until all subscribers have received
    /// the change.
    pub reach_all_ms: Spread,
    /// Time until half of the subscribers have received it.
    pub reach_half_ms: Spread,
    pub cpu_per_change_ms: Spread,
    /// CPU seconds per second.
    #[serde(rename = "cpu_at_rest")]
    pub idle_cpu: f64,
}

/// Answers first with the number of subscribers, once all have received a snapshot.
pub async fn run(config: Config) -> Result<(), Failure> {
    let channels: Vec<_> = (0..config.connections)
        .map(|_| channel(&config.address.to_string()))
        .collect::<Result<_, _>>()?;
    let (received, mut times) = mpsc::unbounded_channel();
    let mut subscriptions = stream::iter(0..config.subscribers)
        .map(|number| {
            let channel = channels[number % channels.len()].clone();
            subscribe(SiemIntegrationServiceClient::new(channel))
        })
        .buffer_unordered(SUBSCRIBE_CONCURRENCY);
    while let Some(messages) = subscriptions.next().await {
        tokio::spawn(receive(messages?, received.clone()));
    }
    drop(received);
    let mut controller = Controller::new();
    controller.answer(&config.subscribers).await?;
    while let Some(command) = controller.next::<Command>().await? {
        let mut samples = Samples::default();
        for _ in 0..config.subscribers {
            let time = times.recv().await.ok_or("all subscriptions have ended")?;
            samples.add(command.since_nanos, time);
        }
        controller.answer(&samples.take()).await?;
    }
    Ok(())
}

type Messages = Streaming<StreamStatusResponse>;

async fn subscribe(mut client: SiemIntegrationServiceClient<Channel>) -> Result<Messages, Failure> {
    let request = StreamStatusRequest {
        organization_ids: vec![Workload::organization(0)],
        ..Default::default()
    };
    let mut messages = client.stream_status(request).await?.into_inner();
    loop {
        let message = messages
            .message()
            .await?
            .ok_or("a status stream ended early")?;
        if let Some(Event::Synced(_)) = message.event {
            return Ok(messages);
        }
    }
}

/// Sends the time of each change.
async fn receive(mut messages: Messages, received: mpsc::UnboundedSender<u64>) {
    while let Ok(Some(message)) = messages.message().await {
        match message.event {
            Some(Event::Heartbeat(_)) | None => {}
            Some(_) => {
                let _ended = received.send(now_nanos());
            }
        }
    }
}

pub async fn measure(
    subscribers: usize,
    connections: usize,
    scope: &Scope,
) -> Result<Subscribers, Failure> {
    progress(&format!(
        "subscribers: {subscribers} on {connections} connection(s)"
    ));
    let data_dir = tempfile::tempdir_in(&scope.data_dir)?;
    let role = Role::Sink(sink::Config { delay_ms: 0 });
    let (sink, sink_address) = Child::start(role).await?;
    let service = Service::start(data_dir.path(), sink_address).await?;
    let admin = Admin::new(service.address)?;
    admin.configure(1).await?;
    sleep(idle::IDLE_AFTER).await;
    let before = service.usage()?;
    let role = Role::Subscribers(Config {
        address: service.address,
        subscribers,
        connections,
    });
    let (mut child, _subscribed) = Child::start::<usize>(role).await?;
    sleep(idle::IDLE_AFTER).await;
    let after = service.usage()?;
    let (mut all, mut half, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scope.runs {
        for exists in [true, false] {
            let cpu_before = service.usage()?.cpu_seconds;
            let since_nanos = now_nanos();
            match exists {
                true => admin.delete(0).await?,
                false => admin.configure_one(0).await?,
            }
            let latency: Latency = child.call(&Command { since_nanos }).await?;
            all.push(latency.max_ms);
            half.push(latency.p50_ms);
            cpu.push((service.usage()?.cpu_seconds - cpu_before) * 1000.0);
        }
    }
    let idle_cpu = idle::idle_cpu(&service, scope.rate_seconds).await?;
    drop((child, sink));
    service.stop().await?;
    let added = after.resident_bytes as f64 - before.resident_bytes as f64;
    Ok(Subscribers {
        subscribers,
        connections,
        bytes_per_subscriber: added / subscribers as f64,
        reach_all_ms: Spread::of(all),
        reach_half_ms: Spread::of(half),
        cpu_per_change_ms: Spread::of(cpu),
        idle_cpu,
    })
}
