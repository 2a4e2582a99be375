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

use bytes::Bytes;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::client::{
    self, AddressError, EventSender, Publisher, PublisherError, PublisherOptions, Updates,
};

pub mod eve;
mod lines;
mod report;
mod session;
mod source;
mod summary;

use eve::{EveError, Line, Origin};
use lines::{Lines, RawLine};
use session::Session;
use source::Source;

pub use report::{ConsoleReporter, Notice, Progress, Reporter};
pub use summary::{End, Summary};

/// A longer line is broken; it is skipped without being kept.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Where the lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Standard input, until it ends.
    Stdin,
    /// A file, or anything else that can be opened and read to its end.
    File(PathBuf),
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
}

impl PublishError {
    /// Whether the options are wrong, whatever the input and the service.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Organization | Self::Address(_) => true,
            Self::Open { .. } => false,
        }
    }
}

/// Why a line is broken.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Too long to be kept.
    #[error("longer than {} MiB", MAX_LINE_BYTES >> 20)]
    TooLong,
    /// Not text.
    #[error("not UTF-8 at byte {at}")]
    Utf8 {
        /// From the start of the line, from 1.
        at: usize,
    },
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
    let channel = client::channel(&options.address)?;
    let origin = Origin::new(
        &options.organization_id,
        options.network_id,
        options.device_id,
    );
    let from_line = options.from_line.max(1);
    let source = tokio::select! {
        source = source::open(options.input.clone()) => source?,
        () = shutdown.cancelled() => return Ok(Summary::nothing(options, End::Interrupted)),
    };
    let (sender, updates, publisher) = Publisher::new(channel, options.publisher.clone());
    let publisher = AbortOnDropHandle::new(tokio::spawn(publisher.run()));
    let session = Mutex::new(Session::new(reporter, from_line, source.total_bytes));
    let feeder = Feeder {
        source,
        sender,
        origin,
        session: &session,
        shutdown: &shutdown,
    };
    let (end, result) = tokio::join!(
        feeder.run(from_line),
        answers(
            publisher,
            updates,
            &session,
            &shutdown,
            options.shutdown_grace
        )
    );
    let end = match result {
        Err(error) => End::Stopped(error),
        Ok(()) => end,
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
        loop {
            let chunk = match self.chunk().await {
                Ok(chunk) => chunk,
                Err(end) => return end,
            };
            let ended = chunk.is_none();
            match chunk {
                Some(chunk) => {
                    lock(self.session).progress(chunk.len());
                    lines.feed(chunk);
                }
                None => lines.end(),
            }
            while let Some(line) = lines.next_line() {
                if line.number >= from_line
                    && let Err(end) = self.take(line).await
                {
                    return end;
                }
            }
            if ended {
                return End::Complete;
            }
        }
    }

    /// More of the input; `None` at its end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, End> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(End::Interrupted),
            () = self.sender.closed() => Err(End::Interrupted),
            chunk = self.source.chunks.recv() => chunk.transpose().map_err(End::ReadFailed),
        }
    }

    async fn take(&self, line: RawLine) -> Result<(), End> {
        let number = line.number;
        let parsed = line.text.and_then(|text| self.parse(&text));
        match parsed {
            Ok(None) => {}
            Ok(Some(Line::Alert(event))) => {
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return Err(End::Interrupted),
                    sent = self.sender.send(&event, number) => {
                        sent.map_err(|_| End::Interrupted)?;
                    }
                }
                lock(self.session).published();
            }
            Ok(Some(Line::Other(event_type))) => lock(self.session).skipped(event_type),
            Err(error) => lock(self.session).broken(number, &error),
        }
        lock(self.session).handled(number);
        Ok(())
    }

    fn parse(&self, text: &[u8]) -> Result<Option<Line>, LineError> {
        let text = std::str::from_utf8(text).map_err(|error| LineError::Utf8 {
            at: error.valid_up_to() + 1,
        })?;
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        Ok(Some(eve::parse(text, &self.origin)?))
    }
}

#[cfg(test)]
mod tests;
