//! The summary printed at the end. No I/O.

use std::time::Duration;

use super::tally::{Run, Tally};
use siem_client::v1::EventCounts;

/// Returns the summary: what was read back of each integration, and the service's counts of the
/// last one.
pub(super) fn text(tally: &Tally, counts: Option<EventCounts>, elapsed: Duration) -> String {
    let mut lines: Vec<String> = tally
        .runs()
        .map(|(id, run)| format!("integration {id}: {}", run_text(run)))
        .collect();
    if lines.is_empty() {
        lines.push("nothing was read back".to_owned());
    }
    if let Some(counts) = counts {
        lines.push(format!(
            "counts of the service: accepted {}, delivered {}, expired {}, discarded {}, pending {}",
            counts.accepted, counts.delivered, counts.expired, counts.discarded, counts.pending
        ));
    }
    lines.push(format!("ended after {:.1} s", elapsed.as_secs_f64()));
    lines.join("\n")
}

fn run_text(run: &Run) -> String {
    let mut text = match run.complete_to {
        0 => "no event was read back".to_owned(),
        last => format!("events 1 to {last} were read back, none is missing"),
    };
    let extras = [
        (run.beyond_missing() as u64, "after a missing one"),
        (run.repeats, "duplicates (not printed)"),
        (run.tests, "test events"),
        (run.in_gaps, "replaced by gap events"),
    ];
    for (count, what) in extras {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}
