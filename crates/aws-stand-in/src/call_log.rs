//! Counts of calls by operation, target and outcome, and the newest calls by request id.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::control::{AnsweredCall, CallCount, Operation};

/// Limit of the combinations of operation, target and outcome. Beyond it, calls of a new
/// combination are counted without their target.
const MAX_COUNTERS: usize = 50_000;
/// Limit of the calls found by request id; the oldest are dropped first.
const MAX_ANSWERED: usize = 10_000;

#[derive(Default)]
pub(super) struct CallLog {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    counts: HashMap<(Operation, String, String), u64>,
    /// Calls with their request ids, oldest first.
    answered: VecDeque<(String, AnsweredCall)>,
}

impl CallLog {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(
        &self,
        request_id: &str,
        operation: Operation,
        target: &str,
        outcome: &str,
        records: usize,
    ) {
        let mut inner = self.lock();
        let mut key = (operation, target.to_owned(), outcome.to_owned());
        if inner.counts.len() >= MAX_COUNTERS && !inner.counts.contains_key(&key) {
            key.1.clear();
        }
        let count = inner.counts.entry(key).or_insert(0);
        *count += 1;
        let call = AnsweredCall {
            operation,
            target: target.to_owned(),
            outcome: outcome.to_owned(),
            nth: *count,
            records,
        };
        if inner.answered.len() == MAX_ANSWERED {
            inner.answered.pop_front();
        }
        inner.answered.push_back((request_id.to_owned(), call));
    }

    /// Returns the call whose response carried this request id.
    pub(super) fn find(&self, request_id: &str) -> Option<AnsweredCall> {
        let inner = self.lock();
        let mut newest_first = inner.answered.iter().rev();
        let found = newest_first.find(|(id, _)| id == request_id);
        found.map(|(_, call)| call.clone())
    }

    pub(super) fn counts(&self) -> Vec<CallCount> {
        let inner = self.lock();
        let mut counts: Vec<CallCount> = inner
            .counts
            .iter()
            .map(|((operation, target, outcome), count)| CallCount {
                operation: *operation,
                target: target.clone(),
                outcome: outcome.clone(),
                count: *count,
            })
            .collect();
        counts.sort_by(|a, b| {
            (a.operation, &a.target, &a.outcome).cmp(&(b.operation, &b.target, &b.outcome))
        });
        counts
    }

    pub(super) fn reset(&self) {
        *self.lock() = Inner::default();
    }
}
