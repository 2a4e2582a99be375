//! Reads a stream from its oldest record to now, with this process's own AWS credentials:
//! ListShards, GetShardIterator and GetRecords.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_config::{Region, retry::RetryConfig};
use aws_sdk_kinesis::{
    Client,
    config::Builder,
    error::{ProvideErrorMetadata, SdkError},
    operation::get_records::GetRecordsError,
    types::{Record, ShardIteratorType},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::{AwsOptions, config, fault};
use crate::domain::arn::StreamArn;

/// Timeout of one call; an answer has up to 10 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts per call. AWS refuses more than five reads and 2 MiB per second and shard ("Quotas and
/// limits", Kinesis Developer Guide); the SDK waits and retries.
const ATTEMPTS: u32 = 10;
/// Interval between reads of one shard.
const READ_INTERVAL: Duration = Duration::from_millis(200);
/// Shards that are read concurrently.
const SHARDS_AT_ONCE: usize = 8;
/// Assumed inaccuracy of a record's arrival time.
const SLACK: Duration = Duration::from_secs(1);

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRecord {
    /// Shard of the record.
    pub shard_id: String,
    /// Sequence number in the shard.
    pub sequence_number: String,
    /// Partition key of the record.
    pub partition_key: String,
    /// Data of the record.
    pub data: Vec<u8>,
}

/// A call to read a stream failed. Codes are AWS's own.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {stream}: {code}")]
pub struct ReadError {
    operation: &'static str,
    stream: String,
    code: String,
}

/// Read position in a shard.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// The next iterator, valid for five minutes.
    iterator: Option<String>,
    /// The last record that was read.
    last: Option<String>,
    /// A closed shard was read to its end.
    ended: bool,
}

impl Progress {
    fn pass_on(
        &mut self,
        shard_id: &str,
        records: Vec<Record>,
        take: &Mutex<&mut (dyn FnMut(ReadRecord) + Send)>,
    ) {
        let mut take = take.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            self.last = Some(record.sequence_number.clone());
            take(ReadRecord {
                shard_id: shard_id.to_owned(),
                sequence_number: record.sequence_number,
                partition_key: record.partition_key.unwrap_or_default(),
                data: record.data.into_inner(),
            });
        }
    }
}

/// Reads one stream; each read continues after the previous one.
pub struct StreamReader {
    client: Client,
    stream: StreamArn,
    progress: BTreeMap<String, Progress>,
}

impl StreamReader {
    /// Loads credentials and endpoints by the AWS SDK's default chain; the region is that of the
    /// stream. Calls nothing.
    pub async fn new(stream: StreamArn) -> Self {
        let options = AwsOptions {
            attempt_timeout: ATTEMPT_TIMEOUT,
            ..AwsOptions::default()
        };
        Self::with_options(stream, &options).await
    }

    pub(super) async fn with_options(stream: StreamArn, options: &AwsOptions) -> Self {
        let sdk = config::load(options).await;
        let builder = Builder::from(&sdk)
            .region(Region::new(stream.region().to_owned()))
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(config::timeouts(ATTEMPT_TIMEOUT * ATTEMPTS))
            .stalled_stream_protection(config::stalled_streams());
        Self {
            client: Client::from_conf(builder.build()),
            stream,
            progress: BTreeMap::new(),
        }
    }

    /// Reads all shards, closed ones too, up to at least the time of the call. A shard's records
    /// are passed to `take` in their order, after those of the shards that it was split or merged
    /// from.
    ///
    /// # Errors
    ///
    /// If a call fails. Records read before were passed to `take`.
    pub async fn catch_up(
        &mut self,
        take: &mut (dyn FnMut(ReadRecord) + Send),
    ) -> Result<(), ReadError> {
        let started = Instant::now();
        let take = Mutex::new(take);
        for generation in generations(self.parents().await?) {
            let known = |shard_id: &str| self.progress.get(shard_id).cloned().unwrap_or_default();
            let reads: Vec<_> = generation
                .into_iter()
                .map(|shard_id| self.shard(known(&shard_id), shard_id, started, &take))
                .collect();
            let read: Vec<(String, Progress)> = stream::iter(reads)
                .buffer_unordered(SHARDS_AT_ONCE)
                .try_collect()
                .await?;
            self.progress.extend(read);
        }
        Ok(())
    }

    /// All shards, each with its parents.
    async fn parents(&self) -> Result<BTreeMap<String, Vec<String>>, ReadError> {
        let mut shards = BTreeMap::new();
        let mut token = None;
        loop {
            // With a token the stream must not be named.
            let request = match token.take() {
                Some(token) => self.client.list_shards().next_token(token),
                None => self.client.list_shards().stream_arn(self.stream.as_str()),
            };
            let answer = request.send().await;
            let answer = answer.map_err(|error| self.error("ListShards", &error))?;
            for shard in answer.shards() {
                let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
                let parents = parents.into_iter().flatten().map(str::to_owned).collect();
                shards.insert(shard.shard_id().to_owned(), parents);
            }
            token = answer.next_token().map(str::to_owned);
            if token.is_none() {
                return Ok(shards);
            }
        }
    }

    async fn shard(
        &self,
        mut progress: Progress,
        shard_id: String,
        started: Instant,
        take: &Mutex<&mut (dyn FnMut(ReadRecord) + Send)>,
    ) -> Result<(String, Progress), ReadError> {
        while !progress.ended {
            let iterator = match progress.iterator.clone() {
                Some(iterator) => iterator,
                None => self.iterator(&shard_id, progress.last.as_deref()).await?,
            };
            let answer = self.client.get_records().shard_iterator(iterator);
            let answer = answer.stream_arn(self.stream.as_str()).send().await;
            let answer = match answer {
                Err(error) if is_expired(&error) => {
                    progress.iterator = None;
                    continue;
                }
                answer => answer.map_err(|error| self.error("GetRecords", &error))?,
            };
            let behind = u64::try_from(answer.millis_behind_latest().unwrap_or(0));
            progress.iterator = answer.next_shard_iterator;
            progress.ended = progress.iterator.is_none();
            progress.pass_on(&shard_id, answer.records, take);
            let behind = Duration::from_millis(behind.unwrap_or(0));
            if behind.is_zero() || behind + SLACK < started.elapsed() {
                break;
            }
            sleep(READ_INTERVAL).await;
        }
        Ok((shard_id, progress))
    }

    async fn iterator(&self, shard_id: &str, after: Option<&str>) -> Result<String, ReadError> {
        let kind = match after {
            Some(_) => ShardIteratorType::AfterSequenceNumber,
            None => ShardIteratorType::TrimHorizon,
        };
        let answer = self
            .client
            .get_shard_iterator()
            .stream_arn(self.stream.as_str())
            .shard_id(shard_id)
            .shard_iterator_type(kind)
            .set_starting_sequence_number(after.map(str::to_owned))
            .send()
            .await
            .map_err(|error| self.error("GetShardIterator", &error))?;
        Ok(answer.shard_iterator.unwrap_or_default())
    }

    fn error<E>(&self, operation: &'static str, error: &SdkError<E>) -> ReadError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let code = match fault::missing_credentials(error) {
            Some(_) => "there are no AWS credentials, or they cannot be loaded".to_owned(),
            None => match (error.code(), error) {
                (Some(code), _) => format!("{code}: {}", error.message().unwrap_or_default()),
                (None, SdkError::TimeoutError(_)) => "no answer within the timeout".to_owned(),
                (None, SdkError::DispatchFailure(_)) => "no connection to AWS".to_owned(),
                (None, _) => "the answer is not from AWS".to_owned(),
            },
        };
        ReadError {
            operation,
            stream: self.stream.as_str().to_owned(),
            code,
        }
    }
}

fn is_expired(error: &SdkError<GetRecordsError>) -> bool {
    let refusal = error.as_service_error();
    refusal.is_some_and(GetRecordsError::is_expired_iterator_exception)
}

/// Groups of shards in which each shard follows its parents. A parent that is not listed has no
/// records left.
fn generations(mut parents: BTreeMap<String, Vec<String>>) -> Vec<Vec<String>> {
    let mut generations = Vec::new();
    while !parents.is_empty() {
        let mut ready: Vec<String> = parents
            .iter()
            .filter(|(_, from)| from.iter().all(|parent| !parents.contains_key(parent)))
            .map(|(shard, _)| shard.clone())
            .collect();
        if ready.is_empty() {
            // A cycle, which AWS does not create.
            ready = parents.keys().cloned().collect();
        }
        for shard in &ready {
            parents.remove(shard);
        }
        generations.push(ready);
    }
    generations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_follow_their_parents() {
        let shards = [
            ("0", &["gone"][..]),
            ("1", &[]),
            ("2", &["0"]),
            ("3", &["0"]),
            ("4", &["2", "1"]),
        ];
        let shards = shards.map(|(shard, from)| {
            let from = from.iter().map(|parent| (*parent).to_owned()).collect();
            (shard.to_owned(), from)
        });
        let expected = [vec!["0", "1"], vec!["2", "3"], vec!["4"]];
        assert_eq!(generations(shards.into()), expected);
    }
}
