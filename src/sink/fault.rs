//! From the SDK's errors to a [`Fault`], by types and codes. Messages are not taken: they may
//! repeat what was sent, the external ID included.

use std::{error::Error, fs::File, io, sync::Arc};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::{
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use rustix::io::Errno;

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
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(error) => connection_failed(service(stage), error),
            None => Cause::Connection,
        },
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

/// Code of a call that failed: AWS's, or the one that [`Fault::code`] has for its cause.
pub(super) fn code<E>(error: &SdkError<E>) -> &str
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let timed_out = match error {
        SdkError::TimeoutError(_) => true,
        SdkError::DispatchFailure(failure) => failure.is_timeout(),
        _ => false,
    };
    match error {
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            error.code().unwrap_or("NotAnAwsAnswer")
        }
        _ if timed_out => "RequestTimeout",
        other if missing_credentials(other).is_some() => "NoCredentials",
        SdkError::ConstructionFailure(_) => "RequestNotBuilt",
        _ => "ConnectionFailed",
    }
}

/// Logs why a connection failed. Returns the cause of the fault: a lack of file descriptors is a
/// fault of this host, and says nothing about AWS.
pub(super) fn connection_failed(server: &str, error: &(dyn Error + 'static)) -> Cause {
    connection_log::warn(server, error);
    match lacks_descriptors(error) {
        true => Cause::TooManyOpenFiles,
        false => Cause::Connection,
    }
}

fn lacks_descriptors(error: &(dyn Error + 'static)) -> bool {
    let is_lack = |error: &io::Error| {
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        code.is_some_and(|code| code == Errno::MFILE || code == Errno::NFILE)
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref().is_some_and(is_lack) {
            return true;
        }
        next = error.source();
    }
    // The resolver of names hides the reason, so that one descriptor is tried.
    File::open("/dev/null").is_err_and(|error| is_lack(&error))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of a connector, around that of the system.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Connecting(#[source] io::Error);

    #[test]
    fn a_lack_of_descriptors_is_no_fault_of_aws() {
        for (code, cause) in [
            (Errno::MFILE, Cause::TooManyOpenFiles),
            (Errno::NFILE, Cause::TooManyOpenFiles),
            (Errno::CONNREFUSED, Cause::Connection),
        ] {
            let error = Connecting(Connecting(code.into()).into_io());
            assert_eq!(connection_failed("test", &error), cause);
            let fault = Fault::unanswered(Stage::AssumeRole, cause);
            assert!(!fault.is_service_refused());
        }
    }

    impl Connecting {
        fn into_io(self) -> io::Error {
            io::Error::other(self)
        }
    }
}
