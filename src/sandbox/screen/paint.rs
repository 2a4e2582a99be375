//! Colors, where there are any. Pure.

use std::fmt::Display;

/// What a color says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum Color {
    /// Needs attention.
    Red,
    /// Worth a look.
    Yellow,
    /// As it should be.
    Green,
    /// For information.
    Cyan,
    /// Stands out.
    Bold,
    /// Stands back.
    Dim,
}

impl Color {
    /// "Select Graphic Rendition" of ECMA-48.
    fn code(self) -> u8 {
        match self {
            Self::Red => 31,
            Self::Yellow => 33,
            Self::Green => 32,
            Self::Cyan => 36,
            Self::Bold => 1,
            Self::Dim => 2,
        }
    }
}

/// Colors text, or leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Paint {
    on: bool,
}

impl Paint {
    pub(in crate::sandbox) fn new(on: bool) -> Self {
        Self { on }
    }

    pub(in crate::sandbox) fn color(self, color: Color, text: impl Display) -> String {
        match self.on {
            true => format!("\u{1b}[{}m{text}\u{1b}[0m", color.code()),
            false => text.to_string(),
        }
    }
}

/// Text of others: it must not steer the terminal.
pub(in crate::sandbox) fn harmless(text: &str) -> String {
    let steers =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.replace(steers, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_only_where_they_are_on() {
        assert_eq!(Paint::new(false).color(Color::Red, "a"), "a");
        assert_eq!(
            Paint::new(true).color(Color::Red, "a"),
            "\u{1b}[31ma\u{1b}[0m"
        );
    }

    #[test]
    fn foreign_text_cannot_steer() {
        assert_eq!(harmless("a\u{1b}[2J\u{202e}é"), "a\u{fffd}[2J\u{fffd}é");
    }
}
