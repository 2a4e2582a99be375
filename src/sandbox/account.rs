//! The customer's AWS account: a stream, and a role that the service may assume with the
//! external ID and that may write to this stream only.

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;

use aws_stand_in::{Control, ControlError, RoleSpec, StreamSpec, vendor_credentials};

/// Region of the stream and of STS.
pub const REGION: &str = "us-east-1";
pub(super) const STREAM_ARN: &str = "arn:aws:kinesis:us-east-1:222222222222:stream/detections";
pub(super) const ROLE_ARN: &str = "arn:aws:iam::222222222222:role/siem-delivery";
/// Shards of the stream, each of which takes 1,000 records a second.
pub(super) const SHARDS: u32 = 4;

/// The account, with an external ID that the customer chose.
pub(super) struct Account {
    external_id: SecretString,
}

impl Account {
    /// An account with a fresh external ID of 122 random bits.
    pub(super) fn new() -> Self {
        let external_id = Uuid::new_v4().simple().to_string();
        Self {
            external_id: external_id.into(),
        }
    }

    /// The external ID in clear. It is of no use outside this sandbox.
    pub(super) fn external_id(&self) -> &str {
        self.external_id.expose_secret()
    }

    /// Creates stream and role in the stand-in.
    pub(super) fn set_up(&self, control: &Control) -> Result<(), ControlError> {
        control.create_stream(StreamSpec::new(STREAM_ARN, SHARDS))?;
        let role = RoleSpec::new(ROLE_ARN, self.trust_policy(), permission_policy());
        control.put_role(role)
    }

    fn trust_policy(&self) -> String {
        policy(&json!({
            "Effect": "Allow",
            "Principal": {"AWS": vendor_credentials().principal_arn},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": self.external_id()}},
        }))
    }
}

fn permission_policy() -> String {
    policy(&json!({
        "Effect": "Allow",
        "Action": ["kinesis:PutRecord", "kinesis:PutRecords"],
        "Resource": STREAM_ARN,
    }))
}

fn policy(statement: &serde_json::Value) -> String {
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}
