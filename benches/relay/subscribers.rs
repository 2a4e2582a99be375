//! Many subscribers of the status stream on a few connections.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use siem_client::channel;
use siem_client::v1::{
    StreamStatusRequest, StreamStatusResponse,
    siem_integration_service_client::SiemIntegrationServiceClient, stream_status_response::Event,
};
use tokio::{sync::mpsc, time::sleep};
use tonic::Streaming;

use super::{
    Failure,
    configure::Admin,
    measure::Size,
    process::{Child, Orders},
    service::Service,
    sink,
    spread::Spread,
    stats::{Latency, Samples, now_nanos},
    table::tell,
    workload::Workload,
};

const CALM: Duration = Duration::from_secs(2);
const AT_ONCE: usize = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    address: SocketAddr,
    subscribers: usize,
    connections: usize,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// When the change was asked for, to which all subscribers' next message belongs.
    since_nanos: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Subscribers {
    pub subscribers: usize,
    pub connections: usize,
    pub bytes_per_subscriber: f64,
    /// From before the call that made the change until the last has heard of it.
    pub reach_all_ms: Spread,
    pub reach_half_ms: Spread,
    pub cpu_per_change_ms: Spread,
    pub cpu_at_rest: f64,
}

/// Says when all are subscribed.
pub fn run(plan: Plan) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(plan))
}

async fn serve(plan: Plan) -> Result<(), Failure> {
    let channels: Vec<_> = (0..plan.connections)
        .map(|_| channel(&plan.address.to_string()))
        .collect::<Result<_, _>>()?;
    let (told, mut heard) = mpsc::unbounded_channel();
    let told = Arc::new(told);
    let mut begun = stream::iter(0..plan.subscribers)
        .map(|number| {
            let channel = channels[number % channels.len()].clone();
            subscribe(SiemIntegrationServiceClient::new(channel))
        })
        .buffer_unordered(AT_ONCE);
    while let Some(messages) = begun.next().await {
        tokio::spawn(listen(messages?, Arc::clone(&told)));
    }
    let mut orders = Orders::new();
    orders.answer(&plan.subscribers).await?;
    while let Some(order) = orders.next::<Order>().await? {
        let mut samples = Samples::default();
        for _ in 0..plan.subscribers {
            let at = heard.recv().await.ok_or("the subscribers are gone")?;
            samples.add(order.since_nanos, at);
        }
        orders.answer(&samples.take()).await?;
    }
    Ok(())
}

type Messages = Streaming<StreamStatusResponse>;

async fn subscribe(
    mut client: SiemIntegrationServiceClient<tonic::transport::Channel>,
) -> Result<Messages, Failure> {
    let request = StreamStatusRequest {
        organization_ids: vec![Workload::organization(0)],
        ..Default::default()
    };
    let mut messages = client.stream_status(request).await?.into_inner();
    loop {
        let message = messages.message().await?.ok_or("a status stream ended")?;
        if let Some(Event::Synced(_)) = message.event {
            return Ok(messages);
        }
    }
}

async fn listen(mut messages: Messages, told: Arc<mpsc::UnboundedSender<u64>>) {
    while let Ok(Some(message)) = messages.message().await {
        match message.event {
            Some(Event::Heartbeat(_)) | None => {}
            Some(_) => {
                let _gone = told.send(now_nanos());
            }
        }
    }
}

pub async fn measure(
    subscribers: usize,
    connections: usize,
    size: &Size,
) -> Result<Subscribers, Failure> {
    tell(&format!(
        "subscribers: {subscribers} on {connections} connection(s)"
    ));
    std::fs::create_dir_all(&size.data_dir)?;
    let data_dir = tempfile::tempdir_in(&size.data_dir)?;
    let mut sink = Child::start("sink", &sink::Plan { delay_ms: 0 })?;
    let service = Service::start(data_dir.path(), sink.answer().await?).await?;
    let admin = Admin::new(service.address)?;
    admin.configure(1).await?;
    sleep(CALM).await;
    let before = service.usage()?;
    let plan = Plan {
        address: service.address,
        subscribers,
        connections,
    };
    let mut child = Child::start("subscribers", &plan)?;
    let _all: usize = child.answer().await?;
    sleep(CALM).await;
    let after = service.usage()?;
    let (mut all, mut half, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.runs {
        for exists in [true, false] {
            let cpu_before = service.usage()?.cpu_seconds;
            let since_nanos = now_nanos();
            match exists {
                true => admin.delete(0).await?,
                false => admin.configure_one(0).await?,
            }
            let latency: Latency = child.ask(&Order { since_nanos }).await?;
            all.push(latency.max_ms);
            half.push(latency.p50_ms);
            cpu.push((service.usage()?.cpu_seconds - cpu_before) * 1000.0);
        }
    }
    let rest = service.usage()?.cpu_seconds;
    sleep(Duration::from_secs_f64(size.rate_seconds)).await;
    let cpu_at_rest = (service.usage()?.cpu_seconds - rest) / size.rate_seconds;
    drop((child, sink));
    service.stop().await?;
    let held = after.resident_bytes as f64 - before.resident_bytes as f64;
    Ok(Subscribers {
        subscribers,
        connections,
        bytes_per_subscriber: held / subscribers as f64,
        reach_all_ms: Spread::of(all),
        reach_half_ms: Spread::of(half),
        cpu_per_change_ms: Spread::of(cpu),
        cpu_at_rest,
    })
}
