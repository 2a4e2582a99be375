//! Calls with a deadline, retries and typed errors.

use tokio::time::{Duration, Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status};

use crate::{
    Channel, ChannelError, ChannelOptions, Publisher, PublisherOptions, SiemError, StatusWatch,
    retry::{Backoff, MAX_WAIT, MIN_WAIT},
    v1::{
        ConfigureRequest, ConfigureResponse, DeleteRequest, DeleteResponse,
        GenerateExternalIdRequest, GenerateExternalIdResponse, GetOnboardingRequest,
        GetOnboardingResponse, GetRequest, GetResponse, ListAuditEntriesRequest,
        ListAuditEntriesResponse, ListRequest, ListResponse, PublishRequest, PublishResponse,
        SendTestRequest, SendTestResponse, event_service_client::EventServiceClient,
        siem_integration_service_client::SiemIntegrationServiceClient,
    },
};

/// Deadline of a call, unless [`Client::with_timeout`] sets another one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one server, or of several behind one address. Clones share the connection, which is
/// opened at the first use and again after each loss.
///
/// A call has one deadline over all its attempts. It is sent again, after jittered waits, if the
/// server is unavailable or the connection was lost; and if the server asks to try again later,
/// never earlier than that. [`send_test`](Self::send_test),
/// [`generate_external_id`](Self::generate_external_id), [`configure`](Self::configure) with an
/// etag and [`delete`](Self::delete) without `allow_missing` are not sent again once a server may
/// have seen them. Every error is a [`SiemError`].
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use siem_client::{ChannelOptions, Client, v1::GetRequest};
///
/// let client = Client::connect(&ChannelOptions::new("http://127.0.0.1:50051"))?;
/// let organization_id = "acme".to_owned();
/// let answer = client.get(GetRequest { organization_id }).await?;
/// println!("{:?}", answer.integration);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    timeout: Duration,
}

impl Client {
    /// Returns a client with these options. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Those of [`ChannelOptions::connect`].
    pub fn connect(options: &ChannelOptions) -> Result<Self, ChannelError> {
        Ok(Self::new(options.connect()?))
    }

    /// Returns a client of a channel.
    pub fn new(channel: impl Into<Channel>) -> Self {
        Self {
            channel: channel.into(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Sets the deadline of a call over all its attempts; 30 s otherwise.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Creates or replaces the integration of an organization.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt, as for every call.
    pub async fn configure(
        &self,
        request: ConfigureRequest,
    ) -> Result<ConfigureResponse, SiemError> {
        // A second one with the same etag would be refused although the first has succeeded.
        let resend = request.etag.is_empty();
        self.call(request, resend, async |channel, request| {
            integrations(channel).configure(request).await
        })
        .await
    }

    /// Issues a new external ID to an organization.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn generate_external_id(
        &self,
        request: GenerateExternalIdRequest,
    ) -> Result<GenerateExternalIdResponse, SiemError> {
        self.call(request, false, async |channel, request| {
            integrations(channel).generate_external_id(request).await
        })
        .await
    }

    /// Returns an integration with its status and counts.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn get(&self, request: GetRequest) -> Result<GetResponse, SiemError> {
        self.call(request, true, async |channel, request| {
            integrations(channel).get(request).await
        })
        .await
    }

    /// Returns one page of the integrations of all organizations.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn list(&self, request: ListRequest) -> Result<ListResponse, SiemError> {
        self.call(request, true, async |channel, request| {
            integrations(channel).list(request).await
        })
        .await
    }

    /// Removes an integration and its pending events.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn delete(&self, request: DeleteRequest) -> Result<DeleteResponse, SiemError> {
        let resend = request.allow_missing;
        self.call(request, resend, async |channel, request| {
            integrations(channel).delete(request).await
        })
        .await
    }

    /// Writes a test event, and returns the verdict.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt. A refused test event is an answer.
    pub async fn send_test(&self, request: SendTestRequest) -> Result<SendTestResponse, SiemError> {
        self.call(request, false, async |channel, request| {
            integrations(channel).send_test(request).await
        })
        .await
    }

    /// Returns the documents that a customer applies in its AWS account.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn get_onboarding(
        &self,
        request: GetOnboardingRequest,
    ) -> Result<GetOnboardingResponse, SiemError> {
        self.call(request, true, async |channel, request| {
            integrations(channel).get_onboarding(request).await
        })
        .await
    }

    /// Returns one page of the audit log.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn list_audit_entries(
        &self,
        request: ListAuditEntriesRequest,
    ) -> Result<ListAuditEntriesResponse, SiemError> {
        self.call(request, true, async |channel, request| {
            integrations(channel).list_audit_entries(request).await
        })
        .await
    }

    /// Publishes at most 1,000 events and 4 MiB in one call. Temporary rejections are returned like
    /// others; a [`publisher`](Self::publisher) sends those events again.
    ///
    /// # Errors
    ///
    /// The failure of the last attempt.
    pub async fn publish(&self, request: PublishRequest) -> Result<PublishResponse, SiemError> {
        self.call(request, true, async |channel, request| {
            EventServiceClient::new(channel).publish(request).await
        })
        .await
    }

    /// Returns a publisher for many events. Must be called within a tokio runtime.
    pub fn publisher(&self, options: PublisherOptions) -> Publisher {
        Publisher::new(self.channel.clone(), options)
    }

    /// Watches the statuses of the named organizations, at most 1,000; none means all.
    pub fn watch_status(&self, organization_ids: Vec<String>) -> StatusWatch {
        StatusWatch::new(self.channel.clone(), organization_ids)
    }

    async fn call<Q: Clone, A>(
        &self,
        request: Q,
        resend: bool,
        send: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, SiemError> {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(MIN_WAIT, MAX_WAIT, self.timeout);
        let mut last: Option<SiemError> = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = timeout_at(deadline, send(self.channel.clone(), attempt)).await;
            let mut error = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                // The transport's own limit ends at the same time.
                Ok(Err(status)) if Instant::now() < deadline => SiemError::from(status),
                Ok(Err(_)) | Err(_) => {
                    let mut message = "the deadline of the call is over".to_owned();
                    if let Some(last) = &last {
                        message.push_str(&format!("; the attempt before failed: {last}"));
                    }
                    SiemError::new(Code::DeadlineExceeded, message)
                }
            };
            error.attempts = attempts;
            if !error.is_temporary(resend) {
                return Err(error);
            }
            let wait = backoff.failed(error.retry_delay);
            let Some(wait) = wait.filter(|wait| Instant::now() + *wait < deadline) else {
                return Err(error);
            };
            last = Some(error);
            sleep(wait).await;
        }
    }
}

fn integrations(channel: Channel) -> SiemIntegrationServiceClient<Channel> {
    SiemIntegrationServiceClient::new(channel)
}
