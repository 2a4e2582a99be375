//! Errors of the API: one table from [`ApiError`] to gRPC code, reason and retry delay.

use std::{collections::HashMap, fmt::Display, time::Duration};

use prost::Message;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use super::trace;
use crate::{
    domain::verdict::TestError,
    metrics,
    proto::{DECODE_FAILURE, v1::ErrorReason as Reason},
    store::{ConfigureError, IssueError, StoreError},
};

/// Domain of every `ErrorInfo`.
const ERROR_DOMAIN: &str = "siem.v1";
/// Violations in the details of one error.
const MAX_VIOLATIONS: usize = 20;
/// Violations in the message of one error. A Configure seldom has more.
const MAX_IN_MESSAGE: usize = 5;
/// Bytes of a message. Percent-encoding makes up to three of each in `grpc-message`.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Bytes of `grpc-status-details-bin` before base64, 4 KiB after it. Clients refuse headers
/// and trailers over 8 KiB; this and the longest message together stay below.
const MAX_DETAILS_BYTES: usize = 3072;
/// Bytes of one description, so that [`MAX_IN_MESSAGE`] of them fit into a message.
const MAX_DESCRIPTION_BYTES: usize = 160;
/// Characters of a caller's text that an error repeats.
const MAX_ECHO: usize = 64;
/// Supported compressions of requests, in the form of `grpc-accept-encoding`.
const ENCODINGS: &str = "identity,gzip";

/// Invalid field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field.
    pub field: String,
    /// Problem and remedy, without the value.
    pub description: String,
}

/// Violations of one request: the first ones in full, and the number of all.
#[derive(Debug, Default)]
pub struct Violations {
    named: Vec<Violation>,
    count: usize,
}

impl Violations {
    /// Adds a violation. Only the first [`MAX_VIOLATIONS`] are kept.
    pub fn add(&mut self, field: impl Display, description: impl Display) {
        self.count += 1;
        if self.named.len() < MAX_VIOLATIONS {
            self.named.push(Violation {
                field: field.to_string(),
                description: truncate(description.to_string(), MAX_DESCRIPTION_BYTES),
            });
        }
    }

    /// Returns whether the request is valid.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Violations for the details, at most [`MAX_VIOLATIONS`].
    pub fn named(&self) -> &[Violation] {
        &self.named
    }
}

impl Display for Violations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.named.len().min(MAX_IN_MESSAGE);
        for (index, violation) in self.named[..shown].iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let Violation { field, description } = violation;
            write!(f, "{separator}{field} {description}")?;
        }
        match self.count - shown {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Truncates a text to `max_bytes` at a character boundary, and marks the cut.
fn truncate(mut text: String, max_bytes: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
    text
}

/// Shortens a caller's text and escapes its invisible characters, so that an error may
/// repeat it.
pub(super) fn echo(text: &str) -> String {
    let mut characters = text.chars();
    let start = characters.by_ref().take(MAX_ECHO);
    let mut shown: String = start.flat_map(char::escape_debug).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Names of the reasons of errors, with their numbers.
pub(super) fn reasons() -> Vec<(i32, &'static str)> {
    let numbers = 1..=64;
    let known = numbers.filter_map(|number| Reason::try_from(number).ok());
    known
        .map(|reason| (reason.into(), name_of(reason)))
        .collect()
}

fn name_of(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

/// Error of any RPC.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("invalid request: {0}")]
    Invalid(Violations),
    /// Bytes that are not the RPC's message. Holds the problem.
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// Compressed message in a request without `grpc-encoding`.
    #[error(
        "a message has the compressed flag, but the request has no grpc-encoding; send grpc-encoding: gzip"
    )]
    CompressionNotDeclared,
    /// Unknown compression. Holds its name, as [`echo`] returns it.
    #[error("grpc-encoding {0} is not supported; use gzip or identity")]
    UnsupportedEncoding(String),
    #[error(
        "a message has more than {limit} bytes, counted after decompression; send smaller requests"
    )]
    MessageTooLarge { limit: usize },
    #[error("{count} events in one request; send at most {limit}")]
    TooManyEvents { count: usize, limit: usize },
    #[error("{bytes} bytes of events in one request; send at most {limit}")]
    RequestTooLarge { bytes: usize, limit: usize },
    #[error("the organization has no integration; configure one first")]
    NotFound,
    #[error(
        "the integration was changed and the etag is no longer current; get the integration and apply the change to it"
    )]
    EtagMismatch,
    /// An organization has as many external IDs as may be issued and not used.
    #[error(
        "10 external IDs were issued to the organization and are not used yet; configure one of them, or wait until they lapse, 30 days after they were issued"
    )]
    TooManyExternalIds,
    /// No valid certificate or token. Holds the problem, and never a part of the token.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The caller lacks a right. Holds the right that it lacks.
    #[error("{0}")]
    PermissionDenied(&'static str),
    /// A limit on requests was reached. Holds its description, and the time until a request is
    /// admitted again.
    #[error("{limit}; try again later")]
    RateLimited {
        limit: &'static str,
        retry_after: Duration,
    },
    /// The memory budget for requests is exhausted.
    #[error("too many bytes of requests are in flight; try again")]
    Overloaded,
    /// The client was too slow before the end of a message or of a request.
    #[error(
        "less than 64 KiB were received in 10 s before the end of the message, or it took longer than 10 s while others waited for memory; send the whole request again"
    )]
    MessageTimeout,
    #[error("the log's disk is nearly full; nothing of the request was accepted; try again later")]
    DiskFull,
    /// The storage of the events does not work at the moment.
    #[error("the log could not be written; nothing of the request was accepted; try again")]
    LogFailed,
    /// The storage of the integrations does not work at the moment.
    #[error(
        "the database of the integrations failed or is overloaded; nothing of the request was accepted; try again"
    )]
    DatabaseFailed,
    /// Events of the request may be kept, now or later.
    #[error(
        "the log did not confirm the request, and some of its events may have been kept; send the request again with the same event ids"
    )]
    EventsUnknown,
    /// The change that the request makes may be kept, now or later.
    #[error(
        "the database of the integrations did not confirm the request, and its change may have been made; send the request again, or get the integration to see"
    )]
    ChangeUnknown,
    #[error("the server is shutting down; connect again")]
    ShuttingDown,
    /// A defect of this service.
    #[error("internal error; the server's log has the details")]
    Internal,
}

impl ApiError {
    /// Creates the error for one invalid field.
    pub fn invalid(field: impl Display, description: impl Display) -> Self {
        let mut violations = Violations::default();
        violations.add(field, description);
        Self::Invalid(violations)
    }

    /// Converts tonic's status for bytes that cannot be decoded, which has the code INTERNAL.
    /// Returns None for any other status.
    pub(super) fn from_decode_failure(status: &Status) -> Option<Self> {
        let problem = status.message().strip_prefix(DECODE_FAILURE)?;
        let problem = problem.trim_start_matches(": ");
        (status.code() == Code::Internal).then(|| Self::Malformed(problem.to_owned()))
    }

    /// Whether the client did not keep to the protocol.
    fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::CompressionNotDeclared
                | Self::UnsupportedEncoding(_)
                | Self::MessageTooLarge { .. }
        )
    }

    /// Row of the table: gRPC code, reason in `ErrorInfo`, delay in `RetryInfo`.
    fn row(&self) -> (Code, Reason, Option<Duration>) {
        const NO_RETRY: Option<Duration> = None;
        const SOON: Option<Duration> = Some(Duration::from_secs(1));
        const LATER: Option<Duration> = Some(Duration::from_secs(10));
        match self {
            Self::Invalid(_) => (Code::InvalidArgument, Reason::InvalidField, NO_RETRY),
            Self::Malformed(_) => (Code::InvalidArgument, Reason::MalformedRequest, NO_RETRY),
            // https://github.com/grpc/grpc/blob/master/doc/compression.md demands the codes of
            // these two.
            Self::CompressionNotDeclared => (Code::Internal, Reason::MalformedRequest, NO_RETRY),
            Self::UnsupportedEncoding(_) => {
                (Code::Unimplemented, Reason::UnsupportedEncoding, NO_RETRY)
            }
            Self::MessageTooLarge { .. } | Self::RequestTooLarge { .. } => {
                (Code::InvalidArgument, Reason::RequestTooLarge, NO_RETRY)
            }
            Self::TooManyEvents { .. } => (Code::InvalidArgument, Reason::TooManyEvents, NO_RETRY),
            Self::NotFound => (Code::NotFound, Reason::IntegrationNotFound, NO_RETRY),
            Self::EtagMismatch => (Code::Aborted, Reason::EtagMismatch, NO_RETRY),
            Self::TooManyExternalIds => (Code::ResourceExhausted, Reason::RateLimited, NO_RETRY),
            Self::Unauthenticated(_) => (Code::Unauthenticated, Reason::Unauthenticated, NO_RETRY),
            Self::PermissionDenied(_) => {
                (Code::PermissionDenied, Reason::PermissionDenied, NO_RETRY)
            }
            Self::RateLimited { retry_after, .. } => (
                Code::ResourceExhausted,
                Reason::RateLimited,
                Some(*retry_after),
            ),
            Self::Overloaded => (Code::ResourceExhausted, Reason::Overloaded, SOON),
            Self::MessageTimeout => (Code::DeadlineExceeded, Reason::MessageTimeout, SOON),
            Self::DiskFull => (Code::ResourceExhausted, Reason::DiskFull, LATER),
            Self::LogFailed | Self::DatabaseFailed => {
                (Code::Unavailable, Reason::StorageFailed, LATER)
            }
            Self::EventsUnknown | Self::ChangeUnknown => {
                (Code::Unavailable, Reason::OutcomeUnknown, LATER)
            }
            Self::ShuttingDown => (Code::Unavailable, Reason::ShuttingDown, SOON),
            Self::Internal => (Code::Internal, Reason::Internal, NO_RETRY),
        }
    }

    /// Converts an error of the log of events. Other errors of the storage are those of the
    /// database.
    pub(super) fn of_log(error: StoreError) -> Self {
        match Self::from(error) {
            Self::DatabaseFailed => Self::LogFailed,
            Self::ChangeUnknown => Self::EventsUnknown,
            other => other,
        }
    }

    /// Converts the error into a message, for an answer of a stream that continues.
    pub fn into_message(self) -> tonic_types::Status {
        let status = Status::from(self);
        tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        })
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        if error.is_malformed() {
            trace::count_malformed_request();
        }
        let (code, reason, retry) = error.row();
        metrics::count_refusal(reason.into());
        let reason = name_of(reason);
        let message = truncate(error.to_string(), MAX_MESSAGE_BYTES);
        let named = match &error {
            ApiError::Invalid(violations) => violations.named(),
            _ => &[],
        };
        let status = |named: &[Violation]| {
            let mut details = ErrorDetails::new();
            details.set_error_info(reason, ERROR_DOMAIN, HashMap::new());
            for violation in named {
                details.add_bad_request_violation(&violation.field, &violation.description);
            }
            if retry.is_some() {
                details.set_retry_info(retry);
            }
            Self::with_error_details(code, &message, details)
        };
        // The details repeat the message, so their length is known only once they are encoded.
        let fits = |status: &Self| status.details().len() <= MAX_DETAILS_BYTES;
        let fewer = (0..=named.len()).rev().map(|count| status(&named[..count]));
        let fitting = fewer.into_iter().find(fits);
        let mut status = fitting.unwrap_or_else(|| Self::new(code, &message));
        if let ApiError::UnsupportedEncoding(_) = error {
            let encodings = MetadataValue::from_static(ENCODINGS);
            status
                .metadata_mut()
                .insert("grpc-accept-encoding", encodings);
        }
        status
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Closed => Self::ShuttingDown,
            // The store logs a full disk once, not for each request.
            StoreError::Full => Self::DiskFull,
            StoreError::Failed(_) | StoreError::Fenced => {
                tracing::error!(%error, "the store failed");
                Self::DatabaseFailed
            }
            // Corruption that a commit finds does not tell whether the commit is durable.
            StoreError::Unavailable(_) | StoreError::Corrupt(_) => {
                tracing::error!(%error, "the store failed");
                Self::ChangeUnknown
            }
            StoreError::DamagedChunk { .. } | StoreError::Sealing => {
                tracing::error!(%error, "the store failed");
                Self::Internal
            }
        }
    }
}

impl From<ConfigureError> for ApiError {
    fn from(error: ConfigureError) -> Self {
        match error {
            ConfigureError::EtagMismatch => Self::EtagMismatch,
            ConfigureError::ExternalIdRequired => {
                Self::invalid("external_id", "is required to create an integration")
            }
            // One answer for every reason: it must not show which external IDs others use.
            ConfigureError::ExternalIdNotIssued | ConfigureError::ExternalIdInUse => {
                Self::invalid("external_id", "cannot be used; use a fresh one")
            }
            ConfigureError::Store(error) => error.into(),
        }
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::TooMany => Self::TooManyExternalIds,
            IssueError::Store(error) => error.into(),
        }
    }
}

impl From<TestError> for ApiError {
    fn from(error: TestError) -> Self {
        match error {
            TestError::NoIntegration => Self::NotFound,
            TestError::ShuttingDown => Self::ShuttingDown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_name_every_violation_and_the_reason() {
        let mut violations = Violations::default();
        violations.add("role_arn", "is required");
        violations.add("external_id", "is required");
        let status = Status::from(ApiError::Invalid(violations));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("INVALID_FIELD", "siem.v1")
        );
        let fields: Vec<_> = details
            .bad_request()
            .unwrap()
            .field_violations
            .iter()
            .map(|violation| violation.field.as_str())
            .collect();
        assert_eq!(fields, ["role_arn", "external_id"]);
    }

    /// Bytes of a status as headers or trailers, as HTTP/2 counts them.
    fn header_bytes(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let each = headers.iter();
        each.map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum()
    }

    #[test]
    fn an_error_is_bounded_whatever_the_violations() {
        // Three bytes of UTF-8 become nine in grpc-message.
        for text in ["x", "is not one of ours; give another one", "\u{200b}検出"] {
            for length in [1, 40, 4_000] {
                for count in [1_usize, 5, 20, 21, 1_000] {
                    let mut violations = Violations::default();
                    for index in 0..count {
                        violations.add(format!("names[{index}]"), text.repeat(length));
                    }
                    let status = Status::from(ApiError::Invalid(violations));
                    let named = status.get_details_bad_request().unwrap().field_violations;
                    assert!((1..=20).contains(&named.len()));
                    assert!(status.details().len().div_ceil(3) * 4 <= 4096);
                    assert!(header_bytes(&status) < 7_600);
                    let message = status.message();
                    if let Some(more) = count.checked_sub(5).filter(|more| *more > 0) {
                        assert!(
                            message.ends_with(&format!("; and {more} more")),
                            "{message}"
                        );
                    }
                }
            }
        }
        let status = Status::from(ApiError::Malformed("検".repeat(100_000)));
        assert!(header_bytes(&status) < 7_600);
        assert_eq!(
            status.get_details_error_info().unwrap().reason,
            "MALFORMED_REQUEST"
        );
    }

    #[test]
    fn a_store_error_claims_only_what_is_known() {
        let unknown = "OUTCOME_UNKNOWN";
        for (error, code, reason) in [
            (StoreError::Full, Code::ResourceExhausted, "DISK_FULL"),
            (
                StoreError::Failed("x".into()),
                Code::Unavailable,
                "STORAGE_FAILED",
            ),
            (StoreError::Fenced, Code::Unavailable, "STORAGE_FAILED"),
            (
                StoreError::Unavailable("x".into()),
                Code::Unavailable,
                unknown,
            ),
            (StoreError::Corrupt("x".into()), Code::Unavailable, unknown),
            (
                StoreError::DamagedChunk { first_sequence: 7 },
                Code::Internal,
                "INTERNAL",
            ),
            (StoreError::Sealing, Code::Internal, "INTERNAL"),
            (StoreError::Closed, Code::Unavailable, "SHUTTING_DOWN"),
        ] {
            for (error, storage) in [
                (ApiError::from(error.clone()), "the database"),
                (ApiError::of_log(error), "the log"),
            ] {
                let status = Status::from(error);
                assert_eq!(status.code(), code, "{reason}");
                assert_eq!(status.get_details_error_info().unwrap().reason, reason);
                // Only where the outcome is known may the message claim that nothing was accepted.
                let message = status.message();
                let claims = message.contains("nothing of the request");
                assert!(!(claims && reason == unknown));
                let names = message.starts_with(storage);
                let is_named = [unknown, "STORAGE_FAILED"].contains(&reason);
                assert!(names || !is_named, "{message}");
                let retries = status.get_details_retry_info().is_some();
                assert_eq!(retries, code != Code::Internal, "{reason}");
            }
        }
    }

    #[test]
    fn echo_is_short_and_visible() {
        assert_eq!(echo("gzip"), "gzip");
        assert_eq!(echo("a\u{200b}\n\u{1b}"), "a\\u{200b}\\n\\u{1b}");
        assert_eq!(echo(&"é".repeat(65)), format!("{}…", "é".repeat(64)));
    }

    #[test]
    fn recognises_prosts_decode_failure() {
        let error = crate::proto::v1::GetRequest::decode(&b"\x0a\x01\xff"[..]).unwrap_err();
        let error = ApiError::from_decode_failure(&Status::internal(error.to_string())).unwrap();
        let message = error.to_string();
        assert!(
            message.starts_with("the request cannot be read: GetRequest.organization_id"),
            "{message}"
        );
        assert!(ApiError::from_decode_failure(&Status::internal("failed")).is_none());
    }

    #[test]
    fn into_message_keeps_code_and_details() {
        let message = ApiError::Overloaded.into_message();
        assert_eq!(message.code, Code::ResourceExhausted as i32);
        assert_eq!(message.details.len(), 2);
    }
}
