//! The gRPC services, and the server that they share.

pub mod errors;
pub mod wire;

mod checks;
mod convert;
mod events;
mod intake;
mod integrations;
mod publishing;
mod trace;
mod validate;

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::LayerExt,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower_http::trace::TraceLayer;

use self::{events::Events, intake::Intake, integrations::Integrations, publishing::Publishing};
use crate::{
    domain::{
        arn::Partition,
        attribution::IdentityState,
        event::Format,
        integration::Integration,
        verdict::{RehearsalReport, TestError, TestVerdict},
    },
    proto::{
        DESCRIPTOR_SET,
        v1::{
            self, event_service_server::EventServiceServer,
            siem_integration_service_server::SiemIntegrationServiceServer,
        },
    },
    store::{Deleted, Store},
    telemetry::exports_traces,
    watch::Watch,
};

/// Bytes of one message of EventService.
const MOST_MESSAGE_BYTES: usize = 8 << 20;
/// Bytes of one message of any other service. 1,000 organizations take a quarter of it.
const MOST_SMALL_MESSAGE_BYTES: usize = 256 << 10;
/// How long an answer that is no stream may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Requests of one connection that are being answered; the streams among them count
/// only until they have begun.
const REQUESTS_PER_CONNECTION: usize = 256;
/// Bytes of one request that may arrive before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// How often a silent connection is asked whether its peer still lives.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What the API needs of delivery.
pub trait Delivery: Send + Sync + 'static {
    /// Writes a test event, and waits behind nothing.
    fn send_test(
        &self,
        organization_id: &str,
    ) -> impl Future<Output = Result<TestVerdict, TestError>> + Send;

    /// Tests an integration that need not exist, writing nothing.
    fn rehearse(
        &self,
        integration: &Arc<Integration>,
    ) -> impl Future<Output = Result<RehearsalReport, TestError>> + Send;

    /// Partition of the credentials that roles are assumed with, once it is known.
    fn partition(&self) -> Option<Partition>;

    /// Ends what is under way for an integration that was deleted. When it returns,
    /// no AWS call for it begins any more.
    fn deleted(&self, deleted: &Deleted) -> impl Future<Output = ()> + Send;
}

/// What the API is made of.
pub struct Api<D> {
    /// Where integrations and events are kept.
    pub store: Store,
    /// Test events and deletion.
    pub delivery: D,
    /// Status changes.
    pub watch: Watch,
    /// The attributes that all events share.
    pub format: Arc<Format>,
    /// Only external IDs that were issued will do.
    pub issued_external_ids_only: bool,
    /// How this service itself stands with AWS, for health.
    pub standing: watch::Receiver<IdentityState>,
    /// Bytes of publishes in memory until they are durable.
    pub publish_bytes_in_flight: usize,
    /// Streams end when it is cancelled.
    pub stop: CancellationToken,
}

/// Why the API ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors for reflection are damaged.
    #[error("reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The name under which `grpc.health.v1` tells whether events can be delivered at all.
pub const DELIVERY_HEALTH: &str = "delivery";

/// Delivery is NOT_SERVING while this service's own AWS identity is refused.
async fn tell_standing(
    mut health: HealthReporter,
    mut standing: watch::Receiver<IdentityState>,
    stop: CancellationToken,
) {
    loop {
        let status = match *standing.borrow_and_update() {
            IdentityState::Good => ServingStatus::Serving,
            IdentityState::CredentialsRefused { .. } | IdentityState::MayNotAssume => {
                ServingStatus::NotServing
            }
        };
        health.set_service_status(DELIVERY_HEALTH, status).await;
        tokio::select! {
            () = stop.cancelled() => break,
            changed = standing.changed() => if changed.is_err() { break },
        }
    }
    // Ends the streams of those who watch, which would outlive everything else.
    for service in health_names() {
        health.clear_service_status(service).await;
    }
}

/// The name under which `grpc.health.v1` tells whether events are taken.
pub const PUBLISH_HEALTH: &str = "publish";

/// Publishing is NOT_SERVING while the disk has no room for events.
async fn tell_room(
    health: HealthReporter,
    mut has_room: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    loop {
        let status = match *has_room.borrow_and_update() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        health.set_service_status(PUBLISH_HEALTH, status).await;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = has_room.changed() => if changed.is_err() { return },
        }
    }
}

fn health_names() -> [&'static str; 5] {
    [
        "",
        DELIVERY_HEALTH,
        PUBLISH_HEALTH,
        v1::siem_integration_service_server::SERVICE_NAME,
        v1::event_service_server::SERVICE_NAME,
    ]
}

impl<D: Delivery> Api<D> {
    /// Serves until `stop`; then takes no more, and returns when every request under
    /// way is answered and every stream has ended.
    pub async fn serve(self, listener: TcpListener) -> Result<(), ServeError> {
        let stop = self.stop.clone();
        let events = EventServiceServer::new(Events {
            publishing: Publishing::new(self.store.clone(), self.format),
            stop: stop.clone(),
        })
        .max_decoding_message_size(MOST_MESSAGE_BYTES);
        let has_room = self.store.has_room();
        // A message is read only once there is room for it.
        let events =
            Intake::new(self.publish_bytes_in_flight, MOST_MESSAGE_BYTES).named_layer(events);
        let small = Intake::of_small(MOST_SMALL_MESSAGE_BYTES);
        let integrations = SiemIntegrationServiceServer::new(Integrations {
            store: self.store,
            delivery: Arc::new(self.delivery),
            watch: self.watch,
            issued_only: self.issued_external_ids_only,
            deletions: Arc::default(),
        });
        let (health, health_service) = tonic_health::server::health_reporter();
        for service in health_names() {
            health
                .set_service_status(service, ServingStatus::Serving)
                .await;
        }
        tokio::spawn(tell_room(health.clone(), has_room, stop.clone()));
        tokio::spawn(tell_standing(health, self.standing, stop.clone()));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that generic clients can read the details of an error.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            // So that requests that wait for memory never keep the rest of a connection
            // from arriving.
            .initial_connection_window_size(STREAM_WINDOW * REQUESTS_PER_CONNECTION as u32)
            // Status streams are long-lived, and many share a connection.
            .max_concurrent_streams(Some(20_000))
            // A request is not even read while so many of its connection are answered.
            .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
            // A client that waits for ever must not hold a handler for ever.
            .timeout(DEADLINE)
            // Outermost: what is refused below is traced as well.
            .layer(
                TraceLayer::new_for_grpc()
                    .make_span_with(trace::Spans::new(!exports_traces()))
                    .on_failure(trace::log_failure),
            )
            .add_service(small.named_layer(health_service))
            .add_service(small.named_layer(reflection().build_v1()?))
            .add_service(small.named_layer(reflection().build_v1alpha()?))
            .add_service(small.named_layer(integrations))
            .add_service(events)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?;
        Ok(())
    }
}
