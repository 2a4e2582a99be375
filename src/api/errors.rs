//! The one table of refusals: what went wrong inside, and what gRPC says of it.

use std::{collections::HashMap, fmt::Display, time::Duration};

use prost::Message;
use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    domain::verdict::TestError,
    proto::{UNDECODABLE, v1::ErrorReason},
    store::{ConfigureError, StoreError},
};

/// The domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "siem.v1";
/// Violations that one answer names.
const MOST_VIOLATIONS: usize = 20;
/// Violations that the message repeats in words; a Configure has hardly more.
const MOST_IN_MESSAGE: usize = 5;
/// Bytes of a message, each of which takes up to three in `grpc-message`.
const MOST_MESSAGE_BYTES: usize = 1024;
/// Bytes of `grpc-status-details-bin` before base64, which makes 4 KiB of them. Clients
/// refuse headers and trailers beyond 8 KiB; with the longest message this stays below.
const MOST_DETAILS_BYTES: usize = 3072;
/// Bytes of one description, of which [`MOST_IN_MESSAGE`] and their fields fit into a message.
const MOST_DESCRIPTION_BYTES: usize = 160;
/// Characters of a text of the caller's that an answer repeats.
const MOST_ECHOED: usize = 64;
/// The compressions of requests, in the form of `grpc-accept-encoding`.
const ENCODINGS: &str = "identity,gzip";

/// A field of a request and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path.
    pub field: String,
    /// What is wrong and what to do. It does not repeat the value.
    pub description: String,
}

/// The violations of one request: the first that were found, and how many there are.
#[derive(Debug, Default)]
pub struct Violations {
    named: Vec<Violation>,
    count: usize,
}

impl Violations {
    /// Adds one. Only the first `MOST_VIOLATIONS` are kept.
    pub fn add(&mut self, field: impl Display, description: impl Display) {
        self.count += 1;
        if self.named.len() < MOST_VIOLATIONS {
            self.named.push(Violation {
                field: field.to_string(),
                description: cut(description.to_string(), MOST_DESCRIPTION_BYTES),
            });
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Those that are named.
    pub fn named(&self) -> &[Violation] {
        &self.named
    }
}

impl Display for Violations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = self.named.len().min(MOST_IN_MESSAGE);
        for (index, violation) in self.named[..told].iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let Violation { field, description } = violation;
            write!(f, "{separator}{field} {description}")?;
        }
        match self.count - told {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Cuts a text at a character's border, and shows that it was cut.
fn cut(mut text: String, most_bytes: usize) -> String {
    const CUT: &str = "…";
    if text.len() > most_bytes {
        text.truncate(text.floor_char_boundary(most_bytes - CUT.len()));
        text.push_str(CUT);
    }
    text
}

/// Makes a text from outside fit to be repeated: short, and without characters that are not
/// seen.
pub(super) fn echo(text: &str) -> String {
    let mut characters = text.chars();
    let start = characters.by_ref().take(MOST_ECHOED);
    let mut shown: String = start.flat_map(char::escape_debug).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Everything that the API refuses.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Fields are missing or malformed; all of them are named.
    #[error("invalid request: {0}")]
    Invalid(Violations),
    /// The request's bytes are not its message.
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// A message has the flag for compression, and the request names none.
    #[error("a message has the flag for compression, and there is no grpc-encoding")]
    NotCompressed,
    /// The request is compressed in a way that is not known. Holds its name, fit to be told.
    #[error("grpc-encoding {0} is not supported; use gzip or identity")]
    UnsupportedEncoding(String),
    /// One message has more bytes than are read.
    #[error(
        "a message of the request has more than {most} bytes, counted as decompressed; send less at once"
    )]
    MessageTooLarge {
        /// Upper bound of the count.
        most: usize,
    },
    /// More events than a request may hold.
    #[error("{count} events in one request; send at most {most}")]
    TooManyEvents {
        /// How many there are.
        count: usize,
        /// Upper bound of the count.
        most: usize,
    },
    /// More bytes than a request may hold.
    #[error("{bytes} bytes of events in one request; send at most {most}")]
    RequestTooLarge {
        /// How many there are.
        bytes: usize,
        /// Upper bound of the count.
        most: usize,
    },
    /// No integration.
    #[error("the organization has no integration; configure one first")]
    NotFound,
    /// Someone changed it in between.
    #[error("the etag is not the current one; get the integration and decide anew")]
    EtagMismatch,
    /// The external ID belongs to another organization.
    #[error("another organization uses this external ID; choose a new one")]
    ExternalIdInUse,
    /// A bound is reached.
    #[error("too much is in flight; try again")]
    Overloaded,
    /// The client began a message and stopped.
    #[error(
        "nothing came for 10 s of a message that was begun; send it again, and end the request"
    )]
    MessageTimeout,
    /// The disk is full, or nearly.
    #[error("the log's disk nears full; nothing of the request was accepted; try again later")]
    DiskFull,
    /// The log cannot be written.
    #[error("the log could not be written; nothing of the request was accepted; try again")]
    StorageFailed,
    /// The server ends.
    #[error("the server is shutting down; connect again")]
    ShuttingDown,
    /// A defect.
    #[error("internal error; the server's log has the details")]
    Internal,
}

impl ApiError {
    /// One field is wrong.
    pub fn invalid(field: impl Display, description: impl Display) -> Self {
        let mut violations = Violations::default();
        violations.add(field, description);
        Self::Invalid(violations)
    }

    /// The refusal that takes the place of a status of tonic's, where bytes could not be
    /// decoded.
    pub(super) fn of_undecodable(status: &Status) -> Option<Self> {
        let problem = status.message().strip_prefix(UNDECODABLE)?;
        let problem = problem.trim_start_matches(": ");
        (status.code() == Code::Internal).then(|| Self::Malformed(problem.to_owned()))
    }

    /// The table.
    fn row(&self) -> (Code, ErrorReason, Option<Duration>) {
        const SOON: Option<Duration> = Some(Duration::from_secs(1));
        const LATER: Option<Duration> = Some(Duration::from_secs(10));
        match self {
            Self::Invalid(_) => (Code::InvalidArgument, ErrorReason::InvalidField, None),
            Self::Malformed(_) => (Code::InvalidArgument, ErrorReason::MalformedRequest, None),
            // https://github.com/grpc/grpc/blob/master/doc/compression.md asks for both codes.
            Self::NotCompressed => (Code::Internal, ErrorReason::MalformedRequest, None),
            Self::UnsupportedEncoding(_) => {
                (Code::Unimplemented, ErrorReason::UnsupportedEncoding, None)
            }
            Self::MessageTooLarge { .. } => {
                (Code::InvalidArgument, ErrorReason::RequestTooLarge, None)
            }
            Self::TooManyEvents { .. } => (Code::InvalidArgument, ErrorReason::TooManyEvents, None),
            Self::RequestTooLarge { .. } => {
                (Code::InvalidArgument, ErrorReason::RequestTooLarge, None)
            }
            Self::NotFound => (Code::NotFound, ErrorReason::IntegrationNotFound, None),
            Self::EtagMismatch => (Code::Aborted, ErrorReason::EtagMismatch, None),
            Self::ExternalIdInUse => (Code::AlreadyExists, ErrorReason::ExternalIdInUse, None),
            Self::Overloaded => (Code::ResourceExhausted, ErrorReason::Overloaded, SOON),
            Self::MessageTimeout => (Code::DeadlineExceeded, ErrorReason::MessageTimeout, SOON),
            Self::DiskFull => (Code::ResourceExhausted, ErrorReason::DiskFull, LATER),
            Self::StorageFailed => (Code::Unavailable, ErrorReason::StorageFailed, LATER),
            Self::ShuttingDown => (Code::Unavailable, ErrorReason::ShuttingDown, SOON),
            Self::Internal => (Code::Internal, ErrorReason::Internal, None),
        }
    }

    /// The status as a message, for an answer that carries it.
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
        let (code, reason, retry) = error.row();
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        let message = cut(error.to_string(), MOST_MESSAGE_BYTES);
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
        // The details repeat the message, so that only encoding them shows their length.
        let fits = |status: &Self| status.details().len() <= MOST_DETAILS_BYTES;
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
            // The store tells its log once, not for each request.
            full if full.is_full() => Self::DiskFull,
            StoreError::NoRoom | StoreError::Database(_) => {
                tracing::error!(%error, "the store failed");
                Self::StorageFailed
            }
            StoreError::Damaged { .. } | StoreError::Sealing => {
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
            ConfigureError::ExternalIdNotIssued => Self::invalid(
                "external_id",
                "must be one that GenerateExternalId issued to this organization",
            ),
            ConfigureError::ExternalIdInUse => Self::ExternalIdInUse,
            ConfigureError::Store(error) => error.into(),
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
    fn names_every_violation_and_the_reason() {
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

    /// Bytes of the headers or trailers that carry a status, as HTTP/2 counts them.
    fn header_bytes(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let each = headers.iter();
        each.map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum()
    }

    #[test]
    fn an_answer_is_bounded_whatever_is_wrong() {
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
                    let told = status.message();
                    if let Some(more) = count.checked_sub(5).filter(|more| *more > 0) {
                        assert!(told.ends_with(&format!("; and {more} more")), "{told}");
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
    fn what_is_repeated_is_short_and_seen() {
        assert_eq!(echo("gzip"), "gzip");
        assert_eq!(echo("a\u{200b}\n\u{1b}"), "a\\u{200b}\\n\\u{1b}");
        assert_eq!(echo(&"é".repeat(65)), format!("{}…", "é".repeat(64)));
    }

    #[test]
    fn knows_what_prost_says_of_bytes() {
        let error = crate::proto::v1::GetRequest::decode(&b"\x0a\x01\xff"[..]).unwrap_err();
        let refusal = ApiError::of_undecodable(&Status::internal(error.to_string())).unwrap();
        let told = refusal.to_string();
        assert!(
            told.starts_with("the request cannot be read: GetRequest.organization_id"),
            "{told}"
        );
        assert!(ApiError::of_undecodable(&Status::internal("failed")).is_none());
    }

    #[test]
    fn an_answer_carries_the_same_status() {
        let message = ApiError::Overloaded.into_message();
        assert_eq!(message.code, Code::ResourceExhausted as i32);
        assert_eq!(message.details.len(), 2);
    }
}
