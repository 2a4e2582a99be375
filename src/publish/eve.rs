//! One line of Suricata's EVE JSON becomes a [`v1::Event`].
//!
//! The fields of [`v1::IdsDetection`] come from the record's top level and from
//! its `alert` object. Everything else goes into `context_json`, in the line's
//! order and digit for digit: raw text, never through a number type. So does a
//! value that its field cannot hold, under its own name: a port that is a string
//! or negative, a `null`, an empty string where an empty field means "not set"; and so does one
//! that the API refuses: an address with a zone or a mask, a port over 65535, a VLAN over 4095,
//! more VLANs than a packet may carry.
//!
//! Not repeated in the context: `event_type`, and `timestamp`, which becomes
//! `observed_time`. Where a key is repeated, the last value counts; the server sees to the
//! levels below. A value of the context that nests deeper than the API takes becomes a string.
//!
//! A line may hold several records, and damage: see `pieces`. Bytes that are not UTF-8, and
//! escapes of lone surrogates, are replaced by U+FFFD.
//!
//! Field names: Suricata's EVE JSON format documentation and `etc/schema.json`.

use std::{borrow::Cow, net::IpAddr};

use serde_json::{error::Category, value::RawValue};
use uuid::Uuid;

use crate::{
    domain::event::{MAX_VLAN_ID, MAX_VLANS},
    proto::v1,
};

mod context;
mod object;
mod pieces;
mod text;
mod timestamp;

use context::Context;
use object::Object;
use pieces::{Piece, Pieces, is_object};

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

/// A record of a line, or a damaged part of it.
#[derive(Debug)]
pub struct Record {
    /// The record, or what is wrong.
    pub line: Result<Line, EveError>,
    /// Repairs that were needed to read it.
    pub repairs: Vec<Repair>,
}

/// A repair that was needed to read a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Text before the record was passed over.
    Prefix(String),
    /// So many sequences of bytes that are not UTF-8 were replaced by U+FFFD.
    Utf8(usize),
    /// So many escapes of lone surrogates were replaced by U+FFFD.
    Surrogates(usize),
}

/// A record's kind.
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
    /// UTF-16, of whatever byte order.
    #[error(
        "this is UTF-16, as PowerShell's > writes it; EVE JSON is UTF-8: convert the file, \
         for example with iconv -f UTF-16 -t UTF-8"
    )]
    Utf16,
    /// Neither an `event_type` that is a string nor an `alert` object.
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

/// Reads a line, without its line end: usually one record. None comes of a line of white space
/// and NULs.
pub fn records<'a>(line: &'a [u8], origin: &'a Origin) -> Records<'a> {
    Records {
        line,
        origin,
        rest: Rest::Whole,
    }
}

/// Yields the records of a line and its damaged parts, in order.
#[derive(Debug)]
pub struct Records<'a> {
    line: &'a [u8],
    origin: &'a Origin,
    rest: Rest<'a>,
}

/// The part of a line that is still to be read.
#[derive(Debug)]
enum Rest<'a> {
    Whole,
    /// Its parts, and what is wrong with the whole.
    Pieces(Pieces<'a>, Option<EveError>),
    Nothing,
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if let Rest::Whole = self.rest {
            self.rest = Rest::Nothing;
            if text::is_blank(self.line) {
                return None;
            }
            if text::is_utf16(self.line) {
                return Some(Record {
                    line: Err(EveError::Utf16),
                    repairs: Vec::new(),
                });
            }
            match record(self.line, None, self.origin) {
                Ok(record) => return Some(record),
                Err(error) => {
                    self.rest = Rest::Pieces(Pieces::new(self.line), Some(error.into()));
                }
            }
        }
        let Rest::Pieces(pieces, error) = &mut self.rest else {
            return None;
        };
        // Only damage that comes first is what is wrong with the whole.
        let error = error.take();
        Some(match pieces.next()? {
            Piece::Object { object, prefix } => {
                let prefix = prefix.map(|prefix| &self.line[prefix]);
                record(&self.line[object], prefix, self.origin).unwrap_or_else(|error| Record {
                    line: Err(error.into()),
                    repairs: Vec::new(),
                })
            }
            Piece::Damaged(_, at) => Record {
                line: Err(error.unwrap_or(match at < self.line.len() {
                    true => EveError::Syntax { column: at + 1 },
                    false => EveError::Truncated { column: at },
                })),
                repairs: Vec::new(),
            },
        })
    }
}

/// Reads a line that is one record.
///
/// # Errors
///
/// [`EveError`] where the line is not a JSON object, has neither `event_type` nor `alert`, or
/// is an alert without a usable `timestamp` or `alert`.
pub fn parse(line: &str, origin: &Origin) -> Result<Line, EveError> {
    record(line.as_bytes(), None, origin)?.line
}

/// Reads one JSON object.
fn record(
    object: &[u8],
    prefix: Option<&[u8]>,
    origin: &Origin,
) -> Result<Record, serde_json::Error> {
    let (text, repairs) = text::mend(object, prefix);
    let line = line(Object::parse(&text)?, origin);
    Ok(Record { line, repairs })
}

fn line(record: Object<'_>, origin: &Origin) -> Result<Line, EveError> {
    let event_type: Option<String> = record.get("event_type").and_then(read);
    match event_type {
        Some(event_type) if event_type != "alert" => return Ok(Line::Other(event_type)),
        // Old Suricata writes none.
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
            "timestamp" => {}
            "event_type" if read::<Cow<'_, str>>(raw).is_some() => {}
            "alert" => context.push_object(&key, &alert_context),
            _ if take_field(&mut detection, &key, raw) => {}
            _ => context.push_value(&key, raw.get()),
        }
    }
    detection.context_json = context.finish();
    detection
}

/// Tells whether the detection has this field and now holds the value.
fn take_field(detection: &mut v1::IdsDetection, key: &str, raw: &RawValue) -> bool {
    match key {
        "src_ip" => take_ip(&mut detection.src_ip, raw),
        "src_port" => take_port(&mut detection.src_port, raw),
        "dest_ip" => take_ip(&mut detection.dest_ip, raw),
        "dest_port" => take_port(&mut detection.dest_port, raw),
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
            context.push_value(&key, raw.get());
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

/// A string, or a number as its own digits.
fn read_string(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Some(text.to_owned()),
        _ => read(raw),
    }
}

/// An address without a zone or a mask.
fn take_ip(field: &mut String, raw: &RawValue) -> bool {
    let text: Option<String> = read(raw);
    *field = text
        .filter(|text| text.parse::<IpAddr>().is_ok())
        .unwrap_or_default();
    !field.is_empty()
}

fn take_port(field: &mut Option<u32>, raw: &RawValue) -> bool {
    *field = read::<u16>(raw).map(u32::from);
    field.is_some()
}

/// An array; older Suricata wrote the only VLAN as a number.
fn take_vlan(field: &mut Vec<u32>, raw: &RawValue) -> bool {
    let ids: Option<Vec<u32>> = read(raw).or_else(|| read(raw).map(|id| vec![id]));
    let fits = |ids: &Vec<u32>| ids.len() <= MAX_VLANS && ids.iter().all(|id| *id <= MAX_VLAN_ID);
    *field = ids.filter(fits).unwrap_or_default();
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
