//! What the AWS clients are made of: options, own credentials, one HTTP client.

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

/// How AWS is called.
#[derive(Clone, Debug)]
pub struct AwsOptions {
    /// What one call may take, from connecting to the whole answer.
    pub attempt_timeout: Duration,
    /// How long an assumed role's session is asked for: 15 minutes to 12 hours by
    /// [AssumeRole], at most 1 hour where this service's own credentials are a
    /// role's. Whole seconds count.
    ///
    /// [AssumeRole]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
    pub assume_role_duration: Duration,
    /// What stands before the organization's id in the role session name, by which a
    /// customer recognises this service in CloudTrail.
    pub role_session_prefix: String,
    /// Sessions that are kept, about 3 KB each; beyond it the least recently used goes.
    pub max_sessions: u64,
    /// Who makes PutRecords requests.
    pub put_records_client: PutRecordsClient,
    /// Role of this service's own account that it may always assume: where it cannot, its
    /// own right to assume roles is gone.
    pub canary_role_arn: Option<RoleArn>,
    /// Nothing is delivered to a role that can be assumed without knowing the external ID.
    pub require_external_id: bool,
    /// In place of AWS and of the environment's settings: one server for everything.
    pub stand_in: Option<StandInAccess>,
}

/// Who makes PutRecords requests. Both answer alike; the tests hold them side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutRecordsClient {
    /// The AWS SDK.
    Sdk,
    /// This service itself, with the SDK's endpoints.
    Direct,
}

/// A server that speaks STS and Kinesis.
#[derive(Clone, Debug)]
pub struct StandInAccess {
    /// Such as `http://127.0.0.1:4566`.
    pub url: String,
    /// The region of STS.
    pub region: String,
    /// The access key id that AssumeRole is signed with.
    pub access_key_id: String,
    /// Its secret.
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

/// The SDK's configuration that both clients are made from.
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

/// No retries: there is one retry loop, and it is the worker's.
pub(super) fn retries() -> RetryConfig {
    RetryConfig::disabled()
}

/// One limit for a whole call.
pub(super) fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().operation_timeout(attempt).build()
}

/// Off: requests are small, and the limit of the whole call ends a stalled one.
pub(super) fn stalled_streams() -> StalledStreamProtectionConfig {
    StalledStreamProtectionConfig::disabled()
}

/// The SDK's default HTTPS client, as one connection pool for every client. Its TLS
/// brings its own provider; none needs to be installed for the process.
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

/// A connection pool beside the SDK's, alike in all else.
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

/// The proxies that the connector goes through.
pub(super) fn proxies(options: &AwsOptions) -> Matcher {
    match options.stand_in {
        Some(_) => Matcher::builder().build(),
        None => Matcher::from_env(),
    }
}

/// This service's own credentials, with a limit below the call's, so that a chain
/// that hangs (an instance metadata service that is not there) shows as missing
/// credentials and not as an STS that does not answer.
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
