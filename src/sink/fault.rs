//! From the SDK's errors to a [`Fault`], by types and codes. Messages are not taken: they may
//! repeat what was sent, the external ID included.

use std::{error::Error, sync::Arc};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::{
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use super::{RecordOutcome, connection_log};
use crate::domain::status::{Cause, Fault, Stage};

/// Fault of a call that failed.
pub(super) fn fault<E>(stage: Stage, error: &SdkError<E>) -> Fault
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let http_status = error
        .raw_response()
        .map_or(0, |response| response.status().as_u16());
    let cause = match error {
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            return Fault::answered(stage, error.code(), http_status, error.request_id());
        }
        SdkError::TimeoutError(_) => Cause::Timeout,
        other if missing_credentials(other).is_some() => Cause::NoOwnCredentials,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Cause::Timeout,
        SdkError::DispatchFailure(failure) => {
            if let Some(error) = failure.as_connector_error() {
                connection_log::warn(service(stage), error);
            }
            Cause::Connection
        }
        // Includes an endpoint that cannot be resolved: nothing was sent.
        SdkError::ConstructionFailure(_) => {
            tracing::error!(
                error = %DisplayErrorContext(error),
                "cannot build a request to {}",
                service(stage)
            );
            Cause::NotBuilt
        }
        _ => Cause::Connection,
    };
    Fault::unanswered(stage, cause)
}

fn service(stage: Stage) -> &'static str {
    match stage {
        Stage::AssumeRole => "STS",
        Stage::Write => "Kinesis",
    }
}

/// IDs of the shards of one answer, each kept once: few shards take the records of a request.
#[derive(Default)]
pub(super) struct ShardIds(Vec<Arc<str>>);

impl ShardIds {
    /// Limit of the IDs that are searched.
    const MAX: usize = 16;

    fn keep(&mut self, shard_id: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().find(|known| ***known == *shard_id) {
            return Arc::clone(known);
        }
        let kept: Arc<str> = shard_id.into();
        if self.0.len() < Self::MAX {
            self.0.push(Arc::clone(&kept));
        }
        kept
    }
}

/// Outcome of one record of an answer. A record is accepted if it has a shard and a sequence
/// number and no error.
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
        (code, ..) => RecordOutcome::Failed(Fault::of_record(code.unwrap_or_default(), request_id)),
    }
}

/// The error of the credentials chain, if a call failed for lack of credentials to sign with.
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
