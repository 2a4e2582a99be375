//! Prints: on a terminal all to stdout, for a person; otherwise each CloudEvent as it
//! was delivered to stdout, and all else to stderr.
//!
//! Writing to a pipe may block for as long as its reader likes, so a thread does it.

mod paint;
mod pretty;

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
pub(super) use paint::{Color, Paint};

/// Events that wait to be written.
const WAITING_EVENTS: usize = 1_024;
/// How long a pipe may block after a signal.
const FINISH_DEADLINE: Duration = Duration::from_secs(5);

enum Item {
    Event(Record, Room),
    Note(String),
}

/// A place for one event, free again once it is written.
pub(super) struct Room(
    #[expect(dead_code, reason = "dropping it is its use")] Option<OwnedSemaphorePermit>,
);

/// A handle to the printing thread. Clones write to the same.
#[derive(Clone)]
pub(super) struct Screen {
    items: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
    for_a_person: bool,
    paint: Paint,
    closed: CancellationToken,
}

/// The printing thread, which ends with the last [`Screen`].
pub(super) struct Printer(oneshot::Receiver<io::Result<()>>);

impl Screen {
    pub(super) fn start() -> io::Result<(Self, Printer)> {
        let for_a_person = io::stdout().is_terminal();
        // What is said goes to stderr otherwise.
        let colored = for_a_person || io::stderr().is_terminal();
        let paint = Paint::new(colored && !no_color());
        let (items, waiting) = mpsc::unbounded_channel();
        let (done, finished) = oneshot::channel();
        let screen = Self {
            items,
            room: Arc::new(Semaphore::new(WAITING_EVENTS)),
            for_a_person,
            paint,
            closed: CancellationToken::new(),
        };
        let closed = screen.closed.clone();
        thread::Builder::new()
            .name("printer".into())
            .spawn(move || {
                let out = BufWriter::new(io::stdout().lock());
                let printed = print(waiting, out, for_a_person, paint);
                if printed.is_err() {
                    closed.cancel();
                }
                // Nobody may wait for it any more.
                let _ = done.send(printed);
            })?;
        Ok((screen, Printer(finished)))
    }

    /// Waits while too many events wait to be written.
    pub(super) async fn room(&self) -> Room {
        // It is never closed.
        Room(Arc::clone(&self.room).acquire_owned().await.ok())
    }

    /// Shows an event.
    pub(super) fn event(&self, record: Record, room: Room) {
        // Where the thread is gone, `closed` tells.
        let _ = self.items.send(Item::Event(record, room));
    }

    /// Tells something in one or more lines.
    pub(super) fn say(&self, text: &str) {
        if self.for_a_person {
            let _ = self.items.send(Item::Note(text.to_owned()));
        } else {
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// The colors of what is said.
    pub(super) fn paint(&self) -> Paint {
        self.paint
    }

    /// Waits until whoever read stdout is gone.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Printer {
    /// Waits until everything is written, as long as whoever reads it likes; a while
    /// only once there is a `shutdown`.
    pub(super) async fn finish(self, shutdown: &CancellationToken) -> io::Result<()> {
        let impatience = async {
            shutdown.cancelled().await;
            sleep(FINISH_DEADLINE).await;
        };
        tokio::select! {
            // The thread cannot end without saying how, unless it panicked.
            printed = self.0 => printed.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())),
            () = impatience => Err(io::ErrorKind::TimedOut.into()),
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
    for_a_person: bool,
    paint: Paint,
) -> io::Result<()> {
    while let Some(item) = waiting.blocking_recv() {
        match item {
            Item::Note(text) => writeln!(out, "{text}")?,
            Item::Event(record, _room) if for_a_person => {
                writeln!(out, "{}", pretty::block(&record, paint))?;
            }
            Item::Event(record, _room) => {
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
