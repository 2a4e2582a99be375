//! Reads a stream back, from its oldest record to now, with this process's own AWS
//! credentials: ListShards, GetShardIterator and GetRecords.

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

/// What one call may take; an answer has up to 10 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Reads of a shard are refused beyond five a second and 2 MiB a second ("Quotas and
/// limits", Kinesis Developer Guide), which the SDK meets by waiting.
const ATTEMPTS: u32 = 10;
/// Between two reads of one shard.
const PACE: Duration = Duration::from_millis(200);
/// Shards that are read side by side.
const SHARDS_AT_ONCE: usize = 8;
/// How inexact the time of arrival is taken to be.
const SLACK: Duration = Duration::from_secs(1);

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRecord {
    /// The shard that it is in.
    pub shard_id: String,
    /// Its number there.
    pub sequence_number: String,
    /// The key under which it was put.
    pub partition_key: String,
    /// What was put.
    pub data: Vec<u8>,
}

/// Why a stream cannot be read. Codes are AWS's own.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {stream}: {code}")]
pub struct ReadError {
    operation: &'static str,
    stream: String,
    code: String,
}

/// Where the reading of a shard is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// The next iterator, which is good for five minutes.
    iterator: Option<String>,
    /// The last record that was read.
    last: Option<String>,
    /// A closed shard was read to its end.
    ended: bool,
}

impl Progress {
    fn hand_on(
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

/// Reads one stream, again and again from where it was.
pub struct StreamReader {
    client: Client,
    stream: StreamArn,
    progress: BTreeMap<String, Progress>,
}

impl StreamReader {
    /// Loads credentials and endpoints as the AWS SDK does by its default chain; the
    /// region is the stream's. It calls nothing.
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

    /// Reads what every shard has, closed ones too, up to at least the moment of the
    /// call. A shard's records come in their order, and after those of the shards that
    /// it was split or merged from.
    ///
    /// # Errors
    ///
    /// Where AWS refuses to answer; what was read before was taken.
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

    /// Every shard, with the shards that it came from.
    async fn parents(&self) -> Result<BTreeMap<String, Vec<String>>, ReadError> {
        let mut shards = BTreeMap::new();
        let mut token = None;
        loop {
            // A token stands for its stream, which may then not be named.
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
            progress.hand_on(&shard_id, answer.records, take);
            let behind = Duration::from_millis(behind.unwrap_or(0));
            if behind.is_zero() || behind + SLACK < started.elapsed() {
                break;
            }
            sleep(PACE).await;
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
            Some(_) => "there are no AWS credentials, or they cannot be had".to_owned(),
            None => match (error.code(), error) {
                (Some(code), _) => format!("{code}: {}", error.message().unwrap_or_default()),
                (None, SdkError::TimeoutError(_)) => "no answer in time".to_owned(),
                (None, SdkError::DispatchFailure(_)) => "no connection to AWS".to_owned(),
                (None, _) => "not an answer of AWS".to_owned(),
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

/// The shards in such groups that each comes after the ones it came from. A parent that
/// is not listed has nothing left to read.
fn generations(mut parents: BTreeMap<String, Vec<String>>) -> Vec<Vec<String>> {
    let mut generations = Vec::new();
    while !parents.is_empty() {
        let mut ready: Vec<String> = parents
            .iter()
            .filter(|(_, from)| from.iter().all(|parent| !parents.contains_key(parent)))
            .map(|(shard, _)| shard.clone())
            .collect();
        if ready.is_empty() {
            // Shards cannot come from each other.
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
    fn shards_come_after_those_they_came_from() {
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
