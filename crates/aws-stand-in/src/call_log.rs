//! Counts of calls by operation, target and outcome, and the newest calls one by one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::control::{AnsweredCall, CallCount, Operation};

/// Different operation, target and outcome triples that are told apart; beyond, the target
/// is left out, which bounds them.
const MAX_KEYS: usize = 50_000;
/// Calls that are found by their request id; the oldest go first.
const MAX_ANSWERED: usize = 10_000;

#[derive(Default)]
pub(super) struct Calls {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    counts: HashMap<(Operation, String, String), u64>,
    /// With their request ids.
    answered: VecDeque<(String, AnsweredCall)>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(
        &self,
        request_id: &str,
        operation: Operation,
        target: &str,
        outcome: &str,
        records: usize,
    ) {
        let mut inner = self.lock();
        let mut key = (operation, target.to_owned(), outcome.to_owned());
        if inner.counts.len() >= MAX_KEYS && !inner.counts.contains_key(&key) {
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

    /// The call that was answered with this request id.
    pub(super) fn find(&self, request_id: &str) -> Option<AnsweredCall> {
        let inner = self.lock();
        let mut newest_first = inner.answered.iter().rev();
        let found = newest_first.find(|(id, _)| id == request_id);
        found.map(|(_, call)| call.clone())
    }

    pub(super) fn list(&self) -> Vec<CallCount> {
        let inner = self.lock();
        let mut list: Vec<CallCount> = inner
            .counts
            .iter()
            .map(|((operation, target, outcome), count)| CallCount {
                operation: *operation,
                target: target.clone(),
                outcome: outcome.clone(),
                count: *count,
            })
            .collect();
        list.sort_by(|a, b| {
            (a.operation, &a.target, &a.outcome).cmp(&(b.operation, &b.target, &b.outcome))
        });
        list
    }

    pub(super) fn reset(&self) {
        let mut inner = self.lock();
        inner.counts.clear();
        inner.answered.clear();
    }
}
