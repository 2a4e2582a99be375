//! Follows StreamStatus over disconnects and restarts of the server.

use tokio::time::{Duration, sleep, timeout};
use tonic::{Status, Streaming, transport::Channel};

pub use crate::v1::stream_status_response::Event as StatusEvent;
use crate::{
    retry::{self, Backoff, Remedy},
    v1::{
        StreamStatusRequest, StreamStatusResponse,
        siem_integration_service_client::SiemIntegrationServiceClient,
    },
};

const MIN_RETRY_WAIT: Duration = Duration::from_millis(100);
const MAX_RETRY_WAIT: Duration = Duration::from_secs(5);

/// A subscription to the statuses of integrations.
///
/// The first events are the current statuses, then [`StatusEvent::Synced`], then each change. A
/// broken stream is opened again and continues after the last event. After
/// [`StatusEvent::Reset`] forget what was received before: the current statuses follow again.
/// Events of a kind that this client does not know are skipped.
#[derive(Debug)]
pub struct StatusWatch {
    client: SiemIntegrationServiceClient<Channel>,
    request: StreamStatusRequest,
    stream: Option<Streaming<StreamStatusResponse>>,
    backoff: Backoff,
    silence_limit: Duration,
}

impl StatusWatch {
    /// Watches the named organizations, at most 1,000; none means all.
    ///
    /// `silence_limit` is the longest time without any message before the connection counts as
    /// lost. It must exceed the server's setting `heartbeat-seconds`.
    pub fn new(channel: Channel, organization_ids: Vec<String>, silence_limit: Duration) -> Self {
        Self {
            client: SiemIntegrationServiceClient::new(channel),
            request: StreamStatusRequest {
                organization_ids,
                resume_token: String::new(),
            },
            stream: None,
            backoff: Backoff::new(MIN_RETRY_WAIT, MAX_RETRY_WAIT, Duration::MAX),
            silence_limit,
        }
    }

    /// Continues after the event that carried this token, instead of from the current statuses.
    #[must_use]
    pub fn resume_after(mut self, resume_token: String) -> Self {
        self.request.resume_token = resume_token;
        self
    }

    /// Token of the last event; empty before the first one.
    pub fn resume_token(&self) -> &str {
        &self.request.resume_token
    }

    /// Waits for the next event, and reconnects where that is needed. Heartbeats are not
    /// returned. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// The status of a refused call that would be refused again, such as INVALID_ARGUMENT or
    /// UNAUTHENTICATED.
    pub async fn next(&mut self) -> Result<StatusEvent, Status> {
        loop {
            match self.receive().await {
                Ok(message) => {
                    self.backoff.progress();
                    self.request.resume_token = message.resume_token;
                    match message.event {
                        None | Some(StatusEvent::Heartbeat(_)) => {}
                        Some(event) => return Ok(event),
                    }
                }
                Err(status) => {
                    self.stream = None;
                    if retry::of_stream(status.code()) != Remedy::Retry {
                        return Err(status);
                    }
                    let retry_after = retry::retry_after(&status);
                    sleep(self.backoff.failed(retry_after).unwrap_or(MAX_RETRY_WAIT)).await;
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<StreamStatusResponse, Status> {
        let silent = |_| Status::deadline_exceeded("the server is silent");
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let call = self.client.stream_status(self.request.clone());
                none.insert(
                    timeout(self.silence_limit, call)
                        .await
                        .map_err(silent)??
                        .into_inner(),
                )
            }
        };
        timeout(self.silence_limit, stream.message())
            .await
            .map_err(silent)??
            .ok_or_else(|| Status::unavailable("the server ended the stream"))
    }
}
