//! One figure of several runs: how many, the median, and from where to where.

use serde::Serialize;

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
