//! Events as CloudEvents 1.0 JSON, one line each.
//!
//! Attributes and limits are those of the CloudEvents JSON format and its
//! partitioning and sequence extensions; the record limit is Kinesis' PutRecords.

use uuid::Uuid;

use super::{
    id,
    json::{write_escaped, write_uuid},
    stored::{Parts, Stored, UnreadableEvent},
    time::rfc3339_length,
};

/// Bytes that Kinesis takes as one record, partition key included.
pub const MAX_RECORD_LENGTH: usize = 1_048_576;

/// Bytes of a partition key, always a UUID.
pub const KEY_LENGTH: usize = 36;

/// Bytes of a body that still fits a record once it has its head.
pub const MAX_BODY_LENGTH: usize =
    MAX_RECORD_LENGTH - KEY_LENGTH - Head::LENGTH - SEQUENCE_LENGTH - TAIL_LENGTH;

const SEQUENCE_LENGTH: usize = 20;
/// The quote and comma after the sequence, and the line break at the end.
const TAIL_LENGTH: usize = 3;

pub(super) const KEY: &[u8] = br#""partitionkey":""#;
const ID: &[u8] = br#"","id":""#;
const TIME: &[u8] = br#"","time":""#;
pub(super) const CONTENT_TYPE: &[u8] = br#"","datacontenttype":"application/json","data":"#;
const DATA_START: &[u8] = br#"{"type":"TYPE_DETECTION""#;

/// The attributes that are the same for all events of a service.
#[derive(Debug, Clone)]
pub struct Format {
    detection: Box<[u8]>,
    test: Box<[u8]>,
    gap: Box<[u8]>,
}

/// A setting of [`Format`] that cannot stand in a CloudEvent.
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
    /// Takes the CloudEvents `source`, and what the type of each event starts with,
    /// such as `com.meter`.
    ///
    /// # Errors
    ///
    /// Where one of them cannot stand in a CloudEvent.
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

/// What a record starts with: the part that belongs to its integration.
#[derive(Debug, Clone)]
pub struct Head {
    text: [u8; Self::LENGTH],
}

impl Head {
    const START: &'static [u8] = br#"{"specversion":"1.0","integrationid":""#;
    const END: &'static [u8] = br#"","sequence":""#;
    const LENGTH: usize = Self::START.len() + 36 + Self::END.len();

    /// The head of an integration's records.
    pub fn new(integration_id: Uuid) -> Self {
        let mut text = [0; Self::LENGTH];
        let (start, rest) = text.split_at_mut(Self::START.len());
        start.copy_from_slice(Self::START);
        integration_id.hyphenated().encode_lower(&mut rest[..36]);
        rest[36..].copy_from_slice(Self::END);
        Self { text }
    }

    /// Appends the head with a sequence, up to where the body starts.
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

/// Bytes that [`finish`] adds to a body.
pub const RECORD_OVERHEAD: usize = Head::LENGTH + SEQUENCE_LENGTH + TAIL_LENGTH;

/// Appends the record that lands in the stream: head, sequence, body, line break.
///
/// # Errors
///
/// Where `stored` is no event as the log holds it; `out` may then have some of the record.
pub fn finish(
    head: &Head,
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
    id.hyphenated().encode_lower(&mut out[id_at..id_at + 36]);
    Ok(())
}

/// Bytes of a detection's body beside its fields, with so many fractional digits in its time.
pub(super) fn fixed_length(attributes: &[u8], time_digits: usize) -> usize {
    const FIXED: usize = KEY.len()
        + 3 * KEY_LENGTH
        + ID.len()
        + TIME.len()
        + CONTENT_TYPE.len()
        + DATA_START.len()
        + b"}}".len();
    FIXED + attributes.len() + rfc3339_length(time_digits)
}

/// The partition key of a body; `None` where the bytes are not a body.
pub(super) fn partition_key(body: &[u8]) -> Option<&str> {
    let key = body.strip_prefix(KEY)?.get(..KEY_LENGTH)?;
    str::from_utf8(key).ok()
}

/// Appends the attributes up to the time's value, and returns where the id goes.
pub(super) fn write_attributes(
    out: &mut Vec<u8>,
    key: Uuid,
    source_and_type: &[u8],
    subject: Uuid,
) -> usize {
    out.extend_from_slice(KEY);
    write_uuid(out, key);
    out.extend_from_slice(ID);
    let id_at = out.len();
    out.extend_from_slice(&[0; 36]);
    out.extend_from_slice(source_and_type);
    write_uuid(out, subject);
    out.extend_from_slice(TIME);
    id_at
}
