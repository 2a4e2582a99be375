//! Permits for requests in flight, and the queues of lanes that wait for one. Pure: it starts
//! and cancels nothing itself.
//!
//! The permits are divided among classes, so that the calls of one class never take a permit of
//! another:
//! - the number of all permits in use never exceeds the total;
//! - within a class they are granted round-robin, and none is unused while a lane of the class
//!   waits;
//! - an overdue call of a class that expects quick answers gives up its permit when another
//!   lane needs it: it moves to a permit of [`Class::Hanging`], at most one per integration; if
//!   none of these is left, it is cancelled, the oldest first.

use std::collections::BTreeMap;

use crate::domain::integration::IntegrationId;

/// Expected result of an integration's next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Quick success, like the last one.
    Quick,
    /// Unknown, or quick failure, like the last one.
    Probe,
    /// Slow success, like the last one.
    Slow,
    /// Slow failure, like the last one.
    Hanging,
}

impl Class {
    const ALL: [Self; 4] = [Self::Quick, Self::Probe, Self::Slow, Self::Hanging];

    /// Class of the call after one with this result.
    pub(super) fn after(accepted: bool, overdue: bool) -> Self {
        match (accepted, overdue) {
            (true, false) => Self::Quick,
            (true, true) => Self::Slow,
            (false, false) => Self::Probe,
            (false, true) => Self::Hanging,
        }
    }
}

/// Permit for one request. To be returned to [`Permits::release`].
#[derive(Debug)]
#[must_use = "a permit that is not released stays in use"]
pub(super) struct Permit {
    /// Rises from permit to permit.
    pub(super) id: u64,
    class: Class,
    /// The call has taken long.
    pub(super) overdue: bool,
}

/// Entry of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    class: Class,
    number: u64,
}

/// Permits of one class.
#[derive(Debug)]
struct Pool {
    size: usize,
    used: usize,
    /// Waiting integrations, by number.
    queue: BTreeMap<u64, IntegrationId>,
}

#[derive(Debug)]
struct OverdueCall {
    integration_id: IntegrationId,
    /// Class of the permit that it has now.
    class: Class,
    cancelled: bool,
}

/// All permits.
#[derive(Debug)]
pub(super) struct Permits {
    pools: [Pool; 4],
    /// By permit, so the oldest first.
    overdue: BTreeMap<u64, OverdueCall>,
    last_number: u64,
}

impl Permits {
    /// Permits for `total` requests, at least four. Each class has an eighth, and the quick one
    /// has the rest.
    pub(super) fn new(total: usize) -> Self {
        let eighth = (total / 8).max(1);
        let quick = total.saturating_sub(3 * eighth).max(1);
        let pool = |size| Pool {
            size,
            used: 0,
            queue: BTreeMap::new(),
        };
        Self {
            pools: [quick, eighth, eighth, eighth].map(pool),
            overdue: BTreeMap::new(),
            last_number: 0,
        }
    }

    fn pool(&mut self, class: Class) -> &mut Pool {
        &mut self.pools[class as usize]
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Queues an integration behind all others of the class.
    pub(super) fn queue(&mut self, id: IntegrationId, class: Class) -> Queued {
        let number = self.next_number();
        self.pool(class).queue.insert(number, id);
        Queued { class, number }
    }

    /// Moves a queued integration to the queue of another class.
    pub(super) fn requeue(&mut self, queued: Queued, class: Class) -> Queued {
        if queued.class == class {
            return queued;
        }
        match self.leave_queue(queued) {
            Some(id) => self.queue(id, class),
            None => queued,
        }
    }

    /// Removes an integration from its queue.
    pub(super) fn leave_queue(&mut self, queued: Queued) -> Option<IntegrationId> {
        self.pool(queued.class).queue.remove(&queued.number)
    }

    /// Removes the next integration with a free permit from its queue.
    pub(super) fn next(&mut self) -> Option<(IntegrationId, Class)> {
        Class::ALL.into_iter().find_map(|class| {
            let pool = self.pool(class);
            if pool.used >= pool.size {
                return None;
            }
            let (_, id) = pool.queue.pop_first()?;
            Some((id, class))
        })
    }

    /// Whether a waiting integration may get a permit, possibly that of an overdue call.
    pub(super) fn can_grant(&self) -> bool {
        self.pools.iter().any(|pool| {
            let may = pool.used < pool.size || !self.overdue.is_empty();
            may && !pool.queue.is_empty()
        })
    }

    /// Takes the permit that [`Permits::next`] has found.
    pub(super) fn take(&mut self, class: Class) -> Permit {
        self.pool(class).used += 1;
        Permit {
            id: self.next_number(),
            class,
            overdue: false,
        }
    }

    /// Marks a call as overdue.
    pub(super) fn set_overdue(&mut self, id: IntegrationId, permit: &mut Permit) {
        permit.overdue = true;
        let call = OverdueCall {
            integration_id: id,
            class: permit.class,
            cancelled: false,
        };
        self.overdue.insert(permit.id, call);
    }

    /// Upper bound of the ids of all permits so far.
    pub(super) fn last_id(&self) -> u64 {
        self.last_number
    }

    /// Releases a permit.
    pub(super) fn release(&mut self, permit: Permit) {
        let overdue = self.overdue.remove(&permit.id);
        let class = overdue.map_or(permit.class, |call| call.class);
        self.pool(class).used -= 1;
    }

    /// Takes permits back from overdue calls, for lanes that wait where quick answers are
    /// expected. Returns the permits whose calls must be cancelled.
    pub(super) fn reclaim(&mut self) -> Vec<u64> {
        let mut cancelled = Vec::new();
        if self.overdue.is_empty() {
            return cancelled;
        }
        for class in [Class::Quick, Class::Probe] {
            for permit in self.reclaimable(class) {
                if !self.move_to_hanging(permit) {
                    cancelled.extend(self.cancel(permit));
                }
            }
        }
        cancelled
    }

    /// As many overdue calls of a class as there are lanes that wait for their permits.
    fn reclaimable(&self, class: Class) -> Vec<u64> {
        let of_class = || self.overdue.iter().filter(|(_, call)| call.class == class);
        let pool = &self.pools[class as usize];
        let cancelled = of_class().filter(|(_, call)| call.cancelled).count();
        let available = pool.size - pool.used + cancelled;
        of_class()
            .filter(|(_, call)| !call.cancelled)
            .map(|(permit, _)| *permit)
            .take(pool.queue.len().saturating_sub(available))
            .collect()
    }

    fn move_to_hanging(&mut self, permit: u64) -> bool {
        let hanging = &self.pools[Class::Hanging as usize];
        let full = hanging.used >= hanging.size;
        let Some(id) = self.overdue.get(&permit).map(|call| call.integration_id) else {
            return false;
        };
        let mut calls = self.overdue.values();
        if full || calls.any(|call| call.integration_id == id && call.class == Class::Hanging) {
            return false;
        }
        if let Some(call) = self.overdue.get_mut(&permit) {
            let before = std::mem::replace(&mut call.class, Class::Hanging);
            self.pool(before).used -= 1;
            self.pool(Class::Hanging).used += 1;
        }
        true
    }

    /// Marks an overdue call as cancelled; None if it was already.
    pub(super) fn cancel(&mut self, permit: u64) -> Option<u64> {
        let call = self.overdue.get_mut(&permit)?;
        let before = std::mem::replace(&mut call.cancelled, true);
        (!before).then_some(permit)
    }

    /// Marks all overdue calls of an integration as cancelled, and returns their permits.
    pub(super) fn cancel_all(&mut self, id: IntegrationId) -> Vec<u64> {
        let calls = self.overdue.iter();
        let calls = calls.filter(|(_, call)| call.integration_id == id);
        let permits: Vec<u64> = calls.map(|(permit, _)| *permit).collect();
        let cancelled = permits.into_iter();
        cancelled.filter_map(|permit| self.cancel(permit)).collect()
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|at: usize| self.pools[at].used)
    }

    /// Whether a permit is unused while a lane waits for it.
    #[cfg(test)]
    pub(super) fn wastes_permit(&self) -> bool {
        let wastes = |pool: &Pool| pool.used < pool.size && !pool.queue.is_empty();
        self.pools.iter().any(wastes)
    }
}
