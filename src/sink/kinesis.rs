//! PutRecords with an assumed role's session.

use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_sdk_kinesis::{
    Client,
    config::{Builder, IdentityCache, SharedIdentityCache},
    error::{BuildError, ProvideErrorMetadata, SdkError},
    operation::RequestId,
    operation::put_records::{PutRecordsError, PutRecordsOutput},
    primitives::Blob,
    types::PutRecordsRequestEntry,
};

use super::{
    DryRun, Record, RecordOutcome,
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

/// One client for every region and session: what differs goes along with each call,
/// so that nothing grows with the number of customers.
#[derive(Clone)]
pub(super) struct Kinesis {
    client: Client,
    no_cache: SharedIdentityCache,
}

impl Kinesis {
    pub(super) fn new(sdk: &SdkConfig, attempt_timeout: Duration, clock: Clock) -> Self {
        // Without a session of its own, no call may fall back to the service's own
        // credentials.
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

    /// Writes the records, of which there is at least one.
    ///
    /// # Errors
    ///
    /// Where the call failed, or where its answer does not tell record by record.
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
            Err(error) => Err(fault::fault(Stage::Write, &error)),
        }
    }

    /// Asks whether a record would be written, by [`DryRun`]: its success is the error
    /// `DryRunOperationException`.
    ///
    /// [`DryRun`]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
    pub(super) async fn rehearse(
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
            Err(error) if error.code() == Some("DryRunOperationException") => {
                Ok(DryRun::WouldSucceed)
            }
            Err(error) => Err(fault::fault(Stage::Write, &error)),
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
                tracing::error!(%error, "cannot make a PutRecords request");
                Fault {
                    stage: Stage::Write,
                    cause: match error {
                        NoEntry::Unreadable(_) => Cause::LogUnreadable,
                        NoEntry::Build(_) => Cause::NotBuilt,
                    },
                    request_id: None,
                }
            })?;
        // The SDK gives a call with credentials of its own a cache of its own unless
        // one is given; session credentials are at hand and need none.
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

/// There is no request; nothing was sent.
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

/// AWS answers for each record at its place. An answer of another length says nothing
/// of any record.
fn outcomes(output: &PutRecordsOutput, sent: usize) -> Result<Vec<RecordOutcome>, Fault> {
    let request_id = fault::request_id(output.request_id());
    let results = output.records();
    if results.len() != sent {
        return Err(fault::unlike_aws(Stage::Write, 200, request_id));
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
                request_id.as_deref(),
            )
        })
        .collect())
}
