//! Statistics: percentiles of the latencies within a run, and the median over several runs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Returns nanoseconds since 1970, which processes of one machine can compare.
pub fn now_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Latencies in microseconds. All are kept, so that percentiles are exact.
#[derive(Default)]
pub struct Samples(Vec<u32>);

/// Percentiles of latencies.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Samples {
    /// Adds the time between two readings of [`now_nanos`].
    pub fn add(&mut self, from: u64, to: u64) {
        let micros = to.saturating_sub(from) / 1000;
        self.0.push(u32::try_from(micros).unwrap_or(u32::MAX));
    }

    /// Returns the percentiles and removes all samples.
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

/// Median and range of one figure over several runs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    pub runs: usize,
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.as_slice() {
            [] => 0.0,
            sorted if sorted.len().is_multiple_of(2) => {
                f64::midpoint(sorted[middle - 1], sorted[middle])
            }
            sorted => sorted[middle],
        };
        Self {
            runs: values.len(),
            median,
            least: values.first().copied().unwrap_or_default(),
            most: values.last().copied().unwrap_or_default(),
        }
    }
}
