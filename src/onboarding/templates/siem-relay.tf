{#- The policies use jsonencode instead of aws_iam_policy_document: the result of that data
source is not sensitive, so a plan would show the external ID. The limits of retention_hours
are those of IncreaseStreamRetentionPeriod.
https://developer.hashicorp.com/terraform/language -#}
# Creates a Kinesis data stream, and a role that allows siem-relay to write to this stream
# and nothing else. The external ID is a secret. This file does not contain it, but
# Terraform stores it in its state:
#
#   export TF_VAR_external_id=...
#   terraform init
#   terraform apply
#
# Then configure the integration with the two ARNs of the outputs:
#
#   kinesis_stream_arn  {{ raw.stream_arn }}
#   role_arn            {{ raw.role_arn }}
#
# siem-relay verifies that the role requires the external ID: after each change of the
# integration, and then daily, it tries to assume the role without one and with a random
# one. Both attempts are denied and appear in CloudTrail as AssumeRole with AccessDenied.

terraform {
  required_version = ">= 1.2"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 4.0"
    }
  }
}
{#- The account is named so that nothing is created in another one by mistake. #}

provider "aws" {
  region              = {{ region }}
  allowed_account_ids = [{{ account }}]
}

variable "external_id" {
  description = "The secret that siem-relay presents to assume the role"
  type        = string
  sensitive   = true
  nullable    = false

  validation {
    condition     = length(var.external_id) >= 2 && length(var.external_id) <= 1224 && can(regex("^[A-Za-z0-9_+=,.@:/-]+$", var.external_id))
    error_message = "The external ID must be 2 to 1224 letters, digits or _+=,.@:/- characters."
  }
}

variable "trusted_principal" {
  description = "The account ID or the ARN of the identity that may assume the role"
  type        = string
  default     = {{ principal }}
  nullable    = false

  validation {
    condition     = can(regex({{ "^(" ~ principal_pattern ~ ")$" }}, var.trusted_principal))
    error_message = "Give a 12-digit account ID, or the ARN of an account, a role or a user."
  }
}

variable "stream_name" {
  description = "The name of the stream"
  type        = string
  default     = {{ stream_name }}
  nullable    = false

  validation {
    condition     = can(regex("^([A-Za-z0-9_.-]{1,128})$", var.stream_name))
    error_message = "The name must be 1 to 128 letters, digits, underscores, dots or hyphens."
  }
}

variable "role_name" {
  description = "The name of the role"
  type        = string
  default     = {{ role_name }}
  nullable    = false

  validation {
    condition     = can(regex("^([A-Za-z0-9_+=,.@-]{1,64})$", var.role_name))
    error_message = "The name must be 1 to 64 letters, digits or _+=,.@- characters."
  }
}

variable "retention_hours" {
  description = "The time that the stream keeps records, in hours"
  type        = number
  default     = 24
  nullable    = false

  validation {
    condition     = var.retention_hours >= 24 && var.retention_hours <= 8760 && floor(var.retention_hours) == var.retention_hours
    error_message = "Give a whole number from 24 to 8760."
  }
}
{%- if shards %}

variable "shard_count" {
  description = "The number of shards, each of 1000 records and 1 MiB per second"
  type        = number
  default     = {{ shards }}
  nullable    = false

  validation {
    condition     = var.shard_count >= 1 && var.shard_count <= {{ max_shards }} && floor(var.shard_count) == var.shard_count
    error_message = "Give a whole number from 1 to {{ max_shards }}."
  }
}
{%- endif %}
{%- if kms_key_arn %}

variable "kms_key_arn" {
  description = "The key that encrypts the stream; its key policy must allow IAM policies of this account to grant its use"
  type        = string
  default     = {{ kms_key_arn }}
  nullable    = false

  validation {
    condition     = can(regex({{ "^(" ~ kms_key_pattern ~ ")$" }}, var.kms_key_arn))
    error_message = "Give the ARN of a KMS key, not of an alias."
  }
}
{%- endif %}

resource "aws_kinesis_stream" "siem_relay" {
  name             = var.stream_name
  {%- if shards %}
  shard_count      = var.shard_count
  {%- endif %}
  retention_period = var.retention_hours
  encryption_type  = "KMS"
  kms_key_id       = {% if kms_key_arn %}var.kms_key_arn{% else %}"alias/aws/kinesis"{% endif %}

  stream_mode_details {
    stream_mode = "{% if shards %}PROVISIONED{% else %}ON_DEMAND{% endif %}"
  }
}

resource "aws_iam_role" "siem_relay" {
  name        = var.role_name
  description = "Assumed by siem-relay to write to a Kinesis data stream"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "AssumeRoleWithExternalId"
        Effect    = "Allow"
        Principal = { AWS = var.trusted_principal }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "sts:ExternalId" = var.external_id } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "siem_relay" {
  name = "siem-relay"
  role = aws_iam_role.siem_relay.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "WriteRecords"
        Effect   = "Allow"
        Action   = ["kinesis:PutRecord", "kinesis:PutRecords"]
        Resource = aws_kinesis_stream.siem_relay.arn
      },
      {%- if kms_key_arn %}
      {
        Sid       = "EncryptRecords"
        Effect    = "Allow"
        Action    = ["kms:GenerateDataKey"]
        Resource  = var.kms_key_arn
        Condition = { StringEquals = { "kms:EncryptionContext:aws:kinesis:arn" = aws_kinesis_stream.siem_relay.arn } }
      },
      {%- endif %}
    ]
  })
}

output "stream_arn" {
  description = "The kinesis_stream_arn of the integration"
  value       = aws_kinesis_stream.siem_relay.arn
}

output "role_arn" {
  description = "The role_arn of the integration"
  value       = aws_iam_role.siem_relay.arn
}
