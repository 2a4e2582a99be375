//! The gRPC server and its services.
//!
//! A request passes these layers, in this order; [`Api::serve`] builds them:
//!
//! 1. HTTP/2: keepalive and flow control windows
//! 2. concurrency limit of the connection
//! 3. deadline of the answer
//! 4. `trace`: a span, and a log line if the request fails
//! 5. `request_body`: framing, gzip, size of a message, memory budget of publishes
//! 6. router and codec of the service
//! 7. handler: `events` or `integrations`, health or reflection
//!
//! `errors` is the table of all errors, `validate` converts requests into domain values, and
//! `convert` domain values into answers.

pub mod event_decoder;

mod convert;
mod errors;
mod events;
mod integrations;
mod request_body;
mod trace;
mod validate;

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower_http::trace::TraceLayer;

use self::{events::Events, integrations::Integrations, request_body::RequestBodyLayer};
use crate::{
    domain::{
        arn::Partition,
        attribution::IdentityState,
        event::Format,
        integration::{Integration, IntegrationId},
        verdict::{TestError, TestVerdict, ValidationReport},
    },
    proto::{
        DESCRIPTOR_SET,
        v1::{
            event_service_server::{self, EventServiceServer},
            siem_integration_service_server::{self, SiemIntegrationServiceServer},
        },
    },
    store::{Deleted, Health, Store},
    telemetry::exports_traces,
    watch::Watch,
};

/// Bytes of one message to EventService.
const MAX_EVENT_MESSAGE_BYTES: usize = 8 << 20;
/// Bytes of one message to any other service. 1,000 organization ids take a quarter of it.
const MAX_OTHER_MESSAGE_BYTES: usize = 256 << 10;
/// Time for a unary answer, or for a stream to begin.
const DEADLINE: Duration = Duration::from_secs(60);
/// Requests in progress on one connection. A stream counts only until it has begun.
const MAX_REQUESTS_PER_CONNECTION: usize = 256;
/// Bytes of one request that HTTP/2 buffers before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// Age of connections, if several instances share the storage.
const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// Interval of HTTP/2 pings on an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Name in `grpc.health.v1` of the state of delivery.
const DELIVERY_HEALTH: &str = "delivery";
/// Name in `grpc.health.v1` of the state of publishing.
const PUBLISH_HEALTH: &str = "publish";
/// All names in `grpc.health.v1`; the empty one is the server as a whole.
const HEALTH_NAMES: [&str; 5] = [
    "",
    DELIVERY_HEALTH,
    PUBLISH_HEALTH,
    siem_integration_service_server::SERVICE_NAME,
    event_service_server::SERVICE_NAME,
];

/// Operations of delivery that the API uses.
pub trait Delivery: Send + Sync + 'static {
    /// Writes a test event at once, ahead of all pending events.
    fn send_test(
        &self,
        organization_id: &str,
    ) -> impl Future<Output = Result<TestVerdict, TestError>> + Send;

    /// Tests an integration that need not be stored, without writing to its stream.
    fn validate_only(
        &self,
        integration: &Arc<Integration>,
    ) -> impl Future<Output = Result<ValidationReport, TestError>> + Send;

    /// AWS partition of this service's credentials, once it is known.
    fn partition(&self) -> Option<Partition>;

    /// Stops delivery for a deleted integration, and returns its final counts. After it returns,
    /// no AWS call for it starts.
    fn deleted(&self, id: IntegrationId) -> impl Future<Output = Deleted> + Send;
}

/// Dependencies and settings of the API.
pub struct Api<D> {
    /// Integrations and events.
    pub store: Store,
    /// Test events and deletion.
    pub delivery: D,
    /// Status changes.
    pub watch: Watch,
    /// CloudEvents attributes common to all events.
    pub format: Arc<Format>,
    /// Configure accepts only external IDs that GenerateExternalId issued.
    pub issued_external_ids_only: bool,
    /// State of this service's own AWS identity, for health.
    pub own_identity: watch::Receiver<IdentityState>,
    /// Bytes of publishes in memory until they are durable.
    pub publish_bytes_in_flight: usize,
    /// Ends the server and all streams.
    pub stop: CancellationToken,
}

/// Error that ends the API early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors for reflection are damaged.
    #[error("reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl<D: Delivery> Api<D> {
    /// Serves until `stop`. Then it accepts nothing more, and returns once every request in
    /// progress is answered and every stream has ended.
    pub async fn serve(self, listener: TcpListener) -> Result<(), ServeError> {
        let stop = self.stop.clone();
        let (health, health_service) = tonic_health::server::health_reporter();
        for name in HEALTH_NAMES {
            health
                .set_service_status(name, ServingStatus::Serving)
                .await;
        }
        let has_capacity = self.store.has_capacity();
        tokio::spawn(report_health(
            health,
            self.own_identity,
            has_capacity,
            self.store.health(),
            stop.clone(),
        ));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Lets generic clients decode the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let is_shared = self.store.is_shared();
        let events = Events::new(self.store.clone(), self.format, stop.clone());
        let integrations = Integrations {
            store: self.store,
            delivery: Arc::new(self.delivery),
            watch: self.watch,
            issued_only: self.issued_external_ids_only,
            deletions: Arc::default(),
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let mut server = Server::builder();
        if is_shared {
            server = server.max_connection_age(connection_age());
        }
        server
            // Detects clients that are gone without having closed their connection.
            .http2_keepalive_interval(Some(KEEPALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            // Requests that wait for memory fill their own windows only, never that of the
            // connection, so that its other requests are received.
            .initial_connection_window_size(STREAM_WINDOW * MAX_REQUESTS_PER_CONNECTION as u32)
            // Status streams are long-lived, and many share a connection.
            .max_concurrent_streams(Some(20_000))
            // Beyond it the requests of a connection are not even read.
            .concurrency_limit_per_connection(MAX_REQUESTS_PER_CONNECTION)
            // A client that never ends its request must not occupy a handler forever.
            .timeout(DEADLINE)
            // Before the layers below, which may refuse a request, so that refusals are traced.
            .layer(
                TraceLayer::new_for_grpc()
                    .make_span_with(trace::RequestSpans::new(!exports_traces()))
                    .on_failure(trace::log_failure),
            )
            // Before the codecs, so that no message is read without memory for it.
            .layer(RequestBodyLayer::new(
                self.publish_bytes_in_flight,
                MAX_EVENT_MESSAGE_BYTES,
                MAX_OTHER_MESSAGE_BYTES,
            ))
            .add_service(
                // The codec's own limit must not be below that of the layer.
                EventServiceServer::new(events).max_decoding_message_size(MAX_EVENT_MESSAGE_BYTES),
            )
            .add_service(SiemIntegrationServiceServer::new(integrations))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?;
        Ok(())
    }
}

/// Age at which a connection is told to end after its requests, so that clients spread over the
/// instances of a service that grows. Each instance has another one.
fn connection_age() -> Duration {
    CONNECTION_AGE.mul_f64(rand::random_range(0.9..1.1))
}

/// Reports `delivery` as NOT_SERVING while AWS refuses this service's own identity, and `publish`
/// while the storage has no capacity for events; both while this instance has lost contact with
/// its database, and `delivery` while it has given up a partition.
async fn report_health(
    mut health: HealthReporter,
    mut own_identity: watch::Receiver<IdentityState>,
    mut has_capacity: watch::Receiver<bool>,
    mut storage: watch::Receiver<Health>,
    stop: CancellationToken,
) {
    loop {
        let storage_now = *storage.borrow_and_update();
        let has_identity = matches!(*own_identity.borrow_and_update(), IdentityState::Good);
        let has_capacity_now = *has_capacity.borrow_and_update();
        let delivers = has_identity && !storage_now.has_lapsed && storage_now.given_up == 0;
        let accepts = has_capacity_now && !storage_now.has_lapsed && !storage_now.is_full;
        for (name, serves) in [(DELIVERY_HEALTH, delivers), (PUBLISH_HEALTH, accepts)] {
            let status = match serves {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            health.set_service_status(name, status).await;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Ok(()) = own_identity.changed() => {}
            Ok(()) = has_capacity.changed() => {}
            Ok(()) = storage.changed() => {}
        }
    }
    // Ends the Watch streams of health, which would delay the shutdown.
    for name in HEALTH_NAMES {
        health.clear_service_status(name).await;
    }
}
