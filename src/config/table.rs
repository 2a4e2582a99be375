//! The settings table as Markdown, for `docs/settings.md`.

use std::fmt::Write as _;

use super::{Setting, settings};

/// The table of all settings that `docs/settings.md` has between the comments
/// `<!-- settings -->` and `<!-- /settings -->`.
pub fn settings_table_markdown() -> String {
    let mut table = String::from(
        "| flag and file key | environment variable | default | allowed | what it does |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for setting in settings() {
        let flag = if setting.is_secret {
            "(environment only)".to_owned()
        } else {
            format!("`{}`", setting.name)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {flag} | `{}` | {} | {} | {} |",
            setting.variable(),
            default_cell(&setting),
            escape(&setting.limits),
            escape(setting.help),
        );
    }
    table
}

fn default_cell(setting: &Setting) -> String {
    match setting
        .default
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
    {
        Some(described) => escape(described),
        None => format!("`{}`", setting.default),
    }
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}
