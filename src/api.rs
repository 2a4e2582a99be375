//! The gRPC server and its services.
//!
//! A request passes these layers, in this order; [`Api::serve`] builds them:
//!
//! 1. `connections`: TLS, HTTP, limits of connections; unread answers
//! 2. `web`: gRPC-Web becomes gRPC; preflights are answered, and foreign origins refused
//! 3. `rpc_metrics`: duration and code
//! 4. `connections`: deadline of the call
//! 5. `trace`: a span, and a log line if the request fails
//! 6. `audit`: records calls that the layers below refuse
//! 7. `caller`: identity and scopes; unknown paths end here if authentication is on
//! 8. `limits`: requests and streams of the caller
//! 9. `request_body`: framing, gzip, size of a message, memory budget of publishes
//! 10. router and codec of the service
//! 11. handler: `events` or `integrations`, which check the organizations; `health` or reflection
//!
//! `errors` is the table of all errors, `validate` converts requests into domain values, and
//! `convert` domain values into answers. `sealed_token` hides the content of tokens from callers.

pub mod event_decoder;

mod audit;
mod caller;
mod connections;
mod convert;
mod deletions;
mod errors;
mod events;
mod health;
mod integrations;
mod limits;
mod onboarding;
mod peer;
mod request_body;
mod rpc_metrics;
mod sealed_token;
mod trace;
mod validate;
mod web;

use std::sync::Arc;

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{ServingStatus, pb::health_server::HealthServer, server::HealthReporter};
use tower::{ServiceBuilder, util::MapRequestLayer};
use tower_http::trace::TraceLayer;

#[cfg(feature = "fuzzing")]
pub use self::caller::fuzz_credentials;
use self::{
    audit::{AuditLayer, note_caller},
    caller::CallerLayer,
    connections::DeadlineLayer,
    deletions::Deletions,
    events::Events,
    health::GuardedHealth,
    integrations::Integrations,
    limits::{Limits, LimitsLayer},
    request_body::RequestBodyLayer,
    rpc_metrics::RpcMetricsLayer,
    sealed_token::SealedTokens,
    web::WebLayer,
};
pub use self::{
    caller::{Callers, CallersError},
    connections::{
        ConnectionOptions, Tls, TlsError, TlsOptions, connections_within_limit, max_connections,
    },
    limits::LimitOptions,
    web::WebOptions,
};
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

    /// Account of this service's credentials, 12 digits, once it is known.
    fn account(&self) -> Option<Arc<str>>;

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
    /// Traces of callers are continued.
    pub trust_trace_context: bool,
    /// State of this service's own AWS identity, for health.
    pub own_identity: watch::Receiver<IdentityState>,
    /// Callers and their rights; None while authentication is off.
    pub callers: Option<Callers>,
    /// Bytes of publishes in memory until they are durable.
    pub publish_bytes_in_flight: usize,
    /// Limits of connections.
    pub connections: ConnectionOptions,
    /// TLS; None for clear text.
    pub tls: Option<Tls>,
    /// gRPC-Web; None while it is off.
    pub web: Option<WebOptions>,
    /// Limits of callers and organizations.
    pub limits: LimitOptions,
    /// Ends the server and all streams.
    pub stop: CancellationToken,
}

/// Error that ends the API early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The key for page tokens and resume tokens cannot be used.
    #[error("tokens cannot be sealed")]
    Tokens,
    /// The descriptors for reflection are damaged.
    #[error("reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl<D: Delivery> Api<D> {
    /// Serves until `stop`. Then it accepts nothing more, and returns once every handler has
    /// ended, and every client has its answer or had a second to take it.
    pub async fn serve(self, listener: TcpListener) -> Result<(), ServeError> {
        let stop = self.stop.clone();
        let health = HealthReporter::new();
        let health_service = HealthServer::new(GuardedHealth::new(health.clone()));
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
        if let Some(callers) = self.callers.clone() {
            tokio::spawn(callers.keep_current(stop.clone()));
        }
        let token_key = self.store.token_key();
        let tokens = |kind| SealedTokens::new(&token_key, kind).map_err(|_| ServeError::Tokens);
        let store = self.store.clone();
        let audit = AuditLayer::new(move |refusal| store.audit_refusal(refusal));
        let limits = Limits::new(self.limits);
        tokio::spawn(trace::report_malformed_requests(stop.clone()));
        let events = Events::new(
            self.store.clone(),
            self.format,
            limits.clone(),
            stop.clone(),
        );
        let integrations = Integrations {
            page_tokens: tokens("page")?,
            resume_tokens: Arc::new(tokens("resume")?),
            store: self.store,
            delivery: Arc::new(self.delivery),
            watch: self.watch,
            issued_only: self.issued_external_ids_only,
            deletions: Deletions::default(),
            limits: limits.clone(),
        };
        // The codec's own limit must not be below that of the layer.
        let events =
            EventServiceServer::new(events).max_decoding_message_size(MAX_EVENT_MESSAGE_BYTES);
        let routes = Routes::new(events)
            .add_service(SiemIntegrationServiceServer::new(integrations))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        let service = ServiceBuilder::new()
            // Outside of all that refuse calls, so that browsers can read the refusals.
            .layer(WebLayer { options: self.web })
            // Outside of all that may refuse a call.
            .layer(RpcMetricsLayer::new(trace::known_paths()))
            .layer(DeadlineLayer)
            // Before the layers below, which may refuse a request, so that refusals are traced.
            .layer(
                TraceLayer::new_for_grpc()
                    .make_span_with(trace::RequestSpans::new(
                        !exports_traces(),
                        self.trust_trace_context,
                    ))
                    .on_failure(trace::log_failure),
            )
            // Outside of the layers that refuse calls.
            .layer(audit)
            .layer(CallerLayer {
                callers: self.callers,
                limits: limits.clone(),
            })
            .layer(MapRequestLayer::new(note_caller))
            // Before anything of the body is read.
            .layer(LimitsLayer(limits))
            // Before the codecs, so that no message is read without memory for it.
            .layer(RequestBodyLayer::new(
                self.publish_bytes_in_flight,
                MAX_EVENT_MESSAGE_BYTES,
                MAX_OTHER_MESSAGE_BYTES,
            ))
            .service(routes);
        connections::serve(listener, self.tls, service, self.connections, stop).await;
        Ok(())
    }
}

/// Whether `delivery` and `publish` serve: `delivery` does not while AWS refuses this service's own
/// identity, and `publish` while the storage has no capacity for events; both do not while this
/// instance has lost contact with its database, and `delivery` while it has given up a partition.
pub fn serving(
    own_identity: &IdentityState,
    has_capacity: bool,
    storage: Health,
) -> [(&'static str, bool); 2] {
    let has_identity = matches!(own_identity, IdentityState::Good);
    let delivers = has_identity && !storage.has_lapsed && storage.given_up == 0;
    let accepts = has_capacity && !storage.has_lapsed && !storage.is_full;
    [(DELIVERY_HEALTH, delivers), (PUBLISH_HEALTH, accepts)]
}

/// Names of the reasons of errors, with their numbers.
pub fn refusal_reasons() -> Vec<(i32, &'static str)> {
    errors::reasons()
}

/// Reports in `grpc.health.v1` what [`serving`] says, as it changes.
async fn report_health(
    mut health: HealthReporter,
    mut own_identity: watch::Receiver<IdentityState>,
    mut has_capacity: watch::Receiver<bool>,
    mut storage: watch::Receiver<Health>,
    stop: CancellationToken,
) {
    loop {
        let storage_now = *storage.borrow_and_update();
        let identity_now = own_identity.borrow_and_update().clone();
        let has_capacity_now = *has_capacity.borrow_and_update();
        for (name, serves) in serving(&identity_now, has_capacity_now, storage_now) {
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
