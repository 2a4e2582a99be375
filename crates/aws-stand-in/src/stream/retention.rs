//! How much is kept in memory, over all streams: the oldest batches go first.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::Stream;

pub(super) struct Retention {
    max_records: u64,
    max_bytes: u64,
    records: u64,
    bytes: u64,
    batches: VecDeque<Batch>,
}

struct Batch {
    stream: Weak<Stream>,
    records: usize,
    bytes: u64,
}

impl Retention {
    pub(super) fn new(max_records: u64, max_bytes: u64) -> Self {
        Self {
            max_records,
            max_bytes,
            records: 0,
            bytes: 0,
            batches: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, stream: &Arc<Stream>, records: usize, bytes: u64) {
        self.records += records as u64;
        self.bytes += bytes;
        self.batches.push_back(Batch {
            stream: Arc::downgrade(stream),
            records,
            bytes,
        });
    }

    /// The oldest batch, if more is kept than may be: the stream and the number of records to drop.
    pub(super) fn pop_excess(&mut self) -> Option<(Weak<Stream>, usize)> {
        if self.records <= self.max_records && self.bytes <= self.max_bytes {
            return None;
        }
        let batch = self.batches.pop_front()?;
        self.records -= batch.records as u64;
        self.bytes -= batch.bytes;
        Some((batch.stream, batch.records))
    }
}
