//! Tells the worker which integrations want its attention. It holds at most one
//! entry an integration, however much happens.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::domain::{
    integration::IntegrationKey,
    map::{self, Map},
};

/// What happened to one integration since the worker last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// Events were appended, the first of them with this sequence.
    pub appended_from: Option<u64>,
    /// It was configured.
    pub configured: bool,
    /// Settlements that became durable and were to be told of.
    pub settled: usize,
    /// Those of them that change what the log says of its events.
    pub saved: usize,
}

/// Settlements of one integration that became durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) key: IntegrationKey,
    pub(super) count: usize,
    pub(super) saved: usize,
}

/// Where the store says and the worker hears that there is work.
#[derive(Debug, Default)]
pub(super) struct WorkFeed {
    waiting: Mutex<Map<IntegrationKey, Attention>>,
    notify: Notify,
}

impl WorkFeed {
    /// Tells of appended chunks, each with its first sequence, and of integrations that
    /// were configured.
    pub(super) fn tell(&self, appended: &[(IntegrationKey, u64)], configured: &[IntegrationKey]) {
        if appended.is_empty() && configured.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for &(key, first_sequence) in appended {
            let attention = waiting.entry(key).or_default();
            let from = attention.appended_from.get_or_insert(first_sequence);
            *from = first_sequence.min(*from);
        }
        for &key in configured {
            waiting.entry(key).or_default().configured = true;
        }
        drop(waiting);
        self.notify.notify_one();
    }

    /// Tells of settlements that became durable.
    pub(super) fn tell_settled(&self, settled: impl Iterator<Item = Settled>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for one in settled.filter(|one| one.count > 0) {
            let attention = waiting.entry(one.key).or_default();
            attention.settled += one.count;
            attention.saved += one.saved;
        }
        let is_empty = waiting.is_empty();
        drop(waiting);
        if !is_empty {
            self.notify.notify_one();
        }
    }

    /// Waits until there is something, and takes it all. Cancelling loses nothing.
    pub(super) async fn take(&self) -> Map<IntegrationKey, Attention> {
        loop {
            let notified = self.notify.notified();
            if let Some(waiting) = self.take_now() {
                return waiting;
            }
            notified.await;
        }
    }

    fn take_now(&self) -> Option<Map<IntegrationKey, Attention>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // As many will come again.
        let room = waiting.len();
        (room > 0).then(|| std::mem::replace(&mut *waiting, map::with_capacity(room)))
    }
}
