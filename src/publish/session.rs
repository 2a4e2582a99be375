//! Counts of a run, the position to resume from, and the summary at its end.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Counts, Input, LineError, Notice, PublishOptions, Reporter,
    eve::{EveError, Repair},
    follow::{Checkpoint, FileNotice, FollowedFile, Position, StateFileError},
};
use siem_client::{Ack, Code, PublisherError, Update};

/// Number of event types that are counted separately; a hostile file could contain millions.
const MAX_EVENT_TYPES: usize = 100;
const MAX_EVENT_TYPE_CHARS: usize = 64;
/// Key under which all further event types are counted.
const OTHER_TYPES: &str = "(others)";

/// Reason for the end of a run.
#[derive(Debug)]
pub enum End {
    /// The input was read to its end, and every alert was answered.
    Complete,
    /// A shutdown was requested.
    Interrupted,
    /// The input cannot be read any further.
    ReadFailed(io::Error),
    /// The state file of a followed file cannot be written.
    NotSaved(StateFileError),
    /// The service no longer answers, or refuses the call.
    Stopped(PublisherError),
}

/// Counts by outcome and the reason for the end; its text is for a terminal.
///
/// `read = published + skipped + broken`, and
/// `published = accepted + rejected + unconfigured + unanswered`.
#[derive(Debug)]
pub struct Summary {
    /// The counts.
    pub counts: Counts,
    /// Records that are not alerts, by event type.
    pub skipped: BTreeMap<String, u64>,
    /// The first line that may not be published; a run from there publishes the rest.
    pub resume_line: u64,
    /// Reason for the end.
    pub end: End,
    /// The organization of the events.
    pub organization_id: String,
    /// The state file, if the input is followed.
    pub state_file: Option<PathBuf>,
    /// Whether some content of a followed file could not be read.
    pub lost: bool,
    /// Whether the followed file does not exist or cannot be opened.
    pub absent: bool,
}

impl Summary {
    /// Creates the summary of a run that was interrupted before it read anything.
    pub(super) fn new(options: PublishOptions) -> Self {
        Self {
            counts: Counts::default(),
            skipped: BTreeMap::new(),
            resume_line: options.from_line.max(1),
            end: End::Interrupted,
            organization_id: options.organization_id,
            state_file: match options.input {
                Input::Follow { state_file, .. } => Some(state_file),
                Input::Stdin | Input::File(_) => None,
            },
            lost: false,
            absent: false,
        }
    }

    /// Whether the whole input was read, no line was broken and every alert was accepted. A
    /// followed file has no end, so that an interrupted run counts as a success there.
    pub fn is_success(&self) -> bool {
        let ended = match self.end {
            End::Complete => true,
            End::Interrupted => self.state_file.is_some(),
            _ => false,
        };
        ended
            && self.counts.broken == 0
            && self.counts.accepted == self.counts.published
            && !self.has_only_nuls()
            && !self.lost
            && !self.absent
    }

    /// Exit code of the process: 0 for a [success](Self::is_success), otherwise 1.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.is_success())
    }

    fn has_only_nuls(&self) -> bool {
        self.counts.read == 0 && self.counts.nuls > 0
    }

    fn fmt_skipped(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped       {}", self.counts.skipped)?;
        let mut separator = " (";
        for (event_type, count) in &self.skipped {
            // The text is not ours, and control characters could steer the terminal.
            write!(f, "{separator}{} {count}", event_type.escape_debug())?;
            separator = ", ";
        }
        let end = if self.skipped.is_empty() { "" } else { ")" };
        writeln!(f, "{end}")
    }

    fn fmt_end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.counts.unconfigured > 0 {
            writeln!(
                f,
                "organization {} has no integration, so {} alerts were not stored: \
                 create one with siem.v1.SiemIntegrationService/Configure and publish again",
                self.organization_id, self.counts.unconfigured
            )?;
        }
        if self.has_only_nuls() || self.counts.broken > 0 && self.counts.broken == self.counts.read
        {
            writeln!(f, "no line of the input could be read; is this EVE JSON?")?;
        } else if self.counts.published == 0 && self.is_success() {
            writeln!(f, "the input contains no alert")?;
        }
        if self.lost {
            writeln!(
                f,
                "some content of the log was not read; see the warnings above"
            )?;
        }
        if self.absent {
            writeln!(f, "the file does not exist or cannot be opened")?;
        }
        match &self.end {
            End::Complete => return Ok(()),
            End::Interrupted => writeln!(f, "interrupted")?,
            End::NotSaved(error) => writeln!(f, "{error}")?,
            End::ReadFailed(error) => writeln!(f, "the input cannot be read further: {error}")?,
            End::Stopped(error) => {
                writeln!(f, "{error}")?;
                if let PublisherError::Refused(status) = error {
                    f.write_str(remedy(status.code()))?;
                }
            }
        }
        match &self.state_file {
            Some(state_file) => {
                writeln!(f, "the next run resumes from {}", state_file.display())
            }
            None => writeln!(f, "resume with --from-line {}", self.resume_line),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(f, "read          {}", counts.read)?;
        writeln!(f, "published     {}", counts.published)?;
        writeln!(f, "accepted      {}", counts.accepted)?;
        writeln!(f, "rejected      {}", counts.rejected)?;
        writeln!(f, "unconfigured  {}", counts.unconfigured)?;
        if counts.unanswered() > 0 {
            writeln!(f, "unanswered    {}", counts.unanswered())?;
        }
        self.fmt_skipped(f)?;
        writeln!(f, "broken        {}", counts.broken)?;
        if counts.repaired > 0 {
            writeln!(
                f,
                "repaired      {} (sent with U+FFFD in place of invalid characters)",
                counts.repaired
            )?;
        }
        if counts.nuls > 0 {
            writeln!(f, "NULs          {}", counts.nuls)?;
        }
        self.fmt_end(f)
    }
}

/// Remedy for a refused call, as lines for the summary.
fn remedy(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => {
            "the service does not know the caller: give a valid token with --token-file, or a client \
             certificate with --cert and --key\n"
        }
        Code::PermissionDenied => {
            "the caller may not publish: it needs the scope siem.publish and the organization in the \
             service's callers file\n"
        }
        _ => "",
    }
}

/// Number of low bits of a tag that hold the line and the last-in-line flag. The bits above
/// hold the number of the file, so that tags rise across the files that are followed.
const LINE_BITS: u32 = 40;

/// Returns the tag of an alert. Its lowest bit is set for the last alert of a line, since a
/// line is answered when that is. `file_bits` is the result of [`Session::start_file`], or 0.
pub(super) fn tag(file_bits: u64, line: u64, is_last: bool) -> u64 {
    file_bits | line << 1 | u64::from(is_last)
}

fn line_of(tag: u64) -> u64 {
    tag >> 1 & ((1 << (LINE_BITS - 1)) - 1)
}

/// End of a line, as the tag of its last alert and the offset after its line break.
#[derive(Debug, Clone, Copy)]
struct LineEnd {
    tag: u64,
    offset: u64,
}

/// An alert that was handed to the publisher.
#[derive(Debug, Clone, Copy)]
struct Sent {
    tag: u64,
    /// Position to resume from once this alert and all before it are answered: the end of its
    /// line, or of the line before if more alerts of its line follow.
    resume: LineEnd,
    is_answered: bool,
}

/// Counts, resume position and reporting of one run.
pub(super) struct Session<'a> {
    reporter: &'a mut (dyn Reporter + Send),
    summary: Summary,
    /// The files that were followed, each with the tag that precedes its first line. The first
    /// holds the resume position.
    files: VecDeque<(u64, Arc<FollowedFile>)>,
    /// Alerts from the oldest unanswered one on, in the order of their tags.
    sent: VecDeque<Sent>,
    /// End of the last line that was read, parsed and sent as far as it has alerts.
    handled: LineEnd,
    /// Position to resume from while [`Self::sent`] has alerts.
    answered: LineEnd,
    /// Whether a prefix was reported, which happens once.
    reported_prefix: bool,
    /// Whether the input is UTF-16, in which every other byte may be a NUL.
    is_utf16: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        reporter: &'a mut (dyn Reporter + Send),
        mut summary: Summary,
        total_bytes: Option<u64>,
    ) -> Self {
        summary.counts.total_bytes = total_bytes;
        let start = LineEnd {
            tag: tag(0, summary.resume_line - 1, true),
            offset: 0,
        };
        Self {
            reporter,
            summary,
            files: VecDeque::new(),
            sent: VecDeque::new(),
            handled: start,
            answered: start,
            reported_prefix: false,
            is_utf16: false,
        }
    }

    pub(super) fn progress(&mut self, bytes: usize) {
        self.summary.counts.bytes += bytes as u64;
        self.report(Notice::Progress(self.summary.counts));
    }

    /// Starts the next followed file. Returns the upper bits, its number, of its lines' tags.
    pub(super) fn start_file(&mut self, start: &Position) -> u64 {
        let file_bits = match self.files.back() {
            Some((tag, _)) => ((tag >> LINE_BITS) + 1) << LINE_BITS,
            None => 0,
        };
        let Position { file, checkpoint } = start;
        self.handled = LineEnd {
            tag: tag(file_bits, checkpoint.line, true),
            offset: checkpoint.offset,
        };
        if self.files.is_empty() {
            self.answered = self.handled;
        }
        self.files.push_back((self.handled.tag, Arc::clone(file)));
        self.summary.absent = false;
        file_bits
    }

    /// Records that an alert is about to be sent under this tag; its line ends at `offset`. The
    /// record precedes the answer.
    pub(super) fn sending(&mut self, tag: u64, offset: u64) {
        self.summary.counts.read += 1;
        self.summary.counts.published += 1;
        let resume = match tag & 1 {
            1 => LineEnd { tag, offset },
            _ => self.handled,
        };
        if self.sent.is_empty() {
            self.answered = self.handled;
        }
        self.sent.push_back(Sent {
            tag,
            resume,
            is_answered: false,
        });
    }

    /// Takes the last record of [`Self::sending`] back: the alert could not be sent.
    pub(super) fn not_sent(&mut self) {
        self.summary.counts.read -= 1;
        self.summary.counts.published -= 1;
        self.sent.pop_back();
    }

    /// Marks an alert as answered. An alert that was rejected temporarily is answered after later
    /// ones. Those of one line, except the last, have the same tag and the same position.
    fn answered(&mut self, tag: u64) {
        let first = self.sent.partition_point(|sent| sent.tag < tag);
        let mut same = self.sent.range_mut(first..);
        if let Some(sent) = same.find(|sent| sent.tag == tag && !sent.is_answered) {
            sent.is_answered = true;
        }
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.is_answered) {
            self.answered = sent.resume;
        }
    }

    /// Returns the end of the last line up to which everything is answered.
    fn resume(&self) -> LineEnd {
        match self.sent.is_empty() {
            true => self.handled,
            false => self.answered,
        }
    }

    /// Returns the position from which the next run resumes; none if no file is followed yet.
    pub(super) fn position(&mut self) -> Option<Position> {
        let LineEnd { tag, offset } = self.resume();
        while self.files.len() > 1 && self.files[1].0 <= tag {
            self.files.pop_front();
        }
        let (_, file) = self.files.front()?;
        Some(Position {
            file: Arc::clone(file),
            checkpoint: Checkpoint {
                offset,
                line: line_of(tag),
            },
        })
    }

    /// Records and reports an incident in following a file.
    pub(super) fn file_notice(&mut self, notice: &FileNotice) {
        match notice {
            FileNotice::Warning(text) => self.note(text),
            FileNotice::Loss(text) => {
                self.summary.lost = true;
                self.note(text);
            }
            FileNotice::Absent(text) => {
                // A file that disappears after it was read, as in a rotation, is no failure.
                self.summary.absent = self.files.is_empty();
                self.note(text);
            }
            FileNotice::Present => self.summary.absent = false,
        }
    }

    pub(super) fn note(&mut self, note: &str) {
        self.report(Notice::Note(note));
    }

    pub(super) fn skipped(&mut self, mut event_type: String) {
        self.summary.counts.read += 1;
        self.summary.counts.skipped += 1;
        if let Some((end, _)) = event_type.char_indices().nth(MAX_EVENT_TYPE_CHARS) {
            event_type.truncate(end);
        }
        let skipped = &mut self.summary.skipped;
        if !skipped.contains_key(&event_type) && skipped.len() >= MAX_EVENT_TYPES {
            event_type = OTHER_TYPES.into();
        }
        *skipped.entry(event_type).or_default() += 1;
    }

    pub(super) fn broken(&mut self, line: u64, error: &LineError) {
        self.summary.counts.read += 1;
        self.summary.counts.broken += 1;
        self.is_utf16 |= matches!(error, LineError::Eve(EveError::Utf16));
        self.report(Notice::Broken { line, error });
    }

    /// Records that NULs were skipped.
    pub(super) fn nuls(&mut self, line: u64, count: u64) {
        if self.is_utf16 {
            return;
        }
        self.summary.counts.nuls += count;
        self.report(Notice::Nuls { line, count });
    }

    /// Records the repairs with which an alert could be read.
    pub(super) fn repaired(&mut self, line: u64, repairs: &[Repair]) {
        let mut replaced = false;
        for repair in repairs {
            match repair {
                Repair::Prefix(_) if std::mem::replace(&mut self.reported_prefix, true) => continue,
                Repair::Prefix(_) => {}
                Repair::Utf8(_) | Repair::Surrogates(_) => replaced = true,
            }
            self.report(Notice::Repaired { line, repair });
        }
        self.summary.counts.repaired += u64::from(replaced);
    }

    /// Records that a line was parsed and its alerts were sent.
    pub(super) fn handled(&mut self, tag: u64, offset: u64) {
        self.handled = LineEnd { tag, offset };
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Ack(ack) => self.ack(&ack),
            Update::Deferred(deferral) => self.report(Notice::Deferred(&deferral)),
            Update::Retrying(retrying) => self.report(Notice::Retrying(&retrying)),
        }
    }

    fn ack(&mut self, ack: &Ack) {
        let (Some(first_tag), Some(last_tag)) = (ack.tags.first(), ack.tags.last()) else {
            return;
        };
        let (first_line, last_line) = (line_of(*first_tag), line_of(*last_tag));
        for tag in &ack.tags {
            self.answered(*tag);
        }
        match &ack.outcome {
            Ok(response) => {
                self.summary.counts.accepted += u64::from(response.accepted);
                self.summary.counts.unconfigured += u64::from(response.unconfigured);
                self.summary.counts.rejected += response.rejections.len() as u64;
                for rejection in &response.rejections {
                    let tag = ack.tags.get(rejection.index as usize).copied();
                    let line = tag.map_or(first_line, line_of);
                    self.report(Notice::Rejected { line, rejection });
                }
            }
            Err(status) => {
                self.summary.counts.rejected += ack.tags.len() as u64;
                self.report(Notice::Refused {
                    first_line,
                    last_line,
                    events: ack.tags.len(),
                    status,
                });
            }
        }
        self.report(Notice::Progress(self.summary.counts));
    }

    fn report(&mut self, notice: Notice<'_>) {
        self.reporter.report(notice);
    }

    /// Returns the summary of a run that ended for this reason.
    pub(super) fn finish(self, end: End) -> Summary {
        let resume_line = line_of(self.resume().tag) + 1;
        let end = match end {
            // The publisher was aborted, or panicked, before everything was answered.
            End::Complete if self.summary.counts.unanswered() > 0 => End::Interrupted,
            end => end,
        };
        Summary {
            resume_line,
            end,
            ..self.summary
        }
    }
}
