//! PutRecords by the AWS SDK, with an assumed role's session.

use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_sdk_kinesis::{
    Client,
    config::{Builder, IdentityCache, SharedIdentityCache},
    error::{BuildError, SdkError},
    operation::RequestId,
    operation::put_records::{PutRecordsError, PutRecordsOutput},
    primitives::Blob,
    types::PutRecordsRequestEntry,
};

use super::{
    DryRun, Record, RecordOutcome,
    aws::record_request_id,
    clock::Clock,
    config,
    fault::{self, ShardIds},
    sessions::Session,
};
use crate::domain::{
    arn::StreamArn,
    event::{RecordHead, UnreadableEvent},
    status::{Cause, Fault, Stage},
};

/// One client for all regions and sessions, which are passed with each call, so that memory does
/// not grow with the number of customers.
#[derive(Clone)]
pub(super) struct Kinesis {
    client: Client,
    no_cache: SharedIdentityCache,
}

impl Kinesis {
    pub(super) fn new(sdk: &SdkConfig, attempt_timeout: Duration, clock: Clock) -> Self {
        // A call without a session must not fall back to the service's own credentials.
        let mut builder = Builder::from(sdk)
            .interceptor(clock.clone())
            .time_source(clock)
            .disable_clock_skew_correction(true)
            .retry_config(config::retries())
            .timeout_config(config::timeouts(attempt_timeout))
            .stalled_stream_protection(config::stalled_streams());
        builder.set_credentials_provider(None);
        Self {
            client: Client::from_conf(builder.build()),
            no_cache: IdentityCache::no_cache(),
        }
    }

    /// Writes the records, at least one.
    ///
    /// # Errors
    ///
    /// If the call failed, or its answer does not list an outcome per record.
    pub(super) async fn put(
        &self,
        session: &Session,
        stream: &StreamArn,
        head: &RecordHead,
        records: &[Record],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let answer = self.send(session, stream, head, records, false)?.await;
        match answer {
            Ok(output) => outcomes(&output, records.len()),
            Err(error) => {
                let fault = fault::fault(Stage::Write, &error);
                record_request_id(fault.request_id.as_deref());
                Err(fault)
            }
        }
    }

    /// Checks by [`DryRun`] whether a record would be written.
    ///
    /// [`DryRun`]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
    pub(super) async fn validate_only(
        &self,
        session: &Session,
        stream: &StreamArn,
        head: &RecordHead,
        record: Record,
    ) -> Result<DryRun, Fault> {
        match self.send(session, stream, head, &[record], true)?.await {
            Ok(output) => match outcomes(&output, 1)?.pop() {
                Some(RecordOutcome::Failed(fault)) => Err(fault),
                _ => Ok(DryRun::Written),
            },
            Err(error) => match fault::fault(Stage::Write, &error) {
                fault if fault.is_dry_run_success() => Ok(DryRun::WouldSucceed),
                fault => Err(fault),
            },
        }
    }

    fn send(
        &self,
        session: &Session,
        stream: &StreamArn,
        head: &RecordHead,
        records: &[Record],
        dry_run: bool,
    ) -> Result<
        impl Future<Output = Result<PutRecordsOutput, SdkError<PutRecordsError>>> + use<>,
        Fault,
    > {
        let entries = records
            .iter()
            .map(|record| entry(head, record))
            .collect::<Result<_, _>>()
            .map_err(|error| {
                tracing::error!(%error, "cannot build a PutRecords request");
                let cause = match error {
                    NoEntry::Unreadable(_) => Cause::LogUnreadable,
                    NoEntry::Build(_) => Cause::NotBuilt,
                };
                Fault::unanswered(Stage::Write, cause)
            })?;
        // Without this the SDK creates a credentials cache for each call that overrides the
        // credentials; a session needs none.
        let session = Builder::default()
            .region(Region::new(stream.region().to_owned()))
            .credentials_provider(session.credentials())
            .identity_cache(self.no_cache.clone());
        Ok(self
            .client
            .put_records()
            .stream_arn(stream.as_str())
            .set_records(Some(entries))
            .set_dry_run(dry_run.then_some(true))
            .customize()
            .config_override(session)
            .send())
    }
}

/// The request could not be built; nothing was sent.
#[derive(Debug, thiserror::Error)]
enum NoEntry {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Unreadable(#[from] UnreadableEvent),
}

fn entry(head: &RecordHead, record: &Record) -> Result<PutRecordsRequestEntry, NoEntry> {
    Ok(PutRecordsRequestEntry::builder()
        .partition_key(record.partition_key.to_string())
        .data(Blob::new(record.data(head)?))
        .build()?)
}

/// Outcomes in the order of the records. An answer of another length proves nothing about any
/// record.
fn outcomes(output: &PutRecordsOutput, sent: usize) -> Result<Vec<RecordOutcome>, Fault> {
    let request_id = output.request_id();
    record_request_id(request_id);
    let results = output.records();
    if results.len() != sent {
        return Err(Fault::not_aws(Stage::Write, 200, request_id));
    }
    let mut shards = ShardIds::default();
    Ok(results
        .iter()
        .map(|result| {
            fault::record_outcome(
                &mut shards,
                result.error_code(),
                result.shard_id(),
                result.sequence_number(),
                request_id,
            )
        })
        .collect())
}
