//! Configuration of the AWS clients: options, own credentials, one HTTP client.

use std::{fmt, time::Duration};

use aws_config::{
    AppName, BehaviorVersion, Region, SdkConfig, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{
        ProvideCredentials, SharedCredentialsProvider, error::CredentialsError,
        future::ProvideCredentials as Provided,
    },
};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use hyper_util::client::proxy::matcher::Matcher;
use secrecy::{ExposeSecret, SecretString};

use crate::domain::arn::RoleArn;

/// Options of the calls to AWS.
#[derive(Clone, Debug)]
pub struct AwsOptions {
    /// Timeout of one call, from connecting to the whole answer.
    pub attempt_timeout: Duration,
    /// Requested duration of sessions, in whole seconds: 15 minutes to 12 hours by
    /// [AssumeRole], at most 1 hour if this service's own credentials are those of a role.
    ///
    /// [AssumeRole]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
    pub assume_role_duration: Duration,
    /// Prefix of the organization id in the role session name, by which a customer recognises
    /// this service in CloudTrail.
    pub role_session_prefix: String,
    /// Limit of cached sessions, about 3 KB each; beyond it the least recently used is evicted.
    pub max_sessions: u64,
    /// Client for PutRecords requests.
    pub put_records_client: PutRecordsClient,
    /// Role of this service's own account that it may always assume; a denial shows that its
    /// permission to assume roles is gone.
    pub canary_role_arn: Option<RoleArn>,
    /// Nothing is delivered to a role that can be assumed without knowing the external ID.
    pub require_external_id: bool,
    /// One server to call instead of AWS and of the environment's settings.
    pub stand_in: Option<StandInAccess>,
}

/// Client for PutRecords requests. The same tests run with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutRecordsClient {
    /// The AWS SDK.
    Sdk,
    /// This service's own client, with the SDK's endpoints.
    Direct,
}

/// A server that speaks STS and Kinesis.
#[derive(Clone, Debug)]
pub struct StandInAccess {
    /// Base URL, such as `http://127.0.0.1:4566`.
    pub url: String,
    /// Region of STS.
    pub region: String,
    /// Access key id that AssumeRole is signed with.
    pub access_key_id: String,
    /// Secret of the access key.
    pub secret_access_key: SecretString,
}

impl Default for AwsOptions {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(10),
            assume_role_duration: Duration::from_secs(3600),
            role_session_prefix: "siem-relay-".to_owned(),
            max_sessions: 250_000,
            put_records_client: PutRecordsClient::Direct,
            canary_role_arn: None,
            require_external_id: true,
            stand_in: None,
        }
    }
}

/// The SDK's configuration, from which both clients are built.
pub(super) async fn load(options: &AwsOptions) -> SdkConfig {
    let app_name = AppName::new("siem-relay").ok();
    if let Some(stand_in) = &options.stand_in {
        let own = Credentials::new(
            stand_in.access_key_id.clone(),
            stand_in.secret_access_key.expose_secret(),
            None,
            None,
            "StandIn",
        );
        let mut builder = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client(ProxyConfig::disabled()))
            .endpoint_url(&stand_in.url)
            .region(Region::new(stand_in.region.clone()))
            .credentials_provider(SharedCredentialsProvider::new(own));
        builder.set_app_name(app_name);
        return builder.build();
    }
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client(ProxyConfig::from_env()));
    if let Some(app_name) = app_name {
        loader = loader.app_name(app_name);
    }
    let sdk = loader.load().await;
    let Some(own) = sdk.credentials_provider() else {
        return sdk;
    };
    let own = OwnCredentials {
        chain: own,
        limit: options.attempt_timeout / 2,
    };
    sdk.into_builder()
        .credentials_provider(SharedCredentialsProvider::new(own))
        .build()
}

/// No retries: the worker alone retries.
pub(super) fn retries() -> RetryConfig {
    RetryConfig::disabled()
}

/// One timeout for a whole call.
pub(super) fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().operation_timeout(attempt).build()
}

/// Off: requests are small, and the timeout of the whole call ends a stalled one.
pub(super) fn stalled_streams() -> StalledStreamProtectionConfig {
    StalledStreamProtectionConfig::disabled()
}

/// The SDK's default HTTPS client, with one connection pool for all clients. Its TLS brings its
/// own crypto provider; none needs to be installed for the process.
fn http_client(proxy: ProxyConfig) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.build()
    })
}

/// A connector like the SDK's, with a separate pool.
pub(super) fn connector(options: &AwsOptions) -> Connector {
    let proxy = match options.stand_in {
        Some(_) => ProxyConfig::disabled(),
        None => ProxyConfig::from_env(),
    };
    Connector::builder()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .proxy_config(proxy)
        .build()
}

/// Proxies of the environment.
pub(super) fn proxies(options: &AwsOptions) -> Matcher {
    match options.stand_in {
        Some(_) => Matcher::builder().build(),
        None => Matcher::from_env(),
    }
}

/// This service's own credentials, with a timeout below that of the call, so that a chain that
/// hangs (an instance metadata service that is absent) is reported as missing credentials and
/// not as an STS that does not answer.
struct OwnCredentials {
    chain: SharedCredentialsProvider,
    limit: Duration,
}

impl ProvideCredentials for OwnCredentials {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        Provided::new(async {
            tokio::time::timeout(self.limit, self.chain.provide_credentials())
                .await
                .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(self.limit)))
        })
    }
}

impl fmt::Debug for OwnCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCredentials").finish_non_exhaustive()
    }
}
