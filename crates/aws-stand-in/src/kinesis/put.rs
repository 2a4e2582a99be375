//! PutRecord and PutRecords.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use super::{
    Context, Output, StreamFields, StreamRef, deserialize, invalid_argument, required, serialize,
};
use crate::control::Operation;
use crate::error::{AwsError, Service};
use crate::state::now_ms;
use crate::stream::{NewRecord, PutOutcome, Stream, shard_id};

/// Limit of the records of a PutRecords.
const MAX_RECORDS: usize = 500;
/// Limit of the bytes of data and keys of a PutRecords.
const MAX_REQUEST_BYTES: usize = 10 * 1024 * 1024;
/// Limit of the bytes of data and key of a record: the default of a stream.
const MAX_RECORD_BYTES: usize = 1024 * 1024;
/// Limit of the characters of a partition key.
const MAX_KEY_CHARS: usize = 256;

/// A PutRecords, or a PutRecord, which is treated as a PutRecords of one record.
pub(crate) struct Put {
    pub(super) stream: StreamRef,
    pub(super) records: Vec<NewRecord>,
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PutRecordsInput<'a> {
    #[serde(borrow)]
    records: Option<Vec<Entry<'a>>>,
    #[serde(flatten, borrow)]
    stream: StreamFields<'a>,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow, default)]
    data: Option<Text<'a>>,
    #[serde(borrow, default)]
    partition_key: Option<Text<'a>>,
    #[serde(borrow, default)]
    explicit_hash_key: Option<Text<'a>>,
}

/// A string that is borrowed if it has no escapes. A bare `Cow` in an `Option` would be copied.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PutRecordsOutput<'a> {
    failed_record_count: usize,
    records: Vec<ResultEntry<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_type: Option<&'static str>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
struct ResultEntry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence_number: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_type: Option<&'static str>,
}

impl Put {
    pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Self, AwsError> {
        let (entries, stream, dry_run) = if operation == Operation::PutRecord {
            let entry: Entry<'_> = deserialize(body)?;
            let rest: PutRecordsInput<'_> = deserialize(body)?;
            (vec![entry], rest.stream, rest.dry_run)
        } else {
            let input: PutRecordsInput<'_> = deserialize(body)?;
            (
                required(input.records, "records")?,
                input.stream,
                input.dry_run,
            )
        };
        let limit = match entries.len() {
            0 => Some("greater than or equal to 1"),
            n if n > MAX_RECORDS => Some("less than or equal to 500"),
            _ => None,
        };
        if let Some(limit) = limit {
            let constraint = format!("Member must have length {limit}");
            return Err(AwsError::constraint(
                Service::Kinesis,
                "records",
                Some("[...]"),
                &constraint,
            ));
        }
        Ok(Self {
            stream: stream.into_ref()?,
            records: decode(&entries)?,
            dry_run: dry_run.unwrap_or(false),
        })
    }

    pub(super) fn execute(&self, context: &Context<'_>) -> Result<Output, AwsError> {
        let stream = context.stream(&self.stream)?;
        context.authorize_key(&stream, "kms:GenerateDataKey")?;
        self.check_sizes()?;
        if self.dry_run {
            let message = "Request would have succeeded, but the DryRun parameter was specified.";
            return Err(AwsError::new("DryRunOperationException", message));
        }
        let operation = context.operation;
        let target = self.stream.target();
        let failures = context
            .shared
            .faults
            .fail_records(operation, &target, self.records.len());
        let data = self.records.iter().map(|record| &*record.data);
        let refused = context
            .shared
            .faults
            .refuse_records(operation, &target, data)?;
        let mut failures = failures.into_iter();
        let mut refused = refused.into_iter();
        let enforce_limits = context.shared.settings().enforce_shard_limits;
        let outcomes =
            context
                .shared
                .streams
                .put(&stream, &self.records, enforce_limits, now_ms(), || {
                    let (refused, failure) = (refused.next(), failures.next());
                    refused.flatten().or(failure.flatten())
                });
        if operation == Operation::PutRecord {
            single(&stream, &outcomes)
        } else {
            Ok(Output {
                json: batch(&stream, &outcomes)?,
                accepted: outcomes.iter().map(is_stored).collect(),
            })
        }
    }

    fn check_sizes(&self) -> Result<(), AwsError> {
        let mut total = 0;
        for record in &self.records {
            let size = record.size();
            if size > MAX_RECORD_BYTES {
                return Err(invalid_argument(format!(
                    "Record size of {size} bytes (data and partition key) exceeds the stream's maximum record size of {MAX_RECORD_BYTES} bytes."
                )));
            }
            total += size;
        }
        if total > MAX_REQUEST_BYTES {
            return Err(invalid_argument(format!(
                "Records size of {total} bytes exceeds the limit of {MAX_REQUEST_BYTES} bytes a request."
            )));
        }
        Ok(())
    }
}

/// Decodes the data of all records into one shared buffer.
fn decode(entries: &[Entry<'_>]) -> Result<Vec<NewRecord>, AwsError> {
    let mut buffer = Vec::new();
    let mut ends = Vec::with_capacity(entries.len());
    for entry in entries {
        let data = required(entry.data.as_ref(), "data")?;
        STANDARD
            .decode_vec(data.0.as_bytes(), &mut buffer)
            .map_err(|error| AwsError::new("SerializationException", format!("Data: {error}")))?;
        ends.push(buffer.len());
    }
    let buffer = Bytes::from(buffer);
    let mut start = 0;
    let mut records: Vec<NewRecord> = Vec::with_capacity(entries.len());
    for (entry, end) in entries.iter().zip(ends) {
        let key = &required(entry.partition_key.as_ref(), "partitionKey")?.0;
        let data = buffer.slice(start..end);
        start = end;
        let explicit = entry.explicit_hash_key.as_ref();
        let hash_key = match (explicit, records.last()) {
            (Some(explicit), _) => explicit_hash_key(&explicit.0)?,
            // Consecutive records often have the same key: reuse its hash.
            (None, Some(last))
                if *last.partition_key == **key
                    && entries[records.len() - 1].explicit_hash_key.is_none() =>
            {
                last.hash_key
            }
            (None, _) => {
                check_key(key)?;
                u128::from_be_bytes(Md5::digest(key.as_bytes()).into())
            }
        };
        let partition_key = match records.last() {
            Some(last) if *last.partition_key == **key => Arc::clone(&last.partition_key),
            _ => Arc::from(&**key),
        };
        records.push(NewRecord {
            partition_key,
            hash_key,
            data,
        });
    }
    Ok(records)
}

fn check_key(key: &str) -> Result<(), AwsError> {
    let limit = match key.chars().count() {
        0 => "greater than or equal to 1",
        n if n > MAX_KEY_CHARS => "less than or equal to 256",
        _ => return Ok(()),
    };
    let constraint = format!("Member must have length {limit}");
    Err(AwsError::constraint(
        Service::Kinesis,
        "partitionKey",
        Some(key),
        &constraint,
    ))
}

fn explicit_hash_key(text: &str) -> Result<u128, AwsError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        invalid_argument(format!(
            "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was {text}"
        ))
    })
}

fn batch(stream: &Stream, outcomes: &[PutOutcome]) -> Result<String, AwsError> {
    let records: Vec<ResultEntry<'_>> = outcomes.iter().map(|o| entry(stream, o)).collect();
    serialize(&PutRecordsOutput {
        failed_record_count: outcomes.iter().filter(|o| !is_stored(o)).count(),
        records,
        encryption_type: encryption_type(stream),
    })
}

/// Response of PutRecord: failure of the record is an error of the call.
fn single(stream: &Stream, outcomes: &[PutOutcome]) -> Result<Output, AwsError> {
    let Some(outcome) = outcomes.first() else {
        return Err(invalid_argument("no record"));
    };
    match outcome {
        PutOutcome::Stored { .. } => {
            let mut entry = entry(stream, outcome);
            entry.encryption_type = encryption_type(stream);
            Ok(Output {
                json: serialize(&entry)?,
                accepted: vec![true],
            })
        }
        PutOutcome::Throttled { shard } => Err(AwsError::new(
            "ProvisionedThroughputExceededException",
            throttled(stream, *shard),
        )),
        PutOutcome::Failed(code) => {
            let error = AwsError {
                code: code.clone().into(),
                ..AwsError::new("", failed(stream, code))
            };
            Err(if code.starts_with("InternalFailure") {
                error.with_status(http::StatusCode::INTERNAL_SERVER_ERROR)
            } else {
                error
            })
        }
    }
}

fn entry<'a>(stream: &Stream, outcome: &'a PutOutcome) -> ResultEntry<'a> {
    match outcome {
        PutOutcome::Stored {
            shard,
            sequence_number,
        } => ResultEntry {
            sequence_number: Some(sequence_number),
            shard_id: Some(shard_id(*shard)),
            ..ResultEntry::default()
        },
        PutOutcome::Throttled { shard } => ResultEntry {
            error_code: Some("ProvisionedThroughputExceededException"),
            error_message: Some(throttled(stream, *shard)),
            ..ResultEntry::default()
        },
        PutOutcome::Failed(code) => ResultEntry {
            error_code: Some(code),
            error_message: Some(failed(stream, code)),
            ..ResultEntry::default()
        },
    }
}

fn is_stored(outcome: &PutOutcome) -> bool {
    matches!(outcome, PutOutcome::Stored { .. })
}

fn encryption_type(stream: &Stream) -> Option<&'static str> {
    stream.kms_key_arn.as_ref().map(|_| "KMS")
}

fn throttled(stream: &Stream, shard: u32) -> String {
    format!(
        "Rate exceeded for shard {} in stream {} under account {}.",
        shard_id(shard),
        stream.id.name,
        stream.id.account
    )
}

fn failed(stream: &Stream, code: &str) -> String {
    if code == "ProvisionedThroughputExceededException" {
        throttled(stream, 0)
    } else {
        "Internal Service Failure".to_owned()
    }
}
