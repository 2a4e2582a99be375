//! Errors in one line.

use std::error::Error;

/// The error and its sources in one line; a source that the error's own message
/// repeats is left out.
pub fn with_sources(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !told.contains(&message) {
            told.push_str(": ");
            told.push_str(&message);
        }
        source = error.source();
    }
    told
}
