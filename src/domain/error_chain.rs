//! Errors with their causes, in one line.

use std::error::Error;

/// The error's message and those of its sources, separated by colons. A message that an
/// earlier one contains is left out.
pub fn error_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !line.contains(&message) {
            line.push_str(": ");
            line.push_str(&message);
        }
        source = error.source();
    }
    line
}
