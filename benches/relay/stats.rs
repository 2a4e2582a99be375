//! Times that were measured, each kept, so that percentiles are exact.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970: what processes of one machine can compare.
pub fn now_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Times in microseconds.
#[derive(Default)]
pub struct Samples(Vec<u32>);

/// The percentiles of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Samples {
    /// From and to in nanoseconds.
    pub fn add(&mut self, from: u64, to: u64) {
        let micros = to.saturating_sub(from) / 1000;
        self.0.push(u32::try_from(micros).unwrap_or(u32::MAX));
    }

    /// Takes the samples; nothing is left.
    pub fn take(&mut self) -> Latency {
        let mut sorted = std::mem::take(&mut self.0);
        sorted.sort_unstable();
        let at = |share: f64| -> f64 {
            let rank = (sorted.len() as f64 * share).ceil() as usize;
            let micros = sorted.get(rank.saturating_sub(1)).copied();
            f64::from(micros.unwrap_or_default()) / 1000.0
        };
        Latency {
            count: sorted.len(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: at(1.0),
        }
    }
}
