//! CreateStream, DeleteStream, DescribeStreamSummary, ListStreams and SplitShard.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::json;

use super::{Context, StreamFields, StreamRef, deserialize, invalid_argument, not_found, required};
use crate::control::{Operation, StreamSpec};
use crate::error::AwsError;
use crate::state::now_ms;
use crate::stream::parse_shard_id;

pub(crate) enum Request {
    Create {
        stream: StreamRef,
        shards: u32,
    },
    Delete {
        stream: StreamRef,
    },
    Describe {
        stream: StreamRef,
    },
    List,
    Split {
        stream: StreamRef,
        shard: String,
        at: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Input<'a> {
    #[serde(flatten, borrow)]
    stream: StreamFields<'a>,
    shard_count: Option<u32>,
    shard_to_split: Option<String>,
    new_starting_hash_key: Option<String>,
}

impl Request {
    pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Self, AwsError> {
        let input: Input<'_> = deserialize(body)?;
        if operation == Operation::ListStreams {
            return Ok(Self::List);
        }
        let stream = input.stream.into_ref()?;
        Ok(match operation {
            Operation::CreateStream => Self::Create {
                stream,
                // An on-demand stream, which names no number, starts with four shards.
                shards: input.shard_count.unwrap_or(4),
            },
            Operation::DeleteStream => Self::Delete { stream },
            Operation::SplitShard => Self::Split {
                stream,
                shard: required(input.shard_to_split, "shardToSplit")?,
                at: required(input.new_starting_hash_key, "newStartingHashKey")?,
            },
            _ => Self::Describe { stream },
        })
    }

    pub(super) fn target(&self) -> Cow<'_, str> {
        match self {
            Self::Create { stream, .. }
            | Self::Delete { stream }
            | Self::Describe { stream }
            | Self::Split { stream, .. } => stream.target(),
            Self::List => Cow::Borrowed(""),
        }
    }

    pub(super) fn execute(&self, context: &Context<'_>) -> Result<String, AwsError> {
        match self {
            Self::Create { stream, shards } => create(context, stream, *shards),
            Self::Delete { stream } => {
                let stream = context.stream(stream)?;
                context.shared.streams.delete(&stream.id.arn);
                Ok(String::new())
            }
            Self::Describe { stream } => describe(context, stream),
            Self::List => list(context),
            Self::Split { stream, shard, at } => {
                let stream = context.stream(stream)?;
                let done = parse_shard_id(shard)
                    .zip(at.parse().ok())
                    .is_some_and(|(shard, at)| stream.split(shard, at));
                if done {
                    return Ok(String::new());
                }
                Err(invalid_argument(format!(
                    "NewStartingHashKey {at} is not strictly inside the range of an open shard {shard}."
                )))
            }
        }
    }
}

fn create(context: &Context<'_>, stream: &StreamRef, shards: u32) -> Result<String, AwsError> {
    let id = context.resolve(stream)?;
    context.authorize(&id)?;
    if id.region != context.region {
        return Err(not_found(&id));
    }
    let spec = StreamSpec::new(&id.arn, shards);
    spec.validate()
        .map_err(|error| invalid_argument(error.to_string()))?;
    let (name, account) = (id.name.clone(), id.account.clone());
    if context.shared.streams.create(id, &spec, now_ms()) {
        return Ok(String::new());
    }
    let message = format!("Stream {name} under account {account} already exists.");
    Err(AwsError::new("ResourceInUseException", message))
}

fn describe(context: &Context<'_>, stream: &StreamRef) -> Result<String, AwsError> {
    let stream = context.stream(stream)?;
    let mut summary = json!({
        "StreamName": stream.id.name,
        "StreamARN": stream.id.arn,
        "StreamStatus": "ACTIVE",
        "StreamModeDetails": { "StreamMode": "PROVISIONED" },
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": stream.created_at_ms as f64 / 1000.0,
        "EnhancedMonitoring": [{ "ShardLevelMetrics": [] }],
        "EncryptionType": "NONE",
        "OpenShardCount": stream.stats().open_shards,
        "ConsumerCount": 0,
        "MaxRecordSizeInKiB": 1024,
    });
    if let Some(key) = &stream.kms_key_arn {
        summary["EncryptionType"] = "KMS".into();
        summary["KeyId"] = key.as_str().into();
    }
    Ok(json!({ "StreamDescriptionSummary": summary }).to_string())
}

fn list(context: &Context<'_>) -> Result<String, AwsError> {
    // ListStreams requires permission on all streams of the account and region.
    let all = StreamRef {
        arn: None,
        name: Some("*".to_owned()),
    };
    context.authorize(&context.resolve(&all)?)?;
    let names: Vec<String> = context
        .shared
        .streams
        .list()
        .iter()
        .filter(|s| s.id.account == context.caller.account && s.id.region == context.region)
        .map(|s| s.id.name.clone())
        .collect();
    Ok(json!({ "StreamNames": names, "HasMoreStreams": false }).to_string())
}
