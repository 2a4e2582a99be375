//! What is wrong with an ARN.

use super::{Kind, Partition};
use crate::domain::character::BadCharacter;

/// Why a text is not the ARN that is needed, and what to do.
///
/// It never repeats the text: a secret may have been pasted into the wrong field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// Nothing was given.
    #[error("is required: give an ARN of the form {}", form(*.0))]
    Empty(Kind),
    /// More than 2,048 bytes.
    #[error("is too long for an ARN; give the ARN alone")]
    TooLong,
    /// A character that is not printable ASCII, such as white space or an invisible one.
    #[error("{0}; an ARN has only printable ASCII characters")]
    Character(BadCharacter),
    /// Not six parts that start with `arn`.
    #[error("is not an ARN; give one of the form {}", form(*.0))]
    NotAnArn(Kind),
    /// A `*`.
    #[error("has a wildcard; name exactly one resource")]
    Wildcard,
    /// A partition that is not known.
    #[error(
        "is not in a known partition: aws, aws-cn, aws-us-gov, aws-eusc, aws-iso, aws-iso-b, aws-iso-e or aws-iso-f"
    )]
    Partition,
    /// The ARN of a Firehose stream in place of a Kinesis data stream's.
    #[error(
        "is the ARN of a Firehose stream; give the ARN of a Kinesis data stream, from which Firehose may read"
    )]
    Firehose,
    /// The ARN of an STS session in place of a role's.
    #[error(
        "is the ARN of a session of STS; give the ARN of the IAM role itself: {}",
        form(Kind::Role)
    )]
    Session,
    /// The ARNs of role and stream stand in each other's place.
    #[error("is the ARN of {}; give that of {}: {}", other(*.0), one(*.0), form(*.0))]
    Swapped(Kind),
    /// An ARN of a service that has nothing to do with it.
    #[error("is the ARN of another service; give that of {}: {}", one(*.0), form(*.0))]
    OtherService(Kind),
    /// No region in a stream's ARN.
    #[error("has no region; a stream's ARN names it: arn:aws:kinesis:REGION:ACCOUNT:stream/NAME")]
    NoRegion,
    /// The region is not one of the partition.
    #[error("has a region that is not one of the partition {0}; check both")]
    Region(Partition),
    /// A region in a role's ARN.
    #[error("has a region; a role has none: arn:aws:iam::ACCOUNT:role/NAME")]
    RoleRegion,
    /// Not 12 digits of an account.
    #[error("has an account that is not 12 digits; expected the form {}", form(*.0))]
    Account(Kind),
    /// A Kinesis ARN that names no stream.
    #[error("names no data stream; after the account it must say stream/NAME")]
    NotAStream,
    /// More after the stream's name.
    #[error(
        "has more after the stream's name, as the ARN of a consumer has; give the stream's own ARN, which ends with its name"
    )]
    StreamSuffix,
    /// The stream's name.
    #[error("has a stream name that is not 1 to 128 letters, digits, underscores, dots or hyphens")]
    StreamName,
    /// An IAM user in place of a role.
    #[error("names a user; give the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME")]
    User,
    /// The account's root in place of a role.
    #[error(
        "names the account itself; give the ARN of a role in it: arn:aws:iam::ACCOUNT:role/NAME"
    )]
    Root,
    /// An instance profile in place of its role.
    #[error("names an instance profile; give the ARN of its role: arn:aws:iam::ACCOUNT:role/NAME")]
    InstanceProfile,
    /// A policy in place of a role.
    #[error("names a policy; give the ARN of the role that has it: arn:aws:iam::ACCOUNT:role/NAME")]
    Policy,
    /// Another IAM resource.
    #[error("names no role; after the account it must say role/NAME")]
    NotARole,
    /// The role's path.
    #[error("has a role path that is not printable ASCII between slashes, 512 characters at most")]
    RolePath,
    /// The role's name.
    #[error("has a role name that is not 1 to 64 letters, digits or _+=,.@-")]
    RoleName,
}

impl ArnError {
    /// The error for an ARN of `service` where one of `kind` is needed.
    pub(super) fn other_service(kind: Kind, service: &str) -> Self {
        match (kind, service) {
            (Kind::Stream, "firehose") => Self::Firehose,
            (Kind::Role, "sts") => Self::Session,
            (Kind::Stream, "iam") | (Kind::Role, "kinesis") => Self::Swapped(kind),
            _ => Self::OtherService(kind),
        }
    }

    /// The error for an IAM resource that is not a role.
    pub(super) fn not_a_role(resource: &str) -> Self {
        match resource.split('/').next() {
            Some("user") => Self::User,
            Some("root") => Self::Root,
            Some("instance-profile") => Self::InstanceProfile,
            Some("policy") => Self::Policy,
            _ => Self::NotARole,
        }
    }
}

fn form(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "arn:aws:kinesis:REGION:ACCOUNT:stream/NAME",
        Kind::Role => "arn:aws:iam::ACCOUNT:role/NAME",
    }
}

fn one(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "a Kinesis data stream",
        Kind::Role => "an IAM role",
    }
}

fn other(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "an IAM resource",
        Kind::Role => "a Kinesis resource",
    }
}
