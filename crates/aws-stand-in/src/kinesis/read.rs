//! ListShards, GetShardIterator and GetRecords.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::{Context, StreamFields, StreamRef, deserialize, invalid_argument, required};
use crate::control::Operation;
use crate::error::AwsError;
use crate::state::now_ms;
use crate::stream::{Shard, State, Stream, parse_shard_id, shard_id};

/// Lifetime of a shard iterator.
const ITERATOR_LIFETIME_MS: i64 = 5 * 60 * 1000;
/// Limits of the records and bytes in a response of GetRecords.
const MAX_RECORDS: usize = 10_000;
const MAX_BYTES: usize = 10 * 1024 * 1024;

pub(crate) enum Request {
    ListShards {
        stream: StreamRef,
    },
    GetShardIterator {
        stream: StreamRef,
        shard: String,
        position: Position,
    },
    GetRecords {
        iterator: Iterator,
        limit: usize,
    },
}

pub(crate) enum Position {
    TrimHorizon,
    Latest,
    At(String),
    After(String),
    AtTimestamp(f64),
}

/// Decoded shard iterator: a position in a shard. Opaque to callers.
pub(crate) struct Iterator {
    stream: StreamRef,
    shard: u32,
    /// Index, within the stream, of the first record to read.
    index: u64,
    issued_at_ms: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Input<'a> {
    #[serde(flatten, borrow)]
    stream: StreamFields<'a>,
    shard_id: Option<String>,
    shard_iterator_type: Option<String>,
    starting_sequence_number: Option<String>,
    timestamp: Option<f64>,
    shard_iterator: Option<String>,
    limit: Option<u64>,
    next_token: Option<String>,
}

impl Request {
    pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Self, AwsError> {
        let input: Input<'_> = deserialize(body)?;
        match operation {
            Operation::GetShardIterator => Self::parse_get_shard_iterator(input),
            Operation::GetRecords => Self::parse_get_records(input),
            _ if input.next_token.is_some() => {
                // One response contains all shards, so no token was ever issued.
                Err(invalid_argument("NextToken is not valid."))
            }
            _ => Ok(Self::ListShards {
                stream: input.stream.into_ref()?,
            }),
        }
    }

    fn parse_get_shard_iterator(input: Input<'_>) -> Result<Self, AwsError> {
        let number = required(input.starting_sequence_number, "startingSequenceNumber");
        let kind = required(input.shard_iterator_type, "shardIteratorType")?;
        let position = match kind.as_str() {
            "TRIM_HORIZON" => Position::TrimHorizon,
            "LATEST" => Position::Latest,
            "AT_SEQUENCE_NUMBER" => Position::At(number?),
            "AFTER_SEQUENCE_NUMBER" => Position::After(number?),
            "AT_TIMESTAMP" => Position::AtTimestamp(required(input.timestamp, "timestamp")?),
            _ => {
                return Err(invalid_argument(format!(
                    "Invalid ShardIteratorType {kind}."
                )));
            }
        };
        Ok(Self::GetShardIterator {
            stream: input.stream.into_ref()?,
            shard: required(input.shard_id, "shardId")?,
            position,
        })
    }

    fn parse_get_records(input: Input<'_>) -> Result<Self, AwsError> {
        let token = required(input.shard_iterator, "shardIterator")?;
        let limit = match input.limit {
            None => MAX_RECORDS,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|limit| (1..=MAX_RECORDS).contains(limit))
                .ok_or_else(|| invalid_argument("Limit must be from 1 to 10000."))?,
        };
        let iterator = Iterator::decode(&token);
        let iterator = iterator.ok_or_else(|| invalid_argument("Invalid ShardIterator."))?;
        Ok(Self::GetRecords { iterator, limit })
    }

    pub(super) fn target(&self) -> Cow<'_, str> {
        match self {
            Self::ListShards { stream } | Self::GetShardIterator { stream, .. } => stream.target(),
            Self::GetRecords { iterator, .. } => iterator.stream.target(),
        }
    }

    pub(super) fn execute(&self, context: &Context<'_>) -> Result<String, AwsError> {
        let response = match self {
            Self::ListShards { stream } => {
                let stream = context.stream(stream)?;
                let state = stream.lock();
                let shards: Vec<_> = (0..)
                    .zip(&state.shards)
                    .map(|(id, shard)| describe(&stream, id, shard))
                    .collect();
                json!({ "Shards": shards })
            }
            Self::GetShardIterator {
                stream,
                shard,
                position,
            } => {
                let stream = context.stream(stream)?;
                let shard = parse_shard_id(shard)
                    .filter(|shard| (*shard as usize) < stream.lock().shards.len())
                    .ok_or_else(|| no_shard(&stream, shard))?;
                let index = position.resolve(&stream, shard)?;
                json!({ "ShardIterator": Iterator::encode(&stream, shard, index) })
            }
            Self::GetRecords { iterator, limit } => iterator.read(context, *limit)?,
        };
        Ok(response.to_string())
    }
}

fn describe(stream: &Stream, id: u32, shard: &Shard) -> serde_json::Value {
    let (start, end) = shard.hash_keys;
    let mut range =
        json!({ "StartingSequenceNumber": stream.sequence_number(id, shard.opened_at) });
    if let Some(closed_at) = shard.closed_at {
        range["EndingSequenceNumber"] = stream.sequence_number(id, closed_at).into();
    }
    let mut description = json!({
        "ShardId": shard_id(id),
        "HashKeyRange": {
            "StartingHashKey": start.to_string(),
            "EndingHashKey": end.to_string(),
        },
        "SequenceNumberRange": range,
    });
    if let Some(parent) = shard.parent {
        description["ParentShardId"] = shard_id(parent).into();
    }
    description
}

fn no_shard(stream: &Stream, shard: &str) -> AwsError {
    let message = format!(
        "Shard {shard} in stream {} under account {} does not exist",
        stream.id.name, stream.id.account
    );
    AwsError::new("ResourceNotFoundException", message)
}

impl Position {
    fn resolve(&self, stream: &Stream, shard: u32) -> Result<u64, AwsError> {
        let number = |text: &str| {
            stream.parse_sequence_number(shard, text).ok_or_else(|| {
                invalid_argument(format!(
                    "StartingSequenceNumber {text} used in GetShardIterator on shard {} in stream {} under account {} is invalid.",
                    shard_id(shard), stream.id.name, stream.id.account
                ))
            })
        };
        Ok(match self {
            Self::TrimHorizon => 0,
            Self::Latest => stream.stats().accepted,
            Self::At(text) => number(text)?,
            Self::After(text) => number(text)? + 1,
            Self::AtTimestamp(seconds) => {
                let state = stream.lock();
                let records = &state.shards[shard as usize].records;
                let first = records.iter().find(|index| {
                    stream
                        .record(&state, **index)
                        .is_some_and(|record| record.arrived_at_ms as f64 >= seconds * 1000.0)
                });
                first.copied().unwrap_or(u64::MAX)
            }
        })
    }
}

impl Iterator {
    fn encode(stream: &Stream, shard: u32, index: u64) -> String {
        STANDARD.encode(format!("1|{}|{shard}|{index}|{}", stream.id.arn, now_ms()))
    }

    fn decode(token: &str) -> Option<Self> {
        let text = String::from_utf8(STANDARD.decode(token).ok()?).ok()?;
        let parts: Vec<&str> = text.split('|').collect();
        let ["1", arn, shard, index, issued] = parts[..] else {
            return None;
        };
        Some(Self {
            stream: StreamRef {
                arn: Some(arn.to_owned()),
                name: None,
            },
            shard: shard.parse().ok()?,
            index: index.parse().ok()?,
            issued_at_ms: issued.parse().ok()?,
        })
    }

    fn read(&self, context: &Context<'_>, limit: usize) -> Result<serde_json::Value, AwsError> {
        let stream = context.stream(&self.stream)?;
        context.authorize_key(&stream, "kms:Decrypt")?;
        let now = now_ms();
        if now.saturating_sub(self.issued_at_ms) > ITERATOR_LIFETIME_MS {
            return Err(AwsError::new(
                "ExpiredIteratorException",
                "Iterator expired.",
            ));
        }
        let state = stream.lock();
        let shard = state.shards.get(self.shard as usize);
        let shard = shard.ok_or_else(|| invalid_argument("Invalid ShardIterator."))?;
        let start = shard.records.partition_point(|index| *index < self.index);
        let (records, next, last_arrival) = collect(&stream, &state, shard, start, limit);
        let at_end = start + records.len() == shard.records.len();
        let behind = match (at_end, last_arrival) {
            (false, Some(arrived)) => now - arrived,
            _ => 0,
        };
        let mut response = json!({ "Records": records, "MillisBehindLatest": behind.max(0) });
        // The end of a closed shard has no next iterator.
        if !(at_end && shard.closed_at.is_some()) {
            let next = next.unwrap_or(self.index);
            response["NextShardIterator"] = Self::encode(&stream, self.shard, next).into();
        }
        Ok(response)
    }
}

/// Returns records of a shard from position `start`, the index after the last of them, and the
/// time of its arrival.
fn collect(
    stream: &Stream,
    state: &State,
    shard: &Shard,
    start: usize,
    limit: usize,
) -> (Vec<serde_json::Value>, Option<u64>, Option<i64>) {
    let (mut records, mut next, mut arrived, mut bytes) = (Vec::new(), None, None, 0);
    for index in shard.records.range(start..).take(limit) {
        let Some(record) = stream.record(state, *index) else {
            continue;
        };
        bytes += record.data.len() + record.partition_key.len();
        if bytes > MAX_BYTES && !records.is_empty() {
            break;
        }
        next = Some(index + 1);
        arrived = Some(record.arrived_at_ms);
        let mut entry = json!({
            "SequenceNumber": record.sequence_number,
            "ApproximateArrivalTimestamp": record.arrived_at_ms as f64 / 1000.0,
            "Data": STANDARD.encode(&record.data),
            "PartitionKey": record.partition_key,
        });
        if stream.kms_key_arn.is_some() {
            entry["EncryptionType"] = "KMS".into();
        }
        records.push(entry);
    }
    (records, next, arrived)
}
