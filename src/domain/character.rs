//! Characters that are not allowed in an organization id, an ARN or an external ID.

use std::fmt;

/// The first character of a text that is not allowed, with its position. Its message shows
/// nothing of the rest of the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCharacter {
    /// Position in characters, from 1.
    pub position: usize,
    /// The character.
    pub character: char,
}

impl BadCharacter {
    /// Returns the first character that is not `allowed`.
    pub fn find(text: &str, allowed: impl Fn(char) -> bool) -> Option<Self> {
        let found = text.chars().enumerate().find(|(_, c)| !allowed(*c));
        found.map(|(index, character)| Self {
            position: index + 1,
            character,
        })
    }

    /// Returns the first character that is not printable ASCII.
    pub fn find_unprintable(text: &str) -> Option<Self> {
        Self::find(text, |c| c.is_ascii_graphic())
    }

    fn kind(&self) -> &'static str {
        match self.character {
            c if c.is_whitespace() => "white space",
            c if c.is_control() => "a control character",
            c if is_invisible(c) => "an invisible character",
            c if !c.is_ascii() => "a character that is not ASCII",
            _ => "an invalid character",
        }
    }
}

impl fmt::Display for BadCharacter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, position) = (self.kind(), self.position);
        let code = u32::from(self.character);
        write!(f, "has {kind}: character {position} is U+{code:04X}")
    }
}

/// Whether a code point has no visible glyph: the property Default_Ignorable_Code_Point of
/// Unicode 17 (`DerivedCoreProperties.txt`), and three that fonts leave blank.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_kind_position_and_code_point() {
        let cases = [
            ('\u{200b}', "an invisible character", "U+200B"),
            ('\u{200e}', "an invisible character", "U+200E"),
            ('\u{2060}', "an invisible character", "U+2060"),
            ('\u{2064}', "an invisible character", "U+2064"),
            ('\u{202e}', "an invisible character", "U+202E"),
            ('\u{2069}', "an invisible character", "U+2069"),
            ('\u{feff}', "an invisible character", "U+FEFF"),
            ('\u{ad}', "an invisible character", "U+00AD"),
            ('\u{e0041}', "an invisible character", "U+E0041"),
            ('\u{a0}', "white space", "U+00A0"),
            ('\u{2009}', "white space", "U+2009"),
            ('\u{3000}', "white space", "U+3000"),
            (' ', "white space", "U+0020"),
            ('\t', "white space", "U+0009"),
            ('\r', "white space", "U+000D"),
            ('\0', "a control character", "U+0000"),
            ('\u{7f}', "a control character", "U+007F"),
            ('\u{430}', "a character that is not ASCII", "U+0430"),
        ];
        for (c, kind, code) in cases {
            for (text, position) in [
                (format!("{c}abc"), 1),
                (format!("ab{c}c{c}"), 3),
                (format!("abc{c}"), 4),
            ] {
                let found = BadCharacter::find_unprintable(&text).unwrap();
                let message = format!("has {kind}: character {position} is {code}");
                assert_eq!(found.to_string(), message);
            }
        }
        assert_eq!(BadCharacter::find_unprintable("arn:aws:iam::1:x/y"), None);
    }

    #[test]
    fn counts_characters_rather_than_bytes() {
        let found = BadCharacter::find("ééé\u{200b}", |c| c == 'é').unwrap();
        assert_eq!((found.position, found.character), (4, '\u{200b}'));
    }
}
