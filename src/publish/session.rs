//! What one run has counted so far.

use std::collections::BTreeMap;

use super::{
    End, LineError, Notice, Progress, PublishOptions, Reporter, Summary, summary::OTHER_TYPES,
};
use crate::client::{Ack, Update};

/// Distinct event types that are counted each; a hostile file could hold millions.
const MAX_EVENT_TYPES: usize = 100;
const MAX_EVENT_TYPE_CHARS: usize = 64;

/// Counts, and tells the reporter.
pub(super) struct Session<'a> {
    reporter: &'a mut (dyn Reporter + Send),
    progress: Progress,
    skipped: BTreeMap<String, u64>,
    /// The last line that was read, parsed and, if it is an alert, sent.
    handled_line: u64,
    /// Every alert up to this line is answered.
    answered_line: u64,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        reporter: &'a mut (dyn Reporter + Send),
        from_line: u64,
        total_bytes: Option<u64>,
    ) -> Self {
        Self {
            reporter,
            progress: Progress {
                total_bytes,
                ..Progress::default()
            },
            skipped: BTreeMap::new(),
            handled_line: from_line - 1,
            answered_line: from_line - 1,
        }
    }

    pub(super) fn progress(&mut self, bytes: usize) {
        self.progress.bytes += bytes as u64;
        self.tell(Notice::Progress(self.progress));
    }

    pub(super) fn published(&mut self) {
        self.progress.read += 1;
        self.progress.published += 1;
    }

    pub(super) fn skipped(&mut self, mut event_type: String) {
        self.progress.read += 1;
        self.progress.skipped += 1;
        if let Some((end, _)) = event_type.char_indices().nth(MAX_EVENT_TYPE_CHARS) {
            event_type.truncate(end);
        }
        if !self.skipped.contains_key(&event_type) && self.skipped.len() >= MAX_EVENT_TYPES {
            event_type = OTHER_TYPES.into();
        }
        *self.skipped.entry(event_type).or_default() += 1;
    }

    pub(super) fn broken(&mut self, line: u64, error: &LineError) {
        self.progress.read += 1;
        self.progress.broken += 1;
        self.tell(Notice::Broken { line, error });
    }

    pub(super) fn handled(&mut self, line: u64) {
        self.handled_line = line;
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Ack(ack) => self.ack(&ack),
            Update::Retrying(retrying) => self.tell(Notice::Retrying(&retrying)),
        }
    }

    /// The tags are line numbers.
    fn ack(&mut self, ack: &Ack) {
        let (Some(first_line), Some(last_line)) = (ack.tags.first(), ack.tags.last()) else {
            return;
        };
        self.answered_line = *last_line;
        match &ack.outcome {
            Ok(response) => {
                self.progress.accepted += u64::from(response.accepted);
                self.progress.unconfigured += u64::from(response.unconfigured);
                self.progress.rejected += response.rejections.len() as u64;
                for rejection in &response.rejections {
                    let line = ack.tags.get(rejection.index as usize).copied();
                    let line = line.unwrap_or(*first_line);
                    self.tell(Notice::Rejected { line, rejection });
                }
            }
            Err(status) => {
                self.progress.rejected += ack.tags.len() as u64;
                self.tell(Notice::Refused {
                    first_line: *first_line,
                    last_line: *last_line,
                    events: ack.tags.len(),
                    status,
                });
            }
        }
        self.tell(Notice::Progress(self.progress));
    }

    fn tell(&mut self, notice: Notice<'_>) {
        self.reporter.report(notice);
    }

    pub(super) fn summary(&self, options: PublishOptions, end: End) -> Summary {
        let mut summary = Summary {
            resume_line: self.handled_line + 1,
            counts: self.progress,
            skipped: self.skipped.clone(),
            ..Summary::nothing(options, end)
        };
        if summary.unanswered() > 0 {
            summary.resume_line = self.answered_line + 1;
            if matches!(summary.end, End::Complete) {
                summary.end = End::Interrupted;
            }
        }
        summary
    }
}
