//! Follows StreamStatus over disconnects and restarts of the server.

use tokio::time::{Duration, Instant, sleep_until, timeout_at};
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
    /// Time of the last message, or of the start of the attempt to connect. It is kept here, as
    /// is `retry_at`, so that it counts on if the caller drops the future of [`Self::next`].
    last_message: Option<Instant>,
    retry_at: Option<Instant>,
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
            last_message: None,
            retry_at: None,
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
            if let Some(retry_at) = self.retry_at {
                sleep_until(retry_at).await;
                self.retry_at = None;
            }
            match self.receive().await {
                Ok(message) => {
                    self.backoff.progress();
                    self.last_message = Some(Instant::now());
                    self.request.resume_token = message.resume_token;
                    match message.event {
                        None | Some(StatusEvent::Heartbeat(_)) => {}
                        Some(event) => return Ok(event),
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.last_message = None;
                    if retry::of_stream(status.code()) != Remedy::Retry {
                        return Err(status);
                    }
                    let retry_after = retry::retry_after(&status);
                    let wait = self.backoff.failed(retry_after).unwrap_or(MAX_RETRY_WAIT);
                    self.retry_at = Some(Instant::now() + wait);
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<StreamStatusResponse, Status> {
        let silent = |_| Status::deadline_exceeded("the server is silent");
        let since = *self.last_message.get_or_insert_with(Instant::now);
        let deadline = since + self.silence_limit;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let call = self.client.stream_status(self.request.clone());
                none.insert(
                    timeout_at(deadline, call)
                        .await
                        .map_err(silent)??
                        .into_inner(),
                )
            }
        };
        timeout_at(deadline, stream.message())
            .await
            .map_err(silent)??
            .ok_or_else(|| Status::unavailable("the server ended the stream"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    /// A caller may poll with a short timeout. That must not shorten the wait between attempts.
    #[tokio::test]
    async fn dropped_futures_do_not_shorten_the_backoff() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&connections);
        let closing = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                drop(connection);
            }
        });
        let channel = crate::channel(&address).unwrap();
        let mut watch = StatusWatch::new(channel, vec![], Duration::from_secs(60));
        let start = Instant::now();
        while connections.load(Ordering::Relaxed) < 3 {
            let next = timeout(Duration::from_millis(5), watch.next()).await;
            assert!(next.is_err(), "{next:?}");
        }
        // The shortest waits before the second and the third attempt.
        assert!(start.elapsed() >= MIN_RETRY_WAIT / 2 + MIN_RETRY_WAIT);
        closing.abort();
    }

    /// Pings may keep a connection open whose service is dead.
    #[tokio::test(start_paused = true)]
    async fn dropped_futures_do_not_extend_the_silence_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let channel = crate::channel(&address).unwrap();
        // Below the time after which an unanswered ping ends the connection.
        let mut watch = StatusWatch::new(channel, vec![], Duration::from_secs(10));
        let mut silence = Vec::new();
        for _ in 0..15 {
            let next = timeout(Duration::from_secs(1), watch.next()).await;
            assert!(next.is_err(), "{next:?}");
            silence.push(
                watch
                    .last_message
                    .map_or(0, |time| time.elapsed().as_secs()),
            );
        }
        assert_eq!(silence[8], 9);
        assert!(silence[14] < 9, "it did not connect again: {silence:?}");
    }
}
