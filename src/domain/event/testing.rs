//! Stored events for tests of the log, in both formats that it may contain.

use uuid::Uuid;

use super::{Detection, Event, Format, Payload, Timestamp};

/// Bytes that [`store`] appends.
pub const STORED_LENGTH: usize = 81;

/// Appends a stored event of the sensor: in the current format if `number` is even, else in
/// the older one.
pub fn store(device: Uuid, number: u32, out: &mut Vec<u8>) {
    let end = out.len() + STORED_LENGTH;
    if number.is_multiple_of(2) {
        store_current(device, out);
    } else {
        out.extend_from_slice(format!("\"partitionkey\":\"{device}\",").as_bytes());
        out.resize(end, b' ');
    }
    assert_eq!(out.len(), end);
}

fn store_current(device: Uuid, out: &mut Vec<u8>) {
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
