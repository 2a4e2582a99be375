//! What a run tells while it goes on.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use siem_client::Status;

use super::{LineError, eve::Repair};
use siem_client::Retrying;
use siem_client::v1::{ErrorReason, Rejection};

/// Lines of each kind that are told in full.
const MAX_TOLD: u64 = 20;

/// The counts so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes of the input, where that is known.
    pub total_bytes: Option<u64>,
    /// Records read, and damaged parts of lines.
    pub read: u64,
    /// Alerts sent.
    pub published: u64,
    /// Alerts that are durable with the service.
    pub accepted: u64,
    /// Alerts that the service refused.
    pub rejected: u64,
    /// Alerts that were not kept because the organization has no integration.
    pub unconfigured: u64,
    /// Records of other event types.
    pub skipped: u64,
    /// Lines, and parts of lines, that are no EVE records.
    pub broken: u64,
    /// Alerts sent with U+FFFD in place of what is no text.
    pub repaired: u64,
    /// NULs that were passed over.
    pub nuls: u64,
}

/// Something worth telling.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A line could not be read.
    Broken {
        /// From 1.
        line: u64,
        /// What is wrong.
        error: &'a LineError,
    },
    /// A line has NULs, which were passed over.
    Nuls {
        /// From 1.
        line: u64,
        /// Number of NULs.
        count: u64,
    },
    /// An alert could be read only after a repair.
    Repaired {
        /// From 1.
        line: u64,
        /// The repair.
        repair: &'a Repair,
    },
    /// The service refused one alert.
    Rejected {
        /// From 1.
        line: u64,
        /// Why.
        rejection: &'a Rejection,
    },
    /// The service refused a whole request.
    Refused {
        /// Of its first alert.
        first_line: u64,
        /// Of its last alert.
        last_line: u64,
        /// Alerts in it.
        events: usize,
        /// Why.
        status: &'a Status,
    },
    /// Something that happened to a file that is followed.
    Note(&'a str),
    /// The connection broke, or the service asked to try again.
    Retrying(&'a Retrying),
    /// The counts changed.
    Progress(Progress),
}

/// Told what happens, in order.
pub trait Reporter {
    /// Called often; it should be quick.
    fn report(&mut self, notice: Notice<'_>);
}

impl<F: FnMut(Notice<'_>)> Reporter for F {
    fn report(&mut self, notice: Notice<'_>) {
        self(notice);
    }
}

/// Nothing is told.
impl Reporter for () {
    fn report(&mut self, _: Notice<'_>) {}
}

/// How much of one kind was told.
#[derive(Debug, Default)]
struct Limited {
    told: u64,
    left_out: u64,
}

impl Limited {
    /// Whether these are to be told.
    fn more(&mut self, events: u64) -> bool {
        let tell = self.told < MAX_TOLD;
        if tell {
            self.told += 1;
        } else {
            self.left_out += events;
        }
        tell
    }
}

/// Writes lines for a person, and draws a progress bar where stderr is a terminal.
#[derive(Debug)]
pub struct ConsoleReporter<W> {
    out: W,
    bar: ProgressBar,
    broken: Limited,
    rejected: Limited,
    repaired: Limited,
    nuls: Limited,
    /// The cause that was told last, while nothing gets through.
    retrying: Option<String>,
    answered: u64,
}

impl<W: Write> ConsoleReporter<W> {
    /// `out` is stderr, but for tests.
    pub fn new(out: W) -> Self {
        Self::with_target(out, ProgressDrawTarget::stderr())
    }

    /// No progress bar, for where something else is on the screen.
    pub fn without_bar(out: W) -> Self {
        Self::with_target(out, ProgressDrawTarget::hidden())
    }

    fn with_target(out: W, target: ProgressDrawTarget) -> Self {
        Self {
            out,
            bar: ProgressBar::with_draw_target(None, target),
            broken: Limited::default(),
            rejected: Limited::default(),
            repaired: Limited::default(),
            nuls: Limited::default(),
            retrying: None,
            answered: 0,
        }
    }

    /// Removes the bar and tells how many lines were left out.
    pub fn finish(mut self) -> W {
        self.bar.finish_and_clear();
        let left_out = [
            (&self.broken, "broken"),
            (&self.rejected, "rejected"),
            (&self.repaired, "repaired"),
            (&self.nuls, "with NULs"),
        ];
        for (count, what) in left_out.map(|(limited, what)| (limited.left_out, what)) {
            if count > 0 {
                self.say(&format!("and {count} more {what}"));
            }
        }
        self.out
    }

    fn say(&mut self, text: &str) {
        let out = &mut self.out;
        // With stderr gone there is nobody left to tell. Foreign text must not
        // steer the terminal.
        self.bar.suspend(|| {
            let text = text.replace(char::is_control, "\u{fffd}");
            let _ = writeln!(out, "{text}");
        });
    }

    fn rejected(&mut self, line: u64, rejection: &Rejection) {
        if !self.rejected.more(1) {
            return;
        }
        let reason = ErrorReason::try_from(rejection.reason).unwrap_or_default();
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        let field = match rejection.field.as_str() {
            "" => String::new(),
            field => format!("{field}: "),
        };
        let message = &rejection.message;
        self.say(&format!(
            "line {line}: rejected: {field}{message} ({reason})"
        ));
    }

    fn repaired(&mut self, line: u64, repair: &Repair) {
        if !self.repaired.more(1) {
            return;
        }
        let text = match repair {
            Repair::Prefix(prefix) => format!(
                "the text before the record is passed over, here and in further lines: {prefix}"
            ),
            Repair::Utf8(count) => format!("{count} times not UTF-8, replaced by U+FFFD"),
            Repair::Surrogates(count) => {
                format!("{count} escapes of a lone surrogate, replaced by U+FFFD")
            }
        };
        self.say(&format!("line {line}: {text}"));
    }

    fn refused(&mut self, lines: (u64, u64), events: usize, status: &Status) {
        if !self.rejected.more(events as u64) {
            return;
        }
        let which = match lines {
            (first, last) if first == last => format!("line {first}: rejected"),
            (first, last) => format!("lines {first} to {last}: {events} alerts rejected"),
        };
        let (code, message) = (status.code(), status.message());
        self.say(&format!("{which}: {message} ({code:?})"));
    }

    fn retrying(&mut self, retrying: &Retrying) {
        let cause = format!("{} ({:?})", retrying.cause.message(), retrying.cause.code());
        if self.retrying.as_ref() != Some(&cause) {
            self.say(&format!("held up: {cause}; trying again"));
            self.retrying = Some(cause);
        }
    }

    fn progress(&mut self, progress: Progress) {
        let answered = progress.accepted + progress.rejected + progress.unconfigured;
        if answered > self.answered && self.retrying.take().is_some() {
            self.say("going on");
        }
        self.answered = answered;
        if self.bar.is_hidden() {
            return;
        }
        if self.bar.length() != progress.total_bytes || self.bar.position() == 0 {
            self.bar.set_style(style(progress.total_bytes));
            if let Some(total) = progress.total_bytes {
                self.bar.set_length(total);
            }
        }
        self.bar.set_position(progress.bytes);
        self.bar.set_message(format!(
            "{} published, {} accepted, {} rejected, {} broken",
            progress.published, progress.accepted, progress.rejected, progress.broken
        ));
    }
}

fn style(total_bytes: Option<u64>) -> ProgressStyle {
    let template = match total_bytes {
        Some(_) => "{bar:24} {bytes}/{total_bytes} {wide_msg}",
        None => "{spinner} {bytes} {wide_msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl<W: Write> Reporter for ConsoleReporter<W> {
    fn report(&mut self, notice: Notice<'_>) {
        match notice {
            Notice::Broken { line, error } => {
                if self.broken.more(1) {
                    self.say(&format!("line {line}: broken: {error}"));
                }
            }
            Notice::Nuls { line, count } => {
                if self.nuls.more(1) {
                    self.say(&format!(
                        "line {line}: {count} NULs passed over; if a crash left them, what was to be there is lost"
                    ));
                }
            }
            Notice::Repaired { line, repair } => self.repaired(line, repair),
            Notice::Rejected { line, rejection } => self.rejected(line, rejection),
            Notice::Refused {
                first_line,
                last_line,
                events,
                status,
            } => self.refused((first_line, last_line), events, status),
            Notice::Note(note) => self.say(note),
            Notice::Retrying(retrying) => self.retrying(retrying),
            Notice::Progress(progress) => self.progress(progress),
        }
    }
}
