//! Amazon Resource Names of Kinesis data streams and IAM roles.
//!
//! The forms are those of the Service Authorization Reference (Kinesis Data Streams, IAM),
//! the lengths those of the API references of `CreateStream` and `CreateRole`, and the
//! partitions and their regions those of the AWS SDK's `partitions.json`.

mod partition;

use std::{fmt, ops::Range, sync::Arc};

pub use partition::Partition;

use super::character::BadCharacter;

/// Most bytes of an ARN that IAM and Kinesis accept.
const MAX_LENGTH: usize = 2_048;
const MAX_STREAM_NAME_LENGTH: usize = 128;
const MAX_ROLE_NAME_LENGTH: usize = 64;
const MAX_ROLE_PATH_LENGTH: usize = 512;

/// ARN of a Kinesis data stream:
/// `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME`.
#[derive(Clone)]
pub struct StreamArn {
    text: Arc<str>,
    partition: Partition,
    region: Range<usize>,
    account: Range<usize>,
    name: Range<usize>,
}

/// ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
#[derive(Clone)]
pub struct RoleArn {
    text: Arc<str>,
    partition: Partition,
    account: Range<usize>,
    name: Range<usize>,
}

impl StreamArn {
    /// Parses an ARN.
    ///
    /// # Errors
    ///
    /// [`ArnError`] for the first problem.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let arn = Parts::split(text, "kinesis", Kind::Stream)?;
        if arn.region.is_empty() {
            return Err(ArnError::NoRegion);
        }
        if !arn.partition.has_region(arn.region) {
            return Err(ArnError::Region(arn.partition));
        }
        check_account(arn.account, Kind::Stream)?;
        let name = arn
            .resource
            .strip_prefix("stream/")
            .ok_or(ArnError::NotAStream)?;
        if name.contains(['/', ':']) {
            return Err(ArnError::StreamSuffix);
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=MAX_STREAM_NAME_LENGTH).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(ArnError::StreamName);
        }
        Ok(Self {
            partition: arn.partition,
            region: range_in(text, arn.region),
            account: range_in(text, arn.account),
            name: range_in(text, name),
            text: text.into(),
        })
    }

    /// Text of the ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Partition, which must be the same for role and stream.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Region, such as `us-east-1`.
    pub fn region(&self) -> &str {
        &self.text[self.region.clone()]
    }

    /// Account id of the stream's owner, 12 digits.
    pub fn account(&self) -> &str {
        &self.text[self.account.clone()]
    }

    /// Name of the stream.
    pub fn name(&self) -> &str {
        &self.text[self.name.clone()]
    }

    /// Whether the role is in the stream's partition. Roles cannot be used across partitions.
    pub fn same_partition(&self, role: &RoleArn) -> bool {
        self.partition == role.partition
    }
}

impl RoleArn {
    /// Parses an ARN.
    ///
    /// # Errors
    ///
    /// [`ArnError`] for the first problem.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let arn = Parts::split(text, "iam", Kind::Role)?;
        if !arn.region.is_empty() {
            return Err(ArnError::RoleRegion);
        }
        check_account(arn.account, Kind::Role)?;
        let path_and_name = arn
            .resource
            .strip_prefix("role/")
            .ok_or_else(|| ArnError::not_a_role(arn.resource))?;
        let name_at = path_and_name.rfind('/').map_or(0, |slash| slash + 1);
        let (path, name) = path_and_name.split_at(name_at);
        // In IAM's limit the slash of `role/` counts as a part of the path.
        let is_valid_path = path.len() < MAX_ROLE_PATH_LENGTH
            && !path.starts_with('/')
            && path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_valid_path {
            return Err(ArnError::RolePath);
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        if !(1..=MAX_ROLE_NAME_LENGTH).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(ArnError::RoleName);
        }
        Ok(Self {
            partition: arn.partition,
            account: range_in(text, arn.account),
            name: range_in(text, name),
            text: text.into(),
        })
    }

    /// Text of the ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Partition, which must be the same for role and stream.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Account id of the role's owner, 12 digits.
    pub fn account(&self) -> &str {
        &self.text[self.account.clone()]
    }

    /// Name of the role without its path.
    pub fn name(&self) -> &str {
        &self.text[self.name.clone()]
    }
}

/// Kind of resource that an ARN is expected to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Kinesis data stream.
    Stream,
    /// An IAM role.
    Role,
}

/// Reason why a text is not the required ARN, with a remedy.
///
/// The message never contains the text, since a secret may have been pasted into the wrong
/// field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// An empty text.
    #[error("is required: give an ARN of the form {}", form(*.0))]
    Empty(Kind),
    /// More than 2,048 bytes.
    #[error("is longer than 2048 bytes; give only the ARN")]
    TooLong,
    /// A character that is not printable ASCII, such as white space or an invisible one.
    #[error("{0}; use only the printable ASCII characters of an ARN")]
    Character(BadCharacter),
    /// Not six parts that start with `arn`.
    #[error("is not an ARN; give one of the form {}", form(*.0))]
    NotAnArn(Kind),
    /// A wildcard, `*`.
    #[error("has a wildcard; name exactly one resource")]
    Wildcard,
    /// An unknown partition.
    #[error(
        "is not in a known partition: aws, aws-cn, aws-us-gov, aws-eusc, aws-iso, aws-iso-b, aws-iso-e or aws-iso-f"
    )]
    Partition,
    /// The ARN of a Firehose stream instead of a Kinesis data stream.
    #[error(
        "is the ARN of a Firehose stream; give the ARN of a Kinesis data stream, which Firehose can read from"
    )]
    Firehose,
    /// The ARN of an STS session instead of a role.
    #[error(
        "is the ARN of an STS session; give the ARN of its IAM role: {}",
        form(Kind::Role)
    )]
    Session,
    /// The ARN of a role instead of a stream, or the reverse.
    #[error("is the ARN of {}; give that of {}: {}", other(*.0), expected(*.0), form(*.0))]
    Swapped(Kind),
    /// An ARN of another service.
    #[error("is the ARN of another service; give that of {}: {}", expected(*.0), form(*.0))]
    OtherService(Kind),
    /// A stream's ARN without a region.
    #[error("has no region; give the stream's region: arn:aws:kinesis:REGION:ACCOUNT:stream/NAME")]
    NoRegion,
    /// A region that is not in the partition.
    #[error("has a region that is not in the partition {0}; check both")]
    Region(Partition),
    /// A role's ARN with a region.
    #[error("has a region; a role has none, leave it empty: arn:aws:iam::ACCOUNT:role/NAME")]
    RoleRegion,
    /// An account that is not 12 digits.
    #[error("has an account id that is not 12 digits; give the form {}", form(*.0))]
    Account(Kind),
    /// A Kinesis ARN that does not name a stream.
    #[error("does not name a data stream; after the account id give stream/NAME")]
    NotAStream,
    /// Text after the stream's name.
    #[error(
        "continues after the stream's name, like the ARN of a consumer; give the ARN of the stream, which ends with its name"
    )]
    StreamSuffix,
    /// An invalid stream name.
    #[error("has a stream name that is not 1 to 128 letters, digits, underscores, dots or hyphens")]
    StreamName,
    /// An IAM user instead of a role.
    #[error("names a user; give the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME")]
    User,
    /// The account's root user instead of a role.
    #[error(
        "names the account's root user; give the ARN of a role in it: arn:aws:iam::ACCOUNT:role/NAME"
    )]
    Root,
    /// An instance profile instead of its role.
    #[error("names an instance profile; give the ARN of its role: arn:aws:iam::ACCOUNT:role/NAME")]
    InstanceProfile,
    /// A policy instead of a role.
    #[error("names a policy; give the ARN of the role that has it: arn:aws:iam::ACCOUNT:role/NAME")]
    Policy,
    /// Another IAM resource.
    #[error("does not name a role; after the account id give role/NAME")]
    NotARole,
    /// An invalid role path.
    #[error("has a role path that is not printable ASCII between slashes, at most 512 characters")]
    RolePath,
    /// An invalid role name.
    #[error("has a role name that is not 1 to 64 letters, digits or _+=,.@-")]
    RoleName,
}

impl ArnError {
    /// Error for an ARN of `service` where one of `kind` is required.
    fn other_service(kind: Kind, service: &str) -> Self {
        match (kind, service) {
            (Kind::Stream, "firehose") => Self::Firehose,
            (Kind::Role, "sts") => Self::Session,
            (Kind::Stream, "iam") | (Kind::Role, "kinesis") => Self::Swapped(kind),
            _ => Self::OtherService(kind),
        }
    }

    /// Error for an IAM resource that is not a role.
    fn not_a_role(resource: &str) -> Self {
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

fn expected(kind: Kind) -> &'static str {
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

struct Parts<'a> {
    partition: Partition,
    region: &'a str,
    account: &'a str,
    resource: &'a str,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str, service: &str, kind: Kind) -> Result<Self, ArnError> {
        if text.is_empty() {
            return Err(ArnError::Empty(kind));
        }
        if text.len() > MAX_LENGTH {
            return Err(ArnError::TooLong);
        }
        if let Some(bad) = BadCharacter::find_unprintable(text) {
            return Err(ArnError::Character(bad));
        }
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().ok_or(ArnError::NotAnArn(kind));
        let (prefix, partition, given_service) = (next()?, next()?, next()?);
        let (region, account, resource) = (next()?, next()?, next()?);
        if prefix != "arn" {
            return Err(ArnError::NotAnArn(kind));
        }
        if text.contains('*') {
            return Err(ArnError::Wildcard);
        }
        let partition = Partition::parse(partition).ok_or(ArnError::Partition)?;
        if given_service != service {
            return Err(ArnError::other_service(kind, given_service));
        }
        Ok(Self {
            partition,
            region,
            account,
            resource,
        })
    }
}

fn check_account(account: &str, kind: Kind) -> Result<(), ArnError> {
    if account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(())
    } else {
        Err(ArnError::Account(kind))
    }
}

/// Range of `part`, which is a slice of `text`.
fn range_in(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

macro_rules! impl_text_traits {
    ($arn:ident) => {
        impl PartialEq for $arn {
            fn eq(&self, other: &Self) -> bool {
                self.text == other.text
            }
        }

        impl Eq for $arn {}

        impl std::hash::Hash for $arn {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.text.hash(state);
            }
        }

        impl fmt::Display for $arn {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl fmt::Debug for $arn {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($arn), &*self.text)
            }
        }
    };
}

impl_text_traits!(StreamArn);
impl_text_traits!(RoleArn);

#[cfg(test)]
mod tests;
