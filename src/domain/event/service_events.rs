//! Records that the service writes of its own accord: tests and gaps.

use uuid::Uuid;

use super::{
    Format, Head, Time, id,
    json::{write_number, write_string, write_uuid},
    render::{CONTENT_TYPE, write_attributes},
};

/// A run of events that were accepted and will not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The sequence of the first event.
    pub first_sequence: u64,
    /// The sequence of the last event, which is also the gap's own.
    pub last_sequence: u64,
    /// How many events they are. Fewer than the range is long where others of the range
    /// were delivered.
    pub count: u64,
    /// When the first of the events was accepted.
    pub first_time: Time,
    /// When the last of the events was accepted.
    pub last_time: Time,
    /// Why they will not be delivered.
    pub reason: GapReason,
}

impl Gap {
    /// The gap that stands for both.
    pub fn merge(&self, other: &Self) -> Self {
        Self {
            first_sequence: self.first_sequence.min(other.first_sequence),
            last_sequence: self.last_sequence.max(other.last_sequence),
            count: self.count + other.count,
            first_time: self.first_time.min(other.first_time),
            last_time: self.last_time.max(other.last_time),
            reason: match self.reason == other.reason {
                true => self.reason,
                false => GapReason::Several,
            },
        }
    }
}

/// Why events will not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// They waited longer than events are kept.
    RetentionAge,
    /// More events waited than are kept.
    RetentionSize,
    /// Kinesis refused the record, while it took others.
    RecordRefused,
    /// The disk does not give back what was written to the log.
    LogDamaged,
    /// The gap stands for gaps of different reasons.
    Several,
}

impl GapReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::RetentionAge,
        Self::RetentionSize,
        Self::RecordRefused,
        Self::LogDamaged,
        Self::Several,
    ];

    /// As it stands in the gap event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RetentionAge => "RETENTION_AGE",
            Self::RetentionSize => "RETENTION_SIZE",
            Self::RecordRefused => "RECORD_REFUSED",
            Self::LogDamaged => "LOG_DAMAGED",
            Self::Several => "SEVERAL",
        }
    }
}

/// Appends the whole record of a test event, line break included. Its subject and
/// partition key are the integration's id, and it has no sequence.
pub fn render_test(
    integration_id: Uuid,
    format: &Format,
    event_id: Uuid,
    time: Time,
    message: &str,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(br#"{"specversion":"1.0","integrationid":""#);
    write_uuid(out, integration_id);
    out.extend_from_slice(b"\",");
    let attributes = format.test();
    start_data(out, integration_id, attributes, event_id, time);
    out.extend_from_slice(br#"{"type":"TYPE_TEST","message":"#);
    write_string(out, message);
    out.extend_from_slice(b"}}\n");
}

/// Appends the whole record of a gap event, line break included, and returns its
/// id: the same for the same range of the same integration. Its subject and
/// partition key are the integration's id, its sequence is the last of its range,
/// its time when the last of the events it stands for was accepted.
pub fn render_gap(integration_id: Uuid, format: &Format, gap: &Gap, out: &mut Vec<u8>) -> Uuid {
    let event_id = id::of_gap(integration_id, gap.first_sequence, gap.last_sequence);
    Head::new(integration_id).write(gap.last_sequence, out);
    let attributes = format.gap();
    start_data(out, integration_id, attributes, event_id, gap.last_time);
    out.extend_from_slice(br#"{"first_sequence":"#);
    write_number(out, gap.first_sequence);
    out.extend_from_slice(br#","last_sequence":"#);
    write_number(out, gap.last_sequence);
    out.extend_from_slice(br#","count":"#);
    write_number(out, gap.count);
    out.extend_from_slice(br#","first_time":""#);
    gap.first_time.write_rfc3339(out);
    out.extend_from_slice(br#"","last_time":""#);
    gap.last_time.write_rfc3339(out);
    out.extend_from_slice(br#"","reason":""#);
    out.extend_from_slice(gap.reason.as_str().as_bytes());
    out.extend_from_slice(b"\"}}\n");
    event_id
}

fn start_data(out: &mut Vec<u8>, key: Uuid, attributes: &[u8], event_id: Uuid, time: Time) {
    let id_at = write_attributes(out, key, attributes, key);
    event_id
        .hyphenated()
        .encode_lower(&mut out[id_at..id_at + 36]);
    time.write_rfc3339(out);
    out.extend_from_slice(CONTENT_TYPE);
}
