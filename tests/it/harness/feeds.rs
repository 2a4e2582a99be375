//! Streams that the service pushes to its callers: status changes and health.

use siem_client::v1::{
    self, Status, StatusReason, StreamStatusResponse, stream_status_response::Event,
};
use tonic::{Code, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::{Api, with_timeout};

/// A message of StreamStatus, short enough to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    Current(String, Status, StatusReason),
    Deleted(String),
    Absent(String),
    Synced,
    Reset,
    Heartbeat,
}

impl FeedEvent {
    pub fn current(organization_id: &str, status: Status) -> Self {
        Self::Current(
            organization_id.to_owned(),
            status,
            StatusReason::Unspecified,
        )
    }

    pub fn with_reason(organization_id: &str, status: Status, reason: StatusReason) -> Self {
        Self::Current(organization_id.to_owned(), status, reason)
    }
}

/// A subscription to StreamStatus.
pub struct StatusFeed {
    messages: Streaming<StreamStatusResponse>,
    /// Resume token of the newest message.
    pub token: String,
    /// Status of the newest `Current` message.
    pub last: Option<v1::IntegrationStatus>,
}

impl StatusFeed {
    pub(super) fn new(messages: Streaming<StreamStatusResponse>) -> Self {
        Self {
            messages,
            token: String::new(),
            last: None,
        }
    }

    /// The next message, which may be a heartbeat.
    pub async fn next_or_heartbeat(&mut self) -> FeedEvent {
        let message = with_timeout("a status message", self.messages.message()).await;
        let message = message.unwrap().expect("the stream continues");
        assert!(!message.resume_token.is_empty());
        self.token = message.resume_token;
        match message.event.unwrap() {
            Event::Current(current) => {
                let status = current.status.unwrap();
                let (now, reason) = (status.status(), status.reason());
                self.last = Some(status);
                FeedEvent::Current(current.organization_id, now, reason)
            }
            Event::Deleted(deleted) => FeedEvent::Deleted(deleted.organization_id),
            Event::Absent(absent) => FeedEvent::Absent(absent.organization_id),
            Event::Synced(_) => FeedEvent::Synced,
            Event::Reset(_) => FeedEvent::Reset,
            Event::Heartbeat(_) => FeedEvent::Heartbeat,
        }
    }

    /// The next message that is no heartbeat.
    pub async fn next(&mut self) -> FeedEvent {
        with_timeout("a status message other than heartbeats", async {
            loop {
                match self.next_or_heartbeat().await {
                    FeedEvent::Heartbeat => {}
                    event => return event,
                }
            }
        })
        .await
    }

    /// Reads to the `synced` marker; returns the messages before it.
    pub async fn until_synced(&mut self) -> Vec<FeedEvent> {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                FeedEvent::Synced => return before,
                event => before.push(event),
            }
        }
    }

    /// Reads to this message; returns the number of messages before it.
    pub async fn until(&mut self, wanted: &FeedEvent) -> usize {
        let mut before = Vec::new();
        loop {
            let event = self.next().await;
            if event == *wanted {
                return before.len();
            }
            before.push(event);
            assert!(before.len() < 10_000, "{before:?}, but not {wanted:?}");
        }
    }

    /// Reads to the end of the stream; returns its status code.
    pub async fn end(&mut self) -> Code {
        with_timeout("the end of the stream", async {
            loop {
                match self.messages.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Code::Ok,
                    Err(status) => return status.code(),
                }
            }
        })
        .await
    }
}

/// A subscription to the health of one service.
pub struct HealthFeed(Streaming<HealthCheckResponse>);

impl Api {
    /// Watches the health of a service, as a load balancer does.
    pub async fn health(&self, service: &str) -> HealthFeed {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut client = HealthClient::new(self.channel());
        let answer = with_timeout("Watch of health", client.watch(request)).await;
        HealthFeed(answer.unwrap().into_inner())
    }
}

impl HealthFeed {
    /// Waits for a status.
    pub async fn until(&mut self, wanted: ServingStatus) {
        with_timeout("health", async {
            loop {
                let message = self.0.message().await.unwrap().unwrap();
                if message.status() == wanted {
                    return;
                }
            }
        })
        .await
    }
}
