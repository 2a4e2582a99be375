//! From the SDK's errors to a [`Fault`], by types and codes. Messages are not taken:
//! they may repeat what was sent, the external ID included.

use std::{error::Error, sync::Arc};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::{
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use super::{RecordOutcome, connection_log};
use crate::domain::status::{Cause, Fault, Stage};

/// The longest code or request id that is kept; AWS's have below 70 characters.
const MAX_TOKEN_LENGTH: usize = 128;

/// What failed in a call.
pub(super) fn fault<E>(stage: Stage, error: &SdkError<E>) -> Fault
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let http_status = error
        .raw_response()
        .map_or(0, |response| response.status().as_u16());
    let cause = match error {
        SdkError::ServiceError(service) => match service.err().code() {
            Some(code) if is_token(code) => Cause::Service {
                code: code.into(),
                http_status,
            },
            _ => Cause::NotAws { http_status },
        },
        SdkError::ResponseError(_) => Cause::NotAws { http_status },
        SdkError::TimeoutError(_) => Cause::Timeout,
        other if missing_credentials(other).is_some() => Cause::NoOwnCredentials,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Cause::Timeout,
        SdkError::DispatchFailure(failure) => {
            if let Some(error) = failure.as_connector_error() {
                connection_log::tell(service(stage), error);
            }
            Cause::Connection
        }
        // Also where no endpoint could be resolved: nothing was sent.
        SdkError::ConstructionFailure(_) => {
            tracing::error!(
                error = %DisplayErrorContext(error),
                "cannot make a request to {}",
                service(stage)
            );
            Cause::NotBuilt
        }
        _ => Cause::Connection,
    };
    Fault {
        stage,
        cause,
        request_id: request_id(error.request_id()),
    }
}

fn service(stage: Stage) -> &'static str {
    match stage {
        Stage::AssumeRole => "STS",
        Stage::Write => "Kinesis",
    }
}

/// An answer that AWS would not give.
pub(super) fn unlike_aws(stage: Stage, http_status: u16, request_id: Option<Box<str>>) -> Fault {
    Fault {
        stage,
        cause: Cause::NotAws { http_status },
        request_id,
    }
}

/// The IDs of the shards of one answer, each kept once: its records are of few shards.
#[derive(Default)]
pub(super) struct ShardIds(Vec<Arc<str>>);

impl ShardIds {
    /// Of how many shards an ID is looked for.
    const MOST: usize = 16;

    fn keep(&mut self, shard_id: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().find(|known| ***known == *shard_id) {
            return Arc::clone(known);
        }
        let kept: Arc<str> = shard_id.into();
        if self.0.len() < Self::MOST {
            self.0.push(Arc::clone(&kept));
        }
        kept
    }
}

/// What an answer says of one record. Accepted is what has shard and number and no
/// error.
pub(super) fn record_outcome(
    shards: &mut ShardIds,
    error_code: Option<&str>,
    shard_id: Option<&str>,
    sequence_number: Option<&str>,
    request_id: Option<&str>,
) -> RecordOutcome {
    match (error_code, shard_id, sequence_number) {
        (None, Some(shard_id), Some(sequence_number))
            if !shard_id.is_empty() && !sequence_number.is_empty() =>
        {
            RecordOutcome::Accepted {
                shard_id: shards.keep(shard_id),
                sequence_number: sequence_number.into(),
            }
        }
        (code, ..) => RecordOutcome::Failed(record_fault(
            code.unwrap_or_default(),
            request_id.map(Into::into),
        )),
    }
}

/// A failed record of an answered request.
fn record_fault(code: &str, request_id: Option<Box<str>>) -> Fault {
    if !is_token(code) {
        return unlike_aws(Stage::Write, 200, request_id);
    }
    Fault {
        stage: Stage::Write,
        cause: Cause::Service {
            code: code.into(),
            http_status: 0,
        },
        request_id,
    }
}

/// AWS's request id, where it looks like one.
pub(super) fn request_id(id: Option<&str>) -> Option<Box<str>> {
    id.filter(|id| is_token(id)).map(Into::into)
}

/// Why there are no credentials to sign with.
pub(super) fn missing_credentials<E>(error: &SdkError<E>) -> Option<&CredentialsError>
where
    E: Error + 'static,
{
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// Codes and ids reach statuses and logs, and what answers may be anything.
pub(super) fn is_token(text: &str) -> bool {
    (1..=MAX_TOKEN_LENGTH).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(&byte))
}
