//! Suricata EVE files into the service: the alerts of a file or a pipe, over one
//! [`Publisher`] with many requests in flight.
//!
//! ```text
//! source ──chunks──▶ lines ──text──▶ eve ──events──▶ client::Publisher
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

use siem_client::v1;
use siem_client::{
    self, AddressError, EventSender, Publisher, PublisherError, PublisherOptions, Updates,
};

pub mod eve;
mod follow;
mod lines;
mod report;
mod session;
mod source;
mod summary;

use eve::{EveError, Line, Origin, Record};
use follow::Keeper;
use lines::{Lines, RawLine};
use session::Session;
use source::{Part, Source};

pub use follow::{PlaceError, default_state_file};
pub use report::{ConsoleReporter, Notice, Progress, Reporter};
pub use summary::{End, Summary};

/// Between one keeping of the place and the next; a kill costs that much again.
const KEEP: Duration = Duration::from_millis(500);
/// A longer line is broken; it is skipped without being kept.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Where the lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Standard input, until it ends.
    Stdin,
    /// A file, or anything else that can be opened and read to its end.
    File(PathBuf),
    /// A file as `tail -F` reads it, across rotation and truncation, until it is told
    /// to stop.
    Follow {
        /// The file.
        path: PathBuf,
        /// Where its place is kept, so that the next run goes on there. By custom
        /// [`default_state_file`].
        state_file: PathBuf,
    },
}

/// What to publish, and where.
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
    /// The service, such as [`client::DEFAULT_ADDRESS`].
    pub address: String,
    /// The first line that counts, from 1; those before are passed over.
    pub from_line: u64,
    /// How long a shutdown waits for the answers in flight.
    pub shutdown_grace: Duration,
    /// Batches, windows and retries.
    pub publisher: PublisherOptions,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The organization is not a valid id.
    #[error("organization must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -")]
    Organization,
    /// The address cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The input cannot be opened.
    #[error("cannot open {}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The path to be followed is a pattern.
    #[error(
        "{} is a pattern, and there is no such file: name the one file that is to be followed; \
         for Suricata set a filename without % and threaded: no for eve-log, and rotate with \
         logrotate, or run a publisher for each file",
        path.display()
    )]
    Pattern {
        /// The path.
        path: PathBuf,
    },
    /// The place of a file that is followed cannot be kept.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

impl PublishError {
    /// Whether the options are wrong, whatever the input and the service.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Organization | Self::Address(_) | Self::Pattern { .. } => true,
            Self::Open { .. } | Self::Place(_) => false,
        }
    }
}

/// Why a line is broken.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Too long to be kept.
    #[error("longer than {} MiB", MAX_LINE_BYTES >> 20)]
    TooLong,
    /// Not an EVE record.
    #[error(transparent)]
    Eve(#[from] EveError),
}

/// Publishes every alert of the input, and answers when each was answered.
///
/// `shutdown` stops the reading; what was sent has a while to be answered. The
/// summary then tells the line to resume from.
///
/// # Errors
///
/// [`PublishError`] where nothing could start. What goes wrong later is told by
/// the [`Summary`].
pub async fn run(
    options: PublishOptions,
    reporter: &mut (dyn Reporter + Send),
    shutdown: CancellationToken,
) -> Result<Summary, PublishError> {
    if !is_organization_id(&options.organization_id) {
        return Err(PublishError::Organization);
    }
    let channel = siem_client::channel(&options.address)?;
    let origin = Origin::new(
        &options.organization_id,
        options.network_id,
        options.device_id,
    );
    let from_line = options.from_line.max(1);
    let mut source = tokio::select! {
        source = source::open(options.input.clone()) => source?,
        () = shutdown.cancelled() => return Ok(Summary::nothing(options, End::Interrupted)),
    };
    let (sender, updates, publisher) = Publisher::new(channel, options.publisher.clone());
    let publisher = AbortOnDropHandle::new(tokio::spawn(publisher.run()));
    let session = Mutex::new(Session::new(reporter, from_line, source.total_bytes));
    let keeper = source.keeper.take();
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
        let grace = options.shutdown_grace;
        answers(publisher, updates, &session, &shutdown, grace).await
    };
    let (end, result, kept) = tokio::join!(
        feeder.run(from_line),
        answers,
        keep(keeper, &session, &answered)
    );
    let end = match (result, kept) {
        (Err(error), _) => End::Stopped(error),
        (_, Err(error)) => End::NotKept(error),
        (Ok(()), Ok(())) => end,
    };
    let session = lock(&session);
    Ok(session.summary(options, end))
}

fn is_organization_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

fn lock<'a, 'b>(session: &'a Mutex<Session<'b>>) -> MutexGuard<'a, Session<'b>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the place of a file that is followed, every now and then, and at the end.
async fn keep(
    keeper: Option<Keeper>,
    session: &Mutex<Session<'_>>,
    answered: &CancellationToken,
) -> Result<(), PlaceError> {
    let Some(mut keeper) = keeper else {
        return Ok(());
    };
    let mut due = interval(KEEP);
    let mut kept = Ok(());
    loop {
        let last = tokio::select! {
            _ = due.tick() => false,
            () = answered.cancelled() => true,
        };
        let position = lock(session).position();
        if let Some(position) = position {
            let failing = kept.is_err();
            kept = keeper.keep(&position);
            // What is not kept is sent again by the next run.
            if let (Err(error), false) = (&kept, failing) {
                lock(session).note(&error.to_string());
            }
        }
        if last {
            return kept;
        }
    }
}

/// Tells what came back, until all did or the grace after a shutdown is over.
async fn answers(
    publisher: AbortOnDropHandle<Result<(), PublisherError>>,
    mut updates: Updates,
    session: &Mutex<Session<'_>>,
    shutdown: &CancellationToken,
    grace: Duration,
) -> Result<(), PublisherError> {
    let patience = async {
        shutdown.cancelled().await;
        sleep(grace).await;
    };
    tokio::pin!(patience);
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => lock(session).update(update),
                None => break,
            },
            () = &mut patience => {
                publisher.abort();
                break;
            }
        }
    }
    // A task that was aborted, or that panicked, leaves unanswered events; they count.
    publisher.await.unwrap_or(Ok(()))
}

/// Reads, and hands alerts to the publisher.
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
        let mut above = 0;
        loop {
            let part = match self.part().await {
                Ok(part) => part,
                Err(end) => return end,
            };
            let (mut begun, ended) = (None, part.is_none());
            match part {
                Some(Part::Bytes(chunk)) => {
                    lock(self.session).progress(chunk.len());
                    lines.feed(chunk);
                }
                Some(Part::Told(told)) => lock(self.session).told(&told),
                Some(Part::Begin(begin)) => {
                    if begin.ends_last {
                        lines.end();
                    }
                    begun = Some(begin);
                }
                None => lines.end(),
            }
            while let Some(line) = lines.next_line() {
                if line.number >= from_line
                    && let Err(end) = self.take(line, above).await
                {
                    return end;
                }
            }
            if let Some(begin) = begun {
                above = lock(self.session).begin(&begin);
                lines = Lines::after(MAX_LINE_BYTES, begin.offset, begin.line);
            }
            if ended {
                return End::Complete;
            }
        }
    }

    /// More of the input; `None` at its end.
    async fn part(&mut self) -> Result<Option<Part>, End> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(End::Interrupted),
            () = self.sender.closed() => Err(End::Interrupted),
            part = self.source.parts.recv() => part.transpose().map_err(End::ReadFailed),
        }
    }

    async fn take(&self, line: RawLine, above: u64) -> Result<(), End> {
        let (number, end) = (line.number, line.end);
        match line.text {
            Ok(text) => self.take_records(&text, number, end, above).await?,
            Err(error) => lock(self.session).broken(number, &error),
        }
        if line.nuls > 0 {
            lock(self.session).nuls(number, line.nuls);
        }
        lock(self.session).handled(session::tag(above, number, true), end);
        Ok(())
    }

    async fn take_records(&self, text: &[u8], line: u64, end: u64, above: u64) -> Result<(), End> {
        // The alert that is sent once it is known whether another follows in the line.
        let mut held: Option<Box<v1::Event>> = None;
        for Record {
            line: read,
            repairs,
        } in eve::records(text, &self.origin)
        {
            match read {
                Ok(Line::Alert(event)) => {
                    lock(self.session).repaired(line, &repairs);
                    if let Some(before) = held.replace(event) {
                        let tag = session::tag(above, line, false);
                        self.send(&before, tag, end).await?;
                    }
                }
                Ok(Line::Other(event_type)) => lock(self.session).skipped(event_type),
                Err(error) => lock(self.session).broken(line, &error.into()),
            }
        }
        match held {
            Some(event) => {
                self.send(&event, session::tag(above, line, true), end)
                    .await
            }
            None => Ok(()),
        }
    }

    async fn send(&self, event: &v1::Event, tag: u64, end: u64) -> Result<(), End> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Err(End::Interrupted),
            sent = self.sender.send(event, tag) => sent.map_err(|_| End::Interrupted)?,
        }
        lock(self.session).published(tag, end);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
