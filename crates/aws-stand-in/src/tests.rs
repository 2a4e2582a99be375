//! Tests of the stand-in through the AWS SDK, without the SDK's retries.

mod control_endpoint;
mod faults;
mod put;
mod trust;

use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use serde_json::json;

use super::*;

const ROLE: &str = "arn:aws:iam::222222222222:role/siem/relay";
const STREAM: &str = "arn:aws:kinesis:eu-west-1:222222222222:stream/detections";
const OTHER_STREAM: &str = "arn:aws:kinesis:eu-west-1:222222222222:stream/other";
const EXTERNAL_ID: &str = "correct:horse/battery=staple";

/// A stand-in with two streams and a role that trusts the vendor with the external ID.
struct World {
    stand_in: StandIn,
    control: Control,
}

impl World {
    async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    async fn start_with(options: Options) -> Self {
        let stand_in = StandIn::start(options).await.unwrap();
        let control = stand_in.control();
        let role = RoleSpec::new(ROLE, trust_policy(EXTERNAL_ID), permissions("*"));
        control.put_role(role).unwrap();
        control.create_stream(StreamSpec::new(STREAM, 2)).unwrap();
        control
            .create_stream(StreamSpec::new(OTHER_STREAM, 1))
            .unwrap();
        Self { stand_in, control }
    }

    fn sts(&self) -> aws_sdk_sts::Client {
        let vendor = vendor_credentials();
        self.sts_as(Credentials::new(
            vendor.access_key_id,
            vendor.secret_access_key,
            None,
            None,
            "test",
        ))
    }

    fn sts_as(&self, credentials: Credentials) -> aws_sdk_sts::Client {
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .retry_config(RetryConfig::disabled())
            .endpoint_url(self.stand_in.url())
            .credentials_provider(credentials)
            .build();
        aws_sdk_sts::Client::from_conf(config)
    }

    fn kinesis_as(&self, credentials: Credentials) -> aws_sdk_kinesis::Client {
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .retry_config(RetryConfig::disabled())
            .endpoint_url(self.stand_in.url())
            .credentials_provider(credentials)
            .build();
        aws_sdk_kinesis::Client::from_conf(config)
    }

    /// Assumes the role with the expected external ID.
    async fn assume(&self, policy: Option<String>) -> Credentials {
        let answer = self
            .sts()
            .assume_role()
            .role_arn(ROLE)
            .role_session_name("siem-relay")
            .external_id(EXTERNAL_ID)
            .set_policy(policy)
            .send()
            .await
            .unwrap();
        let given = answer.credentials.unwrap();
        let expiry = given.expiration.try_into().ok();
        Credentials::new(
            given.access_key_id,
            given.secret_access_key,
            Some(given.session_token),
            expiry,
            "test",
        )
    }

    async fn kinesis(&self) -> aws_sdk_kinesis::Client {
        self.kinesis_as(self.assume(None).await)
    }
}

fn trust_policy(external_id: &str) -> String {
    let statement = json!({
        "Effect": "Allow",
        "Principal": { "AWS": "111111111111" },
        "Action": "sts:AssumeRole",
        "Condition": { "StringEquals": { "sts:ExternalId": external_id } },
    });
    json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
}

fn permissions(resource: &str) -> String {
    let statement = json!({ "Effect": "Allow", "Action": "kinesis:*", "Resource": resource });
    json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
}

fn entry(key: &str, data: impl Into<Vec<u8>>) -> PutRecordsRequestEntry {
    PutRecordsRequestEntry::builder()
        .partition_key(key)
        .data(Blob::new(data.into()))
        .build()
        .unwrap()
}

/// Error code and HTTP status of a call, which must be refused.
macro_rules! refused {
    ($call:expr) => {{
        let error = $call.await.expect_err("this call must be refused");
        let code = aws_sdk_kinesis::error::ProvideErrorMetadata::code(&error)
            .unwrap_or_default()
            .to_owned();
        let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
        (code, status)
    }};
}
use refused;

fn code(code: &str, status: u16) -> (String, u16) {
    (code.to_owned(), status)
}
