//! The external ID, which a customer's trust policy requires in AssumeRole.
//!
//! It is treated as a secret and never logged or stored in clear: the type has no `Display`, and
//! its `Debug` is redacted.

use std::{collections::HashSet, fmt};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::character::BadCharacter;

/// Characters of an external ID that is not short: 128 bits in hexadecimal digits.
const STRONG_LENGTH: usize = 32;
/// Different pairs of neighbouring characters in one that does not repeat itself. Of 32 random
/// hexadecimal digits, one in 10^9 has fewer.
const STRONG_PAIRS: usize = 20;

/// An external ID that [STS AssumeRole] accepts: 2 to 1,224 characters of
/// `[A-Za-z0-9_+=,.@:/-]`. Zeroed when dropped.
///
/// [STS AssumeRole]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
#[derive(Clone)]
pub struct ExternalId(SecretString);

/// Reason why a text is not an external ID. The message shows nothing of the text but the
/// code point of a character that no external ID has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExternalIdError {
    /// Shorter than 2 or longer than 1,224 characters.
    #[error("must have 2 to 1,224 characters")]
    Length,
    /// A character that STS refuses.
    #[error("{0}; use letters, digits and _+=,.@:/-")]
    Character(BadCharacter),
}

impl ExternalId {
    /// Checks a text and copies it. The given text is wiped, also if it is refused.
    pub fn parse(text: String) -> Result<Self, ExternalIdError> {
        let text = Zeroizing::new(text);
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
        if let Some(bad) = BadCharacter::find(&text, allowed) {
            return Err(ExternalIdError::Character(bad));
        }
        if !(2..=1224).contains(&text.len()) {
            return Err(ExternalIdError::Length);
        }
        // A box of the exact size: shrinking the given text may leave a copy of it behind.
        Ok(Self(SecretString::from(Box::<str>::from(text.as_str()))))
    }

    /// The secret in clear, for AssumeRole and for encryption only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns a warning about an external ID that others could guess, without any part of it.
    pub fn weakness(&self) -> Option<&'static str> {
        let text = self.expose().as_bytes();
        let pairs: HashSet<&[u8]> = text.windows(2).collect();
        if text.len() < STRONG_LENGTH {
            Some(
                "external_id has fewer than 32 characters and could be guessed: use 64 random ones, such as GenerateExternalId issues",
            )
        } else if pairs.len() < STRONG_PAIRS {
            Some(
                "external_id repeats few characters and could be guessed: use 64 random ones, such as GenerateExternalId issues",
            )
        } else {
            None
        }
    }

    /// The last characters, by which a person recognizes the external ID: four, but never
    /// more than a quarter of it.
    pub fn hint(&self) -> &str {
        let text = self.expose();
        &text[text.len() - (text.len() / 4).min(4)..]
    }
}

impl fmt::Debug for ExternalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExternalId([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_alphabet_and_lengths_of_sts() {
        assert!(ExternalId::parse("a1".into()).is_ok());
        assert!(ExternalId::parse("Aa0_+=,.@:/-".into()).is_ok());
        assert!(ExternalId::parse("x".repeat(1224)).is_ok());
        let refused = |text: &str| ExternalId::parse(text.into()).err();
        assert_eq!(refused("a"), Some(ExternalIdError::Length));
        assert_eq!(refused(&"x".repeat(1225)), Some(ExternalIdError::Length));
        for (text, position, character) in [
            (" ab", 1, ' '),
            ("ab\n", 3, '\n'),
            ("aö!", 2, 'ö'),
            ("ab\u{feff}c", 3, '\u{feff}'),
        ] {
            let bad = BadCharacter {
                position,
                character,
            };
            assert_eq!(refused(text), Some(ExternalIdError::Character(bad)));
        }
    }

    #[test]
    fn a_short_or_repetitive_one_is_weak() {
        let weakness = |text: String| ExternalId::parse(text).unwrap().weakness();
        let warns = |text: &str, words| {
            let warning = weakness(text.to_owned()).unwrap();
            assert!(
                warning.contains(words) && !warning.contains(text),
                "{warning}"
            );
        };
        warns("acme", "fewer than 32");
        warns(&"a".repeat(1224), "repeats");
        warns(&"0123456789abcdef".repeat(4), "repeats");
        for _ in 0..1000 {
            let random = format!("{:032x}", rand::random::<u128>());
            assert_eq!(weakness(random.clone()), None, "{random}");
        }
        assert_eq!(weakness(uuid::Uuid::new_v4().to_string()), None);
    }

    #[test]
    fn debug_output_is_redacted() {
        let id = ExternalId::parse("super-secret-value".into()).unwrap();
        assert_eq!(format!("{id:?}"), "ExternalId([redacted])");
    }

    #[test]
    fn a_hint_shows_at_most_a_quarter() {
        let hint = |text: &str| ExternalId::parse(text.into()).unwrap().hint().to_owned();
        assert_eq!(hint("0123456789abcdef"), "cdef");
        assert_eq!(hint("abcdefgh"), "gh");
        assert_eq!(hint("abc"), "");
    }
}
