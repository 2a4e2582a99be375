//! The log, wherever it lies: in the tail, in rows, or in both.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    Store, StoreError,
    catalog::Slot,
    chunk,
    read::{self, Span},
    tail::Found,
};
use crate::domain::{delivery::LoadedChunk, integration::IntegrationKey};

impl Store {
    /// When the oldest pending event of each integration was accepted, where it has one.
    pub async fn oldest_pending(
        &self,
        keys: &[IntegrationKey],
    ) -> Result<HashMap<IntegrationKey, Timestamp>, StoreError> {
        // In this order: what leaves the tail meanwhile has a row before.
        let in_tail: Vec<_> = keys
            .iter()
            .filter_map(|key| Some((*key, self.tail.oldest_pending(*key)?)))
            .collect();
        let mut oldest = read::oldest_pending(&self.reader, keys).await?;
        for (key, at) in in_tail {
            let known = oldest.entry(key).or_insert(at);
            *known = at.min(*known);
        }
        Ok(oldest)
    }

    /// The log from a sequence on, in order: chunks of about `most_bytes`, at least
    /// one where there is one.
    pub async fn read_log(
        &self,
        key: IntegrationKey,
        from: u64,
        most_bytes: usize,
    ) -> Result<Vec<LoadedChunk>, StoreError> {
        let known = |Slot { snapshot, .. }: &Slot| {
            let gap_key = snapshot.integration.integration_id.as_u128();
            (gap_key, snapshot.progress)
        };
        let Some((gap_key, progress)) = self.catalog.look(key, known) else {
            return Ok(Vec::new());
        };
        let mut span = Span {
            from,
            most_bytes,
            end: progress.next_sequence,
            pending_bytes: progress.pending_bytes,
        };
        let chunks = loop {
            let moved = self.tail.moved();
            let begins = match self.tail.read(key, span.from, most_bytes) {
                Found::Chunks(chunks) => break chunks,
                Found::From(begins) => Some(begins),
                Found::Nothing => None,
                Found::Moving => {
                    moved.await;
                    continue;
                }
            };
            // Before the tail everything has a row. Where it has nothing, what was known to
            // have come before it was asked has.
            span.end = begins.unwrap_or(progress.next_sequence);
            let chunks = read::log(&self.reader, key, span).await?;
            match begins {
                // All of that is done with by now.
                Some(begins) if chunks.is_empty() && begins > span.from => span.from = begins,
                _ => break chunks,
            }
        };
        chunks
            .into_iter()
            .map(|chunk| {
                let chunk_id = chunk.id;
                chunk::load(chunk, gap_key).map_err(|_| StoreError::Damaged { chunk_id })
            })
            .collect()
    }
}
