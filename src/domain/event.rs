//! Events: what a caller publishes, checked and rendered as CloudEvents.
//!
//! An [`Event`] borrows from the request it came in. [`Event::validate`] checks
//! it, and [`ValidEvent::store`] writes it as the log holds it. [`finish`] makes of
//! that the record that lands in the stream: a head, which only delivery knows
//! (integration and sequence), and the *body*, all else of the CloudEvent.

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
    Format, FormatError, Head, KEY_LENGTH, MAX_BODY_LENGTH, MAX_RECORD_LENGTH, RECORD_OVERHEAD,
    finish,
};
pub use service_events::{Gap, GapReason, render_gap, render_test};
pub use stored::{Outline, UnreadableEvent, body_length, outline};
pub use time::{Time, Timestamp};
pub use validate::{MAX_VLAN_ID, Rejection, RejectionReason, ValidEvent};

/// VLAN tags that one packet may carry.
pub const MAX_VLANS: usize = 8;

/// One event as it was published: not checked yet.
#[derive(Debug, Clone, Default)]
pub struct Event<'a> {
    /// The organization it belongs to.
    pub organization_id: &'a str,
    /// The network in which it happened.
    pub network_id: &'a str,
    /// The sensor that saw it.
    pub device_id: &'a str,
    /// When the sensor saw it.
    pub observed_time: Option<Timestamp>,
    /// The CloudEvents id, where the caller chose it.
    pub event_id: Option<&'a str>,
    /// What happened.
    pub payload: Option<Payload<'a>>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Payload<'a> {
    /// An intrusion detection.
    Detection(Detection<'a>),
}

/// An alert of an intrusion detection system; the fields are those of Suricata's
/// EVE JSON.
///
/// An empty text is one that was not given, but for `signature` and `category`,
/// which Suricata also writes empty.
#[derive(Debug, Clone, Default)]
pub struct Detection<'a> {
    /// IPv4 or IPv6 address of the packet's source.
    pub src_ip: &'a str,
    /// Port of the packet's source; not given where the protocol has none.
    pub src_port: Option<u32>,
    /// IPv4 or IPv6 address of the packet's destination.
    pub dest_ip: &'a str,
    /// Port of the packet's destination; not given where the protocol has none.
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
    /// Generator of the rule.
    pub gid: Option<u32>,
    /// The rule's sid.
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
    /// Any further JSON object as text.
    pub context_json: &'a str,
}

/// VLAN identifiers. The first [`MAX_VLANS`] are held, any more only counted.
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

    /// How many were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first [`MAX_VLANS`] of them, in order.
    pub fn ids(&self) -> &[u32] {
        &self.ids[..self.count.min(MAX_VLANS)]
    }
}

/// A rule's metadata: keys, each with its values in order.
///
/// All values share one list, so that an entry costs no allocation of its own.
#[derive(Debug, Clone, Default)]
pub struct Metadata<'a> {
    entries: Vec<MetadataEntry<'a>>,
    values: Vec<&'a str>,
    /// How many of the values belong to an entry.
    ended: usize,
}

#[derive(Debug, Clone, Copy)]
struct MetadataEntry<'a> {
    key: &'a str,
    start: usize,
    end: usize,
}

impl<'a> Metadata<'a> {
    /// Adds a value to the entry that the next [`Metadata::end_entry`] completes.
    pub fn push_value(&mut self, value: &'a str) {
        self.values.push(value);
    }

    /// Completes an entry: all values since the last one are of this key.
    pub fn end_entry(&mut self, key: &'a str) {
        let start = std::mem::replace(&mut self.ended, self.values.len());
        let end = self.ended;
        self.entries.push(MetadataEntry { key, start, end });
    }

    /// Sorts the entries by key; of those with the same key the last one stays.
    /// To be called after the last entry.
    pub fn sort(&mut self) {
        if self
            .entries
            .is_sorted_by(|left, right| left.key < right.key)
        {
            return;
        }
        // In reverse, so that the last of a key comes first and is the one kept.
        self.entries.reverse();
        self.entries.sort_by_key(|entry| entry.key);
        self.entries.dedup_by_key(|entry| entry.key);
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &[&'a str])> {
        self.entries
            .iter()
            .map(|entry| (entry.key, &self.values[entry.start..entry.end]))
    }
}

#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod tests;
