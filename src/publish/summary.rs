//! How a run ended.

use std::{collections::BTreeMap, fmt, io, path::PathBuf};

use super::{Input, Progress, PublishOptions, follow::PlaceError};
use siem_client::PublisherError;

/// Where event types beyond the first hundred are counted.
pub(super) const OTHER_TYPES: &str = "(others)";

/// Why a run ended.
#[derive(Debug)]
pub enum End {
    /// The input was read to its end, and everything was answered.
    Complete,
    /// It was told to stop.
    Interrupted,
    /// The input cannot be read on.
    ReadFailed(io::Error),
    /// The place of a file that is followed cannot be kept.
    NotKept(PlaceError),
    /// The service did not answer any more, or refuses the call.
    Stopped(PublisherError),
}

/// Counts of the records by outcome. `read = published + skipped + broken`, and
/// `published = accepted + rejected + unconfigured + unanswered`. Its text is for
/// a terminal.
#[derive(Debug)]
pub struct Summary {
    /// The counts.
    pub counts: Progress,
    /// Records of other event types, by type.
    pub skipped: BTreeMap<String, u64>,
    /// The first line whose fate is open; start there to publish the rest.
    pub resume_line: u64,
    /// Why it ended.
    pub end: End,
    /// Whose events they are.
    pub organization_id: String,
    /// Where the place of a file that is followed is kept.
    pub state_file: Option<PathBuf>,
    /// Whether something of a file that is followed could not be read.
    pub lost: bool,
    /// Whether a file that is followed is not there, or cannot be opened.
    pub absent: bool,
}

impl Summary {
    pub(super) fn nothing(options: PublishOptions, end: End) -> Self {
        Self {
            counts: Progress::default(),
            skipped: BTreeMap::new(),
            resume_line: options.from_line.max(1),
            end,
            organization_id: options.organization_id,
            state_file: match options.input {
                Input::Follow { state_file, .. } => Some(state_file),
                Input::Stdin | Input::File(_) => None,
            },
            lost: false,
            absent: false,
        }
    }

    /// Alerts that were sent, or about to be, and may have been accepted or not.
    pub fn unanswered(&self) -> u64 {
        let counts = &self.counts;
        counts
            .published
            .saturating_sub(counts.accepted + counts.rejected + counts.unconfigured)
    }

    /// Whether the whole input was read, no line was broken and every alert accepted. A
    /// file that is followed has no end: there it is a success to be told to stop.
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

    /// The exit code of a process: 0 for [success](Self::is_success), otherwise 1.
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
            // It is foreign text, and a terminal obeys control characters.
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
                "organization {} has no integration, so {} alerts were not kept: \
                 create one with siem.v1.SiemIntegrationService/Configure and publish again",
                self.organization_id, self.counts.unconfigured
            )?;
        }
        if self.has_only_nuls() || self.counts.broken > 0 && self.counts.broken == self.counts.read
        {
            writeln!(f, "no line of the input could be read; is this EVE JSON?")?;
        } else if self.counts.published == 0 && self.is_success() {
            writeln!(f, "there was no alert in the input")?;
        }
        if self.lost {
            writeln!(f, "something was not read, see the warnings above")?;
        }
        if self.absent {
            writeln!(f, "the file is not there, or cannot be opened")?;
        }
        match &self.end {
            End::Complete => return Ok(()),
            End::Interrupted => writeln!(f, "interrupted")?,
            End::NotKept(error) => writeln!(f, "{error}")?,
            End::ReadFailed(error) => writeln!(f, "cannot read on: {error}")?,
            End::Stopped(error) => writeln!(f, "{error}")?,
        }
        match &self.state_file {
            Some(state_file) => {
                writeln!(f, "the next run goes on from {}", state_file.display())
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
        if self.unanswered() > 0 {
            writeln!(f, "unanswered    {}", self.unanswered())?;
        }
        self.fmt_skipped(f)?;
        writeln!(f, "broken        {}", counts.broken)?;
        if counts.repaired > 0 {
            writeln!(
                f,
                "repaired      {} (sent with U+FFFD for what is no text)",
                counts.repaired
            )?;
        }
        if counts.nuls > 0 {
            writeln!(f, "NULs          {}", counts.nuls)?;
        }
        self.fmt_end(f)
    }
}
