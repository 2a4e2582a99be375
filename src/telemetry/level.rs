//! The directives of the log while the process runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use super::filter::{self, Directives};

/// Most bytes of directives.
const MAX_LENGTH: usize = 1024;

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Directives of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// Those in use.
    pub filter: String,
    /// Those of the setting `log-level`, which are in use again from the next start on.
    pub configured: String,
}

/// Reason that directives were refused. The ones in use stay.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// They are too long.
    #[error("the directives have more than {MAX_LENGTH} bytes")]
    TooLong,
    /// None is given.
    #[error("no directive is given: write off to log nothing")]
    Empty,
    /// One of them is wrong.
    #[error(
        "{directive:?} is not a directive ({problem}): write a level (off, error, warn, info, debug, trace) or target=level, such as info,siem_relay=debug"
    )]
    Directive {
        /// The wrong one.
        directive: String,
        /// Problem of it.
        problem: String,
    },
    /// This process has set up no log.
    #[error("this process has no log")]
    NoLog,
}

type Replace = Box<dyn Fn(&str) -> Result<(), LevelError> + Send + Sync>;

struct Control {
    level: Mutex<LogLevel>,
    replace: Vec<Replace>,
}

impl Control {
    fn level(&self) -> MutexGuard<'_, LogLevel> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Function that replaces the directives of one filter.
pub(super) fn replacing<S: 'static>(directives: Directives<S>) -> Replace {
    Box::new(move |wanted| {
        directives
            .replace(check(wanted)?)
            .map_err(|_gone| LevelError::NoLog)
    })
}

/// Makes the directives of this process replaceable. The first call counts.
pub(super) fn install(configured: &str, replace: Vec<Replace>) {
    let level = LogLevel {
        filter: configured.to_owned(),
        configured: configured.to_owned(),
    };
    let _second = CONTROL.set(Control {
        level: Mutex::new(level),
        replace,
    });
}

/// Directives in use.
///
/// # Errors
///
/// [`LevelError::NoLog`].
pub fn log_level() -> Result<LogLevel, LevelError> {
    let control = CONTROL.get().ok_or(LevelError::NoLog)?;
    Ok(control.level().clone())
}

/// Uses other directives until the process ends, and logs that.
///
/// # Errors
///
/// See [`LevelError`].
pub fn set_log_level(directives: &str) -> Result<LogLevel, LevelError> {
    check(directives)?;
    let control = CONTROL.get().ok_or(LevelError::NoLog)?;
    let mut level = control.level();
    let before = std::mem::replace(&mut level.filter, directives.to_owned());
    let log = || {
        tracing::warn!(
            filter = directives,
            before,
            "the log level was changed until the next start"
        );
    };
    // The change is logged under whichever filter lets it through.
    let logs_before = tracing::enabled!(tracing::Level::WARN);
    if logs_before {
        log();
    }
    for replace in &control.replace {
        replace(directives)?;
    }
    if !logs_before {
        log();
    }
    Ok(level.clone())
}

/// Parses directives, and refuses a single word that is not a level: it would count as a target,
/// and everything else would fall silent.
fn check(directives: &str) -> Result<EnvFilter, LevelError> {
    if directives.len() > MAX_LENGTH {
        return Err(LevelError::TooLong);
    }
    if directives.trim().is_empty() {
        return Err(LevelError::Empty);
    }
    let wrong = |directive: &str, problem: String| LevelError::Directive {
        directive: directive.to_owned(),
        problem,
    };
    // The parser splits at every comma, too.
    for directive in directives.split(',').filter(|one| !one.is_empty()) {
        if let Err(error) = filter::parse(directive) {
            return Err(wrong(directive, error.to_string()));
        }
        let is_word = !directive.contains(['=', '[']);
        if is_word && directive.parse::<LevelFilter>().is_err() {
            return Err(wrong(directive, "it is no level".to_owned()));
        }
    }
    filter::parse(directives).map_err(|error| wrong(directives, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_directive_is_named() {
        for (directives, named) in [
            ("inof", "\"inof\" is not"),
            ("info,siem_relay=loud", "\"siem_relay=loud\" is not"),
            ("info,=", "\"=\" is not"),
            ("", "no directive"),
            (" ", "no directive"),
        ] {
            let error = check(directives).unwrap_err().to_string();
            assert!(error.contains(named), "{directives}: {error}");
        }
        assert_eq!(check(&"x".repeat(2000)).unwrap_err(), LevelError::TooLong);
        for directives in [
            "off",
            "WARN",
            "info,siem_relay::worker=trace",
            "info,[grpc]=debug",
        ] {
            check(directives).unwrap();
        }
    }
}
