//! Counts and notices of a run, and their output to a terminal.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use siem_client::Status;

use super::{LineError, eve::Repair};
use siem_client::v1::{ErrorReason, Rejection};
use siem_client::{Deferral, Retrying};

/// Maximum number of notices of one kind that are printed.
const MAX_PRINTED: u64 = 20;

/// Counts so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Bytes read.
    pub bytes: u64,
    /// Length of the input in bytes, if known.
    pub total_bytes: Option<u64>,
    /// Records and damaged parts of lines that were read.
    pub read: u64,
    /// Alerts sent.
    pub published: u64,
    /// Alerts that the service has stored durably.
    pub accepted: u64,
    /// Alerts that the service refused.
    pub rejected: u64,
    /// Alerts that were not stored because the organization has no integration.
    pub unconfigured: u64,
    /// Records of other event types.
    pub skipped: u64,
    /// Lines and parts of lines that are not EVE records.
    pub broken: u64,
    /// Alerts sent with U+FFFD in place of invalid characters.
    pub repaired: u64,
    /// NULs that were skipped.
    pub nuls: u64,
}

impl Counts {
    /// Alerts that were answered.
    fn answered(&self) -> u64 {
        self.accepted + self.rejected + self.unconfigured
    }

    /// Alerts that were sent and not answered.
    pub fn unanswered(&self) -> u64 {
        self.published.saturating_sub(self.answered())
    }
}

/// A notice about the run.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A line could not be read.
    Broken {
        /// Line number, from 1.
        line: u64,
        /// The reason.
        error: &'a LineError,
    },
    /// A line contains NULs, which were skipped.
    Nuls {
        /// Line number, from 1.
        line: u64,
        /// Number of NULs.
        count: u64,
    },
    /// An alert could be read only after a repair.
    Repaired {
        /// Line number, from 1.
        line: u64,
        /// The repair.
        repair: &'a Repair,
    },
    /// The service refused one alert.
    Rejected {
        /// Line number, from 1.
        line: u64,
        /// The reason.
        rejection: &'a Rejection,
    },
    /// The service refused a whole request.
    Refused {
        /// Line of its first alert.
        first_line: u64,
        /// Line of its last alert.
        last_line: u64,
        /// Number of its alerts.
        events: usize,
        /// The reason.
        status: &'a Status,
    },
    /// An incident in following a file.
    Note(&'a str),
    /// The service rejected alerts temporarily; they are sent again.
    Deferred(&'a Deferral),
    /// A request is retried, because the connection broke or the service asked for it.
    Retrying(&'a Retrying),
    /// The counts changed.
    Progress(Counts),
}

/// Receiver of notices, in order.
pub trait Reporter {
    /// Handles a notice. It is called often and must be quick.
    fn report(&mut self, notice: Notice<'_>);
}

impl<F: FnMut(Notice<'_>)> Reporter for F {
    fn report(&mut self, notice: Notice<'_>) {
        self(notice);
    }
}

/// Drops all notices.
impl Reporter for () {
    fn report(&mut self, _: Notice<'_>) {}
}

/// Limit for printing notices of one kind.
#[derive(Debug, Default)]
struct PrintLimit {
    printed: u64,
    left_out: u64,
}

impl PrintLimit {
    /// Whether to print a notice about `events` events; counts them as left out if not.
    fn allows(&mut self, events: u64) -> bool {
        let is_allowed = self.printed < MAX_PRINTED;
        if is_allowed {
            self.printed += 1;
        } else {
            self.left_out += events;
        }
        is_allowed
    }
}

/// Reporter that prints notices for people, with a progress bar if stderr is a terminal.
#[derive(Debug)]
pub struct ConsoleReporter<W> {
    out: W,
    bar: ProgressBar,
    broken: PrintLimit,
    rejected: PrintLimit,
    repaired: PrintLimit,
    nuls: PrintLimit,
    deferred: PrintLimit,
    /// The cause that was printed last, while no answer has arrived since.
    retrying: Option<String>,
    answered: u64,
}

impl<W: Write> ConsoleReporter<W> {
    /// Creates a reporter with a progress bar; `out` is stderr except in tests.
    pub fn new(out: W) -> Self {
        Self::with_target(out, ProgressDrawTarget::stderr())
    }

    /// Creates a reporter without a progress bar, for a screen with other output.
    pub fn without_bar(out: W) -> Self {
        Self::with_target(out, ProgressDrawTarget::hidden())
    }

    fn with_target(out: W, target: ProgressDrawTarget) -> Self {
        Self {
            out,
            bar: ProgressBar::with_draw_target(None, target),
            broken: PrintLimit::default(),
            rejected: PrintLimit::default(),
            repaired: PrintLimit::default(),
            nuls: PrintLimit::default(),
            deferred: PrintLimit::default(),
            retrying: None,
            answered: 0,
        }
    }

    /// Removes the bar and prints how many notices were left out.
    pub fn finish(mut self) -> W {
        self.bar.finish_and_clear();
        let left_out = [
            (&self.broken, "broken"),
            (&self.rejected, "rejected"),
            (&self.repaired, "repaired"),
            (&self.nuls, "with NULs"),
            (&self.deferred, "rejected temporarily"),
        ];
        for (count, what) in left_out.map(|(limit, what)| (limit.left_out, what)) {
            if count > 0 {
                self.print(&format!("and {count} more {what}"));
            }
        }
        self.out
    }

    fn print(&mut self, text: &str) {
        let out = &mut self.out;
        // Control characters in foreign text could steer the terminal. An error is ignored,
        // since a closed stderr leaves no place to report it.
        self.bar.suspend(|| {
            let text = text.replace(char::is_control, "\u{fffd}");
            let _ = writeln!(out, "{text}");
        });
    }

    fn rejected(&mut self, line: u64, rejection: &Rejection) {
        if !self.rejected.allows(1) {
            return;
        }
        let reason = ErrorReason::try_from(rejection.reason).unwrap_or_default();
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        let field = match rejection.field.as_str() {
            "" => String::new(),
            field => format!("{field}: "),
        };
        let message = &rejection.message;
        self.print(&format!(
            "line {line}: rejected: {field}{message} ({reason})"
        ));
    }

    fn repaired(&mut self, line: u64, repair: &Repair) {
        if !self.repaired.allows(1) {
            return;
        }
        let text = match repair {
            Repair::Prefix(prefix) => format!(
                "the text before the record is skipped, here and in further lines: {prefix}"
            ),
            Repair::Utf8(count) => {
                format!("{count} sequences are not UTF-8, replaced by U+FFFD")
            }
            Repair::Surrogates(count) => {
                format!("{count} escapes of a lone surrogate, replaced by U+FFFD")
            }
        };
        self.print(&format!("line {line}: {text}"));
    }

    fn refused(&mut self, lines: (u64, u64), events: usize, status: &Status) {
        if !self.rejected.allows(events as u64) {
            return;
        }
        let which = match lines {
            (first, last) if first == last => format!("line {first}: rejected"),
            (first, last) => format!("lines {first} to {last}: {events} alerts rejected"),
        };
        let (code, message) = (status.code(), status.message());
        self.print(&format!("{which}: {message} ({code:?})"));
    }

    fn retrying(&mut self, retrying: &Retrying) {
        let cause = format!("{} ({:?})", retrying.cause.message(), retrying.cause.code());
        if self.retrying.as_ref() != Some(&cause) {
            self.print(&format!("retrying: {cause}"));
            self.retrying = Some(cause);
        }
    }

    fn progress(&mut self, counts: Counts) {
        let answered = counts.answered();
        if answered > self.answered && self.retrying.take().is_some() {
            self.print("the service answers again");
        }
        self.answered = answered;
        if self.bar.is_hidden() {
            return;
        }
        if self.bar.length() != counts.total_bytes || self.bar.position() == 0 {
            self.bar.set_style(style(counts.total_bytes));
            if let Some(total) = counts.total_bytes {
                self.bar.set_length(total);
            }
        }
        self.bar.set_position(counts.bytes);
        self.bar.set_message(format!(
            "{} published, {} accepted, {} rejected, {} broken",
            counts.published, counts.accepted, counts.rejected, counts.broken
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
                if self.broken.allows(1) {
                    self.print(&format!("line {line}: broken: {error}"));
                }
            }
            Notice::Nuls { line, count } => {
                if self.nuls.allows(1) {
                    self.print(&format!(
                        "line {line}: {count} NULs skipped; if a crash left them, the content in their place is lost"
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
            Notice::Note(note) => self.print(note),
            Notice::Deferred(deferral) => {
                let Deferral { events, message } = deferral;
                if self.deferred.allows(*events as u64) {
                    self.print(&format!(
                        "rejected temporarily, to be sent again: {message} (alerts: {events})"
                    ));
                }
            }
            Notice::Retrying(retrying) => self.retrying(retrying),
            Notice::Progress(counts) => self.progress(counts),
        }
    }
}
