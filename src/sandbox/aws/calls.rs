//! Counts of calls by operation, target and outcome.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::control::{CallCount, Operation};

/// Different operation, target and outcome triples that are told apart; beyond, the target
/// is left out, which bounds them.
const MAX_KEYS: usize = 50_000;

#[derive(Default)]
pub(super) struct Calls {
    counts: Mutex<HashMap<(Operation, String, String), u64>>,
}

impl Calls {
    pub(super) fn count(&self, operation: Operation, target: &str, outcome: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (operation, target.to_owned(), outcome.to_owned());
        if counts.len() >= MAX_KEYS && !counts.contains_key(&key) {
            key.1.clear();
        }
        *counts.entry(key).or_insert(0) += 1;
    }

    pub(super) fn list(&self) -> Vec<CallCount> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<CallCount> = counts
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
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
