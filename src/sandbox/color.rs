//! Colored text, and text that cannot control the terminal. No I/O.

use std::fmt::Display;

/// A color or style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    /// Needs attention.
    Red,
    /// Worth noticing.
    Yellow,
    /// In order.
    Green,
    /// For information.
    Cyan,
    /// Emphasized.
    Bold,
    /// Less important.
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

/// Colors text, if colors are on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    on: bool,
}

impl Paint {
    pub(super) fn new(on: bool) -> Self {
        Self { on }
    }

    pub(super) fn color(self, color: Color, text: impl Display) -> String {
        match self.on {
            true => format!("\u{1b}[{}m{text}\u{1b}[0m", color.code()),
            false => text.to_string(),
        }
    }
}

/// Replaces the characters of foreign text that would control the terminal.
pub(super) fn sanitized(text: &str) -> String {
    let controls =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.replace(controls, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_colored_only_if_colors_are_on() {
        assert_eq!(Paint::new(false).color(Color::Red, "a"), "a");
        assert_eq!(
            Paint::new(true).color(Color::Red, "a"),
            "\u{1b}[31ma\u{1b}[0m"
        );
    }

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        assert_eq!(sanitized("a\u{1b}[2J\u{202e}é"), "a\u{fffd}[2J\u{fffd}é");
    }
}
