//! Events in the form in which the log stores them: only the parts in which one detection
//! differs from another, since more than half of a record's text is the same for all.
//! [`render_record`](super::render_record) makes the record from them.
//!
//! Stored events may wait for longer than a version of the service runs, so the format must
//! stay readable. A different format needs a different code in the first byte.
//!
//! | bytes | contents |
//! | --- | --- |
//! | 1 | the code, 1 |
//! | 16 | device, which is the partition key |
//! | 16 | network |
//! | 4 | length of the body as JSON if its time had the shortest exact fraction |
//! | 8, 4 | seconds and nanoseconds of the time |
//! | 4 | bits of the values that follow: [`OWN_ATTRIBUTES`], [`OWN_ID`], those of [`Field`] |
//!
//! Integers are little endian. The values follow in the order [`OWN_ATTRIBUTES`], [`OWN_ID`],
//! fields. Each has its length before it: one byte, or 255 and four bytes. The value of a
//! field is JSON text up to the start of the next name.
//!
//! Versions before this format stored the body as JSON, which starts with a quote. Those
//! events are readable too.

use uuid::Uuid;

use super::{
    Detection, MAX_BODY_LENGTH, Rejection, RejectionReason, Time, ValidEvent,
    context::Context,
    json::{write_escaped, write_number, write_string},
    render::{Format, PARTITION_KEY, fixed_length, partition_key},
    time::{DIGITS, rfc3339_length},
};

const CODE: u8 = 1;
const HEADER_LENGTH: usize = 53;
/// Smallest length that needs four more bytes.
const LONG: usize = 255;
/// Bit of source and type, if they differ from [`USUAL_ATTRIBUTES`].
const OWN_ATTRIBUTES: u32 = 1 << 29;
/// Bit of an event id chosen by the caller: 16 bytes.
const OWN_ID: u32 = 1 << 30;
/// Source and type by the default settings of the first version.
const USUAL_ATTRIBUTES: &[u8] =
    br#"","source":"https://meter.com","type":"com.meter.ids.detection","subject":""#;

/// The bytes are not an event in the log's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the log cannot be read")]
pub struct UnreadableEvent;

/// Properties of a stored event that are known without rendering it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEventInfo {
    /// Partition key.
    pub partition_key: Uuid,
    /// Bytes of the body as JSON: the record without its head and line break.
    pub body_length: usize,
}

/// Returns partition key and body length of a stored event, after checking that all of it is
/// readable.
///
/// # Errors
///
/// [`UnreadableEvent`] if the bytes are not a stored event, or not all of them are readable.
pub fn inspect(stored: &[u8]) -> Result<StoredEventInfo, UnreadableEvent> {
    match Stored::read(stored)? {
        Stored::Body(body) => {
            let key = partition_key(body).and_then(|key| Uuid::try_parse(key).ok());
            Ok(StoredEventInfo {
                partition_key: key.ok_or(UnreadableEvent)?,
                body_length: body.len(),
            })
        }
        Stored::Fields(fields) => {
            let parts = fields.parts()?;
            parts.check()?;
            Ok(StoredEventInfo {
                partition_key: parts.device,
                body_length: parts.body_length,
            })
        }
    }
}

/// Returns the body length that a stored event states.
///
/// # Errors
///
/// [`UnreadableEvent`] if the bytes are not a stored event.
pub fn body_length(stored: &[u8]) -> Result<usize, UnreadableEvent> {
    match Stored::read(stored)? {
        Stored::Body(body) => Ok(body.len()),
        Stored::Fields(fields) => fields.body_length(),
    }
}

/// A detection's fields, in the order of the record's `data`. Each has the bit of its number.
#[derive(Clone, Copy)]
enum Field {
    SrcIp,
    SrcPort,
    DestIp,
    DestPort,
    Proto,
    AppProto,
    FlowId,
    CommunityId,
    Vlan,
    InIface,
    Direction,
    Action,
    Gid,
    SignatureId,
    Rev,
    Signature,
    Category,
    Severity,
    Metadata,
    Context,
}

const COUNT: usize = Field::Context as usize + 1;

/// JSON text before a value: the name, and the opening of a string or container. Padded,
/// because copying a fixed size is faster than copying the exact length.
struct Name {
    padded: [u8; Self::MAX_LENGTH],
    length: usize,
}

impl Name {
    const MAX_LENGTH: usize = 24;

    const fn new(text: &[u8]) -> Self {
        let mut padded = [0; Self::MAX_LENGTH];
        let (start, _) = padded.split_at_mut(text.len());
        start.copy_from_slice(text);
        Self {
            padded,
            length: text.len(),
        }
    }
}

/// Indexed by [`Field`].
static NAMES: [Name; COUNT] = [
    Name::new(br#","src_ip":""#),
    Name::new(br#","src_port":"#),
    Name::new(br#","dest_ip":""#),
    Name::new(br#","dest_port":"#),
    Name::new(br#","proto":""#),
    Name::new(br#","app_proto":""#),
    Name::new(br#","flow_id":"#),
    Name::new(br#","community_id":""#),
    Name::new(br#","vlan":["#),
    Name::new(br#","in_iface":""#),
    Name::new(br#","direction":""#),
    Name::new(br#","action":""#),
    Name::new(br#","gid":"#),
    Name::new(br#","signature_id":"#),
    Name::new(br#","rev":"#),
    Name::new(br#","signature":""#),
    Name::new(br#","category":""#),
    Name::new(br#","severity":"#),
    Name::new(br#","metadata":{"#),
    Name::new(br#","context":"#),
];
const FIELDS: u32 = (1 << COUNT) - 1;

impl ValidEvent<'_> {
    /// Appends the event to `out` in the log's format.
    ///
    /// # Errors
    ///
    /// [`RejectionReason::RecordTooLarge`] if the record would exceed
    /// [`MAX_RECORD_LENGTH`](super::MAX_RECORD_LENGTH); `out` is then unchanged.
    pub fn store(&self, format: &Format, out: &mut Vec<u8>) -> Result<StoredEventInfo, Rejection> {
        // Escapes may make the text six times as long. This check bounds the bytes written
        // before the length is known.
        if self.text_length() > MAX_BODY_LENGTH {
            return Err(too_large());
        }
        let start = out.len();
        out.resize(start + HEADER_LENGTH, 0);
        let mut values = Values::new(out);
        let attributes = format.detection();
        if attributes != USUAL_ATTRIBUTES {
            values.add_other(OWN_ATTRIBUTES, attributes);
        }
        if let Some(id) = self.event_id {
            values.add_other(OWN_ID, id.as_bytes());
        }
        write_detection(&mut values, self.detection);
        if let Some(context) = &self.context {
            values.add(Field::Context, |out| context.write(out));
        }
        let (present, data_length) = (values.present, values.length);
        let body_length = fixed_length(attributes, DIGITS) + data_length;
        if body_length > MAX_BODY_LENGTH {
            out.truncate(start);
            return Err(too_large());
        }
        let header = Header {
            device: self.device,
            network: self.network,
            stored_length: (fixed_length(attributes, self.time.exact_digits()) + data_length)
                as u32,
            time: self.time,
            present,
        };
        out[start..start + HEADER_LENGTH].copy_from_slice(&header.to_bytes());
        Ok(StoredEventInfo {
            partition_key: self.device,
            body_length,
        })
    }

    /// Lower bound of the body's length.
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
            + self.context.as_ref().map_or(0, Context::len)
    }
}

fn write_detection(values: &mut Values<'_>, detection: &Detection<'_>) {
    values.text(Field::SrcIp, detection.src_ip);
    values.number(Field::SrcPort, detection.src_port);
    values.text(Field::DestIp, detection.dest_ip);
    values.number(Field::DestPort, detection.dest_port);
    values.text(Field::Proto, detection.proto);
    values.text(Field::AppProto, detection.app_proto);
    values.number(Field::FlowId, detection.flow_id);
    values.text(Field::CommunityId, detection.community_id);
    if !detection.vlan.ids().is_empty() {
        values.add(Field::Vlan, |out| {
            write_items(out, detection.vlan.ids(), |out, &id| {
                write_number(out, id.into());
            });
        });
    }
    values.text(Field::InIface, detection.in_iface);
    values.text(Field::Direction, detection.direction);
    values.text(Field::Action, detection.action);
    values.number(Field::Gid, detection.gid);
    values.number(Field::SignatureId, detection.signature_id);
    values.number(Field::Rev, detection.rev);
    values.optional_text(Field::Signature, detection.signature);
    values.optional_text(Field::Category, detection.category);
    values.number(Field::Severity, detection.severity);
    if !detection.metadata.is_empty() {
        values.add(Field::Metadata, |out| write_metadata(out, detection));
    }
}

/// Appends the members of `metadata` and the closing brace.
fn write_metadata(out: &mut Vec<u8>, detection: &Detection<'_>) {
    for (number, (key, values)) in detection.metadata.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write_string(out, key);
        out.extend_from_slice(b":[");
        write_items(out, values, |out, value| write_string(out, value));
    }
    out.push(b'}');
}

/// Appends the items of an array and the closing bracket.
fn write_items<T>(out: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// Writer of the values.
struct Values<'a> {
    out: &'a mut Vec<u8>,
    present: u32,
    /// Bytes of the names and values of the fields.
    length: usize,
}

impl<'a> Values<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            present: 0,
            length: 0,
        }
    }

    #[inline]
    fn text(&mut self, field: Field, value: &str) {
        if !value.is_empty() {
            self.optional_text(field, Some(value));
        }
    }

    #[inline]
    fn optional_text(&mut self, field: Field, value: Option<&str>) {
        if let Some(value) = value {
            self.add(field, |out| {
                write_escaped(out, value);
                out.push(b'"');
            });
        }
    }

    #[inline]
    fn number(&mut self, field: Field, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.add(field, |out| write_number(out, value.into()));
        }
    }

    #[inline]
    fn add(&mut self, field: Field, write: impl FnOnce(&mut Vec<u8>)) {
        let length = self.write(write);
        self.present |= 1 << field as u32;
        self.length += NAMES[field as usize].length + length;
    }

    fn add_other(&mut self, bit: u32, value: &[u8]) {
        self.write(|out| out.extend_from_slice(value));
        self.present |= bit;
    }

    /// Appends a value with its length before it, and returns the length.
    #[inline]
    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let at = self.out.len();
        self.out.push(0);
        write(self.out);
        let length = self.out.len() - at - 1;
        if length < LONG {
            self.out[at] = length as u8;
        } else {
            make_long(self.out, at, length);
        }
        length
    }
}

#[cold]
fn make_long(out: &mut Vec<u8>, at: usize, length: usize) {
    out.extend_from_slice(&[0; 4]);
    out.copy_within(at + 1..at + 1 + length, at + 5);
    out[at] = LONG as u8;
    out[at + 1..at + 5].copy_from_slice(&(length as u32).to_le_bytes());
}

struct Header {
    device: Uuid,
    network: Uuid,
    /// Body length with the shortest exact fraction in the time, as earlier versions wrote it.
    stored_length: u32,
    time: Time,
    present: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = CODE;
        bytes[1..17].copy_from_slice(self.device.as_bytes());
        bytes[17..33].copy_from_slice(self.network.as_bytes());
        bytes[33..37].copy_from_slice(&self.stored_length.to_le_bytes());
        bytes[37..45].copy_from_slice(&self.time.seconds().to_le_bytes());
        bytes[45..49].copy_from_slice(&self.time.nanos().to_le_bytes());
        bytes[49..53].copy_from_slice(&self.present.to_le_bytes());
        bytes
    }
}

#[cold]
fn too_large() -> Rejection {
    Rejection::new(
        RejectionReason::RecordTooLarge,
        "",
        "would exceed Kinesis' limit of 1 MiB for a record with its partition key; \
         shorten ids_detection.context_json",
    )
}

/// A value up to this length is copied with this fixed size if enough bytes follow it.
const FIXED_COPY: usize = 32;

/// A stored event in either format.
pub(super) enum Stored<'a> {
    /// The older format: the body as JSON.
    Body(&'a [u8]),
    /// The format of this module.
    Fields(Fields<'a>),
}

pub(super) struct Fields<'a> {
    header: &'a [u8; HEADER_LENGTH],
    values: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Recognizes the format by the first bytes.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, UnreadableEvent> {
        match bytes.split_first_chunk() {
            Some((header, values)) if header[0] == CODE => {
                Ok(Self::Fields(Fields { header, values }))
            }
            _ if bytes.starts_with(PARTITION_KEY) => Ok(Self::Body(bytes)),
            _ => Err(UnreadableEvent),
        }
    }
}

/// Contents of a stored event.
pub(super) struct Parts<'a> {
    pub(super) device: Uuid,
    pub(super) network: Uuid,
    pub(super) time: Time,
    /// Fractional digits of the time in the record.
    pub(super) time_digits: usize,
    /// Source and type.
    pub(super) attributes: &'a [u8],
    pub(super) id: Option<Uuid>,
    /// Bytes of the body as JSON.
    pub(super) body_length: usize,
    fields: u32,
    /// Values of the fields.
    values: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads everything but the values of the fields.
    pub(super) fn parts(&self) -> Result<Parts<'a>, UnreadableEvent> {
        let present = u32::from_le_bytes(self.part(49));
        if present & !(FIELDS | OWN_ATTRIBUTES | OWN_ID) != 0 {
            return Err(UnreadableEvent);
        }
        let mut values = self.values;
        let mut attributes = USUAL_ATTRIBUTES;
        if present & OWN_ATTRIBUTES != 0 {
            (attributes, values) = split_value(values)?;
        }
        let mut id = None;
        if present & OWN_ID != 0 {
            let bytes;
            (bytes, values) = split_value(values)?;
            id = Some(Uuid::from_slice(bytes).map_err(|_| UnreadableEvent)?);
        }
        let time = self.time()?;
        let (body_length, time_digits) = self.body(time)?;
        Ok(Parts {
            device: Uuid::from_bytes(self.part(1)),
            network: Uuid::from_bytes(self.part(17)),
            time,
            time_digits,
            attributes,
            id,
            body_length,
            fields: present & FIELDS,
            values,
        })
    }

    /// Length of the body, at most [`MAX_BODY_LENGTH`] whatever the bytes are.
    fn body_length(&self) -> Result<usize, UnreadableEvent> {
        Ok(self.body(self.time()?)?.0)
    }

    fn time(&self) -> Result<Time, UnreadableEvent> {
        let seconds = i64::from_le_bytes(self.part(37));
        Time::new(seconds, i32::from_le_bytes(self.part(45))).ok_or(UnreadableEvent)
    }

    /// Length of the body and fractional digits of its time.
    ///
    /// The stored length is that of the body with the shortest exact fraction. An event exactly at
    /// the size limit of a record, accepted by an earlier version, has no space for six digits
    /// and keeps that fraction.
    fn body(&self, time: Time) -> Result<(usize, usize), UnreadableEvent> {
        let stored = u32::from_le_bytes(self.part(33)) as usize;
        let exact = time.exact_digits();
        let length = (stored + rfc3339_length(DIGITS)).checked_sub(rfc3339_length(exact));
        match length.ok_or(UnreadableEvent)? {
            length if length <= MAX_BODY_LENGTH => Ok((length, DIGITS)),
            _ if stored <= MAX_BODY_LENGTH => Ok((stored, exact)),
            _ => Err(UnreadableEvent),
        }
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut part = [0; N];
        part.copy_from_slice(&self.header[at..at + N]);
        part
    }
}

impl Parts<'_> {
    /// Bytes of the names and values of the fields, derived from the body length.
    fn data_length(&self) -> Result<usize, UnreadableEvent> {
        let fixed = fixed_length(self.attributes, self.time_digits);
        self.body_length.checked_sub(fixed).ok_or(UnreadableEvent)
    }

    /// Checks that the fields are readable and have the stated length.
    fn check(&self) -> Result<(), UnreadableEvent> {
        let (mut length, mut rest) = (0, self.values);
        for name in names(self.fields) {
            let value;
            (value, rest) = split_value(rest)?;
            length += name.length + value.len();
        }
        match rest.is_empty() && self.data_length() == Ok(length) {
            true => Ok(()),
            false => Err(UnreadableEvent),
        }
    }

    /// Appends the names and values of the fields.
    ///
    /// # Errors
    ///
    /// [`UnreadableEvent`] if they are not readable or do not have the stated length.
    pub(super) fn write_data(&self, out: &mut Vec<u8>) -> Result<(), UnreadableEvent> {
        let (start, length) = (out.len(), self.data_length()?);
        // Copies of a fixed size may write beyond the value.
        out.resize(start + length + FIXED_COPY, 0);
        let (mut to, mut rest) = (&mut out[start..], self.values);
        for name in names(self.fields) {
            to = copy_padded(to, &name.padded, name.length)?;
            let (value, after) = split_value(rest)?;
            // The value and all bytes after it.
            let from = &rest[rest.len() - after.len() - value.len()..];
            to = match from.first_chunk::<FIXED_COPY>() {
                Some(padded) if value.len() <= FIXED_COPY => copy_padded(to, padded, value.len())?,
                _ => copy(to, value)?,
            };
            rest = after;
        }
        let is_complete = to.len() == FIXED_COPY && rest.is_empty();
        out.truncate(start + length);
        match is_complete {
            true => Ok(()),
            false => Err(UnreadableEvent),
        }
    }
}

/// Copies all of `from`, of which `length` bytes count. Returns the rest of `to` after these.
#[inline]
fn copy_padded<'a, const N: usize>(
    to: &'a mut [u8],
    from: &[u8; N],
    length: usize,
) -> Result<&'a mut [u8], UnreadableEvent> {
    *to.first_chunk_mut().ok_or(UnreadableEvent)? = *from;
    to.get_mut(length..).ok_or(UnreadableEvent)
}

#[inline]
fn copy<'a>(to: &'a mut [u8], from: &[u8]) -> Result<&'a mut [u8], UnreadableEvent> {
    let (start, rest) = to.split_at_mut_checked(from.len()).ok_or(UnreadableEvent)?;
    start.copy_from_slice(from);
    Ok(rest)
}

/// The names of the fields whose bits are set.
#[inline]
fn names(mut fields: u32) -> impl Iterator<Item = &'static Name> {
    std::iter::from_fn(move || {
        let name = NAMES.get(fields.trailing_zeros() as usize)?;
        fields &= fields - 1;
        Some(name)
    })
}

#[inline]
fn split_value(bytes: &[u8]) -> Result<(&[u8], &[u8]), UnreadableEvent> {
    let (&length, rest) = bytes.split_first().ok_or(UnreadableEvent)?;
    let (length, rest) = match usize::from(length) {
        LONG => {
            let (length, rest) = rest.split_first_chunk().ok_or(UnreadableEvent)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        length => (length, rest),
    };
    rest.split_at_checked(length).ok_or(UnreadableEvent)
}

#[cfg(test)]
mod tests;
