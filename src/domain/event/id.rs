//! Event ids derived from content (UUIDv5, RFC 9562 §5.5).

use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid, uuid};

use super::Time;

/// Namespace of detections' ids: the UUIDv5 of `https://meter.com/siem/detection` in RFC
/// 9562's namespace for URLs. It does not depend on settings, so that ids never change.
pub const DETECTION_NAMESPACE: Uuid = uuid!("12931670-c230-54a1-8649-e305a4c8c77f");

/// Namespace of gaps' ids: the UUIDv5 of `https://meter.com/siem/gap` in RFC 9562's
/// namespace for URLs.
pub const GAP_NAMESPACE: Uuid = uuid!("21810777-3af0-5fd6-aea7-1027ea02b4b2");

/// Id of a detection, the same for the same network, device, time and data.
pub(super) fn of_detection(network: Uuid, device: Uuid, time: Time, data: &[u8]) -> Uuid {
    // One slice rather than four, because this is the hot path.
    let mut start = [0; 44];
    start[..16].copy_from_slice(network.as_bytes());
    start[16..32].copy_from_slice(device.as_bytes());
    start[32..40].copy_from_slice(&time.seconds().to_be_bytes());
    start[40..].copy_from_slice(&time.nanos().to_be_bytes());
    uuid_v5(DETECTION_NAMESPACE, &[&start, data])
}

/// Id of a gap, the same for the same range of the same integration.
pub(super) fn of_gap(integration_id: Uuid, first: u64, last: u64) -> Uuid {
    uuid_v5(
        GAP_NAMESPACE,
        &[
            integration_id.as_bytes(),
            &first.to_be_bytes(),
            &last.to_be_bytes(),
        ],
    )
}

fn uuid_v5(namespace: Uuid, name: &[&[u8]]) -> Uuid {
    let mut sha1 = Sha1::new_with_prefix(namespace.as_bytes());
    for part in name {
        sha1.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&sha1.finalize()[..16]);
    Builder::from_sha1_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_derived_as_documented() {
        let of = |url: &str| Uuid::new_v5(&Uuid::NAMESPACE_URL, url.as_bytes());
        assert_eq!(DETECTION_NAMESPACE, of("https://meter.com/siem/detection"));
        assert_eq!(GAP_NAMESPACE, of("https://meter.com/siem/gap"));
    }

    #[test]
    fn an_id_is_the_uuid_v5_of_the_documented_name() {
        let (network, device) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let time = Time::new(-3, 7).unwrap();
        let mut name = Vec::new();
        name.extend_from_slice(network.as_bytes());
        name.extend_from_slice(device.as_bytes());
        name.extend_from_slice(&(-3_i64).to_be_bytes());
        name.extend_from_slice(&7_u32.to_be_bytes());
        name.extend_from_slice(b"{}");
        assert_eq!(
            of_detection(network, device, time, b"{}"),
            Uuid::new_v5(&DETECTION_NAMESPACE, &name)
        );
    }
}
