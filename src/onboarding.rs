//! What a customer applies in its own AWS account so that the service may write to a
//! stream: two IAM policies as JSON, and the whole setup as a CloudFormation template
//! and as a Terraform file.
//!
//! Pure: inputs become texts. The templates take the external ID as a parameter and
//! never see it; only [`Document::TrustPolicy`] carries it.

mod cloudformation;
mod inputs;
mod key;
mod policy;
mod principal;
mod quote;
mod terraform;
#[cfg(test)]
mod tests;

pub use inputs::{Inputs, MAX_SHARDS, Problem};
pub use key::{KeyArn, KeyArnError};
pub use principal::{Principal, PrincipalError};

use crate::domain::{
    arn::{RoleArn, StreamArn},
    external_id::ExternalId,
};

/// How long a stream keeps its records, in hours: Kinesis' own default and limits, by
/// `IncreaseStreamRetentionPeriod`.
const DEFAULT_RETENTION_HOURS: u32 = 24;
const MIN_RETENTION_HOURS: u32 = 24;
const MAX_RETENTION_HOURS: u32 = 8_760;

/// How a stream gets its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Kinesis scales the stream itself.
    OnDemand,
    /// This many shards, each of 1,000 records and 1 MiB a second.
    Shards(u32),
}

/// Everything that is to be set up, checked: [`Inputs::check`] makes it.
#[derive(Clone, Debug)]
pub struct Onboarding {
    stream: StreamArn,
    role: RoleArn,
    principal: Principal,
    capacity: Capacity,
    kms_key: Option<KeyArn>,
}

/// One thing to print.
#[derive(Clone, Debug)]
pub enum Document {
    /// The trust policy of the role, as JSON; it holds the external ID in clear.
    TrustPolicy(ExternalId),
    /// The permission policy of the role, as JSON.
    PermissionPolicy,
    /// A CloudFormation template, as YAML.
    CloudFormation,
    /// A Terraform file, formatted as `terraform fmt` does.
    Terraform,
}

impl Document {
    /// The name of the file that it is written to.
    pub fn file_name(&self) -> &'static str {
        match self {
            Self::TrustPolicy(_) => "trust-policy.json",
            Self::PermissionPolicy => "permission-policy.json",
            Self::CloudFormation => cloudformation::FILE_NAME,
            Self::Terraform => "siem-relay.tf",
        }
    }

    /// What it is, in one line.
    pub fn title(&self) -> &'static str {
        match self {
            Self::TrustPolicy(_) => "trust policy of the role, with the external ID",
            Self::PermissionPolicy => "permission policy of the role",
            Self::CloudFormation => "CloudFormation template, makes stream and role",
            Self::Terraform => "Terraform file, makes stream and role",
        }
    }
}

impl Onboarding {
    /// The stream, by the ARN that it has or will have.
    pub fn stream(&self) -> &StreamArn {
        &self.stream
    }

    /// The role, by the ARN that it will have.
    pub fn role(&self) -> &RoleArn {
        &self.role
    }

    /// The text of a document. It ends with a newline.
    pub fn text(&self, document: &Document) -> String {
        match document {
            Document::TrustPolicy(external_id) => policy::trust(&self.principal, external_id),
            Document::PermissionPolicy => policy::permission(&self.stream, self.kms_key.as_ref()),
            Document::CloudFormation => cloudformation::template(self),
            Document::Terraform => terraform::file(self),
        }
    }
}
