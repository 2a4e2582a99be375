//! Follows a file as `tail -F` does, across rotation and truncation, and remembers its
//! place, so that a restart goes on where the answers ended.

mod file;
mod state_file;
mod tail;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::mpsc;

pub use self::state_file::PlaceError;
pub(super) use self::{
    file::Followed,
    state_file::Keeper,
    tail::{Begin, Step},
};
use super::{
    PublishError,
    source::{PARTS_AHEAD, Part, Source},
};
use tail::Tail;

/// Between looks at a file that has nothing new. No portable call waits for a file to
/// grow.
const LOOK: Duration = Duration::from_millis(100);

/// Something that happened to a file that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// Something that may be wrong.
    Warning(String),
    /// Something was not read.
    Loss(String),
    /// The path is not there, or cannot be opened.
    Absent(String),
    /// The path is there again.
    There,
}

/// Where the place of a file is kept, unless it is told: beside it.
pub fn default_state_file(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.siem-relay"))
}

/// Starts to read, from the place that is kept.
pub(super) fn open(path: PathBuf, state_file: PathBuf) -> Result<Source, PublishError> {
    if is_pattern(&path) {
        return Err(PublishError::Pattern { path });
    }
    let keeper = Keeper::open(&path, state_file)?;
    let mut tail = Tail::new(path.clone(), keeper.kept().cloned());
    let (sender, parts) = mpsc::channel(PARTS_AHEAD);
    thread::Builder::new()
        .name("eve-follower".into())
        .spawn(move || pump(&mut tail, &sender))
        .map_err(|error| PublishError::Open { path, error })?;
    Ok(Source {
        parts,
        total_bytes: None,
        keeper: Some(keeper),
    })
}

/// Whether a path that is not there has a conversion of strftime, which Suricata's `filename`
/// may have.
fn is_pattern(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let mut pairs = text.as_bytes().windows(2);
    pairs.any(|pair| pair[0] == b'%' && pair[1].is_ascii_alphabetic()) && !path.exists()
}

/// Ends when nobody takes the parts any more.
fn pump(tail: &mut Tail, parts: &mpsc::Sender<io::Result<Part>>) {
    loop {
        let part = match tail.step() {
            Ok(Step::Idle) if parts.is_closed() => return,
            Ok(Step::Idle) => {
                thread::park_timeout(LOOK);
                continue;
            }
            Ok(Step::Begin(begin)) => Ok(Part::Begin(begin)),
            Ok(Step::Bytes(bytes)) => Ok(Part::Bytes(bytes)),
            Ok(Step::Told(told)) => Ok(Part::Told(told)),
            Err(error) => Err(error),
        };
        let failed = part.is_err();
        if parts.blocking_send(part).is_err() || failed {
            return;
        }
    }
}

/// A line's end in a file that is followed.
#[derive(Clone, Debug)]
pub(super) struct Position {
    pub(super) file: Arc<Followed>,
    /// Bytes before it.
    pub(super) offset: u64,
    /// Lines before it.
    pub(super) line: u64,
}
