//! What one run has counted so far.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    End, LineError, Notice, Progress, PublishOptions, Reporter, Summary,
    eve::{EveError, Repair},
    follow::{Begin, Followed, Position, Told},
    summary::OTHER_TYPES,
};
use siem_client::{Ack, Update};

/// Distinct event types that are counted each; a hostile file could hold millions.
const MAX_EVENT_TYPES: usize = 100;
const MAX_EVENT_TYPE_CHARS: usize = 64;

/// Bits of a tag that are the line; those above count the files that were begun, so
/// that tags rise. The lowest bit tells whether nothing follows in the line: a line counts as
/// answered when its last alert is.
const LINE_BITS: u32 = 40;

/// The tag of an alert.
pub(super) fn tag(above: u64, line: u64, is_last: bool) -> u64 {
    above | line << 1 | u64::from(is_last)
}

/// The line of a tag.
fn line_of(tag: u64) -> u64 {
    tag >> 1 & ((1 << (LINE_BITS - 1)) - 1)
}

/// The last line of which everything is answered once this tag is.
fn whole_line_of(tag: u64) -> u64 {
    line_of(tag) - u64::from(tag & 1 == 0)
}

/// Where in a file that is followed things are. Ordered by tag.
#[derive(Debug)]
struct Track {
    /// The files, each with the tag of what stands before its first line.
    files: VecDeque<(u64, Arc<Followed>)>,
    /// Alerts that are not answered, each with the place to go on from once it is: the end of
    /// its line, or what was handled before where more of the line follows.
    sent: VecDeque<(u64, (u64, u64))>,
    /// The last line that was handled, and its end.
    handled: (u64, u64),
    /// Place to go on from, by the last alert that was answered.
    answered: (u64, u64),
}

/// Counts, and tells the reporter.
pub(super) struct Session<'a> {
    reporter: &'a mut (dyn Reporter + Send),
    progress: Progress,
    skipped: BTreeMap<String, u64>,
    /// The last line that was read, parsed and, if it is an alert, sent.
    handled_line: u64,
    /// Every alert up to this line is answered.
    answered_line: u64,
    track: Option<Track>,
    /// Whether a prefix was told, which is told once.
    told_prefix: bool,
    /// Whether the input is UTF-16, where every other byte may be a NUL.
    is_utf16: bool,
    lost: bool,
    absent: bool,
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
            track: None,
            told_prefix: false,
            is_utf16: false,
            lost: false,
            absent: false,
        }
    }

    pub(super) fn progress(&mut self, bytes: usize) {
        self.progress.bytes += bytes as u64;
        self.tell(Notice::Progress(self.progress));
    }

    /// Starts the next file. Returns the upper bits, the file's number, of the tags of its lines.
    pub(super) fn begin(&mut self, begin: &Begin) -> u64 {
        let files = self.track.as_ref().and_then(|track| track.files.back());
        let above = files.map_or(0, |(tag, _)| ((tag >> LINE_BITS) + 1) << LINE_BITS);
        let start = (tag(above, begin.line, true), begin.offset);
        let track = self.track.get_or_insert_with(|| Track {
            files: VecDeque::new(),
            sent: VecDeque::new(),
            handled: start,
            answered: start,
        });
        self.absent = false;
        track.files.push_back((start.0, Arc::clone(&begin.file)));
        track.handled = start;
        above
    }

    /// An alert was sent under this tag; its line ends there.
    pub(super) fn published(&mut self, tag: u64, end: u64) {
        self.progress.read += 1;
        self.progress.published += 1;
        if let Some(track) = &mut self.track {
            let place = match tag & 1 {
                1 => (tag, end),
                _ => track.handled,
            };
            track.sent.push_back((tag, place));
        }
    }

    /// Where to go on after a restart.
    pub(super) fn position(&mut self) -> Option<Position> {
        let track = self.track.as_mut()?;
        let (tag, offset) = match track.sent.is_empty() {
            true => track.handled,
            false => track.answered,
        };
        while track.files.len() > 1 && track.files[1].0 <= tag {
            track.files.pop_front();
        }
        let (_, file) = track.files.front()?;
        Some(Position {
            file: Arc::clone(file),
            offset,
            line: line_of(tag),
        })
    }

    /// Something happened to the file that is followed.
    pub(super) fn told(&mut self, told: &Told) {
        match told {
            Told::Warning(text) => self.note(text),
            Told::Loss(text) => {
                self.lost = true;
                self.note(text);
            }
            Told::Absent(text) => {
                // The content so far has been read.
                self.absent = self.track.is_none();
                self.note(text);
            }
            Told::There => self.absent = false,
        }
    }

    pub(super) fn note(&mut self, note: &str) {
        self.tell(Notice::Note(note));
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
        self.is_utf16 |= matches!(error, LineError::Eve(EveError::Utf16));
        self.tell(Notice::Broken { line, error });
    }

    /// NULs were passed over.
    pub(super) fn nuls(&mut self, line: u64, count: u64) {
        if self.is_utf16 {
            return;
        }
        self.progress.nuls += count;
        self.tell(Notice::Nuls { line, count });
    }

    /// An alert could be read only after a repair.
    pub(super) fn repaired(&mut self, line: u64, repairs: &[Repair]) {
        let mut replaced = false;
        for repair in repairs {
            match repair {
                Repair::Prefix(_) if std::mem::replace(&mut self.told_prefix, true) => continue,
                Repair::Prefix(_) => {}
                Repair::Utf8(_) | Repair::Surrogates(_) => replaced = true,
            }
            self.tell(Notice::Repaired { line, repair });
        }
        self.progress.repaired += u64::from(replaced);
    }

    pub(super) fn handled(&mut self, tag: u64, end: u64) {
        self.handled_line = line_of(tag);
        if let Some(track) = &mut self.track {
            track.handled = (tag, end);
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Ack(ack) => self.ack(&ack),
            Update::Retrying(retrying) => self.tell(Notice::Retrying(&retrying)),
        }
    }

    fn ack(&mut self, ack: &Ack) {
        let (Some(first_tag), Some(last_tag)) = (ack.tags.first(), ack.tags.last()) else {
            return;
        };
        let (first_line, last_line) = (line_of(*first_tag), line_of(*last_tag));
        self.answered_line = whole_line_of(*last_tag);
        if let Some(track) = &mut self.track {
            while let Some((_, place)) = track.sent.pop_front_if(|(tag, _)| *tag <= *last_tag) {
                track.answered = place;
            }
        }
        match &ack.outcome {
            Ok(response) => {
                self.progress.accepted += u64::from(response.accepted);
                self.progress.unconfigured += u64::from(response.unconfigured);
                self.progress.rejected += response.rejections.len() as u64;
                for rejection in &response.rejections {
                    let tag = ack.tags.get(rejection.index as usize).copied();
                    let line = tag.map_or(first_line, line_of);
                    self.tell(Notice::Rejected { line, rejection });
                }
            }
            Err(status) => {
                self.progress.rejected += ack.tags.len() as u64;
                self.tell(Notice::Refused {
                    first_line,
                    last_line,
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
            lost: self.lost,
            absent: self.absent,
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
