//! The principal of the trust policy.

use std::fmt;

use super::inputs::{check_printable, is_account};
use crate::domain::arn::{ArnError, Partition, RoleArn};

/// A principal of a trust policy, of the kind `AWS`: an account by its 12 digits, or the
/// ARN of an account (`…:root`), a role or a user. See "AWS JSON policy elements:
/// Principal" in the IAM User Guide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    text: String,
    /// `None` for an account ID, which is valid in every partition.
    partition: Option<Partition>,
}

/// Reason that a text is not a principal that a customer should trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    /// An empty text.
    #[error(
        "is required; give the 12-digit account ID or the ARN of the identity that the service runs as, which will assume the role"
    )]
    Empty,
    /// Neither an account nor an ARN of IAM.
    #[error(
        "is neither a 12-digit account ID nor the ARN of an account, a role or a user; give one such as arn:aws:iam::ACCOUNT:role/NAME"
    )]
    Form,
    /// A text with `*` or `?`.
    #[error("contains a wildcard; give exactly one account, role or user")]
    Wildcard,
    /// The ARN of an STS session.
    #[error(
        "is the ARN of an STS session, which changes; give the ARN of its role: arn:aws:iam::ACCOUNT:role/NAME"
    )]
    Session,
    /// A problem of the ARN.
    #[error(transparent)]
    Arn(#[from] ArnError),
    /// Another partition than that of the stream.
    #[error(
        "is in the partition {0} and the stream in {1}; give a principal in {1}, since roles cannot be assumed across partitions"
    )]
    OtherPartition(Partition, Partition),
}

impl Principal {
    /// Regular expression that the templates require of the whole text.
    pub(super) const PATTERN: &str =
        "[0-9]{12}|arn:aws[a-z-]*:iam::[0-9]{12}:(root|(role|user)/[^*? ]+)";

    /// Parses a principal.
    ///
    /// # Errors
    ///
    /// The first problem.
    pub fn parse(text: &str) -> Result<Self, PrincipalError> {
        if text.is_empty() {
            return Err(PrincipalError::Empty);
        }
        if text.contains(['*', '?']) {
            return Err(PrincipalError::Wildcard);
        }
        check_printable(text)?;
        let partition = match is_account(text) {
            true => None,
            false => Some(partition_of_arn(text)?),
        };
        Ok(Self {
            text: text.to_owned(),
            partition,
        })
    }

    /// The principal as given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Checks that the principal can assume a role in this partition.
    ///
    /// # Errors
    ///
    /// [`PrincipalError::OtherPartition`].
    pub fn check_partition(&self, stream: Partition) -> Result<(), PrincipalError> {
        match self.partition {
            Some(own) if own != stream => Err(PrincipalError::OtherPartition(own, stream)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn partition_of_arn(text: &str) -> Result<Partition, PrincipalError> {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next().ok_or(PrincipalError::Form);
    let (prefix, partition, service) = (next()?, next()?, next()?);
    let (region, account, resource) = (next()?, next()?, next()?);
    match (prefix, service) {
        ("arn", "iam") => {}
        ("arn", "sts") => return Err(PrincipalError::Session),
        _ => return Err(PrincipalError::Form),
    }
    // Path and name of a user have the same syntax as those of a role.
    let (resource, is_named) = match (resource, resource.split_once('/')) {
        ("root", _) => ("any", false),
        (_, Some(("role" | "user", path_and_name))) => (path_and_name, true),
        _ => return Err(PrincipalError::Form),
    };
    let role = format!("{prefix}:{partition}:{service}:{region}:{account}:role/{resource}");
    match RoleArn::parse(&role) {
        Ok(role) => Ok(role.partition()),
        Err(error @ (ArnError::Partition | ArnError::TooLong)) => Err(error.into()),
        Err(error @ (ArnError::RolePath | ArnError::RoleName)) if is_named => Err(error.into()),
        Err(_) => Err(PrincipalError::Form),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::character::BadCharacter;

    #[test]
    fn accepts_accounts_roles_and_users() {
        for text in [
            "111111111111",
            "arn:aws:iam::111111111111:root",
            "arn:aws-us-gov:iam::111111111111:role/siem-relay",
            "arn:aws:iam::111111111111:role/a/{b}'\"$\\/siem-relay",
            "arn:aws:iam::111111111111:user/relay",
        ] {
            assert_eq!(Principal::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_wildcards_sessions_and_malformed_principals() {
        let refused = |text: &str| Principal::parse(text).unwrap_err();
        assert_eq!(refused(""), PrincipalError::Empty);
        assert_eq!(refused("*"), PrincipalError::Wildcard);
        assert_eq!(
            refused("arn:aws:iam::111111111111:role/x*"),
            PrincipalError::Wildcard
        );
        assert_eq!(
            refused("arn:aws:sts::111111111111:assumed-role/relay/session"),
            PrincipalError::Session
        );
        for text in [
            "11111111111",
            "1111111111111",
            "relay",
            "arn:aws:iam::111111111111",
            "arn:aws:iam::1111:root",
            "arn:aws:iam:us-east-1:111111111111:root",
            "arn:aws:iam::111111111111:group/x",
            "arn:aws:iam::111111111111:root/x",
            "arn:aws:s3:::bucket",
        ] {
            assert_eq!(refused(text), PrincipalError::Form, "{text}");
        }
        for (text, position, character) in [
            ("arn:aws:iam::111111111111:role/a b", 33, ' '),
            ("\u{200b}arn:aws:iam::111111111111:root", 1, '\u{200b}'),
            ("111111\u{2060}111111", 7, '\u{2060}'),
        ] {
            let bad = BadCharacter {
                position,
                character,
            };
            assert_eq!(refused(text), ArnError::Character(bad).into());
        }
        assert_eq!(
            refused("arn:aws-mars:iam::111111111111:role/x"),
            ArnError::Partition.into()
        );
        assert_eq!(
            refused("arn:aws:iam::111111111111:user/"),
            ArnError::RoleName.into()
        );
    }

    #[test]
    fn an_account_fits_every_partition_and_an_arn_only_its_own() {
        let china = Partition::AwsCn;
        let check = |text: &str| Principal::parse(text).unwrap().check_partition(china);
        assert_eq!(check("111111111111"), Ok(()));
        assert_eq!(check("arn:aws-cn:iam::111111111111:root"), Ok(()));
        assert_eq!(
            check("arn:aws:iam::111111111111:root"),
            Err(PrincipalError::OtherPartition(Partition::Aws, china))
        );
    }
}
