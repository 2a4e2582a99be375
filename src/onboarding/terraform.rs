//! The [Terraform] file, a root module of its own.
//!
//! The policies are `jsonencode` and no `aws_iam_policy_document`: what that data source
//! answers is no longer sensitive, and a plan would show the external ID.
//!
//! [Terraform]: https://developer.hashicorp.com/terraform/language

use super::{
    Capacity, DEFAULT_RETENTION_HOURS, KeyArn, MAX_RETENTION_HOURS, MIN_RETENTION_HOURS,
    Onboarding, Principal,
    inputs::MAX_SHARDS,
    policy::{ENCRYPTION_CONTEXT, VERSION, WRITE_ACTIONS},
    quote::hcl,
};

/// The whole file. What is known of the customer is a default of its variables.
pub(super) fn file(onboarding: &Onboarding) -> String {
    [
        head(onboarding),
        provider(onboarding),
        variables(onboarding),
        stream(onboarding),
        role(),
        permissions(onboarding),
        OUTPUTS.to_owned(),
    ]
    .concat()
}

fn head(onboarding: &Onboarding) -> String {
    let (stream, role) = (onboarding.stream(), onboarding.role());
    format!(
        "\
# Makes a Kinesis data stream, and a role with which siem-relay may write to it and do
# nothing else. The external ID is a secret; it stands nowhere in this file, but it will
# stand in Terraform's state:
#
#   export TF_VAR_external_id=...
#   terraform init
#   terraform apply
#
# The integration is then configured with the two ARNs of the outputs:
#
#   kinesis_stream_arn  {stream}
#   role_arn            {role}
#
# siem-relay proves that the role requires the external ID: after each change of the
# integration, and then daily, it tries to assume the role without one and with a random
# one. Both attempts are denied, and appear in CloudTrail as AssumeRole with AccessDenied.
"
    )
}

/// The accounts are named so that nothing is made in another by mistake.
fn provider(onboarding: &Onboarding) -> String {
    let stream = onboarding.stream();
    let (region, account) = (hcl(stream.region()), hcl(stream.account()));
    format!(
        r#"
terraform {{
  required_version = ">= 1.2"

  required_providers {{
    aws = {{
      source  = "hashicorp/aws"
      version = ">= 4.0"
    }}
  }}
}}

provider "aws" {{
  region              = {region}
  allowed_account_ids = [{account}]
}}
"#
    )
}

fn variables(onboarding: &Onboarding) -> String {
    let mut text = String::from(
        r#"
variable "external_id" {
  description = "What siem-relay must say to assume the role; a secret"
  type        = string
  sensitive   = true
  nullable    = false

  validation {
    condition     = length(var.external_id) >= 2 && length(var.external_id) <= 1224 && can(regex("^[A-Za-z0-9_+=,.@:/-]+$", var.external_id))
    error_message = "The external ID must be 2 to 1224 letters, digits or _+=,.@:/- characters."
  }
}
"#,
    );
    text += &matching(
        "trusted_principal",
        "Who may assume the role, an account ID or the ARN of an identity",
        onboarding.principal.as_str(),
        Principal::PATTERN,
        "Give a 12-digit account ID, or the ARN of an account, a role or a user.",
    );
    text += &matching(
        "stream_name",
        "The name of the stream",
        onboarding.stream.name(),
        "[A-Za-z0-9_.-]{1,128}",
        "The name must be 1 to 128 letters, digits, underscores, dots or hyphens.",
    );
    text += &matching(
        "role_name",
        "The name of the role",
        onboarding.role.name(),
        "[A-Za-z0-9_+=,.@-]{1,64}",
        "The name must be 1 to 64 letters, digits or _+=,.@- characters.",
    );
    text += &counted(
        "retention_hours",
        "How long the stream keeps records for its readers, in hours",
        DEFAULT_RETENTION_HOURS,
        (MIN_RETENTION_HOURS, MAX_RETENTION_HOURS),
    );
    if let Capacity::Shards(shards) = onboarding.capacity {
        text += &counted(
            "shard_count",
            "The number of shards, each of 1000 records and 1 MiB a second",
            shards,
            (1, MAX_SHARDS),
        );
    }
    if let Some(key) = &onboarding.kms_key {
        text += &matching(
            "kms_key_arn",
            "The key that encrypts the stream; its key policy must let IAM policies of this account grant its use",
            key.as_str(),
            KeyArn::PATTERN,
            "Give the ARN of a KMS key, not of an alias.",
        );
    }
    text
}

/// A variable whose whole text must match a pattern.
fn matching(name: &str, description: &str, default: &str, pattern: &str, error: &str) -> String {
    let (description, default) = (hcl(description), hcl(default));
    let (pattern, error) = (hcl(&format!("^({pattern})$")), hcl(error));
    format!(
        r#"
variable "{name}" {{
  description = {description}
  type        = string
  default     = {default}
  nullable    = false

  validation {{
    condition     = can(regex({pattern}, var.{name}))
    error_message = {error}
  }}
}}
"#
    )
}

/// A variable that is a whole number in a range.
fn counted(name: &str, description: &str, default: u32, (min, max): (u32, u32)) -> String {
    let description = hcl(description);
    format!(
        r#"
variable "{name}" {{
  description = {description}
  type        = number
  default     = {default}
  nullable    = false

  validation {{
    condition     = var.{name} >= {min} && var.{name} <= {max} && floor(var.{name}) == var.{name}
    error_message = "Give a whole number from {min} to {max}."
  }}
}}
"#
    )
}

fn stream(onboarding: &Onboarding) -> String {
    let (mode, shards) = match onboarding.capacity {
        Capacity::OnDemand => ("ON_DEMAND", ""),
        Capacity::Shards(_) => ("PROVISIONED", "\n  shard_count      = var.shard_count"),
    };
    let key = match onboarding.kms_key {
        Some(_) => "var.kms_key_arn",
        None => "\"alias/aws/kinesis\"",
    };
    format!(
        r#"
resource "aws_kinesis_stream" "siem_relay" {{
  name             = var.stream_name{shards}
  retention_period = var.retention_hours
  encryption_type  = "KMS"
  kms_key_id       = {key}

  stream_mode_details {{
    stream_mode = "{mode}"
  }}
}}
"#
    )
}

fn role() -> String {
    format!(
        r#"
resource "aws_iam_role" "siem_relay" {{
  name        = var.role_name
  description = "siem-relay assumes it to write to a Kinesis data stream"

  assume_role_policy = jsonencode({{
    Version = "{VERSION}"
    Statement = [
      {{
        Sid       = "AssumeRoleWithExternalId"
        Effect    = "Allow"
        Principal = {{ AWS = var.trusted_principal }}
        Action    = ["sts:AssumeRole"]
        Condition = {{ StringEquals = {{ "sts:ExternalId" = var.external_id }} }}
      }},
    ]
  }})
}}
"#
    )
}

fn permissions(onboarding: &Onboarding) -> String {
    let [put_record, put_records] = WRITE_ACTIONS;
    let encrypt = match onboarding.kms_key {
        Some(_) => format!(
            r#"
      {{
        Sid       = "EncryptRecords"
        Effect    = "Allow"
        Action    = ["kms:GenerateDataKey"]
        Resource  = var.kms_key_arn
        Condition = {{ StringEquals = {{ "{ENCRYPTION_CONTEXT}" = aws_kinesis_stream.siem_relay.arn }} }}
      }},"#
        ),
        None => String::new(),
    };
    format!(
        r#"
resource "aws_iam_role_policy" "siem_relay" {{
  name = "siem-relay"
  role = aws_iam_role.siem_relay.name

  policy = jsonencode({{
    Version = "{VERSION}"
    Statement = [
      {{
        Sid      = "WriteRecords"
        Effect   = "Allow"
        Action   = ["{put_record}", "{put_records}"]
        Resource = aws_kinesis_stream.siem_relay.arn
      }},{encrypt}
    ]
  }})
}}
"#
    )
}

const OUTPUTS: &str = r#"
output "stream_arn" {
  description = "The kinesis_stream_arn of the integration"
  value       = aws_kinesis_stream.siem_relay.arn
}

output "role_arn" {
  description = "The role_arn of the integration"
  value       = aws_iam_role.siem_relay.arn
}
"#;
