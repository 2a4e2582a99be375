//! Following of a file as `tail -F` does, across rotation and truncation. The position is
//! stored in a state file, so that the next run resumes after the last answered alert.

mod directory;
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

pub use self::state_file::StateFileError;
pub(super) use self::{
    file::{Checkpoint, FollowedFile},
    state_file::StateFile,
};
use super::{
    PublishError,
    source::{PARTS_AHEAD, Part, Source},
};
use tail::Tail;

/// Interval between polls of an idle file. No portable call waits for a file to grow.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The end of a line in a followed file.
#[derive(Clone, Debug)]
pub(super) struct Position {
    pub(super) file: Arc<FollowedFile>,
    pub(super) checkpoint: Checkpoint,
}

/// The start, or continuation, of reading a file.
#[derive(Debug)]
pub(super) struct FileStart {
    /// The file, and how much of it is skipped.
    pub(super) position: Position,
    /// Whether the last line of the previous file is complete even without a line break.
    /// Otherwise it will be read again.
    pub(super) completes_last_line: bool,
}

/// An incident in following a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileNotice {
    /// A possible problem.
    Warning(String),
    /// Some content was not read.
    Loss(String),
    /// The path does not exist, or cannot be opened.
    Absent(String),
    /// The path can be opened again.
    Present,
}

/// Returns the state file of a log if none is named: a hidden file beside it.
pub fn default_state_file(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.siem-relay"))
}

/// Starts to read from the position in the state file.
pub(super) fn open(path: PathBuf, state_file: PathBuf) -> Result<Source, PublishError> {
    if is_pattern(&path) {
        return Err(PublishError::Pattern { path });
    }
    let state_file = StateFile::open(&path, state_file)?;
    let mut tail = Tail::new(path.clone(), state_file.saved().cloned());
    let (sender, parts) = mpsc::channel(PARTS_AHEAD);
    thread::Builder::new()
        .name("eve-follower".into())
        .spawn(move || pump(&mut tail, &sender))
        .map_err(|error| PublishError::Open { path, error })?;
    Ok(Source {
        parts,
        total_bytes: None,
        state_file: Some(state_file),
    })
}

/// Whether a path does not exist and contains a strftime conversion, as Suricata's `filename`
/// may.
fn is_pattern(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let mut pairs = text.as_bytes().windows(2);
    pairs.any(|pair| pair[0] == b'%' && pair[1].is_ascii_alphabetic()) && !path.exists()
}

/// Follows the file until an error or the drop of the receiver.
fn pump(tail: &mut Tail, parts: &mpsc::Sender<io::Result<Part>>) {
    loop {
        let part = match tail.next_part().transpose() {
            None if parts.is_closed() => return,
            None => {
                thread::park_timeout(POLL_INTERVAL);
                continue;
            }
            Some(part) => part,
        };
        let failed = part.is_err();
        if parts.blocking_send(part).is_err() || failed {
            return;
        }
    }
}
