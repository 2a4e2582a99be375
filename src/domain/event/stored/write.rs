//! A valid event becomes a stored one.

use uuid::Uuid;

use super::{
    CODE, HEAD_LENGTH, LONG, OWN_ATTRIBUTES, OWN_ID, Outline, USUAL_ATTRIBUTES,
    names::{Field, NAMES},
};
use crate::domain::event::{
    Detection, MAX_BODY_LENGTH, Rejection, RejectionReason, Time, ValidEvent,
    context::Context,
    json::{write_escaped, write_number, write_string},
    render::{Format, fixed_length},
    time::DIGITS,
};

impl ValidEvent<'_> {
    /// Appends the event to `out` as the log holds it.
    ///
    /// # Errors
    ///
    /// Where the record would exceed [`crate::domain::event::MAX_RECORD_LENGTH`]; `out` is then as it was.
    pub fn store(&self, format: &Format, out: &mut Vec<u8>) -> Result<Outline, Rejection> {
        // Escapes may make text up to six times as long: this bounds what is written
        // before its length is known.
        if self.text_length() > MAX_BODY_LENGTH {
            return Err(too_large());
        }
        let start = out.len();
        out.resize(start + HEAD_LENGTH, 0);
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
        let head = Head {
            device: self.device,
            network: self.network,
            stored_length: (fixed_length(attributes, self.time.exact_digits()) + data_length)
                as u32,
            time: self.time,
            present,
        };
        out[start..start + HEAD_LENGTH].copy_from_slice(&head.to_bytes());
        Ok(Outline {
            partition_key: self.device,
            body_length,
        })
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
            list(out, detection.vlan.ids(), |out, &id| {
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

/// Up to the brace that ends it.
fn write_metadata(out: &mut Vec<u8>, detection: &Detection<'_>) {
    for (number, (key, values)) in detection.metadata.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write_string(out, key);
        out.extend_from_slice(b":[");
        list(out, values, |out, value| write_string(out, value));
    }
    out.push(b'}');
}

/// Up to the bracket that ends it.
fn list<T>(out: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// Values in the making.
struct Values<'a> {
    out: &'a mut Vec<u8>,
    present: u32,
    /// Of names and values of fields.
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

    /// Appends a value with its length, which it returns.
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

struct Head {
    device: Uuid,
    network: Uuid,
    /// With the shortest exact fraction in the time, as versions before wrote it.
    stored_length: u32,
    time: Time,
    present: u32,
}

impl Head {
    fn to_bytes(&self) -> [u8; HEAD_LENGTH] {
        let mut bytes = [0; HEAD_LENGTH];
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
        "would exceed the 1 MiB that Kinesis takes as one record, partition key included; \
         shorten ids_detection.context_json",
    )
}
