//! The ARN of a customer's KMS key.

use std::fmt;

use super::inputs::{check_printable, is_account};
use crate::domain::arn::{ArnError, Partition, StreamArn};

/// The ARN of a key: `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`. An alias is refused, because in
/// the `Resource` of a policy it means the alias and not the key. See "Key ARN" in the KMS
/// Developer Guide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyArn {
    text: String,
    partition: Partition,
    region: String,
}

/// Reason that a text is not the ARN of a key that can encrypt the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyArnError {
    /// Not the ARN of a key.
    #[error("is not the ARN of a KMS key; give one of the form arn:aws:kms:REGION:ACCOUNT:key/ID")]
    Form,
    /// A character that is not allowed in ARNs.
    #[error(transparent)]
    Arn(#[from] ArnError),
    /// An alias, or its ARN.
    #[error(
        "is an alias, and a policy cannot grant the use of a key by its alias; give the ARN of the key: arn:aws:kms:REGION:ACCOUNT:key/ID"
    )]
    Alias,
    /// Another partition or region than that of the stream.
    #[error("is not in the region of the stream; give a key in that region")]
    OtherRegion,
}

impl KeyArn {
    /// Regular expression that the templates require of the whole text.
    pub(super) const PATTERN: &str = "arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+";

    /// Parses an ARN.
    ///
    /// # Errors
    ///
    /// The first problem.
    pub fn parse(text: &str) -> Result<Self, KeyArnError> {
        check_printable(text)?;
        if text.starts_with("alias/") {
            return Err(KeyArnError::Alias);
        }
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts[..] else {
            return Err(KeyArnError::Form);
        };
        let partition = Partition::parse(partition).filter(|known| known.has_region(region));
        let (Some(partition), true) = (partition, is_account(account)) else {
            return Err(KeyArnError::Form);
        };
        if resource.starts_with("alias/") {
            return Err(KeyArnError::Alias);
        }
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        match resource.strip_prefix("key/") {
            Some(id) if (1..=128).contains(&id.len()) && id.bytes().all(known) => Ok(Self {
                text: text.to_owned(),
                partition,
                region: region.to_owned(),
            }),
            _ => Err(KeyArnError::Form),
        }
    }

    /// The ARN as given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Checks that the key can encrypt this stream. It may belong to another account.
    ///
    /// # Errors
    ///
    /// [`KeyArnError::OtherRegion`].
    pub fn check_region(&self, stream: &StreamArn) -> Result<(), KeyArnError> {
        if self.partition == stream.partition() && self.region == stream.region() {
            Ok(())
        } else {
            Err(KeyArnError::OtherRegion)
        }
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_keys_and_refuses_everything_else() {
        for text in [
            "arn:aws:kms:eu-west-1:222222222222:key/0b5ecb46-9d1f-4b4c-8a3c-1d9d3d4b8a11",
            "arn:aws-cn:kms:cn-north-1:222222222222:key/mrk-1234abcd12ab34cd56ef1234567890ab",
        ] {
            assert_eq!(KeyArn::parse(text).unwrap().as_str(), text);
        }
        let refused = |text: &str| KeyArn::parse(text).unwrap_err();
        assert_eq!(refused("alias/aws/kinesis"), KeyArnError::Alias);
        assert_eq!(
            refused("arn:aws:kms:eu-west-1:222222222222:alias/siem"),
            KeyArnError::Alias
        );
        for text in [
            "",
            "0b5ecb46-9d1f-4b4c-8a3c-1d9d3d4b8a11",
            "arn:aws:kms:eu-west-1:222222222222:key/",
            "arn:aws:kms:eu-west-1:222222222222:key/*",
            "arn:aws:kms:eu-west-1:222222222222:key/a:b",
            "arn:aws:kms:eu-west-1:2222:key/a",
            "arn:aws:kms:cn-north-1:222222222222:key/a",
            "arn:aws:kms::222222222222:key/a",
            "arn:aws:s3:eu-west-1:222222222222:key/a",
        ] {
            assert_eq!(refused(text), KeyArnError::Form, "{text}");
        }
        let message = refused("arn:aws:kms:eu-west-1:222222222222:key/a\u{200b}").to_string();
        assert!(message.contains("character 41 is U+200B"), "{message}");
    }

    #[test]
    fn a_key_encrypts_streams_of_its_region_only() {
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:333333333333:key/a").unwrap();
        let check = |region: &str| {
            let arn = format!("arn:aws:kinesis:{region}:222222222222:stream/s");
            key.check_region(&StreamArn::parse(&arn).unwrap())
        };
        assert_eq!(check("eu-west-1"), Ok(()));
        assert_eq!(check("eu-west-2"), Err(KeyArnError::OtherRegion));
    }
}
