//! A customer: an organization with its AWS account.

use aws_stand_in::{Control, RoleSpec, StreamSpec};
use serde_json::json;
use siem_client::v1;

/// A customer and its configuration.
#[derive(Clone)]
pub struct Customer {
    pub organization_id: String,
    pub stream_arn: String,
    pub role_arn: String,
    pub external_id: String,
}

impl Customer {
    pub fn new(organization_id: &str) -> Self {
        let region = "eu-west-1:222222222222";
        Self {
            organization_id: organization_id.to_owned(),
            stream_arn: format!("arn:aws:kinesis:{region}:stream/{organization_id}"),
            role_arn: format!("arn:aws:iam::222222222222:role/siem/{organization_id}"),
            external_id: format!("external:id/of={organization_id}"),
        }
    }

    /// A customer with stream and role in another account and region.
    pub fn in_account(organization_id: &str, account: u64, region: &str) -> Self {
        let moved = |arn: String| arn.replace("222222222222", &format!("{account:012}"));
        let base = Self::new(organization_id);
        Self {
            stream_arn: moved(base.stream_arn).replace("eu-west-1", region),
            role_arn: moved(base.role_arn),
            ..base
        }
    }

    /// The same customer with another stream.
    pub fn with_stream(&self, name: &str) -> Self {
        let (before, _) = self.stream_arn.rsplit_once('/').unwrap();
        Self {
            stream_arn: format!("{before}/{name}"),
            ..self.clone()
        }
    }

    /// The same customer with another external ID.
    pub fn with_external_id(&self, external_id: &str) -> Self {
        Self {
            external_id: external_id.to_owned(),
            ..self.clone()
        }
    }

    pub fn request(&self) -> v1::ConfigureRequest {
        v1::ConfigureRequest {
            organization_id: self.organization_id.clone(),
            kinesis_stream_arn: self.stream_arn.clone(),
            role_arn: self.role_arn.clone(),
            external_id: self.external_id.clone(),
            etag: String::new(),
            validate_only: false,
            keep_previous_external_id: false,
        }
    }

    /// One of many customers that share a role and a stream; each has an external ID of its own.
    pub fn sharing(role_and_stream: &str, organization_id: &str) -> Self {
        Self {
            organization_id: organization_id.to_owned(),
            external_id: format!("external:id/of={organization_id}"),
            ..Self::new(role_and_stream)
        }
    }

    /// Makes the role, which trusts us with any test customer's external ID and may write everywhere.
    pub fn make_shared_role(&self, aws: &Control) {
        self.make_role_with_trust(
            aws,
            json!({ "StringLike": { "sts:ExternalId": "external:id/of=*" } }),
        );
    }

    /// Makes the role with this condition in its trust policy. It may write everywhere.
    pub fn make_role_with_trust(&self, aws: &Control, condition: serde_json::Value) {
        let trust = policy(&json!({
            "Effect": "Allow",
            "Principal": { "AWS": "111111111111" },
            "Action": "sts:AssumeRole",
            "Condition": condition,
        }));
        let permissions = policy(&json!({
            "Effect": "Allow", "Action": "kinesis:*", "Resource": "*",
        }));
        aws.put_role(RoleSpec::new(&self.role_arn, trust, permissions))
            .unwrap();
    }

    /// Makes the role, which trusts us with the external ID and may write everywhere.
    pub fn make_role(&self, aws: &Control) {
        self.make_role_that_may(aws, "kinesis:*");
    }

    /// Makes the role, which trusts us with the external ID and may do one kind of action.
    pub fn make_role_that_may(&self, aws: &Control, action: &str) {
        let trust = policy(&json!({
            "Effect": "Allow",
            "Principal": { "AWS": "111111111111" },
            "Action": "sts:AssumeRole",
            "Condition": { "StringEquals": { "sts:ExternalId": self.external_id } },
        }));
        let permissions = policy(&json!({
            "Effect": "Allow", "Action": action, "Resource": "*",
        }));
        aws.put_role(RoleSpec::new(&self.role_arn, trust, permissions))
            .unwrap();
    }

    pub fn make_stream(&self, aws: &Control, shards: u32) {
        aws.create_stream(StreamSpec::new(&self.stream_arn, shards))
            .unwrap();
    }
}

fn policy(statement: &serde_json::Value) -> String {
    json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
}
