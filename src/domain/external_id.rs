//! The external ID, which a customer's trust policy requires in AssumeRole.
//!
//! It is treated as a secret and never logged or stored in clear: the type has no `Display`, and
//! its `Debug` is redacted.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use super::character::BadCharacter;

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
    /// Checks and wraps a text, which is moved, not copied.
    pub fn parse(text: String) -> Result<Self, ExternalIdError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
        if let Some(bad) = BadCharacter::find(&text, allowed) {
            return Err(ExternalIdError::Character(bad));
        }
        if !(2..=1224).contains(&text.len()) {
            return Err(ExternalIdError::Length);
        }
        Ok(Self(SecretString::from(text)))
    }

    /// The secret in clear, for AssumeRole and for encryption only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
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
