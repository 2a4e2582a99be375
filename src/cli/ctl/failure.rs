//! Failures of `siem-relay ctl`, with what to do about each.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use serde_json::json;
use siem_client::{Code, SiemError};

use super::show::clean;
use crate::config::EXIT_USAGE;

/// RPC that was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rpc {
    Get,
    List,
    Watch,
    Test,
    Configure,
    Delete,
}

impl Rpc {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::List => "List",
            Self::Watch => "StreamStatus",
            Self::Test => "SendTest",
            Self::Configure => "Configure",
            Self::Delete => "Delete",
        }
    }

    fn scope(self) -> &'static str {
        match self {
            Self::Get | Self::List | Self::Watch => "siem.read",
            Self::Test | Self::Configure | Self::Delete => "siem.write",
        }
    }

    fn changes(self) -> bool {
        matches!(self, Self::Test | Self::Configure | Self::Delete)
    }
}

/// Reason for an exit code other than 0.
#[derive(Debug)]
pub(super) enum Failure {
    /// Wrong options.
    Usage(String),
    /// A refused call, or one without an answer.
    Call(Rpc, Box<SiemError>),
    /// Standard input or output failed.
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Call(_, error) => Some(error.code),
            Self::Usage(_) | Self::Io(_) => None,
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            // A reader that has seen enough, such as `head`.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Call(..) | Self::Io(_) => ExitCode::FAILURE,
        }
    }

    /// Prints it to standard error.
    pub(super) fn report(&self, as_json: bool) {
        let text = match self {
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
            Self::Usage(problem) if as_json => {
                json!({ "error": { "message": problem } }).to_string()
            }
            Self::Io(error) if as_json => {
                json!({ "error": { "message": error.to_string() } }).to_string()
            }
            Self::Call(rpc, status) if as_json => call_json(*rpc, status).to_string(),
            Self::Usage(problem) => format!("siem-relay: {problem}"),
            Self::Io(error) => format!("siem-relay: standard input or output failed: {error}"),
            Self::Call(rpc, status) => call_text(*rpc, status),
        };
        let _closed = writeln!(io::stderr(), "{text}");
    }
}

/// Name of a code, as the documentation of gRPC has it.
pub(super) fn code_name(code: Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

/// The way out of a failure.
fn remedy(rpc: Rpc, error: &SiemError) -> String {
    let again = match error.retry_delay {
        Some(delay) => format!("try again in {} s", delay.as_secs_f64().ceil().max(1.0)),
        None => "try again later".to_owned(),
    };
    let look = match rpc.changes() {
        true => "it may have taken effect: look with `siem-relay ctl get` before you repeat it",
        false => "try again",
    };
    match (error.code, error.reason_name.as_str()) {
        (_, "ETAG_MISMATCH") => {
            "the integration was changed meanwhile: look with `siem-relay ctl get`, and give the \
             etag that it shows"
                .to_owned()
        }
        (_, "OUTCOME_UNKNOWN") => look.to_owned(),
        (Code::InvalidArgument, _) => "correct what is named above".to_owned(),
        (Code::NotFound, _) => {
            "compare the organization with those that `siem-relay ctl list` shows".to_owned()
        }
        (Code::Unauthenticated, _) => {
            "name yourself by --token-file, or --cert and --key, of a caller in the service's \
             callers file"
                .to_owned()
        }
        (Code::PermissionDenied, _) => format!(
            "ask the operator for the scope {} and the organization, in the service's callers file",
            rpc.scope()
        ),
        (Code::ResourceExhausted, _) => again,
        (Code::DeadlineExceeded, _) => format!("{look}; --timeout gives it more time"),
        (Code::Unavailable, "") => {
            "compare --address with the setting `listen` of the service, https:// with its TLS, and \
             --ca with its authority; look whether the service runs"
                .to_owned()
        }
        (Code::Unavailable, _) => again,
        (Code::Unimplemented, _) => {
            "compare the versions of this program and of the service".to_owned()
        }
        _ => "the log of the service has the details".to_owned(),
    }
}

fn call_text(rpc: Rpc, error: &SiemError) -> String {
    let reason = match error.reason_name.as_str() {
        "" => String::new(),
        reason => format!(" ({})", clean(reason)),
    };
    let code = code_name(error.code);
    let mut text = format!("siem-relay: {} failed: {code}{reason}", rpc.name());
    // The message has the violations again, and the number of those that are not listed.
    if error.violations.is_empty() || error.message.ends_with(" more") {
        text.push_str(&format!(": {}", clean(&error.message)));
    }
    for violation in &error.violations {
        let (field, description) = (clean(&violation.field), clean(&violation.description));
        text.push_str(&format!("\n  {field}: {description}"));
    }
    text.push_str(&format!("\n  to do: {}", remedy(rpc, error)));
    text
}

fn call_json(rpc: Rpc, error: &SiemError) -> serde_json::Value {
    let violations = error.violations.iter();
    let violations: Vec<_> = violations
        .map(|each| json!({ "field": each.field, "description": each.description }))
        .collect();
    json!({ "error": {
        "rpc": rpc.name(),
        "code": code_name(error.code),
        "reason": error.reason_name,
        "message": error.message,
        "violations": violations,
        "retry_after_seconds": error.retry_delay.map(|delay| delay.as_secs_f64()),
        "remedy": remedy(rpc, error),
    } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_canonical_names() {
        for (code, name) in [
            (Code::Ok, "OK"),
            (Code::InvalidArgument, "INVALID_ARGUMENT"),
            (Code::NotFound, "NOT_FOUND"),
            (Code::Unauthenticated, "UNAUTHENTICATED"),
        ] {
            assert_eq!(code_name(code), name);
        }
    }

    #[test]
    fn a_change_without_an_answer_is_not_repeated_blindly() {
        let late = siem_client::Status::deadline_exceeded("late").into();
        assert!(remedy(Rpc::Delete, &late).contains("may have taken effect"));
        assert!(!remedy(Rpc::Get, &late).contains("may have taken effect"));
    }
}
