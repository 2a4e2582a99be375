//! Integrations that need the worker's attention. At most one entry per integration, however
//! much happens.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::domain::{
    integration::IntegrationId,
    map::{self, Map},
};

/// Events of one integration since the worker's last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// Sequence and acceptance time of the first new event.
    pub appended: Option<(u64, Timestamp)>,
    /// The integration was configured.
    pub configured: bool,
    /// This instance does not deliver for the integration any more, or did not for a time. What
    /// is known of its events is outdated; `appended` is newer.
    pub lost: bool,
    /// The integration was deleted.
    pub deleted: bool,
}

/// Queue of integrations from the store to the worker.
#[derive(Debug, Default)]
pub(super) struct WorkFeed {
    waiting: Mutex<Map<IntegrationId, Attention>>,
    notify: Notify,
}

impl WorkFeed {
    /// Announces appended chunks, each with its first sequence and acceptance time.
    pub(super) fn appended(&self, chunks: impl Iterator<Item = (IntegrationId, u64, Timestamp)>) {
        self.add(chunks.map(|(id, first_sequence, accepted_at)| {
            let attention = Attention {
                appended: Some((first_sequence, accepted_at)),
                ..Attention::default()
            };
            (id, attention)
        }));
    }

    /// Announces that everything pending of integrations is to be delivered anew, with the
    /// acceptance time of the oldest event of each.
    pub(super) fn all_pending(&self, all: impl Iterator<Item = (IntegrationId, Timestamp)>) {
        self.add(all.map(|(id, since)| {
            let attention = Attention {
                appended: Some((1, since)),
                lost: true,
                ..Attention::default()
            };
            (id, attention)
        }));
    }

    /// Announces that an integration was configured.
    pub(super) fn configured(&self, id: IntegrationId) {
        let attention = Attention {
            configured: true,
            ..Attention::default()
        };
        self.add(std::iter::once((id, attention)));
    }

    /// Announces that this instance does not deliver for integrations any more.
    pub(super) fn lost(&self, ids: impl Iterator<Item = IntegrationId>) {
        let attention = Attention {
            lost: true,
            ..Attention::default()
        };
        self.add(ids.map(|id| (id, attention)));
    }

    /// Announces that an integration was deleted.
    pub(super) fn deleted(&self, id: IntegrationId) {
        let attention = Attention {
            deleted: true,
            ..Attention::default()
        };
        self.add(std::iter::once((id, attention)));
    }

    fn add(&self, all: impl Iterator<Item = (IntegrationId, Attention)>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, new) in all {
            let attention = waiting.entry(id).or_default();
            attention.configured |= new.configured;
            attention.deleted |= new.deleted;
            if new.lost {
                attention.lost = true;
                attention.appended = None;
            }
            attention.appended = match (attention.appended, new.appended) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        let is_empty = waiting.is_empty();
        drop(waiting);
        if !is_empty {
            self.notify.notify_one();
        }
    }

    /// Waits until there is something, and takes all of it. Cancelling loses nothing.
    pub(super) async fn take(&self) -> Map<IntegrationId, Attention> {
        loop {
            let notified = self.notify.notified();
            if let Some(waiting) = self.take_now() {
                return waiting;
            }
            notified.await;
        }
    }

    fn take_now(&self) -> Option<Map<IntegrationId, Attention>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // About as many will follow.
        let capacity = waiting.len();
        (capacity > 0).then(|| std::mem::replace(&mut *waiting, map::with_capacity(capacity)))
    }
}
