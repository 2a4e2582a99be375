//! Zero-copy decoder of `siem.v1.Event`: strings stay slices of the request, and the
//! generated structs are never built.
//!
//! It accepts, rejects and merges exactly as prost does with the generated message; the
//! tests compare the two. The wire format is that of
//! <https://protobuf.dev/programming-guides/encoding/>.

use crate::domain::event::{
    Detection, Event, Metadata, Payload, Rejection, RejectionReason, Timestamp,
};

/// Depth of nested messages and groups; prost's limit.
const RECURSION_LIMIT: u32 = 100;

/// Error for bytes that are not a `siem.v1.Event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}is not protobuf of siem.v1.Event: {error}", FieldPrefix(.field))]
pub struct DecodeError {
    field: &'static str,
    error: WireError,
}

struct FieldPrefix<'a>(&'a str);

impl std::fmt::Display for FieldPrefix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => Ok(()),
            field => write!(f, "{field} "),
        }
    }
}

impl DecodeError {
    /// Path of the field at which decoding failed; empty if it failed between fields.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl From<DecodeError> for Rejection {
    fn from(DecodeError { field, error }: DecodeError) -> Self {
        Self::new(
            RejectionReason::MalformedEvent,
            field,
            format!(
                "is not protobuf of siem.v1.Event: {error}; encode it with code generated from the proto file"
            ),
        )
    }
}

/// Decodes one event.
///
/// # Errors
///
/// Fails where prost fails: truncation, a wrong wire type, strings that are not UTF-8,
/// groups nested too deeply.
pub fn decode_event(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let mut event = Event::default();
    let mut reader = Reader::new(bytes, RECURSION_LIMIT);
    while !reader.is_empty() {
        let (number, wire_type) = reader.next_field().map_err(|error| at("", error))?;
        match (number, &mut event.payload) {
            (6, Some(Payload::Detection(detection))) => {
                merge_detection(detection, wire_type, &mut reader)?;
            }
            (6, payload @ None) => {
                let mut detection = Detection::default();
                merge_detection(&mut detection, wire_type, &mut reader)?;
                *payload = Some(Payload::Detection(detection));
            }
            _ => merge_event_field(&mut event, number, wire_type, &mut reader)
                .map_err(|error| at(event_field(number), error))?,
        }
    }
    if let Some(Payload::Detection(detection)) = &mut event.payload {
        detection.metadata.sort();
    }
    Ok(event)
}

fn merge_event_field<'a>(
    event: &mut Event<'a>,
    number: u32,
    wire_type: WireType,
    reader: &mut Reader<'a>,
) -> Result<(), WireError> {
    match number {
        1 => event.organization_id = reader.string(wire_type)?,
        2 => event.network_id = reader.string(wire_type)?,
        3 => event.device_id = reader.string(wire_type)?,
        4 => {
            let time = event.observed_time.get_or_insert_default();
            merge_timestamp(time, &mut reader.message(wire_type)?)?;
        }
        5 => event.event_id = Some(reader.string(wire_type)?),
        _ => reader.skip(number, wire_type)?,
    }
    Ok(())
}

fn merge_timestamp(time: &mut Timestamp, reader: &mut Reader<'_>) -> Result<(), WireError> {
    while !reader.is_empty() {
        let (number, wire_type) = reader.next_field()?;
        match number {
            // Protobuf sends both in two's complement, and int32 as its low 32 bits.
            1 => time.seconds = reader.uint64(wire_type)? as i64,
            2 => time.nanos = reader.uint64(wire_type)? as i32,
            _ => reader.skip(number, wire_type)?,
        }
    }
    Ok(())
}

fn merge_detection<'a>(
    detection: &mut Detection<'a>,
    wire_type: WireType,
    reader: &mut Reader<'a>,
) -> Result<(), DecodeError> {
    let whole = |error| at("ids_detection", error);
    let mut reader = reader.message(wire_type).map_err(whole)?;
    while !reader.is_empty() {
        let (number, wire_type) = reader.next_field().map_err(whole)?;
        merge_detection_field(detection, number, wire_type, &mut reader)
            .map_err(|error| at(detection_field(number), error))?;
    }
    Ok(())
}

fn merge_detection_field<'a>(
    detection: &mut Detection<'a>,
    number: u32,
    wire_type: WireType,
    reader: &mut Reader<'a>,
) -> Result<(), WireError> {
    match number {
        1 => detection.src_ip = reader.string(wire_type)?,
        2 => detection.src_port = Some(reader.uint32(wire_type)?),
        3 => detection.dest_ip = reader.string(wire_type)?,
        4 => detection.dest_port = Some(reader.uint32(wire_type)?),
        5 => detection.proto = reader.string(wire_type)?,
        6 => detection.app_proto = reader.string(wire_type)?,
        7 => detection.flow_id = Some(reader.uint64(wire_type)?),
        8 => detection.community_id = reader.string(wire_type)?,
        9 => reader.repeated_uint32(wire_type, |id| detection.vlan.push(id))?,
        10 => detection.in_iface = reader.string(wire_type)?,
        11 => detection.direction = reader.string(wire_type)?,
        12 => detection.action = reader.string(wire_type)?,
        13 => detection.gid = Some(reader.uint32(wire_type)?),
        14 => detection.signature_id = Some(reader.uint32(wire_type)?),
        15 => detection.rev = Some(reader.uint32(wire_type)?),
        16 => detection.signature = Some(reader.string(wire_type)?),
        17 => detection.category = Some(reader.string(wire_type)?),
        18 => detection.severity = Some(reader.uint32(wire_type)?),
        19 => merge_metadata(&mut detection.metadata, &mut reader.message(wire_type)?)?,
        20 => detection.context_json = reader.string(wire_type)?,
        _ => reader.skip(number, wire_type)?,
    }
    Ok(())
}

/// Merges one map entry; its key and value may be in any order or absent.
fn merge_metadata<'a>(
    metadata: &mut Metadata<'a>,
    reader: &mut Reader<'a>,
) -> Result<(), WireError> {
    let mut key = "";
    while !reader.is_empty() {
        match reader.next_field()? {
            (1, wire_type) => key = reader.string(wire_type)?,
            (2, wire_type) => merge_values(metadata, &mut reader.message(wire_type)?)?,
            (number, wire_type) => reader.skip(number, wire_type)?,
        }
    }
    metadata.end_entry(key);
    Ok(())
}

fn merge_values<'a>(metadata: &mut Metadata<'a>, reader: &mut Reader<'a>) -> Result<(), WireError> {
    while !reader.is_empty() {
        match reader.next_field()? {
            (1, wire_type) => metadata.push_value(reader.string(wire_type)?),
            (number, wire_type) => reader.skip(number, wire_type)?,
        }
    }
    Ok(())
}

#[cold]
fn at(field: &'static str, error: WireError) -> DecodeError {
    DecodeError { field, error }
}

fn event_field(number: u32) -> &'static str {
    match number {
        1 => "organization_id",
        2 => "network_id",
        3 => "device_id",
        4 => "observed_time",
        5 => "event_id",
        _ => "",
    }
}

fn detection_field(number: u32) -> &'static str {
    match number {
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

/// Wire type: the encoding of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WireType {
    Varint,
    SixtyFourBit,
    LengthDelimited,
    StartGroup,
    EndGroup,
    ThirtyTwoBit,
}

/// Violation of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum WireError {
    #[error("it ends in the middle of a value")]
    Truncated,
    #[error("an integer is longer than 64 bits or cut short")]
    Varint,
    #[error("a field has an impossible number or wire type")]
    Field,
    #[error("a field has another wire type than in the proto file")]
    WireType,
    #[error("a group ends that did not start")]
    EndGroup,
    #[error("groups are nested too deeply")]
    TooDeep,
    #[error("text is not UTF-8")]
    Utf8,
}

/// Unread rest of one message, and the depth of nesting that is left.
struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Reader<'a> {
    /// Reads a message in which others nest down to `depth` levels.
    fn new(bytes: &'a [u8], depth: u32) -> Self {
        Self { rest: bytes, depth }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Number and wire type of the next field.
    #[inline]
    fn next_field(&mut self) -> Result<(u32, WireType), WireError> {
        let tag = u32::try_from(self.varint()?).map_err(|_| WireError::Field)?;
        let wire_type = match tag & 7 {
            0 => WireType::Varint,
            1 => WireType::SixtyFourBit,
            2 => WireType::LengthDelimited,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::ThirtyTwoBit,
            _ => return Err(WireError::Field),
        };
        match tag >> 3 {
            0 => Err(WireError::Field),
            number => Ok((number, wire_type)),
        }
    }

    #[inline]
    fn string(&mut self, wire_type: WireType) -> Result<&'a str, WireError> {
        let bytes = self.delimited(wire_type)?;
        str::from_utf8(bytes).map_err(|_| WireError::Utf8)
    }

    #[inline]
    fn uint64(&mut self, wire_type: WireType) -> Result<u64, WireError> {
        expect(WireType::Varint, wire_type)?;
        self.varint()
    }

    /// Low 32 bits of the varint, as prost reads a `uint32`.
    #[inline]
    fn uint32(&mut self, wire_type: WireType) -> Result<u32, WireError> {
        Ok(self.uint64(wire_type)? as u32)
    }

    /// One field of a `repeated uint32`: a single value, or packed values.
    fn repeated_uint32(
        &mut self,
        wire_type: WireType,
        mut push: impl FnMut(u32),
    ) -> Result<(), WireError> {
        if wire_type != WireType::LengthDelimited {
            push(self.uint32(wire_type)?);
            return Ok(());
        }
        let mut packed = Reader::new(self.delimited(wire_type)?, self.depth);
        while !packed.is_empty() {
            push(packed.uint32(WireType::Varint)?);
        }
        Ok(())
    }

    /// Reader of a nested message or map entry.
    #[inline]
    fn message(&mut self, wire_type: WireType) -> Result<Self, WireError> {
        let bytes = self.delimited(wire_type)?;
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Reader::new(bytes, depth)),
            None => Err(WireError::TooDeep),
        }
    }

    /// Skips an unknown field.
    fn skip(&mut self, number: u32, wire_type: WireType) -> Result<(), WireError> {
        self.skip_within(number, wire_type, self.depth)
    }

    fn skip_within(
        &mut self,
        number: u32,
        wire_type: WireType,
        depth: u32,
    ) -> Result<(), WireError> {
        if depth == 0 {
            return Err(WireError::TooDeep);
        }
        match wire_type {
            WireType::Varint => self.varint().map(|_| ()),
            WireType::ThirtyTwoBit => self.take(4).map(|_| ()),
            WireType::SixtyFourBit => self.take(8).map(|_| ()),
            WireType::LengthDelimited => self.delimited(wire_type).map(|_| ()),
            WireType::EndGroup => Err(WireError::EndGroup),
            WireType::StartGroup => loop {
                match self.next_field()? {
                    (inner, WireType::EndGroup) if inner == number => return Ok(()),
                    (_, WireType::EndGroup) => return Err(WireError::EndGroup),
                    (inner, wire_type) => self.skip_within(inner, wire_type, depth - 1)?,
                }
            },
        }
    }

    #[inline]
    fn delimited(&mut self, wire_type: WireType) -> Result<&'a [u8], WireError> {
        expect(WireType::LengthDelimited, wire_type)?;
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| WireError::Truncated)?)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (index * 7);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    break;
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(WireError::Varint)
    }
}

#[inline]
fn expect(expected: WireType, given: WireType) -> Result<(), WireError> {
    if expected == given {
        Ok(())
    } else {
        Err(WireError::WireType)
    }
}

#[cfg(test)]
mod tests;
