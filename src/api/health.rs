//! `grpc.health.v1.Health`: a caller without an identity, such as a probe, may check the server as a
//! whole only. It may not watch: streams without an end would occupy connections.

use tonic::{Request, Response, Status};
use tonic_health::{
    pb::{HealthCheckRequest, HealthCheckResponse, health_server::Health},
    server::{HealthReporter, HealthService},
};

use super::{caller::Caller, errors::ApiError};

pub(super) struct GuardedHealth(HealthService);

impl GuardedHealth {
    pub(super) fn new(reporter: HealthReporter) -> Self {
        Self(HealthService::from_health_reporter(reporter))
    }
}

fn check_caller(request: &Request<HealthCheckRequest>) -> Result<(), ApiError> {
    match request.get_ref().service.is_empty() || Caller::of(request).is_identified() {
        true => Ok(()),
        false => Err(ApiError::Unauthenticated(
            "health of a service needs a client certificate or a token; ask for the empty name without",
        )),
    }
}

#[tonic::async_trait]
impl Health for GuardedHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        check_caller(&request)?;
        self.0.check(request).await
    }

    type WatchStream = <HealthService as Health>::WatchStream;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !Caller::of(&request).is_identified() {
            return Err(ApiError::Unauthenticated(
                "Watch needs a client certificate or a token; use Check of the empty name without",
            )
            .into());
        }
        self.0.watch(request).await
    }
}
