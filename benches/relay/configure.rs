//! Integrations, made and looked at through the API.

use std::net::SocketAddr;

use futures_util::{TryStreamExt, stream};
use siem_client::channel;
use siem_client::v1::{
    ConfigureRequest, DeleteRequest, EventCounts, GetRequest, ListRequest,
    siem_integration_service_client::SiemIntegrationServiceClient,
};
use tonic::transport::Channel;

use super::{Failure, workload::Workload};

/// Configure calls at once: they share syncs.
const AT_ONCE: usize = 200;
const PAGE: u32 = 1000;

#[derive(Clone)]
pub struct Admin(SiemIntegrationServiceClient<Channel>);

impl Admin {
    pub fn new(address: SocketAddr) -> Result<Self, Failure> {
        let channel = channel(&address.to_string())?;
        Ok(Self(SiemIntegrationServiceClient::new(channel)))
    }

    /// Configures organizations, from number 0.
    pub async fn configure(&self, organizations: usize) -> Result<(), Failure> {
        stream::iter((0..organizations).map(Ok))
            .try_for_each_concurrent(AT_ONCE, |number| self.configure_one(number))
            .await
    }

    pub async fn configure_one(&self, number: usize) -> Result<(), Failure> {
        let request = ConfigureRequest {
            organization_id: Workload::organization(number),
            kinesis_stream_arn: format!(
                "arn:aws:kinesis:us-east-1:222222222222:stream/detections-{number}"
            ),
            role_arn: "arn:aws:iam::222222222222:role/siem-relay".to_owned(),
            external_id: format!("external-{number:08}-0123456789abcdef"),
            ..Default::default()
        };
        self.0.clone().configure(request).await?;
        Ok(())
    }

    pub async fn delete(&self, number: usize) -> Result<(), Failure> {
        let request = DeleteRequest {
            organization_id: Workload::organization(number),
            ..Default::default()
        };
        self.0.clone().delete(request).await?;
        Ok(())
    }

    /// Whether it answers about the first organization.
    pub async fn answers(&self) -> bool {
        let request = GetRequest {
            organization_id: Workload::organization(0),
        };
        self.0.clone().get(request).await.is_ok()
    }

    /// The counts of all integrations together.
    pub async fn counts(&self) -> Result<EventCounts, Failure> {
        let mut sum = EventCounts::default();
        let mut page_token = String::new();
        loop {
            let request = ListRequest {
                page_size: PAGE,
                page_token,
                ..Default::default()
            };
            let page = self.0.clone().list(request).await?.into_inner();
            for counts in page.integrations.iter().filter_map(|it| it.counts) {
                sum.accepted += counts.accepted;
                sum.delivered += counts.delivered;
                sum.expired += counts.expired;
                sum.discarded += counts.discarded;
                sum.pending += counts.pending;
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(sum);
            }
        }
    }
}
