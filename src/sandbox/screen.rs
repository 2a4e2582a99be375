//! Output. On a terminal everything goes to stdout, formatted. Otherwise each CloudEvent goes to
//! stdout as it was delivered, and all other text to stderr.
//!
//! A thread writes, since a pipe blocks for as long as its reader does not read.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use aws_stand_in::Record;

use super::{color::Paint, event_view};

/// Events queued to be written.
const QUEUED_EVENTS: usize = 1_024;
/// Time that a pipe may block after a signal.
const FINISH_DEADLINE: Duration = Duration::from_secs(5);

enum Item {
    Event(Record, Permit),
    Note(String),
}

/// Permit to queue one event, returned once it is written.
pub(super) struct Permit(
    #[expect(dead_code, reason = "it is returned by being dropped")] Option<OwnedSemaphorePermit>,
);

/// Handle to the printing thread. Clones share it.
#[derive(Clone)]
pub(super) struct Screen {
    items: mpsc::UnboundedSender<Item>,
    permits: Arc<Semaphore>,
    is_terminal: bool,
    paint: Paint,
    closed: CancellationToken,
}

/// The printing thread, which ends with the last [`Screen`].
pub(super) struct Printer(oneshot::Receiver<io::Result<()>>);

impl Screen {
    pub(super) fn start() -> io::Result<(Self, Printer)> {
        let is_terminal = io::stdout().is_terminal();
        // Otherwise notes go to stderr.
        let colored = is_terminal || io::stderr().is_terminal();
        let paint = Paint::new(colored && !no_color());
        let (items, waiting) = mpsc::unbounded_channel();
        let (done, finished) = oneshot::channel();
        let screen = Self {
            items,
            permits: Arc::new(Semaphore::new(QUEUED_EVENTS)),
            is_terminal,
            paint,
            closed: CancellationToken::new(),
        };
        let closed = screen.closed.clone();
        thread::Builder::new()
            .name("printer".into())
            .spawn(move || {
                let out = BufWriter::new(io::stdout().lock());
                let printed = print(waiting, out, is_terminal, paint);
                if printed.is_err() {
                    closed.cancel();
                }
                // The receiver may be dropped already.
                let _ = done.send(printed);
            })?;
        Ok((screen, Printer(finished)))
    }

    /// Waits while too many events are queued.
    pub(super) async fn permit(&self) -> Permit {
        // The semaphore is never closed.
        Permit(Arc::clone(&self.permits).acquire_owned().await.ok())
    }

    /// Prints an event.
    pub(super) fn event(&self, record: Record, permit: Permit) {
        // If the thread has ended, `closed` returns.
        let _ = self.items.send(Item::Event(record, permit));
    }

    /// Prints a text of one or more lines.
    pub(super) fn note(&self, text: &str) {
        if self.is_terminal {
            let _ = self.items.send(Item::Note(text.to_owned()));
        } else {
            // An error of stderr cannot be reported anywhere.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Colors of notes.
    pub(super) fn paint(&self) -> Paint {
        self.paint
    }

    /// Waits until the reader of stdout has closed it.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Printer {
    /// Waits until everything is written; after `shutdown` for at most 5 s.
    pub(super) async fn finish(self, shutdown: &CancellationToken) -> io::Result<()> {
        let deadline = async {
            shutdown.cancelled().await;
            sleep(FINISH_DEADLINE).await;
        };
        tokio::select! {
            // The thread sends its result, unless it panicked.
            printed = self.0 => printed.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())),
            () = deadline => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// `NO_COLOR` of <https://no-color.org>.
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn print(
    mut waiting: mpsc::UnboundedReceiver<Item>,
    mut out: impl Write,
    is_terminal: bool,
    paint: Paint,
) -> io::Result<()> {
    while let Some(item) = waiting.blocking_recv() {
        match item {
            Item::Note(text) => writeln!(out, "{text}")?,
            Item::Event(record, _permit) if is_terminal => {
                writeln!(out, "{}", event_view::block(&record, paint))?;
            }
            Item::Event(record, _permit) => {
                out.write_all(&record.data)?;
                if !record.data.ends_with(b"\n") {
                    out.write_all(b"\n")?;
                }
            }
        }
        if waiting.is_empty() {
            out.flush()?;
        }
    }
    out.flush()
}
