//! Ids of organizations, the tenants of the service.

use std::{borrow::Borrow, fmt, sync::Arc};

use super::character::BadCharacter;

/// The longest organization id, in bytes.
pub const MAX_LENGTH: usize = 64;

/// A tenant's opaque id: 1 to 64 of `[A-Za-z0-9_-]`.
///
/// Cheap to clone, and a map keyed by it is looked up by `&str`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrganizationId(Arc<str>);

/// Reason why a text is not an organization id. The message does not show the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrganizationIdError {
    /// An empty text.
    #[error("is required: 1 to 64 letters, digits, underscores or hyphens")]
    Empty,
    /// More than 64 bytes.
    #[error("is too long: at most 64 characters are allowed")]
    TooLong,
    /// A character outside `[A-Za-z0-9_-]`.
    #[error("{0}; use letters, digits, _ and -")]
    Character(BadCharacter),
}

impl OrganizationId {
    /// Checks and copies an id.
    ///
    /// # Errors
    ///
    /// [`OrganizationIdError`] if `id` is not 1 to 64 of `[A-Za-z0-9_-]`.
    pub fn new(id: &str) -> Result<Self, OrganizationIdError> {
        check(id)?;
        Ok(Self(id.into()))
    }

    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks an id without copying it.
///
/// # Errors
///
/// Those of [`OrganizationId::new`].
pub fn check(id: &str) -> Result<(), OrganizationIdError> {
    if id.is_empty() {
        return Err(OrganizationIdError::Empty);
    }
    // Every allowed character is one byte.
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if id.len() <= MAX_LENGTH && id.bytes().all(known) {
        return Ok(());
    }
    let allowed = |c: char| c.is_ascii() && known(c as u8);
    match BadCharacter::find(id, allowed) {
        // Reported before the length, since an invisible character may be the excess one.
        Some(bad) => Err(OrganizationIdError::Character(bad)),
        None => Err(OrganizationIdError::TooLong),
    }
}

impl Borrow<str> for OrganizationId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for OrganizationId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn accepts_the_documented_alphabet() {
        for good in ["a", "Org_1-x", &"z".repeat(64)] {
            assert_eq!(OrganizationId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn refuses_other_characters_and_lengths() {
        let refused = |id: &str| OrganizationId::new(id).unwrap_err();
        assert_eq!(refused(""), OrganizationIdError::Empty);
        assert_eq!(refused(&"z".repeat(65)), OrganizationIdError::TooLong);
        let long = format!("{}\u{200b}", "z".repeat(63));
        for (bad, position, character) in [
            ("a b", 2, ' '),
            ("a/b", 2, '/'),
            ("*", 1, '*'),
            ("aé", 2, 'é'),
            ("a\n", 2, '\n'),
            (&long, 64, '\u{200b}'),
        ] {
            let character = BadCharacter {
                position,
                character,
            };
            assert_eq!(refused(bad), OrganizationIdError::Character(character));
        }
    }

    #[test]
    fn a_map_is_looked_up_by_str() {
        let map = HashMap::from([(OrganizationId::new("acme").unwrap(), 1)]);
        assert_eq!(map.get("acme"), Some(&1));
    }
}
