//! Reads a `siem.v1.Event` from its wire bytes without building the generated
//! structs: every text stays a slice of the request.
//!
//! What it takes, and how it reads that, is what prost does with the generated
//! message; the tests hold the two side by side.

mod reader;

use reader::{Problem, Reader, WireType};

use crate::domain::event::{
    Detection, Event, Metadata, Payload, Rejection, RejectionReason, Timestamp,
};

/// Messages and groups that may stand in one another, as prost has it.
const RECURSION_LIMIT: u32 = 100;

/// The bytes are not a `siem.v1.Event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}is not protobuf of siem.v1.Event: {problem}", Field(.field))]
pub struct DecodeError {
    field: &'static str,
    problem: Problem,
}

struct Field<'a>(&'a str);

impl std::fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => Ok(()),
            field => write!(f, "{field} "),
        }
    }
}

impl DecodeError {
    /// The path of the field at which reading failed; empty where it was between
    /// fields.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl From<DecodeError> for Rejection {
    fn from(error: DecodeError) -> Self {
        Self::new(
            RejectionReason::MalformedEvent,
            error.field,
            format!(
                "is not protobuf of siem.v1.Event: {}; encode it with the message's own code",
                error.problem
            ),
        )
    }
}

/// Reads one event.
///
/// # Errors
///
/// Where prost would fail: truncation, a wrong wire type, text that is not UTF-8,
/// too deep groups.
pub fn decode_event(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let mut event = Event::default();
    let mut reader = Reader::new(bytes, RECURSION_LIMIT);
    while !reader.is_empty() {
        let (tag, wire_type) = reader.key().map_err(|problem| at("", problem))?;
        match (tag, &mut event.payload) {
            (6, Some(Payload::Detection(detection))) => {
                merge_detection(detection, wire_type, &mut reader)?;
            }
            (6, payload @ None) => {
                let mut detection = Detection::default();
                merge_detection(&mut detection, wire_type, &mut reader)?;
                *payload = Some(Payload::Detection(detection));
            }
            _ => merge_event_field(&mut event, tag, wire_type, &mut reader)
                .map_err(|problem| at(event_field(tag), problem))?,
        }
    }
    if let Some(Payload::Detection(detection)) = &mut event.payload {
        detection.metadata.sort();
    }
    Ok(event)
}

fn merge_event_field<'a>(
    event: &mut Event<'a>,
    tag: u32,
    wire_type: WireType,
    reader: &mut Reader<'a>,
) -> Result<(), Problem> {
    match tag {
        1 => event.organization_id = reader.text(wire_type)?,
        2 => event.network_id = reader.text(wire_type)?,
        3 => event.device_id = reader.text(wire_type)?,
        4 => {
            let time = event.observed_time.get_or_insert_default();
            merge_timestamp(time, &mut reader.message(wire_type)?)?;
        }
        5 => event.event_id = Some(reader.text(wire_type)?),
        _ => reader.skip(tag, wire_type)?,
    }
    Ok(())
}

fn merge_timestamp(time: &mut Timestamp, reader: &mut Reader<'_>) -> Result<(), Problem> {
    while !reader.is_empty() {
        let (tag, wire_type) = reader.key()?;
        match tag {
            // Two's complement, and the low 32 bits of an int32: as protobuf has it.
            1 => time.seconds = reader.number(wire_type)? as i64,
            2 => time.nanos = reader.number(wire_type)? as i32,
            _ => reader.skip(tag, wire_type)?,
        }
    }
    Ok(())
}

fn merge_detection<'a>(
    detection: &mut Detection<'a>,
    wire_type: WireType,
    reader: &mut Reader<'a>,
) -> Result<(), DecodeError> {
    let whole = |problem| at("ids_detection", problem);
    let mut reader = reader.message(wire_type).map_err(whole)?;
    while !reader.is_empty() {
        let (tag, wire_type) = reader.key().map_err(whole)?;
        merge_detection_field(detection, tag, wire_type, &mut reader)
            .map_err(|problem| at(detection_field(tag), problem))?;
    }
    Ok(())
}

fn merge_detection_field<'a>(
    detection: &mut Detection<'a>,
    tag: u32,
    wire_type: WireType,
    reader: &mut Reader<'a>,
) -> Result<(), Problem> {
    match tag {
        1 => detection.src_ip = reader.text(wire_type)?,
        2 => detection.src_port = Some(reader.uint32(wire_type)?),
        3 => detection.dest_ip = reader.text(wire_type)?,
        4 => detection.dest_port = Some(reader.uint32(wire_type)?),
        5 => detection.proto = reader.text(wire_type)?,
        6 => detection.app_proto = reader.text(wire_type)?,
        7 => detection.flow_id = Some(reader.number(wire_type)?),
        8 => detection.community_id = reader.text(wire_type)?,
        9 => reader.uint32s(wire_type, |id| detection.vlan.push(id))?,
        10 => detection.in_iface = reader.text(wire_type)?,
        11 => detection.direction = reader.text(wire_type)?,
        12 => detection.action = reader.text(wire_type)?,
        13 => detection.gid = Some(reader.uint32(wire_type)?),
        14 => detection.signature_id = Some(reader.uint32(wire_type)?),
        15 => detection.rev = Some(reader.uint32(wire_type)?),
        16 => detection.signature = Some(reader.text(wire_type)?),
        17 => detection.category = Some(reader.text(wire_type)?),
        18 => detection.severity = Some(reader.uint32(wire_type)?),
        19 => merge_metadata(&mut detection.metadata, &mut reader.message(wire_type)?)?,
        20 => detection.context_json = reader.text(wire_type)?,
        _ => reader.skip(tag, wire_type)?,
    }
    Ok(())
}

/// One entry of the map: its key and value may come in any order, or not at all.
fn merge_metadata<'a>(metadata: &mut Metadata<'a>, reader: &mut Reader<'a>) -> Result<(), Problem> {
    let mut key = "";
    while !reader.is_empty() {
        match reader.key()? {
            (1, wire_type) => key = reader.text(wire_type)?,
            (2, wire_type) => merge_values(metadata, &mut reader.message(wire_type)?)?,
            (tag, wire_type) => reader.skip(tag, wire_type)?,
        }
    }
    metadata.end_entry(key);
    Ok(())
}

fn merge_values<'a>(metadata: &mut Metadata<'a>, reader: &mut Reader<'a>) -> Result<(), Problem> {
    while !reader.is_empty() {
        match reader.key()? {
            (1, wire_type) => metadata.push_value(reader.text(wire_type)?),
            (tag, wire_type) => reader.skip(tag, wire_type)?,
        }
    }
    Ok(())
}

#[cold]
fn at(field: &'static str, problem: Problem) -> DecodeError {
    DecodeError { field, problem }
}

fn event_field(tag: u32) -> &'static str {
    match tag {
        1 => "organization_id",
        2 => "network_id",
        3 => "device_id",
        4 => "observed_time",
        5 => "event_id",
        _ => "",
    }
}

fn detection_field(tag: u32) -> &'static str {
    match tag {
        1 => "ids_detection.src_ip",
        2 => "ids_detection.src_port",
        3 => "ids_detection.dest_ip",
        4 => "ids_detection.dest_port",
        5 => "ids_detection.proto",
        6 => "ids_detection.app_proto",
        7 => "ids_detection.flow_id",
        8 => "ids_detection.community_id",
        9 => "ids_detection.vlan",
        10 => "ids_detection.in_iface",
        11 => "ids_detection.direction",
        12 => "ids_detection.action",
        13 => "ids_detection.gid",
        14 => "ids_detection.signature_id",
        15 => "ids_detection.rev",
        16 => "ids_detection.signature",
        17 => "ids_detection.category",
        18 => "ids_detection.severity",
        19 => "ids_detection.metadata",
        20 => "ids_detection.context_json",
        _ => "ids_detection",
    }
}

#[cfg(test)]
mod tests;
