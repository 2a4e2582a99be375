//! Content of notifications.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    domain::{
        integration::Snapshot,
        status::{Reason, Status},
    },
    store::Tombstone,
};

const EXPIRING: &str = "integration.events_expiring";

/// Occasion of a notification.
pub(super) enum Notice {
    /// The integration was created, or its status changed.
    Changed,
    /// Its oldest event expires soon.
    Expiring,
    /// It was deleted.
    Deleted(Tombstone),
}

/// Notification as the receiver gets it.
pub(super) struct Message {
    /// The same for all attempts to send one state.
    pub(super) id: String,
    /// JSON.
    pub(super) body: Vec<u8>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    organization_id: &'a str,
    integration_id: String,
    revision: String,
    status: Option<&'static str>,
    previous_status: Option<&'static str>,
    reason: Option<&'static str>,
    message: Option<&'static str>,
    since: String,
    pending_events: u64,
    oldest_pending_at: Option<String>,
    oldest_expires_at: Option<String>,
}

/// Time as events have it: RFC 3339 with six digits of the second.
fn time_text(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Revision with 20 digits, so that texts compare as numbers do, also in languages whose numbers
/// have 53 bits.
fn revision_text(revision: u64) -> String {
    format!("{revision:020}")
}

impl Message {
    /// Creation of an integration, or change of its status. `previous` is the status that the
    /// receiver knows.
    pub(super) fn changed(
        snapshot: &Snapshot,
        previous: Option<Status>,
        oldest: Option<Timestamp>,
        expires_at: Option<Timestamp>,
    ) -> Self {
        let at = snapshot.status.since;
        let data = Data::new(snapshot, previous, oldest, expires_at);
        Self::new("integration.status_changed", at, data)
    }

    /// Warning that the oldest event expires soon.
    pub(super) fn expiring(
        snapshot: &Snapshot,
        previous: Option<Status>,
        oldest: Option<Timestamp>,
        expires_at: Option<Timestamp>,
    ) -> Self {
        let at = oldest.unwrap_or(snapshot.status.since);
        let data = Data::new(snapshot, previous, oldest, expires_at);
        Self::new(EXPIRING, at, data)
    }

    /// Deletion.
    pub(super) fn deleted(tombstone: &Tombstone, previous: Option<Status>) -> Self {
        let data = Data {
            organization_id: tombstone.organization_id.as_str(),
            integration_id: tombstone.integration_id.to_string(),
            revision: revision_text(tombstone.revision),
            status: None,
            previous_status: previous.map(Status::as_str),
            reason: None,
            message: None,
            since: time_text(tombstone.deleted_at),
            pending_events: 0,
            oldest_pending_at: None,
            oldest_expires_at: None,
        };
        Self::new("integration.deleted", tombstone.deleted_at, data)
    }

    fn new(kind: &'static str, at: Timestamp, data: Data<'_>) -> Self {
        let Data {
            integration_id,
            revision,
            ..
        } = &data;
        let mut id = format!("{integration_id}.{revision}.{kind}");
        if kind == EXPIRING {
            // Of warnings there may be several for one revision.
            id = format!("{id}.{}", at.as_microsecond());
        }
        let body = Body {
            r#type: kind,
            timestamp: time_text(at),
            data,
        };
        // Texts and numbers are always JSON.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        Self { id, body }
    }
}

impl<'a> Data<'a> {
    fn new(
        snapshot: &'a Snapshot,
        previous: Option<Status>,
        oldest: Option<Timestamp>,
        expires_at: Option<Timestamp>,
    ) -> Self {
        let status = &snapshot.status;
        Self {
            organization_id: snapshot.integration.organization_id.as_str(),
            integration_id: snapshot.integration.integration_id.to_string(),
            revision: revision_text(snapshot.revision),
            status: Some(status.status.as_str()),
            previous_status: previous.map(Status::as_str),
            reason: status.reason.map(Reason::as_str),
            message: status.reason.map(Reason::message),
            since: time_text(status.since),
            pending_events: snapshot.progress.pending(),
            oldest_pending_at: oldest.map(time_text),
            oldest_expires_at: expires_at.map(time_text),
        }
    }
}
