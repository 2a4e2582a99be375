//! Test events and gap events, which the service itself creates.

use uuid::Uuid;

use super::{
    Format, RecordHead, Time, id,
    json::{write_number, write_string, write_uuid},
    render::{CONTENT_TYPE, write_attributes},
};

/// Range of accepted events that will not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Sequence of the first event.
    pub first_sequence: u64,
    /// Sequence of the last event, which is also that of the gap event.
    pub last_sequence: u64,
    /// Number of events, which is less than the length of the range if others in it were
    /// delivered.
    pub count: u64,
    /// Time when the first of the events was accepted.
    pub first_time: Time,
    /// Time when the last of the events was accepted.
    pub last_time: Time,
    /// Reason why they will not be delivered.
    pub reason: GapReason,
}

impl Gap {
    /// Merges two gaps into one that covers both.
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

named_enum! {
    /// Reason why events will not be delivered.
    pub enum GapReason {
        /// They exceeded the age limit of retention.
        RetentionAge = "RETENTION_AGE",
        /// The pending events exceeded the size limit of retention.
        RetentionSize = "RETENTION_SIZE",
        /// Kinesis refused the record while it accepted others.
        RecordRefused = "RECORD_REFUSED",
        /// The stored events are damaged.
        LogDamaged = "LOG_DAMAGED",
        /// An operator accepted that a part of the log is lost. The count is an upper bound.
        LogLost = "LOG_LOST",
        /// Gaps with different reasons were merged.
        Several = "SEVERAL",
    }
}

/// Appends the record of a test event with its line break. Subject and partition key are the
/// integration's id, and there is no sequence.
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
    write_until_data(out, integration_id, attributes, event_id, time);
    out.extend_from_slice(br#"{"type":"TYPE_TEST","message":"#);
    write_string(out, message);
    out.extend_from_slice(b"}}\n");
}

/// Appends the record of a gap event with its line break, and returns its id, which is the
/// same for the same range of the same integration. Subject and partition key are the
/// integration's id, the sequence is the last of the range, and the time is when the last of
/// the events was accepted.
pub fn render_gap(integration_id: Uuid, format: &Format, gap: &Gap, out: &mut Vec<u8>) -> Uuid {
    let event_id = id::of_gap(integration_id, gap.first_sequence, gap.last_sequence);
    RecordHead::new(integration_id).write(gap.last_sequence, out);
    let attributes = format.gap();
    write_until_data(out, integration_id, attributes, event_id, gap.last_time);
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

/// Appends the attributes, with the integration's id as partition key and subject, up to the
/// start of `data`.
fn write_until_data(
    out: &mut Vec<u8>,
    integration_id: Uuid,
    attributes: &[u8],
    event_id: Uuid,
    time: Time,
) {
    let id_at = write_attributes(out, integration_id, attributes, integration_id);
    event_id
        .hyphenated()
        .encode_lower(&mut out[id_at..id_at + 36]);
    time.write_rfc3339(out);
    out.extend_from_slice(CONTENT_TYPE);
}
