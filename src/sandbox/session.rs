//! One run: configure the integration, publish, read back, report the result.

use std::{pin::pin, sync::Arc, time::Duration};

use siem_client::{Channel, ChannelOptions, Code};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Feed, Options, SandboxError,
    account::{Account, ROLE_ARN, STREAM_ARN},
    environment::Environment,
    feed::{self, SampleFeed},
    hints::{self, Endpoints},
    reader::Reader,
    screen::Screen,
    statuses::{self, IntegrationState},
    summary,
    tally::Tally,
};
use crate::publish::PublishOptions;
use siem_client::v1::{
    ConfigureRequest, EventCounts, GetRequest,
    siem_integration_service_client::SiemIntegrationServiceClient,
};
use siem_client::{self, PublisherOptions};

/// Events that are published and not yet read back, in a run that waits for each.
const WINDOW_EVENTS: usize = 50_000;
/// Time for the last answers of the service, and for the last read.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Time for the service to count what was delivered, in a run without an end.
const LAST_SETTLING: Duration = Duration::from_secs(1);
/// Interval at which pending events are queried.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Parts of one run.
pub(super) struct Session<'a> {
    pub(super) options: &'a Options,
    pub(super) service: ChannelOptions,
    pub(super) channel: Channel,
    pub(super) screen: &'a Screen,
    pub(super) integration_id: String,
    pub(super) window: Arc<Semaphore>,
}

/// Reason for which the run ended.
enum Ending {
    /// Everything accepted was read back. The input may have had errors all the same.
    ReadBack { input_error: Option<String> },
    /// A signal was received.
    Interrupted,
    /// The reader of stdout closed it.
    Closed,
    /// The integration was deleted.
    Deleted,
    /// An error that ends the run.
    Failed(SandboxError),
}

/// Runs until everything published was read back, or until `shutdown`. The service is stopped
/// when this returns.
pub(super) async fn run(
    options: &Options,
    account: &Account,
    environment: &mut Environment,
    screen: &Screen,
    shutdown: &CancellationToken,
) -> Result<(), SandboxError> {
    let started = Instant::now();
    let channel = environment.service().connect()?;
    let endpoints = Endpoints::new(options, environment, account);
    let records = environment.control().subscribe(STREAM_ARN)?;
    let integration_id = configure(channel.clone(), options, account).await?;
    screen.note(&hints::greeting(&endpoints, screen.paint()));
    let (latest, state) = watch::channel(IntegrationState::Unknown);
    let _follower = AbortOnDropHandle::new(tokio::spawn(statuses::follow(
        channel.clone(),
        options.organization.as_str().to_owned(),
        screen.clone(),
        latest,
    )));
    let session = Session {
        options,
        channel,
        service: environment.service(),
        screen,
        integration_id,
        window: Arc::new(Semaphore::new(WINDOW_EVENTS)),
    };
    let mut reader = Reader::new(&session, records, state.clone());
    let mut ending = session
        .until_end(environment, &mut reader, state.clone(), shutdown)
        .await;
    if reader.has_read() {
        ending = session.settle(ending, state).await;
    }
    let counts = session.counts().await;
    environment.stop_service().await?;
    // Once the stream is deleted, the reader ends after its last record.
    environment.control().delete_stream(STREAM_ARN);
    let last = timeout(LAST_ANSWERS, reader.rest()).await;
    let tally = reader.into_tally();
    screen.note(&summary::text(&tally, counts, started.elapsed()));
    session.result(ending, &tally)?;
    last.unwrap_or(Ok(()))
}

/// Creates the integration through the API. Returns its id.
async fn configure(
    channel: Channel,
    options: &Options,
    account: &Account,
) -> Result<String, SandboxError> {
    let request = ConfigureRequest {
        organization_id: options.organization.as_str().to_owned(),
        kinesis_stream_arn: STREAM_ARN.to_owned(),
        role_arn: ROLE_ARN.to_owned(),
        external_id: account.external_id().to_owned(),
        ..ConfigureRequest::default()
    };
    let answer = SiemIntegrationServiceClient::new(channel)
        .configure(request)
        .await
        .map_err(|status| SandboxError::call("Configure", status))?;
    let integration = answer.into_inner().integration.unwrap_or_default();
    Ok(integration.integration_id)
}

impl Session<'_> {
    async fn until_end(
        &self,
        environment: &mut Environment,
        reader: &mut Reader<'_>,
        mut state: watch::Receiver<IntegrationState>,
        shutdown: &CancellationToken,
    ) -> Ending {
        let (goal, mut goal_seen) = watch::channel(match self.options.feed {
            Feed::Count(count) => Some(count),
            Feed::Samples | Feed::Eve { .. } => None,
        });
        let has_end = self.options.feed.has_end();
        let deleted = async {
            // An error means that the watch ended.
            let seen = state
                .wait_for(|now| *now == IntegrationState::Deleted)
                .await;
            if seen.is_err() || !has_end {
                std::future::pending::<()>().await;
            }
        };
        let stop = CancellationToken::new();
        let mut feed = pin!(self.feed(&goal, stop.clone()));
        let mut feeding = true;
        let mut input_error = None;
        let ending = {
            let mut reading = pin!(reader.until(&mut goal_seen));
            let mut deleted = pin!(deleted);
            loop {
                tokio::select! {
                    fed = &mut feed, if feeding => match fed {
                        Ok(open) => {
                            feeding = false;
                            input_error = open;
                        }
                        Err(error) => break Ending::Failed(error),
                    },
                    read = &mut reading => break match read {
                        Ok(()) => Ending::ReadBack { input_error: None },
                        Err(error) => Ending::Failed(error),
                    },
                    () = &mut deleted => break Ending::Deleted,
                    () = shutdown.cancelled() => break Ending::Interrupted,
                    () = self.screen.closed() => break Ending::Closed,
                    error = environment.ended() => break Ending::Failed(error),
                }
            }
        };
        stop.cancel();
        if feeding && !has_end {
            let _ = timeout(LAST_ANSWERS, feed).await;
        }
        match ending {
            Ending::ReadBack { .. } => Ending::ReadBack { input_error },
            other => other,
        }
    }

    /// Publishes the input. Sets the number of events to read back if it is known only then.
    /// Returns an error of the input that does not end the run.
    async fn feed(
        &self,
        goal: &watch::Sender<Option<u64>>,
        stop: CancellationToken,
    ) -> Result<Option<String>, SandboxError> {
        let samples = || SampleFeed {
            channel: self.channel.clone(),
            organization: self.options.organization.as_str().to_owned(),
            screen: self.screen.clone(),
        };
        match &self.options.feed {
            Feed::Samples => samples().until(stop).await?,
            Feed::Count(count) => samples().all(*count, Arc::clone(&self.window)).await?,
            Feed::Eve { .. } => return self.feed_eve(goal, stop).await,
        }
        Ok(None)
    }

    async fn feed_eve(
        &self,
        goal: &watch::Sender<Option<u64>>,
        stop: CancellationToken,
    ) -> Result<Option<String>, SandboxError> {
        let Some(options) = self.publish_options() else {
            return Ok(None);
        };
        let summary = feed::eve(options, self.screen, stop).await?;
        self.screen.note(summary.to_string().trim_end());
        // Events that were sent again after a lost connection may have been accepted twice.
        let counts = self.counts().await;
        let accepted = counts.map_or(summary.counts.accepted, |counts| counts.accepted);
        goal.send_replace(Some(accepted));
        let counts = &summary.counts;
        Ok((!summary.is_success()).then(|| {
            format!(
                "{} of {} alerts were accepted, and {} lines are broken",
                counts.accepted, counts.published, counts.broken
            )
        }))
    }

    fn publish_options(&self) -> Option<PublishOptions> {
        let Feed::Eve {
            input,
            network_id,
            device_id,
        } = &self.options.feed
        else {
            return None;
        };
        Some(PublishOptions {
            input: input.clone(),
            organization_id: self.options.organization.as_str().to_owned(),
            network_id: *network_id,
            device_id: *device_id,
            service: self.service.clone(),
            from_line: 1,
            shutdown_grace: LAST_ANSWERS,
            publisher: PublisherOptions::default(),
        })
    }

    /// Waits until the service has recorded what was delivered: the status is Active and nothing
    /// is pending. A run that ends by itself fails if that does not happen.
    async fn settle(&self, ending: Ending, mut state: watch::Receiver<IntegrationState>) -> Ending {
        let must = matches!(ending, Ending::ReadBack { .. });
        let may = !self.options.feed.has_end() && state.borrow().is_active();
        if !must && !may {
            return ending;
        }
        let stall_timeout = match must {
            true => self.options.stall_timeout,
            false => LAST_SETTLING,
        };
        let settled = timeout(stall_timeout, async {
            // An error means that the watch ended.
            let _ = state.wait_for(IntegrationState::is_active).await;
            let mut polls = interval(POLL_INTERVAL);
            while self.counts().await.is_some_and(|counts| counts.pending > 0) {
                polls.tick().await;
            }
        });
        match settled.await {
            Err(_) if must => Ending::Failed(SandboxError::Unsettled {
                stall_timeout,
                status: state.borrow().describe(),
            }),
            _ => ending,
        }
    }

    /// Returns the integration's counts; `None` if it does not exist.
    async fn counts(&self) -> Option<EventCounts> {
        let request = GetRequest {
            organization_id: self.options.organization.as_str().to_owned(),
        };
        let mut client = SiemIntegrationServiceClient::new(self.channel.clone());
        let answer = timeout(LAST_ANSWERS, client.get(request)).await.ok()?;
        match answer {
            Ok(answer) => answer.into_inner().integration?.counts,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => {
                self.screen
                    .note(&format!("Get failed: {}", status.message()));
                None
            }
        }
    }

    /// Returns the result of the run, which decides the exit code.
    fn result(&self, ending: Ending, tally: &Tally) -> Result<(), SandboxError> {
        let read_back = tally.complete_to(&self.integration_id);
        match ending {
            Ending::Failed(error) => Err(error),
            Ending::ReadBack { input_error: None } => Ok(()),
            Ending::ReadBack {
                input_error: Some(input_error),
            } => Err(SandboxError::Eve(input_error)),
            Ending::Deleted => Err(SandboxError::Deleted { read_back }),
            Ending::Interrupted | Ending::Closed if !self.options.feed.has_end() => Ok(()),
            Ending::Interrupted => Err(SandboxError::Interrupted { read_back }),
            Ending::Closed => Err(SandboxError::Closed { read_back }),
        }
    }
}
