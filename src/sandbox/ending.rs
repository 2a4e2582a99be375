//! What is said at the end. Pure.

use std::time::Duration;

use super::tally::{Run, Tally};
use siem_client::v1::EventCounts;

/// What was read back of each integration, and what the service says of the last one.
pub(super) fn told(tally: &Tally, counts: Option<EventCounts>, elapsed: Duration) -> String {
    let mut lines: Vec<String> = tally
        .runs()
        .map(|(id, run)| format!("integration {id}: {}", of_run(run)))
        .collect();
    if lines.is_empty() {
        lines.push("nothing was delivered".to_owned());
    }
    if let Some(counts) = counts {
        lines.push(format!(
            "the service says: accepted {}, delivered {}, expired {}, discarded {}, pending {}",
            counts.accepted, counts.delivered, counts.expired, counts.discarded, counts.pending
        ));
    }
    lines.push(format!("ended after {:.1} s", elapsed.as_secs_f64()));
    lines.join("\n")
}

fn of_run(run: &Run) -> String {
    let mut told = match run.complete_to {
        0 => "no event was read back".to_owned(),
        last => format!("events 1 to {last} were read back, without a hole"),
    };
    let extras = [
        (run.beyond_hole() as u64, "beyond a hole"),
        (run.repeats, "sent again (not shown)"),
        (run.tests, "test events"),
        (run.missed, "lost to gaps"),
    ];
    for (count, what) in extras {
        if count > 0 {
            told.push_str(&format!("; {count} {what}"));
        }
    }
    told
}
