//! Publishing: samples, or the alerts of an EVE file.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use siem_client::Channel;
use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{SandboxError, samples::Samples, screen::Screen};
use crate::publish::{self, ConsoleReporter, PublishOptions, Summary};
use siem_client::v1::{ErrorReason, PublishResponse};
use siem_client::{Ack, EventSender, PublishLoop, PublisherOptions, Update, Updates};

/// Interval of samples in a run without an end, so that a person can read along.
const INTERVAL: Duration = Duration::from_millis(500);

/// Publishes samples for one organization.
pub(super) struct SampleFeed {
    pub(super) channel: Channel,
    pub(super) organization: String,
    pub(super) screen: Screen,
}

impl SampleFeed {
    /// Publishes two samples a second until `stop`.
    pub(super) async fn until(self, stop: CancellationToken) -> Result<(), SandboxError> {
        let (sender, updates, publisher) =
            PublishLoop::new(self.channel.clone(), PublisherOptions::default());
        let publisher = AbortOnDropHandle::new(tokio::spawn(publisher.run()));
        let publish = async {
            let mut samples = Samples::new(&self.organization);
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                if sender.send(&samples.next(), 0).await.is_err() {
                    break;
                }
            }
            drop(sender);
        };
        tokio::join!(publish, self.report(updates));
        // A task that panicked has no result.
        publisher.await.unwrap_or(Ok(()))?;
        Ok(())
    }

    /// Prints rejections and refusals; a missing integration once until it exists again.
    async fn report(&self, mut updates: Updates) {
        let mut is_unconfigured = false;
        while let Some(update) = updates.recv().await {
            let Update::Ack(Ack { outcome, .. }) = update else {
                continue;
            };
            match outcome {
                Ok(response) if response.unconfigured > 0 => {
                    if !is_unconfigured {
                        self.screen.note(&format!(
                            "organization {} has no integration: its events are not kept until a Configure creates one",
                            self.organization
                        ));
                    }
                    is_unconfigured = true;
                }
                Ok(response) => {
                    is_unconfigured &= response.accepted == 0;
                    if let Some(first) = first_rejection(&response) {
                        self.screen.note(&format!("rejected: {first}"));
                    }
                }
                Err(status) => self.screen.note(&format!("refused: {}", status.message())),
            }
        }
    }

    /// Publishes `count` samples as fast as they are accepted, and fails unless each is. Each
    /// takes one permit of `window`.
    pub(super) async fn all(self, count: u64, window: Arc<Semaphore>) -> Result<(), SandboxError> {
        let (sender, updates, publisher) =
            PublishLoop::new(self.channel.clone(), PublisherOptions::default());
        let publisher = AbortOnDropHandle::new(tokio::spawn(publisher.run()));
        let organization = &self.organization;
        let publish = async {
            send_all(sender, organization, count, &window).await;
            Ok(())
        };
        tokio::try_join!(publish, all_accepted(updates, organization))?;
        publisher.await.unwrap_or(Ok(()))?;
        Ok(())
    }
}

async fn send_all(sender: EventSender, organization: &str, count: u64, window: &Semaphore) {
    let mut samples = Samples::new(organization);
    for tag in 0..count {
        let Ok(permit) = window.acquire().await else {
            return;
        };
        permit.forget();
        // The publisher's own result says why it ended.
        if sender.send(&samples.next(), tag).await.is_err() {
            return;
        }
    }
}

async fn all_accepted(mut updates: Updates, organization: &str) -> Result<(), SandboxError> {
    while let Some(update) = updates.recv().await {
        let Update::Ack(ack) = update else {
            continue;
        };
        let response = ack
            .outcome
            .map_err(|status| SandboxError::call("PublishStream", status))?;
        if response.unconfigured > 0 {
            return Err(SandboxError::Unconfigured {
                count: response.unconfigured.into(),
                organization: organization.to_owned(),
            });
        }
        if let Some(first) = first_rejection(&response) {
            let count = response.rejections.len();
            return Err(SandboxError::Rejected { count, first });
        }
    }
    Ok(())
}

fn first_rejection(response: &PublishResponse) -> Option<String> {
    let rejection = response.rejections.first()?;
    let reason = ErrorReason::try_from(rejection.reason).unwrap_or_default();
    Some(format!(
        "{}: {} ({})",
        rejection.field,
        rejection.message,
        reason.as_str_name().trim_start_matches("ERROR_REASON_")
    ))
}

/// Publishes the alerts of an EVE file, and prints its errors.
pub(super) async fn eve(
    options: PublishOptions,
    screen: &Screen,
    stop: CancellationToken,
) -> Result<Summary, SandboxError> {
    let mut reporter = ConsoleReporter::without_bar(Notes {
        screen: screen.clone(),
        line: Vec::new(),
    });
    let summary = publish::run(options, &mut reporter, stop).await?;
    reporter.finish();
    Ok(summary)
}

/// A writer whose lines become notes.
struct Notes {
    screen: Screen,
    line: Vec<u8>,
}

impl Write for Notes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let rest = self.line.split_off(end + 1);
            let line = std::mem::replace(&mut self.line, rest);
            self.screen.note(String::from_utf8_lossy(&line).trim_end());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
