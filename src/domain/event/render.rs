//! Events as CloudEvents 1.0 JSON, one line each.
//!
//! Attributes and limits are those of the CloudEvents JSON format and its
//! partitioning and sequence extensions; the record limit is Kinesis' PutRecords.

use uuid::Uuid;

use super::{
    Detection, Rejection, RejectionReason, ValidEvent, id,
    json::{write_escaped, write_number, write_string, write_uuid},
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

const KEY: &[u8] = br#""partitionkey":""#;

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
pub fn finish(head: &Head, sequence: u64, body: &[u8], out: &mut Vec<u8>) {
    out.reserve(RECORD_OVERHEAD + body.len());
    head.write(sequence, out);
    out.extend_from_slice(body);
    out.push(b'\n');
}

/// The partition key of a body; `None` where the bytes are not a body.
pub fn partition_key(body: &[u8]) -> Option<&str> {
    let key = body.strip_prefix(KEY)?.get(..KEY_LENGTH)?;
    str::from_utf8(key).ok()
}

/// The partition key of a body as a UUID; `None` where the bytes are not a body.
pub fn partition_key_uuid(body: &[u8]) -> Option<Uuid> {
    Uuid::try_parse(partition_key(body)?).ok()
}

/// What was rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rendered {
    /// The CloudEvents id.
    pub id: Uuid,
    /// The partition key.
    pub partition_key: Uuid,
    /// Bytes of the body.
    pub length: usize,
}

impl ValidEvent<'_> {
    /// Appends the body of the event to `out`.
    ///
    /// # Errors
    ///
    /// Where the record would exceed [`MAX_RECORD_LENGTH`]; `out` is then as it was.
    pub fn render(&self, format: &Format, out: &mut Vec<u8>) -> Result<Rendered, Rejection> {
        // Escapes may make text up to six times as long: this bounds what is written
        // before its length is known.
        if self.text_length() > MAX_BODY_LENGTH {
            return Err(too_large());
        }
        let start = out.len();
        let id = self.write_body(format, out);
        let length = out.len() - start;
        if length > MAX_BODY_LENGTH {
            out.truncate(start);
            return Err(too_large());
        }
        Ok(Rendered {
            id,
            partition_key: self.device,
            length,
        })
    }

    fn write_body(&self, format: &Format, out: &mut Vec<u8>) -> Uuid {
        let id_at = write_attributes(out, self.device, &format.detection, self.network);
        self.time.write_rfc3339(out);
        out.extend_from_slice(br#"","datacontenttype":"application/json","data":"#);
        let data_at = out.len();
        self.write_data(out);
        let id = self.event_id.unwrap_or_else(|| {
            id::of_detection(self.network, self.device, self.time, &out[data_at..])
        });
        out.push(b'}');
        id.hyphenated().encode_lower(&mut out[id_at..id_at + 36]);
        id
    }

    fn write_data(&self, out: &mut Vec<u8>) {
        let detection = self.detection;
        out.extend_from_slice(br#"{"type":"TYPE_DETECTION""#);
        text(out, br#","src_ip":"#, detection.src_ip);
        number(out, br#","src_port":"#, detection.src_port);
        text(out, br#","dest_ip":"#, detection.dest_ip);
        number(out, br#","dest_port":"#, detection.dest_port);
        text(out, br#","proto":"#, detection.proto);
        text(out, br#","app_proto":"#, detection.app_proto);
        number(out, br#","flow_id":"#, detection.flow_id);
        text(out, br#","community_id":"#, detection.community_id);
        list(out, br#","vlan":["#, detection.vlan.ids(), |out, &id| {
            write_number(out, id.into());
        });
        text(out, br#","in_iface":"#, detection.in_iface);
        text(out, br#","direction":"#, detection.direction);
        text(out, br#","action":"#, detection.action);
        number(out, br#","gid":"#, detection.gid);
        number(out, br#","signature_id":"#, detection.signature_id);
        number(out, br#","rev":"#, detection.rev);
        optional_text(out, br#","signature":"#, detection.signature);
        optional_text(out, br#","category":"#, detection.category);
        number(out, br#","severity":"#, detection.severity);
        write_metadata(out, detection);
        if let Some(context) = self.context {
            out.extend_from_slice(br#","context":"#);
            context.write(out);
        }
        out.push(b'}');
    }

    /// A lower bound of the body's length.
    fn text_length(&self) -> usize {
        let detection = self.detection;
        let texts = [
            detection.proto,
            detection.app_proto,
            detection.community_id,
            detection.in_iface,
            detection.direction,
            detection.action,
            detection.signature.unwrap_or_default(),
            detection.category.unwrap_or_default(),
        ];
        let metadata = detection.metadata.iter().map(|(key, values)| {
            let values: usize = values.iter().map(|value| value.len()).sum();
            key.len() + values
        });
        texts.map(str::len).iter().sum::<usize>()
            + metadata.sum::<usize>()
            + self.context.map_or(0, |context| context.len())
    }
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
    out.extend_from_slice(br#"","id":""#);
    let id_at = out.len();
    out.extend_from_slice(&[0; 36]);
    out.extend_from_slice(source_and_type);
    write_uuid(out, subject);
    out.extend_from_slice(br#"","time":""#);
    id_at
}

fn write_metadata(out: &mut Vec<u8>, detection: &Detection<'_>) {
    let mut separator: &[u8] = br#","metadata":{"#;
    for (key, values) in detection.metadata.iter() {
        out.extend_from_slice(separator);
        separator = b",";
        write_string(out, key);
        if values.is_empty() {
            out.extend_from_slice(b":[]");
        } else {
            list(out, b":[", values, |out, value| write_string(out, value));
        }
    }
    if !detection.metadata.is_empty() {
        out.push(b'}');
    }
}

/// `name` holds the comma, the quoted key and the colon.
#[inline]
fn text(out: &mut Vec<u8>, name: &[u8], value: &str) {
    if !value.is_empty() {
        out.extend_from_slice(name);
        write_string(out, value);
    }
}

#[inline]
fn optional_text(out: &mut Vec<u8>, name: &[u8], value: Option<&str>) {
    if let Some(value) = value {
        out.extend_from_slice(name);
        write_string(out, value);
    }
}

#[inline]
fn number(out: &mut Vec<u8>, name: &[u8], value: Option<impl Into<u64>>) {
    if let Some(value) = value {
        out.extend_from_slice(name);
        write_number(out, value.into());
    }
}

/// `open` ends with the bracket.
#[inline]
fn list<T>(out: &mut Vec<u8>, open: &[u8], items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    let mut separator = open;
    for item in items {
        out.extend_from_slice(separator);
        separator = b",";
        write(out, item);
    }
    if !items.is_empty() {
        out.push(b']');
    }
}

#[cold]
fn too_large() -> Rejection {
    Rejection::new(
        RejectionReason::RecordTooLarge,
        "",
        "would exceed the 1 MiB that Kinesis takes as one record, partition key included; \
         shorten ids_detection.context_json",
    )
}
