//! One request, what may go into it, and what became of it.

use bytes::Bytes;

use super::{Key, refusal::Sent};
use crate::domain::event::Gap;

/// What a request may hold.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Events at the most.
    pub records: usize,
    /// Bytes at the most, counted as body, key and [`BatchLimits::overhead_bytes`].
    pub bytes: usize,
    /// What each record weighs beyond its body.
    pub overhead_bytes: usize,
}

/// One event of a request.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its place in the integration's log.
    pub sequence: u64,
    /// Its partition key.
    pub key: Key,
    /// As the log holds it; empty for a gap.
    pub stored: Bytes,
    /// Bytes of its body as it is sent; of a gap more than it has.
    pub weight: usize,
    /// The gap that stands in its place.
    pub gap: Option<Box<Gap>>,
    pub(super) chunk_id: i64,
    pub(super) index: u32,
}

/// The events of one request. Hand it back to `Delivery::settle`, whatever happened.
#[derive(Debug)]
#[must_use = "a batch that is not settled blocks its keys"]
pub struct Batch {
    /// In log order; at least one.
    pub items: Vec<Item>,
    pub(super) sent: Sent,
}

/// What became of one event of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The stream has it.
    Accepted,
    /// It is to be sent again.
    Failed,
    /// AWS refuses it, or the whole request, as one that it can never take.
    Refused,
}

/// What an answer changed, for the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Chunks of which nothing is left to send.
    pub finished: Vec<i64>,
    /// Chunks that are settled in part: number, bitmap, bytes that still wait.
    pub partial: Vec<(i64, Vec<u8>, u64)>,
    /// Events accepted by this answer.
    pub accepted: u64,
    /// Stored bytes of those events.
    pub accepted_bytes: u64,
    /// Gaps accepted by this answer.
    pub gaps: u64,
    /// Events that are refused while others pass: to be given up.
    pub refused: usize,
    /// All was refused, and the next request tells whether everything is: it is due at
    /// once, and nothing is known of the configuration.
    pub narrowing: bool,
}

impl Settlement {
    /// Records that the stream accepted.
    pub fn passed(&self) -> u64 {
        self.accepted + self.gaps
    }

    /// Whether the log read anew would say something else before it is durable.
    pub fn changes_the_log(&self) -> bool {
        self.passed() > 0 || self.refused > 0
    }
}
