//! The [CloudFormation] template.
//!
//! [CloudFormation]: https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/

use super::{
    Capacity, DEFAULT_RETENTION_HOURS, KeyArn, MAX_RETENTION_HOURS, MIN_RETENTION_HOURS,
    Onboarding, Principal,
    inputs::MAX_SHARDS,
    policy::{ENCRYPTION_CONTEXT, VERSION, WRITE_ACTIONS},
    quote::yaml,
};

pub(super) const FILE_NAME: &str = "siem-relay.cfn.yaml";

/// The whole template. What is known of the customer is a default of its parameters.
pub(super) fn template(onboarding: &Onboarding) -> String {
    [
        head(onboarding),
        parameters(onboarding),
        stream(onboarding),
        role(onboarding),
        OUTPUTS.to_owned(),
    ]
    .concat()
}

fn head(onboarding: &Onboarding) -> String {
    let (stream, role) = (onboarding.stream(), onboarding.role());
    let (region, account) = (stream.region(), stream.account());
    format!(
        "\
# Makes a Kinesis data stream, and a role with which siem-relay may write to it and do
# nothing else. Apply it in account {account}, region {region}. The external ID is a
# secret; it stands nowhere in this file:
#
#   aws cloudformation deploy --region {region} --stack-name siem-relay \\
#     --template-file {FILE_NAME} --capabilities CAPABILITY_NAMED_IAM \\
#     --parameter-overrides \"ExternalId=$EXTERNAL_ID\"
#
# The integration is then configured with the two ARNs of the outputs:
#
#   kinesis_stream_arn  {stream}
#   role_arn            {role}
#
# siem-relay proves that the role requires the external ID: after each change of the
# integration, and then daily, it tries to assume the role without one and with a random
# one. Both attempts are denied, and appear in CloudTrail as AssumeRole with AccessDenied.
AWSTemplateFormatVersion: '2010-09-09'
Description: A Kinesis data stream, and a role with which siem-relay may write to it
"
    )
}

fn parameters(onboarding: &Onboarding) -> String {
    let principal_pattern = yaml(Principal::PATTERN);
    let principal = yaml(onboarding.principal.as_str());
    let stream_name = yaml(onboarding.stream.name());
    let role_name = yaml(onboarding.role.name());
    let mut text = format!(
        "
Parameters:
  ExternalId:
    Description: What siem-relay must say to assume the role; a secret
    Type: String
    NoEcho: true
    MinLength: 2
    MaxLength: 1224
    AllowedPattern: '[A-Za-z0-9_+=,.@:/-]+'
    ConstraintDescription: 2 to 1224 letters, digits or _+=,.@:/-
  TrustedPrincipal:
    Description: Who may assume the role, an account ID or the ARN of an identity
    Type: String
    Default: {principal}
    AllowedPattern: {principal_pattern}
    ConstraintDescription: a 12-digit account ID, or the ARN of an account, a role or a user
  StreamName:
    Description: The name of the stream
    Type: String
    Default: {stream_name}
    MaxLength: 128
    AllowedPattern: '[A-Za-z0-9_.-]+'
    ConstraintDescription: 1 to 128 letters, digits, underscores, dots or hyphens
  RoleName:
    Description: The name of the role
    Type: String
    Default: {role_name}
    MaxLength: 64
    AllowedPattern: '[A-Za-z0-9_+=,.@-]+'
    ConstraintDescription: 1 to 64 letters, digits or _+=,.@-
  RetentionHours:
    Description: How long the stream keeps records for its readers, in hours
    Type: Number
    Default: {DEFAULT_RETENTION_HOURS}
    MinValue: {MIN_RETENTION_HOURS}
    MaxValue: {MAX_RETENTION_HOURS}
"
    );
    if let Capacity::Shards(shards) = onboarding.capacity {
        text += &format!(
            "  ShardCount:
    Description: The number of shards, each of 1000 records and 1 MiB a second
    Type: Number
    Default: {shards}
    MinValue: 1
    MaxValue: {MAX_SHARDS}
"
        );
    }
    if let Some(key) = &onboarding.kms_key {
        let (key, pattern) = (yaml(key.as_str()), yaml(KeyArn::PATTERN));
        text += &format!(
            "  KmsKeyArn:
    Description: The key that encrypts the stream; its key policy must let IAM policies of this account grant its use
    Type: String
    Default: {key}
    AllowedPattern: {pattern}
    ConstraintDescription: the ARN of a KMS key, not of an alias
"
        );
    }
    text
}

fn stream(onboarding: &Onboarding) -> String {
    let capacity = match onboarding.capacity {
        Capacity::OnDemand => {
            "
      StreamModeDetails:
        StreamMode: ON_DEMAND"
        }
        Capacity::Shards(_) => {
            "
      StreamModeDetails:
        StreamMode: PROVISIONED
      ShardCount: !Ref ShardCount"
        }
    };
    let key = match onboarding.kms_key {
        Some(_) => "!Ref KmsKeyArn",
        None => "alias/aws/kinesis",
    };
    format!(
        "
Resources:
  Stream:
    Type: AWS::Kinesis::Stream
    DeletionPolicy: Delete
    UpdateReplacePolicy: Delete
    Properties:
      Name: !Ref StreamName{capacity}
      RetentionPeriodHours: !Ref RetentionHours
      StreamEncryption:
        EncryptionType: KMS
        KeyId: {key}
"
    )
}

fn role(onboarding: &Onboarding) -> String {
    let [put_record, put_records] = WRITE_ACTIONS;
    let mut text = format!(
        "
  Role:
    Type: AWS::IAM::Role
    Properties:
      RoleName: !Ref RoleName
      Description: siem-relay assumes it to write to a Kinesis data stream
      AssumeRolePolicyDocument:
        Version: '{VERSION}'
        Statement:
          - Sid: AssumeRoleWithExternalId
            Effect: Allow
            Principal:
              AWS: !Ref TrustedPrincipal
            Action:
              - sts:AssumeRole
            Condition:
              StringEquals:
                sts:ExternalId: !Ref ExternalId
      Policies:
        - PolicyName: siem-relay
          PolicyDocument:
            Version: '{VERSION}'
            Statement:
              - Sid: WriteRecords
                Effect: Allow
                Action:
                  - {put_record}
                  - {put_records}
                Resource: !GetAtt Stream.Arn
"
    );
    if onboarding.kms_key.is_some() {
        text += &format!(
            "              - Sid: EncryptRecords
                Effect: Allow
                Action:
                  - kms:GenerateDataKey
                Resource: !Ref KmsKeyArn
                Condition:
                  StringEquals:
                    {ENCRYPTION_CONTEXT}: !GetAtt Stream.Arn
"
        );
    }
    text
}

const OUTPUTS: &str = "
Outputs:
  StreamArn:
    Description: The kinesis_stream_arn of the integration
    Value: !GetAtt Stream.Arn
  RoleArn:
    Description: The role_arn of the integration
    Value: !GetAtt Role.Arn
";
