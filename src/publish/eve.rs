//! Conversion of Suricata's EVE JSON, line by line, into [`v1::Event`]s.
//!
//! The fields of [`v1::IdsDetection`] are filled from the record's top level and from
//! its `alert` object. All other members go into `context_json`, in the order of the line
//! and as raw text, so that no digit of a number changes. A value that its field
//! cannot hold goes there too, under its own key: a port that is a string or negative,
//! `null`, an empty string where an empty field means "not set". So does a value that
//! the API refuses: an address with a zone or a mask, a port over 65535, a VLAN over 4095,
//! more VLANs than a packet may carry.
//!
//! The context repeats neither `event_type` nor `timestamp`, which becomes
//! `observed_time`. Of a repeated key at the top level or in `alert` the last value counts;
//! the server removes repeated keys below. A value that nests deeper than the API accepts is
//! stored as a string.
//!
//! A line may contain several records, and damage: see the module `recovery`. Bytes that are not UTF-8
//! and escapes of lone surrogates are replaced by U+FFFD.
//!
//! Field names: Suricata's EVE JSON format documentation and `etc/schema.json`.

use std::{borrow::Cow, net::IpAddr};

use serde_json::{error::Category, value::RawValue};
use uuid::Uuid;

use crate::domain::event::{MAX_VLAN_ID, MAX_VLANS};
use siem_client::v1;

mod json;
mod recovery;
mod timestamp;

use json::{Context, Object};
use recovery::{Fragment, Fragments, is_object};

pub use timestamp::TimestampError;

/// Organization, network and sensor of a file's events, which EVE does not name.
#[derive(Debug, Clone)]
pub struct Origin {
    organization_id: String,
    network_id: String,
    device_id: String,
}

impl Origin {
    /// Creates the origin that every event of a file gets.
    pub fn new(organization_id: impl Into<String>, network_id: Uuid, device_id: Uuid) -> Self {
        Self {
            organization_id: organization_id.into(),
            network_id: network_id.to_string(),
            device_id: device_id.to_string(),
        }
    }
}

/// Result of reading one record, or one damaged part, of a line.
#[derive(Debug)]
pub struct Parsed {
    /// The record, or the reason why it cannot be read.
    pub record: Result<Record, EveError>,
    /// Repairs that were needed to read it.
    pub repairs: Vec<Repair>,
}

impl From<EveError> for Parsed {
    fn from(error: EveError) -> Self {
        Self {
            record: Err(error),
            repairs: Vec::new(),
        }
    }
}

/// A repair that was needed to read a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Skipped text before the record, cut to its first 100 bytes.
    Prefix(String),
    /// Number of byte sequences that are not UTF-8 and were replaced by U+FFFD.
    Utf8(usize),
    /// Number of escapes of lone surrogates that were replaced by U+FFFD.
    Surrogates(usize),
}

/// One EVE record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// An `alert` record.
    Alert(Box<v1::Event>),
    /// The `event_type` of any other record.
    Other(String),
}

/// Reason why a line, or a part of it, is broken.
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
    /// JSON, but not an object, or an object with an unusable key.
    #[error("not a JSON object")]
    NotAnObject,
    /// UTF-16 of either byte order.
    #[error(
        "this is UTF-16, as PowerShell's > writes it; EVE JSON is UTF-8: convert the file, \
         for example with iconv -f UTF-16 -t UTF-8"
    )]
    Utf16,
    /// A record with neither an `event_type` that is a string nor an `alert` object.
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

/// Reads a line, given without its line break. It usually contains one record, and none if it
/// consists of white space and NULs.
pub fn records<'a>(line: &'a [u8], origin: &'a Origin) -> Records<'a> {
    Records {
        line,
        origin,
        rest: Rest::Line,
    }
}

/// Iterator over the records and the damaged parts of a line, in order.
#[derive(Debug)]
pub struct Records<'a> {
    line: &'a [u8],
    origin: &'a Origin,
    rest: Rest<'a>,
}

/// The part of a line that has not been read.
#[derive(Debug)]
enum Rest<'a> {
    Line,
    /// The fragments of a line that is not one record, and the error of reading it as one.
    Fragments(Fragments<'a>, Option<EveError>),
    Nothing,
}

impl Iterator for Records<'_> {
    type Item = Parsed;

    fn next(&mut self) -> Option<Parsed> {
        if let Rest::Line = self.rest {
            self.rest = Rest::Nothing;
            if recovery::is_blank(self.line) {
                return None;
            }
            if recovery::is_utf16(self.line) {
                return Some(EveError::Utf16.into());
            }
            match read_object(self.line, None, self.origin) {
                Ok(parsed) => return Some(parsed),
                Err(error) => {
                    self.rest = Rest::Fragments(Fragments::new(self.line), Some(error));
                }
            }
        }
        let Rest::Fragments(fragments, line_error) = &mut self.rest else {
            return None;
        };
        // The error of the whole line describes its first fragment only.
        let line_error = line_error.take();
        Some(match fragments.next()? {
            Fragment::Object { object, prefix } => {
                let prefix = prefix.map(|prefix| &self.line[prefix]);
                read_object(&self.line[object], prefix, self.origin).unwrap_or_else(Parsed::from)
            }
            Fragment::Damaged { error_at, .. } => line_error
                .unwrap_or(match error_at < self.line.len() {
                    true => EveError::Syntax {
                        column: error_at + 1,
                    },
                    false => EveError::Truncated { column: error_at },
                })
                .into(),
        })
    }
}

/// Reads a line that contains exactly one record.
///
/// # Errors
///
/// [`EveError`] if the line is not a JSON object, has neither `event_type` nor `alert`, or
/// is an alert without a valid `timestamp` or `alert`.
pub fn parse(line: &str, origin: &Origin) -> Result<Record, EveError> {
    read_object(line.as_bytes(), None, origin)?.record
}

/// Reads one JSON object. The error is one of JSON syntax; other faults are part of the result.
fn read_object(object: &[u8], prefix: Option<&[u8]>, origin: &Origin) -> Result<Parsed, EveError> {
    let (text, repairs) = recovery::repair(object, prefix);
    let record = read_record(Object::parse(&text)?, origin);
    Ok(Parsed { record, repairs })
}

fn read_record(record: Object<'_>, origin: &Origin) -> Result<Record, EveError> {
    let event_type: Option<String> = record.get("event_type").and_then(read);
    match event_type {
        Some(event_type) if event_type != "alert" => return Ok(Record::Other(event_type)),
        // Old versions of Suricata write no event_type.
        None if !record.get("alert").is_some_and(is_object) => return Err(EveError::EventType),
        _ => {}
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
    Ok(Record::Alert(Box::new(v1::Event {
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
    let alert_context = set_alert(&mut detection, alert);
    let mut context = Context::default();
    for (key, raw) in record {
        match &*key {
            "timestamp" => {}
            "event_type" if read::<Cow<'_, str>>(raw).is_some() => {}
            "alert" => context.push_object(&key, &alert_context),
            _ if set_field(&mut detection, &key, raw) => {}
            _ => context.push_value(&key, raw.get()),
        }
    }
    detection.context_json = context.finish();
    detection
}

/// Sets the field of this name; false if there is none or it cannot hold the value.
fn set_field(detection: &mut v1::IdsDetection, key: &str, raw: &RawValue) -> bool {
    match key {
        "src_ip" => set_ip(&mut detection.src_ip, raw),
        "src_port" => set_port(&mut detection.src_port, raw),
        "dest_ip" => set_ip(&mut detection.dest_ip, raw),
        "dest_port" => set_port(&mut detection.dest_port, raw),
        "proto" => set_text(&mut detection.proto, raw),
        "app_proto" => set_text(&mut detection.app_proto, raw),
        "flow_id" => set(&mut detection.flow_id, raw),
        "community_id" => set_text(&mut detection.community_id, raw),
        "vlan" => set_vlan(&mut detection.vlan, raw),
        "in_iface" => set_text(&mut detection.in_iface, raw),
        "direction" => set_text(&mut detection.direction, raw),
        _ => false,
    }
}

/// Sets the fields of the `alert` object, and returns the members that have none.
fn set_alert(detection: &mut v1::IdsDetection, alert: Object<'_>) -> Context {
    let mut context = Context::default();
    for (key, raw) in alert {
        let is_set = match &*key {
            "action" => set_text(&mut detection.action, raw),
            "gid" => set(&mut detection.gid, raw),
            "signature_id" => set(&mut detection.signature_id, raw),
            "rev" => set(&mut detection.rev, raw),
            "signature" => set(&mut detection.signature, raw),
            "category" => set(&mut detection.category, raw),
            "severity" => set(&mut detection.severity, raw),
            "metadata" => set_metadata(detection, raw, &mut context),
            _ => false,
        };
        if !is_set {
            context.push_value(&key, raw.get());
        }
    }
    context
}

/// Sets the rule's metadata; values that are not strings go into the context.
fn set_metadata(detection: &mut v1::IdsDetection, raw: &RawValue, context: &mut Context) -> bool {
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
            None => rest.push_value(&key, raw.get()),
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

/// Reads a string, or a number as its digits.
fn read_string(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Some(text.to_owned()),
        _ => read(raw),
    }
}

/// Sets an IP address, which the API accepts without a zone or a mask only.
fn set_ip(field: &mut String, raw: &RawValue) -> bool {
    let text: Option<String> = read(raw);
    *field = text
        .filter(|text| text.parse::<IpAddr>().is_ok())
        .unwrap_or_default();
    !field.is_empty()
}

fn set_port(field: &mut Option<u32>, raw: &RawValue) -> bool {
    *field = read::<u16>(raw).map(u32::from);
    field.is_some()
}

/// Sets the VLANs: an array, or in older versions of Suricata one number.
fn set_vlan(field: &mut Vec<u32>, raw: &RawValue) -> bool {
    let ids: Option<Vec<u32>> = read(raw).or_else(|| read(raw).map(|id| vec![id]));
    let fits = |ids: &Vec<u32>| ids.len() <= MAX_VLANS && ids.iter().all(|id| *id <= MAX_VLAN_ID);
    *field = ids.filter(fits).unwrap_or_default();
    !field.is_empty()
}

/// Sets a string; an empty one is the same as an unset field, so the value is kept elsewhere.
fn set_text(field: &mut String, raw: &RawValue) -> bool {
    if let Some(text) = read(raw) {
        *field = text;
    }
    !field.is_empty()
}

fn set<'a, T: serde::Deserialize<'a>>(field: &mut Option<T>, raw: &'a RawValue) -> bool {
    *field = read(raw);
    field.is_some()
}

fn read<'a, T: serde::Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests;
