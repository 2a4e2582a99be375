//! Records for the tests of this module.

use serde_json::{Value, json};
use uuid::Uuid;

pub(super) const INTEGRATION: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);

pub(super) fn event(sequence: u64, id: u128, device: u128) -> Value {
    json!({
        "specversion": "1.0",
        "integrationid": INTEGRATION,
        "sequence": format!("{sequence:020}"),
        "partitionkey": Uuid::from_u128(device),
        "id": Uuid::from_u128(id),
        "source": "https://example.com",
        "type": "com.example.ids.detection",
        "subject": Uuid::from_u128(3),
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "data": {"type": "TYPE_DETECTION", "signature": "a {\"quoted\"} [brace"},
    })
}

pub(super) fn detection(sequence: u64) -> Value {
    event(sequence, sequence.into(), 7)
}

pub(super) fn gap(first: u64, last: u64, count: u64) -> Value {
    let mut gap = event(last, u128::from(last) << 64 | u128::from(first), 9);
    gap["type"] = "com.example.siem.gap".into();
    gap["data"] = json!({
        "first_sequence": first, "last_sequence": last, "count": count, "reason": "RETENTION_AGE",
        "first_time": "2026-01-01T00:00:00Z", "last_time": "2026-01-01T00:00:00Z",
    });
    gap
}
