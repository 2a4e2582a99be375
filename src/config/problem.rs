//! What can be wrong with a configuration, and how it is told.

use std::{fmt, path::PathBuf};

use super::source::variable_of;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File(PathBuf),
    /// It was not given.
    Default,
}

/// One thing that is wrong. It names the setting and its origin, and says what to
/// do; it never repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting, or the key, variable or file that is none.
    pub name: String,
    /// Where it came from.
    pub origin: Origin,
    /// What is wrong and what to do.
    pub what: String,
}

impl Problem {
    pub(super) fn new(name: &str, origin: Origin, what: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            origin,
            what: what.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, origin, what } = self;
        match origin {
            Origin::Flag => write!(f, "flag --{name}: {what}"),
            Origin::Environment => {
                write!(f, "environment variable {}: {what}", variable_of(name))
            }
            Origin::File(path) => write!(f, "{name} in file {}: {what}", path.display()),
            Origin::Default => write!(f, "{name} (default): {what}"),
        }
    }
}

/// Everything that is wrong with a configuration, one problem a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem{}{}", problems.len(), plural(problems), lines(problems))]
pub struct ConfigError {
    /// The problems; never empty.
    pub problems: Vec<Problem>,
}

fn plural(problems: &[Problem]) -> &'static str {
    if problems.len() == 1 { "" } else { "s" }
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}
