//! Amazon Resource Names of the two resources an integration names.
//!
//! The forms are those of the Service Authorization Reference (Kinesis Data
//! Streams, IAM), the lengths those of the API references of `CreateStream` and
//! `CreateRole`, the partitions and their regions those of the AWS SDK's
//! `partitions.json`.

mod error;
mod partition;

use std::{fmt, ops::Range, sync::Arc};

pub use error::ArnError;
pub use partition::Partition;

use super::character::BadCharacter;

/// The longest ARN that IAM and Kinesis take, in bytes.
const MAX_LENGTH: usize = 2_048;
const MAX_STREAM_NAME_LENGTH: usize = 128;
const MAX_ROLE_NAME_LENGTH: usize = 64;
const MAX_ROLE_PATH_LENGTH: usize = 512;

/// The ARN of a Kinesis data stream:
/// `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME`.
#[derive(Clone)]
pub struct StreamArn {
    text: Arc<str>,
    partition: Partition,
    region: Range<usize>,
    account: Range<usize>,
    name: Range<usize>,
}

/// The ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
#[derive(Clone)]
pub struct RoleArn {
    text: Arc<str>,
    partition: Partition,
    account: Range<usize>,
    name: Range<usize>,
}

impl StreamArn {
    /// Checks and takes an ARN.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it, without repeating it.
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
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=MAX_STREAM_NAME_LENGTH).contains(&name.len()) || !name.bytes().all(known) {
            return Err(ArnError::StreamName);
        }
        Ok(Self {
            partition: arn.partition,
            region: place(text, arn.region),
            account: place(text, arn.account),
            name: place(text, name),
            text: text.into(),
        })
    }

    /// The ARN as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition, which role and stream must share.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// The region, such as `us-east-1`.
    pub fn region(&self) -> &str {
        &self.text[self.region.clone()]
    }

    /// The 12 digits of the account that owns the stream.
    pub fn account(&self) -> &str {
        &self.text[self.account.clone()]
    }

    /// The stream's name.
    pub fn name(&self) -> &str {
        &self.text[self.name.clone()]
    }

    /// Whether the role may be used for this stream at all: no role is assumed
    /// across partitions.
    pub fn same_partition(&self, role: &RoleArn) -> bool {
        self.partition == role.partition
    }
}

impl RoleArn {
    /// Checks and takes an ARN.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it, without repeating it.
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
        // IAM counts the slash that the ARN shares with `role/`.
        let path_is_known = path.len() < MAX_ROLE_PATH_LENGTH
            && !path.starts_with('/')
            && path.bytes().all(|byte| byte.is_ascii_graphic());
        if !path_is_known {
            return Err(ArnError::RolePath);
        }
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        if !(1..=MAX_ROLE_NAME_LENGTH).contains(&name.len()) || !name.bytes().all(known) {
            return Err(ArnError::RoleName);
        }
        Ok(Self {
            partition: arn.partition,
            account: place(text, arn.account),
            name: place(text, name),
            text: text.into(),
        })
    }

    /// The ARN as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition, which role and stream must share.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// The 12 digits of the account that owns the role.
    pub fn account(&self) -> &str {
        &self.text[self.account.clone()]
    }

    /// The role's name, without its path.
    pub fn name(&self) -> &str {
        &self.text[self.name.clone()]
    }
}

/// Which resource an ARN is expected to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Kinesis data stream.
    Stream,
    /// An IAM role.
    Role,
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

/// Where `part`, a slice of `text`, stands in it.
fn place(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

macro_rules! as_its_text {
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

as_its_text!(StreamArn);
as_its_text!(RoleArn);

#[cfg(test)]
mod tests;
