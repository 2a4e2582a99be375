//! AssumeRole: sessions that are allowed nothing but writing to the integration's stream.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_config::{Region, SdkConfig};
use aws_sdk_sts::{
    Client,
    config::{Builder, IdentityCache},
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::{
        RequestId,
        assume_role::{AssumeRoleError, AssumeRoleOutput, builders::AssumeRoleFluentBuilder},
    },
};
use moka::future::Cache;
use serde_json::json;
use tokio::time::Instant;
use tracing::{
    Dispatch, Instrument, Span, field::Empty, info_span, instrument::WithSubscriber, warn,
};
use uuid::Uuid;

use super::{
    AssumedWith, AwsOptions, ExternalIdProof, ExternalIds, Unreadable,
    aws::record_request_id,
    clock::Clock,
    config, fault,
    muted::muted,
    pace::Pace,
    sessions::{Lifetime, Session},
};
use crate::{
    domain::{
        arn::{Partition, RoleArn, StreamArn},
        external_id::ExternalId,
        integration::Integration,
        organization::OrganizationId,
        status::{Cause, Fault, Operation, Stage},
    },
    metrics,
};

/// Session name of the canary role.
const SESSION_OF_CANARY: &str = "siem-relay-canary";
/// Length limit of a role session name.
const MAX_SESSION_NAME_LENGTH: usize = 64;

/// Interval between warnings that this service has no credentials.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Longest session that every role grants and that role chaining allows, AWS's default:
/// [AssumeRole](https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html)
const DEFAULT_DURATION: Duration = Duration::from_secs(3600);
/// Period for which a role that refused a longer session is assumed for the default.
const SHORT_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// Session policy of probes, whose sessions are not used.
const NOTHING_ALLOWED: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}"#;

/// External IDs to try, if the integration has a previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tries {
    /// The configured one, and the previous one if that is denied.
    Both,
    /// One of them.
    One(AssumedWith),
}

/// An AssumeRole call in flight.
trait Sent: Future<Output = Result<AssumeRoleOutput, SdkError<AssumeRoleError>>> {}

impl<T> Sent for T where T: Future<Output = Result<AssumeRoleOutput, SdkError<AssumeRoleError>>> {}

/// Assumes roles with this service's own credentials.
pub(super) struct AssumeRole {
    client: Client,
    external_ids: Arc<dyn ExternalIds>,
    duration: Duration,
    /// Roles that refuse sessions of `duration` and grant AWS's default.
    short: Cache<RoleArn, ()>,
    canary: Option<RoleArn>,
    session_prefix: String,
    clock: Clock,
    pace: Arc<Pace>,
    muted: Dispatch,
    warned: Mutex<Option<Instant>>,
}

impl AssumeRole {
    pub(super) fn new(
        sdk: &SdkConfig,
        options: &AwsOptions,
        external_ids: Arc<dyn ExternalIds>,
        clock: Clock,
        pace: Arc<Pace>,
    ) -> Self {
        let conf = Builder::from(sdk)
            .interceptor(clock.clone())
            .time_source(clock.clone())
            .disable_clock_skew_correction(true)
            .retry_config(config::retries())
            .timeout_config(config::timeouts(options.attempt_timeout))
            .stalled_stream_protection(config::stalled_streams())
            .build();
        Self {
            client: Client::from_conf(conf),
            external_ids,
            duration: options.assume_role_duration,
            short: Cache::builder()
                .max_capacity(options.max_sessions)
                .time_to_live(SHORT_PERIOD)
                .build(),
            canary: options.canary_role_arn.clone(),
            clock,
            session_prefix: options.role_session_prefix.clone(),
            pace,
            muted: muted(),
            warned: Mutex::new(None),
        }
    }

    /// Assumes the integration's role.
    pub(super) async fn assume(
        &self,
        integration: &Integration,
        tries: Tries,
    ) -> Result<Arc<Session>, Fault> {
        let span = info_span!(
            "assume_role",
            otel.kind = "client",
            rpc.system = "aws-api",
            rpc.service = "STS",
            rpc.method = "AssumeRole",
            organization_id = integration.organization_id.as_str(),
            integration_id = %integration.integration_id,
            aws.request_id = Empty,
            outcome = Empty,
        );
        async {
            let session = self.call(integration, tries).await;
            let outcome = session.as_ref().map_or_else(Fault::code, |_| "Assumed");
            Span::current().record("outcome", outcome);
            if let Err(fault) = &session {
                record_request_id(fault.request_id.as_deref());
            }
            session
        }
        .instrument(span)
        .await
    }

    async fn call(&self, integration: &Integration, tries: Tries) -> Result<Arc<Session>, Fault> {
        let previous = match tries {
            Tries::One(AssumedWith::Current) => None,
            Tries::Both | Tries::One(AssumedWith::Previous) => {
                self.external_ids.open_previous(integration)
            }
        };
        if let (Tries::One(AssumedWith::Previous), Some(previous)) = (tries, &previous) {
            let previous = previous.clone();
            return self
                .call_with(integration, previous, AssumedWith::Previous)
                .await;
        }
        let current = self.external_ids.open(integration);
        let answer = self
            .call_with(integration, current, AssumedWith::Current)
            .await;
        let (fault, previous) = match (answer, previous) {
            (Err(fault), Some(previous)) if fault.is_role_denied() => (fault, previous),
            (answer, _) => return answer,
        };
        self.call_with(integration, previous, AssumedWith::Previous)
            .await
            .map_err(|second| match second.is_role_denied() {
                true => fault,
                // Not a decision of the customer's account.
                false => second,
            })
    }

    async fn call_with(
        &self,
        integration: &Integration,
        external_id: Result<ExternalId, Unreadable>,
        with: AssumedWith,
    ) -> Result<Arc<Session>, Fault> {
        let external_id = external_id
            .map_err(|_| Fault::unanswered(Stage::AssumeRole, Cause::SecretUnreadable))?;
        let role = &integration.role_arn;
        let is_short = self.short.contains_key(role);
        let duration = match is_short {
            true => self.duration.min(DEFAULT_DURATION),
            false => self.duration,
        };
        let answer = self
            .call_for(integration, &external_id, duration, with)
            .await;
        match answer {
            // Only AWS's message names the value, and messages are not taken.
            Err(fault) if duration > DEFAULT_DURATION && fault.refuses_role_values() => {
                let answer = self
                    .call_for(integration, &external_id, DEFAULT_DURATION, with)
                    .await?;
                self.short.insert(role.clone(), ()).await;
                warn!(
                    role_arn = role.as_str(),
                    refused_seconds = duration.as_secs(),
                    "the role grants no session of assume-role-duration-seconds; it is assumed for 3600 s"
                );
                Ok(answer)
            }
            answer => answer,
        }
    }

    async fn call_for(
        &self,
        integration: &Integration,
        external_id: &ExternalId,
        duration: Duration,
        with: AssumedWith,
    ) -> Result<Arc<Session>, Fault> {
        let start = Instant::now();
        let send = || {
            // The external ID is in clear from here until it is sent.
            let request = self
                .request(integration)
                .external_id(external_id.expose())
                .duration_seconds(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX))
                .policy(session_policy(&integration.stream_arn));
            self.dispatch(integration, request)
        };
        match self.with_clock(Operation::AssumeRole, send).await {
            Ok(output) => self.session(&output, start, duration, with),
            Err(error) => {
                self.warn_of_missing_credentials(&error);
                Err(fault::fault(Stage::AssumeRole, &error))
            }
        }
    }

    /// Makes a call, and repeats it if its answer shows that the clock was wrong when it was
    /// signed.
    async fn with_clock<T, E, F>(
        &self,
        operation: Operation,
        send: impl Fn() -> F,
    ) -> Result<T, SdkError<E>>
    where
        E: Error + ProvideErrorMetadata + 'static,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let counted = async || {
            let answer = send().with_subscriber(self.muted.clone()).await;
            metrics::count_attempt(operation, answer.as_ref().err().map(fault::code));
            answer
        };
        let before = self.clock.offset_ms();
        let answer = counted().await;
        self.clock.report();
        match answer {
            Err(SdkError::ServiceError(_)) if self.clock.is_off_since(before) => counted().await,
            answer => answer,
        }
    }

    /// Logs the reason, at most once a minute. The error concerns this service's own
    /// credentials, never a customer's external ID: nothing has been sent.
    fn warn_of_missing_credentials(&self, error: &SdkError<AssumeRoleError>) {
        let Some(missing) = fault::missing_credentials(error) else {
            return;
        };
        let now = Instant::now();
        let mut last = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| now.duration_since(last) >= WARNING_INTERVAL) {
            *last = Some(now);
            warn!(
                error = %DisplayErrorContext(missing),
                "this service has no AWS credentials to assume roles with: check the credentials in its environment"
            );
        }
    }

    fn request(&self, integration: &Integration) -> AssumeRoleFluentBuilder {
        self.client
            .assume_role()
            .role_arn(integration.role_arn.as_str())
            .role_session_name(session_name(
                &self.session_prefix,
                &integration.organization_id,
            ))
    }

    fn dispatch(
        &self,
        integration: &Integration,
        request: AssumeRoleFluentBuilder,
    ) -> impl Sent + use<> {
        let request = request.customize();
        // A session from any region's STS is valid in the whole partition; if no region is
        // configured, the stream's is used.
        let request = match self.client.config().region() {
            Some(_) => request,
            None => {
                let region = Region::new(integration.stream_arn.region().to_owned());
                request.config_override(Builder::default().region(region))
            }
        };
        request.send()
    }

    /// Probes the role: tries to assume it without an external ID, and with a random one. A
    /// session that is granted is allowed nothing.
    pub(super) async fn prove_external_id(&self, integration: &Integration) -> ExternalIdProof {
        let without = self.is_denied(integration, None).await;
        if without == Ok(false) {
            return ExternalIdProof::NotRequired;
        }
        let random = Uuid::new_v4().simple().to_string();
        let with_another = self.is_denied(integration, Some(random)).await;
        match (without, with_another) {
            (_, Ok(false)) => ExternalIdProof::AnyAccepted,
            (Ok(_), Ok(true)) => ExternalIdProof::Required,
            (Err(fault), _) | (_, Err(fault)) => ExternalIdProof::Unclear(fault),
        }
    }

    /// Assumes a role again as evidence about this service.
    pub(super) async fn assume_again(
        &self,
        integration: &Integration,
        with: AssumedWith,
    ) -> Result<Arc<Session>, Fault> {
        self.pace.count();
        self.assume(integration, Tries::One(with)).await
    }

    /// Reports that a role was assumed with the current external ID.
    pub(super) fn current_accepted(&self, integration: &Integration) {
        self.external_ids.current_accepted(integration);
    }

    /// Whether the integration exists in this version.
    pub(super) fn is_current(&self, integration: &Integration) -> bool {
        self.external_ids.is_current(integration)
    }

    /// Whether a call of the sink's own may be made for the integration.
    pub(super) fn may_call(&self, integration: &Integration) -> bool {
        self.external_ids.may_call(integration)
    }

    /// Region of STS, if one is configured.
    pub(super) fn region(&self) -> Option<&str> {
        self.client.config().region().map(AsRef::as_ref)
    }

    /// Checks this service's own credentials by GetCallerIdentity, which [needs no permission].
    /// Returns their partition and account.
    ///
    /// [needs no permission]: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    pub(super) async fn own_identity(&self) -> Result<(Option<Partition>, Option<String>), Fault> {
        self.require_region()?;
        self.pace.count();
        let send = || self.client.get_caller_identity().send();
        match self.with_clock(Operation::GetCallerIdentity, send).await {
            Ok(output) => Ok((output.arn().and_then(partition), output.account)),
            Err(error) => Err(fault::fault(Stage::AssumeRole, &error)),
        }
    }

    /// Fails if no region is configured: any other region may be one of another partition.
    fn require_region(&self) -> Result<(), Fault> {
        match self.region() {
            Some(_) => Ok(()),
            None => Err(Fault::unanswered(Stage::AssumeRole, Cause::Connection)),
        }
    }

    /// Checks by GetCallerIdentity in this service's own region whether a session is valid.
    pub(super) async fn check_session(&self, session: &Session) -> Result<(), Fault> {
        self.require_region()?;
        self.pace.count();
        let send = || {
            let credentials = Builder::default()
                .credentials_provider(session.credentials())
                .identity_cache(IdentityCache::no_cache());
            let request = self.client.get_caller_identity().customize();
            request.config_override(credentials).send()
        };
        match self.with_clock(Operation::GetCallerIdentity, send).await {
            Ok(_) => Ok(()),
            Err(error) => Err(fault::fault(Stage::AssumeRole, &error)),
        }
    }

    /// Assumes the canary role. Returns whether it could be assumed; None if there is no canary
    /// or no clear answer.
    pub(super) async fn assume_canary(&self) -> Option<bool> {
        let canary = self.canary.as_ref()?;
        self.pace.count();
        let send = || {
            let request = self
                .client
                .assume_role()
                .role_arn(canary.as_str())
                .role_session_name(SESSION_OF_CANARY)
                .policy(NOTHING_ALLOWED);
            request.send()
        };
        match self.with_clock(Operation::AssumeRole, send).await {
            Ok(_session) => Some(true),
            Err(error) => fault::fault(Stage::AssumeRole, &error)
                .is_role_denied()
                .then_some(false),
        }
    }

    /// The canary role, if one is configured.
    pub(super) fn canary(&self) -> Option<&RoleArn> {
        self.canary.as_ref()
    }

    async fn is_denied(
        &self,
        integration: &Integration,
        external_id: Option<String>,
    ) -> Result<bool, Fault> {
        self.pace.count();
        let send = || {
            let request = self
                .request(integration)
                .set_external_id(external_id.clone())
                .policy(NOTHING_ALLOWED);
            self.dispatch(integration, request)
        };
        match self.with_clock(Operation::AssumeRole, send).await {
            Ok(_session) => Ok(false),
            Err(error) => {
                let fault = fault::fault(Stage::AssumeRole, &error);
                match fault.is_role_denied() {
                    true => Ok(true),
                    false => Err(fault),
                }
            }
        }
    }

    fn session(
        &self,
        output: &AssumeRoleOutput,
        start: Instant,
        duration: Duration,
        with: AssumedWith,
    ) -> Result<Arc<Session>, Fault> {
        record_request_id(output.request_id());
        let Some(credentials) = output.credentials() else {
            return Err(Fault::not_aws(Stage::AssumeRole, 200, output.request_id()));
        };
        let left = SystemTime::try_from(*credentials.expiration())
            .ok()
            .and_then(|expiration| expiration.duration_since(self.clock.now()).ok());
        // If the clocks disagree, the requested duration counts.
        let duration = left.map_or(duration, |left| left.min(duration));
        Ok(Arc::new(Session::new(
            aws_credential_types::Credentials::new(
                credentials.access_key_id(),
                credentials.secret_access_key(),
                Some(credentials.session_token().to_owned()),
                // The session checks its lifetime itself; the SDK must not use its own clock.
                None,
                "AssumeRole",
            ),
            Lifetime::new(start, duration, rand::random()),
            with,
        )))
    }
}

/// Partition of an ARN.
fn partition(arn: &str) -> Option<Partition> {
    Partition::parse(arn.split(':').nth(1)?)
}

/// Role session name: prefix and organization id, reduced to the 2 to 64 characters of
/// `[A-Za-z0-9_+=,.@-]` that STS accepts.
fn session_name(prefix: &str, organization: &OrganizationId) -> String {
    let known = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    prefix
        .chars()
        .chain(organization.as_str().chars())
        .map(|c| if known(c) { c } else { '-' })
        .take(MAX_SESSION_NAME_LENGTH)
        .collect()
}

/// Session policy, which narrows the role's permissions: writing to this stream, and encrypting
/// its records under the stream's key, which Kinesis' [encryption context] names. STS accepts
/// 2,048 characters; the longest stream ARN leaves 1,500 of them.
///
/// [encryption context]: https://docs.aws.amazon.com/streams/latest/dev/permissions-user-key-KMS.html
fn session_policy(stream: &StreamArn) -> String {
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["kinesis:PutRecord", "kinesis:PutRecords"],
                "Resource": stream.as_str(),
            },
            {
                "Effect": "Allow",
                "Action": "kms:GenerateDataKey",
                "Resource": "*",
                "Condition": {
                    "StringEquals": {
                        "kms:EncryptionContext:aws:kinesis:arn": stream.as_str(),
                    },
                },
            },
        ],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_name_contains_the_organization() {
        let name = |prefix, id: &str| session_name(prefix, &OrganizationId::new(id).unwrap());
        assert_eq!(name("siem-relay-", "acme_1"), "siem-relay-acme_1");
        assert_eq!(name("my relay/", "acme"), "my-relay-acme");
        let longest = name("siem-relay-", &"x".repeat(64));
        assert_eq!(longest.len(), 64);
        assert!(longest.starts_with("siem-relay-xxx"));
    }

    #[test]
    fn allows_writing_to_one_stream_only() {
        let arn = format!(
            "arn:aws-us-gov:kinesis:us-gov-west-1:123456789012:stream/{}",
            "s".repeat(128)
        );
        let policy = session_policy(&StreamArn::parse(&arn).unwrap());
        assert!(policy.len() <= 2048, "{}", policy.len());
        let policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0]["Resource"], arn);
        assert_eq!(
            statements[0]["Action"],
            json!(["kinesis:PutRecord", "kinesis:PutRecords"])
        );
        assert_eq!(statements[1]["Action"], "kms:GenerateDataKey");
        assert_eq!(
            statements[1]["Condition"],
            json!({"StringEquals": {"kms:EncryptionContext:aws:kinesis:arn": arn}})
        );
    }
}
