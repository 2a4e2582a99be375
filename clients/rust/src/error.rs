//! Errors of calls, with their typed details.

use std::{error::Error, fmt, time::Duration};

use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt;

use crate::{retry, v1::ErrorReason};

/// Domain of the reasons of this API.
const DOMAIN: &str = "siem.v1";

/// One violated field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `kinesis_stream_arn`.
    pub field: String,
    /// Problem and remedy, in English.
    pub description: String,
}

/// A call failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SiemError {
    /// gRPC code. A lost connection is UNAVAILABLE, whatever the transport made of it.
    pub code: Code,
    /// Message of the server, or of the transport if no server answered.
    pub message: String,
    /// Reason; `Unspecified` if there is none, or one that this version does not know.
    pub reason: ErrorReason,
    /// Reason as sent, such as `ETAG_MISMATCH`, also if it is unknown; empty without one.
    pub reason_name: String,
    /// Every violated field that the server names, at most 20.
    pub violations: Vec<Violation>,
    /// Time after which the server asks to try again, if it does.
    pub retry_delay: Option<Duration>,
    /// Number of attempts that were made, at least 1.
    pub attempts: u32,
    /// No server has seen the call.
    was_never_sent: bool,
}

impl SiemError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Status::new(code, message).into()
    }

    /// Whether the same call can succeed later. `resend`: whether it may be sent twice although the
    /// first one may have taken effect.
    pub(super) fn is_temporary(&self, resend: bool) -> bool {
        match self.code {
            // The server refused the request before it did anything.
            Code::ResourceExhausted => self.retry_delay.is_some(),
            Code::Unavailable => {
                resend || self.was_never_sent || self.reason == ErrorReason::StorageFailed
            }
            _ => false,
        }
    }

    pub(super) fn violates(&self, field: &str) -> bool {
        self.violations
            .iter()
            .any(|violation| violation.field == field)
    }
}

impl fmt::Display for SiemError {
    /// The server's message repeats the violations.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.code)?;
        if !self.reason_name.is_empty() {
            write!(f, "/{}", self.reason_name)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Error for SiemError {}

impl From<Status> for SiemError {
    /// Details that cannot be read are ignored.
    fn from(status: Status) -> Self {
        let was_never_sent = was_never_sent(&status);
        let status = retry::lost_connection(status);
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let reason_name = info.map(|info| info.reason.clone()).unwrap_or_default();
        let violations = details.bad_request().into_iter();
        let violations = violations.flat_map(|bad_request| &bad_request.field_violations);
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: ErrorReason::from_str_name(&format!("ERROR_REASON_{reason_name}"))
                .unwrap_or_default(),
            violations: violations
                .map(|violation| Violation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                })
                .collect(),
            retry_delay: details.retry_info().and_then(|info| info.retry_delay),
            reason_name,
            attempts: 1,
            was_never_sent,
        }
    }
}

/// Whether the call ended before there was a connection or a token.
fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
