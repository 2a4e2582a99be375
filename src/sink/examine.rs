//! Checks of this service's own access to AWS, outside of any delivery.

use std::{sync::Arc, time::Duration};

use aws_config::SdkConfig;
use aws_sdk_kinesis::{Client, config::Builder};
use tokio::time::timeout;

use super::{
    AwsOptions, ExternalIds, Unreadable, assume_role::AssumeRole, clock::Clock, config, fault,
    pace::Pace,
};
use crate::domain::{
    arn::Partition,
    external_id::ExternalId,
    integration::Integration,
    status::{Cause, Fault, Stage},
};

/// Calls AWS with this service's own credentials, and changes nothing there.
pub struct Examiner {
    sdk: SdkConfig,
    assume_role: AssumeRole,
    clock: Clock,
    attempt_timeout: Duration,
}

/// Result of the calls. A fault is that of the call, as deliveries would see it.
#[derive(Debug)]
pub struct Examination {
    /// Region of the configuration.
    pub region: Option<String>,
    /// Partition and account of this service's own credentials by GetCallerIdentity.
    pub identity: Result<(Option<Partition>, Option<String>), Fault>,
    /// Lead of AWS's clock over this machine's, in seconds; 0 if AWS tolerates it. None if no
    /// answer came from AWS.
    pub clock_offset: Option<i64>,
    /// Whether the canary role could be assumed; None without a clear answer.
    pub canary: Option<bool>,
    /// Whether Kinesis in the configured region answers, if only with a refusal.
    pub kinesis: Result<(), Fault>,
}

impl Examiner {
    /// Loads the configuration as delivery does. Each call takes at most `attempt_timeout`.
    pub async fn new(options: &AwsOptions, attempt_timeout: Duration) -> Self {
        let options = AwsOptions {
            attempt_timeout,
            ..options.clone()
        };
        let sdk = config::load(&options).await;
        let clock = Clock::default();
        let assume_role = AssumeRole::new(
            &sdk,
            &options,
            Arc::new(NoExternalIds),
            clock.clone(),
            Arc::<Pace>::default(),
        );
        Self {
            sdk,
            assume_role,
            clock,
            attempt_timeout,
        }
    }

    /// Makes the calls.
    pub async fn examine(&self) -> Examination {
        let unanswered = |stage| Fault::unanswered(stage, Cause::Timeout);
        // Twice the time of a call, which is repeated if the clock was wrong.
        let limit = self.attempt_timeout * 2;
        let own = async {
            let answer = timeout(limit, self.assume_role.own_identity()).await;
            answer.unwrap_or_else(|_| Err(unanswered(Stage::AssumeRole)))
        };
        let canary = timeout(limit, self.assume_role.assume_canary());
        let kinesis = timeout(limit, self.kinesis());
        let (identity, canary, kinesis) = tokio::join!(own, canary, kinesis);
        let answered = is_answer(&identity);
        Examination {
            region: self.assume_role.region().map(str::to_owned),
            identity,
            clock_offset: answered.then(|| self.clock.offset_ms() / 1000),
            canary: canary.ok().flatten(),
            kinesis: kinesis.unwrap_or_else(|_| Err(unanswered(Stage::Write))),
        }
    }

    async fn kinesis(&self) -> Result<(), Fault> {
        let conf = Builder::from(&self.sdk)
            .time_source(self.clock.clone())
            .retry_config(config::retries())
            .timeout_config(config::timeouts(self.attempt_timeout))
            .stalled_stream_protection(config::stalled_streams())
            .build();
        // Reads, and needs no stream. A refusal is an answer too: delivery uses the customers'
        // roles, and this service's own identity needs no right on Kinesis.
        let answer = Client::from_conf(conf).describe_limits().send().await;
        match answer.map_err(|error| fault::fault(Stage::Write, &error)) {
            Err(fault) if !matches!(fault.cause, Cause::Service { .. }) => Err(fault),
            _ => Ok(()),
        }
    }
}

/// Whether AWS answered, if only with a refusal.
fn is_answer<T>(answer: &Result<T, Fault>) -> bool {
    match answer {
        Ok(_) => true,
        Err(fault) => matches!(fault.cause, Cause::Service { .. }),
    }
}

/// No customer's role is assumed.
struct NoExternalIds;

impl ExternalIds for NoExternalIds {
    fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
        Err(Unreadable)
    }

    fn open_previous(&self, _: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        None
    }

    fn current_accepted(&self, _: &Integration) {}

    fn is_current(&self, _: &Integration) -> bool {
        false
    }
}
