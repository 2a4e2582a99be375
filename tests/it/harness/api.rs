//! Calls of the API through the generated client.

use std::{net::SocketAddr, time::Duration};

use siem_client::{
    Channel,
    v1::{
        self, event_service_client::EventServiceClient,
        siem_integration_service_client::SiemIntegrationServiceClient,
    },
};
use tonic::{Status, transport::Endpoint};
use tonic_types::StatusExt;

use super::{Customer, StatusFeed, with_timeout};

/// Wait before events that were rejected temporarily are sent again.
const RESEND_WAIT: Duration = Duration::from_millis(20);

/// A client of one server. Calls panic on an error, except those named `try_`.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    channel: Channel,
}

impl Api {
    pub fn new(address: SocketAddr) -> Self {
        let channel = siem_client::channel(&address.to_string());
        Self::over(address, channel.unwrap())
    }

    /// A client with a connection of its own, such as one with TLS.
    pub fn over(address: SocketAddr, channel: Channel) -> Self {
        Self { address, channel }
    }

    /// A client whose flow-control window makes the server wait until answers are read.
    pub fn with_small_window(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self {
            address,
            channel: endpoint
                .initial_stream_window_size(1024)
                .connect_lazy()
                .into(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn integrations(&self) -> SiemIntegrationServiceClient<Channel> {
        SiemIntegrationServiceClient::new(self.channel.clone())
    }

    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub async fn try_configure(
        &self,
        request: v1::ConfigureRequest,
    ) -> Result<v1::Integration, Status> {
        let mut client = self.integrations();
        let answer = with_timeout("Configure", client.configure(request)).await?;
        Ok(without_time(answer.into_inner().integration.unwrap()))
    }

    pub async fn configure(&self, customer: &Customer) -> v1::Integration {
        self.try_configure(customer.request()).await.unwrap()
    }

    pub async fn try_get(&self, organization_id: &str) -> Result<v1::Integration, Status> {
        let request = v1::GetRequest {
            organization_id: organization_id.to_owned(),
        };
        let mut client = self.integrations();
        let answer = with_timeout("Get", client.get(request)).await?;
        let integration = answer.into_inner().integration.unwrap();
        assert_counts_add_up(&integration.counts.unwrap());
        Ok(without_time(integration))
    }

    pub async fn get(&self, organization_id: &str) -> v1::Integration {
        self.try_get(organization_id).await.unwrap()
    }

    /// Polls until the counts satisfy `good`.
    pub async fn until_counts(
        &self,
        organization_id: &str,
        good: impl Fn(&v1::EventCounts) -> bool,
    ) -> v1::EventCounts {
        with_timeout("counts", async {
            loop {
                let counts = self.get(organization_id).await.counts.unwrap();
                if good(&counts) {
                    return counts;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Polls until the status satisfies `good`, for details that StreamStatus does not push.
    pub async fn until_status(
        &self,
        organization_id: &str,
        good: impl Fn(&v1::IntegrationStatus) -> bool,
    ) -> v1::IntegrationStatus {
        with_timeout("a status", async {
            loop {
                let status = self.get(organization_id).await.status.unwrap();
                if good(&status) {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Polls until nothing is pending.
    pub async fn until_delivered(&self, organization_id: &str) -> v1::EventCounts {
        self.until_counts(organization_id, |counts| counts.pending == 0)
            .await
    }

    pub async fn generate_external_id(&self, organization_id: &str) -> String {
        let request = v1::GenerateExternalIdRequest {
            organization_id: organization_id.to_owned(),
        };
        let mut client = self.integrations();
        let answer = with_timeout("GenerateExternalId", client.generate_external_id(request)).await;
        answer.unwrap().into_inner().external_id
    }

    pub async fn list(&self, request: v1::ListRequest) -> Result<v1::ListResponse, Status> {
        let mut client = self.integrations();
        let answer = with_timeout("List", client.list(request)).await?;
        let mut answer = answer.into_inner();
        let integrations = answer.integrations.into_iter();
        answer.integrations = integrations.map(without_time).collect();
        Ok(answer)
    }

    pub async fn try_audit(
        &self,
        request: v1::ListAuditEntriesRequest,
    ) -> Result<v1::ListAuditEntriesResponse, Status> {
        let mut client = self.integrations();
        let answer = with_timeout("ListAuditEntries", client.list_audit_entries(request)).await?;
        Ok(answer.into_inner())
    }

    pub async fn delete(
        &self,
        organization_id: &str,
        allow_missing: bool,
    ) -> Result<Option<v1::EventCounts>, Status> {
        let request = v1::DeleteRequest {
            organization_id: organization_id.to_owned(),
            allow_missing,
            ..Default::default()
        };
        let mut client = self.integrations();
        let answer = with_timeout("Delete", client.delete(request)).await?;
        let mut counts = answer.into_inner().counts;
        if let Some(counts) = &mut counts {
            assert_counts_add_up(counts);
            assert_eq!((counts.pending, counts.pending_bytes), (0, 0));
            assert!(counts.as_of_time.take().is_some());
        }
        Ok(counts)
    }

    pub async fn try_send_test(
        &self,
        organization_id: &str,
    ) -> Result<v1::SendTestResponse, Status> {
        let request = v1::SendTestRequest {
            organization_id: organization_id.to_owned(),
        };
        let mut client = self.integrations();
        let answer = with_timeout("SendTest", client.send_test(request)).await?;
        Ok(answer.into_inner())
    }

    pub async fn send_test(&self, organization_id: &str) -> v1::SendTestResponse {
        self.try_send_test(organization_id).await.unwrap()
    }

    /// Publishes events, and sends those again that are rejected temporarily. The answer is that
    /// for all of them.
    pub async fn try_publish(&self, events: Vec<v1::Event>) -> Result<v1::PublishResponse, Status> {
        let mut client = self.events();
        let mut total = v1::PublishResponse::default();
        let mut waiting: Vec<(u32, v1::Event)> = (0..).zip(events).collect();
        loop {
            let events = waiting.iter().map(|(_, event)| event.clone()).collect();
            let answer = client.publish(v1::PublishRequest { events });
            let answer = with_timeout("Publish", answer).await?.into_inner();
            total.accepted += answer.accepted;
            total.unconfigured += answer.unconfigured;
            let mut again = Vec::new();
            for mut rejection in answer.rejections {
                let (index, event) = &waiting[rejection.index as usize];
                let reason = rejection.reason();
                let temporary = [v1::ErrorReason::Overloaded, v1::ErrorReason::RateLimited];
                if temporary.contains(&reason) {
                    again.push((*index, event.clone()));
                } else {
                    rejection.index = *index;
                    total.rejections.push(rejection);
                }
            }
            if again.is_empty() {
                total.rejections.sort_by_key(|rejection| rejection.index);
                return Ok(total);
            }
            waiting = again;
            tokio::time::sleep(RESEND_WAIT).await;
        }
    }

    /// Publishes events, all of which must be accepted.
    pub async fn publish(&self, events: &[v1::Event]) {
        for request in events.chunks(1000) {
            let answer = self.try_publish(request.to_vec()).await.unwrap();
            assert_eq!(answer.rejections, []);
            assert_eq!(answer.unconfigured, 0);
            assert_eq!(answer.accepted as usize, request.len());
        }
    }

    /// Subscribes to the status of organizations, or of all if none is named.
    pub async fn watch(&self, organization_ids: &[&str], resume_token: &str) -> StatusFeed {
        let request = v1::StreamStatusRequest {
            organization_ids: organization_ids.iter().map(|id| (*id).to_owned()).collect(),
            resume_token: resume_token.to_owned(),
        };
        let mut client = self.integrations();
        let answer = with_timeout("StreamStatus", client.stream_status(request)).await;
        StatusFeed::new(answer.unwrap().into_inner())
    }

    /// Subscribes to the status of an organization, from its next change on.
    pub async fn watch_changes(&self, organization_id: &str) -> StatusFeed {
        let mut feed = self.watch(&[organization_id], "").await;
        feed.until_synced().await;
        feed
    }
}

/// Without the time of the counts, which differs from answer to answer.
pub fn without_time(mut integration: v1::Integration) -> v1::Integration {
    if let Some(counts) = &mut integration.counts {
        counts.as_of_time = None;
    }
    integration
}

fn assert_counts_add_up(counts: &v1::EventCounts) {
    let sum = counts.delivered + counts.expired + counts.discarded + counts.pending;
    assert_eq!(counts.accepted, sum, "{counts:?} does not add up");
    assert!(counts.pending > 0 || counts.oldest_pending_time.is_none());
}

/// Reason in an error's ErrorInfo.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.domain, "siem.v1");
    info.reason.clone()
}

/// Fields in an error's BadRequest.
pub fn violated(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let bad_request = details.bad_request().unwrap();
    bad_request
        .field_violations
        .iter()
        .map(|violation| {
            assert!(!violation.description.is_empty());
            violation.field.clone()
        })
        .collect()
}
