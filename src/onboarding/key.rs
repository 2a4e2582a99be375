//! The ARN of a customer's KMS key.

use std::fmt;

use super::inputs::{check_printable, is_account};
use crate::domain::arn::{ArnError, Partition, StreamArn};

/// The ARN of a key: `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`. An alias will not do: in a
/// policy's `Resource` it means the alias and not the key. See "Key ARN" in the KMS
/// Developer Guide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyArn {
    text: String,
    partition: Partition,
    region: String,
}

/// Why a text is not the ARN of a key that can encrypt the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyArnError {
    /// Not the ARN of a key.
    #[error("is not the ARN of a KMS key; give one of the form arn:aws:kms:REGION:ACCOUNT:key/ID")]
    Form,
    /// A character that no ARN has.
    #[error(transparent)]
    Arn(#[from] ArnError),
    /// An alias, or its ARN.
    #[error(
        "is an alias, which a policy cannot grant the use of; give the key's ARN: arn:aws:kms:REGION:ACCOUNT:key/ID"
    )]
    Alias,
    /// Another partition or region than the stream's.
    #[error("is not in the stream's region; a stream is encrypted by a key in its own region")]
    Elsewhere,
}

impl KeyArn {
    /// What the templates let through, as a regular expression of the whole text.
    pub(super) const PATTERN: &str = "arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+";

    /// Checks and takes an ARN.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
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

    /// The ARN as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it can encrypt this stream. Its account may be another.
    ///
    /// # Errors
    ///
    /// [`KeyArnError::Elsewhere`].
    pub fn check_place(&self, stream: &StreamArn) -> Result<(), KeyArnError> {
        if self.partition == stream.partition() && self.region == stream.region() {
            Ok(())
        } else {
            Err(KeyArnError::Elsewhere)
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
    fn takes_keys_and_nothing_else() {
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
        let told = refused("arn:aws:kms:eu-west-1:222222222222:key/a\u{200b}").to_string();
        assert!(told.contains("character 41 is U+200B"), "{told}");
    }

    #[test]
    fn encrypts_streams_of_its_region() {
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:333333333333:key/a").unwrap();
        let check = |region: &str| {
            let arn = format!("arn:aws:kinesis:{region}:222222222222:stream/s");
            key.check_place(&StreamArn::parse(&arn).unwrap())
        };
        assert_eq!(check("eu-west-1"), Ok(()));
        assert_eq!(check("eu-west-2"), Err(KeyArnError::Elsewhere));
    }
}
