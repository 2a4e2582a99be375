//! Publishing of the alerts of Suricata EVE files, over one [`PublishLoop`] with many
//! requests in flight.
//!
//! ```text
//! source ──chunks──▶ lines ──text──▶ eve ──events──▶ client::PublishLoop
//!                                                        │ answers
//!                            reporter ◀── session ◀──────┘
//! ```

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{interval, sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use siem_client::{
    ChannelError, ChannelOptions, EventSender, PublishLoop, PublisherError, PublisherOptions,
    Updates, v1,
};

use crate::domain::organization::{OrganizationId, OrganizationIdError};

pub mod eve;
mod follow;
mod lines;
mod report;
mod session;
mod source;

use eve::{EveError, Origin, Parsed, Record};
use follow::{Checkpoint, StateFile};
use lines::{Lines, RawLine};
use session::Session;
use source::{Part, Source};

pub use follow::{StateFileError, default_state_file};
pub use report::{ConsoleReporter, Counts, Notice, Reporter};
pub use session::{End, Summary};

/// Interval between writes of the state file. After a kill, so much is published twice.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum length of a line. A longer one is broken, and is skipped without buffering it.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Source of the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Standard input, until it ends.
    Stdin,
    /// A file, or anything else that can be opened and read to its end.
    File(PathBuf),
    /// A file as `tail -F` reads it, across rotation and truncation, until a shutdown.
    Follow {
        /// The file.
        path: PathBuf,
        /// File that stores the position from which the next run resumes; usually
        /// [`default_state_file`].
        state_file: PathBuf,
    },
}

/// Input, origin and destination of a run.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// EVE JSON, one object a line.
    pub input: Input,
    /// The organization, `[A-Za-z0-9_-]{1,64}`.
    pub organization_id: String,
    /// The network that the sensor watches.
    pub network_id: Uuid,
    /// The sensor.
    pub device_id: Uuid,
    /// Address of the service, and the credentials.
    pub service: ChannelOptions,
    /// Number of the first line to publish, from 1.
    pub from_line: u64,
    /// Time that a shutdown waits for the answers in flight.
    pub shutdown_grace: Duration,
    /// Batching, limits in flight and retries.
    pub publisher: PublisherOptions,
}

/// Reason why a run could not start.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The organization is not a valid id.
    #[error("organization {0}")]
    Organization(#[from] OrganizationIdError),
    /// The address or the credentials cannot be used.
    #[error(transparent)]
    Service(#[from] ChannelError),
    /// The input cannot be opened.
    #[error("cannot open {}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The path to follow is a pattern.
    #[error(
        "{} is a pattern, and no such file exists: name the one file to follow; \
         for Suricata set a filename without % and threaded: no for eve-log and rotate with \
         logrotate, or run one publisher per file",
        path.display()
    )]
    Pattern {
        /// The path.
        path: PathBuf,
    },
    /// The state file of a followed file cannot be used.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
}

impl PublishError {
    /// Whether the options are wrong, regardless of the input and the service.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Organization(_) | Self::Service(_) | Self::Pattern { .. } => true,
            Self::Open { .. } | Self::StateFile(_) => false,
        }
    }
}

/// Reason why a line is broken.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Longer than the limit.
    #[error("longer than {} MiB", MAX_LINE_BYTES >> 20)]
    TooLong,
    /// Not an EVE record.
    #[error(transparent)]
    Eve(#[from] EveError),
}

/// Publishes every alert of the input, and returns once each was answered.
///
/// `shutdown` stops the reading; the answers in flight are awaited for
/// [`PublishOptions::shutdown_grace`]. The summary then contains the line to resume from.
///
/// # Errors
///
/// [`PublishError`] if the run could not start. Later errors are part of the
/// [`Summary`].
pub async fn run(
    options: PublishOptions,
    reporter: &mut (dyn Reporter + Send),
    shutdown: CancellationToken,
) -> Result<Summary, PublishError> {
    OrganizationId::new(&options.organization_id)?;
    let channel = options.service.connect()?;
    let origin = Origin::new(
        &options.organization_id,
        options.network_id,
        options.device_id,
    );
    let from_line = options.from_line.max(1);
    let grace = options.shutdown_grace;
    let mut source = tokio::select! {
        source = source::open(options.input.clone()) => source?,
        () = shutdown.cancelled() => return Ok(Summary::new(options)),
    };
    let (sender, updates, publisher) = PublishLoop::new(channel, options.publisher.clone());
    let publisher = AbortOnDropHandle::new(tokio::spawn(publisher.run()));
    let summary = Summary::new(options);
    let session = Mutex::new(Session::new(reporter, summary, source.total_bytes));
    let state_file = source.state_file.take();
    let feeder = Feeder {
        source,
        sender,
        origin,
        session: &session,
        shutdown: &shutdown,
    };
    let answered = CancellationToken::new();
    let answers = async {
        let _answered = answered.clone().drop_guard();
        receive_answers(publisher, updates, &session, &shutdown, grace).await
    };
    let (end, result, saved) = tokio::join!(
        feeder.run(from_line),
        answers,
        save_position(state_file, &session, &answered)
    );
    let end = match (result, saved) {
        (Err(error), _) => End::Stopped(error),
        (_, Err(error)) => End::NotSaved(error),
        (Ok(()), Ok(())) => end,
    };
    let session = session.into_inner();
    Ok(session.unwrap_or_else(PoisonError::into_inner).finish(end))
}

fn lock<'a, 'b>(session: &'a Mutex<Session<'b>>) -> MutexGuard<'a, Session<'b>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the position in a followed file to its state file, periodically and at the end.
async fn save_position(
    state_file: Option<StateFile>,
    session: &Mutex<Session<'_>>,
    answered: &CancellationToken,
) -> Result<(), StateFileError> {
    let Some(mut state_file) = state_file else {
        return Ok(());
    };
    let mut due = interval(SAVE_INTERVAL);
    let mut saved = Ok(());
    loop {
        let last = tokio::select! {
            _ = due.tick() => false,
            () = answered.cancelled() => true,
        };
        let position = lock(session).position();
        if let Some(position) = position {
            let was_failing = saved.is_err();
            saved = state_file.save(&position);
            // Publishing continues: without a newer position the next run only repeats events.
            if let (Err(error), false) = (&saved, was_failing) {
                lock(session).note(&error.to_string());
            }
        }
        if last {
            return saved;
        }
    }
}

/// Records the answers, until all have arrived or the grace period of a shutdown is over.
async fn receive_answers(
    publisher: AbortOnDropHandle<Result<(), PublisherError>>,
    mut updates: Updates,
    session: &Mutex<Session<'_>>,
    shutdown: &CancellationToken,
    grace: Duration,
) -> Result<(), PublisherError> {
    let grace_over = async {
        shutdown.cancelled().await;
        sleep(grace).await;
    };
    tokio::pin!(grace_over);
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => lock(session).update(update),
                None => break,
            },
            () = &mut grace_over => {
                publisher.abort();
                break;
            }
        }
    }
    // After an abort or a panic, the summary counts the events as unanswered.
    publisher.await.unwrap_or(Ok(()))
}

/// Reads the input, and hands its alerts to the publisher.
struct Feeder<'a, 'b> {
    source: Source,
    sender: EventSender,
    origin: Origin,
    session: &'a Mutex<Session<'b>>,
    shutdown: &'a CancellationToken,
}

impl Feeder<'_, '_> {
    async fn run(mut self, from_line: u64) -> End {
        let mut lines = Lines::new(MAX_LINE_BYTES);
        let mut file_bits = 0;
        loop {
            let part = match self.next_part().await {
                Ok(part) => part,
                Err(end) => return end,
            };
            let (mut started, ended) = (None, part.is_none());
            match part {
                Some(Part::Bytes(chunk)) => {
                    lock(self.session).progress(chunk.len());
                    lines.feed(chunk);
                }
                Some(Part::Notice(notice)) => lock(self.session).file_notice(&notice),
                Some(Part::FileStart(start)) => {
                    if start.completes_last_line {
                        lines.end();
                    }
                    started = Some(start.position);
                }
                None => lines.end(),
            }
            while let Some(line) = lines.next_line() {
                if line.number >= from_line
                    && let Err(end) = self.publish_line(line, file_bits).await
                {
                    return end;
                }
            }
            if let Some(position) = started {
                file_bits = lock(self.session).start_file(&position);
                let Checkpoint { offset, line } = position.checkpoint;
                lines = Lines::after(MAX_LINE_BYTES, offset, line);
            }
            if ended {
                return End::Complete;
            }
        }
    }

    /// Returns more of the input; none at its end.
    async fn next_part(&mut self) -> Result<Option<Part>, End> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(End::Interrupted),
            () = self.sender.closed() => Err(End::Interrupted),
            part = self.source.parts.recv() => part.transpose().map_err(End::ReadFailed),
        }
    }

    async fn publish_line(&self, line: RawLine, file_bits: u64) -> Result<(), End> {
        let (number, end) = (line.number, line.end);
        match line.text {
            Ok(text) => self.publish_records(&text, number, end, file_bits).await?,
            Err(error) => lock(self.session).broken(number, &error),
        }
        if line.nuls > 0 {
            lock(self.session).nuls(number, line.nuls);
        }
        lock(self.session).handled(session::tag(file_bits, number, true), end);
        Ok(())
    }

    async fn publish_records(
        &self,
        text: &[u8],
        line: u64,
        end: u64,
        file_bits: u64,
    ) -> Result<(), End> {
        // Sent once it is known whether another alert follows in the line.
        let mut held: Option<Box<v1::Event>> = None;
        for Parsed { record, repairs } in eve::records(text, &self.origin) {
            match record {
                Ok(Record::Alert(event)) => {
                    lock(self.session).repaired(line, &repairs);
                    if let Some(previous) = held.replace(event) {
                        let tag = session::tag(file_bits, line, false);
                        self.send(&previous, tag, end).await?;
                    }
                }
                Ok(Record::Other(event_type)) => lock(self.session).skipped(event_type),
                Err(error) => lock(self.session).broken(line, &error.into()),
            }
        }
        match held {
            Some(event) => {
                let tag = session::tag(file_bits, line, true);
                self.send(&event, tag, end).await
            }
            None => Ok(()),
        }
    }

    async fn send(&self, event: &v1::Event, tag: u64, end: u64) -> Result<(), End> {
        lock(self.session).sending(tag, end);
        let sent = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => false,
            sent = self.sender.send(event, tag) => sent.is_ok(),
        };
        if sent {
            return Ok(());
        }
        lock(self.session).not_sent();
        Err(End::Interrupted)
    }
}

#[cfg(test)]
mod tests;
