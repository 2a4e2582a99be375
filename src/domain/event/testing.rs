//! Events for tests of what keeps them, in both forms in which the log may hold one.

use uuid::Uuid;

use super::{Detection, Event, Format, Payload, Timestamp};

/// Bytes in the log of what [`store`] appends.
pub const STORED_LENGTH: usize = 81;

/// Appends one event of the sensor as the log holds it: every other one by its fields, the
/// rest as versions before held it.
pub fn store(device: Uuid, number: u32, out: &mut Vec<u8>) {
    let end = out.len() + STORED_LENGTH;
    if number.is_multiple_of(2) {
        by_fields(device, out);
    } else {
        out.extend_from_slice(format!("\"partitionkey\":\"{device}\",").as_bytes());
        out.resize(end, b' ');
    }
    assert_eq!(out.len(), end);
}

fn by_fields(device: Uuid, out: &mut Vec<u8>) {
    let device = device.to_string();
    let event = Event {
        organization_id: "acme",
        network_id: "0198c0de-7a11-7000-8000-0000000000aa",
        device_id: &device,
        observed_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        event_id: None,
        payload: Some(Payload::Detection(Detection {
            signature: Some("ET SCAN a port is open \u{2713}"),
            ..Detection::default()
        })),
    };
    let format = Format::new("https://meter.com", "com.meter").unwrap();
    event.validate().unwrap().store(&format, out).unwrap();
}
