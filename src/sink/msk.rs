//! Tokens for the IAM authentication of Amazon MSK: a presigned request of
//! `kafka-cluster:Connect`, as [AWS's signers] make it.
//!
//! [AWS's signers]: https://github.com/aws/aws-msk-iam-sasl-signer-python

use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::{Credentials, provider::ProvideCredentials as _};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4::SigningParams,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use tokio::sync::OnceCell;

use super::{AwsOptions, config};

/// Life of a token, unless the credentials end before.
const LIFE: Duration = Duration::from_secs(900);

/// Issuer of tokens for clusters in a region, by this service's own credentials.
#[derive(Debug)]
pub struct MskTokens {
    region: String,
    sdk: OnceCell<SdkConfig>,
}

/// A token.
#[derive(Clone, Debug)]
pub struct MskToken {
    /// The token itself.
    pub value: SecretString,
    /// Time of the signature.
    pub issued_at: SystemTime,
    /// Time from which brokers refuse it.
    pub expires_at: SystemTime,
}

impl MskTokens {
    /// Prepares an issuer. Credentials are looked for when the first token is issued.
    pub fn new(region: String) -> Self {
        Self {
            region,
            sdk: OnceCell::new(),
        }
    }

    /// Issues a token.
    ///
    /// # Errors
    ///
    /// If there are no credentials, or these have expired.
    pub async fn issue(&self) -> Result<MskToken, String> {
        let load = async || config::load(&AwsOptions::default()).await;
        let sdk = self.sdk.get_or_init(load).await;
        let provider = sdk.credentials_provider();
        let provider = provider.ok_or("this service has no AWS credentials")?;
        let credentials = provider.provide_credentials().await;
        let credentials = credentials.map_err(|error| {
            format!(
                "this service's AWS credentials cannot be used: {}",
                chain(&error)
            )
        })?;
        token(&credentials, &self.region, SystemTime::now())
    }
}

/// Text of an error and of its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

fn token(credentials: &Credentials, region: &str, now: SystemTime) -> Result<MskToken, String> {
    let expires_at = match credentials.expiry() {
        Some(expiry) => expiry.min(now + LIFE),
        None => now + LIFE,
    };
    if expires_at <= now {
        return Err("this service's AWS credentials have expired".to_owned());
    }
    let failed = |error: &dyn std::error::Error| format!("cannot sign: {}", chain(error));
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFE);
    let identity = credentials.clone().into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kafka-cluster")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let url = format!("https://kafka.{region}.amazonaws.com/?Action=kafka-cluster%3AConnect");
    let body = SignableBody::Bytes(&[]);
    let request = SignableRequest::new("GET", url.as_str(), std::iter::empty(), body);
    let signed = sign(request.map_err(|error| failed(&error))?, &params);
    let (instructions, _) = signed.map_err(|error| failed(&error))?.into_parts();
    let request = http::Request::get(url).body(());
    let mut request = request.map_err(|error| failed(&error))?;
    instructions.apply_to_request_http1x(&mut request);
    // Not signed; CloudTrail shows it.
    let agent = concat!("siem-relay%2F", env!("CARGO_PKG_VERSION"));
    let url = format!("{}&User-Agent={agent}", request.uri());
    Ok(MskToken {
        value: URL_SAFE_NO_PAD.encode(url).into(),
        issued_at: now,
        expires_at,
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn credentials(expiry: Option<u64>) -> Credentials {
        Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            Some("session/token+1==".to_owned()),
            expiry.map(at),
            "test",
        )
    }

    fn url(token: &MskToken) -> String {
        let url = URL_SAFE_NO_PAD.decode(token.value.expose_secret()).unwrap();
        String::from_utf8(url).unwrap()
    }

    /// The signature is that of botocore 1.43:
    /// `SigV4QueryAuth(Credentials(…), "kafka-cluster", "us-east-1", expires=900).add_auth(AWSRequest(
    /// method="GET", url="https://kafka.us-east-1.amazonaws.com/?Action=kafka-cluster%3AConnect"))`.
    #[test]
    fn a_token_is_the_presigned_request_of_aws_signers() {
        let token = token(&credentials(None), "us-east-1", at(NOW)).unwrap();
        let url = url(&token);
        let (endpoint, query) = url.split_once('?').unwrap();
        assert_eq!(endpoint, "https://kafka.us-east-1.amazonaws.com/");
        let mut parameters: Vec<&str> = query.split('&').collect();
        parameters.sort_unstable();
        assert_eq!(
            parameters,
            [
                "Action=kafka-cluster%3AConnect",
                concat!("User-Agent=siem-relay%2F", env!("CARGO_PKG_VERSION")),
                "X-Amz-Algorithm=AWS4-HMAC-SHA256",
                "X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20231114%2Fus-east-1%2Fkafka-cluster%2Faws4_request",
                "X-Amz-Date=20231114T221320Z",
                "X-Amz-Expires=900",
                "X-Amz-Security-Token=session%2Ftoken%2B1%3D%3D",
                "X-Amz-Signature=5007e2dda4ec60edd275110776664bdb2466846d87a20d60da7ad4a699f74e6c",
                "X-Amz-SignedHeaders=host",
            ]
        );
    }

    #[test]
    fn credentials_limit_the_life() {
        let life = |expiry| {
            let token = token(&credentials(expiry), "us-east-1", at(NOW));
            token.map(|token| token.expires_at.duration_since(at(NOW)).unwrap().as_secs())
        };
        assert_eq!(life(None), Ok(900));
        assert_eq!(life(Some(NOW + 3600)), Ok(900));
        assert_eq!(life(Some(NOW + 100)), Ok(100));
        assert!(life(Some(NOW)).unwrap_err().contains("expired"));
    }
}
