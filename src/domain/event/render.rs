//! Rendering of events as CloudEvents 1.0 JSON, one line each.
//!
//! The attributes are those of the CloudEvents JSON format with its partitioning and sequence
//! extensions. The limit of a record is that of Kinesis' PutRecords.

use uuid::Uuid;

use super::{
    id,
    json::{write_escaped, write_uuid},
    stored::{Parts, Stored, UnreadableEvent},
    time::rfc3339_length,
};

/// Most bytes of a Kinesis record with its partition key.
pub const MAX_RECORD_LENGTH: usize = 1_048_576;

/// Bytes of a partition key, which is always a UUID.
pub const PARTITION_KEY_LENGTH: usize = UUID_LENGTH;

const UUID_LENGTH: usize = 36;

/// Most bytes of a body that fits into a record with its head.
pub const MAX_BODY_LENGTH: usize = MAX_RECORD_LENGTH - PARTITION_KEY_LENGTH - RECORD_OVERHEAD;

const SEQUENCE_LENGTH: usize = 20;
/// Bytes of the quote and comma after the sequence and of the line break.
const TAIL_LENGTH: usize = 3;

pub(super) const PARTITION_KEY: &[u8] = br#""partitionkey":""#;
const ID: &[u8] = br#"","id":""#;
const TIME: &[u8] = br#"","time":""#;
pub(super) const CONTENT_TYPE: &[u8] = br#"","datacontenttype":"application/json","data":"#;
const DATA_START: &[u8] = br#"{"type":"TYPE_DETECTION""#;

/// CloudEvents `source` and `type` of the service's events, which settings determine.
#[derive(Debug, Clone)]
pub struct Format {
    detection: Box<[u8]>,
    test: Box<[u8]>,
    gap: Box<[u8]>,
}

/// Setting that is not valid in a CloudEvent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The source.
    #[error(
        "the source must be 1 to 1024 printable ASCII characters without spaces, such as https://example.com"
    )]
    Source,
    /// The prefix of types.
    #[error(
        "the type prefix must be 1 to 256 letters, digits, dots, hyphens and underscores, such as com.example"
    )]
    TypePrefix,
}

impl Format {
    /// Makes a format from the CloudEvents `source` and the prefix of each `type`, such as
    /// `com.meter`.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if one of them is not valid in a CloudEvent.
    pub fn new(source: &str, type_prefix: &str) -> Result<Self, FormatError> {
        let printable = |byte: u8| byte.is_ascii_graphic();
        if !(1..=1_024).contains(&source.len()) || !source.bytes().all(printable) {
            return Err(FormatError::Source);
        }
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(1..=256).contains(&type_prefix.len()) || !type_prefix.bytes().all(name) {
            return Err(FormatError::TypePrefix);
        }
        let attributes = |kind: &str| {
            let mut out = br#"","source":""#.to_vec();
            write_escaped(&mut out, source);
            out.extend_from_slice(br#"","type":""#);
            out.extend_from_slice(kind.as_bytes());
            out.extend_from_slice(br#"","subject":""#);
            out.into_boxed_slice()
        };
        Ok(Self {
            detection: attributes(&format!("{type_prefix}.ids.detection")),
            test: attributes("TYPE_TEST"),
            gap: attributes(&format!("{type_prefix}.siem.gap")),
        })
    }

    pub(super) fn detection(&self) -> &[u8] {
        &self.detection
    }

    pub(super) fn test(&self) -> &[u8] {
        &self.test
    }

    pub(super) fn gap(&self) -> &[u8] {
        &self.gap
    }
}

/// Start of an integration's records, up to the sequence.
#[derive(Debug, Clone)]
pub struct RecordHead {
    text: [u8; Self::LENGTH],
}

impl RecordHead {
    const START: &'static [u8] = br#"{"specversion":"1.0","integrationid":""#;
    const END: &'static [u8] = br#"","sequence":""#;
    const LENGTH: usize = Self::START.len() + UUID_LENGTH + Self::END.len();

    /// Makes the head of an integration's records.
    pub fn new(integration_id: Uuid) -> Self {
        let mut text = [0; Self::LENGTH];
        let (start, rest) = text.split_at_mut(Self::START.len());
        start.copy_from_slice(Self::START);
        integration_id
            .hyphenated()
            .encode_lower(&mut rest[..UUID_LENGTH]);
        rest[UUID_LENGTH..].copy_from_slice(Self::END);
        Self { text }
    }

    /// Appends the head and a sequence, up to the start of the body.
    pub(super) fn write(&self, sequence: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text);
        let mut digits = [b'0'; SEQUENCE_LENGTH];
        let mut rest = sequence;
        for digit in digits.iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
        out.extend_from_slice(b"\",");
    }
}

/// Bytes that [`render_record`] adds to a body.
pub const RECORD_OVERHEAD: usize = RecordHead::LENGTH + SEQUENCE_LENGTH + TAIL_LENGTH;

/// Appends the record of a stored event: head, sequence, body and line break.
///
/// # Errors
///
/// [`UnreadableEvent`] if `stored` is not an event in the log's format. `out` may then contain
/// a part of the record.
pub fn render_record(
    head: &RecordHead,
    sequence: u64,
    stored: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), UnreadableEvent> {
    match Stored::read(stored)? {
        Stored::Body(body) => {
            out.reserve(RECORD_OVERHEAD + body.len());
            head.write(sequence, out);
            out.extend_from_slice(body);
        }
        Stored::Fields(fields) => {
            let parts = fields.parts()?;
            out.reserve(RECORD_OVERHEAD + parts.body_length);
            head.write(sequence, out);
            write_body(&parts, out)?;
        }
    }
    out.push(b'\n');
    Ok(())
}

fn write_body(parts: &Parts<'_>, out: &mut Vec<u8>) -> Result<(), UnreadableEvent> {
    let id_at = write_attributes(out, parts.device, parts.attributes, parts.network);
    parts.time.write_digits(parts.time_digits, out);
    out.extend_from_slice(CONTENT_TYPE);
    let data_at = out.len();
    out.extend_from_slice(DATA_START);
    parts.write_data(out)?;
    out.push(b'}');
    let id = parts.id.unwrap_or_else(|| {
        id::of_detection(parts.network, parts.device, parts.time, &out[data_at..])
    });
    out.push(b'}');
    id.hyphenated()
        .encode_lower(&mut out[id_at..id_at + UUID_LENGTH]);
    Ok(())
}

/// Bytes of a detection's body without its fields.
pub(super) fn fixed_length(attributes: &[u8], time_digits: usize) -> usize {
    const FIXED: usize = PARTITION_KEY.len()
        + 3 * UUID_LENGTH
        + ID.len()
        + TIME.len()
        + CONTENT_TYPE.len()
        + DATA_START.len()
        + b"}}".len();
    FIXED + attributes.len() + rfc3339_length(time_digits)
}

/// Partition key of a body; `None` if the bytes are not a body.
pub(super) fn partition_key(body: &[u8]) -> Option<&str> {
    let key = body
        .strip_prefix(PARTITION_KEY)?
        .get(..PARTITION_KEY_LENGTH)?;
    str::from_utf8(key).ok()
}

/// Appends the attributes up to the value of `time`, and returns the position for the id,
/// which the caller fills in.
pub(super) fn write_attributes(
    out: &mut Vec<u8>,
    partition_key: Uuid,
    source_and_type: &[u8],
    subject: Uuid,
) -> usize {
    out.extend_from_slice(PARTITION_KEY);
    write_uuid(out, partition_key);
    out.extend_from_slice(ID);
    let id_at = out.len();
    out.extend_from_slice(&[0; UUID_LENGTH]);
    out.extend_from_slice(source_and_type);
    write_uuid(out, subject);
    out.extend_from_slice(TIME);
    id_at
}
