//! Follows StreamStatus over disconnects and restarts of the server.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant, sleep_until, timeout_at};
use tonic::{Code, Streaming};

use crate::{
    Channel, SiemError,
    retry::{Backoff, MAX_WAIT, MIN_WAIT, Remedy, of_stream},
    v1::{
        self, StatusAbsent, StatusCurrent, StatusDeleted, StreamStatusRequest,
        StreamStatusResponse, siem_integration_service_client::SiemIntegrationServiceClient,
        stream_status_response::Event,
    },
};

/// Longest time without a message, unless [`StatusWatch::with_silence_limit`] sets another one.
const DEFAULT_SILENCE_LIMIT: Duration = Duration::from_secs(90);

/// The complete current statuses. It replaces everything that the watch returned before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatusSnapshot {
    /// Current status of each integration, by organization.
    pub statuses: BTreeMap<String, StatusCurrent>,
    /// Those of the named organizations that have no integration.
    pub absent: BTreeSet<String>,
}

/// An event of a watch: a new picture, or a change of it.
#[derive(Debug, Clone, PartialEq)]
pub enum StatusEvent {
    /// All current statuses; the first event, and whenever the changes since the last event are
    /// not known.
    Snapshot(StatusSnapshot),
    /// The status of an integration that is new or has changed.
    Current(StatusCurrent),
    /// An integration was deleted.
    Deleted(StatusDeleted),
    /// A named organization has no integration.
    Absent(StatusAbsent),
}

/// A subscription to the statuses of integrations.
///
/// The first event is a [`StatusSnapshot`], then each change follows. A broken stream is opened
/// again and continues after the last event. Where that is impossible, a new snapshot follows. Events
/// of a kind that this client does not know are skipped.
#[derive(Debug)]
pub struct StatusWatch {
    client: SiemIntegrationServiceClient<Channel>,
    /// Its token is that of the last message.
    request: StreamStatusRequest,
    /// Token of the last returned event.
    resume_token: String,
    /// The incomplete picture, until it is synced.
    snapshot: Option<StatusSnapshot>,
    stream: Option<Stream>,
    backoff: Backoff,
    /// An open stream was ended as UNAUTHENTICATED, and no message was received since.
    was_unauthenticated: bool,
    silence_limit: Duration,
    /// Time of the last message, or of the start of the attempt to connect. It is kept here, as
    /// is `retry_at`, so that it counts on if the caller drops the future of [`Self::next`].
    last_message: Option<Instant>,
    retry_at: Option<Instant>,
    interruption: Option<SiemError>,
}

#[derive(Debug)]
struct Stream {
    messages: Streaming<StreamStatusResponse>,
    /// Token with which it was opened.
    resumed_after: String,
}

impl StatusWatch {
    /// Watches the named organizations, at most 1,000; none means all.
    pub fn new(channel: Channel, organization_ids: Vec<String>) -> Self {
        Self {
            client: SiemIntegrationServiceClient::new(channel),
            request: StreamStatusRequest {
                organization_ids,
                resume_token: String::new(),
            },
            resume_token: String::new(),
            snapshot: Some(StatusSnapshot::default()),
            stream: None,
            backoff: Backoff::new(MIN_WAIT, MAX_WAIT, Duration::MAX),
            was_unauthenticated: false,
            silence_limit: DEFAULT_SILENCE_LIMIT,
            last_message: None,
            retry_at: None,
            interruption: None,
        }
    }

    /// Sets the longest time without any message before the connection counts as lost; 90 s
    /// otherwise. It must exceed the server's setting `heartbeat-seconds`.
    #[must_use]
    pub fn with_silence_limit(mut self, limit: Duration) -> Self {
        self.silence_limit = limit;
        self
    }

    /// Continues after the event that carried this token, instead of from the current statuses.
    /// An empty one has no effect.
    #[must_use]
    pub fn resume_after(mut self, resume_token: String) -> Self {
        self.snapshot = resume_token.is_empty().then(StatusSnapshot::default);
        self.resume_token.clone_from(&resume_token);
        self.request.resume_token = resume_token;
        self
    }

    /// Token of the last returned event; empty before the first one.
    pub fn resume_token(&self) -> &str {
        &self.resume_token
    }

    /// Failure after which the stream is being opened again; `None` while it is open. [`Self::next`]
    /// does not return for it, so that a caller who shows it looks at it from time to time.
    pub fn interruption(&self) -> Option<&SiemError> {
        self.interruption.as_ref()
    }

    /// Waits for the next event, and reconnects where that is needed. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    ///
    /// The error of a refused call that would be refused again, such as INVALID_ARGUMENT or
    /// UNAUTHENTICATED.
    pub async fn next(&mut self) -> Result<StatusEvent, SiemError> {
        loop {
            if let Some(retry_at) = self.retry_at {
                sleep_until(retry_at).await;
                self.retry_at = None;
            }
            let was_open = self.stream.is_some();
            match self.receive().await {
                Ok(message) => {
                    self.backoff.progress();
                    self.was_unauthenticated = false;
                    self.interruption = None;
                    self.last_message = Some(Instant::now());
                    if let Some(event) = self.received(message) {
                        return Ok(event);
                    }
                }
                Err(error) => {
                    self.stream = None;
                    self.last_message = None;
                    self.failed(error, was_open)?;
                }
            }
        }
    }

    fn received(&mut self, message: StreamStatusResponse) -> Option<StatusEvent> {
        let StreamStatusResponse {
            resume_token,
            event,
        } = message;
        if let Some(Event::Reset(_)) = event {
            let refused = self.stream.as_ref().map(|stream| &stream.resumed_after);
            self.request.resume_token = match refused == Some(&resume_token) {
                true => String::new(),
                false => resume_token,
            };
            self.snapshot = Some(StatusSnapshot::default());
            return None;
        }
        if !resume_token.is_empty() {
            self.request.resume_token = resume_token;
        }
        let Some(snapshot) = &mut self.snapshot else {
            self.resume_token.clone_from(&self.request.resume_token);
            return match event? {
                Event::Current(current) => Some(StatusEvent::Current(current)),
                Event::Deleted(deleted) => Some(StatusEvent::Deleted(deleted)),
                Event::Absent(absent) => Some(StatusEvent::Absent(absent)),
                Event::Synced(_) | Event::Reset(_) | Event::Heartbeat(_) => None,
            };
        };
        match event? {
            Event::Current(current) => {
                snapshot.absent.remove(&current.organization_id);
                let organization_id = current.organization_id.clone();
                snapshot.statuses.insert(organization_id, current);
            }
            Event::Deleted(StatusDeleted {
                organization_id, ..
            }) => {
                snapshot.statuses.remove(&organization_id);
                if self.request.organization_ids.contains(&organization_id) {
                    snapshot.absent.insert(organization_id);
                }
            }
            Event::Absent(StatusAbsent {
                organization_id, ..
            }) => {
                snapshot.statuses.remove(&organization_id);
                snapshot.absent.insert(organization_id);
            }
            Event::Synced(_) => {
                self.resume_token.clone_from(&self.request.resume_token);
                return self.snapshot.take().map(StatusEvent::Snapshot);
            }
            Event::Reset(_) | Event::Heartbeat(_) => {}
        }
        None
    }

    /// Sets the time of the next attempt.
    fn failed(&mut self, error: SiemError, was_open: bool) -> Result<(), SiemError> {
        if was_open && error.code == Code::Unauthenticated && !self.was_unauthenticated {
            self.was_unauthenticated = true;
        } else if error.code == Code::InvalidArgument
            && error.violates("resume_token")
            && !self.request.resume_token.is_empty()
        {
            // The changes since then are not known.
            self.request.resume_token.clear();
            self.snapshot = Some(StatusSnapshot::default());
        } else if of_stream(error.code, error.retry_delay.is_some()) != Remedy::Retry {
            return Err(error);
        }
        let wait = self.backoff.failed(error.retry_delay).unwrap_or(MAX_WAIT);
        self.retry_at = Some(Instant::now() + wait);
        self.interruption = Some(error);
        Ok(())
    }

    async fn receive(&mut self) -> Result<StreamStatusResponse, SiemError> {
        let silent = |_| SiemError::new(Code::Unavailable, "the server is silent");
        let since = *self.last_message.get_or_insert_with(Instant::now);
        let deadline = since + self.silence_limit;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let call = self.client.stream_status(self.request.clone());
                let answer = timeout_at(deadline, call).await.map_err(silent)?;
                none.insert(Stream {
                    messages: answer?.into_inner(),
                    resumed_after: self.request.resume_token.clone(),
                })
            }
        };
        timeout_at(deadline, stream.messages.message())
            .await
            .map_err(silent)??
            .ok_or_else(|| SiemError::new(Code::Unavailable, "the server ended the stream"))
    }
}

/// Returns the status of an integration. One that this version does not know counts as UNKNOWN.
pub fn status_of(status: &v1::IntegrationStatus) -> v1::Status {
    match v1::Status::try_from(status.status) {
        Ok(v1::Status::Unspecified) | Err(_) => v1::Status::Unknown,
        Ok(known) => known,
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
        let mut watch =
            StatusWatch::new(channel, vec![]).with_silence_limit(Duration::from_secs(60));
        let start = Instant::now();
        while connections.load(Ordering::Relaxed) < 3 {
            let next = timeout(Duration::from_millis(5), watch.next()).await;
            assert!(next.is_err(), "{next:?}");
        }
        // The shortest waits before the second and the third attempt.
        assert!(start.elapsed() >= MIN_WAIT / 2 + MIN_WAIT);
        let interruption = watch.interruption().map(|error| error.code);
        assert_eq!(interruption, Some(Code::Unavailable));
        closing.abort();
    }

    /// Pings may keep a connection open whose service is dead.
    #[tokio::test(start_paused = true)]
    async fn dropped_futures_do_not_extend_the_silence_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let channel = crate::channel(&address).unwrap();
        // Below the time after which an unanswered ping ends the connection.
        let mut watch =
            StatusWatch::new(channel, vec![]).with_silence_limit(Duration::from_secs(10));
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
