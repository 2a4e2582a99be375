//! Gate of all AWS calls for an integration: none starts after the integration was deleted, or
//! after this instance has lost the right to deliver for it.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::domain::{integration::IntegrationId, map::Map};

#[derive(Debug)]
struct Guard {
    cancel: CancellationToken,
    calls: TaskTracker,
}

/// Admits AWS calls for integrations and tracks the calls in flight. Cheap to clone; clones
/// are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    guards: Mutex<Map<IntegrationId, Arc<Guard>>>,
    /// Cancels every call.
    all: CancellationToken,
}

/// Admits one call, which must end once [`Pass::cancelled`] returns.
#[derive(Debug)]
pub struct Pass {
    guard: Arc<Guard>,
    _call: TaskTrackerToken,
}

impl Pass {
    /// Returns when the call must end.
    pub async fn cancelled(&self) {
        self.guard.cancel.cancelled().await;
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Map<IntegrationId, Arc<Guard>>> {
        self.state
            .guards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass for a call, while it is allowed. `is_allowed` runs under the lock that
    /// [`Gate::shut`] takes after it began to return false, so that a call either does not start
    /// or is waited for.
    pub fn enter(&self, id: IntegrationId, is_allowed: impl FnOnce() -> bool) -> Option<Pass> {
        let mut guards = self.lock();
        if self.state.all.is_cancelled() || !is_allowed() {
            return None;
        }
        // Guards of idle integrations are swept as the map grows.
        if guards.len() >= 1024 && guards.len().is_power_of_two() {
            guards.retain(|_, guard| !guard.calls.is_empty());
        }
        let guard = guards.entry(id).or_insert_with(|| {
            Arc::new(Guard {
                cancel: self.state.all.child_token(),
                calls: TaskTracker::new(),
            })
        });
        Some(Pass {
            guard: Arc::clone(guard),
            _call: guard.calls.token(),
        })
    }

    /// Makes a call, which may consist of several requests. None if it is not allowed, or no
    /// longer during the call.
    pub async fn call<T>(
        &self,
        id: IntegrationId,
        is_allowed: impl FnOnce() -> bool,
        call: impl Future<Output = T>,
    ) -> Option<T> {
        let pass = self.enter(id, is_allowed)?;
        tokio::select! {
            biased;
            () = pass.cancelled() => None,
            answer = call => Some(answer),
        }
    }

    /// Cancels the calls in flight for an integration that was deleted, or that another instance
    /// delivers for, and waits for their end.
    pub async fn shut(&self, id: IntegrationId) {
        let guard = self.lock().remove(&id);
        if let Some(guard) = guard {
            guard.cancel.cancel();
            guard.calls.close();
            guard.calls.wait().await;
        }
    }

    /// Waits until no call is in flight for an integration. The caller sees to it that none
    /// starts.
    pub async fn drain(&self, id: IntegrationId) {
        let guard = self.lock().get(&id).map(Arc::clone);
        if let Some(guard) = guard {
            guard.calls.close();
            guard.calls.wait().await;
        }
    }

    /// Cancels the calls in flight for all integrations, and waits for their end.
    pub async fn shut_every(&self) {
        let guards = std::mem::take(&mut *self.lock());
        for guard in guards.values() {
            guard.cancel.cancel();
            guard.calls.close();
        }
        for guard in guards.into_values() {
            guard.calls.wait().await;
        }
    }

    /// Cancels every call, and admits no other.
    pub fn shut_all(&self) {
        self.state.all.cancel();
    }
}
