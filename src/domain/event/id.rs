//! Event ids that are derived from content (UUIDv5, RFC 9562 §5.5).

use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid, uuid};

use super::Time;

/// The namespace of a detection's id: the UUIDv5 of `https://meter.com/siem/detection`
/// in RFC 9562's namespace for URLs. It is the same whatever the settings, so that
/// an id never changes.
pub const DETECTION_NAMESPACE: Uuid = uuid!("12931670-c230-54a1-8649-e305a4c8c77f");

/// The namespace of a gap's id, made as [`DETECTION_NAMESPACE`] of
/// `https://meter.com/siem/gap`.
pub const GAP_NAMESPACE: Uuid = uuid!("21810777-3af0-5fd6-aea7-1027ea02b4b2");

/// The id of a detection: the same for the same network, device, time and data.
pub(super) fn of_detection(network: Uuid, device: Uuid, time: Time, data: &[u8]) -> Uuid {
    // In one piece, since this is the hot path.
    let mut start = [0; 44];
    start[..16].copy_from_slice(network.as_bytes());
    start[16..32].copy_from_slice(device.as_bytes());
    start[32..40].copy_from_slice(&time.seconds().to_be_bytes());
    start[40..].copy_from_slice(&time.nanos().to_be_bytes());
    named(DETECTION_NAMESPACE, &[&start, data])
}

/// The id of a gap: the same for the same range of the same integration.
pub(super) fn of_gap(integration_id: Uuid, first: u64, last: u64) -> Uuid {
    named(
        GAP_NAMESPACE,
        &[
            integration_id.as_bytes(),
            &first.to_be_bytes(),
            &last.to_be_bytes(),
        ],
    )
}

fn named(namespace: Uuid, name: &[&[u8]]) -> Uuid {
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
    fn namespaces_are_made_as_documented() {
        let of = |url: &str| Uuid::new_v5(&Uuid::NAMESPACE_URL, url.as_bytes());
        assert_eq!(DETECTION_NAMESPACE, of("https://meter.com/siem/detection"));
        assert_eq!(GAP_NAMESPACE, of("https://meter.com/siem/gap"));
    }

    #[test]
    fn ids_are_version_5_of_the_documented_name() {
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
