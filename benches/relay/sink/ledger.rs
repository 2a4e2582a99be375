//! Which records have come, by integration and sequence.

use std::collections::{HashMap, HashSet};

use super::stamp::Data;

/// `{"specversion":"1.0","integrationid":"` and so on: all of one length.
const INTEGRATION: std::ops::Range<usize> = 38..74;
const SEQUENCE: std::ops::Range<usize> = 88..108;
const HEAD: usize = 108;

#[derive(Default)]
pub struct Ledger {
    seen: HashMap<[u8; 36], HashSet<u64>>,
}

impl Ledger {
    pub fn add(&mut self, data: Data<'_>) {
        if let Some((integration, sequence)) = read(data) {
            self.seen.entry(integration).or_default().insert(sequence);
        }
    }

    pub fn distinct(&self) -> u64 {
        self.seen.values().map(|seen| seen.len() as u64).sum()
    }
}

fn read(data: Data<'_>) -> Option<([u8; 36], u64)> {
    let mut decoded = Vec::new();
    let head = data.head(HEAD, &mut decoded)?;
    let integration = head.get(INTEGRATION)?.try_into().ok()?;
    let sequence = str::from_utf8(head.get(SEQUENCE)?).ok()?.parse().ok()?;
    Some((integration, sequence))
}
