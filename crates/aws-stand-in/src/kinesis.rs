//! Kinesis Data Streams: parsing, authorizing and executing requests in JSON 1.1, and writes in
//! CBOR as well.
//!
//! Constraints and messages follow the Kinesis API reference and its service model. Messages that
//! AWS does not publish are paraphrased.

mod admin;
mod put;
mod read;

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::cbor;
use super::control::Operation;
use super::error::{AwsError, Service};
use super::identity::{Caller, Refusal};
use super::policy::AccessRequest;
use super::state::Shared;
use super::stream::{NewRecord, Stream, StreamArn, is_stream_name};

const TARGET_PREFIX: &str = "Kinesis_20131202.";

/// A parsed request.
pub(super) enum Request {
    Put(put::Put),
    Admin(admin::Request),
    Read(read::Request),
}

/// Reference to a stream: by ARN, or by name in the caller's account and region.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamRef {
    arn: Option<String>,
    name: Option<String>,
}

/// The two fields that refer to a stream in most requests.
#[derive(Deserialize, Default)]
#[serde(default)]
struct StreamFields<'a> {
    #[serde(rename = "StreamARN", borrow)]
    arn: Option<Cow<'a, str>>,
    #[serde(rename = "StreamName", borrow)]
    name: Option<Cow<'a, str>>,
}

/// Context of a request: its caller, and the region that it was signed for.
pub(super) struct Context<'a> {
    pub(super) shared: &'a Shared,
    pub(super) caller: &'a Caller,
    pub(super) region: &'a str,
    pub(super) operation: Operation,
}

/// Returns the operation that the headers name, or `None` if they name none of Kinesis.
pub(super) fn operation(headers: &HeaderMap) -> Option<Result<Operation, AwsError>> {
    let target = headers.get("x-amz-target")?.to_str().ok()?;
    let name = target.strip_prefix(TARGET_PREFIX)?;
    let supported = Operation::from_name(name).filter(|operation| !operation.is_sts());
    let unknown = || {
        AwsError::new(
            "UnknownOperationException",
            format!("the operation {name:?} is not supported by the stand-in"),
        )
    };
    Some(supported.ok_or_else(unknown))
}

pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Request, AwsError> {
    match operation {
        Operation::PutRecord | Operation::PutRecords => {
            put::Put::parse(operation, body).map(Request::Put)
        }
        Operation::GetShardIterator | Operation::GetRecords | Operation::ListShards => {
            read::Request::parse(operation, body).map(Request::Read)
        }
        _ => admin::Request::parse(operation, body).map(Request::Admin),
    }
}

/// Like [`parse`], for a body in CBOR.
pub(super) fn parse_cbor(operation: Operation, body: &[u8]) -> Result<Request, AwsError> {
    let refuse = |message: String| AwsError::new("SerializationException", message);
    if !matches!(operation, Operation::PutRecord | Operation::PutRecords) {
        let message = "the stand-in accepts only PutRecord and PutRecords in CBOR: send JSON";
        return Err(refuse(message.to_owned()));
    }
    let json = cbor::to_json(body).map_err(|error| refuse(error.to_string()))?;
    parse(operation, json.as_bytes())
}

impl Request {
    /// Stream as the request names it.
    pub(super) fn target(&self) -> Cow<'_, str> {
        match self {
            Self::Put(put) => put.stream.target(),
            Self::Admin(request) => request.target(),
            Self::Read(request) => request.target(),
        }
    }

    /// Records to write.
    pub(super) fn records(&self) -> &[NewRecord] {
        match self {
            Self::Put(put) => &put.records,
            _ => &[],
        }
    }
}

/// JSON of a response, and for each record of a write whether it was accepted.
pub(super) struct Output {
    pub(super) json: String,
    pub(super) accepted: Vec<bool>,
}

impl From<String> for Output {
    fn from(json: String) -> Self {
        Self {
            json,
            accepted: Vec::new(),
        }
    }
}

pub(super) fn execute(context: &Context<'_>, request: &Request) -> Result<Output, AwsError> {
    match request {
        Request::Put(put) => put.execute(context),
        Request::Admin(request) => request.execute(context).map(Output::from),
        Request::Read(request) => request.execute(context).map(Output::from),
    }
}

impl StreamRef {
    fn target(&self) -> Cow<'_, str> {
        let name = self.arn.as_deref().or(self.name.as_deref());
        Cow::Borrowed(name.unwrap_or_default())
    }
}

impl StreamFields<'_> {
    fn into_ref(self) -> Result<StreamRef, AwsError> {
        let invalid = |field: &str, value: &str, pattern: &str| {
            let constraint = format!("Member must satisfy regular expression pattern: {pattern}");
            AwsError::constraint(Service::Kinesis, field, Some(value), &constraint)
        };
        if let Some(arn) = self
            .arn
            .as_deref()
            .filter(|arn| StreamArn::parse(arn).is_none())
        {
            let pattern = "arn:aws.*:kinesis:.*:\\d{12}:stream/\\S+";
            return Err(invalid("streamARN", arn, pattern));
        }
        if let Some(name) = self.name.as_deref().filter(|name| !is_stream_name(name)) {
            return Err(invalid("streamName", name, "[a-zA-Z0-9_.-]+"));
        }
        if self.arn.is_none() && self.name.is_none() {
            return Err(invalid_argument(
                "Either StreamName or StreamARN must be given.",
            ));
        }
        Ok(StreamRef {
            arn: self.arn.map(Cow::into_owned),
            name: self.name.map(Cow::into_owned),
        })
    }
}

impl Context<'_> {
    /// Returns the full ARN of a stream.
    fn resolve(&self, stream: &StreamRef) -> Result<StreamArn, AwsError> {
        let named = |name| {
            StreamArn::new(
                &self.caller.partition,
                self.region,
                &self.caller.account,
                name,
            )
        };
        match (&stream.arn, &stream.name) {
            (Some(arn), name) => StreamArn::parse(arn)
                .filter(|id| name.as_ref().is_none_or(|name| *name == id.name))
                .ok_or_else(|| invalid_argument("StreamARN and StreamName do not match.")),
            (None, Some(name)) => Ok(named(name)),
            (None, None) => Err(invalid_argument(
                "Either StreamName or StreamARN must be given.",
            )),
        }
    }

    /// Authorizes the operation on a stream, then looks the stream up: a caller without
    /// permission does not learn whether it exists.
    fn stream(&self, stream: &StreamRef) -> Result<Arc<Stream>, AwsError> {
        let id = self.resolve(stream)?;
        self.authorize(&id)?;
        // A regional endpoint has only the streams of its region.
        let found = self
            .shared
            .streams
            .get(&id.arn)
            .filter(|_| id.region == self.region);
        found.ok_or_else(|| not_found(&id))
    }

    fn authorize(&self, id: &StreamArn) -> Result<(), AwsError> {
        let action = self.operation.action();
        if id.account != self.caller.account {
            let why = format!("because no resource-based policy allows the {action} action");
            return Err(self.denied(action, &id.arn, &why));
        }
        let request = AccessRequest {
            action,
            resource: &id.arn,
            keys: &[],
        };
        self.caller.authorize(&request).map_err(|refusal| {
            let why = match refusal {
                Refusal::NoIdentityPolicy => {
                    format!("because no identity-based policy allows the {action} action")
                }
                Refusal::NoSessionPolicy => {
                    format!("because no session policy allows the {action} action")
                }
                Refusal::IdentityPolicyDeny => {
                    "with an explicit deny in an identity-based policy".to_owned()
                }
                Refusal::SessionPolicyDeny => {
                    "with an explicit deny in a session policy".to_owned()
                }
            };
            self.denied(action, &id.arn, &why)
        })
    }

    fn denied(&self, action: &str, resource: &str, why: &str) -> AwsError {
        let arn = &self.caller.arn;
        let message = format!(
            "User: {arn} is not authorized to perform: {action} on resource: {resource} {why}"
        );
        AwsError::new("AccessDeniedException", message)
    }

    /// Authorizes the use of a stream's customer-managed key, with Kinesis' encryption context.
    fn authorize_key(&self, stream: &Stream, action: &str) -> Result<(), AwsError> {
        let Some(key) = &stream.kms_key_arn else {
            return Ok(());
        };
        let via = format!("kinesis.{}.amazonaws.com", self.region);
        let request = AccessRequest {
            action,
            resource: key,
            keys: &[
                ("kms:EncryptionContext:aws:kinesis:arn", &stream.id.arn),
                ("kms:ViaService", &via),
            ],
        };
        self.caller.authorize(&request).map_err(|_| {
            let arn = &self.caller.arn;
            let message =
                format!("User: {arn} is not authorized to perform: {action} on resource: {key}");
            AwsError::new("KMSAccessDeniedException", message)
        })
    }
}

fn deserialize<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, AwsError> {
    serde_json::from_slice(body)
        .map_err(|error| AwsError::new("SerializationException", error.to_string()))
}

fn serialize(output: &impl serde::Serialize) -> Result<String, AwsError> {
    serde_json::to_string(output).map_err(|_| {
        AwsError::new("InternalFailure", "").with_status(StatusCode::INTERNAL_SERVER_ERROR)
    })
}

fn required<T>(value: Option<T>, field: &str) -> Result<T, AwsError> {
    value.ok_or_else(|| {
        AwsError::constraint(Service::Kinesis, field, None, "Member must not be null")
    })
}

fn invalid_argument(message: impl Into<String>) -> AwsError {
    AwsError::new("InvalidArgumentException", message)
}

fn not_found(id: &StreamArn) -> AwsError {
    let message = format!("Stream {} under account {} not found.", id.name, id.account);
    AwsError::new("ResourceNotFoundException", message)
}
