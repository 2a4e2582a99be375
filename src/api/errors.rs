//! The one table of refusals: what went wrong inside, and what gRPC says of it.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    domain::verdict::TestError,
    proto::v1::ErrorReason,
    store::{ConfigureError, StoreError},
};

/// The domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "siem.v1";

/// A field of a request and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path.
    pub field: String,
    /// What is wrong and what to do. It does not repeat the value.
    pub description: String,
}

impl Violation {
    /// A violation of one field.
    pub fn new(field: impl Into<String>, description: impl ToString) -> Self {
        Self {
            field: field.into(),
            description: description.to_string(),
        }
    }
}

/// Everything that the API refuses.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Fields are missing or malformed; all of them are named.
    #[error("invalid request: {}", list(.0))]
    Invalid(Vec<Violation>),
    /// More events than a request may hold.
    #[error("{count} events in one request; send at most {most}")]
    TooManyEvents {
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// More bytes than a request may hold.
    #[error("{bytes} bytes of events in one request; send at most {most}")]
    RequestTooLarge {
        /// How many there are.
        bytes: usize,
        /// How many there may be.
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

fn list(violations: &[Violation]) -> String {
    let each = violations
        .iter()
        .map(|violation| format!("{} {}", violation.field, violation.description));
    each.collect::<Vec<_>>().join("; ")
}

impl ApiError {
    /// The table.
    fn row(&self) -> (Code, ErrorReason, Option<Duration>) {
        const SOON: Option<Duration> = Some(Duration::from_secs(1));
        const LATER: Option<Duration> = Some(Duration::from_secs(10));
        match self {
            Self::Invalid(_) => (Code::InvalidArgument, ErrorReason::InvalidField, None),
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
        let mut details = ErrorDetails::new();
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        details.set_error_info(reason, ERROR_DOMAIN, HashMap::new());
        if let ApiError::Invalid(violations) = &error {
            for violation in violations {
                details.add_bad_request_violation(&violation.field, &violation.description);
            }
        }
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        Self::with_error_details(code, error.to_string(), details)
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
            ConfigureError::ExternalIdRequired => Self::Invalid(vec![Violation::new(
                "external_id",
                "is required to create an integration",
            )]),
            ConfigureError::ExternalIdNotIssued => Self::Invalid(vec![Violation::new(
                "external_id",
                "must be one that GenerateExternalId issued to this organization",
            )]),
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
        let error = ApiError::Invalid(vec![
            Violation::new("role_arn", "is required"),
            Violation::new("external_id", "is required"),
        ]);
        let status = Status::from(error);
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

    #[test]
    fn an_answer_carries_the_same_status() {
        let message = ApiError::Overloaded.into_message();
        assert_eq!(message.code, Code::ResourceExhausted as i32);
        assert_eq!(message.details.len(), 2);
    }
}
