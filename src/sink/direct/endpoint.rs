//! Endpoints of Kinesis by the AWS SDK's own rules, resolved once per region and account.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use aws_config::SdkConfig;
use aws_sdk_kinesis::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_types::service_config::ServiceConfigKey;
use http::Uri;

use crate::domain::arn::StreamArn;

/// Limit of the cached endpoints.
const MAX_CACHED: usize = 4096;

/// Known endpoints, by region, then by account.
type Known = HashMap<Box<str>, HashMap<Box<str>, Arc<Endpoint>>>;

/// Address of a Kinesis server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) uri: Uri,
    /// Value of the header `host`: with the port, unless that is the scheme's default.
    pub(super) host: Box<str>,
    /// Request target in the first line of a request.
    pub(super) path: Uri,
    /// Scheme and host, by which connections are pooled.
    pub(super) origin: Box<str>,
}

impl Endpoint {
    /// None if `base` is not a URL of a server.
    pub(super) fn new(base: &str) -> Option<Self> {
        let base = base.trim_end_matches('/');
        let uri: Uri = format!("{base}/").parse().ok()?;
        let host = uri.host()?;
        let scheme = uri.scheme_str()?;
        let default_port = match scheme {
            "https" => 443,
            _ => 80,
        };
        let host = match uri.port_u16() {
            Some(port) if port != default_port => format!("{host}:{port}"),
            _ => host.to_owned(),
        };
        Some(Self {
            origin: format!("{scheme}://{host}").into(),
            host: host.into(),
            path: uri.path_and_query()?.as_str().parse().ok()?,
            uri,
        })
    }

    /// Whether the path is `/`, as with all endpoints of AWS.
    pub(super) fn is_root(&self) -> bool {
        self.uri.path() == "/" && self.uri.query().is_none()
    }
}

/// Resolver of endpoints. An override by the environment, the profile or the configuration wins.
#[derive(Debug)]
pub(super) struct Endpoints {
    resolver: DefaultResolver,
    overridden: Option<String>,
    use_fips: Option<bool>,
    use_dual_stack: Option<bool>,
    account_id_endpoint_mode: String,
    known: RwLock<Known>,
}

impl Endpoints {
    pub(super) fn new(sdk: &SdkConfig) -> Self {
        Self {
            resolver: DefaultResolver::new(),
            overridden: overridden(sdk),
            use_fips: sdk.use_fips(),
            use_dual_stack: sdk.use_dual_stack(),
            account_id_endpoint_mode: sdk
                .account_id_endpoint_mode()
                .cloned()
                .unwrap_or_default()
                .to_string(),
            known: RwLock::default(),
        }
    }

    /// The endpoint for a stream; None if the rules have none.
    pub(super) async fn of(&self, stream: &StreamArn) -> Option<Arc<Endpoint>> {
        let (region, account) = (stream.region(), stream.account());
        if let Some(endpoint) = self.known(region, account) {
            return Some(endpoint);
        }
        let endpoint = Arc::new(self.resolve(stream).await?);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.values().map(HashMap::len).sum::<usize>() >= MAX_CACHED {
            known.clear();
        }
        let of_region = known.entry(region.into()).or_default();
        of_region.insert(account.into(), Arc::clone(&endpoint));
        Some(endpoint)
    }

    fn known(&self, region: &str, account: &str) -> Option<Arc<Endpoint>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(region)?.get(account).cloned()
    }

    async fn resolve(&self, stream: &StreamArn) -> Option<Endpoint> {
        let params = Params::builder()
            .region(stream.region())
            .set_use_fips(self.use_fips)
            .set_use_dual_stack(self.use_dual_stack)
            .set_endpoint(self.overridden.clone())
            .account_id_endpoint_mode(self.account_id_endpoint_mode.clone())
            .operation_type("data")
            .stream_arn(stream.as_str())
            .build()
            .ok()?;
        let resolved = ResolveEndpoint::resolve_endpoint(&self.resolver, &params);
        Endpoint::new(resolved.await.ok()?.url())
    }
}

/// The configured endpoint, read as the SDK's Kinesis client does.
fn overridden(sdk: &SdkConfig) -> Option<String> {
    let general = || sdk.endpoint_url().map(str::to_owned);
    if sdk.get_origin("endpoint_url").is_client_config() {
        return general();
    }
    let key = ServiceConfigKey::builder()
        .service_id("Kinesis")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    sdk.service_config()
        .and_then(|config| config.load_config(key))
        .or_else(general)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_the_port_unless_it_is_the_default() {
        for (url, host, is_root) in [
            (
                "https://kinesis.eu-west-1.amazonaws.com",
                "kinesis.eu-west-1.amazonaws.com",
                true,
            ),
            ("https://example.com:443/", "example.com", true),
            ("https://example.com:80", "example.com:80", true),
            ("http://127.0.0.1:80", "127.0.0.1", true),
            ("http://127.0.0.1:4566//", "127.0.0.1:4566", true),
            ("http://[::1]:4566", "[::1]:4566", true),
            ("http://example.com/kinesis/", "example.com", false),
        ] {
            let endpoint = Endpoint::new(url).unwrap();
            assert_eq!(
                (&*endpoint.host, endpoint.is_root()),
                (host, is_root),
                "{url}"
            );
            assert!(endpoint.uri.path().ends_with('/'), "{url}");
        }
        for url in ["", "/kinesis", "example.com", "http://"] {
            assert_eq!(Endpoint::new(url), None, "{url}");
        }
    }
}
