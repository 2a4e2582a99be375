//! An organization's integration: its configuration, status and event counts.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    arn::{RoleArn, StreamArn},
    organization::OrganizationId,
    status::StatusDetail,
};

/// Id of an integration: a UUIDv7, new at every creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntegrationId(pub Uuid);

impl fmt::Display for IntegrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Configuration of an integration. Immutable: a Configure makes a new value with the next
/// version.
#[derive(Clone, Debug)]
pub struct Integration {
    /// Organization that it belongs to.
    pub organization_id: OrganizationId,
    /// Its id, which the records carry.
    pub integration_id: IntegrationId,
    /// Stream that the events are written to.
    pub stream_arn: StreamArn,
    /// Role that is assumed to write to the stream.
    pub role_arn: RoleArn,
    /// Encrypted external ID.
    pub external_id: SealedExternalId,
    /// The external ID's last characters.
    pub external_id_hint: Box<str>,
    /// Time when the external ID was set.
    pub external_id_set_at: Timestamp,
    /// Previous external ID, until the new one has worked.
    pub previous: Option<PreviousExternalId>,
    /// Version of the configuration: 1 at creation, one more at every Configure.
    pub version: u64,
    /// Creation time.
    pub created_at: Timestamp,
    /// Time of the last Configure.
    pub updated_at: Timestamp,
}

/// External ID that may be used until its successor works.
#[derive(Clone, Debug)]
pub struct PreviousExternalId {
    /// Encrypted external ID.
    pub external_id: SealedExternalId,
    /// Its last characters.
    pub hint: Box<str>,
    /// Time after which it is not used any more.
    pub until: Timestamp,
}

impl Integration {
    /// Previous external ID, if it may be used at `now`.
    pub fn previous_at(&self, now: Timestamp) -> Option<&PreviousExternalId> {
        self.previous
            .as_ref()
            .filter(|previous| now < previous.until)
    }

    /// Opaque version that a caller sends back so that a Configure applies only to the
    /// configuration it has read.
    pub fn etag(&self) -> String {
        let (high, low) = self.integration_id.0.as_u64_pair();
        format!("{:x}-{}", high ^ low, self.version)
    }
}

/// External ID encrypted with AES-256-GCM. Only the store decrypts it.
#[derive(Clone, Debug)]
pub struct SealedExternalId {
    /// Id of the encryption key.
    pub key_id: Box<str>,
    /// Nonce, ciphertext and tag.
    pub bytes: Box<[u8]>,
}

/// Event counts of an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Sequence of the next accepted event; the first one has 1.
    pub next_sequence: u64,
    /// Events that the stream accepted.
    pub delivered: u64,
    /// Events removed before delivery, announced by gap events.
    pub expired: u64,
    /// Events that a Delete removed before delivery.
    pub discarded: u64,
    /// Bytes of the pending events, before compression.
    pub pending_bytes: u64,
}

impl Progress {
    /// Counts of an integration that has accepted no event.
    pub const NEW: Self = Self {
        next_sequence: 1,
        delivered: 0,
        expired: 0,
        discarded: 0,
        pending_bytes: 0,
    };

    /// Events accepted since the integration was created.
    pub fn accepted(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Events accepted and not yet delivered, expired or discarded.
    pub fn pending(&self) -> u64 {
        let done = self.delivered + self.expired + self.discarded;
        self.accepted().saturating_sub(done)
    }

    /// Counts after a Delete, which discards what is pending.
    pub fn after_delete(self) -> Self {
        Self {
            discarded: self.discarded + self.pending(),
            pending_bytes: 0,
            ..self
        }
    }
}

/// Configuration, status and event counts of an integration at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its configuration.
    pub integration: Arc<Integration>,
    /// Its status.
    pub status: Arc<StatusDetail>,
    /// Its event counts.
    pub progress: Progress,
    /// Revision of its last change.
    pub revision: u64,
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Id made of a number.
    pub(crate) fn testing_id(number: i64) -> IntegrationId {
        IntegrationId(Uuid::from_u128(number as u128))
    }

    /// An integration with stream and role in `account`.
    pub(crate) fn integration(key: i64, account: u64) -> Integration {
        let now = Timestamp::UNIX_EPOCH;
        let stream = format!("arn:aws:kinesis:eu-west-1:{account:012}:stream/detections");
        let role = format!("arn:aws:iam::{account:012}:role/customer-{key}");
        Integration {
            organization_id: OrganizationId::new("acme").unwrap(),
            integration_id: IntegrationId(Uuid::from_u128(key as u128)),
            stream_arn: StreamArn::parse(&stream).unwrap(),
            role_arn: RoleArn::parse(&role).unwrap(),
            external_id: SealedExternalId {
                key_id: "k".into(),
                bytes: Box::default(),
            },
            external_id_hint: "seen".into(),
            external_id_set_at: now,
            previous: None,
            version: 1,
            created_at: now,
            updated_at: now,
        }
    }
}
