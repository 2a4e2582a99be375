//! AssumeRole: from an integration to a session that may do nothing but write to its
//! stream.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_config::{Region, SdkConfig};
use aws_sdk_sts::{
    Client,
    config::{Builder, IdentityCache},
    error::{DisplayErrorContext, SdkError},
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
    clock::Clock,
    config, fault,
    muted::quiet,
    sessions::{Lifetime, Session},
};
use crate::domain::{
    arn::{Partition, RoleArn, StreamArn},
    external_id::ExternalId,
    integration::Integration,
    organization::OrganizationId,
    status::{Cause, Fault, Meaning, Reason, Stage},
};

/// Session name of the canary role.
const SESSION_OF_CANARY: &str = "siem-relay-canary";
/// The longest role session name.
const MAX_SESSION_NAME_LENGTH: usize = 64;

/// Between one warning that there are no own credentials and the next.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Longest session that every role grants and that role chaining allows: AWS's default.
/// [AssumeRole](https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html)
const DEFAULT_DURATION: Duration = Duration::from_secs(3600);
/// After this a role that refused a longer session is asked for one again.
const SHORT_FOR: Duration = Duration::from_secs(24 * 3600);

/// A session policy for sessions that nobody needs.
const NOTHING_ALLOWED: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}"#;

/// With which external IDs a role is tried, where there is one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tries {
    /// With the configured one, and where that is denied with the one before.
    Both,
    /// With one of them.
    One(AssumedWith),
}

fn is_denied(fault: &Fault) -> bool {
    fault.meaning() == Meaning::Refused(Reason::AssumeRoleDenied)
}

/// An AssumeRole on its way.
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
    quiet: Dispatch,
    warned: Mutex<Option<Instant>>,
}

impl AssumeRole {
    pub(super) fn new(
        sdk: &SdkConfig,
        options: &AwsOptions,
        external_ids: Arc<dyn ExternalIds>,
        clock: Clock,
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
                .time_to_live(SHORT_FOR)
                .build(),
            canary: options.canary_role_arn.clone(),
            clock,
            session_prefix: options.role_session_prefix.clone(),
            quiet: quiet(),
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
            organization_id = integration.organization_id.as_str(),
            outcome = Empty,
        );
        async {
            let session = self.call(integration, tries).await;
            let outcome = session.as_ref().map_or_else(Fault::code, |_| "Assumed");
            Span::current().record("outcome", outcome);
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
            (Err(fault), Some(previous)) if is_denied(&fault) => (fault, previous),
            (answer, _) => return answer,
        };
        self.call_with(integration, previous, AssumedWith::Previous)
            .await
            .map_err(|second| match is_denied(&second) {
                true => fault,
                // It says nothing of the customer.
                false => second,
            })
    }

    async fn call_with(
        &self,
        integration: &Integration,
        external_id: Result<ExternalId, Unreadable>,
        with: AssumedWith,
    ) -> Result<Arc<Session>, Fault> {
        let external_id = external_id.map_err(|_| Fault {
            stage: Stage::AssumeRole,
            cause: Cause::SecretUnreadable,
            request_id: None,
        })?;
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
            // AWS names the value in its message alone, which is not taken.
            Err(fault) if duration > DEFAULT_DURATION && fault.refuses_role_values() => {
                let answer = self
                    .call_for(integration, &external_id, DEFAULT_DURATION, with)
                    .await?;
                self.short.insert(role.clone(), ()).await;
                warn!(
                    role_arn = role.as_str(),
                    refused_seconds = duration.as_secs(),
                    "the role grants no session as long as assume-role-duration-seconds; it is assumed for 3600 s"
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
        let asked = Instant::now();
        let send = || {
            // The external ID is in clear from here until it is sent.
            let request = self
                .request(integration)
                .external_id(external_id.expose())
                .duration_seconds(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX))
                .policy(session_policy(&integration.stream_arn));
            self.dispatch(integration, request)
        };
        match self.by_right_clock(send).await {
            Ok(output) => self.session(&output, asked, duration, with),
            Err(error) => {
                self.warn_of_missing_credentials(&error);
                Err(fault::fault(Stage::AssumeRole, &error))
            }
        }
    }

    /// Makes a call, and once more where its answer shows that the clock it was signed by is
    /// wrong.
    async fn by_right_clock<T, E, F>(&self, send: impl Fn() -> F) -> Result<T, SdkError<E>>
    where
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let before = self.clock.offset_ms();
        let answer = send().with_subscriber(self.quiet.clone()).await;
        self.clock.report();
        match answer {
            Err(SdkError::ServiceError(_)) if self.clock.is_off_since(before) => {
                send().with_subscriber(self.quiet.clone()).await
            }
            answer => answer,
        }
    }

    /// Says why, at most once a minute. The error tells of this service's own
    /// credentials, never of a customer's external ID: nothing has been sent.
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
                "this service has no AWS credentials of its own to assume roles with"
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
        // Every region's STS gives sessions that are good in every region of the
        // partition; without one of our own, the stream's is as good as any.
        let request = match self.client.config().region() {
            Some(_) => request,
            None => {
                let region = Region::new(integration.stream_arn.region().to_owned());
                request.config_override(Builder::default().region(region))
            }
        };
        request.send()
    }

    /// Tries to assume the role as one would who does not know the external ID: with
    /// none, and with a random one. A session that it gets may do nothing.
    pub(super) async fn prove_external_id(&self, integration: &Integration) -> ExternalIdProof {
        let without = self.is_refused(integration, None).await;
        if without == Ok(false) {
            return ExternalIdProof::NotRequired;
        }
        let random = Uuid::new_v4().simple().to_string();
        let with_another = self.is_refused(integration, Some(random)).await;
        match (without, with_another) {
            (_, Ok(false)) => ExternalIdProof::AnyAccepted,
            (Ok(_), Ok(true)) => ExternalIdProof::Required,
            (Err(fault), _) | (_, Err(fault)) => ExternalIdProof::Unclear(fault),
        }
    }

    /// The external ID works, so that the one before is no longer needed.
    pub(super) fn took_over(&self, integration: &Integration) {
        self.external_ids.took_over(integration);
    }

    /// Whether the integration is still configured so.
    pub(super) fn is_current(&self, integration: &Integration) -> bool {
        self.external_ids.is_current(integration)
    }

    /// Region of STS, where one is configured.
    pub(super) fn region(&self) -> Option<&str> {
        self.client.config().region().map(AsRef::as_ref)
    }

    /// Asks AWS who this service is, which [needs no permission]: whether its own
    /// credentials are good, and of which partition they are.
    ///
    /// [needs no permission]: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    pub(super) async fn own_identity(&self) -> Result<Option<Partition>, Fault> {
        self.needs_region()?;
        let send = || self.client.get_caller_identity().send();
        match self.by_right_clock(send).await {
            Ok(output) => Ok(output.arn().and_then(partition)),
            Err(error) => Err(fault::fault(Stage::AssumeRole, &error)),
        }
    }

    /// Without a region of its own this service cannot ask STS about itself: whichever region
    /// it asked might be one of another partition.
    fn needs_region(&self) -> Result<(), Fault> {
        match self.region() {
            Some(_) => Ok(()),
            None => Err(Fault {
                stage: Stage::AssumeRole,
                cause: Cause::Connection,
                request_id: None,
            }),
        }
    }

    /// Asks STS whose a session is: whether its credentials are good where this service's
    /// own region is.
    pub(super) async fn check_session(&self, session: &Session) -> Result<(), Fault> {
        self.needs_region()?;
        let send = || {
            let credentials = Builder::default()
                .credentials_provider(session.credentials())
                .identity_cache(IdentityCache::no_cache());
            let request = self.client.get_caller_identity().customize();
            request.config_override(credentials).send()
        };
        match self.by_right_clock(send).await {
            Ok(_) => Ok(()),
            Err(error) => Err(fault::fault(Stage::AssumeRole, &error)),
        }
    }

    /// Assumes the canary role: whether it could be; None where there is none, or where the
    /// answer is neither.
    pub(super) async fn assume_canary(&self) -> Option<bool> {
        let canary = self.canary.as_ref()?;
        let send = || {
            let request = self
                .client
                .assume_role()
                .role_arn(canary.as_str())
                .role_session_name(SESSION_OF_CANARY)
                .policy(NOTHING_ALLOWED);
            request.send()
        };
        match self.by_right_clock(send).await {
            Ok(_session) => Some(true),
            Err(error) => is_denied(&fault::fault(Stage::AssumeRole, &error)).then_some(false),
        }
    }

    /// The canary role, where one is configured.
    pub(super) fn canary(&self) -> Option<&RoleArn> {
        self.canary.as_ref()
    }

    async fn is_refused(
        &self,
        integration: &Integration,
        external_id: Option<String>,
    ) -> Result<bool, Fault> {
        let send = || {
            let request = self
                .request(integration)
                .set_external_id(external_id.clone())
                .policy(NOTHING_ALLOWED);
            self.dispatch(integration, request)
        };
        match self.by_right_clock(send).await {
            Ok(_session) => Ok(false),
            Err(error) => {
                let fault = fault::fault(Stage::AssumeRole, &error);
                match fault.meaning() {
                    Meaning::Refused(Reason::AssumeRoleDenied) => Ok(true),
                    _ => Err(fault),
                }
            }
        }
    }

    fn session(
        &self,
        output: &AssumeRoleOutput,
        asked: Instant,
        duration: Duration,
        with: AssumedWith,
    ) -> Result<Arc<Session>, Fault> {
        let Some(credentials) = output.credentials() else {
            let request_id = fault::request_id(output.request_id());
            return Err(fault::unlike_aws(Stage::AssumeRole, 200, request_id));
        };
        let left = SystemTime::try_from(*credentials.expiration())
            .ok()
            .and_then(|expiration| expiration.duration_since(self.clock.now()).ok());
        // Where the clocks disagree, the duration that was asked for is what counts.
        let lasts = left.map_or(duration, |left| left.min(duration));
        Ok(Arc::new(Session::new(
            aws_credential_types::Credentials::new(
                credentials.access_key_id(),
                credentials.secret_access_key(),
                Some(credentials.session_token().to_owned()),
                // The session knows; the SDK need not look at its own clock.
                None,
                "AssumeRole",
            ),
            Lifetime::new(asked, lasts, rand::random()),
            with,
        )))
    }
}

/// Partition of an ARN.
fn partition(arn: &str) -> Option<Partition> {
    Partition::parse(arn.split(':').nth(1)?)
}

/// The prefix and the organization's id, cut to what STS takes: 2 to 64 of
/// `[A-Za-z0-9_+=,.@-]`.
fn session_name(prefix: &str, organization: &OrganizationId) -> String {
    let known = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    prefix
        .chars()
        .chain(organization.as_str().chars())
        .map(|c| if known(c) { c } else { '-' })
        .take(MAX_SESSION_NAME_LENGTH)
        .collect()
}

/// What the session may do, whatever the role may: write to this stream, and have its
/// records encrypted under the stream's key. Kinesis' [encryption context] names the
/// stream. STS takes 2,048 characters; the longest stream ARN leaves 1,500 of them.
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
    fn names_the_session_after_the_organization() {
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
