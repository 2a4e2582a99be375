//! Tells the worker which integrations want its attention. It holds at most one
//! entry an integration, however much happens.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::domain::integration::IntegrationKey;

/// What happened to one integration since the worker last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// Events were appended, the first of them with this sequence.
    pub appended_from: Option<u64>,
    /// It was configured.
    pub configured: bool,
}

/// Where the store says and the worker hears that there is work.
#[derive(Debug, Default)]
pub(super) struct WorkFeed {
    waiting: Mutex<HashMap<IntegrationKey, Attention>>,
    notify: Notify,
}

impl WorkFeed {
    pub(super) fn appended(&self, key: IntegrationKey, first_sequence: u64) {
        self.tell(key, |attention| {
            let from = attention.appended_from.get_or_insert(first_sequence);
            *from = first_sequence.min(*from);
        });
    }

    pub(super) fn configured(&self, key: IntegrationKey) {
        self.tell(key, |attention| attention.configured = true);
    }

    fn tell(&self, key: IntegrationKey, what: impl FnOnce(&mut Attention)) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        what(waiting.entry(key).or_default());
        drop(waiting);
        self.notify.notify_one();
    }

    /// Waits until there is something, and takes it all. Cancelling loses nothing.
    pub(super) async fn take(&self) -> HashMap<IntegrationKey, Attention> {
        loop {
            let notified = self.notify.notified();
            if let Some(waiting) = self.take_now() {
                return waiting;
            }
            notified.await;
        }
    }

    fn take_now(&self) -> Option<HashMap<IntegrationKey, Attention>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        (!waiting.is_empty()).then(|| std::mem::take(&mut *waiting))
    }
}
