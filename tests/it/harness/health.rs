//! Health as a load balancer reads it.

use tonic::Streaming;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::{Api, within};

/// A subscription to the health of one service.
pub struct HealthFeed(Streaming<HealthCheckResponse>);

impl Api {
    /// Watches the health of a service.
    pub async fn health(&self, service: &str) -> HealthFeed {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut client = HealthClient::new(self.channel());
        let answer = within("Watch of health", client.watch(request)).await;
        HealthFeed(answer.unwrap().into_inner())
    }
}

impl HealthFeed {
    /// Waits until it is this.
    pub async fn until(&mut self, wanted: ServingStatus) {
        within("health", async {
            loop {
                let told = self.0.message().await.unwrap().unwrap();
                if told.status() == wanted {
                    return;
                }
            }
        })
        .await
    }
}
