//! Events: their validation, storage format and rendering as CloudEvents.
//!
//! An [`Event`] borrows from the request that published it. [`Event::validate`] checks it,
//! and [`ValidEvent::store`] writes it in the log's format. [`render_record`] makes the
//! record in the stream from that: a *head* with integration and sequence, which only
//! delivery knows, and the *body*, which is the rest of the CloudEvent.

mod context;
mod id;
mod json;
mod render;
mod service_events;
mod stored;
mod time;
mod validate;

pub use context::MAX_DEPTH as MAX_CONTEXT_DEPTH;
pub use id::{DETECTION_NAMESPACE, GAP_NAMESPACE};
pub use render::{
    Format, FormatError, MAX_BODY_LENGTH, MAX_RECORD_LENGTH, PARTITION_KEY_LENGTH, RECORD_OVERHEAD,
    RecordHead, render_record,
};
pub use service_events::{Gap, GapReason, render_gap, render_test};
pub use stored::{StoredEventInfo, UnreadableEvent, body_length, inspect};
pub use time::{Time, Timestamp};
pub use validate::{MAX_VLAN_ID, Rejection, RejectionReason, ValidEvent};

/// Most VLAN tags of one packet.
pub const MAX_VLANS: usize = 8;

/// One published event, not validated yet.
#[derive(Debug, Clone, Default)]
pub struct Event<'a> {
    /// Organization that it belongs to.
    pub organization_id: &'a str,
    /// Network in which it was observed.
    pub network_id: &'a str,
    /// Sensor that observed it.
    pub device_id: &'a str,
    /// Time of the observation.
    pub observed_time: Option<Timestamp>,
    /// CloudEvents id, if the caller chose one.
    pub event_id: Option<&'a str>,
    /// Content of the event.
    pub payload: Option<Payload<'a>>,
}

/// Content of an event.
#[derive(Debug, Clone)]
pub enum Payload<'a> {
    /// An intrusion detection.
    Detection(Detection<'a>),
}

/// Alert of an intrusion detection system, with the fields of Suricata's EVE JSON.
///
/// An empty text counts as not given, except in `signature` and `category`, which Suricata
/// may write empty.
#[derive(Debug, Clone, Default)]
pub struct Detection<'a> {
    /// IPv4 or IPv6 address of the packet's source.
    pub src_ip: &'a str,
    /// Port of the packet's source; None if the protocol has no ports.
    pub src_port: Option<u32>,
    /// IPv4 or IPv6 address of the packet's destination.
    pub dest_ip: &'a str,
    /// Port of the packet's destination; None if the protocol has no ports.
    pub dest_port: Option<u32>,
    /// Transport protocol.
    pub proto: &'a str,
    /// Application protocol.
    pub app_proto: &'a str,
    /// Suricata's flow identifier.
    pub flow_id: Option<u64>,
    /// Community ID of the flow.
    pub community_id: &'a str,
    /// VLAN identifiers, outermost first.
    pub vlan: Vlans,
    /// Capture interface.
    pub in_iface: &'a str,
    /// `to_server` or `to_client`.
    pub direction: &'a str,
    /// `allowed` or `blocked`.
    pub action: &'a str,
    /// The rule's generator id.
    pub gid: Option<u32>,
    /// The rule's signature id (sid).
    pub signature_id: Option<u32>,
    /// The rule's revision.
    pub rev: Option<u32>,
    /// The rule's message.
    pub signature: Option<&'a str>,
    /// The rule's classification.
    pub category: Option<&'a str>,
    /// The rule's priority; 1 is the most severe.
    pub severity: Option<u32>,
    /// The rule's metadata.
    pub metadata: Metadata<'a>,
    /// Text of a JSON object with further data.
    pub context_json: &'a str,
}

/// VLAN identifiers. The first [`MAX_VLANS`] are kept, further ones are only counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vlans {
    ids: [u32; MAX_VLANS],
    count: usize,
}

impl Vlans {
    /// Adds an identifier.
    pub fn push(&mut self, id: u32) {
        if let Some(free) = self.ids.get_mut(self.count) {
            *free = id;
        }
        self.count += 1;
    }

    /// Number of identifiers added, including those not kept.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Identifiers that are kept, in the order of their addition.
    pub fn ids(&self) -> &[u32] {
        &self.ids[..self.count.min(MAX_VLANS)]
    }
}

/// Metadata of a rule: names, each with its values in order.
///
/// All values share one list, so that an entry needs no separate allocation.
#[derive(Debug, Clone, Default)]
pub struct Metadata<'a> {
    entries: Vec<MetadataEntry<'a>>,
    values: Vec<&'a str>,
    /// Number of values that belong to a completed entry.
    ended: usize,
}

#[derive(Debug, Clone, Copy)]
struct MetadataEntry<'a> {
    name: &'a str,
    start: usize,
    end: usize,
}

impl<'a> Metadata<'a> {
    /// Adds a value to the entry that the next [`Metadata::end_entry`] completes.
    pub fn push_value(&mut self, value: &'a str) {
        self.values.push(value);
    }

    /// Completes an entry with all values that were added after the last one.
    pub fn end_entry(&mut self, name: &'a str) {
        let start = std::mem::replace(&mut self.ended, self.values.len());
        let end = self.ended;
        self.entries.push(MetadataEntry { name, start, end });
    }

    /// Sorts the entries by name and keeps the last one of each name. To be called after the
    /// last entry was added.
    pub fn sort(&mut self) {
        if self
            .entries
            .is_sorted_by(|left, right| left.name < right.name)
        {
            return;
        }
        // Reversed, so that the last entry of a name becomes the first, which is kept.
        self.entries.reverse();
        self.entries.sort_by_key(|entry| entry.name);
        self.entries.dedup_by_key(|entry| entry.name);
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &[&'a str])> {
        self.entries
            .iter()
            .map(|entry| (entry.name, &self.values[entry.start..entry.end]))
    }
}

#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod tests;
