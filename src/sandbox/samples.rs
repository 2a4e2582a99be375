//! Sample detections: the lines of `samples.jsonl`, in Suricata's EVE JSON, with addresses and
//! names that are reserved for documentation.

use jiff::Timestamp;
use uuid::{Uuid, uuid};

use crate::publish::eve::{self, Origin, Record};
use siem_client::v1::{Event, event::Payload};

const LINES: &str = include_str!("samples.jsonl");

/// Network of events if none is given.
pub const DEFAULT_NETWORK: Uuid = NETWORKS[0];
/// Sensor of events if none is given.
pub const DEFAULT_DEVICE: Uuid = DEVICES[0];

const NETWORKS: [Uuid; 2] = [
    uuid!("4e740000-0000-4000-8000-000000000001"),
    uuid!("4e740000-0000-4000-8000-000000000002"),
];
/// Devices, two for each of four shards: Kinesis places a partition key by its MD5 hash, of
/// which each shard has a quarter.
const DEVICES: [Uuid; 8] = [
    uuid!("5e250000-0000-4000-8000-000000000001"),
    uuid!("5e250000-0000-4000-8000-000000000002"),
    uuid!("5e250000-0000-4000-8000-000000000003"),
    uuid!("5e250000-0000-4000-8000-00000000000f"),
    uuid!("5e250000-0000-4000-8000-000000000004"),
    uuid!("5e250000-0000-4000-8000-000000000007"),
    uuid!("5e250000-0000-4000-8000-000000000006"),
    uuid!("5e250000-0000-4000-8000-000000000011"),
];

/// Endless repetition of the samples, each observed now, and so with its own id.
pub(super) struct Samples {
    templates: Vec<Event>,
    made: u64,
    /// Time of the last event; no two events have the same.
    last: Timestamp,
}

impl Samples {
    pub(super) fn new(organization: &str) -> Self {
        let lines = LINES.lines().zip(DEVICES.iter().enumerate().cycle());
        let templates = lines.filter_map(|(line, (at, device))| {
            let network = NETWORKS[at % NETWORKS.len()];
            let origin = Origin::new(organization, network, *device);
            // A test proves that every line is an alert.
            match eve::parse(line, &origin) {
                Ok(Record::Alert(event)) => Some(*event),
                Ok(Record::Other(_)) | Err(_) => None,
            }
        });
        Self {
            templates: templates.collect(),
            made: 0,
            last: Timestamp::MIN,
        }
    }

    /// Returns the next event.
    pub(super) fn next(&mut self) -> Event {
        let count = self.templates.len() as u64;
        let (round, at) = (self.made / count, self.made % count);
        // Less than the number of templates.
        let mut event = self.templates[at as usize].clone();
        self.made += 1;
        event.observed_time = Some(self.now());
        if let Some(Payload::IdsDetection(detection)) = &mut event.payload {
            detection.flow_id = detection.flow_id.map(|flow| flow + round);
        }
        event
    }

    /// Returns the current time in microseconds, or one more than the last.
    fn now(&mut self) -> siem_client::Timestamp {
        let micros = Timestamp::now()
            .as_microsecond()
            .max(self.last.as_microsecond() + 1);
        self.last = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
        siem_client::Timestamp {
            seconds: micros.div_euclid(1_000_000),
            // Below a billion.
            nanos: (micros.rem_euclid(1_000_000) * 1_000) as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use md5::{Digest as _, Md5};

    use super::*;

    #[test]
    fn every_line_is_an_alert() {
        let lines = LINES.lines().count();
        assert!(lines >= 12, "{lines}");
        assert_eq!(Samples::new("acme").templates.len(), lines);
    }

    #[test]
    fn no_two_share_time_and_content() {
        let mut samples = Samples::new("acme");
        let times: BTreeSet<_> = (0..1_000)
            .filter_map(|_| samples.next().observed_time)
            .map(|time| (time.seconds, time.nanos))
            .collect();
        assert_eq!(times.len(), 1_000);
    }

    #[test]
    fn shards_get_their_share() {
        let mut devices = BTreeMap::new();
        for device in DEVICES {
            let quarter = Md5::digest(device.to_string())[0] >> 6;
            *devices.entry(quarter).or_insert(0) += 1;
        }
        assert_eq!(devices, BTreeMap::from([(0, 2), (1, 2), (2, 2), (3, 2)]));
    }

    #[test]
    fn addresses_and_names_are_for_documentation() {
        let reserved = ["192.0.2.", "198.51.100.", "203.0.113.", "2001:db8:"];
        for event in Samples::new("acme").templates {
            let Some(Payload::IdsDetection(detection)) = event.payload else {
                panic!("{event:?}");
            };
            for address in [&detection.src_ip, &detection.dest_ip] {
                let documented = reserved.iter().any(|start| address.starts_with(start));
                assert!(documented, "{address}");
            }
            let sid = detection.signature_id.unwrap();
            assert!((1_000_000..2_000_000).contains(&sid), "{sid}");
        }
    }
}
