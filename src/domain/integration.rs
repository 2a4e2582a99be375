//! An organization's integration, as it is configured and as it has fared.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    arn::{RoleArn, StreamArn},
    organization::OrganizationId,
    status::StatusDetail,
};

/// The store's own number of an integration. It is never used again after a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntegrationKey(pub i64);

impl IntegrationKey {
    /// Of an integration that is not stored. The store numbers from 1.
    pub const UNSTORED: Self = Self(0);
}

/// An integration as it is configured. Immutable: a Configure makes a new one
/// with the next version.
#[derive(Clone, Debug)]
pub struct Integration {
    /// The store's number.
    pub key: IntegrationKey,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// New at every creation; each record carries it.
    pub integration_id: Uuid,
    /// Where the events go.
    pub stream_arn: StreamArn,
    /// The role that is assumed.
    pub role_arn: RoleArn,
    /// The external ID, encrypted.
    pub external_id: SealedExternalId,
    /// The external ID's last characters.
    pub external_id_hint: Box<str>,
    /// When the external ID was set.
    pub external_id_set_at: Timestamp,
    /// The external ID before, while the new one has not worked yet.
    pub previous: Option<PreviousExternalId>,
    /// From 1; the next at every Configure.
    pub version: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last configured.
    pub updated_at: Timestamp,
}

/// An external ID that serves until its successor works.
#[derive(Clone, Debug)]
pub struct PreviousExternalId {
    /// The external ID, encrypted.
    pub external_id: SealedExternalId,
    /// Its last characters.
    pub hint: Box<str>,
    /// It does not serve for longer.
    pub until: Timestamp,
}

impl Integration {
    /// The external ID before, while it still serves.
    pub fn previous_at(&self, now: Timestamp) -> Option<&PreviousExternalId> {
        self.previous
            .as_ref()
            .filter(|previous| now < previous.until)
    }

    /// What a caller sends back to change only what it has seen.
    pub fn etag(&self) -> String {
        let (high, low) = self.integration_id.as_u64_pair();
        format!("{:x}-{}", high ^ low, self.version)
    }
}

/// An external ID under AES-256-GCM. Only the store opens it.
#[derive(Clone, Debug)]
pub struct SealedExternalId {
    /// Which key sealed it.
    pub key_id: Box<str>,
    /// Nonce, ciphertext and tag.
    pub bytes: Box<[u8]>,
}

/// How far an integration's log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The sequence that the next accepted event gets; from 1.
    pub next_sequence: u64,
    /// Events that the stream accepted.
    pub delivered: u64,
    /// Events that retention removed.
    pub expired: u64,
    /// Events that were discarded.
    pub discarded: u64,
    /// Bytes of the pending events, as they are stored before compression.
    pub pending_bytes: u64,
}

impl Progress {
    /// The progress of an integration that has accepted nothing.
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

    /// Events that wait.
    pub fn pending(&self) -> u64 {
        self.accepted() - self.delivered - self.expired - self.discarded
    }
}

/// All that is known of an integration at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its configuration.
    pub integration: Arc<Integration>,
    /// How it fares.
    pub status: Arc<StatusDetail>,
    /// How far its log has come.
    pub progress: Progress,
    /// The revision of its last change.
    pub revision: u64,
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An integration of an AWS account of its own number.
    pub(crate) fn integration(key: i64, account: u64) -> Integration {
        let now = Timestamp::UNIX_EPOCH;
        let stream = format!("arn:aws:kinesis:eu-west-1:{account:012}:stream/detections");
        let role = format!("arn:aws:iam::{account:012}:role/customer-{key}");
        Integration {
            key: IntegrationKey(key),
            organization_id: OrganizationId::new("acme").unwrap(),
            integration_id: Uuid::from_u128(key as u128),
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
