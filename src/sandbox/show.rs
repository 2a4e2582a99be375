//! The show: configure, feed, read back, tell how it ended.

mod reader;

use std::{pin::pin, sync::Arc, time::Duration};

use siem_client::{Channel, Code};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Feed, Options, SandboxError,
    account::{Account, ROLE_ARN, STREAM_ARN},
    ending,
    feed::{self, SampleFeed},
    hints::{self, Place},
    screen::Screen,
    statuses::{self, Standing},
    tally::Tally,
    world::World,
};
use crate::publish::PublishOptions;
use reader::Reader;
use siem_client::v1::{
    ConfigureRequest, EventCounts, GetRequest,
    siem_integration_service_client::SiemIntegrationServiceClient,
};
use siem_client::{self, PublisherOptions};

/// Events that were published and not read back yet, where each is waited for.
const WINDOW_EVENTS: usize = 50_000;
/// How long what was published may take to be answered, and a last look.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How long what was delivered may take to be counted before it is told.
const LAST_SETTLING: Duration = Duration::from_secs(1);
/// Between looks at what is pending.
const LOOK: Duration = Duration::from_millis(20);

/// What a show is made of.
struct Show<'a> {
    options: &'a Options,
    channel: Channel,
    address: String,
    screen: &'a Screen,
    integration_id: String,
    window: Arc<Semaphore>,
}

/// Why the show is over.
enum Curtain {
    /// All was read back; something may still be wrong with the input.
    ReadBack { complaint: Option<String> },
    /// A signal.
    Interrupted,
    /// Whoever read stdout is gone.
    Closed,
    /// Somebody deleted the integration that all waits for.
    Deleted,
    /// It cannot go on.
    Failed(SandboxError),
}

/// Runs until what is fed was read back, or until `shutdown`. The service is stopped
/// when it returns.
pub(super) async fn run(
    options: &Options,
    account: &Account,
    world: &mut World,
    screen: &Screen,
    shutdown: &CancellationToken,
) -> Result<(), SandboxError> {
    let started = Instant::now();
    let channel = siem_client::channel(&world.address().to_string())?;
    let place = Place::new(options, world, account);
    let records = world.control().subscribe(STREAM_ARN)?;
    let integration_id = configure(channel.clone(), options, account).await?;
    screen.say(&hints::greeting(&place, screen.paint()));
    let (latest, standing) = watch::channel(Standing::Untold);
    let _follower = AbortOnDropHandle::new(tokio::spawn(statuses::follow(
        channel.clone(),
        options.organization.as_str().to_owned(),
        screen.clone(),
        latest,
    )));
    let show = Show {
        options,
        channel,
        address: world.address().to_string(),
        screen,
        integration_id,
        window: Arc::new(Semaphore::new(WINDOW_EVENTS)),
    };
    let mut reader = Reader::new(&show, records, standing.clone());
    let mut curtain = show
        .play(world, &mut reader, standing.clone(), shutdown)
        .await;
    if reader.has_read() {
        curtain = show.settle(curtain, standing).await;
    }
    let counts = show.counts().await;
    world.stop_service().await?;
    // Without the stream, the reader ends where the records do.
    world.control().delete_stream(STREAM_ARN);
    let last = timeout(LAST_ANSWERS, reader.rest()).await;
    let tally = reader.into_tally();
    screen.say(&ending::told(&tally, counts, started.elapsed()));
    show.judge(curtain, &tally)?;
    last.unwrap_or(Ok(()))
}

/// Creates the integration, as any caller would; answers its id.
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

impl Show<'_> {
    async fn play(
        &self,
        world: &mut World,
        reader: &mut Reader<'_>,
        mut standing: watch::Receiver<Standing>,
        shutdown: &CancellationToken,
    ) -> Curtain {
        let (goal, mut goal_seen) = watch::channel(match self.options.feed {
            Feed::Count(count) => Some(count),
            Feed::Samples | Feed::Eve { .. } => None,
        });
        let has_end = self.options.feed.has_end();
        let deleted = async {
            // An error says that the follower ended, as it does with the service.
            let seen = standing.wait_for(|now| *now == Standing::Deleted).await;
            if seen.is_err() || !has_end {
                std::future::pending::<()>().await;
            }
        };
        let stop = CancellationToken::new();
        let mut feed = pin!(self.feed(&goal, stop.clone()));
        let mut feeding = true;
        let mut complaint = None;
        let curtain = {
            let mut reading = pin!(reader.until(&mut goal_seen));
            let mut deleted = pin!(deleted);
            loop {
                tokio::select! {
                    fed = &mut feed, if feeding => match fed {
                        Ok(open) => {
                            feeding = false;
                            complaint = open;
                        }
                        Err(error) => break Curtain::Failed(error),
                    },
                    read = &mut reading => break match read {
                        Ok(()) => Curtain::ReadBack { complaint: None },
                        Err(error) => Curtain::Failed(error),
                    },
                    () = &mut deleted => break Curtain::Deleted,
                    () = shutdown.cancelled() => break Curtain::Interrupted,
                    () = self.screen.closed() => break Curtain::Closed,
                    error = world.ended() => break Curtain::Failed(error),
                }
            }
        };
        stop.cancel();
        if feeding && !has_end {
            let _ = timeout(LAST_ANSWERS, feed).await;
        }
        match curtain {
            Curtain::ReadBack { .. } => Curtain::ReadBack { complaint },
            other => other,
        }
    }

    /// Publishes, and sets the goal where it shows only then. What it answers is wrong
    /// with the input, though all else is to be read back.
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
            Feed::Samples => samples().show(stop).await?,
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
        self.screen.say(summary.to_string().trim_end());
        // What was sent twice, over a lost connection, was accepted twice.
        let counts = self.counts().await;
        let accepted = counts.map_or(summary.counts.accepted, |counts| counts.accepted);
        goal.send_replace(Some(accepted));
        let counts = &summary.counts;
        Ok((!summary.is_success()).then(|| {
            format!(
                "{} of {} were accepted, and {} lines are broken",
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
            address: self.address.clone(),
            from_line: 1,
            shutdown_grace: LAST_ANSWERS,
            publisher: PublisherOptions::default(),
        })
    }

    /// Waits until the service knows what was delivered, and says so: the status is
    /// Active, and nothing is pending. A run that has an end fails where it does not.
    async fn settle(&self, curtain: Curtain, mut standing: watch::Receiver<Standing>) -> Curtain {
        let must = matches!(curtain, Curtain::ReadBack { .. });
        let may = !self.options.feed.has_end() && standing.borrow().is_active();
        if !must && !may {
            return curtain;
        }
        let patience = match must {
            true => self.options.patience,
            false => LAST_SETTLING,
        };
        let settled = timeout(patience, async {
            // An error says that the follower ended.
            let _ = standing.wait_for(Standing::is_active).await;
            let mut looks = interval(LOOK);
            while self.counts().await.is_some_and(|counts| counts.pending > 0) {
                looks.tick().await;
            }
        });
        match settled.await {
            Err(_) if must => Curtain::Failed(SandboxError::Unsettled {
                patience,
                status: standing.borrow().describe(),
            }),
            _ => curtain,
        }
    }

    /// The integration's counts, or none where it is not there.
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
                    .say(&format!("Get failed: {}", status.message()));
                None
            }
        }
    }

    /// What the end means for the exit code.
    fn judge(&self, curtain: Curtain, tally: &Tally) -> Result<(), SandboxError> {
        let read_back = tally.complete_to(&self.integration_id);
        match curtain {
            Curtain::Failed(error) => Err(error),
            Curtain::ReadBack { complaint: None } => Ok(()),
            Curtain::ReadBack {
                complaint: Some(complaint),
            } => Err(SandboxError::Eve(complaint)),
            Curtain::Deleted => Err(SandboxError::Deleted { read_back }),
            Curtain::Interrupted | Curtain::Closed if !self.options.feed.has_end() => Ok(()),
            Curtain::Interrupted => Err(SandboxError::Interrupted { read_back }),
            Curtain::Closed => Err(SandboxError::Closed { read_back }),
        }
    }
}
