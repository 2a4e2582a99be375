//! One line of Suricata's EVE JSON becomes a [`v1::Event`].
//!
//! The fields of [`v1::IdsDetection`] come from the record's top level and from
//! its `alert` object. Everything else goes into `context_json`, in the line's
//! order and digit for digit: raw text, never through a number type. So does a
//! value that its field cannot hold, under its own name: a port that is a string
//! or negative, a `null`, an empty string where an empty field means "not set".
//! What a field can hold is passed on as it is; the server judges it.
//!
//! Not repeated in the context: `event_type`, and `timestamp`, which becomes
//! `observed_time`. Where a key is repeated, the last value counts.
//!
//! Field names: Suricata's EVE JSON format documentation and `etc/schema.json`.

use serde_json::{error::Category, value::RawValue};
use uuid::Uuid;

use crate::proto::v1;

mod context;
mod object;
mod timestamp;

use context::Context;
use object::Object;

pub use timestamp::TimestampError;

/// Whose events a file holds: EVE does not say.
#[derive(Debug, Clone)]
pub struct Origin {
    organization_id: String,
    network_id: String,
    device_id: String,
}

impl Origin {
    /// The organization, the network and the sensor of every line.
    pub fn new(organization_id: impl Into<String>, network_id: Uuid, device_id: Uuid) -> Self {
        Self {
            organization_id: organization_id.into(),
            network_id: network_id.to_string(),
            device_id: device_id.to_string(),
        }
    }
}

/// What a line holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// An `alert` record.
    Alert(Box<v1::Event>),
    /// A record of another `event_type`, which is named.
    Other(String),
}

/// Why a line is broken.
#[derive(Debug, thiserror::Error)]
pub enum EveError {
    /// The text is not JSON.
    #[error("not valid JSON at column {column}")]
    Syntax {
        /// Bytes from the start of the line, from 1.
        column: usize,
    },
    /// The text ends within a JSON value.
    #[error("the JSON ends early, after {column} bytes; was the line cut?")]
    Truncated {
        /// Bytes of the line.
        column: usize,
    },
    /// JSON, but no object or one with an unusable key.
    #[error("not a JSON object")]
    NotAnObject,
    /// `event_type` is missing or not a string.
    #[error("event_type is missing or not a string; is this EVE JSON?")]
    EventType,
    /// An alert record without an `alert` object.
    #[error("alert is missing or not an object")]
    Alert,
    /// `timestamp` is missing or not a string.
    #[error("timestamp is missing or not a string")]
    TimestampMissing,
    /// `timestamp` is not a time.
    #[error("timestamp {0}")]
    Timestamp(#[from] TimestampError),
}

impl From<serde_json::Error> for EveError {
    fn from(error: serde_json::Error) -> Self {
        let column = error.column();
        match error.classify() {
            Category::Eof => Self::Truncated { column },
            Category::Syntax | Category::Io => Self::Syntax { column },
            Category::Data => Self::NotAnObject,
        }
    }
}

/// Reads one line, without its line end.
///
/// # Errors
///
/// [`EveError`] where the line is not a JSON object, has no `event_type`, or is an
/// alert without a usable `timestamp` or `alert`.
pub fn parse(line: &str, origin: &Origin) -> Result<Line, EveError> {
    let record = Object::parse(line)?;
    let event_type: String = record
        .get("event_type")
        .and_then(read)
        .ok_or(EveError::EventType)?;
    if event_type != "alert" {
        return Ok(Line::Other(event_type));
    }
    let text: String = record
        .get("timestamp")
        .and_then(read)
        .ok_or(EveError::TimestampMissing)?;
    let observed_time = timestamp::parse(&text)?;
    let alert = record
        .get("alert")
        .and_then(|raw| Object::parse(raw.get()).ok())
        .ok_or(EveError::Alert)?;
    Ok(Line::Alert(Box::new(v1::Event {
        organization_id: origin.organization_id.clone(),
        network_id: origin.network_id.clone(),
        device_id: origin.device_id.clone(),
        observed_time: Some(observed_time),
        event_id: None,
        payload: Some(v1::event::Payload::IdsDetection(detection(record, alert))),
    })))
}

fn detection(record: Object<'_>, alert: Object<'_>) -> v1::IdsDetection {
    let mut detection = v1::IdsDetection::default();
    let alert_context = take_alert(&mut detection, alert);
    let mut context = Context::default();
    for (key, raw) in record {
        match &*key {
            "event_type" | "timestamp" => {}
            "alert" => context.push_object(&key, &alert_context),
            _ if take_field(&mut detection, &key, raw) => {}
            _ => context.push(&key, raw.get()),
        }
    }
    detection.context_json = context.finish();
    detection
}

/// Tells whether the detection has this field and now holds the value.
fn take_field(detection: &mut v1::IdsDetection, key: &str, raw: &RawValue) -> bool {
    match key {
        "src_ip" => take_text(&mut detection.src_ip, raw),
        "src_port" => take(&mut detection.src_port, raw),
        "dest_ip" => take_text(&mut detection.dest_ip, raw),
        "dest_port" => take(&mut detection.dest_port, raw),
        "proto" => take_text(&mut detection.proto, raw),
        "app_proto" => take_text(&mut detection.app_proto, raw),
        "flow_id" => take(&mut detection.flow_id, raw),
        "community_id" => take_text(&mut detection.community_id, raw),
        "vlan" => take_vlan(&mut detection.vlan, raw),
        "in_iface" => take_text(&mut detection.in_iface, raw),
        "direction" => take_text(&mut detection.direction, raw),
        _ => false,
    }
}

/// Answers what of `alert` has no field.
fn take_alert(detection: &mut v1::IdsDetection, alert: Object<'_>) -> Context {
    let mut context = Context::default();
    for (key, raw) in alert {
        let held = match &*key {
            "action" => take_text(&mut detection.action, raw),
            "gid" => take(&mut detection.gid, raw),
            "signature_id" => take(&mut detection.signature_id, raw),
            "rev" => take(&mut detection.rev, raw),
            "signature" => take(&mut detection.signature, raw),
            "category" => take(&mut detection.category, raw),
            "severity" => take(&mut detection.severity, raw),
            "metadata" => take_metadata(detection, raw, &mut context),
            _ => false,
        };
        if !held {
            context.push(&key, raw.get());
        }
    }
    context
}

/// Each key of the rule's metadata; those that are no strings go to the context.
fn take_metadata(detection: &mut v1::IdsDetection, raw: &RawValue, context: &mut Context) -> bool {
    let Ok(metadata) = Object::parse(raw.get()) else {
        return false;
    };
    if metadata.is_empty() {
        return false;
    }
    let mut rest = Context::default();
    for (key, raw) in metadata {
        match read_strings(raw) {
            Some(values) => {
                let values = v1::MetadataValues { values };
                detection.metadata.insert(key.into_owned(), values);
            }
            None => rest.push(&key, raw.get()),
        }
    }
    context.push_object("metadata", &rest);
    true
}

fn read_strings(raw: &RawValue) -> Option<Vec<String>> {
    match read::<Vec<&RawValue>>(raw) {
        Some(values) => values.into_iter().map(read_string).collect(),
        None => Some(vec![read_string(raw)?]),
    }
}

/// A string, or a number as its own digits.
fn read_string(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Some(text.to_owned()),
        _ => read(raw),
    }
}

/// An array; older Suricata wrote the only VLAN as a number.
fn take_vlan(field: &mut Vec<u32>, raw: &RawValue) -> bool {
    if let Some(vlan) = read(raw) {
        *field = vlan;
    } else if let Some(vlan) = read(raw) {
        *field = vec![vlan];
    }
    !field.is_empty()
}

/// An empty string would be the same as none, so it counts as not held.
fn take_text(field: &mut String, raw: &RawValue) -> bool {
    if let Some(text) = read(raw) {
        *field = text;
    }
    !field.is_empty()
}

fn take<'a, T: serde::Deserialize<'a>>(field: &mut Option<T>, raw: &'a RawValue) -> bool {
    *field = read(raw);
    field.is_some()
}

fn read<'a, T: serde::Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests;
